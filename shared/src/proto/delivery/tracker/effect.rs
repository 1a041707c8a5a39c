//! The inputs and outputs of the tracker.

use std::sync::Arc;
use std::time::Instant;

use super::super::{CommandId, Stage};
use super::change::{Change, EncodedCommand, StoredCommand};
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::Reply;

/// Identifies a requested write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub(super) u64);

/// A target of a command to be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// Target node.
    pub to: PeerId,
    /// Its name, for the history.
    pub name: NodeName,
    /// Whether the command may wait for the node while it is offline.
    pub may_queue: bool,
    /// Whether it is in a later batch.
    pub deferred: bool,
    /// Why the command is not to be sent to this target, if so.
    pub refusal_reason: Option<String>,
}

/// A command to be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// The command. Its identity is higher than that of any command before.
    pub command: StoredCommand,
    /// Its selector, as it was typed.
    pub selector: String,
    /// Time from which it must not start.
    pub deadline: Instant,
    /// Its targets.
    pub targets: Vec<DeliveryTarget>,
}

/// An effect to be carried out, in order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write these changes, all or none, after all that were given before; then call
    /// [`DeliveryTracker::on_stored`](super::DeliveryTracker::on_stored) or
    /// [`DeliveryTracker::on_store_failed`](super::DeliveryTracker::on_store_failed).
    Store {
        /// Identifies the write in that call.
        write_id: WriteId,
        /// The changes to write.
        changes: Vec<Change>,
    },
    /// Pass this frame to the node's link. If it has no room, call
    /// [`DeliveryTracker::on_send_failed`](super::DeliveryTracker::on_send_failed) for it and for all later ones to
    /// that node.
    Send {
        /// Target node.
        to: PeerId,
        /// Identity of the command.
        id: CommandId,
        /// The command with its encoded frames.
        command: Arc<EncodedCommand>,
        /// When it is too late to send it. `None` for a status query, which is sent whenever that is.
        deadline: Option<Instant>,
    },
    /// The node has acknowledged a stage.
    Stage {
        /// Target node.
        to: PeerId,
        /// Identity of the command.
        id: CommandId,
        /// Acknowledged stage.
        stage: Stage,
    },
    /// The delivery has ended, and its outcome is stored.
    Ended {
        /// Target node.
        to: PeerId,
        /// Identity of the command.
        id: CommandId,
        /// Outcome.
        reply: Reply,
    },
    /// The command was not issued to any target, and never will be.
    NotIssued {
        /// Identity of the command.
        id: CommandId,
        /// Reason, for display.
        reason: String,
    },
}
