//! The emergency stop as an operator uses it.

use std::time::Duration;

use swarm_tests::fleet::{Fleet, PATIENCE, text};
use swarm_tests::process::{Signal, wait_until};

/// Its own command leaves a mark; it fails on `n2`.
fn with_command(node: &mut swarm_tests::fleet::Node) {
    let file = node.dir.join("landed").display().to_string();
    let end = if node.name == "n2" { 7 } else { 0 };
    node.tables = format!(
        "[emergency_stop]\ncommand = [\"/bin/sh\", \"-c\", \"echo landed >>{file}; exit {end}\"]\n\n[actions.say]\n\
         command = [\"/bin/echo\", \"said\"]\nwhile_stopped = true\n"
    );
}

fn landings(node: &swarm_tests::fleet::Node) -> usize {
    let text = std::fs::read_to_string(node.dir.join("landed")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn a_stop_lasts_over_a_kill_until_each_node_is_released() {
    let mut fleet = Fleet::linked_with(5, with_command);
    let slow = fleet.start_slow("cut", "30");
    wait_until(PATIENCE, "it runs", || !fleet.nodes[0].marks().is_empty());

    let ran = fleet.station.run(&["stop"]).expect(1);
    for node in ["n1", "n3", "n4", "n5"] {
        let delivery = ran.of(node);
        assert_eq!(text(&delivery, "state"), "done", "{delivery}");
        assert_eq!(delivery["value"]["latched"], true, "{delivery}");
        assert!(
            delivery["value"]["acknowledged_ms"].as_f64().is_some(),
            "{delivery}"
        );
    }
    let failed = ran.of("n2");
    assert_eq!(text(&failed, "state"), "failed");
    assert!(text(&failed, "error").contains("exit status 7"), "{failed}");
    assert!(fleet.nodes.iter().all(|node| landings(node) == 1));

    // What ran was killed.
    let cut = slow.finish(PATIENCE).expect(1);
    assert!(
        text(&cut.of("n1"), "error").contains("emergency stop"),
        "{cut:#?}"
    );
    assert_eq!(fleet.nodes[0].marks(), ["begin cut"]);

    // What acts is refused, what reads or may run is not, also after a kill.
    for round in 0..2 {
        let ran = fleet.station.run(&["call", "all", "slow", "tag=no"]).expect(1);
        for node in ["n1", "n3", "n5"] {
            assert_eq!(ran.state(node), "refused");
            assert!(text(&ran.of(node), "error").contains("release"), "{ran:#?}");
        }
        fleet.station.run(&["ping"]).expect(0);
        fleet.station.run(&["call", "all", "say"]).expect(0);
        let view = fleet.station.node("n1");
        assert_eq!(view["state"], "online");
        assert!(view["stopped"]["number"].as_u64().is_some(), "{view}");
        if round == 0 {
            fleet.nodes[0].end(Signal::KILL);
            fleet.station.wait_state("n1", "offline");
            fleet.nodes[0].start(&[]);
            fleet.station.wait_online(5);
            assert!(fleet.nodes[0].status()["stopped"].is_string());
            fleet.station.wait_nodes("n1 says that it is stopped", |nodes| {
                nodes.iter().all(|node| node["stopped"].is_object())
            });
        }
    }
    assert_eq!(
        landings(&fleet.nodes[0]),
        1,
        "its command had ended: it does not run again"
    );

    let number = fleet.station.node("n1")["stopped"]["number"].to_string();
    fleet.station.run(&["stop", "n1"]).expect(0);
    // A release of the first stop cannot undo the second.
    let ran = fleet
        .station
        .run(&["call", "n1", "release", &format!("number={number}")])
        .expect(1);
    assert_eq!(ran.state("n1"), "refused");
    fleet.station.run(&["release", "all"]).expect(0);
    let ran = fleet.station.run(&["release", "all"]).expect(0);
    assert_eq!(ran.of("n1")["value"], "was not stopped");
    fleet.station.run(&["call", "all", "slow", "tag=yes"]).expect(0);
    assert!(fleet.nodes[0].status()["stopped"].is_null());
}

#[test]
fn a_command_that_had_not_ended_at_the_kill_runs_again_and_absent_nodes_are_named() {
    let mut fleet = Fleet::linked_with(2, |node| {
        let file = node.dir.join("landed").display().to_string();
        node.tables = format!(
            "[emergency_stop]\ncommand = [\"/bin/sh\", \"-c\", \"echo landed >>{file}; [ $(grep -c . {file}) -gt 1 ] \
             || sleep 30\"]\n"
        );
    });
    fleet.nodes[1].end(Signal::KILL);
    fleet.station.wait_state("n2", "offline");
    let ran = fleet.station.run(&["stop", "--timeout", "1s"]).expect(4);
    assert_eq!(
        (ran.state("n1"), ran.state("n2")),
        ("no-answer".to_owned(), "no-answer".to_owned())
    );
    assert!(text(&ran.of("n1"), "error").contains("stopped;"), "{ran:#?}");
    assert!(text(&ran.of("n2"), "error").contains("NO ANSWER"), "{ran:#?}");

    fleet.nodes[0].end(Signal::KILL);
    fleet.nodes[0].start(&[]);
    wait_until(PATIENCE, "it runs again", || landings(&fleet.nodes[0]) == 2);

    // A stop goes on until the last has come back.
    let stop = fleet.station.start(&["stop", "n2"]);
    std::thread::sleep(Duration::from_millis(300));
    fleet.nodes[1].start(&[]);
    wait_until(PATIENCE, "it stops as soon as it is back", || {
        fleet.nodes[1].status()["stopped"].is_string()
    });
    drop(stop);
}

#[test]
fn an_observer_stops_nobody() {
    let fleet = Fleet::linked(1);
    let mut observer = fleet.field.station("ob", swarm_tests::fleet::Place::here());
    let code = fleet
        .station
        .invite(&swarm_tests::fleet::Invite::station("observer"));
    observer.run(&["fleet", "join", &code]).expect(0);
    observer.serve();
    let ran = observer.run(&["stop"]).expect(1);
    assert!(format!("{ran:?}").contains("operator or admin"), "{ran:#?}");
    assert!(fleet.nodes[0].status()["stopped"].is_null());
}

#[test]
fn a_lost_link_runs_its_command_once_for_each_loss() {
    let mut fleet = Fleet::linked_with(1, |node| {
        let file = node.dir.join("landed").display().to_string();
        node.tables =
            format!("[lost_link]\nafter = \"2s\"\ncommand = [\"/bin/sh\", \"-c\", \"echo held >>{file}\"]\n");
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(landings(&fleet.nodes[0]), 0, "a quiet link is not a lost one");
    for loss in 1..=2 {
        fleet.station.process().signal(Signal::STOP);
        wait_until(PATIENCE, "its command runs", || landings(&fleet.nodes[0]) == loss);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(landings(&fleet.nodes[0]), loss, "once");
        fleet.station.process().signal(Signal::CONT);
        fleet.station.wait_online(1);
        wait_until(PATIENCE, "a station is heard again", || {
            let status = fleet.nodes[0].status();
            status["lost_link"]
                .as_str()
                .is_some_and(|text| text.contains("heard again"))
        });
    }
}
