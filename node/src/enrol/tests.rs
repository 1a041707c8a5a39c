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
use crate::status::View;

const PATIENCE: Duration = Duration::from_secs(20);

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

/// A station that answers codes, never answers who has none, and dials nobody.
struct Door {
    endpoint: Endpoint,
    invitation: Invitation,
    _events: Events,
    _desk: JoinHandle<()>,
}

impl Door {
    fn open() -> Self {
        let own = key();
        let mut root = FleetRoot::create(key()).expect("a fleet");
        let grant = root.grant(own.public(), Role::Admin).expect("a grant");
        let state = root.state().clone();
        let membership = Membership::new(root.public(), &own.public(), grant, state).expect("good");
        let (joins, mut knocks) = mpsc::channel::<Knock>(8);
        let (endpoint, events) = start(PeerKind::Station, own, Some(membership), Some(joins));
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let invitation = Invitation::new(root.fingerprint(), secret.clone(), vec![endpoint.listens()]);
        let mut invitations = Invitations::default();
        invitations
            .issue(secret, Role::Node, 1, clock::unix_time_ms(), 600_000)
            .expect("room");
        let desk = tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(knock) = knocks.recv().await {
                let Some(proof) = &knock.proof else {
                    waiting.push(knock.answer);
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
                let _gone: Result<(), Result<Box<Joined>, Refused>> = knock.answer.send(joined);
            }
        });
        Self {
            endpoint,
            invitation,
            _events: events,
            _desk: desk,
        }
    }
}

