//! Starts the engine and shuts it down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use swarm_shared::net::clock;
use swarm_shared::net::discovery::pings::PingError;
use swarm_shared::net::discovery::presence::{self, Methods, Presence, ServicePublisher};
use swarm_shared::net::endpoint::{self, Endpoint, PENDING_JOINS_MAX, StartError};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, IdentityError, KeyFile};
use swarm_shared::net::random::NoRandomness;
use swarm_shared::net::socket::{KeepaliveConfig, KeepaliveError, SocketError};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Timing;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::SharedContext;
use super::delivery::handle::{self, DeliveryCommand};
use super::delivery::history_writer;
use super::delivery::task::DeliveryTask;
use super::dispatch::{Dispatcher, EngineBackend};
use super::files::fetch::ChunkRoutes;
use super::files::memory_budget::MemoryBudget;
use super::files::send::CONCURRENT_TRANSFERS_MAX;
use super::membership::authority::{self, FleetAuthority};
use super::membership::task::MembershipTask;
use super::observe::observed_request::RequestBroadcast;
use super::observe::subscribers::Subscribers;
use super::registry::{NodeRegistry, SharedNodeRegistry};
use super::stop::coordinator::{self, StopCoordinator};
use super::stop::latches::StopLatches;
use super::stop::unconfirmed::UnconfirmedStops;
use super::task::EngineTask;
use super::transport::bridge::BridgedDevices;
use super::transport::gateway_peers::GatewayPeers;
use crate::config::Config;
use crate::store::{Store, StoreError, meta};
use swarm_shared::client::{Fleet, REQUESTS_MAX};

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// The directory of keys, members and history; it exists, and this process has locked it.
    pub state_dir: PathBuf,
    /// What the engine is started for.
    pub mode: Mode,
    /// Whether a gateway may bridge devices of other programs, now or in another run of this station: their stops are
    /// latched.
    pub bridges_devices: bool,
}

/// What an engine is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `serve` and `nodes --watch`: it runs until it is shut down.
    Daemon,
    /// One request of a verb: if the port is taken, any other one serves, since nodes are told where to dial.
    OneShot,
    /// One emergency stop of these nodes: commands that wait for them are withdrawn before any link comes up.
    Stop(Selector),
}

/// The engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The listening address, or the key.
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
    /// The kernel gave no random bytes.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The keepalive of the configuration.
    #[error("[keepalive]: {0}")]
    Keepalive(#[from] KeepaliveError),
    /// The fleet's state in the store is damaged.
    #[error(
        "the fleet's state in station.db is damaged: {0}; restore a backup, or start with another --state-dir"
    )]
    Fleet(String),
}

