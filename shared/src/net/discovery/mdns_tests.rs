//! The published records, the checks of received ones, and one exchange over real multicast.

use super::*;

fn announcement(name: &str, listen: &str) -> Announcement {
    Announcement {
        kind: PeerKind::Node,
        id: Prefix([0xa1, 2, 3, 4, 5, 6, 7, 8]),
        name: NodeName::parse(name).expect("a name"),
        fleet: Some(Prefix([9; 8])),
        listen: listen.parse().expect("an address"),
    }
}

fn resolved(of: &Announcement) -> ResolvedService {
    service_info(of).expect("valid").as_resolved_service()
}

#[test]
fn mdns_announcement_round_trips() {
    for kind in [PeerKind::Node, PeerKind::Station] {
        for fleet in [None, Some(Prefix([9; 8]))] {
            let published = Announcement {
                kind,
                fleet,
                ..announcement("drone-07", "10.0.0.7:7420")
            };
            let received = parse_announcement(kind, &resolved(&published)).expect("a valid record");
            assert_eq!(received.kind, kind);
            assert_eq!(received.id, published.id);
            assert_eq!(received.name, published.name);
            assert_eq!(received.fleet, published.fleet);
            assert_eq!(received.addrs, [published.listen]);
            let expected = format!("drone-07-a102030405060708.{}", service_type(kind));
            assert_eq!(received.instance, expected);
        }
    }
}

#[test]
fn longest_name_fits_a_dns_label_and_round_trips() {
    let published = announcement(&"x".repeat(NAME_BYTES_MAX), "10.0.0.7:7420");
    let received = parse_announcement(PeerKind::Node, &resolved(&published)).expect("a valid record");
    let label = received.instance.split('.').next().expect("a label");
    assert_eq!(label.len(), 63);
    assert_eq!(received.name, published.name);
}

#[test]
fn foreign_or_malformed_announcements_are_ignored() {
    let good = [
        ("v", "1"),
        ("id", "a102030405060708"),
        ("name", "drone-07"),
        ("fleet", "0909090909090909"),
    ];
    let with = |key: &str, value: Option<&str>, ip: &str, port| {
        let txt: Vec<(&str, &str)> = good
            .iter()
            .filter_map(|&(k, v)| {
                if k == key {
                    value.map(|v| (k, v))
                } else {
                    Some((k, v))
                }
            })
            .collect();
        let kind = service_type(PeerKind::Node);
        let info = ServiceInfo::new(kind, "x", "x.local.", ip, port, &txt[..]).expect("valid mDNS");
        parse_announcement(PeerKind::Node, &info.as_resolved_service())
    };
    assert!(with("", None, "10.0.0.7", 1).is_some());
    for (key, value) in [
        ("v", Some("2")),
        ("v", None),
        ("id", None),
        ("id", Some("a1")),
        ("id", Some("+102030405060708")),
        ("name", Some("no spaces")),
        ("name", None),
        ("fleet", Some("0")),
    ] {
        assert_eq!(with(key, value, "10.0.0.7", 1), None, "{key} {value:?}");
    }
    assert_eq!(with("", None, "", 1), None, "no address");
    assert_eq!(with("", None, "0.0.0.0", 1), None, "no usable address");
    assert_eq!(with("", None, "10.0.0.7", 0), None, "no port");
    let crowd: Vec<String> = (1..100).map(|i| format!("10.0.0.{i}")).collect();
    let many = with("", None, &crowd.join(","), 1).expect("a valid record");
    assert_eq!(many.addrs.len(), PEER_ADDRESSES_MAX);
    let mixed = with("", None, "fe80::1,2001:db8::1,10.0.0.7,127.0.0.1", 1).expect("a valid record");
    let order: Vec<String> = mixed.addrs.iter().map(|a| a.ip().to_string()).collect();
    assert_eq!(order, ["127.0.0.1", "10.0.0.7", "2001:db8::1", "fe80::1"]);
}

#[test]
fn id_prefix_hex_round_trips() {
    let prefix = Prefix::of(&[0xab; 32]);
    assert_eq!(prefix.to_string(), "abababababababab");
    assert_eq!(Prefix::parse("abababababababab"), Some(prefix));
    for bad in [
        "",
        "ab",
        "zzzzzzzzzzzzzzzz",
        "+bababababababab",
        "ababababababababab",
    ] {
        assert_eq!(Prefix::parse(bad), None, "{bad}");
    }
}

