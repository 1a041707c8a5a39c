//! Each means of finding one another, alone.

use std::time::Duration;

use swarm_tests::fleet::{Field, Invite, PATIENCE, Place, text};
use swarm_tests::lab::Lab;
use swarm_tests::process::{Signal, let_pass, wait_until};

use crate::rig::Rig;

const STATION: &str = "10.77.0.1:7421";

/// Nodes join; then everything that anybody remembers of addresses is gone, and they find one another by what is left.
fn by(station_flags: &[&str], node_flags: &[&str]) {
    let Some(mut rig) = Rig::new(3) else { return };
    rig.join(&["--no-pings", "--no-mdns"]);
    rig.station.end(Signal::TERM);
    rig.station.flags = station_flags.iter().map(|flag| (*flag).to_owned()).collect();
    for (number, node) in rig.nodes.iter_mut().enumerate() {
        node.end(Signal::TERM);
        std::fs::remove_file(node.dir.join("stations.json")).expect("there");
        // The station remembers the old port, where nobody is any more.
        node.listen_at(&format!("0.0.0.0:{}", 7500 + number));
        node.start(node_flags);
    }
    rig.station.serve();
    rig.all_linked();
    // And nodes that start after the station.
    for node in &mut rig.nodes {
        node.end(Signal::KILL);
        std::fs::remove_file(node.dir.join("stations.json")).expect("there");
        node.listen_at(&node.listen().replace(":75", ":76"));
    }
    rig.station.wait_nodes("nobody is there", |nodes| {
        nodes.iter().all(|node| node["state"] == "offline")
    });
    for node in &mut rig.nodes {
        node.start(node_flags);
    }
    rig.all_linked();
}

#[test]
fn by_mdns_alone() {
    by(&["--no-pings"], &["--no-pings"]);
}

#[test]
fn by_pings_alone() {
    by(&["--no-mdns"], &["--no-mdns"]);
}

#[test]
fn by_an_address_alone() {
    let none = ["--no-pings", "--no-mdns"];
    by(&none, &[&none[..], &["--station", STATION]].concat());
}

#[test]
fn by_the_stations_own_list_alone() {
    let Some(mut rig) = Rig::new(2) else { return };
    let none = ["--no-pings", "--no-mdns"];
    rig.station.flags = none.map(str::to_owned).to_vec();
    rig.join(&none);
    rig.station.end(Signal::TERM);
    let mut addrs = Vec::new();
    for (number, node) in rig.nodes.iter_mut().enumerate() {
        node.end(Signal::TERM);
        std::fs::remove_file(node.dir.join("stations.json")).expect("there");
        node.listen_at(&format!("0.0.0.0:{}", 7500 + number));
        node.start(&none);
        addrs.push(format!("{}:{}", rig.lab.ip(number + 1), 7500 + number));
    }
    rig.station.configure(&format!("nodes = {addrs:?}"));
    rig.station.serve();
    rig.all_linked();
}

#[test]
fn a_node_without_any_address_is_adopted_by_what_it_hears() {
    let Some(lab) = Lab::or_skip(2) else { return };
    let field = Field::new();
    let mut station = field.station("st", Place::host(&lab, 0));
    station.serve();
    let mut node = field.node("n1", Place::host(&lab, 1));
    node.keys = "adoptable = true".to_owned();
    node.start(&[]);
    wait_until(PATIENCE, "it waits", || {
        !station.run(&["fleet", "pending"]).expect(0).json().is_empty()
    });
    station.run(&["fleet", "accept", "n1"]).expect(0);
    station.wait_online(1);
    station.run(&["ping"]).expect(0);
}

#[test]
fn two_stations_of_one_fleet_are_both_linked() {
    let Some(lab) = Lab::or_skip(4) else { return };
    let field = Field::new();
    let mut first = field.station("first", Place::host(&lab, 0));
    let mut second = field.station("second", Place::host(&lab, 1));
    first.serve();
    let code = first.invite(&Invite::station("operator"));
    second.run(&["fleet", "join", &code]).expect(0);
    second.serve();
    let code = first.invite(&Invite::nodes(2));
    let nodes = [2, 3].map(|host| {
        let mut node = field.node(&format!("n{host}"), Place::host(&lab, host));
        node.start(&["--join", &code]);
        node
    });
    for station in [&first, &second] {
        station.wait_online(2);
        assert_eq!(station.run(&["ping"]).expect(0).json().len(), 2);
    }
    for node in &nodes {
        let status = node.status();
        let links = status["links"].as_array().expect("a list");
        let mut names: Vec<&str> = links.iter().map(|link| text(link, "name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["first", "second"]);
    }
}

#[test]
fn two_fleets_on_one_lan_do_not_hear_of_one_another() {
    let Some(lab) = Lab::or_skip(4) else { return };
    let field = Field::new();
    let mut stations = [0, 1].map(|host| {
        let mut station = field.station(&format!("st{host}"), Place::host(&lab, host));
        station.serve();
        station
    });
    let mut nodes = [2, 3].map(|host| {
        let code = stations[host - 2].invite(&Invite::nodes(1));
        // The same name: it is the key that counts.
        let dir = format!("n{host}");
        let mut node = field.node(&dir, Place::host(&lab, host));
        node.start(&["--name", "drone", "--join", &code]);
        node
    });
    for station in &stations {
        station.wait_online(1);
    }
    // Everybody starts again, so that all announce themselves to all; several rounds of pings pass.
    for station in &mut stations {
        station.end(Signal::TERM);
    }
    for node in &mut nodes {
        node.end(Signal::TERM);
        node.start(&["--name", "drone"]);
    }
    for station in &mut stations {
        station.serve();
    }
    for station in &stations {
        station.wait_online(1);
    }
    let_pass(Duration::from_secs(8));
    for (station, node) in stations.iter().zip(&nodes) {
        station.wait_online(1);
        let line = station.run(&["ping"]).expect(0).of("drone");
        assert_eq!(text(&line, "id"), text(&node.status(), "id"));
        let logs = [station.log(), node.log()].concat();
        let bad: Vec<&String> = logs
            .iter()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(station.run(&["fleet", "pending"]).expect(0).json().is_empty());
    }
}
