//! The endpoint of a program: listens, dials, and owns the table of links.
//!
//! One task (`task`) owns the table; [`Endpoint`] is a handle of it. Each session has a task of its own
//! ([`super::peer`]), which lives as long as the endpoint, across links. Events of peers come to the application on one
//! channel, notices of refused or doubtful connections on another.

mod accept;
mod fleet;
mod narrow_paths;
pub mod notice_throttle;
mod peer_entry;
mod sessions;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use accept::{JOIN_TIMEOUT, PENDING_JOINS_MAX};

use super::handshake::{Identity, LocalPeer, Profile};
use super::peer::{LinkError, PeerEvent, PeerLink, StopReceived};
pub use super::preauth_limit::{PREAUTH_CONNECTIONS_MAX, PREAUTH_PER_SOURCE_MAX};
use super::socket::{self, KeepaliveConfig, SocketError};
use super::tls::TlsError;
use crate::proto::discovery::address_book::{Hint, Source};
use crate::proto::id::{NodeName, PeerId, PeerKind, PublicKey};
use crate::proto::message::{JoinProof, Joined, Refused};
use crate::proto::session::Timing;
use crate::proto::trust::Membership;

/// Events that wait for the application. While it is full, peers are held back.
pub const EVENTS_MAX: usize = 1_024;
/// Notices that wait for the application; beyond this they are only logged.
pub const NOTICES_MAX: usize = 256;
/// Emergency stops that wait for the application; further ones are dropped, since they are repeated.
pub const STOPS_MAX: usize = 64;
/// Commands that wait for the endpoint's task.
const COMMANDS_MAX: usize = 1_024;
/// How long the tasks of an endpoint may take to end.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration of an endpoint.
#[derive(Debug)]
pub struct Config {
    /// Node or station.
    pub kind: PeerKind,
    /// The name in its hello.
    pub name: NodeName,
    /// The tags in its hello.
    pub tags: BTreeMap<String, String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// When the kernel ends a silent connection.
    pub keepalive: KeepaliveConfig,
    /// Heartbeats and time-outs of sessions.
    pub timing: Timing,
    /// The fleet, if one has been joined.
    pub membership: Option<Membership>,
    /// Where requests to join the fleet go; without it they are refused.
    pub joins: Option<mpsc::Sender<JoinRequest>>,
}

/// A peer's request to join the fleet.
#[derive(Debug)]
pub struct JoinRequest {
    /// The peer's key, proved by TLS.
    pub key: PublicKey,
    /// The name in its hello, not verified.
    pub name: NodeName,
    /// Node or station, from its hello.
    pub kind: PeerKind,
    /// Its address, with the port that it listens on.
    pub listen_addr: SocketAddr,
    /// The proof of an invitation; without one the operator decides.
    pub proof: Option<JoinProof>,
    /// Binds the proof to the connection.
    pub exporter: [u8; 32],
    /// For the answer; dropping it refuses.
    pub reply: oneshot::Sender<Result<Box<Joined>, Refused>>,
}

/// A notice for the operator: a refused connection, or a doubtful key.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A connection was refused.
    Refused {
        /// The remote address.
        addr: SocketAddr,
        /// The peer's id; `None` before TLS.
        peer: Option<PeerId>,
        /// The name in its hello; `None` before that.
        name: Option<NodeName>,
        /// True if this side refused the peer, false if the peer refused this side.
        by_us: bool,
        /// The reason.
        refused: Refused,
    },
    /// Two running programs hold one key. The one that linked first stays linked.
    ClonedKey {
        /// The id that both have.
        id: PeerId,
        /// Name and address of the one that is linked.
        linked: (NodeName, SocketAddr),
        /// Name and address of the other.
        other: (NodeName, SocketAddr),
    },
    /// This program's own key has been revoked: no peer will link with it.
    OwnKeyRevoked,
    /// A linked peer has changed its name.
    Renamed {
        /// The peer.
        id: PeerId,
        /// The name before.
        old: NodeName,
        /// The name now.
        new: NodeName,
    },
}

/// One sentence for the operator: what happened, and what to do.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { addr, name, by_us, refused, .. } => {
                let how = if *by_us { "refused" } else { "refused by" };
                match name {
                    Some(name) => write!(f, "{how} {name} at {addr}: {refused}"),
                    None => write!(f, "{how} {addr}: {refused}"),
                }
            }
            Self::ClonedKey { id, linked, other } => write!(
                f,
                "two devices hold the key of {}: {} at {} (linked) and {} at {} (refused); delete identity.key and \
                 fleet.json on one of them and join it anew",
                id.short(),
                linked.0,
                linked.1,
                other.0,
                other.1
            ),
            Self::OwnKeyRevoked => f.write_str(
                "this program's own key has been revoked: no peer will link with it; to come back, delete identity.key \
                 and what it remembers of the fleet, and join anew",
            ),
            Self::Renamed { old, new: name, .. } => write!(f, "{old} is called {name} now"),
        }
    }
}

/// Commands to the endpoint's task.
#[derive(Debug)]
enum EndpointCommand {
    AddressDiscovered {
        addr: SocketAddr,
        source: Source,
        hint: Hint,
    },
    AddressWithdrawn(SocketAddr),
    RetryNow,
    OpenSession {
        id: PeerId,
        reply: oneshot::Sender<PeerLink>,
    },
    OpenBulkSession {
        id: PeerId,
        reply: oneshot::Sender<PeerLink>,
    },
    AdoptMembership {
        membership: Arc<Membership>,
        done: oneshot::Sender<()>,
    },
}

/// Why an endpoint did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address could not be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The key could not be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener's address could not be read.
    #[error("the listener's address cannot be read: {0}")]
    Address(std::io::Error),
}

