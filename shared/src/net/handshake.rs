//! The handshake that turns a TCP connection into an authenticated one: TLS, then one hello each way.
//!
//! The accepting side sends its hello first, so that a dialler shows its name and grant only to a member of its own
//! fleet. A peer's data has no effect before its grant is verified. The handshake is bounded by
//! [`PREAUTH_TIMEOUT`] and the caps of [`FrameLimits::PREAUTH`]. A refused peer is sent the reason.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::conn::{Conn, ReadError};
use super::dial_claims::{DialClaim, DialClaims};
use super::preauth_limit::SlotGuard;
use super::random::{self, NoRandomness};
use super::socket;
use super::tls;
use crate::proto::id::{Instance, NodeName, PeerId, PeerKind, PublicKey};
use crate::proto::message::{Channel, Hello, PROTOCOL_VERSIONS, RefusalCode, Refused};
use crate::proto::session::simultaneous_open::DialedBy;
use crate::proto::trust::{Grant, Membership, SigningKey};
use crate::proto::wire::{Frame, FrameLimits, Kind, WireError};

/// How long a handshake may take.
pub const PREAUTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sending a refusal may take.
pub const REFUSE_GRACE: Duration = Duration::from_secs(1);

/// The identity of this program on every link.
#[derive(Debug)]
pub struct Identity {
    /// The key; its hash is the id by which peers know this program.
    pub key: SigningKey,
    /// This run of the process, drawn at random at start.
    pub instance: Instance,
}

impl Identity {
    /// An identity with a new run.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(key: SigningKey) -> Result<Self, NoRandomness> {
        Ok(Self {
            key,
            instance: Instance(u64::from_le_bytes(random::bytes()?)),
        })
    }
}

/// The fields of a hello that the configuration sets.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The peer's name, which need not be unique.
    pub name: NodeName,
    /// Tags, which selectors match.
    pub tags: BTreeMap<String, String>,
    /// The TCP port that the peer listens on; 0 if none.
    pub port: u16,
}

/// This side of every link.
#[derive(Clone)]
pub struct LocalPeer {
    /// Node or station.
    pub kind: PeerKind,
    /// Key and run of the process.
    pub identity: Arc<Identity>,
    /// Name, tags and port; they may change while links are open.
    pub profile: watch::Receiver<Profile>,
    /// The fleet; `None` until this side has joined one.
    pub membership: watch::Receiver<Option<Arc<Membership>>>,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for LocalPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local")
            .field("kind", &self.kind)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A connection whose peer is authenticated and permitted.
#[derive(Debug)]
pub(crate) struct AuthenticatedConn {
    pub(crate) conn: Conn,
    pub(crate) key: PublicKey,
    pub(crate) hello: Hello,
    /// The peer's grant; `None` on [`Channel::Join`] only.
    pub(crate) grant: Option<Grant>,
    pub(crate) dialler: DialedBy,
    pub(crate) addr: SocketAddr,
    /// The TLS exporter's value, which binds proofs to this connection.
    pub(crate) exporter: [u8; 32],
    /// The slot of an accepted connection among the unauthenticated ones, held until the link is attached or refused.
    pub(crate) preauth_slot: Option<SlotGuard>,
    /// Of a dialled control connection, held until the link is attached or refused.
    pub(crate) dial_claim: Option<DialClaim>,
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// TCP or TLS failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The connection ended, or its frames were invalid.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A frame of ours could not be encoded.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// TLS gave no usable key of the peer.
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    /// The handshake took longer than [`PREAUTH_TIMEOUT`].
    #[error("no hello within {} s", PREAUTH_TIMEOUT.as_secs())]
    TimedOut,
    /// The peer refused us.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refused),
    /// The dialled peer is linked already, or another dial has reached it first.
    #[error("the peer is linked already")]
    AlreadyLinked(PeerId),
    /// The dialled peer asks for a connection with small segments.
    #[error("the peer asks to be dialled with small segments")]
    SmallSegmentsRequested,
    /// This side refused the peer, and sent it the reason.
    #[error("refused: {refused}")]
    RefusedByUs {
        /// The peer's key.
        key: PublicKey,
        /// The peer's name; `None` before its hello.
        name: Option<NodeName>,
        /// The reason that was sent.
        refused: Refused,
    },
}

/// Why a handshake ended.
enum HandshakeFailure {
    /// The connection is unusable.
    Error(HandshakeError),
    /// The peer is to be sent the reason.
    Refused(Box<PendingRefusal>),
}

struct PendingRefusal {
    conn: Conn,
    key: PublicKey,
    name: Option<NodeName>,
    refused: Refused,
}

impl<E: Into<HandshakeError>> From<E> for HandshakeFailure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Which side of a connection this is.
#[derive(Clone, Copy)]
enum Side<'a> {
    /// The peer dialled; `small_segments` asks it to dial again with small ones.
    Dialled { small_segments: bool },
    /// This side dialled; `small_segments` says that the connection has small ones.
    Dialler {
        channel: Channel,
        small_segments: bool,
        claims: Option<&'a DialClaims>,
    },
}

