//! A file on its way out.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bytes::Bytes;
use ring::digest;

use super::{FILE_CHUNK_BYTES, FileError, Roots};

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it belongs, in bytes from the start.
    pub offset: u64,
    /// At most [`FILE_CHUNK_BYTES`].
    pub bytes: Bytes,
}

/// A regular file that is being sent: its first [`OutgoingFile::size`] bytes, as they were when it was opened or later.
pub struct OutgoingFile {
    path: String,
    file: File,
    hash: digest::Context,
    size: u64,
    mode: u32,
    offset: u64,
}

impl std::fmt::Debug for OutgoingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({} {}/{})", self.path, self.offset, self.size)
    }
}

impl OutgoingFile {
    /// Opens a file below a root.
    ///
    /// # Errors
    /// [`FileError`]: no such file, not a regular one, or not below the root.
    pub fn open(roots: &Roots, path: &str) -> Result<Self, FileError> {
        Self::from_file(roots.open(path)?, path)
    }

    /// A file that is open already: one that the operator named on this machine.
    ///
    /// # Errors
    /// [`FileError::NotAFile`], or what the system says.
    pub fn from_file(file: File, path: &str) -> Result<Self, FileError> {
        let meta = file
            .metadata()
            .map_err(|e| FileError::io(path, "examine it", e))?;
        if !meta.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            hash: digest::Context::new(&digest::SHA256),
            size: meta.size(),
            mode: meta.permissions().mode() & 0o777,
            offset: 0,
        })
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Permission bits, without setuid, setgid and sticky.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// The next part, of at most `max_bytes` bytes and no more than [`FILE_CHUNK_BYTES`]; `None` after the last.
    ///
    /// # Errors
    /// [`FileError::Changed`] if the file became shorter, or what the system says.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Chunk>, FileError> {
        let left = self.size - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let most = max_bytes.clamp(1, FILE_CHUNK_BYTES);
        let want = left.min(most as u64);
        let mut bytes = Vec::with_capacity(most.min(usize::try_from(left).unwrap_or(usize::MAX)));
        (&self.file)
            .take(want)
            .read_to_end(&mut bytes)
            .map_err(|e| FileError::io(&self.path, "read it", e))?;
        if bytes.len() as u64 != want {
            return Err(FileError::Changed {
                path: self.path.clone(),
            });
        }
        self.hash.update(&bytes);
        let offset = self.offset;
        self.offset += want;
        Ok(Some(Chunk {
            offset,
            bytes: bytes.into(),
        }))
    }

    /// SHA-256 of what [`Self::next_chunk`] gave.
    pub fn sha256(self) -> [u8; 32] {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.hash.finish().as_ref());
        sha256
    }
}
