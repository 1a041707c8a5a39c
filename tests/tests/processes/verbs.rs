//! Every verb once with success and once with a failure, with its exit status and its lines of JSON.

use std::time::Duration;

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, Host, Invite, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::process::{Signal, wait_until};

/// The keys of a delivery and of a node, as documented.
const DELIVERY: [&str; 8] = ["error", "exit", "id", "ms", "node", "output", "state", "value"];

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn every_verb_reports_an_outcome_per_node() {
    let mut fleet = Fleet::linked_with(3, |node| {
        if node.name == "n1" {
            node.keys = "tags = { row = \"3\" }".to_owned();
            node.tables = "[execute]\nallowed = true\n".to_owned();
        }
        if node.name == "n2" {
            let heard = node.files_root.join("heard").display().to_string();
            let words = ["/bin/sh", "-c", &format!("echo \"$1\" >{heard}"), "sh"];
            node.tables = format!("[notify]\ncommand = {words:?}\n");
        }
    });
    let station = &fleet.station;

    let ran = station.run(&["ping"]).expect_status(0);
    assert_eq!(ran.json().len(), 3);
    for line in ran.json() {
        assert_eq!(keys(&line), DELIVERY, "{line}");
        assert_eq!(line["state"], "done");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0));
        assert_eq!(str_field(&line, "id").len(), 64);
    }
    assert_eq!(ran.stderr, "", "nothing to note");

    for (selector, nodes) in [
        ("all", &["n1", "n2", "n3"][..]),
        ("n[1-2]", &["n1", "n2"]),
        ("n*,!n2", &["n1", "n3"]),
        ("tag:row", &["n1"]),
        ("tag:row=3,n3", &["n1", "n3"]),
    ] {
        let ran = station.run(&["ping", selector]).expect_status(0);
        let mut found: Vec<String> = ran
            .json()
            .iter()
            .map(|l| str_field(l, "node").to_owned())
            .collect();
        found.sort();
        assert_eq!(found, nodes, "{selector}");
    }
    let id = str_field(&station.node("n3"), "id")[..10].to_owned();
    station
        .run(&["ping", &format!("id:{id}")])
        .expect_status(0)
        .line_of("n3");
    let ran = station
        .run(&["ping", "drone-*"])
        .expect_status(3)
        .expect_stderr("n1, n2, n3");
    assert!(ran.stdout.is_empty());
    station.run(&["ping", "tag:row=4"]).expect_status(3);
    station.run(&["ping", "n[1"]).expect_status(2);

    // An action of the configuration, whose arguments are checked before anything runs.
    let ran = station.run(&["call", "n1", "echo", "word=hello", "times=4", "side=right"]);
    let line = ran.expect_status(0).line_of("n1");
    assert_eq!(
        (str_field(&line, "output"), &line["exit"]),
        ("hello 4 right\n", &json!(0))
    );
    let line = station
        .run(&["call", "n1", "echo", "word=hi"])
        .expect_status(0)
        .line_of("n1");
    assert_eq!(str_field(&line, "output"), "hi 1 left\n", "defaults");
    for (wrong, named) in [
        (&["word=Hello"][..], "word"),
        (&["word=a;reboot"], "word"),
        (&["word=hi", "times=10"], "times"),
        (&["word=hi", "times=x"], "times"),
        (&["word=hi", "side=up"], "side"),
        (&["word=hi", "colour=red"], "colour"),
        (&[], "word"),
    ] {
        let line = station
            .run(&[&["call", "n1", "echo"][..], wrong].concat())
            .expect_status(1)
            .line_of("n1");
        assert_eq!(line["state"], "refused", "{line}");
        assert!(str_field(&line, "error").contains(named), "{line}");
    }
    let line = station
        .run(&["call", "n1", "fail"])
        .expect_status(1)
        .line_of("n1");
    assert_eq!((str_field(&line, "state"), &line["exit"]), ("failed", &json!(7)));
    assert_eq!(str_field(&line, "output"), "sorry\n");
    let line = station
        .run(&["call", "n1", "hang"])
        .expect_status(1)
        .line_of("n1");
    assert_eq!(line["state"], "failed", "{line}");
    let line = station
        .run(&["call", "n1", "nosuch"])
        .expect_status(1)
        .line_of("n1");
    assert_eq!(line["state"], "refused");
    station
        .run(&["call", "n1", "echo", "word"])
        .expect_status(2)
        .expect_stderr("KEY=VALUE");
    station.run(&["call", "n1"]).expect_status(2);

    // Any program: only where the node's configuration allows it.
    let ran = station
        .run(&["run", "n1,n2", "--", "/bin/echo", "a b", "$HOME"])
        .expect_status(1);
    assert_eq!(
        str_field(&ran.line_of("n1"), "output"),
        "a b $HOME\n",
        "no shell reads it"
    );
    assert_eq!(ran.outcome_of("n2"), "refused");
    assert!(
        str_field(&ran.line_of("n2"), "error").contains("execute"),
        "{:?}",
        ran.stdout
    );

    station.run(&["notify", "n2", "lunch; rm -rf *"]).expect_status(0);
    let heard = std::fs::read_to_string(fleet.nodes[1].files_root.join("heard"));
    assert_eq!(heard.expect("written"), "lunch; rm -rf *\n");

    for action in ["time", "telemetry", "selfcheck", "id", "config"] {
        station.run(&["call", "all", action]).expect_status(0);
    }

    // A renamed node keeps its id.
    let before = station.node("n3");
    station
        .run(&["call", "n3", "id", "new_id=drone-3"])
        .expect_status(0);
    station.wait_state("drone-3", "online");
    assert_eq!(station.node("drone-3")["id"], before["id"]);

    // Grouped for people; equal outcomes in one line.
    let said = station.run_plain(&["ping"]).expect_status(0);
    assert!(
        said.stdout.iter().any(|line| line.contains("(3 nodes)")),
        "{:?}",
        said.stdout
    );

    let members = station.run(&["fleet", "members"]).expect_status(0).json();
    assert_eq!(members.len(), 4, "itself and three nodes: {members:?}");
    assert_eq!(
        (members[0]["role"].as_str(), &members[0]["has_root"]),
        (Some("admin"), &json!(true))
    );

    // A node that does not answer is reported in time, and a failure determines the exit status.
    fleet.nodes[1].process().signal(Signal::STOP);
    let ran = station.run(&["ping", "--timeout", "500ms"]).expect_status(4);
    assert_eq!(ran.outcome_of("n2"), "no-answer");
    assert!(ran.duration < Duration::from_secs(5), "{:?}", ran.duration);
    let ran = station
        .run(&["call", "all", "fail", "--timeout", "500ms"])
        .expect_status(1);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("failed".to_owned(), "no-answer".to_owned())
    );
    fleet.nodes[1].process().signal(Signal::CONT);
    fleet.station.wait_online(3);
}

