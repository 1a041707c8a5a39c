//! The thread that owns the connection, and its jobs.
//!
//! Changes are committed in groups: the thread takes all that wait into one transaction, each in a savepoint of its own,
//! and reports all results after the commit. A flush to the disk takes as long for one change as for a hundred. No result
//! is reported before its change is on the disk.

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Most changes in one commit.
pub(super) const GROUP_MAX: usize = 256;

/// A job for the thread.
pub(super) enum StoreJob {
    /// A query, outside of any transaction.
    Read(Box<dyn FnOnce(&Connection) + Send>),
    /// A change, in the transaction of its group.
    Grouped(Box<dyn GroupedWrite + Send>),
}

/// Where the result of a job arrives.
pub(super) type JobResult<T> = oneshot::Receiver<Result<T, StoreError>>;

/// A change, with the channel for its result.
pub(super) trait GroupedWrite {
    /// Runs the change. If the change itself fails, only the change is undone.
    fn execute(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error>;
    /// Reports the result to the caller. `committed` is the error if nothing of the group was stored.
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
            // Rolls back. Dropping would do the same, and hide an error.
            savepoint.finish()?;
        }
        self.result = Some(done);
        Ok(())
    }

    fn reply(self: Box<Self>, committed: Result<(), &str>) {
        let lost = |why: &str| Err(StoreError::NotStored(why.to_owned()));
        let answer = match (self.result, committed) {
            // The change itself failed.
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)) | None, Err(why)) => lost(why),
            (None, Ok(())) => lost("the change was not run"),
        };
        // The change is stored also if the caller has gone.
        self.reply_to.send(answer).ok();
    }
}

/// Makes a job of a query.
pub(super) fn read_job<T, F>(query: F) -> (StoreJob, JobResult<T>)
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (reply_to, result) = oneshot::channel();
    let job = StoreJob::Read(Box::new(move |connection| {
        let _caller_gone = reply_to.send(query(connection));
    }));
    (job, result)
}

/// Makes a job of a change.
pub(super) fn grouped_job<T, F>(change: F) -> (StoreJob, JobResult<T>)
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (reply_to, result) = oneshot::channel();
    let write = PendingWrite {
        operation: Some(change),
        result: None,
        reply_to,
    };
    (StoreJob::Grouped(Box::new(write)), result)
}

/// Runs jobs until the last handle is dropped.
pub(super) fn run(connection: &mut Connection, queue: &mut mpsc::Receiver<StoreJob>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            StoreJob::Read(query) => query(connection),
            StoreJob::Grouped(first) => {
                let mut group = vec![first];
                while group.len() < GROUP_MAX {
                    match queue.try_recv() {
                        Ok(StoreJob::Grouped(change)) => group.push(change),
                        // Runs after the group, in the order of the queue.
                        Ok(read @ StoreJob::Read(_)) => {
                            next = Some(read);
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
        // After some errors, such as a full disk, SQLite rolls back the whole transaction. Then the savepoint cannot be
        // ended, and nothing of the group is stored.
        change.execute(&mut transaction)?;
    }
    transaction.commit()
}
