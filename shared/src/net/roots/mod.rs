//! Files below configured roots, and nowhere else.
//!
//! A path is `ROOT/RELATIVE`: the name of a root, then a path below its directory. Invariants:
//!
//! * The kernel confines, not a string: each component is opened relative to the directory before it, by `openat2`
//!   with `RESOLVE_BENEATH | NO_MAGICLINKS | NO_SYMLINKS`, or by cap-std where the kernel is too old for that call.
//!   No symbolic link below a root is ever followed, not even one that stays inside.
//! * A file under its own name is whole: [`IncomingFile`] writes beside it, under a hidden name, and renames at the end.
//! * Everything here blocks on the disk: call it from a thread that may block.

mod incoming;
mod outgoing;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::fs::Dir;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use incoming::{IncomingFile, ReceivedFile};
pub use outgoing::{Chunk, OutgoingFile};

/// How much of a file one chunk carries, in bytes; the last one carries what is left.
pub const FILE_CHUNK_BYTES: usize = crate::proto::session::window::SENT_CHUNK_BYTES_MAX;
/// Longest path, in bytes, as PATH_MAX of Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// What went wrong with a file. Nothing is left half-written after any of these.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The text is not a path below a root.
    #[error(
        "{path:?} is not a path of the form ROOT/RELATIVE without `.` and `..`, such as \"shows/take1.csv\""
    )]
    BadPath {
        /// As it was given.
        path: String,
    },
    /// No root has that name.
    #[error("no root is called {root:?}; {known}")]
    UnknownRoot {
        /// The name that was given.
        root: String,
        /// The names that exist, as a sentence.
        known: String,
    },
    /// The path leads out of its root or through a symbolic link.
    #[error("{path}: leads out of its root or through a symbolic link; give the real path")]
    Outside {
        /// The path.
        path: String,
    },
    /// A part of the path does not exist.
    #[error("{path}: no such file")]
    NotFound {
        /// The path.
        path: String,
    },
    /// Something else than a regular file has that name.
    #[error("{path}: is not a regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// The disk has no room for it.
    #[error("{path}: the disk is full: {needed} bytes are needed, {free} are free")]
    Full {
        /// The path.
        path: String,
        /// Bytes that the file needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The sender sent more, less or other bytes than it announced.
    #[error("{path}: {what}; the file was not changed")]
    Mismatch {
        /// The path.
        path: String,
        /// The difference, as a sentence.
        what: String,
    },
    /// The file became shorter while it was read.
    #[error("{path}: changed while it was read; fetch it again")]
    Changed {
        /// The path.
        path: String,
    },
    /// The system refuses.
    #[error("{path}: cannot {doing}: {source}")]
    Io {
        /// The path.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the request itself was wrong, so that nothing was tried.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::BadPath { .. } | Self::UnknownRoot { .. } | Self::Outside { .. } => true,
            Self::NotFound { .. }
            | Self::NotAFile { .. }
            | Self::Full { .. }
            | Self::Mismatch { .. }
            | Self::Changed { .. }
            | Self::Io { .. } => false,
        }
    }

    /// What the system says of a file while `doing` something to it, such as `open it`.
    pub fn io(path: &str, doing: &'static str, error: impl Into<io::Error>) -> Self {
        let source = error.into();
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::LOOP | Errno::XDEV) => Self::Outside { path },
            Some(Errno::NOENT) => Self::NotFound { path },
            Some(Errno::ISDIR) => Self::NotAFile { path },
            _ => Self::Io { path, doing, source },
        }
    }
}

/// How a name is opened in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    /// The kernel refuses links and escapes (Linux 5.6 and later).
    Openat2,
    /// cap-std does, step by step.
    CapStd,
}

/// The directories that files may be written to and read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Roots {
    dirs: Arc<BTreeMap<String, PathBuf>>,
    opener: Opener,
}

impl Roots {
    /// Roots by name. The directories are opened when they are used, so that a disk may be mounted later.
    pub fn new(dirs: BTreeMap<String, PathBuf>) -> Self {
        Self {
            dirs: Arc::new(dirs),
            opener: Opener::detect(),
        }
    }

    /// Makes the directories that are missing. The report names each that is missing still, and why.
    pub fn create_missing(&self) -> Vec<(String, io::Error)> {
        self.dirs
            .iter()
            .filter_map(|(name, dir)| {
                std::fs::create_dir_all(dir)
                    .err()
                    .map(|error| (name.clone(), error))
            })
            .collect()
    }

