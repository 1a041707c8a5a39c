//! Messages between two linked programs.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::peer::{CompletedRequest, LinkError, PeerEvent, PeerInfo, RequestResult};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::wire::Lane;

use crate::common::{Requester, Setup, TEST_TIMEOUT, command, fleet, linked, numbered, reply};

#[tokio::test]
async fn a_command_goes_out_and_its_reply_comes_back() {
    let mut root = fleet();
    let (station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let mut asking = Requester::new();
    let link = station.link(node.id()).await;
    asking.request(&link, "ping", 7).expect("room");

    let PeerEvent::Frame { peer, frame, .. } = node.next_event().await else {
        panic!("expected the command")
    };
    assert_eq!(frame.header.action.as_deref(), Some("ping"));
    let back = node.link(peer.id).await;
    back.try_send(reply(&Reply::done("pong".into()), &frame.header))
        .expect("room");

    let CompletedRequest {
        result: RequestResult::Reply(content),
        ..
    } = asking.next_delivery().await
    else {
        panic!("expected a reply")
    };
    let reply: Reply = serde_json::from_slice(&content).expect("a reply");
    assert_eq!(reply.state, Outcome::Done);
    station.endpoint.shutdown().await;
    assert!(matches!(node.next_event().await, PeerEvent::Disconnected { .. }));
    node.endpoint.shutdown().await;
}

#[tokio::test]
async fn idle_peers_stay_linked() {
    let mut root = fleet();
    let beat = Duration::from_millis(500);
    let station = Setup::station(&mut root).heartbeat(beat);
    let (mut station, mut node) = linked(station, Setup::node(&mut root).heartbeat(beat)).await;
    // A busy machine may make them silent for a moment, but not offline.
    let lost = tokio::time::timeout(beat * 8, async {
        tokio::join!(station.wait_for_down(), node.wait_for_down())
    })
    .await;
    assert!(lost.is_err(), "an idle link went down: {lost:?}");
}

/// The queue is bounded and its limit is reported; accepted messages are delivered in order; an emergency overtakes
/// them.
#[tokio::test]
async fn a_full_queue_answers_busy_at_once_and_loses_nothing() {
    let mut root = fleet();
    let station = Setup::station(&mut root).start();
    let mut node = Setup::node(&mut root).start();
    let link = station.link(node.id()).await;
    let mut taken = 0;
    let started = clock::now();
    // The session's task empties its input while there is room behind it: only repeated `busy` means full.
    for _ in 0..50 {
        while link.try_send(numbered(taken)).is_ok() {
            taken += 1;
            assert!(taken < 10_000, "the queue has no end");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(clock::since(started) < TEST_TIMEOUT);
    assert!(taken > 4_096, "full at {taken}");
    assert_eq!(link.try_send(numbered(0)), Err(LinkError::Busy));
    let mut urgent = numbered(99_999);
    urgent.lane = Lane::Emergency;
    link.try_send(urgent)
        .expect("an emergency has a bound of its own");

    station.dial(node.endpoint.listen_addr()).await;
    assert_eq!(node.next_frame().await.header.id, Some(99_999));
    for id in 0..taken {
        assert_eq!(node.next_frame().await.header.id, Some(id));
    }
}

/// An application that reads nothing slows its peers down and loses neither frames nor links.
#[tokio::test]
async fn slow_application_gets_backpressure_and_stays_linked() {
    let mut root = fleet();
    let beat = Duration::from_millis(200);
    let station = Setup::station(&mut root).heartbeat(beat);
    let (mut station, mut node) = linked(station, Setup::node(&mut root).heartbeat(beat)).await;
    let link = station.link(node.id()).await;
    let mut sent = 0;
    let asleep = tokio::time::Instant::now() + beat * 10;
    while tokio::time::Instant::now() < asleep {
        while link.try_send(numbered(sent)).is_ok() {
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(sent < 40_000, "nothing held {sent} frames back");
    for id in 0..sent {
        assert_eq!(node.next_frame().await.header.id, Some(id));
    }
    while let Ok(event) = station.events.peers.try_recv() {
        assert!(!matches!(event, PeerEvent::Disconnected { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn unanswered_request_times_out_on_a_busy_link() {
    let mut root = fleet();
    let (station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let link = station.link(node.id()).await;
    let (reply_to, mut ends) = tokio::sync::mpsc::channel(1);
    let request = swarm_shared::net::peer::Request {
        id: 1,
        timeout_at: clock::now() + Duration::from_millis(300),
        reply_to: swarm_shared::net::peer::ReplyTo(reply_to),
    };
    link.try_request(command("ping", 1), request).expect("room");
    let back = node.link(station.id()).await;
    let chatter = tokio::spawn(async move {
        for id in 1_000.. {
            crate::common::send_when_possible(&back, &numbered(id)).await;
        }
    });
    let mut station = station;
    let drain = tokio::spawn(async move { while station.events.peers.recv().await.is_some() {} });
    let end = tokio::time::timeout(TEST_TIMEOUT, ends.recv())
        .await
        .expect("in time")
        .expect("one end");
    assert!(matches!(end.result, RequestResult::TimedOut), "{end:?}");
    chatter.abort();
    drain.abort();
    node.next_frame().await;
}

#[tokio::test]
async fn every_request_ends_at_shutdown() {
    let mut root = fleet();
    let (station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let mut asking = Requester::new();
    let link = station.link(node.id()).await;
    asking.request(&link, "ping", 1).expect("room");
    node.next_frame().await;
    let absent = station.link(crate::common::key().public().id()).await;
    asking.request(&absent, "ping", 2).expect("room");
    station.endpoint.shutdown().await;
    let mut ends = [asking.next_delivery().await, asking.next_delivery().await];
    ends.sort_by_key(|delivery| delivery.id);
    assert!(matches!(ends[0].result, RequestResult::Lost), "{ends:?}");
    assert!(matches!(ends[1].result, RequestResult::NotSent(_)), "{ends:?}");
    assert_eq!(asking.request(&absent, "ping", 3), Err(LinkError::Closed));
}

/// Even if its application does not read, one peer is dialling and another one is silent.
#[tokio::test]
async fn shutdown_ends_within_its_grace() {
    let mut root = fleet();
    let (station, node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let link = node.link(station.id()).await;
    for id in 0..3_000 {
        crate::common::send_when_possible(&link, &numbered(id)).await;
    }
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    station.dial(silent.local_addr().expect("bound")).await;
    let _loris = tokio::net::TcpStream::connect(station.endpoint.listen_addr())
        .await
        .expect("connects");
    let _met = tokio::time::timeout(TEST_TIMEOUT, silent.accept())
        .await
        .expect("dialled")
        .expect("accepts");
    let started = clock::now();
    station.endpoint.shutdown().await;
    assert!(
        clock::since(started) < Duration::from_secs(1),
        "took {:?}",
        clock::since(started)
    );
    node.endpoint.shutdown().await;
}

#[tokio::test]
async fn peer_info_arrives_with_its_link() {
    let mut root = fleet();
    let (mut station, mut node) = (Setup::station(&mut root).start(), Setup::node(&mut root).start());
    node.dial(station.endpoint.listen_addr()).await;
    let (seen, resumed) = station.wait_for_up().await;
    let PeerInfo {
        name, listen_addr, ..
    } = seen.as_ref();
    assert_eq!(
        (name.as_str(), *listen_addr),
        ("drone-1", node.endpoint.listen_addr())
    );
    assert!(!resumed);
    assert_eq!(node.wait_for_up().await.0.addr, station.endpoint.listen_addr());
    assert_eq!(Timing::default(), Timing::from_heartbeat(Duration::from_secs(1)));
}
