//! Drones with equal names.

use serde_json::json;
use swarm_tests::process::Signal;

use super::harness::DroneHarness;

#[test]
fn drones_with_equal_address_or_id_stay_distinct() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    let first = show.join("clever-1", &[]);
    show.join("clever-2", &[]);
    show.station.wait_online(2);
    // A copied card: both drones are running.
    let server = format!("127.0.0.1:{}", show.port());
    let copy = show.start(&["--id", "clever-1", "--server", &server]);
    show.station.wait_online(3);
    show.station.wait_nodes("both are warned of", |nodes| {
        let twins = nodes.iter().filter(|node| node["node"] == "clever-1");
        twins
            .filter(|node| node["warnings"].to_string().contains("call themselves"))
            .count()
            == 2
    });
    let pinged = show.station.run(&["ping", "clever-1"]).expect_status(0).json();
    assert_eq!(pinged.len(), 2);
    assert_ne!(pinged[0]["id"], pinged[1]["id"]);
    // The first disappears for good, and is not listed any more; the copy keeps its name.
    let left = show.station.node("clever-2")["id"].clone();
    show.drones[first].signal(Signal::KILL);
    show.station
        .wait_nodes("the copy is alone, without a warning", |nodes| {
            let other = nodes.iter().find(|node| node["id"] != left);
            nodes.len() == 2
                && other.is_some_and(|node| node["state"] == "online" && node["warnings"] == json!([]))
        });
    let stopped = show.station.run(&["stop", "clever-1", "--timeout", "5s"]);
    assert_eq!(stopped.json().len(), 1, "{:?}", stopped.stdout);
    // The first returns with its old name.
    let copys = show.station.node("clever-1")["id"].clone();
    show.drones[copy].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    show.drones[copy].signal(Signal::USR2);
    show.station.wait_state("clever-1", "online");
    assert_eq!(
        (show.station.nodes().len(), &show.station.node("clever-1")["id"]),
        (2, &copys)
    );
    assert!(show.drones[copy].exit_status().is_none());
}

#[test]
fn new_drone_connection_replaces_a_dead_one() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    let frozen = show.join("clever-1", &["--frozen"]);
    let before = show.station.node("clever-1");
    let newer = show.join("clever-1", &[]);
    show.wait(newer, "a second question", |told| told["name"] == "clover_dir");
    let nodes = show.station.nodes();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    assert_eq!(nodes[0]["id"], before["id"]);
    assert_ne!(nodes[0]["address"], before["address"]);
    assert_eq!(show.run_for_value(&["ping", "clever-1"]), "pong");
    assert!(show.drones[frozen].exit_status().is_none());
}

#[test]
fn drone_named_like_a_node_is_reported_and_reachable() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    show.add_node();
    let server = format!("127.0.0.1:{}", show.port());
    let drone = show.start(&["--id", "n1", "--server", &server]);
    show.station.wait_online(2);
    show.station.wait_nodes("both are warned of", |nodes| {
        nodes.len() == 2
            && nodes
                .iter()
                .all(|node| node["warnings"].to_string().contains("tell them apart"))
    });
    // By id, too: only one of the two gets the command.
    for node in show.station.nodes() {
        let id = format!("id:{}", &node["id"].as_str().expect("an id")[..16]);
        let shown = show.station.run(&["nodes", &id]).expect_status(0).json();
        assert_eq!(shown.len(), 1);
        assert!(
            shown[0]["warnings"].to_string().contains("tell them apart"),
            "{shown:?}"
        );
    }
    // A name selects both, as among nodes, and the operator gets a warning.
    let called = show.station.run(&["ping", "n1"]).expect_status(0);
    assert_eq!(called.json().len(), 2);
    called.expect_stderr("both are meant");
    show.nodes[0].signal_and_wait(Signal::TERM);
    show.station.wait_nodes("the node is away", |nodes| {
        nodes.iter().filter(|node| node["state"] == "offline").count() == 1
    });
    let away = show
        .station
        .run(&["call", "n1", "led_test", "--timeout", "300ms"]);
    let states: Vec<&str> = away
        .stdout
        .iter()
        .filter(|line| line.contains("no-answer"))
        .map(String::as_str)
        .collect();
    assert_eq!((away.json().len(), states.len()), (2, 1), "{:?}", away.stdout);
    show.wait_action(drone, "led_test");
}

#[test]
fn drone_with_invalid_id_is_logged_by_assigned_name() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    let server = format!("127.0.0.1:{}", show.port());
    show.start(&["--id", "My Drone #1", "--server", &server]);
    show.station.wait_state("My-Drone--1", "online");
    let log = show.station.log().join("\n");
    assert!(log.contains("id=\"My Drone #1\" name=My-Drone--1"), "{log}");
}
