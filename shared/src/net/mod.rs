//! The half that carries out: sockets, TLS, discovery, files, timers and tasks.

pub mod clock;
pub mod roots;
