//! The server's side of one drone (`proto/foreign/clever_show/server.rs`): every ticket ends once, nothing starts
//! late, and a lost connection has the configured effect.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::clever_show::server::{
    BadId, CLOVER_DIR_BYTES_MAX, Completion, Deadlines, Drone, DroneOptions, Event, PROBE_AFTER, QUEUE_MAX,
    READINGS_MAX, READINGS_MEMORY_MAX, REQUESTS_MAX, id_request, parse_id_response,
};
use swarm_shared::proto::foreign::clever_show::{Message, request_id};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, ContentType, Frame, Header, MessageType};

const IDLE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn drone(resume_queue: bool, resend_requests: bool) -> Drone {
    let rules = DroneOptions {
        resume_queue,
        resend_requests,
        idle_timeout: IDLE,
    };
    Drone::new("clever-1".to_owned(), rules)
}

/// Everything that is to be written now, as messages.
fn write_all(drone: &mut Drone, now: Instant) -> Vec<Message> {
    let mut all = Vec::new();
    while let Some(frame) = drone.next_frame(now) {
        assert_eq!(drone.next_frame(now), None, "one at a time");
        all.push(Message::from_frame(&frame).expect("ours"));
        drone.on_written();
    }
    all
}

fn events(drone: &mut Drone) -> Vec<Event> {
    std::iter::from_fn(|| drone.poll_event()).collect()
}

fn names(messages: &[Message]) -> Vec<&str> {
    fn name(message: &Message) -> &str {
        match message {
            Message::Action { action, .. } => action,
            Message::Request { name, .. }
            | Message::Response { name, .. }
            | Message::FileResponse { name, .. } => name,
            Message::FilePush { path, .. } => path,
        }
    }
    messages.iter().map(name).collect()
}

fn response(id: u64, name: &str, value: Value) -> Frame {
    let message = Message::Response {
        name: name.to_owned(),
        id: request_id(id),
        value,
    };
    message.to_frame()
}

fn deadlines(now: Instant) -> Deadlines {
    Deadlines {
        start_by: now + 10 * SECOND,
        respond_by: now + 20 * SECOND,
    }
}

fn no_arguments() -> Arguments {
    Arguments::default()
}

#[test]
fn id_is_requested_first() {
    let asked = Message::from_frame(&id_request()).expect("ours");
    assert_eq!(names(&[asked]), ["id"]);
    assert_eq!(
        parse_id_response(&response(0, "id", json!("clever-1"))),
        Some(Ok("clever-1".to_owned()))
    );
    assert_eq!(
        parse_id_response(&response(0, "id", json!(7))),
        Some(Ok("7".to_owned()))
    );
    for bad in [
        json!(null),
        json!(""),
        json!("  "),
        json!([]),
        json!("x".repeat(254)),
    ] {
        assert_eq!(parse_id_response(&response(0, "id", bad)), Some(Err(BadId)));
    }
    assert_eq!(parse_id_response(&response(1, "id", json!("x"))), None);
    assert_eq!(parse_id_response(&response(0, "time", json!("x"))), None);
    assert_eq!(parse_id_response(&id_request()), None);
}

#[test]
fn clover_dir_is_requested_until_answered_once() {
    let mut now = clock::now();
    for resend in [false, true] {
        let mut drone = drone(false, resend);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["clover_dir"]);
        drone.on_disconnected(now);
        drone.on_connected(now);
        let asked = write_all(&mut drone, now);
        assert_eq!(names(&asked), ["clover_dir"], "it was never answered");
        let Message::Request { id, .. } = &asked[0] else {
            panic!("{asked:?}")
        };
        drone.handle_frame(
            &response(id.parse().expect("digits"), "clover_dir", json!("/home/pi")),
            now,
        );
        assert_eq!(drone.clover_dir(), Some("/home/pi"));
        drone.on_disconnected(now);
        now += SECOND;
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), [""; 0]);
    }
}

