//! What comes back from a fleet.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    AuditView, CommandKind, CommandView, Delivery, HistoryDelivery, InvitationView, MemberView,
    MembershipView, NodeRef, NodeView, PeerView, PendingView, TokenView, UserView,
};
use crate::proto::delivery::Stage;

/// One item of the answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// The targets of a command or a file: one entry for each delivery.
    Targets {
        /// In no particular order; a node occurs once for each of its files.
        targets: Vec<NodeRef>,
    },
    /// A command that acts is stored, and goes on if the client disconnects.
    Issued {
        /// Its number in the history.
        number: u64,
    },
    /// Progress of a node's files.
    Progress {
        /// The node.
        #[serde(flatten)]
        node: NodeRef,
        /// Bytes transferred.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A node has acknowledged a stage of a command.
    Stage {
        /// The node.
        #[serde(flatten)]
        node: NodeRef,
        /// The stage that it has reached.
        stage: Stage,
        /// Milliseconds from the request until then.
        ms: f64,
    },
    /// A node has confirmed that it is stopped. Its delivery ends when its own stop command has ended.
    Acknowledged {
        /// The node.
        #[serde(flatten)]
        node: NodeRef,
        /// Milliseconds from the request until the confirmation.
        ms: f64,
    },
    /// One delivery ended.
    Delivery(Delivery),
    /// A node, or a change of it.
    Node(NodeView),
    /// A sentence for people; programs can ignore it.
    Note {
        /// The sentence.
        text: String,
    },
    /// This station and its fleet.
    Membership(MembershipView),
    /// A new invitation code.
    Invitation(InvitationView),
    /// A member of the fleet.
    Member(MemberView),
    /// A device that waits to be accepted.
    Pending(PendingView),
    /// A command in the history.
    Command(CommandView),
    /// The command whose deliveries follow, from the history.
    #[serde(rename = "about")]
    CommandDetails(CommandView),
    /// A delivery in the history.
    #[serde(rename = "past")]
    HistoryDelivery(HistoryDelivery),
    /// An entry of the audit.
    Audit(AuditView),
    /// A user of gateways.
    User(UserView),
    /// A token of a user.
    Token(TokenView),
    /// A peer at a gateway.
    Peer(PeerView),
    /// For followers: an event of a request of another client. The last one of a request is `end` or `failed`.
    #[serde(rename = "told")]
    Observed {
        /// The kind of request.
        kind: CommandKind,
        /// The action of a command; else the word for the kind.
        what: String,
        /// The user who asked.
        who: String,
        /// The request's number in the history; absent before it has one, and for what only reads.
        number: Option<u64>,
        /// `targets`, `stage`, `acknowledged`, `progress`, `delivery` (long texts cut as in the history), `end` or
        /// `failed`.
        #[serde(rename = "word")]
        event: Box<Self>,
    },
    /// For followers that asked for it: readings of a node that have changed.
    Telemetry {
        /// The node.
        #[serde(flatten)]
        node: NodeRef,
        /// By name; null for a reading that is gone.
        values: Map<String, Value>,
    },
    /// For followers: the oldest [`Event::Observed`]s were dropped, since the follower read too slowly.
    #[serde(rename = "missed")]
    Lagged {
        /// How many were dropped.
        count: u64,
    },
    /// The last event: the request failed.
    Failed {
        /// The reason, for programs.
        failure: Failure,
        /// For people: what was wrong and what to do.
        message: String,
    },
    /// The last event: the answer is complete.
    End,
}

impl Event {
    /// The last event of a request that failed.
    pub fn failed(failure: Failure, message: impl Into<String>) -> Self {
        Self::Failed {
            failure,
            message: message.into(),
        }
    }

    /// A sentence for people.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }

    /// Whether subscribers to the requests of other clients are sent it: the targets, the progress and the end.
    pub fn is_observable(&self) -> bool {
        matches!(
            self,
            Self::Targets { .. }
                | Self::Progress { .. }
                | Self::Stage { .. }
                | Self::Acknowledged { .. }
                | Self::Delivery(_)
                | Self::Failed { .. }
                | Self::End
        )
    }

    /// Whether no event follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::End | Self::Failed { .. })
    }
}

/// Why a request failed; each reason has its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Failure {
    /// It was tried and did not work, or was refused.
    Failed,
    /// The request or the configuration is wrong.
    Usage,
    /// No node matches the selector.
    #[serde(rename = "nobody-matched")]
    NoMatch,
    /// The process that holds the links ended before the answer was complete.
    #[serde(rename = "stopped")]
    ShutDown,
}
