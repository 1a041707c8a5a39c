//! Encodes a frame by hand, reads it with the library, and the reverse. Needs no default features.
//!
//! `cargo run --example frame`

#![expect(clippy::print_stdout, reason = "the output is for the terminal")]

use std::error::Error;

use bytes::BytesMut;
use serde_json::{Value, json};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane, MessageType};

/// `u16` big-endian length of the header, the header, the content.
fn encode_by_hand(header: &Value, content: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let header = header.to_string();
    let mut bytes = u16::try_from(header.len())?.to_be_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
    Ok(bytes)
}

/// Returns the header and the content.
fn decode_by_hand(bytes: &[u8]) -> Result<(Value, &[u8]), Box<dyn Error>> {
    let (length, rest) = bytes.split_first_chunk().ok_or("no length")?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (header, content) = rest.split_at_checked(length).ok_or("the header is cut off")?;
    let header: Value = serde_json::from_slice(header)?;
    if header["content-length"].as_u64() != Some(content.len() as u64) {
        return Err("the content has another length".into());
    }
    Ok((header, content))
}

fn main() -> Result<(), Box<dyn Error>> {
    let content = br#"{"args":[],"kwargs":{}}"#;
    let header = json!({
        "byteorder": "little",
        "content-type": "json",
        "content-encoding": "utf-8",
        "content-length": content.len(),
        "message-type": "request",
        "action": "ping",
        "kind": "command",
        "lane": "control",
        "id": 5,
        "epoch": 2,
    });
    let mut bytes = BytesMut::from(encode_by_hand(&header, content)?.as_slice());
    let frame = FrameReader::new(FrameLimits::CONTROL)
        .next_frame(&mut bytes)?
        .ok_or("the frame is cut off")?;
    println!("read: {:?} {:?}", frame.header.kind, frame.header.action);

    let mut ping = Frame::json(Kind::Command, &Arguments::default());
    ping.header.message_type = MessageType::Request;
    ping.header.action = Some("ping".to_owned());
    ping.header.lane = Some(Lane::Control);
    (ping.header.id, ping.header.epoch) = (Some(5), Some(2));
    let mut bytes = BytesMut::new();
    ping.encode(&mut bytes)?;
    let (header, content) = decode_by_hand(&bytes)?;
    println!("wrote: {header} {}", String::from_utf8_lossy(content));
    if frame != ping {
        return Err("both ways have to agree".into());
    }
    println!("both ways agree");
    Ok(())
}
