//! Messages of other systems, one module for each protocol.
//!
//! Each is pure, as all of [`proto`](crate::proto), keeps a bounded amount of what a peer sends, and has a fuzz
//! target. The gateways of the node and the station open the sockets.

pub mod clever_show;
pub mod knut;
pub mod platypush;
pub mod plugin;
pub mod socktools;
