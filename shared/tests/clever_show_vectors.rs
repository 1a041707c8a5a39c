//! Frames that the real clever-show wrote (`vectors/clever_show_frames.json`) are decoded and encoded as it does.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use swarm_shared::proto::wire::{ContentEncoding, Frame, FrameLimits, FrameReader};

struct Vector {
    name: String,
    bytes: Vec<u8>,
    header: Value,
    /// `None` for binary content.
    json: Option<Value>,
    /// The content as it is on the wire.
    content: Bytes,
}

fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .expect("hexadecimal")
}

fn vectors() -> Vec<Vector> {
    let file: Value = serde_json::from_str(include_str!("vectors/clever_show_frames.json")).expect("JSON");
    let read = |vector: &Value| {
        let text = |key: &str| vector.get(key).and_then(Value::as_str);
        let bytes = unhex(text("frame_hex").expect("frame_hex"));
        let header = vector["header"].clone();
        let length = usize::try_from(header["content-length"].as_u64().expect("a length")).expect("small");
        let content = Bytes::copy_from_slice(&bytes[bytes.len() - length..]);
        if let Some(hex) = text("content_hex") {
            assert_eq!(unhex(hex), content);
        }
        // The file itself cannot hold NaN: the vector with it says "see note" and comes to null here.
        let json = vector.get("content").map(|value| match value.as_str() {
            Some("see note") => {
                let text = String::from_utf8(content.to_vec()).expect("UTF-8");
                serde_json::from_str(&text.replace("NaN", "null")).expect("JSON without NaN")
            }
            _ => value.clone(),
        });
        Vector {
            name: text("name").expect("name").to_owned(),
            bytes,
            header,
            json,
            content,
        }
    };
    let vectors: Vec<Vector> = file.as_array().expect("a list").iter().map(read).collect();
    assert_eq!(vectors.len(), 16);
    vectors
}

/// Feeds `pieces` one after the other and takes out every frame as soon as it is complete.
fn read_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Frame> {
    let mut reader = FrameReader::new(FrameLimits::CONTROL);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = reader.next_frame(&mut buffer).expect("sound") {
            frames.push(frame);
        }
    }
    assert!(buffer.is_empty() && reader.is_between_frames());
    frames
}

fn check(vector: &Vector, frame: &Frame) {
    let name = &vector.name;
    let header = serde_json::to_value(&frame.header).expect("plain data");
    assert_eq!(header, vector.header, "{name}");
    assert_eq!(frame.content, vector.content, "{name}");
    if let Some(json) = &vector.json {
        assert_eq!(frame.json_value().as_ref(), Ok(json), "{name}");
    }
}

#[test]
fn every_recorded_frame_is_decoded() {
    for vector in &vectors() {
        let frames = read_in_pieces([&vector.bytes[..]]);
        assert_eq!(frames.len(), 1, "{}", vector.name);
        check(vector, &frames[0]);
    }
}

#[test]
fn utf8_frames_are_encoded_as_recorded() {
    let mut written = 0;
    for vector in &vectors() {
        let frame = read_in_pieces([&vector.bytes[..]]).remove(0);
        if frame.header.content_encoding != ContentEncoding::Utf8 {
            continue;
        }
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).expect("fits");
        let header_end = 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        let header: Value = serde_json::from_slice(&bytes[2..header_end]).expect("JSON");
        assert_eq!(header, vector.header, "{}", vector.name);
        assert_eq!(bytes[header_end..], vector.content, "{}", vector.name);
        written += 1;
    }
    assert_eq!(written, 15);
}

#[test]
fn a_split_at_any_byte_changes_nothing() {
    for vector in &vectors() {
        for at in 0..=vector.bytes.len() {
            let (left, right) = vector.bytes.split_at(at);
            let frames = read_in_pieces([left, right]);
            assert_eq!(frames.len(), 1, "{} split at {at}", vector.name);
            check(vector, &frames[0]);
        }
        let frames = read_in_pieces(vector.bytes.chunks(1));
        assert_eq!(frames.len(), 1, "{} byte by byte", vector.name);
        check(vector, &frames[0]);
    }
}

#[test]
fn consecutive_frames_are_separated() {
    let vectors = vectors();
    let all: Vec<u8> = vectors.iter().flat_map(|v| v.bytes.iter().copied()).collect();
    for size in [1, 3, 100, 1000, all.len()] {
        let frames = read_in_pieces(all.chunks(size));
        assert_eq!(frames.len(), vectors.len());
        for (vector, frame) in vectors.iter().zip(&frames) {
            check(vector, frame);
        }
    }
}
