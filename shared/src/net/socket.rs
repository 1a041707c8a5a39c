//! TCP connections as every link wants them: quick to notice a dead peer, never waiting to fill a packet.
//!
//! Invariants: no connection leaves this module without keepalive, `TCP_USER_TIMEOUT`, `TCP_NODELAY`,
//! `TCP_THIN_LINEAR_TIMEOUTS` and `TCP_NOTSENT_LOWAT` set; every error says what to do about it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Most connections that wait to be accepted. A fleet of 500 comes back at once when its station restarts,
/// each with up to two connections; the kernel lowers this to `net.core.somaxconn`.
pub const LISTEN_BACKLOG: u16 = 1024;

/// Most bytes of a control connection that lie unsent in the kernel: what an urgent frame may have to wait behind.
pub const NOTSENT_LOWAT_CONTROL_BYTES: u32 = 16 * 1024;

/// The same for a bulk connection, where throughput counts: two file chunks, so that the sender prepares one
/// while the other leaves.
pub const NOTSENT_LOWAT_BULK_BYTES: u32 = 512 * 1024;

/// Most bytes in a segment of a connection over a path that drops large packets: with all headers and TLS below 1,280,
/// the least MTU of IPv6 and that of many tunnels.
pub const SMALL_SEGMENT_BYTES: u32 = 1_200;

/// How large the segments of a connection may be, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentSize {
    /// What the interfaces and the path permit.
    Path,
    /// At most [`SMALL_SEGMENT_BYTES`].
    Small,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficClass {
    /// Small frames that must not wait.
    Control,
    /// Files.
    Bulk,
}

impl TrafficClass {
    /// The connection's `TCP_NOTSENT_LOWAT`, in bytes.
    pub fn notsent_lowat(self) -> u32 {
        match self {
            Self::Control => NOTSENT_LOWAT_CONTROL_BYTES,
            Self::Bulk => NOTSENT_LOWAT_BULK_BYTES,
        }
    }
}

/// When the kernel gives a silent connection up. Whole seconds, because that is what the kernel counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveConfig {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

/// Why numbers are not a [`KeepaliveConfig`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepaliveError {
    /// The kernel counts whole seconds and takes no others.
    #[error("keepalive {what} of {value:?} cannot be set: use whole seconds, 1 to {SECONDS_MAX}")]
    Seconds {
        /// `idle` or `interval`.
        what: &'static str,
        /// What was asked for.
        value: Duration,
    },
    /// The kernel counts up to 127 probes.
    #[error("{0} keepalive probes cannot be set: use 1 to {PROBES_MAX}")]
    Probes(u32),
}

/// `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL` of the kernel.
const SECONDS_MAX: u64 = 32_767;
/// `MAX_TCP_KEEPCNT` of the kernel.
const PROBES_MAX: u32 = 127;

impl Default for KeepaliveConfig {
    /// 1 s, 3 s, 5: a connection without a sign of life ends after 16 s.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(1),
            interval: Duration::from_secs(3),
            probes: 5,
        }
    }
}

impl KeepaliveConfig {
    /// Checks the numbers against what the kernel takes.
    ///
    /// # Errors
    /// [`KeepaliveError`], which names the number and its range.
    pub fn new(idle: Duration, interval: Duration, probes: u32) -> Result<Self, KeepaliveError> {
        for (what, value) in [("idle", idle), ("interval", interval)] {
            if value.subsec_nanos() != 0 || !(1..=SECONDS_MAX).contains(&value.as_secs()) {
                return Err(KeepaliveError::Seconds { what, value });
            }
        }
        if !(1..=PROBES_MAX).contains(&probes) {
            return Err(KeepaliveError::Probes(probes));
        }
        Ok(Self {
            idle,
            interval,
            probes,
        })
    }

    /// Silence before the first probe.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// Time between probes.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Probes without an answer that end the connection.
    pub fn probes(&self) -> u32 {
        self.probes
    }

