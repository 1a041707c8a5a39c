//! A station with a door for clever-show's drones, and drones in Python.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use swarm_tests::fleet::{Field, Invite, Node, PATIENCE, Place, Station};
use swarm_tests::process::{Process, Stream, wait_until};

/// A station with this door.
pub(super) struct Show {
    pub(super) drones: Vec<Process>,
    pub(super) nodes: Vec<Node>,
    pub(super) station: Station,
    pub(super) field: Field,
    pub(super) udp_port: u16,
}

impl Show {
    pub(super) fn new(door: &str) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let udp_port = udp.local_addr().expect("bound").port();
        drop(udp);
        let field = Field::new();
        let mut station = field.station("st", Place::here());
        station.configure(&format!(
            "[doors.clever_show]\nlisten = \"127.0.0.1:0\"\nannounce_port = {udp_port}\n{door}"
        ));
        station.serve();
        Self {
            drones: Vec::new(),
            nodes: Vec::new(),
            station,
            field,
            udp_port,
        }
    }

    /// One node of our own.
    pub(super) fn add_node(&mut self) {
        let code = self.station.invite(&Invite::nodes(1));
        let mut node = self.field.node("n1", Place::here());
        node.start(&["--join", &code]);
        self.nodes.push(node);
        self.station.wait_state("n1", "online");
    }

    pub(super) fn port(&self) -> u16 {
        let opened = "door open door=\"clever_show\" listen=127.0.0.1:";
        let mut port = None;
        wait_until(PATIENCE, "the log names the port", || {
            let log = self.station.log();
            let found = log.iter().find_map(|line| Some(line.split_once(opened)?.1));
            port = found.and_then(|port| port.trim().parse().ok());
            port.is_some()
        });
        port.expect("found")
    }

    pub(super) fn dir(&self, drone: usize) -> PathBuf {
        self.field.path().join(format!("drone-{drone}"))
    }

    /// Starts a drone; its number.
    pub(super) fn start(&mut self, words: &[&str]) -> usize {
        let number = self.drones.len();
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "peers", "clever_drone.py"]
            .iter()
            .collect();
        let mut command = Command::new("python3");
        command.env("CLEVER_DRONE_PAUSE", "0.2");
        command.arg("-u").arg(script).arg("--dir").arg(self.dir(number));
        command
            .arg("--udp-port")
            .arg(self.udp_port.to_string())
            .args(words);
        let name = format!("drone-{number}");
        self.drones
            .push(Process::spawn(command, &name, self.field.path()));
        number
    }

    /// The same, sent to the door's address, and waited for.
    pub(super) fn join(&mut self, id: &str, words: &[&str]) -> usize {
        let server = format!("127.0.0.1:{}", self.port());
        let number = self.start(&[&["--id", id, "--server", &server], words].concat());
        self.station.wait_state(id, "online");
        number
    }

    /// Waits for something that happens at a drone.
    pub(super) fn wait(&mut self, drone: usize, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.drones[drone].wait_json(PATIENCE, what, wanted)
    }

    pub(super) fn wait_action(&mut self, drone: usize, action: &str) -> Value {
        self.wait(drone, action, |told| {
            told["event"] == "action" && told["action"] == action
        })
    }

    /// Everything that has happened at a drone.
    pub(super) fn told(&self, drone: usize) -> Vec<Value> {
        let lines = self.drones[drone].lines(Stream::Out);
        let lines = lines.iter().map(|line| serde_json::from_str(line));
        lines.collect::<Result<_, _>>().expect("JSON lines")
    }

    pub(super) fn was_told(&self, drone: usize, action: &str) -> usize {
        let told = self.told(drone);
        told.iter().filter(|told| told["action"] == action).count()
    }

    /// The only delivery of a verb.
    pub(super) fn one(&self, words: &[&str], status: i32) -> Value {
        let mut all = self.station.run(words).expect(status).json();
        assert_eq!(all.len(), 1, "{words:?}: {all:?}");
        all.remove(0)
    }

    pub(super) fn value(&self, words: &[&str]) -> Value {
        let mut delivery = self.one(words, 0);
        assert_eq!(delivery["state"], "done", "{delivery}");
        delivery["value"].take()
    }
}

pub(super) fn by_name<'a>(nodes: &'a [Value], name: &str) -> &'a Value {
    let mut named = nodes.iter().filter(|node| node["node"] == name);
    named.next().unwrap_or(&Value::Null)
}
