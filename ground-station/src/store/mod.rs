//! What a station remembers between runs: one SQLite file, `station.db`.
//!
//! One thread owns the connection; a cloneable [`Store`] asks it through a bounded channel, so no task of the
//! runtime ever waits for a disk. WAL with `synchronous=FULL`: what a call has answered survives a power cut. The
//! file and its companions have mode 0600.
//!
//! Every open begins a new *epoch*, so that (station key, epoch, sequence) never names two commands, even if the file
//! was put back from a backup.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`deliveries`] | commands, and how each of their deliveries stands |
//! | [`history`] | the questions that people ask about them; read over a connection of its own |
//! | [`audit`] | who did what |
//! | [`lock`] | one process owns a state directory |
//! | [`retention`] | how much of all that is kept |
//! | [`users`] | who may pass a gateway that asks for a name, and with which tokens |
//! | `members`, `meta` | who belongs; single values |

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use std::collections::BTreeMap;
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
mod meta;
pub mod retention;
mod schema;
pub mod timestamp;
pub mod users;
mod write_thread;

#[cfg(test)]
mod tests;

pub use history_number::HistoryNumber;
pub use members::{MemberRow, PENDING_MAX, PendingRow, members};
pub use meta::{membership, stop_number};
pub use schema::SCHEMA_VERSION;

use deliveries::Record;
pub use deliveries::{DeliveryEnd, Origin};
use timestamp::Timestamp;
use write_thread::StoreJob;

/// Name of the file in the state directory.
pub const STORE_FILE: &str = "station.db";
/// Most calls that wait for the thread.
pub const STORE_QUEUE_MAX: usize = 256;

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
    NewerSchema {
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
    /// The commit that this was part of failed: nothing of it is stored.
    #[error(
        "station.db: nothing was stored: {0}; check that the disk is not full and the state directory can be written"
    )]
    NotStored(String),
    /// The thread is gone.
    #[error("the store has stopped")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// A handle on the store; clones share it. The thread ends, and the file is closed, when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<StoreJob>,
    epoch: u64,
    path: Arc<Path>,
    /// Its other end goes when the file is closed.
    closed: watch::Receiver<()>,
}

impl Store {
    /// Opens `station.db` in the state directory, making or migrating it, and begins a new epoch.
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
                    // Nobody waits any more: the queue is closed too, and the loop below ends at once.
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

    /// Gives this handle back and waits until the file is closed, and so until its log has gone into it: what reads the
    /// file on a full disk then needs no room for the log's index. Other handles keep it open.
    pub async fn close(self) {
        let Self { jobs, mut closed, .. } = self;
        drop(jobs);
        // Nothing is ever said: it ends with the thread.
        while closed.changed().await.is_ok() {}
    }

    /// This opening's epoch; no other opening of this file, or of a copy of it, ever has it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes changes of deliveries, all or none, and returns when they are on the disk, with the numbers in the
    /// history of the commands that begin among them. `origins` says what is to be noted of those commands.
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

    /// What is still open of what `issuer` has issued; see [`deliveries::recover`].
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn recover(&self, issuer: PeerId) -> Result<Vec<OpenCommand>, StoreError> {
        self.write(move |connection| deliveries::recover(connection, issuer, &Timestamp::now()))
            .await
    }

    /// Notes that something begins that the book does not carry; see [`deliveries::record`].
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn record(&self, record: Record) -> Result<u64, StoreError> {
        let now = Timestamp::now();
        self.write(move |connection| deliveries::record(connection, &record, &now))
            .await
    }

    /// Notes how deliveries of it ended, all or none.
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

    /// Something that reads, or has a transaction of its own.
    async fn with_connection<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (done, answer) = oneshot::channel();
        let job = StoreJob::Standalone(Box::new(move |connection| {
            // The caller may have gone; the work is done all the same.
            done.send(work(connection)).ok();
        }));
        self.jobs.send(job).await.map_err(|_gone| StoreError::Closed)?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }

    /// Something that writes: committed together with whatever else waits, and answered after that.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (job, answer) = write_thread::grouped_job(work);
        self.jobs.send(job).await.map_err(|_gone| StoreError::Closed)?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }
}

/// What a path is called that is no file: see [`prepare`].
pub const IN_MEMORY_PATH: &str = ":memory:";

/// A database in memory, with the newest schema, and its first epoch: what a simulation runs the same SQL on.
///
/// # Errors
/// [`StoreError`].
pub fn open_in_memory(unix_ms: u64, random: u16) -> Result<(Connection, u64), StoreError> {
    let mut connection = Connection::open_in_memory()?;
    let epoch = prepare(&mut connection, Path::new(IN_MEMORY_PATH), unix_ms, random)?;
    Ok((connection, epoch))
}

/// Brings a database to the newest schema and begins its next epoch: what a station does when it starts. `path` is
/// what errors call it.
///
/// # Errors
/// [`StoreError`]; the steps that were done stay done.
pub fn prepare(
    connection: &mut Connection,
    path: &Path,
    unix_ms: u64,
    random: u16,
) -> Result<u64, StoreError> {
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

/// Opens the file of a state directory for reading only, whoever else has it open; `None` if there is none yet, or
/// none with a history.
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

/// Asks the file of a state directory as [`open_read_only`] opens it; if that fails, as it lies there, without what a
/// log beside it may hold. For what has to be known though the disk is full: SQLite then finds no room for the index
/// of its log, without which it reads no file that may be written meanwhile. `None` if there is no file.
///
/// # Errors
/// [`StoreError`], of the first try.
pub fn read_best_effort<T>(
    state_dir: &Path,
    query: impl Fn(&Connection) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let read = |connection: Option<Connection>| connection.as_ref().map(&query).transpose();
    open_read_only(state_dir).and_then(read).or_else(|first_error| {
        let path = state_dir.join(STORE_FILE);
        // What ends a path in a URI, and what begins an escape there.
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

/// Says of a damaged file what it is.
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

/// Whether it is the machine's fault, and not the file's.
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

/// SQLite counts in `i64`. No counter or time of ours comes near its end.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
