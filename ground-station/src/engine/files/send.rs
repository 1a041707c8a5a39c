//! `send`: files to many nodes, over the bulk link of each, and to bridged devices.
//!
//! For each file a node gets the command that announces it, its chunks and its digest; the node's reply is the outcome. An
//! early reply (no room, not allowed) ends the transfer. A bridged device gets whole files, one after the other, also after
//! the caller has disconnected.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{ChunkBytes, CompletedRequest as End, PeerLink, ReplyTo, Request};
use swarm_shared::net::roots::{Chunk, FileError, OutgoingFile as Source};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, FileEnd};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::SharedContext;
use crate::engine::delivery::query;
use crate::engine::files::memory_budget::{RoomWait, SharedFile};
use crate::engine::files::names;
use crate::engine::registry::{Device, NodeDevice, Target};
use crate::engine::reporter::Reporter;
use crate::engine::transport::DeviceTransport as _;
use crate::engine::transport::bridge::{self, BridgedTransport, DeviceOperation, DeviceReply};
use crate::store::deliveries::{Origin, Record, RecordTarget};
use swarm_shared::api::{CommandKind, Event, FileToSend, FilesToSend, NodeRef};

/// Most nodes that transfer files at the same time: each takes up to about 3 MiB of memory.
pub(in crate::engine) const CONCURRENT_TRANSFERS_MAX: usize = 32;
/// Chunks that are read ahead of the link.
const READ_AHEAD_CHUNKS: usize = 4;
/// How long a session waits for the outcome of a transfer; a caller gives up earlier, when there is no progress.
pub(super) const TRANSFER_TIME_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How long to try to notify a node of an aborted transfer: as long as the node itself waits for chunks.
const ABORT_SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a bridged device may take for one file.
const DEVICE_REPLY_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Bytes between two reports of progress.
const PROGRESS_INTERVAL_BYTES: u64 = 1024 * 1024;

/// Time limits of a transfer.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct TransferTimeouts {
    /// How long a transfer may wait to start.
    pub(in crate::engine) ttl: Duration,
    /// The longest pause without progress.
    pub(in crate::engine) stall_timeout: Duration,
}

/// The entry of a transfer in the history.
pub(in crate::engine) fn history_record(
    selector: &Selector,
    targets: &[Target],
    what: &FilesToSend,
    life_ms: u64,
    origin: Origin,
) -> Record {
    let (action, dests) = match what {
        FilesToSend::Same { files } => {
            let dests: Vec<String> = files.iter().map(|file| file.dest.clone()).collect();
            (dests.join(" "), dests)
        }
        FilesToSend::PerNode { dir, dest } => {
            (format!("--per-node {} {dest}", dir.display()), vec![dest.clone()])
        }
    };
    let deliveries = targets.iter().flat_map(|target| {
        (0..).zip(&dests).map(|(part, dest)| RecordTarget {
            node: target.node.clone(),
            part,
            about: Some(dest.clone()),
        })
    });
    Record {
        origin: Origin {
            kind: CommandKind::Send,
            ..origin
        },
        action,
        arguments: history_arguments(what),
        lane: Lane::Bulk,
        selector: selector.as_str().to_owned(),
        ttl_ms: life_ms,
        deliveries: deliveries.collect(),
    }
}

/// Arguments from which a retry is made; `null` if a path is not Unicode: then there is no retry.
pub(super) fn history_arguments(what: &impl Serialize) -> String {
    serde_json::to_string(what).unwrap_or_else(|_no_text| "null".to_owned())
}

/// Sends the files and reports the outcome of each.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    what: FilesToSend,
    timeouts: TransferTimeouts,
    reporter: Reporter,
) {
    let started = clock::now();
    let mut named = Vec::new();
    let mut plan = Vec::new();
    for Target { node, device, .. } in targets {
        let files = files_for_node(&what, &node);
        named.extend(std::iter::repeat_n(node.clone(), files.len()));
        plan.push((node, device, files));
    }
    // Before any transfer starts, so that the caller knows the targets if this process ends midway.
    if reporter.send(Event::Targets { targets: named }).await.is_err() {
        return;
    }
    let mut jobs = JoinSet::new();
    // A file for several devices is read once.
    let mut shared_files: BTreeMap<PathBuf, Result<Arc<SharedFile>, Reply>> = BTreeMap::new();
    for (node, device, files) in plan {
        let reporter = reporter.clone();
        match device {
            Device::Node(device) => drop(jobs.spawn(send_node_files(
                shared.clone(),
                (node, device),
                files,
                timeouts,
                started,
                reporter,
            ))),
            Device::Bridged(device) => {
                let mut opened = Vec::new();
                for file in files {
                    opened.push(open_device_file(file, &shared, &mut shared_files).await);
                }
                let sending = send_device_files((node, device), opened, timeouts, reporter);
                let sending = shared.tasks.spawn(sending);
                jobs.spawn(async move { drop(sending.await) });
            }
        }
    }
    tokio::select! {
        () = reporter.caller().closed() => {}
        () = async { while jobs.join_next().await.is_some() {} } => {
            reporter.send(Event::End).await.ok();
        }
    }
}

