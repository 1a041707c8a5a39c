//! The network and the processes change under a linked fleet, and the links return.

use std::net::Ipv4Addr;
use std::time::Duration;

use swarm_tests::fleet::{Invite, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, sleep_for, wait_until};

use crate::rig::Rig;

#[test]
fn links_return_after_restarts() {
    let Some(mut rig) = Rig::linked(3) else { return };
    for signal in [Signal::TERM, Signal::KILL] {
        rig.station.signal_and_wait(signal);
        rig.station.serve();
        rig.check_all_linked();
        rig.nodes[0].signal_and_wait(signal);
        rig.station.wait_state("n1", "offline");
        rig.nodes[0].start(&[]);
        rig.check_all_linked();
    }
    // All at once, as at a power failure.
    rig.station.signal_and_wait(Signal::KILL);
    for node in &mut rig.nodes {
        node.signal_and_wait(Signal::KILL);
    }
    for node in &mut rig.nodes {
        node.start(&[]);
    }
    rig.station.serve();
    rig.check_all_linked();
}

#[test]
fn links_return_after_address_changes() {
    let Some(mut rig) = Rig::linked(3) else { return };
    rig.lab.set_address(1, Ipv4Addr::new(10, 77, 3, 1));
    rig.wait_address("n1", "10.77.3.1:");
    rig.check_all_linked();
    rig.lab.set_address(0, Ipv4Addr::new(10, 77, 3, 100));
    for node in &rig.nodes {
        wait_until(TEST_TIMEOUT, "they see the station at its new address", || {
            str_field(&node.status()["links"][0], "addr").starts_with("10.77.3.100:")
        });
    }
    rig.check_all_linked();
    // Two nodes swap their addresses.
    let (second, third) = (rig.lab.ip(2), rig.lab.ip(3));
    rig.lab.link_down(2);
    rig.lab.link_down(3);
    rig.lab.set_address(2, Ipv4Addr::new(10, 77, 9, 9));
    rig.lab.set_address(3, second);
    rig.lab.set_address(2, third);
    rig.lab.link_up(2);
    rig.lab.link_up(3);
    rig.wait_address("n2", &format!("{third}:"));
    rig.wait_address("n3", &format!("{second}:"));
    rig.check_all_linked();
}

#[test]
fn partitioned_nodes_relink_after_healing() {
    let Some(rig) = Rig::linked(4) else { return };
    rig.lab.partition(&[3, 4]);
    rig.station.wait_state("n3", "offline");
    rig.station.wait_state("n4", "offline");
    let ran = rig.station.run(&["ping", "--timeout", "1s"]).expect_status(4);
    for (node, state) in [
        ("n1", "done"),
        ("n2", "done"),
        ("n3", "no-answer"),
        ("n4", "no-answer"),
    ] {
        assert_eq!(ran.outcome_of(node), state);
    }
    // A command that is issued meanwhile runs when they are back.
    let verb = rig
        .station
        .start(&["call", "all", "slow", "tag=parted", "--timeout", "30s"]);
    wait_until(TEST_TIMEOUT, "the near half has done it", || {
        rig.nodes[0].marks().len() == 2
    });
    rig.lab.heal();
    let ran = verb.finish(TEST_TIMEOUT).expect_status(0);
    assert_eq!(ran.json().len(), 4);
    rig.check_all_linked();
    for node in &rig.nodes {
        assert_eq!(node.marks(), ["begin parted", "end parted"]);
    }
}

