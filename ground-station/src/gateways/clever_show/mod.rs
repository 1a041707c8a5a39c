//! clever-show's drone clients come here as to their own server, and become devices of the fleet.
//!
//! | module | what it does |
//! |---|---|
//! | `announce` | tells drones by UDP where this station is |
//! | `greet` | asks each connection who it is, and leads it to its drone's drone_task |
//! | `connection` | its bytes |
//! | `drone_task` | one drone's task: its connection, its orders |
//! | `orders` | what the fleet's orders are in clever-show's words, and whether they may pass |
//!
//! | task | owns | ends |
//! |---|---|---|
//! | one for each connection, until it has said who it is | the connection | led to its drone_task, or closed after 10 s |
//! | one for each drone | its device, its conversation, its connection | when the station stops, its device is given away, it is away for a day, or it leaves and another has its id |
//! | one that announces | its sockets | when the station stops |
//!
//! A drone is known by the id that it gives itself, because that is all that it says; anybody may say it. Two live
//! connections with one id are two drones with one name, and both carry a warning. A newer connection takes the place
//! of an older one that gives no sign of life within 3 s: a drone that lost its radio is back long before the kernel
//! has given up its old connection.

mod announce;
mod connection;
mod drone_task;
mod identify;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::access::AccessPolicy;
use super::listener::GatewayListener;
use super::{GatewayContext, GatewayError};
use crate::config::gateways::CleverShowConfig;

/// As in the configuration.
const GATEWAY: &str = "clever_show";
/// As in the tag `system`.
const SYSTEM: &str = "clever-show";

/// Whether something only asks, where these requests are known beside those that clever-show documents.
pub(super) fn is_request(name: &str, configured: &BTreeSet<String>) -> bool {
    configured.contains(name)
        || policy::READ_REQUESTS.contains(&name) && !policy::REQUESTS_ALSO_ACTIONS.contains(&name)
}

/// What everything at this gateway needs.
#[derive(Debug)]
struct Server {
    config: CleverShowConfig,
    access: AccessPolicy,
    context: GatewayContext,
}

/// Opens the gateway.
///
/// # Errors
/// [`GatewayError`].
pub fn open(config: &CleverShowConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    let listens = listener.local_addr().unwrap_or(config.common.listen);
    let access = AccessPolicy::new(GATEWAY, &config.common, context);
    if let Err(why) = policy::CommandPolicy::new(config, access.clone()).stop_action() {
        let why = why.error.unwrap_or_default();
        tracing::warn!(
            gateway = GATEWAY,
            why,
            "an emergency stop tells these drones nothing: they fly on; name what stops them as `stop_action`, and \
             leave `role` at operator"
        );
    }
    let server = Arc::new(Server {
        config: config.clone(),
        access,
        context: context.clone(),
    });
    if config.announce {
        let announcing = announce::run(listens, config.announce_port, context.shutdown.clone());
        context.tasks.spawn(announcing);
    }
    let registry = identify::DroneRegistry::new(server);
    let serve = move |stream, permit| registry.clone().handle_connection(stream, permit);
    context.tasks.spawn(listener.serve(serve));
    Ok(())
}
