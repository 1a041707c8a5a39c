//! Cancelling commands before they are sent.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, wait_until};

const QUEUED_OPTIONS: [&str; 4] = ["--ttl", "120s", "--timeout", "300ms"];

#[test]
fn cancel_withdraws_unsent_and_names_sent_deliveries() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n1", "offline");
    let slow = |tag: &str, time: &str| {
        let (tag, time) = (format!("tag={tag}"), format!("time={time}"));
        let words = [&["call", "all", "slow", &tag, &time][..], &QUEUED_OPTIONS].concat();
        fleet.station.run(&words).expect_status(4)
    };

    // One delivery waits, one is done.
    slow("x", "0");
    let ran = fleet
        .station
        .run(&["cancel", "1"])
        .expect_status(0)
        .expect_stderr("1 taken back");
    let line = ran.line_of("n1");
    assert_eq!(line["state"], "refused", "{line}");
    let why = str_field(&line, "error");
    assert!(
        why.starts_with("cancelled by ") && why.ends_with(" before it was sent"),
        "{why}"
    );
    assert_eq!(ran.outcome_of("n2"), "done", "what has ended keeps its outcome");
    let past = fleet.station.run(&["history", "1"]);
    assert_eq!(
        (past.outcome_of("n1"), past.outcome_of("n2")),
        ("refused".to_owned(), "done".to_owned())
    );
    fleet
        .station
        .run(&["cancel", "1"])
        .expect_status(0)
        .expect_stderr("nothing was open");

    // One delivery waits, one is running.
    slow("y", "3");
    let ran = fleet
        .station
        .run(&["cancel", "2"])
        .expect_status(1)
        .expect_stderr("1 sent already");
    assert_eq!(ran.outcome_of("n1"), "refused");
    let line = ran.line_of("n2");
    assert_eq!(line["state"], "open", "{line}");
    assert_eq!(line["error"], "sent already; only a stop ends it");
    let said = fleet.station.run_plain(&["cancel", "2"]).expect_status(1);
    assert!(
        said.stdout
            .iter()
            .any(|line| line.contains("only a stop ends it")),
        "{said:#?}"
    );

    fleet
        .station
        .run(&["cancel", "77"])
        .expect_status(3)
        .expect_stderr("no command 77");
    fleet.station.run(&["cancel", "x"]).expect_status(2);
    fleet.station.run(&["stop", "n2"]).expect_status(0);
    fleet
        .station
        .run(&["cancel", "3"])
        .expect_status(2)
        .expect_stderr("release");
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    let noted = |outcome: &str| {
        audit
            .iter()
            .any(|line| line["what"] == "cancel" && str_field(line, "outcome").starts_with(outcome))
    };
    assert!(
        noted("1 taken back; 1 sent already") && noted("nothing was open"),
        "{audit:#?}"
    );

    fleet.nodes[0].start(&[]);
    fleet.station.wait_state("n1", "online");
    fleet
        .station
        .run(&["call", "n1", "slow", "tag=last"])
        .expect_status(0);
    assert_eq!(fleet.nodes[0].marks(), ["begin last", "end last"]);
}

#[test]
fn cancel_without_serve_precedes_linking() {
    let mut fleet = Fleet::linked(1);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n1", "offline");
    for tag in ["tag=a", "tag=b"] {
        let words = [&["call", "n1", "slow", tag][..], &QUEUED_OPTIONS].concat();
        fleet.station.run(&words).expect_status(4);
    }
    fleet.station.signal_and_wait(Signal::KILL);
    // The node is back, and would get the command from any station process that links.
    fleet.nodes[0].start(&[]);
    let ran = fleet
        .station
        .run(&["cancel", "1"])
        .expect_status(0)
        .expect_stderr("1 taken back");
    assert_eq!(ran.outcome_of("n1"), "refused");
    fleet.station.run(&["cancel", "77"]).expect_status(3);
    assert_eq!(fleet.nodes[0].marks(), [""; 0], "no link came up");

    fleet.station.serve();
    wait_until(TEST_TIMEOUT, "the other goes on", || {
        !fleet.nodes[0].marks().is_empty()
    });
    fleet.station.wait_online(1);
    let answered = || fleet.station.run(&["history", "2"]).outcome_of("n1") == "done";
    wait_until(Duration::from_secs(10), "and is done", answered);
    assert_eq!(fleet.nodes[0].marks(), ["begin b", "end b"]);
}
