//! Deadlines over links that delay their bytes. Both programs of a test read one clock, so that the sender's and the
//! receiver's deadline can be compared.

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerEvent, RequestResult};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;

use crate::common::{Program, Setup, TEST_TIMEOUT, command, fleet, reply};
use crate::proxy::Proxy;

/// Time to live of the commands.
const TTL: Duration = Duration::from_millis(400);
/// Time for which the link is paused: longer than the time to live, and too short for a time-out of the link.
const STALL: Duration = Duration::from_millis(900);
/// Longest transit of a stamp on a busy machine.
const TRANSIT_MAX: Duration = Duration::from_millis(300);

async fn received_deadline(node: &mut Program, id: u64) -> Instant {
    node.wait_for(|event| {
        let PeerEvent::Frame { frame, deadline, .. } = event else {
            return None;
        };
        assert_eq!(frame.header.id, Some(id));
        deadline
    })
    .await
}

/// A command with [`TTL`] from now on, and its deadline.
fn short_lived_command(id: u64) -> (Outgoing, Instant) {
    let at = clock::now() + TTL;
    let deadline = Some(at);
    (
        Outgoing {
            deadline,
            ..command("led", id)
        },
        at,
    )
}

/// A station and a node, linked through a proxy that can be paused.
async fn linked_through_proxy() -> (Program, Program, Proxy) {
    let mut root = fleet();
    let (mut station, mut node) = (Setup::station(&mut root).start(), Setup::node(&mut root).start());
    let proxy = Proxy::to(node.endpoint.listen_addr()).await;
    station.dial(proxy.addr()).await;
    station.wait_for_up().await;
    node.wait_for_up().await;
    (station, node, proxy)
}

#[tokio::test]
async fn delayed_command_arrives_expired_even_on_a_new_link() {
    let (station, mut node, proxy) = linked_through_proxy().await;
    let link = station.link(node.id()).await;
    for id in 1..=3 {
        proxy.pause(true);
        let (outgoing, meant) = short_lived_command(id);
        link.try_send(outgoing).expect("room");
        tokio::time::sleep(STALL).await;
        proxy.pause(false);
        let understood = received_deadline(&mut node, id).await;
        assert!(understood <= meant, "{:?} late", understood - meant);
        assert!(
            clock::now() >= understood,
            "it would run, {STALL:?} after it was sent"
        );
        assert!(
            understood + TRANSIT_MAX >= meant,
            "{:?} early",
            meant - understood
        );
    }
}

#[tokio::test]
async fn timely_command_keeps_its_deadline() {
    let (station, mut node, _proxy) = linked_through_proxy().await;
    let link = station.link(node.id()).await;
    for id in 1..=5 {
        let (outgoing, meant) = short_lived_command(id);
        link.try_send(outgoing).expect("room");
        let understood = received_deadline(&mut node, id).await;
        assert!(understood <= meant, "{:?} late", understood - meant);
        assert!(
            understood + TRANSIT_MAX >= meant,
            "{:?} early",
            meant - understood
        );
    }
}

#[tokio::test]
async fn deadline_holds_while_the_application_stalls() {
    let (station, mut node, _proxy) = linked_through_proxy().await;
    let link = station.link(node.id()).await;
    let (outgoing, meant) = short_lived_command(1);
    link.try_send(outgoing).expect("room");
    tokio::time::sleep(STALL).await;
    assert!(received_deadline(&mut node, 1).await <= meant);
}

#[tokio::test]
async fn deadline_survives_a_reconnect() {
    let (mut station, mut node, proxy) = linked_through_proxy().await;
    let link = station.link(node.id()).await;
    proxy.pause(true);
    // Longer, because a new link takes its time.
    let meant = clock::now() + TEST_TIMEOUT;
    let outgoing = Outgoing {
        deadline: Some(meant),
        ..command("led", 1)
    };
    link.try_send(outgoing).expect("room");
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.cut();
    station.wait_for_down().await;
    node.wait_for_down().await;
    proxy.pause(false);
    assert!(
        station.wait_for_up().await.1 && node.wait_for_up().await.1,
        "the session goes on"
    );
    let understood = received_deadline(&mut node, 1).await;
    assert!(understood <= meant && understood + TRANSIT_MAX >= meant);
}

#[tokio::test]
async fn question_arrives_expired_and_is_answered() {
    let (station, mut node, _proxy) = linked_through_proxy().await;
    let link = station.link(node.id()).await;
    let (reply_to, mut ends) = tokio::sync::mpsc::channel(1);
    let mut question = command("led", 1);
    question.frame = question.frame.into_status_query();
    let request = swarm_shared::net::peer::Request {
        id: 1,
        timeout_at: clock::now() + TEST_TIMEOUT,
        reply_to: swarm_shared::net::peer::ReplyTo(reply_to),
    };
    link.try_request(question, request).expect("room");
    let (frame, deadline) = node
        .wait_for(|event| match event {
            PeerEvent::Frame { frame, deadline, .. } => Some((frame, deadline)),
            PeerEvent::Connected { .. }
            | PeerEvent::Silent(_)
            | PeerEvent::Responsive(_)
            | PeerEvent::Disconnected { .. }
            | PeerEvent::BulkOpened { .. } => None,
        })
        .await;
    assert!(deadline.is_some_and(|deadline| clock::now() >= deadline));
    let back = node.link(station.id()).await;
    back.try_send(reply(&Reply::done(1.into()), &frame.header))
        .expect("room");
    let end = tokio::time::timeout(TEST_TIMEOUT, ends.recv()).await;
    let end = end.expect("in time").expect("one end");
    assert!(matches!(end.result, RequestResult::Reply(_)), "{end:?}");
}
