//! Messages and announcements: what the real program wrote means what it should, and what we write comes back.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::proto::message::Arguments;
use crate::proto::wire::{ContentType, Frame, FrameReader, Header, Limits, MessageType};

const LIMITS: Limits = Limits {
    header: 16 * 1024,
    content: 1024 * 1024,
};

/// The frame as it comes out of a stream.
fn through_the_wire(frame: &Frame) -> Frame {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).expect("fits");
    let read = FrameReader::new(LIMITS).next_frame(&mut bytes);
    read.expect("sound").expect("whole")
}

fn real(name: &str) -> Result<Message, BadMessage> {
    let file: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/clever_show_frames.json")).expect("JSON");
    let mut vectors = file.as_array().expect("a list").iter();
    let vector = vectors.find(|vector| vector["name"] == name).expect(name);
    let hex = vector["frame_hex"].as_str().expect("hexadecimal").as_bytes();
    let bytes = data_encoding::HEXLOWER.decode(hex).expect("hexadecimal");
    let frame = FrameReader::new(LIMITS).next_frame(&mut BytesMut::from(&bytes[..]));
    Message::read(&frame.expect("sound").expect("whole"))
}

fn arguments(args: Value, kwargs: Value) -> Arguments {
    serde_json::from_value(json!({ "args": args, "kwargs": kwargs })).expect("arguments")
}

#[test]
fn what_the_real_program_wrote_is_understood() {
    let led = Message::Action {
        action: "led_fill".to_owned(),
        arguments: arguments(json!([]), json!({"red": 255, "green": 0, "blue": 16})),
    };
    assert_eq!(real("action, keyword arguments"), Ok(led));
    let asked = Message::Request {
        value: "telemetry".to_owned(),
        id: "0042".to_owned(),
        arguments: arguments(json!([]), json!({"x": 1})),
    };
    assert_eq!(real("request"), Ok(asked));
    let answered = |value: &str, id: &str, answer| Message::Response {
        value: value.to_owned(),
        id: id.to_owned(),
        answer,
    };
    assert_eq!(
        real("response, json value"),
        Ok(answered("id", "0042", Answer::Value(json!("clever-1"))))
    );
    assert_eq!(
        real("response, null value"),
        Ok(answered("clover_dir", "0001", Answer::Value(Value::Null)))
    );
    assert_eq!(
        real("response, file bytes"),
        Ok(answered(
            "filetransfer",
            "0007",
            Answer::File(Bytes::from_static(&[0, 1, 254, 255]))
        ))
    );
}

#[test]
fn null_for_arguments_counts_as_none() {
    let frame = Message::Request {
        value: "id".to_owned(),
        id: "0001".to_owned(),
        arguments: Arguments::default(),
    };
    let mut frame = frame.to_frame();
    frame.content =
        Bytes::from_static(br#"{"requested_value": "id", "request_id": 7, "args": null, "kwargs": null}"#);
    frame.header.content_length = frame.content.len() as u64;
    let read = Message::read(&frame);
    let Ok(Message::Request { id, arguments, .. }) = read else {
        panic!("{read:?}");
    };
    assert_eq!((id.as_str(), arguments), ("7", Arguments::default()));
}

#[test]
fn what_means_nothing_is_told_and_harms_nobody() {
    let frame = |kind, content_type, content: &'static [u8]| Frame {
        header: Header {
            message_type: kind,
            content_type,
            content_length: content.len() as u64,
            action: Some("led".to_owned()),
            ..Header::default()
        },
        content: Bytes::from_static(content),
    };
    use ContentType::{Binary, Json};
    use MessageType::{Message as Told, Request, Response};
    for (kind, content_type, content) in [
        (Told, Json, &b""[..]),
        (Told, Json, b"null"),
        (Told, Json, b"[1]"),
        (Told, Json, b"{\"args\": 3}"),
        (Told, Binary, b"\x00"),
        (Request, Json, b"{}"),
        (Request, Json, b"null"),
        (Request, Json, b"{\"requested_value\": \"id\"}"),
        (
            Request,
            Json,
            b"{\"requested_value\": \"\", \"request_id\": \"1\"}",
        ),
        (Request, Binary, b""),
        (Response, Json, b"{\"value\": 1}"),
    ] {
        Message::read(&frame(kind, content_type, content)).expect_err("means nothing");
    }
    let mut file = frame(Told, Binary, b"x");
    file.header.action = Some(FILE_TRANSFER.to_owned());
    assert_eq!(
        Message::read(&file),
        Err(BadMessage::Key {
            kind: "message",
            key: "filepath"
        })
    );
}