    /// Each root's name and directory.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.dirs.iter().map(|(name, dir)| (name.as_str(), dir.as_path()))
    }

    /// Removes what crashed transfers left behind, except what a live process is writing. Returns how many files.
    pub fn sweep(&self) -> usize {
        self.dirs.values().map(|dir| sweep::sweep(dir)).sum()
    }

    /// The same in the roots themselves, and not below them.
    pub fn sweep_top_level(&self) -> usize {
        self.dirs.values().map(|dir| sweep::sweep_top_level(dir)).sum()
    }

    /// Opens a regular file below a root for reading.
    ///
    /// # Errors
    /// [`FileError`]: no such file, not a regular one, or not below the root.
    pub fn open(&self, path: &str) -> Result<File, FileError> {
        let (dir, name) = self.open_parent(path, false)?;
        let file = self
            .opener
            .read(dir.as_fd(), &name)
            .map_err(|e| FileError::io(path, "open it", e))?;
        let meta = file
            .metadata()
            .map_err(|e| FileError::io(path, "examine it", e))?;
        if !meta.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_owned(),
            });
        }
        Ok(file)
    }

    /// Opens the directory that holds `path`, and the path's last component.
    fn open_parent(&self, path: &str, create: bool) -> Result<(OwnedFd, String), FileError> {
        let RootedPath { root, dirs, name } = RootedPath::parse(path)?;
        let Some(top) = self.dirs.get(root) else {
            return Err(FileError::UnknownRoot {
                root: root.to_owned(),
                known: self.describe_known_roots(),
            });
        };
        // The root's own path comes from the owner's configuration and may contain links.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(top, flags, Mode::empty())
            .map_err(|e| FileError::io(path, "open the root's directory", e))?;
        for dir in dirs {
            at = match self.opener.dir(at.as_fd(), dir) {
                Err(Errno::NOENT) if create => make_dir(at.as_fd(), dir)
                    .and_then(|()| self.opener.dir(at.as_fd(), dir))
                    .map_err(|e| FileError::io(path, "make its directory", e))?,
                opened => opened.map_err(|e| FileError::io(path, "open its directory", e))?,
            };
        }
        Ok((at, name.to_owned()))
    }

    fn describe_known_roots(&self) -> String {
        if self.dirs.is_empty() {
            return "none is configured: set [files] roots".to_owned();
        }
        let names: Vec<&str> = self.dirs.keys().map(String::as_str).collect();
        format!("there are: {}", names.join(", "))
    }
}

fn make_dir(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        // Another transfer has made it meanwhile.
        Err(Errno::EXIST) => Ok(()),
        made => made.and_then(|()| rustix::fs::fsync(parent)),
    }
}

/// The parts of a path. That a component cannot hold `/` or NUL, or be `..`, makes each one a single step; that the
/// step stays inside is for the kernel to enforce.
struct RootedPath<'a> {
    root: &'a str,
    dirs: Vec<&'a str>,
    name: &'a str,
}

impl<'a> RootedPath<'a> {
    fn parse(path: &'a str) -> Result<Self, FileError> {
        let mut parts: Vec<&str> = path.split('/').collect();
        let sound = path.len() <= PATH_BYTES_MAX
            && parts
                .iter()
                .all(|part| !matches!(*part, "" | "." | "..") && !part.contains('\0'));
        match (sound, parts.pop()) {
            (true, Some(name)) if !parts.is_empty() => Ok(Self {
                root: parts.remove(0),
                dirs: parts,
                name,
            }),
            _ => Err(FileError::BadPath {
                path: path.chars().take(200).collect(),
            }),
        }
    }
}

impl Opener {
    fn detect() -> Self {
        let probe = openat2(
            rustix::fs::CWD,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        );
        match probe {
            Err(Errno::NOSYS) => Self::CapStd,
            _ => Self::Openat2,
        }
    }

    fn dir(self, parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        match self {
            Self::Openat2 => openat2(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()),
            Self::CapStd => {
                let parent = Self::confined(parent, name)?;
                let dir = parent.open_dir(name).map_err(errno)?;
                // cap-std's own handle is for paths only: it cannot be synced.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, ".", flags, Mode::empty())
            }
        }
    }

    fn read(self, parent: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
        match self {
            // NONBLOCK: opening a pipe that has no writer would wait for one.
            Self::Openat2 => {
                openat2(parent, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map(File::from)
            }
            Self::CapStd => {
                let parent = Self::confined(parent, name)?;
                if !parent.symlink_metadata(name).map_err(errno)?.is_file() {
                    return Err(Errno::ISDIR);
                }
                parent.open(name).map(cap_std::fs::File::into_std).map_err(errno)
            }
        }
    }

    fn create(self, parent: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
        match self {
            Self::Openat2 => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                openat2(parent, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
            }
            Self::CapStd => {
                let parent = Dir::from_std_file(File::from(parent.try_clone_to_owned().map_err(errno)?));
                let mut how = cap_std::fs::OpenOptions::new();
                how.write(true).create_new(true);
                let file = parent.open_with(name, &how).map_err(errno)?.into_std();
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600))?;
                Ok(file)
            }
        }
    }

    /// The directory for cap-std, once `name` in it is seen not to be a link. Losing a race here follows a link
    /// inside the directory at worst: cap-std itself never leaves it.
    fn confined(parent: BorrowedFd<'_>, name: &str) -> Result<Dir, Errno> {
        let parent = Dir::from_std_file(File::from(parent.try_clone_to_owned().map_err(errno)?));
        if parent.symlink_metadata(name).map_err(errno)?.is_symlink() {
            return Err(Errno::LOOP);
        }
        Ok(parent)
    }
}

fn openat2(parent: impl AsFd, name: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(parent, name, flags | OFlags::CLOEXEC, mode, resolve)
}

/// cap-std makes some errors itself, without a number: a path that leaves its directory.
fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::XDEV)
}
