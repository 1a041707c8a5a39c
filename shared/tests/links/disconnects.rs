//! Links that break, become silent and return.

use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerEvent, PeerLink, RequestResult};
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::message::RefusalCode;
use swarm_shared::proto::outcome::Reply;
use tokio::net::TcpListener;

use crate::common::{Program, Requester, Setup, TEST_TIMEOUT, fleet, numbered, reply, send_when_possible};
use crate::proxy::Proxy;

/// Frames sent in each direction while the link is cut repeatedly.
const STREAM_FRAMES: u64 = 20_000;
/// Frames between two cuts, as the station reads them.
const CUT_INTERVAL_FRAMES: u64 = 1_500;

async fn send_stream(link: PeerLink) {
    for id in 1..=STREAM_FRAMES {
        send_when_possible(&link, &numbered(id)).await;
        if id % 50 == 0 {
            // Slow enough to be in transit when the link is cut.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Reads the other side's stream, and calls `tell` for each frame; returns how often the link opened again.
async fn read_stream(mut program: Program, tell: impl Fn(u64)) -> (Program, usize) {
    let (mut next, mut ups, mut is_up) = (1, 0, true);
    while next <= STREAM_FRAMES {
        match program.next_event().await {
            PeerEvent::Connected { resumed, .. } => {
                assert!(resumed && !is_up, "link {ups}: resumed {resumed}, was up {is_up}");
                is_up = true;
                ups += 1;
            }
            PeerEvent::Disconnected { .. } => {
                assert!(is_up, "down twice");
                is_up = false;
            }
            PeerEvent::Frame { frame, .. } => {
                assert!(is_up, "a frame of a link that is gone");
                assert_eq!(frame.header.id, Some(next), "lost, doubled or out of order");
                tell(next);
                next += 1;
            }
            PeerEvent::Silent(_) | PeerEvent::Responsive(_) | PeerEvent::BulkOpened { .. } => {}
        }
    }
    (program, ups)
}

async fn linked_through(station: Setup, node: Setup) -> (Program, Program, Proxy) {
    let (mut station, mut node) = (station.start(), node.start());
    let proxy = Proxy::to(node.endpoint.listen_addr()).await;
    station.dial(proxy.addr()).await;
    station.wait_for_up().await;
    node.wait_for_up().await;
    (station, node, proxy)
}

/// Streams in both directions while `disturb` is applied to the connection repeatedly.
async fn stream_both_ways(disturb: fn(&Proxy)) {
    let mut root = fleet();
    let beat = Duration::from_millis(300);
    let (station, node) = (Setup::station(&mut root), Setup::node(&mut root));
    let (station, node, proxy) = linked_through(station.heartbeat(beat), node.heartbeat(beat)).await;
    let down = tokio::spawn(send_stream(station.link(node.id()).await));
    let up = tokio::spawn(send_stream(node.link(station.id()).await));
    let proxy = Arc::new(proxy);
    let cutting = Arc::clone(&proxy);
    let cut = move |frame| {
        if frame % CUT_INTERVAL_FRAMES == 0 {
            disturb(&cutting);
        }
    };
    let at_station = tokio::spawn(read_stream(station, cut));
    let at_node = tokio::spawn(read_stream(node, |_| ()));
    down.await.expect("sent");
    up.await.expect("sent");
    let (station, ups) = at_station.await.expect("all has come to the station");
    let (node, _ups) = at_node.await.expect("all has come to the node");
    assert!(ups > 0, "the link was never cut");
    drop((station, node, proxy));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_stay_ordered_and_unique_when_links_are_cut() {
    stream_both_ways(Proxy::cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_stay_ordered_and_unique_over_half_open_links() {
    stream_both_ways(Proxy::half_open).await;
}

#[tokio::test]
async fn peer_restart_loses_only_requests_in_flight() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let node = Setup::node(&mut root);
    let (key, member) = (node.key.clone(), node.membership.clone());
    let mut node = node.start();
    let id = node.id();
    station.dial(node.endpoint.listen_addr()).await;
    station.wait_for_up().await;
    let mut asking = Requester::new();
    let link = station.link(id).await;
    asking.request(&link, "led", 1).expect("room");
    assert_eq!(node.next_frame().await.header.id, Some(1));
    node.endpoint.shutdown().await;
    station.wait_for_down().await;
    asking.request(&link, "led", 2).expect("room");

    let mut again = Setup::without_fleet(PeerKind::Node, "drone-1");
    (again.key, again.membership) = (key, member);
    let mut again = again.start();
    station.dial(again.endpoint.listen_addr()).await;
    let (_peer, resumed) = station.wait_for_up().await;
    assert!(!resumed);
    let lost = asking.next_delivery().await;
    assert!(
        lost.id == 1 && matches!(lost.result, RequestResult::Lost),
        "{lost:?}"
    );
    let frame = again.next_frame().await;
    assert_eq!(frame.header.id, Some(2));
    let back = again.link(station.id()).await;
    back.try_send(reply(&Reply::done(2.into()), &frame.header))
        .expect("room");
    let done = asking.next_delivery().await;
    assert!(
        done.id == 2 && matches!(done.result, RequestResult::Reply(_)),
        "{done:?}"
    );
}

#[tokio::test]
async fn silent_peer_is_offline_within_four_heartbeats() {
    let mut root = fleet();
    let beat = Duration::from_millis(500);
    let (station, node) = (Setup::station(&mut root), Setup::node(&mut root));
    let (mut station, mut node, proxy) = linked_through(station.heartbeat(beat), node.heartbeat(beat)).await;
    proxy.pause(true);
    let paused = clock::now();
    let mut silent = false;
    loop {
        match station.next_event().await {
            PeerEvent::Silent(_) => silent = true,
            PeerEvent::Disconnected { reason, .. } => {
                assert!(reason.contains("received"), "{reason}");
                break;
            }
            other @ (PeerEvent::Connected { .. }
            | PeerEvent::Responsive(_)
            | PeerEvent::BulkOpened { .. }
            | PeerEvent::Frame { .. }) => panic!("{other:?}"),
        }
    }
    assert!(silent, "offline without a warning");
    assert!(
        clock::since(paused) <= beat * 4,
        "took {:?}",
        clock::since(paused)
    );
    node.wait_for_down().await;
    proxy.pause(false);
    assert!(
        station.wait_for_up().await.1 && node.wait_for_up().await.1,
        "the session goes on"
    );
}

#[tokio::test]
async fn short_silence_is_reported_and_recovers() {
    let mut root = fleet();
    let beat = Duration::from_millis(500);
    let (station, node) = (Setup::station(&mut root), Setup::node(&mut root));
    let (mut station, _node, proxy) = linked_through(station.heartbeat(beat), node.heartbeat(beat)).await;
    proxy.pause(true);
    assert!(matches!(station.next_event().await, PeerEvent::Silent(_)));
    proxy.pause(false);
    assert!(matches!(station.next_event().await, PeerEvent::Responsive(_)));
}

#[tokio::test]
async fn a_half_open_link_is_replaced() {
    let mut root = fleet();
    let (station, node) = (Setup::station(&mut root), Setup::node(&mut root));
    let (mut station, mut node, proxy) = linked_through(station, node).await;
    proxy.half_open();
    station.wait_for_down().await;
    assert!(station.wait_for_up().await.1);
    assert!(node.wait_for_up().await.1);
    station.link(node.id()).await.try_send(numbered(5)).expect("room");
    assert_eq!(node.next_frame().await.header.id, Some(5));
}

/// Counts the results of `dials` within three seconds.
async fn count(mut dials: impl AsyncFnMut()) -> usize {
    let mut count = 0;
    let end = clock::now() + Duration::from_secs(3);
    while clock::timeout_at(end, dials()).await.is_ok() {
        count += 1;
    }
    count
}

#[tokio::test]
async fn absent_peer_is_dialled_with_backoff() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    station.dial(addr).await;
    let dials = count(async || {
        listener.accept().await.expect("accepts");
    })
    .await;
    assert!((2..=14).contains(&dials), "{dials} dials in 3 s");
    drop(listener);
    let mut node = Setup::node(&mut root);
    node.listen = addr;
    let node = node.start();
    let started = clock::now();
    assert_eq!(station.wait_for_up().await.0.id, node.id());
    assert!(clock::since(started) < TEST_TIMEOUT);
}

/// The dialler believes itself linked until it reads the refusal; that must not reset its backoff.
#[tokio::test]
async fn refusing_peer_is_dialled_with_backoff() {
    let mut root = fleet();
    let station = Setup::station(&mut root);
    let key = station.key.public();
    let station = station.start();
    root.revoke(key).expect("it is short");
    let mut node = Setup::node(&mut root).start();
    station.dial(node.endpoint.listen_addr()).await;
    let refusals = count(async || {
        node.wait_for_refusal(RefusalCode::Revoked).await;
    })
    .await;
    assert!((2..=14).contains(&refusals), "{refusals} refusals in 3 s");
}

#[tokio::test]
async fn link_returns_when_the_network_does() {
    let mut root = fleet();
    let (station, node) = (Setup::station(&mut root), Setup::node(&mut root));
    let (mut station, mut node, proxy) = linked_through(station, node).await;
    proxy.close(true);
    proxy.cut();
    station.wait_for_down().await;
    node.wait_for_down().await;
    let link = station.link(node.id()).await;
    link.try_send(numbered(9)).expect("it waits");
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.close(false);
    station.endpoint.retry_now().await;
    let started = clock::now();
    assert!(station.wait_for_up().await.1);
    assert!(
        clock::since(started) < Duration::from_secs(2),
        "a nudge dials at once"
    );
    assert_eq!(node.next_frame().await.header.id, Some(9));
}
