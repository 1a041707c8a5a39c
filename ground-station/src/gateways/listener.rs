//! Where visitors wait: listening for one gateway, and its bounds.
//!
//! | bound | beyond it |
//! |---|---|
//! | connections in all, and of one address | closed at once, before anything is read |
//! | messages of one address in a second | the next one waits; the connection is not read meanwhile |
//!
//! How long a message may be, and how long a silence, is for the gateway to keep: protocols differ in what they are.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::socket::{self, KeepaliveConfig, TrafficClass};
use swarm_shared::net::sync::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{GatewayContext, GatewayError};
use crate::config::gateways::{CommonOptions, ConnectionLimits};

/// Pause after a failed accept: out of descriptors, most likely, and others have to close some first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often connections are told of in the log, let in and refused.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Listens for one gateway.
#[derive(Debug)]
pub struct GatewayListener {
    gateway: &'static str,
    listener: TcpListener,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    connections: Arc<Mutex<ConnectionTable>>,
}

impl GatewayListener {
    /// Binds a gateway's address, and warns if others than this machine reach it.
    ///
    /// # Errors
    /// [`DoorError::Listen`].
    pub fn open(
        gateway: &'static str,
        common: &CommonOptions,
        context: &GatewayContext,
    ) -> Result<Self, GatewayError> {
        let listener = bind(common.listen)
            .and_then(|socket| socket.listen(common.limits.backlog))
            .map_err(|error| listen_error(gateway, common.listen, &error))?;
        log_opened(gateway, common, &listener);
        Ok(Self {
            gateway,
            listener,
            limits: common.limits.clone(),
            shutdown: context.shutdown.clone(),
            tasks: context.tasks.clone(),
            connections: Arc::default(),
        })
    }

    /// As another port of the same gateway: who is inside there counts here, and the reverse.
    pub fn share_limits_with(mut self, other: &Self) -> Self {
        self.connections = Arc::clone(&other.connections);
        self
    }

    /// The address with its real port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Lets visitors in until the context closes; each is served by a task of its own, which the closing ends.
    pub async fn serve<S>(self, serve: impl Fn(TcpStream, ConnectionPermit) -> S)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        self.serve_allowed(|_anybody| true, serve).await;
    }

    /// The same, of addresses that are welcome only; from the others nothing is read.
    pub async fn serve_allowed<S>(
        self,
        is_allowed: impl Fn(IpAddr) -> bool,
        serve: impl Fn(TcpStream, ConnectionPermit) -> S,
    ) where
        S: Future<Output = ()> + Send + 'static,
    {
        let mut not_allowed_log = LogThrottle::default();
        let (mut over_limit_log, mut accepted_log) = (LogThrottle::default(), LogThrottle::default());
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(gateway = self.gateway, %error, "cannot let anybody in");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !is_allowed(addr.ip()) {
                if let Some(count) = not_allowed_log.count(clock::now()) {
                    tracing::warn!(gateway = self.gateway, %addr, count, "not welcome at this gateway");
                }
                continue;
            }
            let Some(permit) = ConnectionPermit::acquire(&self.connections, addr, &self.limits) else {
                if let Some(count) = over_limit_log.count(clock::now()) {
                    tracing::warn!(gateway = self.gateway, %addr, count, "too many connections at this gateway");
                }
                continue;
            };
            let tuned =
                socket::configure_accepted(&stream, &KeepaliveConfig::default(), TrafficClass::Control);
            if let Err(error) = tuned {
                tracing::debug!(gateway = self.gateway, %addr, %error, "a connection that ended at once");
                continue;
            }
            if let Some(count) = accepted_log.count(clock::now()) {
                tracing::info!(gateway = self.gateway, %addr, count, "visitors at this gateway");
            }
            let served = serve(stream, permit);
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move {
                shutdown.run_until_cancelled(served).await;
            });
        }
    }
}

/// Finds whether a gateway could listen there now.
pub(super) fn check_bindable(gateway: &'static str, listen: SocketAddr) -> Result<(), GatewayError> {
    match bind(listen) {
        Ok(_unbound_again) => Ok(()),
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
    // A restarted station is not to wait for the connections of the last one to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    Ok(socket)
}

/// Counts what is told of in the log only now and then.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    suppressed: u64,
    last_logged: Option<Instant>,
}

