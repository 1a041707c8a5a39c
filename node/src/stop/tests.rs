//! The stop's task with a real command and a journal in memory. No peer is linked: orders come by datagram.

use swarm_shared::net::endpoint;
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::journal::{JournalFile, MemoryDisk};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::stop::{StopOrder, StoredStop};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};

use super::*;
use crate::logging::LogRing;
use crate::status::StatusView;

const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    dir: tempfile::TempDir,
    root: FleetRoot,
    shutdown: CancellationToken,
    _links: mpsc::Sender<StopReceived>,
    datagrams: mpsc::Sender<Datagram>,
    stop_handle: StopHandle,
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn endpoint(root: &mut FleetRoot) -> Endpoint {
    let grant = root.grant(key(1).public(), Role::Node).expect("a grant");
    let member = Membership::new(root.public(), &key(1).public(), grant, root.state().clone());
    let config = endpoint::Config {
        kind: PeerKind::Node,
        name: NodeName::from_host("n1"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership: Some(member.expect("ours")),
        joins: None,
    };
    let identity = Identity::new(key(1)).expect("randomness");
    Endpoint::start(config, Arc::new(identity)).expect("started").0
}

impl Fixture {
    /// A node whose command appends a line to a file when it begins, and lasts.
    fn new() -> Self {
        Self::restored(StopMemory::default())
    }

    /// The same after a restart that found this.
    fn restored(memory: StopMemory) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let began = dir.path().join("began");
        let command = format!(
            "command = [\"/bin/sh\", \"-c\", \"echo x >>{}; sleep 60\"]",
            began.display()
        );
        let mut root = FleetRoot::create(key(3)).expect("a fleet");
        let (file, recovery) = JournalFile::open(MemoryDisk::default());
        let (journal, _dedup) = Journal::start(file, None, &recovery).expect("a thread");
        let (link_sender, links) = mpsc::channel(1);
        let (datagrams, heard) = mpsc::channel(DATAGRAMS_MAX);
        let shutdown = CancellationToken::new();
        let stop_handle = StopHandle::start(Setup {
            endpoint: endpoint(&mut root),
            config: Some(swarm_shared::config::toml::from_str(&command).expect("a command")),
            journal,
            restored: Restored { memory, damage: None },
            relay: None,
            links,
            datagrams: heard,
            status: Status::new(StatusView::default(), LogRing::default()),
            shutdown: shutdown.clone(),
            tasks: TaskTracker::new(),
        });
        Self {
            dir,
            root,
            shutdown,
            _links: link_sender,
            datagrams,
            stop_handle,
        }
    }

    async fn send_stop(&mut self, number: u64) {
        let grant = self.root.grant(key(2).public(), Role::Operator).expect("a grant");
        let order = StopOrder::new(&self.root.fingerprint(), key(2).public(), number, Selector::all());
        let bytes = order.encode(&key(2), &grant).expect("short");
        let from = ([127, 0, 0, 1], 1).into();
        self.datagrams
            .send(Datagram { bytes, from })
            .await
            .expect("heard");
    }

    async fn release(&self, number: u64) {
        let mut arguments = Arguments::default();
        arguments.kwargs.insert("number".to_owned(), number.into());
        assert_eq!(self.stop_handle.release(arguments).await.state, Outcome::Done);
    }

    async fn wait_for_runs(&self, times: usize) {
        let file = self.dir.path().join("began");
        let begun = async {
            while std::fs::read_to_string(&file).unwrap_or_default().lines().count() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, begun).await.expect("it runs");
    }
}

#[tokio::test]
async fn a_new_stop_after_release_restarts_the_stop_command() {
    let mut node = Fixture::new();
    node.send_stop(5).await;
    node.wait_for_runs(1).await;
    node.release(5).await;
    node.send_stop(6).await;
    node.wait_for_runs(2).await;
    node.shutdown.cancel();
}

#[tokio::test]
async fn held_node_runs_no_command_until_it_is_stopped() {
    let hold = StoredStop {
        issuer: key(1).public().id(),
        number: 3,
        held: true,
        command_result: None,
    };
    let mut node = Fixture::restored(StopMemory {
        active: Some(hold),
        issuers: Vec::new(),
    });
    let mut state = node.stop_handle.state();
    assert_eq!(*state.borrow_and_update(), StopState::Held);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!node.dir.path().join("began").exists());
    node.send_stop(5).await;
    node.wait_for_runs(1).await;
    assert_eq!(*state.borrow_and_update(), StopState::Stopped);
    node.release(5).await;
    assert_eq!(*state.borrow_and_update(), StopState::Free);
    node.shutdown.cancel();
}

#[tokio::test]
async fn hold_ends_by_its_own_number() {
    let hold = StoredStop {
        issuer: key(1).public().id(),
        number: 3,
        held: true,
        command_result: None,
    };
    let node = Fixture::restored(StopMemory {
        active: Some(hold),
        issuers: Vec::new(),
    });
    let mut arguments = Arguments::default();
    arguments.kwargs.insert("number".to_owned(), 0.into());
    assert_eq!(node.stop_handle.release(arguments).await.state, Outcome::Refused);
    node.release(3).await;
    assert_eq!(*node.stop_handle.state().borrow(), StopState::Free);
    assert!(!node.dir.path().join("began").exists());
    node.shutdown.cancel();
}

/// On a slow disk the record of a stop may be written a second time, behind the one of its release.
#[tokio::test]
async fn a_released_stop_does_not_return_after_a_restart() {
    let disk = MemoryDisk::default();
    let (file, recovery) = JournalFile::open(disk.clone());
    let (journal, _dedup) = Journal::start(file, None, &recovery).expect("a thread");
    let mut root = FleetRoot::create(key(3)).expect("a fleet");
    let mut task = Task {
        endpoint: endpoint(&mut root),
        config: None,
        receiver: StopReceiver::new(false, Vec::new(), None),
        state: watch::channel(StopState::Free).0,
        releasing: None,
        unwritten: false,
        stations: BTreeMap::new(),
        appends: PendingAppends::new(journal, APPENDS_MAX),
        ended: mpsc::channel(1).0,
        running: None,
        relay: None,
        status: Status::new(StatusView::default(), LogRing::default()),
        shutdown: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    let order = StopId {
        issuer: key(2).public().id(),
        number: 5,
    };
    let mut dedup = DedupTable::default();
    dedup.apply(&Write::Stopped(order).record().expect("a record"));
    assert!(dedup.latch().is_some());
    task.on_written(Write::Stopped(order), Ok(()));
    let (write, written) = task.appends.next().await;
    assert_eq!(written, Ok(()));
    dedup.apply(&write.record().expect("a record"));
    assert_eq!(dedup.latch(), None);
}
