//! Discovery on real interfaces, by each method alone, while the network changes.
//!
//! Stations send pings and look for nodes by mDNS; nodes receive pings and look for stations.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use swarm_tests::lab::Lab;
use swarm_tests::process::{Process, Signal};

/// Enough on a busy machine. A unit test of the sender checks that a change causes a ping at once.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than an interval of pings or the first mDNS queries: an event that has not come by then will not come.
const QUIET: Duration = Duration::from_secs(5);

const STATION: usize = 0;
const NODE: usize = 1;

fn start(lab: &Lab, host: usize, name: &str, more: &[&str]) -> Process {
    let id = format!("{:016x}", 0xa0 + host);
    let args = [&["--name", name, "--id", &id][..], more].concat();
    let program = env!("CARGO_BIN_EXE_discover");
    let mut process = lab.spawn(host, name, program, &args);
    process.wait_json(TEST_TIMEOUT, "started", |line| line["event"] == "started");
    process
}

fn station(lab: &Lab, more: &[&str]) -> Process {
    start(lab, STATION, "station", &[&["--station"][..], more].concat())
}

fn node(lab: &Lab, more: &[&str]) -> Process {
    start(lab, NODE, "node", more)
}

fn found_at(line: &Value, name: &str, ip: Ipv4Addr) -> bool {
    let addr = format!("{ip}:7420");
    line["event"] == "found"
        && line["name"] == name
        && line["addrs"]
            .as_array()
            .is_some_and(|addrs| addrs.iter().any(|a| *a == addr))
}

/// Waits for a peer; drops all lines before it. For events in any order use [`wait_ping_and_found`].
fn wait_found(process: &mut Process, name: &str, ip: Ipv4Addr) {
    let what = format!("found {name} at {ip}");
    process.wait_json(TEST_TIMEOUT, &what, |line| found_at(line, name, ip));
}

fn is_ping(line: &Value, from: Ipv4Addr) -> bool {
    line["event"] == "ping" && line["text"] == "station" && line["from"] == from.to_string()
}

fn wait_ping(process: &mut Process, from: Ipv4Addr) {
    let what = format!("a ping from {from}");
    process.wait_json(TEST_TIMEOUT, &what, |line| is_ping(line, from));
}

/// Waits for both events, in either order.
fn wait_ping_and_found(process: &mut Process, station: Ipv4Addr) {
    let (mut pinged, mut found) = (false, false);
    process.wait_json(
        TEST_TIMEOUT,
        &format!("a ping from {station} and its record"),
        |line| {
            pinged |= is_ping(line, station);
            found |= found_at(line, "station", station);
            pinged && found
        },
    );
}

fn count_events(process: &Process, event: &str) -> usize {
    let lines = process.lines(swarm_tests::process::Stream::Out);
    let events = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|line| line["event"] == event).count()
}

#[test]
fn mdns_alone_finds_peers() {
    let Some(lab) = Lab::or_skip(2) else { return };
    lab.set_broadcast(false);
    let mut station = station(&lab, &[]);
    let mut node = node(&lab, &[]);
    wait_found(&mut station, "node", lab.ip(NODE));
    wait_found(&mut node, "station", lab.ip(STATION));
    std::thread::sleep(QUIET);
    assert_eq!(count_events(&node, "ping"), 0, "broadcast is filtered");

    node.signal(Signal::TERM);
    assert!(node.wait_exit(TEST_TIMEOUT).success());
    station.wait_json(TEST_TIMEOUT, "a goodbye", |line| {
        line["event"] == "lost" && line["id"] == "00000000000000a1"
    });
}

#[test]
fn pings_alone_reach_nodes() {
    let Some(lab) = Lab::or_skip(2) else { return };
    lab.set_multicast(false);
    let _station = station(&lab, &[]);
    let mut node = node(&lab, &[]);
    wait_ping(&mut node, lab.ip(STATION));
    std::thread::sleep(QUIET);
    assert_eq!(count_events(&node, "found"), 0, "multicast is filtered");
    wait_ping(&mut node, lab.ip(STATION));
}

