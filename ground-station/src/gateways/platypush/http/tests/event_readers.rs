//! Event readers over real sockets, and their limits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::events::{EventMapper, PREFIX};
use super::*;
use swarm_shared::api::{CommandKind, NodeState, NodeView};

/// Longer than anything here takes.
pub(super) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

impl Harness {
    /// Opens listeners for the gateway.
    pub(super) fn listen(&self) -> SocketAddr {
        let mut common = self.app.config.common.clone();
        common.listen.set_port(0);
        let listener = GatewayListener::open(GATEWAY, &common, &self.context).expect("listens");
        let (listens, router) = (listener.local_addr().expect("listens"), self.router.clone());
        let idle = common.idle;
        let tls = tls_options(&self.app.config)
            .acceptor(self.dir.path(), "st", self.app.config.common.listen.ip())
            .expect("a certificate");
        self.context
            .tasks
            .spawn(listener.serve(move |stream, permit| {
                serve::serve(stream, permit, router.clone(), tls.clone(), idle)
            }));
        listens
    }

    /// Connects, over TLS if the gateway speaks it, and sends these bytes.
    pub(super) async fn connect_and_send(
        &self,
        to: SocketAddr,
        text: &str,
    ) -> std::io::Result<Box<dyn ByteStream>> {
        let mut stream: Box<dyn ByteStream> = if tls_options(&self.app.config).is_enabled() {
            let certificate = CertificateDer::from_pem_file(self.dir.path().join("door-tls.pem"));
            let mut roots = RootCertStore::empty();
            roots.add(certificate.expect("a certificate")).expect("taken");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let client = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = TcpStream::connect(to).await?;
            Box::new(TlsConnector::from(Arc::new(client)).connect(name, stream).await?)
        } else {
            Box::new(TcpStream::connect(to).await?)
        };
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// The whole response.
    pub(super) async fn exchange(&self, to: SocketAddr, text: &str) -> String {
        match self.connect_and_send(to, text).await {
            Ok(stream) => read_to_end(stream).await,
            Err(_closed) => String::new(),
        }
    }
}

/// A connection, with TLS or without.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream for S {}

pub(super) async fn connect(to: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("written");
    stream
}

/// All bytes until the other side closes.
pub(super) async fn read_to_end(mut stream: impl AsyncRead + Unpin) -> String {
    let mut read = Vec::new();
    let reading = stream.read_to_end(&mut read);
    // A reset ends the connection too.
    let _end = tokio::time::timeout(TEST_TIMEOUT, reading)
        .await
        .expect("it ends");
    String::from_utf8_lossy(&read).into_owned()
}

pub(super) const UPGRADE_REQUEST: &str = "GET /ws/events HTTP/1.1\r\nHost: gateway\r\nX-Token: 0123456789abcdef\r\nConnection: upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub(super) struct EventReader(pub(super) TcpStream);

impl EventReader {
    pub(super) async fn open(to: SocketAddr) -> Self {
        Self::open_with(to, TOKEN).await
    }

    pub(super) async fn open_with(to: SocketAddr, token: &str) -> Self {
        Self::finish_handshake(connect(to, &UPGRADE_REQUEST.replace(TOKEN, token)).await).await
    }

    /// A reader whose upgrade request is sent already.
    pub(super) async fn finish_handshake(mut stream: TcpStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("a text");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    /// Opcode and payload of the next frame that is no ping.
    pub(super) async fn frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        loop {
            let opcode = self.0.read_u8().await? & 0x0f;
            let length = match self.0.read_u8().await? {
                126 => self.0.read_u16().await?.into(),
                127 => self.0.read_u64().await?,
                short => short.into(),
            };
            let mut payload = vec![0; usize::try_from(length).expect("short")];
            self.0.read_exact(&mut payload).await?;
            if opcode != 9 {
                return Ok((opcode, payload));
            }
        }
    }

