//! What goes in at the desk, and what comes out.

use std::time::Instant;

use super::super::record::{Digest, Record};
use super::super::{CommandId, Stage};
use crate::proto::outcome::Reply;

/// What an action is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionProperties {
    /// It does no harm to run it twice.
    pub idempotent: bool,
    /// It may run while an emergency stop is in force.
    pub while_stopped: bool,
    /// It moves something: at most [`FLIGHT_TTL_MS_MAX`](super::super::FLIGHT_TTL_MS_MAX) from issue to start.
    pub flight: bool,
    /// It ends a flight, or holds it up, whatever its class: it goes first, in places that nothing else takes.
    pub ends_flight: bool,
}

/// A command that has arrived, as far as it has to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingCommand {
    /// Which one it is.
    pub id: CommandId,
    /// Of its action and arguments: what tells that two commands with one identity are not the same.
    pub digest: Digest,
    /// When it must not begin any more; now, or before, if it is only asked how it ended.
    pub deadline: Option<Instant>,
    /// The time to live with which it was issued, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// What its action is like.
    pub properties: ActionProperties,
}

/// Names a write until its end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub(super) u64);

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make these durable, after those before; then say [`Desk::written`](super::Desk::written) or [`Desk::not_written`](super::Desk::not_written).
    Write {
        /// For the answer.
        write_id: WriteId,
        /// All or none.
        records: Vec<Record>,
    },
    /// Tell the issuer how far it is.
    Stage {
        /// The command.
        id: CommandId,
        /// How far.
        stage: Stage,
    },
    /// Begin its action, then say [`Desk::finished`](super::Desk::finished).
    Run {
        /// The command.
        id: CommandId,
    },
    /// End its action now; [`Desk::finished`](super::Desk::finished) is still to be said.
    Kill {
        /// The command.
        id: CommandId,
    },
    /// Tell the issuer how it ended.
    Reply {
        /// The command.
        id: CommandId,
        /// How.
        reply: Reply,
    },
}
