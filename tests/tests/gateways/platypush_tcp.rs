//! Messages of Platypush over TCP, at a real station with real nodes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_tests::fleet::{Fleet, Host, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::lab::Lab;
use swarm_tests::peers;
use swarm_tests::process::{sleep_for, wait_until};

/// As documented: `echo '…' | nc localhost 1234`.
const DOCUMENTED: &str = r#"{"type": "request", "action": "shell.exec", "args": {"cmd": "ls /"}}"#;

/// A fleet with this gateway, and its port.
fn fleet(nodes: usize, more: &str) -> (Fleet, u16) {
    let field = TestDir::new();
    let port = field.free_port();
    let gateway = format!("[gateways.platypush_tcp]\nport = {port}\n{more}\n");
    let fleet = Fleet::linked_with_station_config(field, nodes, &gateway, |node, _field| {
        "[execute]\nallowed = true\n".clone_into(&mut node.tables);
    });
    (fleet, port)
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
    stream.set_write_timeout(Some(TEST_TIMEOUT)).expect("set");
    stream
}

/// Sends these bytes; returns all answers until the other side closes.
fn exchange(port: u16, bytes: &[u8]) -> Vec<Value> {
    let mut stream = connect(port);
    stream.write_all(bytes).expect("written");
    stream.shutdown(Shutdown::Write).expect("closed");
    answers(stream)
}

fn answers(mut stream: TcpStream) -> Vec<Value> {
    let mut read = String::new();
    stream.read_to_string(&mut read).expect("read to the end");
    let parsed = read.lines().map(serde_json::from_str);
    parsed
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{read}: {error}"))
}

fn ask(port: u16, request: &Value) -> Value {
    let mut answers = exchange(port, request.to_string().as_bytes());
    assert_eq!(answers.len(), 1, "{request}: {answers:?}");
    answers.remove(0)
}

fn output(answer: &Value) -> &Value {
    assert_eq!(answer["response"]["errors"], json!([]), "{answer}");
    &answer["response"]["output"]
}

fn error(answer: &Value) -> &str {
    assert_eq!(answer["type"], "response", "{answer}");
    answer["response"]["errors"][0].as_str().unwrap_or_default()
}

#[test]
fn documented_netcat_line_prints_response_and_exits() {
    swarm_tests::needs_python!();
    let (fleet, port) = fleet(1, "allow = [\"execute\"]\nrole = \"admin\"");
    for mode in ["nc", "nc-N"] {
        let port = port.to_string();
        let ran = peers::run(&fleet.test_dir, "platypush_tcp.py", &[&port, mode, DOCUMENTED]);
        let printed: Value = serde_json::from_str(str_field(&ran[0], "printed")).expect("one message");
        assert_eq!(
            (&printed["type"], &printed["origin"]),
            (&json!("response"), &json!("st"))
        );
        assert_eq!(str_field(&printed, "id").len(), 32);
        assert!(printed["_timestamp"].is_f64(), "{printed}");
        let listed: Vec<&str> = output(&printed)
            .as_str()
            .expect("what ls printed")
            .lines()
            .collect();
        assert!(listed.contains(&"proc") && listed.contains(&"tmp"), "{listed:?}");
        let seconds = ran[0]["seconds"].as_f64().expect("a time");
        assert!(seconds < 10.0, "{seconds} s");
    }
    // Every request is in the audit and in the history.
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0);
    let used = audit
        .json()
        .into_iter()
        .filter(|entry| entry["what"] == "execute")
        .count();
    assert_eq!(used, 2, "{audit:#?}");
}

#[test]
fn pipelined_platypush_requests_are_answered_in_order() {
    swarm_tests::needs_python!();
    let (fleet, port) = fleet(2, "allow = [\"echo\", \"fail\"]");
    let port_text = port.to_string();
    let ping = r#"{"type":"request","action":"ping","target":"n1","id":"1"}"#;
    let echo = r#"{"type":"request","action":"echo","args":{"word":"hi"},"origin":"desk","id":"2"}"#;
    let fail = r#"{"name":"fail","target":"n2","id":"3"}"#;
    let ran = peers::run(
        &fleet.test_dir,
        "platypush_tcp.py",
        &[&port_text, "several", ping, echo, fail],
    );
    let answers = ran[0]["answers"].as_array().expect("answers");
    assert_eq!(output(&answers[0]), "pong");
    let both = output(&answers[1]);
    for node in ["n1", "n2"] {
        assert_eq!(
            (&both[node]["state"], &both[node]["output"]),
            (&json!("done"), &json!("hi 1 left\n"))
        );
    }
    assert_eq!(answers[1]["target"], "desk");
    assert_eq!(
        answers[2]["response"],
        json!({"output": "sorry\n", "errors": ["n2: failed: exit status 7"]})
    );

    // All at once, without separators, and then closed for writing: none is lost, even if one takes a while.
    let ids = exchange(port, [ping, echo, fail, ping].concat().as_bytes());
    let ids: Vec<&str> = ids.iter().map(|answer| str_field(answer, "id")).collect();
    assert_eq!(ids, ["1", "2", "3", "1"]);
}

