//! The emergency stop without links, and the lost-link command.

use std::time::Duration;

use swarm_tests::fleet::{Node, TEST_TIMEOUT, str_field};
use swarm_tests::lab::Lab;
use swarm_tests::process::{Signal, sleep_for, wait_until};

use crate::rig::Rig;

/// Drops or passes the TCP packets of a host; datagrams always pass.
fn set_tcp(lab: &Lab, host: usize, passes: bool) {
    let verb = if passes { "del" } else { "add" };
    let done = lab.run(
        host,
        "ip",
        &["rule", verb, "pref", "10", "ipproto", "tcp", "blackhole"],
    );
    assert!(done.status.success(), "{done:?}");
}

fn is_stopped(node: &Node) -> bool {
    node.status()["stopped"].is_string()
}

fn has_links(node: &Node) -> bool {
    node.status()["links"]
        .as_array()
        .is_some_and(|links| !links.is_empty())
}

fn wait_unlinked(rig: &Rig, node: usize) {
    rig.station.wait_state(&rig.nodes[node].name, "offline");
    wait_until(TEST_TIMEOUT, "it has no link", || !has_links(&rig.nodes[node]));
}

#[test]
fn unlinked_node_stops_by_datagram() {
    let Some(mut rig) = Rig::linked(1) else { return };
    set_tcp(&rig.lab, 1, false);
    wait_unlinked(&rig, 0);
    let stop = rig.station.start(&["stop"]);
    wait_until(TEST_TIMEOUT, "it stops", || is_stopped(&rig.nodes[0]));
    assert!(!has_links(&rig.nodes[0]));
    // It can report the stop only over a link.
    set_tcp(&rig.lab, 1, true);
    let ran = stop.finish(TEST_TIMEOUT).expect_status(0);
    assert_eq!(ran.outcome_of("n1"), "done");
    rig.station.run(&["release", "n1"]).expect_status(0);
    assert!(!is_stopped(&rig.nodes[0]));

    // Also by a station that has just started and has no link yet.
    set_tcp(&rig.lab, 1, false);
    wait_unlinked(&rig, 0);
    rig.station.signal_and_wait(Signal::TERM);
    let ran = rig.station.run(&["stop", "--timeout", "1s"]).expect_status(4);
    assert!(
        str_field(&ran.line_of("n1"), "error").contains("NO ANSWER"),
        "{ran:#?}"
    );
    wait_until(TEST_TIMEOUT, "it stops", || is_stopped(&rig.nodes[0]));
}

#[test]
fn stop_is_relayed_by_another_node() {
    let Some(mut rig) = Rig::new(2) else { return };
    // n1 is on both networks, n2 soon on the second only.
    rig.lab.add_network(&[1, 2]);
    rig.start_and_join(&[]);
    rig.lab.link_down(2);
    wait_unlinked(&rig, 1);
    // While n1 is frozen, no node relays.
    rig.nodes[0].process().signal(Signal::STOP);
    rig.station.wait_state("n1", "offline");
    rig.station.run(&["stop", "--timeout", "1s"]).expect_status(4);
    assert!(!is_stopped(&rig.nodes[1]));
    rig.nodes[0].process().signal(Signal::CONT);
    wait_until(TEST_TIMEOUT, "n2 hears it from n1", || is_stopped(&rig.nodes[1]));
    assert!(is_stopped(&rig.nodes[0]) && !has_links(&rig.nodes[1]));
    // Back on the first network, it is still stopped.
    rig.lab.link_up(2);
    rig.station.wait_online(2);
    let ran = rig
        .station
        .run(&["call", "all", "slow", "tag=no"])
        .expect_status(1);
    for node in ["n1", "n2"] {
        assert_eq!(ran.outcome_of(node), "refused");
    }
    rig.station.run(&["release", "all"]).expect_status(0);
    rig.station
        .run(&["call", "all", "slow", "tag=yes"])
        .expect_status(0);
}

#[test]
fn lost_link_command_runs_once_per_interface_loss() {
    let Some(mut rig) = Rig::new(2) else { return };
    let held = rig.nodes[0].state_dir.join("held");
    rig.nodes[0].tables = format!(
        "[lost_link]\nafter = \"2s\"\ncommand = [\"/bin/sh\", \"-c\", \"echo x >>{}\"]\n",
        held.display()
    );
    rig.start_and_join(&[]);
    let runs = || std::fs::read_to_string(&held).unwrap_or_default().lines().count();
    for loss in 1..=2 {
        rig.lab.link_down(1);
        wait_until(TEST_TIMEOUT, "its command runs", || runs() == loss);
        sleep_for(Duration::from_secs(5));
        rig.lab.link_up(1);
        rig.check_all_linked();
        sleep_for(Duration::from_secs(3));
        assert_eq!(runs(), loss, "once for each loss");
    }
    // By the carrier, which leaves the interface up.
    rig.lab.set_carrier(1, false);
    wait_until(TEST_TIMEOUT, "its command runs", || runs() == 3);
    rig.lab.set_carrier(1, true);
    rig.check_all_linked();
    assert_eq!(runs(), 3);
}
