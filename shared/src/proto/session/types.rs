//! The inputs and outputs of a session.

use std::time::{Duration, Instant};

use super::super::json::JsonError;
use super::super::message::Refused;
use super::super::wire::{Frame, Kind, Lane, WireError};
use super::outbox::Busy;
use super::pending::PendingError;
use crate::proto::wire::encoded::EncodedFrame;

/// Time-outs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A peer that has sent nothing for this long sends a heartbeat.
    pub heartbeat: Duration,
    /// A peer from which nothing was received for this long is reported as silent.
    pub silent_after: Duration,
    /// A peer from which nothing was received for this long is offline, and its link closes.
    pub lost_after: Duration,
    /// Longest delay of an acknowledgement that waits for a frame to carry it.
    pub ack_delay: Duration,
    /// Shortest time between two acknowledgements of large frames: their sender measures the link's delay by them.
    pub ack_interval: Duration,
}

impl Timing {
    /// Silent after two heartbeats, offline after three.
    pub const fn from_heartbeat(heartbeat: Duration) -> Self {
        Self {
            heartbeat,
            silent_after: heartbeat.saturating_mul(2),
            lost_after: heartbeat.saturating_mul(3),
            ack_delay: Duration::from_millis(25),
            ack_interval: Duration::from_millis(2),
        }
    }

    /// Delays acknowledgements until another frame carries them, at the latest the next heartbeat. Not for bulk
    /// sessions: their window may be full earlier.
    #[must_use]
    pub const fn acknowledged_by_heartbeats(self) -> Self {
        Self {
            ack_delay: self.heartbeat,
            ..self
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::from_heartbeat(Duration::from_secs(1))
    }
}

/// What the application has to know; see [`Session::handle_frame`](super::Session::handle_frame).
#[derive(Debug)]
pub enum Event<T> {
    /// Both welcomes are read: frames are exchanged.
    Opened {
        /// Whether the peer is the instance with which frames were exchanged last. False also if a link to another
        /// instance was attached in between and never opened.
        resumed: bool,
    },
    /// A frame for the application: each once, in order within its lane.
    Frame {
        /// The frame without its session keys applied: acknowledgement and numbering are handled.
        frame: Box<Frame>,
        /// Time after which it must not be acted on: never later than its sender's deadline, however long its transit
        /// took.
        deadline: Option<Instant>,
    },
    /// A request that waited for a reply has ended.
    RequestEnded(T, RequestEnd),
    /// Nothing was received for [`Timing::silent_after`].
    Silent,
    /// The silent peer has sent something again.
    Recovered,
}

/// The end of a request.
#[derive(Debug)]
pub enum RequestEnd {
    /// The content of its reply.
    Reply(bytes::Bytes),
    /// Its deadline passed before it was sent.
    Expired,
    /// It was sent, and the peer restarted: it may or may not have run.
    Lost,
    /// No reply came before the request's deadline.
    TimedOut,
}

/// A reason to close the link. The session survives it and resumes on the next link.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// The peer refused us.
    #[error("refused: {0}")]
    Refused(Refused),
    /// The JSON of a frame cannot be parsed.
    #[error("unreadable {kind:?} frame: {why}")]
    Unreadable {
        /// Kind of the frame.
        kind: Kind,
        /// Fault in its content.
        why: JsonError,
    },
    /// A frame came before the peer's welcome, or a second welcome.
    #[error("unexpected {0:?} frame")]
    UnexpectedFrame(Option<Kind>),
    /// A sequence number is missing: the link has lost a frame.
    #[error("frame {got} came where {expected} was expected")]
    SequenceGap {
        /// Number of the frame.
        got: u64,
        /// Number that was expected.
        expected: u64,
    },
    /// A frame acknowledges a number that was never sent.
    #[error("acknowledges frame {ack}, but only {sent} were sent")]
    AckAhead {
        /// Number that is acknowledged.
        ack: u64,
        /// Highest number that was sent.
        sent: u64,
    },
    /// The welcome is not from the instance that sent the hello.
    #[error("the welcome and the hello are from different processes")]
    OtherInstance,
    /// Nothing was received for [`Timing::lost_after`].
    #[error("nothing was received for {} ms", .0.as_millis())]
    Silence(Duration),
}

/// The message was not accepted, and nothing was queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The lane is full.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The expected reply cannot be registered.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// The header is longer than its cap.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The encoded frame.
    pub frame: EncodedFrame,
    /// Its priority.
    pub lane: Lane,
    /// Time after which it is not sent any more; the peer is sent the remaining time to live.
    pub deadline: Option<Instant>,
}

/// The reply that a request waits for.
#[derive(Debug)]
pub struct ExpectedReply<T> {
    /// Number of the request, which its header holds as [`Header::id`](super::super::wire::Header::id).
    pub id: u64,
    /// When the wait ends.
    pub deadline: Instant,
    /// Given back with the request's end.
    pub token: T,
}
