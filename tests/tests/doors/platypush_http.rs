//! Platypush's HTTP at a real station with real nodes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_tests::binaries;
use swarm_tests::fleet::{Field, Fleet, PATIENCE, Station, text};
use swarm_tests::peers;
use swarm_tests::process::{Process, Signal, Stream, wait_until};

const PEER: &str = "platypush_http.py";
const PASSWORD: &str = "correct horse";
/// The door's own token.
const TOKEN: &str = "token-of-the-door";

/// A fleet with this door, and where it is.
fn fleet(nodes: usize, door: &str) -> (Fleet, String) {
    let field = Field::new();
    let port = field.port();
    let files = field.dir("files");
    std::fs::write(files.join("ten.txt"), "0123456789").expect("written");
    std::os::unix::fs::symlink("/etc/passwd", files.join("link")).expect("linked");
    let door = format!(
        "[doors.platypush_http]\nlisten = \"127.0.0.1:{port}\"\n{door}\n[doors.platypush_http.resources]\nfiles = {files:?}\n"
    );
    let fleet = Fleet::linked_through(field, nodes, &door, |node, _field| {
        "[execute]\nallowed = true\n".clone_into(&mut node.tables);
    });
    (fleet, format!("http://127.0.0.1:{port}"))
}

/// `door user add`, its password from standard input.
fn add_user(station: &Station, name: &str, password: &str) {
    let mut verb = Command::new(&binaries().station)
        .args(["door", "user", "add", name])
        .env("GROUND_STATION_STATE_DIR", &station.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = verb.stdin.take().expect("piped");
    writeln!(stdin, "{password}").expect("written");
    drop(stdin);
    let ran = verb.wait_with_output().expect("ends");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// What this line of curl gets: status and body.
fn curl(fleet: &Fleet, line: &str) -> (u64, Value) {
    let answer = curl_whole(fleet, line);
    (
        answer["status"].as_u64().expect("a number"),
        answer["body"].clone(),
    )
}

fn curl_whole(fleet: &Fleet, line: &str) -> Value {
    peers::run(&fleet.field, PEER, &["curl", line]).remove(0)
}

fn output(answer: &Value) -> &Value {
    assert_eq!(answer["type"], "response", "{answer}");
    assert_eq!(answer["response"]["errors"], json!([]), "{answer}");
    &answer["response"]["output"]
}

#[test]
fn the_documented_lines_of_curl_work() {
    let (fleet, url) = fleet(1, "allow = [\"execute\"]\nrole = \"admin\"");
    let (status, body) = curl(&fleet, &format!("curl {url}/execute"));
    assert_eq!((status, &body["code"]), (405, &json!(405)), "{body}");
    let execute = |token: &str| {
        format!(
            r#"curl -XPOST -H 'Content-Type: application/json' -H 'Authorization: Bearer {token}' -d '{{"type":"request", "action":"shell.exec", "args": {{"cmd":"echo hello"}}}}' {url}/execute"#
        )
    };
    let auth = format!(
        r#"curl -XPOST -H 'Content-Type: application/json' -d '{{"username":"ann", "password":"{PASSWORD}"}}' {url}/auth"#
    );
    // Nobody can come in while there is nobody.
    for line in [&execute("x"), &auth] {
        let (status, body) = curl(&fleet, line);
        assert_eq!((status, &body["code"]), (412, &json!(412)), "{body}");
    }
    add_user(&fleet.station, "ann", PASSWORD);
    let (status, body) = curl(&fleet, &auth);
    assert_eq!(status, 200, "{body}");
    let (status, answer) = curl(&fleet, &execute(text(&body, "token")));
    assert_eq!((status, output(&answer)), (200, &json!("hello\n")));
    assert_eq!(text(&answer, "id").len(), 32);
    let (status, body) = curl(&fleet, &auth.replace(PASSWORD, "incorrect horse"));
    assert_eq!((status, &body["error"]), (401, &json!("Unauthorized")), "{body}");
    // Every use is in the audit, in the user's name.
    let audit = fleet.station.run(&["history", "--audit"]).expect(0).json();
    let who = |what: &str| {
        let entry = audit.iter().find(|entry| entry["what"] == what);
        entry.map(|entry| text(entry, "who").to_owned())
    };
    assert_eq!(
        who("execute"),
        Some("ann at platypush_http from 127.0.0.1".to_owned()),
        "{audit:#?}"
    );
    assert!(
        who("login").is_some() && who("door user add").is_some(),
        "{audit:#?}"
    );
}
