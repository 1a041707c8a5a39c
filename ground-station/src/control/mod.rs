//! The control socket, station side. The protocol is described in
//! [`swarm_shared::client::control`].
//!
//! One process owns a state directory: the one that holds [`crate::store::lock::StateLock`]. Only it may bind the socket, so a
//! socket file that accepts no connection is a leftover and is replaced.

pub mod server;

#[cfg(test)]
mod tests;
