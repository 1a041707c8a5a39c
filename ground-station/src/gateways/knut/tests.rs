//! A door as programs meet it.

mod temperatures;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::knut::{Decoder, END, Item};
use swarm_shared::proto::selector::Selector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::config::gateways::Doors;
use crate::config::gateways::Limits;
use crate::fleet::guests::Guests;
use crate::fleet::{Call, Fleet, NodeRef, NodeState, NodeView};
use crate::gateways::Open;
use crate::gateways::listener::Entrance;
use crate::gateways::tests::{face, house};
use crate::store::Store;

fn config(more: &str) -> Knut {
    let mut config = crate::config::Config::for_host("pi");
    let text =
        format!("[doors.knut]\nlisten = \"127.0.0.1:0\"\ntemperature = \"env.heat\"\nhistory = 3\n{more}");
    config
        .read_file(std::path::Path::new("config.toml"), &text)
        .expect("reads");
    config.doors.knut.expect("open")
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

/// An open door with a scripted fleet behind it.
struct House {
    open: Open,
    calls: mpsc::Receiver<Call>,
    addr: SocketAddr,
    /// What the door follows.
    follow: mpsc::Sender<Event>,
    dir: tempfile::TempDir,
}

impl House {
    async fn open(more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let (fleet, mut calls) = Fleet::local();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = free.local_addr().expect("an address");
        drop(free);
        let mut knut = config(more);
        knut.common.listen = addr;
        let doors = Doors {
            knut: Some(knut),
            ..Doors::default()
        };
        let open = Open::all(&doors, face(), fleet, Guests::default(), store);
        let open = open.await.expect("opens");
        let call = calls.recv().await.expect("the door follows");
        assert_eq!(call.request, Request::Follow { telemetry: true });
        Self {
            open,
            calls,
            addr,
            follow: call.events,
            dir,
        }
    }

    async fn visit(&self) -> Client {
        let stream = TcpStream::connect(self.addr).await.expect("connects");
        Client::of(stream)
    }
}

struct Client {
    stream: TcpStream,
    decoder: Decoder,
    bytes: Vec<u8>,
}

impl Client {
    fn of(stream: TcpStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(1 << 20),
            bytes: Vec::new(),
        }
    }

    async fn say(&mut self, api: i64, id: i64, msg: Value) {
        let bytes = Message { api, id, msg }.encode();
        self.stream.write_all(&bytes).await.expect("heard");
    }

    /// What comes next; `None` at the end.
    async fn hear(&mut self) -> Option<Item> {
        loop {
            let bytes = std::mem::take(&mut self.bytes);
            let mut left = &bytes[..];
            let item = self.decoder.take(&mut left);
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

    async fn hear_message(&mut self) -> Message {
        loop {
            match self.hear().await {
                Some(Item::Message(message)) => return message,
                Some(Item::Heartbeat) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_action_goes_to_the_fleet_in_the_doors_name() {
    let mut house = House::open("allow = [\"led\"]\nttl = \"7s\"").await;
    let mut client = house.visit().await;
    let msg = json!({"selector": "n1", "action": "led", "args": {"color": "red"}, "timeout": "1s"});
    client.say(api::FLEET, 2, msg).await;
    let call = house.calls.recv().await.expect("a call");
    assert_eq!(call.who, "knut from 127.0.0.1");
    let Request::Command {
        selector,
        action,
        arguments,
        ttl_ms,
        timeout_ms,
        ..
    } = call.request
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
    let answer = client.hear_message().await;
    assert_eq!((answer.id, answer.msg), (0x0102, json!({"deliveries": []})));
    // Whoever goes away waits for nothing any more.
    client.say(api::FLEET, 2, json!({"action": "led"})).await;
    let call = house.calls.recv().await.expect("a call");
    drop(client);
    let gone = tokio::time::timeout(Duration::from_secs(5), call.events.closed()).await;
    assert!(gone.is_ok());
    house.open.close().await;
}

#[tokio::test]
async fn what_is_refused_before_anybody_is_asked_is_in_the_audit() {
    let house = House::open("allow = [\"led\"]\ntoken = \"0123456789abcdef\"").await;
    let mut client = house.visit().await;
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
        client.say(api::FLEET, *id, msg.clone()).await;
        let answer = client.hear_message().await;
        assert_eq!(answer.msg["error"]["kind"], *kind, "{}", answer.msg);
    }
    house.open.close().await;
    let audit = crate::store::history::ask(house.dir.path(), |connection| {
        crate::store::audit::newest(connection, 0, 100)
    });
    let audit = audit.await.expect("read").expect("there");
    assert_eq!(audit.len(), wrong.len(), "{audit:#?}");
    for (_, _, _, what, why) in wrong {
        let noted = audit.iter().any(|entry| {
            entry.what == what && entry.outcome.contains("not done: ") && entry.outcome.contains(why)
        });
        assert!(noted, "{what}, {why}: {audit:#?}");
    }
}

#[tokio::test]
async fn what_is_no_message_is_in_the_audit() {
    let house = House::open("").await;
    let mut client = house.visit().await;
    client.stream.write_all(b"nonsense\0").await.expect("heard");
    client.say(7, 7, json!("echo")).await;
    assert_eq!(client.hear_message().await.msg, "echo");
    let mut page = house.visit().await;
    let head = b"GET / HTTP/1.1\r\n\r\n";
    page.stream.write_all(head).await.expect("heard");
    assert!(page.hear().await.is_none(), "closed");
    house.open.close().await;
    let audit = crate::store::history::ask(house.dir.path(), |connection| {
        crate::store::audit::newest(connection, 0, 100)
    });
    let audit = audit.await.expect("read").expect("there");
    for why in ["not done: ", "began with a request of HTTP"] {
        let noted = |entry: &crate::store::audit::Entry| {
            entry.what == "message" && entry.who == "knut from 127.0.0.1" && entry.outcome.contains(why)
        };
        assert!(audit.iter().any(noted), "{why}: {audit:#?}");
    }
}

#[tokio::test]
async fn a_push_goes_to_everybody_and_the_door_closes_with_the_house() {
    let house = House::open("").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = house.visit().await;
        client.say(99, 1, json!({})).await;
        assert_eq!(client.hear_message().await.api, 99);
        clients.push(client);
    }
    house
        .follow
        .send(reading(1, "n1", json!(7)))
        .await
        .expect("heard");
    for client in &mut clients {
        assert_eq!(client.hear_message().await.msg["n1"]["temperature"], 7.0);
    }
    house.open.close().await;
    for mut client in clients {
        while let Some(item) = client.hear().await {
            assert_eq!(item, Item::Heartbeat);
        }
    }
}

fn nobody_elses() -> Entrance {
    Entrance::alone(SocketAddr::from(([127, 0, 0, 1], 1)), &Limits::default())
}

/// A connection's place at a door of the fewest bounds.
async fn place() -> (Arc<Desk>, crate::gateways::House, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let house = house(Fleet::local().0, dir.path()).await;
    let config = config("");
    let desk = Desk {
        guard: Guard::new(DOOR, &config.common, &house),
        board: Mutex::new(Board::new(&config)),
        pushes: broadcast::Sender::new(PUSHES_MAX),
        config,
    };
    (Arc::new(desk), house, dir)
}

#[tokio::test]
async fn a_slow_reader_that_missed_pushes_is_told_everything_anew() {
    let (desk, _house, _dir) = place().await;
    desk.board().take(reading(1, "n1", json!(1)));
    let pushes = desk.pushes.subscribe();
    for _ in 0..PUSHES_MAX * 2 {
        desk.pushes.send(Bytes::from_static(b"{}\0")).expect("subscribed");
    }
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let (_answers, outgoing) = mpsc::channel(1);
    tokio::spawn({
        let desk = Arc::clone(&desk);
        async move { connection::write(&desk, ours, outgoing, pushes).await }
    });
    let mut text = vec![0; 1024];
    let count = theirs.read(&mut text).await.expect("reads");
    let first = text[..count]
        .split(|byte| *byte == END)
        .next()
        .expect("a message");
    let first = Message::parse(first).expect("a message");
    assert_eq!(first.msg["n1"]["temperature"], 1.0);
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_is_not_waited_for() {
    let (desk, _house, _dir) = place().await;
    let (ours, _theirs) = tokio::io::duplex(16);
    let (_answers, outgoing) = mpsc::channel(1);
    let started = tokio::time::Instant::now();
    let ended = connection::write(&desk, ours, outgoing, desk.pushes.subscribe()).await;
    assert!(matches!(ended, Err(connection::Left::DoesNotRead)), "{ended:?}");
    // Sixteen heartbeats had room.
    let waited = started.elapsed();
    assert!(
        waited >= Duration::from_secs(25) && waited <= Duration::from_secs(30),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_at_first_and_messages_without_end_are_closed() {
    for (said, wanted) in [
        (&b""[..], "said nothing"),
        (b"\n\n", "said nothing"),
        (b"{\"api", "took longer"),
        (b"\0{", "took longer"),
    ] {
        let (desk, _house, _dir) = place().await;
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (answers, _outgoing) = mpsc::channel(1);
        let entrance = nobody_elses();
        theirs.write_all(said).await.expect("room");
        let started = tokio::time::Instant::now();
        let reading = connection::read(&desk, ours, &entrance, answers);
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
async fn whoever_has_said_something_may_listen_for_good() {
    let (desk, _house, _dir) = place().await;
    let (ours, mut theirs) = tokio::io::duplex(64);
    let (answers, _outgoing) = mpsc::channel(1);
    let entrance = nobody_elses();
    theirs.write_all(b"\0").await.expect("room");
    let reading = connection::read(&desk, ours, &entrance, answers);
    let long = tokio::time::timeout(Duration::from_secs(100_000), reading).await;
    assert!(long.is_err(), "{long:?}");
}

#[tokio::test]
async fn what_a_browser_sends_for_any_page_is_not_listened_to() {
    let hidden = "\0{\"apiId\": 1, \"msgId\": 2, \"msg\": {}}\0";
    for (head, wanted) in [
        ("POST / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n", true),
        ("\r\nM-SEARCH * HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("NONSENSE", false),
        (" nonsense of HTTP ", false),
    ] {
        // At once, and in pieces of one byte.
        for size in [1024, 1] {
            let (desk, _house, _dir) = place().await;
            let (ours, mut theirs) = tokio::io::duplex(size);
            let (answers, mut outgoing) = mpsc::channel(8);
            let said = format!("{head}{hidden}");
            let says = tokio::spawn(async move {
                // Closed on midway, or not.
                let _closed = theirs.write_all(said.as_bytes()).await;
            });
            let entrance = nobody_elses();
            let ended = connection::read(&desk, ours, &entrance, answers).await;
            says.await.expect("said");
            assert_eq!(
                matches!(ended, Err(connection::Left::Http)),
                wanted,
                "{head} {ended:?}"
            );
            assert_eq!(outgoing.recv().await.is_none(), wanted, "{head}");
        }
    }
}

#[tokio::test]
async fn the_port_of_another_is_told_with_what_to_do() {
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
    let doors = Doors {
        knut: Some(knut),
        ..Doors::default()
    };
    let opened = Open::all(&doors, face(), Fleet::local().0, Guests::default(), store).await;
    let error = opened.expect_err("taken").to_string();
    assert!(
        error.contains("[doors.knut]") && error.contains("change `listen`"),
        "{error}"
    );
}
