//! How commands reach a device: over an own link to a node, or through the gateway that a device of another program
//! is connected to.
//!
//! A transport takes commands and returns replies, and declares what the device can do. Only `link` knows frames.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use swarm_shared::net::peer::CompletedRequest;
use swarm_shared::proto::delivery::tracker::EncodedCommand;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use swarm_shared::proto::wire::Lane;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use tokio::sync::{mpsc, oneshot};

pub mod bridge;
pub mod gateway_peers;
mod link;

use bridge::DeviceReply;

/// What a transport declares of its device.
#[derive(Clone, Debug)]
pub(in crate::engine) struct DeviceProperties {
    /// Whether the device remembers the identities of commands over restarts: it can be sent one again, and asked how
    /// one ended.
    pub(in crate::engine) durable_identity: bool,
    /// Whether the device reports that it is stopped.
    pub(in crate::engine) confirms_stop: bool,
    /// Actions that only read there, beside those that only read on every node.
    pub(in crate::engine) reads: Arc<BTreeSet<String>>,
    /// Longest file that the device can be sent, in bytes; `None` without a limit.
    pub(in crate::engine) file_bytes_max: Option<u64>,
}

impl DeviceProperties {
    /// Whether an action only reads there.
    pub(in crate::engine) fn only_reads(&self, action: &str, arguments: &Arguments) -> bool {
        classify(action, arguments) == ActionClass::Read || self.reads.contains(action)
    }
}

/// A delivery of the tracker on its way to its device.
#[derive(Debug)]
pub(in crate::engine) struct OutgoingDelivery<'a> {
    pub(in crate::engine) command: &'a EncodedCommand,
    /// When it is too late to start; `None` for a question how the delivery ended, which only goes to a device with a durable
    /// identity.
    pub(in crate::engine) deadline: Option<Instant>,
    /// No reply is waited for after this.
    pub(in crate::engine) respond_by: Instant,
}

/// How the reply to a delivery comes.
#[derive(Debug)]
pub(in crate::engine) enum ReplyPath {
    /// As frames of the link, with the stages before it.
    Frames,
    /// Over this channel. If its sender is dropped, the station stopped midway.
    Channel(oneshot::Receiver<DeviceReply>),
}

/// Why a transport did not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum TransportError {
    /// There is no room now.
    Full,
    /// The device's gateway is closed, or the device has another transport now.
    Closed,
}

/// A question to a device: it only reads, and is not stored.
#[derive(Debug)]
pub(in crate::engine) struct Query<'a> {
    /// Number of the request.
    pub(in crate::engine) id: u64,
    pub(in crate::engine) action: &'a str,
    pub(in crate::engine) arguments: &'a Arguments,
    pub(in crate::engine) frame: &'a EncodedFrame,
    pub(in crate::engine) lane: Lane,
    /// When it was asked.
    pub(in crate::engine) requested_at: Instant,
    /// When it is too late to start.
    pub(in crate::engine) start_by: Instant,
    /// No reply is waited for after this.
    pub(in crate::engine) respond_by: Instant,
    /// How long a link remembers it for replies that come late.
    pub(in crate::engine) retained_until: Instant,
}

/// What carries commands to one device.
pub(in crate::engine) trait DeviceTransport: std::fmt::Debug + Send + Sync {
    /// What the device can do.
    fn properties(&self) -> &DeviceProperties;

    /// Hands over a delivery. Never blocks.
    ///
    /// # Errors
    /// [`TransportError`]: nothing was handed over.
    fn try_deliver(&self, delivery: &OutgoingDelivery<'_>) -> Result<ReplyPath, TransportError>;

    /// Asks something; the reply comes on `replies`. Never blocks.
    ///
    /// # Errors
    /// Why nothing was asked, for people.
    fn try_query(&self, query: &Query<'_>, replies: &mpsc::Sender<CompletedRequest>) -> Result<(), String>;
}
