//! Clients of Knut at their door.

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, PATIENCE};

use super::{door_port, fleet_with_doors, run_peer, start_peer};

const CLIENT: &str = "knut_client.py";

/// Nodes whose temperature is in a file; see [`warm`].
fn fleet(nodes: usize, more: &str) -> (Fleet, String) {
    let doors = format!(
        "[doors.knut]\nlisten = \"127.0.0.1:0\"\ntemperature = \"heat\"\nhistory_every = \"100ms\"\n{more}"
    );
    let fleet = fleet_with_doors(&doors, nodes, |node, field| {
        let file = field.join(format!("{}-heat", node.name));
        write(&file, "10.2");
        let command = ["/bin/cat", &file.display().to_string()].map(str::to_owned);
        node.tables = format!("[telemetry]\ninterval = \"100ms\"\ncommand = {command:?}\n");
    });
    let port = door_port(&fleet.station, "knut");
    (fleet, port)
}

fn write(file: &std::path::Path, degrees: &str) {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, format!("{{\"heat\": {degrees}}}")).expect("written");
    std::fs::rename(fresh, file).expect("renamed");
}

fn warm(fleet: &Fleet, node: &str, degrees: &str) {
    write(&fleet.field.path().join(format!("{node}-heat")), degrees);
}

fn only_line(lines: &[String]) -> Value {
    assert_eq!(lines.len(), 1, "{lines:?}");
    serde_json::from_str(&lines[0]).expect("JSON")
}

fn is_status(item: &Value, node: &str, degrees: f64) -> bool {
    item["msgId"] == 0x0101 && item["msg"][node]["temperature"] == degrees
}

#[test]
fn temperatures_are_told_and_pushed_as_documented() {
    let (fleet, port) = fleet(2, "");
    let mut listener = start_peer(&fleet, CLIENT, &[&port, "listen"]);
    listener.wait_json(PATIENCE, "listening", |line| line["listening"] == true);
    warm(&fleet, "n2", "21.37");
    let push = listener.wait_json(PATIENCE, "a push of n2", |item| is_status(item, "n2", 21.4));
    assert_eq!(push["apiId"], 1, "{push}");
    let status = json!({"location": "n2", "unit": "°C", "condition": "\u{f002}", "temperature": 21.4});
    assert_eq!(push["msg"], json!({ "n2": status }));
    listener.wait_json(PATIENCE, "a heartbeat", |item| item["heartbeat"] == true);
    let answer = only_line(&run_peer(&fleet, CLIENT, &[&port, "documented"]));
    assert_eq!(answer["n1"]["temperature"], 10.2, "{answer}");
    assert_eq!(answer["n2"], status, "{answer}");
    run_peer(&fleet, CLIENT, &[&port, "heartbeat"]);
    run_peer(&fleet, CLIENT, &[&port, "status", "n1", "10.2"]);
    run_peer(&fleet, CLIENT, &[&port, "status", "nobody", "-273.15"]);
    warm(&fleet, "n2", "-5");
    listener.wait_json(PATIENCE, "a colder push", |item| is_status(item, "n2", -5.0));
    run_peer(&fleet, CLIENT, &[&port, "history", "n2", "21.4", "-5"]);
}
