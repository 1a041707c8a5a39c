//! Clever-show's messaging module, in Rust: what its documentation offers, under its names where Rust allows them.
//! docs/clever-show-library.md maps every documented item to ours.
//!
//! * [`ConnectionManager`]: one peer, over successive connections; [`Callbacks`]: what to do when it sends something.
//! * [`Client`]: finds a drone's server; [`broadcast_bind`]: receives a server's announcement.
//! * [`set_keepalive`], [`get_ip_address`], [`NotifierSock`].
//!
//! The protocol is plain text without authentication. The caller decides what a peer may do.

mod callbacks;
mod client;
mod connection;
pub mod files;
mod stream;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;

pub use callbacks::{CALLBACKS_BYTES_MAX, CALLBACKS_MAX, Callbacks};
pub use client::{CONNECT_ATTEMPTS, CONNECT_PAUSE, CONNECT_TIMEOUT, Client, RETRY_PAUSE_MAX, broadcast_bind};
pub use connection::{
    CloseReason, ConnectionManager, FileTransferError, MESSAGE_TIMEOUT, Options, ReceivedEvent,
    SKIPPED_BYTES_MAX, WRITE_TIMEOUT,
};

use super::socket::{self, KeepaliveConfig, SocketError, TrafficClass};
pub use crate::proto::foreign::clever_show::{Event, ReconnectPolicy, RequestError, ResponseBody, SendError};

/// Seconds of silence before the first probe, as clever-show's default.
pub const AFTER_IDLE_SEC: u32 = 1;
/// Seconds between probes, as clever-show's default.
pub const INTERVAL_SEC: u32 = 3;
/// Unanswered probes that end the connection, as clever-show's default.
pub const MAX_FAILS: u32 = 5;

/// Sets TCP keepalive and `TCP_NODELAY` of a connection.
///
/// # Errors
/// [`SocketError::Other`]: the kernel refuses the numbers, or the connection is closed.
pub fn set_keepalive(
    sock: &TcpStream,
    after_idle_sec: u32,
    interval_sec: u32,
    max_fails: u32,
) -> Result<(), SocketError> {
    let seconds = |count: u32| Duration::from_secs(u64::from(count));
    let keepalive = KeepaliveConfig::new(seconds(after_idle_sec), seconds(interval_sec), max_fails);
    let keepalive = keepalive.map_err(|bad| SocketError::Other {
        what: "set keepalive of",
        addr: sock
            .peer_addr()
            .unwrap_or_else(|_gone| SocketAddr::from(([0, 0, 0, 0], 0))),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, bad),
    })?;
    socket::configure_accepted(sock, &keepalive, TrafficClass::Bulk)
}

/// The local IP address of the route to other networks, or `localhost` without a network.
pub fn get_ip_address() -> String {
    // Connecting a datagram socket sends nothing: the kernel only looks up the route. The address is reserved for
    // examples.
    let way = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| {
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        })
        .map(|addr| addr.ip());
    match way {
        Ok(ip @ (IpAddr::V4(_) | IpAddr::V6(_))) if !ip.is_unspecified() => ip.to_string(),
        _ => "localhost".to_owned(),
    }
}

/// Wakes a waiting task from any thread, without blocking. A call while no task waits is kept for the next one.
#[derive(Debug, Default)]
pub struct NotifierSock {
    notify: Notify,
}

impl NotifierSock {
    /// Wakes the waiting task.
    pub fn notify(&self) {
        self.notify.notify_one();
    }

    /// Waits for [`notify`](Self::notify): what the selector does in Python.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }
}
