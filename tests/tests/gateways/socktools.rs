//! Peers of socktools, dialling and dialled, at a real station with real nodes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, Host, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::peers;
use swarm_tests::process::{Signal, sleep_for, wait_until};

const PING: &str = r#"send:{"type":"request","id":"7","action":"ping","origin":"desk"}"#;

fn fleet(field: TestDir, port: u16, more: &str) -> Fleet {
    let gateway = format!("[gateways.socktools]\nlisten = \"127.0.0.1:{port}\"\n{more}\n");
    Fleet::linked_with_station_config(field, 1, &gateway, |_node, _field| {})
}

/// The messages that a peer received.
fn messages(said: &[Value]) -> Vec<Value> {
    said.iter()
        .filter(|line| !line["message"].is_null())
        .map(|line| {
            serde_json::from_str(str_field(line, "message")).unwrap_or_else(|error| panic!("{line}: {error}"))
        })
        .collect()
}

fn first_error(message: &Value) -> &str {
    message["response"]["errors"][0].as_str().unwrap_or_default()
}

#[test]
fn connecting_socktools_peer_is_answered() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let port = field.free_port();
    let fleet = fleet(field, port, "");
    let (field, port) = (&fleet.test_dir, port.to_string());
    let steps = [
        "dial",
        &port,
        PING,
        "recv",
        "sendhex:",
        r#"send:{"action":"station.nodes"}"#,
        "recv",
        r#"send:{"action":"echo","args":{"word":"hi"}}"#,
        "recv",
        "send:no request",
        "recv",
        r#"send:{"type":"response","id":"7"}"#,
        PING,
        "half",
        "recv",
        "end",
    ];
    let said = peers::run(field, "socktools.py", &steps);
    let got = messages(&said);
    assert_eq!(
        (&got[0]["id"], &got[0]["target"], &got[0]["origin"]),
        (&json!("7"), &json!("desk"), &json!("st"))
    );
    assert_eq!(got[0]["response"], json!({"output": "pong", "errors": []}));
    assert_eq!(got[1]["response"]["output"][0]["node"], "n1");
    assert!(
        first_error(&got[2]).contains("name it in `allow` of [gateways.socktools]"),
        "{got:?}"
    );
    assert!(first_error(&got[3]).contains("not JSON"), "{got:?}");
    // A response is not answered; a peer that has closed its writing side still gets its answer.
    assert_eq!(got[4]["response"]["output"], "pong");
    assert_eq!(said.last().expect("the end")["ended"], true);
}

#[test]
fn configured_socktools_peer_is_redialled() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let (port, peer_port) = (field.free_port(), field.free_port());
    let mut fleet = fleet(field, port, &format!("dial = [\"127.0.0.1:{peer_port}\"]"));
    let steps = [
        "listen",
        &peer_port.to_string(),
        PING,
        "recv",
        "again",
        PING,
        "recv",
        "recv",
        "recv",
    ];
    let mut peer = peers::start(&fleet.test_dir, "socktools.py", &steps);
    peer.wait_json(TEST_TIMEOUT, "an answer", |line| {
        str_field(line, "message").contains("pong")
    });
    peer.wait_json(TEST_TIMEOUT, "another connection", |line| {
        line["connected"] == true
    });
    peer.wait_json(TEST_TIMEOUT, "another answer", |line| {
        str_field(line, "message").contains("pong")
    });
    let log = fleet.station.log();
    let said = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (said("Peer not connected; trying again"), said("Peer connected")),
        // One line for all failed attempts, and one for each connection.
        (1, 2),
        "{log:#?}"
    );
    // An operator sends it a message: to all, and by name.
    let station = &fleet.station;
    let name = format!("127.0.0.1:{peer_port}");
    let listed = station
        .run(&["gateway", "peers", "socktools"])
        .expect_status(0)
        .json();
    assert_eq!(
        (&listed[0]["peer"], &listed[0]["dialled"]),
        (&json!(name), &json!(true))
    );
    station
        .run(&["gateway", "send", "socktools", "to all"])
        .expect_status(0);
    peer.wait_json(TEST_TIMEOUT, "a message to all", |line| {
        line["message"] == "to all"
    });
    let one = [
        "gateway",
        "send",
        "socktools",
        "--peer",
        &name,
        "--base64",
        "b25l",
    ];
    station.run(&one).expect_status(0);
    peer.wait_json(TEST_TIMEOUT, "a message to one", |line| line["message"] == "one");
    assert!(peer.wait_exit(TEST_TIMEOUT).success(), "{}", peer.log_tail());
    wait_until(TEST_TIMEOUT, "no peer is connected any more", || {
        station.run(&["gateway", "send", "socktools", "lost"]).status == Some(3)
    });
    let wrong = station
        .run_plain(&["gateway", "send", "knut", "x"])
        .expect_status(2);
    wrong.expect_stderr("no gateway \"knut\" with peers is open here");
    fleet.station.signal_and_wait(Signal::TERM);
    let no_station = fleet
        .station
        .run_plain(&["gateway", "peers", "socktools"])
        .expect_status(2);
    no_station.expect_stderr("no station serves here");
}

