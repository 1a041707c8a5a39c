//! A real node joins a clever-show server in Python, configured or by announcement, and does for it what its owner has
//! allowed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use swarm_tests::fleet::{Field, Fleet, Node, PATIENCE, Place};
use swarm_tests::process::{Process, Signal, Stream, wait_until};
use tokio::net::TcpSocket;

/// A clever-show server, or a peer that dials: what it is told to do, and what it tells.
pub(crate) struct Peer {
    process: Process,
    control: BufReader<TcpStream>,
    pub(crate) port: u64,
}

impl Peer {
    pub(crate) fn start(dir: &Path, name: &str, words: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/clever_server.py");
        let mut command = Command::new("python3");
        command.arg("-u").arg(script).args(words);
        let mut process = Process::spawn(command, name, dir);
        let ready = process.wait_json(PATIENCE, "ready", |line| line["event"] == "ready");
        let control = ready["control"].as_u64().expect("a port");
        let control = TcpStream::connect(format!("127.0.0.1:{control}")).expect("connected");
        Self {
            process,
            control: BufReader::new(control),
            port: ready["port"].as_u64().expect("a port"),
        }
    }

    pub(crate) fn order(&mut self, order: &Value) {
        let line = format!("{order}\n");
        self.control.get_mut().write_all(line.as_bytes()).expect("taken");
        let mut done = String::new();
        self.control.read_line(&mut done).expect("done");
        assert_eq!(done, "ok\n", "{order}");
    }

    pub(crate) fn wait(&mut self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.process.wait_json(PATIENCE, what, wanted)
    }

    /// The response to a request.
    fn ask(&mut self, value: &str, kwargs: &Value) -> Value {
        self.order(&json!({"do": "request", "value": value, "kwargs": kwargs}));
        let answered = |line: &Value| line["event"] == "response" && line["name"] == value;
        self.wait(value, answered)["value"].clone()
    }

    fn act(&mut self, action: &str, kwargs: &Value) {
        self.order(&json!({"do": "action", "action": action, "kwargs": kwargs}));
    }

    fn push(&mut self, filepath: &str, content: &[u8]) {
        self.order(&json!({"do": "push", "filepath": filepath, "hex": hex(content)}));
    }

    fn fetch(&mut self, filepath: &str) {
        let kwargs = json!({ "filepath": filepath });
        self.order(&json!({"do": "request", "value": "filetransfer", "kwargs": kwargs}));
    }

    /// Everything that was sent before this has been looked at: the node answers in order.
    fn settle(&mut self) {
        self.ask("time", &json!({}));
    }

