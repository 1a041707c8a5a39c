//! Who is there, and who may come.

use insta::assert_snapshot;
use swarm_shared::api::{Event, InvitationView, NodeState, NodeView};
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::trust::Role;

use crate::scripted_station::{ScriptedStation, target};

#[test]
fn nodes_are_listed_and_watched() {
    let view = |number: u8, state| {
        Event::Node(NodeView {
            stopped: None,
            stop_unconfirmed: None,
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
    assert_snapshot!(ran.stdout, @"
    NAME      ID                   STATE   HEARD  ADDRESS        TAGS   VERSION
    drone-01  0101-0101-0101-0101  online  now    10.0.0.7:7420  row=3  0.1.0
    drone-02  0202-0202-0202-0202  online  now    10.0.0.7:7420  row=3  0.1.0

    2 online
    ");
    let ran = station.run(&["nodes", "--watch"]);
    assert_snapshot!(ran.stdout, @"
    drone-01  online  10.0.0.7:7420
    drone-02  offline  10.0.0.7:7420
    drone-02  online  10.0.0.7:7420
    ");
    let ran = station.run(&["nodes", "--json", "drone-01"]);
    assert_snapshot!(ran.stdout.lines().next().unwrap_or_default(), @r#"{"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"online","kind":"node","address":"10.0.0.7:7420","last_heard_ms":40,"tags":{"row":"3"},"software":"0.1.0","warnings":[],"stopped":null,"checks":[]}"#);

    let ran = station.run(&["nodes", "--config", "/nonexistent/config.toml"]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.stderr, @"--config is ignored: `ground-station serve` is running, with its own configuration");

    let nobody = ScriptedStation::start(|_request| vec![Event::End]);
    let ran = nobody.run(&["nodes"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
    assert_snapshot!(ran.stderr, @"error: no node is known; run `ground-station fleet invite` and `swarm-node join CODE` on a device, or see `ground-station demo`");
}

#[test]
fn invitation_output_starts_with_the_code() {
    let invitation = InvitationView {
        code: "swarm-abc".to_owned(),
        role: Role::Node,
        uses: 1,
        valid_for_ms: 900_000,
    };
    let station =
        ScriptedStation::start(move |_request| vec![Event::Invitation(invitation.clone()), Event::End]);
    let ran = station.run(&["fleet", "invite"]);
    assert_eq!(ran.stdout.lines().next(), Some("swarm-abc"));
    let ran = station.run(&["fleet", "invite", "--json"]);
    assert_snapshot!(ran.stdout, @r#"{"code":"swarm-abc","role":"node","uses":1,"valid_for_ms":900000}"#);
}
