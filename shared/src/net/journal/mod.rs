//! A journal in a directory: `journal`, and while a snapshot is written `journal.new`; beside it the [`LatchFile`].
//!
//! Invariants:
//! * What [`JournalFile::append`] has answered with success survives a power cut at any instant, whole and in order.
//!   What it has refused, or not answered, may be there or not, in order and from the first on, never in part.
//! * The deduplication table holds what is durable, and nothing else.
//! * After a failed write or flush nothing is written to that file again: a system may drop what it could not flush and
//!   report success the next time. The next append begins with a new file that contains the whole table.
//!
//! Opening ends with a snapshot too: the process before may have died after a write that the disk had refused, and what
//! still reads well then need not be on the disk.
//!
//! | state | `file` | next append |
//! |---|---|---|
//! | healthy | open | writes and flushes; past the size bound, makes a snapshot first |
//! | doubtful, after any failure | closed | makes a snapshot first; healthy if that succeeds |
//! | shut: a later version's file, or one that cannot be read | closed | refused until a restart |

mod disk;
mod latch;
#[cfg(any(test, feature = "test-util"))]
mod memory;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};

pub use disk::{Disk, StdDisk};
pub use latch::{LATCH_FILES, LatchContent, LatchFile};
#[cfg(any(test, feature = "test-util"))]
pub use memory::{Failure, Loss, MemoryDisk, MemoryFile};

use crate::proto::delivery::dedup::DedupTable;
use crate::proto::delivery::journal::{append_record, replay, snapshot};
use crate::proto::delivery::record::Record;
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;

/// Name of the journal in its directory.
pub const JOURNAL_FILE: &str = "journal";
/// Name of a snapshot until it is whole.
pub const SNAPSHOT_FILE: &str = "journal.new";
/// Copy of the part of a damaged journal that could not be read; the newest replaces the one before.
pub const DAMAGED_FILE: &str = "journal.damaged";
/// How many bytes may be appended before the next snapshot, or twice the last snapshot's size if that is more.
pub const APPENDED_BYTES_MAX: u64 = 1024 * 1024;
/// Longest journal that is read, in bytes; far above the bounds that are kept when writing.
pub const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest [`DAMAGED_FILE`], in bytes.
pub const DAMAGED_BYTES_MAX: usize = 1024 * 1024;

/// Why nothing can be written. Earlier records are safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalFault {
    /// A disk operation failed.
    #[error("the journal cannot {doing}: {reason}; {advice}")]
    Disk {
        /// The operation, as a verb phrase after "cannot".
        doing: &'static str,
        /// The system's error.
        reason: String,
        /// The remedy.
        advice: &'static str,
    },
    /// The file is from a later version.
    #[error("the file `journal` in the state directory is not for this version: {0}")]
    NewerVersion(String),
    /// The journal exists and cannot be read: without it a command could run twice.
    #[error(
        "the file `journal` in the state directory cannot be read: {0}; repair the disk, or move the file away, and restart"
    )]
    Unreadable(String),
    /// Too many records wait for the disk.
    #[error("busy: too many records wait for the journal; try again")]
    Busy,
    /// The program is shutting down.
    #[error("the journal is closed: the node is shutting down")]
    Closed,
}

fn disk_fault(doing: &'static str) -> impl FnOnce(io::Error) -> JournalFault {
    move |error| {
        let kind = error.kind();
        let advice = if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            "free some space on the disk, then the node goes on by itself"
        } else if kind == ErrorKind::ReadOnlyFilesystem {
            "remount the disk writable, then the node goes on by itself"
        } else if kind == ErrorKind::PermissionDenied {
            "give the state directory to the user of the node"
        } else {
            "look at the disk, it may be failing; the node keeps trying"
        };
        JournalFault::Disk {
            doing,
            reason: error.to_string(),
            advice,
        }
    }
}

/// The result of reading an existing journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// How many records were read.
    pub records: u64,
    /// How many bytes could not be read, and are ignored.
    pub dropped_bytes: u64,
    /// Why; `None` if everything was read.
    pub damage: Option<String>,
    /// Why the part that could not be read could not be kept either.
    pub damage_save_error: Option<String>,
    /// Why nothing can be written at first.
    pub fault: Option<JournalFault>,
}

/// Disk operations since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes written, snapshots and failed attempts included.
    pub bytes_written: u64,
    /// Flushes, of files and of the directory.
    pub syncs: u64,
    /// Records that became durable.
    pub records: u64,
    /// Snapshots that became the journal.
    pub snapshots: u64,
}

/// An open journal. Every call blocks on the disk.
#[derive(Debug)]
pub struct JournalFile<D: Disk> {
    disk: D,
    /// Open while everything in it is known to be durable.
    file: Option<D::File>,
    /// Why a snapshot must not replace the existing file.
    permanent_fault: Option<JournalFault>,
    dedup_table: DedupTable,
    /// The number of the next record.
    next_sequence: u64,
    /// What may be appended before the next snapshot, in bytes.
    bytes_until_snapshot: u64,
    stats: JournalStats,
}

