//! The engine: carries requests out over the links of this process.
//!
//! One task sees to the links and the `Roll` of members, another, the clerk, to the fleet root's `Office`; each request
//! that takes time runs in a task of its own, and ends when its caller goes. The engine never waits for a peer nor for
//! the disk: an emergency stop and its answers pass, whatever else is asked.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | engine | watchers; the roll, with the clerk | when its [`Engine`] shuts down |
//! | clerk (`enrol.rs`) | office, what is stored of the fleet | likewise |
//! | one for each follower, and for each request while there are some | nothing: passes words on | with either |
//! | one for each request | its targets, its deadline | with its last event, or when nobody reads them |
//! | one for each peer that moves files | nothing: passes chunks to their transfer | with the peer's session |

mod action_catalogs;
mod authority;
mod cancel;
mod delivery_task;
mod dispatch;
mod durable_command;
mod fetch;
pub(in crate::fleet) mod history_writer;
mod membership_task;
mod query;
mod registry;
mod release;
mod respond;
pub(in crate::fleet) mod retry;
mod send_files;
mod stop;
mod subscribers;
mod unconfirmed_stops;
mod users;
mod watchers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::discovery::pings::PingError;
use swarm_shared::net::discovery::presence::{self, Means, Presence, Services};
use swarm_shared::net::endpoint::notice_throttle::Hush;
use swarm_shared::net::endpoint::{self, Endpoint, Events, JOINS_MAX, Notice, StartError};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, IdentityError, KeyFile};
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::net::random::NoRandomness;
use swarm_shared::net::socket::{BadKeepalive, KeepaliveConfig, SocketError};
use swarm_shared::proto::address_book::{Hint, Source};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::Stopped;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::wire::{Frame, Kind};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gateway_peers::Posts;
use super::{Call, Event, Fleet};
use crate::config::Config;
use crate::store::{MemberRow, Store, StoreError};
use authority::Office;
pub use cancel::without_links;
pub(in crate::fleet) use dispatch::{NO_NODES, TAKES_NOBODY};
use registry::{Roll, SharedRoll};
use subscribers::Followers;
use unconfirmed_stops::{Lasting, Unconfirmed};
use watchers::Watchers;

/// How often what has changed of members is written to the store, and watchers are told what found no room before.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long until members that the disk refused are stored again.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// How often a waiting `nodes` looks whether all are there.
const LOOK_STEP: Duration = Duration::from_millis(20);

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Where keys and members are kept; it exists, and this process owns it.
    pub state_dir: PathBuf,
    /// What for.
    pub purpose: Purpose,
}

