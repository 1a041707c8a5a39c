//! The stop at work with a real command and a journal in memory. Nobody is linked: orders come by datagram.

use swarm_shared::net::endpoint;
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::journal::{JournalFile, MemoryDisk};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::stop::StopOrder;
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};

use super::*;
use crate::logging::LogRing;
use crate::status::View;

const SOON: Duration = Duration::from_secs(20);

struct Place {
    dir: tempfile::TempDir,
    root: FleetRoot,
    stop: CancellationToken,
    _links: mpsc::Sender<StopHeard>,
    datagrams: mpsc::Sender<Datagram>,
    stopping: Stopping,
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

impl Place {
    /// Its command notes that it began, and lasts.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let began = dir.path().join("began");
        let command = format!(
            "command = [\"/bin/sh\", \"-c\", \"echo x >>{}; sleep 60\"]",
            began.display()
        );
        let mut root = FleetRoot::create(key(3)).expect("a fleet");
        let (file, recovery) = JournalFile::open(MemoryDisk::default());
        let (journal, ledger) = Journal::start(file, &recovery).expect("a thread");
        let (quiet, links) = mpsc::channel(1);
        let (datagrams, heard) = mpsc::channel(DATAGRAMS_MAX);
        let stop = CancellationToken::new();
        let stopping = Stopping::start(Setup {
            endpoint: endpoint(&mut root),
            config: Some(toml::from_str(&command).expect("a command")),
            journal,
            ledger,
            relay: None,
            links,
            datagrams: heard,
            status: Status::new(View::default(), LogRing::default()),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        });
        Self {
            dir,
            root,
            stop,
            _links: quiet,
            datagrams,
            stopping,
        }
    }

    async fn order(&mut self, number: u64) {
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
        assert_eq!(self.stopping.release(arguments).await.state, Outcome::Done);
    }

    async fn began(&self, times: usize) {
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
async fn a_stop_after_a_release_runs_the_command_anew_though_it_is_still_at_work() {
    let mut place = Place::new();
    place.order(5).await;
    place.began(1).await;
    place.release(5).await;
    place.order(6).await;
    place.began(2).await;
    place.stop.cancel();
}

/// A slow disk has an order written a second time, behind its release.
#[tokio::test]
async fn what_was_released_does_not_come_back_with_a_restart() {
    let (writes, mut to_write) = mpsc::channel(WRITES_MAX);
    let mut root = FleetRoot::create(key(3)).expect("a fleet");
    let mut task = Task {
        endpoint: endpoint(&mut root),
        config: None,
        desk: restored(&Ledger::default(), false),
        in_force: watch::channel(None).0,
        stations: BTreeMap::new(),
        writes,
        ended: mpsc::channel(1).0,
        running: None,
        relay: None,
        status: Status::new(View::default(), LogRing::default()),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    let order = Latch {
        issuer: key(2).public().id(),
        number: 5,
    };
    task.take_written(Write::Stopped(order), Ok(()));
    let mut ledger = Ledger::default();
    ledger.apply(&Write::Stopped(order).record());
    assert!(ledger.latch().is_some());
    ledger.apply(&to_write.try_recv().expect("written").record());
    assert_eq!(ledger.latch(), None);
}
