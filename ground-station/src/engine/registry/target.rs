//! What a request goes to: nodes and bridged devices.

use std::net::SocketAddr;
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use tokio::sync::watch;

use crate::engine::observe::action_catalogs::KnownActions;
use crate::engine::transport::DeviceTransport;
use crate::engine::transport::bridge::BridgedTransport;
use swarm_shared::api::NodeRef;

/// A node or a bridged device that a request goes to.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Target {
    pub(in crate::engine) node: NodeRef,
    pub(in crate::engine) device: Device,
    /// Whether no other target has its name.
    pub(in crate::engine) name_is_unique: bool,
}

/// What a target is.
#[derive(Clone, Debug)]
pub(in crate::engine) enum Device {
    /// A node of the fleet.
    Node(NodeDevice),
    /// A device behind a gateway.
    Bridged(BridgedTransport),
}

/// A node of the fleet, as a target.
#[derive(Clone, Debug)]
pub(in crate::engine) struct NodeDevice {
    pub(in crate::engine) link: PeerLink,
    /// Whether it is linked.
    pub(in crate::engine) online: watch::Receiver<bool>,
    /// The actions that it has offered.
    pub(in crate::engine) action_catalog: watch::Receiver<KnownActions>,
    /// Its last address.
    pub(in crate::engine) address: Option<SocketAddr>,
}

impl Target {
    pub(in crate::engine) fn transport(&self) -> &dyn DeviceTransport {
        match &self.device {
            Device::Node(node) => &node.link,
            Device::Bridged(bridged) => bridged,
        }
    }

    /// The node, if it is no bridged device.
    pub(in crate::engine) fn own_node(&self) -> Option<&NodeDevice> {
        match &self.device {
            Device::Node(node) => Some(node),
            Device::Bridged(_) => None,
        }
    }

    /// The bridged device, if it is one.
    pub(in crate::engine) fn bridged(&self) -> Option<&BridgedTransport> {
        match &self.device {
            Device::Node(_) => None,
            Device::Bridged(bridged) => Some(bridged),
        }
    }
}

impl NodeDevice {
    /// Waits until the node is linked; whether that came in time.
    pub(in crate::engine) async fn wait_online_until(&self, deadline: Instant) -> bool {
        let mut online = self.online.clone();
        let linked = online.wait_for(|online| *online);
        matches!(clock::timeout_at(deadline, linked).await, Ok(Ok(_)))
    }
}
