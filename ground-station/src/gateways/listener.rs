//! Where visitors wait: listening for one door, and its bounds.
//!
//! | bound | beyond it |
//! |---|---|
//! | connections in all, and of one address | closed at once, before anything is read |
//! | messages of one address in a second | the next one waits; the connection is not read meanwhile |
//!
//! How long a message may be, and how long a silence, is for the door to keep: protocols differ in what they are.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::socket::{self, KeepaliveConfig, Purpose};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{DoorError, House};
use crate::config::gateways::{Common, Limits};

/// Pause after a failed accept: out of descriptors, most likely, and others have to close some first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often connections are told of in the log, let in and refused.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Listens for one door.
#[derive(Debug)]
pub struct Hall {
    door: &'static str,
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
    tasks: TaskTracker,
    book: Arc<Mutex<Book>>,
}

impl Hall {
    /// Binds a door's address, and warns if others than this machine reach it.
    ///
    /// # Errors
    /// [`DoorError::Listen`].
    pub fn open(door: &'static str, common: &Common, house: &House) -> Result<Self, DoorError> {
        let listener = bind(common.listen)
            .and_then(|socket| socket.listen(common.limits.waiting))
            .map_err(|error| cannot_listen(door, common.listen, &error))?;
        announce(door, common, &listener);
        Ok(Self {
            door,
            listener,
            limits: common.limits.clone(),
            stop: house.stop.clone(),
            tasks: house.tasks.clone(),
            book: Arc::default(),
        })
    }

    /// As another port of the same door: who is inside there counts here, and the reverse.
    pub fn beside(mut self, other: &Self) -> Self {
        self.book = Arc::clone(&other.book);
        self
    }

    /// The address with its real port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listens(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Lets visitors in until the house closes; each is served by a task of its own, which the closing ends.
    pub async fn receive<S>(self, serve: impl Fn(TcpStream, Entrance) -> S)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        self.receive_some(|_anybody| true, serve).await;
    }

    /// The same, of addresses that are welcome only; from the others nothing is read.
    pub async fn receive_some<S>(
        self,
        is_welcome: impl Fn(IpAddr) -> bool,
        serve: impl Fn(TcpStream, Entrance) -> S,
    ) where
        S: Future<Output = ()> + Send + 'static,
    {
        let mut unwelcome = Told::default();
        let (mut turned_away, mut let_in) = (Told::default(), Told::default());
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(door = self.door, %error, "cannot let anybody in");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !is_welcome(addr.ip()) {
                if let Some(count) = unwelcome.count(clock::now()) {
                    tracing::warn!(door = self.door, %addr, count, "not welcome at this door");
                }
                continue;
            }
            let Some(entrance) = Entrance::take(&self.book, addr, &self.limits) else {
                if let Some(count) = turned_away.count(clock::now()) {
                    tracing::warn!(door = self.door, %addr, count, "too many connections at this door");
                }
                continue;
            };
            let tuned = socket::tune(&stream, &KeepaliveConfig::default(), Purpose::Control);
            if let Err(error) = tuned {
                tracing::debug!(door = self.door, %addr, %error, "a connection that ended at once");
                continue;
            }
            if let Some(count) = let_in.count(clock::now()) {
                tracing::info!(door = self.door, %addr, count, "visitors at this door");
            }
            let served = serve(stream, entrance);
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                stop.run_until_cancelled(served).await;
            });
        }
    }
}

/// Finds whether a door could listen there now.
pub(super) fn try_place(door: &'static str, listen: SocketAddr) -> Result<(), DoorError> {
    match bind(listen) {
        Ok(_unbound_again) => Ok(()),
        Err(error) => Err(cannot_listen(door, listen, &error)),
    }
}