#[test]
fn command_survives_interface_down_and_up() {
    let Some(rig) = Rig::linked(2) else { return };
    // While the action runs, and up again before the node counts as offline.
    let mut watch = rig.station.watch();
    watch.wait_json(TEST_TIMEOUT, "the second node", |line| line["node"] == "n2");
    let verb = rig
        .station
        .start(&["call", "all", "slow", "tag=brief", "time=2", "--timeout", "20s"]);
    wait_until(TEST_TIMEOUT, "it has begun", || rig.nodes[0].marks().len() == 1);
    rig.lab.link_down(1);
    wait_until(TEST_TIMEOUT, "the other has done it", || {
        rig.nodes[1].marks().len() == 2
    });
    rig.lab.link_up(1);
    verb.finish(TEST_TIMEOUT).expect_status(0);
    assert_eq!(rig.nodes[0].marks(), ["begin brief", "end brief"]);

    // Down before the command is sent, and for longer.
    rig.lab.link_down(1);
    rig.station.wait_state("n1", "offline");
    let verb = rig
        .station
        .start(&["call", "all", "slow", "tag=long", "--timeout", "25s"]);
    wait_until(TEST_TIMEOUT, "the other has done it", || {
        rig.nodes[1].marks().len() == 4
    });
    assert_eq!(rig.nodes[0].marks().len(), 2);
    rig.lab.link_up(1);
    verb.finish(TEST_TIMEOUT).expect_status(0);
    assert_eq!(rig.nodes[0].marks()[2..], ["begin long", "end long"]);

    // The station's own interface, while the actions run.
    let verb = rig
        .station
        .start(&["call", "all", "slow", "tag=own", "time=1", "--timeout", "25s"]);
    wait_until(TEST_TIMEOUT, "it has begun", || {
        rig.nodes.iter().all(|node| node.marks().len() == 5)
    });
    rig.lab.link_down(0);
    rig.station.wait_state("n1", "offline");
    rig.station.wait_state("n2", "offline");
    rig.lab.link_up(0);
    verb.finish(TEST_TIMEOUT).expect_status(0);
    rig.check_all_linked();
    for node in &rig.nodes {
        assert_eq!(node.marks()[4..], ["begin own", "end own"]);
    }
}

#[test]
fn transfer_survives_brief_link_loss() {
    let Some(rig) = Rig::linked(1) else { return };
    rig.lab.set_rate_limit(1, Some("40mbit"));
    let source = rig.test_dir.random_file("take", 6 * 1024 * 1024);
    let words = [
        "send",
        &source.display().to_string(),
        "n1:files/take",
        "--timeout",
        "10s",
    ];
    let verb = rig.station.start(&words);
    wait_until(TEST_TIMEOUT, "a part of the file", || {
        !rig.nodes[0].files().1.is_empty()
    });
    rig.lab.set_carrier(1, false);
    sleep_for(Duration::from_secs(1));
    assert!(rig.nodes[0].files().0.is_empty(), "it was not over before");
    rig.lab.set_carrier(1, true);
    verb.finish(TEST_TIMEOUT).expect_status(0);
    let there = std::fs::read(rig.nodes[0].files_root.join("take")).expect("there");
    assert!(there == std::fs::read(&source).expect("there"));
}

#[test]
fn station_finds_nodes_on_two_networks() {
    let Some(mut rig) = Rig::new(3) else { return };
    // The third node is on the second network only.
    let addresses = rig.lab.add_network(&[0, 3]);
    rig.lab.link_down(3);
    rig.start_and_join(&[]);
    rig.wait_address("n1", "10.77.0.2:");
    rig.wait_address("n3", &addresses[1].to_string());
    // By announcements on that network too, not only by stored addresses.
    rig.nodes[2].signal_and_wait(Signal::TERM);
    std::fs::remove_file(rig.nodes[2].state_dir.join("stations.json")).expect("there");
    rig.nodes[2].set_listen_addr("0.0.0.0:7500");
    rig.nodes[2].start(&[]);
    rig.wait_address("n3", &format!("{}:7500", addresses[1]));
    // A node on both networks keeps a link when one interface goes down.
    rig.lab.link_up(3);
    rig.check_all_linked();
}

#[test]
fn programs_start_without_network_and_link_later() {
    let Some(mut rig) = Rig::new(2) else { return };
    for host in 0..=2 {
        rig.lab.link_down(host);
    }
    rig.station.serve();
    // The code cannot hold an address, because there is none.
    let code = rig.station.invite(&Invite::nodes(2));
    for node in &mut rig.nodes {
        node.start(&["--join", &code]);
    }
    rig.lab.link_up(1);
    rig.lab.link_up(0);
    rig.lab.link_up(2);
    rig.check_all_linked();
    // The same for programs that are members already.
    rig.station.signal_and_wait(Signal::TERM);
    for node in &mut rig.nodes {
        node.signal_and_wait(Signal::TERM);
    }
    for host in 0..=2 {
        rig.lab.link_down(host);
    }
    for node in &mut rig.nodes {
        node.start(&[]);
    }
    rig.station.serve();
    for host in [2, 0, 1] {
        rig.lab.link_up(host);
    }
    rig.check_all_linked();
}
