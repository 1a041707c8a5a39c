//! A server's side of one drone (`proto/clever_show/server.rs`): every ticket ends once, nothing begins late, and a lost
//! connection means what the configuration says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::proto::clever_show::server::{
    BadId, CLOVER_DIR_BYTES_MAX, Drone, End, Event, QUEUE_MAX, QUIET, READINGS_MAX, READINGS_MEMORY_MAX,
    REQUESTS_MAX, Rules, Until, answers_id, ask_id,
};
use swarm_shared::proto::clever_show::{Message, request_id};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, ContentType, Frame, Header, MessageType};

const IDLE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn drone(resume_queue: bool, resend_requests: bool) -> Drone {
    let rules = Rules {
        resume_queue,
        resend_requests,
        idle: IDLE,
    };
    Drone::new("clever-1".to_owned(), rules)
}

/// Everything that it wants written now, as messages.
fn written(drone: &mut Drone, now: Instant) -> Vec<Message> {
    let mut all = Vec::new();
    while let Some(frame) = drone.next_frame(now) {
        assert_eq!(drone.next_frame(now), None, "one at a time");
        all.push(Message::read(&frame).expect("ours"));
        drone.written();
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

fn response(id: u32, name: &str, value: Value) -> Frame {
    let message = Message::Response {
        name: name.to_owned(),
        id: request_id(id),
        value,
    };
    message.to_frame()
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

#[test]
fn who_it_is_is_asked_first() {
    let asked = Message::read(&ask_id()).expect("ours");
    assert_eq!(names(&[asked]), ["id"]);
    assert_eq!(
        answers_id(&response(0, "id", json!("clever-1"))),
        Some(Ok("clever-1".to_owned()))
    );
    assert_eq!(answers_id(&response(0, "id", json!(7))), Some(Ok("7".to_owned())));
    for bad in [
        json!(null),
        json!(""),
        json!("  "),
        json!([]),
        json!("x".repeat(254)),
    ] {
        assert_eq!(answers_id(&response(0, "id", bad)), Some(Err(BadId)));
    }
    assert_eq!(answers_id(&response(1, "id", json!("x"))), None);
    assert_eq!(answers_id(&response(0, "time", json!("x"))), None);
    assert_eq!(answers_id(&ask_id()), None);
}

#[test]
fn clover_dir_is_asked_until_it_is_answered_once() {
    let mut now = clock::now();
    for resend in [false, true] {
        let mut drone = drone(false, resend);
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), ["clover_dir"]);
        drone.disconnected(now);
        drone.connected(now);
        let asked = written(&mut drone, now);
        assert_eq!(names(&asked), ["clover_dir"], "it was never answered");
        let Message::Request { id, .. } = &asked[0] else {
            panic!("{asked:?}")
        };
        drone.handle_frame(
            &response(id.parse().expect("digits"), "clover_dir", json!("/home/pi")),
            now,
        );
        assert_eq!(drone.clover_dir(), Some("/home/pi"));
        drone.disconnected(now);
        now += SECOND;
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), [""; 0]);
    }
}

#[test]
fn no_more_is_kept_of_a_clover_dir_than_a_path() {
    let now = clock::now();
    let longest = "x".repeat(CLOVER_DIR_BYTES_MAX);
    let longer = format!("{longest}x");
    for (answer, kept) in [
        (json!(longest), Some(longest.as_str())),
        (json!(longer), None),
        (json!([{ "": 0 }, { "": 0 }]), None),
    ] {
        let mut drone = drone(false, false);
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), ["clover_dir"]);
        drone.handle_frame(&response(1, "clover_dir", answer), now);
        assert_eq!(drone.clover_dir(), kept);
        // That was its answer: it is not asked again.
        drone.disconnected(now);
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), [""; 0]);
    }
}

/// A drone that has answered everything it was asked at first.
fn settled(resume_queue: bool, resend_requests: bool, now: Instant) -> Drone {
    let mut drone = drone(resume_queue, resend_requests);
    drone.connected(now);
    written(&mut drone, now);
    drone.handle_frame(&response(1, "clover_dir", Value::Null), now);
    assert!(events(&mut drone).is_empty());
    drone
}

