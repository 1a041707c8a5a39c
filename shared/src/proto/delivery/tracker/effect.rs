//! What goes into the book, and what it wants done.

use std::time::Instant;

use super::super::{CommandId, Stage};
use super::change::{Change, StoredCommand};
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::Reply;
use crate::proto::wire::Lane;
use crate::proto::wire::encoded::EncodedFrame;

/// A write that has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub(super) u64);

/// A target of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// The node.
    pub to: PeerId,
    /// Its name.
    pub name: NodeName,
    /// Whether the command may wait for it while it is away.
    pub may_queue: bool,
    /// Whether it is in a later batch.
    pub deferred: bool,
    /// Why it is not to be sent at all, if it is not.
    pub refusal_reason: Option<String>,
}

/// A command to be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// What is asked. Its identity is higher than that of any command before.
    pub command: StoredCommand,
    /// Of whom, as people wrote it.
    pub selector: String,
    /// When it is too late to start.
    pub deadline: Instant,
    /// Of whom.
    pub targets: Vec<DeliveryTarget>,
}

/// What has to be done, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write these, all or none, after all that was asked for before; then say [`Book::stored`](super::Book::stored) or
    /// [`Book::on_store_failed`](super::Book::on_store_failed).
    Store {
        /// To answer with.
        write_id: WriteId,
        /// What to write.
        changes: Vec<Change>,
    },
    /// Hand this to the node's link, or say [`Book::not_sent`](super::Book::not_sent), and then of all later ones to that node, too.
    Send {
        /// The node.
        to: PeerId,
        /// The command.
        id: CommandId,
        /// Its frame.
        frame: EncodedFrame,
        /// Its lane.
        lane: Lane,
        /// When it is too late to send it. None for a question: its frame says that no time is left, and it is sent
        /// whenever that is.
        deadline: Option<Instant>,
    },
    /// The node has acknowledged a stage.
    Stage {
        /// The node.
        to: PeerId,
        /// The command.
        id: CommandId,
        /// How far it is.
        stage: Stage,
    },
    /// The delivery has ended, and the store has it.
    Ended {
        /// The node.
        to: PeerId,
        /// The command.
        id: CommandId,
        /// How.
        reply: Reply,
    },
    /// The command was not issued to anybody, and never will be.
    NotIssued {
        /// The command.
        id: CommandId,
        /// For people.
        reason: String,
    },
}
