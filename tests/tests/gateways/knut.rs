//! Clients of Knut at the gateway of a real station.

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, TestDir};
use swarm_tests::peers;
use swarm_tests::process::Signal;

const CLIENT: &str = "knut_client.py";

/// Nodes whose temperature is in a file; see [`write_temperature`].
fn fleet(nodes: usize, more: &str) -> (Fleet, String) {
    let field = TestDir::new();
    let port = field.free_port();
    let gateway = format!(
        "[gateways.knut]\nlisten = \"127.0.0.1:{port}\"\ntemperature = \"heat\"\nhistory_every = \"100ms\"\n{more}"
    );
    let fleet = Fleet::linked_with_station_config(field, nodes, &gateway, |node, field| {
        let file = field.join(format!("{}-heat", node.name));
        write_temperature(&file, "10.2");
        let command = ["/bin/cat", &file.display().to_string()].map(str::to_owned);
        node.tables = format!("[telemetry]\ninterval = \"100ms\"\ncommand = {command:?}\n");
    });
    (fleet, port.to_string())
}

fn write_temperature(file: &std::path::Path, degrees: &str) {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, format!("{{\"heat\": {degrees}}}")).expect("written");
    std::fs::rename(fresh, file).expect("renamed");
}

fn set_temperature(fleet: &Fleet, node: &str, degrees: &str) {
    write_temperature(&fleet.test_dir.path().join(format!("{node}-heat")), degrees);
}

/// Runs a scenario of the client to its end; returns its output.
fn client(fleet: &Fleet, words: &[&str]) -> Vec<Value> {
    peers::run(&fleet.test_dir, CLIENT, words)
}

/// The only line that a scenario printed.
fn answer(fleet: &Fleet, words: &[&str]) -> Value {
    let mut lines = client(fleet, words);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn is_status(item: &Value, node: &str, degrees: f64) -> bool {
    item["msgId"] == 0x0101 && item["msg"][node]["temperature"] == degrees
}

#[test]
fn temperatures_are_answered_and_pushed_as_documented() {
    swarm_tests::needs_python!();
    let (fleet, port) = fleet(2, "");
    let mut listener = peers::start(&fleet.test_dir, CLIENT, &[&port, "listen"]);
    listener.wait_json(TEST_TIMEOUT, "listening", |line| line["listening"] == true);
    set_temperature(&fleet, "n2", "21.37");
    let push = listener.wait_json(TEST_TIMEOUT, "a push of n2", |item| is_status(item, "n2", 21.4));
    assert_eq!(push["apiId"], 1, "{push}");
    let status = json!({"location": "n2", "unit": "°C", "condition": "\u{f002}", "temperature": 21.4});
    assert_eq!(push["msg"], json!({ "n2": status }));
    listener.wait_json(TEST_TIMEOUT, "a heartbeat", |item| item["heartbeat"] == true);
    let listed = answer(&fleet, &[&port, "documented"]);
    assert_eq!(listed["n1"]["temperature"], 10.2, "{listed}");
    assert_eq!(listed["n2"], status, "{listed}");
    client(&fleet, &[&port, "heartbeat"]);
    client(&fleet, &[&port, "status", "n1", "10.2"]);
    client(&fleet, &[&port, "status", "nobody", "-273.15"]);
    set_temperature(&fleet, "n2", "-5");
    listener.wait_json(TEST_TIMEOUT, "a colder push", |item| is_status(item, "n2", -5.0));
    client(&fleet, &[&port, "history", "n2", "21.4", "-5"]);
}

#[test]
fn knut_unknown_types_are_echoed_and_garbage_is_ignored() {
    swarm_tests::needs_python!();
    let (fleet, port) = fleet(1, "allow = [\"echo\"]");
    const TIMES: usize = 6;
    for _ in 0..TIMES {
        client(&fleet, &[&port, "manners"]);
    }
    // Each connection may send any number of them; the log reports them at a limited rate.
    let log = fleet.station.log();
    let told = log
        .iter()
        .filter(|line| line.contains("Invalid message ignored"))
        .count();
    assert!((1..TIMES).contains(&told), "{told} lines: {log:#?}");
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    assert!(audit.iter().any(|entry| entry["what"] == "message"), "{audit:#?}");
    // Three messages expected no answer: nothing was run either.
    let history = fleet.station.run(&["history"]);
    assert!(history.stdout.is_empty(), "{history:?}");
}

#[test]
fn own_api_lists_nodes_and_runs_allowed_actions() {
    swarm_tests::needs_python!();
    let (mut fleet, port) = fleet(2, "allow = [\"echo\"]\nttl = \"2s\"\ntimeout = \"3s\"");
    let nodes = answer(&fleet, &[&port, "nodes", "all"]);
    let names = |nodes: &Value| -> Vec<(String, String)> {
        let nodes = nodes["nodes"].as_array().expect("a list").iter();
        let text = |node: &Value, key: &str| node[key].as_str().expect("a text").to_owned();
        nodes
            .map(|node| (text(node, "node"), text(node, "state")))
            .collect()
    };
    let online = |name: &str| (name.to_owned(), "online".to_owned());
    assert_eq!(names(&nodes), [online("n1"), online("n2")]);
    let one = answer(&fleet, &[&port, "nodes", "n2"]);
    assert_eq!(names(&one), [online("n2")]);
    let call = |fleet: &Fleet, body: Value| answer(fleet, &[&port, "call", &body.to_string()]);
    // Requests go to the gateway's `target`, here all, without a selector.
    let done = call(&fleet, json!({"action": "echo", "args": {"word": "hello"}}));
    let done = done["deliveries"].as_array().expect("a list");
    assert_eq!(done.len(), 2, "{done:?}");
    for delivery in done {
        assert_eq!(
            (&delivery["state"], &delivery["output"]),
            (&json!("done"), &json!("hello 1 left\n"))
        );
    }
    let kind = |answer: &Value| answer["error"]["kind"].as_str().map(str::to_owned);
    let refused = call(&fleet, json!({"action": "fail"}));
    assert_eq!(kind(&refused).as_deref(), Some("not-allowed"), "{refused}");
    let message = refused["error"]["message"].as_str().expect("a text");
    assert!(message.contains("`allow` of [gateways.knut]"), "{message}");
    let unmatched = call(
        &fleet,
        json!({"selector": "nobody", "action": "echo", "args": {"word": "a"}}),
    );
    assert_eq!(kind(&unmatched).as_deref(), Some("nobody-matched"), "{unmatched}");
    for body in [
        json!({}),
        json!({"action": "echo", "args": 7}),
        json!({"action": "echo", "ttl": "soon"}),
        json!({"action": "ping", "selector": "["}),
    ] {
        let usage = call(&fleet, body);
        assert_eq!(kind(&usage).as_deref(), Some("usage"), "{usage}");
    }
    // Reading needs no permission. An offline node also ends in an outcome.
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let ping = call(&fleet, json!({"action": "ping", "timeout": "500ms"}));
    let states: Vec<&Value> = ping["deliveries"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|d| &d["state"])
        .collect();
    assert!(
        states.contains(&&json!("done")) && states.contains(&&json!("no-answer")),
        "{ping}"
    );
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0);
    let uses: Vec<Value> = audit.json();
    let told = |what: &str, outcome: &str| {
        uses.iter().any(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            text("who") == "knut from 127.0.0.1" && text("what") == what && text("outcome").contains(outcome)
        })
    };
    assert!(
        told("echo", "2 done") && told("fail", "not done") && told("nodes", "2 nodes"),
        "{uses:#?}"
    );
}