fn cannot_listen(door: &'static str, listen: SocketAddr, error: &std::io::Error) -> DoorError {
    DoorError::Listen {
        door,
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
pub(super) struct Told {
    untold: u64,
    at: Option<Instant>,
}

impl Told {
    /// One more; how many there are to tell of, if it is time.
    pub(super) fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.at.is_some_and(|at| now < at + TELL_EVERY) {
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

fn announce(door: &'static str, common: &Common, listener: &TcpListener) {
    let listen = listener.local_addr().unwrap_or(common.listen);
    if listen.ip().is_loopback() {
        tracing::info!(door, %listen, "door open");
    } else {
        tracing::warn!(
            door,
            %listen,
            "door open to the network: whoever reaches this address may use it, and reads along"
        );
    }
}

/// Who is at a door.
#[derive(Debug, Default)]
struct Book {
    inside: usize,
    addresses: BTreeMap<IpAddr, Address>,
    /// What the log is told of visitors, by kind.
    told: BTreeMap<&'static str, Told>,
}

/// What the log is told of the visitors of one door: of each kind at once, and then every `TELL_EVERY`, with their
/// number, so that nobody fills it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Book>>);

impl Log {
    /// One more of this kind; how many there are to tell of, if it is time.
    pub fn count(&self, kind: &'static str) -> Option<u64> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.told.entry(kind).or_default().count(clock::now())
    }
}

#[derive(Debug)]
struct Address {
    connections: usize,
    bucket: Bucket,
}

/// A visitor's place: given back when it is dropped.
#[derive(Debug)]
pub struct Entrance {
    /// Where the visitor comes from.
    pub addr: SocketAddr,
    book: Arc<Mutex<Book>>,
    rate: u32,
}

/// Addresses that are remembered though nobody of theirs is connected: so that coming again does not fill a bucket.
const ADDRESSES_MAX: usize = 4_096;

impl Entrance {
    fn take(book: &Arc<Mutex<Book>>, addr: SocketAddr, limits: &Limits) -> Option<Self> {
        let now = clock::now();
        let mut inside = book.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.inside >= limits.connections {
            return None;
        }
        if inside.addresses.len() >= ADDRESSES_MAX {
            inside
                .addresses
                .retain(|_, address| address.connections > 0 || !address.bucket.is_full(limits.rate, now));
        }
        let full = inside.addresses.len() >= ADDRESSES_MAX;
        let address = match inside.addresses.entry(addr.ip()) {
            std::collections::btree_map::Entry::Vacant(_) if full => return None,
            std::collections::btree_map::Entry::Vacant(place) => place.insert(Address {
                connections: 0,
                bucket: Bucket::full(limits.rate, now),
            }),
            std::collections::btree_map::Entry::Occupied(place) => place.into_mut(),
        };
        if address.connections >= limits.per_address {
            return None;
        }
        address.connections += 1;
        inside.inside += 1;
        drop(inside);
        Some(Self {
            addr,
            book: Arc::clone(book),
            rate: limits.rate,
        })
    }

    /// The place of somebody whom this station has called itself: nobody else's counts with it.
    pub fn alone(addr: SocketAddr, limits: &Limits) -> Self {
        let book = Arc::new(Mutex::new(Book::default()));
        let address = Address {
            connections: 1,
            bucket: Bucket::full(limits.rate, clock::now()),
        };
        let mut inside = book.lock().unwrap_or_else(PoisonError::into_inner);
        inside.inside = 1;
        inside.addresses.insert(addr.ip(), address);
        drop(inside);
        Self {
            addr,
            book,
            rate: limits.rate,
        }
    }

    /// What tells of it in the log; it may outlive the visit.
    pub fn log(&self) -> Log {
        Log(Arc::clone(&self.book))
    }

    /// Waits until one more message of this address may be taken.
    pub async fn turn(&self) {
        loop {
            let now = clock::now();
            let wait = {
                let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                let address = book.addresses.get_mut(&self.addr.ip());
                address.and_then(|address| address.bucket.take(self.rate, now).err())
            };
            let Some(wait) = wait else { return };
            clock::sleep_until(now + wait).await;
        }
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.inside -= 1;
        if let Some(address) = book.addresses.get_mut(&self.addr.ip()) {
            address.connections -= 1;
        }
    }
}

/// Tokens that come back with time: one second's worth may be taken at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: u32, now: Instant) -> Self {
        Self {
            tokens: rate.into(),
            at: now,
        }
    }

    fn fill(&mut self, rate: u32, now: Instant) {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate);
        self.tokens = (self.tokens + grown).min(rate.into());
        self.at = self.at.max(now);
    }

    fn is_full(mut self, rate: u32, now: Instant) -> bool {
        self.fill(rate, now);
        self.tokens >= f64::from(rate)
    }

    /// Takes one token.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
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
    fn a_bucket_gives_a_second_at_once_and_then_its_rate() {
        let start = clock::now();
        let mut bucket = Bucket::full(10, start);
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
    fn the_log_is_told_at_once_and_then_now_and_then() {
        let start = clock::now();
        let mut told = Told::default();
        assert_eq!(told.count(start), Some(1));
        for _ in 0..1_000 {
            assert_eq!(told.count(start + TELL_EVERY / 2), None);
        }
        assert_eq!(told.count(start + TELL_EVERY), Some(1_001));
    }

    #[tokio::test]
    async fn two_ports_of_a_door_have_the_bounds_of_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = crate::config::Config::for_host("st");
        let text = "[doors.knut]\nlisten = \"127.0.0.1:0\"\nconnections_per_address = 1";
        config.read_file(std::path::Path::new("c"), text).expect("reads");
        let common = config.doors.knut.expect("open").common;
        let house = crate::gateways::tests::house(crate::fleet::Fleet::local().0, dir.path()).await;
        let first = Hall::open("knut", &common, &house).expect("listens");
        let second = Hall::open("knut", &common, &house)
            .expect("listens")
            .beside(&first);
        let ports = [&first, &second].map(|hall| hall.listens().expect("bound"));
        for hall in [first, second] {
            let serve = async |mut stream: TcpStream, _entrance: Entrance| {
                stream.write_all(b"in").await.ok();
                std::future::pending::<()>().await;
            };
            house.tasks.spawn(hall.receive(serve));
        }
        let mut inside = TcpStream::connect(ports[0]).await.expect("connects");
        let mut word = [0; 2];
        inside.read_exact(&mut word).await.expect("let in");
        let mut outside = TcpStream::connect(ports[1]).await.expect("connects");
        // A reset is an end too.
        let read = outside.read(&mut word).await.unwrap_or(0);
        assert_eq!(read, 0, "one of one address");
        house.stop.cancel();
    }

    #[test]
    fn visitors_of_one_door_do_not_fill_the_log_and_kinds_are_told_apart() {
        let book = Arc::new(Mutex::new(Book::default()));
        let visit = |text: &str| {
            let addr = text.parse().expect("an address");
            Entrance::take(&book, addr, &Limits::default()).expect("a place")
        };
        let (one, other) = (visit("10.0.0.1:1"), visit("10.0.0.2:1"));
        assert_eq!(one.log().count("closed"), Some(1));
        assert_eq!(other.log().count("closed"), None);
        assert_eq!(other.log().count("bad"), Some(1));
    }

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let book = Arc::new(Mutex::new(Book::default()));
        let limits = Limits {
            connections: 3,
            per_address: 2,
            ..Limits::default()
        };
        let take = |text: &str| Entrance::take(&book, text.parse().expect("an address"), &limits);
        let first = take("10.0.0.1:1").expect("a place");
        let _second = take("10.0.0.1:2").expect("a place");
        assert!(take("10.0.0.1:3").is_none(), "two of one address");
        let _third = take("10.0.0.2:1").expect("a place");
        assert!(take("10.0.0.3:1").is_none(), "three in all");
        drop(first);
        assert!(take("10.0.0.3:1").is_some());
    }
}
