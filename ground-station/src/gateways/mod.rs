//! Gateways: how programs that were written for other systems reach a fleet of ours. Each gateway speaks one foreign
//! protocol, turns what it hears into the same requests that the command line makes, and knows nothing of the others.
//!
//! | module | what it does |
//! |---|---|
//! | [`clever_show`] | clever-show's drone clients, as guests of the fleet |
//! | [`access`] | what may pass, in whose name; every use is in the audit |
//! | [`listener`] | listening: who may connect, how many, how fast |
//! | [`knut`] | the gateway for Knut's clients |
//! | [`platypush`] | what requests of Platypush's form mean here |
//! | [`platypush_http`] | the gateway that takes them over HTTP, and hooks, files and readers of events |
//! | [`platypush_tcp`] | the gateway that takes such requests over TCP |
//! | [`socktools`] | the gateway for peers of socktools, which also dials |
//! | [`stream`] | messages over a plain TCP stream, and how long each may take |
//! | `threads` | what the gateways run on that programs ask at, behind the fleet |
//!
//! Invariants: a gateway is closed unless the configuration opens it; what passes is permitted by the gateway's list *and*
//! by the gate of [`swarm_shared::proto::trust::gate`] for the gateway's role; whoever asks gets an answer in the gateway's
//! own language; nobody who behaves badly at a gateway is felt at another, or by the fleet.

pub mod access;
pub mod clever_show;
pub mod framing;
pub mod knut;
pub mod listener;
pub mod platypush_handler;
pub mod platypush_http;
pub mod platypush_tcp;
mod runtime;
pub mod socktools;
mod validate;

use std::net::SocketAddr;

use swarm_shared::net::discovery::mdns::Service;
use swarm_shared::net::discovery::presence::ServicePublisher;
use swarm_shared::proto::id::NodeName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::gateways::GatewaysConfig;
use crate::fleet::Fleet;
use crate::fleet::gateway_peers::GatewayPeers;
use crate::fleet::guests::Guests;
use crate::store::Store;
use runtime::LowPriorityRuntime;

/// As the station shows itself to other programs.
#[derive(Clone, Debug)]
pub struct Advertisement {
    /// Its name.
    pub name: NodeName,
    /// To be found by.
    pub services: ServicePublisher,
    /// Where a gateway seats its peers.
    pub gateway_peers: GatewayPeers,
}

/// What all gateways stand in.
#[derive(Clone, Debug)]
pub struct GatewayContext {
    /// What is seen of it from outside.
    pub advertisement: Advertisement,
    /// To ask.
    pub fleet: Fleet,
    /// For drones that come as guests.
    pub guests: Guests,
    /// For the audit.
    pub store: Store,
    /// When to close.
    pub shutdown: CancellationToken,
    /// Everything that runs here.
    pub tasks: TaskTracker,
}

impl GatewayContext {
    /// Publishes a gateway by mDNS under the station's name, as programs of its system look for it. One that only this
    /// machine reaches is not.
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
            tracing::debug!(kind, "not published: mDNS is off");
        }
    }
}

/// Why a gateway does not open.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address.
    #[error("[gateways.{gateway}]: cannot listen on {listen}: {reason}; {advice}")]
    Listen {
        /// Which.
        gateway: &'static str,
        /// Where.
        listen: SocketAddr,
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A gateway's two ports are one.
    #[error(
        "[gateways.{gateway}]: `listen` and `websocket_port` both name port {port}: give one of them another"
    )]
    SamePort {
        /// Which.
        gateway: &'static str,
        /// Where.
        port: u16,
    },
    /// Two are to listen at one place.
    #[error(
        "[gateways.{first}] and [gateways.{second}] are both to listen on port {port}: give one of them another in `listen`"
    )]
    PortConflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Where.
        port: u16,
    },
    /// There is nothing to run them on.
    #[error(
        "the gateways do not open: {0}; raise the limit of threads (`ulimit -u`, or TasksMax of the unit) or of open files \
         (`ulimit -n`, or LimitNOFILE)"
    )]
    Runtime(String),
    /// Opening one has failed in itself.
    #[error("the gateways do not open: {0}; this is a fault of this program, please report it")]
    Internal(String),
    /// What it is to do does not go together.
    #[error("[gateways.{gateway}]: {reason}")]
    Configuration {
        /// Which.
        gateway: &'static str,
        /// What, and what to change.
        reason: String,
    },
}

/// Finds what keeps the gateways from opening, before anything else is done: what does not go together, and places that
/// are taken. Warns of what only keeps them from being of use.
///
/// # Errors
/// [`DoorError`].
pub fn check(gateways: &GatewaysConfig) -> Result<(), GatewayError> {
    validate::check(gateways)?;
    validate::listen_addresses(gateways)
        .into_iter()
        .try_for_each(|(gateway, listen)| listener::check_bindable(gateway, listen))
}

/// The open gateways.
#[derive(Debug)]
pub struct Gateways {
    context: GatewayContext,
    /// None if nothing is open that programs ask at.
    runtime: Option<LowPriorityRuntime>,
}

impl Gateways {
    /// Opens what the configuration says, which has passed [`check`].
    ///
    /// # Errors
    /// [`DoorError`]: then none is open.
    pub async fn open(
        gateways: &GatewaysConfig,
        face: Advertisement,
        fleet: Fleet,
        guests: Guests,
        store: Store,
    ) -> Result<Self, GatewayError> {
        let context = GatewayContext {
            advertisement: face,
            fleet,
            guests,
            store,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let threads = if gateways.needs_low_priority_runtime() {
            Some(LowPriorityRuntime::start().map_err(|error| GatewayError::Runtime(error.to_string()))?)
        } else {
            None
        };
        let open = Self {
            context,
            runtime: threads,
        };
        match open.open_each(gateways).await {
            Ok(()) => Ok(open),
            Err(error) => {
                open.close().await;
                Err(error)
            }
        }
    }

    async fn open_each(&self, gateways: &GatewaysConfig) -> Result<(), GatewayError> {
        if let Some(config) = &gateways.clever_show {
            // Its drones fly, and their stops wait behind nothing: it runs where the fleet does.
            clever_show::open(config, &self.context)?;
        }
        let Some(threads) = &self.runtime else {
            return Ok(());
        };
        let opened = threads
            .spawn(open_request_gateways(gateways.clone(), self.context.clone()))
            .await;
        opened
            .map_err(|error| GatewayError::Internal(error.to_string()))
            .flatten()
    }

    /// Closes them, and waits for what runs there.
    pub async fn close(self) {
        self.context.shutdown.cancel();
        self.context.tasks.close();
        let grace = swarm_shared::net::endpoint::SHUTDOWN_TIMEOUT;
        if tokio::time::timeout(grace, self.context.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.context.tasks.len(),
                ?grace,
                "visitors outlived shutdown"
            );
        }
    }
}

/// Opens what programs ask at, on the threads that run this.
async fn open_request_gateways(
    gateways: GatewaysConfig,
    context: GatewayContext,
) -> Result<(), GatewayError> {
    if let Some(gateway) = &gateways.platypush_tcp {
        platypush_tcp::open(gateway, &context).await?;
    }
    if let Some(gateway) = &gateways.platypush_http {
        platypush_http::open(gateway, &context).await?;
    }
    if let Some(gateway) = &gateways.socktools {
        socktools::open(gateway, &context)?;
    }
    if let Some(gateway) = &gateways.knut {
        knut::open(gateway, &context).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
