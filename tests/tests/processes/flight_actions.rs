//! Actions of class `flight`, as used by an operator.

use std::time::Duration;

use swarm_shared::proto::delivery::executor::ORDINARY_MAX;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, wait_until};

const TAKEOFF: &str = r#"
[actions.takeoff]
command = ["/bin/echo", "up"]
class = "flight"
"#;

const NOTE: &str = "flight action: time to live is 2 s";

fn fleet() -> Fleet {
    Fleet::linked_with(2, |node| TAKEOFF.clone_into(&mut node.tables))
}

#[test]
fn flight_action_without_serve_needs_no_ttl() {
    let mut fleet = fleet();
    fleet.station.signal_and_wait(Signal::TERM);
    let ran = fleet.station.run(&["call", "all", "takeoff"]).expect_status(0);
    assert_eq!(str_field(&ran.line_of("n1"), "output"), "up\n");
    assert!(!ran.stderr.contains(NOTE), "more was requested: {}", ran.stderr);
    let words = ["call", "all", "takeoff", "--ttl", "10s"];
    fleet.station.run(&words).expect_status(0).expect_stderr(NOTE);
    let ran = fleet
        .station
        .run(&["call", "all", "takeoff", "--ttl", "1s"])
        .expect_status(0);
    assert!(!ran.stderr.contains(NOTE), "{}", ran.stderr);

    // An offline node is skipped, whether or not this process knows its action catalog.
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    let left_out = |fleet: &Fleet| {
        let ran = fleet.station.run(&["call", "all", "takeoff"]).expect_status(4);
        assert_eq!(ran.outcome_of("n2"), "done");
        let line = ran.line_of("n1");
        assert_eq!(line["state"], "no-answer", "{line}");
        assert!(str_field(&line, "error").contains("never queued"), "{line}");
        assert!(ran.duration < Duration::from_secs(5), "{ran:#?}");
    };
    left_out(&fleet);
    fleet.station.serve();
    fleet.station.wait_state("n2", "online");
    left_out(&fleet);
    let words = ["call", "n2", "takeoff", "--ttl", "3s"];
    fleet.station.run(&words).expect_status(0).expect_stderr(NOTE);
}

/// A landing action starts, whatever else the node is running.
#[test]
fn flight_action_starts_while_slow_commands_fill_slots() {
    let fleet = fleet();
    let slow: Vec<_> = (0..ORDINARY_MAX + 4)
        .map(|number| fleet.start_slow(&number.to_string(), "60"))
        .collect();
    wait_until(TEST_TIMEOUT, "all places are taken", || {
        fleet.nodes[0].marks().len() == ORDINARY_MAX
    });
    fleet.station.run(&["call", "n1", "takeoff"]).expect_status(0);
    assert_eq!(fleet.nodes[0].marks().len(), ORDINARY_MAX, "the others wait");
    drop(slow);
}
