//! A station on host 0 and a node on each of the others, linked.

use swarm_tests::fleet::{Host, Invite, Node, Station, TEST_TIMEOUT, TestDir};
use swarm_tests::lab::Lab;
use swarm_tests::process::wait_until;

pub(crate) struct Rig {
    pub(crate) station: Station,
    pub(crate) nodes: Vec<Node>,
    pub(crate) lab: Lab,
    pub(crate) test_dir: TestDir,
}

impl Rig {
    /// Not started; the nodes are named `n1` and so on, by the number of their hosts.
    pub(crate) fn new(nodes: usize) -> Option<Self> {
        let lab = Lab::or_skip(nodes + 1)?;
        let field = TestDir::new();
        let station = field.station("st", Host::in_lab(&lab, 0));
        let nodes = (1..=nodes)
            .map(|host| field.node(&format!("n{host}"), Host::in_lab(&lab, host)))
            .collect();
        Some(Self {
            station,
            nodes,
            lab,
            test_dir: field,
        })
    }

    /// All linked, by any discovery method.
    pub(crate) fn linked(nodes: usize) -> Option<Self> {
        let mut rig = Self::new(nodes)?;
        rig.start_and_join(&[]);
        Some(rig)
    }

    pub(crate) fn start_and_join(&mut self, flags: &[&str]) {
        self.station.serve();
        let code = self.station.invite(&Invite::nodes(self.nodes.len()));
        for node in &mut self.nodes {
            node.start(&[&["--join", &code][..], flags].concat());
        }
        self.check_all_linked();
    }

    /// Checks that all are online and answer.
    pub(crate) fn check_all_linked(&self) {
        self.station.wait_online(self.nodes.len());
        let ran = self.station.run(&["ping"]).expect_status(0);
        assert_eq!(ran.json().len(), self.nodes.len());
    }

    /// Waits until the station has seen a node at this address.
    pub(crate) fn wait_address(&self, node: &str, address: &str) {
        wait_until(TEST_TIMEOUT, &format!("{node} online at {address}"), || {
            let line = self.station.node(node);
            let seen = line["address"].as_str().unwrap_or_default();
            line["state"] == "online" && seen.starts_with(address)
        });
    }
}

/// Writes to standard error directly, because the output of `eprintln!` is hidden when a test passes.
pub(crate) fn print_stderr(text: &str) {
    let _written = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}
