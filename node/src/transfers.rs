//! File transfers of this node: `filetransfer` commands and their chunks.
//!
//! A transfer is identified by its command's identity, epoch included, so that numbers of a restarted station do not
//! collide with those before. Each transfer blocks a thread of its own. Chunks wait in a queue that is bounded in bytes
//! over all transfers; a full queue holds back the connection that they come on.
//!
//! | state | until | then |
//! |---|---|---|
//! | receiving | the end of the file | verified, visible, `done` |
//! | receiving | a fault, [`IDLE_MAX`] without a chunk, the peer restarts, shutdown | removed, `failed`; later chunks are dropped |
//! | sending | all chunks and the end are queued | `done` |
//! | sending | a fault, [`IDLE_MAX`] without room, the peer restarts, shutdown | `failed` |

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use swarm_shared::net::peer::ChunkBytes;
use swarm_shared::net::roots::{FileError, IncomingFile, OutgoingFile, Roots};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, FileEnd};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::{CHUNK_BYTES_MAX, Frame, Header, Kind, Lane};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How many transfers run at once; one more is refused as busy.
pub const TRANSFERS_MAX: usize = 16;
/// How long a transfer may make no progress.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Bytes that may wait to be written, over all transfers: two of the longest chunks.
const QUEUE_BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;
/// The least that a chunk counts, in bytes, so that tiny ones are bounded too.
const CHUNK_BYTES_MIN: usize = 4096;
/// How many chunks may wait at most; the bytes run out first.
const QUEUE_CHUNKS_MAX: usize = QUEUE_BYTES_MAX / CHUNK_BYTES_MIN + 1;

/// Where the frames of an outgoing file go.
#[derive(Debug)]
pub struct ChunkSink {
    /// The queue of the bulk session.
    pub frames: mpsc::Sender<Frame>,
    /// The chunk size that suits its link.
    pub chunk_bytes: ChunkBytes,
}

/// The running transfers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transfers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    roots: Roots,
    idle_max: Duration,
    queue_budget: Arc<Semaphore>,
    running: Mutex<BTreeMap<CommandId, RunningTransfer>>,
    started: AtomicU64,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct RunningTransfer {
    /// Distinguishes it from a later transfer with the same identity.
    serial: u64,
    /// The queue of its thread; `None` of an outgoing file.
    parts: Option<SyncSender<ReceivedPart>>,
    /// Ends an outgoing file.
    cancel: CancellationToken,
}

#[derive(Debug)]
enum ReceivedPart {
    Chunk {
        offset: u64,
        bytes: Bytes,
        _permit: OwnedSemaphorePermit,
    },
    End(FileEnd),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum TransferRequest {
    Push {
        path: String,
        size: u64,
        #[serde(default = "default_file_mode")]
        mode: u32,
    },
    Pull {
        path: String,
    },
}

fn default_file_mode() -> u32 {
    0o644
}

impl Transfers {
    /// Transfers below these roots, until `shutdown`.
    pub fn new(roots: Roots, shutdown: CancellationToken) -> Self {
        Self::with_idle(roots, shutdown, IDLE_MAX)
    }

