//! The inputs and outputs of the executor.

use std::time::Instant;

use super::super::record::{Digest, Record};
use super::super::{CommandId, Stage};
use crate::proto::outcome::Reply;

/// Properties of an action that decide when it may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionProperties {
    /// Running it twice does no harm.
    pub idempotent: bool,
    /// It may run while an emergency stop is in force.
    pub while_stopped: bool,
    /// It moves a device: at most [`FLIGHT_TTL_MS_MAX`](super::super::FLIGHT_TTL_MS_MAX) from issue to start.
    pub flight: bool,
    /// It ends or interrupts a flight, whatever its class: it has slots of its own and starts first.
    pub ends_flight: bool,
}

/// A received command, as far as the executor needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingCommand {
    /// Identity of the command.
    pub id: CommandId,
    /// Digest of its action and arguments: distinguishes two commands with one identity.
    pub digest: Digest,
    /// Time from which it must not start. For a status query: now, or earlier.
    pub deadline: Option<Instant>,
    /// Time to live with which it was issued, in milliseconds; `None` if the frame does not say.
    pub ttl_ms: Option<u64>,
    /// Properties of its action.
    pub properties: ActionProperties,
    /// Where it comes from.
    pub source: CommandSource,
    /// The file that it waits for, if any.
    pub after: Option<AfterFile>,
}

/// Where a command comes from. Some slots are out of reach of gateways, so that another system cannot take them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommandSource {
    /// A station, over a link.
    #[default]
    Peer,
    /// A gateway of this node.
    Gateway,
}

/// A file that has to end, stored or failed, before a command starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterFile {
    /// Number of the file. Files end in the order of their numbers.
    pub file: u64,
    /// When the command arrived, at the earliest. A flight action is refused if a failed file becomes known after this.
    pub arrived_at: Instant,
}

/// Identifies a write until its result is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub(super) u64);

/// An effect to be carried out, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Append these to the journal, then call [`Executor::on_written`](super::Executor::on_written) or
    /// [`Executor::on_write_failed`](super::Executor::on_write_failed).
    Write {
        /// Identifies the write in that call.
        write_id: WriteId,
        /// The records to write: all or none.
        records: Vec<Record>,
    },
    /// Send the issuer this stage.
    Stage {
        /// Command whose stage it is.
        id: CommandId,
        /// Its stage.
        stage: Stage,
    },
    /// Start the action, then call [`Executor::on_finished`](super::Executor::on_finished) at its end.
    Run {
        /// Command to run.
        id: CommandId,
    },
    /// Kill the action; [`Executor::on_finished`](super::Executor::on_finished) is still to be called.
    Kill {
        /// Command to kill.
        id: CommandId,
    },
    /// Send the issuer this reply.
    Reply {
        /// Command that has ended.
        id: CommandId,
        /// Its outcome.
        reply: Reply,
    },
}
