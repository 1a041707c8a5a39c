//! The events that a subscriber of the control socket gets while an operator works.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT};
use swarm_tests::process::Signal;

/// A subscriber, and the events that it got.
struct Subscriber {
    lines: BufReader<UnixStream>,
}

impl Subscriber {
    fn connect(fleet: &Fleet) -> Self {
        let mut stream = UnixStream::connect(fleet.station.state_file("control.sock")).expect("serve runs");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
        writeln!(stream, "{}", json!({"nodes": {"follow": {"telemetry": true}}})).expect("asked");
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

    /// Waits for an event of another client's request.
    fn wait_observed(&mut self, kind: &str, what: &str, word: &str) -> Value {
        self.wait(&format!("{word} of {what}"), |event| {
            event["event"] == "told"
                && event["kind"] == kind
                && event["what"] == what
                && event["word"]["event"] == word
        })
    }
}

#[test]
fn subscriber_receives_requests_and_node_states() {
    let mut fleet = Fleet::linked(2);
    let mut follower = Subscriber::connect(&fleet);
    for node in ["n1", "n2"] {
        let readings = follower.wait("readings", |event| {
            event["event"] == "telemetry" && event["node"] == node
        });
        assert!(readings["values"]["uptime_s"].is_number(), "{readings}");
    }
    // Requested again, only changed readings are sent: the size of a machine's memory is not.
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
        .expect_status(0);
    let targets = follower.wait_observed("command", "echo", "targets");
    assert_eq!(
        targets["word"]["targets"].as_array().map(Vec::len),
        Some(2),
        "{targets}"
    );
    let ended = follower.wait_observed("command", "echo", "delivery");
    assert_eq!(
        (&ended["word"]["state"], &ended["number"]),
        (&json!("done"), &json!(1)),
        "{ended}"
    );
    follower.wait_observed("command", "echo", "end");
    fleet.station.run(&["ping"]).expect_status(0);
    let ping = follower.wait_observed("command", "ping", "delivery");
    assert_eq!(ping["number"], Value::Null, "not in the history");
    fleet.station.run(&["stop"]).expect_status(0);
    follower.wait_observed("stop", "stop", "acknowledged");
    follower.wait_observed("stop", "stop", "end");
    fleet.station.run(&["release", "all"]).expect_status(0);
    follower.wait_observed("release", "release", "end");
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    follower.wait("n1 goes", |event| {
        event["event"] == "node" && event["node"] == "n1" && event["state"] == "offline"
    });
}

#[test]
fn subscriber_receives_revocation_of_absent_node() {
    let mut fleet = Fleet::linked(2);
    let mut follower = Subscriber::connect(&fleet);
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    let is_first = |event: &Value| event["event"] == "node" && event["node"] == "n1";
    follower.wait("it is away", |event| {
        is_first(event) && event["state"] == "offline"
    });
    fleet.station.run(&["fleet", "revoke", "n1"]).expect_status(0);
    let view = follower.wait("it is revoked", |event| {
        is_first(event) && event["warnings"] != json!([])
    });
    assert_eq!(view["warnings"], json!([{"code": "revoked"}]));
}
