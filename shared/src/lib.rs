//! The protocol of the swarm, in two layers.
//!
//! * [`proto`] decides. Bytes, time and randomness come in as arguments; frames, events and deadlines go out.
//!   It has no sockets, no files, no clock, and builds alone with `--no-default-features`.
//! * `net` carries out what `proto` decides: sockets, TLS, mDNS, files, timers, tasks.

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
