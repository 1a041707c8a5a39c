//! Actions of class `flight`, as an operator gives them.

use std::time::Duration;

use swarm_shared::proto::delivery::executor::ORDINARY_MAX;
use swarm_tests::fleet::{Fleet, PATIENCE, text};
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
fn without_serve_it_needs_no_time_to_live() {
    let mut fleet = fleet();
    fleet.station.end(Signal::TERM);
    let ran = fleet.station.run(&["call", "all", "takeoff"]).expect(0);
    assert_eq!(text(&ran.of("n1"), "output"), "up\n");
    assert!(!ran.err.contains(NOTE), "nobody asked for more: {}", ran.err);
    let words = ["call", "all", "takeoff", "--ttl", "10s"];
    fleet.station.run(&words).expect(0).says(NOTE);
    let ran = fleet
        .station
        .run(&["call", "all", "takeoff", "--ttl", "1s"])
        .expect(0);
    assert!(!ran.err.contains(NOTE), "{}", ran.err);

    // An absent node is left out, whether this process has ever heard of what it can do or not.
    fleet.nodes[0].end(Signal::KILL);
    let left_out = |fleet: &Fleet| {
        let ran = fleet.station.run(&["call", "all", "takeoff"]).expect(4);
        assert_eq!(ran.state("n2"), "done");
        let line = ran.of("n1");
        assert_eq!(line["state"], "no-answer", "{line}");
        assert!(text(&line, "error").contains("never queued"), "{line}");
        assert!(ran.took < Duration::from_secs(5), "{ran:#?}");
    };
    left_out(&fleet);
    fleet.station.serve();
    fleet.station.wait_state("n2", "online");
    left_out(&fleet);
    let words = ["call", "n2", "takeoff", "--ttl", "3s"];
    fleet.station.run(&words).expect(0).says(NOTE);
}

/// What flies can be told to land, whatever else it is busy with.
#[test]
fn it_starts_though_slow_commands_have_all_places_and_others_wait() {
    let fleet = fleet();
    let slow: Vec<_> = (0..ORDINARY_MAX + 4)
        .map(|number| fleet.start_slow(&number.to_string(), "60"))
        .collect();
    wait_until(PATIENCE, "all places are taken", || {
        fleet.nodes[0].marks().len() == ORDINARY_MAX
    });
    fleet.station.run(&["call", "n1", "takeoff"]).expect(0);
    assert_eq!(fleet.nodes[0].marks().len(), ORDINARY_MAX, "the others wait");
    drop(slow);
}
