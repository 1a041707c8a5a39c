//! What goes into a session and what comes out of it.

use std::time::{Duration, Instant};

use super::super::json::JsonError;
use super::super::message::Refused;
use super::super::wire::{Frame, Kind, Lane, WireError};
use super::outbox::Busy;
use super::pending::PendingError;
use crate::proto::wire::encoded::EncodedFrame;

/// The session's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A peer that has sent nothing for this long sends a heartbeat.
    pub heartbeat: Duration,
    /// A peer that was not heard for this long is called silent.
    pub silent_after: Duration,
    /// A peer that was not heard for this long is offline, and its link closes.
    pub lost_after: Duration,
    /// How long an acknowledgement may wait for a frame that carries it.
    pub ack_delay: Duration,
    /// How soon after another one a large frame is acknowledged: its sender learns from it how full the link is.
    pub ack_interval: Duration,
}

impl Timing {
    /// Silent after two heartbeats, lost after three.
    pub const fn from_heartbeat(heartbeat: Duration) -> Self {
        Self {
            heartbeat,
            silent_after: heartbeat.saturating_mul(2),
            lost_after: heartbeat.saturating_mul(3),
            ack_delay: Duration::from_millis(25),
            ack_interval: Duration::from_millis(2),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::from_heartbeat(Duration::from_secs(1))
    }
}

/// A request's end, or what the application has to know; see [`Session::handle_frame`](super::Session::handle_frame).
#[derive(Debug)]
pub enum Event<T> {
    /// Both welcomes are through: frames flow.
    Opened {
        /// Whether the peer is the same process as when frames flowed last: a link to another one in between that
        /// never opened counts.
        resumed: bool,
    },
    /// A frame for the application: each once, in order within its lane.
    Frame {
        /// The frame.
        frame: Box<Frame>,
        /// When it is too late to act on it: never later than its sender meant, however long it was on its way.
        deadline: Option<Instant>,
    },
    /// A request that waited has ended.
    RequestEnded(T, RequestEnd),
    /// Nothing was heard for [`Timing::silent_after`].
    Silent,
    /// The silent peer was heard again.
    Recovered,
}

/// How a request ended.
#[derive(Debug)]
pub enum RequestEnd {
    /// The content of its reply.
    Reply(bytes::Bytes),
    /// It was too late to send it.
    Expired,
    /// It was sent, and the peer restarted: it may or may not have run.
    Lost,
    /// No reply came in time.
    TimedOut,
}

/// Why a link has to close. The session survives it and resumes on the next one.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// The peer refused us.
    #[error("refused: {0}")]
    Refused(Refused),
    /// A frame that should be JSON of ours is not.
    #[error("unreadable {kind:?} frame: {why}")]
    Unreadable {
        /// Which frame.
        kind: Kind,
        /// What is wrong with it.
        why: JsonError,
    },
    /// A frame came before the peer's welcome, or a second welcome.
    #[error("{0:?} frame out of place")]
    UnexpectedFrame(Option<Kind>),
    /// A number is missing: the link has lost a frame.
    #[error("frame {got} came where {expected} was due")]
    SequenceGap {
        /// The number of the frame.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// An acknowledgement of something never sent.
    #[error("acknowledges frame {ack}, but only {sent} were sent")]
    AckAhead {
        /// What is acknowledged.
        ack: u64,
        /// What was sent.
        sent: u64,
    },
    /// The peer's process is not the one that said hello.
    #[error("the welcome is of another process than the hello")]
    OtherInstance,
    /// Nothing was heard for too long.
    #[error("not heard for {} ms", .0.as_millis())]
    Silence(Duration),
}

/// A message that was not taken. Nothing was queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The lane is full.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The request cannot wait for its reply.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// The header is too long.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The frame, ready to send.
    pub frame: EncodedFrame,
    /// Its lane.
    pub lane: Lane,
    /// When it is too late to send it; also the time to live that the peer is told.
    pub deadline: Option<Instant>,
}

/// The reply that a request waits for.
#[derive(Debug)]
pub struct ExpectedReply<T> {
    /// The number of the request, in its header as [`Header::id`](super::super::wire::Header::id).
    pub id: u64,
    /// When to stop waiting.
    pub deadline: Instant,
    /// Handed back with the end.
    pub token: T,
}
