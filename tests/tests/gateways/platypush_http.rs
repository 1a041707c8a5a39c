//! The HTTP interface of Platypush at a real station with real nodes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_tests::binaries;
use swarm_tests::fleet::{Fleet, Station, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::peers;
use swarm_tests::process::{Process, Signal, Stream, wait_until};

const PEER: &str = "platypush_http.py";
const PASSWORD: &str = "correct horse";
/// The gateway's own token.
const TOKEN: &str = "token-of-the-gateway";

/// A fleet with this gateway, and its port.
fn fleet(nodes: usize, gateway: &str) -> (Fleet, String) {
    let field = TestDir::new();
    let port = field.free_port();
    let files = field.dir("files");
    std::fs::write(files.join("ten.txt"), "0123456789").expect("written");
    std::os::unix::fs::symlink("/etc/passwd", files.join("link")).expect("linked");
    let gateway = format!(
        "[gateways.platypush_http]\nlisten = \"127.0.0.1:{port}\"\n{gateway}\n[gateways.platypush_http.resources]\nfiles = {files:?}\n"
    );
    let fleet = Fleet::linked_with_station_config(field, nodes, &gateway, |node, _field| {
        "[execute]\nallowed = true\n".clone_into(&mut node.tables);
    });
    (fleet, format!("http://127.0.0.1:{port}"))
}

/// Runs `gateway user add`, with the password on standard input.
fn add_user(station: &Station, name: &str, password: &str) {
    let mut verb = Command::new(&binaries().station)
        .args(["gateway", "user", "add", name])
        .env("GROUND_STATION_STATE_DIR", &station.state_dir)
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

/// Runs this line of curl; returns status and body.
fn curl(fleet: &Fleet, line: &str) -> (u64, Value) {
    let answer = curl_ok(fleet, line);
    (
        answer["status"].as_u64().expect("a number"),
        answer["body"].clone(),
    )
}

fn curl_ok(fleet: &Fleet, line: &str) -> Value {
    peers::run(&fleet.test_dir, PEER, &["curl", line]).remove(0)
}

fn output(answer: &Value) -> &Value {
    assert_eq!(answer["type"], "response", "{answer}");
    assert_eq!(answer["response"]["errors"], json!([]), "{answer}");
    &answer["response"]["output"]
}

#[test]
fn documented_curl_commands_work() {
    swarm_tests::needs_python!();
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
    // Without users no login succeeds.
    for line in [&execute("x"), &auth] {
        let (status, body) = curl(&fleet, line);
        assert_eq!((status, &body["code"]), (412, &json!(412)), "{body}");
    }
    add_user(&fleet.station, "ann", PASSWORD);
    let (status, body) = curl(&fleet, &auth);
    assert_eq!(status, 200, "{body}");
    let (status, answer) = curl(&fleet, &execute(str_field(&body, "token")));
    assert_eq!((status, output(&answer)), (200, &json!("hello\n")));
    assert_eq!(str_field(&answer, "id").len(), 32);
    let (status, body) = curl(&fleet, &auth.replace(PASSWORD, "incorrect horse"));
    assert_eq!((status, &body["error"]), (401, &json!("Unauthorized")), "{body}");
    // Every request is in the audit, with the user's name.
    let audit = fleet.station.run(&["history", "--audit"]).expect_status(0).json();
    let who = |what: &str| {
        let entry = audit.iter().find(|entry| entry["what"] == what);
        entry.map(|entry| str_field(entry, "who").to_owned())
    };
    assert_eq!(
        who("execute"),
        Some("ann at platypush_http from 127.0.0.1".to_owned()),
        "{audit:#?}"
    );
    assert!(
        who("login").is_some() && who("gateway user add").is_some(),
        "{audit:#?}"
    );
}

/// The manual's own configuration and its lines of curl, except host and names.
#[test]
fn platypush_manual_examples_work() {
    swarm_tests::needs_python!();
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/http-api.md");
    let manual = std::fs::read_to_string(manual).expect("read");
    let blocks = |kind: &str| {
        let begin = format!("```{kind}\n");
        let rest = manual.split(&begin).skip(1);
        let blocks = rest.filter_map(|rest| rest.split("```").next());
        blocks.map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    let field = TestDir::new();
    let (port, music) = (field.free_port(), field.dir("music"));
    let gateway = blocks("toml")
        .replace("127.0.0.1:8008", &format!("127.0.0.1:{port}"))
        .replace("\"/srv/music\"", &format!("{music:?}"))
        .replace("drone-*", "n*");
    let fleet = Fleet::linked_with_station_config(field, 1, &gateway, |node, _field| {
        "[actions.led]\ncommand = [\"/bin/echo\", \"{color}\", \"{level}\", \"{mode}\"]\n\
         args.color = { type = \"string\" }\nargs.level = { type = \"integer\" }\nargs.mode = { type = \"string\" }\n"
            .clone_into(&mut node.tables);
    });
    add_user(&fleet.station, "ann", PASSWORD);
    let mut token = String::new();
    let shell = blocks("sh");
    let lines = shell.lines().filter(|line| line.starts_with("curl "));
    let answers: Vec<Value> = lines
        .map(|line| {
            let line = line
                .replace(":8008", &format!(":{port}"))
                .replace("TOKEN", &token);
            let (status, answer) = curl(&fleet, &line);
            assert_eq!(status, 200, "{line}: {answer}");
            if let Some(made) = answer["token"].as_str() {
                made.clone_into(&mut token);
            }
            answer
        })
        .collect();
    let [_auth, ping, hook] = answers.as_slice() else {
        panic!("three lines: {answers:#?}");
    };
    assert_eq!(output(ping), "pong");
    assert_eq!(hook["output"], "#00ff00 3 steady\n");
}

/// Starts a peer that reads events, and waits until its connection is open.
fn start_event_reader(fleet: &Fleet, url: &str, mode: &str, more: &[&str]) -> Process {
    let url = url.replace("http://", "ws://");
    let mut process = peers::start(&fleet.test_dir, PEER, &[&[mode, &url, TOKEN], more].concat());
    process.wait_json(TEST_TIMEOUT, "open", |line| line["open"] == true);
    process
}

/// The fields of the next event of this kind that meets a condition.
fn wait_event(reader: &mut Process, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let kind = format!("platypush.message.event.swarm.{kind}");
    let line = reader.wait_json(TEST_TIMEOUT, &kind, |line| {
        let args = &line["event"]["args"];
        args["type"] == kind.as_str() && wanted(args)
    });
    line["event"]["args"].clone()
}

#[test]
fn events_are_sent_over_websocket() {
    swarm_tests::needs_python!();
    let port = TestDir::new().free_port();
    let gateway = format!(
        "token = \"{TOKEN}\"\nallow = [\"execute\", \"station.*\"]\nrole = \"admin\"\nwebsocket_port = {port}"
    );
    let (mut fleet, url) = fleet(2, &gateway);
    let mut events = start_event_reader(&fleet, &format!("{url}/ws/events"), "events", &[]);
    // Older clients use a port of their own.
    let mut older = start_event_reader(&fleet, &format!("http://127.0.0.1:{port}/"), "events", &["1"]);
    older.wait_json(TEST_TIMEOUT, "an event", |line| line["event"]["type"] == "event");
    let online = wait_event(&mut events, "NodeOnlineEvent", |args| args["node"] == "n2");
    assert_eq!(online["initial"], true);
    let values = wait_event(&mut events, "TelemetryEvent", |args| args["node"] == "n1");
    assert!(values["values"].is_object(), "{values}");
    fleet
        .station
        .run(&["run", "n1", "--", "/bin/echo", "hello"])
        .expect_status(0);
    let begun = wait_event(&mut events, "CommandStartEvent", |args| {
        args["action"] == "execute"
    });
    assert!(begun["number"].is_u64(), "{begun}");
    let outcome = wait_event(&mut events, "CommandOutcomeEvent", |args| {
        args["action"] == "execute"
    });
    assert_eq!(
        (&outcome["node"], &outcome["state"]),
        (&json!("n1"), &json!("done"))
    );
    assert_eq!(outcome["output"], "hello\n");
    let file = fleet.test_dir.file("take1.csv", b"1,2,3");
    fleet
        .station
        .run(&["send", file.to_str().expect("a text"), "n1:files/"])
        .expect_status(0);
    let sent = wait_event(&mut events, "FileSendOutcomeEvent", |args| args["node"] == "n1");
    assert_eq!(sent["state"], "done", "{sent}");
    fleet.station.run(&["stop", "n2"]).expect_status(0);
    let begun = wait_event(&mut events, "StopStartEvent", |_args| true);
    assert!(begun["number"].is_u64(), "{begun}");
    wait_event(&mut events, "StopAcknowledgedEvent", |args| args["node"] == "n2");
    wait_event(&mut events, "StopOutcomeEvent", |args| args["node"] == "n2");
    fleet.station.run(&["release", "n2"]).expect_status(0);
    wait_event(&mut events, "ReleaseOutcomeEvent", |args| args["node"] == "n2");
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    wait_event(&mut events, "NodeOfflineEvent", |args| args["node"] == "n1");
    let told = events.lines(Stream::Out);
    let changes = told
        .iter()
        .filter(|line| line.contains("NodeChangeEvent") && line.contains("\"n2\""))
        .count();
    assert_eq!(changes, 2, "one for the stop, one for the release: {told:#?}");
    fleet.station.signal_and_wait(Signal::TERM);
    let farewell = events.wait_json(TEST_TIMEOUT, "a close frame", |line| line["close"].is_array());
    assert_eq!(farewell["close"], json!([1001, "the station is shutting down"]));
}

#[test]
fn hooks_files_and_page_are_served() {
    swarm_tests::needs_python!();
    let gateway = format!(
        r#"token = "{TOKEN}"
        allow = ["execute"]
        role = "admin"
        [gateways.platypush_http.hooks.echo]
        action = "execute"
        target = "n1"
        token = "token-of-the-hook"
        [gateways.platypush_http.hooks.echo.parameters]
        program = {{ from = "const", value = "/bin/true" }}
        [gateways.platypush_http.hooks.who]
        action = "ping""#
    );
    let (fleet, url) = fleet(1, &gateway);
    let (status, body) = curl(&fleet, &format!("curl -X PUT -d x=1 '{url}/hook/who?y=2'"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (&body["status"], &body["hook"], &body["method"]),
        (&json!("ok"), &json!("who"), &json!("PUT"))
    );
    assert_eq!(
        (&body["args"], &body["data"]),
        (&json!({"y": "2"}), &json!({"x": "1"}))
    );
    assert_eq!(curl(&fleet, &format!("curl {url}/hook/echo")).0, 401);
    let (status, body) = curl(
        &fleet,
        &format!("curl -H 'X-Token: token-of-the-hook' {url}/hook/echo"),
    );
    assert_eq!(status, 200, "{body}");
    let file = |headers: &str, path: &str| {
        curl_ok(
            &fleet,
            &format!("curl -H 'X-Token: {TOKEN}' {headers} {url}{path}"),
        )
    };
    let part = file("-H 'Range: bytes=2-4'", "/resources/files/ten.txt");
    assert_eq!(
        (&part["status"], &part["body"]),
        (&json!(206), &json!(234)),
        "{part}"
    );
    assert_eq!(part["headers"]["content-range"], "bytes 2-4/10");
    for path in ["/resources/files/link", "/resources/files/%2e%2e/st/station.db"] {
        assert_eq!(file("", path)["status"], 404, "{path}");
    }
    let page = file("", "/dashboard/main");
    assert!(
        page["body"]
            .as_str()
            .expect("a page")
            .contains("<td>n1</td><td>online</td>"),
        "{page}"
    );
    let (status, document) = curl(&fleet, &format!("curl {url}/openapi.json"));
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
}

#[test]
fn users_and_tokens_persist_with_and_without_serve() {
    swarm_tests::needs_python!();
    let (mut fleet, url) = fleet(1, "");
    add_user(&fleet.station, "ann", PASSWORD);
    let words = [
        "gateway",
        "token",
        "ann",
        "--days",
        "5",
        "--label",
        "from the test",
    ];
    let made = fleet.station.run(&words).expect_status(0).json();
    let (token, number) = (
        str_field(&made[0], "token").to_owned(),
        made[0]["number"].to_string(),
    );
    let ping = |fleet: &Fleet| {
        let line = format!(
            "curl -XPOST -H 'Authorization: Bearer {token}' -d '{{\"action\": \"ping\"}}' {url}/execute"
        );
        curl(fleet, &line).0
    };
    assert_eq!(ping(&fleet), 200);
    fleet.station.signal_and_wait(Signal::TERM);
    // Without `serve`, each verb changes the store itself.
    let users = fleet.station.run(&["gateway", "users"]).expect_status(0).json();
    assert_eq!(
        (&users[0]["user"], &users[0]["tokens"]),
        (&json!("ann"), &json!(1))
    );
    let tokens = fleet.station.run(&["gateway", "tokens"]).expect_status(0).json();
    assert_eq!(
        (&tokens[0]["label"], &tokens[0]["token"]),
        (&json!("from the test"), &Value::Null)
    );
    fleet
        .station
        .run(&["gateway", "token", "revoke", &number])
        .expect_status(0);
    fleet
        .station
        .run(&["gateway", "token", "revoke", &number])
        .expect_status(3);
    fleet.station.run(&["gateway", "token", "bob"]).expect_status(3);
    // For people and scripts: the token alone on standard output.
    let said = fleet
        .station
        .run_plain(&["gateway", "token", "ann"])
        .expect_status(0);
    assert_eq!(said.stdout.len(), 1, "{said:?}");
    said.expect_stderr("it is not shown again");
    fleet.station.serve();
    assert_eq!(ping(&fleet), 401);
    fleet
        .station
        .run(&["gateway", "user", "remove", "ann"])
        .expect_status(0);
    assert_eq!(ping(&fleet), 412);
    let database = std::fs::read(fleet.station.state_file("station.db")).expect("read");
    let holds = |text: &str| database.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!holds(PASSWORD) && !holds(&token), "secrets are never stored");
}

#[test]
fn typed_password_is_not_echoed() {
    swarm_tests::needs_python!();
    let (fleet, url) = fleet(1, "");
    let program = binaries().station.to_str().expect("a text").to_owned();
    let dir = fleet.station.state_dir.to_str().expect("a text").to_owned();
    let add = |answers: &[&str]| {
        let words = [
            "--",
            &program,
            "--state-dir",
            &dir,
            "gateway",
            "user",
            "add",
            "ann",
        ];
        peers::run(&fleet.test_dir, "terminal.py", &[answers, &words].concat()).remove(0)
    };
    let ran = add(&[PASSWORD, "something else"]);
    assert_eq!(ran["status"], 2, "{ran}");
    assert!(
        str_field(&ran, "shown").contains("the two passwords differ"),
        "{ran}"
    );
    let ran = add(&[PASSWORD, PASSWORD]);
    assert_eq!(ran["status"], 0, "{ran}");
    let shown = str_field(&ran, "shown");
    assert!(
        shown.contains("ann was added") && !shown.contains(PASSWORD),
        "{shown}"
    );
    let line = format!("curl -u 'ann:{PASSWORD}' -d '{{\"action\": \"ping\"}}' {url}/execute");
    assert_eq!(curl(&fleet, &line).0, 200);
}

#[test]
fn https_uses_a_self_signed_certificate() {
    swarm_tests::needs_python!();
    let (fleet, url) = fleet(1, &format!("tls = \"self-made\"\ntoken = \"{TOKEN}\""));
    let certificate = fleet.station.state_file("door-tls.pem");
    let port = url.rsplit(':').next().expect("a port").to_owned();
    let words = [
        "tls",
        "localhost",
        &port,
        certificate.to_str().expect("a text"),
        "/openapi.json",
    ];
    let answer = peers::run(&fleet.test_dir, PEER, &words).remove(0);
    assert_eq!(answer["status"], 200, "{answer}");
    let told = fleet
        .station
        .log()
        .iter()
        .any(|line| line.contains("fingerprint="));
    assert!(told, "the log shows the fingerprint");
    // Plain HTTP gets no answer.
    let mut plain = TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).expect("connects");
    plain.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
    plain
        .write_all(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("written");
    let mut answer = Vec::new();
    let _reset = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
}

/// Path of a test certificate.
fn tls_file(name: &str) -> String {
    format!("{}/peers/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The answers of a gateway that accepts TLS clients of some authorities only, one for each client certificate.
fn request_over_tls(authorities: &str, clients: &[Option<&str>]) -> Vec<Value> {
    let gateway = format!(
        "token = \"{TOKEN}\"\nssl_cert = {:?}\nssl_key = {:?}\n{authorities}",
        tls_file("server.crt"),
        tls_file("server.key")
    );
    let (fleet, url) = fleet(1, &gateway);
    let port = url.rsplit(':').next().expect("a port");
    let authority = tls_file("ca.crt");
    let words = ["tls", "localhost", port, &authority, "/openapi.json"];
    let ask = |client: &Option<&str>| {
        let own = client.map_or_else(Vec::new, |name| {
            ["crt", "key"]
                .map(|end| tls_file(&format!("{name}.{end}")))
                .to_vec()
        });
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        peers::run(&fleet.test_dir, PEER, &[&words[..], &own].concat()).remove(0)
    };
    clients.iter().map(ask).collect()
}

#[test]
fn https_uses_configured_certificate_files() {
    swarm_tests::needs_python!();
    let authorities = format!("ssl_cafile = {:?}", tls_file("ca.crt"));
    let answers = request_over_tls(&authorities, &[Some("client"), None, Some("other-client")]);
    assert_eq!(answers[0]["status"], 200, "{answers:#?}");
    for refused in &answers[1..] {
        assert!(refused["refused"].is_string(), "{refused}");
    }
}

#[test]
fn only_clients_of_listed_authorities_are_accepted() {
    swarm_tests::needs_python!();
    let dir = tempfile::tempdir().expect("a directory");
    let put = |name: &str, to: &str| {
        std::fs::copy(tls_file(name), dir.path().join(to)).expect("copied");
    };
    let authorities = format!("ssl_capath = {:?}", dir.path());
    let clients = [Some("client"), Some("other-client"), None];
    // A file name as OpenSSL gives it; subdirectories are not read.
    put("ca.crt", "5ad8a5d6.0");
    std::fs::create_dir(dir.path().join("old")).expect("made");
    put("other-ca.crt", "old/other.crt");
    let answers = request_over_tls(&authorities, &clients);
    assert_eq!(answers[0]["status"], 200, "{answers:#?}");
    assert!(
        answers[1]["refused"].is_string() && answers[2]["refused"].is_string(),
        "{answers:#?}"
    );
    put("other-ca.crt", "other.pem");
    let answers = request_over_tls(&authorities, &clients);
    assert_eq!(
        (&answers[0]["status"], &answers[1]["status"]),
        (&json!(200), &json!(200)),
        "{answers:#?}"
    );
    assert!(answers[2]["refused"].is_string(), "{answers:#?}");
}

#[test]
fn misbehaving_http_client_does_not_affect_others() {
    swarm_tests::needs_python!();
    let (fleet, url) = fleet(
        1,
        &format!("token = \"{TOKEN}\"\nidle = \"2s\"\nconnections_per_address = 400"),
    );
    let port: u16 = url
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let manners = [
        "",
        "GET / HTTP/1.1\r\nX-Slow: ",
        "POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        "garbage\r\n\r\n",
    ];
    let started = clock::now();
    let mut bad = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let _closed_early = stream.write_all(manners[number % manners.len()].as_bytes());
        bad.push(stream);
    }
    let line = format!("curl -XPOST -H 'X-Token: {TOKEN}' -d '{{\"action\": \"ping\"}}' {url}/execute");
    let (status, answer) = curl(&fleet, &line);
    assert_eq!(status, 200, "{answer}");
    output(&answer);
    fleet.station.run(&["ping", "all"]).expect_status(0);
    for mut stream in bad {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let late = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!late, "a connection is still open");
    }
    assert!(clock::since(started) < TEST_TIMEOUT + Duration::from_secs(30));
    wait_until(TEST_TIMEOUT, "all places are free", || {
        curl(&fleet, &line).0 == 200
    });
}
