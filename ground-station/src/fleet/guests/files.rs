//! Files to and from guests: whole, in memory, because their systems know no parts.
//!
//! What is sent is read when its turn comes, once for all who get it then, and stays as long as any of them waits for it.
//! Invariants: at most [`IN_MEMORY_MAX`] bytes of such files are in memory, of all that is sent at once, and nobody waits
//! for room without an end; all who are sent a file get the bytes that it had when that was asked for, or none.

use std::collections::BTreeMap;
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

use super::work::{ASKER_GONE, Copy};
use crate::fleet::Event;

/// Most bytes of files that are in memory to be sent; a file that is longer takes all of it.
pub(super) const IN_MEMORY_MAX: u32 = 64 * 1024 * 1024;
/// How long it is waited for room at least. Files over a slow network move, though none ends.
const WAIT_MIN: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 600 });
const NO_ROOM: &str = "not sent: too many files are on their way to drones, and none of them has ended for as long as \
                       `--ttl` says, and for 10 minutes; give it a longer `--ttl`, or send to fewer drones at once";
/// The name of the only root of a fetch: the directory that the operator named.
const ROOT: &str = "dir";
/// Permissions of a copy: its own are not told.
const MODE: u32 = 0o644;

/// Room in memory for files that are sent.
#[derive(Clone, Debug)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    /// When some of it became free last.
    freed: Arc<watch::Sender<Option<Instant>>>,
}

/// How long it is waited for room.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    /// When its turn came.
    pub(super) since: Instant,
    /// How long after that, and after each time that room became free, it is waited on; [`WAIT_MIN`] at least.
    pub(super) longest: Duration,
    /// Closed when whoever asked has gone.
    pub(super) asker: &'a mpsc::Sender<Event>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(IN_MEMORY_MAX as usize)),
            freed: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Room {
    /// Some of it; who came first gets it first.
    async fn take(&self, bytes: u64, wait: &Wait<'_>) -> Result<OwnedSemaphorePermit, Reply> {
        let wanted = u32::try_from(bytes).map_or(IN_MEMORY_MAX, |bytes| bytes.min(IN_MEMORY_MAX));
        let mut taken = std::pin::pin!(Arc::clone(&self.bytes).acquire_many_owned(wanted));
        let mut freed = self.freed.subscribe();
        let longest = wait.longest.max(WAIT_MIN);
        loop {
            let since = (*freed.borrow_and_update()).map_or(wait.since, |freed| freed.max(wait.since));
            tokio::select! {
                biased;
                room = &mut taken => return room.map_err(|closed| Reply::failed(closed.to_string())),
                () = wait.asker.closed() => return Err(Reply::refused(ASKER_GONE)),
                // Its sender is ours.
                _always = freed.changed() => {}
                () = clock::sleep_until(since + longest) => return Err(Reply::refused(NO_ROOM)),
            }
        }
    }
}

/// A file to be sent, to whoever it is.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    /// As it was when that was asked for.
    seen: Seen,
    room: Room,
    held: Mutex<Weak<Held>>,
}

/// What tells a file from what it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Seen {
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
pub(super) struct Held {
    pub(super) content: Bytes,
    room: Room,
    _taken: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.freed.send_replace(Some(clock::now()));
    }
}

impl Source {
    /// A file as it is now.
    pub(super) async fn look(path: PathBuf, room: Room) -> Result<Arc<Self>, Reply> {
        let looked = blocking(move || {
            let meta = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            if !meta.is_file() {
                return Err(format!("{} is not a file", path.display()));
            }
            Ok((Seen::of(&meta), path))
        });
        let (seen, path) = looked.await?;
        Ok(Arc::new(Self {
            path,
            seen,
            room,
            held: Mutex::default(),
        }))
    }

    /// All of it, once there is room for it, if it has at most so many bytes.
    pub(super) async fn read(&self, bytes_max: u64, wait: Wait<'_>) -> Result<Arc<Held>, Reply> {
        if self.seen.bytes > bytes_max {
            return Err(Reply::failed(format!(
                "{} is longer than the {bytes_max} bytes that this drone is sent; see `file_bytes` of its door",
                self.path.display()
            )));
        }
        // Whoever has it waits no longer than that for room.
        let mut held = self.held.lock().await;
        if let Some(there) = held.upgrade() {
            return Ok(there);
        }
        let taken = self.room.take(self.seen.bytes, &wait).await?;
        let (path, seen) = (self.path.clone(), self.seen);
        let content = blocking(move || read_whole(&path, seen)).await?;
        let read = Arc::new(Held {
            content,
            room: self.room.clone(),
            _taken: taken,
        });
        *held = Arc::downgrade(&read);
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

/// All of a file, if it is still what was seen of it.
fn read_whole(path: &Path, seen: Seen) -> Result<Bytes, String> {
    let failed = |error| unreadable(path, &error);
    let file = File::open(path).map_err(failed)?;
    let is_the_same = |file: &File| file.metadata().map(|meta| Seen::of(&meta) == seen);
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
        return Err(format!("{path:?} changed since it was asked for; send it again"));
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
