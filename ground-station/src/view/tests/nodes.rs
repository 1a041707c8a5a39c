//! Who is there, as people see it.

use insta::assert_snapshot;

use super::*;
use swarm_shared::api::Warning;

pub(super) fn node(number: u8, state: NodeState, heard: Option<u64>) -> NodeView {
    NodeView {
        stopped: None,
        stop_unconfirmed: None,
        node: target(number).node,
        id: target(number).id,
        state,
        kind: PeerKind::Node,
        address: Some(format!("10.0.0.{number}:7420").parse().expect("an address")),
        last_heard_ms: heard,
        tags: [("row".to_owned(), "3".to_owned())].into(),
        software: Some("0.1.0".to_owned()),
        warnings: Vec::new(),
        checks: Vec::new(),
        telemetry: std::collections::BTreeMap::new(),
    }
}

fn nodes() -> NodeTable {
    let check = |name: &str, ok, text: Option<&str>| Check {
        name: name.to_owned(),
        ok,
        text: text.map(str::to_owned),
    };
    let mut views = [
        node(10, NodeState::Silent, Some(2_500)),
        node(2, NodeState::Online, Some(20)),
        NodeView {
            checks: vec![check("disk", true, None)],
            ..node(1, NodeState::Online, Some(0))
        },
        NodeView {
            address: None,
            checks: vec![check("disk", false, Some("98% full"))],
            ..node(3, NodeState::Offline, None)
        },
    ];
    views[0].warnings = vec![Warning::NameUsedByDevice {
        name: views[0].node.clone(),
    }];
    let mut nodes = NodeTable::default();
    for view in &views {
        nodes.update(view, Style::default());
    }
    nodes
}

