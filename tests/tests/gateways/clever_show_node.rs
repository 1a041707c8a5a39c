//! A real node joins a clever-show server in Python, configured or announced, and runs the actions that its
//! configuration allows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use swarm_tests::fleet::{Fleet, Host, Node, TEST_TIMEOUT, TestDir};
use swarm_tests::process::{Process, Signal, Stream, wait_until};
use tokio::net::TcpSocket;

/// A clever-show server, or a peer that dials: takes orders, and reports events.
pub(crate) struct CleverShowPeer {
    process: Process,
    control: BufReader<TcpStream>,
    pub(crate) port: u64,
}

impl CleverShowPeer {
    pub(crate) fn start(dir: &Path, name: &str, words: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/clever_server.py");
        let mut command = Command::new("python3");
        command.arg("-u").arg(script).args(words);
        let mut process = Process::spawn(command, name, dir);
        let ready = process.wait_json(TEST_TIMEOUT, "ready", |line| line["event"] == "ready");
        let control = ready["control"].as_u64().expect("a port");
        let control = TcpStream::connect(format!("127.0.0.1:{control}")).expect("connected");
        Self {
            process,
            control: BufReader::new(control),
            port: ready["port"].as_u64().expect("a port"),
        }
    }

    pub(crate) fn control(&mut self, order: &Value) {
        let line = format!("{order}\n");
        self.control.get_mut().write_all(line.as_bytes()).expect("taken");
        let mut done = String::new();
        self.control.read_line(&mut done).expect("done");
        assert_eq!(done, "ok\n", "{order}");
    }

    pub(crate) fn wait(&mut self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.process.wait_json(TEST_TIMEOUT, what, wanted)
    }

    /// Sends a request; returns its response.
    fn request(&mut self, value: &str, kwargs: &Value) -> Value {
        self.control(&json!({"do": "request", "value": value, "kwargs": kwargs}));
        let answered = |line: &Value| line["event"] == "response" && line["name"] == value;
        self.wait(value, answered)["value"].clone()
    }

    fn send_action(&mut self, action: &str, kwargs: &Value) {
        self.control(&json!({"do": "action", "action": action, "kwargs": kwargs}));
    }

    fn push_file(&mut self, filepath: &str, content: &[u8]) {
        self.control(&json!({"do": "push", "filepath": filepath, "hex": hex(content)}));
    }

    fn request_file(&mut self, filepath: &str) {
        let kwargs = json!({ "filepath": filepath });
        self.control(&json!({"do": "request", "value": "filetransfer", "kwargs": kwargs}));
    }

    /// Waits until everything that was sent before was handled: the node answers in order.
    fn sync(&mut self) {
        self.request("time", &json!({}));
    }

