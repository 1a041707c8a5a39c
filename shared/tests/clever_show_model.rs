//! Property test of the server's side of one drone (`proto/foreign/clever_show/server.rs`): for any sequence of
//! events, every ticket ends once, a cancelled ticket is never sent, and the timer always advances.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::clever_show::server::{Deadlines, Drone, DroneOptions, Event};
use swarm_shared::proto::foreign::clever_show::{Message, request_id};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::Frame;

const SECOND: Duration = Duration::from_secs(1);

fn drone(resume_queue: bool, resend_requests: bool) -> Drone {
    let rules = DroneOptions {
        resume_queue,
        resend_requests,
        idle_timeout: 60 * SECOND,
    };
    Drone::new("clever-1".to_owned(), rules)
}

fn deadlines(now: Instant) -> Deadlines {
    Deadlines {
        start_by: now + 10 * SECOND,
        respond_by: now + 20 * SECOND,
    }
}

/// Arguments that hold the ticket's number.
fn ticket_arguments(ticket: u64) -> Arguments {
    serde_json::from_value(json!({ "kwargs": { "ticket": ticket } })).expect("arguments")
}

/// The ticket of a frame, from its arguments or its path; `None` for a stop, or for a request of the server's own.
fn ticket_of(frame: &Frame) -> Option<u64> {
    let by_arguments = |arguments: &Arguments| {
        let path = arguments.kwargs.get("filepath").and_then(Value::as_str);
        let by_path = path.and_then(|path| path.strip_prefix('/')?.parse().ok());
        by_path.or_else(|| arguments.kwargs.get("ticket").and_then(Value::as_u64))
    };
    match Message::from_frame(frame).expect("our own") {
        Message::Action { arguments, .. } | Message::Request { arguments, .. } => by_arguments(&arguments),
        Message::FilePush { path, .. } => path.strip_prefix('/').and_then(|ticket| ticket.parse().ok()),
        Message::Response { .. } | Message::FileResponse { .. } => None,
    }
}

fn next_frame(drone: &mut Drone, now: Instant, cancelled: &BTreeSet<u64>) -> Option<Frame> {
    let frame = drone.next_frame(now)?;
    let ticket = ticket_of(&frame).filter(|ticket| cancelled.contains(ticket));
    assert_eq!(ticket, None, "no ticket waits for it any more");
    Some(frame)
}

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect,
    Tell(u64),
    Push(usize),
    Ask(u64),
    AskFile,
    Answer(u64, bool),
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
        (0..40_u64, any::<bool>()).prop_map(|(id, file)| Step::Answer(id, file)),
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
    fn every_ticket_completes_exactly_once(
        steps in prop::collection::vec(step(), 0..120),
        resume in any::<bool>(),
        resend in any::<bool>(),
    ) {
        let mut drone = drone(resume, resend);
        let mut now = clock::now();
        let mut open: BTreeMap<u64, Option<Instant>> = BTreeMap::new();
        let mut cancelled = BTreeSet::new();
        let mut ticket = 0;
        for step in steps {
            let mut begin = |open: &mut BTreeMap<u64, Option<Instant>>, at: Option<Instant>| {
                ticket += 1;
                open.insert(ticket, at);
                ticket
            };
            match step {
                Step::Connect => drone.on_connected(now),
                Step::Disconnect => drone.on_disconnected(now),
                Step::Tell(ms) => {
                    let due = now + Duration::from_millis(ms);
                    let ticket = begin(&mut open, Some(due));
                    drone.send_action(ticket, "led", ticket_arguments(ticket), due, now);
                }
                Step::Push(bytes) => {
                    let due = now + SECOND;
                    let ticket = begin(&mut open, Some(due));
                    drone.send_file(ticket, &format!("/{ticket}"), vec![0; bytes].into(), due, now);
                }
                Step::Ask(ms) => {
                    let due = now + Duration::from_millis(ms);
                    let ticket = begin(&mut open, None);
                    drone.send_request(ticket, "time", ticket_arguments(ticket), Deadlines { start_by: due, respond_by: due }, now);
                }
                Step::AskFile => {
                    let ticket = begin(&mut open, None);
                    drone.request_file(ticket, &format!("/{ticket}"), deadlines(now), now);
                }
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
                    if next_frame(&mut drone, now, &cancelled).is_some() || drone.is_connected() {
                        drone.on_written();
                    }
                },
                Step::Half => drop(next_frame(&mut drone, now, &cancelled)),
                Step::Cancel(back) => {
                    // One of the newest tickets.
                    let which = ticket - ticket.min(back % 4);
                    drone.cancel(which);
                    cancelled.insert(which);
                    // Events of tickets that ended before are still reported.
                    while let Some(event) = drone.poll_event() {
                        if let Event::Completed(ended, _) = event {
                            prop_assert!(open.remove(&ended).is_some());
                        }
                    }
                    open.remove(&which);
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
                if let Event::Completed(ended, _) = event {
                    prop_assert!(open.remove(&ended).is_some(), "ended twice");
                }
            }
        }
        drone.close("the end");
        while let Some(event) = drone.poll_event() {
            if let Event::Completed(ended, _) = event {
                prop_assert!(open.remove(&ended).is_some(), "ended twice");
            }
        }
        prop_assert!(open.is_empty(), "never ended: {open:?}");
    }
}

#[test]
fn cancelled_frames_are_not_resent() {
    let now = clock::now();
    let begin = |what: u64| {
        let mut drone = drone(true, true);
        drone.on_connected(now);
        assert!(drone.next_frame(now).is_some(), "clover_dir");
        drone.on_written();
        match what {
            0 => drone.send_action(1, "led", ticket_arguments(1), now + SECOND, now),
            1 => drone.send_file(1, "/1", Bytes::new(), now + SECOND, now),
            _ => drone.send_request(1, "time", ticket_arguments(1), deadlines(now), now),
        }
        let frame = drone.next_frame(now).expect("it goes out");
        assert_eq!(ticket_of(&frame), Some(1));
        drone
    };
    let not_again = |drone: &mut Drone| {
        drone.on_connected(now);
        while let Some(frame) = drone.next_frame(now) {
            assert_eq!(ticket_of(&frame), None, "{frame:?}");
            drone.on_written();
        }
    };
    for what in 0..3 {
        let mut half = begin(what);
        half.cancel(1);
        half.on_disconnected(now);
        not_again(&mut half);
        let mut while_away = begin(what);
        while_away.on_disconnected(now);
        while_away.cancel(1);
        not_again(&mut while_away);
    }
    let mut unanswered = begin(2);
    unanswered.on_written();
    unanswered.on_disconnected(now);
    unanswered.cancel(1);
    not_again(&mut unanswered);
}
