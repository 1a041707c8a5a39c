//! The node's links: commands come in over them, replies and files go out.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | links | the endpoint's events, a handle of each linked peer, what is remembered of the fleet | at stop |
//! | one for each command | its reply | with the reply |
//! | one for each peer that moves files | nothing: passes chunks on in order | with the peer's session |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::from_value;
use swarm_shared::net::clock;
use swarm_shared::net::discovery::presence::{self, Means, Presence};
use swarm_shared::net::endpoint::hush::Hush;
use swarm_shared::net::endpoint::{self, Endpoint, Events, Notice};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::{PeerEvent, PeerInfo, PeerLink};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::dial::{Hint, Source};
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::message::{Arguments, FileEnd};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::parcel::Parcel;
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Header, Kind, Lane, WireError};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actions::{Actions, Command};
use crate::daemon::Node;
use crate::enrol::{self, Enrolment};
use crate::memory::Memory;
use crate::status::{LinkView, Status};
use crate::transfers::Transfers;

/// Commands that may be at work at once; one more is refused as busy.
const COMMANDS_MAX: usize = 256;
/// How long a reply waits for room.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// Chunks of one file that wait for its connection.
const CHUNKS_WAITING: usize = 2;

/// The links of a running node.
#[derive(Debug)]
pub struct Links {
    endpoint: Endpoint,
    presence: Presence,
}

/// A linked peer.
struct Linked {
    info: Arc<PeerInfo>,
    link: PeerLink,
    since: Instant,
}

/// What the tasks of commands and files need.
#[derive(Clone)]
struct Work {
    endpoint: Endpoint,
    actions: Actions,
    transfers: Transfers,
    commands: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Task {
    work: Work,
    memory: Memory,
    status: Status,
    peers: BTreeMap<PeerId, Linked>,
    runs: BTreeMap<PeerId, swarm_shared::proto::id::Instance>,
    hush: Hush,
}

impl Links {
    /// Listens, looks for stations, and takes commands.
    ///
    /// # Errors
    /// Why it cannot: most often a port in use.
    pub async fn start(node: &mut Node) -> anyhow::Result<Self> {
        let config = &node.config;
        let keepalive = &config.keepalive;
        let keepalive =
            KeepaliveConfig::new(keepalive.idle, keepalive.interval, u32::from(keepalive.probes))?;
        let memory = Memory::new(node.state.path());
        let membership = memory.fleet(&node.key.public());
        let endpoint_config = endpoint::Config {
            kind: PeerKind::Node,
            name: node.name.borrow().clone(),
            tags: config.tag_map(),
            listen: config.listen,
            keepalive,
            timing: Timing::from_heartbeat(config.heartbeat.interval),
            membership,
            joins: None,
        };
        let identity = Arc::new(Identity::new(node.key.clone())?);
        let (endpoint, events) = Endpoint::start(endpoint_config, identity)?;
        let means = Means {
            mdns: config.mdns,
            pings: config.pings.then_some(config.ping_port),
        };
        let mut presence = presence::start(&endpoint, means).context("cannot listen for pings")?;
        for addr in &config.stations {
            endpoint.heard(*addr, Source::Static, Hint::None).await;
        }
        for addr in memory.stations() {
            endpoint.heard(addr, Source::Known, Hint::None).await;
        }
        let listens = endpoint.listens();
        node.status
            .update(|facts| facts.listen = Some(listens.to_string()));
        tracing::info!(addr = %listens, "listening");

        let work = Work {
            endpoint: endpoint.clone(),
            actions: node.actions.clone(),
            transfers: node.transfers.clone(),
            commands: Arc::new(Semaphore::new(COMMANDS_MAX)),
            tasks: node.tasks.clone(),
            stop: node.stop.clone(),
        };
        let task = Task {
            work,
            memory: memory.clone(),
            status: node.status.clone(),
            peers: BTreeMap::new(),
            runs: BTreeMap::new(),
            hush: Hush::default(),
        };
        node.tasks.spawn(task.run(events, node.name.clone()));
        let (_none, nobody) = mpsc::channel(1);
        let enrolment = Enrolment {
            endpoint: endpoint.clone(),
            keepalive,
            code: config.join.clone(),
            adoptable: config.adoptable,
            known: config.stations.clone(),
            strangers: std::mem::replace(&mut presence.strangers, nobody),
            requests: node.take_joins(),
            memory,
            status: node.status.clone(),
            stop: node.stop.clone(),
        };
        node.tasks.spawn(enrol::run(enrolment));
        Ok(Self { endpoint, presence })
    }

