//! The latch file: what a node keeps of emergency stops, in two equal copies beside the journal.
//!
//! Invariants:
//! * What [`LatchFile::write`] has answered with success survives a power cut at any instant and the loss of either copy:
//!   the copies are written one after the other, each with a higher generation than all before, and the highest sound
//!   one counts.
//! * A copy that is there is written in place. Most file systems need no space for that, so that a stop can be stored on
//!   a full disk. A copy that is missing, damaged or could not be written is made anew: temporary file, flush, rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{JournalFault, disk_fault};
use crate::net::state_file::MODE_SECRET;
use crate::proto::stop::{LATCH_FILE_BYTES, StopMemory};

/// Names of the two copies.
pub const LATCH_FILES: [&str; 2] = ["stops.1", "stops.2"];
/// Name of a copy until it is whole.
const NEW_FILE: &str = "stops.new";
/// Longest file that is read, in bytes.
const READ_BYTES_MAX: u64 = 4 * LATCH_FILE_BYTES as u64;

/// What [`LatchFile::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LatchContent {
    /// Neither copy exists: the directory is new, or of a version that kept stops in the journal only.
    Missing,
    /// At least one copy is sound.
    Sound {
        /// The newest sound content.
        memory: StopMemory,
        /// Why the other copy cannot be read.
        damage: Option<String>,
    },
    /// There are copies, and none can be read; the reason.
    Unreadable(String),
}

/// The open latch file. Every call blocks on the disk.
#[derive(Debug)]
pub struct LatchFile {
    dir: PathBuf,
    /// Copies that can be written in place.
    copies: [Option<File>; 2],
    generation: u64,
}

impl LatchFile {
    /// Reads both copies. It always gives a file: one that cannot be written refuses with the reason.
    pub fn open(dir: &Path) -> (Self, LatchContent) {
        let mut latch = Self {
            dir: dir.to_owned(),
            copies: [None, None],
            generation: 0,
        };
        let (mut newest, mut damage) = (None, None);
        for (copy, name) in LATCH_FILES.into_iter().enumerate() {
            match read_copy(&dir.join(name)) {
                Ok(None) => {}
                Ok(Some((generation, memory))) => {
                    latch.copies[copy] = OpenOptions::new().write(true).open(dir.join(name)).ok();
                    if newest.is_none() || generation > latch.generation {
                        (latch.generation, newest) = (generation, Some(memory));
                    }
                }
                Err(reason) => damage = Some(format!("{name}: {reason}")),
            }
        }
        let content = match (newest, damage) {
            (Some(memory), damage) => LatchContent::Sound { memory, damage },
            (None, Some(reason)) => LatchContent::Unreadable(reason),
            (None, None) => LatchContent::Missing,
        };
        (latch, content)
    }

    /// Makes `memory` durable, in both copies if the disk permits.
    ///
    /// # Errors
    /// [`JournalFault::Disk`]: in neither copy. The next call tries again with new files.
    pub fn write(&mut self, memory: &StopMemory) -> Result<(), JournalFault> {
        self.generation += 1;
        let bytes = memory.encode(self.generation);
        // A copy that has to be made anew goes first: the other one stays sound meanwhile.
        let order = if self.copies[1].is_none() { [1, 0] } else { [0, 1] };
        let results = order.map(|copy| self.write_copy(copy, &bytes));
        let mut faults = results.into_iter().filter_map(Result::err).fuse();
        match (faults.next(), faults.next()) {
            (Some(error), Some(_)) => Err(disk_fault("store a stop")(error)),
            (Some(error), None) => {
                tracing::warn!(%error, "One copy of the record of stops not written");
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    fn write_copy(&mut self, copy: usize, bytes: &[u8]) -> io::Result<()> {
        // Put back only once all is durable: a system may drop what it could not flush.
        let file = match self.copies[copy].take() {
            Some(file) => {
                file.write_all_at(bytes, 0)?;
                file.sync_data()?;
                file
            }
            None => self.create(LATCH_FILES[copy], bytes)?,
        };
        self.copies[copy] = Some(file);
        Ok(())
    }

    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let path = self.dir.join(NEW_FILE);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE_SECRET)
            .open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&path, self.dir.join(name))?;
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }
}