#[test]
fn oversized_clover_dir_is_not_kept() {
    let now = clock::now();
    let longest = "x".repeat(CLOVER_DIR_BYTES_MAX);
    let longer = format!("{longest}x");
    for (answer, kept) in [
        (json!(longest), Some(longest.as_str())),
        (json!(longer), None),
        (json!([{ "": 0 }, { "": 0 }]), None),
    ] {
        let mut drone = drone(false, false);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["clover_dir"]);
        drone.handle_frame(&response(1, "clover_dir", answer), now);
        assert_eq!(drone.clover_dir(), kept);
        // That was its answer: it is not asked again.
        drone.on_disconnected(now);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), [""; 0]);
    }
}

/// A drone that has answered all initial requests.
fn ready_drone(resume_queue: bool, resend_requests: bool, now: Instant) -> Drone {
    let mut drone = drone(resume_queue, resend_requests);
    drone.on_connected(now);
    write_all(&mut drone, now);
    drone.handle_frame(&response(1, "clover_dir", Value::Null), now);
    assert!(events(&mut drone).is_empty());
    drone
}

#[test]
fn written_frames_are_sent_and_responses_are_matched() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    drone.send_action(1, "led", no_arguments(), now + SECOND, now);
    drone.send_file(2, "/x", Bytes::new(), now + SECOND, now);
    drone.send_request(3, "time", no_arguments(), deadlines(now), now);
    drone.request_file(4, "/y", deadlines(now), now);
    assert!(events(&mut drone).is_empty() && !drone.is_awaiting_file());
    drone.handle_frame(&response(2, "time", json!(0)), now);
    let early = events(&mut drone);
    assert!(
        matches!(early.as_slice(), [Event::Ignored(_)]),
        "not asked yet: {early:?}"
    );
    assert_eq!(
        names(&write_all(&mut drone, now)),
        ["led", "/x", "time", "filetransfer"]
    );
    assert!(drone.is_awaiting_file());
    assert_eq!(
        events(&mut drone),
        [
            Event::Completed(1, Completion::Sent),
            Event::Completed(2, Completion::Sent)
        ]
    );
    // A number of another request, a name of another request, an unknown number.
    for (id, name) in [(2, "telemetry"), (9, "time")] {
        drone.handle_frame(&response(id, name, json!(1)), now);
        assert!(matches!(events(&mut drone).as_slice(), [Event::Ignored(_)]));
    }
    drone.handle_frame(&response(2, "time", json!(1.5)), now);
    drone.handle_frame(&response(2, "time", json!(1.5)), now);
    let file = Message::FileResponse {
        name: "filetransfer".to_owned(),
        id: request_id(3),
        content: Bytes::from_static(b"y"),
    };
    drone.handle_frame(&file.to_frame(), now);
    let told = events(&mut drone);
    assert_eq!(told[0], Event::Completed(3, Completion::Response(json!(1.5))));
    assert!(matches!(told[1], Event::Ignored(_)), "answered twice: {told:?}");
    assert_eq!(
        told[2],
        Event::Completed(4, Completion::File(Bytes::from_static(b"y")))
    );
    assert!(!drone.is_awaiting_file());
}

