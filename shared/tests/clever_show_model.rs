//! Property test of a server's side of one drone (`proto/clever_show/server.rs`): whatever happens in whatever order,
//! every ticket ends once, and no timer rings for ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::proto::clever_show::server::{Drone, Event, Rules, Until};
use swarm_shared::proto::clever_show::{Message, request_id};
use swarm_shared::proto::message::Arguments;

const SECOND: Duration = Duration::from_secs(1);

fn drone(resume_queue: bool, resend_requests: bool) -> Drone {
    let rules = Rules {
        resume_queue,
        resend_requests,
        idle: 60 * SECOND,
    };
    Drone::new("clever-1".to_owned(), rules)
}

fn until(now: Instant) -> Until {
    Until {
        begin: now + 10 * SECOND,
        answer: now + 20 * SECOND,
    }
}

fn none() -> Arguments {
    Arguments::default()
}

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect,
    Tell(u64),
    Push(usize),
    Ask(u64),
    AskFile,
    Answer(u32, bool),
    Write(usize),
    Half,
    Cancel(u64),
    Stop,
    Release,
    Probe,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Connect),
        Just(Step::Disconnect),
        (0..3_000_u64).prop_map(Step::Tell),
        (0..100_usize).prop_map(Step::Push),
        (0..3_000_u64).prop_map(Step::Ask),
        Just(Step::AskFile),
        (0..40_u32, any::<bool>()).prop_map(|(id, file)| Step::Answer(id, file)),
        (1..4_usize).prop_map(Step::Write),
        Just(Step::Half),
        (0..40_u64).prop_map(Step::Cancel),
        Just(Step::Stop),
        Just(Step::Release),
        Just(Step::Probe),
        (0..5_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn every_ticket_ends_once_whatever_happens(
        steps in prop::collection::vec(step(), 0..120),
        resume in any::<bool>(),
        resend in any::<bool>(),
    ) {
        let mut drone = drone(resume, resend);
        let mut now = clock::now();
        let mut open: BTreeMap<u64, Option<Instant>> = BTreeMap::new();
        let mut ticket = 0;
        for step in steps {
            let mut begin = |open: &mut BTreeMap<u64, Option<Instant>>, at: Option<Instant>| {
                ticket += 1;
                open.insert(ticket, at);
                ticket
            };
            match step {
                Step::Connect => drone.connected(now),
                Step::Disconnect => drone.disconnected(now),
                Step::Tell(ms) => {
                    let due = now + Duration::from_millis(ms);
                    drone.tell(begin(&mut open, Some(due)), "led", none(), due, now);
                }
                Step::Push(bytes) => {
                    let due = now + SECOND;
                    drone.push(begin(&mut open, Some(due)), "/x", vec![0; bytes].into(), due, now);
                }
                Step::Ask(ms) => {
                    let due = now + Duration::from_millis(ms);
                    drone.ask(begin(&mut open, None), "time", none(), Until { begin: due, answer: due }, now);
                }
                Step::AskFile => drone.ask_file(begin(&mut open, None), "/y", until(now), now),
                Step::Answer(id, file) => {
                    let (name, id) = (if file { "filetransfer" } else { "time" }.to_owned(), request_id(id));
                    let message = if file {
                        Message::FileResponse { name, id, content: Bytes::new() }
                    } else {
                        Message::Response { name, id, value: Value::Null }
                    };
                    drone.handle_frame(&message.to_frame(), now);
                }
                Step::Write(frames) => for _ in 0..frames {
                    if drone.next_frame(now).is_some() || drone.is_here() {
                        drone.written();
                    }
                },
                Step::Half => drop(drone.next_frame(now)),
                Step::Cancel(ticket) => {
                    drone.cancel(ticket);
                    // What was ended before is told still.
                    while let Some(event) = drone.poll_event() {
                        if let Event::Ended(ended, _) = event {
                            prop_assert!(open.remove(&ended).is_some());
                        }
                    }
                    open.remove(&ticket);
                }
                Step::Stop => {
                    let due = now + SECOND;
                    drone.stop(begin(&mut open, None), "emergency_land", due);
                }
                Step::Release => drop(drone.release()),
                Step::Probe => drone.probe(),
                Step::Wait(ms) => now += Duration::from_millis(ms),
            }
            drone.handle_timeout(now);
            prop_assert!(drone.poll_timeout().is_none_or(|due| due > now), "no timer rings for ever");
            while let Some(event) = drone.poll_event() {
                if let Event::Ended(ended, _) = event {
                    prop_assert!(open.remove(&ended).is_some(), "ended twice");
                }
            }
        }
        drone.close("the end");
        while let Some(event) = drone.poll_event() {
            if let Event::Ended(ended, _) = event {
                prop_assert!(open.remove(&ended).is_some(), "ended twice");
            }
        }
        prop_assert!(open.is_empty(), "never ended: {open:?}");
    }
}
