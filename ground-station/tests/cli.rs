//! What people and scripts meet: help, errors, JSON, exit statuses. The real program runs; behind its control socket
//! stands a scripted station, so that every ending can be played.

use std::process::Command;
use std::time::Duration;

use ground_station::control::lock::StateLock;
use ground_station::fleet::{
    CommandKind, CommandView, Delivery, Event, Failure, InvitationView, NodeState, NodeView, PastDelivery,
    PastState, Request,
};
use insta::assert_snapshot;
use serde_json::json;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::Role;

mod station;

use station::{Ran, ScriptedStation, command, finish, target};

/// The program alone, in an empty state directory.
fn alone(arguments: &[&str]) -> Ran {
    let dir = tempfile::tempdir().expect("a directory");
    finish(
        command(dir.path()).args(arguments).spawn().expect("starts"),
        dir.path(),
    )
}

fn targets(numbers: impl IntoIterator<Item = u8>) -> Event {
    Event::Targets {
        targets: numbers.into_iter().map(target).collect(),
    }
}

fn delivery(number: u8, reply: Reply) -> Event {
    Event::Delivery(Delivery::new(target(number), reply, 1.5))
}

#[test]
fn the_first_page_is_pleasant() {
    let ran = alone(&["--help"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_snapshot!(ran.out);
}

#[test]
fn each_verb_has_a_page() {
    let mut pages = String::new();
    for verb in [
        "demo",
        "serve",
        "nodes",
        "ping",
        "call",
        "run",
        "send",
        "fetch",
        "notify",
        "history",
        "cancel",
        "stop",
        "release",
        "door",
        "completions",
        "man",
        "fleet",
    ] {
        let ran = alone(&[verb, "--help"]);
        assert_eq!(ran.status, 0, "{verb}");
        let (before, rest) = ran.out.split_once("Common options:").expect(verb);
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        pages.push_str(&format!("=== {verb}\n{before}{after}"));
    }
    let invite = alone(&["fleet", "invite", "--help"]).out;
    pages.push_str(&format!("=== fleet invite\n{invite}"));
    assert_snapshot!(pages);
}

#[test]
fn usage_errors_quote_the_text_and_say_the_rule() {
    let mut errors = String::new();
    for arguments in [
        &["ping", "drone_1"][..],
        &["ping", "drone-[1"],
        &["ping", "--ttl", "soon"],
        &["ping", "--ttl", "1000d"],
        &["call", "all", "led", "--batch", "-1"],
        &["call", "all", "led", "red"],
        &["call", "all"],
        &["run", "all", "uptime"],
        &["send", "all:shows/x"],
        &["send", "/nonexistent", "all:shows/x"],
        &["send", "Cargo.toml", "all"],
        &["send", "Cargo.toml", "all:/etc/passwd"],
        &["send", "--per-node", "/nonexistent", "all:shows/x"],
        &["fetch", "all:../x", "."],
        &["serve", "--ping-port", "0"],
        &["nodes", "--config", "/nonexistent/config.toml"],
        &["fleet", "invite", "--uses", "0"],
        &["history", "twelve"],
        &["history", "--state", "fine"],
        &["history", "--since", "yesterday"],
        &["history", "--node", "tag:row=3"],
        &["history", "--retry"],
        &["cancel"],
        &["cancel", "last"],
        &["history", "--audit", "--node", "drone-07"],
        &["dance"],
    ] {
        let ran = alone(arguments);
        assert_eq!(
            (ran.status, ran.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.err
        );
        let first = ran.err.split("\n\n").next().unwrap_or_default();
        errors.push_str(&format!("{arguments:?}\n  {}\n", first.replace('\n', "\n  ")));
    }
    assert_snapshot!(errors);
}

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
fn deliveries_are_grouped_for_people_and_whole_for_programs() {
    let station = ScriptedStation::start(|_request| {
        let mut events = vec![Event::note("no fleet was here; made one"), targets(1..=4)];
        events.extend((1..=3).map(|number| delivery(number, Reply::done(json!("pong")))));
        events.push(delivery(
            4,
            Reply::ended(Outcome::NoAnswer, "nothing heard within 10 s"),
        ));
        events.push(Event::End);
        events
    });
    let ran = station.run(&["ping"]);
    assert_eq!(ran.status, 4);
    assert_snapshot!(ran.out_without_times(), @"
    drone-[01-03] (3 nodes)  done  1.50 ms
      pong
    drone-04  no-answer
      nothing heard within 10 s

    3 done, 1 no-answer in TIME
    ");
    assert_eq!(ran.err, "no fleet was here; made one\n");

    let ran = station.run(&["ping", "--json", "drone-*"]);
    assert_eq!(ran.status, 4);
    assert_snapshot!(ran.out, @r#"
    {"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-02","id":"0202020202020202020202020202020202020202020202020202020202020202","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-03","id":"0303030303030303030303030303030303030303030303030303030303030303","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-04","id":"0404040404040404040404040404040404040404040404040404040404040404","state":"no-answer","value":null,"output":null,"exit":null,"error":"nothing heard within 10 s","ms":1.5}
    "#);
    for line in ran.out.lines() {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).expect("an object");
        let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            ["error", "exit", "id", "ms", "node", "output", "state", "value"]
        );
    }

    let ran = station.run(&["ping", "--quiet"]);
    assert!(
        ran.err.is_empty() && !ran.out.contains(" in "),
        "{} {}",
        ran.err,
        ran.out
    );
}

#[test]
fn each_ending_has_its_exit_status() {
    for (ending, status) in [
        (
            vec![targets([1]), delivery(1, Reply::done(json!(1))), Event::End],
            0,
        ),
        (
            vec![targets([1]), delivery(1, Reply::failed("no")), Event::End],
            1,
        ),
        (
            vec![targets([1]), delivery(1, Reply::refused("no")), Event::End],
            1,
        ),
        (
            vec![
                targets([1]),
                delivery(1, Reply::ended(Outcome::Expired, "late")),
                Event::End,
            ],
            1,
        ),
        (
            vec![
                targets([1]),
                delivery(1, Reply::ended(Outcome::Unknown, "?")),
                Event::End,
            ],
            1,
        ),
        (vec![Event::failed(Failure::Usage, "no such code")], 2),
        (vec![Event::failed(Failure::NobodyMatched, "no node matches")], 3),
        (
            vec![targets([1, 2]), delivery(1, Reply::done(json!(1))), Event::End],
            4,
        ),
        (vec![Event::failed(Failure::Failed, "no")], 1),
    ] {
        let station = ScriptedStation::start(move |_request| ending.clone());
        assert_eq!(station.run(&["ping"]).status, status);
        assert_eq!(station.run(&["ping", "--json"]).status, status);
    }
}

#[test]
fn a_station_that_stops_midway_loses_nobody() {
    let station =
        ScriptedStation::start(|_request| vec![targets([1, 2]), delivery(1, Reply::done(json!(1)))]);
    let ran = station.run(&["ping", "--json"]);
    assert_eq!(ran.status, 4);
    assert_eq!(ran.out.lines().count(), 2);
    assert!(ran.out.contains("\"state\":\"no-answer\""), "{}", ran.out);
    assert!(ran.err.contains("ask again"), "{}", ran.err);
}

#[test]
fn ctrl_c_prints_what_is_known() {
    let station = ScriptedStation::start_hanging(|_request| {
        vec![targets([1, 2]), delivery(1, Reply::done(json!("pong")))]
    });
    let child = command(station.dir()).arg("ping").spawn().expect("starts");
    station.wait_for_request();
    // What was answered is on its way; it has to be there before the interrupt.
    std::thread::sleep(Duration::from_millis(300));
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let ran = finish(child, station.dir());
    assert_eq!(ran.status, 130);
    assert_snapshot!(ran.out_without_times(), @"
    drone-01  done  1.50 ms
      pong

    1 done, 1 not answered yet: drone-02 in TIME
    ");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    // So many lines that some come after the pipe is closed everywhere: for a moment, a process that another test is
    // starting may hold it open too. Without an end, so that only the pipe can end it.
    let station = ScriptedStation::start(|_request| {
        let deliveries = (0..20_000).map(|_| delivery(1, Reply::done(json!(1))));
        std::iter::once(targets([1])).chain(deliveries).collect()
    });
    let mut child = command(station.dir())
        .args(["ping", "--json"])
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let ran = finish(child, station.dir());
    assert_eq!((ran.status, ran.err.as_str()), (141, ""));
}

#[test]
fn nodes_are_listed_and_watched() {
    let view = |number: u8, state| {
        Event::Node(NodeView {
            stopped: None,
            node: target(number).node,
            id: target(number).id,
            state,
            kind: PeerKind::Node,
            address: Some("10.0.0.7:7420".parse().expect("an address")),
            last_heard_ms: Some(40),
            tags: [("row".to_owned(), "3".to_owned())].into(),
            software: Some("0.1.0".to_owned()),
            warnings: Vec::new(),
            checks: Vec::new(),
            telemetry: std::collections::BTreeMap::new(),
        })
    };
    let station = ScriptedStation::start(move |_request| {
        vec![
            view(1, NodeState::Online),
            view(2, NodeState::Offline),
            view(2, NodeState::Online),
            Event::End,
        ]
    });
    let ran = station.run(&["nodes"]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.out, @"
    NAME      ID                   STATE   HEARD  ADDRESS        TAGS   VERSION
    drone-01  0101-0101-0101-0101  online  now    10.0.0.7:7420  row=3  0.1.0
    drone-02  0202-0202-0202-0202  online  now    10.0.0.7:7420  row=3  0.1.0

    2 online
    ");
    let ran = station.run(&["nodes", "--watch"]);
    assert_snapshot!(ran.out, @"
    drone-01  online  10.0.0.7:7420
    drone-02  offline  10.0.0.7:7420
    drone-02  online  10.0.0.7:7420
    ");
    let ran = station.run(&["nodes", "--json", "drone-01"]);
    assert_snapshot!(ran.out.lines().next().unwrap_or_default(), @r#"{"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"online","kind":"node","address":"10.0.0.7:7420","last_heard_ms":40,"tags":{"row":"3"},"software":"0.1.0","warnings":[],"stopped":null,"checks":[]}"#);

    let ran = station.run(&["nodes", "--config", "/nonexistent/config.toml"]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.err, @"--config is ignored: `ground-station serve` is running, with its own configuration");

    let nobody = ScriptedStation::start(|_request| vec![Event::End]);
    let ran = nobody.run(&["nodes"]);
    assert_eq!((ran.status, ran.out.as_str()), (3, ""));
    assert_snapshot!(ran.err, @"error: no node is known; run `ground-station fleet invite` and `swarm-node join CODE` on a device, or see `ground-station demo`");
}

#[test]
fn verbs_ask_for_what_was_typed() {
    let station =
        ScriptedStation::start(|_request| vec![targets([1]), delivery(1, Reply::done(json!(1))), Event::End]);
    let here = station.dir().to_str().expect("text").to_owned();
    let file = format!("{here}/take1.csv");
    std::fs::write(&file, "x").expect("writes");
    let copies = format!("{here}/copies");
    for arguments in [
        &["ping"][..],
        &[
            "call",
            "tag:row=3",
            "led",
            "color=#ff0000",
            "n=5",
            "deep={\"a\":[1]}",
            "--ttl",
            "2s",
            "--timeout",
            "500ms",
        ],
        &["run", "all,!drone-07", "--", "sh", "-c", "uptime"],
        &["notify", "all", "lunch"],
        &["stop"],
        &["stop", "drone-*", "--timeout", "2s"],
        &["release", "all"],
        &["send", &file, "drone-*:shows/"],
        &["send", "--per-node", &here, "drone-*:shows/take1.csv"],
        &["fetch", "id:a1b2:logs/run.log", &copies],
        &[
            "fleet",
            "invite",
            "--role",
            "operator",
            "--uses",
            "3",
            "--valid-for",
            "1h",
        ],
        &["fleet", "join", "swarm-abc"],
        &["fleet", "accept", "drone-07"],
        &["nodes", "--timeout", "1s"],
        &["history"],
        &[
            "history",
            "12",
            "--node",
            "drone-07",
            "--state",
            "no-answer",
            "--since",
            "2h",
            "--limit",
            "5",
            "--action",
            "led",
        ],
        &["history", "--audit"],
        &["history", "12", "--retry"],
        &["history", "12", "--retry", "--ttl", "30s", "--timeout", "1s"],
    ] {
        station.run(arguments);
    }
    let asked: Vec<String> = station
        .requests()
        .iter()
        .map(|line| line.replace(&here, "HERE"))
        .collect();
    // A stop asks for the time that is left when it has found the station.
    insta::with_settings!({filters => vec![(r#"("stop".*"timeout_ms":)1[5-9]\d\d\b"#, "${1}2000")]}, {
        assert_snapshot!(asked.join("\n"));
    });
}

#[test]
fn the_past_is_shown_and_has_its_exit_status() {
    let command = CommandView {
        command: 12,
        at_ms: 1_795_238_179_000,
        who: "pi".to_owned(),
        kind: CommandKind::Command,
        action: "led".to_owned(),
        arguments: json!({"args": [], "kwargs": {"color": "#ff0000"}}),
        selector: "drone-*".to_owned(),
        ttl_ms: 30_000,
        retry_of: None,
        retried_by: vec![13],
        batch: None,
        deliveries: 2,
        states: [(PastState::Ended(Outcome::Done), 1), (PastState::Open, 1)].into(),
    };
    let delivery = |number, state, stages: &[(Stage, f64)]| {
        Event::Past(PastDelivery {
            node: target(number).node,
            id: target(number).id,
            state,
            value: None,
            output: None,
            exit: None,
            error: None,
            ms: stages.last().map(|(_, at)| *at),
            command: 12,
            about: None,
            stages: stages.iter().copied().collect(),
        })
    };
    let station = ScriptedStation::start(move |request| {
        let mut events = Vec::new();
        if let Request::History { query } = request
            && query.number.is_some()
        {
            events.push(Event::About(command.clone()));
            let stages = [(Stage::Received, 1.5), (Stage::Finished, 12.0)];
            events.push(delivery(1, PastState::Ended(Outcome::Done), &stages));
            events.push(delivery(2, PastState::Open, &[]));
        } else {
            events.push(Event::Command(command.clone()));
        }
        events.push(Event::End);
        events
    });
    let ran = station.run(&["history"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("1 done, 1 open"), "{}", ran.out);
    let ran = station.run(&["history", "--json"]);
    assert_snapshot!(ran.out, @r##"{"command":12,"at_ms":1795238179000,"who":"pi","kind":"command","action":"led","arguments":{"args":[],"kwargs":{"color":"#ff0000"}},"selector":"drone-*","ttl_ms":30000,"retry_of":null,"retried_by":[13],"batch":null,"deliveries":2,"states":{"done":1,"open":1}}"##);
    let ran = station.run(&["history", "12"]);
    assert_eq!((ran.status, ran.err.as_str()), (4, ""), "one is open");
    let ran = station.run(&["history", "12", "--json"]);
    assert_eq!(ran.status, 4);
    assert_snapshot!(ran.out, @r#"
    {"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"done","value":null,"output":null,"exit":null,"error":null,"ms":12.0,"command":12,"about":null,"stages":{"received":1.5,"finished":12.0}}
    {"node":"drone-02","id":"0202020202020202020202020202020202020202020202020202020202020202","state":"open","value":null,"output":null,"exit":null,"error":null,"ms":null,"command":12,"about":null,"stages":{}}
    "#);
}

#[test]
fn the_past_needs_no_station() {
    let ran = alone(&["history"]);
    assert_eq!((ran.status, ran.out.as_str()), (3, ""));
    assert_snapshot!(ran.err, @"error: nothing was sent from here yet, or nothing that matches");
    let ran = alone(&["history", "12"]);
    assert_eq!((ran.status, ran.out.as_str()), (3, ""));
    assert_snapshot!(ran.err, @"error: there is no command 12: nothing was sent from here yet");

    // Something is noted, and found whoever holds the state directory.
    let dir = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        finish(
            command(dir.path()).args(arguments).spawn().expect("starts"),
            dir.path(),
        )
    };
    assert_eq!(run(&["fleet", "init"]).status, 0);
    let busy = StateLock::try_take(dir.path(), "ground-station send").expect("free");
    let ran = run(&["history", "--audit"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let line = ran.out.lines().nth(1).unwrap_or_default();
    assert!(line.contains("init") && line.ends_with("done"), "{}", ran.out);
    let ran = run(&["history", "--audit", "--json"]);
    let entry: serde_json::Value = serde_json::from_str(&ran.out).expect("an object");
    assert_eq!(entry["who"], ground_station::who::own());
    assert_eq!(run(&["history"]).status, 3);
    assert_eq!(run(&["history", "1"]).status, 3);
    drop(busy);
}

#[test]
fn an_invitation_starts_with_its_code() {
    let invitation = InvitationView {
        code: "swarm-abc".to_owned(),
        role: Role::Node,
        uses: 1,
        valid_for_ms: 900_000,
    };
    let station =
        ScriptedStation::start(move |_request| vec![Event::Invitation(invitation.clone()), Event::End]);
    let ran = station.run(&["fleet", "invite"]);
    assert_eq!(ran.out.lines().next(), Some("swarm-abc"));
    let ran = station.run(&["fleet", "invite", "--json"]);
    assert_snapshot!(ran.out, @r#"{"code":"swarm-abc","role":"node","uses":1,"valid_for_ms":900000}"#);
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
fn completions_and_manual_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            alone(&["completions", shell]).out.contains("ground-station"),
            "{shell}"
        );
    }
    assert!(alone(&["man"]).out.contains(".SH"));
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    let ran = alone(&["man", "--dir", pages.to_str().expect("text")]);
    assert_eq!((ran.status, ran.out.as_str()), (0, ""));
    for page in [
        "ground-station.1",
        "ground-station-send.1",
        "ground-station-fleet-invite.1",
    ] {
        assert!(pages.join(page).exists(), "{page}");
    }
}

#[test]
fn nothing_is_read_from_the_home_of_whoever_runs_it() {
    let ran = Command::new(station::PROGRAM)
        .arg("nodes")
        .env_clear()
        .output()
        .expect("runs");
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(2));
    assert_snapshot!(err, @"error: neither XDG_STATE_HOME nor HOME is set; use --state-dir DIR");
}
