 [`who`] The operator's program: finds the nodes of a fleet, commands them, moves files.
//!
 [`who`] | module | what it does |
 [`who`] |---|---|
 [`who`] | [`fleet`] | the façade that command line, pages and tests call; it never prints |
 [`who`] | [`control`] | the same façade for other processes of this machine, over a Unix socket |
 [`who`] | [`doors`] | how programs that were written for other systems reach the fleet |
 [`who`] | [`store`] | what survives a restart: members, invitations, commands and their deliveries |
 [`who`] | [`config`] | `config.toml` and `GROUND_STATION_*` |
 [`who`] | [`view`] | events in, text out |
 [`who`] | [`who`] | which user of this machine asks |
 [`who`] | [`cli`] | one file for each verb |

pub mod cli;
pub mod config;
pub mod control;
pub mod doors;
pub mod duration;
pub mod fleet;
pub mod store;
pub mod users;
pub mod view;
pub mod who;
