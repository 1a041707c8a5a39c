//! How the program starts, shares its state directory, and ends.

use std::process::Command;
use std::time::Duration;

use ground_station::store::lock::StateLock;
use insta::assert_snapshot;

use crate::scripted_station::{PROGRAM, command, wait_for_output};

#[test]
fn bad_configuration_error_names_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("config.toml"), "name = \"x\"\nlissten = \"\"\n").expect("writes");
    let ran = wait_for_output(
        command(dir.path()).arg("nodes").spawn().expect("starts"),
        dir.path(),
    );
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.stderr, @r#"error: DIR/config.toml:2: unknown key `lissten`; did you mean `listen`?"#);
}

#[test]
fn unusable_gateway_configurations_are_refused() {
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
        wait_for_output(command.envs(variable).spawn().expect("starts"), dir.path())
    };
    let mut errors = String::new();
    for (config, variable) in [
        ("[gateways.socktools]\nraw_action = \"led\"", None),
        ("[gateways.platypush_tcp]\nallow = [\"execute\"]", None),
        (
            "[gateways.knut]\nlisten = \"127.0.0.1:7423\"\n[gateways.socktools]",
            None,
        ),
        ("[gateways.socktools]\nraw = \"led\"", None),
        ("", Some(("GROUND_STATION_GATEWAYS_KNUT_ALOW", "led"))),
    ] {
        let ran = serve(config, variable);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        errors.push_str(&ran.stderr);
    }
    assert_snapshot!(errors, @r#"
    error: [gateways.socktools]: `raw_action` could never be done: action "led" may not pass this gateway: it is not known to read, and no name in `allow` means it; name it in `allow` of [gateways.socktools]
    error: [gateways.platypush_tcp]: `allow` names "execute", but running a program may not be asked for by role operator: it takes role admin; set `role` in [gateways.platypush_tcp], or take "execute" out of `allow`
    error: [gateways.socktools] and [gateways.knut] are both to listen on port 7423: give one of them another in `listen`
    error: DIR/config.toml:2: unknown key `gateways.socktools.raw`; did you mean `raw_action`, `raw_argument` or `raw_encoding`?
    error: environment variable GROUND_STATION_GATEWAYS_KNUT_ALOW: no key has this variable; did you mean GROUND_STATION_GATEWAYS_KNUT_ALLOW?
    "#);
    // A stop goes out whatever a file says of gateways.
    std::fs::write(dir.path().join("config.toml"), "").expect("writes");
    let mut stop = command(dir.path());
    stop.args(["stop", "--timeout", "300ms"]);
    stop.env("GROUND_STATION_GATEWAYS_KNUT_ALOW", "led");
    stop.env("GROUND_STATION_LISTEN", "127.0.0.1:0")
        .env("GROUND_STATION_PINGS", "false");
    let ran = wait_for_output(stop.spawn().expect("starts"), dir.path());
    assert!(
        ran.stderr.contains("the stop is sent with the valid part of it")
            && ran.stderr.contains("KNUT_ALLOW"),
        "{}",
        ran.stderr
    );
}

#[test]
fn missing_home_directory_asks_for_state_dir() {
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
fn second_verb_waits_and_names_the_lock_holder() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = StateLock::try_acquire(dir.path(), "ground-station send").expect("free");
    let start_waiting_verb = || {
        command(dir.path())
            .args(["nodes", "--timeout", "700ms"])
            .spawn()
            .expect("starts")
    };
    let ran = wait_for_output(start_waiting_verb(), dir.path());
    assert_eq!(ran.status, 2);
    let text = ran.stderr.replace(&std::process::id().to_string(), "PID");
    assert_snapshot!(text, @r#"
    waiting for ground-station send (pid PID), which uses DIR
    error: "DIR" is in use by ground-station send (pid PID); wait for it to end, or use another --state-dir
    "#);

    let child = start_waiting_verb();
    std::thread::sleep(Duration::from_millis(200));
    drop(lock);
    assert_eq!(
        wait_for_output(child, dir.path()).status,
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
    let second = wait_for_output(
        command(dir.path()).arg("serve").spawn().expect("starts"),
        dir.path(),
    );
    assert_eq!(second.status, 2);
    assert_snapshot!(second.stderr, @"error: a station already serves DIR; stop it first, or use another --state-dir");
    let pid = i32::try_from(server.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert_eq!(wait_for_output(server, dir.path()).status, 0);
    assert!(!socket.exists(), "the socket goes with it");
}

#[test]
fn gateway_port_conflict_fails_before_links_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let config = format!("[gateways.knut]\nlisten = \"127.0.0.1:{port}\"\n");
    std::fs::write(dir.path().join("config.toml"), config).expect("writes");
    let mut serve = command(dir.path());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"]);
    let ran = wait_for_output(serve.spawn().expect("starts"), dir.path());
    assert_eq!(ran.status, 2);
    let whole = ran.stderr.replace(&port.to_string(), "PORT");
    assert_snapshot!(whole, @"error: [gateways.knut]: cannot listen on 127.0.0.1:PORT: Address already in use (os error 98); change `listen`, or end what uses that port");
}

#[test]
fn gateway_without_credentials_warns_at_start() {
    let dir = tempfile::tempdir().expect("a directory");
    // What keeps the station from going on, once the gateway is open.
    let never = "[gateways.socktools]\nlisten = \"127.0.0.1:0\"\nraw_action = \"led\"";
    for (token, warned) in [("", true), ("token = \"0123456789abcdef\"\n", false)] {
        let config = format!("[gateways.platypush_http]\nlisten = \"127.0.0.1:0\"\n{token}{never}\n");
        std::fs::write(dir.path().join("config.toml"), config).expect("writes");
        let mut serve = command(dir.path());
        serve.args(["serve", "--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"]);
        let ran = wait_for_output(serve.spawn().expect("starts"), dir.path());
        let expected = "No client can be authenticated, except by a hook: there is neither a user nor a `token`; type \
                    `ground-station gateway user add NAME`";
        assert_eq!(ran.stderr.contains(expected), warned, "{}", ran.stderr);
    }
}

#[test]
fn bad_user_and_token_arguments_are_explained() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |args: &[&str]| {
        let mut command = command(dir.path());
        command.args(args).stdin(std::process::Stdio::null());
        wait_for_output(command.spawn().expect("starts"), dir.path())
    };
    let ran = run(&["gateway", "token", "revoke", "nope"]);
    let says = "not the number of a token; `ground-station gateway tokens` shows them";
    assert!(ran.status == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    let ran = run(&["gateway", "user", "add", "eva"]);
    let says = "no password came: type it, or write it to standard input";
    assert!(ran.status == 2 && ran.stderr.contains(says), "{}", ran.stderr);
}
