//! The emergency stop where links fail, and what a node does when its link is lost.

use std::time::Duration;

use swarm_tests::fleet::{Node, PATIENCE, text};
use swarm_tests::lab::Lab;
use swarm_tests::process::{Signal, let_pass, wait_until};

use crate::rig::Rig;

/// What a host says by TCP goes nowhere; datagrams pass.
fn tcp(lab: &Lab, host: usize, passes: bool) {
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
    wait_until(PATIENCE, "it has no link", || !has_links(&rig.nodes[node]));
}

#[test]
fn a_node_that_no_link_reaches_stops_by_datagram() {
    let Some(mut rig) = Rig::linked(1) else { return };
    tcp(&rig.lab, 1, false);
    wait_unlinked(&rig, 0);
    let stop = rig.station.start(&["stop"]);
    wait_until(PATIENCE, "it stops", || is_stopped(&rig.nodes[0]));
    assert!(!has_links(&rig.nodes[0]));
    // It can say so only over a link.
    tcp(&rig.lab, 1, true);
    let ran = stop.finish(PATIENCE).expect(0);
    assert_eq!(ran.state("n1"), "done");
    rig.station.run(&["release", "n1"]).expect(0);
    assert!(!is_stopped(&rig.nodes[0]));

    // And by a station that has only just started, and has no link yet.
    tcp(&rig.lab, 1, false);
    wait_unlinked(&rig, 0);
    rig.station.end(Signal::TERM);
    let ran = rig.station.run(&["stop", "--timeout", "1s"]).expect(4);
    assert!(text(&ran.of("n1"), "error").contains("NO ANSWER"), "{ran:#?}");
    wait_until(PATIENCE, "it stops", || is_stopped(&rig.nodes[0]));
}

#[test]
fn a_node_that_hears_only_another_node_stops() {
    let Some(mut rig) = Rig::new(2) else { return };
    // n1 is on both networks, n2 soon on the second only.
    rig.lab.add_network(&[1, 2]);
    rig.join(&[]);
    rig.lab.link_down(2);
    wait_unlinked(&rig, 1);
    // While n1 is frozen nobody passes anything on.
    rig.nodes[0].process().signal(Signal::STOP);
    rig.station.wait_state("n1", "offline");
    rig.station.run(&["stop", "--timeout", "1s"]).expect(4);
    assert!(!is_stopped(&rig.nodes[1]));
    rig.nodes[0].process().signal(Signal::CONT);
    wait_until(PATIENCE, "n2 hears it from n1", || is_stopped(&rig.nodes[1]));
    assert!(is_stopped(&rig.nodes[0]) && !has_links(&rig.nodes[1]));
    // Home again, it is what it was told to be.
    rig.lab.link_up(2);
    rig.station.wait_online(2);
    let ran = rig.station.run(&["call", "all", "slow", "tag=no"]).expect(1);
    for node in ["n1", "n2"] {
        assert_eq!(ran.state(node), "refused");
    }
    rig.station.run(&["release", "all"]).expect(0);
    rig.station.run(&["call", "all", "slow", "tag=yes"]).expect(0);
}

#[test]
fn a_pulled_interface_runs_the_lost_link_command_once_for_each_loss() {
    let Some(mut rig) = Rig::new(2) else { return };
    let held = rig.nodes[0].dir.join("held");
    rig.nodes[0].tables = format!(
        "[lost_link]\nafter = \"2s\"\ncommand = [\"/bin/sh\", \"-c\", \"echo x >>{}\"]\n",
        held.display()
    );
    rig.join(&[]);
    let runs = || std::fs::read_to_string(&held).unwrap_or_default().lines().count();
    for loss in 1..=2 {
        rig.lab.link_down(1);
        wait_until(PATIENCE, "its command runs", || runs() == loss);
        let_pass(Duration::from_secs(5));
        rig.lab.link_up(1);
        rig.all_linked();
        let_pass(Duration::from_secs(3));
        assert_eq!(runs(), loss, "once for each loss");
    }
    // By the cable, whose carrier the interface outlives.
    rig.lab.plug(1, false);
    wait_until(PATIENCE, "its command runs", || runs() == 3);
    rig.lab.plug(1, true);
    rig.all_linked();
    assert_eq!(runs(), 3);
}
