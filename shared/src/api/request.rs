//! What can be asked of a fleet.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CommandKind, HistoryQuery, Password};
use crate::proto::message::Arguments;
use crate::proto::selector::Selector;
use crate::proto::trust::Role;
use crate::proto::wire::Lane;

/// What can be asked, in five families. Times are in milliseconds. Paths on this machine are absolute, since the
/// process that carries out the request may have another working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Lists and watches nodes.
    Nodes(NodesRequest),
    /// Makes nodes do something.
    Act(ActRequest),
    /// Manages the fleet and its members.
    Fleet(FleetRequest),
    /// Reads the history, or repeats or cancels one of its commands.
    History(HistoryRequest),
    /// Manages this station's gateways.
    Admin(AdminRequest),
}

/// Lists and watches nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodesRequest {
    /// Lists the matching nodes: one `node` event each.
    List {
        /// The nodes to list.
        selector: Selector,
        /// How long to wait for nodes that are not linked yet.
        timeout_ms: u64,
    },
    /// Lists the matching nodes, and each change from then on, until the receiver is dropped.
    Watch {
        /// The nodes to watch.
        selector: Selector,
    },
    /// Everything that happens, until the receiver is dropped: `node` for each node and each of its changes, `told`
    /// for the events of other clients' requests.
    Follow {
        /// Whether `telemetry` is wanted too: each node's readings first, then those that have changed.
        telemetry: bool,
    },
    /// Resolves a selector: one `targets` event.
    Targets {
        /// The selector to resolve.
        selector: Selector,
    },
}

/// Makes nodes do something. Each of these has an entry in the history, except an action that only reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ActRequest {
    /// Runs one action on many nodes: `targets`, `stage`s if it acts, one `delivery` each.
    Command {
        /// The nodes that run it.
        selector: Selector,
        /// The name of the action.
        action: String,
        /// Its arguments.
        arguments: Arguments,
        /// How urgent it is.
        lane: Lane,
        /// How long the command may still start, from now.
        ttl_ms: u64,
        /// Whether the user chose the time to live, so that no other one may be used instead.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ttl_given: bool,
        /// How long to wait for outcomes; in a rolling run for those of each batch.
        timeout_ms: u64,
        /// A rolling run; all nodes at once if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch: Option<Batch>,
    },
    /// Emergency stop: `targets`, `acknowledged` when a node confirms that it is stopped, one `delivery` each. It is
    /// sent again until every node has confirmed and ended, or the receiver is dropped.
    Stop {
        /// The nodes to stop.
        selector: Selector,
        /// When to give up; never if absent.
        timeout_ms: Option<u64>,
    },
    /// Ends an emergency stop: `targets`, one `delivery` each.
    Release {
        /// The nodes to release.
        selector: Selector,
        /// How long to wait for nodes that are not linked, and for answers.
        timeout_ms: u64,
    },
    /// Sends files to many nodes: `targets` (a node once for each of its files), `progress`, one `delivery` per file.
    SendFiles {
        /// The nodes that receive them.
        selector: Selector,
        /// The files and where they go.
        files: FilesToSend,
        /// How long the transfer may still start, from now.
        ttl_ms: u64,
        /// The longest pause without progress.
        timeout_ms: u64,
    },
    /// Copies one path from many nodes into a directory, named after the nodes.
    Fetch {
        /// The nodes to copy from.
        selector: Selector,
        /// ROOT/RELATIVE on the nodes.
        path: String,
        /// The directory for the copies, on this machine.
        dir: PathBuf,
        /// The longest pause without progress.
        timeout_ms: u64,
    },
}

/// Manages the fleet and its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FleetRequest {
    /// Makes a fleet whose root is here: a `membership` event.
    Init,
    /// Makes an invitation code: an `invitation` event.
    Invite {
        /// The role of a key that joins with it.
        role: Role,
        /// How many devices may join with it.
        uses: u32,
        /// How long it is valid.
        valid_for_ms: u64,
    },
    /// Joins the fleet of another station by its invitation code: a `membership` event.
    Join {
        /// The invitation code.
        code: String,
        /// How long to look for the fleet.
        timeout_ms: u64,
    },
    /// Lists the devices that wait to be accepted: `pending` events.
    Pending,
    /// Accepts a waiting device: a `member` event.
    Accept {
        /// Its name, or the first digits of its id.
        node: String,
    },
    /// Revokes a member for good: a `member` event.
    Revoke {
        /// Its name, or the first digits of its id.
        node: String,
    },
    /// Lists the members: a `membership` event, then `member` events.
    Members,
}

