//! Platypush's messages: JSON objects that ask, answer and tell.
//!
//! | message | fields |
//! |---|---|
//! | request | `type`, `target`, `action` (or `name`), `args`, `origin`, `id`, `token`, `_timestamp` |
//! | response | `type`, `id`, `target`, `origin`, `_timestamp`, `response`: `output` and `errors` |
//! | event | `type`, `id`, `target`, `origin`, `_timestamp`, `args`: its own `type` and fields |
//!
//! Over TCP nothing stands between two messages: [`MessageReader`] finds where each ends. Every length is checked before
//! anything is built from it. Keys that are not in the table are passed over.

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
/// Longest `id`, `origin` or `token`, in bytes: they are only compared or handed back.
pub const IDENTIFIER_BYTES_MAX: usize = 256;
/// Random bytes of an `id` that is made up: 32 hexadecimal digits.
pub const ID_BYTES: usize = 16;

/// Something that is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// By whom; absent and `null` are nobody in particular. The empty text is refused.
    pub target: Option<String>,
    /// What.
    pub action: String,
    /// With what: an object, a list, one value, or `null`.
    pub args: Value,
    /// Who asks, as the answer's `target`.
    pub origin: Option<String>,
    /// What the answer carries too.
    pub id: String,
    /// What is shown to be let in.
    pub token: Option<String>,
    /// When it was asked, in seconds since 1970 on the asker's clock; decides nothing.
    pub timestamp: Option<f64>,
}

/// Why bytes are not a request. What could be read of whom to answer comes with it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{fault}")]
pub struct BadMessage {
    /// As in the message, or made up.
    pub id: String,
    /// Who asked.
    pub origin: Option<String>,
    /// What whoever asked has shown: who they are does not depend on what is wrong.
    pub token: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be read at all.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Something else than an object.
    #[error("a message is a JSON object, as {{\"type\": \"request\", \"action\": \"ping\"}}")]
    NotAnObject,
    /// A message that nobody answers.
    #[error("only messages of type \"request\" are answered here, not {0}")]
    NotARequest(String),
    /// Nothing to do.
    #[error("the request names no action: write \"action\": \"ping\"")]
    MissingAction,
    /// A field that is none: most likely a slip in one that says who is meant, or an argument in the wrong place.
    #[error(
        "no request has the field {0:?}: the fields are type, target, action, args, origin, id and token, and what the \
         action takes goes into args"
    )]
    UnknownField(String),
    /// A field of the wrong kind.
    #[error("{field} has to be a text of 1 to {max} bytes")]
    InvalidField {
        /// Which.
        field: &'static str,
        /// Its longest.
        max: usize,
    },
}

/// Longest target, in bytes.
const TARGET_BYTES_MAX: usize = crate::proto::selector::SELECTOR_BYTES_MAX;
/// How much of what is wrong is quoted, in characters.
const QUOTED_CHARS_MAX: usize = 40;

impl Request {
    /// Reads one whole message. `made_up` becomes its id if it has none.
    ///
    /// # Errors
    /// [`BadMessage`].
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

    /// The same of JSON that was read already. Its nesting has been bounded.
    ///
    /// # Errors
    /// [`BadMessage`].
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
        // First whom to answer, so that every other fault is told to whoever waits for it.
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
            // An empty one is no way to say nobody in particular: a script has lost its variable.
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
            // An alias beside the field itself is passed over; other private ones may come.
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

    /// The message.
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

/// A text; `null` and the empty text are none.
fn text(fields: &mut Map<String, Value>, field: &'static str, max: usize) -> Result<Option<String>, Fault> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= max => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(Fault::InvalidField { field, max }),
    }
}

/// A request's `args` as an action takes them: an object by name, a list by position, one value as the first
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

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The request's.
    pub id: String,
    /// The request's origin.
    pub target: Option<String>,
    /// Who answers.
    pub origin: String,
    /// What came out.
    pub output: Value,
    /// What went wrong; empty if nothing did.
    pub errors: Vec<String>,
}

impl Response {
    /// The message, written at `unix_ms`.
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

    /// Reads the message that the other side of a link wrote.
    ///
    /// # Errors
    /// [`NotAResponse`].
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

/// It is not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of type \"response\" with an id, and an output and errors in \"response\"")]
pub struct NotAResponse;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Who tells it.
    pub origin: String,
    /// What happened.
    pub kind: String,
    /// Its particulars.
    pub fields: Map<String, Value>,
}

impl Event {
    /// The message, written at `unix_ms`. A field called `type` gives way to [`Event::kind`].
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

/// An `id` that is made up.
pub fn id_from_random(random: [u8; ID_BYTES]) -> String {
    hex::encode(&random)
}

/// As Python's `time.time()` has it.
fn seconds(unix_ms: u64) -> f64 {
    std::time::Duration::from_millis(unix_ms).as_secs_f64()
}
