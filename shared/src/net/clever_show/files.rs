//! Files that a peer pushes or requests, confined to configured roots. These functions block on the disk.

use bytes::{Bytes, BytesMut};
use ring::digest;

use crate::net::roots::{FILE_CHUNK_BYTES, FileError, IncomingFile, OutgoingFile, ReceivedFile, Roots};

/// Mode of a pushed file: the protocol does not transmit one.
const MODE: u32 = 0o644;

/// Stores a file at its path `ROOT/RELATIVE`, as a whole or not at all.
///
/// # Errors
/// See [`FileError`].
pub fn save(roots: &Roots, path: &str, bytes: &[u8]) -> Result<ReceivedFile, FileError> {
    let size = bytes.len() as u64;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    let mut file = IncomingFile::create(roots, path, size)?;
    let mut at = 0;
    for part in bytes.chunks(FILE_CHUNK_BYTES) {
        file.write(at, part)?;
        at += part.len() as u64;
    }
    file.finish(size, sha256, MODE)
}

/// Reads a file at its path `ROOT/RELATIVE`.
///
/// # Errors
/// [`FileError`]; [`FileError::Mismatch`] if it is longer than `max_bytes`.
pub fn read(roots: &Roots, path: &str, max_bytes: usize) -> Result<Bytes, FileError> {
    let mut file = OutgoingFile::open(roots, path)?;
    let size = usize::try_from(file.size()).unwrap_or(usize::MAX);
    if size > max_bytes {
        return Err(FileError::Mismatch {
            path: path.to_owned(),
            what: format!("it has {size} bytes, more than the {max_bytes} that may be sent"),
        });
    }
    let mut bytes = BytesMut::with_capacity(size);
    while let Some(chunk) = file.next_chunk(FILE_CHUNK_BYTES)? {
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(bytes.freeze())
}
