//! Files on their way to and from this node: `filetransfer` commands and the chunks that belong to them.
//!
//! A transfer is known by its command's identity, so that a station that has restarted does not meet its own old
//! numbers. Each has a thread of its own, for disks block; chunks
//! wait in a queue bounded in bytes over all transfers, and a full queue holds back the connection they come on.
//!
//! | state | until | then |
//! |---|---|---|
//! | receiving | the end of the file | verified, visible, `done` |
//! | receiving | a fault, [`IDLE_MAX`] of silence, the peer is lost, shutdown | removed, `failed`; later chunks are dropped |
//! | sending | all chunks and the end are queued | `done` |
//! | sending | a fault, [`IDLE_MAX`] without room, the peer is lost, shutdown | `failed` |

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
/// How long a transfer may stand still.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// How much may wait to be written, in bytes, over all transfers: two of the longest chunks.
const QUEUE_BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;
/// What a chunk counts at least, in bytes, so that tiny ones are bounded too.
const CHUNK_BYTES_MIN: usize = 4096;
/// How many chunks may wait at most; the bytes run out first.
const QUEUE_CHUNKS_MAX: usize = QUEUE_BYTES_MAX / CHUNK_BYTES_MIN + 1;

/// Where the chunks of a file that is asked for go.
#[derive(Debug)]
pub struct ChunkSink {
    /// The connection for files.
    pub frames: mpsc::Sender<Frame>,
    /// What suits it.
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
    /// Tells it from another that has the same number after it was given up.
    serial: u64,
    /// Where chunks go; absent for a file on its way out.
    parts: Option<SyncSender<ReceivedPart>>,
    /// Ends a file on its way out.
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
    /// Transfers below these roots, until `stop`.
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

    /// Takes a `filetransfer` command that the gate has let in. When this returns, the transfer is known, so that
    /// its chunks may follow at once. A file that is asked for goes to `bulk`. The reply comes from the receiver,
    /// once; it is an error only if the daemon falls over.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin(&self, id: CommandId, arguments: &Arguments, sink: ChunkSink) -> oneshot::Receiver<Reply> {
        let (reply, outcome) = oneshot::channel();
        let request = match parse_request(arguments) {
            Ok(order) => order,
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
            // First forgotten, then answered: whoever has the answer may use the number again.
            inner
                .lock()
                .retain(|key, running| *key != id || running.serial != serial);
            // Nobody may be waiting any more.
            let _gone = reply.send(ended.unwrap_or_else(TransferError::into_reply));
        });
        outcome
    }

    /// The running transfer that a part of a file from `peer` belongs to. Where the part names no epoch, it is that of
    /// the newest.
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

    /// Takes a chunk; waits while the queue is full. Chunks of transfers that are not known are dropped.
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

    /// Takes the end of a file; for a file on its way out, word that nobody wants the rest.
    pub fn on_end(&self, id: CommandId, end: FileEnd) {
        if let Some(RunningTransfer {
            parts: None, cancel, ..
        }) = self.inner.lock().get(&id)
        {
            return cancel.cancel();
        }
        self.inner.forward(id, ReceivedPart::End(end));
    }

    /// Gives up every transfer with a peer that will not come back to it.
    pub fn on_peer_lost(&self, peer: PeerId) {
        self.inner.lock().retain(|id, running| {
            let lost = id.issuer == peer;
            if lost {
                running.cancel.cancel();
            }
            !lost
        });
    }

    /// Gives up everything, at shutdown.
    pub fn close(&self) {
        let mut running = self.inner.lock();
        running.values().for_each(|running| running.cancel.cancel());
        running.clear();
    }

    /// How many are running.
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
    let _waited_for = reply.send(Reply::refused(refusal));
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
            // The bytes run out before the places do, so it fails only when the transfer has just ended.
            let _ended = parts.try_send(part);
        }
    }
}

/// Why a transfer did not succeed.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: nothing was heard of it for {idle:?}; send it again")]
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
