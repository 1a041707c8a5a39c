//! Gateways: ports that speak the protocols of other systems. A gateway turns messages into the requests that the command
//! line makes, and outcomes into its protocol's answers. No gateway uses another.
//!
//! | module | contents |
//! |---|---|
//! | [`access`] | which requests may pass, under which name they are audited |
//! | [`listener`] | limits of connections and rates |
//! | [`framing`] | messages on a TCP stream, and their time-outs |
//! | [`context`] | what a gateway is opened with |
//! | `runtime` | threads of lower priority, for all gateways but clever-show's |
//! | `validate` | configurations that cannot work |
//! | `clever_show` | feature `gateway-clever-show`: clever-show's drones, as devices of the fleet |
//! | `knut` | feature `gateway-knut`: Knut's clients |
//! | `platypush` | features `gateway-platypush-tcp` and `gateway-platypush-http` |
//! | `socktools` | feature `gateway-socktools`: peers of socktools, which this station also dials |
//!
//! Invariants: a gateway is closed unless the configuration opens it. A request passes if the gateway's list *and* the gate
//! ([`swarm_shared::proto::trust::gate`]) permit it for the gateway's role. Every request is answered in the gateway's own
//! protocol. A client that exceeds its limits slows neither other gateways nor the fleet.

pub mod access;
#[cfg(feature = "gateway-clever-show")]
pub mod clever_show;
pub mod context;
pub mod framing;
#[cfg(feature = "gateway-knut")]
pub mod knut;
pub mod listener;
#[cfg(any(
    feature = "gateway-platypush-tcp",
    feature = "gateway-platypush-http",
    feature = "gateway-socktools"
))]
pub mod platypush;
mod runtime;
#[cfg(feature = "gateway-socktools")]
pub mod socktools;
mod validate;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::gateways::GatewaysConfig;
use crate::engine::transport::bridge::BridgedDevices;
use crate::store::Store;
pub use context::{Advertisement, GatewayContext, GatewayError};
use runtime::LowPriorityRuntime;
use swarm_shared::client::Fleet;

/// Finds errors that keep a gateway from opening: contradictions in the configuration, and addresses that cannot be bound.
/// Logs a warning for options that have no effect.
///
/// # Errors
/// The first of them.
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
    /// `None` if no gateway uses it.
    runtime: Option<LowPriorityRuntime>,
}

impl Gateways {
    /// Opens the gateways of a configuration that has passed [`check`].
    ///
    /// # Errors
    /// The first gateway's that does not open; then all are closed.
    pub async fn open(
        gateways: &GatewaysConfig,
        advertisement: Advertisement,
        fleet: Fleet,
        devices: BridgedDevices,
        store: Store,
    ) -> Result<Self, GatewayError> {
        let context = GatewayContext {
            advertisement,
            fleet,
            devices,
            store,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let runtime = if gateways.needs_low_priority_runtime() {
            Some(LowPriorityRuntime::start().map_err(|error| GatewayError::Runtime(error.to_string()))?)
        } else {
            None
        };
        let open = Self { context, runtime };
        match open.open_each(gateways).await {
            Ok(()) => Ok(open),
            Err(error) => {
                open.close().await;
                Err(error)
            }
        }
    }

    async fn open_each(&self, gateways: &GatewaysConfig) -> Result<(), GatewayError> {
        #[cfg(feature = "gateway-clever-show")]
        if let Some(config) = &gateways.clever_show {
            // Stops of its drones must not wait behind requests of other gateways: it shares the fleet's threads.
            clever_show::open(config, &self.context)?;
        }
        let Some(runtime) = &self.runtime else {
            return Ok(());
        };
        let opened = runtime
            .spawn(open_request_gateways(gateways.clone(), self.context.clone()))
            .await;
        opened
            .map_err(|error| GatewayError::Internal(error.to_string()))
            .flatten()
    }

    /// Closes the gateways, and waits for their tasks up to the grace period of a shutdown.
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
                "Tasks of gateways outlived shutdown"
            );
        }
    }
}

/// Opens the gateways that run at low priority, on the runtime that polls this.
#[cfg_attr(
    not(any(
        feature = "gateway-platypush-tcp",
        feature = "gateway-platypush-http",
        feature = "gateway-socktools",
        feature = "gateway-knut"
    )),
    expect(clippy::unused_async, unused_variables, reason = "none is built in")
)]
async fn open_request_gateways(
    gateways: GatewaysConfig,
    context: GatewayContext,
) -> Result<(), GatewayError> {
    #[cfg(feature = "gateway-platypush-tcp")]
    if let Some(gateway) = &gateways.platypush_tcp {
        platypush::tcp::open(gateway, &context).await?;
    }
    #[cfg(feature = "gateway-platypush-http")]
    if let Some(gateway) = &gateways.platypush_http {
        platypush::http::open(gateway, &context).await?;
    }
    #[cfg(feature = "gateway-socktools")]
    if let Some(gateway) = &gateways.socktools {
        socktools::open(gateway, &context)?;
    }
    #[cfg(feature = "gateway-knut")]
    if let Some(gateway) = &gateways.knut {
        knut::open(gateway, &context).await?;
    }
    Ok(())
}

#[cfg(all(
    test,
    feature = "gateway-clever-show",
    feature = "gateway-platypush-tcp",
    feature = "gateway-platypush-http",
    feature = "gateway-socktools",
    feature = "gateway-knut"
))]
mod tests;
