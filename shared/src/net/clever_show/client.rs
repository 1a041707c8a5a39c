//! How a drone finds its server: at an address, or by the server's announcement.
//!
//! | state | until | then |
//! |---|---|---|
//! | trying an address | a connection, within [`CONNECT_TIMEOUT`] | given to the caller |
//! | trying an address | [`CONNECT_ATTEMPTS`] have failed, [`CONNECT_PAUSE`] apart | listening, if it may; else trying again, more and more rarely, up to [`RETRY_PAUSE_MAX`] |
//! | listening | an announcement | trying the address in it |
//!
//! An announcement is a datagram that anybody on the network can send. Whoever listens for one goes wherever it says.

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

/// How long an attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts, and after a connection that ended as soon as it was made.
pub const CONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Attempts before something else is tried.
pub const CONNECT_ATTEMPTS: u32 = 3;
/// Longest pause, where there is nothing else to try.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Datagrams that are looked at in a second; the others are dropped unread.
const DATAGRAMS_PER_SECOND: u32 = 20;

/// Finds a server, again and again.
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

    /// Whoever announces itself at this UDP port. `server` is tried first, if there is one.
    pub fn for_announcements(server: Option<SocketAddr>, port: u16) -> Self {
        Self {
            server,
            announcement_port: Some(port),
            ..Self::for_server(SocketAddr::from(([0, 0, 0, 0], port)))
        }
    }

    /// Another keepalive than 1, 3, 5.
    #[must_use]
    pub fn with_keepalive(mut self, keepalive: KeepaliveConfig) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Why the newest attempt has failed, and what to look at; none after a connection. It changes while
    /// [`next_connection`](Self::next_connection) goes on.
    pub fn last_error(&self) -> watch::Receiver<Option<String>> {
        self.last_error.subscribe()
    }

    /// The next connection, however long it takes.
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
                    tracing::info!(%server, id = announcement.id, "a clever-show server announces itself");
                    self.server = Some(server);
                }
                Err(error) => {
                    tracing::warn!(%error, port, "cannot listen for a clever-show server");
                    self.set_last_error(Some(format!("cannot listen for it at UDP port {port}: {error}")));
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
                    tracing::debug!(%server, attempt, %error, "no clever-show server");
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

    /// Longer each time, and not for all drones at once.
    async fn back_off(&mut self) {
        let spread = u32::try_from(random::jitter() % 1_000).unwrap_or_default();
        let pause = self.pause + self.pause.mul_f64(f64::from(spread) / 1_000.0);
        tokio::time::sleep(pause.min(RETRY_PAUSE_MAX)).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Waits for a server's announcement, and the address in it. What is none, or names no address in digits, is passed
/// over.
///
/// # Errors
/// The port cannot be listened on.
pub async fn broadcast_bind(port: u16) -> io::Result<(Announcement, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // A real drone's program may listen on the same machine.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let mut pace = TokenBucket::per_second(DATAGRAMS_PER_SECOND);
    // What is longer is cut off, and then no whole frame.
    let mut datagram = [0; ANNOUNCEMENT_BYTES_MAX];
    loop {
        while let Err(wait) = pace.try_take(clock::now()) {
            tokio::time::sleep(wait).await;
        }
        let (length, from) = socket.recv_from(&mut datagram).await?;
        let announcement = match Announcement::parse(&datagram[..length]) {
            Ok(announcement) => announcement,
            Err(error) => {
                tracing::debug!(%from, %error, "no announcement");
                continue;
            }
        };
        let Ok(ip) = announcement.host.parse::<IpAddr>() else {
            tracing::debug!(%from, host = announcement.host, "an announcement without an address");
            continue;
        };
        let server = SocketAddr::new(ip, announcement.port);
        return Ok((announcement, server));
    }
}
