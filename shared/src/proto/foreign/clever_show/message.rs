//! Messages to frames and back.
//!
//! | message | `message-type` | header says | content |
//! |---|---|---|---|
//! | [`Message::Action`] | `message` | `action` | `{"args": [], "kwargs": {}}` |
//! | [`Message::FilePush`] | `message` | `action: "filetransfer"`, `filepath` | the file |
//! | [`Message::Request`] | `request` | | `{"requested_value", "request_id", "args", "kwargs"}` |
//! | [`Message::Response`] | `response` | `requested_value`, `request_id` | `{"value": …}` |
//! | [`Message::FileResponse`] | `response` | the same | the file |

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::FILE_TRANSFER;
use crate::proto::json::JsonError;
use crate::proto::message::Arguments;
use crate::proto::wire::{ContentEncoding, ContentType, Frame, Header, MessageType};

/// Longest request id that is accepted, in bytes. The real programs use four digits.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Number of request ids. A request's id is its number modulo this.
pub const REQUEST_ID_COUNT: u64 = 10_000;
/// Longest name of an action or a requested value that is accepted, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Most memory of a peer's JSON beside its text, in bytes: a short text may contain very many values.
pub const JSON_MEMORY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Memory of an empty object, an empty list, and each value in either, in bytes: upper estimates of what `serde_json`
/// allocates.
const OBJECT_BYTES: usize = 640;
const LIST_BYTES: usize = 128;
const VALUE_BYTES: usize = 64;

/// One message, in either direction.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Asks for an action; there is no response.
    Action {
        /// Name of the action.
        action: String,
        /// By position and by name.
        arguments: Arguments,
    },
    /// Pushes a file; there is no response.
    FilePush {
        /// Where the receiver writes it.
        path: String,
        /// The whole content.
        content: Bytes,
    },
    /// Asks for a value.
    Request {
        /// Name of the value.
        name: String,
        /// Digits that the response repeats.
        id: String,
        /// By position and by name.
        arguments: Arguments,
    },
    /// Answers a request with a value.
    Response {
        /// Name of the value, as in the request.
        name: String,
        /// Id of the request.
        id: String,
        /// Any JSON value.
        value: Value,
    },
    /// Answers a request with a file.
    FileResponse {
        /// `filetransfer`, as in the request.
        name: String,
        /// Id of the request.
        id: String,
        /// The whole content.
        content: Bytes,
    },
}

/// The content of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseBody {
    /// Any JSON value.
    Value(Value),
    /// The bytes of a file.
    File(Bytes),
}

impl ResponseBody {
    /// The response with this content.
    pub fn into_message(self, name: String, id: String) -> Message {
        match self {
            Self::Value(value) => Message::Response { name, id, value },
            Self::File(content) => Message::FileResponse { name, id, content },
        }
    }
}

/// Why a frame is not a message. The frame is skipped, and the stream goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The content is not JSON within our limits.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A part is missing, has another type, or is too long.
    #[error("a {message} without a valid {part:?}")]
    MissingPart {
        /// Kind of message.
        message: &'static str,
        /// The missing part.
        part: &'static str,
    },
    /// The JSON has too many values; found before any is built.
    #[error("JSON whose values take more than {JSON_MEMORY_BYTES_MAX} bytes of memory")]
    TooManyValues,
    /// Binary content in a message that is not a file.
    #[error("binary content in a message that is not a file")]
    UnexpectedBinary,
}

/// Estimated memory of arguments, in bytes.
pub fn memory_bytes(arguments: &Arguments) -> usize {
    let values = arguments.args.iter().map(value_bytes).sum::<usize>();
    values + fields_bytes(&arguments.kwargs)
}

fn fields_bytes(fields: &Map<String, Value>) -> usize {
    let fields = fields.iter().map(|(key, value)| key.len() + value_bytes(value));
    OBJECT_BYTES + fields.sum::<usize>()
}

/// Recursion is bounded by the depth cap of JSON.
fn value_bytes(value: &Value) -> usize {
    let within = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => LIST_BYTES + values.iter().map(value_bytes).sum::<usize>(),
        Value::Object(fields) => fields_bytes(fields),
    };
    VALUE_BYTES + within
}

/// The id of the request with this number: four digits, as in the real program.
pub fn request_id(number: u64) -> String {
    format!("{:04}", number % REQUEST_ID_COUNT)
}

/// The arguments of a request for a file, whose name is [`FILE_TRANSFER`].
pub fn file_arguments(path: &str) -> Arguments {
    let mut arguments = Arguments::default();
    arguments.kwargs.insert("filepath".to_owned(), path.into());
    arguments
}

impl Message {
    /// Decodes a frame.
    ///
    /// # Errors
    /// [`BadMessage`]; the stream goes on.
    pub fn from_frame(frame: &Frame) -> Result<Self, BadMessage> {
        let is_file = frame.header.content_type == ContentType::Binary;
        match (frame.header.message_type, is_file) {
            (MessageType::Message, false) => Ok(Self::Action {
                action: header_text(frame, "message", "action")?,
                arguments: parse_arguments("message", json_object(frame, "message")?)?,
            }),
            (MessageType::Message, true) => {
                if frame.header.action.as_deref() != Some(FILE_TRANSFER) {
                    return Err(BadMessage::UnexpectedBinary);
                }
                Ok(Self::FilePush {
                    path: header_text(frame, "message", "filepath")?,
                    content: frame.content.clone(),
                })
            }
            (MessageType::Request, true) => Err(BadMessage::UnexpectedBinary),
            (MessageType::Request, false) => {
                let mut content = json_object(frame, "request")?;
                let mut text = |part, bytes_max| {
                    let text = content.remove(part).and_then(text_or_number);
                    let text = text.filter(|text| text.len() <= bytes_max);
                    let message = "request";
                    text.ok_or(BadMessage::MissingPart { message, part })
                };
                Ok(Self::Request {
                    name: text("requested_value", NAME_BYTES_MAX)?,
                    id: text("request_id", REQUEST_ID_BYTES_MAX)?,
                    arguments: parse_arguments("request", content)?,
                })
            }
            (MessageType::Response, _) => {
                let name = header_text(frame, "response", "requested_value")?;
                let id = header_text(frame, "response", "request_id")?;
                if is_file {
                    let content = frame.content.clone();
                    return Ok(Self::FileResponse { name, id, content });
                }
                let value = json_object(frame, "response")?.remove("value");
                let value = value.ok_or(BadMessage::MissingPart {
                    message: "response",
                    part: "value",
                })?;
                Ok(Self::Response { name, id, value })
            }
        }
    }

