//! The journal's disk: turmoil's, with the troubles of a real one.
//!
//! turmoil loses at a crash what was not synced, whole or from some block on, and names that their directory was not
//! synced for. Full disks, failing ones and garbage behind the end are added here.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use swarm_shared::net::journal::{Disk, JOURNAL_FILE, JournalFile};
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::delivery::record::Record;
use turmoil::fs::shim::std::fs::{self, File, OpenOptions};

use super::fault::Fault;
use super::ground_truth::Invariant;
use super::world::{Died, DiskTrouble, HostId, Moment, World};

/// How long a file is, as far as this process knows.
#[derive(Clone, Copy, Debug, Default)]
struct Length {
    synced: u64,
    written: u64,
}

/// What is known of the files of one host; it outlives the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Lengths(BTreeMap<String, Length>);

impl Lengths {
    fn of(&mut self, name: &str) -> &mut Length {
        self.0.entry(name.to_owned()).or_default()
    }
}

struct SimDisk {
    world: Rc<World>,
    me: HostId,
}

struct SimFile {
    file: File,
    name: String,
}

/// What came of an append.
#[derive(Debug)]
pub(super) enum Written {
    Yes,
    No(String),
}

/// The product's journal on that disk.
pub(super) struct Journal {
    file: JournalFile<SimDisk>,
    world: Rc<World>,
    me: HostId,
}

impl Journal {
    /// Reads what is there.
    pub(super) fn open(world: &Rc<World>, me: HostId) -> Result<(Self, Ledger), Died> {
        let mut disk = SimDisk {
            world: Rc::clone(world),
            me,
        };
        disk.look_around();
        let (file, recovery) = JournalFile::open(disk);
        if world.is_dead(me) {
            return Err(Died);
        }
        world.note(
            me,
            format_args!(
                "journal: {} records, {} bytes dropped, damage {:?}, fault {}",
                recovery.records,
                recovery.dropped_bytes,
                recovery.damage,
                recovery.fault.is_some()
            ),
        );
        let ledger = file.ledger().clone();
        let journal = Self {
            file,
            world: Rc::clone(world),
            me,
        };
        Ok((journal, ledger))
    }

    pub(super) fn append(&mut self, records: &[Record]) -> Result<Written, Died> {
        let result = self.file.append(records);
        if self.world.is_dead(self.me) {
            return Err(Died);
        }
        Ok(match result {
            Ok(()) => Written::Yes,
            Err(fault) => Written::No(fault.to_string()),
        })
    }
}

impl SimDisk {
    fn path(name: &str) -> PathBuf {
        PathBuf::from("/").join(name)
    }

    /// turmoil takes a file for its name: what was written to the old one and not synced would go to the new one of
    /// that name. A real system, too, may write it at any time.
    fn forget(path: &Path) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.sync_data()
    }

    /// Says what the last crash has cost, and puts the garbage there that was ordered.
    fn look_around(&mut self) {
        let Ok(bytes) = fs::read(Self::path(JOURNAL_FILE)) else {
            return;
        };
        let mut control = self.world.controls[self.me].borrow_mut();
        let length = *control.lengths.of(JOURNAL_FILE);
        let found = bytes.len() as u64;
        if found < length.synced {
            let what = format!(
                "{} had synced {} bytes of its journal, and {found} are left",
                self.world.hosts[self.me].name, length.synced
            );
            // Only a name that was not synced can do that, and then more than this is lost.
            self.world.note(self.me, format_args!("{what}"));
        }
        if length.written > length.synced {
            if found <= length.synced {
                self.world.count(Fault::LostUnsynced);
            } else if found < length.written {
                self.world.count(Fault::TornWrite);
            }
        }
        control.lengths.0.clear();
        *control.lengths.of(JOURNAL_FILE) = Length {
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
                Ok(()) => self.world.count(Fault::CorruptTail),
                Err(error) => self
                    .world
                    .truth
                    .borrow_mut()
                    .break_promise(Invariant::Progress, format!("the simulated disk failed: {error}")),
            }
        }
    }

    /// Whether the process still lives; and whether the disk takes anything now.
    fn trouble(&self) -> io::Result<Option<DiskTrouble>> {
        let control = self.world.controls[self.me].borrow();
        if control.dead {
            return Err(io::Error::other("the process is dead"));
        }
        let now = self.world.now_ms();
        Ok(control
            .disk
            .filter(|(_, until)| now < *until)
            .map(|(trouble, _)| trouble))
    }

    fn fail(&self, trouble: DiskTrouble) -> io::Error {
        let (fault, kind) = match trouble {
            DiskTrouble::NoSpace => (Fault::NoSpace, ErrorKind::StorageFull),
            DiskTrouble::IoError => (Fault::IoError, ErrorKind::Other),
        };
        self.world.count(fault);
        kind.into()
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn read(&mut self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        self.trouble()?;
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
        if let Some(trouble) = self.trouble()? {
            return Err(self.fail(trouble));
        }
        let path = Self::path(name);
        if fs::exists(&path) {
            Self::forget(&path)?;
            fs::remove_file(&path)?;
            fs::sync_dir("/")?;
        }
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        *self.world.controls[self.me].borrow_mut().lengths.of(name) = Length::default();
        Ok(SimFile {
            file,
            name: name.to_owned(),
        })
    }

    fn open(&mut self, name: &str) -> io::Result<SimFile> {
        self.trouble()?;
        let file = OpenOptions::new().append(true).open(Self::path(name))?;
        Ok(SimFile {
            file,
            name: name.to_owned(),
        })
    }

    fn append(&mut self, file: &mut SimFile, bytes: &[u8]) -> io::Result<()> {
        let trouble = self.trouble()?;
        // What does not fit is cut off in the middle.
        let taken = match trouble {
            Some(DiskTrouble::NoSpace) => bytes.len() / 2,
            Some(DiskTrouble::IoError) | None => bytes.len(),
        };
        file.file.write_all(&bytes[..taken])?;
        let mut control = self.world.controls[self.me].borrow_mut();
        control.lengths.of(&file.name).written += taken as u64;
        drop(control);
        if trouble == Some(DiskTrouble::NoSpace) {
            return Err(self.fail(DiskTrouble::NoSpace));
        }
        self.world
            .pass(self.me, Moment::InJournal)
            .map_err(|Died| io::Error::other("the process is dead"))
    }

    fn sync(&mut self, file: &mut SimFile) -> io::Result<()> {
        if let Some(trouble) = self.trouble()? {
            return Err(self.fail(trouble));
        }
        file.file.sync_data()?;
        let mut control = self.world.controls[self.me].borrow_mut();
        let length = control.lengths.of(&file.name);
        length.synced = length.written;
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.trouble()?;
        if fs::exists(Self::path(to)) {
            Self::forget(&Self::path(to))?;
        }
        fs::rename(Self::path(from), Self::path(to))?;
        let mut control = self.world.controls[self.me].borrow_mut();
        if let Some(length) = control.lengths.0.remove(from) {
            control.lengths.0.insert(to.to_owned(), length);
        }
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.trouble()?;
        fs::sync_dir("/")
    }
}