/// Bounds a handshake in time, and sends the refusal if there is one. The handshake is boxed, because it is large
/// compared with what its callers keep.
async fn with_preauth_timeout(
    handshake: Pin<Box<impl Future<Output = Result<AuthenticatedConn, HandshakeFailure>>>>,
) -> Result<AuthenticatedConn, HandshakeError> {
    let result = timeout(PREAUTH_TIMEOUT, handshake).await;
    match result.map_err(|_elapsed| HandshakeError::TimedOut)? {
        Ok(greeted) => Ok(greeted),
        Err(HandshakeFailure::Error(error)) => Err(error),
        Err(HandshakeFailure::Refused(refusal)) => {
            let PendingRefusal {
                conn,
                key,
                name,
                refused,
            } = *refusal;
            refuse(conn, &refused).await;
            Err(HandshakeError::RefusedByUs { key, name, refused })
        }
    }
}

/// Sends a refusal, and closes the connection.
pub(crate) async fn refuse(mut conn: Conn, refused: &Refused) {
    let sent = async {
        conn.queue_frame(&Frame::json(Kind::Refused, refused))
            .map_err(io::Error::other)?;
        conn.close().await
    };
    if !matches!(timeout(REFUSE_GRACE, sent).await, Ok(Ok(()))) {
        tracing::debug!(%refused, "Refusal not sent: the peer may have disconnected");
    }
}

impl LocalPeer {
    /// This side of all links, with its TLS configurations.
    ///
    /// # Errors
    /// [`tls::TlsError`] if the key cannot be used.
    pub fn new(
        kind: PeerKind,
        identity: Arc<Identity>,
        profile: watch::Receiver<Profile>,
        membership: watch::Receiver<Option<Arc<Membership>>>,
    ) -> Result<Self, tls::TlsError> {
        let connector = TlsConnector::from(tls::client_config(&identity.key)?);
        let acceptor = TlsAcceptor::from(tls::server_config(&identity.key)?);
        Ok(Self {
            kind,
            identity,
            profile,
            membership,
            connector,
            acceptor,
        })
    }