/// What an engine is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It stays up: `serve`, `nodes --watch`.
    Stay,
    /// It goes after one request: if its port is taken, any other does, for nodes are told where to dial.
    Once,
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
    Keepalive(#[from] BadKeepalive),
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
    services: Services,
    posts: Posts,
    presence: Option<Presence>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What requests share: everything that their tasks may use without asking the engine.
#[derive(Clone, Debug)]
struct Shared {
    endpoint: Endpoint,
    /// The next command's number.
    next_id: Arc<AtomicU64>,
    epoch: u64,
    keeper: delivery_task::Keeper,
    stops: Arc<stop::Stops>,
    routes: fetch::Routes,
    posts: Posts,
    /// How many nodes are sent files at once.
    sends: Arc<Semaphore>,
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
            purpose,
        } = settings;
        let keepalive = config.keepalive;
        let keepalive = KeepaliveConfig::new(keepalive.idle, keepalive.interval, keepalive.probes)?;
        let dir = state_dir.clone();
        let key = tokio::task::spawn_blocking(move || identity::load_or_create(&dir, KeyFile::Identity));
        let key = key.await.map_err(|e| EngineError::Fleet(e.to_string()))??;
        let store = Store::open(&state_dir).await?;
        let membership = authority::stored_membership(&store, &key.public()).await?;
        let office = Office::open(&state_dir, store.clone()).await?;
        let unconfirmed = Unconfirmed::load(&store).await?;
        let roll = SharedRoll::new(Roll::load(&store, unconfirmed.clone()).await?);
        let (forms, to_clerk) = mpsc::channel(super::CALLS_MAX);
        let (planned, plans) = mpsc::channel(super::CALLS_MAX);
        let (joins, join_requests) = mpsc::channel(JOINS_MAX);
        let me = key.public().id();
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
        let (endpoint, events) = match Endpoint::start(listening(config.listen), Arc::clone(&identity)) {
            Err(StartError::Socket(SocketError::PortInUse(_))) if purpose != Purpose::Stay => {
                Endpoint::start(listening(SocketAddr::new(config.listen.ip(), 0)), identity)?
            }
            started => started?,
        };
        let means = Means {
            mdns: config.mdns,
            pings: config.pings.then_some(config.ping_port),
        };
        let presence = presence::start(&endpoint, means)?;
        for addr in &config.nodes {
            endpoint.heard(*addr, Source::Static, Hint::None).await;
        }
        let (fleet, calls) = Fleet::local();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let next_id = Arc::new(AtomicU64::new(1));
        let (keeper, words) = delivery_task::Task::channel();
        let book = delivery_task::Task::open(store.clone(), me, Arc::clone(&next_id)).await?;
        tasks.spawn(book.run(words, stop.clone()));
        let kept = store.clone();
        let posts = Posts::default();
        let task = Task {
            me,
            shared: Shared {
                endpoint: endpoint.clone(),
                next_id,
                epoch: store.epoch(),
                keeper,
                stops: Arc::new(stop::Stops::new(
                    store.stop_number().await?,
                    unconfirmed.clone(),
                    store.clone(),
                    means.pings.map(|port| (presence.interfaces.clone(), port)),
                    tasks.clone(),
                )),
                routes: fetch::Routes::default(),
                posts: posts.clone(),
                sends: Arc::new(Semaphore::new(send_files::NODES_AT_ONCE)),
                started: clock::now(),
            },
            store,
            roll,
            forms,
            planned,
            watchers: Watchers::default(),
            followers: Followers::default(),
            looks: Vec::new(),
            hush: Hush::default(),
            state_dir,
            stop: stop.clone(),
            tasks: tasks.clone(),
            saving: None,
            lasting: Lasting::default(),
        };
        tasks.spawn(unconfirmed.keep(task.store.clone(), stop.clone()));
        task.roll.open_members(&task.shared.endpoint).await;
        task.dial_members().await;
        if let Purpose::Stop(selector) = purpose {
            stop::withdraw_early(&task.shared, &task.roll.lock().targets(&selector));
            task.shared.keeper.say(delivery_task::Word::Withdrawn).await;
        }
        tasks.spawn(history_writer::prune(
            task.store.clone(),
            config.history,
            stop.clone(),
        ));
        let clerk = membership_task::Clerk {
            shared: task.shared.clone(),
            store: task.store.clone(),
            office,
            roll: task.roll.clone(),
            keepalive,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(clerk.run(to_clerk, join_requests));
        tasks.spawn(task.run(calls, events, plans, endpoint.membership()));
        tracing::info!(addr = %endpoint.listens(), "listening");
        Ok(Self {
            fleet,
            store: kept,
            endpoint,
            services: presence.services(),
            posts,
            presence: Some(presence),
            stop,
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
    pub fn services(&self) -> Services {
        self.services.clone()
    }

    /// Where doors seat their peers.
    pub fn posts(&self) -> Posts {
        self.posts.clone()
    }

    /// What it remembers.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// The address that is listened on, with its real port.
    pub fn listens(&self) -> SocketAddr {
        self.endpoint.listens()
    }

    /// Says goodbye to all peers and ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.close();
        if let Some(presence) = self.presence.take() {
            presence.shutdown().await;
        }
        self.endpoint.shutdown().await;
        if tokio::time::timeout(endpoint::SHUTDOWN_GRACE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), "requests outlived shutdown");
        }
        let closed = tokio::time::timeout(endpoint::SHUTDOWN_GRACE, self.store.close());
        if closed.await.is_err() {
            tracing::warn!("the store outlived shutdown; nothing of it is lost");
        }
    }
}

/// A question who is there, waiting for a process that has just started to find its nodes.
struct Look {
    selector: Selector,
    deadline: Instant,
    events: mpsc::Sender<Event>,
}

struct Task {
    me: PeerId,
    shared: Shared,
    store: Store,
    roll: SharedRoll,
    /// To the clerk.
    forms: mpsc::Sender<membership_task::Form>,
    /// Repetitions, back from the history.
    planned: mpsc::Sender<dispatch::Asked>,
    watchers: Watchers,
    followers: Followers,
    looks: Vec<Look>,
    hush: Hush,
    state_dir: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What members are being stored.
    saving: Option<JoinHandle<()>>,
    lasting: Lasting,
}

