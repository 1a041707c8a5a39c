//! The engine: carries requests out over the links of this process and the bridged devices of its gateways.
//!
//! A request enters at `dispatch.rs`, which selects its targets in the registry and starts a task for it. The engine's
//! own task waits neither for a peer nor for the disk, so an emergency stop passes whatever else is asked.
//!
//! | folder | what it does |
//! |---|---|
//! | `delivery` | commands: tracker, queries, cancel, retry, history |
//! | `files` | `send` and `fetch` |
//! | `stop` | emergency stops and releases |
//! | `membership` | members of the fleet, users of the gateways |
//! | `observe` | `nodes --watch`, subscribers, the actions that nodes offer |
//! | `transport` | how a command reaches a device: own link or gateway |
//!
//! ARCHITECTURE.md lists the tasks.

#[cfg(test)]
mod bridged_tests;
pub(in crate::engine) mod delivery;
mod dispatch;
pub mod files;
mod membership;
pub mod observe;
mod registry;
mod reporter;
mod respond;
pub mod stop;
pub mod transport;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::discovery::pings::PingError;
use swarm_shared::net::discovery::presence::{self, Methods, Presence, ServicePublisher};
use swarm_shared::net::endpoint::notice_throttle::NoticeThrottle;
use swarm_shared::net::endpoint::{self, Endpoint, Events, Notice, PENDING_JOINS_MAX, StartError};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, IdentityError, KeyFile};
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::net::random::NoRandomness;
use swarm_shared::net::socket::{KeepaliveConfig, KeepaliveError, SocketError};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::wire::{Frame, Kind};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::engine::transport::gateway_peers::GatewayPeers;
use crate::store::{MemberRow, Store, StoreError};
pub use delivery::cancel::cancel_only_fleet;
use files::memory_budget::MemoryBudget;
use membership::authority::FleetAuthority;
use observe::subscribers::Subscribers;
use observe::watchers::Watchers;
use registry::{NodeRegistry, SharedNodeRegistry};
use stop::latches::StopLatches;
use stop::unconfirmed::{Debounce, UnconfirmedStops};
use swarm_shared::api::{Event, Warning};
use swarm_shared::client::{Fleet, REQUESTS_MAX, RequestEnvelope};
use transport::bridge::BridgedDevices;

/// How often what has changed of members is written to the store, and watchers are told what found no room before.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long until members that the disk refused are stored again.
const SAVE_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How often a waiting `nodes` looks whether all are there.
const NODES_QUERY_INTERVAL: Duration = Duration::from_millis(20);
/// Shortest time between two looks for changes of bridged devices.
const DEVICE_CHANGES_INTERVAL: Duration = Duration::from_millis(100);

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Where keys and members are kept; it exists, and this process owns it.
    pub state_dir: PathBuf,
    /// How long it stays.
    pub mode: Mode,
    /// Whether a gateway may bridge devices of other programs, now or in another run of this station: their stops are
    /// latched.
    pub bridges_devices: bool,
}

/// What an engine is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It stays up: `serve`, `nodes --watch`.
    Daemon,
    /// It goes after one request: if its port is taken, any other does, for nodes are told where to dial.
    OneShot,
    /// Likewise, and the request is an emergency stop of these nodes: what waits for them is withdrawn before any link
    /// is heard of, and so before the stop can be asked for.
    Stop(Selector),
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address, or the key.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The key file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port for pings.
    #[error(transparent)]
    Ping(#[from] PingError),
    /// The kernel.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The keepalive of the configuration.
    #[error("[keepalive]: {0}")]
    Keepalive(#[from] KeepaliveError),
    /// What the store holds of the fleet is not sound.
    #[error(
        "what station.db holds of the fleet is not sound: {0}; restore a backup, or start with another --state-dir"
    )]
    Fleet(String),
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    fleet: Fleet,
    store: Store,
    endpoint: Endpoint,
    services: ServicePublisher,
    gateway_peers: GatewayPeers,
    devices: BridgedDevices,
    presence: Option<Presence>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What requests share: everything that their tasks may use without asking the engine.