#[test]
fn what_is_written_is_sent_and_what_is_answered_is_answered() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    drone.tell(1, "led", none(), now + SECOND, now);
    drone.push(2, "/x", Bytes::new(), now + SECOND, now);
    drone.ask(3, "time", none(), until(now), now);
    drone.ask_file(4, "/y", until(now), now);
    assert!(events(&mut drone).is_empty() && !drone.awaits_file());
    drone.handle_frame(&response(2, "time", json!(0)), now);
    let early = events(&mut drone);
    assert!(
        matches!(early.as_slice(), [Event::PassedOver(_)]),
        "not asked yet: {early:?}"
    );
    assert_eq!(
        names(&written(&mut drone, now)),
        ["led", "/x", "time", "filetransfer"]
    );
    assert!(drone.awaits_file());
    assert_eq!(
        events(&mut drone),
        [Event::Ended(1, End::Sent), Event::Ended(2, End::Sent)]
    );
    // Another's number, another's name, a number that is none.
    for (id, name) in [(2, "telemetry"), (9, "time")] {
        drone.handle_frame(&response(id, name, json!(1)), now);
        assert!(matches!(events(&mut drone).as_slice(), [Event::PassedOver(_)]));
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
    assert_eq!(told[0], Event::Ended(3, End::Answer(json!(1.5))));
    assert!(
        matches!(told[1], Event::PassedOver(_)),
        "answered twice: {told:?}"
    );
    assert_eq!(told[2], Event::Ended(4, End::File(Bytes::from_static(b"y"))));
    assert!(!drone.awaits_file());
}

#[test]
fn a_lost_connection_means_what_is_configured() {
    for (resume, resend) in [(false, false), (false, true), (true, false), (true, true)] {
        let now = clock::now();
        let mut drone = settled(resume, resend, now);
        drone.ask(1, "asked", none(), until(now), now);
        written(&mut drone, now);
        drone.tell(2, "half", none(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "half of it is written");
        drone.tell(3, "queued", none(), now + SECOND, now);
        drone.ask(4, "unasked", none(), until(now), now);
        drone.disconnected(now);
        let lost: BTreeSet<u64> = events(&mut drone)
            .into_iter()
            .map(|event| {
                let Event::Ended(ticket, End::NoAnswer(_)) = event else {
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
        // While it is away.
        drone.tell(5, "away", none(), now + SECOND, now);
        assert_eq!(events(&mut drone).len(), usize::from(!resume));
        drone.connected(now);
        let again = written(&mut drone, now);
        let mut expected = Vec::new();
        if resend {
            expected.push("asked");
        }
        if resume {
            expected.extend(["half", "queued", "unasked", "away"]);
        }
        assert_eq!(names(&again), expected, "resume {resume}, resend {resend}");
        // Lost again before it was asked again: that counts as asked.
        if resend {
            drone.disconnected(now);
            drone.connected(now);
            drone.disconnected(now);
            drone.connected(now);
            assert_eq!(names(&written(&mut drone, now))[0], "asked");
            drone.handle_frame(&response(2, "asked", json!(1)), now);
            let told = events(&mut drone);
            assert!(told.contains(&Event::Ended(1, End::Answer(json!(1)))), "{told:?}");
        }
    }
}

#[test]
fn nothing_begins_late_and_no_answer_is_waited_for_too_long() {
    let now = clock::now();
    let mut drone = settled(true, true, now);
    drone.disconnected(now);
    drone.tell(1, "stale", none(), now + SECOND, now);
    drone.tell(2, "never", none(), now, now);
    drone.ask(3, "asked", none(), until(now), now);
    assert_eq!(events(&mut drone), [Event::Ended(2, End::Expired)]);
    assert_eq!(drone.poll_timeout(), Some(now + SECOND));
    // Not even if the timer rings late.
    drone.connected(now + 2 * SECOND);
    assert_eq!(names(&written(&mut drone, now + 2 * SECOND)), ["asked"]);
    assert_eq!(events(&mut drone), [Event::Ended(1, End::Expired)]);
    drone.handle_timeout(now + 20 * SECOND);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Ended(3, End::NoAnswer(_))]
    ));
}

#[test]
fn a_file_is_waited_for_as_long_as_it_arrives() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    drone.ask_file(1, "/y", until(now), now);
    written(&mut drone, now);
    let file = Header {
        content_type: ContentType::Binary,
        message_type: MessageType::Response,
        ..Header::default()
    };
    drone.receiving(&file, now + 25 * SECOND);
    // Readings put nothing off, however often they come.
    drone.receiving(&Header::default(), now + 90 * SECOND);
    drone.handle_timeout(now + 24 * SECOND);
    assert!(events(&mut drone).is_empty());
    drone.handle_timeout(now + 25 * SECOND);
    assert_eq!(events(&mut drone).len(), 1);
}

