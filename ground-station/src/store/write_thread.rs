//! The thread that owns the connection, and its queue.
//!
//! Changes are committed in groups: the thread takes all that wait into one transaction, each in a savepoint of its
//! own, and answers them all after the one commit. A flush to the disk takes as long for one as for a hundred, so the
//! more there is to do, the less each waits. Nothing is answered before it is on the disk.

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Most changes in one commit.
pub(super) const GROUP_MAX: usize = 256;

/// What the thread is asked.
pub(super) enum StoreJob {
    /// Reads, or has a transaction of its own.
    Standalone(Box<dyn FnOnce(&mut Connection) + Send>),
    /// Belongs into a transaction.
    Grouped(Box<dyn GroupedWrite + Send>),
}

/// A change and whoever waits for it.
pub(super) trait GroupedWrite {
    /// Does it. An error has undone it, and nothing else.
    fn execute(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error>;
    /// Tells whoever waits; an error if nothing of the group was stored.
    fn reply(self: Box<Self>, committed: Result<(), &str>);
}

struct PendingWrite<F, T> {
    operation: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply_to: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> GroupedWrite for PendingWrite<F, T>
where
    F: FnOnce(&Connection) -> Result<T, StoreError>,
{
    fn execute(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error> {
        let Some(work) = self.operation.take() else {
            return Ok(());
        };
        let savepoint = transaction.savepoint()?;
        let done = work(&savepoint);
        if done.is_ok() {
            savepoint.commit()?;
        } else {
            // Undone by being dropped; here, so that an error is seen.
            savepoint.finish()?;
        }
        self.result = Some(done);
        Ok(())
    }

    fn reply(self: Box<Self>, committed: Result<(), &str>) {
        let lost = |why: &str| Err(StoreError::NotStored(why.to_owned()));
        let answer = match (self.result, committed) {
            // It failed by itself, and says why.
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)) | None, Err(why)) => lost(why),
            (None, Ok(())) => lost("its turn did not come"),
        };
        // The caller may have gone; the work is done all the same.
        self.reply_to.send(answer).ok();
    }
}

/// A change, and where its answer comes.
pub(super) fn grouped_job<T, F>(work: F) -> (StoreJob, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let waiting = PendingWrite {
        operation: Some(work),
        result: None,
        reply_to: answer,
    };
    (StoreJob::Grouped(Box::new(waiting)), answered)
}

/// Answers until the last handle is gone.
pub(super) fn run(connection: &mut Connection, queue: &mut mpsc::Receiver<StoreJob>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            StoreJob::Standalone(work) => work(connection),
            StoreJob::Grouped(first) => {
                let mut group = vec![first];
                while group.len() < GROUP_MAX {
                    match queue.try_recv() {
                        Ok(StoreJob::Grouped(change)) => group.push(change),
                        // After the group, in the order in which it was asked.
                        Ok(alone @ StoreJob::Standalone(_)) => {
                            next = Some(alone);
                            break;
                        }
                        Err(_empty_or_closed) => break,
                    }
                }
                commit_group(connection, group);
            }
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

fn commit_group(connection: &mut Connection, mut group: Vec<Box<dyn GroupedWrite + Send>>) {
    let committed = execute_group(connection, &mut group).map_err(|error| error.to_string());
    for change in group {
        change.reply(committed.as_ref().copied().map_err(String::as_str));
    }
}

fn execute_group(
    connection: &mut Connection,
    group: &mut [Box<dyn GroupedWrite + Send>],
) -> Result<(), rusqlite::Error> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for change in group {
        // After some errors (a full disk among them) SQLite rolls the whole transaction back: then the savepoint
        // cannot be ended, and nothing of the group is stored.
        change.execute(&mut transaction)?;
    }
    transaction.commit()
}