#[test]
fn half_closed_platypush_client_gets_its_response() {
    let (_fleet, port) = fleet(1, "allow = [\"slow\"]");
    let started = clock::now();
    let slow = json!({"action": "slow", "args": {"tag": "late", "time": 2}});
    let answer = ask(port, &slow);
    output(&answer);
    assert!(clock::since(started) >= Duration::from_secs(2));
}

#[test]
fn stop_runs_after_its_client_disconnected() {
    let (fleet, port) = fleet(1, "allow = [\"slow\", \"station.stop\"]");
    let mut stream = connect(port);
    let slow = json!({"action": "slow", "args": {"tag": "first", "time": 1}});
    let both = format!("{slow}{}", json!({"action": "station.stop"}));
    stream.write_all(both.as_bytes()).expect("written");
    wait_until(TEST_TIMEOUT, "it runs", || {
        fleet.nodes[0].marks().contains(&"begin first".to_owned())
    });
    // A reset: the answer to the first cannot be written.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set");
    drop(stream);
    wait_until(TEST_TIMEOUT, "the node is stopped", || {
        !fleet.station.node("n1")["stopped"].is_null()
    });
}

#[test]
fn invalid_platypush_requests_get_an_error() {
    let (fleet, port) = fleet(1, "allow = [\"echo\", \"nothing_such\"]\nmessage_bytes = 2000");
    for (request, says) in [
        (
            json!({"action": "reboot"}),
            "name it in `allow` of [gateways.platypush_tcp]",
        ),
        (
            json!({"action": "execute", "args": {"program": "ls"}}),
            "see `role` in [gateways.platypush_tcp]",
        ),
        (json!({"action": "nothing_such"}), "n1: refused: "),
        (
            json!({"action": "ping", "target": "n9"}),
            "no node matches \"n9\"",
        ),
        (json!({"action": "ping", "target": "["}), "is not a selector"),
        (
            json!({"action": "ping", "target": vec!["n1"; 65].join(",")}),
            "at most 64 terms",
        ),
        (
            json!({"action": "echo", "args": {"word": "UPPER"}}),
            "n1: refused: ",
        ),
        (
            json!({"action": "station.stop"}),
            "station.stop may not pass this gateway",
        ),
        (
            json!({"action": "socktools.send", "args": "x"}),
            "socktools.send may not pass this gateway",
        ),
        (
            json!({"action": "station.reboot"}),
            "the station has no \"station.reboot\"",
        ),
        (json!({"type": "event"}), "only messages of type"),
        (json!([1]), "a message is a JSON object"),
    ] {
        let answer = ask(port, &request);
        assert!(error(&answer).contains(says), "{request}: {answer}");
        assert_eq!(answer["response"]["output"], Value::Null);
    }
    let bad = exchange(port, b"{'type': 'request'}{\"action\": \"ping\"}");
    assert!(error(&bad[0]).contains("not JSON"), "{bad:?}");
    assert_eq!(output(&bad[1]), "pong", "the next one is done all the same");
    for (bytes, says) in [
        (b"hello\n".to_vec(), "a message begins with {"),
        // A request that any web page can make a browser send.
        (
            b"POST / HTTP/1.1\r\nHost: x\r\n\r\n{\"action\": \"ping\"}".to_vec(),
            "a message begins with {",
        ),
        (b"{\"action\": ".to_vec(), "ends before its end"),
        (
            b"{\"action\": \"ping\n".to_vec(),
            "a text runs past the end of its line",
        ),
        (
            [b"{\"a\": \"".to_vec(), vec![b'x'; 100_000]].concat(),
            "longer than 2000 bytes",
        ),
        (vec![b'['; 100], "nested deeper than 32 levels"),
    ] {
        let answers = exchange(port, &bytes);
        assert_eq!(answers.len(), 1, "{says}: {answers:?}");
        assert!(error(&answers[0]).contains(says), "{answers:?}");
    }
    // Nothing of it was run, and refused requests are in the audit.
    let audit = ["history", "--audit", "--limit", "100"];
    let audit = fleet.station.run(&audit).expect_status(0).json();
    let refused =
        |entry: &&Value| entry["what"] == "reboot" && str_field(entry, "outcome").starts_with("not done");
    assert_eq!(audit.iter().filter(refused).count(), 1, "{audit:#?}");
    for what in ["message", "ping"] {
        let noted =
            |entry: &Value| entry["what"] == what && str_field(entry, "outcome").starts_with("not done");
        assert!(audit.iter().any(noted), "{what}: {audit:#?}");
    }
}