#[test]
fn options_decide_what_survives_a_disconnect() {
    for (resume, resend) in [(false, false), (false, true), (true, false), (true, true)] {
        let now = clock::now();
        let mut drone = ready_drone(resume, resend, now);
        drone.send_request(1, "asked", no_arguments(), deadlines(now), now);
        write_all(&mut drone, now);
        drone.send_action(2, "half", no_arguments(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "half of it is written");
        drone.send_action(3, "queued", no_arguments(), now + SECOND, now);
        drone.send_request(4, "unasked", no_arguments(), deadlines(now), now);
        drone.on_disconnected(now);
        let lost: BTreeSet<u64> = events(&mut drone)
            .into_iter()
            .map(|event| {
                let Event::Completed(ticket, Completion::NoAnswer(_)) = event else {
                    panic!("{event:?}")
                };
                ticket
            })
            .collect();
        let mut expected = BTreeSet::new();
        if !resend {
            expected.insert(1);
        }
        if !resume {
            expected.extend([2, 3, 4]);
        }
        assert_eq!(lost, expected, "resume {resume}, resend {resend}");
        // While the drone is disconnected.
        drone.send_action(5, "away", no_arguments(), now + SECOND, now);
        assert_eq!(events(&mut drone).len(), usize::from(!resume));
        drone.on_connected(now);
        let again = write_all(&mut drone, now);
        let mut expected = Vec::new();
        if resend {
            expected.push("asked");
        }
        if resume {
            expected.extend(["half", "queued", "unasked", "away"]);
        }
        assert_eq!(names(&again), expected, "resume {resume}, resend {resend}");
        // Disconnected before the request was sent again: that counts as sent again.
        if resend {
            drone.on_disconnected(now);
            drone.on_connected(now);
            drone.on_disconnected(now);
            drone.on_connected(now);
            assert_eq!(names(&write_all(&mut drone, now))[0], "asked");
            drone.handle_frame(&response(2, "asked", json!(1)), now);
            let told = events(&mut drone);
            assert!(
                told.contains(&Event::Completed(1, Completion::Response(json!(1)))),
                "{told:?}"
            );
        }
    }
}

#[test]
fn nothing_starts_late_and_requests_time_out() {
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.on_disconnected(now);
    drone.send_action(1, "stale", no_arguments(), now + SECOND, now);
    drone.send_action(2, "never", no_arguments(), now, now);
    drone.send_request(3, "asked", no_arguments(), deadlines(now), now);
    assert_eq!(events(&mut drone), [Event::Completed(2, Completion::Expired)]);
    assert_eq!(drone.poll_timeout(), Some(now + SECOND));
    // Not even if the timer fires late.
    drone.on_connected(now + 2 * SECOND);
    assert_eq!(names(&write_all(&mut drone, now + 2 * SECOND)), ["asked"]);
    assert_eq!(events(&mut drone), [Event::Completed(1, Completion::Expired)]);
    drone.handle_timeout(now + 20 * SECOND);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Completed(3, Completion::NoAnswer(_))]
    ));
}

#[test]
fn arriving_file_extends_its_deadline() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    drone.request_file(1, "/y", deadlines(now), now);
    write_all(&mut drone, now);
    let file = Header {
        content_type: ContentType::Binary,
        message_type: MessageType::Response,
        ..Header::default()
    };
    drone.extend_file_deadline(&file, now + 25 * SECOND);
    // Readings do not extend the deadline, however often they come.
    drone.extend_file_deadline(&Header::default(), now + 90 * SECOND);
    drone.handle_timeout(now + 24 * SECOND);
    assert!(events(&mut drone).is_empty());
    drone.handle_timeout(now + 25 * SECOND);
    assert_eq!(events(&mut drone).len(), 1);
}

#[test]
fn json_over_its_own_limit_is_ignored() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    drone.request_file(1, "/y", deadlines(now), now);
    write_all(&mut drone, now);
    assert!(drone.is_awaiting_file());
    let passed_over = |drone: &mut Drone| {
        let told = events(drone);
        matches!(told.as_slice(), [Event::Ignored(note)] if note.contains("bytes of JSON"))
    };
    let frame = |bytes: usize| response(2, "filetransfer", json!("x".repeat(bytes)));
    let around = frame(0).content.len();
    drone.handle_frame(&frame(CONTENT_BYTES_MAX + 1 - around), now);
    assert!(passed_over(&mut drone) && drone.is_awaiting_file());
    drone.handle_frame(&frame(CONTENT_BYTES_MAX - around), now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Completed(1, Completion::WrongKind(_))]
    ));
    // A file may be that long.
    drone.request_file(2, "/y", deadlines(now), now);
    write_all(&mut drone, now);
    let content = Bytes::from(vec![0; CONTENT_BYTES_MAX + 1]);
    let file = Message::FileResponse {
        name: "filetransfer".to_owned(),
        id: request_id(3),
        content: content.clone(),
    };
    drone.handle_frame(&file.to_frame(), now);
    assert_eq!(
        events(&mut drone),
        [Event::Completed(2, Completion::File(content))]
    );
}

#[test]
fn silent_drone_is_probed_and_then_times_out() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    assert_eq!(drone.poll_timeout(), Some(now + PROBE_AFTER));
    drone.handle_timeout(now + PROBE_AFTER);
    let asked = write_all(&mut drone, now + PROBE_AFTER);
    assert_eq!(names(&asked), ["id"]);
    assert_eq!(drone.poll_timeout(), Some(now + IDLE));
    // It answers: the timers start anew.
    let later = now + PROBE_AFTER + SECOND;
    drone.handle_frame(&response(2, "id", json!("clever-1")), later);
    assert_eq!(
        (events(&mut drone), drone.poll_timeout()),
        (vec![], Some(later + PROBE_AFTER))
    );
    drone.handle_timeout(later + IDLE);
    drone.handle_timeout(later + IDLE);
    assert_eq!(events(&mut drone), [Event::IdleTimeout], "once");
    assert!(drone.poll_timeout().is_none());
}

