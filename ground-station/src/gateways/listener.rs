//! Accepts connections for one gateway, within its limits.
//!
//! | limit | beyond it |
//! |---|---|
//! | connections in total and per source | closed at once; nothing is read |
//! | messages per second and source | the connection is not read until the next message is due |
//!
//! A source is an IPv4 address or a /64 of IPv6: see [`Source`]. The length of a message and the time between messages are
//! limited by each gateway, since they depend on its protocol.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::socket::{self, KeepaliveConfig, TrafficClass};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::rate::{KeyedThrottle, Source, SourceTable, Throttle, TokenBucket};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Client;
use super::context::{GatewayContext, GatewayError};
use crate::config::gateways::CommonOptions;

/// Pause after a failed accept: most likely file descriptors have run out, and other connections have to close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time between two log lines of one kind.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Kinds of log lines per gateway that are throttled separately: more than there are.
const LOG_KINDS_MAX: usize = 32;
/// Sources whose rate is remembered although they have no connection, so that a new connection does not refill a bucket.
const SOURCES_MAX: usize = 4_096;

/// Listens for one gateway.
#[derive(Debug)]
pub struct GatewayListener {
    gateway: &'static str,
    listener: TcpListener,
    common: CommonOptions,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    connections: SharedTable,
}

impl GatewayListener {
    /// Binds a gateway's address. Logs a warning if other machines can reach it.
    ///
    /// # Errors
    /// [`GatewayError::Listen`].
    pub fn open(
        gateway: &'static str,
        common: &CommonOptions,
        context: &GatewayContext,
    ) -> Result<Self, GatewayError> {
        let listener = bind(common.listen)
            .and_then(|socket| socket.listen(common.backlog))
            .map_err(|error| listen_error(gateway, common.listen, &error))?;
        log_opened(gateway, common, &listener);
        Ok(Self {
            gateway,
            listener,
            common: common.clone(),
            shutdown: context.shutdown.clone(),
            tasks: context.tasks.clone(),
            connections: SharedTable::default(),
        })
    }

    /// Counts connections of this listener and `other` together, for two ports of one gateway.
    pub fn share_limits_with(mut self, other: &Self) -> Self {
        self.connections = other.connections.clone();
        self
    }

    /// The bound address, with the port that the kernel chose if the configured one is 0.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until shutdown. Each is served by a task of its own, which shutdown ends.
    pub async fn serve<S>(self, serve: impl Fn(TcpStream, ConnectionPermit) -> S)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        self.serve_allowed(|_any| true, serve).await;
    }

    /// The same for allowed addresses only; connections from others are closed, and nothing is read from them.
    pub async fn serve_allowed<S>(
        self,
        is_allowed: impl Fn(IpAddr) -> bool,
        serve: impl Fn(TcpStream, ConnectionPermit) -> S,
    ) where
        S: Future<Output = ()> + Send + 'static,
    {
        let mut not_allowed_log = log_throttle();
        let (mut over_limit_log, mut accepted_log) = (log_throttle(), log_throttle());
        let gateway = self.gateway;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(gateway, %error, "Connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !is_allowed(addr.ip()) {
                if let Some(count) = not_allowed_log.count(clock::now()) {
                    tracing::warn!(gateway, %addr, count, "Connection refused: address not allowed");
                }
                continue;
            }
            let Some(permit) = ConnectionPermit::acquire(&self.connections, addr, &self.common) else {
                if let Some(count) = over_limit_log.count(clock::now()) {
                    tracing::warn!(gateway, %addr, count, "Connection refused: too many connections");
                }
                continue;
            };
            let configured =
                socket::configure_accepted(&stream, &KeepaliveConfig::default(), TrafficClass::Control);
            if let Err(error) = configured {
                tracing::debug!(gateway, %addr, %error, "Connection ended at once");
                continue;
            }
            if let Some(count) = accepted_log.count(clock::now()) {
                tracing::info!(gateway, %addr, count, "Connections accepted");
            }
            let served = serve(stream, permit);
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move {
                shutdown.run_until_cancelled(served).await;
            });
        }
    }
}

/// Binds an address for a moment, to find out whether a gateway could.
pub(super) fn check_bindable(gateway: &'static str, listen: SocketAddr) -> Result<(), GatewayError> {
    match bind(listen) {
        Ok(_closed_again) => Ok(()),
        Err(error) => Err(listen_error(gateway, listen, &error)),
    }
}