/// A file for a bridged device.
struct DeviceFile {
    source: Arc<SharedFile>,
    dest: String,
}

async fn open_device_file(
    file: Result<FileToSend, String>,
    shared: &SharedContext,
    opened: &mut BTreeMap<PathBuf, Result<Arc<SharedFile>, Reply>>,
) -> Result<DeviceFile, Reply> {
    let FileToSend { source, dest } = file.map_err(Reply::failed)?;
    let source = match opened.get(&source) {
        Some(opened) => opened.clone(),
        None => {
            let file = SharedFile::open(source.clone(), shared.memory_budget.clone()).await;
            opened.insert(source, file.clone());
            file
        }
    }?;
    Ok(DeviceFile { source, dest })
}

/// Sends a bridged device its files, one after the other.
async fn send_device_files(
    (node, device): (NodeRef, BridgedTransport),
    files: Vec<Result<DeviceFile, Reply>>,
    timeouts: TransferTimeouts,
    reporter: Reporter,
) {
    let (mut issued, mut turn) = (reporter.started(), clock::now());
    for (part, file) in (0..).zip(files) {
        let reply = match file {
            Ok(file) => send_device_file(&device, file, (issued, turn), timeouts, &reporter).await,
            Err(reply) => reply,
        };
        if reply.state == Outcome::Done {
            // The time to live of the next file starts anew.
            issued = clock::now();
            turn = issued;
        }
        // It goes on although the caller may have disconnected.
        reporter.end(&node, part, reply).await.ok();
    }
}

async fn send_device_file(
    device: &BridgedTransport,
    file: DeviceFile,
    (issued, turn): (Instant, Instant),
    timeouts: TransferTimeouts,
    reporter: &Reporter,
) -> Reply {
    let withdrawn = || Reply::refused("withdrawn by an emergency stop: give it again after the release");
    let (before, requested_at) = (clock::now(), reporter.started());
    let wait = RoomWait {
        since: turn,
        timeout: timeouts.ttl,
        caller: reporter.caller(),
    };
    let bytes_max = device.properties().file_bytes_max.unwrap_or(u64::MAX);
    let loaded = tokio::select! {
        biased;
        () = device.wait_stopped_since(requested_at) => return withdrawn(),
        loaded = file.source.read(bytes_max, wait) => loaded,
    };
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(reply) => return reply,
    };
    if device.was_stopped_since(requested_at) {
        return withdrawn();
    }
    let operation = DeviceOperation::Push {
        path: file.dest,
        content: loaded.content.clone(),
    };
    let now = clock::now();
    // Waiting for memory does not count against the time to live.
    let issued = issued + now.saturating_duration_since(before);
    let start_by = issued + timeouts.ttl.min(timeouts.stall_timeout);
    match device.try_send(operation, issued, start_by, now + DEVICE_REPLY_TIMEOUT) {
        Ok(replied) => DeviceReply::without_file(replied.await),
        Err(error) => bridge::not_taken(error),
    }
}

/// The files for one node, or why there is none.
fn files_for_node(what: &FilesToSend, node: &NodeRef) -> Vec<Result<FileToSend, String>> {
    match what {
        FilesToSend::Same { files } => files.iter().cloned().map(Ok).collect(),
        FilesToSend::PerNode { dir, dest } => {
            let found = names::file_for_node(dir, &node.node).and_then(|source| {
                let dest = names::destination(dest, &source, false)?;
                Ok(FileToSend { source, dest })
            });
            vec![found.map_err(|error| error.to_string())]
        }
    }
}

async fn send_node_files(
    shared: SharedContext,
    (node, device): (NodeRef, NodeDevice),
    files: Vec<Result<FileToSend, String>>,
    timeouts: TransferTimeouts,
    started: Instant,
    reporter: Reporter,
) {
    let begin_by = started + timeouts.ttl.min(timeouts.stall_timeout);
    // Before the permit is taken, so that offline nodes do not delay linked ones. Each file looks again.
    let _online = device.wait_online_until(begin_by).await;
    // The semaphore is never closed.
    let Ok(_permit) = shared.transfer_slots.clone().acquire_owned().await else {
        return;
    };
    let sizes = files.iter().flatten().map(|file| size_of(&file.source));
    let mut progress = Progress {
        node: node.clone(),
        bytes: 0,
        reported: 0,
        total: sizes.sum(),
        reporter: reporter.clone(),
    };
    for (part, file) in (0..).zip(files) {
        let reply = match file {
            Ok(file) => {
                send_file(
                    &shared,
                    (node.id, &device),
                    &file,
                    timeouts,
                    started,
                    &mut progress,
                )
                .await
            }
            Err(why) => Reply::failed(why),
        };
        if reporter.end(&node, part, reply).await.is_err() {
            return;
        }
    }
}

fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Progress of the files of one node, in bytes.
struct Progress {
    node: NodeRef,
    bytes: u64,
    reported: u64,
    total: u64,
    reporter: Reporter,
}

impl Progress {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes - self.reported >= PROGRESS_INTERVAL_BYTES || self.bytes >= self.total {
            self.reported = self.bytes;
            let (node, bytes, total) = (self.node.clone(), self.bytes, self.total.max(self.bytes));
            // A slow reader gets the next report.
            self.reporter.try_send(Event::Progress { node, bytes, total });
        }
    }
}

/// An item from the reading thread.
enum ReadEvent {
    Chunk(Chunk),
    End(FileEnd),
    Failed(FileError),
}

fn open_source(path: &Path) -> Result<Source, FileError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| FileError::io(&name, "open it", error))?;
    Source::from_file(file, &name)
}

fn read_chunks(mut source: Source, chunk_bytes: &ChunkBytes, to: &mpsc::Sender<ReadEvent>) {
    let size = source.size();
    loop {
        let read = match source.next_chunk(chunk_bytes.get()) {
            Ok(Some(chunk)) => ReadEvent::Chunk(chunk),
            Ok(None) => break,
            Err(error) => ReadEvent::Failed(error),
        };
        let failed = matches!(read, ReadEvent::Failed(_));
        if to.blocking_send(read).is_err() || failed {
            return;
        }
    }
    // The transfer may have been given up.
    let _given_up = to.blocking_send(ReadEvent::End(FileEnd {
        size,
        mode: None,
        sha256: source.sha256(),
    }));
}

async fn send_file(
    shared: &SharedContext,
    (id, device): (PeerId, &NodeDevice),
    file: &FileToSend,
    timeouts: TransferTimeouts,
    started: Instant,
    progress: &mut Progress,
) -> Reply {
    let source = file.source.clone();
    let opened = tokio::task::spawn_blocking(move || open_source(&source)).await;
    let source = match opened {
        Ok(Ok(source)) => source,
        Ok(Err(error)) => return local_failure(&error.to_string()),
        Err(error) => return Reply::failed(error.to_string()),
    };
    let begin_by = started + timeouts.ttl.min(timeouts.stall_timeout);
    if !device.wait_online_until(begin_by).await {
        return Reply::ended(Outcome::NoAnswer, "offline: nothing was sent");
    }
    let Ok(link) = shared.endpoint.open_bulk_session(id).await else {
        return Reply::failed("this station is shutting down");
    };
    match Transfer::announce(shared, link, &push_arguments(file, &source), timeouts).await {
        Ok((transfer, ends)) => transfer.run(source, ends, progress).await,
        Err(reply) => reply,
    }
}

fn local_failure(why: &str) -> Reply {
    Reply::failed(format!("on this machine: {why}"))
}

fn push_arguments(file: &FileToSend, source: &Source) -> Arguments {
    let kwargs = json!({ "op": "push", "path": file.dest, "size": source.size(), "mode": source.mode() });
    Arguments {
        args: Vec::new(),
        kwargs: kwargs.as_object().cloned().unwrap_or_default(),
    }
}

/// The transfer of one file to one node.
struct Transfer {
    link: PeerLink,
    id: u64,
    timeouts: TransferTimeouts,
}

impl Transfer {
    /// Sends the command; its outcome comes on the channel.
    async fn announce(
        shared: &SharedContext,
        link: PeerLink,
        arguments: &Arguments,
        timeouts: TransferTimeouts,
    ) -> Result<(Self, mpsc::Receiver<End>), Reply> {
        let frame = query::command_frame(shared, "filetransfer", arguments, Lane::Bulk);
        let id = frame.header.id.unwrap_or_default();
        let now = clock::now();
        let (reply_to, ends) = mpsc::channel(1);
        let request = Request {
            id,
            timeout_at: now + TRANSFER_TIME_MAX,
            reply_to: ReplyTo(reply_to),
        };
        let parcel = EncodedFrame::new(&frame).map_err(|error| Reply::failed(error.to_string()))?;
        let outgoing = Outgoing {
            frame: parcel,
            lane: Lane::Bulk,
            deadline: Some(now + timeouts.ttl),
        };
        // Frames of an earlier file in the queue may be stalled.
        match timeout(timeouts.stall_timeout, link.request(outgoing, request)).await {
            Ok(Ok(())) => Ok((Self { link, id, timeouts }, ends)),
            Ok(Err(error)) => Err(Reply::failed(error.to_string())),
            Err(_elapsed) => Err(stalled_reply(timeouts.stall_timeout)),
        }
    }

