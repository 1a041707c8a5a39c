//! What comes back from a fleet.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::Role;

use super::gateway_peers::PeerView;
use super::{AuditView, CommandKind, CommandView, HistoryDelivery};

/// One thing that came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Whom a command or a file goes to: one entry for each delivery to come.
    Targets {
        /// In no particular order.
        targets: Vec<NodeRef>,
    },
    /// What acts is written down, and goes on without whoever asked.
    Issued {
        /// Its number in the history.
        number: u64,
    },
    /// How far the files of one node are.
    Progress {
        /// Whose.
        #[serde(flatten)]
        node: NodeRef,
        /// Transferred.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// A node has acknowledged a stage of a command.
    Stage {
        /// Which.
        #[serde(flatten)]
        node: NodeRef,
        /// How far it is.
        stage: Stage,
        /// Milliseconds from the request until then.
        ms: f64,
    },
    /// A node says that it is stopped; its delivery ends when its own command has.
    Acknowledged {
        /// Which.
        #[serde(flatten)]
        node: NodeRef,
        /// Milliseconds from the request until it said so.
        ms: f64,
    },
    /// One delivery ended.
    Delivery(Delivery),
    /// A node, or what became of it.
    Node(NodeView),
    /// Something that people should know; programs need not.
    Note {
        /// One sentence.
        text: String,
    },
    /// This station and its fleet.
    Membership(MembershipView),
    /// A new invitation code.
    Invitation(InvitationView),
    /// A member of the fleet.
    Member(MemberView),
    /// One that waits to be accepted.
    Pending(PendingView),
    /// A command in the history.
    Command(CommandView),
    /// The command whose deliveries follow, from the history.
    #[serde(rename = "about")]
    CommandDetails(CommandView),
    /// A delivery in the history.
    #[serde(rename = "past")]
    HistoryDelivery(HistoryDelivery),
    /// Who did what.
    Audit(AuditView),
    /// A user of gateways.
    User(UserView),
    /// A token of a user.
    Token(TokenView),
    /// A peer at a gateway.
    Peer(PeerView),
    /// To a follower: word of a request that somebody else has made. Its last is `end` or `failed`.
    #[serde(rename = "told")]
    Observed {
        /// What was asked for.
        kind: CommandKind,
        /// The action of a command; else the word for the kind.
        what: String,
        /// Who asked.
        who: String,
        /// Its number in the history, once it has one; what only reads has none.
        number: Option<u64>,
        /// `targets`, `stage`, `acknowledged`, `progress`, `delivery` (long texts cut as in the history), `end` or
        /// `failed`.
        #[serde(rename = "word")]
        event: Box<Self>,
    },
    /// To a follower that asked for it: readings of a node that are new.
    Telemetry {
        /// Whose.
        #[serde(flatten)]
        node: NodeRef,
        /// By name; null for one that is there no longer.
        values: Map<String, Value>,
    },
    /// To a follower that is slow: so many words of `told` were passed over, the oldest.
    #[serde(rename = "missed")]
    Lagged {
        /// How many.
        count: u64,
    },
    /// The last event: it could not be done.
    Failed {
        /// For programs.
        failure: Failure,
        /// For people: what was wrong and what to do.
        message: String,
    },
    /// The last event: all has been said.
    End,
}

impl Event {
    /// The last event of a request that could not be done.
    pub fn failed(failure: Failure, message: impl Into<String>) -> Self {
        Self::Failed {
            failure,
            message: message.into(),
        }
    }

    /// Something that people should know.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }
}

/// How a request ends for followers when nobody waits for it any more.
pub(super) const CALLER_GONE: &str = "cut off: whoever asked went away";
/// What is told of a node that belongs no more.
pub(super) const REVOKED_WARNING: &str = "put out of the fleet";
/// The same of a drone of another program.
pub(super) const DEVICE_LEFT_WARNING: &str = "not known any more: a drone of another program that has left";

impl NodeView {
    /// Whether it is the last: this is no node of the fleet any more, or no drone that is known.
    pub fn has_left(&self) -> bool {
        self.is_forgotten() || self.warnings.iter().any(|warning| warning == REVOKED_WARNING)
    }

    /// Whether the station knows nothing of it any more: a drone that has left. The fleet remembers for good whom it has
    /// put out.
    pub fn is_forgotten(&self) -> bool {
        self.warnings.iter().any(|warning| warning == DEVICE_LEFT_WARNING)
    }
}

/// Why a request could not be done, as far as a program cares; each has its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// It was tried and did not work, or was refused.
    Failed,
    /// The request or the configuration is at fault.
    Usage,
    /// No node matched the selector.
    #[serde(rename = "nobody-matched")]
    NoMatch,
    /// The process that had the links went away midway.
    #[serde(rename = "stopped")]
    ShutDown,
}

/// A node, as a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    /// Its name.
    pub node: NodeName,
    /// Its id.
    pub id: PeerId,
}

