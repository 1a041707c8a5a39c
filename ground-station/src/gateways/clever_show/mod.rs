//! clever-show's drone clients come here as to their own server, and become guests of the fleet.
//!
//! | module | what it does |
//! |---|---|
//! | `announce` | tells drones by UDP where this station is |
//! | `greet` | asks each connection who it is, and leads it to its drone's post |
//! | `connection` | its bytes |
//! | `post` | one drone's task: its connection, its orders |
//! | `orders` | what the fleet's orders are in clever-show's words, and whether they may pass |
//!
//! | task | owns | ends |
//! |---|---|---|
//! | one for each connection, until it has said who it is | the connection | led to its post, or closed after 10 s |
//! | one for each drone | its seat, its conversation, its connection | when the station stops, its seat is given away, it is away for a day, or it leaves and another has its id |
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

use super::access::Guard;
use super::listener::Hall;
use super::{DoorError, House};
use crate::config::gateways::CleverShow;

/// As in the configuration.
const DOOR: &str = "clever_show";
/// As in the tag `system`.
const SYSTEM: &str = "clever-show";

/// Whether something only asks, where these requests are known beside those that clever-show documents.
pub(super) fn is_request(name: &str, configured: &BTreeSet<String>) -> bool {
    configured.contains(name) || policy::REQUESTS.contains(&name) && !policy::ALSO_ACTS.contains(&name)
}

/// What everything at this door needs.
#[derive(Debug)]
struct Server {
    config: CleverShow,
    guard: Guard,
    house: House,
}

/// Opens the door.
///
/// # Errors
/// [`DoorError`].
pub fn open(config: &CleverShow, house: &House) -> Result<(), DoorError> {
    let hall = Hall::open(DOOR, &config.common, house)?;
    let listens = hall.listens().unwrap_or(config.common.listen);
    let guard = Guard::new(DOOR, &config.common, house);
    if let Err(why) = policy::Rulebook::new(config, guard.clone()).stop_action() {
        let why = why.error.unwrap_or_default();
        tracing::warn!(
            door = DOOR,
            why,
            "an emergency stop tells these drones nothing: they fly on; name what stops them as `stop_action`, and \
             leave `role` at operator"
        );
    }
    let server = Arc::new(Server {
        config: config.clone(),
        guard,
        house: house.clone(),
    });
    if config.announce {
        let announcing = announce::run(listens, config.announce_port, house.stop.clone());
        house.tasks.spawn(announcing);
    }
    let lobby = identify::Lobby::new(server);
    let serve = move |stream, entrance| lobby.clone().receive(stream, entrance);
    house.tasks.spawn(hall.receive(serve));
    Ok(())
}
