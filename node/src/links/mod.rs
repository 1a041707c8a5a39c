//! The node's links: they bring commands and files, and take replies and files away.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | links | the executor, the endpoint's events, a handle of each linked peer | at shutdown |
//! | fleet store | the membership on its way to the disk | at shutdown |
//! | one for each command that runs outside the executor | its reply | with the reply |
//! | one for each peer that moves files | nothing: forwards chunks in order | with the peer's session |
//!
//! Invariant: the links task waits for no disk and no program. While it reads no events, the sessions read no frames, and
//! a stop would stay in the socket.

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
use swarm_shared::net::discovery::presence::{self, Methods, Presence};
use swarm_shared::net::endpoint::notice_throttle::NoticeThrottle;
use swarm_shared::net::endpoint::{self, Endpoint, Events, Notice};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::{PeerEvent, PeerInfo, PeerLink};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::{boot, clock};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::message::ActionCatalog;
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::gate::{Permission, permit};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::commands::{COMMANDS_MAX, REPLIES_MAX, ReceivedCommand, on_command};
use self::executor_driver::ExecutorDriver;
use self::files::receive_files;
use self::local_commands::{CommandIds, LocalCommand, LocalCommands, on_local_command};
use crate::actions::Actions;
use crate::enrol::{self, Enrolment};
use crate::fleet_store::FleetStore;
use crate::lost_link;
use crate::node::Node;
use crate::status::{LinkView, Status};
use crate::stop::{self, StopHandle};
use crate::transfers::Transfers;

/// How long running actions may take at shutdown until their outcomes are journaled.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a change of the actions is held back, so that a plug-in that restarts in a loop does not fill the links.
const CATALOG_DELAY: Duration = Duration::from_millis(200);

/// The links of a running node.
#[derive(Debug)]
pub struct Links {
    endpoint: Endpoint,
    presence: Presence,
    /// Cancelled when the links task has ended.
    drained: CancellationToken,
    local_commands: LocalCommands,
}

/// A linked peer.
struct LinkedPeer {
    info: Arc<PeerInfo>,
    link: PeerLink,
    since: Instant,
}

