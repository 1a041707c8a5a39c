//! Emergency stops of clever-show's drones.

use serde_json::json;
use swarm_tests::fleet::{PATIENCE, text};
use swarm_tests::process::{Signal, wait_until};

use super::SENT;
use super::harness::{Show, by_name};

#[test]
fn an_emergency_stop_goes_before_all_and_stays_until_it_is_released() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\nresume_queue = true\n");
    show.add_node();
    let here = show.join("clever-1", &[]);
    let away = show.join("clever-2", &[]);
    show.drones[away].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    show.one(&["call", "clever-2", "led_test", "--timeout", "200ms"], 4);

    let mut verb = show.station.start(&["stop", "all", "--timeout", "20s"]);
    show.wait_action(here, "emergency_land");
    let end = verb
        .process()
        .wait_json(PATIENCE, "its end", |end| end["node"] == "clever-1");
    assert_eq!(
        (&end["state"], text(&end, "error")),
        (&json!("unknown"), "sent; this drone cannot confirm a stop")
    );
    // Told again and again while the other is waited for.
    show.wait_action(here, "emergency_land");
    show.drones[away].signal(Signal::USR2);
    show.wait_action(away, "emergency_land");
    let ran = verb.finish(PATIENCE).json();
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
    let table = show.station.say(&["nodes"]).expect(0).out.join("\n");
    assert!(
        table.contains("online, STOP?") && table.contains("1 stopped, 2 NOT KNOWN TO BE STOPPED"),
        "{table}"
    );

    let refused = show.one(&["call", "clever-1", "led_test"], 1);
    assert!(text(&refused, "error").contains("emergency stop"), "{refused}");
    assert_eq!(
        show.value(&["call", "clever-1", "batt_voltage"]),
        json!(12.1),
        "what reads goes on"
    );
    // It comes back while it is stopped: it is told again.
    show.drones[here].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    let before = show.was_told(here, "emergency_land");
    show.drones[here].signal(Signal::USR2);
    wait_until(PATIENCE, "it is told again", || {
        show.was_told(here, "emergency_land") > before
    });

    show.station.run(&["release", "all"]).expect(0);
    let view = show.station.node("clever-1");
    assert!(
        view["stop_unconfirmed"].is_null() && view["warnings"] == json!([]),
        "{view}"
    );
    assert_eq!(show.value(&["call", "clever-1", "led_after"]), SENT);
    assert_eq!(show.value(&["call", "clever-2", "led_after"]), SENT);
    show.wait_action(away, "led_after");
    assert_eq!(show.was_told(away, "led_test"), 0, "what was queued is dropped");
}

#[test]
fn a_stop_holds_for_drones_that_come_and_over_a_restart_until_it_is_released() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\n");
    // Nobody is there yet, and no node at all.
    let stopped = show.station.run(&["stop", "all", "--timeout", "300ms"]);
    stopped
        .expect(1)
        .says("a drone that comes and is meant is stopped");
    let first = show.join("clever-1", &[]);
    show.wait_action(first, "emergency_land");
    let refused = show.one(&["call", "clever-1", "led_test"], 1);
    assert!(text(&refused, "error").contains("emergency stop"), "{refused}");
    show.station
        .run(&["nodes"])
        .expect(0)
        .says("a stop of \"all\" is in force");

    show.station.end(Signal::TERM);
    show.wait(first, "its connection ends", |told| told["event"] == "lost");
    show.station.serve();
    let told = show.was_told(first, "emergency_land");
    show.station.wait_state("clever-1", "online");
    wait_until(PATIENCE, "it is told again", || {
        show.was_told(first, "emergency_land") > told
    });
    let refused = show.one(&["call", "clever-1", "led_test"], 1);
    assert!(text(&refused, "error").contains("emergency stop"), "{refused}");

    // One is released, all others are not.
    let released = show.one(&["release", "clever-1"], 0);
    assert!(text(&released, "value").contains("released"), "{released}");
    assert_eq!(show.value(&["call", "clever-1", "led_test"]), SENT);
    let second = show.join("clever-2", &[]);
    show.wait_action(second, "emergency_land");

    // What is released stays so.
    show.station.end(Signal::TERM);
    for drone in [first, second] {
        show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    }
    let told = [first, second].map(|drone| show.was_told(drone, "emergency_land"));
    show.station.serve();
    show.station.wait_state("clever-1", "online");
    show.station.wait_state("clever-2", "online");
    wait_until(PATIENCE, "it is told again", || {
        show.was_told(second, "emergency_land") > told[1]
    });
    assert_eq!(show.value(&["call", "clever-1", "led_test"]), SENT);
    show.wait_action(first, "led_test");
    assert_eq!(show.was_told(first, "emergency_land"), told[0]);
    show.station.run(&["release", "all"]).expect(0);
    assert_eq!(show.value(&["call", "clever-2", "led_test"]), SENT);
    let nodes = show.station.run(&["nodes"]).expect(0);
    assert!(!nodes.err.contains("is in force"), "{}", nodes.err);
}

