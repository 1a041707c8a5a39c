//! Frames: each fault has its own error, nothing is allocated before its length is checked, and no input makes the
//! reader panic.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use swarm_shared::proto::wire::{
    ByteOrder, ContentEncoding, ContentType, Frame, FrameLimits, FrameReader, HEADER_BYTES_MAX, Header, Kind,
    Lane, MessageType, WireError,
};

const GOOD: &str = r#"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":0,"message-type":"message"}"#;

fn bytes_of(header: &[u8], content: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u16(u16::try_from(header.len()).expect("a short header"));
    bytes.put_slice(header);
    bytes.put_slice(content);
    bytes
}

fn read(header: &str) -> Result<Option<Frame>, WireError> {
    FrameReader::new(FrameLimits::CONTROL).next_frame(&mut bytes_of(header.as_bytes(), b""))
}

fn read_header(header: &str) -> Header {
    read(header).expect("sound").expect("whole").header
}

/// `GOOD` with more keys.
fn with(keys: &str) -> String {
    format!("{},{keys}}}", &GOOD[..GOOD.len() - 1])
}

#[test]
fn oversized_header_is_refused_by_its_length_field() {
    let mut reader = FrameReader::new(FrameLimits {
        header: 100,
        content: 0,
    });
    let mut bytes = BytesMut::from(&101_u16.to_be_bytes()[..]);
    let capacity = bytes.capacity();
    assert_eq!(
        reader.next_frame(&mut bytes),
        Err(WireError::HeaderTooLong { bytes: 101, max: 100 })
    );
    assert_eq!(bytes.capacity(), capacity);
    // The fault is permanent: the stream cannot continue.
    assert!(reader.next_frame(&mut bytes).is_err());

    let mut bytes = BytesMut::from(&u16::MAX.to_be_bytes()[..]);
    assert_eq!(
        FrameReader::new(FrameLimits::CONTROL).next_frame(&mut bytes),
        Err(WireError::HeaderTooLong {
            bytes: 65_535,
            max: HEADER_BYTES_MAX
        })
    );
}

#[test]
fn oversized_content_is_refused_before_it_arrives() {
    let announce = |bytes: u64| GOOD.replace(":0", &format!(":{bytes}"));
    for (limits, max) in [
        (FrameLimits::PREAUTH, 16_384),
        (FrameLimits::CONTROL, 1 << 20),
        (FrameLimits::BULK, 4 << 20),
    ] {
        for over in [max as u64 + 1, u64::from(u32::MAX) + 1, u64::MAX] {
            let mut bytes = bytes_of(announce(over).as_bytes(), b"");
            let capacity = bytes.capacity();
            let mut reader = FrameReader::new(limits);
            assert_eq!(
                reader.next_frame(&mut bytes),
                Err(WireError::ContentTooLong { bytes: over, max })
            );
            assert_eq!(bytes.capacity(), capacity);
        }
        let mut bytes = bytes_of(announce(max as u64).as_bytes(), b"ab");
        let mut reader = FrameReader::new(limits);
        assert_eq!(reader.next_frame(&mut bytes), Ok(None));
        assert_eq!(reader.missing_bytes(), max - 2);
    }
}

#[test]
fn reader_reports_how_many_bytes_are_missing() {
    let whole = bytes_of(GOOD.replace(":0", ":5").as_bytes(), b"12345");
    let header_end = whole.len() - 5;
    let mut reader = FrameReader::new(FrameLimits::CONTROL);
    let mut bytes = BytesMut::new();
    for (at, byte) in whole.iter().enumerate() {
        assert_eq!(reader.next_frame(&mut bytes), Ok(None));
        let due = [2, header_end, whole.len()].into_iter().find(|end| *end > at);
        assert_eq!(Some(reader.missing_bytes() + at), due);
        bytes.put_u8(*byte);
    }
    assert!(reader.next_frame(&mut bytes).expect("sound").is_some());
}

#[test]
fn new_limits_apply_from_the_next_header() {
    let mut reader = FrameReader::new(FrameLimits {
        header: 200,
        content: 1,
    });
    let two = GOOD.replace(":0", ":2");
    reader.set_limits(FrameLimits {
        header: 200,
        content: 2,
    });
    assert!(
        reader
            .next_frame(&mut bytes_of(two.as_bytes(), b"ab"))
            .expect("allowed")
            .is_some()
    );
    reader.set_limits(FrameLimits {
        header: 200,
        content: 1,
    });
    assert!(matches!(
        reader.next_frame(&mut bytes_of(two.as_bytes(), b"ab")),
        Err(WireError::ContentTooLong { bytes: 2, max: 1 })
    ));
}

#[test]
fn non_utf8_header_is_reported_as_such() {
    let mut header = GOOD.as_bytes().to_vec();
    header[3] = 0xff;
    assert_eq!(
        FrameReader::new(FrameLimits::CONTROL).next_frame(&mut bytes_of(&header, b"")),
        Err(WireError::HeaderNotUtf8)
    );
}

