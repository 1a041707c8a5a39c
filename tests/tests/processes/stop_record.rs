//! A node's record of emergency stops is damaged, lost, or meets a full disk.

use std::collections::BTreeMap;
use std::path::Path;

use swarm_shared::net::journal::{JOURNAL_FILE, LATCH_FILES};
use swarm_tests::fleet::{Fleet, Node, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, wait_until};

use super::transfers::Tmpfs;

/// The stop's command, and each action that may run while held, write a mark of their own.
fn add_marks(node: &mut Node) {
    let marks = node.state_dir.join("ran").display().to_string();
    node.tables = format!("[emergency_stop]\ncommand = [\"/bin/sh\", \"-c\", \"echo stop >>{marks}\"]\n");
    for (name, more) in [
        ("say", "while_stopped = true"),
        ("land", "class = \"flight\""),
        ("disarm", ""),
        ("takeoff", "class = \"flight\""),
    ] {
        node.tables += &format!(
            "\n[actions.{name}]\ncommand = [\"/bin/sh\", \"-c\", \"echo {name} >>{marks}\"]\n{more}\n"
        );
    }
}

fn marks(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(node.state_dir.join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn write(node: &Node, name: &str, bytes: &[u8]) {
    std::fs::write(node.state_dir.join(name), bytes).expect("written");
}

fn outcome(fleet: &Fleet, action: &str) -> (String, String) {
    let line = fleet.station.run(&["call", "n1", action]).line_of("n1");
    let error = line["error"].as_str().unwrap_or_default().to_owned();
    (str_field(&line, "state").to_owned(), error)
}

fn failed_checks(fleet: &Fleet) -> BTreeMap<String, String> {
    let node = fleet.station.node("n1");
    let checks = node["checks"].as_array().expect("checks").iter();
    checks
        .filter(|check| check["ok"] == false)
        .map(|check| {
            let text = check["text"].as_str().unwrap_or_default();
            (str_field(check, "name").to_owned(), text.to_owned())
        })
        .collect()
}

#[test]
fn damaged_journal_does_not_release_a_stopped_node() {
    let mut fleet = Fleet::linked_with(1, add_marks);
    fleet.station.run(&["stop"]).expect_status(0);
    for damage in ["first byte", "last byte", "cut", "gone"] {
        fleet.nodes[0].signal_and_wait(Signal::KILL);
        let path = fleet.nodes[0].state_dir.join(JOURNAL_FILE);
        let mut journal = std::fs::read(&path).expect("a journal");
        let last = journal.len() - 1;
        match damage {
            "first byte" => journal[0] ^= 1,
            "last byte" => journal[last] ^= 1,
            "cut" => journal.truncate(last),
            _ => std::fs::remove_file(&path).expect("there"),
        }
        if damage != "gone" {
            std::fs::write(&path, journal).expect("written");
        }
        fleet.nodes[0].start(&[]);
        fleet.station.wait_online(1);
        wait_until(TEST_TIMEOUT, "the station hears of the stop", || {
            fleet.station.node("n1")["stopped"]["number"].is_u64()
        });
        assert_eq!(outcome(&fleet, "takeoff").0, "refused", "{damage}");
        wait_until(TEST_TIMEOUT, "the checks tell the damage", || {
            let checks = failed_checks(&fleet);
            checks.contains_key("emergency stop") && checks.contains_key("journal") == (damage != "gone")
        });
        assert_eq!(marks(&fleet.nodes[0]), ["stop"]);
    }
    fleet.station.run(&["release", "all"]).expect_status(0);
    assert_eq!(outcome(&fleet, "takeoff").0, "done");
}

#[test]
fn held_node_starts_nothing_but_landing_until_release() {
    let mut fleet = Fleet::linked_with(1, add_marks);
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    for name in LATCH_FILES {
        write(&fleet.nodes[0], name, b"damage");
    }
    for round in 0..2 {
        fleet.nodes[0].start(&[]);
        fleet.station.wait_online(1);
        wait_until(TEST_TIMEOUT, "the station hears of the hold", || {
            fleet.station.node("n1")["stopped"]["held"] == true
        });
        let warnings = fleet.station.node("n1")["warnings"].to_string();
        assert!(warnings.contains("HELD: its record of stops"), "{warnings}");
        assert!(fleet.nodes[0].status()["held"] == true);
        wait_until(TEST_TIMEOUT, "the checks tell it", || {
            failed_checks(&fleet)
                .get("emergency stop")
                .is_some_and(|text| text.starts_with("held: "))
        });
        for refused in ["takeoff", "slow", "execute"] {
            let (state, error) = outcome(&fleet, refused);
            assert_eq!(state, "refused", "{refused}: {error}");
        }
        assert!(outcome(&fleet, "takeoff").1.starts_with("held: "));
        for runs in ["ping", "telemetry", "say", "land", "disarm"] {
            assert_eq!(
                outcome(&fleet, runs),
                ("done".to_owned(), String::new()),
                "{runs}"
            );
        }
        assert_eq!(
            marks(&fleet.nodes[0]),
            ["say", "land", "disarm"].repeat(round + 1),
            "the stop's command does not run"
        );
        fleet.nodes[0].signal_and_wait(Signal::KILL);
    }
    fleet.nodes[0].start(&[]);
    fleet.station.wait_online(1);
    let ran = fleet.station.run(&["release", "all"]).expect_status(0);
    assert_eq!(ran.line_of("n1")["value"], "released");
    assert_eq!(outcome(&fleet, "takeoff").0, "done");
    assert!(fleet.station.node("n1")["stopped"].is_null());
}

/// The node's card is replaced by an older copy: it knows nothing of the stop that it has confirmed.
#[test]
fn station_withholds_commands_from_a_node_that_lost_its_stop() {
    let mut fleet = Fleet::linked_with(1, add_marks);
    let names = [JOURNAL_FILE, LATCH_FILES[0], LATCH_FILES[1]];
    let read = |node: &Node, name: &str| std::fs::read(node.state_dir.join(name)).expect("there");
    let copies = names.map(|name| read(&fleet.nodes[0], name));
    fleet.station.run(&["stop"]).expect_status(0);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    for (name, copy) in names.iter().zip(&copies) {
        write(&fleet.nodes[0], name, copy);
    }
    fleet.station.wait_state("n1", "offline");
    let (state, error) = outcome(&fleet, "takeoff");
    assert_eq!(state, "refused", "the station has no release: {error}");
    // A station that starts again knows it too.
    fleet.station.signal_and_wait(Signal::TERM);
    fleet.nodes[0].start(&[]);
    assert_eq!(outcome(&fleet, "takeoff").0, "refused");
    fleet.station.serve();
    fleet.station.wait_online(1);
    wait_until(TEST_TIMEOUT, "the station shows it", || {
        fleet.station.node("n1")["stop_unconfirmed"].is_u64()
    });
    let (state, error) = outcome(&fleet, "takeoff");
    assert_eq!(state, "refused", "{error}");
    assert!(error.contains("has not confirmed the emergency stop"), "{error}");
    assert_eq!(outcome(&fleet, "ping").0, "done");
    assert!(
        fleet.nodes[0].status()["stopped"].is_null(),
        "it is not stopped again"
    );
    assert_eq!(marks(&fleet.nodes[0]), ["stop"]);
    fleet.station.run(&["release", "all"]).expect_status(0);
    assert_eq!(outcome(&fleet, "takeoff").0, "done");

    // After a release that the node has recorded, a restart needs no further one.
    fleet.station.run(&["stop"]).expect_status(0);
    fleet.station.run(&["release", "all"]).expect_status(0);
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.nodes[0].start(&[]);
    fleet.station.wait_online(1);
    assert_eq!(outcome(&fleet, "takeoff").0, "done");
}

fn fill_disk(dir: &Path) {
    let ballast = dir.join("ballast");
    while std::fs::File::options()
        .create(true)
        .append(true)
        .open(&ballast)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]))
        .is_ok()
    {}
}

