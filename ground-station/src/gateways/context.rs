//! What every gateway is opened with, and why one does not open.

use std::net::SocketAddr;

use swarm_shared::net::discovery::mdns::Service;
use swarm_shared::net::discovery::presence::ServicePublisher;
use swarm_shared::proto::id::NodeName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::transport::bridge::BridgedDevices;
use crate::engine::transport::gateway_peers::GatewayPeers;
use crate::store::Store;
use swarm_shared::client::Fleet;

/// The station as other programs find it.
#[derive(Clone, Debug)]
pub struct Advertisement {
    /// The station's name: in messages of gateways, and the instance of its mDNS services.
    pub name: NodeName,
    /// Publishes services by mDNS.
    pub services: ServicePublisher,
    /// Where a gateway registers its connected peers, so that requests reach them.
    pub gateway_peers: GatewayPeers,
}

/// The station's parts that a gateway uses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayContext {
    /// The station's name and services.
    pub advertisement: Advertisement,
    /// Answers requests.
    pub fleet: Fleet,
    /// Where drones of other programs are registered.
    pub devices: BridgedDevices,
    /// Holds the audit, users and tokens.
    pub store: Store,
    /// Closes all gateways when it is cancelled.
    pub shutdown: CancellationToken,
    /// Tracks every task of the gateways.
    pub tasks: TaskTracker,
}

impl GatewayContext {
    /// Publishes a gateway by mDNS under the station's name, as programs of its system look for it. A gateway on a
    /// loopback address is not published.
    pub async fn publish(&self, kind: &'static str, listen: SocketAddr) {
        if listen.ip().is_loopback() {
            return;
        }
        let name = self.advertisement.name.as_str();
        let service = Service {
            kind,
            instance: name.to_owned(),
            listen,
            txt: vec![
                ("name", name.to_owned()),
                ("vendor", env!("CARGO_PKG_NAME").to_owned()),
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ],
        };
        if !self.advertisement.services.publish(service).await {
            tracing::debug!(kind, "Service not published: mDNS is off");
        }
    }
}

/// Why a gateway does not open.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be bound.
    #[error("[gateways.{gateway}]: cannot listen on {listen}: {reason}; {advice}")]
    Listen {
        /// Its name in the configuration.
        gateway: &'static str,
        /// The configured address.
        listen: SocketAddr,
        /// The kernel's error.
        reason: String,
        /// What to change.
        advice: &'static str,
    },
    /// A gateway's two ports are the same.
    #[error(
        "[gateways.{gateway}]: `listen` and `websocket_port` both name port {port}: give one of them another"
    )]
    SamePort {
        /// Its name in the configuration.
        gateway: &'static str,
        /// The port of both.
        port: u16,
    },
    /// Two gateways have the same address and port.
    #[error(
        "[gateways.{first}] and [gateways.{second}] are both to listen on port {port}: give one of them another in `listen`"
    )]
    PortConflict {
        /// The one that opens first.
        first: &'static str,
        /// The one that could not open.
        second: &'static str,
        /// The port of both.
        port: u16,
    },
    /// The runtime for gateways cannot start.
    #[error(
        "the gateways do not open: {0}; raise the limit of threads (`ulimit -u`, or TasksMax of the unit) or of open files \
         (`ulimit -n`, or LimitNOFILE)"
    )]
    Runtime(String),
    /// The task that opens gateways panicked.
    #[error("the gateways do not open: {0}; this is a fault of this program, please report it")]
    Internal(String),
    /// The program was built without this gateway's cargo feature.
    #[error(
        "[gateways.{gateway}]: this program was built without this gateway: take the table out, or install a program \
         that has it"
    )]
    NotBuilt {
        /// Its name in the configuration.
        gateway: &'static str,
    },
    /// Options of one gateway contradict one another.
    #[error("[gateways.{gateway}]: {reason}")]
    Configuration {
        /// Its name in the configuration.
        gateway: &'static str,
        /// The contradiction, and what to change.
        reason: String,
    },
}
