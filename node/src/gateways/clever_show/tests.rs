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

/// Where the work of disks is done by one thread only.
fn one_blocking_thread() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1);
    runtime.enable_all().build().expect("a runtime")
}

/// The disk stands still until this is dropped.
async fn block_the_disk() -> std::sync::mpsc::Sender<()> {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        begun.send(()).expect("waited for");
        let _let_go = held.recv();
    });
    begins.await.expect("it stands still");
    hold
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
        let config = node.config.gateways.clever_show.clone().expect("a door");
        let (gateway, _incoming) = super::new_gateway(config, &node, links.local_commands());
        Self {
            dir,
            node,
            links,
            gateway,
        }
    }

    /// The door hears what is sent from now on.
    fn serve(&self) -> mpsc::Sender<ReceivedEvent> {
        let (said, heard) = mpsc::channel(64);
        let gateway = self.gateway.clone();
        let shutdown = self.node.shutdown.clone();
        let serving = async move { shutdown.run_until_cancelled(gateway.serve(heard)).await };
        self.node.tasks.spawn(async move {
            serving.await;
        });
        said
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

async fn send(said: &mpsc::Sender<ReceivedEvent>, event: Event) {
    let since = clock::now();
    said.send(ReceivedEvent {
        event,
        earliest_arrival: since,
    })
    .await
    .expect("heard");
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
        let stage = Fixture::new().await;
        let said = stage.serve();
        let disk = block_the_disk().await;
        send(&said, push("a", b"first")).await;
        send(&said, mark("after a")).await;
        send(&said, action("start", json!({}))).await;
        send(&said, push("b", b"second")).await;
        send(&said, mark("after b")).await;
        send(&said, action("land", json!({}))).await;
        stage
            .wait_until("it lands", |stage| stage.marks() == ["land"])
            .await;
        assert!(
            !has_file(stage.dir.path(), "a", b"first"),
            "the disk stands still"
        );
        drop(disk);
        stage
            .wait_until("the rest", |stage| stage.marks().len() == 3)
            .await;
        // What is not of flight had its file; what would have flown after the landing did not.
        let mut marks = stage.marks();
        marks.sort();
        assert_eq!(marks, ["after a", "after b", "land"]);
        assert!(has_file(stage.dir.path(), "a", b"first") && has_file(stage.dir.path(), "b", b"second"));
        send(&said, action("start", json!({}))).await;
        stage
            .wait_until("it starts", |stage| stage.marks().len() == 4)
            .await;
        stage.shut_down().await;
    });
}

