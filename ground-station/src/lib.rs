//! The operator's program: finds the nodes of a fleet, commands them, moves files.
//!
//! | module | what it does |
//! |---|---|
//! | [`engine`] | carries out requests: links, deliveries, files, emergency stops, membership |
//! | [`control`] | answers other processes of this machine over a Unix socket |
//! | [`gateways`] | connects programs that speak other protocols |
//! | [`store`] | locks the state directory; keeps members, invitations, commands and their deliveries over restarts |
//! | [`config`] | reads `config.toml` and `GROUND_STATION_*` |
//! | [`text`] | folds names of nodes |
//! | `http` | feature `http`: the HTTP server that gateways share |
//! | [`users`] | checks passwords and tokens of gateway users |
//! | [`view`] | turns events into text and JSON |
//! | [`cli`] | the verbs, one file each |
//!
//! Requests, events and the client are in [`swarm_shared::api`] and [`swarm_shared::client`].

pub mod cli;
pub mod config;
pub mod control;
pub mod engine;
pub mod gateways;
#[cfg(feature = "http")]
mod http;
pub mod store;
pub mod text;
pub mod users;
pub mod view;

pub(crate) use swarm_shared::config::duration;
