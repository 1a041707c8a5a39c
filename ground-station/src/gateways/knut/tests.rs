//! The gateway over real connections.

mod temperatures;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use swarm_shared::proto::foreign::knut::{Decoder, Item, TERMINATOR};
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::selector::Selector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::config::gateways::{CommonOptions, GatewaysConfig};
use crate::engine::transport::bridge::BridgedDevices;
use crate::gateways::Gateways;
use crate::gateways::framing::StreamError;
use crate::gateways::listener::ConnectionPermit;
use crate::gateways::tests::{test_advertisement, test_context};
use crate::store::Store;
use swarm_shared::api::{ActRequest, Event, NodeRef, NodeState, NodeView, NodesRequest, Request, Warning};
use swarm_shared::client::{Fleet, RequestEnvelope};

fn config(more: &str) -> KnutConfig {
    let mut config = crate::config::Config::for_host("pi");
    let text =
        format!("[gateways.knut]\nlisten = \"127.0.0.1:0\"\ntemperature = \"env.heat\"\nhistory = 3\n{more}");
    config
        .read_file(std::path::Path::new("config.toml"), &text)
        .expect("reads");
    config.gateways.knut.expect("open")
}

fn node(number: u8, name: &str) -> NodeRef {
    NodeRef {
        node: NodeName::from_host(name),
        id: PeerId([number; 32]),
    }
}

fn view(number: u8, name: &str, state: NodeState) -> Event {
    let NodeRef { node, id } = node(number, name);
    Event::Node(NodeView {
        node,
        id,
        state,
        kind: PeerKind::Node,
        address: None,
        last_heard_ms: None,
        tags: BTreeMap::from([("row".to_owned(), number.to_string())]),
        software: None,
        warnings: Vec::new(),
        stopped: None,
        stop_unconfirmed: None,
        checks: Vec::new(),
        telemetry: BTreeMap::new(),
    })
}

fn reading(number: u8, name: &str, heat: Value) -> Event {
    let Value::Object(values) = json!({"env": {"heat": heat}, "load": 1}) else {
        unreachable!()
    };
    Event::Telemetry {
        node: node(number, name),
        values,
    }
}

/// An open gateway with a scripted fleet.
struct Harness {
    gateways: Gateways,
    calls: mpsc::Receiver<RequestEnvelope>,
    addr: SocketAddr,
    /// Sends the events that the gateway follows.
    events: mpsc::Sender<Event>,
    dir: tempfile::TempDir,
}

impl Harness {
    async fn open(more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let (fleet, mut calls) = Fleet::local();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = free.local_addr().expect("an address");
        drop(free);
        let mut knut = config(more);
        knut.common.listen = addr;
        let gateways = GatewaysConfig {
            knut: Some(knut),
            ..GatewaysConfig::default()
        };
        let open = Gateways::open(
            &gateways,
            test_advertisement(),
            fleet,
            BridgedDevices::default(),
            store,
        );
        let open = open.await.expect("opens");
        let call = calls.recv().await.expect("the gateway follows");
        assert_eq!(call.request, NodesRequest::Follow { telemetry: true }.into());
        Self {
            gateways: open,
            calls,
            addr,
            events: call.events,
            dir,
        }
    }

    async fn connect(&self) -> KnutClient {
        let stream = TcpStream::connect(self.addr).await.expect("connects");
        KnutClient::new(stream)
    }
}

struct KnutClient {
    stream: TcpStream,
    decoder: Decoder,
    bytes: Vec<u8>,
}

