//! The emergency stop as an operator uses it.

use std::time::Duration;

use swarm_tests::binaries;
use swarm_tests::fleet::{Fleet, Node, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, Stream, sleep_for, wait_until};

/// Adds a stop command that writes a mark, and fails on `n2`.
fn add_stop_command(node: &mut Node) {
    let file = node.state_dir.join("landed").display().to_string();
    let end = if node.name == "n2" { 7 } else { 0 };
    node.tables = format!(
        "[emergency_stop]\ncommand = [\"/bin/sh\", \"-c\", \"echo landed >>{file}; exit {end}\"]\n\n[actions.say]\n\
         command = [\"/bin/echo\", \"said\"]\nwhile_stopped = true\n"
    );
}

/// How often the stop command, or the command of a lost link, has run.
pub(crate) fn landings(node: &Node) -> usize {
    let text = std::fs::read_to_string(node.state_dir.join("landed")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn stop_latch_survives_a_kill_until_release() {
    let mut fleet = Fleet::linked_with(5, add_stop_command);
    let slow = fleet.start_slow("cut", "30");
    wait_until(TEST_TIMEOUT, "it runs", || !fleet.nodes[0].marks().is_empty());

    let ran = fleet.station.run(&["stop"]).expect_status(1);
    for node in ["n1", "n3", "n4", "n5"] {
        let delivery = ran.line_of(node);
        assert_eq!(str_field(&delivery, "state"), "done", "{delivery}");
        assert_eq!(delivery["value"]["latched"], true, "{delivery}");
        assert!(
            delivery["value"]["acknowledged_ms"].as_f64().is_some(),
            "{delivery}"
        );
    }
    let failed = ran.line_of("n2");
    assert_eq!(str_field(&failed, "state"), "failed");
    assert!(str_field(&failed, "error").contains("exit status 7"), "{failed}");
    assert!(fleet.nodes.iter().all(|node| landings(node) == 1));

    // The running action was killed.
    let cut = slow.finish(TEST_TIMEOUT).expect_status(1);
    assert!(
        str_field(&cut.line_of("n1"), "error").contains("emergency stop"),
        "{cut:#?}"
    );
    assert_eq!(fleet.nodes[0].marks(), ["begin cut"]);

    // Acting actions are refused; reading ones and those with `while_stopped` run. The same after a kill.
    for round in 0..2 {
        let ran = fleet
            .station
            .run(&["call", "all", "slow", "tag=no"])
            .expect_status(1);
        for node in ["n1", "n3", "n5"] {
            assert_eq!(ran.outcome_of(node), "refused");
            assert!(
                str_field(&ran.line_of(node), "error").contains("release"),
                "{ran:#?}"
            );
        }
        fleet.station.run(&["ping"]).expect_status(0);
        fleet.station.run(&["call", "all", "say"]).expect_status(0);
        let view = fleet.station.node("n1");
        assert_eq!(view["state"], "online");
        assert!(view["stopped"]["number"].as_u64().is_some(), "{view}");
        if round == 0 {
            fleet.nodes[0].signal_and_wait(Signal::KILL);
            fleet.station.wait_state("n1", "offline");
            fleet.nodes[0].start(&[]);
            fleet.station.wait_online(5);
            assert!(fleet.nodes[0].status()["stopped"].is_string());
            fleet
                .station
                .wait_nodes("all nodes report that they are stopped", |nodes| {
                    nodes.iter().all(|node| node["stopped"].is_object())
                });
        }
    }
    assert_eq!(
        landings(&fleet.nodes[0]),
        1,
        "its stop command had ended and does not run again"
    );

    let number = fleet.station.node("n1")["stopped"]["number"].to_string();
    fleet.station.run(&["stop", "n1"]).expect_status(0);
    // A release of the first stop does not end the second.
    let ran = fleet
        .station
        .run(&["call", "n1", "release", &format!("number={number}")])
        .expect_status(1);
    assert_eq!(ran.outcome_of("n1"), "refused");
    fleet.station.run(&["release", "all"]).expect_status(0);
    let ran = fleet.station.run(&["release", "all"]).expect_status(0);
    assert_eq!(ran.line_of("n1")["value"], "was not stopped");
    fleet
        .station
        .run(&["call", "all", "slow", "tag=yes"])
        .expect_status(0);
    assert!(fleet.nodes[0].status()["stopped"].is_null());
}

#[test]
fn stops_are_in_the_history_and_in_node_status() {
    let mut fleet = Fleet::linked(3);
    fleet.nodes[2].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n3", "offline");
    let ran = fleet
        .station
        .run(&["stop", "all,n9,!n8", "--timeout", "1s"])
        .expect_status(4);
    let ran = ran.expect_stderr("no node matches \"n9\", \"!n8\"");
    assert_eq!(ran.json().len(), 3);
    let reply = fleet
        .station
        .run(&["call", "n1", "telemetry"])
        .expect_status(0)
        .line_of("n1");
    assert!(
        str_field(&reply["value"], "stopped").contains("number"),
        "{reply}"
    );
    let reply = fleet
        .station
        .run(&["call", "n1", "selfcheck"])
        .expect_status(1)
        .line_of("n1");
    assert!(
        str_field(&reply, "error").contains("emergency stop: STOPPED"),
        "{reply}"
    );
    // A node that returns reports its stop itself, and its release ends that.
    fleet.nodes[1].signal_and_wait(Signal::TERM);
    fleet.station.wait_state("n2", "offline");
    fleet.nodes[1].start(&[]);
    let failing = |nodes: &[serde_json::Value]| {
        let check = nodes
            .iter()
            .find(|node| node["node"] == "n2")
            .map(|node| node["checks"].to_string());
        check.is_some_and(|checks| checks.contains("STOPPED"))
    };
    fleet
        .station
        .wait_nodes("its self-check reports the stop", failing);
    fleet
        .station
        .run(&["release", "n1,n2,n8"])
        .expect_status(0)
        .expect_stderr("no node matches \"n8\"");
    fleet
        .station
        .wait_nodes("its self-check reports no stop", |nodes| {
            !failing(nodes)
                && nodes
                    .iter()
                    .any(|node| node["node"] == "n2" && node["state"] == "online")
        });

    let rows = fleet.station.run(&["history"]).expect_status(0).json();
    let row = |kind: &str| {
        let rows: Vec<_> = rows.iter().filter(|row| row["kind"] == kind).collect();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0].clone()
    };
    let (stop, release) = (row("stop"), row("release"));
    assert_eq!(
        (str_field(&stop, "selector"), str_field(&release, "selector")),
        ("all,n9,!n8", "n1,n2,n8")
    );
    let number = stop["command"].to_string();
    let ends = fleet.station.run(&["history", &number]);
    let states = ["n1", "n2", "n3"].map(|node| ends.outcome_of(node));
    assert_eq!(states, ["done", "done", "no-answer"]);
    fleet
        .station
        .run(&["history", &number, "--retry"])
        .expect_status(2);
    let number = release["command"].to_string();
    let ends = fleet.station.run(&["history", &number]).expect_status(0);
    assert_eq!(["n1", "n2"].map(|node| ends.outcome_of(node)), ["done", "done"]);
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    for what in ["stop", "release"] {
        assert_eq!(
            audit.iter().filter(|row| row["what"] == what).count(),
            1,
            "{audit:?}"
        );
    }
}

#[test]
fn stop_without_serve_links_and_names_missing_nodes() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    fleet.station.signal_and_wait(Signal::TERM);
    let mut stop = fleet.station.start(&["stop"]);
    wait_until(TEST_TIMEOUT, "the linked node stops", || {
        fleet.nodes[0].status()["stopped"].is_string()
    });
    stop.process()
        .wait_line(Stream::Err, TEST_TIMEOUT, "it names the missing node", |line| {
            line.contains("1 of 2 answered; NO ANSWER from n2; still trying")
        });
    stop.signal(Signal::INT);
    let ran = stop.finish(TEST_TIMEOUT).expect_status(4);
    assert_eq!(
        [ran.outcome_of("n1"), ran.outcome_of("n2")],
        ["done", "no-answer"]
    );
    assert!(
        str_field(&ran.line_of("n2"), "error").contains("interrupted"),
        "{ran:#?}"
    );

    fleet.nodes[1].start(&[]);
    let ran = fleet.station.run(&["stop"]).expect_status(0);
    assert_eq!([ran.outcome_of("n1"), ran.outcome_of("n2")], ["done", "done"]);
    let shown = fleet
        .station
        .run_plain(&["stop"])
        .expect_status(0)
        .expect_stderr("all 2 answered, the last after");
    assert!(
        shown.stdout[0].starts_with("n[1-2] (2 nodes)  done"),
        "{shown:#?}"
    );
    // Each stop is in the history, although it was sent before it was stored.
    let rows = fleet.station.run(&["history"]).expect_status(0).json();
    let stops: Vec<_> = rows.iter().filter(|row| row["kind"] == "stop").collect();
    assert_eq!(stops.len(), 3, "{rows:?}");
    let ends = fleet.station.run(&["history", &stops[2]["command"].to_string()]);
    assert_eq!(
        [ends.outcome_of("n1"), ends.outcome_of("n2")],
        ["done", "no-answer"]
    );
    fleet.station.run(&["release", "all"]).expect_status(0);

    // A mistake in the configuration does not prevent a stop.
    std::fs::write(
        fleet.station.state_file("config.toml"),
        "[gateways.knut]\nalow = []\n",
    )
    .expect("written");
    fleet.station.run(&["ping", "all"]).expect_status(2);
    let ran = fleet.station.run(&["stop"]).expect_status(0);
    assert_eq!([ran.outcome_of("n1"), ran.outcome_of("n2")], ["done", "done"]);
    ran.expect_stderr("the stop is sent with the valid part of it");
}

