//! The transport of a node: its link, which takes frames.

use std::sync::{Arc, LazyLock};

use swarm_shared::net::peer::{CompletedRequest, PeerLink, ReplyTo, Request};
use swarm_shared::proto::session::Outgoing;
use tokio::sync::mpsc;

use super::{DeviceProperties, DeviceTransport, OutgoingDelivery, Query, ReplyPath, TransportError};

static NODE_PROPERTIES: LazyLock<DeviceProperties> = LazyLock::new(|| DeviceProperties {
    durable_identity: true,
    confirms_stop: true,
    reads: Arc::default(),
    file_bytes_max: None,
});

impl DeviceTransport for PeerLink {
    fn properties(&self) -> &DeviceProperties {
        &NODE_PROPERTIES
    }

    fn try_deliver(&self, delivery: &OutgoingDelivery<'_>) -> Result<ReplyPath, TransportError> {
        let OutgoingDelivery {
            command, deadline, ..
        } = delivery;
        let frame = match deadline {
            Some(_) => command.frame(),
            None => command.status_query(),
        };
        let outgoing = Outgoing {
            frame,
            lane: command.command().lane,
            deadline: *deadline,
        };
        self.try_send(outgoing)
            .map(|()| ReplyPath::Frames)
            .map_err(|_no_room| TransportError::Full)
    }

    fn try_query(&self, query: &Query<'_>, replies: &mpsc::Sender<CompletedRequest>) -> Result<(), String> {
        let outgoing = Outgoing {
            frame: query.frame.clone(),
            lane: query.lane,
            deadline: Some(query.start_by),
        };
        let request = Request {
            id: query.id,
            timeout_at: query.retained_until,
            reply_to: ReplyTo(replies.clone()),
        };
        self.try_request(outgoing, request)
            .map_err(|error| error.to_string())
    }
}
