//! Every verb once, as it should be and as it should not, with its exit status and its lines of JSON.

use std::time::Duration;

use serde_json::{Value, json};
use swarm_tests::fleet::{Field, Fleet, Invite, PATIENCE, Place, text};
use swarm_tests::process::{Signal, wait_until};

/// The keys of a delivery and of a node, as DESIGN and the manual fix them.
const DELIVERY: [&str; 8] = ["error", "exit", "id", "ms", "node", "output", "state", "value"];

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn every_verb_says_how_each_node_fared() {
    let mut fleet = Fleet::linked_with(3, |node| {
        if node.name == "n1" {
            node.keys = "tags = { row = \"3\" }".to_owned();
            node.tables = "[execute]\nallowed = true\n".to_owned();
        }
        if node.name == "n2" {
            let heard = node.root.join("heard").display().to_string();
            let words = ["/bin/sh", "-c", &format!("echo \"$1\" >{heard}"), "sh"];
            node.tables = format!("[notify]\ncommand = {words:?}\n");
        }
    });
    let station = &fleet.station;

    let ran = station.run(&["ping"]).expect(0);
    assert_eq!(ran.json().len(), 3);
    for line in ran.json() {
        assert_eq!(keys(&line), DELIVERY, "{line}");
        assert_eq!(line["state"], "done");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0));
        assert_eq!(text(&line, "id").len(), 64);
    }
    assert_eq!(ran.err, "", "nothing to note");

    for (selector, nodes) in [
        ("all", &["n1", "n2", "n3"][..]),
        ("n[1-2]", &["n1", "n2"]),
        ("n*,!n2", &["n1", "n3"]),
        ("tag:row", &["n1"]),
        ("tag:row=3,n3", &["n1", "n3"]),
    ] {
        let ran = station.run(&["ping", selector]).expect(0);
        let mut found: Vec<String> = ran.json().iter().map(|l| text(l, "node").to_owned()).collect();
        found.sort();
        assert_eq!(found, nodes, "{selector}");
    }
    let id = text(&station.node("n3"), "id")[..10].to_owned();
    station.run(&["ping", &format!("id:{id}")]).expect(0).of("n3");
    let ran = station.run(&["ping", "drone-*"]).expect(3).says("n1, n2, n3");
    assert!(ran.out.is_empty());
    station.run(&["ping", "tag:row=4"]).expect(3);
    station.run(&["ping", "n[1"]).expect(2);

    // The owner's action, with arguments that are checked before anything runs.
    let ran = station.run(&["call", "n1", "echo", "word=hello", "times=4", "side=right"]);
    let line = ran.expect(0).of("n1");
    assert_eq!(
        (text(&line, "output"), &line["exit"]),
        ("hello 4 right\n", &json!(0))
    );
    let line = station.run(&["call", "n1", "echo", "word=hi"]).expect(0).of("n1");
    assert_eq!(text(&line, "output"), "hi 1 left\n", "defaults");
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
            .expect(1)
            .of("n1");
        assert_eq!(line["state"], "refused", "{line}");
        assert!(text(&line, "error").contains(named), "{line}");
    }
    let line = station.run(&["call", "n1", "fail"]).expect(1).of("n1");
    assert_eq!((text(&line, "state"), &line["exit"]), ("failed", &json!(7)));
    assert_eq!(text(&line, "output"), "sorry\n");
    let line = station.run(&["call", "n1", "hang"]).expect(1).of("n1");
    assert_eq!(line["state"], "failed", "{line}");
    let line = station.run(&["call", "n1", "nosuch"]).expect(1).of("n1");
    assert_eq!(line["state"], "refused");
    station
        .run(&["call", "n1", "echo", "word"])
        .expect(2)
        .says("KEY=VALUE");
    station.run(&["call", "n1"]).expect(2);

    // Any program: only where the node's owner allows it.
    let ran = station
        .run(&["run", "n1,n2", "--", "/bin/echo", "a b", "$HOME"])
        .expect(1);
    assert_eq!(text(&ran.of("n1"), "output"), "a b $HOME\n", "no shell reads it");
    assert_eq!(ran.state("n2"), "refused");
    assert!(text(&ran.of("n2"), "error").contains("execute"), "{:?}", ran.out);

    station.run(&["notify", "n2", "lunch; rm -rf *"]).expect(0);
    let heard = std::fs::read_to_string(fleet.nodes[1].root.join("heard"));
    assert_eq!(heard.expect("written"), "lunch; rm -rf *\n");

    for action in ["time", "telemetry", "selfcheck", "id", "config"] {
        station.run(&["call", "all", action]).expect(0);
    }

    // A renamed node keeps its key.
    let before = station.node("n3");
    station.run(&["call", "n3", "id", "new_id=drone-3"]).expect(0);
    station.wait_state("drone-3", "online");
    assert_eq!(station.node("drone-3")["id"], before["id"]);

    // Grouped for people; all outcomes alike in one line.
    let said = station.say(&["ping"]).expect(0);
    assert!(
        said.out.iter().any(|line| line.contains("(3 nodes)")),
        "{:?}",
        said.out
    );

    let members = station.run(&["fleet", "members"]).expect(0).json();
    assert_eq!(members.len(), 4, "itself and three nodes: {members:?}");
    assert_eq!(
        (members[0]["role"].as_str(), &members[0]["has_root"]),
        (Some("admin"), &json!(true))
    );

    // One that does not answer is said to be so, in time, and outweighed by a failure.
    fleet.nodes[1].process().signal(Signal::STOP);
    let ran = station.run(&["ping", "--timeout", "500ms"]).expect(4);
    assert_eq!(ran.state("n2"), "no-answer");
    assert!(ran.took < Duration::from_secs(5), "{:?}", ran.took);
    let ran = station
        .run(&["call", "all", "fail", "--timeout", "500ms"])
        .expect(1);
    assert_eq!(
        (ran.state("n1"), ran.state("n2")),
        ("failed".to_owned(), "no-answer".to_owned())
    );
    fleet.nodes[1].process().signal(Signal::CONT);
    fleet.station.wait_online(3);
}