    fn told(&self, what: &str) -> usize {
        let lines = self.process.lines(Stream::Out);
        lines.iter().filter(|line| line.contains(what)).count()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Stage {
    server: Peer,
    node: Node,
    field: Field,
}

impl Stage {
    /// A server and a node that has joined it.
    fn set(table: &str, more: &str) -> Self {
        let field = Field::new();
        let server = Peer::start(field.path(), "clever", &[]);
        let mut node = field.node("n1", Place::here());
        node.tables = door(&format!("127.0.0.1:{}", server.port), table) + more;
        node.start(&[]);
        let mut stage = Self { server, node, field };
        stage.joined();
        stage
    }

    fn joined(&mut self) {
        let asked = |line: &Value| line["event"] == "response" && line["name"] == "id";
        assert_eq!(self.server.wait("its id", asked)["value"], "n1");
    }
}

fn door(server: &str, table: &str) -> String {
    format!("[doors.clever_show]\nserver = {server:?}\n{table}\n")
}

#[test]
fn a_node_joins_and_answers_and_acts_as_allowed() {
    swarm_tests::needs_python!();
    let mut stage = Stage::set(
        "allow = [\"slow\", \"echo\", \"fail\", \"filetransfer\", \"id\"]\ntelemetry_every = \"100ms\"",
        "",
    );
    let Stage { server, node, .. } = &mut stage;
    let none = json!({});
    assert_eq!(server.ask("clover_dir", &none), "files", "its first root");
    let reading = server.wait("a reading", |line| line["action"] == "telemetry");
    let value = &reading["kwargs"]["value"];
    assert!(
        value["time_delta"].is_f64() && value["memory"]["total"].is_number(),
        "{reading}"
    );
    for _ in 0..3 {
        server.wait("readings go on", |line| line["action"] == "telemetry");
    }
    let time = server.ask("time", &none);
    assert!(time.as_f64().is_some_and(|seconds| seconds > 1.7e9), "{time}");
    assert!(server.ask("telemetry", &none)["time_delta"].is_f64());
    let checked = server.ask("selfcheck", &none);
    assert!(checked == "OK" || checked.is_array(), "{checked}");
    let config = server.ask("config", &json!({"send_configspec": true}));
    assert_eq!(config["config"]["doors"]["clever_show"]["allow"][0], "slow");
    assert_eq!(config["configspec"]["doors"]["clever_show"]["server"], "string");
    assert_eq!(server.ask("config", &none).get("configspec"), None);
    // The owner's, by name, as a request and as an action.
    let echoed = server.ask("echo", &json!({"word": "hello"}));
    assert_eq!(echoed, "hello 1 left\n");
    server.act("slow", &json!({"tag": "a"}));
    wait_until(PATIENCE, "the action ran", || {
        node.marks() == ["begin a", "end a"]
    });
    node.wait_log("what=\"action\" name=\"slow\" outcome=\"done\"");
    // Failing, unknown and disallowed: no answer, and the log says why.
    for (value, why) in [
        ("fail", "failed: exit status 7"),
        ("dance", "\\\"dance\\\" may not pass; name it in `allow`"),
        ("reboot", "\\\"reboot\\\" may not pass"),
    ] {
        server.order(&json!({"do": "request", "value": value}));
        server.act(value, &none);
        node.wait_log(&format!("what=\"request\" name={value:?} why=\"{why}"));
        node.wait_log(&format!("what=\"action\" name={value:?} why=\"{why}"));
        server.settle();
        assert_eq!(server.told(&format!("\"name\": {value:?}")), 0, "{value}");
    }
    server.act("hang", &none);
    node.wait_log("name=\"hang\" why=\"\\\"hang\\\" may not pass");
    // By clever-show's rule.
    server.act("id", &json!({"new_id": "-bad"}));
    node.wait_log("why=\"refused: \\\"-bad\\\" is not a name");
    assert_eq!(server.ask("id", &none), "n1");
    assert_eq!(server.ask("id", &json!({"new_id": "copter-7"})), "copter-7");
    server.act("id", &json!({"new_id": "/default"}));
    wait_until(PATIENCE, "a name of the default kind", || {
        server
            .ask("id", &none)
            .as_str()
            .is_some_and(|name| name.starts_with("copter0") || name.len() == 10)
    });
}

#[test]
fn files_go_below_the_roots_and_nowhere_else() {
    swarm_tests::needs_python!();
    let mut stage = Stage::set(
        "allow = [\"filetransfer\"]\ntelemetry = false\nfile_bytes = 2000000",
        "",
    );
    let Stage { server, node, field } = &mut stage;
    let content: Vec<u8> = (0..1_500_000_u32)
        .map(|n| u8::try_from(n % 251).expect("small"))
        .collect();
    server.push("files/shows/take1.csv", &content);
    server.push("files/empty", b"");
    server.settle();
    assert_eq!(
        std::fs::read(node.root.join("shows/take1.csv")).expect("kept"),
        content
    );
    server.fetch("files/shows/take1.csv");
    let file = server.wait("the file", |line| line["event"] == "file");
    assert_eq!(file["hex"], hex(&content));
    server.fetch("files/empty");
    let file = server.wait("the empty file", |line| line["event"] == "file");
    assert_eq!(file["hex"], "");

    std::os::unix::fs::symlink("/etc", node.root.join("link")).expect("a link");
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
        server.push(path, b"overwritten");
        server.fetch(path);
    }
    server.push("files/long", &vec![0; 2_000_001]);
    server.settle();
    assert_eq!(std::fs::read(&outside).expect("there"), b"secret");
    assert_eq!(server.told("\"event\": \"file\""), 2, "no file but those");
    let (whole, broken) = node.files();
    assert!(broken.is_empty(), "{broken:?}");
    let kept: Vec<&String> = whole.iter().filter(|name| !name.starts_with("link")).collect();
    assert_eq!(kept, ["empty", "shows/take1.csv"]);
    node.wait_log("leads out of its root or through a symbolic link");
    node.wait_log("2000001 bytes are more than the 2000000 allowed; passed over");
    assert_eq!(
        server.told("\"lost\"") + server.told("\"bad\""),
        0,
        "the link survived all of it"
    );
}

#[test]
fn without_a_list_a_server_only_looks() {
    swarm_tests::needs_python!();
    let mut stage = Stage::set("", "[execute]\nallowed = true\n");
    let Stage { server, node, .. } = &mut stage;
    for action in ["slow", "execute", "id", "config", "release", "filetransfer"] {
        let kwargs = json!({
            "tag": "a", "command": "touch /tmp/never", "new_id": "x", "config": {"adoptable": true}, "mode": "modify",
        });
        server.act(action, &kwargs);
    }
    server.push("files/x", b"x");
    server.fetch("files/x");
    server.settle();
    assert_eq!(server.ask("id", &json!({})), "n1");
    assert_eq!(
        (node.marks(), node.files().0),
        (Vec::<String>::new(), Vec::<String>::new())
    );
    node.wait_log("name=\"slow\" why=");
    node.wait_log("name=\"execute\" why=\"running a program may not be asked for by role operator");
    node.wait_log("as \"emergency_land\", does nothing on this node");
    assert_eq!(server.told("\"event\": \"file\""), 0);
}

#[test]
fn execute_takes_three_permissions() {
    swarm_tests::needs_python!();
    let run = |stage: &mut Stage| {
        let mark = stage.field.path().join("ran");
        let command = format!("echo \"$0 $((20 + 22))\" >{}", mark.display());
        stage.server.act("execute", &json!({ "command": command }));
        stage.server.settle();
        mark
    };
    for (table, more, why) in [
        (
            "allow = [\"exec*\"]",
            "[execute]\nallowed = true\n",
            "by role operator",
        ),
        ("role = \"admin\"", "[execute]\nallowed = true\n", "may not pass"),
        (
            "allow = [\"exec*\"]\nrole = \"admin\"",
            "",
            "execute is off on this node",
        ),
    ] {
        let mut stage = Stage::set(table, more);
        let mark = run(&mut stage);
        stage.node.wait_log(why);
        assert!(!mark.exists(), "{table}");
    }
    let mut stage = Stage::set(
        "allow = [\"execute\"]\nrole = \"admin\"",
        "[execute]\nallowed = true\n",
    );
    let mark = run(&mut stage);
    wait_until(PATIENCE, "it ran", || {
        std::fs::read_to_string(&mark).is_ok_and(|text| text == "/bin/sh 42\n")
    });
}

#[test]
fn an_emergency_stop_holds_for_the_door_too() {
    swarm_tests::needs_python!();
    let server = std::cell::RefCell::new(None);
    let fleet = Fleet::linked_with(1, |node| {
        let peer = Peer::start(node.dir.parent().expect("a field"), "clever", &[]);
        node.tables = door(
            &format!("127.0.0.1:{}", peer.port),
            "allow = [\"*\"]\ntelemetry = false",
        );
        *server.borrow_mut() = Some(peer);
    });
    let mut server = server.into_inner().expect("started");
    let node = &fleet.nodes[0];
    server.act("slow", &json!({"tag": "a", "time": 50}));
    wait_until(PATIENCE, "it runs", || node.marks() == ["begin a"]);
    fleet.station.run(&["stop"]).expect(0);
    node.wait_log("name=\"slow\" why=\"failed: emergency stop");
    server.act("slow", &json!({"tag": "b"}));
    node.wait_log("name=\"slow\" why=\"refused: ");
    let reading = server.ask("telemetry", &json!({}));
    assert!(!reading["stopped"].is_null(), "looking goes on: {reading}");
    // Only the fleet releases.
    server.act("release", &json!({}));
    node.wait_log("name=\"release\" why=");
    server.act("slow", &json!({"tag": "c"}));
    server.settle();
    assert_eq!(node.marks(), ["begin a"]);
    fleet.station.run(&["release", "all"]).expect(0);
    server.act("slow", &json!({"tag": "d"}));
    wait_until(PATIENCE, "it runs again", || {
        node.marks() == ["begin a", "begin d", "end d"]
    });
}

/// The plug-in that docs/plugins.md shows.
fn plug_in(field: &Field, node: &Node) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    let code = document.lines().skip_while(|line| *line != "```python").skip(1);
    let code: Vec<&str> = code.take_while(|line| *line != "```").collect();
    let script = field.file("lamp.py", (code.join("\n") + "\n").as_bytes());
    let mut command = Command::new("python3");
    command.arg(script).arg(node.dir.join("plugin.sock"));
    let process = Process::spawn(command, "lamp", field.path());
    wait_until(PATIENCE, "the plug-in is known", || {
        node.status()["plugins"].as_array().map(Vec::len) == Some(1)
    });
    process
}