    fn count_lines(&self, what: &str) -> usize {
        let lines = self.process.lines(Stream::Out);
        lines.iter().filter(|line| line.contains(what)).count()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct JoinedNode {
    server: CleverShowPeer,
    node: Node,
    test_dir: TestDir,
}

impl JoinedNode {
    /// A server and a node that has joined it.
    fn joined_with(table: &str, more: &str) -> Self {
        let field = TestDir::new();
        let server = CleverShowPeer::start(field.path(), "clever", &[]);
        let mut node = field.node("n1", Host::loopback());
        node.tables = gateway_config(&format!("127.0.0.1:{}", server.port), table) + more;
        node.start(&[]);
        let mut stage = Self {
            server,
            node,
            test_dir: field,
        };
        stage.wait_joined();
        stage
    }

    fn wait_joined(&mut self) {
        let asked = |line: &Value| line["event"] == "response" && line["name"] == "id";
        assert_eq!(self.server.wait("its id", asked)["value"], "n1");
    }
}

fn gateway_config(server: &str, table: &str) -> String {
    format!("[gateways.clever_show]\nserver = {server:?}\n{table}\n")
}

#[test]
fn node_joins_server_and_runs_allowed_actions() {
    swarm_tests::needs_python!();
    let mut stage = JoinedNode::joined_with(
        "allow = [\"slow\", \"echo\", \"fail\", \"filetransfer\", \"id\"]\ntelemetry_every = \"100ms\"",
        "",
    );
    let JoinedNode { server, node, .. } = &mut stage;
    let none = json!({});
    assert_eq!(server.request("clover_dir", &none), "files", "its first root");
    let reading = server.wait("a reading", |line| line["action"] == "telemetry");
    let value = &reading["kwargs"]["value"];
    assert!(
        value["time_delta"].is_f64() && value["memory"]["total"].is_number(),
        "{reading}"
    );
    for _ in 0..3 {
        server.wait("readings go on", |line| line["action"] == "telemetry");
    }
    let time = server.request("time", &none);
    assert!(time.as_f64().is_some_and(|seconds| seconds > 1.7e9), "{time}");
    assert!(server.request("telemetry", &none)["time_delta"].is_f64());
    let checked = server.request("selfcheck", &none);
    assert!(checked == "OK" || checked.is_array(), "{checked}");
    let config = server.request("config", &json!({"send_configspec": true}));
    assert_eq!(config["config"]["gateways"]["clever_show"]["allow"][0], "slow");
    assert_eq!(
        config["configspec"]["gateways"]["clever_show"]["server"],
        "string"
    );
    assert_eq!(server.request("config", &none).get("configspec"), None);
    // An action of the configuration, by name, as a request and as an action.
    let echoed = server.request("echo", &json!({"word": "hello"}));
    assert_eq!(echoed, "hello 1 left\n");
    server.send_action("slow", &json!({"tag": "a"}));
    wait_until(TEST_TIMEOUT, "the action ran", || {
        node.marks() == ["begin a", "end a"]
    });
    node.wait_log("what=\"action\" name=\"slow\" outcome=\"done\"");
    // Failed, unknown and forbidden actions: no answer, and the log has the reason.
    for (value, why) in [
        ("fail", "failed: exit status 7"),
        ("dance", "\\\"dance\\\" is not allowed; name it in `allow`"),
        ("reboot", "\\\"reboot\\\" is not allowed"),
    ] {
        server.control(&json!({"do": "request", "value": value}));
        server.send_action(value, &none);
        node.wait_log(&format!("what=\"request\" name={value:?} why=\"{why}"));
        node.wait_log(&format!("what=\"action\" name={value:?} why=\"{why}"));
        server.sync();
        assert_eq!(server.count_lines(&format!("\"name\": {value:?}")), 0, "{value}");
    }
    server.send_action("hang", &none);
    node.wait_log("name=\"hang\" why=\"\\\"hang\\\" is not allowed");
    // By clever-show's rule.
    server.send_action("id", &json!({"new_id": "-bad"}));
    node.wait_log("why=\"refused: \\\"-bad\\\" is not a name");
    assert_eq!(server.request("id", &none), "n1");
    assert_eq!(server.request("id", &json!({"new_id": "copter-7"})), "copter-7");
    server.send_action("id", &json!({"new_id": "/default"}));
    wait_until(TEST_TIMEOUT, "a name of the default kind", || {
        server
            .request("id", &none)
            .as_str()
            .is_some_and(|name| name.starts_with("copter0") || name.len() == 10)
    });
}

#[test]
fn server_files_stay_below_the_roots() {
    swarm_tests::needs_python!();
    let mut stage = JoinedNode::joined_with(
        "allow = [\"filetransfer\"]\ntelemetry = false\nfile_bytes = 2000000",
        "",
    );
    let JoinedNode {
        server,
        node,
        test_dir: field,
    } = &mut stage;
    let content: Vec<u8> = (0..1_500_000_u32)
        .map(|n| u8::try_from(n % 251).expect("small"))
        .collect();
    server.push_file("files/shows/take1.csv", &content);
    server.push_file("files/empty", b"");
    server.sync();
    assert_eq!(
        std::fs::read(node.files_root.join("shows/take1.csv")).expect("kept"),
        content
    );
    server.request_file("files/shows/take1.csv");
    let file = server.wait("the file", |line| line["event"] == "file");
    assert_eq!(file["hex"], hex(&content));
    server.request_file("files/empty");
    let file = server.wait("the empty file", |line| line["event"] == "file");
    assert_eq!(file["hex"], "");

    std::os::unix::fs::symlink("/etc", node.files_root.join("link")).expect("a link");
    let outside = field.file("outside", b"secret");
    let outside = outside.display().to_string();
    for path in [
        "files/../outside",
        "../outside",
        &outside,
        "/etc/passwd",
        "files/link/passwd",
        "other/x",
        "files/",
        "files",
        "files/a\u{0}b",
    ] {
        server.push_file(path, b"overwritten");
        server.request_file(path);
    }
    server.push_file("files/long", &vec![0; 2_000_001]);
    server.sync();
    assert_eq!(std::fs::read(&outside).expect("there"), b"secret");
    assert_eq!(server.count_lines("\"event\": \"file\""), 2, "no file but those");
    let (whole, broken) = node.files();
    assert!(broken.is_empty(), "{broken:?}");
    let kept: Vec<&String> = whole.iter().filter(|name| !name.starts_with("link")).collect();
    assert_eq!(kept, ["empty", "shows/take1.csv"]);
    node.wait_log("leads out of its root or through a symbolic link");
    node.wait_log("2000001 bytes are more than the 2000000 allowed; skipped");
    assert_eq!(
        server.count_lines("\"lost\"") + server.count_lines("\"bad\""),
        0,
        "the link survived all of it"
    );
}

#[test]
fn server_only_reads_without_an_allow_list() {
    swarm_tests::needs_python!();
    let mut stage = JoinedNode::joined_with("", "[execute]\nallowed = true\n");
    let JoinedNode { server, node, .. } = &mut stage;
    for action in ["slow", "execute", "id", "config", "release", "filetransfer"] {
        let kwargs = json!({
            "tag": "a", "command": "touch /tmp/never", "new_id": "x", "config": {"adoptable": true}, "mode": "modify",
        });
        server.send_action(action, &kwargs);
    }
    server.push_file("files/x", b"x");
    server.request_file("files/x");
    server.sync();
    assert_eq!(server.request("id", &json!({})), "n1");
    assert_eq!(
        (node.marks(), node.files().0),
        (Vec::<String>::new(), Vec::<String>::new())
    );
    node.wait_log("name=\"slow\" why=");
    node.wait_log("name=\"execute\" why=\"running a program may not be asked for by role operator");
    node.wait_log("as \"emergency_land\", has no effect on this node");
    assert_eq!(server.count_lines("\"event\": \"file\""), 0);
}

#[test]
fn execute_requires_three_permissions() {
    swarm_tests::needs_python!();
    let run = |stage: &mut JoinedNode| {
        let mark = stage.test_dir.path().join("ran");
        let command = format!("echo \"$0 $((20 + 22))\" >{}", mark.display());
        stage
            .server
            .send_action("execute", &json!({ "command": command }));
        stage.server.sync();
        mark
    };
    for (table, more, why) in [
        (
            "allow = [\"exec*\"]",
            "[execute]\nallowed = true\n",
            "by role operator",
        ),
        (
            "role = \"admin\"",
            "[execute]\nallowed = true\n",
            "is not allowed",
        ),
        (
            "allow = [\"exec*\"]\nrole = \"admin\"",
            "",
            "execute is off on this node",
        ),
    ] {
        let mut stage = JoinedNode::joined_with(table, more);
        let mark = run(&mut stage);
        stage.node.wait_log(why);
        assert!(!mark.exists(), "{table}");
    }
    let mut stage = JoinedNode::joined_with(
        "allow = [\"execute\"]\nrole = \"admin\"",
        "[execute]\nallowed = true\n",
    );
    let mark = run(&mut stage);
    wait_until(TEST_TIMEOUT, "it ran", || {
        std::fs::read_to_string(&mark).is_ok_and(|text| text == "/bin/sh 42\n")
    });
}

#[test]
fn emergency_stop_applies_to_the_node_gateway() {
    swarm_tests::needs_python!();
    let server = std::cell::RefCell::new(None);
    let fleet = Fleet::linked_with(1, |node| {
        let peer = CleverShowPeer::start(node.state_dir.parent().expect("a field"), "clever", &[]);
        node.tables = gateway_config(
            &format!("127.0.0.1:{}", peer.port),
            "allow = [\"*\"]\ntelemetry = false",
        );
        *server.borrow_mut() = Some(peer);
    });
    let mut server = server.into_inner().expect("started");
    let node = &fleet.nodes[0];
    server.send_action("slow", &json!({"tag": "a", "time": 50}));
    wait_until(TEST_TIMEOUT, "it runs", || node.marks() == ["begin a"]);
    fleet.station.run(&["stop"]).expect_status(0);
    node.wait_log("name=\"slow\" why=\"failed: emergency stop");
    server.send_action("slow", &json!({"tag": "b"}));
    node.wait_log("name=\"slow\" why=\"refused: ");
    let reading = server.request("telemetry", &json!({}));
    assert!(!reading["stopped"].is_null(), "looking goes on: {reading}");
    // Only a station of the fleet releases.
    server.send_action("release", &json!({}));
    node.wait_log("name=\"release\" why=");
    server.send_action("slow", &json!({"tag": "c"}));
    server.sync();
    assert_eq!(node.marks(), ["begin a"]);
    fleet.station.run(&["release", "all"]).expect_status(0);
    server.send_action("slow", &json!({"tag": "d"}));
    wait_until(TEST_TIMEOUT, "it runs again", || {
        node.marks() == ["begin a", "begin d", "end d"]
    });
}

/// Starts the plug-in of docs/plugins.md.
fn start_plugin(field: &TestDir, node: &Node) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    let code = document.lines().skip_while(|line| *line != "```python").skip(1);
    let code: Vec<&str> = code.take_while(|line| *line != "```").collect();
    let script = field.file("lamp.py", (code.join("\n") + "\n").as_bytes());
    let mut command = Command::new("python3");
    command.arg(script).arg(node.state_dir.join("plugin.sock"));
    let process = Process::spawn(command, "lamp", field.path());
    wait_until(TEST_TIMEOUT, "the plug-in is known", || {
        node.status()["plugins"].as_array().map(Vec::len) == Some(1)
    });
    process
}

#[test]
fn plugin_request_is_answered_by_name() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = JoinedNode::joined_with(
        "allow = [\"bli*\", \"clock\", \"takeoff\"]\ntelemetry_every = \"100ms\"",
        flight,
    );
    let _lamp = start_plugin(&stage.test_dir, &stage.node);
    let JoinedNode { server, node, .. } = &mut stage;
    assert!(server.request("clock", &json!({})).is_f64());
    assert_eq!(server.request("blink", &json!({"times": 3})), "blinked 3 times");
    server.send_action("blink", &json!({"times": 4}));
    server.wait("its reading beside ours", |line| {
        line["action"] == "telemetry" && line["kwargs"]["value"]["blinks"] == 4
    });
    server.send_action("blink", &json!({"times": "many"}));
    node.wait_log("name=\"blink\" why=\"refused: ");
    // A flight action that is recent enough when it comes.
    assert_eq!(server.request("takeoff", &json!({})), "up\n");
}