/// Reads the history, or repeats or cancels one of its commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HistoryRequest {
    /// What was sent: `command` events, newest first; for one command `about`, then its `past` deliveries.
    Commands {
        /// The filter.
        query: HistoryQuery,
    },
    /// Who changed what: `audit` events, newest first.
    Audit {
        /// The filter.
        query: HistoryQuery,
    },
    /// Repeats a command on the nodes where it is neither done nor open. Answered like the command that it repeats.
    Retry {
        /// The command's number in the history.
        number: u64,
        /// How long it may still start, from now; by default as long as at first.
        ttl_ms: Option<u64>,
        /// How long to wait for outcomes.
        timeout_ms: u64,
    },
    /// Cancels the deliveries of a command that have not been sent yet: `about`, and all its `past` deliveries.
    Cancel {
        /// The command's number in the history.
        number: u64,
        /// How long to wait until the end is stored.
        timeout_ms: u64,
    },
}

/// Manages this station's gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AdminRequest {
    /// Lists the peers that are connected at a gateway: one `peer` event each.
    Peers {
        /// As in `[gateways.NAME]`.
        gateway: String,
    },
    /// Sends a message to peers at a gateway: one `peer` event each, when the message is written or has failed.
    SendToPeers {
        /// As in `[gateways.NAME]`.
        gateway: String,
        /// `ADDR:PORT` or `ADDR`; all peers if absent.
        peer: Option<String>,
        /// The bytes, in base64.
        message: String,
    },
    /// Manages users of gateways and their tokens.
    Users(UserRequest),
}

/// Manages users of gateways and their tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UserRequest {
    /// Adds a user, or replaces the password of one: a `user` event.
    Add {
        /// The login name.
        name: String,
        /// The new password.
        password: Password,
    },
    /// Removes a user with all tokens: a `user` event.
    Remove {
        /// The login name.
        name: String,
    },
    /// Lists the users: `user` events.
    List,
    /// Makes a token for a program: a `token` event, the only one that holds the token itself.
    MakeToken {
        /// The user's login name.
        name: String,
        /// How long it is valid.
        days: u32,
        /// A text that tells tokens apart; may be empty.
        label: String,
    },
    /// Lists the tokens that are still valid: `token` events.
    Tokens,
    /// Revokes a token: no event but the last.
    Revoke {
        /// The token's number.
        number: u64,
    },
}

impl Request {
    /// The selector, of what has one.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Nodes(request) => request.selector(),
            Self::Act(request) => Some(request.selector()),
            Self::Fleet(_) | Self::History(_) | Self::Admin(_) => None,
        }
    }

    /// The same, to change it.
    pub fn selector_mut(&mut self) -> Option<&mut Selector> {
        match self {
            Self::Nodes(request) => request.selector_mut(),
            Self::Act(request) => Some(request.selector_mut()),
            Self::Fleet(_) | Self::History(_) | Self::Admin(_) => None,
        }
    }

    /// The kind of its entry in the history, of what can have one.
    pub fn history_kind(&self) -> Option<CommandKind> {
        match self {
            Self::Act(request) => Some(request.history_kind()),
            Self::Nodes(_) | Self::Fleet(_) | Self::History(_) | Self::Admin(_) => None,
        }
    }

    /// Whether it needs a fleet of this station's own, so that one is made if there is none. A station that has only
    /// looked or commanded stays free to join another station's fleet.
    pub fn needs_fleet(&self) -> bool {
        match self {
            Self::Fleet(request) => request.needs_fleet(),
            Self::Nodes(_) | Self::Act(_) | Self::History(_) | Self::Admin(_) => false,
        }
    }
}

impl NodesRequest {
    /// The selector, except of [`NodesRequest::Follow`].
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::List { selector, .. } | Self::Watch { selector } | Self::Targets { selector } => {
                Some(selector)
            }
            Self::Follow { .. } => None,
        }
    }

    /// The same, to change it.
    pub fn selector_mut(&mut self) -> Option<&mut Selector> {
        match self {
            Self::List { selector, .. } | Self::Watch { selector } | Self::Targets { selector } => {
                Some(selector)
            }
            Self::Follow { .. } => None,
        }
    }
}