#[test]
fn json_is_not_read_because_it_is_no_longer_than_a_file_may_be() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    drone.ask_file(1, "/y", until(now), now);
    written(&mut drone, now);
    assert!(drone.awaits_file());
    let passed_over = |drone: &mut Drone| {
        let told = events(drone);
        matches!(told.as_slice(), [Event::PassedOver(note)] if note.contains("bytes of JSON"))
    };
    let frame = |bytes: usize| response(2, "filetransfer", json!("x".repeat(bytes)));
    let around = frame(0).content.len();
    drone.handle_frame(&frame(CONTENT_BYTES_MAX + 1 - around), now);
    assert!(passed_over(&mut drone) && drone.awaits_file());
    drone.handle_frame(&frame(CONTENT_BYTES_MAX - around), now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Ended(1, End::Unfit(_))]
    ));
    // A file may be that long.
    drone.ask_file(2, "/y", until(now), now);
    written(&mut drone, now);
    let content = Bytes::from(vec![0; CONTENT_BYTES_MAX + 1]);
    let file = Message::FileResponse {
        name: "filetransfer".to_owned(),
        id: request_id(3),
        content: content.clone(),
    };
    drone.handle_frame(&file.to_frame(), now);
    assert_eq!(events(&mut drone), [Event::Ended(2, End::File(content))]);
}

#[test]
fn a_quiet_drone_is_asked_and_then_given_up() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    assert_eq!(drone.poll_timeout(), Some(now + QUIET));
    drone.handle_timeout(now + QUIET);
    let asked = written(&mut drone, now + QUIET);
    assert_eq!(names(&asked), ["id"]);
    assert_eq!(drone.poll_timeout(), Some(now + IDLE));
    // It answers: all begins anew.
    let later = now + QUIET + SECOND;
    drone.handle_frame(&response(2, "id", json!("clever-1")), later);
    assert_eq!(
        (events(&mut drone), drone.poll_timeout()),
        (vec![], Some(later + QUIET))
    );
    drone.handle_timeout(later + IDLE);
    drone.handle_timeout(later + IDLE);
    assert_eq!(events(&mut drone), [Event::TooQuiet], "once");
    assert!(drone.poll_timeout().is_none());
}

#[test]
fn one_that_calls_itself_otherwise_is_told_of() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    drone.probe();
    drone.probe();
    assert_eq!(names(&written(&mut drone, now)), ["id"], "one at a time");
    drone.handle_frame(&response(2, "id", json!("other")), now);
    assert_eq!(events(&mut drone), [Event::OtherId("other".to_owned())]);
}

#[test]
fn a_stop_goes_before_all_drops_what_acts_and_comes_again() {
    let now = clock::now();
    let mut drone = settled(true, true, now);
    drone.tell(1, "takeoff", none(), now + SECOND, now);
    drone.push(2, "/x", Bytes::new(), now + SECOND, now);
    drone.ask(3, "time", none(), until(now), now);
    drone.stop(4, "emergency_land", now + SECOND);
    assert!(drone.is_stopped());
    assert_eq!(names(&written(&mut drone, now)), ["emergency_land", "time"]);
    let told = events(&mut drone);
    for ticket in [1, 2] {
        assert!(
            told.contains(&Event::Ended(
                ticket,
                End::Refused("dropped by an emergency stop")
            )),
            "{told:?}"
        );
    }
    assert!(told.contains(&Event::Ended(4, End::Sent)));
    drone.tell(5, "takeoff", none(), now + SECOND, now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Ended(5, End::Refused(_))]
    ));
    // At each new connection, before all else.
    drone.disconnected(now);
    drone.connected(now);
    assert_eq!(names(&written(&mut drone, now)), ["emergency_land", "time"]);
    // One that is away learns it when it is back, even if nobody waits for that any more.
    drone.disconnected(now);
    drone.stop(6, "emergency_land", now + SECOND);
    drone.handle_timeout(now + SECOND);
    let told = events(&mut drone);
    assert!(
        matches!(told.as_slice(), [Event::Ended(6, End::NoAnswer(why))] if why.contains("when it is back")),
        "{told:?}"
    );
    drone.connected(now + SECOND);
    assert_eq!(
        names(&written(&mut drone, now + SECOND)),
        ["emergency_land", "time"]
    );
    assert!(drone.release() && !drone.release());
    drone.tell(7, "led", none(), now + 5 * SECOND, now + SECOND);
    assert_eq!(names(&written(&mut drone, now + SECOND)), ["led"]);
}

#[test]
fn what_a_stop_found_half_written_never_goes_again() {
    let dropped = End::Refused("dropped by an emergency stop");
    for release in [false, true] {
        let now = clock::now();
        let mut drone = settled(true, true, now);
        drone.tell(1, "takeoff", none(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "half of it is written");
        drone.stop(2, "emergency_land", now + SECOND);
        if release {
            drone.release();
        }
        drone.disconnected(now);
        assert_eq!(events(&mut drone), [Event::Ended(1, dropped.clone())]);
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Ended(2, End::Sent)]);
    }
    // Written whole after all: that is what is told.
    let now = clock::now();
    let mut drone = settled(true, true, now);
    drone.tell(1, "takeoff", none(), now + SECOND, now);
    assert!(drone.next_frame(now).is_some());
    drone.stop(2, "emergency_land", now + SECOND);
    drone.written();
    assert_eq!(events(&mut drone), [Event::Ended(1, End::Sent)]);
}

