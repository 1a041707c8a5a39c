//! A disk in memory that fails and loses what a real one may: for tests and simulators.
//!
//! Bytes are safe once their file was flushed, names once the directory was. A restart chooses what becomes of the rest.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, MutexGuard};

use super::Disk;
use crate::net::sync::Mutex;

/// What one call does instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It fails with this error; of a write only the first half is done, and what a flush did not flush is lost though
    /// it still reads.
    Error(ErrorKind),
    /// The machine stops in the midst of it: every later call fails too, until the restart.
    Crash,
}

/// What becomes of bytes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They stay: the process died, not the machine.
    None,
    /// They are lost.
    All,
    /// The first half of each file's stays.
    Half,
    /// The file has its length, with zeros in it.
    Zeros,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What a reader sees.
    live: Vec<u8>,
    /// What a flush would put on the disk.
    dirty: Vec<u8>,
    /// What is on the disk.
    durable: Vec<u8>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, usize),
    Unset(String),
    /// From, to, and the file that has both names for a moment.
    Rename(String, String, usize),
}

type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug, Default)]
struct DiskState {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    changes: Vec<NameChange>,
    bytes_free: Option<usize>,
    calls: usize,
    planned_failures: BTreeMap<usize, Failure>,
    crashed: bool,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<DiskState>>);

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile(usize);

impl MemoryDisk {
    fn inner(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock()
    }

    /// How many calls were made, those that failed included.
    pub fn calls(&self) -> usize {
        self.inner().calls
    }

    /// Has the call with this number, from 0, fail.
    pub fn fail_at(&self, call: usize, failure: Failure) {
        self.inner().planned_failures.insert(call, failure);
    }

    /// Free bytes; `None` for no limit.
    pub fn set_free_bytes(&self, bytes: Option<usize>) {
        self.inner().bytes_free = bytes;
    }

    /// What a file holds now; `None` if there is none.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.inner();
        Some(inner.inodes[*inner.names.get(name)?].live.clone())
    }

    /// Puts a file there, safely.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut inner = self.inner();
        let inode = inner.inodes.len();
        inner.inodes.push(Inode {
            live: bytes.to_vec(),
            dirty: bytes.to_vec(),
            durable: bytes.to_vec(),
        });
        inner.names.insert(name.to_owned(), inode);
        inner.durable_names.insert(name.to_owned(), inode);
    }

    /// How many changes of names are not flushed.
    pub fn unsynced_name_changes(&self) -> usize {
        self.inner().changes.len()
    }

    /// Another disk: this one after a restart. Of the changes of names that were not flushed those stay whose bit in
    /// `names_kept` is set. Nothing fails there before the next [`MemoryDisk::fail_at`].
    #[must_use]
    pub fn restarted(&self, loss: Loss, names_kept: u32) -> Self {
        let mut inner = self.inner().clone();
        if loss != Loss::None {
            for inode in &mut inner.inodes {
                let safe = inode.durable.len();
                let kept = match loss {
                    Loss::None | Loss::Zeros => inode.dirty.len(),
                    Loss::All => safe,
                    Loss::Half => safe + (inode.dirty.len() - safe) / 2,
                };
                inode.dirty.truncate(kept);
                if loss == Loss::Zeros {
                    inode.dirty[safe..].fill(0);
                }
                inode.live = inode.dirty.clone();
                inode.durable = inode.dirty.clone();
            }
            inner.names = inner.durable_names.clone();
            for (bit, change) in inner.changes.iter().enumerate() {
                if names_kept >> bit & 1 == 1 {
                    change.apply(&mut inner.names);
                }
            }
            inner.durable_names = inner.names.clone();
            inner.changes.clear();
        }
        inner.planned_failures.clear();
        inner.calls = 0;
        inner.crashed = false;
        Self(Arc::new(Mutex::new(inner)))
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Unset(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, inode) => {
                names.retain(|name, held| name != from || held != inode);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

impl DiskState {
    /// Counts a call; gives what it is to do instead.
    fn begin_call(&mut self) -> io::Result<Option<Failure>> {
        if self.crashed {
            return Err(crashed());
        }
        let failure = self.planned_failures.remove(&self.calls);
        self.calls += 1;
        self.crashed = failure == Some(Failure::Crash);
        Ok(failure)
    }

    fn apply_change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

fn crashed() -> io::Error {
    io::Error::other("the machine has stopped")
}

fn injected_error(failure: Failure) -> io::Error {
    match failure {
        Failure::Error(kind) => kind.into(),
        Failure::Crash => crashed(),
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn read(&mut self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        let mut inner = self.inner();
        if let Some(failure) = inner.begin_call()? {
            return Err(injected_error(failure));
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Ok(inner.names.get(name).map(|inode| {
            let live = &inner.inodes[*inode].live;
            live[..live.len().min(max)].to_vec()
        }))
    }

    fn create(&mut self, name: &str) -> io::Result<MemoryFile> {
        let mut inner = self.inner();
        let failure = inner.begin_call()?;
        if let Some(Failure::Error(kind)) = failure {
            return Err(kind.into());
        }
        if inner.names.contains_key(name) {
            inner.apply_change(NameChange::Unset(name.to_owned()));
        }
        let inode = inner.inodes.len();
        inner.inodes.push(Inode::default());
        inner.apply_change(NameChange::Set(name.to_owned(), inode));
        failure.map_or(Ok(MemoryFile(inode)), |failure| Err(injected_error(failure)))
    }

    fn open(&mut self, name: &str) -> io::Result<MemoryFile> {
        let mut inner = self.inner();
        if let Some(failure) = inner.begin_call()? {
            return Err(injected_error(failure));
        }
        let inode = inner.names.get(name).copied().map(MemoryFile);
        inode.ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn append(&mut self, file: &mut MemoryFile, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let mut failure = inner.begin_call()?;
        let mut written = match failure {
            Some(Failure::Error(_)) => &bytes[..bytes.len() / 2],
            // Any part of it may be lost at the restart.
            Some(Failure::Crash) | None => bytes,
        };
        if let Some(room) = inner.bytes_free.as_mut() {
            if written.len() > *room {
                written = &written[..*room];
                failure = failure.or(Some(Failure::Error(ErrorKind::StorageFull)));
            }
            *room -= written.len();
        }
        let inode = &mut inner.inodes[file.0];
        inode.live.extend(written);
        inode.dirty.extend(written);
        failure.map_or(Ok(()), |failure| Err(injected_error(failure)))
    }

    fn sync(&mut self, file: &mut MemoryFile) -> io::Result<()> {
        let mut inner = self.inner();
        let failure = inner.begin_call()?;
        let inode = &mut inner.inodes[file.0];
        let safe = inode.durable.len();
        match failure {
            Some(failure @ Failure::Error(_)) => {
                inode.dirty[safe..].fill(0);
                Err(injected_error(failure))
            }
            Some(Failure::Crash) => Err(crashed()),
            None => {
                inode.durable = inode.dirty.clone();
                Ok(())
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let failure = inner.begin_call()?;
        if let Some(Failure::Error(kind)) = failure {
            return Err(kind.into());
        }
        let Some(inode) = inner.names.get(from).copied() else {
            return Err(ErrorKind::NotFound.into());
        };
        inner.apply_change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        failure.map_or(Ok(()), |failure| Err(injected_error(failure)))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut inner = self.inner();
        if let Some(failure) = inner.begin_call()? {
            return Err(injected_error(failure));
        }
        inner.durable_names = inner.names.clone();
        inner.changes.clear();
        Ok(())
    }
}
