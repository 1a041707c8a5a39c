//! Files to and from bridged devices: whole, in memory, because their systems know no chunks.
//!
//! A file that is sent is read when its turn comes, once for all devices that get it then, and stays in memory as long as
//! any of them takes it. Invariants: at most [`IN_MEMORY_MAX`] bytes of such files are in memory, of all requests together,
//! and no request waits for room without an end; all devices get the bytes that the file had when it was requested, or
//! none.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::net::roots::{FileError, IncomingFile, Roots};
use swarm_shared::proto::hex;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use swarm_shared::api::Event;

/// Most bytes of outgoing files in memory; a longer file takes the whole budget.
pub(in crate::engine) const IN_MEMORY_MAX: u32 = 64 * 1024 * 1024;
/// Shortest wait for room: over a slow network files move although none ends.
const ROOM_TIMEOUT_MIN: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 600 });
const NO_ROOM: &str = "not sent: too many files are on their way to drones, and none has ended within `--ttl` and within 10 \
                       minutes; use a longer `--ttl`, or send to fewer drones at once";
/// Why a file is not sent if its caller has disconnected.
pub(super) const CALLER_GONE: &str = "not sent: the client disconnected";
/// Name of the only root of a fetch: the directory that the operator named.
pub(in crate::engine) const ROOT: &str = "dir";
/// Permissions of a copy: those of the original are not known.
const MODE: u32 = 0o644;

/// Where a fetched file goes.
#[derive(Clone, Debug)]
pub(super) struct CopyDestination {
    pub(in crate::engine) roots: Roots,
    pub(in crate::engine) dir: PathBuf,
    pub(in crate::engine) name: String,
}

/// Memory for files that are sent.
#[derive(Clone, Debug)]
pub(in crate::engine) struct MemoryBudget {
    bytes: Arc<Semaphore>,
    /// When memory became free last.
    freed: Arc<watch::Sender<Option<Instant>>>,
}

/// How long a file waits for memory.
#[derive(Debug)]
pub(super) struct RoomWait<'a> {
    /// When the file's turn came.
    pub(in crate::engine) since: Instant,
    /// Time-out, counted from then and again from each time that memory became free; at least [`ROOM_TIMEOUT_MIN`].
    pub(in crate::engine) timeout: Duration,
    /// Closed when the caller is gone.
    pub(in crate::engine) caller: &'a mpsc::Sender<Event>,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(IN_MEMORY_MAX as usize)),
            freed: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl MemoryBudget {
    /// Takes a part of it, in the order of the requests.
    async fn take(&self, bytes: u64, wait: &RoomWait<'_>) -> Result<OwnedSemaphorePermit, Reply> {
        let wanted = u32::try_from(bytes).map_or(IN_MEMORY_MAX, |bytes| bytes.min(IN_MEMORY_MAX));
        let mut taken = std::pin::pin!(Arc::clone(&self.bytes).acquire_many_owned(wanted));
        let mut freed = self.freed.subscribe();
        let longest = wait.timeout.max(ROOM_TIMEOUT_MIN);
        loop {
            let since = (*freed.borrow_and_update()).map_or(wait.since, |freed| freed.max(wait.since));
            tokio::select! {
                biased;
                room = &mut taken => return room.map_err(|closed| Reply::failed(closed.to_string())),
                () = wait.caller.closed() => return Err(Reply::refused(CALLER_GONE)),
                _always_open = freed.changed() => {}
                () = clock::sleep_until(since + longest) => return Err(Reply::refused(NO_ROOM)),
            }
        }
    }
}

/// A file that is sent to one device or more.
#[derive(Debug)]
pub(super) struct SharedFile {
    path: PathBuf,
    /// The file as it was when it was requested.
    seen: FileStamp,
    budget: MemoryBudget,
    loaded: Mutex<Weak<LoadedFile>>,
}

/// Identifies the content of a file: it changes when the file is modified or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

/// A file in memory.
#[derive(Debug)]
pub(super) struct LoadedFile {
    pub(in crate::engine) content: Bytes,
    budget: MemoryBudget,
    _taken: OwnedSemaphorePermit,
}

impl Drop for LoadedFile {
    fn drop(&mut self) {
        self.budget.freed.send_replace(Some(clock::now()));
    }
}

impl SharedFile {
    /// Takes the stamp of a file.
    pub(in crate::engine) async fn open(path: PathBuf, budget: MemoryBudget) -> Result<Arc<Self>, Reply> {
        let looked = blocking(move || {
            let meta = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            if !meta.is_file() {
                return Err(format!("{} is not a file", path.display()));
            }
            Ok((FileStamp::of(&meta), path))
        });
        let (seen, path) = looked.await?;
        Ok(Arc::new(Self {
            path,
            seen,
            budget,
            loaded: Mutex::default(),
        }))
    }

    /// Reads the whole file once there is memory for it; fails if it has more than `bytes_max` bytes or has changed.
    pub(in crate::engine) async fn read(
        &self,
        bytes_max: u64,
        wait: RoomWait<'_>,
    ) -> Result<Arc<LoadedFile>, Reply> {
        if self.seen.bytes > bytes_max {
            return Err(Reply::failed(format!(
                "{} is longer than the {bytes_max} bytes that this drone is sent; see `file_bytes` of its gateway",
                self.path.display()
            )));
        }
        // Locked for at most as long as the wait for memory.
        let mut loaded = self.loaded.lock().await;
        if let Some(there) = loaded.upgrade() {
            return Ok(there);
        }
        let taken = self.budget.take(self.seen.bytes, &wait).await?;
        let (path, seen) = (self.path.clone(), self.seen);
        let content = blocking(move || read_whole(&path, seen)).await?;
        let read = Arc::new(LoadedFile {
            content,
            budget: self.budget.clone(),
            _taken: taken,
        });
        *loaded = Arc::downgrade(&read);
        Ok(read)
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

/// Reads a whole file, if its stamp is still the same.
fn read_whole(path: &Path, seen: FileStamp) -> Result<Bytes, String> {
    let failed = |error| unreadable(path, &error);
    let file = File::open(path).map_err(failed)?;
    let is_the_same = |file: &File| file.metadata().map(|meta| FileStamp::of(&meta) == seen);
    let mut same = is_the_same(&file).map_err(failed)?;
    let mut content = Vec::new();
    if same {
        content.reserve_exact(usize::try_from(seen.bytes).unwrap_or_default());
        // One byte more shows that it has grown.
        let mut limited = (&file).take(seen.bytes.saturating_add(1));
        limited.read_to_end(&mut content).map_err(failed)?;
        same = content.len() as u64 == seen.bytes && is_the_same(&file).map_err(failed)?;
    }
    if !same {
        return Err(format!("{path:?} changed since the request; send it again"));
    }
    Ok(content.into())
}

/// Writes a fetched file below the operator's directory, whole or not at all.
pub(super) async fn write_copy(content: Bytes, copy: CopyDestination) -> Reply {
    let writing = tokio::task::spawn_blocking(move || {
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        let size = content.len() as u64;
        let mut file = IncomingFile::create(&copy.roots, &format!("{ROOT}/{}", copy.name), size)?;
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