/// A running engine. It ends by [`Engine::shut_down`].
#[derive(Debug)]
pub struct Engine {
    fleet: Fleet,
    dispatcher: Arc<Dispatcher>,
    store: Store,
    endpoint: Endpoint,
    services: ServicePublisher,
    gateway_peers: GatewayPeers,
    devices: BridgedDevices,
    presence: Option<Presence>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Engine {
    /// Starts the engine: when it returns, links are dialled and accepted.
    ///
    /// # Errors
    /// [`EngineError`].
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
        let membership = authority::load_membership(&store, &key.public()).await?;
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
        let last_stop = store.load_value(&meta::STOP_NUMBER).await?;
        let devices = BridgedDevices::new(latches);
        let registry = NodeRegistry::load(&store, unconfirmed.clone(), devices.clone()).await?;
        let registry = SharedNodeRegistry::new(registry);
        let (membership_requests, membership_inbox) = mpsc::channel(REQUESTS_MAX);
        let (node_requests, node_inbox) = mpsc::channel(REQUESTS_MAX);
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
        let (deliveries, delivery_inbox) = handle::channel();
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
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let next_id = Arc::new(AtomicU64::new(1));
        let delivery_task = DeliveryTask::open(store.clone(), own_id, Arc::clone(&next_id), |id| {
            registry.lock().is_member(id)
        })
        .await?;
        let gateway_peers = GatewayPeers::default();
        let shared = SharedContext {
            endpoint: endpoint.clone(),
            next_id,
            epoch: store.epoch(),
            deliveries,
            stops: Arc::new(StopCoordinator::new(
                last_stop.unwrap_or(0),
                unconfirmed.clone(),
                means.pings.map(|port| (presence.interfaces.clone(), port)),
            )),
            chunk_routes: ChunkRoutes::default(),
            memory_budget: MemoryBudget::default(),
            store: store.clone(),
            tasks: tasks.clone(),
            gateway_peers: gateway_peers.clone(),
            transfer_slots: Arc::new(Semaphore::new(CONCURRENT_TRANSFERS_MAX)),
            started: clock::now(),
        };
        let broadcast = RequestBroadcast::default();
        let dispatcher = Arc::new(Dispatcher {
            shared: shared.clone(),
            registry: registry.clone(),
            membership_requests,
            node_requests,
            broadcast: broadcast.clone(),
            state_dir,
            bridges_devices,
        });
        let fleet = Fleet::new(EngineBackend(Arc::downgrade(&dispatcher)));
        let latches = devices.latches().persisted().clone();
        tasks.spawn(latches.persist_changes(store.clone(), shutdown.clone()));
        for stops in unconfirmed.persisted() {
            tasks.spawn(stops.clone().persist_changes(store.clone(), shutdown.clone()));
        }
        let last_number = shared.stops.last_number.clone();
        tasks.spawn(last_number.persist_changes(store.clone(), shutdown.clone()));
        registry.open_sessions(&endpoint).await;
        dial_members(&registry, &endpoint).await;
        if let Mode::Stop(selector) = mode {
            coordinator::withdraw_early(&shared, &registry.lock().targets(&selector));
            shared.deliveries.send(DeliveryCommand::ApplyWithdrawals).await;
        }
        // After the withdrawal: the task hears of links by itself, and must not send to them what the stop withdraws.
        tasks.spawn(delivery_task.run(delivery_inbox, shutdown.clone()));
        tasks.spawn(history_writer::prune(
            store.clone(),
            config.history,
            shutdown.clone(),
        ));
        let membership_task = MembershipTask {
            shared: shared.clone(),
            store: store.clone(),
            authority,
            registry: registry.clone(),
            keepalive,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(membership_task.run(membership_inbox, join_requests));
        let task = EngineTask::new(shared, registry, Subscribers::new(broadcast), shutdown.clone());
        tasks.spawn(task.run(node_inbox, events, endpoint.membership()));
        tracing::info!(addr = %endpoint.listen_addr(), "Listening");
        Ok(Self {
            fleet,
            dispatcher,
            store,
            endpoint,
            services: presence.services(),
            gateway_peers,
            devices,
            presence: Some(presence),
            shutdown,
            tasks,
        })
    }

    /// The handle that takes requests.
    pub fn fleet(&self) -> Fleet {
        self.fleet.clone()
    }

    /// The name of this station.
    pub fn name(&self) -> NodeName {
        self.endpoint.profile().borrow().name.clone()
    }

    /// Publishes services of other systems by mDNS.
    pub fn services(&self) -> ServicePublisher {
        self.services.clone()
    }

    /// The table in which gateways register their connected peers.
    pub fn gateway_peers(&self) -> GatewayPeers {
        self.gateway_peers.clone()
    }

    /// The table in which gateways register the devices that they bridge.
    pub fn bridged_devices(&self) -> BridgedDevices {
        self.devices.clone()
    }

    /// The store.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// The listening address, with the port that the kernel chose if the configuration says 0.
    pub fn listen_addr(&self) -> SocketAddr {
        self.endpoint.listen_addr()
    }

    /// Takes leave of all peers and ends, each part within [`endpoint::SHUTDOWN_TIMEOUT`].
    pub async fn shut_down(mut self) {
        self.shutdown.cancel();
        drop(self.dispatcher);
        self.tasks.close();
        if let Some(presence) = self.presence.take() {
            presence.shutdown().await;
        }
        self.endpoint.shutdown().await;
        if tokio::time::timeout(endpoint::SHUTDOWN_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), "Requests outlived shutdown");
        }
        let closed = tokio::time::timeout(endpoint::SHUTDOWN_TIMEOUT, self.store.close());
        if closed.await.is_err() {
            tracing::warn!("The store outlived shutdown; nothing of it is lost");
        }
    }
}

/// Dials members at their last known addresses.
async fn dial_members(registry: &SharedNodeRegistry, endpoint: &Endpoint) {
    let addresses = registry.lock().addresses();
    for (id, address) in addresses {
        endpoint
            .address_discovered(address, Source::Known, Hint::Id(id))
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_shared::api::{Event, Failure, FleetRequest};

    #[tokio::test]
    async fn shutdown_closes_the_store_although_a_fleet_remains() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::load(None, dir.path()).expect("the defaults");
        config.listen = ([127, 0, 0, 1], 0).into();
        (config.pings, config.mdns) = (false, false);
        let settings = Settings {
            config,
            state_dir: dir.path().to_owned(),
            mode: Mode::OneShot,
            bridges_devices: false,
        };
        let engine = Engine::start(settings).await.expect("started");
        let fleet = engine.fleet();
        let mut answer = fleet.perform(FleetRequest::Init).await;
        assert!(matches!(answer.recv().await, Some(Event::Membership(_))));
        engine.shut_down().await;
        assert!(
            !dir.path().join("station.db-wal").exists(),
            "a closed store has no log"
        );
        let last = fleet.perform(FleetRequest::Members).await.recv().await;
        assert!(
            matches!(
                last,
                Some(Event::Failed {
                    failure: Failure::ShutDown,
                    ..
                })
            ),
            "{last:?}"
        );
    }
}
