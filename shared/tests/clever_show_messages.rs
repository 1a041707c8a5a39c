//! Messages of clever-show: the frames that the real program wrote (`vectors/clever_show_frames.json`) parse to the
//! expected messages, our frames are readable for it, and no input of a peer is misread or panics.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::clever_show::{
    ANNOUNCEMENT_BYTES_MAX, Announcement, BadAnnouncement, BadMessage, Message, NAME_BYTES_MAX,
    REQUEST_ID_BYTES_MAX, request_id,
};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::{ContentEncoding, Frame, FrameLimits, FrameReader};

fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .expect("hexadecimal")
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let file: Value = serde_json::from_str(include_str!("vectors/clever_show_frames.json")).expect("JSON");
    let all = file.as_array().expect("a list").iter();
    let vectors = all.map(|vector| {
        let text = |key: &str| vector[key].as_str().expect(key);
        (text("name").to_owned(), unhex(text("frame_hex")))
    });
    let vectors: Vec<_> = vectors.collect();
    assert_eq!(vectors.len(), 16);
    vectors
}

fn frame(bytes: &[u8]) -> Frame {
    let frame = FrameReader::new(FrameLimits::CONTROL).next_frame(&mut BytesMut::from(bytes));
    frame.expect("sound").expect("whole")
}

fn reencode(message: &Message) -> Frame {
    let mut bytes = BytesMut::new();
    message.to_frame().encode(&mut bytes).expect("fits");
    frame(&bytes)
}

fn action(action: &str, args: Value, kwargs: Value) -> Message {
    Message::Action {
        action: action.to_owned(),
        arguments: arguments(args, kwargs),
    }
}

fn request(name: &str, id: &str, kwargs: Value) -> Message {
    Message::Request {
        name: name.to_owned(),
        id: id.to_owned(),
        arguments: arguments(json!([]), kwargs),
    }
}

fn response(name: &str, id: &str, value: Value) -> Message {
    Message::Response {
        name: name.to_owned(),
        id: id.to_owned(),
        value,
    }
}

fn arguments(args: Value, kwargs: Value) -> Arguments {
    serde_json::from_value(json!({ "args": args, "kwargs": kwargs })).expect("arguments")
}

/// The message that each vector stands for.
fn expected_message(name: &str) -> Message {
    let (none, no) = (json!([]), json!({}));
    let push = |path: &str, content: &'static [u8]| Message::FilePush {
        path: path.to_owned(),
        content: Bytes::from_static(content),
    };
    match name {
        "action, keyword arguments" => {
            action("led_fill", none, json!({ "red": 255, "green": 0, "blue": 16 }))
        }
        "action, no arguments" => action("land", none, no),
        "action, positional arguments, non-ASCII" => action("notify", json!(["внимание", "drone №7"]), no),
        "action, start time as a string" => action("start", none, json!({ "time": "1795200000.25" })),
        "request" => request("telemetry", "0042", json!({ "x": 1 })),
        "request for a file" => request("filetransfer", "0007", json!({ "filepath": "/home/pi/log.txt" })),
        "response, json value" => response("id", "0042", json!("clever-1")),
        "response, null value" => response("clover_dir", "0001", Value::Null),
        "response, file bytes" => Message::FileResponse {
            name: "filetransfer".to_owned(),
            id: "0007".to_owned(),
            content: Bytes::from_static(&[0, 1, 0xfe, 0xff]),
        },
        "file push" => push("/tmp/x.bin", &[0, 1, 0xff]),
        "file push, empty file" => match self::frame(&vector(name)).header.filepath {
            Some(path) => push(&path, b""),
            None => panic!("no path"),
        },
        "UDP announcement server_ip" => action(
            "server_ip",
            none,
            json!({ "host": "192.0.2.10", "port": "25000", "id": "0815", "start_time": "1795190000.5" }),
        ),
        "telemetry" | "telemetry with NaN" => {
            let content = frame(&vector(name)).json_value().expect("lenient");
            action("telemetry", none, content["kwargs"].clone())
        }
        "action, utf-16 content" => action("test", none, no),
        "request, args null (sent by a real peer after a reconnect)" => request("id", "0042", no),
        other => panic!("unknown vector: {other}"),
    }
}

fn vector(name: &str) -> Vec<u8> {
    let all = vectors().into_iter();
    let mut found = all.filter(|(called, _)| called == name);
    found.next().expect(name).1
}

#[test]
fn recorded_frames_parse_to_expected_messages() {
    for (name, bytes) in vectors() {
        assert_eq!(
            Message::from_frame(&frame(&bytes)),
            Ok(expected_message(&name)),
            "{name}"
        );
    }
}

