//! Which peers are accepted and refused; both sides get the reason.

use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::endpoint::Notice;
use swarm_shared::net::peer::{LinkError, PeerEvent, RequestResult};
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::message::RefusalCode;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::{Membership, Role};

use crate::common::{Program, Requester, Setup, fleet, key, linked, membership};

/// Both sides report the same refusal; one of them refused.
async fn refused_on_both_sides(a: &mut Program, b: &mut Program, code: RefusalCode) -> String {
    let ((by_a, at_a), (by_b, at_b)) = tokio::join!(a.wait_for_refusal(code), b.wait_for_refusal(code));
    assert_eq!(at_a, at_b);
    assert!(by_a != by_b, "one refused, the other was refused: {at_a}");
    for program in [a, b] {
        let event = program.events.peers.try_recv();
        assert!(event.is_err(), "no link was due, and yet: {event:?}");
    }
    at_a.reason
}

#[tokio::test]
async fn a_program_without_a_fleet_is_told_to_join_one() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let mut stranger = Setup::without_fleet(PeerKind::Node, "drone-9").start();
    station.dial(stranger.endpoint.listen_addr()).await;
    let reason = refused_on_both_sides(&mut station, &mut stranger, RefusalCode::NoGrant).await;
    assert!(reason.contains("fleet invite"), "{reason}");
}

#[tokio::test]
async fn program_of_another_fleet_is_refused() {
    for station_dials in [true, false] {
        let mut station = Setup::station(&mut fleet()).start();
        let mut node = Setup::node(&mut fleet()).start();
        if station_dials {
            station.dial(node.endpoint.listen_addr()).await;
        } else {
            node.dial(station.endpoint.listen_addr()).await;
        }
        let reason = refused_on_both_sides(&mut station, &mut node, RefusalCode::WrongFleet).await;
        assert!(reason.contains("fleet"), "{reason}");
    }
}

