//! Small files of the state directory: written so that a crash leaves the old file or the new one, never half of one.
//!
//! A file is written beside its target under a hidden name, flushed to the disk, renamed, and the directory is flushed:
//! only then has it a chance to survive a power cut. All calls block; on a runtime, call them from `spawn_blocking`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::random::{self, NoRandomness};
use crate::proto::hex;

/// Longest state file that is read, in bytes.
pub const STATE_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Mode of a file that holds a secret.
pub const MODE_SECRET: u32 = 0o600;
/// Mode of a file that holds none.
pub const MODE_PLAIN: u32 = 0o644;

const MODE_DIR: u32 = 0o700;

/// Why a state file could not be read or written. A file that was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The system refuses.
    #[error("cannot {doing} {path}: {fault}{advice}", path = path.display(), advice = advice(fault))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        fault: io::Error,
    },
    /// The content is not that of a state file.
    #[error(
        "{path} is longer than the {STATE_FILE_BYTES_MAX} bytes of any state file: it is not ours; move it away",
        path = path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// No directory can hold it.
    #[error("{path} names no file: give the path of a file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A new file could not be given a name of its own.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == ErrorKind::PermissionDenied {
        "; run as the user who owns the state directory, or choose another with --state-dir"
    } else if error.kind() == ErrorKind::ReadOnlyFilesystem {
        "; remount it writable, or choose another place with --state-dir"
    } else if error.kind() == ErrorKind::StorageFull {
        "; free some space on the disk"
    } else {
        ""
    }
}

/// Makes a state directory, and those above it, for its owner only; one that is there already stays as it is.
///
/// # Errors
/// [`StateFileError::Io`].
pub fn create_dir(path: &Path) -> Result<(), StateFileError> {
    let made = fs::DirBuilder::new().recursive(true).mode(MODE_DIR).create(path);
    made.map_err(io_error("create", path))
}

/// The file's content; `None` if there is no such file.
///
/// # Errors
/// [`StateFileError`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
    match File::open(path) {
        Ok(file) => read_open(&file, path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// The content of a file that is open already.
pub(super) fn read_open(file: &File, path: &Path) -> Result<Vec<u8>, StateFileError> {
    let mut bytes = Vec::new();
    file.take(STATE_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > STATE_FILE_BYTES_MAX {
        return Err(StateFileError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// Writes the file in one step, over what was there, with exactly this mode.
///
/// # Errors
/// [`StateFileError`]; then the old file is still there.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateFileError> {
    let temp = TempFile::write(path, bytes, mode)?;
    fs::rename(&temp.path, path).map_err(io_error("write", path))?;
    sync_dir(temp.dir)
}

/// Writes the file in one step if there is none; `Ok(false)` if there is one, which then stays.
///
/// # Errors
/// [`StateFileError`].
pub fn create_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, StateFileError> {
    let temp = TempFile::write(path, bytes, mode)?;
    // A hard link, unlike a rename, never replaces a file that another process has written meanwhile.
    match fs::hard_link(&temp.path, path) {
        Ok(()) => sync_dir(temp.dir).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        // FAT has no hard links; there a race between check and rename remains.
        Err(_) if matches!(path.try_exists(), Ok(false)) => {
            fs::rename(&temp.path, path).map_err(io_error("create", path))?;
            sync_dir(temp.dir).map(|()| true)
        }
        Err(error) => Err(io_error("create", path)(error)),
    }
}

/// A file under its hidden name; removed when dropped, if it is still there.
struct TempFile<'a> {
    path: PathBuf,
    dir: &'a Path,
}

impl<'a> TempFile<'a> {
    fn write(target: &'a Path, bytes: &[u8], mode: u32) -> Result<Self, StateFileError> {
        let not_a_file = || StateFileError::NotAFile {
            path: target.to_owned(),
        };
        let name = target.file_name().ok_or_else(not_a_file)?;
        let dir = match target.parent().ok_or_else(not_a_file)? {
            here if here.as_os_str().is_empty() => Path::new("."),
            dir => dir,
        };
        let tail = hex::encode(&random::bytes::<8>()?);
        let path = dir.join(format!(".{}.{tail}.tmp", name.to_string_lossy()));

        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(io_error("write", target))?;
        let temp = Self { path, dir };
        // The mode at creation is subject to the umask; this one is not.
        file.set_permissions(fs::Permissions::from_mode(mode))
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.sync_all())
            .map_err(io_error("write", target))?;
        Ok(temp)
    }
}

impl Drop for TempFile<'_> {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and a leftover does no harm.
        fs::remove_file(&self.path).ok();
    }
}

fn sync_dir(dir: &Path) -> Result<(), StateFileError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("flush", dir))
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    let path = path.to_owned();
    move |fault| StateFileError::Io { doing, path, fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").permissions().mode() & 0o777
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn write_atomic_sets_content_and_mode_without_leftovers() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fleet.json");
        assert_eq!(read(&path).expect("no file"), None);
        for (content, mode) in [("one", MODE_PLAIN), ("two", MODE_SECRET), ("", 0o666)] {
            write_atomic(&path, content.as_bytes(), mode).expect("written");
            assert_eq!(read(&path).expect("a file").as_deref(), Some(content.as_bytes()));
            assert_eq!(mode_of(&path), mode);
        }
        assert_eq!(names(dir.path()), ["fleet.json"]);
    }

    #[test]
    fn create_atomic_never_replaces_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("identity.key");
        assert!(create_atomic(&path, b"first", MODE_SECRET).expect("room"));
        assert!(!create_atomic(&path, b"second", MODE_SECRET).expect("room"));
        assert_eq!(read(&path).expect("a file").as_deref(), Some(&b"first"[..]));
        assert_eq!(names(dir.path()), ["identity.key"]);
    }

    #[test]
    fn failed_state_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("taken");
        fs::create_dir(&target).expect("a directory in the way");
        fs::write(target.join("inside"), "").expect("a file in it");
        let error = write_atomic(&target, b"x", MODE_PLAIN).expect_err("a directory is in the way");
        assert!(error.to_string().starts_with("cannot write"), "{error}");
        assert_eq!(names(dir.path()), ["taken"]);

        let nowhere = dir.path().join("no/such/dir/file");
        assert!(matches!(
            write_atomic(&nowhere, b"x", MODE_PLAIN),
            Err(StateFileError::Io { .. })
        ));
        assert!(matches!(
            write_atomic(Path::new("/"), b"x", MODE_PLAIN),
            Err(StateFileError::NotAFile { .. })
        ));
    }

    #[test]
    fn common_io_errors_come_with_advice() {
        for (kind, advice) in [
            (ErrorKind::ReadOnlyFilesystem, "remount"),
            (ErrorKind::StorageFull, "free some space"),
            (ErrorKind::PermissionDenied, "--state-dir"),
        ] {
            let error = io_error("write", Path::new("/state/x"))(kind.into()).to_string();
            assert!(error.contains("/state/x") && error.contains(advice), "{error}");
        }
    }

    #[test]
    fn oversized_state_file_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("huge");
        let file = File::create(&path).expect("a file");
        file.set_len(STATE_FILE_BYTES_MAX + 1).expect("a sparse file");
        assert!(matches!(read(&path), Err(StateFileError::TooLong { .. })));
    }

    #[test]
    fn state_directory_is_accessible_to_its_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b");
        create_dir(&path).expect("made");
        create_dir(&path).expect("there already");
        assert_eq!(mode_of(&path), 0o700);
    }
}
