//! A command between its arrival and its reply.

use std::time::Instant;

use super::super::record::Digest;
use super::types::{ActionProperties, CommandSource, IncomingCommand};
use crate::proto::outcome::{Outcome, Reply};

/// A command in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) digest: Digest,
    pub(super) deadline: Option<Instant>,
    pub(super) properties: ActionProperties,
    pub(super) source: CommandSource,
    /// It started in an earlier run of this process.
    pub(super) recovered: bool,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Starting {
        /// An emergency stop has come since its arrival.
        stopped: bool,
    },
    Running {
        /// Whether an emergency stop killed it.
        killed: bool,
    },
    Ending {
        has_run: bool,
    },
}

impl InFlight {
    pub(super) fn new(incoming: &IncomingCommand, again: bool, state: State) -> Self {
        Self {
            digest: incoming.digest,
            deadline: incoming.deadline,
            properties: incoming.properties,
            source: incoming.source,
            recovered: again,
            state,
        }
    }

    /// The outcome: `unknown` for a command that started before a crash and does not run again.
    pub(super) fn final_reply(&self, ran: bool, reply: Reply) -> Reply {
        if !self.recovered || ran || reply.state == Outcome::Unknown {
            return reply;
        }
        let why = reply.error.unwrap_or_default();
        Reply::ended(
            Outcome::Unknown,
            format!(
                "the node's process ended midway; it may or may not have run, and was not run again: {why}"
            ),
        )
    }
}
