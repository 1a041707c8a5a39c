//! The protocol of the swarm, in two halves.
//!
//! * [`proto`] decides. Bytes, time and randomness come in as arguments; frames, events and deadlines go out.
//!   It has no sockets, no files, no clock, and builds alone with `--no-default-features`.
//! * `net` carries out what `proto` decides: sockets, TLS, mDNS, files, timers, tasks.

pub mod proto;

#[cfg(feature = "net")]
pub mod net;

/// The code blocks of docs/protocol.md, compiled and run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/protocol.md")]
mod protocol_page {}

/// The code blocks of docs/clever-show.md likewise.
#[cfg(all(doctest, feature = "net"))]
#[doc = include_str!("../../docs/clever-show.md")]
mod clever_show_page {}
