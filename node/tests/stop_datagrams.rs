//! A real daemon that receives emergency stops by datagram, without any link.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use swarm_node::fleet_store::FleetStore;
use swarm_node::state::StateDir;
use swarm_node::status::{Request, query};
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{StopOrder, is_stop_datagram};
use swarm_shared::proto::trust::{FleetRoot, Grant, Membership, Role, Signed, SigningKey};
use tempfile::TempDir;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(dir: &Path) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-node"));
    command
        .env("SWARM_NODE_STATE_DIR", dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let daemon = Daemon(command.spawn().expect("started"));
    wait("it answers", || {
        status(dir).is_some_and(|view| view["listen"].is_string())
    });
    daemon
}

fn status(dir: &Path) -> Option<Value> {
    let text = query(&StateDir::socket(dir), &Request::Status).ok()??;
    serde_json::from_str(&text).ok()
}

fn is_stopped(dir: &Path) -> bool {
    status(dir).expect("it runs")["stopped"].is_string()
}

fn wait(what: &str, mut come: impl FnMut() -> bool) {
    for _ in 0..400 {
        if come() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not in time: {what}");
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

struct Fixture {
    dir: TempDir,
    root: FleetRoot,
    port: u16,
    listener: UdpSocket,
}

impl Fixture {
    /// The listener shares the port, as a neighbour would.
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let free = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let landed = dir.path().join("landed");
        let config = format!(
            "name = \"n1\"\nlisten = \"127.0.0.1:0\"\nmdns = false\nping_port = {port}\n[emergency_stop]\ncommand = \
             [\"/bin/sh\", \"-c\", \"echo x >>{}\"]\n",
            landed.display()
        );
        std::fs::write(dir.path().join("config.toml"), config).expect("written");
        let own = identity::load_or_create(dir.path(), KeyFile::Identity).expect("a key");
        let mut root = FleetRoot::create(key(1)).expect("a fleet");
        let grant = root.grant(own.public(), Role::Node).expect("a grant");
        root.revoke(key(12).public()).expect("room");
        let member = Membership::new(root.public(), &own.public(), grant, root.state().clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(FleetStore::new(dir.path()).save_fleet(&member.expect("ours")));
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("a socket");
        listener.set_reuse_address(true).expect("shared");
        let any = std::net::SocketAddr::from(([0, 0, 0, 0], port));
        listener.bind(&any.into()).expect("bound");
        let listener: UdpSocket = listener.into();
        listener
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        Self {
            dir,
            root,
            port,
            listener,
        }
    }

    fn grant(&mut self, seed: u8, role: Role) -> Signed<Grant> {
        self.root.grant(key(seed).public(), role).expect("a grant")
    }

    fn order(&self, seed: u8, number: u64) -> StopOrder {
        let all = Selector::all();
        StopOrder::new(&self.root.fingerprint(), key(seed).public(), number, all)
    }

    /// To the broadcast address of loopback, so that every socket on the port receives it.
    fn broadcast(&self, bytes: &[u8]) {
        let mouth = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        mouth.set_broadcast(true).expect("set");
        mouth
            .send_to(bytes, ("127.255.255.255", self.port))
            .expect("sent");
    }

    fn landings(&self) -> usize {
        let text = std::fs::read_to_string(self.dir.path().join("landed")).unwrap_or_default();
        text.lines().count()
    }
}

#[test]
fn a_stop_datagram_latches_and_is_relayed_once() {
    let mut place = Fixture::new();
    let daemon = start(place.dir.path());
    let grant = place.grant(10, Role::Operator);
    let stop = place.order(10, 5).encode(&key(10), &grant).expect("short");
    place.broadcast(&stop);
    wait("it is stopped", || is_stopped(place.dir.path()));
    wait("its command runs", || place.landings() == 1);
    // Our own datagram comes first, then the node's relay.
    let mut heard = 0;
    let mut buffer = [0; 1_500];
    while heard < 2 {
        let (length, _) = place.listener.recv_from(&mut buffer).expect("passed on");
        heard += usize::from(is_stop_datagram(&buffer[..length]));
        assert_eq!(&buffer[..length], &stop[..], "as it came");
    }
    for _ in 0..5 {
        place.broadcast(&stop);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(place.landings(), 1, "a repeat does nothing");
    // The stop is in the journal before this: the end of the command is written after it.
    drop(daemon);
    let _daemon = start(place.dir.path());
    assert!(is_stopped(place.dir.path()), "a kill does not release");
}

#[test]
fn forged_stops_are_ignored() {
    let mut place = Fixture::new();
    let _daemon = start(place.dir.path());
    let operator = place.grant(10, Role::Operator);
    let observer = place.grant(11, Role::Observer);
    let mut stranger = FleetRoot::create(key(2)).expect("a fleet");
    let theirs = stranger.grant(key(10).public(), Role::Admin).expect("a grant");
    let claimed = Grant {
        fleet: place.root.public(),
        key: key(12).public(),
        role: Role::Operator,
        capabilities: Vec::new(),
        serial: 99,
    };
    let of_the_revoked = Signed::sign(&claimed, &key(1)).expect("short");
    let mut other_fleet = place.order(10, 5);
    other_fleet.fleet = stranger.fingerprint().prefix();
    let mut turned = place.order(10, 5).encode(&key(10), &operator).expect("short");
    turned[60] ^= 1;
    let forged = [
        place.order(10, 5).encode(&key(13), &operator).expect("short"),
        place.order(11, 5).encode(&key(11), &observer).expect("short"),
        place
            .order(12, 5)
            .encode(&key(12), &of_the_revoked)
            .expect("short"),
        place.order(10, 5).encode(&key(10), &theirs).expect("short"),
        other_fleet.encode(&key(10), &theirs).expect("short"),
        turned,
    ];
    for _ in 0..3 {
        forged.iter().for_each(|bytes| place.broadcast(bytes));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_stopped(place.dir.path()));
    assert_eq!(place.landings(), 0);
    // The node has received datagrams all the time.
    let sound = place.order(10, 5).encode(&key(10), &operator).expect("short");
    place.broadcast(&sound);
    wait("the sound one stops it", || is_stopped(place.dir.path()));
}
