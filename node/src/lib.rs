//! The node's daemon, which runs on every device of a fleet.
//!
//! It runs what its own configuration permits and nothing else: see [`config`] for the permissions, [`actions`] for
//! the actions, and [`daemon`] for how the parts work together.

pub mod actions;
pub mod cli;
pub mod config;
pub mod daemon;
mod enrol;
pub mod fleet_store;
pub mod gateways;
pub mod journal;
pub mod links;
pub mod logging;
pub mod lost_link;
pub mod node;
pub mod plugins;
pub mod process;
pub mod state;
pub mod status;
pub mod stop;
pub mod telemetry;
pub mod transfers;