impl LogThrottle {
    /// One more; how many there are to tell of, if it is time.
    pub(super) fn count(&mut self, now: Instant) -> Option<u64> {
        self.suppressed += 1;
        if self.last_logged.is_some_and(|at| now < at + LOG_INTERVAL) {
            return None;
        }
        self.last_logged = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

fn log_opened(gateway: &'static str, common: &CommonOptions, listener: &TcpListener) {
    let listen = listener.local_addr().unwrap_or(common.listen);
    if listen.ip().is_loopback() {
        tracing::info!(gateway, %listen, "gateway open");
    } else {
        tracing::warn!(
            gateway,
            %listen,
            "gateway open to the network: whoever reaches this address may use it, and reads along"
        );
    }
}

/// Who is at a gateway.
#[derive(Debug, Default)]
struct ConnectionTable {
    total: usize,
    addresses: BTreeMap<IpAddr, AddressState>,
    /// What the log is told of visitors, by kind.
    log_throttles: BTreeMap<&'static str, LogThrottle>,
}

/// What the log is told of the visitors of one gateway: of each kind at once, and then every `LOG_INTERVAL`, with their
/// number, so that nobody fills it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ThrottledLog(Arc<Mutex<ConnectionTable>>);

impl ThrottledLog {
    /// One more of this kind; how many there are to tell of, if it is time.
    pub fn count(&self, kind: &'static str) -> Option<u64> {
        let mut connections = self.0.lock();
        connections
            .log_throttles
            .entry(kind)
            .or_default()
            .count(clock::now())
    }
}

#[derive(Debug)]
struct AddressState {
    connections: usize,
    bucket: TokenBucket,
}

/// A client's place: given back when it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    /// Where the client comes from.
    pub addr: SocketAddr,
    connections: Arc<Mutex<ConnectionTable>>,
    rate: u32,
}

/// Addresses that are remembered though nobody of theirs is connected: so that coming again does not fill a bucket.
const ADDRESSES_MAX: usize = 4_096;

impl ConnectionPermit {
    fn acquire(
        connections: &Arc<Mutex<ConnectionTable>>,
        addr: SocketAddr,
        limits: &ConnectionLimits,
    ) -> Option<Self> {
        let now = clock::now();
        let mut table = connections.lock();
        if table.total >= limits.connections {
            return None;
        }
        if table.addresses.len() >= ADDRESSES_MAX {
            table
                .addresses
                .retain(|_, address| address.connections > 0 || !address.bucket.is_full(limits.rate, now));
        }
        let full = table.addresses.len() >= ADDRESSES_MAX;
        let address = match table.addresses.entry(addr.ip()) {
            std::collections::btree_map::Entry::Vacant(_) if full => return None,
            std::collections::btree_map::Entry::Vacant(place) => place.insert(AddressState {
                connections: 0,
                bucket: TokenBucket::full(limits.rate, now),
            }),
            std::collections::btree_map::Entry::Occupied(place) => place.into_mut(),
        };
        if address.connections >= limits.per_address {
            return None;
        }
        address.connections += 1;
        table.total += 1;
        drop(table);
        Some(Self {
            addr,
            connections: Arc::clone(connections),
            rate: limits.rate,
        })
    }

    /// The place of somebody whom this station has called itself: nobody else's counts with it.
    pub fn for_outgoing(addr: SocketAddr, limits: &ConnectionLimits) -> Self {
        let connections = Arc::new(Mutex::new(ConnectionTable::default()));
        let address = AddressState {
            connections: 1,
            bucket: TokenBucket::full(limits.rate, clock::now()),
        };
        let mut inside = connections.lock();
        inside.total = 1;
        inside.addresses.insert(addr.ip(), address);
        drop(inside);
        Self {
            addr,
            connections,
            rate: limits.rate,
        }
    }

