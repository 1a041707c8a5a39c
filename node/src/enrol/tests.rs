use std::collections::BTreeMap;

use swarm_shared::net::endpoint::{Config, Events, JoinRequest as Knock};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::net::random;
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::message::{Joined, Refused};
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::invitations::Invitations;
use swarm_shared::proto::trust::invite::InviteSecret;
use swarm_shared::proto::trust::{FleetRoot, Role, SigningKey};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::logging::LogRing;
use crate::status::StatusView;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn key() -> SigningKey {
    SigningKey::from_seed(random::bytes().expect("randomness"))
}

fn start(
    kind: PeerKind,
    key: SigningKey,
    membership: Option<Membership>,
    joins: Option<mpsc::Sender<Knock>>,
) -> (Endpoint, Events) {
    let config = Config {
        kind,
        name: NodeName::from_host("one"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership,
        joins,
    };
    let identity = Identity::new(key).expect("randomness");
    Endpoint::start(config, Arc::new(identity)).expect("started")
}

/// A station that answers codes, keeps requests without a code waiting, and dials no peer.
struct TestStation {
    endpoint: Endpoint,
    invitation: Invitation,
    _events: Events,
    _joins_task: JoinHandle<()>,
}

impl TestStation {
    fn start() -> Self {
        let own = key();
        let mut root = FleetRoot::create(key()).expect("a fleet");
        let grant = root.grant(own.public(), Role::Admin).expect("a grant");
        let state = root.state().clone();
        let membership = Membership::new(root.public(), &own.public(), grant, state).expect("good");
        let (joins, mut knocks) = mpsc::channel::<Knock>(8);
        let (endpoint, events) = start(PeerKind::Station, own, Some(membership), Some(joins));
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let invitation = Invitation::new(root.fingerprint(), secret.clone(), vec![endpoint.listen_addr()]);
        let mut invitations = Invitations::default();
        invitations
            .issue(secret, Role::Node, 1, clock::unix_time_ms(), 600_000)
            .expect("room");
        let joins_task = tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(knock) = knocks.recv().await {
                let Some(proof) = &knock.proof else {
                    waiting.push(knock.reply);
                    continue;
                };
                let now = clock::unix_time_ms();
                let admitted = invitations.redeem(proof, &knock.exporter, now, &knock.key);
                let joined = admitted.map(|admission| {
                    let grant = root.grant(knock.key, admission.role).expect("a grant");
                    Box::new(Joined {
                        root: root.public(),
                        grant,
                        fleet_state: root.state().clone(),
                        proof: Some(admission.proof),
                    })
                });
                let _gone: Result<(), Result<Box<Joined>, Refused>> = knock.reply.send(joined);
            }
        });
        Self {
            endpoint,
            invitation,
            _events: events,
            _joins_task: joins_task,
        }
    }
}

