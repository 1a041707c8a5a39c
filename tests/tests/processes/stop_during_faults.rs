//! The emergency stop while something fails: a blocked disk, a held state directory, no writable file.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use ground_station::store::lock::StateLock;
use swarm_tests::binaries;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT};
use swarm_tests::process::{Signal, Stream, sleep_for, wait_until};

#[test]
fn stop_does_not_wait_for_the_station_disk() {
    let fleet = Fleet::linked(2);
    // Writes that follow the linking are complete.
    sleep_for(Duration::from_millis(1_500));
    let disk = rusqlite::Connection::open(fleet.station.state_file("station.db")).expect("opens");
    disk.execute_batch("BEGIN IMMEDIATE").expect("no other writer");
    let ran = fleet.station.run(&["stop"]).expect_status(0);
    assert!(
        ran.duration < Duration::from_secs(4),
        "a write waits for 5 s: {ran:#?}"
    );
    assert!(
        fleet
            .nodes
            .iter()
            .all(|node| node.status()["stopped"].is_string())
    );
    disk.execute_batch("ROLLBACK").expect("the lock is released");
    wait_until(TEST_TIMEOUT, "it is in the history", || {
        let rows = fleet.station.run(&["history"]).json();
        rows.iter()
            .any(|row| row["kind"] == "stop" && row["states"]["done"] == 2)
    });
}

/// A fleet that receives datagrams, and whose station does not serve.
fn fleet_with_datagrams() -> Fleet {
    let free = UdpSocket::bind("0.0.0.0:0").expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let mut fleet = Fleet::linked_with(1, |node| node.ping_port = Some(port));
    fleet.station.signal_and_wait(Signal::TERM);
    let file = fleet.station.state_file("config.toml");
    let config = std::fs::read_to_string(&file).expect("read");
    let config = config.replace("pings = false", &format!("pings = true\nping_port = {port}"));
    std::fs::write(file, config).expect("written");
    fleet
}

#[test]
fn stop_does_not_wait_for_the_state_directory_lock() {
    let fleet = fleet_with_datagrams();
    let stopped = || fleet.nodes[0].status()["stopped"].is_string();
    let held = StateLock::try_acquire(&fleet.station.state_dir, "a test").expect("free");

    let ran = fleet.station.run(&["stop", "--timeout", "2s"]).expect_status(4);
    assert!(stopped());
    let error = ran.line_of("n1")["error"].to_string();
    assert!(error.contains("by datagram"), "{ran:#?}");
    let ran = ran
        .expect_stderr("holds its state (a test")
        .expect_stderr("stopping by datagrams meanwhile");
    assert_eq!(ran.outcome_of("n1"), "no-answer");

    // It continues, and is acknowledged as soon as links are possible.
    let mut stop = fleet.station.start(&["stop"]);
    stop.process()
        .wait_line(Stream::Err, TEST_TIMEOUT, "it reports the datagrams", |line| {
            line.contains("stopping by datagrams meanwhile")
        });
    drop(held);
    let ran = stop.finish(TEST_TIMEOUT).expect_status(0);
    assert_eq!(ran.outcome_of("n1"), "done");
    fleet.station.run(&["release", "all"]).expect_status(0);
    assert!(!stopped());
}

#[test]
fn stop_is_sent_although_no_file_is_writable() {
    let fleet = fleet_with_datagrams();
    // As on a full disk, every write to a file fails; standard output and error are pipes here.
    let ran = Command::new("/bin/sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 0; exec \"$0\" --json stop --timeout 3s",
        ])
        .arg(&binaries().station)
        .env("GROUND_STATION_STATE_DIR", &fleet.station.state_dir)
        .output()
        .expect("it runs");
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert_eq!(ran.status.code(), Some(4), "{out}\n{err}");
    assert!(err.contains("this station does not start"), "{err}");
    assert!(out.contains("by datagram"), "{out}");
    assert!(fleet.nodes[0].status()["stopped"].is_string());
    // The number of the datagrams does not make the next stop stale.
    let ran = fleet.station.run(&["stop"]).expect_status(0);
    assert_eq!(ran.outcome_of("n1"), "done");
}