    /// Says goodbye to all peers and ends.
    pub async fn shut_down(self) {
        self.presence.shutdown().await;
        self.endpoint.shutdown().await;
    }
}

impl Task {
    async fn run(mut self, mut events: Events, mut name: watch::Receiver<swarm_shared::proto::id::NodeName>) {
        let mut membership = self.work.endpoint.membership();
        self.show_fleet(membership.borrow_and_update().clone().as_deref());
        let stop = self.work.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.keep_fleet(now.as_deref()).await;
                }
                Ok(()) = name.changed() => {
                    let name = name.borrow_and_update().clone();
                    self.work.endpoint.rename(name);
                }
                Some(notice) = events.notices.recv() => self.take_notice(&notice),
                Some(event) = events.peers.recv() => self.take_event(event).await,
            }
        }
    }

    async fn keep_fleet(&self, membership: Option<&Membership>) {
        if let Some(membership) = membership {
            self.memory.keep_fleet(membership).await;
        }
        self.show_fleet(membership);
    }

    fn show_fleet(&self, membership: Option<&Membership>) {
        let fleet = membership.map(|membership| membership.fingerprint().short());
        self.status.update(|facts| facts.fleet = fleet);
    }

    fn take_notice(&mut self, notice: &Notice) {
        let text = notice.to_string();
        if let Notice::Renamed { .. } = notice {
            return tracing::info!("{text}");
        }
        if self.hush.is_news(notice, clock::now()) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("again: {text}");
        }
        self.status.update(|facts| facts.last_refusal = Some(text));
    }

    async fn take_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Up { peer, resumed } => self.up(peer, resumed).await,
            PeerEvent::Silent(_) | PeerEvent::Heard(_) => {}
            PeerEvent::Down { id, why } => {
                if let Some(linked) = self.peers.remove(&id) {
                    tracing::info!(peer = %linked.info.name, why, "link lost");
                }
                self.show_links();
            }
            PeerEvent::Bulk { link, events, .. } => {
                self.work.tasks.spawn(take_files(self.work.clone(), link, events));
            }
            PeerEvent::Frame {
                peer,
                frame,
                deadline,
                ..
            } => {
                let link = self.peers.get(&peer.id).map(|linked| linked.link.clone());
                if let (Some(link), Some(Kind::Command)) = (link, frame.header.kind) {
                    self.work.take_command(&peer, &link, *frame, deadline);
                }
            }
        }
    }

    async fn up(&mut self, peer: Arc<PeerInfo>, resumed: bool) {
        tracing::info!(peer = %peer.name, id = %peer.id.short(), addr = %peer.addr, resumed, "linked");
        let other_run = self
            .runs
            .insert(peer.id, peer.instance)
            .is_some_and(|run| run != peer.instance);
        if other_run {
            // Its files were of the process that is gone.
            self.work.transfers.lost(peer.id);
        }
        if peer.kind == PeerKind::Station && peer.listens.port() != 0 {
            self.memory.keep_station(peer.listens).await;
        }
        let Ok(link) = self.work.endpoint.open(peer.id).await else {
            return;
        };
        let id = peer.id;
        self.peers.insert(
            id,
            Linked {
                info: peer,
                link,
                since: clock::now(),
            },
        );
        self.show_links();
    }

    fn show_links(&self) {
        let view = |linked: &Linked| LinkView {
            name: linked.info.name.to_string(),
            id: linked.info.id.short(),
            kind: linked.info.kind.to_string(),
            addr: linked.info.addr.to_string(),
            up_s: 0,
            since: Some(linked.since),
        };
        let links: Vec<LinkView> = self.peers.values().map(view).collect();
        self.status.update(|facts| facts.links = links);
    }
}

impl Work {
    /// Runs a command that the gate has let in; its reply goes back over `link`.
    fn take_command(&self, peer: &PeerInfo, link: &PeerLink, frame: Frame, deadline: Option<Instant>) {
        let Ok(turn) = Arc::clone(&self.commands).try_acquire_owned() else {
            return answer(
                link,
                &frame.header,
                &Reply::refused("busy: too many commands at once; try again"),
            );
        };
        let arguments = match arguments(&frame) {
            Ok(arguments) => arguments,
            Err(reply) => return self.answer_soon(link, frame.header, reply),
        };
        let (work, link, header) = (self.clone(), link.clone(), frame.header);
        let command = Command {
            id: header.id.unwrap_or_default(),
            peer: peer.id,
            role: peer.role,
            action: header.action.clone().unwrap_or_default(),
            arguments,
            deadline,
        };
        self.tasks.spawn(async move {
            let reply = if command.action == "filetransfer" {
                send_file(&work.endpoint, &work.transfers, &command).await
            } else {
                work.actions.run(command).await
            };
            answer_in_turn(&link, &header, &reply).await;
            drop(turn);
        });
    }

    /// Answers without keeping its caller waiting.
    fn answer_soon(&self, link: &PeerLink, command: Header, reply: Reply) {
        let link = link.clone();
        self.tasks
            .spawn(async move { answer_in_turn(&link, &command, &reply).await });
    }
}

