//! A fleet of real processes: a station, nodes, and the verbs that an operator would type.
//!
//! On loopback every process has a port of its own, which it keeps over restarts, and neither pings nor mDNS are
//! used, so that fleets run side by side. On the hosts of a [`Lab`] the default ports are used.
//!
//! Tests do not sleep and hope: each wait has a deadline, and when it passes, the logs of all processes are shown.

mod node;
mod ports;
mod station;
mod verb;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use node::Node;
pub use station::{Invite, Station};
pub use verb::{Verb, VerbOutput};

use crate::lab::Lab;

/// Enough for anything that has to happen soon, on a busy machine.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a process runs, and its address there.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The network namespace; `None` for this machine's own.
    namespace: Option<String>,
}

impl Host {
    /// This machine's own network, on loopback.
    pub fn loopback() -> Self {
        Self::default()
    }

    /// A host of a lab.
    pub fn in_lab(lab: &Lab, host: usize) -> Self {
        Self {
            namespace: Some(lab.namespace(host)),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        // Settings in the environment of the user must not change a test.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("SWARM_NODE_") || text.starts_with("GROUND_STATION_") {
                command.env_remove(&name);
            }
        }
        command
    }

    fn listen_addr(&self, usual: u16) -> String {
        match self.namespace {
            Some(_) => format!("0.0.0.0:{usual}"),
            None => format!("127.0.0.1:{}", ports::next_free()),
        }
    }

    /// Fleets on one machine must not discover one another.
    fn isolation_flags(&self) -> &'static [&'static str] {
        match self.namespace {
            Some(_) => &[],
            None => &["--no-pings", "--no-mdns"],
        }
    }
}

/// State directories and logs of a test; kept if it fails.
#[derive(Debug)]
pub struct TestDir {
    dir: TempDir,
}

impl Default for TestDir {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDir {
    /// An empty directory.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn new() -> Self {
        // Short, because the path of a Unix socket in it may have 107 bytes.
        let dir = TempDir::with_prefix("swarm-").expect("a temporary directory");
        Self { dir }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A subdirectory of this name, created if needed.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    /// A file with this content.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    /// A file of this many pseudo-random bytes, which cannot be compressed.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn random_file(&self, name: &str, bytes: usize) -> PathBuf {
        self.file(name, &pseudo_random_bytes(bytes))
    }

    /// A port of 127.0.0.1 that no other process of the tests gets.
    pub fn free_port(&self) -> u16 {
        ports::next_free()
    }

    /// A station that is not running yet.
    pub fn station(&self, name: &str, place: Host) -> Station {
        Station::new(self, name, place)
    }

    /// A node that is not running yet.
    pub fn node(&self, name: &str, place: Host) -> Node {
        Node::new(self, name, place)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            let text = format!("state and logs are kept in {}\n", self.dir.path().display());
            let _written = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }
    }
}

/// A station and linked nodes, on loopback.
#[derive(Debug)]
pub struct Fleet {
    /// The serving station.
    pub station: Station,
    /// The linked nodes, named `n1`, `n2` and so on.
    pub nodes: Vec<Node>,
    /// Dropped after the processes, which write into it.
    pub test_dir: TestDir,
}

impl Fleet {
    /// Starts a station and nodes, and waits until all are online.
    ///
    /// # Panics
    /// If they do not link.
    pub fn linked(nodes: usize) -> Self {
        Self::linked_with(nodes, |_node| {})
    }

    /// As [`Self::linked`]; `change` adapts each node's configuration before its start.
    ///
    /// # Panics
    /// If they do not link.
    pub fn linked_with(nodes: usize, change: impl Fn(&mut Node)) -> Self {
        Self::linked_in(TestDir::new(), nodes, |node, _field| change(node))
    }

    /// As [`Self::linked`], in an existing directory; `change` gets its path.
    ///
    /// # Panics
    /// If they do not link.
    pub fn linked_in(field: TestDir, nodes: usize, change: impl Fn(&mut Node, &Path)) -> Self {
        Self::linked_with_station_config(field, nodes, "", change)
    }

    /// As [`Self::linked`], with additional configuration of the station.
    ///
    /// # Panics
    /// If they do not link.
    pub fn linked_with_station_config(
        field: TestDir,
        nodes: usize,
        more: &str,
        change: impl Fn(&mut Node, &Path),
    ) -> Self {
        let mut station = field.station("st", Host::loopback());
        station.append_config(more);
        station.serve();
        let code = station.invite(&Invite::nodes(nodes));
        let nodes: Vec<Node> = (1..=nodes)
            .map(|number| {
                let mut node = field.node(&format!("n{number}"), Host::loopback());
                change(&mut node, field.path());
                node.start(&["--join", &code]);
                node
            })
            .collect();
        station.wait_online(nodes.len());
        Self {
            station,
            nodes,
            test_dir: field,
        }
    }

    /// Runs `slow` on all nodes: two marks with this tag, so many seconds apart; see [`Node::marks`].
    pub fn start_slow(&self, tag: &str, seconds: &str) -> Verb {
        let (tag, time) = (format!("tag={tag}"), format!("time={seconds}"));
        let words = [
            "call",
            "all",
            "slow",
            &tag,
            &time,
            "--ttl",
            "20s",
            "--timeout",
            "6s",
        ];
        self.station.start(&words)
    }
}

/// Pseudo-random bytes, the same in every run.
pub fn pseudo_random_bytes(bytes: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut words = Vec::with_capacity(bytes + 8);
    while words.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
    }
    words.truncate(bytes);
    words
}

/// The text of a field; empty if it has none.
pub fn str_field<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}