#[test]
fn every_node_on_a_host_receives_each_ping() {
    let Some(lab) = Lab::or_skip(2) else { return };
    let _station = station(&lab, &["--no-mdns"]);
    let names = ["first", "second", "third"];
    let mut nodes = names.map(|name| start(&lab, NODE, name, &["--no-mdns"]));
    for _round in 0..2 {
        for node in &mut nodes {
            wait_ping(node, lab.ip(STATION));
        }
    }
    // Also on the station's own machine.
    let mut local = start(&lab, STATION, "local", &["--no-mdns"]);
    wait_ping(&mut local, Ipv4Addr::LOCALHOST);
}

#[test]
fn discovery_follows_interface_changes() {
    let Some(lab) = Lab::or_skip(2) else { return };
    // No cable is plugged in when the programs start.
    lab.set_carrier(STATION, false);
    lab.set_carrier(NODE, false);
    let mut station = station(&lab, &[]);
    let mut node = node(&lab, &[]);
    lab.set_carrier(NODE, true);
    lab.set_carrier(STATION, true);
    wait_ping_and_found(&mut node, lab.ip(STATION));
    wait_found(&mut station, "node", lab.ip(NODE));

    lab.link_down(STATION);
    std::thread::sleep(QUIET);
    node.skip_lines();
    lab.link_up(STATION);
    wait_ping(&mut node, lab.ip(STATION));

    lab.link_down(NODE);
    std::thread::sleep(QUIET);
    node.skip_lines();
    lab.link_up(NODE);
    // The node has forgotten the peers of the removed interface, and queries again.
    wait_ping_and_found(&mut node, lab.ip(STATION));
    for process in [&mut station, &mut node] {
        assert_eq!(process.exit_status(), None);
    }
}

#[test]
fn discovery_follows_address_changes() {
    let Some(mut lab) = Lab::or_skip(2) else { return };
    let mut station = station(&lab, &[]);
    let mut node = node(&lab, &[]);
    wait_found(&mut station, "node", lab.ip(NODE));
    wait_found(&mut node, "station", lab.ip(STATION));

    let new = Ipv4Addr::new(10, 77, 1, 1);
    lab.set_address(STATION, new);
    node.skip_lines();
    wait_ping_and_found(&mut node, new);
    let new = Ipv4Addr::new(10, 77, 1, 2);
    lab.set_address(NODE, new);
    wait_found(&mut station, "node", new);
}

#[test]
fn discovery_uses_every_interface() {
    let Some(mut lab) = Lab::or_skip(3) else { return };
    // The third host shares only the second network with the station; no host has a default route.
    let second = lab.add_network(&[STATION, 2]);
    let mut station = station(&lab, &[]);
    let mut near = node(&lab, &[]);
    lab.link_down(2);
    let mut far = start(&lab, 2, "far", &[]);
    wait_ping_and_found(&mut near, lab.ip(STATION));
    wait_ping_and_found(&mut far, second[0]);
    // In either order.
    let mut left = vec![("node", lab.ip(NODE)), ("far", second[1])];
    station.wait_json(TEST_TIMEOUT, "both nodes", |line| {
        left.retain(|(name, ip)| !found_at(line, name, *ip));
        left.is_empty()
    });
}

#[test]
fn equal_names_and_cloned_keys_stay_distinct() {
    let Some(lab) = Lab::or_skip(3) else { return };
    let mut station = station(&lab, &["--no-pings"]);
    let clone = ["--id", "00000000000000ff", "--name", "twin", "--no-pings"];
    let program = env!("CARGO_BIN_EXE_discover");
    let _twins = [1, 2].map(|host| lab.spawn(host, &format!("twin-{host}"), program, &clone));
    let mut left = vec![lab.ip(1), lab.ip(2)];
    let mut instances = Vec::new();
    station.wait_json(TEST_TIMEOUT, "both twins", |line| {
        left.retain(|ip| !found_at(line, "twin", *ip));
        instances.push(line["instance"].to_string());
        left.is_empty()
    });
    instances.sort();
    instances.dedup();
    assert_eq!(instances.len(), 2, "{instances:?}");
}