/// A file that the peer asks for, on its way over the connection for files.
async fn send_file(endpoint: &Endpoint, transfers: &Transfers, command: &Command) -> Reply {
    let (chunks, frames) = mpsc::channel::<Frame>(CHUNKS_WAITING);
    let mut outcome = transfers.begin(command.peer, command.id, &command.arguments, chunks);
    let ended = |outcome: Result<Reply, _>| {
        outcome.unwrap_or_else(|_: oneshot::error::RecvError| Reply::failed("the node is shutting down"))
    };
    let moving = async move {
        // Closed when nothing can be passed on any more, so that the transfer hears of it at once.
        let mut frames = frames;
        let Ok(bulk) = endpoint.bulk(command.peer).await else {
            return;
        };
        while let Some(frame) = frames.recv().await {
            let Ok(parcel) = Parcel::new(&frame) else { return };
            if bulk
                .send(Outgoing {
                    parcel,
                    lane: Lane::Bulk,
                    deadline: None,
                })
                .await
                .is_err()
            {
                return;
            }
        }
    };
    tokio::pin!(moving);
    let reply = tokio::select! {
        outcome = &mut outcome => outcome,
        // Nobody takes chunks any more: the transfer sees it and says why.
        () = &mut moving => return ended(outcome.await),
    };
    let reply = ended(reply);
    if reply.state == Outcome::Done {
        // All is read; the last chunks still wait for room, which never comes if the peer does not.
        if tokio::time::timeout(ANSWER_PATIENCE, moving).await.is_err() {
            return Reply::failed("the connection stood still before the last of the file was sent");
        }
    }
    reply
}

/// What a peer sends over its connection for files, in order. A full disk queue holds back this peer only.
async fn take_files(work: Work, bulk: PeerLink, mut events: mpsc::Receiver<PeerEvent>) {
    let peer_id = bulk.id();
    while let Some(event) = events.recv().await {
        let PeerEvent::Frame { frame, deadline, .. } = event else {
            continue;
        };
        let Some(id) = frame.header.id else { continue };
        match frame.header.kind {
            Some(Kind::Chunk) => {
                let offset = frame.header.offset.unwrap_or_default();
                work.transfers.chunk(peer_id, id, offset, frame.content).await;
            }
            Some(Kind::ChunkEnd) => match frame.read::<FileEnd>() {
                Ok(end) => work.transfers.end(peer_id, id, end),
                Err(error) => tracing::warn!(%error, id, "unreadable end of a file"),
            },
            Some(Kind::Command) => begin_file(&work, &bulk, id, *frame, deadline),
            _ => tracing::debug!(kind = ?frame.header.kind, "frame not asked for"),
        }
    }
}

/// The command that announces a file. The transfer is known before the next frame is read. The reply goes back on
/// the session that the command came on: there it is waited for.
fn begin_file(work: &Work, link: &PeerLink, id: u64, frame: Frame, deadline: Option<Instant>) {
    if frame.header.action.as_deref() != Some("filetransfer") {
        let reply = Reply::refused("only filetransfer comes on a connection for files");
        return work.answer_soon(link, frame.header, reply);
    }
    if deadline.is_some_and(|deadline| clock::now() >= deadline) {
        let reply = Reply::ended(Outcome::Expired, "too late when it arrived");
        return work.answer_soon(link, frame.header, reply);
    }
    let arguments = match arguments(&frame) {
        Ok(arguments) => arguments,
        Err(reply) => return work.answer_soon(link, frame.header, reply),
    };
    // A file that comes in sends nothing, so nobody reads this.
    let (nothing, _unread) = mpsc::channel(1);
    let outcome = work.transfers.begin(link.id(), id, &arguments, nothing);
    let link = link.clone();
    work.tasks.spawn(async move {
        let reply = outcome
            .await
            .unwrap_or_else(|_ended| Reply::failed("the node is shutting down"));
        answer_in_turn(&link, &frame.header, &reply).await;
    });
}

fn arguments(frame: &Frame) -> Result<Arguments, Reply> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Reply::refused(format!(
            "the arguments are unreadable: {error}; send {{\"args\": [], \"kwargs\": {{}}}}"
        ))
    };
    let value = frame.value().map_err(|error| unreadable(&error))?;
    from_value(value).map_err(|error| unreadable(&error))
}

/// Answers, waiting for room: behind a file that is on its way there may be none just now.
async fn answer_in_turn(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = match outgoing_reply(command, reply) {
        Ok(outgoing) => match tokio::time::timeout(ANSWER_PATIENCE, link.send(outgoing)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no room for it within {ANSWER_PATIENCE:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    tell_lost(link, command, sent);
}

/// Answers if there is room at once: where so much comes in that answers must not pile up.
fn answer(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = outgoing_reply(command, reply)
        .map_err(|error| error.to_string())
        .and_then(|outgoing| link.try_send(outgoing).map_err(|error| error.to_string()));
    tell_lost(link, command, sent);
}

fn outgoing_reply(command: &Header, reply: &Reply) -> Result<Outgoing, WireError> {
    let mut frame = reply.to_frame(command);
    if frame.content.len() > CONTENT_BYTES_MAX {
        let short = format!(
            "it ended {}, but its reply of {} bytes fits no frame",
            reply.state,
            frame.content.len()
        );
        frame = Reply::ended(reply.state, short).to_frame(command);
    }
    Ok(Outgoing {
        parcel: Parcel::new(&frame)?,
        lane: command.lane.unwrap_or_default(),
        deadline: None,
    })
}

fn tell_lost(link: &PeerLink, command: &Header, sent: Result<(), String>) {
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), id = command.id, error, "a reply is lost");
    }
}

#[cfg(test)]
mod tests;