/// How one delivery ended; with `--json` exactly this object, on one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The node's name.
    pub node: NodeName,
    /// The node's id.
    pub id: PeerId,
    /// The outcome.
    pub state: Outcome,
    /// What the action returned.
    pub value: Option<Value>,
    /// What its program printed.
    pub output: Option<String>,
    /// Its program's exit status.
    pub exit: Option<i32>,
    /// What went wrong and what to do about it.
    pub error: Option<String>,
    /// Milliseconds from the request until the outcome.
    pub ms: f64,
}

impl Delivery {
    /// A node's reply, `ms` milliseconds after the request.
    pub fn new(target: NodeRef, reply: Reply, ms: f64) -> Self {
        Self {
            node: target.node,
            id: target.id,
            state: reply.state,
            value: reply.value,
            output: reply.output,
            exit: reply.exit,
            error: reply.error,
            ms: round_to_microsecond(ms),
        }
    }
}

/// Milliseconds to the microsecond: more digits say nothing, and nobody can read them.
pub fn round_to_microsecond(ms: f64) -> f64 {
    (ms * 1_000.0).round() / 1_000.0
}

/// Whether a node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Linked and heard.
    Online,
    /// Linked, but late: one heartbeat or more is missing.
    Silent,
    /// Not linked.
    Offline,
}

impl NodeState {
    /// The word used in JSON and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Silent => "silent",
            Self::Offline => "offline",
        }
    }
}

/// A node as a station knows it; with `nodes --json` exactly this object, on one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeName,
    /// Its id.
    pub id: PeerId,
    /// Whether it is heard.
    pub state: NodeState,
    /// What it runs.
    pub kind: PeerKind,
    /// Where it was seen last.
    pub address: Option<SocketAddr>,
    /// Milliseconds since it was heard; absent if it never was.
    pub last_heard_ms: Option<u64>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its program's version.
    pub software: Option<String>,
    /// What the operator should look into, such as two nodes with one key.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The emergency stop in force there; absent if it is not stopped, or has not said so.
    #[serde(default)]
    pub stopped: Option<StopView>,
    /// The number of the emergency stop that it has not confirmed: it may be moving, and is sent nothing that acts.
    /// Always 1 of a drone of another program while one is in force: it cannot confirm a stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_unconfirmed: Option<u64>,
    /// What its last self-check said.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// What it tells of itself unasked, by name; absent if it tells nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub telemetry: BTreeMap<String, Value>,
}

/// An emergency stop in force at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopView {
    /// The station that gave it.
    pub issuer: PeerId,
    /// Its number, which a release names.
    pub number: u64,
    /// Whether the node is still stopped after a restart.
    pub latched: bool,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// One point of a node's self-check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// This station and its fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipView {
    /// This station's name.
    pub node: NodeName,
    /// This station's id.
    pub id: PeerId,
    /// What this station may do.
    pub role: Role,
    /// The fleet's fingerprint: the id of its root key.
    pub fleet: PeerId,
    /// Whether the root key is on this machine.
    pub has_root: bool,
}

/// A new invitation code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationView {
    /// What the other side hands in.
    pub code: String,
    /// What the joining key may be.
    pub role: Role,
    /// How many may join with it.
    pub uses: u32,
    /// How long it is good, from now, in milliseconds.
    pub valid_for_ms: u64,
}

/// A member of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub node: NodeName,
    /// Its id.
    pub id: PeerId,
    /// What it runs.
    pub kind: PeerKind,
    /// What it may do.
    pub role: Role,
    /// Whether it has been put out.
    pub revoked: bool,
    /// Where it was seen last.
    pub address: Option<SocketAddr>,
    /// Milliseconds since it was heard; absent if it never was.
    pub last_heard_ms: Option<u64>,
}

/// One that waits to be accepted by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingView {
    /// The name that it gives itself.
    pub node: NodeName,
    /// Its id, which its own log shows too: compare before you accept.
    pub id: PeerId,
    /// Where it knocked from.
    pub address: Option<SocketAddr>,
    /// Milliseconds since it first knocked.
    pub waiting_ms: u64,
}

/// A user of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// The name.
    pub user: String,
    /// When they were added, in milliseconds since 1970.
    pub added_ms: u64,
    /// How many tokens are theirs, logins among them.
    pub tokens: u64,
    /// What became of them just now: `added`, `changed`, `removed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// A token of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its number.
    pub number: u64,
    /// Whose.
    pub user: String,
    /// What for: `program`, or `session`, which is the login of a browser.
    pub kind: String,
    /// What its maker called it.
    pub label: String,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// Until when it is good.
    pub expires_ms: u64,
    /// The token itself, once: when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_rounded_to_microseconds() {
        for (ms, written) in [
            (0.1 + 0.2, "0.3"),
            (1.234_567_891, "1.235"),
            (12_345.678_9, "12345.679"),
        ] {
            assert_eq!(serde_json::json!(round_to_microsecond(ms)).to_string(), written);
        }
    }
}