#[test]
fn demo_ends_with_a_stop_and_its_release() {
    let output = std::process::Command::new(&binaries().station)
        .args(["--json", "demo"])
        .output()
        .expect("it runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{out}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let steps: Vec<&str> = out.lines().rev().take(3).collect();
    for (step, wanted) in
        steps
            .iter()
            .zip(["released all", "refused while stopped", "EMERGENCY STOP of all 5"])
    {
        assert!(step.contains(wanted), "{out}");
    }
}

#[test]
fn unfinished_stop_command_runs_again_after_a_kill() {
    let mut fleet = Fleet::linked_with(2, |node| {
        let file = node.state_dir.join("landed").display().to_string();
        node.tables = format!(
            "[emergency_stop]\ncommand = [\"/bin/sh\", \"-c\", \"echo landed >>{file}; [ $(grep -c . {file}) -gt 1 ] \
             || sleep 30\"]\n"
        );
    });
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let ran = fleet.station.run(&["stop", "--timeout", "1s"]).expect_status(4);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("no-answer".to_owned(), "no-answer".to_owned())
    );
    assert!(
        str_field(&ran.line_of("n1"), "error").contains("stopped;"),
        "{ran:#?}"
    );
    assert!(
        str_field(&ran.line_of("n2"), "error").contains("NO ANSWER"),
        "{ran:#?}"
    );

    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.nodes[0].start(&[]);
    wait_until(TEST_TIMEOUT, "it runs again", || landings(&fleet.nodes[0]) == 2);

    // The stop verb waits until the last node has returned.
    let stop = fleet.station.start(&["stop", "n2"]);
    std::thread::sleep(Duration::from_millis(300));
    fleet.nodes[1].start(&[]);
    wait_until(TEST_TIMEOUT, "it stops as soon as it has linked", || {
        fleet.nodes[1].status()["stopped"].is_string()
    });
    drop(stop);
}

