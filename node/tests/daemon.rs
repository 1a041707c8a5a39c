//! The real program: started, queried, shut down.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn swarm_node(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SWARM_NODE_") {
            command.env_remove(name);
        }
    }
    command.env("SWARM_NODE_STATE_DIR", dir).stdin(Stdio::null());
    command
}

fn run_command(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("not killed"), text(stdout), text(stderr))
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(command: &mut Command) -> Self {
        Self::start_with(command, &[])
    }

    fn start_with(command: &mut Command, flags: &[&str]) -> Self {
        let child = command
            .args(["run", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        Self { child }
    }

    fn status(dir: &Path) -> Value {
        for _ in 0..200 {
            let (code, out, _) = run_command(swarm_node(dir).args(["status", "--json"]));
            if code == 0 {
                return serde_json::from_str(&out).expect("JSON");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("the daemon does not answer");
    }

    /// Sends a signal; returns the exit status and the log.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        let mut log = String::new();
        let stderr = self.child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut log).expect("UTF-8");
        (self.child.wait().expect("it ends").code(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only after a failed test: otherwise it has ended.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn the_daemon_runs_answers_and_shuts_down_cleanly() {
    let dir = TempDir::new().expect("a directory");
    let dir = dir.path();
    let (code, _, error) = run_command(swarm_node(dir).arg("status"));
    assert_eq!(code, 1);
    assert!(
        error.contains("no daemon runs with the state directory"),
        "{error}"
    );

    let daemon = Daemon::start_with(&mut swarm_node(dir), &["--name", "n7"]);
    let status = Daemon::status(dir);
    assert_eq!(status["name"], "n7");
    let id = status["id"].as_str().expect("a text").to_owned();
    assert_eq!(id.len(), 64);
    let (code, out, _) = run_command(swarm_node(dir).arg("id"));
    assert_eq!(code, 0);
    assert!(out.contains("name  n7") && out.contains(&id), "{out}");

    let (code, _, error) = run_command(swarm_node(dir).arg("run"));
    assert_eq!(code, 1);
    assert!(error.contains("another swarm-node runs"), "{error}");

    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("Node shuts down") && !log.contains("outlived"),
        "{log}"
    );
    assert!(!dir.join("status.sock").exists());
    let (_, out, _) = run_command(swarm_node(dir).args(["id", "--json"]));
    assert!(out.contains(&id), "the same key without a daemon: {out}");

    let again = Daemon::start(swarm_node(dir).env("SWARM_NODE_NAME", "n8"));
    let status = Daemon::status(dir);
    assert_eq!(
        (status["id"].as_str(), status["name"].as_str()),
        (Some(id.as_str()), Some("n8"))
    );
    assert_eq!(again.end(Signal::INT).0, Some(0));
}

#[test]
fn an_unwritable_state_dir_is_logged() {
    let missing = Path::new("/proc/swarm-node-test");
    let daemon = Daemon::start(&mut swarm_node(missing));
    std::thread::sleep(Duration::from_millis(500));
    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("NOTHING CAN BE REMEMBERED") && log.contains("IN MEMORY ONLY"),
        "{log}"
    );
}

#[test]
fn an_invalid_configuration_exits_with_status_2() {
    let dir = TempDir::new().expect("a directory");
    let dir = dir.path();
    std::fs::write(dir.join("config.toml"), "\nlisen = \"x\"\n").expect("written");
    let (code, _, error) = run_command(swarm_node(dir).arg("run"));
    assert_eq!(code, 2);
    assert!(
        error.contains("config.toml:2: unknown key `lisen`; did you mean `listen`?"),
        "{error}"
    );
    let (code, _, error) = run_command(
        swarm_node(dir)
            .env("SWARM_NODE_LISEN", "x")
            .args(["--config", "/dev/null"]),
    );
    assert_eq!(code, 2);
    assert!(error.contains("did you mean SWARM_NODE_LISTEN?"), "{error}");
    let (code, _, error) =
        run_command(swarm_node(dir).args(["run", "--config", "/dev/null", "--log", "info,,=="]));
    assert_eq!(code, 2);
    assert!(error.contains("is not a level"), "{error}");
    let (code, _, error) = run_command(swarm_node(dir).args(["join", "nonsense"]));
    assert_eq!(code, 2, "{error}");
    assert_eq!(run_command(swarm_node(dir).args(["run", "--name", "a b"])).0, 2);
}

#[test]
fn check_config_accepts_and_refuses_files() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[lost_link]\nafter = \"3s\"\ncommand = [\"hold\"]\n").expect("written");
    let (code, out, _) = run_command(swarm_node(dir.path()).arg("check-config").arg(&file));
    assert_eq!(code, 0);
    assert!(out.ends_with(": ok\n"), "{out}");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/swarm-node.example.toml");
    assert_eq!(
        run_command(swarm_node(dir.path()).args(["check-config", example])).0,
        0
    );
    let slip = dir.path().join("slip.toml");
    std::fs::write(&slip, "join = \"SWARM1-XXXX\"\n").expect("written");
    let (code, _, error) = run_command(swarm_node(dir.path()).arg("check-config").arg(&slip));
    assert_eq!(code, 2);
    assert!(error.contains("join: "), "{error}");
    let (code, out, error) = run_command(swarm_node(dir.path()).args(["check-config", "/no/such"]));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("/no/such: cannot be read"), "{error}");
}

#[test]
fn systemd_is_notified_of_start_watchdog_and_end() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a time-out");
    // Read continuously: a socket holds about ten messages, and then the daemon would wait.
    let (heard, words) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(bytes) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            if heard.send(text).is_err() {
                return;
            }
        }
    });
    let wait_for = |word: &str| {
        while !words.recv().expect(word).contains(word) {}
    };
    let state = dir.path().join("state");
    let daemon = Daemon::start(
        swarm_node(&state)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .env("JOURNAL_STREAM", "8:1"),
    );
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    let (code, log) = daemon.end(Signal::TERM);
    wait_for("STOPPING=1");
    assert_eq!(code, Some(0));
    assert!(
        log.starts_with(" INFO") || log.starts_with(" WARN"),
        "no time stamps: {log}"
    );
}