    /// What tells of it in the log; it may outlive the visit.
    pub fn throttled_log(&self) -> ThrottledLog {
        ThrottledLog(Arc::clone(&self.connections))
    }

    /// Waits until one more message of this address may be taken.
    pub async fn throttle(&self) {
        loop {
            let now = clock::now();
            let wait = {
                let mut connections = self.connections.lock();
                let address = connections.addresses.get_mut(&self.addr.ip());
                address.and_then(|address| address.bucket.take(self.rate, now).err())
            };
            let Some(wait) = wait else { return };
            clock::sleep_until(now + wait).await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut connections = self.connections.lock();
        connections.total -= 1;
        if let Some(address) = connections.addresses.get_mut(&self.addr.ip()) {
            address.connections -= 1;
        }
    }
}

/// Tokens that come back with time: one second's worth may be taken at once.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full one.
    pub fn full(rate: u32, now: Instant) -> Self {
        Self {
            tokens: rate.into(),
            at: now,
        }
    }

    fn refill(&mut self, rate: u32, now: Instant) {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate);
        self.tokens = (self.tokens + grown).min(rate.into());
        self.at = self.at.max(now);
    }

    fn is_full(mut self, rate: u32, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= f64::from(rate)
    }

    /// Takes one token.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(
            (1.0 - self.tokens) / f64::from(rate.max(1)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn token_bucket_allows_a_burst_of_one_second_then_its_rate() {
        let start = clock::now();
        let mut bucket = TokenBucket::full(10, start);
        for _ in 0..10 {
            assert_eq!(bucket.take(10, start), Ok(()));
        }
        let wait = bucket.take(10, start).expect_err("empty");
        assert!(
            wait > Duration::from_millis(99) && wait <= Duration::from_millis(101),
            "{wait:?}"
        );
        assert_eq!(bucket.take(10, start + Duration::from_millis(101)), Ok(()));
        assert!(bucket.take(10, start + Duration::from_millis(101)).is_err());
        assert!(bucket.is_full(10, start + Duration::from_secs(2)));
    }

    #[test]
    fn log_throttle_logs_first_event_then_once_per_interval() {
        let start = clock::now();
        let mut told = LogThrottle::default();
        assert_eq!(told.count(start), Some(1));
        for _ in 0..1_000 {
            assert_eq!(told.count(start + LOG_INTERVAL / 2), None);
        }
        assert_eq!(told.count(start + LOG_INTERVAL), Some(1_001));
    }

    #[tokio::test]
    async fn two_ports_of_one_gateway_share_connection_limits() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = crate::config::Config::for_host("st");
        let text = "[gateways.knut]\nlisten = \"127.0.0.1:0\"\nconnections_per_address = 1";
        config.read_file(std::path::Path::new("c"), text).expect("reads");
        let common = config.gateways.knut.expect("open").common;
        let context = crate::gateways::tests::test_context(crate::fleet::Fleet::local().0, dir.path()).await;
        let first = GatewayListener::open("knut", &common, &context).expect("listens");
        let second = GatewayListener::open("knut", &common, &context)
            .expect("listens")
            .share_limits_with(&first);
        let ports = [&first, &second].map(|listener| listener.local_addr().expect("bound"));
        for listener in [first, second] {
            let serve = async |mut stream: TcpStream, _entrance: ConnectionPermit| {
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
        let connections = Arc::new(Mutex::new(ConnectionTable::default()));
        let visit = |text: &str| {
            let addr = text.parse().expect("an address");
            ConnectionPermit::acquire(&connections, addr, &ConnectionLimits::default()).expect("a place")
        };
        let (one, other) = (visit("10.0.0.1:1"), visit("10.0.0.2:1"));
        assert_eq!(one.throttled_log().count("closed"), Some(1));
        assert_eq!(other.throttled_log().count("closed"), None);
        assert_eq!(other.throttled_log().count("bad"), Some(1));
    }

    #[test]
    fn connections_are_limited_in_total_and_per_address() {
        let connections = Arc::new(Mutex::new(ConnectionTable::default()));
        let limits = ConnectionLimits {
            connections: 3,
            per_address: 2,
            ..ConnectionLimits::default()
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
}
