//! Platypush's messages: JSON objects for requests, responses and events.
//!
//! | message | fields |
//! |---|---|
//! | request | `type`, `target`, `action` (or `name`), `args`, `origin`, `id`, `token`, `_timestamp` |
//! | response | `type`, `id`, `target`, `origin`, `_timestamp`, `response`: `output` and `errors` |
//! | event | `type`, `id`, `target`, `origin`, `_timestamp`, `args`: its own `type` and fields |
//!
//! Over TCP there is no separator between messages; [`MessageReader`] finds where each ends. Lengths are checked
//! before a message is parsed. Keys outside this table are ignored.

use serde_json::{Map, Value, json};

use crate::proto::hex;
use crate::proto::json::{self, JsonError};
use crate::proto::message::Arguments;
use crate::proto::wire::ContentEncoding;

mod message_reader;
#[cfg(test)]
mod tests;

pub use message_reader::{FramingError, MessageReader};

/// Longest name of an action, in bytes.
pub const ACTION_BYTES_MAX: usize = 128;
/// Longest `id`, `origin` or `token`, in bytes: these are only compared or returned.
pub const IDENTIFIER_BYTES_MAX: usize = 256;
/// Random bytes of a generated `id`: 32 hexadecimal digits.
pub const ID_BYTES: usize = 16;

/// A request for an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name of the host that should act; `None` for any. The empty text is refused.
    pub target: Option<String>,
    /// Name of the action, `plugin.method`.
    pub action: String,
    /// An object, a list, one value, or `null`.
    pub args: Value,
    /// Name of the sender, which becomes the response's `target`.
    pub origin: Option<String>,
    /// Repeated by the response.
    pub id: String,
    /// The sender's access token.
    pub token: Option<String>,
    /// When it was sent, in seconds since 1970 by the sender's clock; not evaluated.
    pub timestamp: Option<f64>,
}

/// Why bytes are not a request, with what could be read for the response.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{fault}")]
pub struct BadMessage {
    /// The message's id, or a generated one.
    pub id: String,
    /// Name of the sender.
    pub origin: Option<String>,
    /// The sender's token: authentication does not depend on the fault.
    pub token: Option<String>,
    /// What is wrong with the message.
    pub fault: Fault,
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not JSON within our limits.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It is not an object.
    #[error("a message is a JSON object, as {{\"type\": \"request\", \"action\": \"ping\"}}")]
    NotAnObject,
    /// It is a response or an event.
    #[error("only messages of type \"request\" are answered here, not {0}")]
    NotARequest(String),
    /// It names no action.
    #[error("the request names no action: write \"action\": \"ping\"")]
    MissingAction,
    /// A field that is not known: most likely a typing error in `target`, or an argument outside `args`.
    #[error(
        "no request has the field {0:?}: the fields are type, target, action, args, origin, id and token, and what the \
         action takes goes into args"
    )]
    UnknownField(String),
    /// A field has the wrong type or length.
    #[error("{field} has to be a text of 1 to {max} bytes")]
    InvalidField {
        /// Name of the field.
        field: &'static str,
        /// Its longest value, in bytes.
        max: usize,
    },
}

/// Longest target, in bytes.
const TARGET_BYTES_MAX: usize = crate::proto::selector::SELECTOR_BYTES_MAX;
/// Longest quotation in an error, in characters.
const QUOTED_CHARS_MAX: usize = 40;

impl Request {
    /// Parses a whole message. `new_id` becomes its id if it has none.
    ///
    /// # Errors
    /// See [`BadMessage`].
    pub fn parse(message: &[u8], new_id: [u8; ID_BYTES]) -> Result<Self, BadMessage> {
        match json::parse(message, &ContentEncoding::Utf8) {
            Ok(value) => Self::from_value(value, new_id),
            Err(error) => Err(BadMessage {
                id: hex::encode(&new_id),
                origin: None,
                token: None,
                fault: error.into(),
            }),
        }
    }

    /// Parses a message from JSON, whose nesting is bounded already.
    ///
    /// # Errors
    /// See [`BadMessage`].
    pub fn from_value(value: Value, new_id: [u8; ID_BYTES]) -> Result<Self, BadMessage> {
        let id = hex::encode(&new_id);
        let Value::Object(mut fields) = value else {
            return Err(BadMessage {
                id,
                origin: None,
                token: None,
                fault: Fault::NotAnObject,
            });
        };
        // The sender is read first, so that each later fault can be answered.
        let (own, origin) = (identifier(&mut fields, "id"), identifier(&mut fields, "origin"));
        let token = identifier(&mut fields, "token");
        let id = own.clone().ok().flatten().unwrap_or(id);
        let (answer_to, shown) = (origin.clone().ok().flatten(), token.clone().ok().flatten());
        let read = || -> Result<Self, Fault> {
            own?;
            let kind = fields.remove("type").filter(|kind| !kind.is_null());
            if let Some(kind) = kind.filter(|kind| kind != "request") {
                let quoted: String = kind.to_string().chars().take(QUOTED_CHARS_MAX).collect();
                return Err(Fault::NotARequest(quoted));
            }
            let action = text(&mut fields, "action", ACTION_BYTES_MAX)?;
            let action = match action {
                None => text(&mut fields, "name", ACTION_BYTES_MAX)?,
                action => action,
            };
            // An empty target is most likely an unset variable of a script, and does not mean any host.
            if fields.get("target").is_some_and(|target| target == "") {
                return Err(Fault::InvalidField {
                    field: "target",
                    max: TARGET_BYTES_MAX,
                });
            }
            let request = Self {
                target: text(&mut fields, "target", TARGET_BYTES_MAX)?,
                action: action.ok_or(Fault::MissingAction)?,
                args: fields.remove("args").unwrap_or_default(),
                origin: origin?,
                id: id.clone(),
                token: token?,
                timestamp: fields.remove("_timestamp").as_ref().and_then(Value::as_f64),
            };
            // The alias `name` beside `action` is ignored, and so are keys with an underscore.
            let mut unknown = fields
                .keys()
                .filter(|field| *field != "name" && !field.starts_with('_'));
            match unknown.next() {
                Some(field) => Err(Fault::UnknownField(
                    field.chars().take(QUOTED_CHARS_MAX).collect(),
                )),
                None => Ok(request),
            }
        };
        read().map_err(|fault| BadMessage {
            id: id.clone(),
            origin: answer_to,
            token: shown,
            fault,
        })
    }

