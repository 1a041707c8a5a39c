//! The state directory: what the node stores between runs. One daemon locks it at a time.
//!
//! A directory that is not writable (read-only card, full disk) does not stop the daemon: it runs with what it can
//! read, and reports the problem. Writers check [`StateDir::problem`] first, or handle the error.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::bail;
use rustix::fs::{Access, FlockOperation};
use rustix::io::Errno;
use swarm_shared::proto::id::NodeName;

use crate::config;

const SYSTEM_DIR: &str = "/var/lib/swarm-node";
const LOCK: &str = "lock";
const NAME: &str = "name";
const SOCKET: &str = "status.sock";
const PLUGIN_SOCKET: &str = "plugin.sock";

/// An open state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    problem: Option<String>,
    /// Lock on the directory for the life of the daemon; absent if it is not writable.
    _lock: Option<File>,
}

impl StateDir {
    /// The default directory: `$STATE_DIRECTORY` from systemd; `/var/lib/swarm-node` for root and for users who may
    /// write there; otherwise the user's own state directory.
    pub fn default_path() -> PathBuf {
        if let Some(dir) = std::env::var_os("STATE_DIRECTORY") {
            return dir.into();
        }
        let system = Path::new(SYSTEM_DIR);
        if rustix::process::geteuid().is_root() || rustix::fs::access(system, Access::WRITE_OK).is_ok() {
            return system.to_owned();
        }
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
        std::env::var_os("XDG_STATE_HOME")
            .map_or_else(home, PathBuf::from)
            .join("swarm-node")
    }

    /// Opens the directory, creates it if it is missing, and locks it.
    ///
    /// # Errors
    /// Another daemon has locked it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
        let lock = made.and_then(|()| {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(path.join(LOCK))
        });
        let mut state = Self {
            path: path.to_owned(),
            problem: None,
            _lock: None,
        };
        match lock {
            Ok(file) => match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => bail!(
                    "another swarm-node runs with the state directory {}: stop it, or choose another --state-dir",
                    path.display()
                ),
                // The file system has no locks: the daemon runs without one.
                _ => state._lock = Some(file),
            },
            Err(error) => state.problem = Some(error.to_string()),
        }
        if state.problem.is_none() {
            state.problem = state.probe().err().map(|error| error.to_string());
        }
        Ok(state)
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it was not writable when it was opened; `None` if it was.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Tries to write to it, now.
    ///
    /// # Errors
    /// The error of the system.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.path.join(".probe");
        let written = std::fs::write(&path, [0; 4096]);
        let _not_there = std::fs::remove_file(&path);
        written
    }

    /// Path of the status socket.
    pub fn socket(path: &Path) -> PathBuf {
        path.join(SOCKET)
    }

    /// Path of the socket for plug-ins.
    pub fn plugin_socket(path: &Path) -> PathBuf {
        path.join(PLUGIN_SOCKET)
    }

    /// The name that the `id` action has set.
    pub fn name(&self) -> Option<NodeName> {
        let text = std::fs::read_to_string(self.path.join(NAME)).ok()?;
        match NodeName::parse(text.trim()) {
            Ok(name) => Some(name),
            Err(error) => {
                tracing::warn!(%error, "Stored name is not valid and is ignored");
                None
            }
        }
    }

    /// Stores a name.
    ///
    /// # Errors
    /// [`config::EditError::Io`] if it cannot be written.
    pub fn set_name(&self, name: &NodeName) -> Result<(), config::EditError> {
        config::write_file(&self.path.join(NAME), &format!("{name}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_locks_the_state_dir_and_its_name_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path).expect("made");
        assert_eq!((state.problem(), state.name()), (None, None));
        let error = StateDir::open(&path).expect_err("held").to_string();
        assert!(error.contains("another swarm-node"), "{error}");
        state.set_name(&NodeName::from_host("x7")).expect("written");
        drop(state);
        let again = StateDir::open(&path).expect("free");
        assert_eq!(again.name().expect("a name").as_str(), "x7");
        std::fs::write(path.join(NAME), "not a name").expect("written");
        assert_eq!(again.name(), None);
    }

    #[test]
    fn an_unwritable_state_dir_is_reported_and_tolerated() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("written");
        let state = StateDir::open(&file.join("below")).expect("runs on");
        assert!(state.problem().is_some());
        assert!(state.set_name(&NodeName::from_host("x")).is_err());
    }
}