    pub(super) async fn event(&mut self) -> Value {
        let frame = tokio::time::timeout(TEST_TIMEOUT, self.frame())
            .await
            .expect("in time");
        let (opcode, payload) = frame.expect("a frame");
        assert_eq!(opcode, 1, "{}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).expect("JSON")
    }
}

pub(super) fn view(state: NodeState) -> NodeView {
    serde_json::from_value(json!({
        "node": "n1", "id": PeerId([7; 32]), "state": state, "kind": "node", "address": null, "last_heard_ms": 5,
        "software": null,
    }))
    .expect("a view")
}

fn observed(event: Event) -> Event {
    Event::Observed {
        kind: CommandKind::Command,
        what: "led".to_owned(),
        who: "ann".to_owned(),
        number: Some(3),
        event: Box::new(event),
    }
}

#[test]
fn stop_and_release_emit_one_node_change_each() {
    let mut mapper = EventMapper::new("st");
    let kinds = |mapper: &mut EventMapper, views: Vec<NodeView>| -> Vec<Value> {
        let texts = views
            .into_iter()
            .filter_map(|view| mapper.map(Event::Node(view), 1));
        let args = |text: String| serde_json::from_str::<Value>(&text).expect("JSON")["args"].clone();
        texts.map(args).collect()
    };
    let stopped = |latched: bool| {
        let mut view = view(NodeState::Online);
        let stop = json!({"issuer": PeerId([1; 32]), "number": 9, "latched": latched, "error": null});
        view.stopped = serde_json::from_value(stop).expect("a stop");
        view
    };
    let checked = NodeView {
        checks: vec![serde_json::from_value(json!({"name": "time", "ok": true})).expect("a check")],
        ..view(NodeState::Online)
    };
    kinds(&mut mapper, vec![view(NodeState::Online)]);
    let told = kinds(&mut mapper, vec![stopped(false), stopped(true)]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["stopped"]["number"], 9);
    let told = kinds(&mut mapper, vec![view(NodeState::Online), checked]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["stopped"], Value::Null);
    let unconfirmed = NodeView {
        stop_unconfirmed: Some(10),
        ..view(NodeState::Online)
    };
    let told = kinds(&mut mapper, vec![unconfirmed]);
    assert_eq!(told[0]["stop_unconfirmed"], 10);
}

#[test]
fn revoked_node_is_reported_once() {
    let mut mapper = EventMapper::new("st");
    let mut tell = |view: NodeView| -> Option<Value> {
        let text = mapper.map(Event::Node(view), 1)?;
        Some(serde_json::from_str::<Value>(&text).expect("JSON")["args"].clone())
    };
    let out = |state| NodeView {
        warnings: vec![Warning::Revoked],
        ..view(state)
    };
    let mut words = Vec::new();
    for view in [
        view(NodeState::Online),
        out(NodeState::Online),
        out(NodeState::Offline),
        out(NodeState::Offline),
    ] {
        words.extend(tell(view).map(|args| (args["type"].clone(), args["initial"].clone())));
    }
    let kind = |name: &str| json!(format!("{PREFIX}{name}Event"));
    assert_eq!(
        words,
        [
            (kind("NodeOnline"), json!(true)),
            (kind("NodeChange"), json!(false)),
            (kind("NodeOffline"), json!(false)),
        ]
    );
}

#[test]
fn each_event_kind_has_a_name() {
    let mut mapper = EventMapper::new("st");
    let mut tell = |event| {
        let text = mapper.map(event, 1_500)?;
        let event: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&event["type"], &event["origin"], &event["_timestamp"]),
            (&json!("event"), &json!("st"), &json!(1.5))
        );
        let kind = event["args"]["type"]
            .as_str()?
            .strip_prefix("platypush.message.event.swarm.")?
            .to_owned();
        Some((kind, event["args"].clone()))
    };
    let (kind, args) = tell(Event::Node(view(NodeState::Online))).expect("told");
    assert_eq!(
        (kind.as_str(), &args["initial"], &args["node"]),
        ("NodeOnlineEvent", &json!(true), &json!("n1"))
    );
    let heard = NodeView {
        last_heard_ms: Some(9),
        ..view(NodeState::Online)
    };
    assert_eq!(tell(Event::Node(heard)), None, "that it was heard is no news");
    let renamed = NodeView {
        software: Some("2".to_owned()),
        ..view(NodeState::Online)
    };
    for (event, wanted) in [
        (Event::Node(renamed), "NodeChangeEvent"),
        (Event::Node(view(NodeState::Silent)), "NodeSilentEvent"),
        (Event::Node(view(NodeState::Offline)), "NodeOfflineEvent"),
        (
            observed(Event::Targets {
                targets: vec![node("n1")],
            }),
            "CommandStartEvent",
        ),
        (
            observed(Event::Progress {
                node: node("n1"),
                bytes: 1,
                total: 2,
            }),
            "CommandProgressEvent",
        ),
        (
            observed(Event::Acknowledged {
                node: node("n1"),
                ms: 1.0,
            }),
            "CommandAcknowledgedEvent",
        ),
        (observed(Event::End), "CommandEndEvent"),
        (observed(Event::failed(Failure::ShutDown, "x")), "CommandEndEvent"),
    ] {
        let (kind, _) = tell(event).expect(wanted);
        assert_eq!(kind, wanted);
    }
    let (kind, args) = tell(observed(Event::Delivery(Delivery::new(
        node("n1"),
        Reply::done(json!(1)),
        2.0,
    ))))
    .expect("told");
    assert_eq!(kind, "CommandOutcomeEvent");
    assert_eq!(
        (&args["state"], &args["action"], &args["who"], &args["number"]),
        (&json!("done"), &json!("led"), &json!("ann"), &json!(3))
    );
    let values = json!({"load": 1}).as_object().expect("an object").clone();
    let (kind, args) = tell(Event::Telemetry {
        node: node("n1"),
        values,
    })
    .expect("told");
    assert_eq!(
        (kind.as_str(), &args["values"]["load"]),
        ("TelemetryEvent", &json!(1))
    );
    assert_eq!(tell(Event::End), None);
}

