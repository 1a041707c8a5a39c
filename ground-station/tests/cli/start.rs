//! How the program starts, shares its state directory, and ends.

use std::process::Command;
use std::time::Duration;

use ground_station::control::lock::StateLock;
use insta::assert_snapshot;

use crate::station::{PROGRAM, command, finish};

#[test]
fn a_bad_configuration_names_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("config.toml"), "name = \"x\"\nlissten = \"\"\n").expect("writes");
    let ran = finish(
        command(dir.path()).arg("nodes").spawn().expect("starts"),
        dir.path(),
    );
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.err, @r#"error: DIR/config.toml:2: unknown key "lissten"; did you mean "listen"?"#);
}

#[test]
fn nothing_is_read_from_the_home_of_whoever_runs_it() {
    let ran = Command::new(PROGRAM)
        .arg("nodes")
        .env_clear()
        .output()
        .expect("runs");
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(2));
    assert_snapshot!(err, @"error: neither XDG_STATE_HOME nor HOME is set; use --state-dir DIR");
}

#[test]
fn a_second_verb_waits_and_says_for_whom() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = StateLock::try_take(dir.path(), "ground-station send").expect("free");
    let waiting = || {
        command(dir.path())
            .args(["nodes", "--timeout", "700ms"])
            .spawn()
            .expect("starts")
    };
    let ran = finish(waiting(), dir.path());
    assert_eq!(ran.status, 2);
    let text = ran.err.replace(&std::process::id().to_string(), "PID");
    assert_snapshot!(text, @r#"
    waiting for ground-station send (pid PID), which uses DIR
    error: "DIR" is in use by ground-station send (pid PID); wait for it to end, or use another --state-dir
    "#);

    let child = waiting();
    std::thread::sleep(Duration::from_millis(200));
    drop(lock);
    assert_eq!(
        finish(child, dir.path()).status,
        3,
        "it got its turn, and there is nobody"
    );
}

#[test]
fn serve_shares_its_links_and_ends_cleanly() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = command(dir.path())
        .args(["serve", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"])
        .spawn()
        .expect("starts");
    let socket = dir.path().join("control.sock");
    for _ in 0..200 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = finish(
        command(dir.path()).arg("serve").spawn().expect("starts"),
        dir.path(),
    );
    assert_eq!(second.status, 2);
    assert_snapshot!(second.err, @"error: a station already serves DIR; stop it first, or use another --state-dir");
    let pid = i32::try_from(server.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert_eq!(finish(server, dir.path()).status, 0);
    assert!(!socket.exists(), "the socket goes with it");
}
