//! The node's links: commands come in over them, replies and files go out.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | links | the endpoint's events, a handle of each linked peer | at stop |
//! | fleet keeper | what is remembered of the fleet | at stop |
//! | one for each command | its reply | with the reply |
//! | one for each peer that moves files | nothing: passes chunks on in order | with the peer's session |
//!
//! Invariant: links waits for no disk and no program. While it takes no events the sessions read nothing, and a stop would
//! lie in the socket.

mod commands;
mod executor_driver;
mod files;
pub mod local_commands;
mod replies;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use swarm_shared::net::discovery::presence::{self, Means, Presence};
use swarm_shared::net::endpoint::notice_throttle::Hush;
use swarm_shared::net::endpoint::{self, Endpoint, Events, Notice};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::{PeerEvent, PeerInfo, PeerLink};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::{boot, clock};
use swarm_shared::proto::address_book::{Hint, Source};
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::message::Offer;
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::gate::{Wish, permit};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::commands::{ANSWERS_MAX, COMMANDS_MAX, take_command};
use self::executor_driver::Acts;
use self::files::take_files;
use self::local_commands::{Errand, Errands, Numbers, take_errand};
use crate::actions::Actions;
use crate::enrol::{self, Enrolment};
use crate::fleet_store::Memory;
use crate::lost_link;
use crate::node::Node;
use crate::status::{LinkView, Status};
use crate::stop::{self, Stopping};
use crate::transfers::Transfers;

/// How long what runs may take to end at shutdown, until its outcome is written.
const DRAIN_MAX: Duration = Duration::from_secs(4);

/// How long a change of what this node can do is held back, so that a plug-in that comes and goes does not fill links.
const OFFER_AFTER: Duration = Duration::from_millis(200);

/// The links of a running node.
#[derive(Debug)]
pub struct Links {
    endpoint: Endpoint,
    presence: Presence,
    /// Cancelled once nothing runs any more.
    drained: CancellationToken,
    errands: Errands,
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
    stopping: Stopping,
    endpoint: Endpoint,
    actions: Actions,
    transfers: Transfers,
    commands: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Task {
    work: Work,
    acts: Acts,
    errands: mpsc::Receiver<Errand>,
    numbers: Numbers,
    /// Cancels [`Links::drained`] when this task ends, however it does.
    _drained: DropGuard,
    memory: Memory,
    status: Status,
    peers: BTreeMap<PeerId, Linked>,
    runs: BTreeMap<PeerId, swarm_shared::proto::id::Instance>,
    hush: Hush,
    /// The sessions of stations that may command, for the dead-man.
    commanding: watch::Sender<BTreeMap<PeerId, PeerLink>>,
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
        let (datagrams, datagrams_heard) = mpsc::channel(stop::DATAGRAMS_MAX);
        let (endpoint, mut events) = Endpoint::start(endpoint_config, identity)?;
        let means = Means {
            mdns: config.mdns,
            pings: config.pings.then_some(config.ping_port),
        };
        let mut presence =
            presence::start_hearing(&endpoint, means, Some(datagrams)).context("cannot listen for pings")?;
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

        let (_none, nothing) = mpsc::channel(1);
        let stopping = Stopping::start(stop::Setup {
            endpoint: endpoint.clone(),
            config: config.emergency_stop.clone(),
            journal: node.journal.clone(),
            ledger: node.ledger.clone(),
            relay: means.pings.map(|port| stop::Relay {
                interfaces: presence.interfaces.clone(),
                port,
            }),
            links: std::mem::replace(&mut events.stops, nothing),
            datagrams: datagrams_heard,
            status: node.status.clone(),
            stop: node.stop.clone(),
            tasks: node.tasks.clone(),
        });
        let (commanding, stations) = watch::channel(BTreeMap::new());
        if let Some(config) = config.lost_link.clone() {
            node.tasks.spawn(lost_link::run(lost_link::Setup {
                config,
                stations,
                in_force: stopping.in_force(),
                memory: memory.clone(),
                boot: boot::id(),
                status: node.status.clone(),
                stop: node.stop.clone(),
            }));
        }
        let work = Work {
            stopping,
            endpoint: endpoint.clone(),
            actions: node.actions.clone(),
            transfers: node.transfers.clone(),
            commands: Arc::new(Semaphore::new(COMMANDS_MAX)),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            tasks: node.tasks.clone(),
            stop: node.stop.clone(),
        };
        let acts = Acts::new(
            node.actions.clone(),
            node.journal.clone(),
            node.ledger.clone(),
            node.tasks.clone(),
        );
        let drained = CancellationToken::new();
        let (errands, to_do) = Errands::new(node.actions.clone());
        let task = Task {
            work,
            acts,
            errands: to_do,
            numbers: Numbers::new(node.key.public().id(), &node.ledger),
            _drained: drained.clone().drop_guard(),
            memory: memory.clone(),
            status: node.status.clone(),
            peers: BTreeMap::new(),
            runs: BTreeMap::new(),
            hush: Hush::default(),
            commanding,
        };
        node.tasks.spawn(task.run(events, node.name.clone()));
        let (keeper, stop) = (memory.clone(), node.stop.clone());
        let fleets = endpoint.membership();
        node.tasks
            .spawn(async move { keeper.keep_fleets(fleets, stop).await });
        let (_none, nobody) = mpsc::channel(1);
        let enrolment = Enrolment {
            endpoint: endpoint.clone(),
            keepalive,
            code: config.join.clone(),
            adoptable: config.adoptable,
            known: config.stations.clone(),
            strangers: std::mem::replace(&mut presence.strangers, nobody),
            requests: node.take_joins(),
            patience: enrol::REQUEST_PATIENCE,
            memory,
            status: node.status.clone(),
            stop: node.stop.clone(),
        };
        node.tasks.spawn(enrol::run(enrolment));
        Ok(Self {
            endpoint,
            presence,
            drained,
            errands,
        })
    }

