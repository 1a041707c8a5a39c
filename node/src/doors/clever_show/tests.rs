//! The door of a real node, with a disk that stands still while a test wants it to.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::config::{Config, Origin};
use crate::links::Links;
use crate::logging::LogRing;
use crate::node::Settings;

/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(20);
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

[files.roots]
files = "DIR/files"

[doors.clever_show]
server = "127.0.0.1:9"
allow = ["ALLOW"]
"#;

/// Where the work of disks is done by one thread only.
fn with_one_thread_for_disks() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1);
    runtime.enable_all().build().expect("a runtime")
}

/// The disk stands still until this is dropped.
async fn hold_the_disk() -> std::sync::mpsc::Sender<()> {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        begun.send(()).expect("waited for");
        let _let_go = held.recv();
    });
    begins.await.expect("it stands still");
    hold
}

struct Stage {
    dir: TempDir,
    node: Node,
    links: Links,
    door: Door,
}

impl Door {
    fn is_connected(&self) -> bool {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}

impl Stage {
    async fn set() -> Self {
        Self::allowing("*").await
    }

    async fn allowing(allow: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = TABLES.replace("ALLOW", allow);
        let text = text.replace("DIR", &dir.path().display().to_string());
        let config = Config::parse(&text, &Origin::Text(None)).expect("a configuration");
        let mut node = Node::start(Settings {
            config,
            config_path: dir.path().join("config.toml"),
            state_dir: dir.path().join("state"),
            name_fixed_by: None,
            log: LogRing::new(),
            until_joined: false,
        })
        .expect("a node");
        let links = Links::start(&mut node).await.expect("links");
        let config = node.config.doors.clever_show.clone().expect("a door");
        let (door, _incoming) = super::door(config, &node, links.errands());
        Self {
            dir,
            node,
            links,
            door,
        }
    }

    /// The door hears what is sent from now on.
    fn serve(&self) -> mpsc::Sender<Heard> {
        let (said, heard) = mpsc::channel(64);
        let door = self.door.clone();
        let stop = self.node.stop.clone();
        let serving = async move { stop.run_until_cancelled(door.serve(heard)).await };
        self.node.tasks.spawn(async move {
            serving.await;
        });
        said
    }

    fn marks(&self) -> Vec<String> {
        let marks = std::fs::read_to_string(self.dir.path().join("marks")).unwrap_or_default();
        marks.lines().map(str::to_owned).collect()
    }

    async fn until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let start = clock::now();
        while !reached(self) {
            assert!(clock::since(start) < PATIENCE, "{what}: {:?}", self.marks());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.node.stop.cancel();
        self.links.shut_down().await;
        self.node.shut_down().await;
    }
}

async fn say(said: &mpsc::Sender<Heard>, event: Event) {
    let since = clock::now();
    said.send(Heard { event, since }).await.expect("heard");
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
    Event::Asked {
        value: FILE_TRANSFER.to_owned(),
        id: "0001".to_owned(),
        arguments: serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments"),
    }
}

fn has(dir: &Path, name: &str, bytes: &[u8]) -> bool {
    std::fs::read(dir.join("files").join(name)).is_ok_and(|there| there == bytes)
}

#[test]
fn a_landing_waits_for_no_file_that_is_pushed() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
        let disk = hold_the_disk().await;
        say(&said, push("a", b"first")).await;
        say(&said, mark("after a")).await;
        say(&said, action("start", json!({}))).await;
        say(&said, push("b", b"second")).await;
        say(&said, mark("after b")).await;
        say(&said, action("land", json!({}))).await;
        stage.until("it lands", |stage| stage.marks() == ["land"]).await;
        assert!(!has(stage.dir.path(), "a", b"first"), "the disk stands still");
        drop(disk);
        let all = ["land", "after a", "after b"];
        stage.until("the rest", |stage| stage.marks().len() == 3).await;
        // What is not of flight had its file; what would have flown after the landing did not.
        assert_eq!(stage.marks(), all);
        assert!(has(stage.dir.path(), "a", b"first") && has(stage.dir.path(), "b", b"second"));
        say(&said, action("start", json!({}))).await;
        stage.until("it starts", |stage| stage.marks().len() == 4).await;
        stage.end().await;
    });
}

