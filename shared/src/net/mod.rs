//! The half that carries out: sockets, TLS, discovery, files, timers and tasks.

pub mod clock;
pub mod identity;
pub mod store;
pub mod tls;
