//! Messages of other systems: one module for each protocol.
//!
//! Each is pure, as all of [`proto`](crate::proto), keeps a bounded amount of what a peer sends, and has a fuzz target of
//! its own. What opens sockets for them are the gateways of the two programs.

pub mod clever_show;
pub mod knut;
pub mod platypush;
pub mod plugin;
pub mod socktools;
