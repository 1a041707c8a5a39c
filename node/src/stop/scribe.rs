//! Hands what is to be written down to the journal, in order, so that the stop itself never waits for a disk.

use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::stop::Latch;
use tokio::sync::{mpsc, oneshot};

use crate::journal::Journal;

/// What the journal is asked to write.
#[derive(Debug)]
pub(super) enum Write {
    Stopped(Latch),
    Ended(Latch, Option<String>),
    Counted(Latch),
    Released(Latch, oneshot::Sender<Reply>),
    /// It was released while the order was being written down once more.
    StaysReleased(Latch),
}

impl Write {
    pub(super) fn record(&self) -> Record {
        match self {
            Self::Stopped(Latch { issuer, number }) => Record::Stopped {
                issuer: *issuer,
                number: *number,
            },
            Self::Ended(order, error) => Record::StopEnded {
                number: order.number,
                error: error.clone(),
            },
            Self::Counted(Latch { issuer, number }) => Record::StopSeen {
                issuer: *issuer,
                number: *number,
            },
            Self::Released(order, _) | Self::StaysReleased(order) => {
                Record::Released { number: order.number }
            }
        }
    }
}

pub(super) type Written = (Write, Result<(), String>);

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