#[test]
fn messages_encode_to_the_recorded_frames() {
    for (name, bytes) in vectors() {
        let real = frame(&bytes);
        let ours = reencode(&expected_message(&name));
        assert_eq!(Message::from_frame(&ours), Ok(expected_message(&name)), "{name}");
        if real.header.content_encoding != ContentEncoding::Utf8 {
            continue;
        }
        // Python writes a space after each colon, so that lengths differ.
        let mut header = real.header.clone();
        header.content_length = ours.header.content_length;
        assert_eq!(ours.header, header, "{name}");
        match name.as_str() {
            // Never written by us.
            "request, args null (sent by a real peer after a reconnect)" => {
                assert_eq!(ours.json_value().expect("JSON")["args"], json!([]));
            }
            _ if real.json_value().is_ok() => assert_eq!(ours.json_value(), real.json_value(), "{name}"),
            _ => assert_eq!(ours.content, real.content, "{name}"),
        }
    }
}

#[test]
fn telemetry_with_nan_is_read_and_the_nan_is_null() {
    let Ok(Message::Action { arguments, .. }) = Message::from_frame(&frame(&vector("telemetry with NaN")))
    else {
        panic!("read")
    };
    let text = arguments.kwargs["value"].to_string();
    assert!(text.contains("null"), "{text}");
}