    /// Where doors hand in what they want done.
    pub fn errands(&self) -> Errands {
        self.errands.clone()
    }

    /// Waits until the outcomes of what ran are kept, says goodbye to all peers, and ends. The node's `stop` is
    /// cancelled before.
    pub async fn shut_down(self) {
        // The task itself gives up after that time.
        self.drained.cancelled().await;
        self.presence.shutdown().await;
        self.endpoint.shutdown().await;
    }
}

impl Task {
    async fn run(mut self, mut events: Events, mut name: watch::Receiver<swarm_shared::proto::id::NodeName>) {
        let mut membership = self.work.endpoint.membership();
        self.show_fleet(membership.borrow_and_update().clone().as_deref());
        let mut offers = self.work.actions.offer_changes();
        let mut offer_at = None;
        let stop = self.work.stop.clone();
        let mut in_force = self.work.stopping.in_force();
        if in_force.borrow_and_update().is_some() {
            self.acts.stopped(true, &self.work);
        }
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.drain().await,
                Ok(()) = in_force.changed() => {
                    let stopped = in_force.borrow_and_update().is_some();
                    self.acts.stopped(stopped, &self.work);
                }
                word = self.acts.word() => {
                    self.acts.take(word, &self.work);
                }
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.show_fleet(now.as_deref());
                }
                Ok(()) = offers.changed(), if offer_at.is_none() => {
                    offers.borrow_and_update();
                    offer_at = Some(clock::now() + OFFER_AFTER);
                }
                () = clock::sleep_until(offer_at.unwrap_or_else(clock::now)), if offer_at.is_some() => {
                    offer_at = None;
                    self.offer_all();
                }
                Ok(()) = name.changed() => {
                    let name = name.borrow_and_update().clone();
                    self.work.endpoint.rename(name);
                }
                Some(notice) = events.notices.recv() => self.take_notice(&notice),
                Some(event) = events.peers.recv() => self.take_event(event).await,
                Some(errand) = self.errands.recv() => {
                    take_errand(&mut self.acts, &self.work, &mut self.numbers, errand);
                }
            }
        }
    }

    /// What runs is being killed: its outcomes are written, and told to whoever is linked.
    async fn drain(&mut self) {
        self.acts.close(&self.work);
        let drained = async {
            while !self.acts.is_idle() {
                let word = self.acts.word().await;
                self.acts.take(word, &self.work);
            }
        };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(max = ?DRAIN_MAX, "what ran did not end in time; its outcome will be unknown");
        }
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
                self.work.stopping.down(id).await;
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
                if frame.header.kind == Some(Kind::Command) {
                    let Some(linked) = self.peers.get(&peer.id) else {
                        return;
                    };
                    take_command(&mut self.acts, &self.work, &peer, &linked.link, *frame, deadline);
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
            // Aside: a memory card may take seconds, and an emergency stop is not to wait for it.
            let (memory, listens) = (self.memory.clone(), peer.listens);
            self.work
                .tasks
                .spawn(async move { memory.keep_station(listens).await });
        }
        let Ok(link) = self.work.endpoint.open(peer.id).await else {
            return;
        };
        if peer.kind == PeerKind::Station {
            offer(&link, &self.work.actions.offer());
            self.work.stopping.up(link.clone()).await;
            if permit(peer.role, &Wish::Frame(Kind::Stop)).is_ok() {
                self.commanding
                    .send_modify(|known| drop(known.insert(peer.id, link.clone())));
            }
        }
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

    /// What this node can do has changed.
    fn offer_all(&self) {
        let stations = self
            .peers
            .values()
            .filter(|linked| linked.info.kind == PeerKind::Station);
        let now = self.work.actions.offer();
        for linked in stations {
            offer(&linked.link, &now);
        }
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

/// Tells a station what this node can do. A station that does not hear it takes every action for an ordinary one.
fn offer(link: &PeerLink, offer: &Offer) {
    let sent = Parcel::new(&Frame::json(Kind::Offer, offer))
        .map_err(|error| error.to_string())
        .and_then(|parcel| {
            let outgoing = Outgoing {
                parcel,
                lane: Lane::Control,
                deadline: None,
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "it is not told what this node can do");
    }
}