struct Device {
    events: Events,
    codes: mpsc::Sender<JoinRequest>,
    strangers: mpsc::Sender<SocketAddr>,
    _dir: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

impl Device {
    /// What comes of a code, and how it goes.
    async fn hand_in(
        &self,
        code: &Invitation,
    ) -> (
        impl Future<Output = Result<String, String>>,
        mpsc::Receiver<String>,
    ) {
        let (done, joined) = oneshot::channel();
        let (words, told) = mpsc::channel(JOIN_WORDS_MAX);
        let request = JoinRequest {
            code: code.to_string(),
            words,
            done,
        };
        self.codes.send(request).await.expect("running");
        let joined = async {
            let joined = timeout(PATIENCE, joined).await.expect("in time");
            joined.expect("answered")
        };
        (joined, told)
    }
}

/// A node that enrols; `change` says how it is configured.
fn device(change: impl FnOnce(&mut Enrolment)) -> Device {
    let dir = tempfile::tempdir().expect("a directory");
    let (endpoint, events) = start(PeerKind::Node, key(), None, None);
    let (codes, requests) = mpsc::channel(1);
    let (strangers_tx, strangers) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let mut enrolment = Enrolment {
        endpoint,
        keepalive: KeepaliveConfig::default(),
        code: None,
        adoptable: false,
        known: Vec::new(),
        strangers,
        requests,
        patience: PATIENCE,
        memory: Memory::new(dir.path()),
        status: Status::new(View::default(), LogRing::new()),
        stop: stop.clone(),
    };
    change(&mut enrolment);
    tokio::spawn(run(enrolment));
    Device {
        events,
        codes,
        strangers: strangers_tx,
        _dir: dir,
        _stop: stop.drop_guard(),
    }
}

#[tokio::test]
async fn a_node_dials_the_station_that_its_code_names() {
    let door = Door::open();
    let mut device = device(|enrolment| enrolment.code = Some(door.invitation.to_string()));
    let linked = timeout(PATIENCE, device.events.peers.recv()).await;
    let event = linked
        .expect("in time, though the station never dials")
        .expect("running");
    assert!(matches!(event, PeerEvent::Up { peer, .. } if peer.id == door.endpoint.id()));
}

#[tokio::test]
async fn one_that_waits_to_be_accepted_takes_a_code_at_once() {
    let door = Door::open();
    let addr = door.endpoint.listens();
    let device = device(|enrolment| {
        enrolment.adoptable = true;
        enrolment.known = vec![addr];
    });
    // By now it waits at the station's door.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (joined, _words) = device.hand_in(&door.invitation).await;
    assert_eq!(joined.await, Ok(door.invitation.fingerprint().short()));
}

#[tokio::test]
async fn whoever_hands_in_a_code_is_told_how_it_goes_and_a_station_that_is_heard_meanwhile_is_asked() {
    let door = Door::open();
    let addr = door.endpoint.listens();
    let nowhere = Invitation::new(
        *door.invitation.fingerprint(),
        door.invitation.secret().clone(),
        Vec::new(),
    );
    let device = device(|_| {});
    let (joined, mut words) = device.hand_in(&nowhere).await;
    let first = timeout(PATIENCE, words.recv()).await.expect("in time");
    assert!(
        first
            .as_deref()
            .is_some_and(|word| word.starts_with("no station has let this device in yet")),
        "{first:?}"
    );
    device.strangers.send(addr).await.expect("running");
    assert_eq!(joined.await, Ok(door.invitation.fingerprint().short()));
    let mut told = Vec::new();
    while let Some(word) = words.recv().await {
        told.push(word);
    }
    let wanted = [
        format!("looking at {addr}"),
        format!("found one at {addr}, waiting for its word"),
    ];
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn a_code_that_leads_nowhere_ends_with_what_to_do() {
    let door = Door::open();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = closed.local_addr().expect("bound");
    drop(closed);
    let lost = Invitation::new(
        *door.invitation.fingerprint(),
        door.invitation.secret().clone(),
        vec![addr],
    );
    let device = device(|enrolment| enrolment.patience = Duration::from_millis(600));
    let (joined, mut words) = device.hand_in(&lost).await;
    let why = joined.await.expect_err("nobody is there");
    assert!(why.contains(&format!("nothing listens at {addr}")), "{why}");
    assert!(
        why.contains("ground-station serve") && why.contains("--station"),
        "{why}"
    );
    let mut told = Vec::new();
    while let Some(word) = words.recv().await {
        told.push(word);
    }
    assert_eq!(
        told.len(),
        3,
        "each thing once, however often it is tried: {told:?}"
    );
    assert_eq!(told[0], format!("looking at {addr}"));
}

#[tokio::test]
async fn the_newest_stations_heard_of_stay_and_the_configured_ones() {
    let addr = |number: u16| SocketAddr::from(([10, 0, 0, 1], number));
    let mut kept = VecDeque::from([addr(1)]);
    device(|enrolment| {
        enrolment.known = vec![addr(1)];
        for number in 2..100 {
            assert!(enrolment.remember(&mut kept, addr(number)));
        }
        assert!(!enrolment.remember(&mut kept, addr(99)));
    });
    assert_eq!(kept.len(), STRANGERS_MAX + 1);
    assert!(kept.contains(&addr(1)) && kept.contains(&addr(99)) && !kept.contains(&addr(2)));
}

/// A station that let the node in has counted it as a member: the node enters, even if nobody waits for that any more.
#[test]
fn one_that_was_let_in_enters_though_whoever_handed_the_code_in_has_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let door = Door::open();
        let mut device = device(|_| {});
        // A disk that takes long: what is to be remembered waits for this thread.
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv().is_err());
        let (joined, mut words) = device.hand_in(&door.invitation).await;
        let found = async {
            while let Some(word) = words.recv().await {
                if word.starts_with("found") {
                    return;
                }
            }
            panic!("never found");
        };
        timeout(PATIENCE, found).await.expect("in time");
        // By now it has been let in.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(joined);
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(release);
        assert!(busy.await.expect("it ended"), "released by the drop");
        let linked = timeout(PATIENCE, device.events.peers.recv()).await;
        let event = linked.expect("it enters its fleet").expect("running");
        assert!(matches!(event, PeerEvent::Up { peer, .. } if peer.id == door.endpoint.id()));
    });
}
