//! Files to and from guests: whole, in memory, because their systems know no parts.
//!
//! What is sent is read when its turn comes, once for all who get it then, and stays as long as any of them waits for it.
//! Invariant: at most [`IN_MEMORY_MAX`] bytes of such files are in memory, of all that is sent at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use serde_json::json;
use swarm_shared::net::roots::{FileError, Incoming, Roots};
use swarm_shared::proto::hex;
use swarm_shared::proto::outcome::Reply;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use super::work::Copy;

/// Most bytes of files that are in memory to be sent; a file that is longer takes all of it.
pub(super) const IN_MEMORY_MAX: u32 = 64 * 1024 * 1024;
static IN_MEMORY: Semaphore = Semaphore::const_new(IN_MEMORY_MAX as usize);
/// The name of the only root of a fetch: the directory that the operator named.
const ROOT: &str = "dir";
/// Permissions of a copy: its own are not told.
const MODE: u32 = 0o644;

/// A file to be sent, to whoever it is.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    held: Mutex<Weak<Held>>,
}

/// A file in memory.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) content: Bytes,
    _room: SemaphorePermit<'static>,
}

impl Source {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            held: Mutex::default(),
        })
    }

    /// All of it, once there is room for it, if it has at most so many bytes.
    pub(super) async fn read(&self, bytes_max: u64) -> Result<Arc<Held>, Reply> {
        let mut held = self.held.lock().await;
        if let Some(there) = held.upgrade() {
            self.check(there.content.len() as u64, bytes_max)?;
            return Ok(there);
        }
        let path = self.path.clone();
        let (file, bytes) = blocking(move || open(&path)).await?;
        self.check(bytes, bytes_max)?;
        let wanted = u32::try_from(bytes).map_or(IN_MEMORY_MAX, |bytes| bytes.min(IN_MEMORY_MAX));
        let room = IN_MEMORY.acquire_many(wanted).await;
        let room = room.map_err(|closed| Reply::failed(closed.to_string()))?;
        let path = self.path.clone();
        let content = blocking(move || read_whole(file, bytes, &path)).await?;
        let read = Arc::new(Held { content, _room: room });
        *held = Arc::downgrade(&read);
        Ok(read)
    }

    fn check(&self, bytes: u64, bytes_max: u64) -> Result<(), Reply> {
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(Reply::failed(format!(
            "{} is longer than the {bytes_max} bytes that this drone is sent; see `file_bytes` of its door",
            self.path.display()
        )))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Reply> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Reply::failed),
        Err(error) => Err(Reply::failed(error.to_string())),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn open(path: &Path) -> Result<(File, u64), String> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let meta = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    Ok((file, meta.len()))
}

fn read_whole(file: File, bytes: u64, path: &Path) -> Result<Bytes, String> {
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    // One byte more shows that it has grown.
    let mut limited = file.take(bytes.saturating_add(1));
    limited
        .read_to_end(&mut content)
        .map_err(|error| unreadable(path, &error))?;
    if content.len() as u64 != bytes {
        return Err(format!("{} changed while it was being read", path.display()));
    }
    Ok(content.into())
}

/// The directory of a fetch, made if need be.
pub(super) async fn open_dir(dir: PathBuf) -> Result<Roots, String> {
    let made = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        Ok(Roots::new(BTreeMap::from([(ROOT.to_owned(), dir)])))
    });
    made.await.map_err(|error| error.to_string())?
}

/// Writes a fetched file below the operator's directory, whole or not at all.
pub(super) async fn write(content: Bytes, copy: Copy) -> Reply {
    let writing = tokio::task::spawn_blocking(move || {
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        let size = content.len() as u64;
        let mut file = Incoming::create(&copy.roots, &format!("{ROOT}/{}", copy.name), size)?;
        file.write(0, &content)?;
        file.finish(size, sha256, MODE)?;
        let path = copy.dir.join(&copy.name).display().to_string();
        Ok::<_, FileError>(json!({ "size": size, "sha256": hex::encode(&sha256), "path": path }))
    });
    match writing.await {
        Ok(Ok(value)) => Reply::done(value),
        Ok(Err(error)) => Reply::failed(format!("on this machine: {error}")),
        Err(error) => Reply::failed(error.to_string()),
    }
}