#[derive(Clone, Debug)]
struct SharedContext {
    endpoint: Endpoint,
    /// The next command's number.
    next_id: Arc<AtomicU64>,
    epoch: u64,
    deliveries: delivery::task::DeliveryHandle,
    stops: Arc<stop::coordinator::StopCoordinator>,
    chunk_routes: files::fetch::ChunkRoutes,
    /// For files to bridged devices.
    memory_budget: MemoryBudget,
    store: Store,
    /// What goes on after its request.
    tasks: TaskTracker,
    gateway_peers: GatewayPeers,
    /// How many nodes are sent files at once.
    transfer_slots: Arc<Semaphore>,
    /// When the links were brought up.
    started: Instant,
}

impl Engine {
    /// Brings the links up.
    ///
    /// # Errors
    /// [`EngineError`], which says what to change.
    pub async fn start(settings: Settings) -> Result<Self, EngineError> {
        let Settings {
            config,
            state_dir,
            mode,
            bridges_devices,
        } = settings;
        let keepalive = config.keepalive;
        let keepalive = KeepaliveConfig::new(keepalive.idle, keepalive.interval, keepalive.probes)?;
        let dir = state_dir.clone();
        let key = tokio::task::spawn_blocking(move || identity::load_or_create(&dir, KeyFile::Identity));
        let key = key.await.map_err(|e| EngineError::Fleet(e.to_string()))??;
        let store = Store::open(&state_dir).await?;
        let membership = membership::authority::load_membership(&store, &key.public()).await?;
        let authority = FleetAuthority::open(&state_dir, store.clone()).await?;
        let unconfirmed = UnconfirmedStops::load(&store).await?;
        let latches = match StopLatches::load(&store).await {
            _ if !bridges_devices => StopLatches::default(),
            Err(error) if matches!(mode, Mode::Stop(_)) => {
                tracing::warn!(%error, "The stop goes out; drones that come later are not stopped by it");
                StopLatches::default()
            }
            loaded => loaded?,
        };
        let devices = BridgedDevices::new(latches);
        let registry = NodeRegistry::load(&store, unconfirmed.clone(), devices.clone()).await?;
        let registry = SharedNodeRegistry::new(registry);
        let (membership_requests, membership_inbox) = mpsc::channel(REQUESTS_MAX);
        let (planned_retries, planned_inbox) = mpsc::channel(REQUESTS_MAX);
        let (joins, join_requests) = mpsc::channel(PENDING_JOINS_MAX);
        let own_id = key.public().id();
        let identity = Arc::new(Identity::new(key)?);
        let listening = |listen| endpoint::Config {
            kind: PeerKind::Station,
            name: config.name.clone(),
            tags: BTreeMap::new(),
            listen,
            keepalive,
            timing: Timing::default(),
            membership: membership.clone(),
            joins: Some(joins.clone()),
        };
        let (deliveries, delivery_inbox) = delivery::task::DeliveryTask::channel();
        let start = |listen| {
            Endpoint::start_routed(
                listening(listen),
                Arc::clone(&identity),
                Some(deliveries.link_events()),
            )
        };
        let (endpoint, events) = match start(config.listen) {
            Err(StartError::Socket(SocketError::PortInUse(_))) if mode != Mode::Daemon => {
                start(SocketAddr::new(config.listen.ip(), 0))?
            }
            started => started?,
        };
        let means = Methods {
            mdns: config.mdns,
            pings: config.pings.then_some(config.ping_port),
        };
        let presence = presence::start(&endpoint, means)?;
        for addr in &config.nodes {
            endpoint
                .address_discovered(*addr, Source::Static, Hint::None)
                .await;
        }
        let (fleet, requests) = Fleet::local();
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let next_id = Arc::new(AtomicU64::new(1));
        let delivery_task =
            delivery::task::DeliveryTask::open(store.clone(), own_id, Arc::clone(&next_id), |id| {
                registry.lock().is_member(id)
            })
            .await?;
        let engine_store = store.clone();
        let gateway_peers = GatewayPeers::default();
        let task = EngineTask {
            shared: SharedContext {
                endpoint: endpoint.clone(),
                next_id,
                epoch: store.epoch(),
                deliveries,
                stops: Arc::new(stop::coordinator::StopCoordinator::new(
                    store.stop_number().await?,
                    unconfirmed.clone(),
                    means.pings.map(|port| (presence.interfaces.clone(), port)),
                )),
                chunk_routes: files::fetch::ChunkRoutes::default(),
                memory_budget: MemoryBudget::default(),
                store: store.clone(),
                tasks: tasks.clone(),
                gateway_peers: gateway_peers.clone(),
                transfer_slots: Arc::new(Semaphore::new(files::send::CONCURRENT_TRANSFERS_MAX)),
                started: clock::now(),
            },
            store,
            registry,
            membership_requests,
            planned_retries,
            watchers: Watchers::default(),
            subscribers: Subscribers::default(),
            nodes_queries: Vec::new(),
            notice_throttle: NoticeThrottle::default(),
            state_dir,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
            saving: None,
            unconfirmed_debounce: Debounce::default(),
            bridges_devices,
        };
        let (latched, latch_store, until) = (devices.clone(), task.store.clone(), shutdown.clone());
        tasks.spawn(async move { latched.latches().persist_changes(&latch_store, &until).await });
        tasks.spawn(unconfirmed.persist_changes(task.store.clone(), shutdown.clone()));
        task.registry.open_sessions(&task.shared.endpoint).await;
        task.dial_members().await;
        if let Mode::Stop(selector) = mode {
            stop::coordinator::withdraw_early(&task.shared, &task.registry.lock().targets(&selector));
            task.shared
                .deliveries
                .send(delivery::task::DeliveryCommand::ApplyWithdrawals)
                .await;
        }
        // Behind the withdrawal: the task hears of links by itself, and must not send to them what the stop withdraws.
        tasks.spawn(delivery_task.run(delivery_inbox, shutdown.clone()));
        tasks.spawn(delivery::history_writer::prune(
            task.store.clone(),
            config.history,
            shutdown.clone(),
        ));
        let membership_task = membership::task::MembershipTask {
            shared: task.shared.clone(),
            store: task.store.clone(),
            authority,
            registry: task.registry.clone(),
            keepalive,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(membership_task.run(membership_inbox, join_requests));
        tasks.spawn(task.run(requests, events, planned_inbox, endpoint.membership()));
        tracing::info!(addr = %endpoint.listen_addr(), "listening");
        Ok(Self {
            fleet,
            store: engine_store,
            endpoint,
            services: presence.services(),
            gateway_peers,
            devices,
            presence: Some(presence),
            shutdown,
            tasks,
        })
    }

    /// To ask it.
    pub fn fleet(&self) -> Fleet {
        self.fleet.clone()
    }

    /// As this station calls itself.
    pub fn name(&self) -> NodeName {
        self.endpoint.profile().borrow().name.clone()
    }

    /// To publish services of other systems.
    pub fn services(&self) -> ServicePublisher {
        self.services.clone()
    }

    /// Where gateways seat their peers.
    pub fn gateway_peers(&self) -> GatewayPeers {
        self.gateway_peers.clone()
    }

    /// Where gateways register the devices that they bridge.
    pub fn bridged_devices(&self) -> BridgedDevices {
        self.devices.clone()
    }

    /// What it remembers.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// The address that is listened on, with its real port.
    pub fn listen_addr(&self) -> SocketAddr {
        self.endpoint.listen_addr()
    }

    /// Says goodbye to all peers and ends.
    pub async fn shut_down(mut self) {
        self.shutdown.cancel();
        self.tasks.close();
        if let Some(presence) = self.presence.take() {
            presence.shutdown().await;
        }
        self.endpoint.shutdown().await;
        if tokio::time::timeout(endpoint::SHUTDOWN_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), "requests outlived shutdown");
        }
        let closed = tokio::time::timeout(endpoint::SHUTDOWN_TIMEOUT, self.store.close());
        if closed.await.is_err() {
            tracing::warn!("the store outlived shutdown; nothing of it is lost");
        }
    }
}

