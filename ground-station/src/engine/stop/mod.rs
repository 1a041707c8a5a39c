//! Emergency stops, station side. A stop is sent before anything is stored.
//!
//! | file | content |
//! |---|---|
//! | `run.rs` | one stop: sign the order, withdraw what waits, send, repeat until all targets have reported |
//! | `coordinator.rs` | what all stops share: the last number, the reports of nodes |
//! | `devices.rs` | stops of bridged devices |
//! | `release.rs` | ends the stops of nodes and of bridged devices |
//! | `latches.rs` | stops in force for bridged devices, by selector, also for devices that connect later |
//! | `unconfirmed.rs` | stops that nodes have not confirmed |
//! | `broadcast.rs` | the order in datagrams alone, while no engine answers |
//!
//! Latches, unconfirmed stops and the last number survive a restart of the station.
//!
//! The form of the order, its sender and its receiver are in [`swarm_shared::proto::stop`]; the node's part is in its `stop`
//! folder.

pub mod broadcast;
pub(super) mod coordinator;
pub(super) mod devices;
pub(super) mod latches;
pub(super) mod release;
pub(super) mod run;
pub(super) mod unconfirmed;
