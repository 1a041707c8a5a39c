//! A file on its way in: hidden until it is whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;

use super::{FileError, Roots};
use crate::proto::hex;

/// How much is written between two requests to put it on the disk, in bytes: an SD card that has to take a whole
/// film at the end would stall every other program for minutes.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;
/// How far writing may run ahead of the disk, in bytes.
const UNSYNCED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest file name, in bytes, as NAME_MAX of Linux.
const NAME_BYTES_MAX: usize = 255;

/// A file that is whole, on the disk, and visible under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedFile {
    /// As it was asked for: `ROOT/RELATIVE`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of the whole content.
    pub sha256: [u8; 32],
}

/// A file that is being received. Dropping it removes what was written.
pub struct IncomingFile {
    path: String,
    dir: OwnedFd,
    name: String,
    temp: TempFile,
    file: File,
    hash: digest::Context,
    expected_size: Option<u64>,
    written: u64,
    unsynced: u64,
    sync_thread: Option<SyncThread>,
}

impl std::fmt::Debug for IncomingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Incoming({} {}/{:?})",
            self.path, self.written, self.expected_size
        )
    }
}

impl IncomingFile {
    /// Opens a hidden file beside the target, making directories that are missing. `size` is what the sender has
    /// announced, if it has.
    ///
    /// # Errors
    /// [`FileError`]; nothing is left behind but directories.
    pub fn create(roots: &Roots, path: &str, size: impl Into<Option<u64>>) -> Result<Self, FileError> {
        let expected_size = size.into();
        let size = expected_size.unwrap_or_default();
        let (dir, name) = roots.open_parent(path, true)?;
        let free =
            rustix::fs::fstatvfs(&dir).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if size > free {
            return Err(FileError::Full {
                path: path.to_owned(),
                needed: size,
                free,
            });
        }
        let temp_name = temp_name(&name).map_err(|e| FileError::io(path, "name a temporary file", e))?;
        let file = roots
            .opener
            .create(std::os::fd::AsFd::as_fd(&dir), &temp_name)
            .map_err(|e| FileError::io(path, "create a file beside it", e))?;
        let temp = TempFile {
            dir: dir
                .try_clone()
                .map_err(|e| FileError::io(path, "keep its directory open", e))?,
            name: Some(temp_name),
        };
        // A sweep leaves locked files alone.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| FileError::io(path, "lock a file beside it", e))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
            name,
            temp,
            file,
            hash: digest::Context::new(&digest::SHA256),
            expected_size,
            written: 0,
            unsynced: 0,
            sync_thread: None,
        })
    }

    /// The path that was asked for.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How much has been written, in bytes: where the next chunk belongs.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// [`FileError`]; give the transfer up.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let after = self.written.saturating_add(bytes.len() as u64);
        if offset != self.written {
            let what = format!(
                "a chunk for byte {offset} came where byte {} was due",
                self.written
            );
            return Err(self.mismatch(what));
        }
        if let Some(expected_size) = self.expected_size.filter(|announced| after > *announced) {
            return Err(self.mismatch(format!("more came than the {expected_size} bytes announced")));
        }
        self.file
            .write_all(bytes)
            .map_err(|e| self.disk_error("write to it", e))?;
        self.hash.update(bytes);
        self.written = after;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.sync_in_background()
                .map_err(|e| self.disk_error("sync it", e))?;
        }
        Ok(())
    }

    /// Verifies size and SHA-256 against those of the sender, and makes the file visible under its name.
    ///
    /// # Errors
    /// [`FileError`]; a file that was there before under that name is unchanged.
    pub fn finish(mut self, size: u64, sha256: [u8; 32], mode: u32) -> Result<ReceivedFile, FileError> {
        let expected_size = self.expected_size.unwrap_or(size);
        if self.written != expected_size || size != expected_size {
            let written = self.written;
            return Err(self.mismatch(format!("{written} bytes came, {expected_size} were announced")));
        }
        let digest = self.hash.clone().finish();
        if digest.as_ref() != sha256 {
            let what = format!(
                "its SHA-256 is {}, the sender's {}",
                hex::encode(digest.as_ref()),
                hex::encode(&sha256)
            );
            return Err(self.mismatch(what));
        }
        if let Some(sync_thread) = self.sync_thread.take() {
            sync_thread.join().map_err(|e| self.disk_error("sync it", e))?;
        }
        // Nothing that arrives may be setuid, setgid or sticky.
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o777))
            .map_err(|e| self.disk_error("set its mode", e.into()))?;
        self.file.sync_all().map_err(|e| self.disk_error("sync it", e))?;
        self.temp
            .rename(&self.dir, &self.name)
            .map_err(|e| self.disk_error("give it its name", e.into()))?;
        rustix::fs::fsync(&self.dir).map_err(|e| self.disk_error("sync its directory", e.into()))?;
        Ok(ReceivedFile {
            path: std::mem::take(&mut self.path),
            size: self.written,
            sha256,
        })
    }

    /// Requests a sync by the sync thread, so that writing and hashing continue meanwhile; waits only when the thread is
    /// too far behind.
    fn sync_in_background(&mut self) -> io::Result<()> {
        let sync_thread = match self.sync_thread.take() {
            Some(flusher) => flusher,
            None => SyncThread::start(&self.file)?,
        };
        if sync_thread.request(self.unsynced >= UNSYNCED_BYTES_MAX) {
            self.unsynced = 0;
        } else if sync_thread.thread.is_finished() {
            return sync_thread.join();
        }
        self.sync_thread = Some(sync_thread);
        Ok(())
    }

    fn mismatch(&self, what: String) -> FileError {
        FileError::Mismatch {
            path: self.path.clone(),
            what,
        }
    }

    fn disk_error(&self, doing: &'static str, error: io::Error) -> FileError {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => FileError::Full {
                path: self.path.clone(),
                needed: self.expected_size.unwrap_or(self.written),
                free: rustix::fs::fstatvfs(&self.dir)
                    .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
                    .saturating_add(self.written),
            },
            _ => FileError::io(&self.path, doing, error),
        }
    }
}