    pub(crate) fn with_idle(roots: Roots, shutdown: CancellationToken, idle_max: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                roots,
                idle_max,
                queue_budget: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
                running: Mutex::new(BTreeMap::new()),
                started: AtomicU64::new(0),
                shutdown,
            }),
        }
    }

    /// Begins the transfer of a `filetransfer` command that the gate has permitted. Its chunks may follow as soon as this
    /// returns. An outgoing file goes to `sink`. The receiver gets the reply; it fails only if the transfer's thread
    /// panics.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin(&self, id: CommandId, arguments: &Arguments, sink: ChunkSink) -> oneshot::Receiver<Reply> {
        let (reply, outcome) = oneshot::channel();
        let request = match parse_request(arguments) {
            Ok(request) => request,
            Err(refusal) => return refuse(reply, outcome, refusal),
        };
        let mut running = self.inner.lock();
        if self.inner.shutdown.is_cancelled() {
            return refuse(reply, outcome, "the node is shutting down".to_owned());
        }
        if running.contains_key(&id) {
            return refuse(reply, outcome, format!("transfer {id} is running already"));
        }
        if running.len() >= TRANSFERS_MAX {
            let refusal = format!("busy: {TRANSFERS_MAX} transfers are running; try again");
            return refuse(reply, outcome, refusal);
        }
        let cancel = self.inner.shutdown.child_token();
        let (parts, queue) = match request {
            TransferRequest::Push { .. } => {
                let (parts, queue) = sync_channel(QUEUE_CHUNKS_MAX);
                (Some(parts), Some(queue))
            }
            TransferRequest::Pull { .. } => (None, None),
        };
        let serial = self.inner.started.fetch_add(1, Ordering::Relaxed);
        let entry = RunningTransfer {
            serial,
            parts,
            cancel: cancel.clone(),
        };
        running.insert(id, entry);
        drop(running);
        let task = TransferTask {
            inner: self.inner.clone(),
            id,
            cancel,
        };
        let inner = self.inner.clone();
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let ended = match (request, queue) {
                (TransferRequest::Push { path, size, mode }, Some(queue)) => {
                    task.receive(&path, size, mode, &queue)
                }
                (TransferRequest::Push { path, .. } | TransferRequest::Pull { path }, _) => {
                    task.send(&path, &sink, &handle)
                }
            };
            // Removed before the reply: its receiver may use the identity again.
            inner
                .lock()
                .retain(|key, running| *key != id || running.serial != serial);
            // The receiver may have been dropped.
            reply.send(ended.unwrap_or_else(TransferError::into_reply)).ok();
        });
        outcome
    }

    /// The running transfer that a chunk or end from `peer` belongs to. A header without an epoch means the newest one.
    pub fn find(&self, peer: PeerId, part: &Header) -> Option<CommandId> {
        let seq = part.id?;
        let running = self.inner.lock();
        let mut ids = running
            .keys()
            .rev()
            .filter(|id| id.issuer == peer && id.seq == seq);
        match part.epoch {
            Some(epoch) => ids.find(|id| id.epoch == epoch),
            None => ids.next(),
        }
        .copied()
    }

    /// Queues a chunk; waits while the queue is full. Chunks of unknown transfers are dropped.
    pub async fn on_chunk(&self, id: CommandId, offset: u64, bytes: Bytes) {
        if self.inner.parts(id).is_none() {
            return;
        }
        let weight = bytes.len().clamp(CHUNK_BYTES_MIN, QUEUE_BYTES_MAX);
        let permits = u32::try_from(weight).unwrap_or(u32::MAX);
        let Ok(permit) = self.inner.queue_budget.clone().acquire_many_owned(permits).await else {
            return;
        };
        let part = ReceivedPart::Chunk {
            offset,
            bytes,
            _permit: permit,
        };
        self.inner.forward(id, part);
    }

    /// Handles the end of a file. Of an outgoing file it means that the peer does not want the rest.
    pub fn on_end(&self, id: CommandId, end: FileEnd) {
        if let Some(RunningTransfer {
            parts: None, cancel, ..
        }) = self.inner.lock().get(&id)
        {
            return cancel.cancel();
        }
        self.inner.forward(id, ReceivedPart::End(end));
    }

    /// Cancels all transfers with a peer that has restarted.
    pub fn on_peer_lost(&self, peer: PeerId) {
        self.inner.lock().retain(|id, running| {
            let lost = id.issuer == peer;
            if lost {
                running.cancel.cancel();
            }
            !lost
        });
    }

    /// Cancels all transfers, at shutdown.
    pub fn close(&self) {
        let mut running = self.inner.lock();
        running.values().for_each(|running| running.cancel.cancel());
        running.clear();
    }

    /// How many transfers are running.
    pub fn count(&self) -> usize {
        self.inner.lock().len()
    }
}

fn parse_request(arguments: &Arguments) -> Result<TransferRequest, String> {
    if !arguments.args.is_empty() {
        return Err("give the arguments of filetransfer by name: op, path, size, mode".to_owned());
    }
    TransferRequest::deserialize(Value::Object(arguments.kwargs.clone())).map_err(|error| {
        format!("not a transfer ({error}): use op=push with path, size and mode, or op=pull with path")
    })
}

