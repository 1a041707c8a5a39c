//! Finds a drone's server: at an address, or by the server's announcement.
//!
//! | state | until | then |
//! |---|---|---|
//! | connecting | a connection within [`CONNECT_TIMEOUT`] | returned to the caller |
//! | connecting | [`CONNECT_ATTEMPTS`] failures, [`CONNECT_PAUSE`] apart | listening, if configured; else connecting again, with pauses that grow to [`RETRY_PAUSE_MAX`] |
//! | listening | an announcement | connecting to its address |
//!
//! An announcement is a datagram that any program on the network can send: a client that listens connects to any
//! address that one names.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::net::socket::{self, KeepaliveConfig, TrafficClass};
use crate::net::{clock, random};
use crate::proto::foreign::clever_show::{ANNOUNCEMENT_BYTES_MAX, Announcement};
use crate::proto::rate::TokenBucket;

/// Time-out of one attempt.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts, and after a connection that ended at once.
pub const CONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Attempts before the client listens, or its pauses grow.
pub const CONNECT_ATTEMPTS: u32 = 3;
/// Longest pause between attempts.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Datagrams that are read in a second; more are dropped.
const DATAGRAMS_PER_SECOND: u32 = 20;

/// Finds a server, again after each connection.
#[derive(Debug)]
pub struct Client {
    server: Option<SocketAddr>,
    announcement_port: Option<u16>,
    keepalive: KeepaliveConfig,
    pause: Duration,
    last_connected: Option<Instant>,
    last_error: watch::Sender<Option<String>>,
}

impl Client {
    /// A server at a fixed address.
    pub fn for_server(server: SocketAddr) -> Self {
        Self {
            server: Some(server),
            announcement_port: None,
            keepalive: KeepaliveConfig::default(),
            pause: CONNECT_PAUSE,
            last_connected: None,
            last_error: watch::Sender::new(None),
        }
    }

    /// Any server that announces itself at this UDP port. `server` is tried first, if given.
    pub fn for_announcements(server: Option<SocketAddr>, port: u16) -> Self {
        Self {
            server,
            announcement_port: Some(port),
            ..Self::for_server(SocketAddr::from(([0, 0, 0, 0], port)))
        }
    }

    /// Replaces the keepalive of 1 s, 3 s and 5 probes.
    #[must_use]
    pub fn with_keepalive(mut self, keepalive: KeepaliveConfig) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Why the last attempt failed, and what to check; `None` after a connection. It changes during
    /// [`next_connection`](Self::next_connection).
    pub fn last_error(&self) -> watch::Receiver<Option<String>> {
        self.last_error.subscribe()
    }

    /// Waits for the next connection, without a time-out.
    pub async fn next_connection(&mut self) -> (TcpStream, SocketAddr) {
        if let Some(last) = self.last_connected {
            clock::sleep_until(last + CONNECT_PAUSE).await;
        }
        loop {
            if let Some(server) = self.server
                && let Some(stream) = self.connect_to(server).await
            {
                self.pause = CONNECT_PAUSE;
                self.last_connected = Some(clock::now());
                self.set_last_error(None);
                return (stream, server);
            }
            let Some(port) = self.announcement_port else {
                self.back_off().await;
                continue;
            };
            match broadcast_bind(port).await {
                Ok((announcement, server)) => {
                    tracing::info!(%server, id = announcement.id, "Clever-show server announced");
                    self.server = Some(server);
                }
                Err(error) => {
                    tracing::warn!(%error, port, "Listening for clever-show announcements failed");
                    self.set_last_error(Some(format!(
                        "cannot listen for announcements at UDP port {port}: {error}"
                    )));
                    self.back_off().await;
                }
            }
        }
    }

    async fn connect_to(&self, server: SocketAddr) -> Option<TcpStream> {
        for attempt in 1..=CONNECT_ATTEMPTS {
            match socket::connect(server, CONNECT_TIMEOUT, &self.keepalive, TrafficClass::Bulk).await {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    tracing::debug!(%server, attempt, %error, "Connecting to clever-show server failed");
                    self.set_last_error(Some(error.to_string()));
                }
            }
            if attempt < CONNECT_ATTEMPTS {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
        None
    }

    fn set_last_error(&self, problem: Option<String>) {
        self.last_error.send_if_modified(|known| {
            let is_new = *known != problem;
            *known = problem;
            is_new
        });
    }

    /// Waits; the pause grows with each failure, and has jitter so that drones do not dial at once.
    async fn back_off(&mut self) {
        let spread = u32::try_from(random::jitter() % 1_000).unwrap_or_default();
        let pause = self.pause + self.pause.mul_f64(f64::from(spread) / 1_000.0);
        tokio::time::sleep(pause.min(RETRY_PAUSE_MAX)).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Waits for a server's announcement with a numeric address. Other datagrams are ignored.
///
/// # Errors
/// The port cannot be bound.
pub async fn broadcast_bind(port: u16) -> io::Result<(Announcement, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // The program of a real drone may listen on the same machine.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let mut pace = TokenBucket::per_second(DATAGRAMS_PER_SECOND);
    // A longer datagram is truncated, and then is not a complete frame.
    let mut datagram = [0; ANNOUNCEMENT_BYTES_MAX];
    loop {
        while let Err(wait) = pace.try_take(clock::now()) {
            tokio::time::sleep(wait).await;
        }
        let (length, from) = socket.recv_from(&mut datagram).await?;
        let announcement = match Announcement::parse(&datagram[..length]) {
            Ok(announcement) => announcement,
            Err(error) => {
                tracing::debug!(%from, %error, "Datagram is not an announcement");
                continue;
            }
        };
        let Ok(ip) = announcement.host.parse::<IpAddr>() else {
            tracing::debug!(%from, host = announcement.host, "Announcement ignored: its host is not an IP address");
            continue;
        };
        let server = SocketAddr::new(ip, announcement.port);
        return Ok((announcement, server));
    }
}
