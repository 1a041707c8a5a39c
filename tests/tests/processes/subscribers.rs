//! What a follower hears over the control socket while an operator works.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, PATIENCE};
use swarm_tests::process::Signal;

/// A follower, and what it has heard.
struct Follower {
    lines: BufReader<UnixStream>,
}

impl Follower {
    fn of(fleet: &Fleet) -> Self {
        let mut stream = UnixStream::connect(fleet.station.state_file("control.sock")).expect("serve runs");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        writeln!(stream, "{}", json!({"request": "follow", "telemetry": true})).expect("asked");
        Self {
            lines: BufReader::new(stream),
        }
    }

    fn wait(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line);
            assert!(matches!(read, Ok(bytes) if bytes > 0), "{what}: {read:?}");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Waits for a word of another's request.
    fn wait_told(&mut self, kind: &str, what: &str, word: &str) -> Value {
        self.wait(&format!("{word} of {what}"), |event| {
            event["event"] == "told"
                && event["kind"] == kind
                && event["what"] == what
                && event["word"]["event"] == word
        })
    }
}

#[test]
fn a_follower_hears_what_others_do_and_how_nodes_are() {
    let mut fleet = Fleet::linked(2);
    let mut follower = Follower::of(&fleet);
    for node in ["n1", "n2"] {
        let readings = follower.wait("readings", |event| {
            event["event"] == "telemetry" && event["node"] == node
        });
        assert!(readings["values"]["uptime_s"].is_number(), "{readings}");
    }
    // Asked again, and only what changed is told: a machine's memory does not grow.
    let readings = follower.wait("newer readings", |event| event["event"] == "telemetry");
    assert!(readings["values"]["uptime_s"].is_number(), "{readings}");
    assert!(
        readings["values"]
            .get("memory")
            .is_none_or(|memory| memory["available"].is_number()),
        "{readings}"
    );
    fleet
        .station
        .run(&["call", "all", "echo", "word=hello"])
        .expect(0);
    let targets = follower.wait_told("command", "echo", "targets");
    assert_eq!(
        targets["word"]["targets"].as_array().map(Vec::len),
        Some(2),
        "{targets}"
    );
    let ended = follower.wait_told("command", "echo", "delivery");
    assert_eq!(
        (&ended["word"]["state"], &ended["number"]),
        (&json!("done"), &json!(1)),
        "{ended}"
    );
    follower.wait_told("command", "echo", "end");
    fleet.station.run(&["ping"]).expect(0);
    let ping = follower.wait_told("command", "ping", "delivery");
    assert_eq!(ping["number"], Value::Null, "not in the history");
    fleet.station.run(&["stop"]).expect(0);
    follower.wait_told("stop", "stop", "acknowledged");
    follower.wait_told("stop", "stop", "end");
    fleet.station.run(&["release", "all"]).expect(0);
    follower.wait_told("release", "release", "end");
    fleet.nodes[0].end(Signal::KILL);
    follower.wait("n1 goes", |event| {
        event["event"] == "node" && event["node"] == "n1" && event["state"] == "offline"
    });
}

#[test]
fn a_follower_hears_that_a_node_is_put_out_though_it_is_away() {
    let mut fleet = Fleet::linked(2);
    let mut follower = Follower::of(&fleet);
    fleet.nodes[0].end(Signal::TERM);
    let is_first = |event: &Value| event["event"] == "node" && event["node"] == "n1";
    follower.wait("it is away", |event| {
        is_first(event) && event["state"] == "offline"
    });
    fleet.station.run(&["fleet", "revoke", "n1"]).expect(0);
    let view = follower.wait("it is put out", |event| {
        is_first(event) && event["warnings"] != json!([])
    });
    assert_eq!(view["warnings"], json!(["put out of the fleet"]));
}
