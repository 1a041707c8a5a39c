//! The five kinds of message, each from a frame and into one.
//!
//! | message | `message-type` | content |
//! |---|---|---|
//! | [`Message::Action`] | `message` | JSON: `args`, `kwargs` |
//! | [`Message::File`] | `message`, action `filetransfer` | the file's bytes |
//! | [`Message::Request`] | `request` | JSON: `requested_value`, `request_id`, `args`, `kwargs` |
//! | [`Message::Response`] | `response` | JSON: `value`; or a file's bytes |
//!
//! Invariants: what cannot be read is an error and never ends a connection; what is written is such that the real
//! program reads it, so no content is ever a bare `null`.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::proto::json::JsonError;
use crate::proto::message::Arguments;
use crate::proto::wire::{CONTENT_BYTES_MAX, ContentType, Frame, Header, MessageType};

/// The action that brings a file, and the value that a request for one asks for.
pub const FILE_TRANSFER: &str = "filetransfer";
/// Longest name of an action, a requested value or a request's id, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// What a frame means.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Do this. Nobody answers it.
    Action {
        /// What.
        action: String,
        /// With what.
        arguments: Arguments,
    },
    /// Keep this file. Nobody answers it.
    File {
        /// Where.
        filepath: String,
        /// What is in it; it may be empty.
        bytes: Bytes,
    },
    /// Tell me this.
    Request {
        /// What.
        value: String,
        /// What the response repeats.
        id: String,
        /// With what.
        arguments: Arguments,
    },
    /// What was asked for.
    Response {
        /// What.
        value: String,
        /// That of the request.
        id: String,
        /// The answer.
        answer: Answer,
    },
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// JSON.
    Value(Value),
    /// A file's bytes.
    File(Bytes),
}

/// Why a frame means nothing. The connection goes on after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// A key that its kind needs is not there, or holds something else.
    #[error("a {kind} without a sound {key:?}")]
    Key {
        /// Which kind of message.
        kind: &'static str,
        /// Which key.
        key: &'static str,
    },
    /// Bytes where JSON belongs.
    #[error("binary content belongs to {FILE_TRANSFER} only")]
    Binary,
    /// A file goes as bytes.
    #[error("a file comes as binary content")]
    NotBinary,
    /// Longer than any message but a file may be.
    #[error("JSON of {0} bytes is longer than the {CONTENT_BYTES_MAX} allowed")]
    TooLong(usize),
    /// The content is not JSON that we read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// `args` is no list, or `kwargs` no object.
    #[error("args has to be a list and kwargs an object")]
    Arguments,
}

impl Message {
    /// An action with arguments by name.
    pub fn action(action: &str, kwargs: serde_json::Map<String, Value>) -> Self {
        let args = Vec::new();
        Self::Action {
            action: action.to_owned(),
            arguments: Arguments { args, kwargs },
        }
    }

    /// What a frame means.
    ///
    /// # Errors
    /// [`BadMessage`]; pass the frame over.
    pub fn read(frame: &Frame) -> Result<Self, BadMessage> {
        let binary = match frame.header.content_type {
            ContentType::Json => false,
            ContentType::Binary => true,
        };
        match frame.header.message_type {
            MessageType::Message => Self::read_action(frame, binary),
            MessageType::Request if binary => Err(BadMessage::Binary),
            MessageType::Request => Self::read_request(frame),
            MessageType::Response => Self::read_response(frame, binary),
        }
    }

    fn read_action(frame: &Frame, binary: bool) -> Result<Self, BadMessage> {
        let kind = "message";
        let action = name(frame.header.action.as_deref(), kind, "action")?;
        match (action == FILE_TRANSFER, binary) {
            (true, true) => {
                let path = frame.header.filepath.as_deref();
                let path = path.filter(|path| (1..=PATH_BYTES_MAX).contains(&path.len()));
                let filepath = path
                    .ok_or(BadMessage::Key {
                        kind,
                        key: "filepath",
                    })?
                    .to_owned();
                let bytes = frame.content.clone();
                Ok(Self::File { filepath, bytes })
            }
            (true, false) => Err(BadMessage::NotBinary),
            (false, true) => Err(BadMessage::Binary),
            (false, false) => Ok(Self::Action {
                action,
                arguments: arguments(content(frame)?)?,
            }),
        }
    }

