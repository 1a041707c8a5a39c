//! Each method of discovery, alone.

use std::time::Duration;

use swarm_tests::fleet::{Host, Invite, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::lab::Lab;
use swarm_tests::process::{Signal, sleep_for, wait_until};

use crate::rig::Rig;

const STATION: &str = "10.77.0.1:7421";

/// Nodes join; then all stored addresses are deleted, and they link by the remaining method.
fn check_nodes_link(station_flags: &[&str], node_flags: &[&str]) {
    let Some(mut rig) = Rig::new(3) else { return };
    rig.start_and_join(&["--no-pings", "--no-mdns"]);
    rig.station.signal_and_wait(Signal::TERM);
    rig.station.serve_flags = station_flags.iter().map(|flag| (*flag).to_owned()).collect();
    for (number, node) in rig.nodes.iter_mut().enumerate() {
        node.signal_and_wait(Signal::TERM);
        std::fs::remove_file(node.state_dir.join("stations.json")).expect("there");
        // The station has stored the old port, on which nothing listens any more.
        node.set_listen_addr(&format!("0.0.0.0:{}", 7500 + number));
        node.start(node_flags);
    }
    rig.station.serve();
    rig.check_all_linked();
    // Also nodes that start after the station.
    for node in &mut rig.nodes {
        node.signal_and_wait(Signal::KILL);
        std::fs::remove_file(node.state_dir.join("stations.json")).expect("there");
        node.set_listen_addr(&node.listen_addr().replace(":75", ":76"));
    }
    rig.station.wait_nodes("no node is listed", |nodes| {
        nodes.iter().all(|node| node["state"] == "offline")
    });
    for node in &mut rig.nodes {
        node.start(node_flags);
    }
    rig.check_all_linked();
}

#[test]
fn nodes_link_by_mdns_alone() {
    check_nodes_link(&["--no-pings"], &["--no-pings"]);
}

#[test]
fn nodes_link_by_pings_alone() {
    check_nodes_link(&["--no-mdns"], &["--no-mdns"]);
}

#[test]
fn nodes_link_by_configured_address_alone() {
    let none = ["--no-pings", "--no-mdns"];
    check_nodes_link(&none, &[&none[..], &["--station", STATION]].concat());
}

#[test]
fn station_dials_its_configured_nodes() {
    let Some(mut rig) = Rig::new(2) else { return };
    let none = ["--no-pings", "--no-mdns"];
    rig.station.serve_flags = none.map(str::to_owned).to_vec();
    rig.start_and_join(&none);
    rig.station.signal_and_wait(Signal::TERM);
    let mut addrs = Vec::new();
    for (number, node) in rig.nodes.iter_mut().enumerate() {
        node.signal_and_wait(Signal::TERM);
        std::fs::remove_file(node.state_dir.join("stations.json")).expect("there");
        node.set_listen_addr(&format!("0.0.0.0:{}", 7500 + number));
        node.start(&none);
        addrs.push(format!("{}:{}", rig.lab.ip(number + 1), 7500 + number));
    }
    rig.station.append_config(&format!("nodes = {addrs:?}"));
    rig.station.serve();
    rig.check_all_linked();
}

#[test]
fn node_without_address_is_adopted_by_discovery() {
    let Some(lab) = Lab::or_skip(2) else { return };
    let field = TestDir::new();
    let mut station = field.station("st", Host::in_lab(&lab, 0));
    station.serve();
    let mut node = field.node("n1", Host::in_lab(&lab, 1));
    node.keys = "adoptable = true".to_owned();
    node.start(&[]);
    wait_until(TEST_TIMEOUT, "it waits", || {
        !station
            .run(&["fleet", "pending"])
            .expect_status(0)
            .json()
            .is_empty()
    });
    station.run(&["fleet", "accept", "n1"]).expect_status(0);
    station.wait_online(1);
    station.run(&["ping"]).expect_status(0);
}

#[test]
fn node_links_with_both_stations_of_its_fleet() {
    let Some(lab) = Lab::or_skip(4) else { return };
    let field = TestDir::new();
    let mut first = field.station("first", Host::in_lab(&lab, 0));
    let mut second = field.station("second", Host::in_lab(&lab, 1));
    first.serve();
    let code = first.invite(&Invite::station("operator"));
    second.run(&["fleet", "join", &code]).expect_status(0);
    second.serve();
    let code = first.invite(&Invite::nodes(2));
    let nodes = [2, 3].map(|host| {
        let mut node = field.node(&format!("n{host}"), Host::in_lab(&lab, host));
        node.start(&["--join", &code]);
        node
    });
    for station in [&first, &second] {
        station.wait_online(2);
        assert_eq!(station.run(&["ping"]).expect_status(0).json().len(), 2);
    }
    for node in &nodes {
        let status = node.status();
        let links = status["links"].as_array().expect("a list");
        let mut names: Vec<&str> = links.iter().map(|link| str_field(link, "name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["first", "second"]);
    }
}

#[test]
fn fleets_on_one_lan_stay_separate() {
    let Some(lab) = Lab::or_skip(4) else { return };
    let field = TestDir::new();
    let mut stations = [0, 1].map(|host| {
        let mut station = field.station(&format!("st{host}"), Host::in_lab(&lab, host));
        station.serve();
        station
    });
    let mut nodes = [2, 3].map(|host| {
        let code = stations[host - 2].invite(&Invite::nodes(1));
        // Equal names: only the key matters.
        let dir = format!("n{host}");
        let mut node = field.node(&dir, Host::in_lab(&lab, host));
        node.start(&["--name", "drone", "--join", &code]);
        node
    });
    for station in &stations {
        station.wait_online(1);
    }
    // All programs start again, so that each announces itself to all; several rounds of pings pass.
    for station in &mut stations {
        station.signal_and_wait(Signal::TERM);
    }
    for node in &mut nodes {
        node.signal_and_wait(Signal::TERM);
        node.start(&["--name", "drone"]);
    }
    for station in &mut stations {
        station.serve();
    }
    for station in &stations {
        station.wait_online(1);
    }
    sleep_for(Duration::from_secs(8));
    for (station, node) in stations.iter().zip(&nodes) {
        station.wait_online(1);
        let line = station.run(&["ping"]).expect_status(0).line_of("drone");
        assert_eq!(str_field(&line, "id"), str_field(&node.status(), "id"));
        let logs = [station.log(), node.log()].concat();
        let bad: Vec<&String> = logs
            .iter()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(
            station
                .run(&["fleet", "pending"])
                .expect_status(0)
                .json()
                .is_empty()
        );
    }
}
