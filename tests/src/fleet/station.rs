//! A ground station: `serve`, and the verbs that go to its state directory.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use swarm_shared::net::clock;

use super::verb::VerbLogs;
use super::{Host, TEST_TIMEOUT, TestDir, Verb, VerbOutput, str_field};
use crate::binaries;
use crate::process::{Process, Signal, Stream, wait_until};

/// Longer than any verb of a test may take.
const VERB_TIMEOUT: Duration = Duration::from_secs(60);

/// Parameters of an invitation.
#[derive(Clone, Debug)]
pub struct Invite {
    /// `node`, `observer`, `operator`, `admin`.
    pub role: &'static str,
    /// Number of uses.
    pub uses: usize,
    /// Time for which it is valid.
    pub valid_for: &'static str,
}

impl Invite {
    /// An invitation for this many nodes.
    pub fn nodes(uses: usize) -> Self {
        Self {
            role: "node",
            uses,
            valid_for: "15m",
        }
    }

    /// An invitation for one station of this role.
    pub fn station(role: &'static str) -> Self {
        Self {
            role,
            ..Self::nodes(1)
        }
    }
}

/// A station. Dropping it kills its `serve`.
#[derive(Debug)]
pub struct Station {
    /// Its name.
    pub name: String,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Additional flags of `serve`.
    pub serve_flags: Vec<String>,
    host: Host,
    listen_addr: String,
    logs: PathBuf,
    verb_logs: VerbLogs,
    process: Option<Process>,
}

impl Station {
    pub(super) fn new(test_dir: &TestDir, name: &str, host: Host) -> Self {
        let dir = test_dir.dir(name);
        let listen = host.listen_addr(7421);
        let quiet = if host.isolation_flags().is_empty() {
            ""
        } else {
            "pings = false\nmdns = false\n"
        };
        let config = format!("name = \"{name}\"\nlisten = \"{listen}\"\n{quiet}");
        std::fs::write(dir.join("config.toml"), config).expect("written");
        let logs = test_dir.path().to_owned();
        Self {
            name: name.to_owned(),
            state_dir: dir,
            serve_flags: Vec::new(),
            listen_addr: listen,
            host,
            verb_logs: VerbLogs {
                dir: logs.clone(),
                station: name.to_owned(),
                count: Cell::new(0),
            },
            logs,
            process: None,
        }
    }

    /// Its address.
    pub fn listen_addr(&self) -> &str {
        &self.listen_addr
    }

    fn command(&self) -> Command {
        let mut command = self.host.command(&binaries().station);
        command.env("GROUND_STATION_STATE_DIR", &self.state_dir);
        command
    }

    /// Starts `serve` and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start.
    pub fn serve(&mut self) {
        let mut command = self.command();
        command.arg("serve").args(&self.serve_flags);
        let mut process = Process::spawn(command, &format!("{}-serve", self.name), &self.logs);
        process.wait_line(Stream::Err, TEST_TIMEOUT, "serving", |line| {
            line.starts_with("serving;")
        });
        self.process = Some(process);
    }

    /// The running `serve`.
    ///
    /// # Panics
    /// If it was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("serve runs")
    }

    /// Sends `serve` a signal and waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn signal_and_wait(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("serve runs");
        process.signal(signal);
        let status = process.wait_exit(TEST_TIMEOUT);
        assert!(
            signal != Signal::TERM || status.success(),
            "{}: {status}\n{}",
            self.name,
            process.log_tail()
        );
    }

    /// The log of `serve`, of all its runs.
    pub fn log(&self) -> Vec<String> {
        let path = self.logs.join(format!("{}-serve.err", self.name));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts a verb with `--json`.
    pub fn start(&self, words: &[&str]) -> Verb {
        let mut command = self.command();
        command.arg("--json").args(words);
        self.spawn(command, words)
    }

    fn spawn(&self, command: Command, words: &[&str]) -> Verb {
        let started = clock::now();
        let process = Process::spawn(command, &self.verb_logs.next_name(), &self.verb_logs.dir);
        Verb {
            words: words.join(" "),
            process,
            started,
        }
    }

    /// Runs a verb with `--json` to its end.
    ///
    /// # Panics
    /// If it hangs.
    pub fn run(&self, words: &[&str]) -> VerbOutput {
        self.start(words).finish(VERB_TIMEOUT)
    }

    /// Runs a verb without `--json`, with output for people.
    ///
    /// # Panics
    /// If it hangs.
    pub fn run_plain(&self, words: &[&str]) -> VerbOutput {
        let mut command = self.command();
        command.args(words);
        self.spawn(command, words).finish(VERB_TIMEOUT)
    }

    /// Issues an invitation; returns its code.
    ///
    /// # Panics
    /// If it does not.
    pub fn invite(&self, invite: &Invite) -> String {
        let uses = invite.uses.to_string();
        let words = ["fleet", "invite", "--role", invite.role, "--uses", &uses];
        let ran = self
            .run(&[&words[..], &["--valid-for", invite.valid_for]].concat())
            .expect_status(0);
        str_field(&ran.json()[0], "code").to_owned()
    }

    /// The lines of `nodes`, without waiting for links.
    pub fn nodes(&self) -> Vec<Value> {
        self.run(&["nodes", "--timeout", "1ms"]).json()
    }

    /// A node's line in `nodes`; null if there is none.
    pub fn node(&self, name: &str) -> Value {
        let mut nodes = self.nodes();
        nodes.retain(|node| node["node"] == name);
        nodes.pop().unwrap_or(Value::Null)
    }

    /// Waits until exactly this many nodes are known, all online.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_online(&self, count: usize) {
        self.wait_nodes(&format!("{count} nodes online"), |nodes| {
            nodes.len() == count && nodes.iter().all(|node| node["state"] == "online")
        });
    }

    /// Waits until a node is in this state.
    ///
    /// # Panics
    /// If it never is.
    pub fn wait_state(&self, name: &str, state: &str) {
        self.wait_nodes(&format!("{name} {state}"), |nodes| {
            nodes
                .iter()
                .any(|node| node["node"] == name && node["state"] == state)
        });
    }

    /// Waits until the lines of `nodes` meet a condition.
    ///
    /// # Panics
    /// If it never does.
    pub fn wait_nodes(&self, what: &str, mut wanted: impl FnMut(&[Value]) -> bool) {
        let mut shown = Vec::new();
        let deadline = clock::now() + TEST_TIMEOUT;
        wait_until(TEST_TIMEOUT + VERB_TIMEOUT, what, || {
            shown = self.nodes();
            let met = wanted(&shown);
            assert!(
                met || clock::now() < deadline,
                "{}: not within {TEST_TIMEOUT:?}: {what}\n{shown:#?}",
                self.name
            );
            met
        });
    }

    /// Starts `nodes --watch --json`, which prints changes as they come.
    pub fn watch(&self) -> Process {
        self.start(&["nodes", "--watch"]).process
    }

    /// Appends to its configuration file, before it starts.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn append_config(&self, more: &str) {
        let path = self.state_dir.join("config.toml");
        let old = std::fs::read_to_string(&path).expect("written by new");
        std::fs::write(path, format!("{old}{more}\n")).expect("written");
    }

    /// A file in its state directory.
    pub fn state_file(&self, name: &str) -> PathBuf {
        Path::new(&self.state_dir).join(name)
    }
}
