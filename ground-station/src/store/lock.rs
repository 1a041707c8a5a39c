//! One process owns a state directory: `flock` on the file `lock` in it. The kernel releases it when the process ends,
//! however it ends. The file names the holder, for people only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Name of the file in the state directory.
pub const LOCK_FILE: &str = "lock";
/// Longest note of a holder that is read, in bytes.
const HOLDER_BYTES_MAX: u64 = 256;

/// The state directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process owns it.
    #[error("{state_dir:?} is in use by {holder}; wait for it to end, or use another --state-dir")]
    Held {
        /// The directory.
        state_dir: PathBuf,
        /// The holder's program and process id.
        holder: String,
    },
    /// The system reports an error.
    #[error("cannot use {path:?}: {error}; check that it is yours, or use another --state-dir")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// The lock of a state directory, until dropped.
#[derive(Debug)]
pub struct StateLock {
    state_dir: PathBuf,
    /// Closing it releases the lock.
    _file: File,
}

impl StateLock {
    /// Makes the state directory (mode 0700) if it is absent, and takes the lock if it is free. `what` is written into
    /// the file for others to see, with the process id.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it; [`LockError::Io`].
    pub fn try_acquire(state_dir: &Path, what: &str) -> Result<Self, LockError> {
        let io = |path: &Path, error: io::Error| LockError::Io {
            path: path.to_owned(),
            error,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|error| io(state_dir, error))?;
        let path = state_dir.join(LOCK_FILE);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io(&path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // For people only: it is empty while the holder writes it.
                (&file).take(HOLDER_BYTES_MAX).read_to_string(&mut holder).ok();
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    text => text.to_owned(),
                };
                return Err(LockError::Held {
                    state_dir: state_dir.to_owned(),
                    holder,
                });
            }
            Err(errno) => return Err(io(&path, errno.into())),
        }
        let note = format!("{what} (pid {})\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(note.as_bytes()))
            .map_err(|error| io(&path, error))?;
        Ok(Self {
            state_dir: state_dir.to_owned(),
            _file: file,
        })
    }

    /// The directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}