#[test]
fn nodes_verb_lists_known_nodes() {
    let fleet = Fleet::linked_with(2, |node| {
        node.keys = "tags = { row = \"3\" }".to_owned();
    });
    let line = fleet.station.node("n1");
    assert_eq!(str_field(&line, "kind"), "node");
    assert_eq!(line["tags"], json!({ "row": "3" }));
    assert_eq!(str_field(&line, "address"), fleet.nodes[0].listen_addr());
    assert_eq!(str_field(&line, "software"), env!("CARGO_PKG_VERSION"));
    assert!(
        line["last_heard_ms"].as_u64().is_some_and(|ms| ms < 3_000),
        "{line}"
    );
    assert_eq!(line["warnings"], json!([]));
    wait_until(TEST_TIMEOUT, "its self-check", || {
        let node = fleet.station.node("n1");
        node["checks"].as_array().is_some_and(|checks| !checks.is_empty())
    });
    let table = fleet.station.run_plain(&["nodes"]).expect_status(0);
    assert!(
        table.stdout.iter().any(|line| line == "2 online"),
        "{:?}",
        table.stdout
    );

    let status = fleet.nodes[0].status();
    assert_eq!(status["links"][0]["name"], "st");
    assert_eq!(str_field(&status, "listen"), fleet.nodes[0].listen_addr());
}

