//! The node: the daemon that runs on every device of a swarm.
//!
//! It does what its own configuration allows and nothing else: see [`config`] for what that is, [`actions`] for what
//! a command can ask for, and [`daemon`] for how the parts are put together.

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
