//! The transport of a bridged device: the queues of its gateway, and what goes through them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use swarm_shared::net::peer::{CompletedRequest, RequestResult};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::transport::{
    DeviceProperties, DeviceTransport, OutgoingDelivery, Query, ReplyPath, TransportError,
};

/// An operation of a device.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceOperation {
    /// Runs an action, or answers a query.
    Command {
        /// Name of the action.
        action: String,
        /// Its arguments.
        arguments: Arguments,
    },
    /// Receives a file.
    Push {
        /// ROOT/RELATIVE, as for every node.
        path: String,
        /// Content of the file.
        content: Bytes,
    },
    /// Sends a file; the reply is [`DeviceReply::File`].
    Fetch {
        /// ROOT/RELATIVE.
        path: String,
    },
    /// Emergency stop.
    Stop,
    /// End of an emergency stop.
    Release,
}

/// An operation with its deadlines and the channel for its reply.
#[derive(Debug)]
pub struct DeviceCommand {
    /// The operation.
    pub operation: DeviceOperation,
    /// When it was requested. An action that must not run late counts from then, however long the store took.
    pub issued: Instant,
    /// Latest time of its start.
    pub start_by: Instant,
    /// Latest time of its reply.
    pub respond_by: Instant,
    /// Takes the reply. Closed when no caller waits any more.
    pub reply: oneshot::Sender<DeviceReply>,
}

/// The end of an operation.
#[derive(Debug)]
pub enum DeviceReply {
    /// An outcome.
    Reply(Reply),
    /// The content of a fetched file.
    File(Bytes),
}

impl DeviceReply {
    /// The reply to an operation that fetches no file.
    pub(in crate::engine) fn without_file(reply: Result<Self, oneshot::error::RecvError>) -> Reply {
        match reply {
            Ok(Self::Reply(reply)) => reply,
            Ok(Self::File(_)) => Reply::failed("the device sent a file that was not requested"),
            Err(_dropped) => Reply::ended(Outcome::Unknown, "this station stopped midway"),
        }
    }
}

/// The transport of one device: the queues of its gateway.
#[derive(Clone, Debug)]
pub(in crate::engine) struct BridgedTransport {
    pub(super) id: PeerId,
    pub(super) properties: DeviceProperties,
    pub(super) commands: mpsc::Sender<DeviceCommand>,
    pub(super) stops: mpsc::Sender<DeviceCommand>,
    /// When the device was stopped last.
    pub(super) stopped_at: watch::Receiver<Option<Instant>>,
}

impl BridgedTransport {
    /// Hands over an operation. Never blocks. Returns the channel of its reply.
    ///
    /// # Errors
    /// [`TransportError`]: nothing was handed over.
    pub(in crate::engine) fn try_send(
        &self,
        operation: DeviceOperation,
        issued: Instant,
        start_by: Instant,
        respond_by: Instant,
    ) -> Result<oneshot::Receiver<DeviceReply>, TransportError> {
        let (reply, replied) = oneshot::channel();
        let queue = match operation {
            DeviceOperation::Stop => &self.stops,
            DeviceOperation::Command { .. }
            | DeviceOperation::Push { .. }
            | DeviceOperation::Fetch { .. }
            | DeviceOperation::Release => &self.commands,
        };
        let command = DeviceCommand {
            operation,
            issued,
            start_by,
            respond_by,
            reply,
        };
        queue.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransportError::Full,
            mpsc::error::TrySendError::Closed(_) => TransportError::Closed,
        })?;
        Ok(replied)
    }

    /// Whether the device was stopped at this moment or later, released or not.
    pub(in crate::engine) fn was_stopped_since(&self, moment: Instant) -> bool {
        self.stopped_at.borrow().is_some_and(|at| at >= moment)
    }

    /// Returns when [`Self::was_stopped_since`] becomes true.
    pub(in crate::engine) async fn wait_stopped_since(&self, moment: Instant) {
        let mut stopped = self.stopped_at.clone();
        let is_since = |at: &Option<Instant>| at.is_some_and(|at| at >= moment);
        let is_forgotten = stopped.wait_for(is_since).await.is_err();
        if is_forgotten {
            // The device was removed: no stop reaches it.
            std::future::pending::<()>().await;
        }
    }

    /// Whether its gateway takes no more operations.
    pub(in crate::engine) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Whether both belong to the same registration of a device.
    pub(in crate::engine) fn is_same(&self, other: &Self) -> bool {
        self.commands.same_channel(&other.commands)
    }
}

impl DeviceTransport for BridgedTransport {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn try_deliver(&self, delivery: &OutgoingDelivery<'_>) -> Result<ReplyPath, TransportError> {
        let command = delivery.command.command();
        let start_by = delivery.deadline.unwrap_or(delivery.respond_by);
        let operation = DeviceOperation::Command {
            action: command.action.clone(),
            // Encoded from arguments, so it decodes.
            arguments: serde_json::from_str(&command.arguments).unwrap_or_default(),
        };
        let ttl = Duration::from_millis(command.ttl_ms);
        let issued = start_by.checked_sub(ttl).unwrap_or(start_by);
        self.try_send(operation, issued, start_by, delivery.respond_by)
            .map(ReplyPath::Channel)
    }

    fn try_query(&self, query: &Query<'_>, replies: &mpsc::Sender<CompletedRequest>) -> Result<(), String> {
        let operation = DeviceOperation::Command {
            action: query.action.to_owned(),
            arguments: query.arguments.clone(),
        };
        let replied = self
            .try_send(operation, query.requested_at, query.start_by, query.respond_by)
            .map_err(|error| not_taken(error).error.unwrap_or_default())?;
        let (peer, id, replies) = (self.id, query.id, replies.clone());
        tokio::spawn(async move {
            let reply = tokio::select! {
                biased;
                // Dropping the channel tells the gateway that no caller waits.
                () = replies.closed() => return,
                reply = replied => DeviceReply::without_file(reply),
            };
            let content = serde_json::to_vec(&reply).unwrap_or_default();
            let result = RequestResult::Reply(content.into());
            replies.send(CompletedRequest { peer, id, result }).await.ok();
        });
        Ok(())
    }
}

/// Waits for the reply to an operation without a file. An operation that was not handed over ends at once.
pub(in crate::engine) async fn await_reply(
    sent: Result<oneshot::Receiver<DeviceReply>, TransportError>,
) -> Reply {
    match sent {
        Ok(replied) => DeviceReply::without_file(replied.await),
        Err(error) => not_taken(error),
    }
}

/// The reply to an operation that a gateway did not take.
pub(in crate::engine) fn not_taken(error: TransportError) -> Reply {
    match error {
        TransportError::Full => Reply::refused("busy: too many commands wait for this device; try again"),
        TransportError::Closed => gateway_closed(),
    }
}

/// The reply to an operation that never left the queue of its gateway.
pub(in crate::engine) fn gateway_closed() -> Reply {
    Reply::ended(Outcome::NoAnswer, "its gateway is closed: nothing was sent")
}