    /// `TCP_USER_TIMEOUT`: `idle + interval × probes`. Keepalive watches a quiet connection and the user
    /// time-out one with unacknowledged data; with this value both give up at the same moment. It also has to
    /// be no smaller, since the kernel ends probing by it and no longer by the count once it is set.
    pub fn user_timeout(&self) -> Duration {
        self.idle + self.interval * self.probes
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another program listens on the port.
    #[error(
        "port {port} is in use by another program; stop it or choose another with --listen",
        port = .0.port()
    )]
    PortInUse(SocketAddr),
    /// The address is not this machine's.
    #[error(
        "no interface of this machine has the address {ip}; use one that it has, or 0.0.0.0 for all",
        ip = .0.ip()
    )]
    NotOurAddress(SocketAddr),
    /// Ports below 1024 belong to root.
    #[error(
        "not allowed to listen on port {port}; use one above 1023, or run with CAP_NET_BIND_SERVICE",
        port = .0.port()
    )]
    NotAllowed(SocketAddr),
    /// The peer's machine refused the connection: no program listens there.
    #[error("nothing listens at {0}; is the program running there, on that port?")]
    Refused(SocketAddr),
    /// No answer at all.
    #[error("{addr} did not answer within {timeout:?}; is it on, and on this network?")]
    TimedOut {
        /// The address that was dialled.
        addr: SocketAddr,
        /// The time-out that elapsed.
        timeout: Duration,
    },
    /// The address is not reachable.
    #[error("no route to {addr}: {source}; is this machine on the peer's network?")]
    Unreachable {
        /// Who was called.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else that the kernel refused.
    #[error("cannot {what} {addr}: {source}")]
    Other {
        /// `listen on`, `connect to` or `set up the connection with`.
        what: &'static str,
        /// The local or the peer's address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Listens on an address; port 0 takes a free one, which the listener then knows. `[::]` takes IPv4 too.
///
/// # Errors
/// [`SocketError`], whose text names the remedy.
pub fn listen(addr: SocketAddr) -> Result<TcpListener, SocketError> {
    let bound = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted program must get its port back while the old connections are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(i32::from(LISTEN_BACKLOG))?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|source| {
        use io::ErrorKind as Kind;
        let kind = source.kind();
        if kind == Kind::AddrInUse {
            SocketError::PortInUse(addr)
        } else if kind == Kind::AddrNotAvailable {
            SocketError::NotOurAddress(addr)
        } else if kind == Kind::PermissionDenied {
            SocketError::NotAllowed(addr)
        } else {
            let what = "listen on";
            SocketError::Other { what, addr, source }
        }
    })
}

/// Connects, with every option set before the first packet.
///
/// # Errors
/// [`SocketError`], whose text says what to check.
pub async fn connect(
    addr: SocketAddr,
    timeout: Duration,
    keepalive: &KeepaliveConfig,
    traffic_class: TrafficClass,
) -> Result<TcpStream, SocketError> {
    connect_with_segments(addr, timeout, keepalive, traffic_class, SegmentSize::Path).await
}

/// As [`connect`], with a choice of the segments' size.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with_segments(
    addr: SocketAddr,
    timeout: Duration,
    keepalive: &KeepaliveConfig,
    traffic_class: TrafficClass,
    segments: SegmentSize,
) -> Result<TcpStream, SocketError> {
    let prepared = || -> io::Result<TcpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        set_options(SockRef::from(&socket), keepalive, traffic_class)?;
        if segments == SegmentSize::Small {
            // The peer is told in the first packet, and keeps to it as well.
            socket.set_tcp_mss(SMALL_SEGMENT_BYTES)?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let attempt = async { prepared()?.connect(addr).await };
    let Ok(done) = tokio::time::timeout(timeout, attempt).await else {
        return Err(SocketError::TimedOut { addr, timeout });
    };
    done.map_err(|source| {
        use io::ErrorKind as Kind;
        let unreachable_kinds = [
            Kind::NetworkUnreachable,
            Kind::HostUnreachable,
            Kind::NetworkDown,
            Kind::AddrNotAvailable,
        ];
        let kind = source.kind();
        if kind == Kind::ConnectionRefused {
            SocketError::Refused(addr)
        } else if kind == Kind::TimedOut {
            SocketError::TimedOut { addr, timeout }
        } else if unreachable_kinds.contains(&kind) {
            SocketError::Unreachable { addr, source }
        } else {
            let what = "connect to";
            SocketError::Other { what, addr, source }
        }
    })
}

/// The same host with another port; the zone of a link-local address stays.
pub fn with_port(addr: SocketAddr, port: u16) -> SocketAddr {
    let mut other = addr;
    other.set_port(port);
    other
}

/// An IPv4 address as such where a socket of `[::]` shows it as `::ffff:1.2.3.4`; others as they are.
pub fn to_canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// Whether neither end of a connection sends segments of more than [`SMALL_SEGMENT_BYTES`].
pub(crate) fn has_small_segments(stream: &TcpStream) -> bool {
    let largest = SockRef::from(stream).tcp_mss();
    largest.is_ok_and(|bytes| bytes <= SMALL_SEGMENT_BYTES)
}

/// Sets every option on a connection that was accepted.
///
/// # Errors
/// [`SocketError::Other`]: drop the connection; in most cases it is closed already.
pub fn configure_accepted(
    stream: &TcpStream,
    keepalive: &KeepaliveConfig,
    traffic_class: TrafficClass,
) -> Result<(), SocketError> {
    let tuned = || -> io::Result<()> { set_options(SockRef::from(stream), keepalive, traffic_class) };
    tuned().map_err(|source| SocketError::Other {
        what: "set up the connection with",
        addr: stream
            .peer_addr()
            .unwrap_or_else(|_gone| SocketAddr::from(([0, 0, 0, 0], 0))),
        source,
    })
}

/// A second handle of an accepted connection, to set its traffic class once the peer's hello names the channel.
#[derive(Debug)]
pub(crate) struct AcceptedSocket(Option<OwnedFd>);

impl AcceptedSocket {
    /// Of a connection that was tuned for [`Purpose::Control`].
    pub(crate) fn new(stream: &TcpStream) -> Self {
        // Without it a file moves a little more slowly.
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    /// Sets the options for the purpose that the hello named.
    pub(crate) fn set_traffic_class(self, traffic_class: TrafficClass) {
        if let Some(socket) = self.0
            && let Err(error) = SockRef::from(&socket).set_tcp_notsent_lowat(traffic_class.notsent_lowat())
        {
            tracing::debug!(%error, "Send buffer not enlarged");
        }
    }
}

fn set_options(
    socket: SockRef<'_>,
    keepalive: &KeepaliveConfig,
    traffic_class: TrafficClass,
) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes),
    )?;
    socket.set_tcp_user_timeout(Some(keepalive.user_timeout()))?;
    socket.set_tcp_nodelay(true)?;
    // What a quiet link loses is sent again every few hundred milliseconds and not at doubling intervals: a radio that
    // is gone for a second must not add another two of silence.
    socket.set_tcp_thin_linear_timeouts(true)?;
    socket.set_tcp_notsent_lowat(traffic_class.notsent_lowat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(5);

    fn assert_options(stream: &TcpStream, keepalive: &KeepaliveConfig, purpose: TrafficClass) {
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().expect("readable"));
        assert_eq!(socket.tcp_keepalive_time().expect("readable"), keepalive.idle());
        assert_eq!(
            socket.tcp_keepalive_interval().expect("readable"),
            keepalive.interval()
        );
        assert_eq!(
            socket.tcp_keepalive_retries().expect("readable"),
            keepalive.probes()
        );
        assert_eq!(
            socket.tcp_user_timeout().expect("readable"),
            Some(keepalive.user_timeout())
        );
        assert!(socket.tcp_nodelay().expect("readable"));
        assert!(socket.tcp_thin_linear_timeouts().expect("readable"));
        assert_eq!(
            socket.tcp_notsent_lowat().expect("readable"),
            purpose.notsent_lowat()
        );
    }

    #[tokio::test]
    async fn socket_options_are_set_on_both_ends() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        let addr = listener.local_addr().expect("bound");
        let own = KeepaliveConfig::new(Duration::from_secs(2), Duration::from_secs(4), 7).expect("fits");
        for (keepalive, purpose) in [
            (KeepaliveConfig::default(), TrafficClass::Control),
            (own, TrafficClass::Bulk),
        ] {
            let dialled = connect(addr, TEST_TIMEOUT, &keepalive, purpose)
                .await
                .expect("connects");
            let (accepted, _from) = listener.accept().await.expect("accepts");
            configure_accepted(&accepted, &keepalive, purpose).expect("tunes");
            assert_options(&dialled, &keepalive, purpose);
            assert_options(&accepted, &keepalive, purpose);
            configure_accepted(&accepted, &keepalive, TrafficClass::Control).expect("tunes");
            AcceptedSocket::new(&accepted).set_traffic_class(purpose);
            assert_options(&accepted, &keepalive, purpose);
        }
        assert_eq!(KeepaliveConfig::default().user_timeout(), Duration::from_secs(16));
    }

    #[test]
    fn listening_address_keeps_the_zone_of_its_interface() {
        let from: SocketAddr = "[fe80::1%3]:40000".parse().expect("address");
        assert_eq!(with_port(from, 7420).to_string(), "[fe80::1%3]:7420");
        assert_eq!(to_canonical(from), from);
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:7420".parse().expect("address");
        assert_eq!(to_canonical(mapped).to_string(), "192.0.2.7:7420");
    }

    #[tokio::test]
    async fn small_segments_bind_both_ends() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        let addr = listener.local_addr().expect("bound");
        for (segments, small) in [(SegmentSize::Path, false), (SegmentSize::Small, true)] {
            let keepalive = KeepaliveConfig::default();
            let dialled =
                connect_with_segments(addr, TEST_TIMEOUT, &keepalive, TrafficClass::Control, segments)
                    .await
                    .expect("connects");
            let (accepted, _from) = listener.accept().await.expect("accepts");
            assert_eq!(has_small_segments(&dialled), small);
            assert_eq!(has_small_segments(&accepted), small);
        }
    }

    #[test]
    fn keepalive_rejects_values_the_kernel_rejects() {
        let second = Duration::from_secs(1);
        for (idle, interval, probes, word) in [
            (Duration::from_millis(500), second, 5, "idle"),
            (second, Duration::ZERO, 5, "interval"),
            (second, Duration::from_secs(40_000), 5, "interval"),
            (second, second, 0, "probes"),
            (second, second, 128, "probes"),
        ] {
            let error = KeepaliveConfig::new(idle, interval, probes).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn tcp_port_in_use_error_names_port_and_remedy() {
        let first = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        let addr = first.local_addr().expect("bound");
        let error = listen(addr).expect_err("taken");
        assert_eq!(
            error.to_string(),
            format!(
                "port {} is in use by another program; stop it or choose another with --listen",
                addr.port()
            )
        );
    }

    #[tokio::test]
    async fn listen_address_of_another_machine_is_named() {
        let error = listen("192.0.2.1:7421".parse().expect("address")).expect_err("not ours");
        assert!(matches!(error, SocketError::NotOurAddress(_)), "{error}");
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[tokio::test]
    async fn port_can_be_bound_again_right_after_close() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        let addr = listener.local_addr().expect("bound");
        let keepalive = KeepaliveConfig::default();
        let dialled = connect(addr, TEST_TIMEOUT, &keepalive, TrafficClass::Control)
            .await
            .expect("connects");
        let (accepted, _from) = listener.accept().await.expect("accepts");
        // The side that closes first keeps the port in TIME_WAIT.
        drop(accepted);
        drop(dialled);
        drop(listener);
        listen(addr).expect("listens again");
    }

    #[tokio::test]
    async fn ipv6_wildcard_listener_accepts_ipv4() {
        let listener = match listen("[::]:0".parse().expect("address")) {
            Ok(listener) => listener,
            // A kernel without IPv6 has nothing to show here.
            Err(SocketError::Other { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let port = listener.local_addr().expect("bound").port();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        connect(
            addr,
            TEST_TIMEOUT,
            &KeepaliveConfig::default(),
            TrafficClass::Control,
        )
        .await
        .expect("connects over IPv4");
    }

    #[tokio::test]
    async fn closed_port_is_refused_and_silent_port_times_out() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        let keepalive = KeepaliveConfig::default();
        let error = connect(addr, TEST_TIMEOUT, &keepalive, TrafficClass::Control)
            .await
            .expect_err("closed");
        assert!(matches!(error, SocketError::Refused(_)), "{error}");

        // A full queue of connections that are not accepted makes the kernel drop further ones silently.
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
        silent.bind(&any.into()).expect("a free port");
        silent.listen(0).expect("listens");
        let addr = silent
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("an IP address");
        let mut held = Vec::new();
        let error = loop {
            match connect(
                addr,
                Duration::from_millis(200),
                &keepalive,
                TrafficClass::Control,
            )
            .await
            {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SocketError::TimedOut { .. }), "{error}");
        assert!(held.len() < 10, "the queue never filled");
    }
}
