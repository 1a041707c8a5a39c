//! How the program starts, shares its state directory, and ends.

use std::process::Command;
use std::time::Duration;

use ground_station::control::lock::StateLock;
use insta::assert_snapshot;

use crate::scripted_station::{PROGRAM, command, finish};

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
fn doors_that_could_never_do_what_they_are_for_do_not_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = |config: &str, variable: Option<(&str, &str)>| {
        std::fs::write(dir.path().join("config.toml"), config).expect("writes");
        let mut command = command(dir.path());
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--no-pings",
            "--no-mdns",
            "--quiet",
        ]);
        finish(command.envs(variable).spawn().expect("starts"), dir.path())
    };
    let mut told = String::new();
    for (config, variable) in [
        ("[doors.socktools]\nraw_action = \"led\"", None),
        ("[doors.platypush_tcp]\nallow = [\"execute\"]", None),
        (
            "[doors.knut]\nlisten = \"127.0.0.1:7423\"\n[doors.socktools]",
            None,
        ),
        ("[doors.socktools]\nraw = \"led\"", None),
        ("", Some(("GROUND_STATION_DOORS_KNUT_ALOW", "led"))),
    ] {
        let ran = serve(config, variable);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{}", ran.err);
        told.push_str(&ran.err);
    }
    assert_snapshot!(told, @r#"
    error: [doors.socktools]: `raw_action` could never be done: action "led" may not pass this door: it is not known to read, and no name in `allow` means it; name it in `allow` of [doors.socktools]
    error: [doors.platypush_tcp]: `allow` names "execute", but running a program may not be asked for by role operator: it takes role admin; set `role` in [doors.platypush_tcp], or take "execute" out of `allow`
    error: [doors.socktools] and [doors.knut] are both to listen on port 7423: give one of them another in `listen`
    error: DIR/config.toml:2: [doors.socktools]: unknown key "raw"; did you mean "raw_action", "raw_argument" or "raw_encoding"?
    error: environment variable GROUND_STATION_DOORS_KNUT_ALOW: nothing is called so; did you mean GROUND_STATION_DOORS_KNUT_ALLOW?
    "#);
    // A stop goes out whatever a file says of doors.
    std::fs::write(dir.path().join("config.toml"), "").expect("writes");
    let mut stop = command(dir.path());
    stop.args(["stop", "--timeout", "300ms"]);
    stop.env("GROUND_STATION_DOORS_KNUT_ALOW", "led");
    stop.env("GROUND_STATION_LISTEN", "127.0.0.1:0")
        .env("GROUND_STATION_PINGS", "false");
    let ran = finish(stop.spawn().expect("starts"), dir.path());
    assert!(
        ran.err.contains("the stop goes out all the same") && ran.err.contains("KNUT_ALLOW"),
        "{}",
        ran.err
    );
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

#[test]
fn a_door_whose_place_is_taken_is_told_of_before_any_link_is_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let config = format!("[doors.knut]\nlisten = \"127.0.0.1:{port}\"\n");
    std::fs::write(dir.path().join("config.toml"), config).expect("writes");
    let mut serve = command(dir.path());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"]);
    let ran = finish(serve.spawn().expect("starts"), dir.path());
    assert_eq!(ran.status, 2);
    let whole = ran.err.replace(&port.to_string(), "PORT");
    assert_snapshot!(whole, @"error: [doors.knut]: cannot listen on 127.0.0.1:PORT: Address already in use (os error 98); change `listen`, or end what uses that port");
}

#[test]
fn a_door_that_nobody_can_pass_is_told_of_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    // What keeps the station from going on, once the door is open.
    let never = "[doors.socktools]\nlisten = \"127.0.0.1:0\"\nraw_action = \"led\"";
    for (token, warned) in [("", true), ("token = \"0123456789abcdef\"\n", false)] {
        let config = format!("[doors.platypush_http]\nlisten = \"127.0.0.1:0\"\n{token}{never}\n");
        std::fs::write(dir.path().join("config.toml"), config).expect("writes");
        let mut serve = command(dir.path());
        serve.args(["serve", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"]);
        let ran = finish(serve.spawn().expect("starts"), dir.path());
        let says = "nobody can come in, other than by a hook: there is neither a user nor a `token`; type \
                    `ground-station door user add NAME`";
        assert_eq!(ran.err.contains(says), warned, "{}", ran.err);
    }
}

#[test]
fn what_is_typed_wrong_of_users_and_tokens_is_told_in_our_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |args: &[&str]| {
        let mut command = command(dir.path());
        command.args(args).stdin(std::process::Stdio::null());
        finish(command.spawn().expect("starts"), dir.path())
    };
    let ran = run(&["door", "token", "revoke", "nope"]);
    let says = "not the number of a token; `ground-station door tokens` shows them";
    assert!(ran.status == 2 && ran.err.contains(says), "{}", ran.err);
    let ran = run(&["door", "user", "add", "eva"]);
    let says = "no password came: type it, or write it to standard input";
    assert!(ran.status == 2 && ran.err.contains(says), "{}", ran.err);
}