#[test]
fn changed_id_is_reported() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    drone.probe();
    drone.probe();
    assert_eq!(names(&write_all(&mut drone, now)), ["id"], "one at a time");
    drone.handle_frame(&response(2, "id", json!("other")), now);
    assert_eq!(events(&mut drone), [Event::IdChanged("other".to_owned())]);
}

#[test]
fn stop_goes_first_drops_actions_and_is_resent() {
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
    drone.send_file(2, "/x", Bytes::new(), now + SECOND, now);
    drone.send_request(3, "time", no_arguments(), deadlines(now), now);
    drone.stop(4, "emergency_land", now + SECOND);
    assert!(drone.is_stopped());
    assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land", "time"]);
    let told = events(&mut drone);
    for ticket in [1, 2] {
        assert!(
            told.contains(&Event::Completed(
                ticket,
                Completion::Refused("dropped by an emergency stop")
            )),
            "{told:?}"
        );
    }
    assert!(told.contains(&Event::Completed(4, Completion::Sent)));
    drone.send_action(5, "takeoff", no_arguments(), now + SECOND, now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Completed(5, Completion::Refused(_))]
    ));
    // On each new connection, before everything else.
    drone.on_disconnected(now);
    drone.on_connected(now);
    assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land", "time"]);
    // A drone that is disconnected gets the stop when it returns, even if no ticket waits for it any more.
    drone.on_disconnected(now);
    drone.stop(6, "emergency_land", now + SECOND);
    drone.handle_timeout(now + SECOND);
    let told = events(&mut drone);
    assert!(
        matches!(told.as_slice(), [Event::Completed(6, Completion::NoAnswer(why))] if why.contains("when the drone is back")),
        "{told:?}"
    );
    drone.on_connected(now + SECOND);
    assert_eq!(
        names(&write_all(&mut drone, now + SECOND)),
        ["emergency_land", "time"]
    );
    assert!(drone.release() && !drone.release());
    drone.send_action(7, "led", no_arguments(), now + 5 * SECOND, now + SECOND);
    assert_eq!(names(&write_all(&mut drone, now + SECOND)), ["led"]);
}

#[test]
fn action_half_written_at_a_stop_is_not_resent() {
    let dropped = Completion::Refused("dropped by an emergency stop");
    for release in [false, true] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "half of it is written");
        drone.stop(2, "emergency_land", now + SECOND);
        if release {
            drone.release();
        }
        drone.on_disconnected(now);
        assert_eq!(events(&mut drone), [Event::Completed(1, dropped.clone())]);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Completed(2, Completion::Sent)]);
    }
    // It was written completely after all, and is reported so.
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
    assert!(drone.next_frame(now).is_some());
    drone.stop(2, "emergency_land", now + SECOND);
    drone.on_written();
    assert_eq!(events(&mut drone), [Event::Completed(1, Completion::Sent)]);
}

#[test]
fn stop_is_sent_although_cancelled_or_expired() {
    for (late, lost) in [(false, false), (true, false), (false, true), (true, true)] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_file(1, "/x", Bytes::new(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "a file is on its way");
        // Two tickets at once: one frame serves both.
        for ticket in [2, 3] {
            drone.stop(ticket, "emergency_land", now + SECOND);
        }
        if late {
            drone.handle_timeout(now + SECOND);
            let told = events(&mut drone);
            assert!(
                matches!(
                    told.as_slice(),
                    [Event::Completed(2, Completion::NoAnswer(why)), Event::Completed(3, Completion::NoAnswer(_))]
                        if why.contains("not sent yet")
                ),
                "it is here, and not told: {told:?}"
            );
        } else {
            drone.cancel(2);
            drone.cancel(3);
        }
        let now = now + 2 * SECOND;
        drone.on_written();
        if lost {
            assert!(drone.next_frame(now).is_some(), "half of the stop is written");
            drone.on_disconnected(now);
            drone.on_connected(now);
        }
        assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Completed(1, Completion::Sent)]);
    }
    // Not after its release, wherever it is queued.
    for half in [false, true] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_request(1, "time", no_arguments(), deadlines(now), now);
        assert!(drone.next_frame(now).is_some());
        drone.stop(2, "emergency_land", now + SECOND);
        if half {
            drone.on_written();
            assert!(drone.next_frame(now).is_some(), "half of the stop is written");
        }
        drone.cancel(2);
        drone.release();
        drone.on_disconnected(now);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["time"]);
    }
}

