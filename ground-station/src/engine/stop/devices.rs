//! Stops of bridged devices. The gateways get them at once. A device may not be able to confirm a stop, so the stop is
//! repeated as long as the request runs.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::coordinator::withdrawal_reason;
use crate::engine::SharedContext;
use crate::engine::transport::bridge::{BridgedTransport, DeviceOperation, DeviceReply, await_reply};
use crate::engine::transport::{DeviceTransport as _, TransportError};
use swarm_shared::api::NodeRef;

/// Time between two stops to one device.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the stop of a device may wait to be sent if the request has no time-out.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);

/// Stops that have been sent to the gateways of their devices.
#[derive(Debug)]
pub(crate) struct DeviceStops {
    stops: Vec<DeviceStop>,
    /// Number of withdrawn deliveries to the devices.
    withdrawn: oneshot::Receiver<usize>,
}

#[derive(Debug)]
struct DeviceStop {
    node: NodeRef,
    transport: BridgedTransport,
    sent: Result<oneshot::Receiver<DeviceReply>, TransportError>,
}

/// Sends a stop to the gateways of these devices, and withdraws the deliveries that wait for them. Never blocks.
pub(crate) fn stop_devices(
    shared: &SharedContext,
    devices: Vec<(NodeRef, BridgedTransport)>,
    timeout: Option<Duration>,
) -> DeviceStops {
    let now = clock::now();
    let until = now + timeout.unwrap_or(UNLIMITED);
    let ids = devices.iter().map(|(node, _)| node.id).collect();
    let withdrawn = shared.deliveries.withdraw(ids, withdrawal_reason(None));
    let stops = devices.into_iter().map(|(node, transport)| DeviceStop {
        sent: transport.try_send(DeviceOperation::Stop, now, until, until),
        node,
        transport,
    });
    DeviceStops {
        stops: stops.collect(),
        withdrawn,
    }
}

impl DeviceStops {
    /// The devices.
    pub(super) fn nodes(&self) -> BTreeMap<PeerId, NodeRef> {
        let nodes = self.stops.iter().map(|stop| (stop.node.id, stop.node.clone()));
        nodes.collect()
    }

    /// Starts the tasks that report how the stops end and repeat them until dropped. Returns them, the channel of the ends,
    /// and the number of withdrawn deliveries.
    pub(super) fn spawn(
        self,
    ) -> (
        JoinSet<()>,
        mpsc::Receiver<(NodeRef, Reply)>,
        oneshot::Receiver<usize>,
    ) {
        let (ends, ends_inbox) = mpsc::channel(self.stops.len().max(1));
        let mut tasks = JoinSet::new();
        for stop in self.stops {
            tasks.spawn(stop.run(ends.clone()));
        }
        (tasks, ends_inbox, self.withdrawn)
    }
}

impl DeviceStop {
    async fn run(self, ends: mpsc::Sender<(NodeRef, Reply)>) {
        let mut reply = await_reply(self.sent).await;
        let is_sent = reply.state == Outcome::Done;
        if is_sent && !self.transport.properties().confirms_stop {
            reply = Reply::ended(Outcome::Unknown, "sent; this drone cannot confirm a stop");
        }
        let _request_ended = ends.send((self.node, reply)).await;
        drop(ends);
        if !is_sent {
            return;
        }
        loop {
            tokio::time::sleep(REPEAT_INTERVAL).await;
            let now = clock::now();
            let until = now + REPEAT_INTERVAL;
            await_reply(self.transport.try_send(DeviceOperation::Stop, now, until, until)).await;
        }
    }
}
