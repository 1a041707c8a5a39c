//! What was sent, and how it ended.

use ground_station::store::lock::StateLock;
use insta::assert_snapshot;
use serde_json::json;
use swarm_shared::api::{
    CommandKind, CommandView, Event, HistoryDelivery, HistoryRequest, HistoryState, Request,
};
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::outcome::Outcome;

use crate::run_without_station;
use crate::scripted_station::{ScriptedStation, command, target, wait_for_output};

#[test]
fn history_shows_commands_and_sets_the_exit_status() {
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
        states: [(HistoryState::Ended(Outcome::Done), 1), (HistoryState::Open, 1)].into(),
    };
    let delivery = |number, state, stages: &[(Stage, f64)]| {
        Event::HistoryDelivery(HistoryDelivery {
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
        if let Request::History(HistoryRequest::Commands { query }) = request
            && query.number.is_some()
        {
            events.push(Event::CommandDetails(command.clone()));
            let stages = [(Stage::Received, 1.5), (Stage::Finished, 12.0)];
            events.push(delivery(1, HistoryState::Ended(Outcome::Done), &stages));
            events.push(delivery(2, HistoryState::Open, &[]));
        } else {
            events.push(Event::Command(command.clone()));
        }
        events.push(Event::End);
        events
    });
    let ran = station.run(&["history"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("1 done, 1 open"), "{}", ran.stdout);
    let ran = station.run(&["history", "--json"]);
    assert_snapshot!(ran.stdout, @r##"{"command":12,"at_ms":1795238179000,"who":"pi","kind":"command","action":"led","arguments":{"args":[],"kwargs":{"color":"#ff0000"}},"selector":"drone-*","ttl_ms":30000,"retry_of":null,"retried_by":[13],"batch":null,"deliveries":2,"states":{"done":1,"open":1}}"##);
    let ran = station.run(&["history", "12"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (4, ""), "one is open");
    let ran = station.run(&["history", "12", "--json"]);
    assert_eq!(ran.status, 4);
    assert_snapshot!(ran.stdout, @r#"
    {"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"done","value":null,"output":null,"exit":null,"error":null,"ms":12.0,"command":12,"about":null,"stages":{"received":1.5,"finished":12.0}}
    {"node":"drone-02","id":"0202020202020202020202020202020202020202020202020202020202020202","state":"open","value":null,"output":null,"exit":null,"error":null,"ms":null,"command":12,"about":null,"stages":{}}
    "#);
}

#[test]
fn history_works_without_a_running_station() {
    let ran = run_without_station(&["history"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
    assert_snapshot!(ran.stderr, @"error: nothing was sent from here yet, or nothing that matches");
    let ran = run_without_station(&["history", "12"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
    assert_snapshot!(ran.stderr, @"error: there is no command 12: nothing was sent from here yet");

    // Something is noted, and found whoever holds the state directory.
    let dir = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        wait_for_output(
            command(dir.path()).args(arguments).spawn().expect("starts"),
            dir.path(),
        )
    };
    assert_eq!(run(&["fleet", "init"]).status, 0);
    let busy = StateLock::try_acquire(dir.path(), "ground-station send").expect("free");
    let ran = run(&["history", "--audit"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let line = ran.stdout.lines().nth(1).unwrap_or_default();
    assert!(line.contains("init") && line.ends_with("done"), "{}", ran.stdout);
    let ran = run(&["history", "--audit", "--json"]);
    let entry: serde_json::Value = serde_json::from_str(&ran.stdout).expect("an object");
    assert_eq!(entry["who"], swarm_shared::client::os_user::current());
    assert_eq!(run(&["history"]).status, 3);
    assert_eq!(run(&["history", "1"]).status, 3);
    drop(busy);
}

#[test]
fn empty_open_history_succeeds_and_truncation_is_noted() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        wait_for_output(
            command(dir.path()).args(arguments).spawn().expect("starts"),
            dir.path(),
        )
    };
    for (arguments, says) in [
        (
            &["history", "--state", "open"][..],
            "nothing is open: each delivery has ended\n",
        ),
        (
            &["history", "--state", "open", "--action", "led"],
            "nothing that matches is open\n",
        ),
    ] {
        let ran = run(arguments);
        assert_eq!(
            (ran.status, ran.stdout.as_str(), ran.stderr.as_str()),
            (0, "", says)
        );
    }
    assert_eq!(run(&["history", "--state", "done"]).status, 3);
    for _ in 0..3 {
        assert_eq!(run(&["fleet", "revoke", "nobody"]).status, 3);
    }
    let ran = run(&["history", "--audit", "--limit", "2"]);
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 3), "{}", ran.stdout);
    assert_snapshot!(ran.stderr, @"these are the newest 2, and there are more: see them with `--limit 20`");
    let ran = run(&["history", "--audit", "--limit", "2", "--json"]);
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
    let ran = run(&["history", "--audit", "--limit", "100"]);
    assert_eq!(ran.stderr, "");
}
