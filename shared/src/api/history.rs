//! What was sent and how it ended: what can be asked of the history, and what comes back.

use std::collections::BTreeMap;
use std::fmt;

use crate::proto::delivery::Stage;
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::Outcome;
use crate::proto::selector::Selector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a command in the history was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandKind {
    /// An action.
    Command,
    /// Files to nodes.
    Send,
    /// A file from nodes.
    Fetch,
    /// An emergency stop.
    Stop,
    /// The end of an emergency stop.
    Release,
}

impl CommandKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Command, Self::Send, Self::Fetch, Self::Stop, Self::Release];

    /// The word used in the store, in JSON and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Send => "send",
            Self::Fetch => "fetch",
            Self::Stop => "stop",
            Self::Release => "release",
        }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a delivery stands: open, or ended. One word: `open`, or the outcome's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HistoryState {
    /// It ended.
    Ended(Outcome),
    /// It has not ended.
    Open,
}

impl HistoryState {
    /// Every word.
    pub const ALL: [Self; 7] = [
        Self::Ended(Outcome::Done),
        Self::Ended(Outcome::Failed),
        Self::Ended(Outcome::Refused),
        Self::Ended(Outcome::Expired),
        Self::Ended(Outcome::Unknown),
        Self::Ended(Outcome::NoAnswer),
        Self::Open,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Open => "open",
        }
    }

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl Serialize for HistoryState {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for HistoryState {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no state of a delivery")))
    }
}

/// What is asked of the history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// One command with its deliveries; without it, the newest commands.
    pub number: Option<u64>,
    /// Only what went to these nodes, by name or id; tags are not kept.
    pub nodes: Option<Selector>,
    /// Only this action.
    pub action: Option<String>,
    /// Only what has a delivery in this state.
    pub state: Option<HistoryState>,
    /// Only what was issued within so many milliseconds.
    pub within_ms: Option<u64>,
    /// At most so many commands, or entries.
    pub limit: u32,
}

/// A command in the history; with `history --json` exactly this object, on one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandView {
    /// Its number.
    pub command: u64,
    /// When it was issued, in milliseconds since 1970.
    pub at_ms: u64,
    /// The user of the station's machine who asked.
    pub who: String,
    /// What it was.
    pub kind: CommandKind,
    /// What the nodes were to do.
    pub action: String,
    /// With what.
    pub arguments: Value,
    /// Device that the row is about.
    pub selector: String,
    /// Its time to live, in milliseconds.
    pub ttl_ms: u64,
    /// The command that it repeats.
    pub retry_of: Option<u64>,
    /// The commands that repeat it.
    #[serde(default)]
    pub retried_by: Vec<u64>,
    /// How it was spread over batches.
    pub batch: Option<String>,
    /// How many deliveries it has.
    pub deliveries: u64,
    /// How many of them are in each state.
    pub states: BTreeMap<HistoryState, u64>,
}

impl CommandView {
    /// How many deliveries are in a state.
    pub fn count(&self, state: HistoryState) -> u64 {
        self.states.get(&state).copied().unwrap_or(0)
    }
}

/// A delivery in the history; with `history NUMBER --json` exactly this object, on one line: what `call --json` says of
/// it, and more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryDelivery {
    /// The node's name.
    pub node: NodeName,
    /// The node's id.
    pub id: PeerId,
    /// The outcome, or `open`.
    pub state: HistoryState,
    /// What the action returned, cut to a bound.
    pub value: Option<Value>,
    /// What its program printed, cut to a bound.
    pub output: Option<String>,
    /// Its program's exit status.
    pub exit: Option<i32>,
    /// What went wrong and what to do about it.
    pub error: Option<String>,
    /// Milliseconds from the issue until the outcome.
    pub ms: Option<f64>,
    /// The command's number.
    pub command: u64,
    /// What this delivery is about, such as its file.
    pub about: Option<String>,
    /// What the node has acknowledged, in milliseconds from the issue.
    pub stages: BTreeMap<Stage, f64>,
}

/// Who did what; with `history --audit --json` exactly this object, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The user of the station's machine who asked.
    pub who: String,
    /// What was asked.
    pub what: String,
    /// Target of the request: a selector, a name or a gateway.
    pub detail: String,
    /// How it ended.
    pub outcome: String,
}