fn listen_error(gateway: &'static str, listen: SocketAddr, error: &std::io::Error) -> GatewayError {
    GatewayError::Listen {
        gateway,
        listen,
        reason: error.to_string(),
        advice: if error.kind() == ErrorKind::AddrNotAvailable {
            "change `listen` to an address that this machine has"
        } else {
            "change `listen`, or end what uses that port"
        },
    }
}

fn bind(listen: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Connections of a station that has just ended must not delay the start of the next one.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    Ok(socket)
}

fn log_opened(gateway: &'static str, common: &CommonOptions, listener: &TcpListener) {
    let listen = listener.local_addr().unwrap_or(common.listen);
    if listen.ip().is_loopback() {
        tracing::info!(gateway, %listen, "Gateway open");
    } else {
        tracing::warn!(
            gateway,
            %listen,
            "Gateway open to the network: every host that reaches this address may use it, and its traffic can be read"
        );
    }
}

/// One log line per [`LOG_INTERVAL`].
pub(super) fn log_throttle() -> Throttle {
    Throttle::new(TokenBucket::every(LOG_INTERVAL, 1))
}

/// The connections of one gateway.
type SharedTable = Arc<Mutex<ConnectionTable>>;

#[derive(Debug)]
struct ConnectionTable {
    total: usize,
    sources: SourceTable<SourceState>,
    log: KeyedThrottle<&'static str>,
}

impl Default for ConnectionTable {
    fn default() -> Self {
        Self {
            total: 0,
            sources: SourceTable::new(SOURCES_MAX),
            log: KeyedThrottle::new(TokenBucket::every(LOG_INTERVAL, 1), LOG_KINDS_MAX),
        }
    }
}

#[derive(Debug)]
struct SourceState {
    connections: usize,
    bucket: TokenBucket,
}

impl SourceState {
    fn new(common: &CommonOptions) -> Self {
        Self {
            connections: 0,
            bucket: TokenBucket::per_second(common.rate),
        }
    }
}

/// Throttles log lines about the clients of one gateway by kind, so that no client fills the log. Cheap to clone; may
/// outlive the connection.
#[derive(Clone, Debug, Default)]
pub struct ThrottledLog(SharedTable);

/// Logs at a level if a [`ThrottledLog`] permits it for this kind of line, with the number of events since the last one;
/// at debug level otherwise.
#[allow(unused_macros, reason = "only gateways use it, and each is a feature")]
macro_rules! log_throttled {
    ($log:expr, $kind:expr, $level:ident, $($line:tt)+) => {
        match $log.count($kind) {
            Some(count) => tracing::$level!(count, $($line)+),
            None => tracing::debug!($($line)+),
        }
    };
}
#[allow(unused_imports, reason = "only gateways use it, and each is a feature")]
pub(crate) use log_throttled;

impl ThrottledLog {
    /// Counts an event of this kind. If it is to be logged, returns the number of events since the last one that was.
    pub fn count(&self, kind: &'static str) -> Option<u64> {
        self.0.lock().log.count(kind, clock::now())
    }
}

/// A connection's share of its gateway's limits, until it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    /// The other end.
    pub addr: SocketAddr,
    connections: SharedTable,
}

impl ConnectionPermit {
    fn acquire(connections: &SharedTable, addr: SocketAddr, common: &CommonOptions) -> Option<Self> {
        let now = clock::now();
        let mut table = connections.lock();
        if table.total >= common.connections {
            return None;
        }
        let is_idle = |source: &SourceState| source.connections == 0 && source.bucket.is_full(now);
        let new = || SourceState::new(common);
        let source = table.sources.entry(Source::of(addr.ip()), is_idle, new)?;
        if source.connections >= common.connections_per_address {
            return None;
        }
        source.connections += 1;
        table.total += 1;
        drop(table);
        let connections = Arc::clone(connections);
        Some(Self { addr, connections })
    }

    /// The permit of a connection that this station has dialled; it is counted apart from the accepted ones.
    pub fn for_outgoing(addr: SocketAddr, common: &CommonOptions) -> Self {
        let mut table = ConnectionTable {
            total: 1,
            ..ConnectionTable::default()
        };
        let source = table
            .sources
            .entry(Source::of(addr.ip()), |_| false, || SourceState::new(common));
        if let Some(source) = source {
            source.connections = 1;
        }
        Self {
            addr,
            connections: Arc::new(Mutex::new(table)),
        }
    }

    /// The client at the other end, not authenticated.
    pub fn client(&self) -> Client {
        Client::at(self.addr.ip())
    }