/// A cloneable handle of a program's endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    local: LocalPeer,
    profile: watch::Sender<Profile>,
    listen_addr: SocketAddr,
    commands: mpsc::Sender<EndpointCommand>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The event channels of an endpoint.
#[derive(Debug)]
pub struct Events {
    /// Events of peers.
    pub peers: mpsc::Receiver<PeerEvent>,
    /// Emergency stops that came over links.
    pub stops: mpsc::Receiver<StopReceived>,
    /// Notices for the operator.
    pub notices: mpsc::Receiver<Notice>,
}

impl Endpoint {
    /// Listens, and starts the task.
    ///
    /// # Errors
    /// [`StartError`], whose text names the remedy.
    pub fn start(config: Config, identity: Arc<Identity>) -> Result<(Self, Events), StartError> {
        Self::start_routed(config, identity, None)
    }

    /// [`Self::start`] with a channel of its own for what concerns deliveries: stages and replies that no request waits
    /// for, together with [`PeerEvent::Connected`] and [`PeerEvent::Disconnected`], in the order of each link. The
    /// latter two go to [`Events::peers`] as well. A full channel holds back the peers.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_routed(
        config: Config,
        identity: Arc<Identity>,
        deliveries: Option<mpsc::Sender<PeerEvent>>,
    ) -> Result<(Self, Events), StartError> {
        let listener = socket::listen(config.listen)?;
        let listen_addr = listener.local_addr().map_err(StartError::Address)?;
        let profile = Profile {
            name: config.name,
            tags: config.tags,
            port: listen_addr.port(),
        };
        let (profile, profile_receiver) = watch::channel(profile);
        let (membership, membership_receiver) = watch::channel(config.membership.map(Arc::new));
        let local = LocalPeer::new(config.kind, identity, profile_receiver, membership_receiver)?;
        let (commands, commands_receiver) = mpsc::channel(COMMANDS_MAX);
        let (events, peers) = mpsc::channel(EVENTS_MAX);
        let (stops, stops_receiver) = mpsc::channel(STOPS_MAX);
        let (notices_sender, notices) = mpsc::channel(NOTICES_MAX);
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        task::spawn(
            task::Parts {
                local: local.clone(),
                keepalive: config.keepalive,
                timing: config.timing,
                membership,
                joins: config.joins,
                commands: commands_receiver,
                events,
                deliveries,
                stops,
                notices: notices_sender,
                shutdown: shutdown.clone(),
                tasks: tasks.clone(),
            },
            listener,
        );
        Ok((
            Self {
                local,
                profile,
                listen_addr,
                commands,
                shutdown,
                tasks,
            },
            Events {
                peers,
                stops: stops_receiver,
                notices,
            },
        ))
    }

    /// The address that the endpoint listens on, with its real port.
    pub fn listen_addr(&self) -> SocketAddr {
        self.listen_addr
    }

    /// This side of every link.
    pub fn local(&self) -> &LocalPeer {
        &self.local
    }

    /// The id of this program's key.
    pub fn id(&self) -> PeerId {
        self.local.identity.key.public().id()
    }

    /// The membership of this program; the receiver is notified of changes, which the application stores.
    pub fn membership(&self) -> watch::Receiver<Option<Arc<Membership>>> {
        self.local.membership.clone()
    }

    /// Changes this program's name; linked peers get a roster with it.
    pub fn rename(&self, name: NodeName) {
        self.profile.send_modify(|profile| profile.name = name);
    }

    /// Name, tags and port; the receiver is notified of changes.
    pub fn profile(&self) -> watch::Receiver<Profile> {
        self.local.profile.clone()
    }

    /// Adds an address to dial.
    pub async fn address_discovered(&self, addr: SocketAddr, source: Source, hint: Hint) {
        self.send_command(EndpointCommand::AddressDiscovered { addr, source, hint })
            .await;
    }

    /// Removes an address whose announcement was withdrawn.
    pub async fn address_withdrawn(&self, addr: SocketAddr) {
        self.send_command(EndpointCommand::AddressWithdrawn(addr)).await;
    }

    /// The network has changed: dials all peers that are not linked.
    pub async fn retry_now(&self) {
        self.send_command(EndpointCommand::RetryNow).await;
    }

    /// Adopts a membership: of a fleet that was joined, or with a newer fleet state. Links of revoked keys close. It is in
    /// force when this returns.
    pub async fn adopt_membership(&self, membership: Arc<Membership>) {
        let (done, done_receiver) = oneshot::channel();
        self.send_command(EndpointCommand::AdoptMembership { membership, done })
            .await;
        // Fails only during shutdown.
        done_receiver.await.ok();
    }

    /// The session with a peer, linked or not: messages wait for its link.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn open_session(&self, id: PeerId) -> Result<PeerLink, LinkError> {
        let (reply, reply_receiver) = oneshot::channel();
        self.send_command(EndpointCommand::OpenSession { id, reply })
            .await;
        reply_receiver.await.map_err(|_gone| LinkError::Closed)
    }

    /// The session for files with a peer; its connection is opened if there is none.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn open_bulk_session(&self, id: PeerId) -> Result<PeerLink, LinkError> {
        let (reply, reply_receiver) = oneshot::channel();
        self.send_command(EndpointCommand::OpenBulkSession { id, reply })
            .await;
        reply_receiver.await.map_err(|_gone| LinkError::Closed)
    }

    async fn send_command(&self, command: EndpointCommand) {
        // Fails only during shutdown.
        self.commands.send(command).await.ok();
    }

    /// Sends every peer the reason, closes all links and ends all tasks, within [`SHUTDOWN_TIMEOUT`].
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        if timeout(SHUTDOWN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), grace = ?SHUTDOWN_TIMEOUT, "Tasks outlived shutdown");
        }
    }
}
