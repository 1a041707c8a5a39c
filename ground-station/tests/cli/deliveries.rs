//! What verbs ask for, and how their deliveries are shown.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;
use swarm_shared::api::{Event, Failure};
use swarm_shared::proto::outcome::{Outcome, Reply};

use crate::scripted_station::{ScriptedStation, command, wait_for_output};
use crate::{delivery, targets};

#[test]
fn verbs_send_the_typed_request() {
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
    let requests: Vec<String> = station
        .requests()
        .iter()
        .map(|line| line.replace(&here, "HERE"))
        .collect();
    // A stop asks for the time that is left when it has found the station.
    insta::with_settings!({filters => vec![(r#"("stop".*"timeout_ms":)1[5-9]\d\d\b"#, "${1}2000")]}, {
        assert_snapshot!(requests.join("\n"));
    });
}

#[test]
fn text_output_is_grouped_and_json_is_complete() {
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
    assert_snapshot!(ran.stdout_without_times(), @"
    drone-[01-03] (3 nodes)  done  1.50 ms
      pong
    drone-04  no-answer
      nothing heard within 10 s

    3 done, 1 no-answer in TIME
    ");
    assert_eq!(ran.stderr, "no fleet was here; made one\n");

    let ran = station.run(&["ping", "--json", "drone-*"]);
    assert_eq!(ran.status, 4);
    assert_snapshot!(ran.stdout, @r#"
    {"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-02","id":"0202020202020202020202020202020202020202020202020202020202020202","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-03","id":"0303030303030303030303030303030303030303030303030303030303030303","state":"done","value":"pong","output":null,"exit":null,"error":null,"ms":1.5}
    {"node":"drone-04","id":"0404040404040404040404040404040404040404040404040404040404040404","state":"no-answer","value":null,"output":null,"exit":null,"error":"nothing heard within 10 s","ms":1.5}
    "#);
    for line in ran.stdout.lines() {
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
        ran.stderr.is_empty() && !ran.stdout.contains(" in "),
        "{} {}",
        ran.stderr,
        ran.stdout
    );
}

#[test]
fn exit_status_reflects_the_outcomes() {
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
        (vec![Event::failed(Failure::NoMatch, "no node matches")], 3),
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
fn station_exit_midway_reports_every_target() {
    let station =
        ScriptedStation::start(|_request| vec![targets([1, 2]), delivery(1, Reply::done(json!(1)))]);
    let ran = station.run(&["ping", "--json"]);
    assert_eq!(ran.status, 4);
    assert_eq!(ran.stdout.lines().count(), 2);
    assert!(ran.stdout.contains("\"state\":\"no-answer\""), "{}", ran.stdout);
    assert!(ran.stderr.contains("ask again"), "{}", ran.stderr);
}

#[test]
fn interrupted_verb_prints_partial_results() {
    let station = ScriptedStation::start_hanging(|_request| {
        vec![
            targets([1, 2]),
            Event::Issued { number: 12 },
            delivery(1, Reply::done(json!("pong"))),
        ]
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
    let ran = wait_for_output(child, station.dir());
    assert_eq!(ran.status, 130);
    assert_snapshot!(ran.stdout_without_times(), @"
    drone-01  done  1.50 ms
      pong

    1 done, 1 not answered yet: drone-02 in TIME
    ");
    assert_snapshot!(ran.stderr, @"it goes on as command 12: see `ground-station history 12`, or cancel what is not sent yet with `ground-station cancel 12` (drones of other programs need a stop)");
}

#[test]
fn closed_output_pipe_ends_without_error() {
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
    let ran = wait_for_output(child, station.dir());
    assert_eq!((ran.status, ran.stderr.as_str()), (141, ""));
}
