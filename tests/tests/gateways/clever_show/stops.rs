//! Emergency stops of clever-show's drones.

use serde_json::json;
use swarm_tests::fleet::{TEST_TIMEOUT, str_field};
use swarm_tests::process::{Signal, wait_until};

use super::SENT_UNCONFIRMED;
use super::harness::{DroneHarness, by_name};

#[test]
fn drone_stop_overtakes_queue_and_latches_until_release() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\nresume_queue = true\n");
    show.add_node();
    let here = show.join("clever-1", &[]);
    let away = show.join("clever-2", &[]);
    show.drones[away].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    show.run_one(&["call", "clever-2", "led_test", "--timeout", "200ms"], 4);

    let mut verb = show.station.start(&["stop", "all", "--timeout", "20s"]);
    show.wait_action(here, "emergency_land");
    let end = verb
        .process()
        .wait_json(TEST_TIMEOUT, "its end", |end| end["node"] == "clever-1");
    assert_eq!(
        (&end["state"], str_field(&end, "error")),
        (&json!("unknown"), "sent; this drone cannot confirm a stop")
    );
    // The stop is repeated while the verb waits for the other drone.
    show.wait_action(here, "emergency_land");
    show.drones[away].signal(Signal::USR2);
    show.wait_action(away, "emergency_land");
    let ran = verb.finish(TEST_TIMEOUT).json();
    assert_eq!(by_name(&ran, "n1")["state"], "done", "{ran:?}");
    assert_eq!(by_name(&ran, "clever-2")["state"], "unknown", "{ran:?}");
    for name in ["clever-1", "clever-2"] {
        let view = show.station.node(name);
        assert!(
            view["stop_unconfirmed"].is_u64() && view["stopped"].is_null(),
            "{view}"
        );
        let warned = view["warnings"].to_string();
        assert_eq!(warned.matches("STOP NOT CONFIRMED").count(), 1, "{warned}");
    }
    let table = show
        .station
        .run_plain(&["nodes"])
        .expect_status(0)
        .stdout
        .join("\n");
    assert!(
        table.contains("online, STOP?") && table.contains("1 stopped, 2 NOT KNOWN TO BE STOPPED"),
        "{table}"
    );

    let refused = show.run_one(&["call", "clever-1", "led_test"], 1);
    assert!(
        str_field(&refused, "error").contains("emergency stop"),
        "{refused}"
    );
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "batt_voltage"]),
        json!(12.1),
        "what reads goes on"
    );
    // The drone reconnects while it is stopped: the stop is sent again.
    show.drones[here].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    let before = show.action_count(here, "emergency_land");
    show.drones[here].signal(Signal::USR2);
    wait_until(TEST_TIMEOUT, "it is told again", || {
        show.action_count(here, "emergency_land") > before
    });

    show.station.run(&["release", "all"]).expect_status(0);
    let view = show.station.node("clever-1");
    assert!(
        view["stop_unconfirmed"].is_null() && view["warnings"] == json!([]),
        "{view}"
    );
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_after"]),
        SENT_UNCONFIRMED
    );
    assert_eq!(
        show.run_for_value(&["call", "clever-2", "led_after"]),
        SENT_UNCONFIRMED
    );
    show.wait_action(away, "led_after");
    assert_eq!(
        show.action_count(away, "led_test"),
        0,
        "what was queued is dropped"
    );
}

#[test]
fn drone_stop_covers_new_drones_and_survives_restart() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    // No drone is connected yet, and there is no node.
    let stopped = show.station.run(&["stop", "all", "--timeout", "300ms"]);
    stopped
        .expect_status(1)
        .expect_stderr("a drone that comes and is meant is stopped");
    let first = show.join("clever-1", &[]);
    show.wait_action(first, "emergency_land");
    let refused = show.run_one(&["call", "clever-1", "led_test"], 1);
    assert!(
        str_field(&refused, "error").contains("emergency stop"),
        "{refused}"
    );
    show.station
        .run(&["nodes"])
        .expect_status(0)
        .expect_stderr("a stop of \"all\" is in force");

    show.station.signal_and_wait(Signal::TERM);
    show.wait(first, "its connection ends", |told| told["event"] == "lost");
    let before = show.action_count(first, "emergency_land");
    show.station.serve();
    show.station.wait_state("clever-1", "online");
    wait_until(TEST_TIMEOUT, "it receives the stop again", || {
        show.action_count(first, "emergency_land") > before
    });
    let refused = show.run_one(&["call", "clever-1", "led_test"], 1);
    assert!(
        str_field(&refused, "error").contains("emergency stop"),
        "{refused}"
    );

    // One drone is released, all others are not.
    let released = show.run_one(&["release", "clever-1"], 0);
    assert!(str_field(&released, "value").contains("released"), "{released}");
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_test"]),
        SENT_UNCONFIRMED
    );
    let second = show.join("clever-2", &[]);
    show.wait_action(second, "emergency_land");

    // A release survives a restart.
    show.station.signal_and_wait(Signal::TERM);
    for drone in [first, second] {
        show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    }
    let told = [first, second].map(|drone| show.action_count(drone, "emergency_land"));
    show.station.serve();
    show.station.wait_state("clever-1", "online");
    show.station.wait_state("clever-2", "online");
    wait_until(TEST_TIMEOUT, "it is told again", || {
        show.action_count(second, "emergency_land") > told[1]
    });
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_test"]),
        SENT_UNCONFIRMED
    );
    show.wait_action(first, "led_test");
    assert_eq!(show.action_count(first, "emergency_land"), told[0]);
    show.station.run(&["release", "all"]).expect_status(0);
    assert_eq!(
        show.run_for_value(&["call", "clever-2", "led_test"]),
        SENT_UNCONFIRMED
    );
    let nodes = show.station.run(&["nodes"]).expect_status(0);
    assert!(!nodes.stderr.contains("is in force"), "{}", nodes.stderr);
}