/// A fleet that answers `Follow` by `each`, and other requests as usual.
pub(super) fn fleet_with_follower<F>(each: impl Fn(mpsc::Sender<Event>) -> F + Send + 'static) -> Fleet
where
    F: Future<Output = ()> + Send + 'static,
{
    let (fleet, mut calls) = Fleet::local();
    let (others, rest) = mpsc::channel(8);
    tokio::spawn(run_fake_fleet(rest));
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            if let Asked::Nodes(NodesRequest::Follow { telemetry: true }) = call.request {
                tokio::spawn(each(call.events));
            } else if others.send(call).await.is_err() {
                return;
            }
        }
    });
    fleet
}

pub(super) const LINES: &str = "token = \"0123456789abcdef\"";

#[tokio::test]
async fn event_readers_are_closed_at_shutdown() {
    let fleet = fleet_with_follower(async |events| {
        events.send(Event::Node(view(NodeState::Online))).await.ok();
        events.closed().await;
    });
    let rig = Harness::with_fleet(fleet, LINES).await;
    let listens = rig.listen();
    let mut readers = [EventReader::open(listens).await, EventReader::open(listens).await];
    for reader in &mut readers {
        assert_eq!(reader.event().await["args"]["node"], "n1");
    }
    rig.app.shutdown.cancel();
    for reader in &mut readers {
        let (opcode, payload) = reader.frame().await.expect("a frame");
        assert_eq!((opcode, &payload[2..]), (8, &b"the station is shutting down"[..]));
    }
    rig.app.tasks.close();
    tokio::time::timeout(TEST_TIMEOUT, rig.app.tasks.wait())
        .await
        .expect("all end");
}

#[tokio::test]
async fn event_reader_is_closed_when_its_token_is_revoked() {
    let fleet = fleet_with_follower(async |events| events.closed().await);
    let rig = Harness::with_fleet(fleet, &format!("{LINES}\nidle = \"600ms\"")).await;
    let (store, (token, hash)) = (&rig.app.store, users::new_token().expect("random"));
    store
        .put_user("ann".to_owned(), "x".to_owned(), 1)
        .await
        .expect("kept");
    let new = crate::store::users::NewToken {
        kind: crate::store::users::TokenKind::Program,
        label: String::new(),
        hash,
        created_ms: 1,
        expires_ms: u64::MAX,
        password_hash: None,
    };
    let number = store
        .put_token("ann".to_owned(), new)
        .await
        .expect("kept")
        .expect("a user");
    let mut reader = EventReader::open_with(rig.listen(), &token).await;
    store.revoke_token(number).await.expect("revoked");
    let (opcode, payload) = reader.frame().await.expect("a frame");
    let why = String::from_utf8_lossy(&payload[2..]).into_owned();
    assert_eq!((opcode, why.as_str()), (8, "its credentials are no longer valid"));
}

