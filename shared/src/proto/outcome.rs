//! How things end: every delivery of every command in exactly one [`Outcome`].

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{Frame, Header, Kind, MessageType};

/// The one way in which a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The action ran and succeeded.
    Done,
    /// The action ran and failed.
    Failed,
    /// The node would not run it: not allowed, not known, bad arguments, or too busy.
    Refused,
    /// Its time to live ran out before it could run.
    Expired,
    /// The node restarted or crashed midway; it may or may not have run.
    Unknown,
    /// Nothing was heard within the time-out.
    NoAnswer,
}

impl Outcome {
    /// The word used on the wire, in JSON and on screens.
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

/// What an action left behind: the content of a reply frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// How it ended.
    pub state: Outcome,
    /// What the action returns, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What the program printed (standard output and standard error, in order, capped).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The program's exit status; 128 plus the signal's number if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// What went wrong and what to do about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// Success with a value; `null` is left out.
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

    /// Any other end, with its reason.
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

    /// The frame that brings this to whoever sent the command with this header.
    pub fn to_frame(&self, command: &Header) -> Frame {
        let mut frame = Frame::json(Kind::Reply, self);
        frame.header.message_type = MessageType::Response;
        frame.header.id = command.id;
        frame.header.epoch = command.epoch;
        frame
    }

    /// The node would not run it.
    pub fn refused(error: impl Into<String>) -> Self {
        Self::ended(Outcome::Refused, error)
    }
}
