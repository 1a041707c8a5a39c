//! Hostile and malformed connections.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::BytesMut;
use swarm_shared::net::endpoint::PREAUTH_PER_SOURCE_MAX;
use swarm_shared::net::{clock, tls};
use swarm_shared::proto::id::{Instance, NodeName, PeerKind};
use swarm_shared::proto::message::{Channel, Hello, PROTOCOL_VERSIONS, RefusalCode, Refused, VersionRange};
use swarm_shared::proto::trust::{Membership, Role, SigningKey};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::common::{Program, Setup, TEST_TIMEOUT, fleet, key, linked, membership, numbered};

/// A peer that sends arbitrary frames and bytes.
struct RawPeer {
    stream: TlsStream<TcpStream>,
    reader: FrameReader,
    incoming: BytesMut,
}

impl RawPeer {
    async fn dial(addr: SocketAddr, key: &SigningKey) -> Self {
        let tcp = TcpStream::connect(addr).await.expect("connects");
        let connector = TlsConnector::from(tls::client_config(key).expect("a good key"));
        let stream = connector
            .connect(tls::server_name(), tcp)
            .await
            .expect("any key will do");
        Self {
            stream: stream.into(),
            reader: FrameReader::new(FrameLimits::CONTROL),
            incoming: BytesMut::new(),
        }
    }

    async fn send(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).expect("it encodes");
        self.write(&bytes).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The other side may close at any time.
        self.stream.write_all(bytes).await.ok();
        self.stream.flush().await.ok();
    }

    /// The next frame; `None` at the end.
    async fn receive(&mut self) -> Option<Frame> {
        let heard = async {
            loop {
                if let Some(frame) = self.reader.next_frame(&mut self.incoming).expect("good frames") {
                    return Some(frame);
                }
                match self.stream.read_buf(&mut self.incoming).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return None,
                }
            }
        };
        timeout(TEST_TIMEOUT, heard).await.expect("an answer in time")
    }

    /// Reads until it is refused.
    async fn refused(&mut self) -> Refused {
        loop {
            let frame = self.receive().await.expect("a refusal before the end");
            if frame.header.kind == Some(Kind::Refused) {
                return frame.parse_content().expect("readable");
            }
        }
    }
}

fn hello(membership: &Membership) -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS,
        channel: Channel::Control,
        kind: PeerKind::Node,
        name: NodeName::parse("raw").expect("a name"),
        instance: Instance(1),
        port: 0,
        tags: std::collections::BTreeMap::new(),
        software: "raw".to_owned(),
        grant: Some(membership.grant().clone()),
        fleet_state: 0,
        small_segments: false,
    }
}

/// A station, and the hello of a member that it accepts.
fn station_and_member() -> (Program, SigningKey, Hello) {
    let mut root = fleet();
    let station = Setup::station(&mut root).start();
    let key = key();
    let hello = hello(&membership(&mut root, &key, Role::Node));
    (station, key, hello)
}

/// A valid peer links with the station, whatever happened before.
async fn check_still_links(station: &mut Program, key: &SigningKey, hello: &Hello) {
    let mut raw = RawPeer::dial(station.endpoint.listen_addr(), key).await;
    raw.send(&Frame::json(Kind::Hello, hello)).await;
    let first = raw.receive().await.expect("a hello");
    assert_eq!(first.header.kind, Some(Kind::Hello));
    let second = raw.receive().await.expect("a welcome");
    assert_eq!(second.header.kind, Some(Kind::Welcome));
}

#[tokio::test]
async fn other_protocol_version_is_refused_on_both_sides() {
    let (mut station, key, mut hello) = station_and_member();
    hello.versions = VersionRange { min: 2, max: 3 };
    let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
    raw.send(&Frame::json(Kind::Hello, &hello)).await;
    let seen = raw.refused().await;
    assert_eq!(seen.code, RefusalCode::Version);
    assert!(seen.reason.contains("same release"), "{seen}");
    assert_eq!(station.wait_for_refusal(RefusalCode::Version).await, (true, seen));
}