    fn read_request(frame: &Frame) -> Result<Self, BadMessage> {
        let kind = "request";
        let mut content = content(frame)?;
        let value = name(content["requested_value"].as_str(), kind, "requested_value")?;
        let id = match content["request_id"].take() {
            Value::String(id) => Some(id),
            Value::Number(id) => Some(id.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        Ok(Self::Request {
            value,
            id: name(id.as_deref(), kind, "request_id")?,
            arguments: arguments(content)?,
        })
    }

    fn read_response(frame: &Frame, binary: bool) -> Result<Self, BadMessage> {
        let kind = "response";
        let value = name(frame.header.requested_value.as_deref(), kind, "requested_value")?;
        let id = name(frame.header.request_id.as_deref(), kind, "request_id")?;
        let answer = if binary {
            Answer::File(frame.content.clone())
        } else {
            let mut content = content(frame)?;
            let answer = content.get_mut("value").map(Value::take);
            Answer::Value(answer.ok_or(BadMessage::Key { kind, key: "value" })?)
        };
        Ok(Self::Response { value, id, answer })
    }

    /// The frame that says it.
    pub fn to_frame(&self) -> Frame {
        match self {
            Self::Action { action, arguments } => {
                let header = Header {
                    action: Some(action.clone()),
                    ..Header::default()
                };
                json_frame(header, &json!(arguments))
            }
            Self::File { filepath, bytes } => {
                let header = Header {
                    action: Some(FILE_TRANSFER.to_owned()),
                    filepath: Some(filepath.clone()),
                    ..Header::default()
                };
                binary_frame(header, bytes)
            }
            Self::Request { value, id, arguments } => {
                let header = Header {
                    message_type: MessageType::Request,
                    ..Header::default()
                };
                let Arguments { args, kwargs } = arguments;
                let content =
                    json!({ "requested_value": value, "request_id": id, "args": args, "kwargs": kwargs });
                json_frame(header, &content)
            }
            Self::Response { value, id, answer } => {
                let header = Header {
                    message_type: MessageType::Response,
                    requested_value: Some(value.clone()),
                    request_id: Some(id.clone()),
                    ..Header::default()
                };
                match answer {
                    Answer::Value(value) => json_frame(header, &json!({ "value": value })),
                    Answer::File(bytes) => binary_frame(header, bytes),
                }
            }
        }
    }
}

fn name(text: Option<&str>, kind: &'static str, key: &'static str) -> Result<String, BadMessage> {
    let sound = text.filter(|text| (1..=NAME_BYTES_MAX).contains(&text.len()));
    sound.map(str::to_owned).ok_or(BadMessage::Key { kind, key })
}

fn content(frame: &Frame) -> Result<Value, BadMessage> {
    let bytes = frame.content.len();
    if bytes > CONTENT_BYTES_MAX {
        return Err(BadMessage::TooLong(bytes));
    }
    Ok(frame.value()?)
}

fn arguments(content: Value) -> Result<Arguments, BadMessage> {
    serde_json::from_value(content).map_err(|_shape| BadMessage::Arguments)
}

fn json_frame(header: Header, content: &Value) -> Frame {
    let content = Bytes::from(content.to_string());
    Frame {
        header: Header {
            content_length: content.len() as u64,
            ..header
        },
        content,
    }
}

fn binary_frame(header: Header, content: &Bytes) -> Frame {
    Frame {
        header: Header {
            content_type: ContentType::Binary,
            content_length: content.len() as u64,
            ..header
        },
        content: content.clone(),
    }
}