#[test]
fn stale_flight_action_of_a_server_is_not_run() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = JoinedNode::joined_with("allow = [\"takeoff\"]\ntelemetry = false\nrate = 10", flight);
    let JoinedNode { server, node, .. } = &mut stage;
    for _ in 0..50 {
        server.send_action("dance", &json!({}));
    }
    server.send_action("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" why=\"expired: ");
    server.send_action("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" outcome=\"done\"");
}

#[test]
fn slow_actions_do_not_delay_flight_actions() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = JoinedNode::joined_with(
        "allow = [\"slow\", \"takeoff\"]\ntelemetry = false\nrate = 1000",
        flight,
    );
    let JoinedNode { server, node, .. } = &mut stage;
    for number in 0..80 {
        server.send_action("slow", &json!({"tag": format!("s{number}"), "time": 50}));
    }
    server.send_action("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" outcome=\"done\"");
    // Queries are answered too, and the log names what was too much.
    server.sync();
    node.wait_log("name=\"slow\" why=\"refused: busy: ");
    let begun = node.marks();
    assert!(
        begun.len() <= 6 && begun.iter().all(|mark| mark.starts_with("begin")),
        "{begun:?}"
    );
}

#[test]
fn server_needs_owner_permission_for_system_actions() {
    swarm_tests::needs_python!();
    let more = "[services]\nallow = [\"no-such-unit-of-swarm\"]\n[actions.test]\ncommand = [\"/bin/echo\", \"tested\"]\n";
    let mut stage = JoinedNode::joined_with("allow = [\"*\"]\ntelemetry = false", more);
    let JoinedNode { server, node, .. } = &mut stage;
    // Passed to systemd, which does not know such a unit, or is not installed.
    server.send_action("service_restart", &json!({"name": "no-such-unit-of-swarm"}));
    node.wait_log("name=\"service_restart\" why=\"failed: ");
    server.send_action("service_restart", &json!({"name": "sshd"}));
    node.wait_log("name=\"service_restart\" why=\"refused: \\\"sshd\\\" may not be restarted");
    server.send_action("test", &json!({}));
    node.wait_log("name=\"test\" outcome=\"done\"");
    server.send_action("update_repo", &json!({}));
    node.wait_log("name=\"update_repo\" why=\"refused: ");
}

