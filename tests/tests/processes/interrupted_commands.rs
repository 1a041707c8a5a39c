//! Each process is killed or ended at each stage of a command. In every case: every target ends in exactly one
//! outcome in time, the command runs at most once, and the fleet links again and works.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, VerbOutput, str_field};
use swarm_tests::process::{Signal, wait_until};

/// Longest duration of a verb: its `--timeout` and a little.
const VERB_DURATION_MAX: Duration = Duration::from_secs(10);

const SIGNALS: [(Signal, &str); 2] = [(Signal::KILL, "kill"), (Signal::TERM, "term")];

/// Checks that the verb reported every target once, in time.
fn check_one_outcome_each(ran: &VerbOutput, nodes: &[&str]) {
    assert!(ran.duration < VERB_DURATION_MAX, "{ran:#?}");
    assert_eq!(ran.json().len(), nodes.len(), "{ran:#?}");
    for node in nodes {
        let line = ran.line_of(node);
        if line["state"] != "done" {
            assert!(!str_field(&line, "error").is_empty(), "a reason: {line}");
        }
    }
}

fn count_started(fleet: &Fleet, node: usize, tag: &str) -> usize {
    let begin = format!("begin {tag}");
    fleet.nodes[node]
        .marks()
        .iter()
        .filter(|mark| **mark == begin)
        .count()
}

fn wait_started(fleet: &Fleet, node: usize, tag: &str) {
    wait_until(TEST_TIMEOUT, &format!("{tag} begins"), || {
        count_started(fleet, node, tag) == 1
    });
}

/// The fleet links again, all nodes answer, and the command has started at most `most` times.
fn check_fleet_works(fleet: &Fleet, tag: &str, most: usize) {
    fleet.station.wait_online(fleet.nodes.len());
    check_nodes_answer(fleet, tag, most);
}

/// The same for a station that may have no `serve`: a verb then links the nodes itself, and `nodes` would not wait.
fn check_nodes_answer(fleet: &Fleet, tag: &str, most: usize) {
    let count = fleet.nodes.len();
    let ran = fleet.station.run(&["ping"]).expect_status(0);
    assert_eq!(ran.json().len(), count);
    for node in 0..count {
        // A queued command would have come before the ping.
        let begun = count_started(fleet, node, tag);
        assert!(begun <= most, "{tag} was begun {begun} times on n{}", node + 1);
    }
}

#[test]
fn node_exit_midway_gives_one_outcome_each() {
    let mut fleet = Fleet::linked(2);
    for (signal, how) in SIGNALS {
        // Before the command is sent: it waits, and runs when the node is back.
        fleet.nodes[0].signal_and_wait(signal);
        fleet.station.wait_state("n1", "offline");
        let tag = format!("before{how}");
        let verb = fleet.start_slow(&tag, "0");
        wait_started(&fleet, 1, &tag);
        fleet.nodes[0].start(&[]);
        let ran = verb.finish(TEST_TIMEOUT).expect_status(0);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        check_fleet_works(&fleet, &tag, 1);
        assert_eq!(count_started(&fleet, 0, &tag), 1);

        // While the action runs: its end is unknown, and it does not start again.
        let tag = format!("during{how}");
        let verb = fleet.start_slow(&tag, "1");
        wait_started(&fleet, 0, &tag);
        fleet.nodes[0].signal_and_wait(signal);
        fleet.nodes[0].start(&[]);
        let ran = verb.finish(TEST_TIMEOUT).expect_status(1);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        assert!(
            matches!(ran.outcome_of("n1").as_str(), "unknown" | "failed"),
            "{ran:#?}"
        );
        assert_eq!(ran.outcome_of("n2"), "done", "the other is not held up");
        check_fleet_works(&fleet, &tag, 1);

        // The same, and the node stays away.
        let tag = format!("gone{how}");
        let verb = fleet.start_slow(&tag, "1");
        wait_started(&fleet, 0, &tag);
        fleet.nodes[0].signal_and_wait(signal);
        let ran = verb.finish(TEST_TIMEOUT);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        assert_ne!(ran.outcome_of("n1"), "done");
        assert_eq!(ran.outcome_of("n2"), "done");
        fleet.nodes[0].start(&[]);
        check_fleet_works(&fleet, &tag, 1);

        // After its end.
        let tag = format!("after{how}");
        let ran = fleet.start_slow(&tag, "0").finish(TEST_TIMEOUT).expect_status(0);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        fleet.nodes[0].signal_and_wait(signal);
        fleet.nodes[0].start(&[]);
        check_fleet_works(&fleet, &tag, 1);
    }
}

#[test]
fn station_exit_midway_gives_one_outcome_each() {
    let mut fleet = Fleet::linked(2);
    for (signal, how) in SIGNALS {
        // Before it is sent to one of them.
        fleet.nodes[0].signal_and_wait(Signal::TERM);
        fleet.station.wait_state("n1", "offline");
        let tag = format!("before{how}");
        let verb = fleet.start_slow(&tag, "0");
        wait_started(&fleet, 1, &tag);
        fleet.station.signal_and_wait(signal);
        let ran = verb.finish(TEST_TIMEOUT);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        assert_ne!(ran.outcome_of("n1"), "done", "{ran:#?}");
        assert!(matches!(ran.status, Some(1 | 4)), "{ran:#?}");
        fleet.nodes[0].start(&[]);
        fleet.station.serve();
        check_fleet_works(&fleet, &tag, 1);

        // While it runs: it continues, and does not start again.
        let tag = format!("during{how}");
        let verb = fleet.start_slow(&tag, "1");
        wait_started(&fleet, 0, &tag);
        wait_started(&fleet, 1, &tag);
        fleet.station.signal_and_wait(signal);
        let ran = verb.finish(TEST_TIMEOUT);
        check_one_outcome_each(&ran, &["n1", "n2"]);
        assert!(matches!(ran.status, Some(1 | 4)), "{ran:#?}");
        fleet.station.serve();
        check_fleet_works(&fleet, &tag, 1);

        // After its end.
        let tag = format!("after{how}");
        fleet.start_slow(&tag, "0").finish(TEST_TIMEOUT).expect_status(0);
        fleet.station.signal_and_wait(signal);
        fleet.station.serve();
        check_fleet_works(&fleet, &tag, 1);
    }
}

#[test]
fn verb_exit_midway_gives_one_outcome_each() {
    let mut fleet = Fleet::linked(2);
    for serving in [true, false] {
        if !serving {
            fleet.station.signal_and_wait(Signal::TERM);
        }
        for (signal, how) in SIGNALS {
            let tag = format!("during{how}{}", u8::from(serving));
            let mut verb = fleet.start_slow(&tag, "0.5");
            wait_started(&fleet, 0, &tag);
            wait_started(&fleet, 1, &tag);
            verb.signal(signal);
            drop(verb);
            let ran = fleet.station.run(&["ping"]).expect_status(0);
            check_one_outcome_each(&ran, &["n1", "n2"]);
            check_nodes_answer(&fleet, &tag, 1);
        }
    }
}

#[test]
fn paused_node_runs_the_command_once_on_resume() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[0].process().signal(Signal::STOP);
    let verb = fleet.start_slow("hung", "0");
    wait_started(&fleet, 1, "hung");
    fleet.station.wait_state("n1", "offline");
    fleet.nodes[0].process().signal(Signal::CONT);
    // The same process resumes the session: the command comes once.
    let ran = verb.finish(TEST_TIMEOUT).expect_status(0);
    check_one_outcome_each(&ran, &["n1", "n2"]);
    check_fleet_works(&fleet, "hung", 1);
}