/// What the tasks of commands and files share.
#[derive(Clone)]
struct CommandContext {
    stop_handle: StopHandle,
    endpoint: Endpoint,
    actions: Actions,
    transfers: Transfers,
    command_slots: Arc<Semaphore>,
    reply_slots: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

struct Task {
    context: CommandContext,
    driver: ExecutorDriver,
    local_commands: mpsc::Receiver<LocalCommand>,
    command_ids: CommandIds,
    /// Cancels [`Links::drained`] when this task ends, however it does.
    _drained: DropGuard,
    store: FleetStore,
    status: Status,
    peers: BTreeMap<PeerId, LinkedPeer>,
    instances: BTreeMap<PeerId, swarm_shared::proto::id::Instance>,
    notice_throttle: NoticeThrottle,
    /// The sessions of stations that may send commands, for the lost-link task.
    commanding_stations: watch::Sender<BTreeMap<PeerId, PeerLink>>,
}

impl Links {
    /// Starts the endpoint, discovery, the emergency stop and the links task.
    ///
    /// # Errors
    /// The port is in use, or the key or the keepalive is invalid.
    pub async fn start(node: &mut Node) -> anyhow::Result<Self> {
        let config = &node.config;
        let keepalive = &config.keepalive;
        let keepalive = KeepaliveConfig::new(keepalive.idle, keepalive.interval, keepalive.probes)?;
        let store = FleetStore::new(node.state.path());
        let membership = store.load_fleet(&node.key.public());
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
        let methods = Methods {
            mdns: config.mdns,
            pings: config.pings.then_some(config.ping_port),
        };
        let mut presence = presence::start_with_stops(&endpoint, methods, Some(datagrams))
            .context("cannot listen for pings")?;
        for addr in &config.stations {
            endpoint
                .address_discovered(*addr, Source::Static, Hint::None)
                .await;
        }
        for addr in store.load_stations() {
            endpoint.address_discovered(addr, Source::Known, Hint::None).await;
        }
        let listens = endpoint.listen_addr();
        node.status
            .update(|facts| facts.listen = Some(listens.to_string()));
        tracing::info!(addr = %listens, "Listening");

        let (_sender, taken) = mpsc::channel(1);
        let stop_handle = StopHandle::start(stop::Setup {
            endpoint: endpoint.clone(),
            config: config.emergency_stop.clone(),
            journal: node.journal.clone(),
            restored: node.restored_stop.clone(),
            relay: methods.pings.map(|port| stop::Relay {
                interfaces: presence.interfaces.clone(),
                port,
            }),
            links: std::mem::replace(&mut events.stops, taken),
            datagrams: datagrams_heard,
            status: node.status.clone(),
            shutdown: node.shutdown.clone(),
            tasks: node.tasks.clone(),
        });
        let (commanding_stations, stations) = watch::channel(BTreeMap::new());
        if let Some(config) = config.lost_link.clone() {
            node.tasks.spawn(lost_link::run(lost_link::Setup {
                config,
                stations,
                stop_state: stop_handle.state(),
                store: store.clone(),
                boot: boot::id(),
                status: node.status.clone(),
                shutdown: node.shutdown.clone(),
            }));
        }
        let context = CommandContext {
            stop_handle,
            endpoint: endpoint.clone(),
            actions: node.actions.clone(),
            transfers: node.transfers.clone(),
            command_slots: Arc::new(Semaphore::new(COMMANDS_MAX)),
            reply_slots: Arc::new(Semaphore::new(REPLIES_MAX)),
            tasks: node.tasks.clone(),
            shutdown: node.shutdown.clone(),
        };
        let driver = ExecutorDriver::new(
            node.actions.clone(),
            node.journal.clone(),
            node.dedup.clone(),
            node.tasks.clone(),
        );
        let drained = CancellationToken::new();
        let (local_commands, local_command_queue) = LocalCommands::new();
        let task = Task {
            context,
            driver,
            local_commands: local_command_queue,
            command_ids: CommandIds::new(node.key.public().id(), &node.dedup),
            _drained: drained.clone().drop_guard(),
            store: store.clone(),
            status: node.status.clone(),
            peers: BTreeMap::new(),
            instances: BTreeMap::new(),
            notice_throttle: NoticeThrottle::default(),
            commanding_stations,
        };
        node.tasks.spawn(task.run(events, node.name.clone()));
        let (saver, shutdown) = (store.clone(), node.shutdown.clone());
        let fleets = endpoint.membership();
        node.tasks
            .spawn(async move { saver.save_fleet_changes(fleets, shutdown).await });
        let (_sender, taken) = mpsc::channel(1);
        let enrolment = Enrolment {
            endpoint: endpoint.clone(),
            keepalive,
            code: config.join.clone(),
            adoptable: config.adoptable,
            configured: config.stations.clone(),
            discovered: std::mem::replace(&mut presence.station_candidates, taken),
            requests: node.take_join_requests(),
            timeout: enrol::JOIN_CODE_TIMEOUT,
            store,
            status: node.status.clone(),
            shutdown: node.shutdown.clone(),
        };
        node.tasks.spawn(enrol::run(enrolment));
        Ok(Self {
            endpoint,
            presence,
            drained,
            local_commands,
        })
    }

    /// The handle by which gateways submit commands.
    pub fn local_commands(&self) -> LocalCommands {
        self.local_commands.clone()
    }

    /// Waits until the outcomes of running actions are journaled, then closes all links and ends. Cancel the node's
    /// `shutdown` before.
    pub async fn shut_down(self) {
        // Bounded by `DRAIN_TIMEOUT`.
        self.drained.cancelled().await;
        self.presence.shutdown().await;
        self.endpoint.shutdown().await;
    }
}

impl Task {
    async fn run(mut self, mut events: Events, mut name: watch::Receiver<swarm_shared::proto::id::NodeName>) {
        let mut membership = self.context.endpoint.membership();
        self.update_fleet_status(membership.borrow_and_update().clone().as_deref());
        let mut catalog_changes = self.context.actions.catalog_changes();
        let mut catalog_at = None;
        let shutdown = self.context.shutdown.clone();
        let mut stop_state = self.context.stop_handle.state();
        let restored = *stop_state.borrow_and_update();
        self.driver.on_stop_changed(restored, &self.context);
        loop {
            // The records of a burst of commands become one append.
            if events.peers.is_empty() {
                self.driver.flush_writes();
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.drain().await,
                Ok(()) = stop_state.changed() => {
                    let state = *stop_state.borrow_and_update();
                    self.driver.on_stop_changed(state, &self.context);
                }
                event = self.driver.next_event() => {
                    self.driver.on_event(event, &self.context);
                }
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.update_fleet_status(now.as_deref());
                }
                Ok(()) = catalog_changes.changed(), if catalog_at.is_none() => {
                    catalog_changes.borrow_and_update();
                    catalog_at = Some(clock::now() + CATALOG_DELAY);
                }
                () = clock::sleep_until(catalog_at.unwrap_or_else(clock::now)), if catalog_at.is_some() => {
                    catalog_at = None;
                    self.send_catalogs();
                }
                Ok(()) = name.changed() => {
                    let name = name.borrow_and_update().clone();
                    self.context.endpoint.rename(name);
                }
                Some(notice) = events.notices.recv() => self.on_notice(&notice),
                Some(event) = events.peers.recv() => self.on_peer_event(event).await,
                Some(command) = self.local_commands.recv() => {
                    on_local_command(&mut self.driver, &self.context, &mut self.command_ids, command);
                }
            }
        }
    }

