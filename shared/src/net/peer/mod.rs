//! The interface to one peer: its description, its events, and a handle to send with.
//!
//! One task (`task`) for each session owns the session and its present connection, and outlives connections.

mod event_queue;
mod permission;
mod task;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::conn::Conn;
use crate::proto::id::{Instance, NodeName, PeerId, PeerKind, PublicKey};
use crate::proto::message::{Channel, Refused};
use crate::proto::session::path_check::PathVerdict;
use crate::proto::session::{ExpectedReply, Outgoing, RequestEnd};
use crate::proto::trust::Role;
use crate::proto::trust::gate::ActionClass;
use crate::proto::wire::{Frame, Lane};

pub(crate) use task::{TaskParts, spawn};

/// The description of a linked peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// SHA-256 of its public key.
    pub id: PeerId,
    /// Its public key, proved by TLS.
    pub key: PublicKey,
    /// Node or station.
    pub kind: PeerKind,
    /// The role in its grant.
    pub role: Role,
    /// Its name, which need not be unique.
    pub name: NodeName,
    /// Its tags, which selectors match.
    pub tags: BTreeMap<String, String>,
    /// The version of its program.
    pub software: String,
    /// The remote address of the connection.
    pub addr: SocketAddr,
    /// Its address with the port that it listens on; port 0 if it does not listen.
    pub listen_addr: SocketAddr,
    /// This run of its process.
    pub instance: Instance,
}

/// How a request ended.
#[derive(Debug)]
pub enum RequestResult {
    /// The content of its reply.
    Reply(Bytes),
    /// Its time to live ended before it was sent.
    Expired,
    /// It was sent, and the peer's process ended before its reply came.
    Lost,
    /// No reply came in time.
    TimedOut,
    /// It was not queued, for this reason.
    NotSent(String),
}

impl From<RequestEnd> for RequestResult {
    fn from(end: RequestEnd) -> Self {
        match end {
            RequestEnd::Reply(content) => Self::Reply(content),
            RequestEnd::Expired => Self::Expired,
            RequestEnd::Lost => Self::Lost,
            RequestEnd::TimedOut => Self::TimedOut,
        }
    }
}

/// The end of one request.
#[derive(Debug)]
pub struct CompletedRequest {
    /// The peer that the request was sent to.
    pub peer: PeerId,
    /// [`Request::id`].
    pub id: u64,
    /// How it ended.
    pub result: RequestResult,
}

/// The channel for the end of a request. It needs room for as many requests as its owner has open: further ends are lost.
#[derive(Clone, Debug)]
pub struct ReplyTo(pub mpsc::Sender<CompletedRequest>);

#[derive(Clone, Debug)]
pub(crate) struct RequestToken {
    id: u64,
    reply_to: ReplyTo,
}

impl RequestToken {
    fn resolve(self, peer: PeerId, result: RequestResult) {
        let Self { id, reply_to } = self;
        // The receiver may have been dropped.
        reply_to.0.try_send(CompletedRequest { peer, id, result }).ok();
    }
}

/// A message for a session.
#[derive(Debug)]
pub(crate) struct SessionMessage {
    pub(crate) outgoing: Outgoing,
    pub(crate) expected: Option<ExpectedReply<RequestToken>>,
}

/// What turns a message into a request: the session waits for its reply.
#[derive(Debug)]
pub struct Request {
    /// As in the frame's header.
    pub id: u64,
    /// When to stop waiting for the reply.
    pub timeout_at: Instant,
    /// Where [`CompletedRequest`] goes.
    pub reply_to: ReplyTo,
}

/// A cloneable handle of one session.
#[derive(Clone)]
pub struct PeerLink {
    id: PeerId,
    messages: mpsc::Sender<SessionMessage>,
    last_heard: Arc<LastHeard>,
    /// For the emergency lane, so that a full queue of other messages never delays it.
    emergency: mpsc::Sender<SessionMessage>,
    chunk_bytes: ChunkBytes,
}

/// The chunk size that suits a link now, in bytes: written by the session's task, read by the reader of a file. Clones
/// share the value.
#[derive(Clone, Debug)]
pub struct ChunkBytes(Arc<AtomicUsize>);

impl ChunkBytes {
    /// With an initial value.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// The present value, in bytes.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the value.
    pub fn set(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// When bytes of a peer arrived last: written by its session's task, read by its handles.
#[derive(Debug)]
pub(crate) struct LastHeard {
    start: Instant,
    /// Since `start`, in milliseconds, plus one; 0 for never.
    after_ms: AtomicU64,
}

impl LastHeard {
    fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self {
            start,
            after_ms: AtomicU64::new(0),
        })
    }

    fn record(&self, now: Instant) {
        let after = now.saturating_duration_since(self.start).as_millis();
        self.after_ms.store(
            u64::try_from(after).unwrap_or(u64::MAX - 1) + 1,
            Ordering::Relaxed,
        );
    }
}

impl fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerLink({})", self.id.short())
    }
}

/// Why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Too much waits for this peer.
    #[error("busy: too much waits for this peer")]
    Busy,
    /// The program is shutting down, or the peer's key has been revoked.
    #[error("the session has ended: this program is shutting down, or the peer's key was revoked")]
    Closed,
}

