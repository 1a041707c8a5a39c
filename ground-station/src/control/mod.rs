//! The control socket and the lock of a state directory, station side. The protocol is described in
//! [`swarm_shared::client::control`].
//!
//! One process owns a state directory: the one that holds [`lock::StateLock`]. Only it may bind the socket, so a
//! socket file that accepts no connection is a leftover and is replaced.

pub mod lock;
pub mod server;

#[cfg(test)]
mod tests;