#[test]
fn depth_33_is_refused_and_depth_32_is_read() {
    let nested = |levels: usize| with(&format!("\"x\":{}{}", "[".repeat(levels), "]".repeat(levels)));
    // The header itself is the first level.
    assert!(read(&nested(31)).is_ok());
    assert_eq!(read(&nested(32)), Err(WireError::HeaderTooDeep));
    assert_eq!(read(&"[".repeat(33)), Err(WireError::HeaderTooDeep));
    // Brackets in text do not count.
    assert!(read(&with(&format!("\"x\":\"\\\"{}\"", "[".repeat(40)))).is_ok());
}

#[test]
fn missing_required_key_is_named() {
    let required = [
        "byteorder",
        "content-type",
        "content-encoding",
        "content-length",
        "message-type",
    ];
    for key in required {
        let mut header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(GOOD).expect("an object");
        header.remove(key).expect("it is there");
        let text = serde_json::to_string(&header).expect("plain data");
        assert_eq!(read(&text), Err(WireError::MissingKey(key)));
        header.insert(key.to_owned(), serde_json::Value::Null);
        let text = serde_json::to_string(&header).expect("plain data");
        assert_eq!(read(&text), Err(WireError::MissingKey(key)));
    }
    assert!(matches!(read("{}"), Err(WireError::MissingKey(_))));
}

#[test]
fn invalid_header_value_is_refused() {
    let replaced = [
        GOOD.replace("\"json\"", "\"xml\""),
        GOOD.replace("\"json\"", "7"),
        GOOD.replace("\"message\"", "\"shout\""),
        GOOD.replace(":0", ":-1"),
        GOOD.replace(":0", ":1.5"),
        GOOD.replace(":0", ":\"0\""),
        GOOD.replace(":0", ":18446744073709551616"),
        GOOD.replace("\"utf-8\"", "8"),
    ];
    let added = [
        with("\"seq\":-1"),
        with("\"action\":7"),
        with("\"lane\":\"fast\""),
        with("\"kind\":7"),
        with("\"request_id\":[]"),
        with("\"content-length\":1"),
        with("\"seq\":1,\"seq\":1"),
    ];
    let not_objects = [
        "",
        "null",
        "7",
        "[]",
        "\"x\"",
        "{",
        "{}x",
        &GOOD[..GOOD.len() - 1],
        &format!("{GOOD}{GOOD}"),
    ];
    let bad = replaced
        .iter()
        .chain(&added)
        .map(String::as_str)
        .chain(not_objects);
    for header in bad {
        assert!(matches!(read(header), Err(WireError::BadHeader(_))), "{header}");
    }
}

