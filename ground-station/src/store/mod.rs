//! The state of a station between runs: one SQLite file, `station.db`.
//!
//! One thread owns the connection; a cloneable [`Store`] sends it jobs through a bounded channel, so no task of the
//! runtime waits for a disk. WAL with `synchronous=FULL`: a change that was confirmed survives a power cut. The file and
//! its companions have mode 0600.
//!
//! Each open begins a new *epoch*, so that (station key, epoch, sequence) never identifies two commands, even if the file
//! was restored from a backup.
//!
//! | module | content |
//! |---|---|
//! | [`deliveries`] | changes of commands and of their deliveries |
//! | [`recovery`] | open deliveries at a start of the station |
//! | [`history`] | queries of users, over a connection of their own |
//! | [`retention`] | removal of old commands |
//! | [`audit`] | actions of users |
//! | `members` | members of the fleet, and peers that wait to be accepted |
//! | [`users`] | users of gateways, and their tokens |
//! | [`meta`], [`persisted`] | single values; values in memory that are written in the background |
//! | [`lock`] | one process owns a state directory |
//! | `write_thread`, `schema`, `sql`, [`timestamp`] | the thread; tables; statements; times on two clocks |

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::tracker::{Change, OpenCommand};
use swarm_shared::proto::id::PeerId;
use tokio::sync::{mpsc, oneshot, watch};

pub mod audit;
pub mod deliveries;
pub mod history;
mod history_number;
pub mod lock;
mod members;
pub mod meta;
pub mod persisted;
pub mod recovery;
pub mod retention;
mod schema;
mod sql;
pub mod timestamp;
pub mod users;
mod write_thread;

#[cfg(test)]
mod tests;

pub use history_number::HistoryNumber;
pub use members::{MemberRow, PENDING_MAX, PendingRow, members};
pub use schema::SCHEMA_VERSION;

use deliveries::Record;
pub use deliveries::{DeliveryEnd, Origin};
use sql::STATEMENTS_MAX;
use timestamp::Timestamp;
use write_thread::StoreJob;

/// Name of the file in a state directory.
pub const STORE_FILE: &str = "station.db";
/// Most jobs that wait for the thread.
pub const STORE_QUEUE_MAX: usize = 256;

/// An error of the store. It affects no change that was confirmed before.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be created or opened.
    #[error(
        "cannot open {path:?}: {reason}; check that the state directory exists and is yours, or use --state-dir"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Error of SQLite or of the system.
        reason: String,
    },
    /// The file is no SQLite database, not ours, or damaged.
    #[error(
        "{path:?} is damaged or not a station's database ({reason}); move it away (keep identity.key and fleet-root.key) and start again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Error of SQLite.
        reason: String,
    },
    /// The file was written by a later version.
    #[error(
        "{path:?} has schema {found} and this program knows up to {known}; install the newer ground-station"
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema of this build.
        known: i64,
    },
    /// A stored value is damaged.
    #[error("station.db: bad {what}: {reason}; restore a backup, or start with another --state-dir")]
    BadRow {
        /// Name of the value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another error of SQLite, such as a full disk.
    #[error("station.db: {0}; check that the disk is not full and the state directory can be written")]
    Sql(rusqlite::Error),
    /// The commit of the group failed: nothing of the change is stored.
    #[error(
        "station.db: nothing was stored: {0}; check that the disk is not full and the state directory can be written"
    )]
    NotStored(String),
    /// The thread has ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    fn bad_row(what: &'static str, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        Self::BadRow { what, reason }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// A handle to the store; clones share it. When the last one is dropped, the thread closes the file and ends.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<StoreJob>,
    epoch: u64,
    path: Arc<Path>,
    /// Closed by the thread after the file.
    closed: watch::Receiver<()>,
}

