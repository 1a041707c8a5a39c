//! Two connections between the same two peers, and two devices with one key.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Notice;
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::trust::{Membership, Role};

use crate::common::{Program, Setup, TEST_TIMEOUT, fleet, membership, numbered};

/// Number of simultaneous dials.
const PAIRS: usize = 50;

/// One side's view of its link: the address at the other end, if it is open.
#[derive(Default)]
struct LinkObserver {
    up: Option<SocketAddr>,
    ups: usize,
}

impl LinkObserver {
    fn observe(&mut self, event: &PeerEvent) {
        match event {
            PeerEvent::Connected { peer, .. } => {
                assert!(self.up.is_none(), "two links at once");
                self.up = Some(peer.addr);
                self.ups += 1;
            }
            PeerEvent::Disconnected { .. } => self.up = None,
            PeerEvent::Silent(_)
            | PeerEvent::Responsive(_)
            | PeerEvent::BulkOpened { .. }
            | PeerEvent::Frame { .. } => {}
        }
    }
}

/// Handles events until the other side's frame has come, over the link that opened last.
async fn receive_frame(program: &mut Program, seen: &mut LinkObserver) {
    let heard = async {
        loop {
            let event = program.events.peers.recv().await.expect("running");
            seen.observe(&event);
            if matches!(event, PeerEvent::Frame { .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, heard)
        .await
        .expect("a frame in time");
}

#[tokio::test]
async fn simultaneous_dials_leave_one_agreed_link() {
    let mut root = fleet();
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let mut station = Setup::station(&mut root).start();
        let mut node = Setup::node(&mut root).start();
        let (at_station, at_node) = (station.endpoint.listen_addr(), node.endpoint.listen_addr());
        tokio::join!(station.dial(at_node), node.dial(at_station));
        station.link(node.id()).await.try_send(numbered(1)).expect("room");
        node.link(station.id()).await.try_send(numbered(1)).expect("room");
        let (mut by_station, mut by_node) = (LinkObserver::default(), LinkObserver::default());
        receive_frame(&mut station, &mut by_station).await;
        receive_frame(&mut node, &mut by_node).await;
        pairs.push((station, by_station, node, by_node));
    }
    // Long enough for every dial that was still in progress.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (mut station, mut by_station, mut node, mut by_node) in pairs {
        while let Ok(event) = station.events.peers.try_recv() {
            by_station.observe(&event);
        }
        while let Ok(event) = node.events.peers.try_recv() {
            by_node.observe(&event);
        }
        let station_dialled = by_station.up.expect("a link") == node.endpoint.listen_addr();
        let node_dialled = by_node.up.expect("a link") == station.endpoint.listen_addr();
        assert!(station_dialled != node_dialled, "they do not agree on the link");
        assert_eq!(
            (by_station.ups, by_node.ups),
            (1, 1),
            "one link is replaced by the other"
        );
        assert!(
            station.events.notices.try_recv().is_err(),
            "nothing here is the operator's business"
        );
    }
}

/// Known by mDNS, which tells the beginning of its id, or only by its addresses.
#[tokio::test]
async fn peer_with_many_addresses_is_linked_once() {
    let mut root = fleet();
    for round in 0..10 {
        let on_all_addresses = |mut setup: Setup| {
            setup.listen = SocketAddr::from(([0, 0, 0, 0], 0));
            setup.start()
        };
        let mut station = on_all_addresses(Setup::station(&mut root));
        let mut node = on_all_addresses(Setup::node(&mut root));
        for (from, to) in [(&station, &node), (&node, &station)] {
            let id = to.id();
            for host in 1..=8 {
                let addr = SocketAddr::from(([127, 0, 0, host], to.endpoint.listen_addr().port()));
                let (source, hint) = match (round % 2, id.0.first_chunk()) {
                    (0, Some(prefix)) => (Source::Mdns, Hint::IdPrefix(*prefix)),
                    _ => (Source::Static, Hint::None),
                };
                from.endpoint.address_discovered(addr, source, hint).await;
            }
        }
        let (mut by_station, mut by_node) = (LinkObserver::default(), LinkObserver::default());
        station.link(node.id()).await.try_send(numbered(1)).expect("room");
        node.link(station.id()).await.try_send(numbered(1)).expect("room");
        receive_frame(&mut station, &mut by_station).await;
        receive_frame(&mut node, &mut by_node).await;
        // Long enough for the dials of all addresses.
        tokio::time::sleep(Duration::from_millis(500)).await;
        while let Ok(event) = station.events.peers.try_recv() {
            by_station.observe(&event);
        }
        while let Ok(event) = node.events.peers.try_recv() {
            by_node.observe(&event);
        }
        assert_eq!((by_station.ups, by_node.ups), (1, 1), "round {round}");
    }
}

#[tokio::test]
async fn duplicate_key_is_reported_and_the_first_stays_linked() {
    let mut root = fleet();
    let beat = Duration::from_millis(300);
    let mut station = Setup::station(&mut root).heartbeat(beat).start();
    let mut first = Setup::node(&mut root).heartbeat(beat);
    first.name = "drone-1";
    let key = first.key.clone();
    let member: Membership = membership(&mut root, &key, Role::Node);
    let mut first = first.start();
    first.dial(station.endpoint.listen_addr()).await;
    assert_eq!(station.wait_for_up().await.0.name.as_str(), "drone-1");
    first.wait_for_up().await;

    let mut second = Setup::without_fleet(PeerKind::Node, "drone-2").heartbeat(beat);
    second.key = key;
    second.membership = Some(member);
    let mut second = second.start();
    second.dial(station.endpoint.listen_addr()).await;
    let told = loop {
        if let Notice::ClonedKey { id, linked, other } = station.next_notice().await {
            assert_eq!(id, first.id());
            break (linked, other);
        }
    };
    let (linked, other) = told;
    assert_eq!((linked.0.as_str(), other.0.as_str()), ("drone-1", "drone-2"));
    assert!(linked.1.ip().is_loopback() && other.1.ip().is_loopback());
    assert_ne!(linked.1, other.1);
    let code = swarm_shared::proto::message::RefusalCode::ClonedKey;
    let (by_us, refused) = second.wait_for_refusal(code).await;
    assert!(!by_us && refused.reason.contains("drone-1"), "{refused}");
    while let Ok(event) = station.events.peers.try_recv() {
        assert!(
            !matches!(event, PeerEvent::Disconnected { .. }),
            "the first lost its link"
        );
    }
    assert!(
        first.events.peers.try_recv().is_err(),
        "the first noticed something"
    );
}

#[tokio::test]
async fn restarted_program_replaces_its_old_link_at_once() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let node = Setup::node(&mut root);
    let (key, member) = (node.key.clone(), node.membership.clone());
    let mut node = node.start();
    node.dial(station.endpoint.listen_addr()).await;
    station.wait_for_up().await;
    node.wait_for_up().await;
    node.endpoint.shutdown().await;
    let mut again = Setup::without_fleet(PeerKind::Node, "drone-1");
    (again.key, again.membership) = (key, member);
    let again = again.start();
    let started = clock::now();
    again.dial(station.endpoint.listen_addr()).await;
    let (_peer, resumed) = station.wait_for_up().await;
    assert!(!resumed);
    assert!(
        clock::since(started) < Duration::from_secs(5),
        "took {:?}",
        clock::since(started)
    );
}

#[tokio::test]
async fn ipv4_peers_of_an_ipv6_listener_have_ipv4_addresses() {
    let mut root = fleet();
    let mut setup = Setup::station(&mut root);
    setup.listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let mut station = setup.start();
    let node = Setup::node(&mut root).start();
    let port = station.endpoint.listen_addr().port();
    node.dial(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let (peer, _resumed) = station.wait_for_up().await;
    assert!(peer.addr.is_ipv4(), "{}", peer.addr);
    assert_eq!(peer.listen_addr, node.endpoint.listen_addr());
}