#[cfg(test)]
impl SharedContext {
    fn for_test(
        endpoint: Endpoint,
        store: Store,
        deliveries: delivery::task::DeliveryHandle,
        stops: stop::coordinator::StopCoordinator,
    ) -> Self {
        Self {
            endpoint,
            next_id: Arc::new(AtomicU64::new(1)),
            epoch: store.epoch(),
            deliveries,
            stops: Arc::new(stops),
            chunk_routes: files::fetch::ChunkRoutes::default(),
            memory_budget: MemoryBudget::default(),
            store,
            tasks: TaskTracker::new(),
            gateway_peers: GatewayPeers::default(),
            transfer_slots: Arc::new(Semaphore::new(1)),
            started: clock::now(),
        }
    }
}

/// A question who is there, waiting for a process that has just started to find its nodes.
struct NodesQuery {
    selector: Selector,
    deadline: Instant,
    events: mpsc::Sender<Event>,
}

struct EngineTask {
    shared: SharedContext,
    store: Store,
    registry: SharedNodeRegistry,
    /// To the clerk.
    membership_requests: mpsc::Sender<membership::task::MembershipRequest>,
    /// Repetitions, back from the history.
    planned_retries: mpsc::Sender<dispatch::RequestContext>,
    watchers: Watchers,
    subscribers: Subscribers,
    nodes_queries: Vec<NodesQuery>,
    notice_throttle: NoticeThrottle,
    state_dir: PathBuf,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// What members are being stored.
    saving: Option<JoinHandle<()>>,
    unconfirmed_debounce: Debounce,
    bridges_devices: bool,
}

