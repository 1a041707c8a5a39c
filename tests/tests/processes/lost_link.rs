//! The command of a lost link on real nodes.

use std::time::Duration;

use super::stop::landings;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, sleep_for, wait_until};

#[test]
fn real_node_runs_lost_link_command_once_per_loss() {
    let mut fleet = Fleet::linked_with(1, |node| {
        let file = node.state_dir.join("landed").display().to_string();
        node.tables =
            format!("[lost_link]\nafter = \"2s\"\ncommand = [\"/bin/sh\", \"-c\", \"echo held >>{file}\"]\n");
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(landings(&fleet.nodes[0]), 0, "a quiet link is not a lost one");
    for loss in 1..=2 {
        fleet.station.process().signal(Signal::STOP);
        wait_until(TEST_TIMEOUT, "its command runs", || {
            landings(&fleet.nodes[0]) == loss
        });
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(landings(&fleet.nodes[0]), loss, "it runs once");
        fleet.station.process().signal(Signal::CONT);
        fleet.station.wait_online(1);
        wait_until(TEST_TIMEOUT, "a station is heard again", || {
            let status = fleet.nodes[0].status();
            status["lost_link"]
                .as_str()
                .is_some_and(|text| text.contains("heard again"))
        });
        fleet.station.wait_nodes("`nodes` shows the loss", |nodes| {
            nodes[0]["warnings"]
                .to_string()
                .contains(&format!("for the {loss}. time"))
        });
    }
}

#[test]
fn dead_man_survives_a_restart_but_not_a_reboot() {
    let mut fleet = Fleet::linked_with(1, |node| {
        let file = node.state_dir.join("landed").display().to_string();
        node.tables = format!(
            "[lost_link]\nafter = \"1500ms\"\ncommand = [\"/bin/sh\", \"-c\", \"echo held >>{file}\"]\n"
        );
    });
    let state = fleet.nodes[0].state_dir.join("lost-link.json");
    wait_until(TEST_TIMEOUT, "its state is stored", || state.exists());
    for loss in 1..=2 {
        // Both are killed while linked, and only the node returns.
        fleet.nodes[0].signal_and_wait(Signal::KILL);
        fleet.station.signal_and_wait(Signal::KILL);
        fleet.nodes[0].start(&[]);
        wait_until(TEST_TIMEOUT, "its command runs", || {
            landings(&fleet.nodes[0]) == loss
        });
        wait_until(TEST_TIMEOUT, "the loss is stored", || {
            std::fs::read_to_string(&state).is_ok_and(|text| text.contains("over"))
        });
        fleet.nodes[0].signal_and_wait(Signal::KILL);
        fleet.nodes[0].start(&[]);
        sleep_for(Duration::from_secs(3));
        assert_eq!(landings(&fleet.nodes[0]), loss, "once for each loss");
        let shown = fleet.nodes[0].status();
        assert!(
            str_field(&shown, "lost_link").contains("before this start"),
            "{shown}"
        );
        fleet.station.serve();
        fleet.station.wait_online(1);
        wait_until(TEST_TIMEOUT, "a station is heard again", || {
            std::fs::read_to_string(&state).is_ok_and(|text| text.contains("linked"))
        });
    }
    // As after a reboot: the stored state is of another boot.
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    fleet.station.signal_and_wait(Signal::KILL);
    let stored = std::fs::read_to_string(&state).expect("written");
    let boot = swarm_shared::net::boot::id();
    let other: String = boot.chars().rev().collect();
    assert!(stored.contains(&boot), "{stored}");
    std::fs::write(&state, stored.replace(&boot, &other)).expect("written");
    fleet.nodes[0].start(&[]);
    sleep_for(Duration::from_secs(4));
    assert_eq!(
        landings(&fleet.nodes[0]),
        2,
        "after a reboot the drone may be packed away"
    );
}
