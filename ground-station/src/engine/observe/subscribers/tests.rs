use serde_json::json;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;

use super::*;
use swarm_shared::api::FleetRequest;

fn node(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::from_host(&format!("n{number}")),
        id: PeerId([number; 32]),
    }
}

fn command(action: &str) -> Request {
    Request::Act(ActRequest::Command {
        selector: Selector::all(),
        action: action.to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 1,
        ttl_given: false,
        timeout_ms: 1,
        batch: None,
    })
}

/// Followers, and what they stand on.
#[derive(Default)]
struct Rig {
    subscribers: Subscribers,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Rig {
    fn follow(&mut self, telemetry: bool, room: usize) -> mpsc::Receiver<Event> {
        let (events, follower) = mpsc::channel(room);
        self.subscribers
            .subscribe(telemetry, &self.tasks, &self.shutdown, events);
        follower
    }

    fn ask(&self, request: &Request, origin: &Origin) -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
        let (events, asker) = mpsc::channel(EVENTS_MAX);
        let to = self.subscribers.tap(&self.tasks, request, origin, events);
        (to, asker)
    }

    fn read(&mut self, number: u8, values: Value) {
        let Value::Object(values) = values else {
            panic!("readings are an object")
        };
        self.subscribers.on_reply(TelemetryReply {
            node: node(number),
            values: Some(values),
        });
    }
}

fn delivery(output: String) -> Event {
    let reply = Reply {
        output: Some(output),
        ..Reply::ended(Outcome::Failed, "no")
    };
    Event::Delivery(Delivery::new(node(1), reply, 1.0))
}

#[tokio::test]
async fn requests_are_not_tapped_without_subscribers() {
    let mut rig = Rig::default();
    let (events, _asker) = mpsc::channel(1);
    let overhear = |rig: &Rig, request: &Request| {
        let to = rig
            .subscribers
            .tap(&rig.tasks, request, &Origin::command_by("eva"), events.clone());
        to.same_channel(&events)
    };
    assert!(overhear(&rig, &command("led")) && rig.tasks.is_empty());
    let follower = rig.follow(true, 8);
    assert!(!overhear(&rig, &command("led")) && rig.subscribers.wants_telemetry());
    assert!(
        overhear(&rig, &FleetRequest::Members.into()),
        "over as soon as it is answered"
    );
    drop(follower);
    rig.subscribers.flush();
    assert!(!rig.subscribers.wants_telemetry());
    // Its task has to see it first.
    rig.shutdown.cancel();
    rig.tasks.close();
    rig.tasks.wait().await;
    assert!(overhear(&rig, &command("led")));
}

#[tokio::test]
async fn caller_and_subscriber_receive_all_events() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let origin = Origin::command_by("eva");
    let (to, mut asker) = rig.ask(&command("led"), &origin);
    let long = "x".repeat(100_000);
    let said = [
        Event::Targets {
            targets: vec![node(1)],
        },
        Event::note("for people"),
        delivery(long.clone()),
        Event::End,
    ];
    for event in said.clone() {
        to.send(event.clone()).await.expect("read");
        assert_eq!(asker.recv().await, Some(event));
        origin.history_number.get_or_set(7);
    }
    let mut told = Vec::new();
    for _ in 0..3 {
        let Some(Event::Observed {
            kind,
            what,
            who,
            number,
            event,
        }) = follower.recv().await
        else {
            panic!("three words")
        };
        assert_eq!(
            (kind, what.as_str(), who.as_str()),
            (CommandKind::Command, "led", "eva")
        );
        told.push((number, *event));
    }
    assert_eq!(told[0], (Some(7), said[0].clone()), "its number is waited for");
    let (Some(7), Event::Delivery(cut)) = &told[1] else {
        panic!("{:?}", told[1])
    };
    assert_eq!((cut.state, cut.error.as_deref()), (Outcome::Failed, Some("no")));
    let output = cut.output.as_deref().expect("kept");
    assert!(
        output.len() < 8_192 && output.starts_with("xxx"),
        "{}",
        output.len()
    );
    assert_eq!(told[2], (Some(7), Event::End));
}