impl Store {
    /// Opens `station.db` in the state directory, creates or migrates it, and begins a new epoch.
    ///
    /// # Errors
    /// [`StoreError`]; the file is left as it was.
    pub async fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path: Arc<Path> = state_dir.join(STORE_FILE).into();
        let (jobs, mut queue) = mpsc::channel::<StoreJob>(STORE_QUEUE_MAX);
        let (opened, answer) = oneshot::channel();
        let (is_open, closed) = watch::channel(());
        let thread = std::thread::Builder::new().name("store".to_owned());
        let file = Arc::clone(&path);
        let work = move || {
            let _is_open = is_open;
            let mut connection = match open(&file) {
                Ok((connection, epoch)) => {
                    // If the caller is gone, the queue is closed too, and the loop below ends at once.
                    opened.send(Ok(epoch)).ok();
                    connection
                }
                Err(error) => {
                    opened.send(Err(error)).ok();
                    return;
                }
            };
            write_thread::run(&mut connection, &mut queue);
        };
        thread.spawn(work).map_err(|error| StoreError::Open {
            path: path.to_path_buf(),
            reason: error.to_string(),
        })?;
        let epoch = answer.await.map_err(|_gone| StoreError::Closed)??;
        Ok(Self {
            jobs,
            epoch,
            path,
            closed,
        })
    }

    /// Drops this handle and waits until the file is closed, which other handles delay. Closing merges the write-ahead log
    /// into the file, so that it can be read on a full disk without the log's index.
    pub async fn close(self) {
        let Self { jobs, mut closed, .. } = self;
        drop(jobs);
        // No value is ever sent: the channel closes with the thread.
        while closed.changed().await.is_ok() {}
    }

    /// The epoch of this open. No other open of this file or of a copy of it has the same.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores changes of deliveries, all or none. Returns after the commit, with the numbers in the history of the commands
    /// that are issued among them. `origins` belong to those commands.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn apply(
        &self,
        changes: Vec<Change>,
        origins: BTreeMap<CommandId, Origin>,
    ) -> Result<Vec<u64>, StoreError> {
        let now = Timestamp::now();
        self.write(move |connection| deliveries::apply(connection, &changes, &origins, &now))
            .await
    }

    /// The open commands of `issuer`; see [`recovery::recover`].
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn recover(&self, issuer: PeerId) -> Result<Vec<OpenCommand>, StoreError> {
        self.write(move |connection| recovery::recover(connection, issuer, &Timestamp::now()))
            .await
    }

    /// Stores a command that the tracker does not follow; see [`deliveries::record`].
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn record(&self, record: Record) -> Result<u64, StoreError> {
        let now = Timestamp::now();
        self.write(move |connection| deliveries::record(connection, &record, &now))
            .await
    }

    /// Stores the ends of deliveries of a [`Record`], all or none.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn record_delivery_ends(&self, number: u64, ends: Vec<DeliveryEnd>) -> Result<(), StoreError> {
        let now = Timestamp::now();
        self.write(move |connection| {
            for end in &ends {
                deliveries::record_delivery_end(connection, number, end, &now)?;
            }
            Ok(())
        })
        .await
    }

    /// Runs a query outside of any transaction.
    async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.run(write_thread::read_job(query)).await
    }

    /// Runs a change in a savepoint, all or nothing. It is committed with the other changes that wait, and returns after
    /// the commit.
    async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.run(write_thread::grouped_job(change)).await
    }

    async fn run<T>(&self, (job, result): (StoreJob, write_thread::JobResult<T>)) -> Result<T, StoreError> {
        self.jobs.send(job).await.map_err(|_gone| StoreError::Closed)?;
        result.await.map_err(|_gone| StoreError::Closed)?
    }
}

/// Path of a database in memory in the errors of [`prepare`].
pub const IN_MEMORY_PATH: &str = ":memory:";

/// Opens a database in memory with the newest schema, for simulations. Returns it with its first epoch.
///
/// # Errors
/// [`StoreError`].
pub fn open_in_memory(unix_ms: u64, random: u16) -> Result<(Connection, u64), StoreError> {
    let mut connection = Connection::open_in_memory()?;
    let epoch = prepare(&mut connection, Path::new(IN_MEMORY_PATH), unix_ms, random)?;
    Ok((connection, epoch))
}

/// Migrates a database to the newest schema and begins its next epoch, which it returns. Errors name `path`.
///
/// # Errors
/// [`StoreError`]; completed migrations stay.
pub fn prepare(
    connection: &mut Connection,
    path: &Path,
    unix_ms: u64,
    random: u16,
) -> Result<u64, StoreError> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    schema::migrate(connection, path)
        .and_then(|()| meta::begin_epoch(connection, unix_ms, random))
        .map_err(|error| as_corrupt(error, path))
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
    let random = random::bytes().map_err(|error| cannot(error.to_string()))?;
    let epoch = prepare(
        &mut connection,
        path,
        clock::unix_time_ms(),
        u16::from_le_bytes(random),
    )?;
    Ok((connection, epoch))
}

/// Opens the file of a state directory for reading only; another process may have it open. `None` if there is no file,
/// or its schema has no history.
///
/// # Errors
/// [`StoreError`].
pub fn open_read_only(state_dir: &Path) -> Result<Option<Connection>, StoreError> {
    let path = state_dir.join(STORE_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(|error| StoreError::Open {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let has_history = schema::has_history(&connection, &path).map_err(|error| as_corrupt(error, &path))?;
    Ok(has_history.then_some(connection))
}

/// Runs a query on the file of a state directory, opened by [`open_read_only`]. If that fails, reads the file as it is,
/// without the changes that are only in its write-ahead log: on a full disk SQLite has no room for the index of the log,
/// and then opens the file in no other way. `None` if there is no file.
///
/// # Errors
/// [`StoreError`] of the first attempt.
pub fn read_best_effort<T>(
    state_dir: &Path,
    query: impl Fn(&Connection) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let read = |connection: Option<Connection>| connection.as_ref().map(&query).transpose();
    open_read_only(state_dir).and_then(read).or_else(|first_error| {
        let path = state_dir.join(STORE_FILE);
        // Characters that have a meaning in a URI.
        let path = path.to_string_lossy();
        let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{path}?immutable=1");
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let immutable = Connection::open_with_flags(uri, flags).map_err(StoreError::Sql);
        immutable
            .and_then(|connection| read(Some(connection)))
            .map_err(|_second| first_error)
    })
}

/// Names the file in an error of SQLite, unless the machine caused the error.
fn as_corrupt(error: StoreError, path: &Path) -> StoreError {
    if let StoreError::Sql(sql) = &error
        && !is_environment_error(sql)
    {
        return StoreError::Corrupt {
            path: path.to_owned(),
            reason: sql.to_string(),
        };
    }
    error
}

/// Whether the machine caused the error, and not the content of the file.
fn is_environment_error(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
        )
    )
}
