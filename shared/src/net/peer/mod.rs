//! A peer as the rest of the program sees it: who it is, what happens to it, and a handle to send with.
//!
//! Behind each handle stands one task (`task`) that owns the session and the connection at hand, and outlives
//! connections.

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
use crate::proto::session::{ExpectedReply, Outgoing};
use crate::proto::trust::Role;
use crate::proto::trust::gate::ActionClass;
use crate::proto::wire::{Frame, Lane};

pub(crate) use task::{TaskParts, spawn};

/// What is known of a peer while it is linked.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its key's hash.
    pub id: PeerId,
    /// Its key.
    pub key: PublicKey,
    /// What it runs.
    pub kind: PeerKind,
    /// What the fleet root says it may be.
    pub role: Role,
    /// Its name.
    pub name: NodeName,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its program's version.
    pub software: String,
    /// The other end of the connection.
    pub addr: SocketAddr,
    /// Where it can be dialled: its address with the port that it listens on.
    pub listen_addr: SocketAddr,
    /// This run of its process.
    pub instance: Instance,
}

/// How a request ended, for whoever sent it.
#[derive(Debug)]
pub enum RequestResult {
    /// The content of its reply.
    Reply(Bytes),
    /// Its time to live ran out before it could be sent.
    Expired,
    /// It was sent, and the peer's process ended before its reply came.
    Lost,
    /// No reply came in time.
    TimedOut,
    /// It was never queued.
    NotSent(String),
}

/// A request's end and whose it was.
#[derive(Debug)]
pub struct CompletedRequest {
    /// The peer that it was for.
    pub peer: PeerId,
    /// The request's number.
    pub id: u64,
    /// How it ended.
    pub result: RequestResult,
}

/// Where the end of a request goes: a channel with room for as many as its owner sends.
#[derive(Clone, Debug)]
pub struct ReplyTo(pub mpsc::Sender<CompletedRequest>);

#[derive(Clone, Debug)]
pub(crate) struct RequestToken {
    id: u64,
    reply_to: ReplyTo,
}

impl RequestToken {
    fn resolve(self, peer: PeerId, result: RequestResult) {
        // The receiver may have gone: then nobody wants to know.
        let _unwanted = self.reply_to.0.try_send(CompletedRequest {
            peer,
            id: self.id,
            result,
        });
    }
}

/// A message for a session.
#[derive(Debug)]
pub(crate) struct SessionMessage {
    pub(crate) outgoing: Outgoing,
    pub(crate) expected: Option<ExpectedReply<RequestToken>>,
}

/// A request's number, its patience, and where its end goes.
#[derive(Debug)]
pub struct Request {
    /// As in the header.
    pub id: u64,
    /// When to stop waiting for the reply.
    pub timeout_at: Instant,
    /// Where the end goes.
    pub reply_to: ReplyTo,
}

/// A cloneable handle of one session.
#[derive(Clone)]
pub struct PeerLink {
    id: PeerId,
    messages: mpsc::Sender<SessionMessage>,
    last_heard: Arc<LastHeard>,
    /// For the emergency lane, so that a full queue of other messages is never in its way.
    emergency: mpsc::Sender<SessionMessage>,
    chunk_bytes: ChunkBytes,
}

/// How long a chunk of a file is best just now: written by a session's task, read by whoever reads files for it. Clones
/// are one.
#[derive(Clone, Debug)]
pub struct ChunkBytes(Arc<AtomicUsize>);

impl ChunkBytes {
    /// To begin with.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// As it is now.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// It has changed.
    pub fn set(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// When a peer was heard last: written by its session's task, read by anybody.
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

/// The session's task has ended, or its queue is full.
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
    /// Whose session it is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// When the peer was heard last; `None` if it never was.
    pub fn last_heard(&self) -> Option<Instant> {
        let after_ms = self.last_heard.after_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.last_heard.start + Duration::from_millis(after_ms))
    }

    /// How long a chunk of a file is best on this session's link.
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

    /// Queues a request at once or not at all. If this returns `Ok`, its end goes to `request.reply_to`, whatever
    /// happens.
    ///
    /// # Errors
    /// [`LinkError`]; nothing was queued.
    pub fn try_request(&self, outgoing: Outgoing, request: Request) -> Result<(), LinkError> {
        self.try_enqueue(SessionMessage {
            outgoing,
            expected: Some(expected_reply(request)),
        })
    }

    /// Queues a message, waiting for room: for files.
    ///
    /// # Errors
    /// [`LinkError::Stopped`].
    pub async fn send(&self, outgoing: Outgoing) -> Result<(), LinkError> {
        let message = SessionMessage {
            outgoing,
            expected: None,
        };
        self.enqueue(message).await
    }

    /// Queues a request, waiting for room: for files.
    ///
    /// # Errors
    /// [`LinkError::Stopped`].
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

/// What happens to a peer, for the application.
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
    /// It has not been heard for two heartbeats.
    Silent(PeerId),
    /// It has been heard again.
    Responsive(PeerId),
    /// Its link is gone.
    Disconnected {
        /// Whose.
        id: PeerId,
        /// Why, for people.
        reason: String,
    },
    /// A bulk session with the peer has begun: what happens there comes here, so that files wait only for files. Take
    /// its events or drop their receiver: while they lie, the session stands still, its sending too.
    BulkOpened {
        /// Whose.
        id: PeerId,
        /// To send files with.
        link: PeerLink,
        /// Its frames.
        events: mpsc::Receiver<Self>,
    },
    /// A frame that its role permits.
    Frame {
        /// Who sent it.
        peer: Arc<PeerInfo>,
        /// On which connection it came.
        channel: Channel,
        /// The frame.
        frame: Box<Frame>,
        /// Of a command, its class, by which its sender's role was judged; `None` if its arguments are unreadable, and
        /// of other frames.
        class: Option<ActionClass>,
        /// When it is too late to act on it, on [`clock::now`](super::clock::now).
        deadline: Option<Instant>,
    },
}

/// An emergency stop that came over a link. It has a way of its own to the application, so that nothing else that waits
/// there is in front of it.
#[derive(Clone, Debug)]
pub struct StopReceived {
    /// Who sent it: a peer whose role may.
    pub peer: PeerId,
    /// The signed order.
    pub order: Bytes,
}

/// A connection for a session.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) conn: Conn,
    pub(crate) info: Arc<PeerInfo>,
    /// Tells this link from others of the same session.
    pub(crate) link_number: u64,
}

#[derive(Debug)]
pub(crate) enum LinkCommand {
    Attach(Box<Attachment>),
    /// Tell the peer why and close the link.
    Close(Refused),
    /// The same, and end the session: nothing is shared with this peer any more.
    EndSession(Refused),
}

/// Word of a link, for the endpoint.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Frames flow.
    Opened { id: PeerId, channel: Channel },
    /// The link is gone; `refused` if the peer said why.
    Closed {
        id: PeerId,
        channel: Channel,
        link_number: u64,
        addr: SocketAddr,
        refused: Option<Refused>,
    },
    /// A frame that concerns all links.
    Frame { peer: Arc<PeerInfo>, frame: Box<Frame> },
    /// There are files to send, and no connection for them.
    BulkWanted { id: PeerId },
}

/// The endpoint's side of a session's task.
#[derive(Clone, Debug)]
pub(crate) struct SessionHandle {
    pub(crate) link: PeerLink,
    pub(crate) commands: mpsc::Sender<LinkCommand>,
}