impl<D: Disk> JournalFile<D> {
    /// Reads the existing file, if there is one, and writes a snapshot of it. It always returns a journal: one that
    /// cannot write refuses appends with the reason that is in [`Recovery::fault`].
    pub fn open(disk: D) -> (Self, Recovery) {
        let mut journal = Self {
            disk,
            file: None,
            permanent_fault: None,
            dedup_table: DedupTable::default(),
            next_sequence: 1,
            bytes_until_snapshot: APPENDED_BYTES_MAX,
            stats: JournalStats::default(),
        };
        let mut recovery = Recovery::default();
        match journal.disk.read(JOURNAL_FILE, JOURNAL_BYTES_MAX) {
            Ok(None) => {}
            Ok(Some(bytes)) => journal.replay_existing(&bytes, &mut recovery),
            Err(error) => journal.permanent_fault = Some(JournalFault::Unreadable(error.to_string())),
        }
        recovery.fault = journal.recover().err();
        (journal, recovery)
    }

    /// Makes these records durable, all of them when it returns with success.
    ///
    /// # Errors
    /// [`JournalFault`]; then the table is unchanged, and the next call starts with a new file.
    pub fn append(&mut self, records: &[Record]) -> Result<(), JournalFault> {
        let mut bytes = self.encode_records(records);
        if bytes.len() as u64 > self.bytes_until_snapshot {
            self.file = None;
        }
        let first = self.next_sequence;
        let mut file = self.writable_file()?;
        if self.next_sequence != first {
            // A snapshot has taken these numbers.
            bytes = self.encode_records(records);
        }
        // Kept open only if all is durable: a file is never written to after a failure.
        self.write(&mut file, &bytes, "be written")?;
        self.file = Some(file);
        for record in records {
            self.dedup_table.apply(record);
        }
        self.next_sequence = self.next_sequence.wrapping_add(records.len() as u64);
        self.bytes_until_snapshot = self.bytes_until_snapshot.saturating_sub(bytes.len() as u64);
        self.stats.records += records.len() as u64;
        Ok(())
    }

    /// Tries to become healthy again after a failure; does nothing while healthy.
    ///
    /// # Errors
    /// [`JournalFault`], while the fault persists.
    pub fn recover(&mut self) -> Result<(), JournalFault> {
        self.file = Some(self.writable_file()?);
        Ok(())
    }

    /// The durable state.
    pub fn dedup_table(&self) -> &DedupTable {
        &self.dedup_table
    }

    /// Counters of disk operations.
    pub fn stats(&self) -> JournalStats {
        self.stats
    }

    fn encode_records(&self, records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut number = self.next_sequence;
        for record in records {
            append_record(&mut bytes, number, record);
            number = number.wrapping_add(1);
        }
        bytes
    }

    /// The file that may be written to; a new one if there is none.
    fn writable_file(&mut self) -> Result<D::File, JournalFault> {
        if let Some(fault) = &self.permanent_fault {
            return Err(fault.clone());
        }
        match self.file.take() {
            Some(file) => Ok(file),
            None => self.write_snapshot(),
        }
    }

    fn replay_existing(&mut self, bytes: &[u8], recovery: &mut Recovery) {
        let dedup_table = &mut self.dedup_table;
        let replayed = replay(bytes, |record| dedup_table.apply(&record));
        recovery.records = replayed.records;
        self.next_sequence = replayed.next_number.max(1);
        let Some(damage) = replayed.damage else {
            return;
        };
        recovery.damage = Some(damage.to_string());
        recovery.dropped_bytes = (bytes.len() - replayed.valid_bytes) as u64;
        if damage.is_newer() {
            self.permanent_fault = Some(JournalFault::NewerVersion(damage.to_string()));
            return;
        }
        let rest = bytes.get(replayed.valid_bytes..).unwrap_or_default();
        let rest = &rest[..rest.len().min(DAMAGED_BYTES_MAX)];
        recovery.damage_save_error = self.save_damaged_part(rest).err().map(|fault| fault.to_string());
    }

    fn save_damaged_part(&mut self, rest: &[u8]) -> Result<(), JournalFault> {
        let mut file = self
            .disk
            .create(DAMAGED_FILE)
            .map_err(disk_fault("set damage aside"))?;
        self.write(&mut file, rest, "set damage aside")
    }

    fn write_snapshot(&mut self) -> Result<D::File, JournalFault> {
        let doing = "make a snapshot";
        let (bytes, next) = snapshot(&self.dedup_table, self.next_sequence);
        let mut file = self.disk.create(SNAPSHOT_FILE).map_err(disk_fault(doing))?;
        self.write(&mut file, &bytes, doing)?;
        self.disk
            .rename(SNAPSHOT_FILE, JOURNAL_FILE)
            .map_err(disk_fault(doing))?;
        self.stats.syncs += 1;
        self.sync_dir().map_err(disk_fault(doing))?;
        // By its own name: not every disk below us follows a file that was renamed.
        let file = self.disk.open(JOURNAL_FILE).map_err(disk_fault(doing))?;
        self.next_sequence = next;
        self.bytes_until_snapshot = APPENDED_BYTES_MAX.max(2 * bytes.len() as u64);
        self.stats.snapshots += 1;
        Ok(file)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::SkipDirSync) {
            return Ok(());
        }
        self.disk.sync_dir()
    }

    fn write(&mut self, file: &mut D::File, bytes: &[u8], doing: &'static str) -> Result<(), JournalFault> {
        self.stats.bytes_written += bytes.len() as u64;
        self.disk.append(file, bytes).map_err(disk_fault(doing))?;
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::AckBeforeJournal) {
            return Ok(());
        }
        self.stats.syncs += 1;
        self.disk.sync(file).map_err(disk_fault(doing))
    }
}
