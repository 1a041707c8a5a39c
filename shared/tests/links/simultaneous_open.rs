//! Two connections between the same two peers, and two devices with one key.

use std::net::SocketAddr;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Notice;
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::trust::{Membership, Role};

use crate::common::{PATIENCE, Program, Setup, fleet, membership, numbered};

/// How often both sides dial at once.
const PAIRS: usize = 50;

/// What a side thinks of its one link: the address at its other end, if it is up.
#[derive(Default)]
struct Seen {
    up: Option<SocketAddr>,
    ups: usize,
}

impl Seen {
    fn take(&mut self, event: &PeerEvent) {
        match event {
            PeerEvent::Up { peer, .. } => {
                assert!(self.up.is_none(), "two links at once");
                self.up = Some(peer.addr);
                self.ups += 1;
            }
            PeerEvent::Down { .. } => self.up = None,
            PeerEvent::Silent(_) | PeerEvent::Heard(_) | PeerEvent::Bulk { .. } | PeerEvent::Frame { .. } => {
            }
        }
    }
}

/// Takes events until the other side's frame has come, which came over the link that was up last.
async fn hear(program: &mut Program, seen: &mut Seen) {
    let heard = async {
        loop {
            let event = program.events.peers.recv().await.expect("running");
            seen.take(&event);
            if matches!(event, PeerEvent::Frame { .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("a frame in time");
}

#[tokio::test]
async fn of_two_links_dialled_at_once_one_remains_and_both_agree() {
    let mut root = fleet();
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let mut station = Setup::station(&mut root).start();
        let mut node = Setup::node(&mut root).start();
        let (at_station, at_node) = (station.endpoint.listens(), node.endpoint.listens());
        tokio::join!(station.dial(at_node), node.dial(at_station));
        station.link(node.id()).await.try_send(numbered(1)).expect("room");
        node.link(station.id()).await.try_send(numbered(1)).expect("room");
        let (mut by_station, mut by_node) = (Seen::default(), Seen::default());
        hear(&mut station, &mut by_station).await;
        hear(&mut node, &mut by_node).await;
        pairs.push((station, by_station, node, by_node));
    }
    // Long enough for whatever dial was still under way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (mut station, mut by_station, mut node, mut by_node) in pairs {
        while let Ok(event) = station.events.peers.try_recv() {
            by_station.take(&event);
        }
        while let Ok(event) = node.events.peers.try_recv() {
            by_node.take(&event);
        }
        let station_dialled = by_station.up.expect("a link") == node.endpoint.listens();
        let node_dialled = by_node.up.expect("a link") == station.endpoint.listens();
        assert!(station_dialled != node_dialled, "they do not agree on the link");
        assert!(by_station.ups <= 2 && by_node.ups <= 2, "the link flaps");
        assert!(
            station.events.notices.try_recv().is_err(),
            "nothing here is the operator's business"
        );
    }
}

#[tokio::test]
async fn two_devices_with_one_key_are_reported_and_the_first_stays_linked() {
    let mut root = fleet();
    let beat = Duration::from_millis(300);
    let mut station = Setup::station(&mut root).heartbeat(beat).start();
    let mut first = Setup::node(&mut root).heartbeat(beat);
    first.name = "drone-1";
    let key = first.key.clone();
    let member: Membership = membership(&mut root, &key, Role::Node);
    let mut first = first.start();
    first.dial(station.endpoint.listens()).await;
    assert_eq!(station.up().await.0.name.as_str(), "drone-1");
    first.up().await;

    let mut second = Setup::stranger(PeerKind::Node, "drone-2").heartbeat(beat);
    second.key = key;
    second.membership = Some(member);
    let mut second = second.start();
    second.dial(station.endpoint.listens()).await;
    let told = loop {
        if let Notice::Cloned { id, linked, other } = station.notice().await {
            assert_eq!(id, first.id());
            break (linked, other);
        }
    };
    let (linked, other) = told;
    assert_eq!((linked.0.as_str(), other.0.as_str()), ("drone-1", "drone-2"));
    assert!(linked.1.ip().is_loopback() && other.1.ip().is_loopback());
    assert_ne!(linked.1, other.1);
    let code = swarm_shared::proto::message::RefusalCode::ClonedKey;
    let (by_us, refused) = second.refusal(code).await;
    assert!(!by_us && refused.reason.contains("drone-1"), "{refused}");
    while let Ok(event) = station.events.peers.try_recv() {
        assert!(
            !matches!(event, PeerEvent::Down { .. }),
            "the first lost its link"
        );
    }
    assert!(
        first.events.peers.try_recv().is_err(),
        "the first noticed something"
    );
}

#[tokio::test]
async fn a_restarted_program_takes_its_own_place_at_once() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let node = Setup::node(&mut root);
    let (key, member) = (node.key.clone(), node.membership.clone());
    let mut node = node.start();
    node.dial(station.endpoint.listens()).await;
    station.up().await;
    node.up().await;
    node.endpoint.shutdown().await;
    let mut again = Setup::stranger(PeerKind::Node, "drone-1");
    (again.key, again.membership) = (key, member);
    let again = again.start();
    let started = clock::now();
    again.dial(station.endpoint.listens()).await;
    let (_peer, resumed) = station.up().await;
    assert!(!resumed);
    assert!(
        clock::since(started) < Duration::from_secs(5),
        "took {:?}",
        clock::since(started)
    );
}
