//! What a station remembers between runs: one SQLite file, `station.db`.
//!
//! One thread owns the connection; a cloneable [`Store`] asks it through a bounded channel, so no task of the
//! runtime ever waits for a disk. WAL with `synchronous=FULL`: what a call has answered survives a power cut. The
//! file and its companions have mode 0600.
//!
//! Every open counts the *epoch* up, so that (station key, epoch, sequence) never names two commands.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

mod members;
mod meta;
mod schema;

#[cfg(test)]
mod tests;

pub use members::{MemberRow, PENDING_MAX, PendingRow};
pub use schema::SCHEMA_VERSION;

/// Name of the file in the state directory.
pub const STORE_FILE: &str = "station.db";
/// Most calls that wait for the thread.
pub const STORE_CALLS_MAX: usize = 256;

/// What went wrong with the store. Nothing that was answered before is lost by any of these.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error(
        "cannot open {path:?}: {reason}; check that the state directory exists and is yours, or use --state-dir"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is no SQLite database, not ours, or damaged.
    #[error(
        "{path:?} is damaged or not a station's database ({reason}); move it away (keep identity.key and fleet-root.key) and start again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// The file was written by a later version.
    #[error(
        "{path:?} has schema {found} and this program knows up to {known}; install the newer ground-station"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest that this build knows.
        known: i64,
    },
    /// A row holds what it may not hold.
    #[error("station.db: bad {what}: {reason}")]
    BadRow {
        /// Where.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// SQLite reports something else, such as a full disk.
    #[error("station.db: {0}; check that the disk is not full and the state directory can be written")]
    Sql(rusqlite::Error),
    /// The thread is gone.
    #[error("the store has stopped")]
    Stopped,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the store; clones share it. The thread ends, and the file is closed, when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    epoch: u64,
}

impl Store {
    /// Opens `station.db` in the state directory, making or migrating it, and counts the epoch up.
    ///
    /// # Errors
    /// [`StoreError`]; the file is left as it was.
    pub async fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(STORE_FILE);
        let (jobs, mut queue) = mpsc::channel::<Job>(STORE_CALLS_MAX);
        let (opened, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name("store".to_owned());
        let work = move || {
            let mut connection = match open(&path) {
                Ok((connection, epoch)) => {
                    // Nobody waits any more: the queue is closed too, and the loop below ends at once.
                    opened.send(Ok(epoch)).ok();
                    connection
                }
                Err(error) => {
                    opened.send(Err(error)).ok();
                    return;
                }
            };
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
            }
        };
        thread.spawn(work).map_err(|error| StoreError::Open {
            path: state_dir.join(STORE_FILE),
            reason: error.to_string(),
        })?;
        let epoch = answer.await.map_err(|_gone| StoreError::Stopped)??;
        Ok(Self { jobs, epoch })
    }

    /// This opening's number, from 1; no other opening of this file ever has it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    async fn call<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller may have gone; the work is done all the same.
            done.send(work(connection)).ok();
        });
        self.jobs.send(job).await.map_err(|_gone| StoreError::Stopped)?;
        answer.await.map_err(|_gone| StoreError::Stopped)?
    }
}

fn open(path: &Path) -> Result<(Connection, u64), StoreError> {
    let cannot = |reason: String| StoreError::Open {
        path: path.to_owned(),
        reason,
    };
    // SQLite gives the WAL and its index the mode of the database, so the mode is set before SQLite sees the file.
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| cannot(error.to_string()))?;
    let mut connection = Connection::open(path).map_err(|error| cannot(error.to_string()))?;
    let epoch = schema::prepare(&mut connection, path)
        .and_then(|()| meta::count_up(&mut connection, meta::EPOCH))
        .map_err(|error| {
            if let StoreError::Sql(sql) = &error
                && is_damage(sql)
            {
                let reason = sql.to_string();
                return StoreError::Corrupt {
                    path: path.to_owned(),
                    reason,
                };
            }
            error
        })?;
    Ok((connection, epoch))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}

/// SQLite counts in `i64`. No counter or time of ours comes near its end.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