#[test]
fn queued_stop_precedes_resent_requests() {
    let now = clock::now();
    let mut drone = drone(true, true);
    drone.on_connected(now);
    drone.send_request(1, "time", no_arguments(), deadlines(now), now);
    assert_eq!(names(&write_all(&mut drone, now)), ["clover_dir", "time"]);
    drone.send_request(2, "position", no_arguments(), deadlines(now), now);
    assert!(drone.next_frame(now).is_some(), "half of it is written");
    drone.stop(3, "emergency_land", now + SECOND);
    drone.on_disconnected(now);
    drone.on_connected(now);
    assert_eq!(
        names(&write_all(&mut drone, now)),
        ["emergency_land", "clover_dir", "time", "position"]
    );
}

#[test]
fn queue_requests_and_readings_are_bounded() {
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.on_disconnected(now);
    let many = u64::try_from(QUEUE_MAX).expect("few");
    for ticket in 0..many + 5 {
        drone.send_action(ticket, "led", no_arguments(), now + SECOND, now);
    }
    let told = events(&mut drone);
    assert_eq!(told.len(), 5);
    assert!(
        told.iter()
            .all(|event| matches!(event, Event::Completed(_, Completion::Refused(_))))
    );
    let mut drone = ready_drone(true, true, now);
    let many = u64::try_from(REQUESTS_MAX).expect("few");
    for ticket in 0..many + 5 {
        drone.send_request(ticket, "time", no_arguments(), deadlines(now), now);
        write_all(&mut drone, now);
    }
    assert_eq!(events(&mut drone).len(), 5);
    let mut kwargs = serde_json::Map::new();
    for number in 0..READINGS_MAX + 9 {
        kwargs.insert(format!("r{number}"), number.into());
    }
    let telemetry = Message::Action {
        action: "telemetry".to_owned(),
        arguments: Arguments {
            args: Vec::new(),
            kwargs: [("value".to_owned(), Value::Object(kwargs))]
                .into_iter()
                .collect(),
        },
    };
    drone.handle_frame(&telemetry.to_frame(), now);
    assert_eq!(drone.readings().len(), READINGS_MAX);
}

#[test]
fn readings_that_take_much_memory_are_ignored() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    let telemetry = |kwargs: Value| {
        let arguments = Arguments {
            kwargs: serde_json::from_value(kwargs).expect("an object"),
            ..no_arguments()
        };
        let action = "telemetry".to_owned();
        Message::Action { action, arguments }.to_frame()
    };
    // A hundred times as long in memory as on the wire.
    let nested = Value::Array(vec![json!({ "": 0 }); 70]);
    for name in 0..READINGS_MAX {
        drone.handle_frame(&telemetry(json!({ (format!("r{name}")): nested })), now);
    }
    let kept = drone.readings().len();
    assert!((1..=READINGS_MEMORY_MAX / (70 * 600)).contains(&kept), "{kept}");
    let told = events(&mut drone);
    let passed_over = told.iter().filter(|event| matches!(event, Event::Ignored(_)));
    assert_eq!(passed_over.count(), READINGS_MAX - kept);
    // A smaller value in its place makes room for others.
    drone.handle_frame(
        &telemetry(json!({ "r0": 1, "memory": { "total": 4, "free": 1 } })),
        now,
    );
    assert_eq!(drone.readings()["r0"], json!(1));
    assert_eq!(drone.readings()["memory"]["free"], json!(1));
    drone.handle_frame(&telemetry(json!({ "r1": nested })), now);
    assert_eq!(drone.readings()["r1"], nested);
}
