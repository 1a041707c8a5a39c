//! A node that is suspended for longer than a command's time to live does not run it afterwards.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, TEST_TIMEOUT};
use swarm_tests::process::{Signal, sleep_for, wait_until};

/// Suspends the only node for `still` while a command with a time to live of 1 s is sent to it; returns the outcome.
fn outcome_after_pause(fleet: &mut Fleet, tag: &str, still: Duration) -> String {
    fleet.nodes[0].process().signal(Signal::STOP);
    let tag = format!("tag={tag}");
    let words = ["call", "n1", "slow", &tag, "--ttl", "1s", "--timeout", "15s"];
    let verb = fleet.station.start(&words);
    sleep_for(still);
    fleet.nodes[0].process().signal(Signal::CONT);
    verb.finish(TEST_TIMEOUT).expect_status(1).outcome_of("n1")
}

#[test]
fn expired_command_is_not_run_by_a_resumed_node() {
    let mut fleet = Fleet::linked(1);
    // Short enough that the link stays and the node reads the command from its socket; then so long that it does not.
    for (tag, still) in [
        ("first", 2_000),
        ("second", 2_000),
        ("third", 3_000),
        ("fourth", 4_000),
    ] {
        let ended = outcome_after_pause(&mut fleet, tag, Duration::from_millis(still));
        assert_eq!(ended, "expired", "{tag}");
        fleet.station.wait_online(1);
    }
    fleet
        .station
        .run(&["call", "n1", "slow", "tag=last"])
        .expect_status(0);
    let marks = fleet.nodes[0].marks();
    assert!(marks.iter().all(|mark| mark.ends_with("last")), "{marks:?}");
}

#[test]
fn first_command_after_linking_has_a_deadline() {
    let mut fleet = Fleet::linked(1);
    for round in 0..3 {
        fleet.nodes[0].signal_and_wait(Signal::KILL);
        fleet.station.wait_state("n1", "offline");
        fleet.nodes[0].start(&[]);
        fleet.station.wait_online(1);
        let ended = outcome_after_pause(&mut fleet, "first", Duration::from_millis(2_000));
        assert_eq!(ended, "expired", "round {round}");
        fleet.station.wait_online(1);
    }
    fleet.station.run(&["ping"]).expect_status(0);
    assert_eq!(fleet.nodes[0].marks(), [""; 0]);
}

#[test]
fn paused_station_expires_unsent_commands() {
    let mut fleet = Fleet::linked(1);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
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
    sleep_for(Duration::from_millis(300));
    fleet.station.process().signal(Signal::STOP);
    fleet.nodes[0].start(&[]);
    sleep_for(Duration::from_millis(1_500));
    fleet.station.process().signal(Signal::CONT);
    assert_eq!(
        verb.finish(TEST_TIMEOUT).expect_status(1).outcome_of("n1"),
        "expired"
    );
    fleet.station.wait_online(1);
    wait_until(TEST_TIMEOUT, "it answers", || {
        fleet.station.run(&["ping"]).status == Some(0)
    });
    assert_eq!(fleet.nodes[0].marks(), [""; 0]);
}