#[test]
fn stop_is_latched_on_a_full_disk_and_survives_a_kill() {
    let mut fleet = Fleet::linked(1);
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    let state = fleet.nodes[0].state_dir.clone();
    let names = ["identity.key", "fleet.json"];
    let copies = names.map(|name| std::fs::read(state.join(name)).expect("there"));
    let Some(_disk) = Tmpfs::mount(state.clone(), 256) else {
        return;
    };
    for (name, copy) in names.iter().zip(&copies) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(state.join(name), copy).expect("written");
        std::fs::set_permissions(state.join(name), PermissionsExt::from_mode(0o600)).expect("a mode");
    }
    fleet.nodes[0].start(&[]);
    fleet.station.wait_online(1);
    fill_disk(&state);
    let ran = fleet.station.run(&["stop"]).expect_status(0);
    assert_eq!(ran.line_of("n1")["value"]["latched"], true, "{ran:#?}");
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fill_disk(&state);
    fleet.nodes[0].start(&[]);
    fleet.station.wait_online(1);
    wait_until(TEST_TIMEOUT, "the station hears of the stop", || {
        fleet.station.node("n1")["stopped"]["latched"] == true
    });
    let ran = fleet.station.run(&["call", "n1", "slow", "tag=no"]);
    assert_eq!(ran.outcome_of("n1"), "refused");
    fleet.station.run(&["release", "all"]).expect_status(0);
    assert!(fleet.station.node("n1")["stopped"].is_null());
}
