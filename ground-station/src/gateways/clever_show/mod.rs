//! clever-show's drone clients connect to the station as to their own server, and become devices of the fleet.
//!
//! | module | contents |
//! |---|---|
//! | `announce` | announcements of the station by UDP broadcast |
//! | `identify` | asks each connection for its drone's id, and passes it to the drone's task |
//! | `drone_task` | one drone's task: its registration, commands and connection |
//! | `connection` | frames and time-outs of a connection |
//! | `policy` | which commands may pass, and as which of clever-show's messages |
//!
//! | task | owns | ends |
//! |---|---|---|
//! | one for each unidentified connection | the connection | passed to a drone's task, or closed after 10 s |
//! | one for each drone | device, protocol state, connection | at shutdown; if its registration is lost; after a day away; if it disconnects while another drone has its id |
//! | one that announces | its sockets | at shutdown |
//!
//! A drone is known by the id that it reports, which is not authenticated. Two live connections with one id are two drones
//! with one name, and both carry a warning. A newer connection replaces an older one that shows no sign of life for 3 s: a
//! drone that lost its radio reconnects long before the kernel gives up its old connection.

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

/// The gateway's name in the configuration.
const GATEWAY: &str = CleverShowConfig::NAME;
/// The value of the tag `system`.
const SYSTEM: &str = "clever-show";

/// Whether a command only reads: clever-show documents it as a request, or `requests` of the configuration names it.
pub(super) fn is_request(name: &str, configured: &BTreeSet<String>) -> bool {
    configured.contains(name)
        || policy::READ_REQUESTS.contains(&name) && !policy::REQUESTS_ALSO_ACTIONS.contains(&name)
}

/// What all tasks of the gateway share.
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
            "Emergency stops are not sent to these drones: name the action that stops them in `stop_action`, and leave \
             `role` at operator"
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
