//! Notifier pings: small UDP broadcasts by which a station announces its address to nodes, for networks that drop
//! multicast. `proto` decides what a ping contains and whether it is genuine; here it is bytes.
//!
//! Sender: from every IPv4 address of this machine, to 255.255.255.255 and to the interface's own broadcast
//! address, because access points drop one or the other. A socket bound to an address broadcasts on that
//! address's interface, without any route. Receiver: shares its port with other programs that do so too, since
//! several nodes may run on one machine, and the kernel gives every one of them each broadcast.
//!
//! No fault of the network ends either of them; the next round tries again.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::digest::{Digest, SHA256, digest};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::interfaces::{InterfaceAddr, Interfaces};
use crate::net::clock;
use crate::net::handshake::Profile;
use crate::net::socket::to_canonical;
use crate::proto::rate::{Source, SourceTable, TokenBucket};
use crate::proto::stop::{STOP_BYTES_MAX, is_stop_datagram};
use crate::proto::trust::Membership;

/// The UDP port of pings unless configured otherwise.
pub const PING_PORT: u16 = 7422;

/// Time between two rounds of pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(3);

/// Longest ping that is read, in bytes; longer datagrams are dropped unread.
pub const PING_BYTES_MAX: usize = 512;

/// Most pings a second from one address, on average. A station sends about one a second on each interface.
pub const PINGS_PER_SOURCE_PER_S: u32 = 8;

/// Most pings at once from one address: several stations behind one address that all start.
pub const PINGS_PER_SOURCE_BURST: u32 = 32;

/// Most pings a second from all addresses together: sender addresses are easily forged, and each ping costs a
/// signature check of about a third of a millisecond on a small Pi.
pub const PINGS_PER_S: u32 = 256;

/// Most addresses whose rate is remembered; pings from further ones are dropped until others fall silent.
pub const SOURCES_MAX: usize = 1024;

/// Longest datagram that is read, in bytes: a stop.
const DATAGRAM_BYTES_MAX: usize = STOP_BYTES_MAX;

/// How often stops are let through, apart from pings: a flood of the one does not keep out the other. Each costs at most
/// two signature checks.
const STOP_LIMITS: RateLimits = RateLimits {
    per_source_per_s: 16,
    per_source_burst: 64,
    total_per_s: 128,
};

/// How often pings are let through.
const PING_LIMITS: RateLimits = RateLimits {
    per_source_per_s: PINGS_PER_SOURCE_PER_S,
    per_source_burst: PINGS_PER_SOURCE_BURST,
    total_per_s: PINGS_PER_S,
};

/// Stops that were forwarded and are recognised by their SHA-256: each arrives many times, and only the first time costs
/// a signature check and counts against the rate, until the fleet state or this program's profile changes. A stop of
/// named nodes has a datagram for about nine of them, and the last must not be kept out by repeats of the first.
const RECENT_STOPS_MAX: usize = 1_024;

/// Longest wait for room in the kernel's send buffer, so that one blocked interface does not delay the others.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// A datagram that may be a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// At most [`PING_BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// Its source address, which may be forged.
    pub from: SocketAddr,
}

/// Broadcasts the result of `datagram` on every interface: at once, every [`PING_INTERVAL`], and at once when the
/// interfaces change. It is called once a round, so all copies of one round are the same bytes, and a receiver accepts
/// one of them. Returns when the token is cancelled.
pub async fn send(
    port: u16,
    mut interfaces: watch::Receiver<Interfaces>,
    mut datagram: impl FnMut() -> Vec<u8> + Send,
    shutdown: CancellationToken,
) {
    let mut sockets = BroadcastSockets::default();
    let mut tick = tokio::time::interval(PING_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = interfaces.changed(), if watching => {
                watching = changed.is_ok();
                tick.reset();
            }
            _tick = tick.tick() => {}
        }
        let current = interfaces.borrow_and_update().clone();
        let bytes = datagram();
        sockets.send_round(&current, port, &bytes).await;
    }
}

/// Sends datagrams on every interface at once.
#[derive(Default)]
pub struct Broadcaster {
    sockets: BroadcastSockets,
    unicast: Option<UdpSocket>,
}

impl std::fmt::Debug for Broadcaster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shouter({} interfaces)", self.sockets.by_address.len())
    }
}