#[test]
fn a_plug_in_s_question_is_answered_by_name() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = Stage::set(
        "allow = [\"bli*\", \"clock\", \"takeoff\"]\ntelemetry_every = \"100ms\"",
        flight,
    );
    let _lamp = plug_in(&stage.field, &stage.node);
    let Stage { server, node, .. } = &mut stage;
    assert!(server.ask("clock", &json!({})).is_f64());
    assert_eq!(server.ask("blink", &json!({"times": 3})), "blinked 3 times");
    server.act("blink", &json!({"times": 4}));
    server.wait("its reading beside ours", |line| {
        line["action"] == "telemetry" && line["kwargs"]["value"]["blinks"] == 4
    });
    server.act("blink", &json!({"times": "many"}));
    node.wait_log("name=\"blink\" why=\"refused: ");
    // A flight action is young enough when it comes.
    assert_eq!(server.ask("takeoff", &json!({})), "up\n");
}

#[test]
fn a_flight_action_that_lay_too_long_unread_is_not_done() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = Stage::set("allow = [\"takeoff\"]\ntelemetry = false\nrate = 10", flight);
    let Stage { server, node, .. } = &mut stage;
    for _ in 0..50 {
        server.act("dance", &json!({}));
    }
    server.act("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" why=\"expired: ");
    server.act("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" outcome=\"done\"");
}