impl EngineTask {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<RequestEnvelope>,
        mut events: Events,
        mut planned_retries: mpsc::Receiver<dispatch::RequestContext>,
        mut membership: watch::Receiver<Option<Arc<Membership>>>,
    ) {
        let mut upkeep = tokio::time::interval(MAINTENANCE_INTERVAL);
        let (checks, mut checked) = mpsc::channel(endpoint::EVENTS_MAX);
        let (readings, mut read) = mpsc::channel(endpoint::EVENTS_MAX);
        let mut device_changes = self.registry.lock().devices().changes();
        // When changes of bridged devices are looked at next, if there are any.
        let (mut devices_due, mut devices_changed) = (clock::now(), false);
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(event) = events.peers.recv() => self.on_peer_event(event, &checks).await,
                Some(notice) = events.notices.recv() => self.on_notice(&notice),
                Some(checked) = checked.recv() => {
                    let id = checked.id;
                    self.registry.lock().set_self_check(checked);
                    self.watchers.notify(&self.registry.lock(), id);
                }
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.on_membership_change(now).await;
                }
                Some(again) = planned_retries.recv() => self.dispatch(again),
                Some(call) = requests.recv() => self.on_request(call),
                Some(reading) = read.recv() => self.subscribers.on_reply(reading),
                Ok(()) = device_changes.changed(), if !devices_changed => devices_changed = true,
                () = clock::sleep_until(devices_due), if devices_changed => {
                    devices_changed = false;
                    devices_due = clock::now() + DEVICE_CHANGES_INTERVAL;
                    self.on_devices_changed();
                }
                () = clock::sleep_until(self.subscribers.next_query_at()), if self.subscribers.wants_telemetry() => {
                    let targets = self.registry.lock().targets(&Selector::all());
                    self.subscribers.query_telemetry(&self.shared, &self.tasks, targets, &readings);
                    let devices = self.registry.lock().devices().targets(&Selector::all());
                    devices.iter().for_each(|(node, _)| self.report_readings(node.id));
                }
                _tick = upkeep.tick() => self.run_maintenance(),
                () = tokio::time::sleep(NODES_QUERY_INTERVAL), if !self.nodes_queries.is_empty() => self.answer_nodes_queries(),
            }
        }
        if let Some(saving) = self.saving.take() {
            // It tells its own faults.
            let _fell_over = saving.await;
        }
        self.run_maintenance();
    }

    /// Tells watchers and subscribers what has changed of bridged devices.
    fn on_devices_changed(&mut self) {
        let changed = self.registry.lock().devices().take_changed();
        for id in changed {
            self.watchers.notify(&self.registry.lock(), id);
            if self.subscribers.wants_telemetry() {
                self.report_readings(id);
            }
        }
    }

    fn report_readings(&mut self, id: PeerId) {
        let readings = self.registry.lock().devices().readings(id);
        if let Some((node, values)) = readings {
            self.subscribers.on_readings(&node, values);
        }
    }

    /// Dials members where they were seen last.
    async fn dial_members(&self) {
        let addresses = self.registry.lock().addresses();
        for (id, address) in addresses {
            let hint = Hint::Id(id);
            self.shared
                .endpoint
                .address_discovered(address, Source::Known, hint)
                .await;
        }
    }

    async fn on_peer_event(&mut self, event: PeerEvent, checks: &mpsc::Sender<registry::SelfCheckResult>) {
        let changed = match event {
            PeerEvent::Connected { peer, .. } => {
                tracing::info!(peer = %peer.name, id = %peer.id.short(), addr = %peer.addr, "linked");
                let namesakes = self.registry.lock().same_name_nodes(peer.id);
                let mut link = self.registry.lock().on_connected(&peer);
                if link.is_none() {
                    // Another station took it in: it is met here for the first time.
                    self.registry.open_sessions(&self.shared.endpoint).await;
                    link = self.registry.lock().on_connected(&peer);
                }
                if let Some(link) = link
                    && peer.kind == PeerKind::Node
                {
                    stop::coordinator::on_linked(&self.shared, &link);
                    self.tasks.spawn(delivery::query::self_check(
                        self.shared.clone(),
                        link,
                        checks.clone(),
                    ));
                }
                // It may have another name now.
                for id in namesakes {
                    self.watchers.notify(&self.registry.lock(), id);
                }
                peer.id
            }
            PeerEvent::Silent(id) => {
                self.registry.lock().set_silent(id, true);
                id
            }
            PeerEvent::Responsive(id) => {
                self.registry.lock().set_silent(id, false);
                id
            }
            PeerEvent::Disconnected { id, reason: why } => {
                tracing::info!(peer = %self.registry.lock().display_name(id), why, "link lost");
                self.registry.lock().on_disconnected(id);
                id
            }
            PeerEvent::BulkOpened { events, .. } => {
                self.tasks.spawn(files::fetch::route_chunks(
                    events,
                    self.shared.chunk_routes.clone(),
                ));
                return;
            }
            PeerEvent::Frame { peer, frame, .. } if frame.header.kind == Some(Kind::Stopped) => {
                match frame.parse_content::<StopStatus>() {
                    Ok(report) => {
                        let released = self.registry.lock().set_stop_report(peer.id, &report);
                        if let Some(link) = released {
                            self.tasks.spawn(delivery::query::self_check(
                                self.shared.clone(),
                                link,
                                checks.clone(),
                            ));
                        }
                        self.shared.stops.on_report(peer.id, report);
                    }
                    Err(error) => {
                        tracing::warn!(peer = %peer.name, %error, "unreadable word of a stop");
                        return;
                    }
                }
                peer.id
            }
            PeerEvent::Frame { peer, frame, .. } => {
                self.on_frame(peer.id, &frame);
                return;
            }
        };
        self.watchers.notify(&self.registry.lock(), changed);
    }

    /// A node has sent the list of its actions. Stages and replies go to the delivery task.
    fn on_frame(&mut self, from: PeerId, frame: &Frame) {
        if frame.header.kind != Some(Kind::Offer) {
            let kind = frame.header.kind;
            return tracing::debug!(peer = %from.short(), ?kind, "Unexpected frame ignored");
        }
        match frame.parse_content() {
            Ok(catalog) => self.registry.lock().set_action_catalog(from, catalog),
            Err(error) => tracing::debug!(peer = %from.short(), %error, "List of actions is unreadable"),
        }
    }

    fn on_notice(&mut self, notice: &Notice) {
        let text = notice.to_string();
        match notice {
            Notice::Renamed { .. } => tracing::info!("{text}"),
            Notice::Refused { .. } | Notice::ClonedKey { .. } | Notice::OwnKeyRevoked => {
                if self.notice_throttle.should_report(notice, clock::now()) {
                    tracing::warn!("{text}");
                } else {
                    tracing::debug!("again: {text}");
                }
            }
        }
        let about = match notice {
            Notice::Renamed { id, new: name, .. } => {
                let namesakes = self.registry.lock().same_name_nodes(*id);
                self.registry.lock().rename(*id, name.clone());
                for id in namesakes {
                    self.watchers.notify(&self.registry.lock(), id);
                }
                *id
            }
            Notice::ClonedKey { id, linked, other } => {
                let warning = Warning::ClonedKey {
                    id: *id,
                    linked: linked.clone(),
                    refused: other.clone(),
                };
                self.registry.lock().set_warning(*id, warning);
                *id
            }
            Notice::Refused { .. } | Notice::OwnKeyRevoked => return,
        };
        self.watchers.notify(&self.registry.lock(), about);
    }

    /// Who is put out is sent nothing from now on; the clerk stores it.
    async fn on_membership_change(&mut self, membership: Option<Arc<Membership>>) {
        let Some(membership) = membership else { return };
        let revoked = self.registry.lock().revoke(&membership);
        for key in &revoked {
            self.shared
                .deliveries
                .send(delivery::task::DeliveryCommand::Revoked(key.id()))
                .await;
            // One that is away has no link that ends.
            self.watchers.notify_revoked(&self.registry.lock(), key.id());
        }
    }

    fn run_maintenance(&mut self) {
        // Aside, one at a time: a disk may take seconds, and an emergency stop is not to wait for it.
        if self.saving.as_ref().is_none_or(JoinHandle::is_finished) {
            let changed = self.registry.lock().take_unsaved();
            if !changed.is_empty() {
                self.saving = Some(self.tasks.spawn(save_members(
                    changed,
                    self.store.clone(),
                    self.registry.clone(),
                    self.shutdown.clone(),
                )));
            }
        }
        for id in self.unconfirmed_debounce.changes(&self.shared.stops.unconfirmed) {
            self.watchers.notify(&self.registry.lock(), id);
        }
        self.watchers.flush(&self.registry.lock());
        self.subscribers.flush();
        // Links that come up without a pause leave no time for the short step.
        self.answer_nodes_queries();
    }
}

/// Stores what members are. What the disk refuses is to be stored again.
async fn save_members(
    changed: Vec<MemberRow>,
    store: Store,
    registry: SharedNodeRegistry,
    shutdown: CancellationToken,
) {
    let ids: Vec<PeerId> = changed.iter().map(|row| row.key.id()).collect();
    if let Err(error) = store.put_members(changed).await {
        tracing::error!(%error, "members are not stored; it is tried again");
        registry.lock().mark_unsaved(&ids);
        let _stopped = shutdown
            .run_until_cancelled(tokio::time::sleep(SAVE_RETRY_INTERVAL))
            .await;
    }
}
