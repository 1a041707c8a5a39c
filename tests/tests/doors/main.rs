//! Programs of other systems at our doors: clients in Python's standard library, written against what is known of the
//! real ones, and real processes of ours.

mod knut;

use std::path::{Path, PathBuf};
use std::process::Command;

use swarm_tests::fleet::{Field, Fleet, Invite, Node, PATIENCE, Place, Station};
use swarm_tests::process::{Process, wait_until};

/// A station with doors, and linked nodes `n1`, `n2` and so on.
fn fleet_with_doors(doors: &str, nodes: usize, change: impl Fn(&mut Node, &Path)) -> Fleet {
    let field = Field::new();
    let mut station = field.station("st", Place::here());
    station.configure(doors);
    station.serve();
    let code = station.invite(&Invite::nodes(nodes));
    let nodes = (1..=nodes).map(|number| {
        let mut node = field.node(&format!("n{number}"), Place::here());
        change(&mut node, field.path());
        node.start(&["--join", &code]);
        node
    });
    let nodes: Vec<Node> = nodes.collect();
    station.wait_online(nodes.len());
    Fleet {
        station,
        nodes,
        field,
    }
}

/// The port that a door was given, as the log says.
fn door_port(station: &Station, door: &str) -> String {
    let opened = format!("door open door=\"{door}\" listen=127.0.0.1:");
    let mut port = String::new();
    wait_until(PATIENCE, &format!("the log names the port of {door}"), || {
        let log = station.log();
        let found = log.iter().find_map(|line| Some(line.split_once(&opened)?.1));
        port = found.unwrap_or_default().trim().to_owned();
        !port.is_empty()
    });
    port
}

/// A program of `tests/peers`.
fn peer(script: &str, words: &[&str]) -> Command {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "peers", script].iter().collect();
    let mut command = Command::new("python3");
    command.arg("-u").arg(path).args(words);
    command
}

/// Runs a peer to its end; its standard output.
fn run_peer(fleet: &Fleet, script: &str, words: &[&str]) -> Vec<String> {
    let mut process = start_peer(fleet, script, words);
    let status = process.wait_exit(PATIENCE);
    assert!(
        status.success(),
        "{script} {words:?}: {status}\n{}",
        process.tail()
    );
    process.lines(swarm_tests::process::Stream::Out)
}

/// Starts a peer.
fn start_peer(fleet: &Fleet, script: &str, words: &[&str]) -> Process {
    let name = format!("{script}-{}", words.join("-").replace(['/', ' '], "_"));
    let name: String = name.chars().take(80).collect();
    Process::spawn(peer(script, words), &name, fleet.field.path())
}