#[test]
fn knut_gateway_only_reads_and_requires_its_token() {
    swarm_tests::needs_python!();
    let (fleet, port) = fleet(1, "token = \"0123456789abcdef\"");
    let call = |body: Value| answer(&fleet, &[&port, "call", &body.to_string()]);
    for token in [json!(null), json!("0123456789abcdeF")] {
        let refused = call(json!({"action": "ping", "token": token}));
        assert_eq!(refused["error"]["kind"], "not-allowed", "{refused}");
    }
    let token = "0123456789abcdef";
    let ping = call(json!({"action": "ping", "token": token}));
    assert_eq!(ping["deliveries"][0]["state"], "done", "{ping}");
    let refused = call(json!({"action": "echo", "args": {"word": "a"}, "token": token}));
    assert_eq!(refused["error"]["kind"], "not-allowed", "{refused}");
    assert!(!fleet.station.log().iter().any(|line| line.contains(token)));
}

#[test]
fn misbehaving_knut_client_does_not_affect_others() {
    swarm_tests::needs_python!();
    let more = "connections = 40\nconnections_per_address = 40\nmessage_bytes = 1000\nrate = 20";
    let (fleet, port) = fleet(1, more);
    let mut crowd = peers::start(&fleet.test_dir, CLIENT, &[&port, "crowd", "32"]);
    crowd.wait_json(TEST_TIMEOUT, "the crowd is there", |line| line["crowd"] == 32);
    // Other clients are served meanwhile, and the fleet answers.
    for _ in 0..3 {
        client(&fleet, &[&port, "heartbeat"]);
        fleet.station.run(&["ping"]).expect_status(0);
    }
    // Silent and slow clients are closed, and clients that do not read; the script reports that and ends.
    let status = crowd.wait_exit(2 * TEST_TIMEOUT);
    assert!(status.success(), "{}", crowd.log_tail());
    // Their slots are free again.
    client(&fleet, &[&port, "all_places", "40"]);
    client(&fleet, &[&port, "heartbeat"]);
}
