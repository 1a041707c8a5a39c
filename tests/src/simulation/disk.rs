//! The journal's disk: that of turmoil, with the faults of a real one.
//!
//! At a crash, turmoil loses unsynced data, completely or from some block on, and names whose directory was not
//! synced. Full disks, failing disks and garbage after the end are added here.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use swarm_shared::net::journal::{Disk, JOURNAL_FILE, JournalFile};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use turmoil::fs::shim::std::fs::{self, File, OpenOptions};

use super::fault::Fault;
use super::ground_truth::Invariant;
use super::world::{DiskFault, HostId, KillPoint, Killed, World};

/// The length of a file, as this process knows it.
#[derive(Clone, Copy, Debug, Default)]
struct FileLength {
    synced: u64,
    written: u64,
}

/// The known files of one host; it outlives the process.
#[derive(Clone, Debug, Default)]
pub(super) struct FileLengths(BTreeMap<String, FileLength>);

impl FileLengths {
    fn entry(&mut self, name: &str) -> &mut FileLength {
        self.0.entry(name.to_owned()).or_default()
    }
}

struct SimDisk {
    world: Rc<World>,
    own_host: HostId,
}

struct SimFile {
    file: File,
    name: String,
}

/// Result of an append.
#[derive(Debug)]
pub(super) enum AppendResult {
    Written,
    Failed(String),
}

/// The product's journal on that disk.
pub(super) struct SimJournal {
    file: JournalFile<SimDisk>,
    world: Rc<World>,
    own_host: HostId,
}

impl SimJournal {
    /// Opens the journal and replays it.
    pub(super) fn open(world: &Rc<World>, own_host: HostId) -> Result<(Self, DedupTable), Killed> {
        let mut disk = SimDisk {
            world: Rc::clone(world),
            own_host,
        };
        disk.apply_crash_damage();
        let (file, recovery) = JournalFile::open(disk);
        if world.is_killed(own_host) {
            return Err(Killed);
        }
        world.log(
            own_host,
            format_args!(
                "journal: {} records, {} bytes dropped, damage {:?}, fault {}",
                recovery.records,
                recovery.dropped_bytes,
                recovery.damage,
                recovery.fault.is_some()
            ),
        );
        let dedup = file.dedup_table().clone();
        let journal = Self {
            file,
            world: Rc::clone(world),
            own_host,
        };
        Ok((journal, dedup))
    }

    pub(super) fn append(&mut self, records: &[Record]) -> Result<AppendResult, Killed> {
        let result = self.file.append(records);
        if self.world.is_killed(self.own_host) {
            return Err(Killed);
        }
        Ok(match result {
            Ok(()) => AppendResult::Written,
            Err(fault) => AppendResult::Failed(fault.to_string()),
        })
    }
}

impl SimDisk {
    fn path(name: &str) -> PathBuf {
        PathBuf::from("/").join(name)
    }

