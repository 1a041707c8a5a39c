//! Joining a fleet, with a code and without, and every refusal.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use swarm_shared::net::endpoint::JoinRequest;
use swarm_shared::net::join::{JoinError, join};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::message::{Joined, RefusalCode, Refused};
use swarm_shared::proto::trust::invitations::Invitations;
use swarm_shared::proto::trust::invite::{Invitation, InviteSecret};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role};
use tokio::sync::mpsc;

use crate::common::{Program, Setup, fleet};

/// The invitations and the root of a station.
struct Inviter {
    root: FleetRoot,
    invitations: Invitations,
}

impl Inviter {
    fn handle_join(&mut self, request: &JoinRequest) -> Result<Box<Joined>, Refused> {
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

/// A station that admits others.
struct JoinStation {
    station: Program,
    inviter: Arc<Mutex<Inviter>>,
}

impl JoinStation {
    fn start() -> Self {
        let mut root = fleet();
        let (joins, mut requests) = mpsc::channel::<JoinRequest>(128);
        let mut station = Setup::station(&mut root);
        station.joins = Some(joins);
        let station = station.start();
        let invitations = Invitations::default();
        let inviter = Arc::new(Mutex::new(Inviter { root, invitations }));
        let answering = Arc::clone(&inviter);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let answer = answering.lock().expect("no panic").handle_join(&request);
                request.reply.send(answer).ok();
            }
        });
        Self { station, inviter }
    }

    fn invite(&self, uses: u32, valid_ms: u64) -> Invitation {
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let mut inviter = self.inviter.lock().expect("no panic");
        let now = clock::unix_time_ms();
        inviter
            .invitations
            .issue(secret.clone(), Role::Node, uses, now, valid_ms)
            .expect("room");
        Invitation::new(inviter.root.fingerprint(), secret, [self.addr()])
    }

    fn addr(&self) -> SocketAddr {
        self.station.endpoint.listen_addr()
    }
}

const LONG_MS: u64 = 900_000;

fn unjoined_node() -> Program {
    Setup::without_fleet(PeerKind::Node, "drone-9").start()
}