#[tokio::test]
async fn invalid_hello_is_refused_with_a_reason() {
    let (mut station, key, good) = station_and_member();
    let mut huge = good.clone();
    huge.software = "x".repeat(20_000);
    let early = Frame::json(Kind::Command, &());
    for (frame, word) in [
        (Frame::json(Kind::Hello, &huge), "longer than"),
        (Frame::json(Kind::Hello, &7), "unreadable hello"),
        (early, "expected a hello"),
    ] {
        let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
        raw.send(&frame).await;
        let refused = raw.refused().await;
        assert_eq!(refused.code, RefusalCode::Protocol);
        assert!(refused.reason.contains(word), "{refused}");
        assert_eq!(
            station.wait_for_refusal(RefusalCode::Protocol).await,
            (true, refused)
        );
    }
    let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
    raw.write(b"\x00\x05hello, world").await;
    assert_eq!(raw.refused().await.code, RefusalCode::Protocol);
    check_still_links(&mut station, &key, &good).await;
}

#[tokio::test]
async fn frames_before_the_welcome_close_the_link() {
    let (mut station, key, good) = station_and_member();
    let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
    raw.send(&Frame::json(Kind::Hello, &good)).await;
    raw.send(&Frame::json(Kind::Reply, &())).await;
    while let Some(frame) = raw.receive().await {
        assert!(
            matches!(frame.header.kind, Some(Kind::Hello | Kind::Welcome)),
            "{frame:?}"
        );
    }
    assert!(station.events.peers.try_recv().is_err(), "it was never up");
    check_still_links(&mut station, &key, &good).await;
}

#[tokio::test]
async fn member_that_sends_no_welcome_is_dropped() {
    let (mut station, key, good) = station_and_member();
    let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
    raw.send(&Frame::json(Kind::Hello, &good)).await;
    let started = clock::now();
    while raw.receive().await.is_some() {}
    let took = clock::since(started);
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert!(station.events.peers.try_recv().is_err(), "it was never up");
}

/// Bytes that are not TLS, TLS without a key, and no bytes at all: each connection closes, and nothing else is
/// affected.
#[tokio::test]
async fn foreign_connections_are_closed_without_side_effects() {
    let (mut station, key, good) = station_and_member();
    let addr = station.endpoint.listen_addr();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"\x00\x10{\"byteorder\":1}",
    ] {
        let mut tcp = TcpStream::connect(addr).await.expect("connects");
        tcp.write_all(garbage).await.ok();
        let mut sink = Vec::new();
        let closed = timeout(TEST_TIMEOUT, tcp.read_to_end(&mut sink)).await;
        assert!(closed.is_ok(), "it was not closed");
    }
    let anonymous =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await.expect("connects");
    let connector = TlsConnector::from(std::sync::Arc::new(anonymous));
    connector
        .connect(tls::server_name(), tcp)
        .await
        .expect_err("no key, no link");
    check_still_links(&mut station, &key, &good).await;
    assert!(
        station.events.notices.try_recv().is_err(),
        "nothing here is the operator's business"
    );
}

#[tokio::test]
async fn silent_connection_is_closed_after_five_seconds() {
    let (station, key, _good) = station_and_member();
    let started = clock::now();
    let mut silent = TcpStream::connect(station.endpoint.listen_addr())
        .await
        .expect("connects");
    // The TLS handshake, and then nothing.
    let mut half = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
    let mut sink = Vec::new();
    let read = timeout(TEST_TIMEOUT, silent.read_to_end(&mut sink)).await;
    read.expect("closed in time").ok();
    while half.receive().await.is_some() {}
    let took = clock::since(started);
    assert!(
        took > Duration::from_secs(4) && took < Duration::from_secs(10),
        "{took:?}"
    );
}

