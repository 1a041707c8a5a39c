//! The door of a real node, with a disk that stands still while a test wants it to.

mod stops;

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

[actions.hold]
command = ["/bin/sh", "-c", "echo hold >>DIR/marks; exec sleep 60"]

[files.roots]
files = "DIR/files"

[doors.clever_show]
server = "127.0.0.1:9"
allow = ["ALLOW"]
file_bytes = 10
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
        stage.until("the rest", |stage| stage.marks().len() == 3).await;
        // What is not of flight had its file; what would have flown after the landing did not.
        let mut marks = stage.marks();
        marks.sort();
        assert_eq!(marks, ["after a", "after b", "land"]);
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

#[tokio::test]
async fn what_moves_a_drone_is_not_done_late_whatever_its_class() {
    for tables in [TABLES.to_owned(), TABLES.replace("class = \"flight\"", "")] {
        let stage = Stage::with(&tables.replace("ALLOW", "*")).await;
        let said = stage.serve();
        let since = clock::now() - Duration::from_secs(3);
        let event = action("start", json!({}));
        said.send(Heard { event, since }).await.expect("heard");
        say(&said, mark("next")).await;
        stage
            .until("it has expired", |stage| stage.marks() == ["next"])
            .await;
        stage.end().await;
    }
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
        for _ in 0..8 {
            say(&said, fetch("log")).await;
        }
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
fn what_this_node_cannot_do_ends_no_flight() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
        let disk = hold_the_disk().await;
        say(&said, push("show", b"steps")).await;
        say(&said, action("start", json!({}))).await;
        let pause = stage.door.job(action("pause", json!({})), clock::now());
        assert_eq!(pause.map(|job| job.kind), Some(Kind::Flight));
        say(&said, action("pause", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        stage.until("it starts", |stage| stage.marks() == ["start"]).await;
        stage.end().await;
    });
}

#[test]
fn without_the_file_that_was_pushed_before_it_no_flight_begins() {
    with_one_thread_for_disks().block_on(async {
        let stage = Stage::set().await;
        let said = stage.serve();
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
            let disk = hold_the_disk().await;
            let name = number.to_string();
            // That the others can be kept does not help, nor that they come later.
            say(&said, push("other", b"before")).await;
            say(&said, failing).await;
            say(&said, start()).await;
            say(&said, push("other", b"after")).await;
            say(&said, start()).await;
            say(&said, mark(&name)).await;
            drop(disk);
            marks.push(name);
            stage
                .until("what needs no file", |stage| stage.marks() == marks)
                .await;
            assert!(has(stage.dir.path(), "other", b"after"));
        }
        // Come together, whatever has been read of it by when.
        let since = clock::now();
        for event in [nowhere(), start(), mark("together")] {
            said.send(Heard { event, since }).await.expect("heard");
        }
        marks.push("together".to_owned());
        stage
            .until("what came with it", |stage| stage.marks() == marks)
            .await;
        // The same file, once more, and right.
        let disk = hold_the_disk().await;
        say(&said, push("show", b"more than it may be")).await;
        say(&said, push("show", b"steps")).await;
        say(&said, start()).await;
        drop(disk);
        marks.push("start".to_owned());
        stage.until("it starts", |stage| stage.marks() == marks).await;
        assert!(has(stage.dir.path(), "show", b"steps"));
        stage.end().await;
    });
}

/// With all places that flights and others can have taken, by the server and by stations.
async fn lands_whatever_runs(tables: &str) {
    let stage = Stage::with(tables).await;
    let said = stage.serve();
    let count = |stage: &Stage, name: &str| stage.marks().iter().filter(|mark| *mark == name).count();
    for _ in 0..10 {
        say(&said, action("hold", json!({}))).await;
    }
    stage
        .until("six by the server", |stage| count(stage, "hold") == 6)
        .await;
    let errands = stage.links.errands();
    for _ in 0..2 {
        // Whoever asks does not wait for its end.
        let _end = errands
            .hand_in(
                stage.door.config.role,
                "hold".to_owned(),
                Arguments::default(),
                clock::now(),
                false,
            )
            .await;
    }
    stage
        .until("two by others", |stage| count(stage, "hold") == 8)
        .await;
    for name in ["takeoff", "disarm"] {
        for _ in 0..10 {
            say(&said, action(name, json!({}))).await;
        }
    }
    say(&said, action("land", json!({}))).await;
    stage
        .until("it lands", |stage| {
            (count(stage, "disarm"), count(stage, "land")) == (2, 1)
        })
        .await;
    stage.end().await;
}

#[test]
fn no_number_of_flights_and_of_others_keeps_a_drone_from_landing() {
    with_one_thread_for_disks().block_on(lands_whatever_runs(&TABLES.replace("ALLOW", "*")));
}

