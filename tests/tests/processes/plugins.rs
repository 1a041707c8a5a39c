//! The plug-in of docs/plugins.md, unchanged: run by Python against a real node, called from a station, killed, and
//! suspended.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, str_field};
use swarm_tests::process::{Process, Signal, wait_until};

/// The longest example that is still short, in lines.
const LINES_MAX: usize = 39;

/// The first block of Python in docs/plugins.md.
fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    let lines = document.lines().skip_while(|line| *line != "```python").skip(1);
    let code: Vec<&str> = lines.take_while(|line| *line != "```").collect();
    assert!((10..=LINES_MAX).contains(&code.len()), "{} lines", code.len());
    code.join("\n") + "\n"
}

struct PluginFleet {
    fleet: Fleet,
    script: PathBuf,
    socket: PathBuf,
}

impl PluginFleet {
    fn new() -> Self {
        let fleet = Fleet::linked(1);
        let script = fleet.test_dir.file("lamp.py", example().as_bytes());
        let socket = fleet.nodes[0].state_dir.join("plugin.sock");
        Self {
            fleet,
            script,
            socket,
        }
    }

    /// Starts the example and waits until it has registered.
    fn start(&self, name: &str) -> Process {
        let mut command = Command::new("python3");
        command.arg(&self.script).arg(&self.socket);
        let process = Process::spawn(command, name, self.fleet.test_dir.path());
        self.wait_plugins(1);
        process
    }

    fn wait_plugins(&self, count: usize) {
        wait_until(TEST_TIMEOUT, "the node's status lists its plug-ins", || {
            self.fleet.nodes[0].status()["plugins"].as_array().map(Vec::len) == Some(count)
        });
    }

    fn call(&self, words: &[&str], status: i32) -> Value {
        let words = [&["call", "n1"], words, &["--timeout", "20s"]].concat();
        self.fleet.station.run(&words).expect_status(status).line_of("n1")
    }

    /// How often the node has started this command.
    fn count_commands(&self, action: &str) -> usize {
        let action = format!("action=\"{action}\"");
        let log = self.fleet.nodes[0].log();
        log.iter()
            .filter(|line| line.contains(" Command started ") && line.contains(&action))
            .count()
    }
}

#[test]
fn documented_plugin_works() {
    swarm_tests::needs_python!();
    let lamp = PluginFleet::new();
    let mode = std::fs::metadata(&lamp.socket)
        .expect("the socket is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let refused = lamp.call(&["blink"], 1);
    assert!(
        str_field(&refused, "error").contains("no action is called \"blink\""),
        "{refused}"
    );

    let mut process = lamp.start("lamp");
    assert_eq!(lamp.call(&["blink", "times=3"], 0)["value"], "blinked 3 times");
    assert!(
        lamp.call(&["clock"], 0)["value"]
            .as_f64()
            .is_some_and(|now| now > 1e9)
    );
    let told = lamp.call(&["telemetry"], 0);
    let blinks = &told["value"]["plugins"]["lamp"]["blinks"];
    assert_eq!((&blinks["value"], &blinks["unit"]), (&3.into(), &"times".into()));
    assert!(blinks["age_s"].as_f64().is_some_and(|age| age < 60.0), "{blinks}");
    let refused = lamp.call(&["blink", "times=many"], 1);
    assert_eq!(
        str_field(&refused, "error"),
        "argument times must be an integer, not \"many\""
    );
    let status = &lamp.fleet.nodes[0].status()["plugins"][0];
    assert_eq!(
        (&status["name"], &status["pid"]),
        (&"lamp".into(), &process.pid().into())
    );

    // A second one with the same name is refused, and the first continues.
    let mut command = Command::new("python3");
    command.arg(&lamp.script).arg(&lamp.socket);
    let output = command.output().expect("Python runs");
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("a plug-in called \"lamp\" is connected already"),
        "{told}"
    );
    assert_eq!(lamp.call(&["blink"], 0)["value"], "blinked 1 times");

    process.signal(Signal::KILL);
    process.wait_exit(TEST_TIMEOUT);
    lamp.wait_plugins(0);
    assert!(
        lamp.call(&["telemetry"], 0)["value"]["plugins"].is_null(),
        "its readings went with it"
    );
}

#[test]
fn plugin_crash_or_hang_fails_the_call_with_a_reason() {
    swarm_tests::needs_python!();
    let lamp = PluginFleet::new();
    // Suspended, it receives the command and does not answer.
    let mut process = lamp.start("lamp");
    process.signal(Signal::STOP);
    let dying = lamp
        .fleet
        .station
        .start(&["call", "n1", "blink", "--timeout", "20s"]);
    wait_until(TEST_TIMEOUT, "the command is at the node", || {
        lamp.count_commands("blink") == 1
    });
    process.signal(Signal::KILL);
    let ended = dying.finish(TEST_TIMEOUT).expect_status(1).line_of("n1");
    assert_eq!(ended["state"], "failed");
    let why = "the plug-in lamp went away while blink ran: it closed its connection";
    assert_eq!(str_field(&ended, "error"), why);
    process.wait_exit(TEST_TIMEOUT);
    lamp.wait_plugins(0);

    let mut process = lamp.start("lamp2");
    process.signal(Signal::STOP);
    let ended = lamp.call(&["blink", "times=9"], 1);
    assert_eq!(ended["state"], "failed");
    assert_eq!(
        str_field(&ended, "error"),
        "the plug-in lamp did not answer within 5s"
    );
    // A command that it reads from its socket after that is too old to start; then it works again.
    process.signal(Signal::CONT);
    lamp.call(&["clock"], 0);
    let told = lamp.call(&["telemetry"], 0);
    assert!(told["value"]["plugins"].is_null(), "the old call ran: {told}");
    assert_eq!(lamp.call(&["blink", "times=2"], 0)["value"], "blinked 2 times");
}

#[test]
fn plugin_socket_is_removed_on_exit_and_can_be_disabled() {
    let mut fleet = Fleet::linked_with(1, |_node| {});
    let socket = fleet.nodes[0].state_dir.join("plugin.sock");
    // A socket that a killed daemon left is replaced.
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    assert!(socket.exists());
    fleet.nodes[0].start(&[]);
    std::os::unix::net::UnixStream::connect(&socket).expect("it listens again");
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    assert!(!socket.exists());
    fleet.nodes[0].tables = "[plugins]\nenabled = false\n".to_owned();
    fleet.nodes[0].start(&[]);
    assert!(!socket.exists());
}