#[test]
fn a_stop_is_told_though_nobody_waits_for_it_any_more_or_its_time_is_up() {
    for (late, lost) in [(false, false), (true, false), (false, true), (true, true)] {
        let now = clock::now();
        let mut drone = settled(true, true, now);
        drone.push(1, "/x", Bytes::new(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "a file is on its way");
        // Two at once: it is told by one of them.
        for ticket in [2, 3] {
            drone.stop(ticket, "emergency_land", now + SECOND);
        }
        if late {
            drone.handle_timeout(now + SECOND);
            let told = events(&mut drone);
            assert!(
                matches!(
                    told.as_slice(),
                    [Event::Ended(2, End::NoAnswer(why)), Event::Ended(3, End::NoAnswer(_))]
                        if why.contains("not told yet")
                ),
                "it is here, and not told: {told:?}"
            );
        } else {
            drone.cancel(2);
            drone.cancel(3);
        }
        let now = now + 2 * SECOND;
        drone.written();
        if lost {
            assert!(drone.next_frame(now).is_some(), "half of the stop is written");
            drone.disconnected(now);
            drone.connected(now);
        }
        assert_eq!(names(&written(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Ended(1, End::Sent)]);
    }
    // Not after its release, wherever it was.
    for half in [false, true] {
        let now = clock::now();
        let mut drone = settled(true, true, now);
        drone.ask(1, "time", none(), until(now), now);
        assert!(drone.next_frame(now).is_some());
        drone.stop(2, "emergency_land", now + SECOND);
        if half {
            drone.written();
            assert!(drone.next_frame(now).is_some(), "half of the stop is written");
        }
        drone.cancel(2);
        drone.release();
        drone.disconnected(now);
        drone.connected(now);
        assert_eq!(names(&written(&mut drone, now)), ["time"]);
    }
}

#[test]
fn a_stop_that_waits_for_a_connection_goes_before_what_is_asked_again() {
    let now = clock::now();
    let mut drone = drone(true, true);
    drone.connected(now);
    drone.ask(1, "time", none(), until(now), now);
    assert_eq!(names(&written(&mut drone, now)), ["clover_dir", "time"]);
    drone.ask(2, "position", none(), until(now), now);
    assert!(drone.next_frame(now).is_some(), "half of it is written");
    drone.stop(3, "emergency_land", now + SECOND);
    drone.disconnected(now);
    drone.connected(now);
    assert_eq!(
        names(&written(&mut drone, now)),
        ["emergency_land", "clover_dir", "time", "position"]
    );
}

#[test]
fn everything_is_bounded() {
    let now = clock::now();
    let mut drone = settled(true, true, now);
    drone.disconnected(now);
    let many = u64::try_from(QUEUE_MAX).expect("few");
    for ticket in 0..many + 5 {
        drone.tell(ticket, "led", none(), now + SECOND, now);
    }
    let told = events(&mut drone);
    assert_eq!(told.len(), 5);
    assert!(
        told.iter()
            .all(|event| matches!(event, Event::Ended(_, End::Refused(_))))
    );
    let mut drone = settled(true, true, now);
    let many = u64::try_from(REQUESTS_MAX).expect("few");
    for ticket in 0..many + 5 {
        drone.ask(ticket, "time", none(), until(now), now);
        written(&mut drone, now);
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
fn readings_that_are_short_and_take_much_memory_are_passed_over() {
    let now = clock::now();
    let mut drone = settled(false, false, now);
    let telemetry = |kwargs: Value| {
        let arguments = Arguments {
            kwargs: serde_json::from_value(kwargs).expect("an object"),
            ..none()
        };
        let action = "telemetry".to_owned();
        Message::Action { action, arguments }.to_frame()
    };
    // A hundred times as long in memory.
    let nested = Value::Array(vec![json!({ "": 0 }); 70]);
    for name in 0..READINGS_MAX {
        drone.handle_frame(&telemetry(json!({ (format!("r{name}")): nested })), now);
    }
    let kept = drone.readings().len();
    assert!((1..=READINGS_MEMORY_MAX / (70 * 600)).contains(&kept), "{kept}");
    let told = events(&mut drone);
    let passed_over = told.iter().filter(|event| matches!(event, Event::PassedOver(_)));
    assert_eq!(passed_over.count(), READINGS_MAX - kept);
    // What takes less in its place makes room for others.
    drone.handle_frame(
        &telemetry(json!({ "r0": 1, "memory": { "total": 4, "free": 1 } })),
        now,
    );
    assert_eq!(drone.readings()["r0"], json!(1));
    assert_eq!(drone.readings()["memory"]["free"], json!(1));
    drone.handle_frame(&telemetry(json!({ "r1": nested })), now);
    assert_eq!(drone.readings()["r1"], nested);
}
