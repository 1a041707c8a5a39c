//! The gateway of a real node, with a disk that a test can block.

mod stops;

use std::path::Path;

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::config::{Config, Origin};
use crate::links::Links;
use crate::logging::LogRing;
use crate::node::Settings;

/// Upper limit for each wait.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const TABLES: &str = r#"
listen = "127.0.0.1:0"
pings = false
mdns = false

[actions.mark]
command = ["/bin/sh", "-c", "echo \"$1\" >>DIR/marks", "sh", "{name}"]
args.name = { type = "string" }

[actions.land]
command = ["/bin/sh", "-c", "echo land >>DIR/marks"]
class = "flight"

[actions.start]
command = ["/bin/sh", "-c", "echo start >>DIR/marks"]
class = "flight"

[actions.takeoff]
command = ["/bin/sh", "-c", "echo takeoff >>DIR/marks; exec sleep 60"]
class = "flight"

[actions.disarm]
command = ["/bin/sh", "-c", "echo disarm >>DIR/marks; exec sleep 60"]
class = "flight"

[actions.hold]
command = ["/bin/sh", "-c", "echo hold >>DIR/marks; exec sleep 60"]

[files.roots]
files = "DIR/files"

[gateways.clever_show]
server = "127.0.0.1:9"
allow = ["ALLOW"]
file_bytes = 10
"#;

/// A runtime with one thread for blocking work, so that one blocked call blocks the disk.
fn one_blocking_thread() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1);
    runtime.enable_all().build().expect("a runtime")
}

/// Blocks the disk until the returned value is dropped.
async fn block_the_disk() -> std::sync::mpsc::Sender<()> {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (blocked, blocking) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        blocked.send(()).expect("the test waits");
        let _released = held.recv();
    });
    blocking.await.expect("blocked");
    release
}

struct Fixture {
    dir: TempDir,
    node: Node,
    links: Links,
    gateway: CleverShowGateway,
}

impl CleverShowGateway {
    fn is_connected(&self) -> bool {
        self.connected_since.lock().is_some()
    }
}

impl Fixture {
    async fn new() -> Self {
        Self::allowing("*").await
    }

    async fn allowing(allow: &str) -> Self {
        Self::with(&TABLES.replace("ALLOW", allow)).await
    }

    async fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = text.replace("DIR", &dir.path().display().to_string());
        let config = Config::parse(&text, &Origin::Text(None)).expect("a configuration");
        let mut node = Node::start(Settings {
            config,
            config_path: dir.path().join("config.toml"),
            state_dir: dir.path().join("state"),
            name_fixed_by: None,
            log: LogRing::new(),
            exit_once_joined: false,
        })
        .expect("a node");
        let links = Links::start(&mut node).await.expect("links");
        let config = node.config.gateways.clever_show.clone().expect("a gateway");
        let (gateway, _incoming) = super::new_gateway(config, &node, links.local_commands());
        Self {
            dir,
            node,
            links,
            gateway,
        }
    }

    /// Starts the gateway; it receives what is sent to the returned channel.
    fn serve(&self) -> mpsc::Sender<ReceivedEvent> {
        let (events, received) = mpsc::channel(64);
        let gateway = self.gateway.clone();
        let shutdown = self.node.shutdown.clone();
        let serving = async move { shutdown.run_until_cancelled(gateway.serve(received)).await };
        self.node.tasks.spawn(async move {
            serving.await;
        });
        events
    }

    fn kind_of(&self, event: Event) -> Option<TaskKind> {
        match self.gateway.receive(event, clock::now()) {
            Some(Received::Task(task)) => Some(task.kind),
            Some(Received::File(_)) | None => None,
        }
    }

    fn marks(&self) -> Vec<String> {
        let marks = std::fs::read_to_string(self.dir.path().join("marks")).unwrap_or_default();
        marks.lines().map(str::to_owned).collect()
    }

    async fn wait_until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let start = clock::now();
        while !reached(self) {
            assert!(clock::since(start) < TEST_TIMEOUT, "{what}: {:?}", self.marks());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn shut_down(self) {
        self.node.shutdown.cancel();
        self.links.shut_down().await;
        self.node.shut_down().await;
    }
}

async fn send(events: &mpsc::Sender<ReceivedEvent>, event: Event) {
    let since = clock::now();
    events
        .send(ReceivedEvent {
            event,
            earliest_arrival: since,
        })
        .await
        .expect("received");
}

fn action(action: &str, kwargs: Value) -> Event {
    let arguments = serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments");
    Event::Action {
        action: action.to_owned(),
        arguments,
    }
}

fn mark(name: &str) -> Event {
    action("mark", json!({ "name": name }))
}

fn push(name: &str, bytes: &'static [u8]) -> Event {
    Event::File {
        filepath: format!("files/{name}"),
        bytes: Bytes::from_static(bytes),
    }
}