impl KnutClient {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(1 << 20),
            bytes: Vec::new(),
        }
    }

    async fn send(&mut self, api: i64, id: i64, msg: Value) {
        let bytes = Message { api, id, msg }.encode();
        self.stream.write_all(&bytes).await.expect("heard");
    }

    /// The next message; `None` at the end.
    async fn receive(&mut self) -> Option<Item> {
        loop {
            let bytes = std::mem::take(&mut self.bytes);
            let mut left = &bytes[..];
            let item = self.decoder.decode_next(&mut left);
            self.bytes = left.to_vec();
            if item.is_some() {
                return item;
            }
            let mut buffer = vec![0; 4096];
            let count = self.stream.read(&mut buffer).await.unwrap_or_default();
            if count == 0 {
                return None;
            }
            buffer.truncate(count);
            self.bytes = buffer;
        }
    }

    async fn receive_message(&mut self) -> Message {
        loop {
            match self.receive().await {
                Some(Item::Message(message)) => return message,
                Some(Item::Heartbeat) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn action_is_sent_to_the_fleet_under_the_gateway_name() {
    let mut context = Harness::open("allow = [\"led\"]\nttl = \"7s\"").await;
    let mut client = context.connect().await;
    let msg = json!({"selector": "n1", "action": "led", "args": {"color": "red"}, "timeout": "1s"});
    client.send(api::FLEET_API, 2, msg).await;
    let call = context.calls.recv().await.expect("a call");
    assert_eq!(call.user, "knut from 127.0.0.1");
    let Request::Act(ActRequest::Command {
        selector,
        action,
        arguments,
        ttl_ms,
        timeout_ms,
        ..
    }) = call.request
    else {
        panic!("{:?}", call.request)
    };
    assert_eq!(
        (selector, action.as_str()),
        (Selector::parse("n1").expect("one"), "led")
    );
    assert_eq!(Value::Object(arguments.kwargs), json!({"color": "red"}));
    assert_eq!((ttl_ms, timeout_ms), (7_000, 1_000));
    call.events.send(Event::End).await.expect("read");
    let answer = client.receive_message().await;
    assert_eq!((answer.id, answer.msg), (0x0102, json!({"deliveries": []})));
    // A client that disconnects drops its request.
    client.send(api::FLEET_API, 2, json!({"action": "led"})).await;
    let call = context.calls.recv().await.expect("a call");
    drop(client);
    let gone = tokio::time::timeout(Duration::from_secs(5), call.events.closed()).await;
    assert!(gone.is_ok());
    context.gateways.close().await;
}

#[tokio::test]
async fn knut_refusals_are_audited() {
    let context = Harness::open("allow = [\"led\"]\ntoken = \"0123456789abcdef\"").await;
    let mut client = context.connect().await;
    let token = "0123456789abcdef";
    let wrong = [
        (1, json!({}), "not-allowed", "nodes", "wants its token"),
        (
            1,
            json!({"selector": "!", "token": token}),
            "usage",
            "nodes",
            "\"!\"",
        ),
        (
            1,
            json!({"target": "n1", "token": token}),
            "usage",
            "nodes",
            "`target` means nothing here: write selector",
        ),
        (
            2,
            json!({"action": "led"}),
            "not-allowed",
            "led",
            "wants its token",
        ),
        (2, json!({"token": token}), "usage", "call", "name the action"),
        (
            2,
            json!({"action": "fly", "ttl": 5, "token": token}),
            "usage",
            "fly",
            "`ttl`",
        ),
        (
            2,
            json!({"action": "dim", "args": 5, "token": token}),
            "usage",
            "dim",
            "`args`",
        ),
    ];
    for (id, msg, kind, _, _) in &wrong {
        client.send(api::FLEET_API, *id, msg.clone()).await;
        let answer = client.receive_message().await;
        assert_eq!(answer.msg["error"]["kind"], *kind, "{}", answer.msg);
    }
    context.gateways.close().await;
    let audit = crate::store::history::run_query(context.dir.path(), |connection| {
        crate::store::audit::newest(connection, 0, 100)
    });
    let audit = audit.await.expect("read").expect("there");
    assert_eq!(audit.len(), wrong.len(), "{audit:#?}");
    for (_, _, _, what, why) in wrong {
        let noted = audit.iter().any(|entry| {
            entry.action == what && entry.outcome.contains("not done: ") && entry.outcome.contains(why)
        });
        assert!(noted, "{what}, {why}: {audit:#?}");
    }
}

#[tokio::test]
async fn malformed_knut_messages_are_audited() {
    let context = Harness::open("").await;
    let mut client = context.connect().await;
    client.stream.write_all(b"nonsense\0").await.expect("heard");
    client.send(7, 7, json!("echo")).await;
    assert_eq!(client.receive_message().await.msg, "echo");
    let mut page = context.connect().await;
    let head = b"GET / HTTP/1.1\r\n\r\n";
    page.stream.write_all(head).await.expect("heard");
    assert!(page.receive().await.is_none(), "closed");
    context.gateways.close().await;
    let audit = crate::store::history::run_query(context.dir.path(), |connection| {
        crate::store::audit::newest(connection, 0, 100)
    });
    let audit = audit.await.expect("read").expect("there");
    for why in ["not done: ", "began with a request of HTTP"] {
        let noted = |entry: &crate::store::audit::AuditEntry| {
            entry.action == "message" && entry.user == "knut from 127.0.0.1" && entry.outcome.contains(why)
        };
        assert!(audit.iter().any(noted), "{why}: {audit:#?}");
    }
}

#[tokio::test]
async fn push_reaches_all_clients_and_shutdown_closes_them() {
    let context = Harness::open("").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = context.connect().await;
        client.send(99, 1, json!({})).await;
        assert_eq!(client.receive_message().await.api, 99);
        clients.push(client);
    }
    context
        .events
        .send(reading(1, "n1", json!(7)))
        .await
        .expect("heard");
    for client in &mut clients {
        assert_eq!(client.receive_message().await.msg["n1"]["temperature"], 7.0);
    }
    context.gateways.close().await;
    for mut client in clients {
        while let Some(item) = client.receive().await {
            assert_eq!(item, Item::Heartbeat);
        }
    }
}

fn test_permit() -> ConnectionPermit {
    ConnectionPermit::for_outgoing(SocketAddr::from(([127, 0, 0, 1], 1)), &CommonOptions::at(0))
}

/// The state of a gateway with default limits, and its context.
async fn test_state() -> (
    Arc<ServerState>,
    crate::gateways::GatewayContext,
    tempfile::TempDir,
) {
    let dir = tempfile::tempdir().expect("a directory");
    let context = test_context(Fleet::local().0, dir.path()).await;
    let config = config("");
    let state = ServerState {
        access: AccessPolicy::new(GATEWAY, &config.common, &context),
        temperatures: Mutex::new(TemperatureCache::new(&config)),
        pushes: broadcast::Sender::new(PUSHES_MAX),
        config,
    };
    (Arc::new(state), context, dir)
}

#[tokio::test]
async fn lagging_reader_gets_all_temperatures_again() {
    let (state, _house, _dir) = test_state().await;
    state.temperatures().on_event(reading(1, "n1", json!(1)));
    let pushes = state.pushes.subscribe();
    for _ in 0..PUSHES_MAX * 2 {
        state
            .pushes
            .send(Bytes::from_static(b"{}\0"))
            .expect("subscribed");
    }
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let (_answers, outgoing) = mpsc::channel(1);
    tokio::spawn({
        let state = Arc::clone(&state);
        async move { connection::write_loop(&state, ours, outgoing, pushes).await }
    });
    let mut text = vec![0; 1024];
    let count = theirs.read(&mut text).await.expect("reads");
    let first = text[..count]
        .split(|byte| *byte == TERMINATOR)
        .next()
        .expect("a message");
    let first = Message::parse(first).expect("a message");
    assert_eq!(first.msg["n1"]["temperature"], 1.0);
}

#[tokio::test(start_paused = true)]
async fn knut_client_that_does_not_read_is_closed() {
    let (state, _house, _dir) = test_state().await;
    let (ours, _theirs) = tokio::io::duplex(16);
    let (_answers, outgoing) = mpsc::channel(1);
    let started = tokio::time::Instant::now();
    let ended = connection::write_loop(&state, ours, outgoing, state.pushes.subscribe()).await;
    assert!(matches!(ended, Err(StreamError::ConnectionLost(_))), "{ended:?}");
    // The stream holds sixteen heartbeats.
    let waited = started.elapsed();
    assert!(
        waited >= Duration::from_secs(25) && waited <= Duration::from_secs(30),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_and_slow_senders_are_closed() {
    for (said, wanted) in [
        (&b""[..], "silent for 10s"),
        (b"\n\n", "silent for 10s"),
        (b"{\"api", "was not whole within 10s"),
        (b"\0{", "was not whole within 10s"),
    ] {
        let (state, _house, _dir) = test_state().await;
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (answers, _outgoing) = mpsc::channel(1);
        let permit = test_permit();
        theirs.write_all(said).await.expect("room");
        let started = tokio::time::Instant::now();
        let reading = connection::read_loop(&state, ours, &permit, answers);
        let ended = reading.await;
        let why = ended.expect_err("closed").to_string();
        assert!(why.contains(wanted), "{why}");
        assert!(
            started.elapsed() <= Duration::from_secs(11),
            "{:?}",
            started.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn client_may_stay_silent_after_its_first_message() {
    let (state, _house, _dir) = test_state().await;
    let (ours, mut theirs) = tokio::io::duplex(64);
    let (answers, _outgoing) = mpsc::channel(1);
    let permit = test_permit();
    theirs.write_all(b"\0").await.expect("room");
    let reading = connection::read_loop(&state, ours, &permit, answers);
    let long = tokio::time::timeout(Duration::from_secs(100_000), reading).await;
    assert!(long.is_err(), "{long:?}");
}

#[tokio::test]
async fn http_requests_are_rejected() {
    let hidden = "\0{\"apiId\": 1, \"msgId\": 2, \"msg\": {}}\0";
    for (head, wanted) in [
        ("POST / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n", true),
        ("\r\nM-SEARCH * HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("NONSENSE", false),
        (" nonsense of HTTP ", false),
    ] {
        // In one piece, and byte by byte.
        for size in [1024, 1] {
            let (state, _house, _dir) = test_state().await;
            let (ours, mut theirs) = tokio::io::duplex(size);
            let (answers, mut outgoing) = mpsc::channel(8);
            let said = format!("{head}{hidden}");
            let says = tokio::spawn(async move {
                // The gateway may have closed the connection meanwhile.
                let _closed = theirs.write_all(said.as_bytes()).await;
            });
            let permit = test_permit();
            let ended = connection::read_loop(&state, ours, &permit, answers).await;
            says.await.expect("said");
            assert_eq!(
                matches!(ended, Err(StreamError::ProtocolError(_))),
                wanted,
                "{head} {ended:?}"
            );
            assert_eq!(outgoing.recv().await.is_none(), wanted, "{head}");
        }
    }
}

#[tokio::test]
async fn port_in_use_error_says_what_to_change() {
    let taken = TcpSocket::new_v4().expect("a socket");
    taken
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound");
    let addr = taken.local_addr().expect("an address");
    let _taken = taken.listen(1).expect("listens");
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let mut knut = config("");
    knut.common.listen = addr;
    let gateways = GatewaysConfig {
        knut: Some(knut),
        ..GatewaysConfig::default()
    };
    let opened = Gateways::open(
        &gateways,
        test_advertisement(),
        Fleet::local().0,
        BridgedDevices::default(),
        store,
    )
    .await;
    let error = opened.expect_err("taken").to_string();
    assert!(
        error.contains("[gateways.knut]") && error.contains("change `listen`"),
        "{error}"
    );
}
