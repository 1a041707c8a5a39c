//! What whole-system tests stand on: a network laboratory, processes with their logs, and our own binaries.
//!
//! Everything here panics with a full sentence where a test cannot go on; a machine that cannot hold a
//! laboratory skips, loudly.

mod binaries;
pub mod fleet;
pub mod kills;
pub mod lab;
pub mod measure;
pub mod peers;
pub mod process;
pub mod simulation;

pub use binaries::{Binaries, binaries};