    /// turmoil identifies a file by its name: unsynced data of the old file would go to the new one of that name. So
    /// the old file is synced before it is replaced, as a real system may do at any time.
    fn sync_before_replace(path: &Path) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.sync_data()
    }

    /// Logs what the last crash has destroyed, and writes the planned garbage.
    fn apply_crash_damage(&mut self) {
        let Ok(bytes) = fs::read(Self::path(JOURNAL_FILE)) else {
            return;
        };
        let mut control = self.world.controls[self.own_host].borrow_mut();
        let length = *control.file_lengths.entry(JOURNAL_FILE);
        let found = bytes.len() as u64;
        if found < length.synced {
            let what = format!(
                "{} had synced {} bytes of its journal, and {found} are left",
                self.world.hosts[self.own_host].name, length.synced
            );
            // Only a name that was not synced can cause that, and then more than this is lost.
            self.world.log(self.own_host, format_args!("{what}"));
        }
        if length.written > length.synced {
            if found <= length.synced {
                self.world.count_fault(Fault::LostUnsynced);
            } else if found < length.written {
                self.world.count_fault(Fault::TornWrite);
            }
        }
        control.file_lengths.0.clear();
        *control.file_lengths.entry(JOURNAL_FILE) = FileLength {
            synced: found,
            written: found,
        };
        if control.corrupt_tail {
            control.corrupt_tail = false;
            let garbage = control.rng.bytes();
            let length = control.rng.index(garbage.len()) + 1;
            drop(control);
            let opened = OpenOptions::new().append(true).open(Self::path(JOURNAL_FILE));
            let done = opened.and_then(|mut file| {
                file.write_all(&garbage[..length])?;
                file.sync_all()
            });
            match done {
                Ok(()) => self.world.count_fault(Fault::CorruptTail),
                Err(error) => self
                    .world
                    .truth
                    .borrow_mut()
                    .report_violation(Invariant::Progress, format!("the simulated disk failed: {error}")),
            }
        }
    }

    /// Fails if the process was killed; returns the disk's current fault.
    fn current_fault(&self) -> io::Result<Option<DiskFault>> {
        let control = self.world.controls[self.own_host].borrow();
        if control.killed {
            return Err(io::Error::other("the process is dead"));
        }
        let now = self.world.now_ms();
        Ok(control
            .disk_fault
            .filter(|(_, until)| now < *until)
            .map(|(trouble, _)| trouble))
    }

    fn fault_error(&self, trouble: DiskFault) -> io::Error {
        let (fault, kind) = match trouble {
            DiskFault::NoSpace => (Fault::NoSpace, ErrorKind::StorageFull),
            DiskFault::IoError => (Fault::IoError, ErrorKind::Other),
        };
        self.world.count_fault(fault);
        kind.into()
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn read(&mut self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        self.current_fault()?;
        match fs::read(Self::path(name)) {
            Ok(mut bytes) => {
                bytes.truncate(usize::try_from(max).unwrap_or(usize::MAX));
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<SimFile> {
        if let Some(trouble) = self.current_fault()? {
            return Err(self.fault_error(trouble));
        }
        let path = Self::path(name);
        if fs::exists(&path) {
            Self::sync_before_replace(&path)?;
            fs::remove_file(&path)?;
            fs::sync_dir("/")?;
        }
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        *self.world.controls[self.own_host]
            .borrow_mut()
            .file_lengths
            .entry(name) = FileLength::default();
        Ok(SimFile {
            file,
            name: name.to_owned(),
        })
    }

    fn open(&mut self, name: &str) -> io::Result<SimFile> {
        self.current_fault()?;
        let file = OpenOptions::new().append(true).open(Self::path(name))?;
        Ok(SimFile {
            file,
            name: name.to_owned(),
        })
    }

    fn append(&mut self, file: &mut SimFile, bytes: &[u8]) -> io::Result<()> {
        let trouble = self.current_fault()?;
        // Bytes that do not fit are cut off in the middle.
        let taken = match trouble {
            Some(DiskFault::NoSpace) => bytes.len() / 2,
            Some(DiskFault::IoError) | None => bytes.len(),
        };
        file.file.write_all(&bytes[..taken])?;
        let mut control = self.world.controls[self.own_host].borrow_mut();
        control.file_lengths.entry(&file.name).written += taken as u64;
        drop(control);
        if trouble == Some(DiskFault::NoSpace) {
            return Err(self.fault_error(DiskFault::NoSpace));
        }
        self.world
            .reach_kill_point(self.own_host, KillPoint::InJournal)
            .map_err(|Killed| io::Error::other("the process is dead"))
    }

    fn sync(&mut self, file: &mut SimFile) -> io::Result<()> {
        if let Some(trouble) = self.current_fault()? {
            return Err(self.fault_error(trouble));
        }
        file.file.sync_data()?;
        let mut control = self.world.controls[self.own_host].borrow_mut();
        let length = control.file_lengths.entry(&file.name);
        length.synced = length.written;
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.current_fault()?;
        if fs::exists(Self::path(to)) {
            Self::sync_before_replace(&Self::path(to))?;
        }
        fs::rename(Self::path(from), Self::path(to))?;
        let mut control = self.world.controls[self.own_host].borrow_mut();
        if let Some(length) = control.file_lengths.0.remove(from) {
            control.file_lengths.0.insert(to.to_owned(), length);
        }
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.current_fault()?;
        fs::sync_dir("/")
    }
}