fn refuse(
    reply: oneshot::Sender<Reply>,
    outcome: oneshot::Receiver<Reply>,
    refusal: String,
) -> oneshot::Receiver<Reply> {
    reply.send(Reply::refused(refusal)).ok();
    outcome
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<CommandId, RunningTransfer>> {
        self.running.lock()
    }

    fn parts(&self, id: CommandId) -> Option<SyncSender<ReceivedPart>> {
        self.lock().get(&id)?.parts.clone()
    }

    fn forward(&self, id: CommandId, part: ReceivedPart) {
        if let Some(parts) = self.parts(id) {
            // The budget of bytes ends before the queue is full, so this fails only when the transfer has just ended.
            parts.try_send(part).ok();
        }
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: no progress for {idle:?}; send it again")]
    Idle { path: String, idle: Duration },
    #[error("{path}: the connection was lost midway; send it again")]
    ConnectionLost { path: String },
}

impl TransferError {
    fn into_reply(self) -> Reply {
        match &self {
            Self::File(error) if error.is_refusal() => Reply::refused(self.to_string()),
            Self::File(_) | Self::Idle { .. } | Self::ConnectionLost { .. } => {
                Reply::failed(self.to_string())
            }
        }
    }
}

struct TransferTask {
    inner: Arc<Inner>,
    id: CommandId,
    cancel: CancellationToken,
}

impl TransferTask {
    fn receive(
        &self,
        path: &str,
        size: u64,
        mode: u32,
        queue: &Receiver<ReceivedPart>,
    ) -> Result<Reply, TransferError> {
        let lost = || TransferError::ConnectionLost {
            path: path.to_owned(),
        };
        let mut file = IncomingFile::create(&self.inner.roots, path, size)?;
        loop {
            let part = queue.recv_timeout(self.inner.idle_max).map_err(|why| match why {
                RecvTimeoutError::Disconnected => lost(),
                RecvTimeoutError::Timeout => TransferError::Idle {
                    path: path.to_owned(),
                    idle: self.inner.idle_max,
                },
            })?;
            if self.cancel.is_cancelled() {
                return Err(lost());
            }
            match part {
                ReceivedPart::Chunk {
                    offset,
                    bytes,
                    _permit: _room,
                } => file.write(offset, &bytes)?,
                ReceivedPart::End(end) => {
                    let written = file.finish(end.size, end.sha256, end.mode.unwrap_or(mode))?;
                    return Ok(Reply::done(json!({
                        "path": written.path,
                        "size": written.size,
                        "sha256": hex::encode(&written.sha256),
                    })));
                }
            }
        }
    }

    fn send(&self, path: &str, sink: &ChunkSink, handle: &Handle) -> Result<Reply, TransferError> {
        let mut file = OutgoingFile::open(&self.inner.roots, path)?;
        let (size, mode) = (file.size(), file.mode());
        while let Some(chunk) = file.next_chunk(sink.chunk_bytes.get())? {
            let mut frame = Frame::binary(Kind::Chunk, chunk.bytes);
            frame.header.offset = Some(chunk.offset);
            self.send_frame(path, frame, &sink.frames, handle)?;
        }
        let sha256 = file.sha256();
        let end = FileEnd {
            sha256,
            size,
            mode: Some(mode),
        };
        self.send_frame(path, Frame::json(Kind::ChunkEnd, &end), &sink.frames, handle)?;
        Ok(Reply::done(
            json!({ "size": size, "sha256": hex::encode(&sha256), "mode": mode }),
        ))
    }

    fn send_frame(
        &self,
        path: &str,
        mut frame: Frame,
        bulk: &mpsc::Sender<Frame>,
        handle: &Handle,
    ) -> Result<(), TransferError> {
        frame.header.id = Some(self.id.seq);
        frame.header.epoch = Some(self.id.epoch);
        frame.header.lane = Some(Lane::Bulk);
        let lost = || TransferError::ConnectionLost {
            path: path.to_owned(),
        };
        if self.cancel.is_cancelled() {
            return Err(lost());
        }
        let frame = match bulk.try_send(frame) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(lost()),
            Err(mpsc::error::TrySendError::Full(frame)) => frame,
        };
        handle.block_on(async {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(lost()),
                sent = bulk.send(frame) => sent.map_err(|_closed| lost()),
                () = tokio::time::sleep(self.inner.idle_max) => Err(TransferError::Idle {
                    path: path.to_owned(),
                    idle: self.inner.idle_max,
                }),
            }
        })
    }
}

#[cfg(test)]
mod tests;
