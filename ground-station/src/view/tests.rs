//! What an operator sees.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::Role;

use super::deliveries::DeliveryReport;
use super::history::HistoryReport;
use super::nodes::NodeTable;
use super::*;
use swarm_shared::api::{
    AuditView, Check, CommandKind, CommandView, Delivery, Event, HistoryDelivery, HistoryState,
    InvitationView, MemberView, MembershipView, NodeRef, NodeState, NodeView, PendingView, StopView,
};

mod nodes;

use nodes::node;

fn target(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::parse(&format!("drone-{number:02}")).expect("a name"),
        id: PeerId([number; 32]),
    }
}

fn delivery(number: u8, reply: Reply, ms: f64) -> Event {
    Event::Delivery(Delivery::new(target(number), reply, ms))
}

fn report(targets: u8, deliveries: &[Event]) -> DeliveryReport {
    let mut report = DeliveryReport::default();
    report.on_event(&Event::Targets {
        targets: (1..=targets).map(target).collect(),
    });
    deliveries.iter().for_each(|event| report.on_event(event));
    report
}

fn printed(output: &str, exit: i32) -> Reply {
    let state = if exit == 0 { Outcome::Done } else { Outcome::Failed };
    Reply {
        state,
        value: None,
        output: Some(output.to_owned()),
        exit: Some(exit),
        error: None,
    }
}

