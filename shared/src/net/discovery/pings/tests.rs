//! Datagrams on loopback, and buckets with time moved by hand.

use super::super::interfaces;
use super::*;
use crate::proto::id::NodeName;

const TEST_TIMEOUT: Duration = Duration::from_secs(5);

fn source(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

#[test]
fn one_source_is_limited_to_its_burst_then_its_rate() {
    let start = clock::now();
    let mut rates = RateLimiter::new(PING_LIMITS);
    let allowed = |rates: &mut RateLimiter, now| (0..1000).filter(|_| rates.allow(source(1), now)).count();
    assert_eq!(allowed(&mut rates, start), 32);
    assert_eq!(allowed(&mut rates, start + Duration::from_secs(1)), 8);
    assert!(rates.allow(source(2), start), "others are not affected");
    assert_eq!(allowed(&mut rates, start + Duration::from_secs(3600)), 32);
}

#[test]
fn all_sources_are_bounded_in_total_rate_and_memory() {
    let start = clock::now();
    let mut rates = RateLimiter::new(PING_LIMITS);
    let many = u32::try_from(SOURCES_MAX).expect("small") * 2;
    let allowed = (0..many).filter(|n| rates.allow(source(*n), start)).count();
    assert_eq!(allowed, usize::try_from(PINGS_PER_S).expect("small"));
    assert_eq!(rates.sources.len(), SOURCES_MAX);
    let later = start + Duration::from_secs(60);
    assert!(rates.allow(source(many + 1), later), "the silent make room");
    assert_eq!(rates.sources.len(), 1);
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a free port");
    socket.local_addr().expect("bound").port()
}

#[tokio::test]
async fn every_local_receiver_gets_each_ping_round() {
    let shutdown = CancellationToken::new();
    let _stopped_at_the_end = shutdown.clone().drop_guard();
    let port = free_port();
    let mut receivers = Vec::new();
    for _ in 0..3 {
        let (sender, datagrams) = mpsc::channel(64);
        tokio::spawn(receive(
            listen(port).expect("shared"),
            sender,
            None,
            shutdown.clone(),
        ));
        receivers.push(datagrams);
    }
    let mut round = 0_u8;
    let interfaces = interfaces::watch(shutdown.clone());
    let ping = move || {
        round += 1;
        vec![round; PING_BYTES_MAX]
    };
    tokio::spawn(send(port, interfaces, ping, shutdown.clone()));
    for ear in &mut receivers {
        for expected in 1..=2_u8 {
            let received = tokio::time::timeout(TEST_TIMEOUT, async {
                loop {
                    let datagram = ear.recv().await.expect("still listening");
                    if datagram.bytes[0] == expected && datagram.from.ip().is_loopback() {
                        return datagram;
                    }
                }
            });
            let received = received.await.expect("in time");
            assert_eq!(received.bytes, vec![expected; PING_BYTES_MAX]);
        }
    }
}

#[tokio::test]
async fn oversize_datagram_is_dropped() {
    let shutdown = CancellationToken::new();
    let _stopped_at_the_end = shutdown.clone().drop_guard();
    let port = free_port();
    let (sender, mut datagrams) = mpsc::channel(64);
    tokio::spawn(receive(listen(port).expect("free"), sender, None, shutdown));
    let out = open_send_socket(Ipv4Addr::LOCALHOST).expect("a socket");
    for length in [PING_BYTES_MAX + 1, 60_000, PING_BYTES_MAX] {
        out.send_to(&vec![0; length], ("127.0.0.1", port))
            .await
            .expect("sent");
    }
    let received = tokio::time::timeout(TEST_TIMEOUT, datagrams.recv()).await;
    let received = received.expect("in time").expect("still listening");
    assert_eq!(received.bytes.len(), PING_BYTES_MAX);
}

#[tokio::test]
async fn missing_interface_does_not_block_the_others() {
    let shutdown = CancellationToken::new();
    let _stopped_at_the_end = shutdown.clone().drop_guard();
    let port = free_port();
    let (sender, mut datagrams) = mpsc::channel(64);
    tokio::spawn(receive(
        listen(port).expect("free"),
        sender,
        None,
        shutdown.clone(),
    ));
    let gone = InterfaceAddr {
        index: 999,
        name: "gone0".to_owned(),
        ip: "192.0.2.1".parse().expect("an address"),
        broadcast: Some(Ipv4Addr::new(192, 0, 2, 255)),
    };
    let loopback = InterfaceAddr {
        index: 1,
        name: "lo".to_owned(),
        ip: Ipv4Addr::LOCALHOST.into(),
        broadcast: Some(Ipv4Addr::new(127, 255, 255, 255)),
    };
    let (change, interfaces) = watch::channel(Interfaces::from([gone.clone()]));
    tokio::spawn(send(port, interfaces, || b"ping".to_vec(), shutdown));
    // Later than the first round, so that only the change can bring a ping this soon.
    tokio::time::sleep(Duration::from_millis(100)).await;
    change
        .send(Interfaces::from([gone, loopback]))
        .expect("still sending");
    let soon = PING_INTERVAL / 2;
    let received = tokio::time::timeout(soon, datagrams.recv()).await;
    assert_eq!(received.expect("at once").expect("listening").bytes, b"ping");
}

#[tokio::test]
async fn exclusive_ping_port_error_names_port_and_option() {
    let taken = std::net::UdpSocket::bind("0.0.0.0:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let error = listen(port).expect_err("not shared").to_string();
    assert!(
        error.contains(&port.to_string()) && error.contains("--ping-port"),
        "{error}"
    );
}

#[tokio::test]
async fn ping_flood_passes_stops_and_repeats_are_dropped() {
    let shutdown = CancellationToken::new();
    let _stopped_at_the_end = shutdown.clone().drop_guard();
    let port = free_port();
    let (sender, _unread) = mpsc::channel(1);
    let (to, mut received) = mpsc::channel(64);
    let (change, stops) = stop_forwarder(to);
    tokio::spawn(receive(
        listen(port).expect("free"),
        sender,
        Some(stops),
        shutdown,
    ));
    let out = open_send_socket(Ipv4Addr::LOCALHOST).expect("a socket");
    for round in 0..100_u8 {
        out.send_to(&[7; PING_BYTES_MAX], ("127.0.0.1", port))
            .await
            .expect("sent");
        let order = [b"SWST".as_slice(), &[round / 50]].concat();
        out.send_to(&order, ("127.0.0.1", port)).await.expect("sent");
        tokio::task::yield_now().await;
    }
    for expected in 0..2 {
        let datagram = tokio::time::timeout(TEST_TIMEOUT, received.recv()).await;
        assert_eq!(datagram.expect("in time").expect("listening").bytes[4], expected);
    }
    assert!(received.try_recv().is_err(), "a stop is forwarded once");
    // A stop that was ignored may be accepted now.
    let order = [b"SWST".as_slice(), &[1]].concat();
    for round in 0..4 {
        if round % 2 == 0 {
            change.membership.send_replace(None);
        } else {
            change
                .profile
                .send_modify(|profile| profile.name = NodeName::from_host("other"));
        }
        for _repeat in 0..2 {
            out.send_to(&order, ("127.0.0.1", port)).await.expect("sent");
        }
        let datagram = tokio::time::timeout(TEST_TIMEOUT, received.recv()).await;
        assert_eq!(datagram.expect("in time").expect("listening").bytes, order);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(received.try_recv().is_err(), "forwarded once for each change");
    }
}

/// As many datagrams as a stop of 760 named nodes has, in rounds as its sender repeats them.
#[tokio::test]
async fn every_order_of_a_long_stop_is_heard() {
    const ORDERS: u8 = 84;
    let shutdown = CancellationToken::new();
    let _stopped_at_the_end = shutdown.clone().drop_guard();
    let port = free_port();
    let (sender, _unread) = mpsc::channel(1);
    let (to, mut heard) = mpsc::channel(usize::from(ORDERS));
    let (_context, stops) = stop_forwarder(to);
    tokio::spawn(receive(
        listen(port).expect("free"),
        sender,
        Some(stops),
        shutdown,
    ));
    let out = open_send_socket(Ipv4Addr::LOCALHOST).expect("a socket");
    let mut orders = std::collections::BTreeSet::new();
    for _round in 0..10 {
        for number in 0..ORDERS {
            let order = [b"SWST".as_slice(), &[number]].concat();
            out.send_to(&order, ("127.0.0.1", port)).await.expect("sent");
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        while let Ok(datagram) = heard.try_recv() {
            assert!(orders.insert(datagram.bytes), "each order once");
        }
        if orders.len() == usize::from(ORDERS) {
            return;
        }
    }
    panic!("{} of {ORDERS} orders were heard", orders.len());
}

/// By what stops are judged.
struct StopContext {
    membership: watch::Sender<Option<Arc<Membership>>>,
    profile: watch::Sender<Profile>,
}

fn stop_forwarder(to: mpsc::Sender<Datagram>) -> (StopContext, StopForwarder) {
    let change = StopContext {
        membership: watch::Sender::new(None),
        profile: watch::Sender::new(Profile {
            name: NodeName::from_host("n1"),
            tags: BTreeMap::new(),
            port: 0,
        }),
    };
    let stops = StopForwarder {
        sender: to,
        membership: change.membership.subscribe(),
        profile: change.profile.subscribe(),
    };
    (change, stops)
}

#[test]
fn forged_stops_are_rate_limited_in_total() {
    let start = clock::now();
    let mut rates = RateLimiter::new(STOP_LIMITS);
    let allowed = (0..5_000)
        .filter(|n| rates.allow(source(*n % 900), start))
        .count();
    assert_eq!(allowed, usize::try_from(STOP_LIMITS.total_per_s).expect("small"));
}