impl Task {
    async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut events: Events,
        mut planned: mpsc::Receiver<dispatch::Asked>,
        mut membership: watch::Receiver<Option<Arc<Membership>>>,
    ) {
        let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
        let (checks, mut checked) = mpsc::channel(endpoint::EVENTS_MAX);
        let (readings, mut read) = mpsc::channel(endpoint::EVENTS_MAX);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(event) = events.peers.recv() => self.take_event(event, &checks).await,
                Some(notice) = events.notices.recv() => self.take_notice(&notice),
                Some(checked) = checked.recv() => {
                    let id = checked.id;
                    self.roll.lock().take_check(checked);
                    self.watchers.tell(&self.roll.lock(), id);
                }
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.take_membership(now).await;
                }
                Some(again) = planned.recv() => self.take_request(again),
                Some(call) = calls.recv() => self.take_call(call),
                Some(reading) = read.recv() => self.followers.take(reading),
                () = clock::sleep_until(self.followers.asks_at()), if self.followers.wants_telemetry() => {
                    let targets = self.roll.lock().targets(&Selector::all());
                    self.followers.ask(&self.shared, &self.tasks, targets, &readings);
                }
                _tick = upkeep.tick() => self.look_after(),
                () = tokio::time::sleep(LOOK_STEP), if !self.looks.is_empty() => self.answer_looks(),
            }
        }
        if let Some(saving) = self.saving.take() {
            // It tells its own faults.
            let _fell_over = saving.await;
        }
        self.look_after();
    }

    /// Dials members where they were seen last.
    async fn dial_members(&self) {
        let addresses = self.roll.lock().addresses();
        for (id, address) in addresses {
            let hint = Hint::Id(id);
            self.shared.endpoint.heard(address, Source::Known, hint).await;
        }
    }

    async fn take_event(&mut self, event: PeerEvent, checks: &mpsc::Sender<registry::Checked>) {
        let changed = match event {
            PeerEvent::Up { peer, resumed } => {
                tracing::info!(peer = %peer.name, id = %peer.id.short(), addr = %peer.addr, "linked");
                let namesakes = self.roll.lock().namesakes(peer.id);
                let mut link = self.roll.lock().up(&peer);
                if link.is_none() {
                    // Another station took it in: it is met here for the first time.
                    self.roll.open_members(&self.shared.endpoint).await;
                    link = self.roll.lock().up(&peer);
                }
                if let Some(link) = link
                    && peer.kind == PeerKind::Node
                {
                    let up = delivery_task::Word::Up {
                        link: link.clone(),
                        resumed,
                    };
                    self.shared.keeper.say(up).await;
                    stop::linked(&self.shared, &link);
                    self.tasks
                        .spawn(query::self_check(self.shared.clone(), link, checks.clone()));
                }
                // It may have another name now.
                for id in namesakes {
                    self.watchers.tell(&self.roll.lock(), id);
                }
                peer.id
            }
            PeerEvent::Silent(id) => {
                self.roll.lock().silent(id, true);
                id
            }
            PeerEvent::Heard(id) => {
                self.roll.lock().silent(id, false);
                id
            }
            PeerEvent::Down { id, why } => {
                tracing::info!(peer = %self.roll.lock().name(id), why, "link lost");
                self.roll.lock().down(id);
                self.shared.keeper.say(delivery_task::Word::Down(id)).await;
                id
            }
            PeerEvent::Bulk { events, .. } => {
                self.tasks.spawn(fetch::route(events, self.shared.routes.clone()));
                return;
            }
            PeerEvent::Frame { peer, frame, .. } if frame.header.kind == Some(Kind::Stopped) => {
                match frame.read::<Stopped>() {
                    Ok(report) => {
                        let released = self.roll.lock().stopped(peer.id, &report);
                        if let Some(link) = released {
                            self.tasks
                                .spawn(query::self_check(self.shared.clone(), link, checks.clone()));
                        }
                        self.shared.stops.reported(peer.id, report);
                    }
                    Err(error) => {
                        tracing::warn!(peer = %peer.name, %error, "unreadable word of a stop");
                        return;
                    }
                }
                peer.id
            }
            PeerEvent::Frame { peer, frame, .. } => {
                self.take_frame(peer.id, &frame).await;
                return;
            }
        };
        self.watchers.tell(&self.roll.lock(), changed);
    }

    /// Word of a node on what it was asked to do, or on what it can do.
    async fn take_frame(&mut self, from: PeerId, frame: &Frame) {
        let id = CommandId::of(self.me, &frame.header);
        let word =
            match (frame.header.kind, id) {
                (Some(Kind::Stage), Some(id)) => frame.read::<StageMessage>().map(|message| {
                    let stage = message.stage;
                    delivery_task::Word::Stage { from, id, stage }
                }),
                (Some(Kind::Reply), Some(id)) => frame
                    .read::<Reply>()
                    .map(|reply| delivery_task::Word::Reply { from, id, reply }),
                (Some(Kind::Offer), _) => {
                    match frame.read() {
                        Ok(offer) => self.roll.lock().offers(from, offer),
                        Err(error) => tracing::debug!(peer = %from.short(), %error, "unreadable offer"),
                    }
                    return;
                }
                (kind, _) => {
                    tracing::debug!(peer = %from.short(), ?kind, "frame not asked for");
                    return;
                }
            };
        match word {
            Ok(word) => self.shared.keeper.say(word).await,
            Err(error) => tracing::warn!(peer = %from.short(), %error, "unreadable word of a delivery"),
        }
    }

    fn take_notice(&mut self, notice: &Notice) {
        let text = notice.to_string();
        match notice {
            Notice::Renamed { .. } => tracing::info!("{text}"),
            Notice::Refused { .. } | Notice::Cloned { .. } | Notice::OwnKeyRevoked => {
                if self.hush.is_news(notice, clock::now()) {
                    tracing::warn!("{text}");
                } else {
                    tracing::debug!("again: {text}");
                }
            }
        }
        let about = match notice {
            Notice::Renamed { id, name, .. } => {
                let namesakes = self.roll.lock().namesakes(*id);
                self.roll.lock().rename(*id, name.clone());
                for id in namesakes {
                    self.watchers.tell(&self.roll.lock(), id);
                }
                *id
            }
            Notice::Cloned { id, .. } => {
                self.roll.lock().warn(*id, text);
                *id
            }
            Notice::Refused { .. } | Notice::OwnKeyRevoked => return,
        };
        self.watchers.tell(&self.roll.lock(), about);
    }

    /// Who is put out is sent nothing from now on; the clerk stores it.
    async fn take_membership(&mut self, membership: Option<Arc<Membership>>) {
        let Some(membership) = membership else { return };
        let revoked = self.roll.lock().revoke(&membership);
        for key in &revoked {
            self.shared
                .keeper
                .say(delivery_task::Word::PutOut(key.id()))
                .await;
            // One that is away has no link that ends.
            self.watchers.tell_out(&self.roll.lock(), key.id());
        }
    }

    fn look_after(&mut self) {
        // Aside, one at a time: a disk may take seconds, and an emergency stop is not to wait for it.
        if self.saving.as_ref().is_none_or(JoinHandle::is_finished) {
            let changed = self.roll.lock().take_unsaved();
            if !changed.is_empty() {
                self.saving = Some(self.tasks.spawn(save(
                    changed,
                    self.store.clone(),
                    self.roll.clone(),
                    self.stop.clone(),
                )));
            }
        }
        for id in self.lasting.news(&self.shared.stops.unconfirmed) {
            self.watchers.tell(&self.roll.lock(), id);
        }
        self.watchers.catch_up(&self.roll.lock());
        self.followers.catch_up();
        // Links that come up without a pause leave no time for the short step.
        self.answer_looks();
    }
}

/// Stores what members are. What the disk refuses is to be stored again.
async fn save(changed: Vec<MemberRow>, store: Store, roll: SharedRoll, stop: CancellationToken) {
    let ids: Vec<PeerId> = changed.iter().map(|row| row.key.id()).collect();
    if let Err(error) = store.put_members(changed).await {
        tracing::error!(%error, "members are not stored; it is tried again");
        roll.lock().not_saved(&ids);
        let _stopped = stop.run_until_cancelled(tokio::time::sleep(SAVE_AGAIN)).await;
    }
}