#[test]
fn nodes_tells_what_is_known() {
    let fleet = Fleet::linked_with(2, |node| {
        node.keys = "tags = { row = \"3\" }".to_owned();
    });
    let line = fleet.station.node("n1");
    assert_eq!(text(&line, "kind"), "node");
    assert_eq!(line["tags"], json!({ "row": "3" }));
    assert_eq!(text(&line, "address"), fleet.nodes[0].listen());
    assert_eq!(text(&line, "software"), env!("CARGO_PKG_VERSION"));
    assert!(
        line["last_heard_ms"].as_u64().is_some_and(|ms| ms < 3_000),
        "{line}"
    );
    assert_eq!(line["warnings"], json!([]));
    wait_until(PATIENCE, "its self-check", || {
        let node = fleet.station.node("n1");
        node["checks"].as_array().is_some_and(|checks| !checks.is_empty())
    });
    let table = fleet.station.say(&["nodes"]).expect(0);
    assert!(table.out.iter().any(|line| line == "2 online"), "{:?}", table.out);

    let status = fleet.nodes[0].status();
    assert_eq!(status["links"][0]["name"], "st");
    assert_eq!(text(&status, "listen"), fleet.nodes[0].listen());
}

#[test]
fn verbs_need_no_serve_and_wait_for_one_another() {
    let mut fleet = Fleet::linked(2);
    fleet.station.end(Signal::TERM);
    let station = &fleet.station;

    // Each brings up the links itself: it dials where the nodes were last.
    let ran = station.run(&["ping"]).expect(0);
    assert_eq!(ran.json().len(), 2);
    let nodes = station.run(&["nodes"]).expect(0).json();
    assert!(nodes.iter().all(|node| node["state"] == "online"), "{nodes:?}");
    let source = fleet.field.file("a.txt", b"alone");
    station
        .run(&["send", &source.display().to_string(), "all:files/a.txt"])
        .expect(0);

    let both = [
        station.start(&["call", "n1", "slow", "tag=first", "time=0.3"]),
        station.start(&["call", "n1", "slow", "tag=second", "time=0.3"]),
    ];
    for verb in both {
        verb.finish(PATIENCE).expect(0);
    }
    let mut marks = fleet.nodes[0].marks();
    marks.sort();
    assert_eq!(marks, ["begin first", "begin second", "end first", "end second"]);

    // With one that serves, they go through it, side by side.
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
        verb.finish(PATIENCE).expect(0);
    }
    let second = fleet.station.say(&["serve"]);
    second.expect(2).says("already serves");
}

#[test]
fn ctrl_c_prints_what_is_known() {
    let mut fleet = Fleet::linked(3);
    fleet.nodes[2].process().signal(Signal::STOP);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    for _ in 0..2 {
        verb.process()
            .wait_json(PATIENCE, "an answer", |line| line["state"] == "done");
    }
    verb.signal(Signal::INT);
    let ran = verb.finish(PATIENCE).expect(130).says("n3");
    assert_eq!(ran.json().len(), 2);
    assert!(ran.took < Duration::from_secs(20), "{:?}", ran.took);

    // The same without a station that serves.
    fleet.station.end(Signal::TERM);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    for _ in 0..2 {
        verb.process()
            .wait_json(PATIENCE, "an answer", |line| line["state"] == "done");
    }
    verb.signal(Signal::INT);
    verb.finish(PATIENCE).expect(130).says("n3");
    fleet.nodes[2].process().signal(Signal::CONT);
}

#[test]
fn a_station_that_ends_leaves_nobody_waiting() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[1].process().signal(Signal::STOP);
    let mut verb = fleet.station.start(&["ping", "--timeout", "60s"]);
    verb.process()
        .wait_json(PATIENCE, "an answer", |line| line["node"] == "n1");
    fleet.station.end(Signal::KILL);
    let ran = verb.finish(PATIENCE);
    assert_eq!(
        (ran.state("n1"), ran.state("n2")),
        ("done".to_owned(), "no-answer".to_owned())
    );
    assert!(matches!(ran.status, Some(1 | 4)), "{:?}", ran.status);
    fleet.nodes[1].process().signal(Signal::CONT);
    fleet.station.serve();
    fleet.station.wait_online(2);
}

#[test]
fn a_station_without_nodes_says_what_to_do() {
    let field = Field::new();
    let station = field.station("st", Place::here());
    let ran = station.run(&["nodes", "--timeout", "100ms"]).expect(3);
    // Who only looks stays free to join another fleet.
    assert!(
        !ran.err.contains("made a new fleet") && ran.err.contains("fleet invite"),
        "{}",
        ran.err
    );
    station.run(&["ping"]).expect(3);
    station.run(&["fleet", "init"]).expect(0);
    station.run(&["fleet", "init"]).expect(2).says("already belongs");
    station.run(&["fleet", "join", "nonsense"]).expect(2);
    station.run(&["fleet", "accept", "nobody"]).expect(3);
    station.run(&["fleet", "revoke", "nobody"]).expect(3);
    station.run(&["nosuch"]).expect(2);
    let code = station.invite(&Invite::nodes(1));
    assert!(code.len() > 40, "{code}");
    station.configure("lisen = \"x\"");
    station.run(&["nodes"]).expect(2).says("listen");
}
