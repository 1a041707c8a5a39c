//! Emergency stops, station side. A stop is sent before anything is stored.
//!
//! | file | what it holds |
//! |---|---|
//! | `coordinator.rs` | a stop's course: sign the order, withdraw what waits, send, repeat until all have reported |
//! | `release.rs` | ends the latches of nodes and of bridged devices |
//! | `latches.rs` | stops that hold bridged devices, by selector, also devices that connect later |
//! | `unconfirmed.rs` | stops that some nodes have not confirmed; they survive a restart of the station |
//! | `broadcast.rs` | the order in datagrams alone, while the engine is not ready |
//!
//! The order's form, its sender and its receiver are in [`swarm_shared::proto::stop`]; the node's part is in its `stop`
//! folder.

pub mod broadcast;
pub(in crate::engine) mod coordinator;
pub(in crate::engine) mod latches;
pub(in crate::engine) mod release;
pub(in crate::engine) mod unconfirmed;
