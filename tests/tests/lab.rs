//! Tests of the lab itself: if one of these fails, the other tests in namespaces prove nothing.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_tests::lab::Lab;
use swarm_tests::process::{Process, Signal, Stream, wait_until};

const TEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds for a connection attempt that cannot succeed.
const ATTEMPT: &str = "1";

/// A helper program: answers TCP connections, or opens one.
const TALK: &str = env!("CARGO_BIN_EXE_talk");

fn listen(lab: &Lab, host: usize) -> Process {
    let mut server = lab.spawn(host, &format!("listen-{host}"), TALK, &["listen", "0.0.0.0:9000"]);
    server.wait_line(Stream::Out, TEST_TIMEOUT, "listening", |line| line == "listening");
    server
}

fn reaches(lab: &Lab, from: usize, to: Ipv4Addr) -> bool {
    let to = format!("{to}:9000");
    lab.run(from, TALK, &["call", &to, ATTEMPT]).status.success()
}

#[test]
fn lab_link_and_carrier_loss_cut_traffic_until_restored() {
    let Some(lab) = Lab::or_skip(2) else { return };
    let _server = listen(&lab, 1);
    assert!(reaches(&lab, 0, lab.ip(1)));
    lab.link_down(1);
    assert!(!reaches(&lab, 0, lab.ip(1)));
    lab.link_up(1);
    wait_until(TEST_TIMEOUT, "reachable again", || reaches(&lab, 0, lab.ip(1)));
    lab.set_carrier(1, false);
    assert!(!reaches(&lab, 0, lab.ip(1)));
    lab.set_carrier(1, true);
    wait_until(TEST_TIMEOUT, "reachable again", || reaches(&lab, 0, lab.ip(1)));
}

#[test]
fn lab_partition_keeps_each_side_connected() {
    let Some(lab) = Lab::or_skip(4) else { return };
    let _servers: Vec<Process> = (0..4).map(|host| listen(&lab, host)).collect();
    lab.partition(&[2, 3]);
    for (from, to, expected) in [(0, 1, true), (2, 3, true), (0, 2, false), (3, 1, false)] {
        assert_eq!(reaches(&lab, from, lab.ip(to)), expected, "{from} to {to}");
    }
    lab.heal();
    // Not at once: the kernel remembers for a moment that its ARP requests were not answered.
    for (from, to) in [(0, 2), (3, 1)] {
        wait_until(TEST_TIMEOUT, "reachable again", || {
            reaches(&lab, from, lab.ip(to))
        });
    }
}

#[test]
fn lab_addresses_change_and_networks_are_added() {
    let Some(mut lab) = Lab::or_skip(2) else { return };
    let _server = listen(&lab, 1);
    let new = Ipv4Addr::new(10, 77, 9, 9);
    let old = lab.ip(1);
    lab.set_address(1, new);
    assert_eq!(lab.ip(1), new);
    assert!(reaches(&lab, 0, new) && !reaches(&lab, 0, old));
    let second = lab.add_network(&[0, 1]);
    lab.link_down(1);
    assert!(
        reaches(&lab, 0, second[1]),
        "the second network is one of its own"
    );
}

#[test]
fn lab_rate_limit_applies_and_lifts() {
    let Some(lab) = Lab::or_skip(2) else { return };
    let _server = listen(&lab, 1);
    let to = format!("{}:9000", lab.ip(1));
    // 1 MiB at 4 Mbit/s takes 2.1 s, a little less because of the burst of 64 KiB.
    let timed = || {
        let start = clock::now();
        let sent = lab.run(0, TALK, &["send", &to, "1048576"]);
        assert!(sent.status.success(), "{sent:?}");
        clock::since(start)
    };
    assert!(timed() < Duration::from_secs(1));
    lab.set_rate_limit(0, Some("4mbit"));
    assert!(timed() > Duration::from_millis(1500));
    lab.set_rate_limit(0, None);
    assert!(timed() < Duration::from_secs(1));
}

#[test]
fn dropped_lab_leaves_no_namespaces() {
    let Some(lab) = Lab::or_skip(1) else { return };
    let server = listen(&lab, 0);
    let (namespace, logs) = (lab.namespace(0), lab.logs().to_owned());
    let alive = Path::new("/proc").join(server.pid().to_string());
    assert!(alive.exists() && Path::new("/run/netns").join(&namespace).exists());
    drop(lab);
    wait_until(TEST_TIMEOUT, "the program is killed", || {
        // It may stay a zombie until its `Process` is dropped.
        let status = std::fs::read_to_string(alive.join("status")).unwrap_or_default();
        !alive.exists() || status.contains("State:\tZ")
    });
    assert!(!Path::new("/run/netns").join(&namespace).exists() && !logs.exists());
    drop(server);
}

#[test]
fn process_reports_exit_and_receives_signals() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = std::process::Command::new(TALK);
    command.args(["listen", "127.0.0.1:0"]);
    let mut server = Process::spawn(command, "talk", dir.path());
    server.wait_line(Stream::Out, TEST_TIMEOUT, "listening", |line| line == "listening");
    assert_eq!(server.lines(Stream::Out), ["listening"]);
    assert_eq!(server.exit_status(), None);
    server.signal(Signal::TERM);
    assert!(!server.wait_exit(TEST_TIMEOUT).success());
    server.signal(Signal::TERM);
}