fn fetch(name: &str) -> Event {
    let kwargs = json!({ "filepath": format!("files/{name}") });
    Event::Request {
        value: FILE_TRANSFER.to_owned(),
        id: "0001".to_owned(),
        arguments: serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments"),
    }
}

fn has_file(dir: &Path, name: &str, bytes: &[u8]) -> bool {
    std::fs::read(dir.join("files").join(name)).is_ok_and(|there| there == bytes)
}

#[test]
fn a_landing_overtakes_pushed_files() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let events = fixture.serve();
        let disk = block_the_disk().await;
        send(&events, push("a", b"first")).await;
        send(&events, mark("after a")).await;
        send(&events, action("start", json!({}))).await;
        send(&events, push("b", b"second")).await;
        send(&events, mark("after b")).await;
        send(&events, action("land", json!({}))).await;
        fixture
            .wait_until("it lands", |fixture| fixture.marks() == ["land"])
            .await;
        assert!(
            !has_file(fixture.dir.path(), "a", b"first"),
            "the disk is blocked"
        );
        drop(disk);
        fixture
            .wait_until("the rest", |fixture| fixture.marks().len() == 3)
            .await;
        // Ordinary actions ran after their file; the flight action from before the landing did not.
        let mut marks = fixture.marks();
        marks.sort();
        assert_eq!(marks, ["after a", "after b", "land"]);
        assert!(has_file(fixture.dir.path(), "a", b"first") && has_file(fixture.dir.path(), "b", b"second"));
        send(&events, action("start", json!({}))).await;
        fixture
            .wait_until("it starts", |fixture| fixture.marks().len() == 4)
            .await;
        fixture.shut_down().await;
    });
}

#[test]
fn a_flight_waits_for_the_file_pushed_before_it() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let events = fixture.serve();
        let disk = block_the_disk().await;
        send(&events, push("show", b"steps")).await;
        send(&events, action("start", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(fixture.marks(), [""; 0]);
        drop(disk);
        fixture
            .wait_until("it starts", |fixture| fixture.marks() == ["start"])
            .await;
        assert!(has_file(fixture.dir.path(), "show", b"steps"));
        fixture.shut_down().await;
    });
}

#[tokio::test]
async fn late_flight_actions_expire_whatever_their_class() {
    for tables in [TABLES.to_owned(), TABLES.replace("class = \"flight\"", "")] {
        let fixture = Fixture::with(&tables.replace("ALLOW", "*")).await;
        let events = fixture.serve();
        let earliest_arrival = clock::now() - Duration::from_secs(3);
        let event = action("start", json!({}));
        events
            .send(ReceivedEvent {
                event,
                earliest_arrival,
            })
            .await
            .expect("received");
        send(&events, mark("next")).await;
        fixture
            .wait_until("it has expired", |fixture| fixture.marks() == ["next"])
            .await;
        fixture.shut_down().await;
    }
}

#[test]
fn a_refused_landing_overtakes_nothing() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::allowing("[!l]*").await;
        let events = fixture.serve();
        let disk = block_the_disk().await;
        send(&events, push("show", b"steps")).await;
        send(&events, action("start", json!({}))).await;
        send(&events, action("land", json!({}))).await;
        send(&events, mark("last")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        fixture
            .wait_until("the rest", |fixture| fixture.marks().len() == 2)
            .await;
        assert!(
            fixture.marks().contains(&"start".to_owned()),
            "{:?}",
            fixture.marks()
        );
        fixture.shut_down().await;
    });
}

#[test]
fn fetched_files_delay_no_actions() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let events = fixture.serve();
        let disk = block_the_disk().await;
        for _ in 0..8 {
            send(&events, fetch("log")).await;
        }
        send(&events, mark("beside them")).await;
        fixture
            .wait_until("an action", |fixture| fixture.marks() == ["beside them"])
            .await;
        send(&events, action("land", json!({}))).await;
        fixture
            .wait_until("it lands", |fixture| fixture.marks().len() == 2)
            .await;
        drop(disk);
        fixture.shut_down().await;
    });
}

#[test]
fn an_unknown_action_cancels_no_flight() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let events = fixture.serve();
        let disk = block_the_disk().await;
        send(&events, push("show", b"steps")).await;
        send(&events, action("start", json!({}))).await;
        assert_eq!(
            fixture.kind_of(action("pause", json!({}))),
            Some(TaskKind::Flight)
        );
        send(&events, action("pause", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        fixture
            .wait_until("it starts", |fixture| fixture.marks() == ["start"])
            .await;
        fixture.shut_down().await;
    });
}

