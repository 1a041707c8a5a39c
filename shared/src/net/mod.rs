//! The half that carries out: sockets, TLS, discovery, files, timers and tasks.

pub mod clock;
mod conn;
pub mod endpoint;
pub mod handshake;
pub mod peer;
pub mod random;
pub mod discovery;
pub mod socket;