#[test]
fn a_stop_and_a_release_without_serve_hold_for_drones_too() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\n");
    let drone = show.join("clever-1", &[]);
    show.station.end(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    show.station.run(&["stop", "clever-1", "--timeout", "300ms"]);
    show.station.serve();
    show.wait_action(drone, "emergency_land");
    show.station.end(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    show.station.run(&["release", "clever-1", "--timeout", "300ms"]);
    show.station.serve();
    show.station.wait_state("clever-1", "online");
    assert_eq!(show.value(&["call", "clever-1", "led_test"]), SENT);
    show.wait_action(drone, "led_test");
    assert_eq!(show.was_told(drone, "emergency_land"), 1);
}

#[test]
fn a_stop_without_serve_holds_for_drones_though_the_configuration_cannot_be_read() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\n");
    let drone = show.join("clever-1", &[]);
    show.station.end(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    let file = show.station.state_file("config.toml");
    let sound = std::fs::read_to_string(&file).expect("configured");
    std::fs::write(&file, format!("nonsense = 1\n{sound}")).expect("written");
    show.station.run(&["stop", "all", "--timeout", "300ms"]);
    std::fs::write(&file, sound).expect("written");
    show.station.serve();
    show.wait_action(drone, "emergency_land");
    let refused = show.one(&["call", "clever-1", "led_test"], 1);
    assert!(text(&refused, "error").contains("emergency stop"), "{refused}");
}

#[test]
fn a_release_ends_a_stop_that_still_goes_on() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\n");
    let here = show.join("clever-1", &[]);
    let away = show.join("clever-2", &[]);
    show.drones[away].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    let verb = show.station.start(&["stop", "all", "--timeout", "20s"]);
    show.wait_action(here, "emergency_land");
    show.wait_action(here, "emergency_land");
    show.station.run(&["release", "all"]).expect(0);
    // It is over at the other verb, too, with what it does not know any more to be stopped.
    let ended = verb.finish(PATIENCE).json();
    assert_eq!(by_name(&ended, "clever-2")["state"], "refused", "{ended:?}");
    let told = show.was_told(here, "emergency_land");
    show.drones[away].signal(Signal::USR2);
    show.station.wait_state("clever-2", "online");
    for (name, drone) in [("clever-1", here), ("clever-2", away)] {
        assert_eq!(show.value(&["call", name, "led_test"]), SENT);
        show.wait_action(drone, "led_test");
    }
    assert_eq!(show.was_told(away, "emergency_land"), 0);
    assert_eq!(show.was_told(here, "emergency_land"), told);
}

#[test]
fn the_audit_and_the_history_tell_of_a_stop_once() {
    swarm_tests::needs_python!();
    let mut show = Show::new("");
    show.add_node();
    show.join("clever-1", &[]);
    show.station.run(&["stop", "clever-1", "--timeout", "2s"]);
    let audit = show.station.run(&["history", "--audit"]).expect(0).json();
    let stops: Vec<_> = audit.iter().filter(|entry| entry["what"] == "stop").collect();
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert!(
        text(stops[0], "outcome").starts_with("command 1, 1 delivery"),
        "{stops:?}"
    );
    wait_until(PATIENCE, "the history knows", || {
        let history = show.station.run(&["history"]).expect(0).json();
        let stops: Vec<_> = history.iter().filter(|entry| entry["action"] == "stop").collect();
        stops.len() == 1 && stops[0]["states"] == json!({ "unknown": 1 })
    });
}

#[test]
fn a_stop_and_a_release_of_drones_that_come_are_in_the_audit() {
    let show = Show::new("");
    show.station.run(&["stop", "clever-9", "--timeout", "1s"]);
    show.station
        .run(&["release", "clever-9", "--timeout", "1s"])
        .expect(3);
    for what in ["stop", "release"] {
        wait_until(PATIENCE, "it is in the audit", || {
            let audit = show.station.run(&["history", "--audit"]).expect(0).json();
            let is_noted = |entry: &serde_json::Value| entry["what"] == what && entry["detail"] == "clever-9";
            audit.iter().any(is_noted)
        });
    }
}

#[test]
fn a_door_that_has_no_word_for_a_stop_says_so_as_it_opens() {
    let warned = |door: &str| {
        let show = Show::new(door);
        show.port();
        let log = show.station.log().join("\n");
        log.contains("an emergency stop tells these drones nothing")
    };
    assert!(warned("stop_action = \"\""));
    assert!(warned("role = \"observer\""));
    assert!(!warned(""));
}