impl Broadcaster {
    /// Broadcasts on the interfaces that are `present`, then sends to the addresses of `also`. Failures are logged only:
    /// callers repeat their datagrams.
    pub async fn broadcast(
        &mut self,
        interfaces: &[InterfaceAddr],
        port: u16,
        bytes: &[u8],
        unicast_addrs: &[SocketAddr],
    ) {
        self.sockets.send_round(interfaces, port, bytes).await;
        if unicast_addrs.is_empty() {
            return;
        }
        let socket = match self.unicast.take() {
            Some(socket) => socket,
            None => match open_send_socket(Ipv4Addr::UNSPECIFIED) {
                Ok(socket) => socket,
                Err(error) => return tracing::warn!(%error, "Datagrams not sent: no socket"),
            },
        };
        let canonical = unicast_addrs.iter().copied().map(to_canonical);
        for to in canonical.filter(SocketAddr::is_ipv4) {
            match tokio::time::timeout(SEND_TIMEOUT, socket.send_to(bytes, to)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%to, %error, "Datagram not sent"),
                Err(_) => {
                    // The others would wait as long, and the next round comes soon.
                    tracing::debug!(%to, "Datagram not sent: no room in the send buffer");
                    break;
                }
            }
        }
        self.unicast = Some(socket);
    }
}

/// One socket for each present address, and its last error.
#[derive(Default)]
struct BroadcastSockets {
    by_address: BTreeMap<Ipv4Addr, BroadcastSocket>,
}

#[derive(Default)]
struct BroadcastSocket {
    socket: Option<UdpSocket>,
    last_error: Option<io::ErrorKind>,
}

impl BroadcastSockets {
    async fn send_round(&mut self, interfaces: &[InterfaceAddr], port: u16, bytes: &[u8]) {
        let broadcastable: BTreeMap<Ipv4Addr, &InterfaceAddr> = interfaces
            .iter()
            .filter_map(|interface| match interface.ip {
                IpAddr::V4(ip) => interface.broadcast.map(|_| (ip, interface)),
                IpAddr::V6(_) => None,
            })
            .collect();
        self.by_address.retain(|ip, _| broadcastable.contains_key(ip));
        for (ip, interface) in broadcastable {
            let entry = self.by_address.entry(ip).or_default();
            let result = entry.send(ip, interface, port, bytes).await;
            let error_kind = result.as_ref().err().map(io::Error::kind);
            if error_kind == entry.last_error {
                continue;
            }
            entry.last_error = error_kind;
            let name = &interface.name;
            match result {
                Ok(()) => tracing::info!(interface = name, %ip, "Pings are sent again"),
                Err(error) => {
                    tracing::info!(interface = name, %ip, %error, "Pings not sent; trying again");
                }
            }
        }
    }
}

impl BroadcastSocket {
    async fn send(
        &mut self,
        ip: Ipv4Addr,
        interface: &InterfaceAddr,
        port: u16,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut result = Ok(());
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open_send_socket(ip)?,
        };
        // Loopback has no limited broadcast.
        let limited = Some(Ipv4Addr::BROADCAST).filter(|_| !ip.is_loopback());
        for to in limited.into_iter().chain(interface.broadcast) {
            let sent = tokio::time::timeout(SEND_TIMEOUT, socket.send_to(bytes, (to, port))).await;
            if let Err(error) = sent.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
                result = Err(error);
            }
        }
        if result.is_ok() {
            self.socket = Some(socket);
        }
        result
    }
}

fn open_send_socket(ip: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((ip, 0)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Why pings cannot be received.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// Another program holds the port exclusively.
    #[error(
        "UDP port {0} is in use by another program, so pings cannot be received; stop it, or choose another port \
         with --ping-port, the same on stations and nodes"
    )]
    PortInUse(u16),
    /// Anything else that the kernel refused.
    #[error("cannot listen for pings on UDP port {port}: {source}")]
    Other {
        /// The port.
        port: u16,
        /// The system's error.
        source: io::Error,
    },
}

/// Opens the socket for [`receive`]. It shares the port with other receivers on this machine.
///
/// # Errors
/// [`PingError`], whose text names the remedy.
pub fn listen(port: u16) -> Result<UdpSocket, PingError> {
    listen_on(Ipv4Addr::UNSPECIFIED, port)
}

/// As [`listen`], on one address of this machine only: broadcasts do not arrive there.
///
/// # Errors
/// As [`listen`].
pub fn listen_on(ip: Ipv4Addr, port: u16) -> Result<UdpSocket, PingError> {
    let bound = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        // Only SO_REUSEADDR: with it every receiver gets each broadcast. SO_REUSEPORT would also require that all
        // receivers run as one user.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((ip, port)).into())?;
        UdpSocket::from_std(socket.into())
    };
    bound().map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            PingError::PortInUse(port)
        } else {
            PingError::Other { port, source }
        }
    })
}