#[test]
fn a_flight_waits_for_the_file_pushed_before_it() {
    one_blocking_thread().block_on(async {
        let stage = Fixture::new().await;
        let said = stage.serve();
        let disk = block_the_disk().await;
        send(&said, push("show", b"steps")).await;
        send(&said, action("start", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(stage.marks(), [""; 0]);
        drop(disk);
        stage
            .wait_until("it starts", |stage| stage.marks() == ["start"])
            .await;
        assert!(has_file(stage.dir.path(), "show", b"steps"));
        stage.shut_down().await;
    });
}

#[tokio::test]
async fn late_flight_actions_expire_whatever_their_class() {
    for tables in [TABLES.to_owned(), TABLES.replace("class = \"flight\"", "")] {
        let stage = Fixture::with(&tables.replace("ALLOW", "*")).await;
        let said = stage.serve();
        let earliest_arrival = clock::now() - Duration::from_secs(3);
        let event = action("start", json!({}));
        said.send(ReceivedEvent {
            event,
            earliest_arrival,
        })
        .await
        .expect("heard");
        send(&said, mark("next")).await;
        stage
            .wait_until("it has expired", |stage| stage.marks() == ["next"])
            .await;
        stage.shut_down().await;
    }
}

#[test]
fn a_refused_landing_overtakes_nothing() {
    one_blocking_thread().block_on(async {
        let stage = Fixture::allowing("[!l]*").await;
        let said = stage.serve();
        let disk = block_the_disk().await;
        send(&said, push("show", b"steps")).await;
        send(&said, action("start", json!({}))).await;
        send(&said, action("land", json!({}))).await;
        send(&said, mark("last")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        stage
            .wait_until("the rest", |stage| stage.marks().len() == 2)
            .await;
        assert!(stage.marks().contains(&"start".to_owned()), "{:?}", stage.marks());
        stage.shut_down().await;
    });
}

#[test]
fn fetched_files_delay_no_actions() {
    one_blocking_thread().block_on(async {
        let stage = Fixture::new().await;
        let said = stage.serve();
        let disk = block_the_disk().await;
        for _ in 0..8 {
            send(&said, fetch("log")).await;
        }
        send(&said, mark("beside it")).await;
        stage
            .wait_until("an action", |stage| stage.marks() == ["beside it"])
            .await;
        send(&said, action("land", json!({}))).await;
        stage
            .wait_until("it lands", |stage| stage.marks().len() == 2)
            .await;
        drop(disk);
        stage.shut_down().await;
    });
}

#[test]
fn an_unknown_action_cancels_no_flight() {
    one_blocking_thread().block_on(async {
        let stage = Fixture::new().await;
        let said = stage.serve();
        let disk = block_the_disk().await;
        send(&said, push("show", b"steps")).await;
        send(&said, action("start", json!({}))).await;
        let pause = stage.gateway.task(action("pause", json!({})), clock::now());
        assert_eq!(pause.map(|job| job.kind), Some(TaskKind::Flight));
        send(&said, action("pause", json!({}))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(disk);
        stage
            .wait_until("it starts", |stage| stage.marks() == ["start"])
            .await;
        stage.shut_down().await;
    });
}

#[test]
fn a_failed_push_rejects_the_flight_after_it() {
    one_blocking_thread().block_on(async {
        let stage = Fixture::new().await;
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
            let disk = block_the_disk().await;
            let name = number.to_string();
            // That the others can be kept does not help, nor that they come later.
            send(&said, push("other", b"before")).await;
            send(&said, failing).await;
            send(&said, start()).await;
            send(&said, push("other", b"after")).await;
            send(&said, start()).await;
            send(&said, mark(&name)).await;
            drop(disk);
            marks.push(name);
            stage
                .wait_until("what needs no file", |stage| stage.marks() == marks)
                .await;
            assert!(has_file(stage.dir.path(), "other", b"after"));
        }
        // Come together, whatever has been read of it by when.
        let since = clock::now();
        for event in [nowhere(), start(), mark("together")] {
            said.send(ReceivedEvent {
                event,
                earliest_arrival: since,
            })
            .await
            .expect("heard");
        }
        marks.push("together".to_owned());
        stage
            .wait_until("what came with it", |stage| stage.marks() == marks)
            .await;
        // The same file, once more, and right.
        let disk = block_the_disk().await;
        send(&said, push("show", b"more than it may be")).await;
        send(&said, push("show", b"steps")).await;
        send(&said, start()).await;
        drop(disk);
        marks.push("start".to_owned());
        stage
            .wait_until("it starts", |stage| stage.marks() == marks)
            .await;
        assert!(has_file(stage.dir.path(), "show", b"steps"));
        stage.shut_down().await;
    });
}

/// With all places that flights and others can have taken, by the server and by stations.
async fn lands_whatever_runs(tables: &str) {
    let stage = Fixture::with(tables).await;
    let said = stage.serve();
    let count = |stage: &Fixture, name: &str| stage.marks().iter().filter(|mark| *mark == name).count();
    for _ in 0..10 {
        send(&said, action("hold", json!({}))).await;
    }
    stage
        .wait_until("six by the server", |stage| count(stage, "hold") == 6)
        .await;
    let local_commands = stage.links.local_commands();
    for _ in 0..2 {
        // Whoever asks does not wait for its end.
        let _end = local_commands
            .submit(
                stage.gateway.config.role,
                "hold".to_owned(),
                Arguments::default(),
                clock::now(),
                false,
            )
            .await;
    }
    stage
        .wait_until("two by others", |stage| count(stage, "hold") == 8)
        .await;
    for name in ["takeoff", "disarm"] {
        for _ in 0..10 {
            send(&said, action(name, json!({}))).await;
        }
    }
    send(&said, action("land", json!({}))).await;
    stage
        .wait_until("it lands", |stage| {
            (count(stage, "disarm"), count(stage, "land")) == (2, 1)
        })
        .await;
    stage.shut_down().await;
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
        let stage = Fixture::new().await;
        let gateway = &stage.gateway;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let server = Client::for_server(listener.local_addr().expect("bound"));
        let disk = block_the_disk().await;
        let with_servers = async {
            let (first, _) = listener.accept().await.expect("joined");
            stage
                .wait_until("it is joined", |stage| stage.gateway.is_connected())
                .await;
            let go_on = async {
                drop(first);
                stage
                    .wait_until("it is lost", |stage| !stage.gateway.is_connected())
                    .await;
                drop(disk);
            };
            tokio::join!(gateway.send_reading(), go_on);
            assert_eq!(gateway.connection.queued_messages(), 0, "for the next server");
            let (_second, _) = listener.accept().await.expect("joined again");
            stage
                .wait_until("it is joined again", |stage| stage.gateway.is_connected())
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
        stage.shut_down().await;
    });
}

fn task(kind: TaskKind, todo: TaskWork) -> Task {
    Task {
        kind,
        what: "action",
        name: "x".to_owned(),
        since: clock::now(),
        work: todo,
    }
}

fn pushed(bytes: &'static [u8]) -> Task {
    let bytes = Bytes::from_static(bytes);
    task(TaskKind::File, TaskWork::Push { bytes })
}

/// With arguments of so many bytes.
fn local_command(kind: TaskKind, bytes: usize) -> Task {
    let mut arguments = Arguments::default();
    arguments.args.push("x".repeat(bytes).into());
    let action = "x".to_owned();
    let asked = None;
    let errand = TaskWork::LocalCommand {
        action,
        arguments,
        request: asked,
    };
    task(kind, errand)
}

/// A file that is pushed is not in its place before the test says so.
#[tokio::test]
async fn tasks_waiting_for_a_file_are_bounded() {
    let mut turns = Scheduler::new(10);
    let (_in_place, put) = oneshot::channel::<()>();
    turns.submit(pushed(b"0123456789"));
    let file = turns.next().expect("its turn");
    turns.spawn(file.running(), async {
        let _in_place = put.await;
        Ok(())
    });
    assert!(turns.has_capacity());
    for number in 0..100 {
        turns.submit(local_command(TaskKind::Action, 1));
        let not_done = turns.take_rejected();
        assert_eq!(not_done.len(), usize::from(number >= queue::WAITING_MAX));
    }
    assert!(turns.next().is_none());
    turns.submit(pushed(b"012345678"));
    assert!(turns.has_capacity(), "9 bytes of 10");
    turns.submit(pushed(b"0"));
    assert!(!turns.has_capacity(), "10 bytes of 10");
    assert!(turns.take_rejected().is_empty());
}

#[tokio::test]
async fn only_flights_sent_before_a_failed_push_are_rejected() {
    let mut turns = Scheduler::new(10);
    turns.submit(pushed(b"steps"));
    let file = turns.next().expect("its turn");
    turns.spawn(file.running(), async { Err("the card is full".to_owned()) });
    let before = clock::now();
    let flight = |since| Task {
        since,
        ..local_command(TaskKind::Flight, 1)
    };
    turns.submit(flight(before));
    turns.wait_for_change().await;
    let after = clock::now();
    // Read later, and not sent later.
    turns.submit(flight(before));
    assert!(turns.next().is_none());
    let not_done = turns.take_rejected();
    assert_eq!(not_done.len(), 2);
    assert!(not_done.iter().all(|(_, why)| why.contains("the card is full")));
    turns.submit(local_command(TaskKind::Action, 1));
    turns.submit(flight(after));
    let next = [turns.next(), turns.next()].map(|job| job.map(|job| job.kind));
    assert_eq!(next, [Some(TaskKind::Flight), Some(TaskKind::Action)]);
}

#[tokio::test]
async fn queued_and_running_tasks_have_a_memory_limit() {
    const BYTES: usize = 500_000;
    let kinds = [TaskKind::Action, TaskKind::Query, TaskKind::Flight];
    let mut turns = Scheduler::new(10);
    let mut heard = 0;
    while turns.take_rejected().is_empty() {
        turns.submit(local_command(kinds[heard % kinds.len()], BYTES));
        heard += 1;
        // As many at work as may be, for ever.
        while let Some(job) = turns.next() {
            turns.spawn(job.running(), std::future::pending());
        }
        assert!(heard * BYTES <= scheduler::BYTES_MAX + BYTES, "{heard}");
    }
    assert!((heard + 1) * BYTES >= scheduler::BYTES_MAX, "{heard}");
    turns.submit(local_command(TaskKind::Query, BYTES));
    assert_eq!(turns.take_rejected().len(), 1, "busy");
    // What ends a flight takes out what waits, and has its place.
    turns.submit(local_command(TaskKind::Landing, BYTES));
    assert!(
        turns
            .take_rejected()
            .iter()
            .all(|(job, _)| job.kind == TaskKind::Flight)
    );
    assert_eq!(turns.next().map(|job| job.kind), Some(TaskKind::Landing));
}

#[tokio::test]
async fn finished_tasks_free_their_memory_budget() {
    const BYTES: usize = scheduler::BYTES_MAX * 3 / 4;
    let mut turns = Scheduler::new(10);
    for _ in 0..3 {
        turns.submit(local_command(TaskKind::Action, BYTES));
        assert!(turns.take_rejected().is_empty());
        let job = turns.next().expect("its turn");
        turns.spawn(job.running(), async { Ok(()) });
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn refused_requests_are_not_queued() {
    let stage = Fixture::allowing("led").await;
    for refused in [
        mark("x"),
        action("land", json!({})),
        fetch("x"),
        action("execute", json!({})),
    ] {
        assert!(stage.gateway.task(refused, clock::now()).is_none());
    }
    let led = stage.gateway.task(action("led", json!({})), clock::now());
    assert_eq!(led.map(|job| job.kind), Some(TaskKind::Action));
    stage.shut_down().await;
}
