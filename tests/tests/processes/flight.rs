//! Actions of class `flight`, as an operator gives them.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, text};
use swarm_tests::process::Signal;

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
