//! `fetch`: one path from many nodes, requested over the control link and received over the bulk link of each. Each copy is
//! named after its node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerEvent, PeerLink};
use swarm_shared::net::roots::{FileError, IncomingFile, Roots};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, FileEnd};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::SharedContext;
use crate::engine::delivery::query;
use crate::engine::files::memory_budget::{self, CopyDestination, ROOT};
use crate::engine::files::names;
use crate::engine::files::send::{TRANSFER_TIME_MAX, TransferAbortGuard, history_arguments};
use crate::engine::registry::{Device, NodeDevice, Target};
use crate::engine::reporter::Reporter;
use crate::engine::transport::bridge::{self, BridgedTransport, DeviceOperation, DeviceReply};
use crate::store::deliveries::{Origin, Record, RecordTarget};
use swarm_shared::api::{CommandKind, Event, Failure, NodeRef};

/// Chunks of one file that wait to be written.
const CHUNK_QUEUE_MAX: usize = 8;
/// Time to live of the request for a file.
const REQUEST_TTL: Duration = Duration::from_secs(30);
/// Bytes between two reports of progress.
const PROGRESS_INTERVAL_BYTES: u64 = 1024 * 1024;

type ChunkSender = mpsc::Sender<Box<Frame>>;

/// Transfers that receive chunks, by peer and request. The lock is held for a look-up.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct ChunkRoutes(Arc<Mutex<BTreeMap<(PeerId, u64), ChunkSender>>>);

impl ChunkRoutes {
    fn register(&self, peer: PeerId, id: u64, to: ChunkSender) -> RouteGuard {
        self.0.lock().insert((peer, id), to);
        RouteGuard {
            routes: self.clone(),
            key: (peer, id),
        }
    }

    fn get(&self, peer: PeerId, id: u64) -> Option<ChunkSender> {
        self.0.lock().get(&(peer, id)).cloned()
    }
}

/// The entry of one transfer. Dropping it closes the transfer's channel, and the writer then removes the partial file.
struct RouteGuard {
    routes: ChunkRoutes,
    key: (PeerId, u64),
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.routes.0.lock().remove(&self.key);
    }
}

/// Hands the chunks of one peer to the transfers that requested them; others are dropped. A slow transfer delays the chunks
/// of its own peer only.
pub(in crate::engine) async fn route_chunks(mut events: mpsc::Receiver<PeerEvent>, routes: ChunkRoutes) {
    while let Some(event) = events.recv().await {
        if let PeerEvent::Frame { peer, frame, .. } = event
            && let Some(Kind::Chunk | Kind::ChunkEnd) = frame.header.kind
            && let Some(to) = frame.header.id.and_then(|id| routes.get(peer.id, id))
        {
            // The transfer may have ended meanwhile.
            to.send(frame).await.ok();
        }
    }
}

/// The arguments of a fetch in the history.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::engine) struct FetchArguments {
    pub(in crate::engine) path: String,
    pub(in crate::engine) dir: PathBuf,
}

/// The entry of a fetch in the history.
pub(in crate::engine) fn history_record(
    selector: &Selector,
    targets: &[Target],
    path: &str,
    dir: &Path,
    origin: Origin,
) -> Record {
    let to = |target: &Target| RecordTarget {
        node: target.node.clone(),
        part: 0,
        about: None,
    };
    Record {
        origin: Origin {
            kind: CommandKind::Fetch,
            ..origin
        },
        action: path.to_owned(),
        arguments: history_arguments(&FetchArguments {
            path: path.to_owned(),
            dir: dir.to_owned(),
        }),
        lane: Lane::Bulk,
        selector: selector.as_str().to_owned(),
        ttl_ms: u64::try_from(REQUEST_TTL.as_millis()).unwrap_or(u64::MAX),
        deliveries: targets.iter().map(to).collect(),
    }
}

