//! What a server asks of a drone, and how it ends.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

/// What a lost connection means, and a long silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroneOptions {
    /// Messages that are queued when a connection is lost, or while there is none, are sent at the next one.
    pub resume_queue: bool,
    /// Requests without an answer are asked again at the next connection.
    pub resend_requests: bool,
    /// The longest silence.
    pub idle_timeout: Duration,
}

/// Until when something may begin, and be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// It is not begun after this.
    pub start_by: Instant,
    /// An answer is not waited for after this.
    pub respond_by: Instant,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Completion {
    /// Written whole. That is all that can be known.
    Sent,
    /// Answered.
    Response(Value),
    /// Answered with a file.
    File(Bytes),
    /// The answer is not of the kind that was asked for.
    WrongKind(&'static str),
    /// It could not begin in time.
    Expired,
    /// No answer, and why.
    NoAnswer(&'static str),
    /// Not tried, and why.
    Refused(&'static str),
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What the ticket is about has ended.
    Completed(u64, Completion),
    /// New readings; also in [`Drone::readings`](super::server::Drone::readings).
    Telemetry,
    /// It says that it is called otherwise now: close the connection, so that it comes in anew.
    IdChanged(String),
    /// Nothing was heard for too long: close the connection.
    IdleTimeout,
    /// Something was passed over, for whoever looks for a fault.
    Ignored(String),
}