#[test]
fn node_table_lists_all_columns() {
    assert_snapshot!(nodes().table(|_| 0, Style::default()).join("\n"), @"
    NAME      ID                   STATE    HEARD    ADDRESS         TAGS   VERSION  CHECKS
    drone-01  0101-0101-0101-0101  online   now      10.0.0.1:7420   row=3  0.1.0    ok
    drone-02  0202-0202-0202-0202  online   now      10.0.0.2:7420   row=3  0.1.0
    drone-03  0303-0303-0303-0303  offline  never                    row=3  0.1.0    disk: 98% full
    drone-10  0a0a-0a0a-0a0a-0a0a  silent   2 s ago  10.0.0.10:7420  row=3  0.1.0
    drone-10: a drone of another program calls itself drone-10, too; tell them apart by id

    2 online, 1 silent, 1 offline
    ");
}

#[test]
fn stopped_nodes_are_marked_and_counted() {
    let stop = StopView {
        issuer: PeerId([0xaa; 32]),
        number: 7,
        latched: true,
        held: false,
        error: None,
    };
    let mut nodes = nodes();
    for number in [2, 10] {
        let state = if number == 2 {
            NodeState::Online
        } else {
            NodeState::Offline
        };
        let view = NodeView {
            stopped: Some(stop.clone()),
            warnings: vec![Warning::Stopped {
                number: stop.number,
                issuer: stop.issuer,
                error: None,
            }],
            ..node(number, state, Some(20))
        };
        let line = nodes.update(&view, Style::default()).expect("a change");
        assert!(
            line.contains(&format!("{}, STOPPED  10.", state.as_str())),
            "{line}"
        );
        let json = json::line(&Event::Node(view)).expect("a line");
        assert!(
            json.contains(&format!("\"state\":\"{}\"", state.as_str())),
            "{json}"
        );
    }
    assert_snapshot!(nodes.table(|_| 0, Style::default()).join("\n"), @"
    NAME      ID                   STATE             HEARD  ADDRESS         TAGS   VERSION  CHECKS
    drone-01  0101-0101-0101-0101  online            now    10.0.0.1:7420   row=3  0.1.0    ok
    drone-02  0202-0202-0202-0202  online, STOPPED   now    10.0.0.2:7420   row=3  0.1.0
    drone-03  0303-0303-0303-0303  offline           never                  row=3  0.1.0    disk: 98% full
    drone-10  0a0a-0a0a-0a0a-0a0a  offline, STOPPED  now    10.0.0.10:7420  row=3  0.1.0
    drone-02: STOPPED (number 7 of aaaa-aaaa-aaaa-aaaa)
    drone-10: STOPPED (number 7 of aaaa-aaaa-aaaa-aaaa)

    2 online, 2 offline, 2 stopped
    ");
}

#[test]
fn narrow_tables_drop_other_columns_before_checks() {
    let at = |columns| Style {
        color: false,
        columns: Some(columns),
    };
    for columns in 20..120 {
        for line in nodes().table(|_| 0, at(columns)).iter().take(5) {
            assert!(table::width(line) <= columns, "{line}");
            assert!(!line.ends_with("  …"), "{columns}: {line}");
        }
    }
    let all = nodes().table(|_| 0, Style::default());
    assert_eq!(nodes().table(|_| 0, at(95)), all, "it fits");
    for columns in 42..95 {
        let lines = nodes().table(|_| 0, at(columns));
        assert!(
            lines[0].ends_with("CHECKS") && lines[1].ends_with("ok"),
            "{columns}: {lines:#?}"
        );
        assert!(lines[3].ends_with("disk: 98% full"), "{columns}: {lines:#?}");
    }
    assert_snapshot!(nodes().table(|_| 0, at(80)).join("\n"), @"
    NAME      ID                   STATE    HEARD    ADDRESS         CHECKS
    drone-01  0101-0101-0101-0101  online   now      10.0.0.1:7420   ok
    drone-02  0202-0202-0202-0202  online   now      10.0.0.2:7420
    drone-03  0303-0303-0303-0303  offline  never                    disk: 98% full
    drone-10  0a0a-0a0a-0a0a-0a0a  silent   2 s ago  10.0.0.10:7420
    drone-10: a drone of another program calls itself drone-10, too; tell them apar…

    2 online, 1 silent, 1 offline
    ");
}

#[test]
fn self_check_results_are_readable() {
    let value = json!([
        {"check": "state", "ok": true, "detail": "can be written"},
        {"check": "disk shows", "ok": false, "detail": "10 MB\nfree"},
        {"check": "clock", "ok": true},
    ]);
    let mut report = report(1, &[]);
    report.on_event(&Event::Delivery(Delivery::new(
        target(1),
        Reply {
            value: Some(value),
            ..Reply::failed("not fit: disk shows")
        },
        1.0,
    )));
    assert_snapshot!(report.groups(Style::default()), @"
    drone-01  failed  1.00 ms
      ok   state: can be written
      BAD  disk shows: 10 MB free
      ok   clock
      not fit: disk shows
    ");
}

#[test]
fn narrow_lines_are_cut_and_ages_advance() {
    let narrow = Style {
        color: false,
        columns: Some(48),
    };
    let lines = nodes().table(|_| 60_000, narrow);
    assert!(lines.iter().all(|line| table::width(line) <= 48), "{lines:?}");
    assert_snapshot!(lines.join("\n"), @"
    NAME      STATE    HEARD     CHECKS
    drone-01  online   now       ok
    drone-02  online   now
    drone-03  offline  never     disk: 98% full
    drone-10  silent   62 s ago
    drone-10: a drone of another program calls itse…

    2 online, 1 silent, 1 offline
    ");
}

#[test]
fn unconfirmed_stop_is_not_shown_as_stopped() {
    let mut nodes = NodeTable::default();
    let unconfirmed = NodeView {
        stop_unconfirmed: Some(7),
        ..node(1, NodeState::Offline, None)
    };
    nodes.update(&unconfirmed, Style::default());
    nodes.update(&node(2, NodeState::Online, Some(0)), Style::default());
    assert_snapshot!(nodes.table(|_| 0, Style::default()).join("\n"), @"
    NAME      ID                   STATE           HEARD  ADDRESS        TAGS   VERSION
    drone-01  0101-0101-0101-0101  offline, STOP?  never  10.0.0.1:7420  row=3  0.1.0
    drone-02  0202-0202-0202-0202  online          now    10.0.0.2:7420  row=3  0.1.0

    1 online, 1 offline, 1 NOT KNOWN TO BE STOPPED
    ");
}

#[test]
fn departed_nodes_are_reported_once_and_dropped() {
    let (mut nodes, style) = (NodeTable::default(), Style::default());
    let here = NodeView {
        stop_unconfirmed: Some(1),
        ..node(1, NodeState::Online, Some(0))
    };
    let left = NodeView {
        state: NodeState::Offline,
        warnings: vec![Warning::DeviceLeft],
        ..here.clone()
    };
    assert!(left.has_left());
    for _ in 0..2 {
        assert!(nodes.update(&here, style).is_some(), "it is back");
        assert!(!nodes.is_empty());
        let line = nodes.update(&left, style).expect("told");
        assert!(
            line.contains("offline, STOP?") && line.contains("not known any more"),
            "{line}"
        );
        assert_eq!(nodes.update(&left, style), None);
        assert!(nodes.is_empty());
    }
}