/// At most 64 unauthenticated connections are handled at once; the others wait in the kernel. So 200 silent ones
/// delay a valid peer by their time-outs, 64 every five seconds, and no longer. Linked peers are not affected.
#[tokio::test]
async fn silent_connections_only_delay_a_good_peer() {
    let mut root = fleet();
    let (mut station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(
            TcpStream::connect(station.endpoint.listen_addr())
                .await
                .expect("connects"),
        );
    }
    let late = Setup::member(&mut root, PeerKind::Node, Role::Node, "late").start();
    late.dial(station.endpoint.listen_addr()).await;
    let asked = clock::now();
    station.link(node.id()).await.try_send(numbered(1)).expect("room");
    node.next_frame().await;
    assert!(
        clock::since(asked) < Duration::from_secs(2),
        "a linked peer was disturbed"
    );
    let up = timeout(TEST_TIMEOUT * 2, async {
        loop {
            if let Some(swarm_shared::net::peer::PeerEvent::Connected { peer, .. }) =
                station.events.peers.recv().await
            {
                return peer;
            }
        }
    });
    assert_eq!(up.await.expect("linked in the end").id, late.id());
    drop(silent);
}

/// An address of this machine that others could dial; `None` if it has no network.
fn lan_address() -> Option<IpAddr> {
    // Nothing is sent: this only asks the kernel for the route.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.connect("198.51.100.1:9").ok()?;
    let ip = socket.local_addr().expect("bound").ip();
    (!ip.is_loopback()).then_some(ip)
}

/// One host has eight slots; further connections of it are closed at once, and other hosts are served as usual.
#[tokio::test]
async fn one_host_cannot_exhaust_the_preauth_slots() {
    let Some(host) = lan_address() else {
        return eprintln!("skipped: this machine has no address but its own");
    };
    let mut root = fleet();
    let mut setup = Setup::station(&mut root);
    setup.listen = ([0, 0, 0, 0], 0).into();
    let mut station = setup.start();
    let port = station.endpoint.listen_addr().port();
    let started = clock::now();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect((host, port)).await.expect("connects"));
    }
    let late = Setup::member(&mut root, PeerKind::Node, Role::Node, "late").start();
    late.dial(([127, 0, 0, 1], port).into()).await;
    assert_eq!(station.wait_for_up().await.0.id, late.id());
    let mut held = 0;
    for tcp in &mut silent {
        let mut sink = Vec::new();
        let closed = timeout(Duration::from_millis(200), tcp.read_to_end(&mut sink)).await;
        held += usize::from(closed.is_err());
    }
    let took = clock::since(started);
    assert!(
        took < Duration::from_secs(5),
        "{took:?}: they may have been given up by now"
    );
    assert_eq!(held, PREAUTH_PER_SOURCE_MAX);
}

/// An acknowledgement of a frame that was never sent, a gap and a malformed frame each cost the link, and nothing
/// else.
#[tokio::test]
async fn protocol_violation_costs_only_the_members_link() {
    let (mut station, key, good) = station_and_member();
    let breaks: [fn() -> Vec<u8>; 3] = [
        || {
            let mut frame = Frame::json(Kind::Heartbeat, &());
            frame.header.ack = Some(1_000);
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes).expect("it encodes");
            bytes.to_vec()
        },
        || {
            let mut frame = Frame::json(Kind::Reply, &());
            frame.header.seq = Some(5);
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes).expect("it encodes");
            bytes.to_vec()
        },
        || vec![0xff; 300],
    ];
    for (run, broken) in (10..).zip(breaks) {
        let mut hello = good.clone();
        hello.instance = Instance(run);
        let mut raw = RawPeer::dial(station.endpoint.listen_addr(), &key).await;
        raw.send(&Frame::json(Kind::Hello, &hello)).await;
        raw.receive().await.expect("a hello");
        let theirs = raw.receive().await.expect("a welcome");
        let mut welcome: swarm_shared::proto::message::Welcome = theirs.parse_content().expect("readable");
        std::mem::swap(&mut welcome.instance, &mut welcome.peer_instance);
        welcome.received = 0;
        raw.send(&Frame::json(Kind::Welcome, &welcome)).await;
        station.wait_for_up().await;
        raw.write(&broken()).await;
        station.wait_for_down().await;
        while raw.receive().await.is_some() {}
    }
    let mut hello = good.clone();
    hello.instance = Instance(99);
    check_still_links(&mut station, &key, &hello).await;
}