/// On loopback alone: the record names only 127.0.0.1. Announcements of other tests may arrive too.
#[tokio::test]
async fn mdns_reports_peer_discovered_renamed_and_lost() {
    // Tests run in several processes at once, so the id has to differ between them.
    let mut id = [0x7e; 8];
    id[..4].copy_from_slice(&std::process::id().to_be_bytes());
    let mut published = Announcement {
        id: Prefix(id),
        ..announcement("drone-07", "127.0.0.1:7420")
    };
    let mut node = MdnsSd::start().expect("starts");
    let mut station = MdnsSd::start().expect("starts");
    let (sender, mut sightings) = mpsc::channel(16);
    station.browse(PeerKind::Node, sender).expect("browses");

    node.publish(published.clone()).expect("publishes");
    let found = next(&mut sightings, published.id, |s| {
        matches!(s, DiscoveryEvent::Discovered(_))
    })
    .await;
    let DiscoveryEvent::Discovered(found) = found else {
        panic!("{found:?}")
    };
    assert_eq!(found.name, published.name);
    assert_eq!(found.addrs, [published.listen]);

    published.listen.set_port(7999);
    node.publish(published.clone()).expect("publishes");
    next(
        &mut sightings,
        published.id,
        |s| matches!(s, DiscoveryEvent::Discovered(found) if found.addrs == [published.listen]),
    )
    .await;

    published.fleet = None;
    node.publish(published.clone()).expect("publishes");
    next(
        &mut sightings,
        published.id,
        |s| matches!(s, DiscoveryEvent::Discovered(found) if found.fleet.is_none()),
    )
    .await;

    published.name = NodeName::parse("drone-08").expect("a name");
    node.publish(published.clone()).expect("publishes");
    let (mut old_gone, mut new_there) = (false, false);
    while !(old_gone && new_there) {
        match next(&mut sightings, published.id, |_| true).await {
            DiscoveryEvent::Discovered(found) => new_there |= found.name == published.name,
            DiscoveryEvent::Lost { instance, .. } => old_gone |= instance == found.instance,
        }
    }

    node.shutdown().await;
    next(&mut sightings, published.id, |s| {
        matches!(s, DiscoveryEvent::Lost { .. })
    })
    .await;
    station.shutdown().await;
    // What was on its way is still read; then the channel ends.
    while sightings.recv().await.is_some() {}
}

/// As a program of another system would look for it.
#[tokio::test]
async fn foreign_service_is_discoverable_over_mdns() {
    let mut station = MdnsSd::start().expect("starts");
    let instance = format!("field-{}", std::process::id());
    let service = Service {
        kind: "_platypush-tcp._tcp.local.",
        instance: instance.clone(),
        listen: "127.0.0.1:1234".parse().expect("an address"),
        txt: vec![
            ("name", "field".to_owned()),
            ("vendor", "ground-station".to_owned()),
        ],
    };
    station
        .publish_service(Prefix([0x7f, 2, 3, 4, 5, 6, 7, 8]), &service)
        .expect("offers");
    let other = ServiceDaemon::new().expect("starts");
    let events = other.browse(service.kind).expect("browses");
    let search = async {
        loop {
            let event = events.recv_async().await.expect("still browsing");
            if let ServiceEvent::ServiceResolved(found) = event
                && found.get_fullname() == format!("{instance}.{}", service.kind)
            {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), search)
        .await
        .expect("received in time");
    assert_eq!(found.get_port(), 1234);
    assert_eq!(found.get_property_val_str("name"), Some("field"));
    assert_eq!(found.get_property_val_str("vendor"), Some("ground-station"));
    station.shutdown().await;
    drop(other.shutdown());
}

async fn next(
    sightings: &mut mpsc::Receiver<DiscoveryEvent>,
    of: Prefix,
    wanted: impl Fn(&DiscoveryEvent) -> bool,
) -> DiscoveryEvent {
    let search = async {
        loop {
            let sighting = sightings.recv().await.expect("still browsing");
            let id = match &sighting {
                DiscoveryEvent::Discovered(found) => found.id,
                DiscoveryEvent::Lost { id, .. } => *id,
            };
            if id == of && wanted(&sighting) {
                return sighting;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search)
        .await
        .expect("received in time")
}