#[test]
fn configured_token_is_required() {
    let (_fleet, port) = fleet(1, "token = \"0123456789abcdef\"");
    let ping = |token: &str| json!({"action": "ping", "token": token});
    assert_eq!(output(&ask(port, &ping("0123456789abcdef"))), "pong");
    assert_eq!(error(&ask(port, &ping("0123456789abcdeX"))), "the token is wrong");
    assert!(error(&ask(port, &json!({"action": "ping"}))).contains("takes a token"));
    // Each guess needs a connection of its own.
    let guesses = [ping("x"), ping("0123456789abcdef")]
        .map(|guess| guess.to_string())
        .concat();
    assert_eq!(exchange(port, guesses.as_bytes()).len(), 1);
}

#[test]
fn platypush_queries_stops_and_releases_the_fleet() {
    let (fleet, port) = fleet(2, "allow = [\"echo\", \"station.*\"]");
    let nodes = ask(port, &json!({"action": "station.nodes", "target": "n2"}));
    assert_eq!(
        (&output(&nodes)[0]["node"], &output(&nodes)[0]["state"]),
        (&json!("n2"), &json!("online"))
    );
    let stopped = ask(port, &json!({"action": "station.stop"}));
    assert_eq!(
        (&output(&stopped)["n1"]["state"], &output(&stopped)["n2"]["state"]),
        (&json!("done"), &json!("done"))
    );
    assert!(!fleet.station.node("n1")["stopped"].is_null());
    let refused = ask(
        port,
        &json!({"action": "echo", "target": "n1", "args": {"word": "hi"}}),
    );
    assert!(error(&refused).contains("n1: refused:"), "{refused}");
    output(&ask(port, &json!({"action": "station.release"})));
    let echo = ask(
        port,
        &json!({"action": "echo", "target": "n1", "args": {"word": "hi"}}),
    );
    assert_eq!(output(&echo), "hi 1 left\n");
    let past = ask(
        port,
        &json!({"action": "station.history", "args": {"action": "echo"}}),
    );
    let past = output(&past);
    assert_eq!(past.as_array().map(Vec::len), Some(2), "{past}");
    assert_eq!(past[0]["who"], "platypush_tcp from 127.0.0.1");
    let one = ask(
        port,
        &json!({"action": "station.history", "args": {"number": past[0]["command"]}}),
    );
    assert_eq!(output(&one)["deliveries"][0]["state"], "done");
}

/// On a lab network: a gateway on loopback only is not announced.
#[test]
fn public_gateway_is_announced_and_warned_about() {
    swarm_tests::needs_python!();
    let Some(lab) = Lab::or_skip(2) else { return };
    let field = TestDir::new();
    let mut station = field.station("st", Host::in_lab(&lab, 0));
    station.append_config("[gateways.platypush_tcp]\nbind_address = \"0.0.0.0\"\nport = 1234");
    station.serve();
    let script = peers::script_path("mdns_find.py");
    let (script, address) = (script.display().to_string(), lab.ip(1).to_string());
    let args = ["-u", &script, &address, "_platypush-tcp._tcp.local"];
    let mut finder = lab.spawn(1, "finder", "python3", &args);
    let found = finder.wait_json(TEST_TIMEOUT, "found", |line| line["port"] == 1234);
    assert_eq!(found["instance"], "st._platypush-tcp._tcp.local");
    let txt = &found["txt"];
    assert_eq!(
        (&txt["name"], &txt["vendor"]),
        (&json!("st"), &json!("ground-station"))
    );
    assert!(txt["version"].is_string(), "{txt}");
    let log = station.log();
    assert!(
        log.iter()
            .any(|line| line.contains("Gateway open to the network")),
        "{log:#?}"
    );
}

