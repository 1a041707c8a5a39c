//! Being taken into a fleet, with a code and without, and every way in which that is refused.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::JoinRequest;
use swarm_shared::net::join::{JoinError, join};
use swarm_shared::net::random;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::message::{Joined, RefusalCode, Refused};
use swarm_shared::proto::trust::invitations::Invitations;
use swarm_shared::proto::trust::invite::{Invitation, InviteSecret};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role};
use tokio::sync::mpsc;

use crate::common::{Program, Setup, fleet};

/// A station's memory of whom it invited.
struct Desk {
    root: FleetRoot,
    invitations: Invitations,
}

impl Desk {
    fn answer(&mut self, request: &JoinRequest) -> Result<Box<Joined>, Refused> {
        let Some(proof) = &request.proof else {
            return Err(Refused::new(RefusalCode::Pending, "wait for the operator"));
        };
        let now = clock::unix_time_ms();
        let admission = self
            .invitations
            .redeem(proof, &request.exporter, now, &request.key)?;
        let refused = |error: swarm_shared::proto::trust::TrustError| {
            Refused::new(RefusalCode::Revoked, error.to_string())
        };
        Ok(Box::new(Joined {
            root: self.root.public(),
            grant: self.root.grant(request.key, admission.role).map_err(refused)?,
            fleet_state: self.root.state().clone(),
            proof: Some(admission.proof),
        }))
    }
}

/// A station that takes others in.
struct Door {
    station: Program,
    desk: Arc<Mutex<Desk>>,
}

impl Door {
    fn open() -> Self {
        let mut root = fleet();
        let (joins, mut requests) = mpsc::channel::<JoinRequest>(128);
        let mut station = Setup::station(&mut root);
        station.joins = Some(joins);
        let station = station.start();
        let invitations = Invitations::default();
        let desk = Arc::new(Mutex::new(Desk { root, invitations }));
        let answering = Arc::clone(&desk);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let answer = answering.lock().expect("no panic").answer(&request);
                request.answer.send(answer).ok();
            }
        });
        Self { station, desk }
    }

    fn invite(&self, uses: u32, valid_ms: u64) -> Invitation {
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let mut desk = self.desk.lock().expect("no panic");
        let now = clock::unix_time_ms();
        desk.invitations
            .issue(secret.clone(), Role::Node, uses, now, valid_ms)
            .expect("room");
        Invitation::new(desk.root.fingerprint(), secret, [self.addr()])
    }

    fn addr(&self) -> SocketAddr {
        self.station.endpoint.listens()
    }
}

const LONG_MS: u64 = 900_000;

fn newcomer() -> Program {
    Setup::stranger(PeerKind::Node, "drone-9").start()
}

async fn ask(who: &Program, addr: SocketAddr, code: Option<&Invitation>) -> Result<Membership, JoinError> {
    join(who.endpoint.local(), &KeepaliveConfig::default(), addr, code).await
}

fn refusal(answer: Result<Membership, JoinError>) -> Refused {
    let error = answer.expect_err("refused");
    let JoinError::Refused(refused) = error else {
        panic!("{error}")
    };
    refused
}

#[tokio::test]
async fn a_good_code_lets_a_node_in_and_it_links() {
    let mut door = Door::open();
    let code: Invitation = door
        .invite(1, LONG_MS)
        .to_string()
        .parse()
        .expect("what was printed");
    let mut node = newcomer();
    let membership = ask(&node, code.addresses()[0], Some(&code))
        .await
        .expect("let in");
    assert_eq!(membership.own_role(), Role::Node);
    node.dial(door.addr()).await;
    node.endpoint.adopt(Arc::new(membership)).await;
    assert_eq!(node.up().await.0.id, door.station.id());
    assert_eq!(door.station.up().await.0.name.as_str(), "drone-9");
}