/// Where emergency stops go, and what they are verified against.
#[derive(Debug)]
pub struct StopForwarder {
    /// The stop task's channel.
    pub sender: mpsc::Sender<Datagram>,
    /// The fleet of this program.
    pub membership: watch::Receiver<Option<Arc<Membership>>>,
    /// Name, tags and id, which selectors match.
    pub profile: watch::Receiver<Profile>,
}

impl StopForwarder {
    /// Whether a rejected stop may be accepted now: fleet, grants, revocations or name have changed.
    fn context_changed(&mut self) -> bool {
        let is_new = self.membership.has_changed().is_ok_and(|new| new)
            || self.profile.has_changed().is_ok_and(|new| new);
        if is_new {
            self.membership.mark_unchanged();
            self.profile.mark_unchanged();
        }
        is_new
    }
}

/// Forwards received datagrams within the rates above: stops to `stops`, if given, all others to `datagrams`. A full
/// channel drops the newest, since both are repeated. Returns when the token is cancelled or the channel closed.
pub async fn receive(
    socket: UdpSocket,
    datagrams: mpsc::Sender<Datagram>,
    mut stop_forwarder: Option<StopForwarder>,
    shutdown: CancellationToken,
) {
    let mut rates = RateLimiter::new(PING_LIMITS);
    let mut stop_rates = RateLimiter::new(STOP_LIMITS);
    let mut recent_stops: VecDeque<Digest> = VecDeque::new();
    // One byte more than allowed, to distinguish the longest datagram from a truncated one.
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    loop {
        let received = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = datagrams.closed() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // Not expected of an unconnected socket; the pause prevents a busy loop.
                tracing::debug!(%error, "Pings not received; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let bytes = &buffer[..length];
        if is_stop_datagram(bytes) {
            let Some(stop_forwarder) = &mut stop_forwarder else {
                continue;
            };
            if stop_forwarder.context_changed() {
                recent_stops.clear();
            }
            let digest = digest(&SHA256, bytes);
            if length > DATAGRAM_BYTES_MAX
                || recent_stops.iter().any(|known| known.as_ref() == digest.as_ref())
            {
                continue;
            }
            let bytes = bytes.to_vec();
            if stop_rates.allow(from.ip(), clock::now())
                && stop_forwarder.sender.try_send(Datagram { bytes, from }).is_ok()
            {
                if recent_stops.len() >= RECENT_STOPS_MAX {
                    recent_stops.pop_front();
                }
                recent_stops.push_back(digest);
            } else {
                tracing::debug!(%from, "Stop dropped: too many at once");
            }
            continue;
        }
        if length > PING_BYTES_MAX || !rates.allow(from.ip(), clock::now()) {
            tracing::trace!(%from, length, "Ping dropped");
            continue;
        }
        let bytes = bytes.to_vec();
        if datagrams.try_send(Datagram { bytes, from }).is_err() {
            tracing::trace!(%from, "Ping dropped: the channel is full");
        }
    }
}

/// Rates at which datagrams are accepted.
#[derive(Clone, Copy, Debug)]
struct RateLimits {
    /// From one address, a second on average.
    per_source_per_s: u32,
    /// From one address, in one burst.
    per_source_burst: u32,
    /// From all addresses together, a second.
    total_per_s: u32,
}

struct RateLimiter {
    limits: RateLimits,
    total: TokenBucket,
    sources: SourceTable<TokenBucket>,
}

impl RateLimiter {
    fn new(limits: RateLimits) -> Self {
        Self {
            limits,
            total: TokenBucket::per_second(limits.total_per_s),
            sources: SourceTable::new(SOURCES_MAX),
        }
    }

    fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let RateLimits {
            per_source_per_s,
            per_source_burst,
            ..
        } = self.limits;
        let is_idle = |bucket: &TokenBucket| bucket.is_full(now);
        let new = || TokenBucket::with_burst(per_source_per_s, per_source_burst);
        let Some(bucket) = self.sources.entry(Source::of(source), is_idle, new) else {
            return false;
        };
        // One source that sends too much must not use up what all share.
        bucket.try_take(now).is_ok() && self.total.try_take(now).is_ok()
    }
}
