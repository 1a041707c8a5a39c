//! The temperature API.

use super::*;

fn ask(temperatures: &TemperatureCache, id: i64, msg: Value) -> (i64, Value) {
    let (_, Message { api, id, msg }) = temperatures.respond(&Message { api: 1, id, msg });
    assert_eq!(api, 1);
    (id, msg)
}

#[test]
fn change_is_pushed_once_and_offline_nodes_are_not_listed() {
    let mut temperatures = TemperatureCache::new(&config(""));
    assert_eq!(temperatures.on_event(view(1, "n1", NodeState::Online)), None);
    let push = temperatures
        .on_event(reading(1, "n1", json!(20.04)))
        .expect("a change");
    let status = json!({"location": "n1", "unit": "°C", "condition": "\u{f002}", "temperature": 20.0});
    let wanted = Message {
        api: 1,
        id: 0x0101,
        msg: json!({ "n1": status }),
    };
    assert_eq!(push, wanted);
    assert_eq!(
        temperatures.on_event(reading(1, "n1", json!(19.96))),
        None,
        "the same to a tenth"
    );
    let other = Event::Telemetry {
        node: node(1, "n1"),
        values: serde_json::Map::new(),
    };
    assert_eq!(temperatures.on_event(other), None);
    assert_eq!(
        ask(&temperatures, 2, json!({})),
        (0x0102, json!({ "n1": status }))
    );
    assert_eq!(temperatures.all_as_push(), wanted);
    // A sensor that is gone or sends no number; a node that is offline.
    for nothing in [json!(null), json!("warm"), json!({})] {
        assert_eq!(temperatures.on_event(reading(1, "n1", nothing)), None);
        assert_eq!(ask(&temperatures, 2, json!({})).1, json!({}));
    }
    assert!(temperatures.on_event(reading(1, "n1", json!(20.0))).is_some());
    temperatures.on_event(view(1, "n1", NodeState::Offline));
    assert_eq!(ask(&temperatures, 2, json!({})).1, json!({}));
    assert_eq!(
        ask(&temperatures, 1, json!({"id": "n1"})).1,
        json!({ "n1": status })
    );
}

#[test]
fn missing_temperature_reading_is_warned_of_once() {
    let looks_for = |name: &str| {
        let config = KnutConfig {
            temperature: vec![name.to_owned()],
            ..config("")
        };
        TemperatureCache::new(&config)
    };
    let mut temperatures = looks_for("cpu_temprature");
    let told = |number: u8, values: Value| Event::Telemetry {
        node: node(number, &format!("n{number}")),
        values: values.as_object().expect("an object").clone(),
    };
    let hear = |temperatures: &mut TemperatureCache, event: Event| {
        let complaint = temperatures.missing_sensor_warning(&event);
        temperatures.on_event(event);
        complaint
    };
    let event = told(9, json!({"load": 1}));
    assert_eq!(hear(&mut temperatures, event), None, "a node that is not shown");
    for number in [1, 2] {
        temperatures.on_event(view(number, &format!("n{number}"), NodeState::Online));
    }
    let event = told(1, json!({"cpu_temperature": 20.0, "load": 1}));
    let complaint = hear(&mut temperatures, event.clone()).expect("a slip");
    assert!(
        complaint.starts_with("n1 tells no number at \"cpu_temprature\"")
            && complaint.contains("it tells cpu_temperature, load: set `temperature` in [gateways.knut]"),
        "{complaint}"
    );
    assert_eq!(hear(&mut temperatures, told(2, json!({}))), None, "once");
    // No warning for telemetry with a temperature, nor for later changes.
    let mut temperatures = looks_for("cpu_temperature");
    temperatures.on_event(view(1, "n1", NodeState::Online));
    assert_eq!(hear(&mut temperatures, event), None);
    assert_eq!(hear(&mut temperatures, told(1, json!({"load": 2}))), None);
    assert_eq!(
        hear(&mut temperatures, told(1, json!({"cpu_temperature": null}))),
        None
    );
}

#[test]
fn temperature_of_an_unknown_node_is_absolute_zero() {
    let mut temperatures = TemperatureCache::new(&config(""));
    for number in [1, 2] {
        temperatures.on_event(reading(number, &format!("n{number}"), json!(number)));
    }
    for msg in [json!({"id": "n2"}), json!({"uniqueName": "n2"})] {
        let (id, msg) = ask(&temperatures, 1, msg);
        assert_eq!(
            (id, &msg["n2"]["temperature"], msg.get("n1")),
            (0x0101, &json!(2.0), None)
        );
    }
    let (_, msg) = ask(&temperatures, 1, json!({"id": "x"}));
    assert_eq!(msg["x"]["temperature"], -273.15);
    for msg in [json!({}), json!(null), json!([1])] {
        let (_, all) = ask(&temperatures, 1, msg);
        assert_eq!(all.as_object().map(serde_json::Map::len), Some(2));
    }
    let unknown = Message {
        api: 1,
        id: 9,
        msg: json!([1]),
    };
    assert_eq!(temperatures.respond(&unknown).1, unknown);
}

#[test]
fn temperature_history_is_bounded_and_in_seconds() {
    let mut temperatures = TemperatureCache::new(&config(""));
    for (at_s, heat) in (1..=5_u32).zip([1.0, 2.0, 2.0, 4.0, 5.0]) {
        temperatures.on_event(reading(1, "n1", json!(heat)));
        temperatures.record_history(u64::from(at_s) * 1_500);
    }
    temperatures.on_event(view(1, "n1", NodeState::Offline));
    temperatures.record_history(99_000);
    let wanted = json!({"id": "n1", "temperature": [2.0, 4.0, 5.0], "time": [4.5, 6.0, 7.5]});
    assert_eq!(ask(&temperatures, 3, json!({"id": "n1"})), (0x0103, wanted));
    let empty = json!({"id": "x", "temperature": [], "time": []});
    assert_eq!(ask(&temperatures, 3, json!({"id": "x"})).1, empty);
}

#[test]
fn only_target_nodes_are_shown_and_duplicates_get_ids() {
    let mut temperatures = TemperatureCache::new(&config("target = \"twin\""));
    for (number, name) in [(1, "twin"), (2, "twin"), (3, "other")] {
        temperatures.on_event(view(number, name, NodeState::Online));
        let pushed = temperatures.on_event(reading(number, name, json!(number)));
        assert_eq!(pushed.is_some(), name == "twin");
    }
    let (_, all) = ask(&temperatures, 2, json!({}));
    let names: Vec<&String> = all.as_object().expect("an object").keys().collect();
    let short = |number| format!("twin {}", PeerId([number; 32]).short());
    assert_eq!(names, [&short(1), &short(2)]);
    assert_eq!(
        ask(&temperatures, 1, json!({"id": short(2)})).1[short(2)]["temperature"],
        2.0
    );
    assert_eq!(ask(&temperatures, 3, json!({"id": "other"})).1["time"], json!([]));
    // A replaced device is revoked, and the new one has its name to itself.
    let Event::Node(mut out) = view(1, "twin", NodeState::Offline) else {
        unreachable!()
    };
    out.warnings = vec![Warning::Revoked];
    temperatures.on_event(Event::Node(out));
    assert_eq!(
        ask(&temperatures, 1, json!({"id": "twin"})).1["twin"]["temperature"],
        2.0
    );
}