/// Events of more bytes than the kernel's socket buffers hold.
const BURST: usize = 400;

#[tokio::test]
async fn slow_event_reader_gets_the_reason_in_the_close_frame() {
    let fleet = fleet_with_follower(async |events| {
        let large = "x".repeat(60_000);
        for _ in 0..BURST {
            let delivery = Delivery::new(node("n1"), Reply::done(json!(large)), 1.0);
            if events.try_send(observed(Event::Delivery(delivery))).is_err() {
                break;
            }
        }
        events.send(Event::Lagged { count: 17 }).await.ok();
        events.closed().await;
    });
    let rig = Harness::with_fleet(fleet, LINES).await;
    let mut reader = EventReader::open(rig.listen()).await;
    for _ in 0..BURST {
        assert_eq!(
            reader.event().await["args"]["type"],
            "platypush.message.event.swarm.CommandOutcomeEvent"
        );
    }
    let (opcode, payload) = reader.frame().await.expect("a frame");
    assert_eq!((opcode, u16::from_be_bytes([payload[0], payload[1]])), (8, 1008));
    let why = String::from_utf8_lossy(&payload[2..]).into_owned();
    assert_eq!(why, "too slow: 17 events were lost; connect again");
}

#[tokio::test]
async fn stalled_event_reader_is_closed_without_delaying_others() {
    let (gone, mut was_gone) = mpsc::channel(4);
    let fleet = fleet_with_follower(move |events: mpsc::Sender<Event>| {
        let gone = gone.clone();
        async move {
            let large = "x".repeat(60_000);
            for _ in 0..BURST {
                let delivery = Delivery::new(node("n1"), Reply::done(json!(large)), 1.0);
                events.send(observed(Event::Delivery(delivery))).await.ok();
            }
            events.closed().await;
            gone.send(()).await.ok();
        }
    });
    let rig = Harness::with_fleet(fleet, &format!("{LINES}\nidle = \"1s\"")).await;
    let listens = rig.listen();
    let sleeper = EventReader::open(listens).await;
    let mut reader = EventReader::open(listens).await;
    for _ in 0..BURST {
        reader.event().await;
    }
    // The stalled reader is closed although it sends nothing.
    tokio::time::timeout(TEST_TIMEOUT, was_gone.recv())
        .await
        .expect("in time");
    let read = read_to_end(sleeper.0).await;
    assert!(read.len() < BURST * 60_000, "{} bytes", read.len());
}

pub(super) const EXECUTE_REQUEST: &str = "POST /execute HTTP/1.1\r\nHost: gateway\r\nX-Token: 0123456789abcdef\r\nContent-Length: 17\r\n\
    Connection: close\r\n\r\n{\"action\":\"ping\"}";

#[tokio::test]
async fn http_and_websocket_ports_share_connection_limits() {
    let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [port, older] = free.map(|listener| listener.local_addr().expect("bound").port());
    let lines = format!(
        "{LINES}\nconnections_per_address = 2\nlisten = \"127.0.0.1:{port}\"\nwebsocket_port = {older}"
    );
    let fleet = fleet_with_follower(async |events| events.closed().await);
    let rig = Harness::with_fleet(fleet, &lines).await;
    open(&rig.app.config, &rig.context).await.expect("opens");
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let _readers = [
        EventReader::open(at(older)).await,
        EventReader::open(at(older)).await,
    ];
    assert_eq!(rig.exchange(at(port), EXECUTE_REQUEST).await, "", "no place");
    rig.context.shutdown.cancel();
}

#[tokio::test]
async fn event_readers_count_toward_connection_limits() {
    let fleet = fleet_with_follower(async |events| {
        events.send(Event::Node(view(NodeState::Online))).await.ok();
        events.closed().await;
    });
    let rig = Harness::with_fleet(fleet, &format!("{LINES}\nconnections_per_address = 2")).await;
    let listens = rig.listen();
    let mut first = EventReader::open(listens).await;
    first.event().await;
    let second = EventReader::open(listens).await;
    let third = connect(listens, EXECUTE_REQUEST).await;
    assert_eq!(read_to_end(third).await, "", "no place");
    drop(second);
    let served = async {
        while !read_to_end(connect(listens, EXECUTE_REQUEST).await)
            .await
            .starts_with("HTTP/1.1 200")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, served)
        .await
        .expect("a place is free again");
}