    /// Running actions are being killed: waits until their outcomes are journaled and sent to linked peers.
    async fn drain(&mut self) {
        self.driver.close(&self.context);
        let drained = async {
            while !self.driver.is_idle() {
                self.driver.flush_writes();
                let event = self.driver.next_event().await;
                self.driver.on_event(event, &self.context);
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(max = ?DRAIN_TIMEOUT, "Running actions outlived shutdown; their outcome will be unknown");
            self.driver.detach_running();
        }
    }

    fn update_fleet_status(&self, membership: Option<&Membership>) {
        let fleet = membership.map(|membership| membership.fingerprint().short());
        self.status.update(|facts| facts.fleet = fleet);
    }

    fn on_notice(&mut self, notice: &Notice) {
        let text = notice.to_string();
        if let Notice::Renamed { .. } = notice {
            return tracing::info!("{text}");
        }
        if self.notice_throttle.should_report(notice, clock::now()) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("Repeated: {text}");
        }
        self.status.update(|facts| facts.last_refusal = Some(text));
    }

    async fn on_peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Connected { peer, link, resumed } => self.on_connected(peer, link, resumed).await,
            PeerEvent::Silent(_) | PeerEvent::Responsive(_) => {}
            PeerEvent::Disconnected { id, reason } => {
                self.context.stop_handle.remove_station(id).await;
                if let Some(linked) = self.peers.remove(&id) {
                    tracing::info!(peer = %linked.info.name, reason, "Link lost");
                }
                self.update_link_status();
            }
            PeerEvent::BulkOpened { link, events, .. } => {
                self.context
                    .tasks
                    .spawn(receive_files(self.context.clone(), link, events));
            }
            PeerEvent::Frame {
                peer,
                frame,
                class,
                deadline,
                ..
            } => {
                if frame.header.kind == Some(Kind::Command)
                    && let Some(linked) = self.peers.get(&peer.id)
                {
                    let received = ReceivedCommand {
                        frame: *frame,
                        class,
                        deadline,
                    };
                    on_command(&mut self.driver, &self.context, &peer, &linked.link, received);
                }
            }
        }
    }

    async fn on_connected(&mut self, peer: Arc<PeerInfo>, link: PeerLink, resumed: bool) {
        tracing::info!(peer = %peer.name, id = %peer.id.short(), addr = %peer.addr, resumed, "Linked");
        let restarted = self
            .instances
            .insert(peer.id, peer.instance)
            .is_some_and(|run| run != peer.instance);
        if restarted {
            // Its transfers belonged to the process that has ended.
            self.context.transfers.on_peer_lost(peer.id);
        }
        if peer.kind == PeerKind::Station && peer.listen_addr.port() != 0 {
            // In a task of its own: a memory card may take seconds, and an emergency stop must not wait for it.
            let (store, listens) = (self.store.clone(), peer.listen_addr);
            self.context
                .tasks
                .spawn(async move { store.save_station(listens).await });
        }
        if peer.kind == PeerKind::Station {
            self.context.stop_handle.add_station(link.clone()).await;
            send_catalog(&link, &self.context.actions.catalog());
            if permit(peer.role, &Permission::Frame(Kind::Stop)).is_ok() {
                self.commanding_stations
                    .send_modify(|known| drop(known.insert(peer.id, link.clone())));
            }
        }
        let id = peer.id;
        self.peers.insert(
            id,
            LinkedPeer {
                info: peer,
                link,
                since: clock::now(),
            },
        );
        self.update_link_status();
    }

    /// The actions of this node have changed: sends them to all linked stations.
    fn send_catalogs(&self) {
        let stations = self
            .peers
            .values()
            .filter(|linked| linked.info.kind == PeerKind::Station);
        let now = self.context.actions.catalog();
        for linked in stations {
            send_catalog(&linked.link, &now);
        }
    }

    fn update_link_status(&self) {
        let view = |linked: &LinkedPeer| LinkView {
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

/// Sends a station the list of this node's actions. A station without it treats every action as an ordinary one.
fn send_catalog(link: &PeerLink, catalog: &ActionCatalog) {
    let sent = EncodedFrame::new(&Frame::json(Kind::Offer, catalog))
        .map_err(|error| error.to_string())
        .and_then(|frame| {
            let outgoing = Outgoing {
                frame,
                lane: Lane::Control,
                deadline: None,
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "List of actions not sent");
    }
}