#[test]
fn slow_actions_keep_no_flight_action_from_being_done() {
    swarm_tests::needs_python!();
    let flight = "[actions.takeoff]\ncommand = [\"/bin/echo\", \"up\"]\nclass = \"flight\"\n";
    let mut stage = Stage::set(
        "allow = [\"slow\", \"takeoff\"]\ntelemetry = false\nrate = 1000",
        flight,
    );
    let Stage { server, node, .. } = &mut stage;
    for number in 0..80 {
        server.act("slow", &json!({"tag": format!("s{number}"), "time": 50}));
    }
    server.act("takeoff", &json!({}));
    node.wait_log("name=\"takeoff\" outcome=\"done\"");
    // Who looks is answered, too, and what is too much is told of in the log.
    server.settle();
    node.wait_log("name=\"slow\" why=\"busy: too much waits");
    let begun = node.marks();
    assert!(
        begun.len() <= 6 && begun.iter().all(|mark| mark.starts_with("begin")),
        "{begun:?}"
    );
}

#[test]
fn what_a_server_may_do_to_the_machine_is_the_owner_s_to_say() {
    swarm_tests::needs_python!();
    let more = "[services]\nallow = [\"no-such-unit-of-swarm\"]\n[actions.test]\ncommand = [\"/bin/echo\", \"tested\"]\n";
    let mut stage = Stage::set("allow = [\"*\"]\ntelemetry = false", more);
    let Stage { server, node, .. } = &mut stage;
    // Handed to systemd, which knows no such unit, or is not there.
    server.act("service_restart", &json!({"name": "no-such-unit-of-swarm"}));
    node.wait_log("name=\"service_restart\" why=\"failed: ");
    server.act("service_restart", &json!({"name": "sshd"}));
    node.wait_log("name=\"service_restart\" why=\"refused: \\\"sshd\\\" may not be restarted");
    server.act("test", &json!({}));
    node.wait_log("name=\"test\" outcome=\"done\"");
    server.act("update_repo", &json!({}));
    node.wait_log("name=\"update_repo\" why=\"refused: ");
}

#[test]
fn an_answer_that_comes_too_late_is_not_given_to_the_next_connection() {
    swarm_tests::needs_python!();
    let mut stage = Stage::set("allow = [\"slow\"]\ntelemetry = false", "");
    let port = stage.server.port.to_string();
    // Once the answer comes while there is no server, once while there is another.
    for (name, seconds, none_there) in [("second", 1, true), ("third", 8, false)] {
        let kwargs = json!({ "tag": name, "time": seconds });
        let asked = json!({"do": "request", "value": "slow", "kwargs": kwargs});
        stage.server.order(&asked);
        let begun = format!("begin {name}");
        wait_until(PATIENCE, "it runs", || stage.node.marks().contains(&begun));
        stage.server.process.signal(Signal::KILL);
        stage.server.process.wait_exit(PATIENCE);
        let not_answered = || {
            let log = stage.node.log();
            let told = log.iter().filter(|line| line.contains("why=\"not answered"));
            told.count()
        };
        let (before, ended) = (not_answered(), format!("end {name}"));
        let wait = || {
            wait_until(PATIENCE, "it has ended, unanswered", || {
                stage.node.marks().contains(&ended) && not_answered() > before
            });
        };
        if none_there {
            wait();
        }
        let mut next = Peer::start(stage.field.path(), name, &["--port", &port]);
        let joined = |line: &Value| line["event"] == "response" && line["name"] == "id";
        next.wait("its id", joined);
        if !none_there {
            assert!(
                !stage.node.marks().contains(&ended),
                "it came back too late to show anything"
            );
            wait();
        }
        next.settle();
        assert_eq!(next.told("\"name\": \"slow\""), 0);
        stage.server = next;
    }
}

