use serde_json::json;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;

use super::*;

fn node(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::from_host(&format!("n{number}")),
        id: PeerId([number; 32]),
    }
}

fn command(action: &str) -> Request {
    Request::Command {
        selector: Selector::all(),
        action: action.to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 1,
        ttl_given: false,
        timeout_ms: 1,
        batch: None,
    }
}

/// Followers, and what they stand on.
#[derive(Default)]
struct Rig {
    followers: Followers,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Rig {
    fn follow(&mut self, telemetry: bool, room: usize) -> mpsc::Receiver<Event> {
        let (events, follower) = mpsc::channel(room);
        self.followers.add(telemetry, &self.tasks, &self.stop, events);
        follower
    }

    fn ask(&self, request: &Request, origin: &Origin) -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
        let (events, asker) = mpsc::channel(EVENTS_MAX);
        let to = self.followers.overhear(&self.tasks, request, origin, events);
        (to, asker)
    }

    fn read(&mut self, number: u8, values: Value) {
        let Value::Object(values) = values else {
            panic!("readings are an object")
        };
        self.followers.take(Reading {
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
async fn while_nobody_follows_a_request_goes_its_own_way() {
    let mut rig = Rig::default();
    let (events, _asker) = mpsc::channel(1);
    let overhear = |rig: &Rig, request: &Request| {
        let to = rig
            .followers
            .overhear(&rig.tasks, request, &Origin::of("eva"), events.clone());
        to.same_channel(&events)
    };
    assert!(overhear(&rig, &command("led")) && rig.tasks.is_empty());
    let follower = rig.follow(true, 8);
    assert!(!overhear(&rig, &command("led")) && rig.followers.wants_telemetry());
    assert!(
        overhear(&rig, &Request::Members),
        "over as soon as it is answered"
    );
    drop(follower);
    rig.followers.catch_up();
    assert!(!rig.followers.wants_telemetry());
    // Its task has to see it first.
    rig.stop.cancel();
    rig.tasks.close();
    rig.tasks.wait().await;
    assert!(overhear(&rig, &command("led")));
}

#[tokio::test]
async fn both_the_asker_and_the_follower_hear_all_that_becomes_of_a_request() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let origin = Origin::of("eva");
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
        origin.number.settle(7);
    }
    let mut told = Vec::new();
    for _ in 0..3 {
        let Some(Event::Told {
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
async fn a_number_is_waited_for_as_long_as_a_disk_may_take_and_no_longer() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let mut read = || {
        let word = follower.try_recv().ok()?;
        let Event::Told { number, event, .. } = word else {
            panic!("{word:?}")
        };
        assert!(matches!(*event, Event::Targets { .. }), "{event:?}");
        Some(number)
    };
    let begins = Event::Targets { targets: Vec::new() };
    let settled = async |to: &mpsc::Sender<Event>, asker: &mut mpsc::Receiver<Event>| {
        to.send(begins.clone()).await.expect("read");
        assert!(asker.recv().await.is_some(), "whoever asked waits for no number");
        tokio::time::sleep(NUMBER_MAX / 2).await;
    };
    // Known by and by, with nothing else to tell.
    let origin = Origin::of("eva");
    let (to, mut asker) = rig.ask(&command("led"), &origin);
    settled(&to, &mut asker).await;
    assert_eq!(read(), None);
    origin.number.settle(7);
    tokio::time::sleep(NUMBER_MAX / 8).await;
    assert_eq!(read(), Some(Some(7)));
    // Never known, and what has none.
    let (to, mut asker) = rig.ask(&command("led"), &Origin::of("eva"));
    settled(&to, &mut asker).await;
    assert_eq!(read(), None);
    tokio::time::sleep(NUMBER_MAX).await;
    assert_eq!(read(), Some(None));
    let (to, mut asker) = rig.ask(&command("ping"), &Origin::of("eva"));
    settled(&to, &mut asker).await;
    assert_eq!(read(), Some(None));
}

#[tokio::test]
async fn whoever_asked_can_leave_and_the_follower_learns_it() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let stop = Request::Stop {
        selector: Selector::all(),
        timeout_ms: None,
        beside: false,
    };
    let (to, asker) = rig.ask(&stop, &Origin::of("eva"));
    drop(asker);
    to.closed().await;
    let Some(Event::Told {
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
                failure: Failure::Stopped,
                ..
            }
        ),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_slow_follower_loses_the_oldest_words_and_holds_up_nobody() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 1);
    let (to, mut asker) = rig.ask(&command("led"), &Origin::of("eva"));
    let words = TOLD_MAX + 500;
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
        if let Event::Missed { count } = event {
            missed += count;
        } else if let Event::Told { event, .. } = event {
            (heard, newest) = (heard + 1, Some(*event));
        } else {
            panic!("{event:?}");
        }
    }
    assert!(missed >= 400 && heard >= TOLD_MAX as u64 - 1, "{missed} {heard}");
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
async fn only_readings_that_changed_are_told() {
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
    rig.followers.catch_up();
    assert!(rig.followers.known.is_empty(), "nothing is kept for nobody");
}

#[tokio::test]
async fn a_slow_follower_gets_the_newest_reading_of_each() {
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
        rig.followers.catch_up();
    }
    assert_eq!(all.len(), 3);
    assert_eq!(all["n3"], json!({"t": 49, "3": 49}));
}