#[test]
fn a_failed_push_rejects_the_flight_after_it() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let events = fixture.serve();
        let start = || action("start", json!({}));
        let nowhere = || Event::File {
            filepath: "nowhere/show".to_owned(),
            bytes: Bytes::from_static(b"steps"),
        };
        let too_long = || Event::TooLong { bytes: 20, max: 10 };
        let mut marks = Vec::new();
        for (number, failing) in [nowhere(), push("show", b"more than it may be"), too_long()]
            .into_iter()
            .enumerate()
        {
            let disk = block_the_disk().await;
            let name = number.to_string();
            // Other files that are stored, before or after it, make no difference.
            send(&events, push("other", b"before")).await;
            send(&events, failing).await;
            send(&events, start()).await;
            send(&events, push("other", b"after")).await;
            send(&events, start()).await;
            send(&events, mark(&name)).await;
            drop(disk);
            marks.push(name);
            fixture
                .wait_until("the action that needs no file", |fixture| {
                    fixture.marks() == marks
                })
                .await;
            assert!(has_file(fixture.dir.path(), "other", b"after"));
        }
        // All three arrived at one time.
        let since = clock::now();
        for event in [nowhere(), start(), mark("together")] {
            events
                .send(ReceivedEvent {
                    event,
                    earliest_arrival: since,
                })
                .await
                .expect("received");
        }
        marks.push("together".to_owned());
        fixture
            .wait_until("the action after it", |fixture| fixture.marks() == marks)
            .await;
        // The same file again, stored this time.
        let disk = block_the_disk().await;
        send(&events, push("show", b"more than it may be")).await;
        send(&events, push("show", b"steps")).await;
        send(&events, start()).await;
        drop(disk);
        marks.push("start".to_owned());
        fixture
            .wait_until("it starts", |fixture| fixture.marks() == marks)
            .await;
        assert!(has_file(fixture.dir.path(), "show", b"steps"));
        fixture.shut_down().await;
    });
}

/// Takes all slots that the server can take for other actions, and then lands.
async fn lands_whatever_runs(tables: &str) {
    let fixture = Fixture::with(tables).await;
    let events = fixture.serve();
    let count = |fixture: &Fixture, name: &str| fixture.marks().iter().filter(|mark| *mark == name).count();
    for _ in 0..10 {
        send(&events, action("hold", json!({}))).await;
    }
    fixture
        .wait_until("six of them run", |fixture| count(fixture, "hold") == 6)
        .await;
    for name in ["takeoff", "disarm"] {
        for _ in 0..10 {
            send(&events, action(name, json!({}))).await;
        }
    }
    send(&events, action("land", json!({}))).await;
    fixture
        .wait_until("it lands", |fixture| {
            (count(fixture, "disarm"), count(fixture, "land")) == (2, 1)
        })
        .await;
    fixture.shut_down().await;
}

#[test]
fn running_actions_never_block_a_landing() {
    one_blocking_thread().block_on(lands_whatever_runs(&TABLES.replace("ALLOW", "*")));
}

#[test]
fn running_actions_never_block_a_landing_of_any_class() {
    let plain = TABLES.replace("class = \"flight\"", "");
    one_blocking_thread().block_on(lands_whatever_runs(&plain.replace("ALLOW", "*")));
}

#[test]
fn readings_are_not_sent_to_a_later_server() {
    one_blocking_thread().block_on(async {
        let fixture = Fixture::new().await;
        let gateway = &fixture.gateway;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let server = Client::for_server(listener.local_addr().expect("bound"));
        let disk = block_the_disk().await;
        let with_servers = async {
            let (first, _) = listener.accept().await.expect("joined");
            fixture
                .wait_until("it is joined", |fixture| fixture.gateway.is_connected())
                .await;
            let go_on = async {
                drop(first);
                fixture
                    .wait_until("it is lost", |fixture| !fixture.gateway.is_connected())
                    .await;
                drop(disk);
            };
            tokio::join!(gateway.send_reading(), go_on);
            assert_eq!(gateway.connection.queued_messages(), 0, "for the next server");
            let (_second, _) = listener.accept().await.expect("joined again");
            fixture
                .wait_until("it is joined again", |fixture| fixture.gateway.is_connected())
                .await;
            gateway.send_reading().await;
            assert_eq!(
                gateway.connection.queued_messages(),
                1,
                "for the server that there is"
            );
        };
        tokio::select! {
            () = gateway.stay_connected(server) => {}
            () = with_servers => {}
        }
        fixture.shut_down().await;
    });
}

#[tokio::test]
async fn refused_requests_are_not_queued() {
    let fixture = Fixture::allowing("led").await;
    for refused in [
        mark("x"),
        action("land", json!({})),
        fetch("x"),
        action("execute", json!({})),
    ] {
        assert!(fixture.gateway.receive(refused, clock::now()).is_none());
    }
    assert_eq!(fixture.kind_of(action("led", json!({}))), Some(TaskKind::Action));
    fixture.shut_down().await;
}