/// Fetches the path and reports the outcome of each target.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    path: String,
    dir: PathBuf,
    stall_timeout: Duration,
    reporter: Reporter,
) {
    let started = clock::now();
    let roots = match open_destination(dir.clone()).await {
        Ok(roots) => roots,
        Err(why) => {
            reporter.send(Event::failed(Failure::Usage, why)).await.ok();
            return;
        }
    };
    let named = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    if reporter.send(named).await.is_err() {
        return;
    }
    let mut jobs = JoinSet::new();
    for target in targets {
        let (shared, reporter) = (shared.clone(), reporter.clone());
        let NodeRef { node: name, id } = &target.node;
        let copy = match names::copy_name(name, id, target.name_is_unique, &path) {
            Ok(name) => CopyDestination {
                roots: roots.clone(),
                dir: dir.clone(),
                name,
            },
            Err(error) => {
                jobs.spawn(async move {
                    let reply = Reply::failed(error.to_string());
                    reporter.end(&target.node, 0, reply).await.ok();
                });
                continue;
            }
        };
        let path = path.clone();
        match target.device {
            Device::Node(device) => drop(jobs.spawn(async move {
                // Before the permit is taken, so that absent nodes do not delay the others.
                let is_there = device.wait_online_until(started + stall_timeout).await;
                let Ok(_permit) = shared.transfer_slots.clone().acquire_owned().await else {
                    return;
                };
                let reply = if is_there {
                    fetch_one(
                        &shared,
                        (&target.node, &device),
                        &path,
                        copy,
                        stall_timeout,
                        &reporter,
                    )
                    .await
                } else {
                    Reply::ended(Outcome::NoAnswer, "offline: the file was not requested")
                };
                reporter.end(&target.node, 0, reply).await.ok();
            })),
            Device::Bridged(device) => {
                // It goes on if the caller disconnects.
                let fetching = shared.tasks.spawn(async move {
                    let reply = fetch_from_device(&device, path, copy, stall_timeout).await;
                    reporter.end(&target.node, 0, reply).await.ok();
                });
                jobs.spawn(async move { drop(fetching.await) });
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

async fn fetch_from_device(
    device: &BridgedTransport,
    path: String,
    copy: CopyDestination,
    timeout: Duration,
) -> Reply {
    let now = clock::now();
    let until = now + timeout;
    match device.try_send(DeviceOperation::Fetch { path }, now, until, until) {
        Ok(replied) => match replied.await {
            Ok(DeviceReply::File(content)) => memory_budget::write_copy(content, copy).await,
            other => DeviceReply::without_file(other),
        },
        Err(error) => bridge::not_taken(error),
    }
}

async fn open_destination(dir: PathBuf) -> Result<Roots, String> {
    let made = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        let roots = Roots::new(BTreeMap::from([(ROOT.to_owned(), dir)]));
        // Temporary files of a process that was killed; subdirectories are not searched.
        roots.sweep_top_level();
        Ok(roots)
    });
    made.await.map_err(|error| error.to_string())?
}

async fn fetch_one(
    shared: &SharedContext,
    (node, device): (&NodeRef, &NodeDevice),
    path: &str,
    CopyDestination { roots, dir, name }: CopyDestination,
    stall_timeout: Duration,
    reporter: &Reporter,
) -> Reply {
    // Opened first, so that no chunk is missed.
    let Ok(bulk) = shared.endpoint.open_bulk_session(node.id).await else {
        return Reply::failed("this station is shutting down");
    };
    let kwargs = json!({ "op": "pull", "path": path });
    let arguments = Arguments {
        args: Vec::new(),
        kwargs: kwargs.as_object().cloned().unwrap_or_default(),
    };
    let request_frame = query::command_frame(shared, "filetransfer", &arguments, Lane::Control);
    let number = request_frame.header.id.unwrap_or_default();
    let (chunks, chunks_in) = mpsc::channel(CHUNK_QUEUE_MAX);
    let _route_guard = shared.chunk_routes.register(node.id, number, chunks);
    let destination = Destination {
        roots,
        copy: format!("{ROOT}/{name}"),
        target: node.clone(),
    };
    let mut abort_guard = TransferAbortGuard {
        link: Some(bulk),
        id: number,
    };
    match request_and_receive(
        &device.link,
        &request_frame,
        destination,
        chunks_in,
        stall_timeout,
        reporter,
    )
    .await
    {
        Reply {
            state: Outcome::Done,
            value: Some(mut value),
            ..
        } => {
            abort_guard.link = None;
            value["path"] = json!(dir.join(name).display().to_string());
            Reply::done(value)
        }
        reply => reply,
    }
}

/// Where a fetched file is written.
struct Destination {
    roots: Roots,
    copy: String,
    target: NodeRef,
}

async fn request_and_receive(
    link: &PeerLink,
    request_frame: &Frame,
    destination: Destination,
    chunks: mpsc::Receiver<Box<Frame>>,
    stall_timeout: Duration,
    reporter: &Reporter,
) -> Reply {
    let now = clock::now();
    let sent = query::send_request(link, request_frame, now + REQUEST_TTL, now + TRANSFER_TIME_MAX);
    let mut ends = match sent {
        Ok(ends) => ends,
        Err(error) => return Reply::refused(error),
    };
    let (written, mut whole) = oneshot::channel();
    let (ticks, mut progressed) = mpsc::channel(1);
    let told = reporter.clone();
    let writing = move || {
        // The receiver is gone if the caller has disconnected.
        let _given_up = written.send(write_chunks(&destination, chunks, &told, &ticks));
    };
    tokio::task::spawn_blocking(writing);
    loop {
        tokio::select! {
            biased;
            written = &mut whole => return match written {
                Ok(Ok(reply)) => reply,
                Ok(Err(error)) => Reply::failed(format!("on this machine: {error}")),
                Err(_thread_died) => Reply::failed("the file was not received"),
            },
            Some(end) = ends.recv() => {
                let reply = query::to_reply(end.result);
                if reply.state != Outcome::Done {
                    return reply;
                }
                // All chunks are sent; the outcome is decided when they are written.
            }
            tick = timeout(stall_timeout, progressed.recv()) => {
                if tick.is_err() {
                    return Reply::ended(Outcome::NoAnswer, format!("no progress for {} s", stall_timeout.as_secs_f64()));
                }
            }
        }
    }
}

/// Writes chunks as they come, until the end of the file, which has to match.
fn write_chunks(
    destination: &Destination,
    mut chunks: mpsc::Receiver<Box<Frame>>,
    reporter: &Reporter,
    ticks: &mpsc::Sender<()>,
) -> Result<Reply, FileError> {
    // The node sends the size at the end.
    let mut file = IncomingFile::create(&destination.roots, &destination.copy, None)?;
    let mut reported = 0;
    while let Some(frame) = chunks.blocking_recv() {
        // A full channel has reported progress already.
        ticks.try_send(()).ok();
        if frame.header.kind == Some(Kind::Chunk) {
            file.write(frame.header.offset.unwrap_or_default(), &frame.content)?;
            let bytes = file.written();
            if bytes - reported >= PROGRESS_INTERVAL_BYTES {
                reported = bytes;
                reporter.try_send(Event::Progress {
                    node: destination.target.clone(),
                    bytes,
                    total: bytes,
                });
            }
            continue;
        }
        let Ok(end) = frame.parse_content::<FileEnd>() else {
            return Ok(Reply::failed("the node's end of the file is unreadable"));
        };
        let written = file.finish(end.size, end.sha256, end.mode.unwrap_or(0o644))?;
        return Ok(Reply::done(
            json!({ "size": written.size, "sha256": hex::encode(&written.sha256) }),
        ));
    }
    Ok(Reply::failed("the transfer was given up"))
}

#[cfg(test)]
mod tests {

    use swarm_shared::net::endpoint::{Config, Endpoint};
    use swarm_shared::net::handshake::Identity;
    use swarm_shared::net::socket::KeepaliveConfig;
    use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
    use swarm_shared::proto::session::Timing;
    use swarm_shared::proto::trust::SigningKey;
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn offline_fetch_targets_wait_in_parallel() {
        let config = Config {
            kind: PeerKind::Station,
            name: NodeName::from_host("station"),
            tags: BTreeMap::new(),
            listen: ([127, 0, 0, 1], 0).into(),
            keepalive: KeepaliveConfig::default(),
            timing: Timing::default(),
            membership: None,
            joins: None,
        };
        let identity = Identity::new(SigningKey::from_seed([1; 32])).expect("randomness");
        let (endpoint, _events) = Endpoint::start(config, Arc::new(identity)).expect("started");
        let state = tempfile::tempdir().expect("a directory");
        let store = crate::store::Store::open(state.path()).await.expect("a store");
        let deliveries = crate::engine::delivery::handle::channel().0;
        let stops = crate::engine::stop::coordinator::StopCoordinator::new(0, Default::default(), None);
        let shared = SharedContext::for_test(endpoint.clone(), store, deliveries, stops);
        let (_never, online) = watch::channel(false);
        let (_silent, offered) = watch::channel(Default::default());
        let mut targets = Vec::new();
        for number in 1..=5 {
            let id = PublicKey([number; 32]).id();
            targets.push(Target {
                node: NodeRef {
                    node: NodeName::from_host(&format!("n{number}")),
                    id,
                },
                device: Device::Node(NodeDevice {
                    link: endpoint.open_session(id).await.expect("opened"),
                    online: online.clone(),
                    action_catalog: offered.clone(),
                    address: None,
                }),
                name_is_unique: true,
            });
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (events, mut told) = mpsc::channel(64);
        let pause = Duration::from_millis(400);
        let began = clock::now();
        let path = "logs/run.log".to_owned();
        let origin = Origin::command_by("pi");
        let record = history_record(&Selector::all(), &targets, &path, dir.path(), origin);
        let reporter = Reporter::for_test(&shared, events);
        reporter.open_history(record, crate::engine::reporter::given_up, false);
        run(shared, targets, path, dir.path().to_owned(), pause, reporter).await;
        assert!(clock::now() - began < pause * 2, "one after the other");
        let mut absent = 0;
        while let Some(event) = told.recv().await {
            if let Event::Delivery(delivery) = event {
                assert_eq!(delivery.state, Outcome::NoAnswer);
                absent += 1;
            }
        }
        assert_eq!(absent, 5);
        endpoint.shutdown().await;
    }
}
