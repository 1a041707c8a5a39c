//! The examples of the shared crate, against real processes.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use swarm_tests::binaries::example;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT};
use swarm_tests::process::{Process, Signal, Stream, wait_until};

fn run_example(name: &str, arguments: &[PathBuf]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(example(name))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{text}{}", String::from_utf8_lossy(&stderr));
    text
}

fn words<const N: usize>(fleet: &Fleet, words: [&str; N]) -> Vec<PathBuf> {
    let state_dir = fleet.station.state_dir.clone();
    [state_dir].into_iter().chain(words.map(PathBuf::from)).collect()
}

#[test]
fn frame_example_agrees_with_the_library() {
    let text = run_example("frame", &[]);
    assert!(text.ends_with("both ways agree\n"), "{text}");
}

#[test]
fn call_example_prints_each_outcome() {
    let fleet = Fleet::linked(2);
    let text = run_example("call", &words(&fleet, ["all", "ping"]));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("n1: done") && lines[1].starts_with("n2: done"),
        "{text}"
    );
}

#[test]
fn watch_example_prints_nodes_and_changes() {
    let mut fleet = Fleet::linked(1);
    let mut command = Command::new(example("watch"));
    command.args(words(&fleet, ["all"]));
    let mut watch = Process::spawn(command, "watch", fleet.test_dir.path());
    let stdout = Stream::Out;
    watch.wait_line(stdout, TEST_TIMEOUT, "the node is online", |line| {
        line == "n1 online"
    });
    fleet.nodes[0].signal_and_wait(Signal::KILL);
    watch.wait_line(stdout, TEST_TIMEOUT, "the node is offline", |line| {
        line == "n1 offline"
    });
}

#[test]
fn send_file_example_delivers_the_file() {
    let fleet = Fleet::linked(1);
    let file = fleet.test_dir.file("take1.csv", b"1,2,3\n");
    let file = file.to_str().expect("text");
    let text = run_example("send_file", &words(&fleet, [file, "n1", "files/take1.csv"]));
    assert!(
        text.contains("6 of 6 bytes") && text.contains("n1: done"),
        "{text}"
    );
}

#[test]
fn plugin_example_adds_an_action() {
    let fleet = Fleet::linked(1);
    let mut command = Command::new(example("plugin"));
    command.arg(fleet.nodes[0].state_dir.join("plugin.sock"));
    let _plugin = Process::spawn(command, "plugin", fleet.test_dir.path());
    wait_until(TEST_TIMEOUT, "the node lists its plug-in", || {
        fleet.nodes[0].status()["plugins"].as_array().map(Vec::len) == Some(1)
    });
    let output = fleet
        .station
        .run(&["call", "n1", "blink", "times=3", "--timeout", "20s"]);
    assert_eq!(
        output.expect_status(0).line_of("n1")["value"],
        json!("blinked 3 times")
    );
}
