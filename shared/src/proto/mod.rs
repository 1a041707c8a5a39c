//! The protocol's decisions: pure, deterministic, without I/O.
//!
//! Nothing here reads a clock, draws a random number or opens a socket; `shared/tests/layers.rs` checks it.

pub mod delivery;
pub mod discovery;
pub mod foreign;
pub mod hex;
pub mod id;
pub mod json;
pub mod message;
pub mod outcome;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod rate;
pub mod selector;
pub mod session;
pub mod stop;
pub mod trust;
pub mod wire;
