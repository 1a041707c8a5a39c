//! Commands for offline nodes, while the station serves.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, sleep_for, wait_until};

#[test]
fn command_waits_for_absent_node_until_its_deadline() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    fleet.station.wait_state("n1", "offline");
    let slow = |tag: &'static str, ttl, timeout| {
        let tag = format!("tag={tag}");
        fleet
            .station
            .run(&["call", "all", "slow", &tag, "--ttl", ttl, "--timeout", timeout])
    };

    // It outlives the verb that issued it.
    let ran = slow("patient", "60s", "300ms").expect_status(4);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("no-answer".to_owned(), "done".to_owned())
    );
    assert!(
        str_field(&ran.line_of("n1"), "error").contains("offline"),
        "{ran:#?}"
    );
    // It expires at its deadline.
    let ran = slow("hasty", "300ms", "10s").expect_status(1);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("expired".to_owned(), "done".to_owned())
    );
    assert!(
        ran.duration < Duration::from_secs(5),
        "as soon as it is known: {ran:#?}"
    );
    slow("blind", "400ms", "100ms").expect_status(4);

    // The last one has expired as well.
    sleep_for(Duration::from_millis(500));
    fleet.nodes[0].start(&[]);
    wait_until(TEST_TIMEOUT, "it is delivered", || {
        !fleet.nodes[0].marks().is_empty()
    });
    fleet.station.wait_online(2);
    fleet.station.run(&["ping"]).expect_status(0);
    let mut marks = fleet.nodes[0].marks();
    marks.retain(|mark| mark.starts_with("begin"));
    assert_eq!(marks, ["begin patient"]);
}

#[test]
fn queued_commands_arrive_in_order() {
    let mut fleet = Fleet::linked(1);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n1", "offline");
    let ran = fleet
        .station
        .run(&["ping", "n1", "--timeout", "100ms", "--ttl", "200ms"])
        .expect_status(4);
    assert_eq!(
        ran.line_of("n1")["error"],
        "offline for the 0.1 s that were waited"
    );
    for action in ["time", "id", "telemetry", "config", "selfcheck", "ping"] {
        fleet
            .station
            .run(&["call", "n1", action, "--timeout", "100ms"])
            .expect_status(4);
    }
    fleet.nodes[0].start(&[]);
    fleet.station.wait_online(1);
    fleet.station.run(&["call", "n1", "log"]).expect_status(0);
    // They start in order; the order of their ends is not defined. The station itself runs the self-check.
    let log = fleet.nodes[0].log();
    let begun: Vec<&str> = log
        .iter()
        .filter_map(|line| line.split_once("action=\"")?.1.split('"').next())
        .collect();
    let queued = ["time", "id", "telemetry", "config", "selfcheck", "ping"];
    let at = begun
        .iter()
        .position(|action| *action == "time")
        .expect("delivered");
    let mut from = begun[at..].to_vec();
    from.truncate(queued.len());
    assert_eq!(from, queued, "{begun:?}");
}

#[test]
fn queued_commands_survive_a_station_kill() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n1", "offline");
    let ran = fleet
        .station
        .run(&[
            "call",
            "all",
            "slow",
            "tag=kept",
            "--ttl",
            "120s",
            "--timeout",
            "300ms",
        ])
        .expect_status(4);
    assert_eq!(ran.outcome_of("n1"), "no-answer");
    let ran = fleet
        .station
        .run(&[
            "call",
            "n1",
            "slow",
            "tag=late",
            "--ttl",
            "1s",
            "--timeout",
            "100ms",
        ])
        .expect_status(4);
    assert_eq!(ran.outcome_of("n1"), "no-answer");
    fleet.station.signal_and_wait(Signal::KILL);
    sleep_for(Duration::from_secs(1));
    fleet.station.serve();
    fleet.nodes[0].start(&[]);
    wait_until(TEST_TIMEOUT, "it is delivered", || {
        !fleet.nodes[0].marks().is_empty()
    });
    fleet.station.wait_online(2);
    fleet.station.run(&["ping"]).expect_status(0);
    for node in &fleet.nodes {
        let mut marks = node.marks();
        marks.retain(|mark| mark.starts_with("begin"));
        assert_eq!(marks, ["begin kept"], "once, and nothing late");
    }
    wait_until(TEST_TIMEOUT, "the history tells the true end", || {
        let past = fleet.station.run(&["history", "1"]);
        past.json().iter().all(|line| line["state"] == "done")
    });
    let past = fleet.station.run(&["history", "2"]);
    assert_eq!(past.json()[0]["state"], "expired", "{past:#?}");
}

#[test]
fn unstorable_command_is_refused_and_not_sent() {
    let fleet = Fleet::linked(1);
    // Blocks every write, as a full disk does; the station retries for a few seconds.
    let other = rusqlite::Connection::open(fleet.station.state_file("station.db")).expect("opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("held");
    let slow = |timeout| {
        let words = ["call", "n1", "slow", "tag=x", "--timeout", timeout];
        fleet.station.run(&words)
    };
    let ran = slow("100ms").expect_status(4);
    assert!(
        str_field(&ran.line_of("n1"), "error").starts_with("not sent yet"),
        "{ran:#?}"
    );
    let ran = slow("30s").expect_status(1);
    let line = ran.line_of("n1");
    assert_eq!(line["state"], "refused", "{line}");
    let why = str_field(&line, "error");
    assert!(
        why.starts_with("nothing was sent: ") && why.contains("disk is not full"),
        "{why}"
    );
    drop(other);
    wait_until(TEST_TIMEOUT, "it stores again", || slow("10s").status == Some(0));
    let begun = fleet.nodes[0].marks();
    let begun = begun.iter().filter(|mark| *mark == "begin x").count();
    assert_eq!(begun, 1, "what was refused never ran");
}

#[test]
fn rolling_run_stops_at_the_first_failed_batch() {
    let mut fleet = Fleet::linked(3);
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let roll = |more: &[&str]| {
        let all = [
            "call",
            "all",
            "slow",
            "tag=x",
            "--batch",
            "1",
            "--batch-wait",
            "100ms",
        ];
        let all: Vec<&str> = all.iter().chain(more).copied().collect();
        fleet.station.run(&all)
    };
    let ran = roll(&["--ttl", "300ms"]).expect_status(1);
    let states = ["n1", "n2", "n3"].map(|node| ran.outcome_of(node));
    assert_eq!(states, ["done", "expired", "refused"]);
    assert!(str_field(&ran.line_of("n3"), "error").contains("an earlier batch failed"));
    assert_eq!(fleet.nodes[2].marks(), [""; 0], "it was never sent");

    let ran = roll(&["--ttl", "300ms", "--keep-going"]).expect_status(1);
    let states = ["n1", "n2", "n3"].map(|node| ran.outcome_of(node));
    assert_eq!(states, ["done", "expired", "done"]);

    let before = fleet.nodes[0].marks();
    let slip = fleet
        .station
        .run(&["call", "all,!n09", "slow", "--dry-run"])
        .expect_status(2);
    slip.expect_stderr("matches no node; known are n1, n2, n3");
    let ran = fleet
        .station
        .run(&["call", "all", "slow", "--dry-run"])
        .expect_status(0);
    let named: Vec<String> = ran
        .json()
        .iter()
        .map(|line| str_field(line, "node").to_owned())
        .collect();
    assert_eq!(named, ["n1", "n2", "n3"]);
    assert_eq!(fleet.nodes[0].marks(), before);
    for bad in ["0", "0%", "101%", "abc"] {
        fleet
            .station
            .run(&["call", "all", "slow", "--batch", bad])
            .expect_status(2);
    }
}