#[test]
fn invalid_message_error_names_the_missing_part() {
    let header = |header: Value, content: &str| {
        let mut whole = json!({ "byteorder": "little", "content-type": "json", "content-encoding": "utf-8" });
        let object = whole.as_object_mut().expect("an object");
        object.extend(header.as_object().expect("an object").clone());
        object.insert("content-length".to_owned(), content.len().into());
        let header = whole.to_string();
        let length = u16::try_from(header.len()).expect("short").to_be_bytes();
        frame(&[&length, header.as_bytes(), content.as_bytes()].concat())
    };
    let message = json!({ "message-type": "message", "action": "land" });
    let request = json!({ "message-type": "request" });
    let response = json!({ "message-type": "response", "requested_value": "id", "request_id": "1" });
    for (header_keys, content, wanted) in [
        (
            json!({ "message-type": "message" }),
            "{}",
            "a message without a valid \"action\"",
        ),
        (message.clone(), "null", "a message without a valid \"object\""),
        (
            message.clone(),
            "{\"args\": 7}",
            "a message without a valid \"args\"",
        ),
        (
            message.clone(),
            "{\"kwargs\": []}",
            "a message without a valid \"kwargs\"",
        ),
        (message, "{", "not JSON"),
        (
            request.clone(),
            "{\"request_id\": \"1\"}",
            "without a valid \"requested_value\"",
        ),
        (
            request,
            "{\"requested_value\": \"id\"}",
            "without a valid \"request_id\"",
        ),
        (response, "{}", "a response without a valid \"value\""),
        (
            json!({ "message-type": "response", "request_id": "1" }),
            "{\"value\": 1}",
            "without a valid \"requested_value\"",
        ),
        (
            json!({ "message-type": "message", "action": "land", "content-type": "binary" }),
            "x",
            "not a file",
        ),
    ] {
        let error = Message::from_frame(&header(header_keys, content)).expect_err(content);
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let number = header(
        json!({ "message-type": "request" }),
        "{\"requested_value\": \"id\", \"request_id\": 42}",
    );
    assert!(matches!(Message::from_frame(&number), Ok(Message::Request { id, .. }) if id == "42"));
}

#[test]
fn ids_and_names_have_a_maximum_length() {
    let name = |more| "n".repeat(NAME_BYTES_MAX + more);
    let id = |more| "1".repeat(REQUEST_ID_BYTES_MAX + more);
    let all = |name: String, id: String| {
        [
            action(&name, json!([]), json!({})),
            request(&name, &id, json!({})),
            response(&name, &id, json!(1)),
            Message::FileResponse {
                name,
                id,
                content: Bytes::new(),
            },
        ]
    };
    for message in all(name(0), id(0)) {
        assert_eq!(Message::from_frame(&message.to_frame()), Ok(message));
    }
    for (message, part) in
        all(name(1), id(0))
            .iter()
            .zip(["action", "requested_value", "requested_value", "requested_value"])
    {
        let error = Message::from_frame(&message.to_frame()).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
    for message in &all(name(0), id(1))[1..] {
        let error = Message::from_frame(&message.to_frame()).expect_err("too long an id");
        assert!(error.to_string().contains("request_id"), "{error}");
    }
}

#[test]
fn json_with_too_many_values_is_refused() {
    let said = |value: &str, times, encoding: ContentEncoding| {
        let mut frame = action("led", json!([]), json!({})).to_frame();
        let list = [value].repeat(times).join(",");
        let text = format!("{{\"args\":[{list}]}}");
        frame.content = match encoding {
            ContentEncoding::Utf16 => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            ContentEncoding::Utf8 | ContentEncoding::Other(_) => text.into(),
        };
        if encoding == ContentEncoding::Utf16 {
            frame.content = [&[0xfe, 0xff], &frame.content[..]].concat().into();
        }
        frame.header.content_encoding = encoding;
        Message::from_frame(&frame)
    };
    for encoding in [ContentEncoding::Utf8, ContentEncoding::Utf16] {
        // A megabyte of these would take a hundred megabytes as values.
        for (value, times) in [
            ("{\"\":0}", 10_000),
            ("[0]", 20_000),
            ("0", 50_000),
            ("\"\\\"\"", 50_000),
        ] {
            let read = said(value, times, encoding.clone());
            assert_eq!(read, Err(BadMessage::TooManyValues), "{value}");
        }
        // Brackets within a text are no values.
        let text = format!("\"{}\\\"{}\"", "[{,".repeat(20_000), "[{,".repeat(20_000));
        for (value, times) in [("0.25", 30_000), ("{\"a\":1}", 2_900), (&text, 1)] {
            said(value, times, encoding.clone()).expect("not too many");
        }
    }
}

#[test]
fn announcement_equals_the_real_datagram() {
    let real = vector("UDP announcement server_ip");
    let announcement = Announcement {
        host: "192.0.2.10".to_owned(),
        port: 25_000,
        id: "0815".to_owned(),
        start_time: "1795190000.5".to_owned(),
    };
    assert_eq!(Announcement::parse(&real), Ok(announcement.clone()));
    let ours = announcement.to_datagram().expect("short");
    assert_eq!(Announcement::parse(&ours), Ok(announcement));
    assert_eq!(
        Message::from_frame(&frame(&ours)),
        Message::from_frame(&frame(&real))
    );

    for cut in 0..real.len() {
        assert!(Announcement::parse(&real[..cut]).is_err());
    }
    let behind = [&real[..], b"x"].concat();
    assert_eq!(Announcement::parse(&behind), Err(BadAnnouncement::NotOneFrame));
    let long = vec![0; ANNOUNCEMENT_BYTES_MAX + 1];
    assert_eq!(
        Announcement::parse(&long),
        Err(BadAnnouncement::TooLong(long.len()))
    );
    assert_eq!(
        Announcement::parse(&vector("action, no arguments")),
        Err(BadAnnouncement::OtherAction)
    );
    assert_eq!(
        Announcement::parse(&vector("file push")),
        Err(BadAnnouncement::OtherAction)
    );
    for (port, good) in [
        ("0", false),
        ("65535", true),
        ("65536", false),
        ("", false),
        ("x", false),
    ] {
        let kwargs = json!({ "host": "h", "port": port, "id": "1", "start_time": "1" });
        let mut bytes = BytesMut::new();
        let message = action("server_ip", json!([]), kwargs);
        message.to_frame().encode(&mut bytes).expect("fits");
        assert_eq!(Announcement::parse(&bytes).is_ok(), good, "{port}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_arguments() -> impl Strategy<Value = Arguments> {
    let kwargs = prop::collection::btree_map(".{0,6}", any_json(), 0..4);
    (prop::collection::vec(any_json(), 0..3), kwargs).prop_map(|(args, kwargs)| Arguments {
        args,
        kwargs: kwargs.into_iter().collect::<Map<_, _>>(),
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let id = any::<u64>().prop_map(request_id);
    let bytes = prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    prop_oneof![
        (".{0,20}", any_arguments()).prop_map(|(action, arguments)| Message::Action { action, arguments }),
        (".{0,20}", bytes.clone()).prop_map(|(path, content)| Message::FilePush { path, content }),
        (".{0,20}", id.clone(), any_arguments()).prop_map(|(name, id, arguments)| Message::Request {
            name,
            id,
            arguments
        }),
        (".{0,20}", id.clone(), any_json()).prop_map(|(name, id, value)| Message::Response {
            name,
            id,
            value
        }),
        (".{0,20}", id, bytes).prop_map(|(name, id, content)| Message::FileResponse { name, id, content }),
    ]
}

proptest! {
    #[test]
    fn encoded_messages_parse_back(message in any_message()) {
        let frame = reencode(&message);
        prop_assert_eq!(Message::from_frame(&frame), Ok(message));
        prop_assert!(frame.content != "null");
    }

    #[test]
    fn parsed_messages_survive_a_second_round_trip(content in prop::collection::vec(any::<u8>(), 0..200), message in any_message()) {
        let mut frame = message.to_frame();
        frame.header.content_length = content.len() as u64;
        frame.content = content.into();
        match Message::from_frame(&frame) {
            Ok(read) => prop_assert_eq!(Message::from_frame(&reencode(&read)), Ok(read)),
            Err(
                BadMessage::Json(_)
                | BadMessage::MissingPart { .. }
                | BadMessage::TooManyValues
                | BadMessage::UnexpectedBinary,
            ) => {}
        }
    }

    #[test]
    fn any_datagram_parses_or_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
        if let Ok(announcement) = Announcement::parse(&bytes) {
            let again = announcement.to_datagram();
            prop_assert!(again.is_err() || Announcement::parse(&again.expect("written")) == Ok(announcement));
        }
    }
}
