//! What a journal asks of a disk, and the disk of this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::net::state_file::MODE_SECRET;

/// One directory of files that only grow. Few and plain calls, so that a test can fail each of them and a simulator
/// can put its own disk below. Every call blocks.
pub trait Disk {
    /// An open file.
    type File;

    /// The first `max` bytes of a file; `None` if there is none.
    ///
    /// # Errors
    /// The system's error.
    fn read(&mut self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>>;

    /// Makes an empty file. What had this name loses it and is not written over.
    ///
    /// # Errors
    /// The system's error.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;

    /// Opens a file for appending.
    ///
    /// # Errors
    /// The system's error. The file must exist.
    fn open(&mut self, name: &str) -> io::Result<Self::File>;

    /// Writes all of it at the end of the file.
    ///
    /// # Errors
    /// The system's error; any part of it may have been written.
    fn append(&mut self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Waits until the file's bytes would survive a power cut; its name is another matter.
    ///
    /// # Errors
    /// The system's error. What was written since the last success may be lost even if a later call succeeds.
    fn sync(&mut self, file: &mut Self::File) -> io::Result<()>;

    /// Gives a file another name, in one step, in place of what had it.
    ///
    /// # Errors
    /// The system's error.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Waits until the names would survive a power cut.
    ///
    /// # Errors
    /// The system's error.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// A directory of this machine; its files have mode 0600.
#[derive(Debug)]
pub struct StdDisk {
    dir: PathBuf,
}

impl StdDisk {
    /// The directory; it must be there when it is used.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl Disk for StdDisk {
    type File = File;

    fn read(&mut self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.dir.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(MODE_SECRET)
            .open(path)
    }

    fn open(&mut self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).open(self.dir.join(name))
    }

    fn append(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&mut self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}