#[test]
fn equal_results_are_grouped_with_failures_last() {
    let mut events = vec![
        delivery(
            13,
            Reply::ended(Outcome::NoAnswer, "nothing heard within 10 s"),
            10_000.0,
        ),
        delivery(14, printed("no such file\n", 2), 7.0),
    ];
    events.extend((1..=12).map(|number| {
        delivery(
            number,
            printed("up 3 days\nload 0.1\n", 0),
            f64::from(number) * 1.25,
        )
    }));
    let report = report(14, &events);
    assert_snapshot!(report.groups(Style::default()), @"
    drone-[01-12] (12 nodes)  done  1.25 ms to 15.0 ms
      up 3 days
      load 0.1
    drone-14  failed  7.00 ms
      no such file
      exit status 2
    drone-13  no-answer
      nothing heard within 10 s
    ");
    assert_snapshot!(report.summary(Duration::from_millis(310), Style::default()), @"12 done, 1 failed, 1 no-answer in 310 ms");
    assert_eq!(report.exit_status(), 1);
}

#[test]
fn result_values_are_formatted_as_text() {
    let value = json!({"uptime_s": 5, "note": "ok", "load": [0.1, 0.2]});
    let report = report(
        3,
        &[
            delivery(1, Reply::done(value), 0.214),
            delivery(2, Reply::done(json!("2.0.1")), 250.0),
            delivery(
                3,
                Reply::refused("an observer may not call reboot\u{1b}[2J; ask an operator"),
                1_200.0,
            ),
        ],
    );
    assert_snapshot!(report.groups(Style::default()), @"
    drone-01  done  0.21 ms
      load: [0.1,0.2]
      note: ok
      uptime_s: 5
    drone-02  done  250 ms
      2.0.1
    drone-03  refused  1.20 s
      an observer may not call reboot�[2J; ask an operator
    ");
}

#[test]
fn nodes_sharing_a_name_are_shown_with_their_ids() {
    let twin = NodeRef {
        id: PeerId([0x99; 32]),
        ..target(1)
    };
    let mut report = report(
        2,
        &[
            delivery(1, Reply::done(json!(null)), 1.0),
            delivery(2, Reply::done(json!(null)), 1.0),
        ],
    );
    report.on_event(&Event::Targets {
        targets: vec![twin.clone()],
    });
    report.on_event(&Event::Delivery(Delivery::new(
        twin,
        Reply::done(json!(null)),
        1.0,
    )));
    assert_snapshot!(report.groups(Style::default()), @"drone-02, drone-01 (id:0101-0101-0101-0101), drone-01 (id:9999-9999-9999-9999) (3 nodes)  done  1.00 ms");
}

#[test]
fn summary_names_unanswered_nodes() {
    let report = report(3, &[delivery(2, Reply::done(json!(1)), 1.0)]);
    assert_snapshot!(report.summary(Duration::from_secs(75), Style::default()), @"1 done, 2 not answered yet: drone-[01,03] (2 nodes) in 1 min 15 s");
    assert_eq!(report.unanswered_targets(), [target(1), target(3)]);
    assert_eq!(report.exit_status(), 4);
    assert_snapshot!(DeliveryReport::default().summary(Duration::ZERO, Style::default()), @"nothing sent in 0.00 ms");
}

#[test]
fn node_is_unanswered_until_its_last_file_ends() {
    let mut report = report(1, &[delivery(1, Reply::done(json!(1)), 1.0)]);
    report.on_event(&Event::Targets {
        targets: vec![target(1)],
    });
    assert_eq!(report.unanswered_targets(), [target(1)]);
}

#[test]
fn failure_outranks_no_answer_in_the_exit_status() {
    let silent = delivery(1, Reply::ended(Outcome::NoAnswer, ""), 1.0);
    for bad in [
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Expired,
        Outcome::Unknown,
    ] {
        let failed = delivery(2, Reply::ended(bad, ""), 1.0);
        assert_eq!(report(2, &[silent.clone(), failed.clone()]).exit_status(), 1);
        assert_eq!(report(2, &[failed, silent.clone()]).exit_status(), 1);
    }
    let done = delivery(2, Reply::done(json!(null)), 1.0);
    assert_eq!(report(2, &[silent.clone(), done.clone()]).exit_status(), 4);
    assert_eq!(report(2, &[done.clone(), silent]).exit_status(), 4);
    assert_eq!(
        report(1, &[delivery(1, Reply::done(json!(null)), 1.0)]).exit_status(),
        0
    );
}

#[test]
fn coloured_report_uses_ansi_codes() {
    let color = Style {
        color: true,
        columns: None,
    };
    let report = report(1, &[delivery(1, Reply::done(json!(null)), 1.0)]);
    assert_eq!(
        report.groups(color),
        "\x1b[1mdrone-01\x1b[0m  \x1b[32mdone\x1b[0m  \x1b[2m1.00 ms\x1b[0m\n"
    );
}

#[test]
fn node_change_prints_a_line_and_a_repeat_none() {
    let mut nodes = NodeTable::default();
    let online = node(1, NodeState::Online, Some(1));
    assert_eq!(
        nodes.update(&online, Style::default()).as_deref(),
        Some("drone-01  online  10.0.0.1:7420")
    );
    assert_eq!(
        nodes.update(
            &NodeView {
                last_heard_ms: Some(900),
                ..online.clone()
            },
            Style::default()
        ),
        None
    );
    let offline = NodeView {
        state: NodeState::Offline,
        ..online
    };
    assert_eq!(
        nodes.update(&offline, Style::default()).as_deref(),
        Some("drone-01  offline  10.0.0.1:7420")
    );
}

#[test]
fn membership_views_are_rendered() {
    let style = Style::default();
    let membership = MembershipView {
        node: target(1).node,
        id: target(1).id,
        role: Role::Admin,
        fleet: PeerId([0xab; 32]),
        has_root: true,
    };
    assert_snapshot!(fleet::membership(&membership, style), @"
    fleet abab-abab-abab-abab
    this station is drone-01 (0101-0101-0101-0101), admin, and holds the fleet's root key
    ");
    let invitation = InvitationView {
        code: "swarm-abc".to_owned(),
        role: Role::Node,
        uses: 1,
        valid_for_ms: 900_000,
    };
    assert_snapshot!(fleet::invitation(&invitation, style), @r#"
    swarm-abc
    valid once, for 15 min 0 s, as node; on the other machine:
      swarm-node join swarm-abc
    or put join = "swarm-abc" into its configuration
    keep `ground-station serve` running here until it has joined
    "#);
    let station = InvitationView {
        role: Role::Operator,
        uses: 3,
        ..invitation
    };
    assert_snapshot!(fleet::invitation(&station, style), @"
    swarm-abc
    valid 3 times, for 15 min 0 s, as operator; on the other machine:
      ground-station fleet join swarm-abc
    keep `ground-station serve` running here until it has joined
    ");
    let member = |number, role, revoked| MemberView {
        node: target(number).node,
        id: target(number).id,
        kind: PeerKind::Node,
        role,
        revoked,
        address: None,
        last_heard_ms: Some(7_200_000),
    };
    let members = [member(1, Role::Node, false), member(2, Role::Operator, true)];
    assert_snapshot!(fleet::members_table(&members, style).join("\n"), @"
    NAME      ID                   ROLE      STANDING  HEARD
    drone-01  0101-0101-0101-0101  node      member    2 h ago
    drone-02  0202-0202-0202-0202  operator  revoked   2 h ago
    ");
    let pending = PendingView {
        node: target(7).node,
        id: target(7).id,
        address: Some("10.0.0.7:51000".parse().expect("an address")),
        waiting_ms: 61_000,
    };
    assert_snapshot!(fleet::pending_table(&[pending], style).join("\n"), @"
    NAME      ID                   SINCE     ADDRESS
    drone-07  0707-0707-0707-0707  61 s ago  10.0.0.7:51000

    compare the id with the one in the node's log, then: ground-station fleet accept NODE
    ");
    assert_snapshot!(fleet::pending_table(&[], style).join("\n"), @"no device waits; a node asks to be accepted if its configuration has adoptable = true");
}

#[test]
fn json_lines_hold_exactly_the_documented_keys() {
    let Event::Delivery(mut done) = delivery(1, Reply::done(json!(7)), 1.23456) else {
        unreachable!("made so")
    };
    done.output = Some("a\nb".to_owned());
    assert_snapshot!(json::line(&Event::Delivery(done)).expect("a line"), @r#"{"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"done","value":7,"output":"a\nb","exit":null,"error":null,"ms":1.235}"#);
    assert_snapshot!(json::line(&Event::Node(node(1, NodeState::Silent, Some(5)))).expect("a line"), @r#"{"node":"drone-01","id":"0101010101010101010101010101010101010101010101010101010101010101","state":"silent","kind":"node","address":"10.0.0.1:7420","last_heard_ms":5,"tags":{"row":"3"},"software":"0.1.0","warnings":[],"stopped":null,"checks":[]}"#);
    for quiet in [
        Event::End,
        Event::note("x"),
        Event::Targets { targets: Vec::new() },
    ] {
        assert_eq!(json::line(&quiet), None);
    }
}

#[test]
fn wide_characters_take_two_columns() {
    assert_eq!(table::width("日本e\u{301}"), 5);
    assert_eq!(table::truncate("日本語", 5), "日本…");
    assert_eq!(table::truncate("日本語", 6), "日本語");
    assert_eq!(table::truncate("abc", 0), "");
}

/// A day in 2026.
const NOW_MS: u64 = 1_795_238_179_000;

fn command_view(command: u64, before_ms: u64, states: &[(HistoryState, u64)]) -> CommandView {
    CommandView {
        command,
        at_ms: NOW_MS - before_ms,
        who: "pi".to_owned(),
        kind: CommandKind::Command,
        action: "led".to_owned(),
        arguments: json!({"args": [], "kwargs": {"color": "#ff0000", "n": 5}}),
        selector: "drone-*".to_owned(),
        ttl_ms: 30_000,
        retry_of: None,
        retried_by: Vec::new(),
        batch: None,
        deliveries: states.iter().map(|(_, count)| count).sum(),
        states: states.iter().copied().collect(),
    }
}

fn delivery_view(number: u8, state: HistoryState, stages: &[(Stage, f64)]) -> HistoryDelivery {
    HistoryDelivery {
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
    }
}

const DONE: HistoryState = HistoryState::Ended(Outcome::Done);

#[test]
fn history_table_lists_commands() {
    let mut past = HistoryReport::default();
    let expired = HistoryState::Ended(Outcome::Expired);
    let mut views = vec![
        command_view(12, 200_000, &[(DONE, 11), (HistoryState::Open, 1)]),
        command_view(11, 3_600_000 * 5, &[(expired, 2)]),
        command_view(10, 86_400_000 * 3, &[(DONE, 1)]),
    ];
    views[1].arguments = json!({"args": ["a\u{1b}[2J\nb"], "kwargs": {"text": "x".repeat(100)}});
    (views[2].kind, views[2].action) = (CommandKind::Send, "shows/take1.csv".to_owned());
    views
        .into_iter()
        .for_each(|view| past.on_event(&Event::Command(view)));
    assert_snapshot!(past.commands_table(NOW_MS, Style::default()).join("\n"), @"
    NO  WHEN               WHO  WHAT                                              TO       ENDED
    12  3 min ago          pi   led color=#ff0000 n=5                             drone-*  11 done, 1 open
    11  5 h ago            pi   led a�[2J b text=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…  drone-*  2 expired
    10  2026-11-18 05:16Z  pi   send shows/take1.csv                              drone-*  1 done
    ");
}

#[test]
fn command_details_list_stages_and_retries() {
    let stages = |step: f64| {
        [
            (Stage::Received, step),
            (Stage::Accepted, 2.0 * step),
            (Stage::Started, 3.0 * step),
            (Stage::Finished, 100.0 * step),
        ]
    };
    let mut past_of = HistoryReport::default();
    let mut view = command_view(12, 200_000, &[(DONE, 3), (HistoryState::Open, 1)]);
    (view.retry_of, view.batch) = (Some(9), Some("25%".to_owned()));
    view.retried_by = vec![13, 14];
    past_of.on_event(&Event::Command(view));
    for number in 1..=3 {
        let mut delivery = delivery_view(number, DONE, &stages(f64::from(number)));
        delivery.output = Some("LED set\n".to_owned());
        past_of.on_event(&Event::HistoryDelivery(delivery));
    }
    past_of.on_event(&Event::HistoryDelivery(delivery_view(
        4,
        HistoryState::Open,
        &stages(0.5)[..1],
    )));
    past_of.on_event(&Event::HistoryDelivery(delivery_view(5, HistoryState::Open, &[])));
    assert_eq!(past_of.exit_status(), 4, "something is open");
    let mut late = delivery_view(6, HistoryState::Ended(Outcome::Expired), &[]);
    late.error = Some("its time to live ran out".to_owned());
    late.ms = Some(30_000.0);
    past_of.on_event(&Event::HistoryDelivery(late));
    assert_eq!(past_of.exit_status(), 1);
    assert_snapshot!(past_of.command_details(NOW_MS, Style::default()), @"
    command 12: led color=#ff0000 n=5
    by pi, 2026-11-21 05:12:59Z (3 min ago), to drone-*, time to live 30.0 s
    repeats command 9
    repeated by commands 13, 14
    in batches of 25%

    drone-[01-03] (3 nodes)  done  received 1.00 ms to 3.00 ms, accepted 2.00 ms to 6.00 ms, started 3.00 ms to 9.00 ms, finished 100 ms to 300 ms
      LED set
    drone-06  expired  after 30.0 s
      its time to live ran out
    drone-04  open  received 0.50 ms
    drone-05  open
    ");
}

#[test]
fn audit_table_lists_entries() {
    let mut past = HistoryReport::default();
    for (what, detail) in [("revoke", "drone-07"), ("command", "led to drone-*")] {
        past.on_event(&Event::Audit(AuditView {
            at_ms: NOW_MS - 60_000,
            who: "pi".to_owned(),
            what: what.to_owned(),
            detail: detail.to_owned(),
            outcome: "done".to_owned(),
        }));
    }
    assert_snapshot!(past.audit_table(NOW_MS, Style::default()).join("\n"), @"
    WHEN      WHO  WHAT     DETAIL          OUTCOME
    60 s ago  pi   revoke   drone-07        done
    60 s ago  pi   command  led to drone-*  done
    ");
}

#[test]
fn progress_text_counts_each_stage() {
    use swarm_shared::proto::delivery::Stage;
    let target = |n: u8| swarm_shared::api::NodeRef {
        node: swarm_shared::proto::id::NodeName::parse(&format!("n{n}")).expect("a name"),
        id: swarm_shared::proto::id::PeerId([n; 32]),
    };
    let mut report = super::deliveries::DeliveryReport::default();
    report.on_event(&Event::Targets {
        targets: (1..=4).map(target).collect(),
    });
    for (n, stage) in [(1, Stage::Started), (2, Stage::Received), (2, Stage::Started)] {
        let (node, ms) = (target(n), 1.0);
        report.on_event(&Event::Stage { node, stage, ms });
    }
    let done = swarm_shared::proto::outcome::Reply::done(serde_json::Value::Null);
    report.on_event(&Event::Delivery(swarm_shared::api::Delivery::new(
        target(1),
        done,
        1.0,
    )));
    assert_eq!(report.progress_text(), "1 of 4 done · 1 started · 2 waiting");
}

#[test]
fn telemetry_gets_its_own_columns() {
    let mut nodes = NodeTable::default();
    let mut drone = node(1, NodeState::Online, Some(0));
    let readings = [
        ("battery", serde_json::json!([12.2, 0.98])),
        ("fcu", serde_json::json!("STANDBY\u{1b}[2J")),
        ("long", serde_json::json!("x".repeat(100))),
        (
            "memory",
            serde_json::json!({ "free": 7, "total": 4000, "pages": { "huge": 0 } }),
        ),
    ];
    drone.telemetry = readings.map(|(name, value)| (name.to_owned(), value)).into();
    nodes.update(&drone, Style::default());
    nodes.update(&node(2, NodeState::Online, Some(0)), Style::default());
    let table = nodes.table(|_id| 0, Style::default()).join("\n");
    assert!(table.contains("BATTERY") && table.contains("FCU"), "{table}");
    assert!(
        table.contains("12.2 0.98") && table.contains("STANDBY") && table.contains("MEMORY.TOTAL"),
        "{table}"
    );
    assert!(
        !table.contains('\u{1b}') && !table.contains(&"x".repeat(30)) && !table.contains('{'),
        "{table}"
    );
    // Where there is less room, some are left out whole, and nothing is wider than the terminal.
    let style = Style {
        columns: Some(80),
        ..Style::default()
    };
    let narrow = nodes.table(|_id| 0, style);
    assert!(
        narrow[0].contains("NAME") && !narrow[0].contains("MEMORY"),
        "{narrow:?}"
    );
    assert!(
        narrow.iter().all(|line| super::table::width(line) <= 80),
        "{narrow:?}"
    );
}
