//! The half that performs I/O for [`proto`](crate::proto): sockets, TLS, discovery, files, timers and tasks.

pub mod boot;
pub mod clever_show;
pub mod clock;
pub mod codec;
mod conn;
mod dial_claims;
pub mod discovery;
pub mod endpoint;
pub mod handshake;
pub mod identity;
pub mod join;
pub mod journal;
pub mod peer;
mod preauth_limit;
pub mod random;
pub mod roots;
pub mod socket;
pub mod state_file;
pub mod sync;
pub mod tls;