#[test]
fn late_reply_is_not_sent_on_the_next_connection() {
    swarm_tests::needs_python!();
    let mut stage = JoinedNode::joined_with("allow = [\"slow\"]\ntelemetry = false", "");
    let port = stage.server.port.to_string();
    // Once the answer comes while there is no server, once while there is another one.
    for (name, seconds, none_there) in [("second", 1, true), ("third", 8, false)] {
        let kwargs = json!({ "tag": name, "time": seconds });
        let asked = json!({"do": "request", "value": "slow", "kwargs": kwargs});
        stage.server.control(&asked);
        let begun = format!("begin {name}");
        wait_until(TEST_TIMEOUT, "it runs", || stage.node.marks().contains(&begun));
        stage.server.process.signal(Signal::KILL);
        stage.server.process.wait_exit(TEST_TIMEOUT);
        let not_answered = || {
            let log = stage.node.log();
            let told = log.iter().filter(|line| line.contains("why=\"not answered"));
            told.count()
        };
        let (before, ended) = (not_answered(), format!("end {name}"));
        let wait = || {
            wait_until(TEST_TIMEOUT, "it has ended, unanswered", || {
                stage.node.marks().contains(&ended) && not_answered() > before
            });
        };
        if none_there {
            wait();
        }
        let mut next = CleverShowPeer::start(stage.test_dir.path(), name, &["--port", &port]);
        let joined = |line: &Value| line["event"] == "response" && line["name"] == "id";
        next.wait("its id", joined);
        if !none_there {
            assert!(
                !stage.node.marks().contains(&ended),
                "it came back too late to show anything"
            );
            wait();
        }
        next.sync();
        assert_eq!(next.count_lines("\"name\": \"slow\""), 0);
        stage.server = next;
    }
}