fn read_copy(path: &Path) -> Result<Option<(u64, StopMemory)>, String> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(_length) => {}
    }
    StopMemory::decode(&bytes)
        .map(Some)
        .map_err(|damage| damage.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::PublicKey;
    use crate::proto::stop::{IssuerNumbers, StoredStop};

    fn memory(number: u64, stopped: bool) -> StopMemory {
        let issuer = PublicKey([1; 32]).id();
        StopMemory {
            active: stopped.then_some(StoredStop {
                issuer,
                number,
                held: false,
                command_result: None,
            }),
            issuers: vec![IssuerNumbers {
                issuer,
                seen: number,
                released: 0,
            }],
        }
    }

    fn read(dir: &Path) -> LatchContent {
        LatchFile::open(dir).1
    }

    fn found(dir: &Path) -> (StopMemory, bool) {
        let LatchContent::Sound { memory, damage } = read(dir) else {
            panic!("no copy is sound");
        };
        (memory, damage.is_some())
    }

    /// A write in place may leave any mix of old and new blocks in the copy that was being written.
    #[test]
    fn power_cut_during_a_write_leaves_the_old_or_the_new_stop() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut latch, content) = LatchFile::open(dir.path());
        assert_eq!(content, LatchContent::Missing);
        let (old, new) = (memory(7, false), memory(8, true));
        latch.write(&old).expect("room");
        let paths = LATCH_FILES.map(|name| dir.path().join(name));
        let before = fs::read(&paths[0]).expect("written");
        latch.write(&new).expect("room");
        let after = fs::read(&paths[0]).expect("written");
        for copy in 0..2 {
            for cut in (0..=before.len()).step_by(64) {
                let torn = [&after[..cut], &before[cut..]].concat();
                fs::write(&paths[copy], torn).expect("written");
                fs::write(&paths[1 - copy], if copy == 0 { &before } else { &after }).expect("written");
                let whole = cut
                    >= after
                        .iter()
                        .rposition(|byte| *byte != 0)
                        .map_or(0, |last| last + 1);
                let expected = if copy == 1 || whole { &new } else { &old };
                assert_eq!(found(dir.path()).0, *expected, "copy {copy}, {cut} bytes");
            }
        }
    }

    #[test]
    fn one_damaged_copy_is_repaired_and_two_are_unreadable() {
        let dir = tempfile::tempdir().expect("a directory");
        let stopped = memory(7, true);
        LatchFile::open(dir.path()).0.write(&stopped).expect("room");
        for damaged in LATCH_FILES {
            fs::write(dir.path().join(damaged), "damage").expect("written");
            assert_eq!(found(dir.path()), (stopped.clone(), true));
            LatchFile::open(dir.path()).0.write(&stopped).expect("room");
            assert_eq!(found(dir.path()), (stopped.clone(), false));
            fs::remove_file(dir.path().join(damaged)).expect("there");
            assert_eq!(found(dir.path()).0, stopped, "the other copy is enough");
            LatchFile::open(dir.path()).0.write(&stopped).expect("room");
        }
        for damaged in LATCH_FILES {
            fs::write(dir.path().join(damaged), "damage").expect("written");
        }
        assert!(matches!(read(dir.path()), LatchContent::Unreadable(_)));
        fs::remove_file(dir.path().join(LATCH_FILES[0])).expect("there");
        assert!(matches!(read(dir.path()), LatchContent::Unreadable(_)));
    }

    #[test]
    fn stop_is_written_in_place_and_made_anew_after_a_failure() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().expect("a directory");
        let inodes = || LATCH_FILES.map(|name| fs::metadata(dir.path().join(name)).expect("there").ino());
        let (mut latch, _) = LatchFile::open(dir.path());
        latch.write(&memory(7, false)).expect("room");
        let made = inodes();
        latch.write(&memory(8, true)).expect("room");
        assert_eq!(inodes(), made);
        // A file that cannot be written to, as after an error of the disk.
        let read_only = File::open(dir.path().join(LATCH_FILES[0])).expect("there");
        latch.copies[0] = Some(read_only);
        latch.write(&memory(9, true)).expect("the other copy is enough");
        assert_eq!(found(dir.path()).0, memory(9, true));
        latch.write(&memory(10, true)).expect("room");
        assert_ne!(inodes()[0], made[0]);
        assert_eq!(inodes()[1], made[1]);
    }

    #[test]
    fn stop_is_refused_while_neither_copy_can_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("state");
        let (mut latch, _) = LatchFile::open(&state);
        latch.write(&memory(7, true)).expect_err("no directory");
        fs::create_dir(&state).expect("made");
        latch.write(&memory(7, true)).expect("there is one now");
        assert_eq!(found(&state).0, memory(7, true));
    }
}