    /// The JSON of the message.
    pub fn to_value(&self) -> Value {
        let mut message = json!({
            "type": "request",
            "id": self.id,
            "target": self.target,
            "origin": self.origin,
            "action": self.action,
            "args": self.args,
            "_timestamp": self.timestamp,
        });
        if let (Value::Object(fields), Some(token)) = (&mut message, &self.token) {
            fields.insert("token".to_owned(), token.as_str().into());
        }
        message
    }
}

fn identifier(fields: &mut Map<String, Value>, field: &'static str) -> Result<Option<String>, Fault> {
    text(fields, field, IDENTIFIER_BYTES_MAX)
}

/// A text; `null` and the empty text count as absent.
fn text(fields: &mut Map<String, Value>, field: &'static str, max: usize) -> Result<Option<String>, Fault> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= max => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(Fault::InvalidField { field, max }),
    }
}

/// A request's `args` as arguments of an action: an object by name, a list by position, one value as the first
/// position, `null` as none.
pub fn arguments(args: Value) -> Arguments {
    let (args, kwargs) = match args {
        Value::Null => (Vec::new(), Map::new()),
        Value::Object(fields) => (Vec::new(), fields),
        Value::Array(list) => (list, Map::new()),
        one @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => (vec![one], Map::new()),
    };
    Arguments { args, kwargs }
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Id of the request.
    pub id: String,
    /// Origin of the request.
    pub target: Option<String>,
    /// Name of the host that answers.
    pub origin: String,
    /// The value of the action; `null` if it failed.
    pub output: Value,
    /// Error texts; empty if it succeeded.
    pub errors: Vec<String>,
}

impl Response {
    /// The JSON of the message, sent at `unix_ms`.
    pub fn to_value(&self, unix_ms: u64) -> Value {
        json!({
            "type": "response",
            "id": self.id,
            "target": self.target,
            "origin": self.origin,
            "_timestamp": seconds(unix_ms),
            "response": { "output": self.output, "errors": self.errors },
        })
    }

    /// Parses a response.
    ///
    /// # Errors
    /// See [`NotAResponse`].
    pub fn from_value(value: &Value) -> Result<Self, NotAResponse> {
        let texts = |list: &Value| -> Option<Vec<String>> {
            if list.is_null() {
                return Some(Vec::new());
            }
            let errors = list.as_array()?.iter();
            errors.map(|error| error.as_str().map(str::to_owned)).collect()
        };
        let text = |field: &str| value[field].as_str().map(str::to_owned);
        let read = || {
            (value["type"] == "response").then_some(())?;
            Some(Self {
                id: text("id")?,
                target: text("target"),
                origin: text("origin").unwrap_or_default(),
                output: value["response"].get("output")?.clone(),
                errors: texts(&value["response"]["errors"])?,
            })
        };
        read().ok_or(NotAResponse)
    }
}

/// The message is not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of type \"response\" with an id, and an output and errors in \"response\"")]
pub struct NotAResponse;

/// An event of the sender.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Name of the sender.
    pub origin: String,
    /// Type of the event.
    pub kind: String,
    /// Its fields.
    pub fields: Map<String, Value>,
}

impl Event {
    /// The JSON of the message, sent at `unix_ms`. A field named `type` is overwritten by [`Event::kind`].
    pub fn to_value(&self, unix_ms: u64) -> Value {
        let mut args = self.fields.clone();
        args.insert("type".to_owned(), self.kind.as_str().into());
        json!({
            "type": "event",
            "id": self.id,
            "target": self.origin,
            "origin": self.origin,
            "_timestamp": seconds(unix_ms),
            "args": args,
        })
    }
}

/// An `id` from random bytes.
pub fn id_from_random(random: [u8; ID_BYTES]) -> String {
    hex::encode(&random)
}

/// Seconds since 1970, as Python's `time.time()`.
fn seconds(unix_ms: u64) -> f64 {
    std::time::Duration::from_millis(unix_ms).as_secs_f64()
}