struct TestNode {
    events: Events,
    join_sender: mpsc::Sender<JoinRequest>,
    discovered: mpsc::Sender<SocketAddr>,
    _dir: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

impl TestNode {
    /// The result of a code, and the progress messages.
    async fn submit_code(
        &self,
        code: &Invitation,
    ) -> (
        impl Future<Output = Result<String, String>>,
        mpsc::Receiver<String>,
    ) {
        let (done, joined) = oneshot::channel();
        let (updates, received) = mpsc::channel(JOIN_UPDATES_MAX);
        let request = JoinRequest {
            code: code.to_string(),
            updates,
            reply: done,
        };
        self.join_sender.send(request).await.expect("running");
        let joined = async {
            let joined = timeout(TEST_TIMEOUT, joined).await.expect("in time");
            joined.expect("answered")
        };
        (joined, received)
    }
}

/// A node that enrols; `change` adapts its configuration.
fn device(change: impl FnOnce(&mut Enrolment)) -> TestNode {
    let dir = tempfile::tempdir().expect("a directory");
    let (endpoint, events) = start(PeerKind::Node, key(), None, None);
    let (codes, requests) = mpsc::channel(1);
    let (discovered_tx, discovered) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let mut enrolment = Enrolment {
        endpoint,
        keepalive: KeepaliveConfig::default(),
        code: None,
        adoptable: false,
        configured: Vec::new(),
        discovered,
        requests,
        timeout: TEST_TIMEOUT,
        store: FleetStore::new(dir.path()),
        status: Status::new(StatusView::default(), LogRing::new()),
        shutdown: shutdown.clone(),
    };
    change(&mut enrolment);
    tokio::spawn(run(enrolment));
    TestNode {
        events,
        join_sender: codes,
        discovered: discovered_tx,
        _dir: dir,
        _stop: shutdown.drop_guard(),
    }
}

#[tokio::test]
async fn a_node_dials_the_station_that_its_code_names() {
    let station = TestStation::start();
    let mut device = device(|enrolment| enrolment.code = Some(station.invitation.to_string()));
    let linked = timeout(TEST_TIMEOUT, device.events.peers.recv()).await;
    let event = linked
        .expect("in time, though the station never dials")
        .expect("running");
    assert!(matches!(event, PeerEvent::Connected { peer, .. } if peer.id == station.endpoint.id()));
}

#[tokio::test]
async fn a_code_is_tried_while_waiting_for_acceptance() {
    let station = TestStation::start();
    let addr = station.endpoint.listen_addr();
    let device = device(|enrolment| {
        enrolment.adoptable = true;
        enrolment.configured = vec![addr];
    });
    // By now it waits for the operator's acceptance.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (joined, _words) = device.submit_code(&station.invitation).await;
    assert_eq!(joined.await, Ok(station.invitation.fingerprint().short()));
}

#[tokio::test]
async fn join_reports_progress_and_tries_discovered_stations() {
    let station = TestStation::start();
    let addr = station.endpoint.listen_addr();
    let nowhere = Invitation::new(
        *station.invitation.fingerprint(),
        station.invitation.secret().clone(),
        Vec::new(),
    );
    let device = device(|_| {});
    let (joined, mut updates) = device.submit_code(&nowhere).await;
    let first = timeout(TEST_TIMEOUT, updates.recv()).await.expect("in time");
    assert!(
        first
            .as_deref()
            .is_some_and(|update| update.starts_with("no station has let this device in yet")),
        "{first:?}"
    );
    device.discovered.send(addr).await.expect("running");
    assert_eq!(joined.await, Ok(station.invitation.fingerprint().short()));
    let mut received = Vec::new();
    while let Some(update) = updates.recv().await {
        received.push(update);
    }
    let wanted = [
        format!("connecting to {addr}"),
        format!("found one at {addr}, waiting for its answer"),
    ];
    assert_eq!(received, wanted);
}

#[tokio::test]
async fn an_unreachable_code_fails_with_advice() {
    let station = TestStation::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = closed.local_addr().expect("bound");
    drop(closed);
    let lost = Invitation::new(
        *station.invitation.fingerprint(),
        station.invitation.secret().clone(),
        vec![addr],
    );
    let device = device(|enrolment| enrolment.timeout = Duration::from_millis(600));
    let (joined, mut updates) = device.submit_code(&lost).await;
    let why = joined.await.expect_err("no station is there");
    assert!(why.contains(&format!("nothing listens at {addr}")), "{why}");
    assert!(
        why.contains("ground-station serve") && why.contains("--station"),
        "{why}"
    );
    let mut received = Vec::new();
    while let Some(update) = updates.recv().await {
        received.push(update);
    }
    assert_eq!(
        received.len(),
        3,
        "each thing once, however often it is tried: {received:?}"
    );
    assert_eq!(received[0], format!("connecting to {addr}"));
}

#[tokio::test]
async fn newest_and_configured_stations_are_kept() {
    let addr = |number: u16| SocketAddr::from(([10, 0, 0, 1], number));
    let mut kept = VecDeque::from([addr(1)]);
    device(|enrolment| {
        enrolment.configured = vec![addr(1)];
        for number in 2..100 {
            assert!(enrolment.add_candidate(&mut kept, addr(number)));
        }
        assert!(!enrolment.add_candidate(&mut kept, addr(99)));
    });
    assert_eq!(kept.len(), DISCOVERED_MAX + 1);
    assert!(kept.contains(&addr(1)) && kept.contains(&addr(99)) && !kept.contains(&addr(2)));
}

/// The station has counted the node as a member: the node joins, even if the user has left.
#[test]
fn an_admitted_node_joins_though_the_requester_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let station = TestStation::start();
        let mut device = device(|_| {});
        // The disk is slow: storing waits for this thread.
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv().is_err());
        let (joined, mut updates) = device.submit_code(&station.invitation).await;
        let found = async {
            while let Some(update) = updates.recv().await {
                if update.starts_with("found") {
                    return;
                }
            }
            panic!("never found");
        };
        timeout(TEST_TIMEOUT, found).await.expect("in time");
        // By now the station has admitted it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(joined);
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(release);
        assert!(busy.await.expect("it ended"), "released by the drop");
        let linked = timeout(TEST_TIMEOUT, device.events.peers.recv()).await;
        let event = linked.expect("it enters its fleet").expect("running");
        assert!(matches!(event, PeerEvent::Connected { peer, .. } if peer.id == station.endpoint.id()));
    });
}