#[test]
fn stop_and_release_without_serve_apply_to_drones() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    let drone = show.join("clever-1", &[]);
    show.station.signal_and_wait(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    show.station.run(&["stop", "clever-1", "--timeout", "300ms"]);
    show.station.serve();
    show.wait_action(drone, "emergency_land");
    show.station.signal_and_wait(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    show.station.run(&["release", "clever-1", "--timeout", "300ms"]);
    show.station.serve();
    show.station.wait_state("clever-1", "online");
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_test"]),
        SENT_UNCONFIRMED
    );
    show.wait_action(drone, "led_test");
    assert_eq!(show.action_count(drone, "emergency_land"), 1);
}

#[test]
fn drone_stop_without_serve_ignores_unreadable_config() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    let drone = show.join("clever-1", &[]);
    show.station.signal_and_wait(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    let file = show.station.state_file("config.toml");
    let sound = std::fs::read_to_string(&file).expect("configured");
    std::fs::write(&file, format!("nonsense = 1\n{sound}")).expect("written");
    show.station.run(&["stop", "all", "--timeout", "300ms"]);
    std::fs::write(&file, sound).expect("written");
    show.station.serve();
    show.wait_action(drone, "emergency_land");
    let refused = show.run_one(&["call", "clever-1", "led_test"], 1);
    assert!(
        str_field(&refused, "error").contains("emergency stop"),
        "{refused}"
    );
}

#[test]
fn release_ends_a_drone_stop_in_progress() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    let here = show.join("clever-1", &[]);
    let away = show.join("clever-2", &[]);
    show.drones[away].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    let verb = show.station.start(&["stop", "all", "--timeout", "20s"]);
    show.wait_action(here, "emergency_land");
    show.wait_action(here, "emergency_land");
    show.station.run(&["release", "all"]).expect_status(0);
    // The other verb ends too, and names the drones that are not stopped any more.
    let ended = verb.finish(TEST_TIMEOUT).json();
    assert_eq!(by_name(&ended, "clever-2")["state"], "refused", "{ended:?}");
    let told = show.action_count(here, "emergency_land");
    show.drones[away].signal(Signal::USR2);
    show.station.wait_state("clever-2", "online");
    for (name, drone) in [("clever-1", here), ("clever-2", away)] {
        assert_eq!(show.run_for_value(&["call", name, "led_test"]), SENT_UNCONFIRMED);
        show.wait_action(drone, "led_test");
    }
    assert_eq!(show.action_count(away, "emergency_land"), 0);
    assert_eq!(show.action_count(here, "emergency_land"), told);
}

#[test]
fn drone_stop_is_recorded_once_in_audit_and_history() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    show.add_node();
    show.join("clever-1", &[]);
    show.station.run(&["stop", "clever-1", "--timeout", "2s"]);
    let audit = show.station.run(&["history", "--audit"]).expect_status(0).json();
    let stops: Vec<_> = audit.iter().filter(|entry| entry["what"] == "stop").collect();
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert!(
        str_field(stops[0], "outcome").starts_with("command 1, 1 delivery"),
        "{stops:?}"
    );
    wait_until(TEST_TIMEOUT, "the history knows", || {
        let history = show.station.run(&["history"]).expect_status(0).json();
        let stops: Vec<_> = history.iter().filter(|entry| entry["action"] == "stop").collect();
        stops.len() == 1 && stops[0]["states"] == json!({ "unknown": 1 })
    });
}

#[test]
fn stops_applied_to_new_drones_are_audited() {
    let show = DroneHarness::new("");
    show.station.run(&["stop", "clever-9", "--timeout", "1s"]);
    show.station
        .run(&["release", "clever-9", "--timeout", "1s"])
        .expect_status(3);
    for what in ["stop", "release"] {
        wait_until(TEST_TIMEOUT, "it is in the audit", || {
            let audit = show.station.run(&["history", "--audit"]).expect_status(0).json();
            let is_noted = |entry: &serde_json::Value| entry["what"] == what && entry["detail"] == "clever-9";
            audit.iter().any(is_noted)
        });
    }
}

#[test]
fn gateway_without_stop_action_warns_at_start() {
    let warned = |gateway: &str| {
        let show = DroneHarness::new(gateway);
        show.port();
        let log = show.station.log().join("\n");
        log.contains("Emergency stops are not sent to these drones")
    };
    assert!(warned("stop_action = \"\""));
    assert!(warned("role = \"observer\""));
    assert!(!warned(""));
}
