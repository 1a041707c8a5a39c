//! Knut's messages: UTF-8 JSON objects `{"apiId", "msgId", "msg"}`, each terminated by one NUL byte. A lone NUL is a
//! heartbeat. White space around a message is ignored.
//!
//! ```
//! use swarm_shared::proto::foreign::knut::{Decoder, Item, Message};
//!
//! let mut decoder = Decoder::new(1024);
//! let mut bytes: &[u8] = b"{\"apiId\": 1, \"msgId\": 2, \"msg\": {}}\0\0{\"api";
//! let asked = Message { api: 1, id: 2, msg: serde_json::json!({}) };
//! assert_eq!(decoder.decode_next(&mut bytes), Some(Item::Message(asked)));
//! assert_eq!(decoder.decode_next(&mut bytes), Some(Item::Heartbeat));
//! assert_eq!(decoder.decode_next(&mut bytes), None);
//! assert!(decoder.has_partial_message());
//! ```
//!
//! The decoder keeps one message at most, and at most as many bytes as allowed. A bad message ends at its NUL, and
//! the next one is decoded again.

use serde_json::Value;

use crate::proto::json::{self, JsonError};
use crate::proto::wire::ContentEncoding;

/// Terminates a message; alone it is a heartbeat.
pub const TERMINATOR: u8 = 0;

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Number of the server's interface.
    pub api: i64,
    /// Number of the interface's message type; 0 is no request and gets no response.
    pub id: i64,
    /// The content.
    pub msg: Value,
}

/// One item of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// The client is alive.
    Heartbeat,
    /// A message.
    Message(Message),
    /// A bad message; one that is too long is reported as soon as it is.
    Invalid(BadMessage),
}

/// Why the bytes up to a NUL are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Longer than the limit, in bytes; skipped as a whole.
    #[error("a message is longer than the {0} bytes that it may have")]
    TooLong(usize),
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Not an object of this form.
    #[error("a message has to be an object with whole numbers apiId and msgId, and msg")]
    NotAMessage,
}

impl Message {
    /// Parses a message without its NUL.
    ///
    /// # Errors
    /// See [`BadMessage`].
    pub fn parse(text: &[u8]) -> Result<Self, BadMessage> {
        let Value::Object(mut fields) = json::parse(text, &ContentEncoding::Utf8)? else {
            return Err(BadMessage::NotAMessage);
        };
        let number = |name: &str| fields.get(name).and_then(Value::as_i64);
        let (api, id) = (number("apiId"), number("msgId"));
        match (api, id, fields.remove("msg")) {
            (Some(api), Some(id), Some(msg)) => Ok(Self { api, id, msg }),
            _ => Err(BadMessage::NotAMessage),
        }
    }

    /// The bytes of the message, with the NUL.
    pub fn encode(&self) -> Vec<u8> {
        let Self { api, id, msg } = self;
        // JSON escapes a NUL in a text as \u0000, so the terminator is the only NUL.
        let mut bytes = format!("{{\"apiId\":{api},\"msgId\":{id},\"msg\":{msg}}}").into_bytes();
        bytes.push(TERMINATOR);
        bytes
    }
}

/// Splits a byte stream into items.
#[derive(Clone, Debug)]
pub struct Decoder {
    max: usize,
    partial: Vec<u8>,
    /// Within a message that is too long.
    skipping: bool,
}

impl Decoder {
    /// Accepts messages of up to `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            partial: Vec::new(),
            skipping: false,
        }
    }

    /// Takes the next item from the front of `bytes`; `None` when all are consumed.
    pub fn decode_next(&mut self, bytes: &mut &[u8]) -> Option<Item> {
        if self.partial.is_empty() && !self.skipping {
            *bytes = bytes.trim_ascii_start();
        }
        if bytes.is_empty() {
            return None;
        }
        let end = bytes.iter().position(|byte| *byte == TERMINATOR);
        let (part, rest) = match end {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (*bytes, &[][..]),
        };
        *bytes = rest;
        if self.skipping {
            self.skipping = end.is_none();
            return if end.is_some() {
                self.decode_next(bytes)
            } else {
                None
            };
        }
        if self.partial.len() + part.len() > self.max {
            self.partial = Vec::new();
            self.skipping = end.is_none();
            return Some(Item::Invalid(BadMessage::TooLong(self.max)));
        }
        self.partial.extend_from_slice(part);
        end?;
        let text = std::mem::take(&mut self.partial);
        if text.trim_ascii().is_empty() {
            return Some(Item::Heartbeat);
        }
        Some(Message::parse(&text).map_or_else(Item::Invalid, Item::Message))
    }

    /// Whether a message has started and is not complete.
    pub fn has_partial_message(&self) -> bool {
        self.skipping || !self.partial.is_empty()
    }
}

#[cfg(test)]
mod tests;
