//! The base of the whole-system tests: a network lab, processes with their logs, and our own programs.
//!
//! Functions here panic with a full sentence where a test cannot continue; where a machine cannot run a lab, the test
//! is skipped with a message.

pub mod binaries;
pub mod fleet;
pub mod kills;
pub mod lab;
pub mod measure;
pub mod peers;
pub mod process;
pub mod simulation;

pub use binaries::{Binaries, binaries};