    /// The handshake on an accepted connection. If its path `is_narrow`, the peer is asked for small segments, unless it
    /// has chosen them already.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
        addr: SocketAddr,
        is_narrow: bool,
    ) -> Result<AuthenticatedConn, HandshakeError> {
        let small_segments = is_narrow && !socket::has_small_segments(&tcp);
        with_preauth_timeout(Box::pin(async {
            let stream = self.acceptor.accept(tcp).await?;
            let side = Side::Dialled { small_segments };
            self.exchange_hello(stream.into(), addr, side).await
        }))
        .await
    }

    /// The handshake on a dialled connection. With `claims` it ends early if the peer needs no further link.
    pub(crate) async fn dial(
        &self,
        tcp: TcpStream,
        addr: SocketAddr,
        channel: Channel,
        claims: Option<&DialClaims>,
    ) -> Result<AuthenticatedConn, HandshakeError> {
        let side = Side::Dialler {
            channel,
            small_segments: socket::has_small_segments(&tcp),
            claims,
        };
        with_preauth_timeout(Box::pin(async {
            let stream = self.connector.connect(tls::server_name(), tcp).await?;
            self.exchange_hello(stream.into(), addr, side).await
        }))
        .await
    }

    /// Sends this side's hello and checks the peer's.
    async fn exchange_hello(
        &self,
        stream: TlsStream<TcpStream>,
        addr: SocketAddr,
        side: Side<'_>,
    ) -> Result<AuthenticatedConn, HandshakeFailure> {
        let key = tls::peer_key(stream.get_ref().1)?;
        let exporter = tls::exporter(&stream)?;
        let mut conn = Conn::new(stream, FrameLimits::PREAUTH);
        let already_linked = || HandshakeError::AlreadyLinked(key.id());
        let dial_claim = match side {
            Side::Dialled { small_segments } => {
                let hello = Hello {
                    small_segments,
                    // The dialler decides the channel; the value in this hello has no effect.
                    ..self.hello(Channel::Control)
                };
                conn.queue_frame(&Frame::json(Kind::Hello, &hello))?;
                None
            }
            Side::Dialler {
                claims: Some(claims), ..
            } => Some(claims.claim(key.id()).ok_or_else(already_linked)?),
            Side::Dialler { claims: None, .. } => None,
        };
        let (mut conn, hello) = read_hello(conn, key).await?;
        let channel = match side {
            Side::Dialled { .. } => hello.channel,
            Side::Dialler { channel, .. } => channel,
        };
        let grant = match self.check_hello(&key, &hello, channel) {
            Ok(grant) => grant,
            Err(refused) => {
                return Err(HandshakeFailure::Refused(Box::new(PendingRefusal {
                    conn,
                    key,
                    name: Some(hello.name),
                    refused,
                })));
            }
        };
        let dialler = match side {
            Side::Dialled { .. } => DialedBy::Remote,
            Side::Dialler {
                small_segments,
                claims,
                ..
            } => {
                if hello.small_segments && !small_segments {
                    return Err(HandshakeError::SmallSegmentsRequested.into());
                }
                if claims.is_some_and(|claims| claims.is_linked(key.id(), hello.instance)) {
                    return Err(already_linked().into());
                }
                conn.queue_frame(&Frame::json(Kind::Hello, &self.hello(channel)))?;
                conn.flush().await?;
                DialedBy::Local
            }
        };
        Ok(AuthenticatedConn {
            conn,
            key,
            hello,
            grant,
            dialler,
            addr,
            exporter,
            preauth_slot: None,
            dial_claim,
        })
    }

    fn hello(&self, channel: Channel) -> Hello {
        let profile = self.profile.borrow().clone();
        let membership = self.membership.borrow().clone();
        Hello {
            versions: PROTOCOL_VERSIONS,
            channel,
            kind: self.kind,
            name: profile.name,
            instance: self.identity.instance,
            port: profile.port,
            tags: profile.tags,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            fleet_state: membership.as_ref().map_or(0, |m| m.state_number()),
            // The sides of a join do not share a fleet yet, so no grant is shown.
            grant: membership
                .filter(|_| channel != Channel::Join)
                .map(|m| m.grant().clone()),
            small_segments: false,
        }
    }

    fn check_hello(
        &self,
        key: &PublicKey,
        hello: &Hello,
        channel: Channel,
    ) -> Result<Option<Grant>, Refused> {
        if PROTOCOL_VERSIONS.newest_common(hello.versions).is_none() {
            let (ours, theirs) = (PROTOCOL_VERSIONS, hello.versions);
            return Err(Refused::new(
                RefusalCode::Version,
                format!(
                    "no protocol version in common: one side speaks {} to {}, the other {} to {}; install the \
                     same release on both",
                    ours.min, ours.max, theirs.min, theirs.max
                ),
            ));
        }
        if *key == self.identity.key.public() {
            return Err(Refused::new(
                RefusalCode::ClonedKey,
                "both ends hold the same key: this is the program itself, or a copied identity.key; delete the \
                 copy and let the device make its own",
            ));
        }
        if channel == Channel::Join {
            return Ok(None);
        }
        let membership = self.membership.borrow().clone();
        let Some(membership) = membership else {
            return Err(Refused::new(
                RefusalCode::NoGrant,
                format!(
                    "this {} belongs to no fleet yet: join it with a code of `ground-station fleet invite`",
                    self.kind
                ),
            ));
        };
        membership.check_peer(key, hello.grant.as_ref()).map(Some)
    }
}

async fn read_hello(mut conn: Conn, key: PublicKey) -> Result<(Conn, Hello), HandshakeFailure> {
    let fault = match conn.read_frame().await {
        Ok(frame) if frame.header.kind == Some(Kind::Hello) => match frame.parse_content() {
            Ok(hello) => return Ok((conn, hello)),
            Err(error) => format!("unreadable hello: {error}"),
        },
        Ok(frame) if frame.header.kind == Some(Kind::Refused) => match frame.parse_content() {
            Ok(refused) => return Err(HandshakeError::RefusedByPeer(refused).into()),
            Err(error) => format!("unreadable refusal: {error}"),
        },
        Ok(frame) => format!("expected a hello, got {:?}", frame.header.kind),
        Err(ReadError::Wire(error)) => format!("expected a hello, got no frame at all: {error}"),
        Err(error @ (ReadError::Io(_) | ReadError::Closed)) => return Err(error.into()),
    };
    Err(HandshakeFailure::Refused(Box::new(PendingRefusal {
        conn,
        key,
        name: None,
        refused: Refused::new(RefusalCode::Protocol, fault),
    })))
}
