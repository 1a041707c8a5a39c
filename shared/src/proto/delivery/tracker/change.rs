//! What the station's store keeps of deliveries: the changes that the tracker asks it to write, and the commands that
//! it returns at the station's start.
//!
//! A [`StoredCommand`] holds everything that is needed to send a command again, byte for byte except for the keys of
//! one transmission. The store adds the times: an `Instant` of the tracker has no meaning in another process.

use std::time::Instant;

use bytes::Bytes;

use super::super::{CommandId, Stage};
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::Reply;
use crate::proto::wire::encoded::EncodedFrame;
use crate::proto::wire::{Frame, Kind, Lane, MessageType, WireError};

/// A command, as sent to each target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommand {
    /// Identity of the command.
    pub id: CommandId,
    /// Action to run.
    pub action: String,
    /// Arguments: the content of the frame, JSON as it was first sent.
    pub arguments: String,
    /// Priority of the frame.
    pub lane: Lane,
    /// Time to live at issue, in milliseconds.
    pub ttl_ms: u64,
}

impl StoredCommand {
    /// The frame of this command, always the same bytes.
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

/// A command with its frame, which is encoded once for all targets.
#[derive(Clone, Debug)]
pub struct EncodedCommand {
    command: StoredCommand,
    frame: EncodedFrame,
}

impl EncodedCommand {
    /// Encodes the frame of `command`.
    ///
    /// # Errors
    /// [`WireError`] if the command does not fit into a frame.
    pub fn new(command: StoredCommand) -> Result<Self, WireError> {
        let frame = EncodedFrame::new(&command.to_frame())?;
        Ok(Self { command, frame })
    }

    /// The command without its encoding.
    pub fn command(&self) -> &StoredCommand {
        &self.command
    }

    /// The frame that asks a node to run the command.
    pub fn frame(&self) -> EncodedFrame {
        self.frame.clone()
    }

    /// The frame that asks a node how the command ended: it has no time left to start.
    pub fn status_query(&self) -> EncodedFrame {
        self.frame.clone().into_status_query()
    }
}

/// The state of an open delivery at the station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredState {
    /// In a later batch of a rolling command, not to be sent yet. If the station stops now, it is never sent.
    Deferred,
    /// To be sent as soon as its node is linked; never sent so far.
    Waiting,
    /// Sent, or about to be: the node may have it.
    Sent,
}

impl StoredState {
    /// The word for it in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "held",
            Self::Waiting => "waiting",
            Self::Sent => "sent",
        }
    }

    /// Parses the word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Deferred, Self::Waiting, Self::Sent]
            .into_iter()
            .find(|standing| standing.as_str() == text)
    }
}

/// A new delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTarget {
    /// Target node.
    pub to: PeerId,
    /// Its name at that time, for display.
    pub name: NodeName,
    /// First state of the delivery.
    pub state: StoredState,
    /// Time from which it must not start. For a deferred one: as if it were sent now.
    pub deadline: Instant,
}

/// A command that is issued, with all its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCommand {
    /// The command.
    pub command: StoredCommand,
    /// Its selector, as it was typed.
    pub selector: String,
    /// One delivery for each target.
    pub deliveries: Vec<StoredTarget>,
}

/// A change for the store to write. Changes are written in the order in which they are given; those that are given
/// together are written all or none.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A command is issued. The store assigns its number in the history.
    Issued(IssuedCommand),
    /// A delivery has another state: its batch started, or it is about to be sent for the first time.
    StateChanged {
        /// Identity of the command.
        id: CommandId,
        /// Target node.
        to: PeerId,
        /// New state.
        state: StoredState,
        /// Time from which it must not start.
        deadline: Instant,
    },
    /// The node has acknowledged a later stage.
    Stage {
        /// Identity of the command.
        id: CommandId,
        /// Target node.
        to: PeerId,
        /// Acknowledged stage.
        stage: Stage,
        /// Time of the acknowledgement: writing it may be delayed until there is more to write.
        at: Instant,
    },
    /// A delivery has ended; this is its only outcome.
    Ended {
        /// Identity of the command.
        id: CommandId,
        /// Target node.
        to: PeerId,
        /// Outcome.
        reply: Reply,
    },
}

/// A command with open deliveries, as returned by the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCommand {
    /// The command.
    pub command: StoredCommand,
    /// Its open deliveries; at least one.
    pub deliveries: Vec<OpenDelivery>,
}

/// An open delivery, as returned by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// Target node.
    pub to: PeerId,
    /// Stored state.
    pub state: StoredState,
    /// Time from which it must not start; now or earlier if that has passed or the store cannot tell.
    pub deadline: Instant,
    /// Last acknowledged stage, if there is one.
    pub stage: Option<Stage>,
}