#[test]
fn announced_server_is_found_again_after_a_move() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = udp.local_addr().expect("bound").port();
    drop(udp);
    let mut node = field.node("n1", Host::loopback());
    node.tables = gateway_config(
        "auto",
        &format!("announce_port = {port}\ntelemetry_every = \"200ms\""),
    );
    node.start(&[]);
    node.wait_log("any program on this network can");
    let announce = ["--announce", &port.to_string()];
    let server = CleverShowPeer::start(field.path(), "first", &announce);
    let mut stage = JoinedNode {
        server,
        node,
        test_dir: field,
    };
    stage.wait_joined();
    // The same server, back at the same port.
    let port = stage.server.port.to_string();
    stage.server.process.signal(Signal::KILL);
    stage.server.process.wait_exit(TEST_TIMEOUT);
    stage.server = CleverShowPeer::start(stage.test_dir.path(), "second", &["--port", &port]);
    stage.wait_joined();
    stage
        .server
        .wait("readings again", |line| line["action"] == "telemetry");
    // Another server, elsewhere: three attempts at the old address come first.
    stage.server.process.signal(Signal::KILL);
    stage.server.process.wait_exit(TEST_TIMEOUT);
    stage.server = CleverShowPeer::start(stage.test_dir.path(), "third", &announce);
    assert_ne!(stage.server.port.to_string(), port);
    stage.wait_joined();
}

