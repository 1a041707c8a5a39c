//! The outcome of a delivery, and the reply that carries it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{Frame, Header, Kind, MessageType};

/// The final state of a delivery. Each delivery gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The action ran and succeeded.
    Done,
    /// The action ran and failed.
    Failed,
    /// The node did not run it: not permitted, not known, bad arguments, or too busy.
    Refused,
    /// Its time to live ran out before it could run.
    Expired,
    /// The node restarted or crashed after the start; the action may or may not have completed.
    Unknown,
    /// No answer came within the time-out.
    NoAnswer,
}

impl Outcome {
    /// The word for it on the wire, in JSON and for display.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::NoAnswer => "no-answer",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The result of an action: the content of a reply frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// How the delivery ended.
    pub state: Outcome,
    /// Value that the action returns, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Output of the program: standard output and standard error in order, capped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The program's exit status; 128 plus the signal's number if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The fault and its remedy, for display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// Success with a value; `null` is omitted.
    pub fn done(value: Value) -> Self {
        let value = if value.is_null() { None } else { Some(value) };
        Self {
            state: Outcome::Done,
            value,
            output: None,
            exit: None,
            error: None,
        }
    }

    /// Any other outcome, with its reason.
    pub fn ended(state: Outcome, error: impl Into<String>) -> Self {
        Self {
            state,
            value: None,
            output: None,
            exit: None,
            error: Some(error.into()),
        }
    }

    /// The action ran and failed.
    pub fn failed(error: impl Into<String>) -> Self {
        Self::ended(Outcome::Failed, error)
    }

    /// The reply frame for the command that has this header.
    pub fn to_frame(&self, command: &Header) -> Frame {
        let mut frame = Frame::json(Kind::Reply, self);
        frame.header.message_type = MessageType::Response;
        frame.header.id = command.id;
        frame.header.epoch = command.epoch;
        frame
    }

    /// The node did not run it.
    pub fn refused(error: impl Into<String>) -> Self {
        Self::ended(Outcome::Refused, error)
    }
}