#[test]
fn an_announcement_is_texts_only_as_the_real_ones_are() {
    let announcement = Announcement {
        host: "192.168.1.10".to_owned(),
        port: 25_000,
        id: "0042".to_owned(),
        start_time: "1795200000.25".to_owned(),
    };
    let bytes = announcement.to_datagram().expect("short");
    let frame = FrameReader::new(LIMITS).next_frame(&mut BytesMut::from(&bytes[..]));
    let content = frame.expect("sound").expect("whole").value().expect("JSON");
    assert_eq!(
        content["kwargs"],
        json!({"host": "192.168.1.10", "port": "25000", "id": "0042", "start_time": "1795200000.25"})
    );
    assert_eq!(Announcement::read(&bytes), Ok(announcement));
}

#[test]
fn other_datagrams_are_no_announcements() {
    let announce = |kwargs: Value| {
        let Value::Object(kwargs) = kwargs else {
            panic!("an object")
        };
        let mut bytes = BytesMut::new();
        let frame = Message::action(SERVER_IP, kwargs).to_frame();
        frame.encode(&mut bytes).expect("fits");
        bytes.to_vec()
    };
    for kwargs in [
        json!({}),
        json!({"host": "h"}),
        json!({"host": "h", "port": "0"}),
        json!({"host": "h", "port": "65536"}),
        json!({"host": "", "port": "1"}),
        json!({"host": ["h"], "port": "1"}),
    ] {
        assert_eq!(Announcement::read(&announce(kwargs)), Err(BadAnnouncement::Other));
    }
    let sound = announce(json!({"host": "h", "port": 25000}));
    Announcement::read(&sound).expect("a number does as well");
    let twice = [&sound[..], &sound[..]].concat();
    assert_eq!(Announcement::read(&twice), Err(BadAnnouncement::NotOneFrame));
    assert_eq!(Announcement::read(&sound[..9]), Err(BadAnnouncement::NotOneFrame));
    let long = vec![0; ANNOUNCEMENT_BYTES_MAX + 1];
    assert_eq!(
        Announcement::read(&long),
        Err(BadAnnouncement::TooLong(long.len()))
    );
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,9}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((".{0,5}", inner), 0..4).prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn messages() -> impl Strategy<Value = Message> {
    let name = || "[a-zA-Zé_/]{1,20}";
    let bytes = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let arguments = || {
        let kwargs = vec((".{0,6}", values()), 0..4).prop_map(Map::from_iter);
        (vec(values(), 0..3), kwargs).prop_map(|(args, kwargs)| Arguments { args, kwargs })
    };
    prop_oneof![
        (name(), arguments())
            .prop_filter("files are bytes", |(action, _)| action != FILE_TRANSFER)
            .prop_map(|(action, arguments)| Message::Action { action, arguments }),
        ("[^\\x00]{1,30}", bytes()).prop_map(|(filepath, bytes)| Message::File { filepath, bytes }),
        (name(), "[0-9]{1,8}", arguments()).prop_map(|(value, id, arguments)| Message::Request {
            value,
            id,
            arguments
        }),
        (name(), "[0-9]{1,8}", values()).prop_map(|(value, id, answer)| Message::Response {
            value,
            id,
            answer: Answer::Value(answer)
        }),
        (name(), "[0-9]{1,8}", bytes()).prop_map(|(value, id, answer)| Message::Response {
            value,
            id,
            answer: Answer::File(answer)
        }),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back_from_its_frame(message in messages()) {
        let frame = through_the_wire(&message.to_frame());
        prop_assert_ne!(&frame.content[..], b"null");
        prop_assert_eq!(Message::read(&frame), Ok(message));
    }

    #[test]
    fn any_content_is_read_or_refused(
        content in vec(any::<u8>(), 0..200),
        kind in prop_oneof![Just(MessageType::Message), Just(MessageType::Request), Just(MessageType::Response)],
        action in proptest::option::of(".{0,12}"),
    ) {
        let frame = Frame {
            header: Header {
                message_type: kind,
                action: action.clone(),
                requested_value: action.clone(),
                request_id: action,
                content_length: content.len() as u64,
                ..Header::default()
            },
            content: content.into(),
        };
        // It is enough that it returns.
        let _read = Message::read(&frame);
    }

    #[test]
    fn any_datagram_is_read_or_refused(datagram in vec(any::<u8>(), 0..1100)) {
        let _read = Announcement::read(&datagram);
    }

    #[test]
    fn announcements_come_back(host in "[a-z0-9.:-]{1,60}", port in 1..=u16::MAX, id in "[0-9]{4}", at in "[0-9.]{0,20}") {
        let announcement = Announcement { host, port, id, start_time: at };
        let bytes = announcement.to_datagram().expect("short");
        prop_assert_eq!(Announcement::read(&bytes), Ok(announcement));
    }
}