    /// Throttles log lines about this connection.
    pub fn throttled_log(&self) -> ThrottledLog {
        ThrottledLog(self.connections.clone())
    }

    /// Waits until the rate of this source permits one more message.
    pub async fn throttle(&self) {
        let source = Source::of(self.addr.ip());
        loop {
            let now = clock::now();
            let wait = {
                let mut table = self.connections.lock();
                let source = table.sources.get_mut(source);
                source.and_then(|source| source.bucket.try_take(now).err())
            };
            let Some(wait) = wait else { return };
            clock::sleep_until(now + wait).await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        table.total -= 1;
        if let Some(source) = table.sources.get_mut(Source::of(self.addr.ip())) {
            source.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn two_ports_of_one_gateway_share_connection_limits() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = crate::config::Config::for_host("st");
        let text = "[gateways.knut]\nlisten = \"127.0.0.1:0\"\nconnections_per_address = 1";
        config.read_file(std::path::Path::new("c"), text).expect("reads");
        let common = config.gateways.knut.expect("open").common;
        let context =
            crate::gateways::tests::test_context(swarm_shared::client::Fleet::local().0, dir.path()).await;
        let first = GatewayListener::open("knut", &common, &context).expect("listens");
        let second = GatewayListener::open("knut", &common, &context)
            .expect("listens")
            .share_limits_with(&first);
        let ports = [&first, &second].map(|listener| listener.local_addr().expect("bound"));
        for listener in [first, second] {
            let serve = async |mut stream: TcpStream, _permit: ConnectionPermit| {
                stream.write_all(b"in").await.ok();
                std::future::pending::<()>().await;
            };
            context.tasks.spawn(listener.serve(serve));
        }
        let mut inside = TcpStream::connect(ports[0]).await.expect("connects");
        let mut word = [0; 2];
        inside.read_exact(&mut word).await.expect("let in");
        let mut outside = TcpStream::connect(ports[1]).await.expect("connects");
        // A reset is an end too.
        let read = outside.read(&mut word).await.unwrap_or(0);
        assert_eq!(read, 0, "one of one address");
        context.shutdown.cancel();
    }

    #[test]
    fn log_is_throttled_per_gateway_and_event_kind() {
        let connections = SharedTable::default();
        let visit = |text: &str| {
            let addr = text.parse().expect("an address");
            ConnectionPermit::acquire(&connections, addr, &CommonOptions::at(0)).expect("a place")
        };
        let (one, other) = (visit("10.0.0.1:1"), visit("10.0.0.2:1"));
        assert_eq!(one.throttled_log().count("closed"), Some(1));
        assert_eq!(other.throttled_log().count("closed"), None);
        assert_eq!(other.throttled_log().count("bad"), Some(1));
    }

    #[test]
    fn connections_are_limited_in_total_and_per_address() {
        let connections = SharedTable::default();
        let limits = CommonOptions {
            connections: 3,
            connections_per_address: 2,
            ..CommonOptions::at(0)
        };
        let take =
            |text: &str| ConnectionPermit::acquire(&connections, text.parse().expect("an address"), &limits);
        let first = take("10.0.0.1:1").expect("a place");
        let _second = take("10.0.0.1:2").expect("a place");
        assert!(take("10.0.0.1:3").is_none(), "two of one address");
        let _third = take("10.0.0.2:1").expect("a place");
        assert!(take("10.0.0.3:1").is_none(), "three in all");
        drop(first);
        assert!(take("10.0.0.3:1").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn ipv6_clients_are_limited_by_their_64_prefix() {
        let connections = SharedTable::default();
        let limits = CommonOptions {
            connections_per_address: 2,
            rate: 1,
            ..CommonOptions::at(0)
        };
        let take =
            |text: &str| ConnectionPermit::acquire(&connections, text.parse().expect("an address"), &limits);
        let first = take("[2001:db8:0:7::1]:1").expect("a place");
        let second = take("[2001:db8:0:7:ffff::2]:1").expect("a place");
        assert!(take("[2001:db8:0:7::3]:1").is_none(), "two of one /64");
        let other = take("[2001:db8:0:8::1]:1").expect("another /64");
        let at_once = async |permit: &ConnectionPermit| {
            tokio::time::timeout(Duration::from_millis(1), permit.throttle())
                .await
                .is_ok()
        };
        assert!(at_once(&first).await);
        assert!(!at_once(&second).await, "one message a second of one /64");
        assert!(at_once(&other).await);
        drop(first);
        assert!(take("[2001:db8:0:7::3]:1").is_some());
    }
}
