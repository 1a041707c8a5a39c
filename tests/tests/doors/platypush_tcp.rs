//! Platypush's messages over TCP, at a real station with real nodes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_tests::fleet::{Field, Fleet, PATIENCE, text};
use swarm_tests::peers;

/// As documented: `echo '…' | nc localhost 1234`.
const DOCUMENTED: &str = r#"{"type": "request", "action": "shell.exec", "args": {"cmd": "ls /"}}"#;

/// A fleet with this door, and its port.
fn fleet(nodes: usize, more: &str) -> (Fleet, u16) {
    let field = Field::new();
    let port = field.port();
    let door = format!("[doors.platypush_tcp]\nport = {port}\n{more}\n");
    let fleet = Fleet::linked_through(field, nodes, &door, |node, _field| {
        "[execute]\nallowed = true\n".clone_into(&mut node.tables);
    });
    (fleet, port)
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_write_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// What comes after these bytes, until the other side ends.
fn exchange(port: u16, bytes: &[u8]) -> Vec<Value> {
    let mut stream = connect(port);
    stream.write_all(bytes).expect("written");
    stream.shutdown(Shutdown::Write).expect("closed");
    answers(stream)
}

fn answers(mut stream: TcpStream) -> Vec<Value> {
    let mut read = String::new();
    stream.read_to_string(&mut read).expect("read to the end");
    let parsed = read.lines().map(serde_json::from_str);
    parsed
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{read}: {error}"))
}

fn ask(port: u16, request: &Value) -> Value {
    let mut answers = exchange(port, request.to_string().as_bytes());
    assert_eq!(answers.len(), 1, "{request}: {answers:?}");
    answers.remove(0)
}

fn output(answer: &Value) -> &Value {
    assert_eq!(answer["response"]["errors"], json!([]), "{answer}");
    &answer["response"]["output"]
}

fn error(answer: &Value) -> String {
    assert_eq!(answer["type"], "response", "{answer}");
    text(&answer["response"]["errors"], "0").to_owned()
        + answer["response"]["errors"][0].as_str().unwrap_or_default()
}

#[test]
fn the_documented_line_prints_the_response_and_ends() {
    let (fleet, port) = fleet(1, "allow = [\"execute\"]\nrole = \"admin\"");
    for mode in ["nc", "nc-N"] {
        let port = port.to_string();
        let ran = peers::run(&fleet.field, "platypush_tcp.py", &[&port, mode, DOCUMENTED]);
        let printed: Value = serde_json::from_str(text(&ran[0], "printed")).expect("one message");
        assert_eq!(
            (&printed["type"], &printed["origin"]),
            (&json!("response"), &json!("st"))
        );
        assert_eq!(text(&printed, "id").len(), 32);
        assert!(printed["_timestamp"].is_f64(), "{printed}");
        let listed: Vec<&str> = output(&printed)
            .as_str()
            .expect("what ls printed")
            .lines()
            .collect();
        assert!(listed.contains(&"proc") && listed.contains(&"tmp"), "{listed:?}");
        let seconds = ran[0]["seconds"].as_f64().expect("a time");
        assert!(seconds < 10.0, "{seconds} s");
    }
    // Every use is in the audit and in the history.
    let audit = fleet.station.run(&["history", "--audit"]).expect(0);
    let used = audit
        .json()
        .into_iter()
        .filter(|entry| entry["what"] == "execute")
        .count();
    assert_eq!(used, 2, "{audit:#?}");
}