impl ActRequest {
    /// The nodes that act.
    pub fn selector(&self) -> &Selector {
        match self {
            Self::Command { selector, .. }
            | Self::Stop { selector, .. }
            | Self::Release { selector, .. }
            | Self::SendFiles { selector, .. }
            | Self::Fetch { selector, .. } => selector,
        }
    }

    /// The same, to change it.
    pub fn selector_mut(&mut self) -> &mut Selector {
        match self {
            Self::Command { selector, .. }
            | Self::Stop { selector, .. }
            | Self::Release { selector, .. }
            | Self::SendFiles { selector, .. }
            | Self::Fetch { selector, .. } => selector,
        }
    }

    /// The kind of its entry in the history.
    pub fn history_kind(&self) -> CommandKind {
        match self {
            Self::Command { .. } => CommandKind::Command,
            Self::Stop { .. } => CommandKind::Stop,
            Self::Release { .. } => CommandKind::Release,
            Self::SendFiles { .. } => CommandKind::Send,
            Self::Fetch { .. } => CommandKind::Fetch,
        }
    }
}

impl FleetRequest {
    /// Whether a fleet is made for it if there is none.
    pub fn needs_fleet(&self) -> bool {
        match self {
            Self::Init | Self::Join { .. } => false,
            Self::Invite { .. }
            | Self::Pending
            | Self::Accept { .. }
            | Self::Revoke { .. }
            | Self::Members => true,
        }
    }
}

/// Conversions from each family.
macro_rules! from_family {
    ($($family:ident => $variant:ident),*) => {
        $(impl From<$family> for Request {
            fn from(request: $family) -> Self {
                Self::$variant(request)
            }
        })*
    };
}

from_family!(NodesRequest => Nodes, ActRequest => Act, FleetRequest => Fleet, HistoryRequest => History, AdminRequest => Admin);

/// A rolling run: the nodes in order of their names, a few at a time. It stops after the first batch in which a
/// delivery is not `done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// How many nodes at a time.
    pub size: BatchSize,
    /// Pause between two batches, in milliseconds.
    pub wait_ms: u64,
    /// Whether it goes on after a failure.
    pub keep_going: bool,
}

/// The size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BatchSize {
    /// A number of nodes.
    Count(u32),
    /// A share of all nodes in percent, rounded up to whole nodes.
    Percent(u8),
}

impl BatchSize {
    /// The number of nodes in a batch, out of `all`; at least one.
    pub fn node_count(self, all: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(percent) => all.saturating_mul(percent.into()).div_ceil(100),
        }
        .max(1)
    }
}

impl std::fmt::Display for BatchSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl std::str::FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule =
            || format!("{text:?} is not a batch: write how many nodes (4), or a share from 1% to 100% (25%)");
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(Self::Percent).ok_or_else(rule);
        }
        let count = text.parse().ok().filter(|count| *count > 0);
        count.map(Self::Count).ok_or_else(rule)
    }
}

/// Which files go where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum FilesToSend {
    /// The same files to every node.
    Same {
        /// Sent in this order.
        files: Vec<FileToSend>,
    },
    /// To each node its own file of a directory: the one whose name without its extension is the node's name or id. A
    /// node without one ends in `failed`.
    PerNode {
        /// The directory on this machine.
        dir: PathBuf,
        /// ROOT/RELATIVE on the nodes: a directory if it ends in `/`.
        dest: String,
    },
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileToSend {
    /// Path on this machine.
    pub source: PathBuf,
    /// ROOT/RELATIVE on the nodes: the path of the file itself.
    pub dest: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_size_is_a_count_or_a_percentage() {
        for (text, all, size) in [("4", 10, 4), ("25%", 10, 3), ("1%", 10, 1), ("100%", 7, 7)] {
            let batch: BatchSize = text.parse().expect(text);
            assert_eq!(
                (batch.node_count(all), batch.to_string()),
                (size, text.to_owned())
            );
        }
        for bad in ["0", "0%", "101%", "abc", "", "%", "-1", "1.5", "4294967296"] {
            let error = bad.parse::<BatchSize>().expect_err(bad);
            assert!(error.contains("25%"), "{error}");
        }
    }
}