#[test]
fn nor_does_it_matter_which_class_its_owner_gave_to_what() {
    let plain = TABLES.replace("class = \"flight\"", "");
    with_one_thread_for_disks().block_on(lands_whatever_runs(&plain.replace("ALLOW", "*")));
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

fn job(kind: Kind, todo: Todo) -> Job {
    Job {
        kind,
        what: "action",
        name: "x".to_owned(),
        since: clock::now(),
        todo,
    }
}

fn pushed(bytes: &'static [u8]) -> Job {
    let bytes = Bytes::from_static(bytes);
    job(Kind::File, Todo::Push { bytes })
}

/// With arguments of so many bytes.
fn errand(kind: Kind, bytes: usize) -> Job {
    let mut arguments = Arguments::default();
    arguments.args.push("x".repeat(bytes).into());
    let action = "x".to_owned();
    let asked = None;
    let errand = Todo::Errand {
        action,
        arguments,
        asked,
    };
    job(kind, errand)
}

/// A file that is pushed is not in its place before the test says so.
#[tokio::test]
async fn what_waits_behind_a_file_is_bounded() {
    let mut turns = Turns::new(10);
    let (_in_place, put) = oneshot::channel::<()>();
    turns.hear(pushed(b"0123456789"));
    let file = turns.next().expect("its turn");
    turns.spawn(file.at_work(), async {
        let _in_place = put.await;
        Ok(())
    });
    assert!(turns.has_room());
    for number in 0..100 {
        turns.hear(errand(Kind::Act, 1));
        let not_done = turns.take_not_done();
        assert_eq!(not_done.len(), usize::from(number >= queue::WAITING_MAX));
    }
    assert!(turns.next().is_none());
    turns.hear(pushed(b"012345678"));
    assert!(turns.has_room(), "9 bytes of 10");
    turns.hear(pushed(b"0"));
    assert!(!turns.has_room(), "10 bytes of 10");
    assert!(turns.take_not_done().is_empty());
}

#[tokio::test]
async fn whoever_starts_it_knowing_that_a_file_is_not_there_has_what_is_there() {
    let mut turns = Turns::new(10);
    turns.hear(pushed(b"steps"));
    let file = turns.next().expect("its turn");
    turns.spawn(file.at_work(), async { Err("the card is full".to_owned()) });
    let before = clock::now();
    let flight = |since| Job {
        since,
        ..errand(Kind::Flight, 1)
    };
    turns.hear(flight(before));
    turns.changed().await;
    let after = clock::now();
    // Read later, and not sent later.
    turns.hear(flight(before));
    assert!(turns.next().is_none());
    let not_done = turns.take_not_done();
    assert_eq!(not_done.len(), 2);
    assert!(not_done.iter().all(|(_, why)| why.contains("the card is full")));
    turns.hear(errand(Kind::Act, 1));
    turns.hear(flight(after));
    let next = [turns.next(), turns.next()].map(|job| job.map(|job| job.kind));
    assert_eq!(next, [Some(Kind::Flight), Some(Kind::Act)]);
}

#[tokio::test]
async fn what_is_at_work_and_waits_takes_so_much_memory_at_most() {
    const BYTES: usize = 500_000;
    let kinds = [Kind::Act, Kind::Question, Kind::Flight];
    let mut turns = Turns::new(10);
    let mut heard = 0;
    while turns.take_not_done().is_empty() {
        turns.hear(errand(kinds[heard % kinds.len()], BYTES));
        heard += 1;
        // As many at work as may be, for ever.
        while let Some(job) = turns.next() {
            turns.spawn(job.at_work(), std::future::pending());
        }
        assert!(heard * BYTES <= scheduler::BYTES_MAX + BYTES, "{heard}");
    }
    assert!((heard + 1) * BYTES >= scheduler::BYTES_MAX, "{heard}");
    turns.hear(errand(Kind::Question, BYTES));
    assert_eq!(turns.take_not_done().len(), 1, "busy");
    // What ends a flight takes out what waits, and has its place.
    turns.hear(errand(Kind::Ending, BYTES));
    assert!(
        turns
            .take_not_done()
            .iter()
            .all(|(job, _)| job.kind == Kind::Flight)
    );
    assert_eq!(turns.next().map(|job| job.kind), Some(Kind::Ending));
}

#[tokio::test]
async fn what_has_ended_counts_no_more() {
    const BYTES: usize = scheduler::BYTES_MAX * 3 / 4;
    let mut turns = Turns::new(10);
    for _ in 0..3 {
        turns.hear(errand(Kind::Act, BYTES));
        assert!(turns.take_not_done().is_empty());
        let job = turns.next().expect("its turn");
        turns.spawn(job.at_work(), async { Ok(()) });
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_may_not_pass_joins_no_line() {
    let stage = Stage::allowing("led").await;
    for refused in [
        mark("x"),
        action("land", json!({})),
        fetch("x"),
        action("execute", json!({})),
    ] {
        assert!(stage.door.job(refused, clock::now()).is_none());
    }
    let led = stage.door.job(action("led", json!({})), clock::now());
    assert_eq!(led.map(|job| job.kind), Some(Kind::Act));
    stage.end().await;
}
