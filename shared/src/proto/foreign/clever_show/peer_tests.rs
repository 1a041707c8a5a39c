//! The dialogue, against a peer that is a list of frames.

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

/// Writes all that waits; what the peer reads.
fn write_all(dialogue: &mut PeerState) -> Vec<Message> {
    let mut read = Vec::new();
    while let Some(frame) = dialogue.poll_transmit() {
        read.push(Message::from_frame(&frame).expect("readable"));
        dialogue.on_written();
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

fn answer_to(asked: &Message, answer: ResponseBody) -> Message {
    let Message::Request { name, id, .. } = asked else {
        panic!("no request: {asked:?}");
    };
    answer.into_message(name.clone(), id.clone())
}

#[test]
fn response_ends_only_its_own_request() {
    let mut dialogue = PeerState::new(ReconnectPolicy::default(), 42);
    let first = dialogue.get_response("id", Arguments::default()).expect("room");
    let second = dialogue.get_file("/home/pi/log.txt").expect("room");
    let asked = write_all(&mut dialogue);
    assert!(matches!(&asked[0], Message::Request { id, .. } if id == "0042"));
    assert!(matches!(&asked[1], Message::Request { name, arguments, .. }
        if name == "filetransfer" && arguments.kwargs["filepath"] == "/home/pi/log.txt"));
    let file = ResponseBody::File(Bytes::new());
    dialogue.handle_frame(&answer_to(&asked[1], file.clone()).to_frame());
    assert_eq!(
        dialogue.poll_event(),
        Some(Event::Response {
            number: second,
            body: file
        })
    );
    // Another value under the same id answers nothing.
    let other = Message::Response {
        name: "time".to_owned(),
        id: "0042".to_owned(),
        value: json!(1),
    };
    dialogue.handle_frame(&other.to_frame());
    assert!(matches!(
        dialogue.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    let answer = ResponseBody::Value(json!("clever-1"));
    dialogue.handle_frame(&answer_to(&asked[0], answer.clone()).to_frame());
    let number = first;
    assert_eq!(
        dialogue.poll_event(),
        Some(Event::Response { number, body: answer })
    );
    dialogue.handle_frame(&answer_to(&asked[0], ResponseBody::Value(json!("again"))).to_frame());
    assert!(matches!(
        dialogue.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    assert_eq!(dialogue.open_requests(), 0);
}

#[test]
fn reconnect_policy_decides_what_survives_a_disconnect() {
    for (manners, kept, unanswered) in [
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
        let mut dialogue = PeerState::new(manners, 0);
        dialogue.on_connected();
        dialogue
            .get_response("asked early", Arguments::default())
            .expect("room");
        dialogue.send_message("gone", Arguments::default()).expect("room");
        assert_eq!(names(&write_all(&mut dialogue)), ["asked early", "gone"]);
        dialogue.send_message("half", Arguments::default()).expect("room");
        dialogue
            .send_message("queued", Arguments::default())
            .expect("room");
        dialogue
            .get_response("asked late", Arguments::default())
            .expect("room");
        dialogue
            .respond("asked us", "0001", ResponseBody::Value(json!(1)))
            .expect("room");
        assert!(dialogue.poll_transmit().is_some());
        dialogue.on_disconnected();
        assert_eq!(names(&write_all(&mut dialogue)), kept, "{manners:?}");
        let events: Vec<Event> = std::iter::from_fn(|| dialogue.poll_event()).collect();
        assert_eq!(events.len(), unanswered, "{manners:?}: {events:?}");
        assert_eq!(dialogue.open_requests(), 2 - unanswered);
    }
}

#[test]
fn resume_queue_decides_what_is_queued_offline() {
    for (resume_queue, expected) in [(false, Err(SendError::NotConnected)), (true, Ok(()))] {
        let manners = ReconnectPolicy {
            resume_queue,
            resend_requests: false,
        };
        let mut dialogue = PeerState::new(manners, 0);
        for again in [false, true] {
            let land = dialogue.send_message("land", Arguments::default());
            assert_eq!(land, expected, "again: {again}");
            assert_eq!(dialogue.send_latest("led", Arguments::default()), expected);
            assert_eq!(dialogue.send_file("a", Bytes::new()), expected);
            // Whoever asked it is gone in any case.
            let answer = dialogue.respond("id", "0001", ResponseBody::Value(json!(1)));
            assert_eq!(answer, Err(SendError::NotConnected));
            dialogue.get_response("id", Arguments::default()).expect("room");
            dialogue.on_connected();
            let read = write_all(&mut dialogue);
            let all = ["land", "led", "a", "id"];
            assert_eq!(names(&read), if resume_queue { &all[..] } else { &all[3..] });
            dialogue
                .send_message("land", Arguments::default())
                .expect("connected");
            assert_eq!(names(&write_all(&mut dialogue)), ["land"]);
            dialogue.on_disconnected();
        }
    }
}

#[test]
fn latest_readings_replace_queued_ones() {
    let mut dialogue = PeerState::new(BOTH, 0);
    for value in 0..5 {
        dialogue
            .send_latest("telemetry", kwargs(json!({ "value": value })))
            .expect("room");
    }
    dialogue
        .send_message("other", Arguments::default())
        .expect("room");
    let read = write_all(&mut dialogue);
    assert_eq!(names(&read), ["telemetry", "other"]);
    assert!(matches!(&read[0], Message::Action { arguments, .. } if arguments.kwargs["value"] == 4));
}

#[test]
fn send_queue_and_requests_are_bounded() {
    let mut dialogue = PeerState::new(BOTH, 0);
    for _ in 0..PENDING_MAX {
        dialogue.get_response("id", Arguments::default()).expect("room");
    }
    let more = dialogue.get_response("id", Arguments::default());
    assert_eq!(more, Err(SendError::TooManyRequests));
    for _ in PENDING_MAX..QUEUE_MESSAGES_MAX {
        dialogue.send_message("land", Arguments::default()).expect("room");
    }
    let more = dialogue.send_message("land", Arguments::default());
    assert_eq!(more, Err(SendError::QueueFull));

    let mut dialogue = PeerState::new(BOTH, 0);
    let half = Bytes::from(vec![0; QUEUE_BYTES_MAX / 2 + 1]);
    dialogue.send_file("a", half.clone()).expect("room");
    assert_eq!(dialogue.send_file("b", half.clone()), Err(SendError::QueueFull));
    assert_eq!(names(&write_all(&mut dialogue)), ["a"]);
    dialogue.send_file("b", half).expect("room again");

    // What a peer chooses counts as well.
    let mut dialogue = PeerState::new(BOTH, 0);
    dialogue.on_connected();
    let id = "9".repeat(QUEUE_BYTES_MAX / 2 + 1);
    let answer = || ResponseBody::Value(json!(1));
    dialogue.respond("id", &id, answer()).expect("room");
    assert_eq!(dialogue.respond("id", &id, answer()), Err(SendError::QueueFull));
    assert_eq!(
        dialogue.respond(&id, "1", ResponseBody::File(Bytes::new())),
        Err(SendError::QueueFull)
    );
}

#[test]
fn abandoned_request_is_not_sent_and_frees_its_slot() {
    let mut dialogue = PeerState::new(BOTH, 9_999);
    let first = dialogue.get_response("one", Arguments::default()).expect("room");
    let second = dialogue.get_response("two", Arguments::default()).expect("room");
    dialogue.abandon(first);
    let asked = write_all(&mut dialogue);
    assert_eq!(names(&asked), ["two"]);
    dialogue.abandon(second);
    dialogue.on_disconnected();
    assert_eq!(dialogue.queued_messages() + dialogue.open_requests(), 0);
    dialogue.handle_frame(&answer_to(&asked[0], ResponseBody::Value(json!(1))).to_frame());
    assert!(matches!(
        dialogue.poll_event(),
        Some(Event::UnexpectedResponse { .. })
    ));
    assert_eq!(dialogue.poll_event(), None);
}

#[test]
fn request_that_ends_while_being_written_is_not_resent() {
    for answered in [false, true] {
        let mut dialogue = PeerState::new(BOTH, 0);
        let number = dialogue.get_response("one", Arguments::default()).expect("room");
        if answered {
            // Asked before, and answered late.
            assert_eq!(names(&write_all(&mut dialogue)), ["one"]);
            dialogue.on_disconnected();
        }
        let half = Message::from_frame(&dialogue.poll_transmit().expect("one")).expect("readable");
        if answered {
            dialogue.handle_frame(&answer_to(&half, ResponseBody::Value(json!(1))).to_frame());
        } else {
            dialogue.abandon(number);
        }
        dialogue.on_disconnected();
        assert_eq!(names(&write_all(&mut dialogue)), [""; 0], "answered: {answered}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Say,
    Ask,
    GiveUp(usize),
    Begin,
    Write,
    Answer(usize),
    Lose,
    Connect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Say),
        3 => Just(Step::Ask),
        1 => (0..9_usize).prop_map(Step::GiveUp),
        2 => Just(Step::Begin),
        4 => Just(Step::Write),
        3 => (0..9_usize).prop_map(Step::Answer),
        1 => Just(Step::Lose),
        2 => Just(Step::Connect),
    ];
    vec(step, 0..60)
}

proptest! {
    /// Whatever happens: with both manners every message is read exactly once and in order by a peer that reads all
    /// that was written; every request ends at most once, none that is answered was not asked, and none that has ended
    /// is begun to be asked.
    #[test]
    fn nothing_is_lost_or_doubled(steps in steps(), resume_queue: bool, resend_requests: bool) {
        let manners = ReconnectPolicy { resume_queue, resend_requests };
        let mut dialogue = PeerState::new(manners, 9_990);
        let mut connected = false;
        let (mut said, mut read) = (0_u64, Vec::new());
        let (mut asked, mut ended) = (Vec::new(), BTreeMap::new());
        let (mut given_up, mut at_peer, mut half) = (Vec::new(), Vec::new(), None);
        for step in steps {
            match step {
                Step::Say => {
                    let sent = dialogue.send_message("n", kwargs(json!({ "n": said })));
                    prop_assert_eq!(sent.is_ok(), connected || resume_queue);
                    said += u64::from(sent.is_ok());
                }
                Step::Ask => {
                    let which = kwargs(json!({ "which": asked.len() }));
                    asked.push(dialogue.get_response("q", which).expect("room"));
                }
                Step::GiveUp(which) => if let Some(number) = asked.get(which)
                    && !ended.contains_key(number) && !given_up.contains(number) {
                    dialogue.abandon(*number);
                    given_up.push(*number);
                },
                Step::Begin | Step::Write => {
                    if connected && half.is_none() && let Some(frame) = dialogue.poll_transmit() {
                        let message = Message::from_frame(&frame).expect("readable");
                        if let Message::Request { arguments, .. } = &message {
                            let which = arguments.kwargs["which"].as_u64().expect("which");
                            let number = asked[usize::try_from(which).expect("small")];
                            prop_assert!(!given_up.contains(&number) && !ended.contains_key(&number));
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
                        dialogue.on_written();
                    }
                }
                Step::Answer(which) => if let Some(request) = at_peer.get(which) {
                    dialogue.handle_frame(&answer_to(request, ResponseBody::Value(json!(1))).to_frame());
                },
                Step::Lose => {
                    // What is half written is not read as a whole.
                    (half, connected) = (None, false);
                    dialogue.on_disconnected();
                }
                Step::Connect => {
                    connected = true;
                    dialogue.on_connected();
                }
            }
            while let Some(event) = dialogue.poll_event() {
                match event {
                    Event::Response { number, .. } | Event::RequestFailed { number, .. } => {
                        prop_assert!(asked.contains(&number) && !given_up.contains(&number));
                        prop_assert_eq!(ended.insert(number, ()), None, "ended twice");
                    }
                    Event::UnexpectedResponse { .. } => {}
                    Event::Action { .. }
                    | Event::File { .. }
                    | Event::Request { .. }
                    | Event::TooLong { .. }
                    | Event::InvalidMessage(_) => {
                        prop_assert!(false, "the peer said nothing of its own");
                    }
                }
            }
            prop_assert_eq!(dialogue.open_requests(), asked.len() - ended.len() - given_up.len());
        }
        dialogue.on_written();
        let rest = write_all(&mut dialogue);
        for message in half.into_iter().chain(rest) {
            if let Message::Action { arguments, .. } = message {
                read.push(arguments.kwargs["n"].as_u64().expect("n"));
            }
        }
        prop_assert!(read.is_sorted_by(|a, b| a < b), "{:?}", read);
        if resume_queue {
            prop_assert_eq!(read.len() as u64, said);
        }
    }
}