#[test]
fn verbs_run_without_serve_one_after_another() {
    let mut fleet = Fleet::linked(2);
    fleet.station.signal_and_wait(Signal::TERM);
    let station = &fleet.station;

    // Each verb links by itself: it dials the last addresses of the nodes.
    let ran = station.run(&["ping"]).expect_status(0);
    assert_eq!(ran.json().len(), 2);
    let nodes = station.run(&["nodes"]).expect_status(0).json();
    assert!(nodes.iter().all(|node| node["state"] == "online"), "{nodes:?}");
    let source = fleet.test_dir.file("a.txt", b"alone");
    station
        .run(&["send", &source.display().to_string(), "all:files/a.txt"])
        .expect_status(0);

    let both = [
        station.start(&["call", "n1", "slow", "tag=first", "time=0.3"]),
        station.start(&["call", "n1", "slow", "tag=second", "time=0.3"]),
    ];
    for verb in both {
        verb.finish(TEST_TIMEOUT).expect_status(0);
    }
    let mut marks = fleet.nodes[0].marks();
    marks.sort();
    assert_eq!(marks, ["begin first", "begin second", "end first", "end second"]);

    // With a serving station, the verbs use it, side by side.
    fleet.station.serve();
    fleet.station.wait_online(2);
    let both = [
        fleet
            .station
            .start(&["call", "n2", "slow", "tag=third", "time=0.5"]),
        fleet
            .station
            .start(&["call", "n2", "slow", "tag=fourth", "time=0.5"]),
    ];
    for verb in both {
        verb.finish(TEST_TIMEOUT).expect_status(0);
    }
    let second = fleet.station.run_plain(&["serve"]);
    second.expect_status(2).expect_stderr("already serves");
}

#[test]
fn interrupted_verb_prints_known_outcomes() {
    let mut fleet = Fleet::linked(3);
    fleet.nodes[2].process().signal(Signal::STOP);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    for _ in 0..2 {
        verb.process()
            .wait_json(TEST_TIMEOUT, "an answer", |line| line["state"] == "done");
    }
    verb.signal(Signal::INT);
    let ran = verb.finish(TEST_TIMEOUT).expect_status(130).expect_stderr("n3");
    assert_eq!(ran.json().len(), 2);
    assert!(ran.duration < Duration::from_secs(20), "{:?}", ran.duration);

    // The same without a serving station.
    fleet.station.signal_and_wait(Signal::TERM);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    for _ in 0..2 {
        verb.process()
            .wait_json(TEST_TIMEOUT, "an answer", |line| line["state"] == "done");
    }
    verb.signal(Signal::INT);
    verb.finish(TEST_TIMEOUT).expect_status(130).expect_stderr("n3");
    fleet.nodes[2].process().signal(Signal::CONT);
}

#[test]
fn waiting_verbs_end_when_the_station_exits() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[1].process().signal(Signal::STOP);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    verb.process()
        .wait_json(TEST_TIMEOUT, "an answer", |line| line["node"] == "n1");
    fleet.station.signal_and_wait(Signal::KILL);
    let ran = verb.finish(TEST_TIMEOUT);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("done".to_owned(), "no-answer".to_owned())
    );
    assert!(matches!(ran.status, Some(1 | 4)), "{:?}", ran.status);
    fleet.nodes[1].process().signal(Signal::CONT);
    fleet.station.serve();
    fleet.station.wait_online(2);
}

#[test]
fn station_without_nodes_suggests_the_next_step() {
    let field = TestDir::new();
    let station = field.station("st", Host::loopback());
    let ran = station.run(&["nodes", "--timeout", "100ms"]).expect_status(3);
    // A verb that only reads creates no fleet.
    assert!(
        !ran.stderr.contains("made a new fleet") && ran.stderr.contains("fleet invite"),
        "{}",
        ran.stderr
    );
    station.run(&["ping"]).expect_status(3);
    station.run(&["fleet", "init"]).expect_status(0);
    station
        .run(&["fleet", "init"])
        .expect_status(2)
        .expect_stderr("already belongs");
    station.run(&["fleet", "join", "nonsense"]).expect_status(2);
    station.run(&["fleet", "accept", "nobody"]).expect_status(3);
    station.run(&["fleet", "revoke", "nobody"]).expect_status(3);
    station.run(&["nosuch"]).expect_status(2);
    let code = station.invite(&Invite::nodes(1));
    assert!(code.len() > 40, "{code}");
    station.append_config("lisen = \"x\"");
    station.run(&["nodes"]).expect_status(2).expect_stderr("listen");
}
