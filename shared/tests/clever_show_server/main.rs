//! The server's side of one drone (`proto/foreign/clever_show/server.rs`): every ticket ends once, nothing starts
//! late, and a lost connection has the configured effect.

mod emergency_stop;

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
    let options = DroneOptions {
        resume_queue,
        resend_requests,
        idle_timeout: IDLE,
    };
    Drone::new("clever-1".to_owned(), options)
}

/// Writes all queued frames; returns them as messages.
fn write_all(drone: &mut Drone, now: Instant) -> Vec<Message> {
    let mut all = Vec::new();
    while let Some(frame) = drone.next_frame(now) {
        assert_eq!(drone.next_frame(now), None, "one frame at a time");
        all.push(Message::from_frame(&frame).expect("a message"));
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
    let requested = Message::from_frame(&id_request()).expect("a message");
    assert_eq!(names(&[requested]), ["id"]);
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
        let requested = write_all(&mut drone, now);
        assert_eq!(
            names(&requested),
            ["clover_dir"],
            "requested again without a response"
        );
        let Message::Request { id, .. } = &requested[0] else {
            panic!("{requested:?}")
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
        // A response without a valid path counts: it is not requested again.
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
        "the request was not sent yet: {early:?}"
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
    // The id of another request, then an unknown id.
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
    let events_seen = events(&mut drone);
    assert_eq!(
        events_seen[0],
        Event::Completed(3, Completion::Response(json!(1.5)))
    );
    assert!(
        matches!(events_seen[1], Event::Ignored(_)),
        "the second response is ignored: {events_seen:?}"
    );
    assert_eq!(
        events_seen[2],
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
        assert!(drone.next_frame(now).is_some(), "the frame is half written");
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
        // A connection that is lost before the request is sent again does not end it.
        if resend {
            drone.on_disconnected(now);
            drone.on_connected(now);
            drone.on_disconnected(now);
            drone.on_connected(now);
            assert_eq!(names(&write_all(&mut drone, now))[0], "asked");
            drone.handle_frame(&response(2, "asked", json!(1)), now);
            let events_seen = events(&mut drone);
            assert!(
                events_seen.contains(&Event::Completed(1, Completion::Response(json!(1)))),
                "{events_seen:?}"
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
    // Readings do not extend the deadline.
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
    let is_ignored = |drone: &mut Drone| {
        let events_seen = events(drone);
        matches!(events_seen.as_slice(), [Event::Ignored(note)] if note.contains("bytes of JSON"))
    };
    let frame = |bytes: usize| response(2, "filetransfer", json!("x".repeat(bytes)));
    let envelope = frame(0).content.len();
    drone.handle_frame(&frame(CONTENT_BYTES_MAX + 1 - envelope), now);
    assert!(is_ignored(&mut drone) && drone.is_awaiting_file());
    drone.handle_frame(&frame(CONTENT_BYTES_MAX - envelope), now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Completed(1, Completion::WrongKind(_))]
    ));
    // A file may have that length.
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
    let requested = write_all(&mut drone, now + PROBE_AFTER);
    assert_eq!(names(&requested), ["id"]);
    assert_eq!(drone.poll_timeout(), Some(now + IDLE));
    // Its response restarts both timers.
    let later = now + PROBE_AFTER + SECOND;
    drone.handle_frame(&response(2, "id", json!("clever-1")), later);
    assert_eq!(
        (events(&mut drone), drone.poll_timeout()),
        (vec![], Some(later + PROBE_AFTER))
    );
    drone.handle_timeout(later + IDLE);
    drone.handle_timeout(later + IDLE);
    assert_eq!(events(&mut drone), [Event::IdleTimeout], "reported once");
    assert!(drone.poll_timeout().is_none());
}

#[test]
fn changed_id_is_reported() {
    let now = clock::now();
    let mut drone = ready_drone(false, false, now);
    drone.probe();
    drone.probe();
    assert_eq!(names(&write_all(&mut drone, now)), ["id"], "one probe at a time");
    drone.handle_frame(&response(2, "id", json!("other")), now);
    assert_eq!(events(&mut drone), [Event::IdChanged("other".to_owned())]);
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
    let events_seen = events(&mut drone);
    assert_eq!(events_seen.len(), 5);
    assert!(
        events_seen
            .iter()
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
    // Takes a hundred times its length in memory.
    let nested = Value::Array(vec![json!({ "": 0 }); 70]);
    for name in 0..READINGS_MAX {
        drone.handle_frame(&telemetry(json!({ (format!("r{name}")): nested })), now);
    }
    let kept = drone.readings().len();
    assert!((1..=READINGS_MEMORY_MAX / (70 * 600)).contains(&kept), "{kept}");
    let events_seen = events(&mut drone);
    let ignored = events_seen
        .iter()
        .filter(|event| matches!(event, Event::Ignored(_)));
    assert_eq!(ignored.count(), READINGS_MAX - kept);
    // Replacing a value by a smaller one makes room for others.
    drone.handle_frame(
        &telemetry(json!({ "r0": 1, "memory": { "total": 4, "free": 1 } })),
        now,
    );
    assert_eq!(drone.readings()["r0"], json!(1));
    assert_eq!(drone.readings()["memory"]["free"], json!(1));
    drone.handle_frame(&telemetry(json!({ "r1": nested })), now);
    assert_eq!(drone.readings()["r1"], nested);
}