impl PeerLink {
    /// The peer of this session.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// When bytes of the peer arrived last; `None` if none have.
    pub fn last_heard(&self) -> Option<Instant> {
        let after_ms = self.last_heard.after_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.last_heard.start + Duration::from_millis(after_ms))
    }

    /// The chunk size that suits this session's link.
    pub fn chunk_bytes(&self) -> ChunkBytes {
        self.chunk_bytes.clone()
    }

    /// Queues a message at once or not at all.
    ///
    /// # Errors
    /// [`LinkError`]; nothing was queued.
    pub fn try_send(&self, outgoing: Outgoing) -> Result<(), LinkError> {
        self.try_enqueue(SessionMessage {
            outgoing,
            expected: None,
        })
    }

    /// Queues a request at once or not at all. After `Ok`, exactly one end goes to `request.reply_to`.
    ///
    /// # Errors
    /// [`LinkError`]; nothing was queued.
    pub fn try_request(&self, outgoing: Outgoing, request: Request) -> Result<(), LinkError> {
        self.try_enqueue(SessionMessage {
            outgoing,
            expected: Some(expected_reply(request)),
        })
    }

    /// Queues a message, waiting for room. For chunks of files.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn send(&self, outgoing: Outgoing) -> Result<(), LinkError> {
        let message = SessionMessage {
            outgoing,
            expected: None,
        };
        self.enqueue(message).await
    }

    /// Queues a request, waiting for room. For file transfers.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn request(&self, outgoing: Outgoing, request: Request) -> Result<(), LinkError> {
        let message = SessionMessage {
            outgoing,
            expected: Some(expected_reply(request)),
        };
        self.enqueue(message).await
    }

    fn queue(&self, lane: Lane) -> &mpsc::Sender<SessionMessage> {
        match lane {
            Lane::Emergency => &self.emergency,
            Lane::Control | Lane::Telemetry | Lane::Bulk => &self.messages,
        }
    }

    async fn enqueue(&self, message: SessionMessage) -> Result<(), LinkError> {
        let queue = self.queue(message.outgoing.lane);
        queue.send(message).await.map_err(|_closed| LinkError::Closed)
    }

    fn try_enqueue(&self, message: SessionMessage) -> Result<(), LinkError> {
        let queue = self.queue(message.outgoing.lane);
        queue.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LinkError::Busy,
            mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
        })
    }
}

fn expected_reply(request: Request) -> ExpectedReply<RequestToken> {
    let Request {
        id,
        timeout_at,
        reply_to,
    } = request;
    ExpectedReply {
        id,
        deadline: timeout_at,
        token: RequestToken { id, reply_to },
    }
}

/// An event of a peer, for the application.
#[derive(Debug)]
pub enum PeerEvent {
    /// Frames flow.
    Connected {
        /// The peer, as its hello and its grant describe it.
        peer: Arc<PeerInfo>,
        /// The handle of its control session; the same one after every reconnect.
        link: PeerLink,
        /// True if the session continues the one of the link before: then no message was lost in between.
        resumed: bool,
    },
    /// No byte has arrived for two heartbeats.
    Silent(PeerId),
    /// Bytes arrive again.
    Responsive(PeerId),
    /// The link is closed; the session stays.
    Disconnected {
        /// The peer.
        id: PeerId,
        /// The reason, as text for logs.
        reason: String,
    },
    /// A bulk session with the peer has begun. Its events have a channel of their own, so that files delay only files.
    /// Read it or drop it: while it is full, the session neither reads nor sends.
    BulkOpened {
        /// The peer.
        id: PeerId,
        /// The handle of the bulk session.
        link: PeerLink,
        /// The events of the bulk session.
        events: mpsc::Receiver<Self>,
    },
    /// A frame that its role permits.
    Frame {
        /// The sender.
        peer: Arc<PeerInfo>,
        /// The connection that it came on.
        channel: Channel,
        /// Header and content.
        frame: Box<Frame>,
        /// Of a command, its class, by which its sender's role was judged; `None` if its arguments are unreadable, and
        /// of other frames.
        class: Option<ActionClass>,
        /// When acting on it is too late, on [`clock::now`](super::clock::now).
        deadline: Option<Instant>,
    },
}

/// An emergency stop that came over a link. It has a channel of its own to the application, ahead of everything queued
/// there.
#[derive(Clone, Debug)]
pub struct StopReceived {
    /// The sender, whose role permits stops.
    pub peer: PeerId,
    /// The signed order.
    pub order: Bytes,
}

/// A connection for a session.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) conn: Conn,
    pub(crate) info: Arc<PeerInfo>,
    /// Distinguishes this link from others of the same session.
    pub(crate) link_number: u64,
}

#[derive(Debug)]
pub(crate) enum LinkCommand {
    Attach(Box<Attachment>),
    /// Send the peer the reason and close the link.
    Close(Refused),
    /// The same, and end the session.
    EndSession(Refused),
}

/// An event of a link, for the endpoint.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Frames flow.
    Opened { id: PeerId, channel: Channel },
    /// The link is closed; `refused` if the peer sent a reason. `path` is what its end says of the path.
    Closed {
        id: PeerId,
        channel: Channel,
        link_number: u64,
        addr: SocketAddr,
        refused: Option<Refused>,
        path: PathVerdict,
    },
    /// A frame for the endpoint itself.
    Frame { peer: Arc<PeerInfo>, frame: Box<Frame> },
    /// A bulk session has frames to send and no connection.
    BulkWanted { id: PeerId },
}

/// The endpoint's side of a session's task.
#[derive(Clone, Debug)]
pub(crate) struct SessionHandle {
    pub(crate) link: PeerLink,
    pub(crate) commands: mpsc::Sender<LinkCommand>,
}
