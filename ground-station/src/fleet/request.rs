//! What can be asked of a fleet.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::wire::Lane;

use super::HistoryQuery;
use crate::users::Password;

/// What can be asked. Times are in milliseconds; paths on this machine are absolute, as the process that carries
/// the request out may stand in another directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Who is there: one `node` event each.
    Nodes {
        /// Which.
        selector: Selector,
        /// How long to look for nodes that are not linked yet.
        timeout_ms: u64,
    },
    /// Who is there, and every change from then on, until the receiver is dropped.
    Watch {
        /// Which.
        selector: Selector,
    },
    /// Everything that goes on, from now on until the receiver is dropped: `node` for every node and each of its changes,
    /// `told` for what becomes of the requests that others make from then on.
    Follow {
        /// `telemetry` too: each node's readings at first, and those that have changed.
        telemetry: bool,
    },
    /// Whom a selector means: `targets`.
    Targets {
        /// Which.
        selector: Selector,
    },
    /// One action on many nodes: `targets`, `stage`s of what acts, one `delivery` each.
    Command {
        /// Which.
        selector: Selector,
        /// What they do.
        action: String,
        /// With what.
        arguments: Arguments,
        /// How urgent.
        lane: Lane,
        /// How long the command may still start, counted from now.
        ttl_ms: u64,
        /// Whether somebody asked for just that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ttl_given: bool,
        /// How long to wait for outcomes; of each batch, if there are several.
        timeout_ms: u64,
        /// A few at a time; all at once if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch: Option<Batch>,
    },
    /// Emergency stop: `targets`, an `acknowledged` as each node says that it is stopped, one `delivery` each. It goes on
    /// until all have said all, or the receiver is dropped.
    Stop {
        /// Which.
        selector: Selector,
        /// When to give up; never if absent.
        timeout_ms: Option<u64>,
        /// Whether others than nodes are told as well, which is noted elsewhere: that no node is meant is no news then.
        #[serde(skip)]
        also_bridged: bool,
    },
    /// The end of an emergency stop: `targets`, one `delivery` each.
    Release {
        /// Which.
        selector: Selector,
        /// How long to wait for nodes that are not linked, and for their answers.
        timeout_ms: u64,
    },
    /// Files to many nodes: `targets` (a node once for each of its files), `progress`, one `delivery` for each.
    SendFiles {
        /// Which.
        selector: Selector,
        /// What goes where.
        files: FilesToSend,
        /// How long the transfer may still start, counted from now.
        ttl_ms: u64,
        /// The longest pause without progress.
        timeout_ms: u64,
    },
    /// One path from many nodes into a directory; [`super::files::copy_name`] names the copies.
    Fetch {
        /// Which.
        selector: Selector,
        /// ROOT/RELATIVE on the nodes.
        path: String,
        /// Where the copies go on this machine.
        dir: PathBuf,
        /// The longest pause without progress.
        timeout_ms: u64,
    },
    /// Who is connected at a gateway that has peers: one `peer` each.
    Peers {
        /// As in `[gateways.NAME]`.
        #[serde(rename = "door")]
        gateway: String,
    },
    #[serde(rename = "tell")]
    /// A message to peers at a gateway: one `peer` each, when it is written or cannot be.
    SendToPeers {
        /// As in `[gateways.NAME]`.
        #[serde(rename = "door")]
        gateway: String,
        /// `ADDR:PORT`, or `ADDR`; all without it.
        peer: Option<String>,
        /// The bytes, in base64.
        message: String,
    },
    /// Make a fleet whose root is here: a `membership` event.
    Init,
    /// Make an invitation code: an `invitation` event.
    Invite {
        /// What the joining key may be.
        role: Role,
        /// How many may join with it.
        uses: u32,
        /// How long it is good.
        valid_for_ms: u64,
    },
    /// Hand in an invitation code, to become a station of that fleet: a `membership` event.
    Join {
        /// The code.
        code: String,
        /// How long to look for the fleet.
        timeout_ms: u64,
    },
    /// Who waits to be accepted by hand: `pending` events.
    Pending,
    /// Take in one that waits: a `member` event.
    Accept {
        /// Its name, or the beginning of its id.
        node: String,
    },
    /// Put a member out for good: a `member` event.
    Revoke {
        /// Its name, or the beginning of its id.
        node: String,
    },
    /// Who belongs to the fleet: a `membership` event, then `member` events.
    Members,
    /// What was sent: `command` events, newest first; of one command, `about` and its `past` deliveries.
    History {
        /// Which.
        query: HistoryQuery,
    },
    /// Who did what: `audit` events, newest first.
    Audit {
        /// Which.
        query: HistoryQuery,
    },
    /// A command of the history again, to the nodes where it was not done and is not open: ends as what it repeats.
    Retry {
        /// Its number in the history.
        number: u64,
        /// How long it may still start, counted from now; without it, as long as it was at first.
        ttl_ms: Option<u64>,
        /// How long to wait for outcomes.
        timeout_ms: u64,
    },
    /// What has not been sent of a command of the history never is: `about`, and all its `past` deliveries.
    Cancel {
        /// Its number in the history.
        number: u64,
        /// How long to wait until that is stored.
        timeout_ms: u64,
    },
    /// Users of gateways, and their tokens: `user` or `token` events.
    Users {
        /// What.
        #[serde(rename = "ask")]
        user_request: UserRequest,
    },
}