#[test]
fn a_start_has_the_file_that_was_pushed_before_it() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
        let disk = hold_the_disk().await;
        say(&said, push("show", b"steps")).await;
        say(&said, action("start", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(stage.marks(), [""; 0]);
        drop(disk);
        stage.until("it starts", |stage| stage.marks() == ["start"]).await;
        assert!(has(stage.dir.path(), "show", b"steps"));
        stage.end().await;
    });
}

#[test]
fn what_may_not_pass_goes_past_nothing() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::allowing("[!l]*").await;
        let said = stage.serve();
        let disk = hold_the_disk().await;
        say(&said, push("show", b"steps")).await;
        say(&said, action("start", json!({}))).await;
        say(&said, action("land", json!({}))).await;
        say(&said, mark("last")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        stage.until("the rest", |stage| stage.marks().len() == 2).await;
        assert!(stage.marks().contains(&"start".to_owned()), "{:?}", stage.marks());
        stage.end().await;
    });
}

#[test]
fn nothing_waits_for_a_file_that_is_fetched() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
        let disk = hold_the_disk().await;
        say(&said, fetch("log")).await;
        say(&said, mark("beside it")).await;
        stage
            .until("an action", |stage| stage.marks() == ["beside it"])
            .await;
        say(&said, action("land", json!({}))).await;
        stage.until("it lands", |stage| stage.marks().len() == 2).await;
        drop(disk);
        stage.end().await;
    });
}

#[test]
fn no_number_of_flights_keeps_a_drone_from_landing() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
        for _ in 0..10 {
            say(&said, action("takeoff", json!({}))).await;
        }
        for _ in 0..10 {
            say(&said, action("disarm", json!({}))).await;
        }
        say(&said, action("land", json!({}))).await;
        let counts = |stage: &Stage| {
            let count = |name: &str| stage.marks().iter().filter(|mark| *mark == name).count();
            [count("takeoff"), count("disarm"), count("land")]
        };
        stage.until("it lands", |stage| counts(stage) == [3, 2, 1]).await;
        stage.end().await;
    });
}

#[test]
fn a_reading_for_one_server_is_not_sent_to_the_next() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let door = &stage.door;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let server = Client::of(listener.local_addr().expect("bound"));
        let disk = hold_the_disk().await;
        let with_servers = async {
            let (first, _) = listener.accept().await.expect("joined");
            stage
                .until("it is joined", |stage| stage.door.is_connected())
                .await;
            let go_on = async {
                drop(first);
                stage
                    .until("it is lost", |stage| !stage.door.is_connected())
                    .await;
                drop(disk);
            };
            tokio::join!(door.send_reading(), go_on);
            assert_eq!(door.connection.waiting(), 0, "for the next server");
            let (_second, _) = listener.accept().await.expect("joined again");
            stage
                .until("it is joined again", |stage| stage.door.is_connected())
                .await;
            door.send_reading().await;
            assert_eq!(door.connection.waiting(), 1, "for the server that there is");
        };
        tokio::select! {
            () = door.stay_connected(server) => {}
            () = with_servers => {}
        }
        stage.end().await;
    });
}

/// A file that is pushed is not in its place before the test says so.
#[tokio::test]
async fn what_waits_behind_a_file_is_bounded() {
    let heard = |event| Heard {
        event,
        since: clock::now(),
    };
    let mut turns = Turns::new(10);
    let (_in_place, put) = oneshot::channel::<()>();
    assert!(turns.hear(Kind::File, heard(push("a", b"0123456789"))).is_empty());
    let (kind, _) = turns.next().expect("its turn");
    turns.spawn(kind, String::new(), async {
        let _in_place = put.await;
    });
    assert!(turns.has_room());
    for number in 0..100 {
        let not_done = turns.hear(Kind::Act, heard(mark("x")));
        assert_eq!(not_done.len(), usize::from(number >= lines::WAITING_MAX));
    }
    assert_eq!(turns.next(), None);
    assert!(turns.hear(Kind::File, heard(push("b", b"012345678"))).is_empty());
    assert!(turns.has_room(), "9 bytes of 10");
    assert!(turns.hear(Kind::File, heard(push("c", b"0"))).is_empty());
    assert!(!turns.has_room(), "10 bytes of 10");
}