#[test]
fn observer_cannot_stop_nodes() {
    let fleet = Fleet::linked(1);
    let mut observer = fleet.test_dir.station("ob", swarm_tests::fleet::Host::loopback());
    let code = fleet
        .station
        .invite(&swarm_tests::fleet::Invite::station("observer"));
    observer.run(&["fleet", "join", &code]).expect_status(0);
    observer.serve();
    let ran = observer.run(&["stop"]).expect_status(1);
    assert!(format!("{ran:?}").contains("operator or admin"), "{ran:#?}");
    assert!(fleet.nodes[0].status()["stopped"].is_null());
}

#[test]
fn abandoned_stop_still_withdraws_queued_commands() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let ran = fleet
        .station
        .run(&[
            "call",
            "all",
            "slow",
            "tag=before",
            "--ttl",
            "120s",
            "--timeout",
            "300ms",
        ])
        .expect_status(4);
    assert_eq!(ran.outcome_of("n2"), "no-answer");
    fleet
        .station
        .run(&["stop", "--timeout", "1s"])
        .expect_status(4)
        .expect_stderr("1 delivery that waited for these nodes is withdrawn")
        .expect_stderr("THE STOP IS NOT REPEATED ANY MORE");
    wait_until(TEST_TIMEOUT, "the withdrawal is in the history", || {
        let past = fleet.station.run(&["history", "1"]);
        past.outcome_of("n2") == "refused"
            && str_field(&past.line_of("n2"), "error").contains("withdrawn by the emergency stop of")
    });
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    let entry = audit.iter().find(|row| row["what"] == "stop").expect("an entry");
    assert_eq!(str_field(entry, "outcome"), "command 2, 2 deliveries");

    // A station that has restarted since does not send it either.
    fleet.station.signal_and_wait(Signal::KILL);
    fleet.station.serve();
    fleet.nodes[1].start(&[]);
    fleet.station.wait_online(2);
    assert!(
        fleet.nodes[1].status()["stopped"].is_null(),
        "no stop is in progress any more"
    );
    // The node has not confirmed the stop, so that commands that act are refused until the operator decides; reading
    // works.
    assert!(fleet.station.node("n2")["stop_unconfirmed"].is_u64());
    assert!(fleet.station.node("n1")["stop_unconfirmed"].is_null());
    let ran = fleet
        .station
        .run(&["call", "n2", "slow", "tag=refused"])
        .expect_status(1);
    let why = str_field(&ran.line_of("n2"), "error").to_owned();
    assert!(why.contains("has not confirmed the emergency stop"), "{why}");
    fleet.station.run(&["ping", "n2"]).expect_status(0);
    let ran = fleet.station.run(&["release", "n2"]).expect_status(0);
    assert_eq!(ran.line_of("n2")["value"], "was not stopped");
    assert!(fleet.station.node("n2")["stop_unconfirmed"].is_null());
    fleet
        .station
        .run(&["call", "n2", "slow", "tag=after"])
        .expect_status(0);
    let mut marks = fleet.nodes[1].marks();
    marks.retain(|mark| mark.starts_with("begin"));
    assert_eq!(marks, ["begin after"]);
    let past = fleet.station.run(&["history", "1"]);
    assert_eq!(
        [past.outcome_of("n1"), past.outcome_of("n2")],
        ["done", "refused"]
    );
}