#[test]
fn a_server_that_announces_itself_is_found_and_found_again_elsewhere() {
    swarm_tests::needs_python!();
    let field = Field::new();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = udp.local_addr().expect("bound").port();
    drop(udp);
    let mut node = field.node("n1", Place::here());
    node.tables = door(
        "auto",
        &format!("announce_port = {port}\ntelemetry_every = \"200ms\""),
    );
    node.start(&[]);
    node.wait_log("anybody on this network can");
    let announce = ["--announce", &port.to_string()];
    let server = Peer::start(field.path(), "first", &announce);
    let mut stage = Stage { server, node, field };
    stage.joined();
    // The same server, back at the same port.
    let port = stage.server.port.to_string();
    stage.server.process.signal(Signal::KILL);
    stage.server.process.wait_exit(PATIENCE);
    stage.server = Peer::start(stage.field.path(), "second", &["--port", &port]);
    stage.joined();
    stage
        .server
        .wait("readings again", |line| line["action"] == "telemetry");
    // And another one, elsewhere: three attempts at the old place come first.
    stage.server.process.signal(Signal::KILL);
    stage.server.process.wait_exit(PATIENCE);
    stage.server = Peer::start(stage.field.path(), "third", &announce);
    assert_ne!(stage.server.port.to_string(), port);
    stage.joined();
}

#[test]
fn a_server_that_is_not_there_is_told_of_until_it_is() {
    swarm_tests::needs_python!();
    let field = Field::new();
    // Bound, so that nobody else gets it, and listened on by nobody.
    let place = TcpSocket::new_v4().expect("a socket");
    place.set_reuseaddr(true).expect("set");
    place
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound");
    let addr = place.local_addr().expect("bound");
    let mut node = field.node("n1", Place::here());
    node.tables = door(&addr.to_string(), "telemetry = false");
    node.start(&[]);
    wait_until(PATIENCE, "the status says why", || {
        let shown = &node.status()["clever_show"];
        let problem = shown["problem"].as_str().unwrap_or_default();
        shown["state"] == "looking" && problem.starts_with(&format!("nothing listens at {addr};"))
    });
    node.wait_log("no clever-show server; it is tried again");
    let server = Peer::start(field.path(), "late", &["--port", &addr.port().to_string()]);
    let mut stage = Stage { server, node, field };
    stage.joined();
    let shown = &stage.node.status()["clever_show"];
    assert_eq!(
        (&shown["state"], &shown["problem"]),
        (&json!("joined"), &Value::Null)
    );
}

#[test]
fn a_bad_server_costs_its_connection_and_nothing_else() {
    swarm_tests::needs_python!();
    let mut stage = Stage::set("rate = 1000", "");
    let Stage { server, node, .. } = &mut stage;
    // Means nothing, but is a frame.
    let header = br#"{"byteorder":"?","content-type":"json","content-encoding":"utf-8","content-length":4,"message-type":"request"}"#;
    let mut frame = vec![0, u8::try_from(header.len()).expect("short")];
    frame.extend_from_slice(header);
    frame.extend_from_slice(b"null");
    server.order(&json!({"do": "raw", "hex": hex(&frame)}));
    server.settle();
    node.wait_log("name=\"unreadable\"");
    // No frame at all.
    server.order(&json!({"do": "raw", "hex": "ffff00"}));
    server.wait("the connection ends", |line| line["event"] == "lost");
    stage.joined();
    // A flood is told of as often as a memory card can bear.
    let Stage { server, node, .. } = &mut stage;
    for _ in 0..400 {
        server.act("dance", &json!({}));
    }
    server.settle();
    let lines = node
        .log()
        .iter()
        .filter(|line| line.contains("\"dance\""))
        .count();
    assert!((50..250).contains(&lines), "{lines} lines of 400 uses");
    assert!(node.process().ended().is_none());
}