    /// Encodes the message. A name or path may make the header longer than its cap; encoding the frame reports that.
    pub fn to_frame(&self) -> Frame {
        match self {
            Self::Action { action, arguments } => {
                let header = Header {
                    action: Some(action.clone()),
                    ..Header::default()
                };
                json_frame(header, &json!(arguments))
            }
            Self::FilePush { path, content } => {
                let header = Header {
                    action: Some(FILE_TRANSFER.to_owned()),
                    filepath: Some(path.clone()),
                    ..Header::default()
                };
                file_frame(header, content)
            }
            Self::Request { name, id, arguments } => {
                let header = Header {
                    message_type: MessageType::Request,
                    ..Header::default()
                };
                let Arguments { args, kwargs } = arguments;
                let content =
                    json!({ "requested_value": name, "request_id": id, "args": args, "kwargs": kwargs });
                json_frame(header, &content)
            }
            Self::Response { name, id, value } => {
                json_frame(response_header(name, id), &json!({ "value": value }))
            }
            Self::FileResponse { name, id, content } => file_frame(response_header(name, id), content),
        }
    }
}

pub(in crate::proto::foreign) fn response_header(name: &str, id: &str) -> Header {
    Header {
        message_type: MessageType::Response,
        requested_value: Some(name.to_owned()),
        request_id: Some(id.to_owned()),
        ..Header::default()
    }
}

pub(in crate::proto::foreign) fn json_frame(header: Header, content: &Value) -> Frame {
    let content = content.to_string();
    Frame {
        header: Header {
            content_length: content.len() as u64,
            ..header
        },
        content: content.into(),
    }
}

fn file_frame(header: Header, content: &Bytes) -> Frame {
    Frame {
        header: Header {
            content_type: ContentType::Binary,
            content_length: content.len() as u64,
            ..header
        },
        content: content.clone(),
    }
}

fn header_text(frame: &Frame, message: &'static str, part: &'static str) -> Result<String, BadMessage> {
    let header = &frame.header;
    let (text, bytes_max) = match part {
        "action" => (&header.action, NAME_BYTES_MAX),
        // The header's own limit applies.
        "filepath" => (&header.filepath, usize::MAX),
        "requested_value" => (&header.requested_value, NAME_BYTES_MAX),
        _ => (&header.request_id, REQUEST_ID_BYTES_MAX),
    };
    let text = text.clone().filter(|text| text.len() <= bytes_max);
    text.ok_or(BadMessage::MissingPart { message, part })
}

fn json_object(frame: &Frame, message: &'static str) -> Result<Map<String, Value>, BadMessage> {
    if content_memory_bytes(frame) > JSON_MEMORY_BYTES_MAX {
        return Err(BadMessage::TooManyValues);
    }
    match frame.json_value()? {
        Value::Object(object) => Ok(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(BadMessage::MissingPart {
                message,
                part: "object",
            })
        }
    }
}

/// Estimated memory of the content's values beside its text, in bytes.
fn content_memory_bytes(frame: &Frame) -> usize {
    match &frame.header.content_encoding {
        ContentEncoding::Utf16 => {
            let big = frame.content.starts_with(&[0xfe, 0xff]);
            let (units, _rest) = frame.content.as_chunks();
            let units = units.iter().map(|unit| match big {
                true => u16::from_be_bytes(*unit),
                false => u16::from_le_bytes(*unit),
            });
            // All characters that are counted are ASCII.
            estimate_memory_bytes(units.map(|unit| u8::try_from(unit).unwrap_or(b' ')))
        }
        ContentEncoding::Utf8 | ContentEncoding::Other(_) => {
            estimate_memory_bytes(frame.content.iter().copied())
        }
    }
}

fn estimate_memory_bytes(text: impl Iterator<Item = u8>) -> usize {
    let (mut bytes, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'"' => in_string = !in_string,
            b'\\' => escaped = in_string,
            _ if in_string => {}
            b'{' => bytes = bytes.saturating_add(OBJECT_BYTES),
            b'[' => bytes = bytes.saturating_add(LIST_BYTES),
            b',' => bytes = bytes.saturating_add(VALUE_BYTES),
            _ => {}
        }
    }
    bytes
}

/// `args` and `kwargs`; either may be absent or `null`, as real peers write after a reconnect.
fn parse_arguments(message: &'static str, mut content: Map<String, Value>) -> Result<Arguments, BadMessage> {
    let wrong = |part| BadMessage::MissingPart { message, part };
    let args = match content.remove("args") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(args)) => args,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            return Err(wrong("args"));
        }
    };
    let kwargs = match content.remove("kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(wrong("kwargs"));
        }
    };
    Ok(Arguments { args, kwargs })
}

/// Some peers write the digits as a number.
fn text_or_number(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
