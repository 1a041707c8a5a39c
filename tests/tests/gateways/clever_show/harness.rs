//! A station with the gateway for clever-show's drones, and drones in Python.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use swarm_tests::fleet::{Host, Invite, Node, Station, TEST_TIMEOUT, TestDir};
use swarm_tests::process::{Process, Stream, wait_until};

/// A station with this gateway.
pub(super) struct DroneHarness {
    pub(super) drones: Vec<Process>,
    pub(super) nodes: Vec<Node>,
    pub(super) station: Station,
    pub(super) test_dir: TestDir,
    pub(super) udp_port: u16,
}

impl DroneHarness {
    pub(super) fn new(gateway: &str) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let udp_port = udp.local_addr().expect("bound").port();
        drop(udp);
        let field = TestDir::new();
        let mut station = field.station("st", Host::loopback());
        station.append_config(&format!(
            "[gateways.clever_show]\nlisten = \"127.0.0.1:0\"\nannounce_port = {udp_port}\n{gateway}"
        ));
        station.serve();
        Self {
            drones: Vec::new(),
            nodes: Vec::new(),
            station,
            test_dir: field,
            udp_port,
        }
    }

    /// Adds a node of our own.
    pub(super) fn add_node(&mut self) {
        let code = self.station.invite(&Invite::nodes(1));
        let mut node = self.test_dir.node("n1", Host::loopback());
        node.start(&["--join", &code]);
        self.nodes.push(node);
        self.station.wait_state("n1", "online");
    }

    pub(super) fn port(&self) -> u16 {
        let opened = "Gateway open gateway=\"clever_show\" listen=127.0.0.1:";
        let mut port = None;
        wait_until(TEST_TIMEOUT, "the log names the port", || {
            let log = self.station.log();
            let found = log.iter().find_map(|line| Some(line.split_once(opened)?.1));
            port = found.and_then(|port| port.trim().parse().ok());
            port.is_some()
        });
        port.expect("found")
    }

    pub(super) fn drone_dir(&self, drone: usize) -> PathBuf {
        self.test_dir.path().join(format!("drone-{drone}"))
    }

    /// Starts a drone; returns its number.
    pub(super) fn start(&mut self, words: &[&str]) -> usize {
        let number = self.drones.len();
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "peers", "clever_drone.py"]
            .iter()
            .collect();
        let mut command = Command::new("python3");
        command.env("CLEVER_DRONE_PAUSE", "0.2");
        command
            .arg("-u")
            .arg(script)
            .arg("--dir")
            .arg(self.drone_dir(number));
        command
            .arg("--udp-port")
            .arg(self.udp_port.to_string())
            .args(words);
        let name = format!("drone-{number}");
        self.drones
            .push(Process::spawn(command, &name, self.test_dir.path()));
        number
    }

    /// Starts a drone that dials the gateway's address, and waits until it has joined.
    pub(super) fn join(&mut self, id: &str, words: &[&str]) -> usize {
        let server = format!("127.0.0.1:{}", self.port());
        let number = self.start(&[&["--id", id, "--server", &server], words].concat());
        self.station.wait_state(id, "online");
        number
    }

    /// Waits for an event at a drone.
    pub(super) fn wait(&mut self, drone: usize, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.drones[drone].wait_json(TEST_TIMEOUT, what, wanted)
    }

    pub(super) fn wait_action(&mut self, drone: usize, action: &str) -> Value {
        self.wait(drone, action, |told| {
            told["event"] == "action" && told["action"] == action
        })
    }

    /// All events at a drone.
    pub(super) fn events(&self, drone: usize) -> Vec<Value> {
        let lines = self.drones[drone].lines(Stream::Out);
        let lines = lines.iter().map(|line| serde_json::from_str(line));
        lines.collect::<Result<_, _>>().expect("JSON lines")
    }

    pub(super) fn action_count(&self, drone: usize, action: &str) -> usize {
        let told = self.events(drone);
        told.iter().filter(|told| told["action"] == action).count()
    }

    /// Runs a verb that has one delivery, and returns it.
    pub(super) fn run_one(&self, words: &[&str], status: i32) -> Value {
        let mut all = self.station.run(words).expect_status(status).json();
        assert_eq!(all.len(), 1, "{words:?}: {all:?}");
        all.remove(0)
    }

    pub(super) fn run_for_value(&self, words: &[&str]) -> Value {
        let mut delivery = self.run_one(words, 0);
        assert_eq!(delivery["state"], "done", "{delivery}");
        delivery["value"].take()
    }
}

pub(super) fn by_name<'a>(nodes: &'a [Value], name: &str) -> &'a Value {
    let mut named = nodes.iter().filter(|node| node["node"] == name);
    named.next().unwrap_or(&Value::Null)
}