/// Two stations keep an idle link between their gateways, and do not answer answers.
#[test]
fn keep_alive_holds_an_idle_socktools_link() {
    let field = TestDir::new();
    let ports = [field.free_port(), field.free_port()];
    let mut stations = ["a", "b"].map(|name| field.station(name, Host::loopback()));
    for (station, (port, more)) in stations.iter_mut().zip([
        (ports[0], String::new()),
        (ports[1], format!("dial = [\"127.0.0.1:{}\"]", ports[0])),
    ]) {
        let gateway = format!(
            "[gateways.socktools]\nlisten = \"127.0.0.1:{port}\"\nidle = \"1s\"\nkeep_alive = \"200ms\"\n{more}"
        );
        station.append_config(&gateway);
        station.serve();
    }
    let peers = |name: &str| {
        let station = stations
            .iter()
            .find(|station| station.name == name)
            .expect("there");
        station
            .run(&["gateway", "peers", "socktools"])
            .expect_status(0)
            .json()
    };
    let mut linked = Vec::new();
    wait_until(TEST_TIMEOUT, "they are linked", || {
        linked = peers("a");
        linked.len() == 1
    });
    stations[0]
        .run(&["gateway", "send", "socktools", "hello"])
        .expect_status(0);
    sleep_for(Duration::from_secs(4));
    assert_eq!(peers("a"), linked, "the same connection");
    assert_eq!(peers("b").len(), 1);
    // A silent peer is closed, and the log has the reason.
    let _silent = TcpStream::connect(("127.0.0.1", ports[0])).expect("connects");
    wait_until(TEST_TIMEOUT, "it is dropped", || {
        stations[0]
            .log()
            .iter()
            .any(|line| line.contains("Peer connection closed") && line.contains("silent for 1s"))
    });
}

#[test]
fn non_request_messages_go_to_the_raw_action() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let port = field.free_port();
    let more = "allow = [\"echo\"]\nraw_action = \"echo\"\nraw_argument = \"word\"\nraw_encoding = \"text\"";
    let fleet = fleet(field, port, more);
    let steps = [
        "dial",
        &port.to_string(),
        "send:hello",
        "recv",
        PING,
        "recv",
        "sendhex:ff",
        "recv",
        "send:{}",
        "recv",
    ];
    let got = messages(&peers::run(&fleet.test_dir, "socktools.py", &steps));
    assert_eq!(
        got[0]["response"],
        json!({"output": "hello 1 left\n", "errors": []})
    );
    assert_eq!(got[1]["response"]["output"], "pong");
    assert!(first_error(&got[2]).contains("not text in UTF-8"), "{got:?}");
    assert!(first_error(&got[3]).starts_with("n1: refused:"), "{got:?}");
}

#[test]
fn peer_outside_good_peers_is_closed_unread() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let port = field.free_port();
    let fleet = fleet(field, port, "good_peers = [\"10.99.0.0/16\"]");
    let said = peers::run(
        &fleet.test_dir,
        "socktools.py",
        &["dial", &port.to_string(), "end"],
    );
    assert_eq!(said[0]["ended"], true);
    assert!(said[0]["seconds"].as_f64().expect("a time") < 5.0, "{said:?}");
    let told = |line: &String| line.contains("Connection refused: address not allowed");
    assert!(fleet.station.log().iter().any(told));
}

#[test]
fn silent_slow_or_oversized_peer_is_dropped() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let port = field.free_port();
    let fleet = fleet(field, port, "message_bytes = 1000");
    let (field, port_text) = (&fleet.test_dir, port.to_string());
    let silent = peers::start(field, "socktools.py", &["dial", &port_text, "end"]);
    let half_a_message = peers::start(
        field,
        "socktools.py",
        &["dial", &port_text, "raw:0000000a41", "recv", "end"],
    );
    // One byte every now and then is a message that never ends.
    let mut trickle = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    trickle
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("set");
    trickle.write_all(&[0, 0, 0, 200]).expect("written");
    let too_long = peers::run(
        field,
        "socktools.py",
        &["dial", &port_text, "raw:000003e9", "recv", "end"],
    );
    assert!(
        first_error(&messages(&too_long)[0]).contains("1001 bytes is longer than 1000"),
        "{too_long:?}"
    );
    let served = peers::run(field, "socktools.py", &["dial", &port_text, PING, "recv"]);
    assert_eq!(messages(&served)[0]["response"]["output"], "pong");
    let mut bytes = 0;
    wait_until(TEST_TIMEOUT, "the slow one is dropped", || {
        let mut answer = [0; 1024];
        let written = trickle.write_all(b"x").is_ok();
        match trickle.read(&mut answer) {
            Ok(0) => true,
            Ok(read) => {
                bytes += read;
                false
            }
            Err(_) => !written,
        }
    });
    assert!(bytes > 0, "it is told why");
    for mut peer in [silent, half_a_message] {
        let line = peer.wait_json(TEST_TIMEOUT, "the end", |line| line["ended"] == true);
        assert!(line["seconds"].as_f64().expect("a time") < 15.0, "{line}");
    }
}
