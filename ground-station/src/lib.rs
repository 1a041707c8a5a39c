//! The operator's program: finds the nodes of a fleet, commands them, moves files.
//!
//! | module | what it does |
//! |---|---|
//! | [`fleet`] | the façade that command line, pages and tests call; it never prints |
//! | [`control`] | the same façade for other processes of this machine, over a Unix socket |
//! | [`gateways`] | how programs that were written for other systems reach the fleet |
//! | [`store`] | what survives a restart: members, invitations, commands and their deliveries |
//! | [`config`] | `config.toml` and `GROUND_STATION_*` |
//! | `http` | feature `http`: the HTTP server that gateways share |
//! | [`users`] | who may pass gateways that ask for a name: passwords and tokens |
//! | [`view`] | events in, text out |
//! | [`who`] | which user of this machine asks |
//! | [`cli`] | one file for each verb |

pub mod cli;
pub mod config;
pub mod control;
pub mod fleet;
pub mod gateways;
#[cfg(feature = "http")]
mod http;
pub mod os_user;
pub mod store;
pub mod users;
pub mod view;

pub(crate) use swarm_shared::config::duration;
