//! The protocol of the swarm, for its own programs and for others: command a fleet of devices, watch it, send it files,
//! or speak with its nodes directly.
//!
//! # Where to start
//!
//! | you want to | start at | example |
//! |---|---|---|
//! | call an action through a running station | [`client::Station::call`] | `examples/call.rs` |
//! | watch nodes | [`client::Station::watch`] | `examples/watch.rs` |
//! | send a file and show its progress | [`client::Station::send_file`] | `examples/send_file.rs` |
//! | add an action to a node | [`proto::foreign::plugin`] | `examples/plugin.rs` |
//! | read and write frames | [`proto::wire`] | `examples/frame.rs` |
//! | hold links of your own, without a station | [`net::endpoint::Endpoint`] | |
//!
//! # Layers
//!
//! * [`proto`] decides. Bytes, time and randomness come in as arguments; frames, events and deadlines go out.
//!   It has no sockets, no files, no clock, and builds alone with `--no-default-features`.
//! * [`net`] (feature `net`) carries out what `proto` decides: sockets, TLS, mDNS, files, timers, tasks.
//! * [`api`] holds requests to a station and events from it, as plain data.
//! * [`client`] (feature `client`) sends requests to a running station.
//!
//! The formats of a released version never change: `tests/wire_v1.rs` holds their bytes. The Rust interface may change
//! with each minor version before 1.0.

pub mod api;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "config")]
pub mod config;
pub mod proto;

#[cfg(feature = "net")]
pub mod net;

/// Compiles and runs the code blocks of docs/protocol.md as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/protocol.md")]
mod protocol_page {}

/// Compiles and runs the code blocks of docs/clever-show-library.md as documentation tests.
#[cfg(all(doctest, feature = "net"))]
#[doc = include_str!("../../docs/clever-show-library.md")]
mod clever_show_page {}
