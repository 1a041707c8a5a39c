//! The records of an emergency stop in the journal, and the state that a start recovers from them.

use swarm_shared::net::clock;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::message::StopCommandState;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::stop::{ActiveStop, StopId, StopReceiver};
use tokio::sync::oneshot;

/// The receiver as the journal describes it: counted orders, and the stop that was in force.
pub(super) fn restored_receiver(dedup: &DedupTable, has_command: bool) -> StopReceiver {
    let seen = dedup.records().into_iter().filter_map(|record| match record {
        Record::StopSeen { issuer, number } => Some(StopId { issuer, number }),
        Record::Started { .. }
        | Record::Ended { .. }
        | Record::Floor { .. }
        | Record::Stopped { .. }
        | Record::Released { .. }
        | Record::StopEnded { .. } => None,
    });
    let active = dedup.latch().map(|latch| {
        let (command, command_error) = match &latch.command_result {
            None if has_command => (StopCommandState::Running, None),
            None => (StopCommandState::None, None),
            Some(Ok(())) => (StopCommandState::Done, None),
            Some(Err(why)) => (StopCommandState::Failed, Some(why.clone())),
        };
        ActiveStop {
            id: StopId {
                issuer: latch.issuer,
                number: latch.number,
            },
            since: clock::now(),
            earlier_ms: 0,
            latched: true,
            latch_error: None,
            command,
            command_error,
        }
    });
    StopReceiver::new(has_command, seen.collect(), active)
}

/// A record on its way to the journal.
#[derive(Debug)]
pub(super) enum Write {
    /// A stop is in force.
    Stopped(StopId),
    /// Its command has ended, with this error.
    CommandEnded(StopId, Option<String>),
    /// An order for other nodes: it counts, so that no older one of its issuer is obeyed.
    NumberSeen(StopId),
    /// A stop ends when this is durable; then the reply goes out.
    Released(StopId, oneshot::Sender<Reply>),
    /// The stop was written once more after its release.
    ReleasedAgain(StopId),
}

impl Write {
    pub(super) fn record(&self) -> Record {
        match self {
            Self::Stopped(StopId { issuer, number }) => Record::Stopped {
                issuer: *issuer,
                number: *number,
            },
            Self::CommandEnded(order, error) => Record::StopEnded {
                number: order.number,
                error: error.clone(),
            },
            Self::NumberSeen(StopId { issuer, number }) => Record::StopSeen {
                issuer: *issuer,
                number: *number,
            },
            Self::Released(order, _) | Self::ReleasedAgain(order) => {
                Record::Released { number: order.number }
            }
        }
    }
}
