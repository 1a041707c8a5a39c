//! The library half of clever-show, `swarm_shared::net::clever_show`, with peers in Python: as the dialling side and
//! as the listening side.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use swarm_shared::net::clever_show::{
    AFTER_IDLE_SEC, Callbacks, Client, ConnectionManager, INTERVAL_SEC, MAX_FAILS, Options, ReconnectPolicy,
    RequestError, set_keepalive,
};
use swarm_shared::net::roots::Roots;
use swarm_shared::proto::message::Arguments;
use swarm_tests::fleet::{TEST_TIMEOUT, TestDir};
use tokio::net::TcpListener;

use crate::clever_show_node::{CleverShowPeer, hex};

fn kwargs(value: serde_json::Value) -> Arguments {
    serde_json::from_value(json!({ "kwargs": value })).expect("arguments")
}

fn callbacks(field: &TestDir) -> Callbacks {
    let mut callbacks = Callbacks::new();
    let roots = Roots::new([("files".to_owned(), field.dir("files"))].into());
    callbacks
        .request_callback("id", |_, _| async { Ok::<_, String>(json!("clever-1")) })
        .request_callback("clover_dir", |_, _| async { Ok::<_, String>(json!("files")) })
        .message_callback(
            "led_fill",
            |connection: ConnectionManager, arguments: Arguments| async move {
                // Returns what it got.
                connection.send_message("led", arguments).expect("room");
            },
        )
        .files(roots);
    callbacks
}

#[tokio::test(flavor = "multi_thread")]
async fn library_acts_as_drone_for_python_server() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let mut server = CleverShowPeer::start(field.path(), "clever", &["--encoding", "utf-16"]);
    let (drone, incoming) = ConnectionManager::new(Options::default());
    let served = drone.clone();
    let callbacks = callbacks(&field);
    tokio::spawn(async move { callbacks.serve(&served, incoming).await });
    let driven = drone.clone();
    let addr = SocketAddr::from(([127, 0, 0, 1], u16::try_from(server.port).expect("a port")));
    tokio::spawn(async move {
        let mut client = Client::for_server(addr);
        loop {
            let (stream, _) = client.next_connection().await;
            driven.connect(stream).await;
        }
    });
    server.wait("id", |line| line["name"] == "id" && line["value"] == "clever-1");
    // The server's own request may have been answered before the first one.
    server.control(&json!({"do": "request", "value": "clover_dir"}));
    server.wait("clover_dir", |line| {
        line["name"] == "clover_dir" && line["value"] == "files"
    });
    let red = json!({"red": 255, "name": "внимание"});
    server.control(&json!({"do": "action", "action": "led_fill", "kwargs": red}));
    server.wait("led", |line| line["action"] == "led" && line["kwargs"] == red);
    server.control(&json!({"do": "push", "filepath": "files/a", "hex": hex(b"take 1")}));
    let asked = json!({"do": "request", "value": "filetransfer", "kwargs": {"filepath": "files/a"}});
    // Pushed files are not acknowledged: a file that is requested too early is not there yet.
    swarm_tests::process::wait_until(TEST_TIMEOUT, "the file is kept", || {
        field.dir("files").join("a").exists()
    });
    server.control(&asked);
    server.wait("the file", |line| {
        line["event"] == "file" && line["hex"] == hex(b"take 1")
    });
    // The same again after the connection was lost.
    server.control(&json!({"do": "drop"}));
    server.wait("id again", |line| {
        line["name"] == "id" && line["value"] == "clever-1"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn library_acts_as_server_for_python_drone() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    let answers =
        json!({"id": "copter-1", "telemetry": {"battery": [12.1, 0.9]}, "filetransfer": hex(b"log")});
    let answers = answers.to_string();
    let words = ["--connect", &addr, "--answers", &answers];
    let mut first = CleverShowPeer::start(field.path(), "first", &words);
    let options = Options {
        reconnect: ReconnectPolicy {
            resume_queue: true,
            resend_requests: true,
        },
        ..Options::default()
    };
    let (drone, incoming) = ConnectionManager::new(options);
    let (served, callbacks) = (drone.clone(), callbacks(&field));
    tokio::spawn(async move { callbacks.serve(&served, incoming).await });
    let driven = drone.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            set_keepalive(&stream, AFTER_IDLE_SEC, INTERVAL_SEC, MAX_FAILS).expect("set");
            driven.connect(stream).await;
        }
    });
    let ask = |value: &'static str| drone.get_response(value, Arguments::default(), TEST_TIMEOUT);
    assert_eq!(ask("id").await, Ok(json!("copter-1")));
    assert_eq!(ask("telemetry").await, Ok(json!({"battery": [12.1, 0.9]})));
    drone
        .send_message("led_fill", kwargs(json!({"red": 255})))
        .expect("room");
    first.wait("led_fill", |line| {
        line["action"] == "led_fill" && line["kwargs"]["red"] == 255
    });
    let source = field.file("anim.csv", b"0,0,1");
    drone.send_file(&source, "/home/pi/anim.csv").await.expect("sent");
    first.wait("the push", |line| {
        line["filepath"] == "/home/pi/anim.csv" && line["hex"] == hex(b"0,0,1")
    });
    let copy = field.path().join("copy");
    let got = drone
        .get_file("/home/pi/log", Some(&copy), TEST_TIMEOUT)
        .await
        .expect("sent");
    assert_eq!(
        (&got[..], std::fs::read(&copy).expect("kept")),
        (&b"log"[..], b"log".to_vec())
    );
    // Not answered, as with the real program.
    let none = drone
        .get_response("unknown", Arguments::default(), Duration::from_millis(200))
        .await;
    assert_eq!(none, Err(RequestError::TimedOut));
    // Requested on one connection, which is lost, and again on the next; messages sent in between arrive as well.
    let asking = drone.clone();
    let asked = tokio::spawn(async move {
        asking
            .get_response("anim_id", Arguments::default(), TEST_TIMEOUT)
            .await
    });
    let before = first.wait("anim_id", |line| line["name"] == "anim_id");
    drop(first);
    swarm_tests::process::wait_until(TEST_TIMEOUT, "the connection is lost", || drone.addr().is_none());
    drone.send_message("land", Arguments::default()).expect("room");
    let answers = json!({"anim_id": "anim-7"}).to_string();
    let mut second = CleverShowPeer::start(
        field.path(),
        "second",
        &["--connect", &addr, "--answers", &answers],
    );
    assert_eq!(asked.await.expect("ran"), Ok(json!("anim-7")));
    let again = second.wait("anim_id again", |line| line["name"] == "anim_id");
    assert_eq!(again["id"], before["id"]);
    second.wait("land", |line| line["action"] == "land");
}
