//! Subscribers.

use std::sync::Arc;

use serde_json::json;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;

use super::super::observed_request::{EVENT_BUFFER_MAX, NUMBER_TIMEOUT, ObservedRequest};
use super::*;
use crate::store::Origin;
use swarm_shared::api::{ActRequest, CommandKind, Delivery, Failure, FleetRequest, Request};

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

    fn observe(&self, request: &Request, origin: &Origin) -> Option<Arc<ObservedRequest>> {
        self.subscribers.broadcast.observe(&self.tasks, request, origin)
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
async fn requests_are_observed_only_with_subscribers() {
    let mut rig = Rig::default();
    let is_observed =
        |rig: &Rig, request: &Request| rig.observe(request, &Origin::command_by("eva")).is_some();
    assert!(!is_observed(&rig, &command("led")) && rig.tasks.is_empty());
    let follower = rig.follow(true, 8);
    assert!(is_observed(&rig, &command("led")) && rig.subscribers.wants_telemetry());
    assert!(
        !is_observed(&rig, &FleetRequest::Members.into()),
        "it ends as soon as it is answered"
    );
    drop(follower);
    rig.subscribers.flush();
    assert!(!rig.subscribers.wants_telemetry());
    // The subscriber's task has to notice first.
    rig.shutdown.cancel();
    rig.tasks.close();
    rig.tasks.wait().await;
    assert!(!is_observed(&rig, &command("led")));
}

#[tokio::test]
async fn subscriber_receives_events_with_the_history_number() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let origin = Origin::command_by("eva");
    let observed = rig.observe(&command("led"), &origin).expect("observed");
    let long = "x".repeat(100_000);
    let sent = [
        Event::Targets {
            targets: vec![node(1)],
        },
        Event::note("for people"),
        delivery(long.clone()),
        Event::End,
    ];
    for event in &sent {
        observed.push(event);
        origin.history_number.get_or_set(7);
    }
    let mut received = Vec::new();
    for _ in 0..3 {
        let Some(Event::Observed {
            kind,
            what,
            who,
            number,
            event,
        }) = follower.recv().await
        else {
            panic!("three events")
        };
        assert_eq!(
            (kind, what.as_str(), who.as_str()),
            (CommandKind::Command, "led", "eva")
        );
        received.push((number, *event));
    }
    assert_eq!(
        received[0],
        (Some(7), sent[0].clone()),
        "its number is waited for"
    );
    let (Some(7), Event::Delivery(cut)) = &received[1] else {
        panic!("{:?}", received[1])
    };
    assert_eq!((cut.state, cut.error.as_deref()), (Outcome::Failed, Some("no")));
    let output = cut.output.as_deref().expect("kept");
    assert!(
        output.len() < 8_192 && output.starts_with("xxx"),
        "{}",
        output.len()
    );
    assert_eq!(received[2], (Some(7), Event::End));
}

#[tokio::test(start_paused = true)]
async fn first_events_wait_for_the_history_number_up_to_a_timeout() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let mut read = || {
        let event = follower.try_recv().ok()?;
        let Event::Observed { number, event, .. } = event else {
            panic!("{event:?}")
        };
        assert!(matches!(*event, Event::Targets { .. }), "{event:?}");
        Some(number)
    };
    let push_first = async |observed: &Arc<ObservedRequest>| {
        observed.push(&Event::Targets { targets: Vec::new() });
        tokio::time::sleep(NUMBER_TIMEOUT / 2).await;
    };
    // The number comes, and no other event.
    let origin = Origin::command_by("eva");
    let observed = rig.observe(&command("led"), &origin).expect("observed");
    push_first(&observed).await;
    assert_eq!(read(), None);
    origin.history_number.get_or_set(7);
    tokio::time::sleep(NUMBER_TIMEOUT / 8).await;
    assert_eq!(read(), Some(Some(7)));
    // The number does not come.
    let led = rig.observe(&command("led"), &Origin::command_by("eva"));
    push_first(&led.expect("observed")).await;
    assert_eq!(read(), None);
    tokio::time::sleep(NUMBER_TIMEOUT).await;
    assert_eq!(read(), Some(None));
    // A read has no number.
    let ping = rig.observe(&command("ping"), &Origin::command_by("eva"));
    push_first(&ping.expect("observed")).await;
    assert_eq!(read(), Some(None));
}

#[tokio::test]
async fn subscriber_is_told_the_end_of_a_request_once() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 8);
    let stop = ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: None,
    };
    let stop: Request = stop.into();
    let observed = rig.observe(&stop, &Origin::command_by("eva")).expect("observed");
    observed.end("cut off");
    observed.end("cut off");
    let Some(Event::Observed {
        kind, what, event, ..
    }) = follower.recv().await
    else {
        panic!("an event")
    };
    assert_eq!((kind, what.as_str()), (CommandKind::Stop, "stop"));
    assert_eq!(*event, Event::failed(Failure::ShutDown, "cut off"));
    assert!(follower.try_recv().is_err());
}

#[tokio::test]
async fn slow_subscriber_loses_only_the_oldest_events() {
    let mut rig = Rig::default();
    let mut follower = rig.follow(false, 1);
    let observed = rig.observe(&command("led"), &Origin::command_by("eva"));
    let observed = observed.expect("observed");
    let count = EVENT_BUFFER_MAX + 500;
    for number in 0..count {
        observed.push(&Event::Progress {
            node: node(1),
            bytes: number as u64,
            total: 0,
        });
    }
    let (mut received, mut missed, mut newest) = (0, 0, None);
    while received + missed < count as u64 {
        let event = follower.recv().await.expect("goes on");
        if let Event::Lagged { count } = event {
            missed += count;
        } else if let Event::Observed { event, .. } = event {
            (received, newest) = (received + 1, Some(*event));
        } else {
            panic!("{event:?}");
        }
    }
    assert!(
        missed >= 400 && received >= EVENT_BUFFER_MAX as u64 - 1,
        "{missed} {received}"
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
        "without subscribers nothing is kept"
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