/// A program never loads a membership of another key; so this one is given another key after loading.
#[tokio::test]
async fn grant_of_another_key_is_refused() {
    for thief_dials in [true, false] {
        let mut root = fleet();
        let mut station = Setup::station(&mut root).start();
        let mut thief = Setup::node(&mut root);
        thief.key = key();
        let mut thief = thief.start();
        if thief_dials {
            thief.dial(station.endpoint.listen_addr()).await;
        } else {
            station.dial(thief.endpoint.listen_addr()).await;
        }
        let reason = refused_on_both_sides(&mut station, &mut thief, RefusalCode::BadGrant).await;
        assert!(reason.contains("another device"), "{reason}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    for node_dials in [true, false] {
        let mut root = fleet();
        let node = Setup::node(&mut root);
        root.revoke(node.key.public()).expect("it is short");
        let mut node = node.start();
        let mut station = Setup::station(&mut root).start();
        if node_dials {
            node.dial(station.endpoint.listen_addr()).await;
        } else {
            station.dial(node.endpoint.listen_addr()).await;
        }
        let reason = refused_on_both_sides(&mut station, &mut node, RefusalCode::Revoked).await;
        assert!(reason.contains("identity.key"), "{reason}");
    }
}

/// The station revokes a key; the fleet state spreads from peer to peer; every link of the key closes, and its queued
/// requests end.
#[tokio::test]
async fn revoked_key_loses_its_live_links() {
    let mut root = fleet();
    let station = Setup::station(&mut root);
    let own = station.key.clone();
    let observer = Setup::member(&mut root, PeerKind::Station, Role::Operator, "second");
    let (mut station, mut second) = linked(station, observer).await;
    let bad = Setup::node(&mut root);
    let bad_key = bad.key.public();
    let mut bad = bad.start();
    bad.dial(station.endpoint.listen_addr()).await;
    assert_eq!(station.wait_for_up().await.0.id, bad.id());
    bad.dial(second.endpoint.listen_addr()).await;
    assert_eq!(second.wait_for_up().await.0.id, bad.id());

    let mut asking = Requester::new();
    let link = second.link(bad.id()).await;
    asking.request(&link, "led", 1).expect("room");
    root.revoke(bad_key).expect("it is short");
    let renewed = membership(&mut root, &own, Role::Admin);
    station.endpoint.adopt_membership(Arc::new(renewed)).await;

    for program in [&mut station, &mut second] {
        let gone = program
            .wait_for(|event| {
                let PeerEvent::Disconnected { id, reason } = event else {
                    return None;
                };
                Some((id, reason))
            })
            .await;
        // The station's own grant is new, so that its links open again too.
        if gone.0 == bad.id() {
            assert!(gone.1.contains("revoked"), "{gone:?}");
        }
        let (by_us, refused) = program.wait_for_refusal(RefusalCode::Revoked).await;
        assert!(by_us && refused.reason.contains("identity.key"), "{refused}");
    }
    let (by_us, _refused) = bad.wait_for_refusal(RefusalCode::Revoked).await;
    assert!(!by_us);
    let end = asking.next_delivery().await;
    assert!(
        matches!(end.result, RequestResult::Lost | RequestResult::NotSent(_)),
        "{end:?}"
    );
    assert!(matches!(asking.request(&link, "led", 2), Err(LinkError::Closed)));
    let state = second.endpoint.membership();
    assert_eq!(state.borrow().as_ref().map(|m| m.state_number()), Some(2));
}

#[tokio::test]
async fn revocation_reaches_absent_peers_over_any_link() {
    let mut root = fleet();
    let node = Setup::node(&mut root).start();
    let mut second = Setup::member(&mut root, PeerKind::Station, Role::Operator, "second").start();
    let outsider = key();
    root.grant(outsider.public(), Role::Node).expect("a grant");
    root.revoke(outsider.public()).expect("it is short");
    let station = Setup::station(&mut root).start();
    // From the station to the node, and on to the other station.
    node.dial(station.endpoint.listen_addr()).await;
    node.dial(second.endpoint.listen_addr()).await;
    let mut news = second.endpoint.membership();
    let heard = news.wait_for(|m| m.as_ref().is_some_and(|m| m.is_revoked(&outsider.public())));
    tokio::time::timeout(crate::common::TEST_TIMEOUT, heard)
        .await
        .expect("in time")
        .expect("running");
    second.wait_for_up().await;
}

#[tokio::test]
async fn program_is_told_that_its_own_key_is_revoked() {
    let mut root = fleet();
    let (_station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let held = node.endpoint.membership().borrow().clone().expect("a member");
    let own = held.grant().verify(&root.public()).expect("good").key;
    let mut newer = Membership::clone(&held);
    newer
        .adopt_state(root.revoke(own).expect("it is short").clone())
        .expect("good");
    node.endpoint.adopt_membership(Arc::new(newer)).await;
    assert!(matches!(node.next_notice().await, Notice::OwnKeyRevoked));
}

async fn refused_command(commander: Setup, target: Setup, action: &str) -> Reply {
    let (commander, mut target) = linked(commander, target).await;
    let mut asking = Requester::new();
    let link = commander.link(target.id()).await;
    asking.request(&link, action, 1).expect("room");
    let RequestResult::Reply(content) = asking.next_delivery().await.result else {
        panic!("expected a refusal")
    };
    // The link stays, and the application does not get the command.
    assert!(target.events.peers.try_recv().is_err());
    asking.request(&link, action, 2).expect("room");
    assert!(matches!(
        asking.next_delivery().await.result,
        RequestResult::Reply(_)
    ));
    serde_json::from_slice(&content).expect("a reply")
}

#[tokio::test]
async fn observer_that_commands_is_refused_and_stays_linked() {
    let mut root = fleet();
    let observer = Setup::member(&mut root, PeerKind::Station, Role::Observer, "viewer");
    let refused = refused_command(observer, Setup::node(&mut root), "led").await;
    assert_eq!(refused.state, Outcome::Refused);
    let error = refused.error.expect("a reason");
    assert!(
        error.contains("observer") && error.contains("operator"),
        "{error}"
    );
}

#[tokio::test]
async fn an_observer_may_ping() {
    let mut root = fleet();
    let observer = Setup::member(&mut root, PeerKind::Station, Role::Observer, "viewer");
    let (observer, node) = linked(observer, Setup::node(&mut root)).await;
    let id = node.id();
    let answering = tokio::spawn(node.reply_to_all());
    let mut asking = Requester::new();
    asking.request(&observer.link(id).await, "ping", 1).expect("room");
    assert!(matches!(
        asking.next_delivery().await.result,
        RequestResult::Reply(_)
    ));
    answering.abort();
}

#[tokio::test]
async fn a_node_that_commands_another_is_refused() {
    let mut root = fleet();
    let other = Setup::member(&mut root, PeerKind::Node, Role::Node, "drone-2");
    let refused = refused_command(Setup::node(&mut root), other, "ping").await;
    assert_eq!(refused.state, Outcome::Refused);
}

#[tokio::test]
async fn only_an_admin_runs_programs() {
    let mut root = fleet();
    let operator = Setup::member(&mut root, PeerKind::Station, Role::Operator, "desk");
    let refused = refused_command(operator, Setup::node(&mut root), "execute").await;
    assert!(refused.error.expect("a reason").contains("admin"));
}

/// An observer sends no roster: the gate would refuse it, with a log line at each peer.
#[tokio::test]
async fn observer_sends_nothing_that_would_be_refused() {
    let mut root = fleet();
    let observer = Setup::member(&mut root, PeerKind::Station, Role::Observer, "viewer");
    let (mut observer, mut first) = linked(observer, Setup::node(&mut root)).await;
    let second = Setup::station(&mut root).start();
    observer.dial(second.endpoint.listen_addr()).await;
    observer.wait_for_up().await;
    // With a roster, the node would dial the unknown station.
    let event = tokio::time::timeout(Duration::from_secs(1), first.events.peers.recv()).await;
    assert!(event.is_err(), "{event:?}");
}

#[tokio::test]
async fn roster_makes_unlinked_peers_link() {
    let mut root = fleet();
    let operator = Setup::member(&mut root, PeerKind::Station, Role::Operator, "desk");
    let (mut operator, mut node) = linked(operator, Setup::node(&mut root)).await;
    let mut second = Setup::station(&mut root).start();
    second.dial(operator.endpoint.listen_addr()).await;
    operator.wait_for_up().await;
    let ids = [second.wait_for_up().await.0.id, second.wait_for_up().await.0.id];
    assert!(ids.contains(&operator.id()) && ids.contains(&node.id()));
    assert_eq!(node.wait_for_up().await.0.id, second.id());
}

#[tokio::test]
async fn moving_to_another_fleet_leaves_the_old_one() {
    let mut root = fleet();
    let node = Setup::node(&mut root);
    let node_key = node.key.clone();
    let (mut station, mut node) = linked(Setup::station(&mut root), node).await;
    let moved = membership(&mut fleet(), &node_key, Role::Node);
    node.endpoint.adopt_membership(Arc::new(moved)).await;
    let why = node.wait_for_down().await;
    assert!(why.contains("moved"), "{why}");
    let (by_us, _refused) = station.wait_for_refusal(RefusalCode::WrongFleet).await;
    assert!(!by_us);
}
