//! Options of a drone's server side, and how its tickets end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

/// What happens when a connection is lost, or is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroneOptions {
    /// Messages that wait when a connection is lost, or while there is none, are sent over the next one.
    pub resume_queue: bool,
    /// Requests without a response are sent again over the next connection.
    pub resend_requests: bool,
    /// Silence after which the drone is disconnected.
    pub idle_timeout: Duration,
}

/// When a request expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// It is not sent at or after this time.
    pub start_by: Instant,
    /// Its response is not waited for after this time.
    pub respond_by: Instant,
}

/// How a ticket ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Completion {
    /// Written as a whole; the protocol confirms no more.
    Sent,
    /// The response to a request.
    Response(Value),
    /// The file that was requested.
    File(Bytes),
    /// The response is a value instead of a file, or the reverse.
    WrongKind(&'static str),
    /// It could not start before its deadline.
    Expired,
    /// No response, and why.
    NoAnswer(&'static str),
    /// Never sent, and why.
    Refused(&'static str),
}

/// What the driver has to act on.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This ticket has ended.
    Completed(u64, Completion),
    /// New readings; also in [`Drone::readings`](super::server::Drone::readings).
    Telemetry,
    /// The drone reports another id: close the connection, so that it is identified again.
    IdChanged(String),
    /// The drone was silent for too long: close the connection.
    IdleTimeout,
    /// A frame was ignored; the text says why, for debugging.
    Ignored(String),
}
