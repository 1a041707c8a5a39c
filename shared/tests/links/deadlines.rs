//! Deadlines over links that hold up what they carry. Both programs of a test read one clock, so what one meant and
//! what the other understood can be compared.

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::{Ended, PeerEvent};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;

use crate::common::{PATIENCE, Program, Setup, command, fleet, reply};
use crate::proxy::Proxy;

/// The time to live of what is sent.
const TTL: Duration = Duration::from_millis(400);
/// How long the link stands still: longer than that, and not so long that it is given up.
const STILL: Duration = Duration::from_millis(900);
/// What a stamp may have been on its way on a busy machine.
const WAY_MAX: Duration = Duration::from_millis(300);

async fn deadline(node: &mut Program, id: u64) -> Instant {
    node.until(|event| {
        let PeerEvent::Frame { frame, deadline, .. } = event else {
            return None;
        };
        assert_eq!(frame.header.id, Some(id));
        deadline
    })
    .await
}

/// A command with [`TTL`] from now on, and its deadline.
fn hasty(id: u64) -> (Outgoing, Instant) {
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

/// A station and a node, linked through a stretch that can be stopped; nothing has been said yet.
async fn through() -> (Program, Program, Proxy) {
    let mut root = fleet();
    let (mut station, mut node) = (Setup::station(&mut root).start(), Setup::node(&mut root).start());
    let proxy = Proxy::to(node.endpoint.listens()).await;
    station.dial(proxy.addr()).await;
    station.up().await;
    node.up().await;
    (station, node, proxy)
}

#[tokio::test]
async fn what_a_link_holds_up_beyond_its_time_comes_too_late_also_right_after_linking() {
    let (station, mut node, proxy) = through().await;
    let link = station.link(node.id()).await;
    for id in 1..=3 {
        proxy.pause(true);
        let (outgoing, meant) = hasty(id);
        link.try_send(outgoing).expect("room");
        tokio::time::sleep(STILL).await;
        proxy.pause(false);
        let understood = deadline(&mut node, id).await;
        assert!(understood <= meant, "{:?} late", understood - meant);
        assert!(
            clock::now() >= understood,
            "it would run, {STILL:?} after it was sent"
        );
        assert!(understood + WAY_MAX >= meant, "{:?} early", meant - understood);
    }
}

#[tokio::test]
async fn what_comes_in_time_has_its_time() {
    let (station, mut node, _proxy) = through().await;
    let link = station.link(node.id()).await;
    for id in 1..=5 {
        let (outgoing, meant) = hasty(id);
        link.try_send(outgoing).expect("room");
        let understood = deadline(&mut node, id).await;
        assert!(understood <= meant, "{:?} late", understood - meant);
        assert!(understood + WAY_MAX >= meant, "{:?} early", meant - understood);
    }
}

#[tokio::test]
async fn what_waits_for_an_application_that_stands_still_keeps_its_deadline() {
    let (station, mut node, _proxy) = through().await;
    let link = station.link(node.id()).await;
    let (outgoing, meant) = hasty(1);
    link.try_send(outgoing).expect("room");
    tokio::time::sleep(STILL).await;
    assert!(deadline(&mut node, 1).await <= meant);
}

#[tokio::test]
async fn a_deadline_outlives_the_link_that_it_was_sent_over() {
    let (mut station, mut node, proxy) = through().await;
    let link = station.link(node.id()).await;
    proxy.pause(true);
    // Longer, because a new link takes its time.
    let meant = clock::now() + PATIENCE;
    let outgoing = Outgoing {
        deadline: Some(meant),
        ..command("led", 1)
    };
    link.try_send(outgoing).expect("room");
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.cut();
    station.down().await;
    node.down().await;
    proxy.pause(false);
    assert!(station.up().await.1 && node.up().await.1, "the session goes on");
    let understood = deadline(&mut node, 1).await;
    assert!(understood <= meant && understood + WAY_MAX >= meant);
}

#[tokio::test]
async fn a_question_is_too_late_when_it_comes_and_is_answered() {
    let (station, mut node, _proxy) = through().await;
    let link = station.link(node.id()).await;
    let (reply_to, mut ends) = tokio::sync::mpsc::channel(1);
    let mut question = command("led", 1);
    question.parcel = question.parcel.question();
    let request = swarm_shared::net::peer::Request {
        id: 1,
        until: clock::now() + PATIENCE,
        reply_to: swarm_shared::net::peer::ReplyTo(reply_to),
    };
    link.try_request(question, request).expect("room");
    let (frame, deadline) = node
        .until(|event| match event {
            PeerEvent::Frame { frame, deadline, .. } => Some((frame, deadline)),
            PeerEvent::Up { .. }
            | PeerEvent::Silent(_)
            | PeerEvent::Heard(_)
            | PeerEvent::Down { .. }
            | PeerEvent::Bulk { .. } => None,
        })
        .await;
    assert!(deadline.is_some_and(|deadline| clock::now() >= deadline));
    let back = node.link(station.id()).await;
    back.try_send(reply(&Reply::done(1.into()), &frame.header))
        .expect("room");
    let end = tokio::time::timeout(PATIENCE, ends.recv()).await;
    let end = end.expect("in time").expect("one end");
    assert!(matches!(end.ended, Ended::Reply(_)), "{end:?}");
}