#[test]
fn absent_server_is_reported_until_it_connects() {
    swarm_tests::needs_python!();
    let field = TestDir::new();
    // Bound, so that no other process gets the port, and not listening.
    let place = TcpSocket::new_v4().expect("a socket");
    place.set_reuseaddr(true).expect("set");
    place
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound");
    let addr = place.local_addr().expect("bound");
    let mut node = field.node("n1", Host::loopback());
    node.tables = gateway_config(&addr.to_string(), "telemetry = false");
    node.start(&[]);
    wait_until(TEST_TIMEOUT, "the status says why", || {
        let shown = &node.status()["clever_show"];
        let problem = shown["problem"].as_str().unwrap_or_default();
        shown["state"] == "looking" && problem.starts_with(&format!("nothing listens at {addr};"))
    });
    node.wait_log("Clever-show server not reached; retrying");
    let server = CleverShowPeer::start(field.path(), "late", &["--port", &addr.port().to_string()]);
    let mut stage = JoinedNode {
        server,
        node,
        test_dir: field,
    };
    stage.wait_joined();
    let shown = &stage.node.status()["clever_show"];
    assert_eq!(
        (&shown["state"], &shown["problem"]),
        (&json!("joined"), &Value::Null)
    );
}

#[test]
fn misbehaving_server_loses_only_its_connection() {
    swarm_tests::needs_python!();
    let mut stage = JoinedNode::joined_with("rate = 1000", "");
    let JoinedNode { server, node, .. } = &mut stage;
    // A valid frame without a meaning.
    let header = br#"{"byteorder":"?","content-type":"json","content-encoding":"utf-8","content-length":4,"message-type":"request"}"#;
    let mut frame = vec![0, u8::try_from(header.len()).expect("short")];
    frame.extend_from_slice(header);
    frame.extend_from_slice(b"null");
    server.control(&json!({"do": "raw", "hex": hex(&frame)}));
    server.sync();
    node.wait_log("name=\"invalid\"");
    // No frame at all.
    server.control(&json!({"do": "raw", "hex": "ffff00"}));
    server.wait("the connection ends", |line| line["event"] == "lost");
    stage.wait_joined();
    // A flood is logged at a limited rate, to spare the memory card.
    let JoinedNode { server, node, .. } = &mut stage;
    for _ in 0..400 {
        server.send_action("dance", &json!({}));
    }
    server.sync();
    let lines = node
        .log()
        .iter()
        .filter(|line| line.contains("\"dance\""))
        .count();
    assert!((50..250).contains(&lines), "{lines} lines of 400 uses");
    assert!(node.process().exit_status().is_none());
}