#[test]
fn release_does_not_wait_for_offline_nodes() {
    let mut fleet = Fleet::linked(2);
    fleet.station.run(&["stop"]).expect_status(0);
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    // A station that has just started looks for the node.
    sleep_for(Duration::from_secs(4));
    let ran = fleet
        .station
        .run(&["release", "all", "--timeout", "4s"])
        .expect_status(4);
    assert_eq!(
        [ran.outcome_of("n1"), ran.outcome_of("n2")],
        ["done", "no-answer"]
    );
    assert!(
        str_field(&ran.line_of("n2"), "error").contains("it stays stopped until it is released"),
        "{ran:#?}"
    );
    assert!(ran.duration < Duration::from_secs(3), "{ran:#?}");
    fleet.nodes[1].start(&[]);
    fleet.station.wait_online(2);
    assert!(fleet.nodes[1].status()["stopped"].is_string());
    fleet.station.run(&["release", "all"]).expect_status(0);
}

#[test]
fn interrupted_stop_reports_that_repeats_have_ended() {
    let mut fleet = Fleet::linked(2);
    fleet.nodes[1].signal_and_wait(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let mut stop = fleet.station.start(&["stop"]);
    stop.process()
        .wait_line(Stream::Err, TEST_TIMEOUT, "it names the missing node", |line| {
            line.contains("1 of 2 answered; NO ANSWER from n2; still trying")
        });
    fleet.station.signal_and_wait(Signal::TERM);
    let ran = stop
        .finish(TEST_TIMEOUT)
        .expect_status(4)
        .expect_stderr("has ended")
        .expect_stderr("THE STOP IS NOT REPEATED ANY MORE")
        .expect_stderr("type `ground-station stop` again");
    assert_eq!(
        [ran.outcome_of("n1"), ran.outcome_of("n2")],
        ["done", "no-answer"]
    );
    assert!(
        str_field(&ran.line_of("n2"), "error").contains("NO ANSWER"),
        "{ran:#?}"
    );
}
