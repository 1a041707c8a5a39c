//! The half that decides: pure, deterministic, without I/O.
//!
//! Nothing here reads a clock, draws a random number or touches a socket; `shared/tests/layers.rs` guards it.

pub mod address_book;
pub mod delivery;
pub mod encoded;
pub mod foreign;
pub mod hex;
pub mod id;
pub mod json;
pub mod message;
pub mod outbox;
pub mod outcome;
pub mod pending;
pub mod ping;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod selector;
pub mod session;
pub mod simultaneous_open;
pub mod stop;
pub mod trust;
pub mod window;
pub mod wire;
