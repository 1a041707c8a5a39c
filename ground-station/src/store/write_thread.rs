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
pub(super) enum Job {
    /// Reads, or has a transaction of its own.
    Alone(Box<dyn FnOnce(&mut Connection) + Send>),
    /// Belongs into a transaction.
    Change(Box<dyn Change + Send>),
}

/// A change and whoever waits for it.
pub(super) trait Change {
    /// Does it. An error has undone it, and nothing else.
    fn carry_out(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error>;
    /// Tells whoever waits; an error if nothing of the group was stored.
    fn answer(self: Box<Self>, committed: Result<(), &str>);
}

struct Waiting<F, T> {
    work: Option<F>,
    done: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Change for Waiting<F, T>
where
    F: FnOnce(&Connection) -> Result<T, StoreError>,
{
    fn carry_out(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error> {
        let Some(work) = self.work.take() else {
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
        self.done = Some(done);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), &str>) {
        let lost = |why: &str| Err(StoreError::NotStored(why.to_owned()));
        let answer = match (self.done, committed) {
            // It failed by itself, and says why.
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)) | None, Err(why)) => lost(why),
            (None, Ok(())) => lost("its turn did not come"),
        };
        // The caller may have gone; the work is done all the same.
        self.answer.send(answer).ok();
    }
}

/// A change, and where its answer comes.
pub(super) fn change<T, F>(work: F) -> (Job, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let waiting = Waiting {
        work: Some(work),
        done: None,
        answer,
    };
    (Job::Change(Box::new(waiting)), answered)
}

/// Answers until the last handle is gone.
pub(super) fn run(connection: &mut Connection, queue: &mut mpsc::Receiver<Job>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            Job::Alone(work) => work(connection),
            Job::Change(first) => {
                let mut group = vec![first];
                while group.len() < GROUP_MAX {
                    match queue.try_recv() {
                        Ok(Job::Change(change)) => group.push(change),
                        // After the group, in the order in which it was asked.
                        Ok(alone @ Job::Alone(_)) => {
                            next = Some(alone);
                            break;
                        }
                        Err(_empty_or_closed) => break,
                    }
                }
                commit(connection, group);
            }
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

fn commit(connection: &mut Connection, mut group: Vec<Box<dyn Change + Send>>) {
    let committed = carry_out(connection, &mut group).map_err(|error| error.to_string());
    for change in group {
        change.answer(committed.as_ref().copied().map_err(String::as_str));
    }
}

fn carry_out(
    connection: &mut Connection,
    group: &mut [Box<dyn Change + Send>],
) -> Result<(), rusqlite::Error> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for change in group {
        // After some errors (a full disk among them) SQLite rolls the whole transaction back: then the savepoint
        // cannot be ended, and nothing of the group is stored.
        change.carry_out(&mut transaction)?;
    }
    transaction.commit()
}