    /// Sends the file unless the command ends first.
    async fn run(self, source: Source, mut ends: mpsc::Receiver<End>, progress: &mut Progress) -> Reply {
        let stall_timeout = self.timeouts.stall_timeout;
        let mut abort_guard = TransferAbortGuard {
            link: Some(self.link.clone()),
            id: self.id,
        };
        let sent = tokio::select! {
            biased;
            reply = wait_for_reply(&mut ends) => {
                abort_guard.link = None;
                return reply;
            }
            sent = self.send_chunks(source, progress) => sent,
        };
        if let Err(reply) = sent {
            return reply;
        }
        abort_guard.link = None;
        timeout(stall_timeout, wait_for_reply(&mut ends))
            .await
            .unwrap_or_else(|_elapsed| {
                Reply::ended(
                    Outcome::NoAnswer,
                    "the file was sent; the node has not confirmed it",
                )
            })
    }

    async fn send_chunks(&self, source: Source, progress: &mut Progress) -> Result<(), Reply> {
        let (read, mut chunks) = mpsc::channel(READ_AHEAD_CHUNKS);
        // The thread ends with the file, or when the channel closes.
        let chunk_bytes = self.link.chunk_bytes();
        let _reading = tokio::task::spawn_blocking(move || read_chunks(source, &chunk_bytes, &read));
        loop {
            match chunks.recv().await {
                Some(ReadEvent::Chunk(chunk)) => {
                    self.send_frame(&chunk_frame(self.id, &chunk)).await?;
                    progress.add(chunk.bytes.len() as u64);
                }
                Some(ReadEvent::End(end)) => return self.send_frame(&end_frame(self.id, &end)).await,
                Some(ReadEvent::Failed(error)) => return Err(local_failure(&error.to_string())),
                None => return Err(local_failure("the file could not be read")),
            }
        }
    }

    async fn send_frame(&self, frame: &Frame) -> Result<(), Reply> {
        let parcel = EncodedFrame::new(frame).map_err(|error| Reply::failed(error.to_string()))?;
        let outgoing = Outgoing {
            frame: parcel,
            lane: Lane::Bulk,
            deadline: None,
        };
        match timeout(self.timeouts.stall_timeout, self.link.send(outgoing)).await {
            Ok(sent) => sent.map_err(|error| Reply::failed(error.to_string())),
            Err(_elapsed) => Err(stalled_reply(self.timeouts.stall_timeout)),
        }
    }
}

fn stalled_reply(stall_timeout: Duration) -> Reply {
    let error = format!("no progress for {} s", stall_timeout.as_secs_f64());
    Reply::ended(Outcome::NoAnswer, error)
}

/// Notifies the node of an aborted transfer when it is dropped: the node then removes a partial file, or stops sending.
pub(super) struct TransferAbortGuard {
    /// The node's bulk link; taken out when the transfer is complete.
    pub(in crate::engine) link: Option<PeerLink>,
    /// The transfer.
    pub(in crate::engine) id: u64,
}

impl Drop for TransferAbortGuard {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        // A digest of zeros matches no file: the node removes the partial file.
        let nothing = FileEnd {
            sha256: [0; 32],
            size: 0,
            mode: None,
        };
        let (Ok(parcel), Ok(runtime)) = (
            EncodedFrame::new(&end_frame(self.id, &nothing)),
            tokio::runtime::Handle::try_current(),
        ) else {
            return;
        };
        let outgoing = Outgoing {
            frame: parcel,
            lane: Lane::Bulk,
            deadline: None,
        };
        // It waits behind queued chunks. If it cannot be sent, the node's own time-out ends the transfer.
        runtime.spawn(timeout(
            ABORT_SEND_TIMEOUT,
            async move { link.send(outgoing).await },
        ));
    }
}

/// The outcome of the command, when it comes.
async fn wait_for_reply(ends: &mut mpsc::Receiver<End>) -> Reply {
    match ends.recv().await {
        Some(end) => query::to_reply(end.result),
        None => Reply::failed("this station is shutting down"),
    }
}

fn chunk_frame(id: u64, chunk: &Chunk) -> Frame {
    let mut frame = Frame::binary(Kind::Chunk, chunk.bytes.clone());
    frame.header.id = Some(id);
    frame.header.offset = Some(chunk.offset);
    frame
}

fn end_frame(id: u64, end: &FileEnd) -> Frame {
    let mut frame = Frame::json(Kind::ChunkEnd, end);
    frame.header.id = Some(id);
    frame
}