#[test]
fn unknown_header_keys_are_ignored() {
    let header = read_header(&with(r#""kind":"from-the-future","x":{"y":[1,null,"z"]},"":"""#));
    assert_eq!(header.kind, Some(Kind::Unknown));
    let header = read_header(&GOOD.replace("little", "middle"));
    assert_eq!(header.byteorder, ByteOrder::Other);
    let header = read_header(&GOOD.replace("utf-8", "koi8-r"));
    assert_eq!(
        header.content_encoding,
        ContentEncoding::Other("koi8-r".to_owned())
    );
}

#[test]
fn encoding_aliases_are_accepted() {
    for (name, encoding) in [
        ("UTF-8", ContentEncoding::Utf8),
        ("utf8", ContentEncoding::Utf8),
        ("Utf-16", ContentEncoding::Utf16),
        ("utf16", ContentEncoding::Utf16),
    ] {
        assert_eq!(
            read_header(&GOOD.replace("utf-8", name)).content_encoding,
            encoding
        );
    }
}

#[test]
fn request_id_may_be_digits_a_number_or_null() {
    for (keys, id) in [
        (r#""request_id":"0042""#, Some("0042")),
        (r#""request_id":42"#, Some("42")),
        (r#""request_id":null"#, None),
    ] {
        assert_eq!(read_header(&with(keys)).request_id.as_deref(), id);
    }
}

#[test]
fn escapes_and_spaces_in_a_header_are_read() {
    let header = read_header(&with("\"action\" :\t\"a\\u00e9\\n\\\"\" , \"\\u0069d\": 7 "));
    assert_eq!(header.action.as_deref(), Some("aé\n\""));
    assert_eq!(header.id, Some(7));
}

#[test]
fn oversized_header_is_not_encoded() {
    let mut frame = Frame::json(Kind::Command, &());
    for length in [HEADER_BYTES_MAX, 70_000] {
        frame.header.action = Some("x".repeat(length));
        let mut to = BytesMut::from(&b"before"[..]);
        assert!(matches!(
            frame.encode(&mut to),
            Err(WireError::HeaderTooLong { .. })
        ));
        assert_eq!(&to[..], b"before");
    }
}

#[test]
fn wrong_content_length_is_not_encoded() {
    let mut frame = Frame::json(Kind::Command, &());
    frame.header.content_length += 1;
    let mut to = BytesMut::new();
    assert!(matches!(frame.encode(&mut to), Err(WireError::BadHeader(_))));
    assert!(to.is_empty());
}

fn any_header() -> impl Strategy<Value = Header> {
    let words = (
        prop_oneof![
            Just(ByteOrder::Little),
            Just(ByteOrder::Big),
            Just(ByteOrder::Other)
        ],
        prop_oneof![Just(ContentType::Json), Just(ContentType::Binary)],
        prop_oneof![
            Just(ContentEncoding::Utf8),
            Just(ContentEncoding::Utf16),
            "[a-z]{1,5}-[0-9]{3}".prop_map(ContentEncoding::Other),
        ],
        prop_oneof![
            Just(MessageType::Message),
            Just(MessageType::Request),
            Just(MessageType::Response)
        ],
    );
    let texts = (
        any::<Option<String>>(),
        any::<Option<String>>(),
        any::<Option<String>>(),
        any::<Option<String>>(),
    );
    let kinds = proptest::option::of(prop_oneof![
        Just(Kind::Hello),
        Just(Kind::Command),
        Just(Kind::Reply),
        Just(Kind::ChunkEnd),
        Just(Kind::FleetState),
        Just(Kind::OpenBulk),
        Just(Kind::Unknown),
    ]);
    let lanes = proptest::option::of(prop_oneof![
        Just(Lane::Emergency),
        Just(Lane::Control),
        Just(Lane::Telemetry),
        Just(Lane::Bulk),
    ]);
    (words, texts, kinds, lanes, any::<[Option<u64>; 9]>()).prop_map(|(words, texts, kind, lane, numbers)| {
        let [id, epoch, offset, life, seq, ack, ttl, until, stamp] = numbers;
        Header {
            byteorder: words.0,
            content_type: words.1,
            content_encoding: words.2,
            content_length: 0,
            message_type: words.3,
            action: texts.0,
            filepath: texts.1,
            requested_value: texts.2,
            request_id: texts.3,
            kind,
            lane,
            id,
            epoch,
            offset,
            life,
            seq,
            ack,
            ttl,
            until,
            stamp,
        }
    })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    (any_header(), proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(mut header, content)| {
        header.content_length = content.len() as u64;
        Frame {
            header,
            content: Bytes::from(content),
        }
    })
}

/// Text that is nearly a header, so that more than the first check is reached.
fn nearly_a_header() -> impl Strategy<Value = Vec<u8>> {
    (any_header(), any::<(u16, u8)>(), 0_usize..4).prop_map(|(header, (at, byte), edits)| {
        let mut text = serde_json::to_vec(&header).expect("plain data");
        for edit in 0..edits {
            let at = usize::from(at).wrapping_mul(edit + 1) % text.len();
            text[at] = byte;
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn encoded_frames_decode_in_any_pieces(frames in proptest::collection::vec(any_frame(), 1..5), sizes in proptest::collection::vec(1_usize..200, 1..20)) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut bytes).expect("fits");
        }
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        let mut buffer = BytesMut::new();
        let mut read = Vec::new();
        let mut sizes = sizes.iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let size = (*sizes.next().expect("a cycle")).min(rest.len());
            buffer.extend_from_slice(&rest[..size]);
            rest = &rest[size..];
            while let Some(frame) = reader.next_frame(&mut buffer).expect("sound") {
                read.push(frame);
            }
        }
        prop_assert_eq!(read, frames);
        prop_assert!(buffer.is_empty() && reader.is_between_frames());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut reader = FrameReader::new(FrameLimits::PREAUTH);
        while let Ok(Some(frame)) = reader.next_frame(&mut buffer) {
            let _value = frame.json_value();
        }
    }

    #[test]
    fn malformed_headers_do_not_make_the_reader_panic(header in nearly_a_header(), content in proptest::collection::vec(any::<u8>(), 0..20)) {
        let mut buffer = bytes_of(&header, &content);
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        while let Ok(Some(frame)) = reader.next_frame(&mut buffer) {
            prop_assert_eq!(frame.header.content_length, frame.content.len() as u64);
            let _value = frame.json_value();
        }
    }

    #[test]
    fn no_text_makes_the_lenient_parser_panic(text in "[\\[\\]{}\":,NaIinfty\\\\u0-9 e.-]{0,60}") {
        let _value = swarm_shared::proto::json::parse(text.as_bytes(), &ContentEncoding::Utf8);
        let _value = swarm_shared::proto::json::parse(text.as_bytes(), &ContentEncoding::Utf16);
    }
}
