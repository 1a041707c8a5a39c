//! A plug-in: adds the action `blink` and a telemetry field to a node, over the node's plug-in socket.
//!
//! `cargo run --example plugin -- /var/lib/swarm-node/plugin.sock`, then `ground-station call all blink times=3`

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bytes::BytesMut;
use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::plugin::{LIMITS, message};
use swarm_shared::proto::wire::{Frame, FrameReader, Header, MessageType};

/// Bytes that are read at once.
const READ_BYTES: usize = 4096;

struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    unread: BytesMut,
}

impl Connection {
    fn open(socket: &str) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            stream: UnixStream::connect(socket)?,
            reader: FrameReader::new(LIMITS),
            unread: BytesMut::new(),
        })
    }

    fn send(&mut self, frame: &Frame) -> Result<(), Box<dyn Error>> {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes)?;
        self.stream.write_all(&bytes)?;
        Ok(())
    }

    /// The next frame; `None` when the node has closed the connection.
    fn receive(&mut self) -> Result<Option<Frame>, Box<dyn Error>> {
        loop {
            if let Some(frame) = self.reader.next_frame(&mut self.unread)? {
                return Ok(Some(frame));
            }
            let mut bytes = [0; READ_BYTES];
            match self.stream.read(&mut bytes)? {
                0 => return Ok(None),
                read => self.unread.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// The answer to the call with this header.
fn response(call: &Header, value: &Value) -> Frame {
    let content = json!({ "value": value }).to_string();
    let header = Header {
        message_type: MessageType::Response,
        requested_value: call.action.clone(),
        request_id: call.request_id.clone(),
        content_length: content.len() as u64,
        ..Header::default()
    };
    Frame {
        header,
        content: content.into(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: plugin SOCKET")?;
    let mut node = Connection::open(&socket)?;
    let registration = json!({
        "name": "lamp",
        "telemetry": { "blinks": "times" },
        "actions": { "blink": { "args": { "times": { "type": "integer", "default": 1 } } } },
    });
    node.send(&message("register", object(registration)))?;
    while let Some(frame) = node.receive()? {
        let content = frame.json_value()?;
        if let Some(error) = content["error"].as_str() {
            return Err(error.into());
        }
        if frame.header.action.as_deref() == Some("blink") {
            let times = &content["kwargs"]["times"];
            node.send(&message("telemetry", object(json!({ "blinks": times }))))?;
            node.send(&response(&frame.header, &json!(format!("blinked {times} times"))))?;
        }
    }
    Ok(())
}