#[tokio::test]
async fn a_code_lets_in_as_many_keys_as_it_says_and_each_as_often_as_it_asks() {
    let door = Door::open();
    let code = door.invite(1, LONG_MS);
    let (first, second) = (newcomer(), newcomer());
    for _ in 0..2 {
        ask(&first, door.addr(), Some(&code)).await.expect("let in");
    }
    let refused = refusal(ask(&second, door.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::BadCode);
    assert!(refused.reason.contains("used up"), "{refused}");
}

#[tokio::test]
async fn a_wrong_code_an_expired_one_and_a_slip_of_the_pen_are_told_apart() {
    let door = Door::open();
    let expired = door.invite(1, 0);
    let refused = refusal(ask(&newcomer(), door.addr(), Some(&expired)).await);
    assert!(
        refused.code == RefusalCode::BadCode && refused.reason.contains("expired"),
        "{refused}"
    );

    let never_issued = Invitation::new(*expired.fingerprint(), InviteSecret::new([7; 16]), []);
    let refused = refusal(ask(&newcomer(), door.addr(), Some(&never_issued)).await);
    assert!(
        refused.code == RefusalCode::BadCode && refused.reason.contains("wrong code"),
        "{refused}"
    );

    let mut printed = door.invite(1, LONG_MS).to_string();
    let wrong = if printed.pop() == Some('0') { '8' } else { '0' };
    printed.push(wrong);
    let slip = printed.parse::<Invitation>().expect_err("a digit is wrong");
    assert!(slip.to_string().contains("slip"), "{slip}");
}

/// Another fleet's station answers at the address in the code: the node believes nothing that it says.
#[tokio::test]
async fn an_impostor_is_found_out() {
    let (door, impostor) = (Door::open(), Door::open());
    let code = door.invite(1, LONG_MS);
    // One that never saw the secret refuses; one that was given it by a spy cannot show the fleet's root.
    let refused = refusal(ask(&newcomer(), impostor.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::BadCode);
    let now = clock::unix_time_ms();
    let issued = impostor.desk.lock().expect("no panic").invitations.issue(
        code.secret().clone(),
        Role::Node,
        1,
        now,
        LONG_MS,
    );
    issued.expect("room");
    let error = ask(&newcomer(), impostor.addr(), Some(&code))
        .await
        .expect_err("an impostor");
    assert!(matches!(error, JoinError::Impostor { .. }), "{error}");
}

#[tokio::test]
async fn without_a_code_one_waits_for_the_operator() {
    let door = Door::open();
    let refused = refusal(ask(&newcomer(), door.addr(), None).await);
    assert_eq!(refused.code, RefusalCode::Pending);
}

#[tokio::test]
async fn a_node_takes_nobody_in() {
    let mut root = fleet();
    let node = Setup::node(&mut root).start();
    for code in [None, Some(Door::open().invite(1, LONG_MS))] {
        let refused = refusal(ask(&newcomer(), node.endpoint.listens(), code.as_ref()).await);
        assert_eq!(refused.code, RefusalCode::NotAllowed);
        assert!(refused.reason.contains("station"), "{refused}");
    }
}

#[tokio::test]
async fn a_revoked_key_does_not_join_again() {
    let door = Door::open();
    let code = door.invite(2, LONG_MS);
    let node = newcomer();
    let membership = ask(&node, door.addr(), Some(&code)).await.expect("let in");
    let own = membership.grant().verify(membership.root()).expect("good").key;
    door.desk
        .lock()
        .expect("no panic")
        .root
        .revoke(own)
        .expect("it is short");
    let refused = refusal(ask(&node, door.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seventy_at_once_are_let_in_or_told_to_try_again() {
    let door = Door::open();
    let code = door.invite(70, LONG_MS);
    let addr = door.addr();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..70 {
        let code = code.clone();
        asking.spawn(async move {
            let node = newcomer();
            let answer = loop {
                match ask(&node, addr, Some(&code)).await {
                    Err(JoinError::Refused(refused)) if refused.code == RefusalCode::Busy => {}
                    answer => break answer,
                }
            };
            node.endpoint.shutdown().await;
            answer.map(|_membership| ()).map_err(|error| error.to_string())
        });
    }
    while let Some(joined) = asking.join_next().await {
        assert_eq!(joined.expect("no panic"), Ok(()));
    }
    let desk = door.desk.lock().expect("no panic");
    assert_eq!(desk.invitations.list()[0].uses_left, 0);
}

/// Whoever waits to be accepted by hand and goes away makes room for others.
#[tokio::test]
async fn one_that_gives_up_waiting_is_forgotten() {
    let mut root = fleet();
    let (joins, mut requests) = mpsc::channel::<JoinRequest>(128);
    let mut station = Setup::station(&mut root);
    station.joins = Some(joins);
    let station = station.start();
    let addr = station.endpoint.listens();
    let waiting = tokio::spawn(async move { ask(&newcomer(), addr, None).await.is_ok() });
    let mut request = requests.recv().await.expect("it asks");
    assert!(request.proof.is_none());
    waiting.abort();
    let gone = tokio::time::timeout(crate::common::PATIENCE, request.answer.closed()).await;
    gone.expect("its going is noticed");
}
