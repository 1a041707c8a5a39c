//! A node that stands still for longer than a command may live does not run it when it goes on.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, PATIENCE};
use swarm_tests::process::{Signal, let_pass, wait_until};

/// Has the only node stand still for so long while a command with a time to live of 1 s is on its way to it; returns
/// how it ended.
fn ends_while_stopped(fleet: &mut Fleet, tag: &str, still: Duration) -> String {
    fleet.nodes[0].process().signal(Signal::STOP);
    let tag = format!("tag={tag}");
    let words = ["call", "n1", "slow", &tag, "--ttl", "1s", "--timeout", "15s"];
    let verb = fleet.station.start(&words);
    let_pass(still);
    fleet.nodes[0].process().signal(Signal::CONT);
    verb.finish(PATIENCE).expect(1).state("n1")
}

#[test]
fn a_command_that_outlives_its_time_in_a_stopped_node_is_never_run() {
    let mut fleet = Fleet::linked(1);
    // Short enough that the link stays and the node reads the command from its socket; then so long that it does not.
    for (tag, still) in [
        ("first", 2_000),
        ("second", 2_000),
        ("third", 3_000),
        ("fourth", 4_000),
    ] {
        let ended = ends_while_stopped(&mut fleet, tag, Duration::from_millis(still));
        assert_eq!(ended, "expired", "{tag}");
        fleet.station.wait_online(1);
    }
    fleet.station.run(&["call", "n1", "slow", "tag=last"]).expect(0);
    let marks = fleet.nodes[0].marks();
    assert!(marks.iter().all(|mark| mark.ends_with("last")), "{marks:?}");
}

#[test]
fn the_first_command_after_linking_has_a_deadline_too() {
    let mut fleet = Fleet::linked(1);
    for round in 0..3 {
        fleet.nodes[0].end(Signal::KILL);
        fleet.station.wait_state("n1", "offline");
        fleet.nodes[0].start(&[]);
        fleet.station.wait_online(1);
        let ended = ends_while_stopped(&mut fleet, "first", Duration::from_millis(2_000));
        assert_eq!(ended, "expired", "round {round}");
        fleet.station.wait_online(1);
    }
    fleet.station.run(&["ping"]).expect(0);
    assert_eq!(fleet.nodes[0].marks(), [""; 0]);
}

#[test]
fn a_station_that_stands_still_expires_what_it_could_not_send() {
    let mut fleet = Fleet::linked(1);
    fleet.nodes[0].end(Signal::KILL);
    fleet.station.wait_state("n1", "offline");
    let words = [
        "call",
        "n1",
        "slow",
        "tag=late",
        "--ttl",
        "1s",
        "--timeout",
        "15s",
    ];
    let verb = fleet.station.start(&words);
    let_pass(Duration::from_millis(300));
    fleet.station.process().signal(Signal::STOP);
    fleet.nodes[0].start(&[]);
    let_pass(Duration::from_millis(1_500));
    fleet.station.process().signal(Signal::CONT);
    assert_eq!(verb.finish(PATIENCE).expect(1).state("n1"), "expired");
    fleet.station.wait_online(1);
    wait_until(PATIENCE, "it answers", || {
        fleet.station.run(&["ping"]).status == Some(0)
    });
    assert_eq!(fleet.nodes[0].marks(), [""; 0]);
}