#[tokio::test(start_paused = true)]
async fn tap_waits_for_the_history_number_up_to_its_timeout() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let mut read = || {
        let word = follower.try_recv().ok()?;
        let Event::Observed { number, event, .. } = word else {
            panic!("{word:?}")
        };
        assert!(matches!(*event, Event::Targets { .. }), "{event:?}");
        Some(number)
    };
    let begins = Event::Targets { targets: Vec::new() };
    let settled = async |to: &mpsc::Sender<Event>, asker: &mut mpsc::Receiver<Event>| {
        to.send(begins.clone()).await.expect("read");
        assert!(asker.recv().await.is_some(), "whoever asked waits for no number");
        tokio::time::sleep(NUMBER_TIMEOUT / 2).await;
    };
    // Known by and by, with nothing else to tell.
    let origin = Origin::command_by("eva");
    let (to, mut asker) = rig.ask(&command("led"), &origin);
    settled(&to, &mut asker).await;
    assert_eq!(read(), None);
    origin.history_number.get_or_set(7);
    tokio::time::sleep(NUMBER_TIMEOUT / 8).await;
    assert_eq!(read(), Some(Some(7)));
    // Never known, and what has none.
    let (to, mut asker) = rig.ask(&command("led"), &Origin::command_by("eva"));
    settled(&to, &mut asker).await;
    assert_eq!(read(), None);
    tokio::time::sleep(NUMBER_TIMEOUT).await;
    assert_eq!(read(), Some(None));
    let (to, mut asker) = rig.ask(&command("ping"), &Origin::command_by("eva"));
    settled(&to, &mut asker).await;
    assert_eq!(read(), Some(None));
}

#[tokio::test]
async fn subscriber_learns_that_the_caller_left() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let stop = ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: None,
    };
    let (to, asker) = rig.ask(&stop.into(), &Origin::command_by("eva"));
    drop(asker);
    to.closed().await;
    let Some(Event::Observed {
        kind, what, event, ..
    }) = follower.recv().await
    else {
        panic!("a word")
    };
    assert_eq!((kind, what.as_str()), (CommandKind::Stop, "stop"));
    assert!(
        matches!(
            *event,
            Event::Failed {
                failure: Failure::ShutDown,
                ..
            }
        ),
        "{event:?}"
    );
}

#[tokio::test]
async fn slow_subscriber_loses_only_the_oldest_events() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 1);
    let (to, mut asker) = rig.ask(&command("led"), &Origin::command_by("eva"));
    let words = EVENT_BUFFER_MAX + 500;
    for number in 0..words {
        let event = Event::Progress {
            node: node(1),
            bytes: number as u64,
            total: 0,
        };
        to.send(event).await.expect("taken");
        assert!(asker.recv().await.is_some(), "nobody waits for the follower");
    }
    drop(to);
    let (mut heard, mut missed, mut newest) = (0, 0, None);
    while heard + missed < words as u64 {
        let event = follower.recv().await.expect("goes on");
        if let Event::Lagged { count } = event {
            missed += count;
        } else if let Event::Observed { event, .. } = event {
            (heard, newest) = (heard + 1, Some(*event));
        } else {
            panic!("{event:?}");
        }
    }
    assert!(
        missed >= 400 && heard >= EVENT_BUFFER_MAX as u64 - 1,
        "{missed} {heard}"
    );
    assert!(newest.is_some());
}

fn telemetry(follower: &mut mpsc::Receiver<Event>) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    while let Ok(Event::Telemetry { node, values }) = follower.try_recv() {
        all.push((node.node.to_string(), Value::Object(values)));
    }
    all
}

#[tokio::test]
async fn only_changed_readings_are_sent() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(true, 8);
    let mut other = rig.follow(false, 8);
    rig.read(1, json!({"t": 20.5, "load": [1, 2]}));
    assert_eq!(
        telemetry(&mut follower),
        [("n1".to_owned(), json!({"t": 20.5, "load": [1, 2]}))]
    );
    rig.read(1, json!({"t": 20.5, "load": [1, 2]}));
    assert_eq!(telemetry(&mut follower), []);
    rig.read(1, json!({"t": 21, "x": true}));
    assert_eq!(
        telemetry(&mut follower),
        [("n1".to_owned(), json!({"t": 21, "x": true, "load": null}))]
    );
    let mut late = rig.follow(true, 8);
    assert_eq!(
        telemetry(&mut late),
        [("n1".to_owned(), json!({"t": 21, "x": true}))]
    );
    assert_eq!(telemetry(&mut other), []);
    drop((follower, late));
    rig.subscribers.flush();
    assert!(
        rig.subscribers.last_readings.is_empty(),
        "nothing is kept for nobody"
    );
}

#[tokio::test]
async fn slow_subscriber_receives_newest_reading_of_each_node() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(true, 1);
    for round in 0..50 {
        for number in 1..=3 {
            rig.read(number, json!({"t": round, number.to_string(): round}));
        }
    }
    let mut all = BTreeMap::new();
    loop {
        let some = telemetry(&mut follower);
        if some.is_empty() {
            break;
        }
        all.extend(some);
        rig.subscribers.flush();
    }
    assert_eq!(all.len(), 3);
    assert_eq!(all["n3"], json!({"t": 49, "3": 49}));
}
