//! The stop and the journal: what is written of it, and what a start finds.

use swarm_shared::net::clock;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::message::StopCommandState;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::stop::{ActiveStop, StopId, StopReceiver};
use tokio::sync::{mpsc, oneshot};

use crate::journal::Journal;

/// The desk as the journal has left it.
pub(super) fn restored(ledger: &DedupTable, has_command: bool) -> StopReceiver {
    let seen = ledger.records().into_iter().filter_map(|record| match record {
        Record::StopSeen { issuer, number } => Some(StopId { issuer, number }),
        Record::Started { .. }
        | Record::Ended { .. }
        | Record::Floor { .. }
        | Record::Stopped { .. }
        | Record::Released { .. }
        | Record::StopEnded { .. } => None,
    });
    let present = ledger.latch().map(|latch| {
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
    StopReceiver::new(has_command, seen.collect(), present)
}

/// What the journal is asked to write.
#[derive(Debug)]
pub(super) enum Write {
    /// It is in force.
    Stopped(StopId),
    /// How its command ended.
    Ended(StopId, Option<String>),
    /// It does not mean this node, which has counted it all the same.
    Counted(StopId),
    /// It is over once this is written; who asked is told.
    Released(StopId, oneshot::Sender<Reply>),
    /// It was released while the order was being written down once more.
    StaysReleased(StopId),
}

impl Write {
    pub(super) fn record(&self) -> Record {
        match self {
            Self::Stopped(StopId { issuer, number }) => Record::Stopped {
                issuer: *issuer,
                number: *number,
            },
            Self::Ended(order, error) => Record::StopEnded {
                number: order.number,
                error: error.clone(),
            },
            Self::Counted(StopId { issuer, number }) => Record::StopSeen {
                issuer: *issuer,
                number: *number,
            },
            Self::Released(order, _) | Self::StaysReleased(order) => {
                Record::Released { number: order.number }
            }
        }
    }
}

/// What became of it.
pub(super) type Written = (Write, Result<(), String>);

/// Hands records to the journal in their order, and says what became of each.
pub(super) async fn scribe(
    journal: Journal,
    mut to_write: mpsc::Receiver<Write>,
    wrote: mpsc::Sender<Written>,
) {
    while let Some(write) = to_write.recv().await {
        let how = journal.append(vec![write.record()]).await;
        let how = how.map_err(|fault| fault.to_string());
        if wrote.send((write, how)).await.is_err() {
            return;
        }
    }
}