/// What can be asked of users of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum UserRequest {
    /// Add one, or give one another password: a `user` event.
    Add {
        /// Who.
        name: String,
        /// What they show.
        password: Password,
    },
    /// Remove one, and all their tokens: a `user` event.
    Remove {
        /// Who.
        name: String,
    },
    /// All: `user` events.
    List,
    /// Make a token for a program of a user: a `token` event, the only one that ever holds the token itself.
    MakeToken {
        /// Whose.
        name: String,
        /// How long it is good.
        days: u32,
        /// What it is for.
        label: String,
    },
    /// All that are good still: `token` events.
    Tokens,
    /// Take one back: no event but the last.
    Revoke {
        /// Its number.
        number: u64,
    },
}

impl Request {
    /// Whether it is about a fleet of this station's own, so that one is made if there is none. Who only looks, or
    /// commands nobody, stays free to join another station's fleet.
    pub fn needs_fleet(&self) -> bool {
        match self {
            Self::Invite { .. }
            | Self::Pending
            | Self::Accept { .. }
            | Self::Revoke { .. }
            | Self::Members => true,
            Self::Init
            | Self::Join { .. }
            | Self::Nodes { .. }
            | Self::Watch { .. }
            | Self::Follow { .. }
            | Self::Targets { .. }
            | Self::Command { .. }
            | Self::Stop { .. }
            | Self::Release { .. }
            | Self::SendFiles { .. }
            | Self::Peers { .. }
            | Self::SendToPeers { .. }
            | Self::History { .. }
            | Self::Audit { .. }
            | Self::Retry { .. }
            | Self::Users { .. }
            | Self::Cancel { .. }
            | Self::Fetch { .. } => false,
        }
    }
}

/// A rolling run: the nodes by name, a few at a time. It stops at the first batch that is not `done` everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// How many at a time.
    pub size: BatchSize,
    /// How long to wait between two batches, in milliseconds.
    pub wait_ms: u64,
    /// Whether it goes on whatever happens.
    pub keep_going: bool,
}

/// How many nodes are a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchSize {
    /// So many.
    Count(u32),
    /// So many of a hundred, rounded up.
    Percent(u8),
}

impl BatchSize {
    /// How many of `all` that are; at least one.
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

/// What goes where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum FilesToSend {
    /// The same files to every node.
    Same {
        /// In this order.
        files: Vec<FileToSend>,
    },
    /// To each node its own file of a directory; [`super::files::per_node`] finds it, and a node without one ends
    /// in `failed`.
    PerNode {
        /// The directory on this machine.
        dir: PathBuf,
        /// ROOT/RELATIVE on the nodes, as [`super::files::destination`] reads it.
        dest: String,
    },
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileToSend {
    /// On this machine.
    pub source: PathBuf,
    /// ROOT/RELATIVE on the nodes: the file's own path there.
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