async fn try_join(
    who: &Program,
    addr: SocketAddr,
    code: Option<&Invitation>,
) -> Result<Membership, JoinError> {
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
async fn node_with_a_valid_code_joins_and_links() {
    let mut inviting = JoinStation::start();
    let code: Invitation = inviting
        .invite(1, LONG_MS)
        .to_string()
        .parse()
        .expect("what was printed");
    let mut node = unjoined_node();
    let membership = try_join(&node, code.addresses()[0], Some(&code))
        .await
        .expect("let in");
    assert_eq!(membership.own_role(), Role::Node);
    node.dial(inviting.addr()).await;
    node.endpoint.adopt_membership(Arc::new(membership)).await;
    assert_eq!(node.wait_for_up().await.0.id, inviting.station.id());
    assert_eq!(inviting.station.wait_for_up().await.0.name.as_str(), "drone-9");
}

#[tokio::test]
async fn code_admits_its_number_of_keys_and_their_repeats() {
    let inviting = JoinStation::start();
    let code = inviting.invite(1, LONG_MS);
    let (first, second) = (unjoined_node(), unjoined_node());
    for _ in 0..2 {
        try_join(&first, inviting.addr(), Some(&code))
            .await
            .expect("let in");
    }
    let refused = refusal(try_join(&second, inviting.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::BadCode);
    assert!(refused.reason.contains("used up"), "{refused}");
}

#[tokio::test]
async fn wrong_expired_and_mistyped_codes_are_told_apart() {
    let inviting = JoinStation::start();
    let expired = inviting.invite(1, 0);
    let refused = refusal(try_join(&unjoined_node(), inviting.addr(), Some(&expired)).await);
    assert!(
        refused.code == RefusalCode::BadCode && refused.reason.contains("expired"),
        "{refused}"
    );

    let never_issued = Invitation::new(*expired.fingerprint(), InviteSecret::new([7; 16]), []);
    let refused = refusal(try_join(&unjoined_node(), inviting.addr(), Some(&never_issued)).await);
    assert!(
        refused.code == RefusalCode::BadCode && refused.reason.contains("wrong code"),
        "{refused}"
    );

    let mut printed = inviting.invite(1, LONG_MS).to_string();
    let wrong = if printed.pop() == Some('0') { '8' } else { '0' };
    printed.push(wrong);
    let slip = printed.parse::<Invitation>().expect_err("a digit is wrong");
    assert!(slip.to_string().contains("typing error"), "{slip}");
}

/// A station of another fleet answers at the address in the code: the node accepts nothing from it.
#[tokio::test]
async fn impostor_station_is_detected() {
    let (inviting, impostor) = (JoinStation::start(), JoinStation::start());
    let code = inviting.invite(1, LONG_MS);
    // One that never had the secret refuses; one that has stolen it cannot show the fleet's root.
    let refused = refusal(try_join(&unjoined_node(), impostor.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::BadCode);
    let now = clock::unix_time_ms();
    let issued = impostor.inviter.lock().expect("no panic").invitations.issue(
        code.secret().clone(),
        Role::Node,
        1,
        now,
        LONG_MS,
    );
    issued.expect("room");
    let error = try_join(&unjoined_node(), impostor.addr(), Some(&code))
        .await
        .expect_err("an impostor");
    assert!(matches!(error, JoinError::Impostor { .. }), "{error}");
}

#[tokio::test]
async fn join_without_a_code_waits_for_the_operator() {
    let inviting = JoinStation::start();
    let refused = refusal(try_join(&unjoined_node(), inviting.addr(), None).await);
    assert_eq!(refused.code, RefusalCode::Pending);
}

#[tokio::test]
async fn node_refuses_join_requests() {
    let mut root = fleet();
    let node = Setup::node(&mut root).start();
    for code in [None, Some(JoinStation::start().invite(1, LONG_MS))] {
        let refused = refusal(try_join(&unjoined_node(), node.endpoint.listen_addr(), code.as_ref()).await);
        assert_eq!(refused.code, RefusalCode::NotAllowed);
        assert!(refused.reason.contains("station"), "{refused}");
    }
}

#[tokio::test]
async fn a_revoked_key_does_not_join_again() {
    let inviting = JoinStation::start();
    let code = inviting.invite(2, LONG_MS);
    let node = unjoined_node();
    let membership = try_join(&node, inviting.addr(), Some(&code))
        .await
        .expect("let in");
    let own = membership.grant().verify(membership.root()).expect("good").key;
    inviting
        .inviter
        .lock()
        .expect("no panic")
        .root
        .revoke(own)
        .expect("it is short");
    let refused = refusal(try_join(&node, inviting.addr(), Some(&code)).await);
    assert_eq!(refused.code, RefusalCode::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_joins_are_admitted_or_told_to_retry() {
    let inviting = JoinStation::start();
    let code = inviting.invite(70, LONG_MS);
    let addr = inviting.addr();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..70 {
        let code = code.clone();
        asking.spawn(async move {
            let node = unjoined_node();
            let answer = loop {
                match try_join(&node, addr, Some(&code)).await {
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
    let inviter = inviting.inviter.lock().expect("no panic");
    assert_eq!(inviter.invitations.list()[0].uses_left, 0);
}

/// A request for acceptance whose sender disconnects makes room for others.
#[tokio::test]
async fn abandoned_join_request_is_forgotten() {
    let mut root = fleet();
    let (joins, mut requests) = mpsc::channel::<JoinRequest>(128);
    let mut station = Setup::station(&mut root);
    station.joins = Some(joins);
    let station = station.start();
    let addr = station.endpoint.listen_addr();
    let waiting = tokio::spawn(async move { try_join(&unjoined_node(), addr, None).await.is_ok() });
    let mut request = requests.recv().await.expect("it asks");
    assert!(request.proof.is_none());
    waiting.abort();
    let gone = tokio::time::timeout(crate::common::TEST_TIMEOUT, request.reply.closed()).await;
    gone.expect("its going is noticed");
}