/// The hidden file's name, and its removal.
struct TempFile {
    dir: OwnedFd,
    name: Option<String>,
}

impl TempFile {
    fn rename(&mut self, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
        if let Some(temp) = &self.name {
            rustix::fs::renameat(&self.dir, temp, dir, name)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())
        {
            tracing::warn!(%error, name, "a temporary file could not be removed");
        }
    }
}

/// `.NAME.PID-RANDOM.part`, cut to what a directory holds.
fn temp_name(name: &str) -> io::Result<String> {
    let mut random = [0; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_unspecified| io::Error::other("the system gives no random numbers"))?;
    let tail = format!(".{}-{}.part", std::process::id(), hex::encode(&random));
    let mut keep = name.len().min(NAME_BYTES_MAX - 1 - tail.len());
    while !name.is_char_boundary(keep) {
        keep -= 1;
    }
    Ok(format!(".{}{tail}", &name[..keep]))
}

/// A thread that syncs one file on request.
struct SyncThread {
    requests: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl SyncThread {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (ask, asked) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("file-sync".to_owned())
            .spawn(move || {
                for () in asked {
                    file.sync_data()?;
                }
                Ok(())
            })?;
        Ok(Self {
            requests: ask,
            thread,
        })
    }

    /// Whether the request was taken.
    fn request(&self, wait: bool) -> bool {
        match self.requests.try_send(()) {
            Ok(()) => true,
            Err(TrySendError::Full(())) => wait && self.requests.send(()).is_ok(),
            Err(TrySendError::Disconnected(())) => false,
        }
    }

    fn join(self) -> io::Result<()> {
        drop(self.requests);
        self.thread
            .join()
            .unwrap_or_else(|_panic| Err(io::Error::other("internal error: the sync thread panicked")))
    }
}
