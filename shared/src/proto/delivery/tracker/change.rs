//! What the station's store keeps of deliveries: what the book asks it to write, and what it gives
//! back when the station starts.
//!
//! Whatever is needed to send a command again, byte for byte but for what belongs to one transmission, is in its
//! [`Order`]. The store adds the times: the book's instants mean nothing in another process.

use std::time::Instant;

use bytes::Bytes;

use super::super::{CommandId, Stage};
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::Reply;
use crate::proto::wire::{Frame, Kind, Lane, MessageType};

/// What is asked of each target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommand {
    /// Which command it is.
    pub id: CommandId,
    /// What the nodes do.
    pub action: String,
    /// With what: the content of the frame, JSON as it was first sent.
    pub arguments: String,
    /// How urgent.
    pub lane: Lane,
    /// Time to live when it was issued, in milliseconds.
    pub ttl_ms: u64,
}

impl StoredCommand {
    /// The frame of this command: always the same bytes.
    pub fn to_frame(&self) -> Frame {
        let content = Bytes::copy_from_slice(self.arguments.as_bytes());
        let mut frame = Frame::json(Kind::Command, "");
        frame.header.content_length = content.len() as u64;
        frame.content = content;
        frame.header.message_type = MessageType::Request;
        frame.header.action = Some(self.action.clone());
        frame.header.lane = Some(self.lane);
        frame.header.id = Some(self.id.seq);
        frame.header.epoch = Some(self.id.epoch);
        frame.header.life = Some(self.ttl_ms);
        frame
    }
}

/// Where a delivery that has not ended stands at the station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredState {
    /// In a later batch of a rolling run: not to be sent yet. If the station stops now, it never is.
    Deferred,
    /// To be sent as soon as its node is linked; it has never been sent.
    Waiting,
    /// Sent, or about to be: the node may have it.
    Sent,
}

impl StoredState {
    /// The word used in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "held",
            Self::Waiting => "waiting",
            Self::Sent => "sent",
        }
    }

    /// Reads that word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Deferred, Self::Waiting, Self::Sent]
            .into_iter()
            .find(|standing| standing.as_str() == text)
    }
}

/// A delivery that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTarget {
    /// The node.
    pub to: PeerId,
    /// Its name at that time, for people.
    pub name: NodeName,
    /// Where the delivery stands.
    pub state: StoredState,
    /// When it is too late to start. Of a held one: as if it were sent now.
    pub deadline: Instant,
}

/// A command that is issued, with all its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCommand {
    /// What is asked.
    pub command: StoredCommand,
    /// Of whom, as people wrote it.
    pub selector: String,
    /// One for each target.
    pub deliveries: Vec<StoredTarget>,
}

/// One thing for the store to write. Changes are written in the order in which they are given; those that are given
/// together, all or none.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A command begins. The store gives it its number in the history.
    Issued(IssuedCommand),
    /// A delivery stands elsewhere now: released from its batch, or about to be sent for the first time.
    StateChanged {
        /// The command.
        id: CommandId,
        /// The node.
        to: PeerId,
        /// Where it stands.
        state: StoredState,
        /// When it is too late to start.
        deadline: Instant,
    },
    /// The node has acknowledged a stage, later than those before.
    Stage {
        /// The command.
        id: CommandId,
        /// The node.
        to: PeerId,
        /// How far it is.
        stage: Stage,
        /// When that was heard: writing it may wait for more to write.
        at: Instant,
    },
    /// A delivery has ended, in the one way in which it ever will.
    Ended {
        /// The command.
        id: CommandId,
        /// The node.
        to: PeerId,
        /// How.
        reply: Reply,
    },
}

/// A command of which a delivery is open, as the store gives it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCommand {
    /// What was asked.
    pub command: StoredCommand,
    /// Its open deliveries only; at least one.
    pub deliveries: Vec<OpenDelivery>,
}

/// An open delivery, as the store gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// The node.
    pub to: PeerId,
    /// Where it stands.
    pub state: StoredState,
    /// When it is too late to start; now, or before, if that has passed or the store cannot tell.
    pub deadline: Instant,
    /// How far it is known to have come.
    pub stage: Option<Stage>,
}
