//! A node: its configuration, its process, and the marks of its actions.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::{Host, TEST_TIMEOUT, TestDir};
use crate::binaries;
use crate::process::{Process, Signal, Stream, wait_until};

/// Actions for tests. `slow` writes a mark before and after its wait.
const ACTIONS: &str = r##"
[actions.echo]
command = ["/bin/echo", "{word} {times} {side}"]
args.word = { type = "string", pattern = "[a-z]+" }
args.times = { type = "integer", min = 1, max = 9, default = 1 }
args.side = { type = "choice", choices = ["left", "right"], default = "left" }

[actions.fail]
command = ["/bin/sh", "-c", "echo sorry; exit 7"]

[actions.hang]
command = ["/bin/sleep", "600"]
timeout = "500ms"

[actions.slow]
command = ["/bin/sh", "-c", "echo \"begin $1\" >>MARKS; sleep \"$2\"; echo \"end $1\" >>MARKS", "sh", "{tag}", "{time}"]
args.tag = { type = "string", pattern = "[a-z0-9]+" }
args.time = { type = "number", min = 0, max = 60, default = 0 }
timeout = "60s"
"##;

/// A node. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// The directory of its root `files`.
    pub files_root: PathBuf,
    /// Additional configuration: keys before the first table.
    pub keys: String,
    /// Additional configuration: whole tables.
    pub tables: String,
    /// Port for datagrams although it is on loopback.
    pub ping_port: Option<u16>,
    listen_addr: String,
    host: Host,
    logs: PathBuf,
    process: Option<Process>,
}

impl Node {
    pub(super) fn new(test_dir: &TestDir, name: &str, host: Host) -> Self {
        Self {
            name: name.to_owned(),
            state_dir: test_dir.dir(name),
            files_root: test_dir.dir(&format!("{name}-files")),
            keys: String::new(),
            tables: String::new(),
            ping_port: None,
            listen_addr: host.listen_addr(7420),
            host,
            logs: test_dir.path().to_owned(),
            process: None,
        }
    }

    /// The marks that its actions have written.
    pub fn marks(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.marks_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn marks_file(&self) -> PathBuf {
        self.logs.join(format!("{}-marks", self.name))
    }

    /// Changes its address from its next start on.
    pub fn set_listen_addr(&mut self, addr: &str) {
        addr.clone_into(&mut self.listen_addr);
    }

    /// Its address.
    pub fn listen_addr(&self) -> &str {
        &self.listen_addr
    }

    fn write_config(&self) {
        let marks = self.marks_file();
        let actions = ACTIONS.replace("MARKS", &marks.display().to_string());
        let config = format!(
            "name = {:?}\nlisten = {:?}\n{}\n[files]\nroots = {{ files = {:?} }}\n{actions}\n{}",
            self.name,
            self.listen_addr,
            self.keys,
            self.files_root.display().to_string(),
            self.tables
        );
        std::fs::write(self.state_dir.join("config.toml"), config).expect("written");
    }

    fn command(&self) -> Command {
        let mut command = self.host.command(&binaries().node);
        command.env("SWARM_NODE_STATE_DIR", &self.state_dir);
        command
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&mut self, flags: &[&str]) {
        self.write_config();
        let mut command = self.command();
        command.arg("run").args(flags);
        match self.ping_port {
            Some(port) => command.args(["--no-mdns", &format!("--ping-port={port}")]),
            None => command.args(self.host.isolation_flags()),
        };
        let mut process = Process::spawn(command, &self.name, &self.logs);
        process.wait_line(Stream::Err, TEST_TIMEOUT, "ready", |line| line.contains(" ready"));
        self.process = Some(process);
    }

    /// The running daemon.
    ///
    /// # Panics
    /// If it was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node runs")
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn signal_and_wait(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("the node runs");
        process.signal(signal);
        let status = process.wait_exit(TEST_TIMEOUT);
        assert!(
            signal != Signal::TERM || status.success(),
            "{}: {status}\n{}",
            self.name,
            process.log_tail()
        );
    }

    /// The log of all its runs.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.logs.join(format!("{}.err", self.name)));
        let text = text.unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a line in its log, of any of its runs.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_log(&self, what: &str) {
        wait_until(TEST_TIMEOUT, &format!("{}: log says {what:?}", self.name), || {
            self.log().iter().any(|line| line.contains(what))
        });
    }

    /// Runs another verb of `swarm-node` to its end.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&self, words: &[&str]) -> Output {
        self.write_config();
        self.command().args(words).output().expect("swarm-node runs")
    }

    /// Output of `swarm-node status --json`.
    ///
    /// # Panics
    /// If it prints nothing.
    pub fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            panic!(
                "{}: status: {e}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    /// Complete files in its root, by their names, and partial files of broken transfers.
    pub fn files(&self) -> (Vec<String>, Vec<String>) {
        let mut names = Vec::new();
        collect(&self.files_root, &self.files_root, &mut names);
        names.sort();
        names.into_iter().partition(|name| !name.ends_with(".part"))
    }
}

fn collect(root: &Path, dir: &Path, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, names);
        } else {
            let below = path.strip_prefix(root).expect("below its root");
            names.push(below.display().to_string());
        }
    }
}