#[test]
fn misbehaving_tcp_client_is_closed_others_are_served() {
    let (_fleet, port) = fleet(1, "connections_per_address = 40");
    let silent: Vec<TcpStream> = (0..10).map(|_| connect(port)).collect();
    let begun: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = connect(port);
            stream.write_all(b"{\"action\"").expect("written");
            stream
        })
        .collect();
    let mut trickling: Vec<TcpStream> = (0..10).map(|_| connect(port)).collect();
    for stream in &mut trickling {
        stream.write_all(b"{\"a\": \"").expect("written");
    }
    let started = clock::now();
    let mut slowest = Duration::ZERO;
    // One byte of each every tenth of a second is never a whole message.
    while clock::since(started) < Duration::from_secs(12) {
        for stream in &mut trickling {
            // It may be closed by now, which is checked below.
            let _closed = stream.write_all(b"x");
        }
        let asked = clock::now();
        assert_eq!(output(&ask(port, &json!({"action": "ping"}))), "pong");
        slowest = slowest.max(clock::since(asked));
        sleep_for(Duration::from_millis(100));
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    for stream in silent {
        assert_eq!(answers(stream), Vec::<Value>::new());
    }
    for stream in begun {
        let told = answers(stream);
        assert!(error(&told[0]).contains("was not whole within 10s"), "{told:?}");
    }
    for mut stream in trickling {
        let mut told = Vec::new();
        // The bytes that it wrote after the end may cause a reset of its connection.
        let _reset = stream.read_to_end(&mut told);
        let told = String::from_utf8_lossy(&told);
        assert!(
            told.is_empty() || told.contains("was not whole within 10s"),
            "{told}"
        );
    }
}

#[test]
fn platypush_client_that_does_not_read_is_closed() {
    const MESSAGES: usize = 200_000;
    let (_fleet, port) = fleet(1, "rate = 1000000");
    let mut stream = connect(port);
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("set");
    stream
        .write_all(&b"[1]".repeat(MESSAGES))
        .expect("short enough to wait between the two");
    assert_eq!(output(&ask(port, &json!({"action": "ping"}))), "pong");
    sleep_for(Duration::from_secs(12));
    let mut told = Vec::new();
    // A connection that was closed by the gateway may end in either way.
    let _reset = stream.read_to_end(&mut told);
    let answers = told.iter().filter(|byte| **byte == b'\n').count();
    assert!(answers > 0 && answers < MESSAGES, "{answers} answers");
}

#[test]
fn platypush_request_reaches_socktools_peers() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let (port, peers_port) = (field.free_port(), field.free_port());
    let gateways = format!(
        "[gateways.platypush_tcp]\nport = {port}\nallow = [\"socktools.send\"]\n\
         [gateways.socktools]\nlisten = \"127.0.0.1:{peers_port}\""
    );
    let fleet = Fleet::linked_with_station_config(field, 1, &gateways, |_node, _field| {});
    let send = json!({"action": "socktools.send", "args": {"text": "hello"}});
    assert!(error(&ask(port, &send)).contains("no peer is connected"));
    let ping = r#"send:{"type":"request","action":"ping"}"#;
    let steps = ["dial", &peers_port.to_string(), ping, "recv", "recv"];
    let mut peer = peers::start(&fleet.test_dir, "socktools.py", &steps);
    peer.wait_json(TEST_TIMEOUT, "an answer", |line| {
        str_field(line, "message").contains("pong")
    });
    let sent = ask(port, &send);
    assert_eq!(
        (&output(&sent)[0]["door"], &output(&sent)[0]["error"]),
        (&json!("socktools"), &Value::Null)
    );
    peer.wait_json(TEST_TIMEOUT, "the message", |line| line["message"] == "hello");
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    let by_the_gateway = |entry: &&Value| str_field(entry, "who").starts_with("platypush_tcp from");
    let used: Vec<_> = audit
        .iter()
        .filter(by_the_gateway)
        .map(|entry| {
            (
                str_field(entry, "what"),
                str_field(entry, "detail"),
                str_field(entry, "outcome"),
            )
        })
        .collect();
    let [(_, _, sent), (_, _, not_sent)] = used.as_slice() else {
        panic!("one entry for each use: {used:#?}");
    };
    assert_eq!(
        (*sent, not_sent.contains("no peer")),
        ("done, 1 peer", true),
        "{used:#?}"
    );
    assert!(
        used.iter()
            .all(|(what, detail, _)| (*what, *detail) == ("socktools.send", "5 bytes to all peers")),
        "{used:#?}"
    );
}
