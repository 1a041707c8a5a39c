//! Tests of `PeerState`; the remote peer is a list of frames.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::message::{Message, ResponseBody};
use super::peer::*;
use crate::proto::message::Arguments;

const BOTH: ReconnectPolicy = ReconnectPolicy {
    resume_queue: true,
    resend_requests: true,
};

fn kwargs(value: serde_json::Value) -> Arguments {
    serde_json::from_value(json!({ "kwargs": value })).expect("arguments")
}

/// Writes all queued frames; returns them as messages.
fn write_all(peer: &mut PeerState) -> Vec<Message> {
    let mut read = Vec::new();
    while let Some(frame) = peer.poll_transmit() {
        read.push(Message::from_frame(&frame).expect("readable"));
        peer.on_written();
    }
    read
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

fn response_to(request: &Message, body: ResponseBody) -> Message {
    let Message::Request { name, id, .. } = request else {
        panic!("not a request: {request:?}");
    };
    body.into_message(name.clone(), id.clone())
}

#[test]
fn response_ends_only_its_own_request() {
    let mut peer = PeerState::new(ReconnectPolicy::default(), 42);
    let first = peer.get_response("id", Arguments::default()).expect("room");
    let second = peer.get_file("/home/pi/log.txt").expect("room");
    let asked = write_all(&mut peer);
    assert!(matches!(&asked[0], Message::Request { id, .. } if id == "0042"));
    assert!(matches!(&asked[1], Message::Request { name, arguments, .. }
        if name == "filetransfer" && arguments.kwargs["filepath"] == "/home/pi/log.txt"));
    let file = ResponseBody::File(Bytes::new());
    peer.handle_frame(&response_to(&asked[1], file.clone()).to_frame());
    assert_eq!(
        peer.poll_event(),
        Some(Event::Response {
            number: second,
            body: file
        })
    );
    // A response with the same id and another value matches no request.
    let other = Message::Response {
        name: "time".to_owned(),
        id: "0042".to_owned(),
        value: json!(1),
    };
    peer.handle_frame(&other.to_frame());
    assert!(matches!(
        peer.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    let answer = ResponseBody::Value(json!("clever-1"));
    peer.handle_frame(&response_to(&asked[0], answer.clone()).to_frame());
    let number = first;
    assert_eq!(peer.poll_event(), Some(Event::Response { number, body: answer }));
    peer.handle_frame(&response_to(&asked[0], ResponseBody::Value(json!("again"))).to_frame());
    assert!(matches!(
        peer.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    assert_eq!(peer.open_requests(), 0);
}

#[test]
fn reconnect_policy_decides_what_survives_a_disconnect() {
    for (policy, kept, unanswered) in [
        (ReconnectPolicy::default(), vec![], 2),
        (
            ReconnectPolicy {
                resume_queue: true,
                resend_requests: false,
            },
            vec!["half", "queued", "asked late"],
            1,
        ),
        (
            ReconnectPolicy {
                resume_queue: false,
                resend_requests: true,
            },
            vec!["asked early", "asked late"],
            0,
        ),
        (BOTH, vec!["asked early", "half", "queued", "asked late"], 0),
    ] {
        let mut peer = PeerState::new(policy, 0);
        peer.on_connected();
        peer.get_response("asked early", Arguments::default())
            .expect("room");
        peer.send_message("gone", Arguments::default()).expect("room");
        assert_eq!(names(&write_all(&mut peer)), ["asked early", "gone"]);
        peer.send_message("half", Arguments::default()).expect("room");
        peer.send_message("queued", Arguments::default()).expect("room");
        peer.get_response("asked late", Arguments::default())
            .expect("room");
        peer.respond("asked us", "0001", ResponseBody::Value(json!(1)))
            .expect("room");
        assert!(peer.poll_transmit().is_some());
        peer.on_disconnected();
        assert_eq!(names(&write_all(&mut peer)), kept, "{policy:?}");
        let events: Vec<Event> = std::iter::from_fn(|| peer.poll_event()).collect();
        assert_eq!(events.len(), unanswered, "{policy:?}: {events:?}");
        assert_eq!(peer.open_requests(), 2 - unanswered);
    }
}

#[test]
fn resume_queue_decides_what_is_queued_offline() {
    for (resume_queue, expected) in [(false, Err(SendError::NotConnected)), (true, Ok(()))] {
        let policy = ReconnectPolicy {
            resume_queue,
            resend_requests: false,
        };
        let mut peer = PeerState::new(policy, 0);
        for again in [false, true] {
            let land = peer.send_message("land", Arguments::default());
            assert_eq!(land, expected, "again: {again}");
            assert_eq!(peer.send_latest("led", Arguments::default()), expected);
            assert_eq!(peer.send_file("a", Bytes::new()), expected);
            // The request of a response belongs to the lost connection.
            let answer = peer.respond("id", "0001", ResponseBody::Value(json!(1)));
            assert_eq!(answer, Err(SendError::NotConnected));
            peer.get_response("id", Arguments::default()).expect("room");
            peer.on_connected();
            let read = write_all(&mut peer);
            let all = ["land", "led", "a", "id"];
            assert_eq!(names(&read), if resume_queue { &all[..] } else { &all[3..] });
            peer.send_message("land", Arguments::default())
                .expect("connected");
            assert_eq!(names(&write_all(&mut peer)), ["land"]);
            peer.on_disconnected();
        }
    }
}

#[test]
fn latest_readings_replace_queued_ones() {
    let mut peer = PeerState::new(BOTH, 0);
    for value in 0..5 {
        peer.send_latest("telemetry", kwargs(json!({ "value": value })))
            .expect("room");
    }
    peer.send_message("other", Arguments::default()).expect("room");
    let read = write_all(&mut peer);
    assert_eq!(names(&read), ["telemetry", "other"]);
    assert!(matches!(&read[0], Message::Action { arguments, .. } if arguments.kwargs["value"] == 4));
}

#[test]
fn send_queue_and_requests_are_bounded() {
    let mut peer = PeerState::new(BOTH, 0);
    for _ in 0..PENDING_MAX {
        peer.get_response("id", Arguments::default()).expect("room");
    }
    let more = peer.get_response("id", Arguments::default());
    assert_eq!(more, Err(SendError::TooManyRequests));
    for _ in PENDING_MAX..QUEUE_MESSAGES_MAX {
        peer.send_message("land", Arguments::default()).expect("room");
    }
    let more = peer.send_message("land", Arguments::default());
    assert_eq!(more, Err(SendError::QueueFull));

    let mut peer = PeerState::new(BOTH, 0);
    let half = Bytes::from(vec![0; QUEUE_BYTES_MAX / 2 + 1]);
    peer.send_file("a", half.clone()).expect("room");
    assert_eq!(peer.send_file("b", half.clone()), Err(SendError::QueueFull));
    assert_eq!(names(&write_all(&mut peer)), ["a"]);
    peer.send_file("b", half).expect("room again");

    // Names and ids that the peer chooses count too.
    let mut peer = PeerState::new(BOTH, 0);
    peer.on_connected();
    let id = "9".repeat(QUEUE_BYTES_MAX / 2 + 1);
    let answer = || ResponseBody::Value(json!(1));
    peer.respond("id", &id, answer()).expect("room");
    assert_eq!(peer.respond("id", &id, answer()), Err(SendError::QueueFull));
    assert_eq!(
        peer.respond(&id, "1", ResponseBody::File(Bytes::new())),
        Err(SendError::QueueFull)
    );
}

#[test]
fn abandoned_request_is_not_sent_and_frees_its_slot() {
    let mut peer = PeerState::new(BOTH, 9_999);
    let first = peer.get_response("one", Arguments::default()).expect("room");
    let second = peer.get_response("two", Arguments::default()).expect("room");
    peer.abandon(first);
    let asked = write_all(&mut peer);
    assert_eq!(names(&asked), ["two"]);
    peer.abandon(second);
    peer.on_disconnected();
    assert_eq!(peer.queued_messages() + peer.open_requests(), 0);
    peer.handle_frame(&response_to(&asked[0], ResponseBody::Value(json!(1))).to_frame());
    assert!(matches!(
        peer.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    assert_eq!(peer.poll_event(), None);
}

#[test]
fn request_that_ends_while_being_written_is_not_resent() {
    for answered in [false, true] {
        let mut peer = PeerState::new(BOTH, 0);
        let number = peer.get_response("one", Arguments::default()).expect("room");
        if answered {
            // Sent over the first connection, and answered over the second.
            assert_eq!(names(&write_all(&mut peer)), ["one"]);
            peer.on_disconnected();
        }
        let half = Message::from_frame(&peer.poll_transmit().expect("one")).expect("readable");
        if answered {
            peer.handle_frame(&response_to(&half, ResponseBody::Value(json!(1))).to_frame());
        } else {
            peer.abandon(number);
        }
        peer.on_disconnected();
        assert_eq!(names(&write_all(&mut peer)), [""; 0], "answered: {answered}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    Request,
    Abandon(usize),
    Begin,
    Write,
    Answer(usize),
    Disconnect,
    Connect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Send),
        3 => Just(Step::Request),
        1 => (0..9_usize).prop_map(Step::Abandon),
        2 => Just(Step::Begin),
        4 => Just(Step::Write),
        3 => (0..9_usize).prop_map(Step::Answer),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
    ];
    vec(step, 0..60)
}

proptest! {
    /// With `resume_queue` a peer that reads all that was written reads every message exactly once and in order. With
    /// any policy a request ends at most once, and is not sent after it has ended.
    #[test]
    fn nothing_is_lost_or_doubled(steps in steps(), resume_queue: bool, resend_requests: bool) {
        let policy = ReconnectPolicy { resume_queue, resend_requests };
        let mut peer = PeerState::new(policy, 9_990);
        let mut connected = false;
        let (mut sent_count, mut read) = (0_u64, Vec::new());
        let (mut asked, mut ended) = (Vec::new(), BTreeMap::new());
        let (mut abandoned, mut at_peer, mut half) = (Vec::new(), Vec::new(), None);
        for step in steps {
            match step {
                Step::Send => {
                    let sent = peer.send_message("n", kwargs(json!({ "n": sent_count })));
                    prop_assert_eq!(sent.is_ok(), connected || resume_queue);
                    sent_count += u64::from(sent.is_ok());
                }
                Step::Request => {
                    let which = kwargs(json!({ "which": asked.len() }));
                    asked.push(peer.get_response("q", which).expect("room"));
                }
                Step::Abandon(which) => if let Some(number) = asked.get(which)
                    && !ended.contains_key(number) && !abandoned.contains(number) {
                    peer.abandon(*number);
                    abandoned.push(*number);
                },
                Step::Begin | Step::Write => {
                    if connected && half.is_none() && let Some(frame) = peer.poll_transmit() {
                        let message = Message::from_frame(&frame).expect("readable");
                        if let Message::Request { arguments, .. } = &message {
                            let which = arguments.kwargs["which"].as_u64().expect("which");
                            let number = asked[usize::try_from(which).expect("small")];
                            prop_assert!(!abandoned.contains(&number) && !ended.contains_key(&number));
                        }
                        half = Some(message);
                    }
                    if let Step::Write = step && let Some(whole) = half.take() {
                        match whole {
                            Message::Action { arguments, .. } => read.push(arguments.kwargs["n"].as_u64().expect("n")),
                            request @ (Message::Request { .. }
                            | Message::Response { .. }
                            | Message::FileResponse { .. }
                            | Message::FilePush { .. }) => at_peer.push(request),
                        }
                        peer.on_written();
                    }
                }
                Step::Answer(which) => if let Some(request) = at_peer.get(which) {
                    peer.handle_frame(&response_to(request, ResponseBody::Value(json!(1))).to_frame());
                },
                Step::Disconnect => {
                    // The peer does not act on a half-written message.
                    (half, connected) = (None, false);
                    peer.on_disconnected();
                }
                Step::Connect => {
                    connected = true;
                    peer.on_connected();
                }
            }
            while let Some(event) = peer.poll_event() {
                match event {
                    Event::Response { number, .. } | Event::RequestFailed { number, .. } => {
                        prop_assert!(asked.contains(&number) && !abandoned.contains(&number));
                        prop_assert_eq!(ended.insert(number, ()), None, "ended twice");
                    }
                    Event::UnexpectedResponse { .. } => {}
                    Event::Action { .. }
                    | Event::File { .. }
                    | Event::Request { .. }
                    | Event::TooLong { .. }
                    | Event::InvalidMessage(_) => {
                        prop_assert!(false, "the peer sends responses only");
                    }
                }
            }
            prop_assert_eq!(peer.open_requests(), asked.len() - ended.len() - abandoned.len());
        }
        peer.on_written();
        let rest = write_all(&mut peer);
        for message in half.into_iter().chain(rest) {
            if let Message::Action { arguments, .. } = message {
                read.push(arguments.kwargs["n"].as_u64().expect("n"));
            }
        }
        prop_assert!(read.is_sorted_by(|a, b| a < b), "{:?}", read);
        if resume_queue {
            prop_assert_eq!(read.len() as u64, sent_count);
        }
    }
}
