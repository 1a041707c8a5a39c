//! Questions about the past.

use std::time::Duration;

use serde_json::json;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;

use super::super::history::*;
use super::super::*;
use super::deliveries::{NOW_MS, ended, id, in_memory_connection, issued, node, timestamp_at, write};
use swarm_shared::api::{CommandKind, HistoryQuery, HistoryState};

/// Four commands, a minute apart: all done; one failed; one open; and one by another user that repeats the second.
fn history_fixture() -> Connection {
    let connection = in_memory_connection();
    let minute = |minutes: u64| timestamp_at(Duration::from_secs(60 * minutes));
    let life = Duration::from_secs(30);
    for (seq, nodes) in [(1, &[1, 2][..]), (2, &[1, 3]), (3, &[4])] {
        let now = minute(seq);
        write(&connection, &[issued(seq, nodes, &now, life)], &now);
    }
    let done = || Reply::done(json!("ok"));
    write(
        &connection,
        &[ended(1, 1, done()), ended(1, 2, done())],
        &minute(1),
    );
    write(
        &connection,
        &[ended(2, 1, done()), ended(2, 3, Reply::failed("no"))],
        &minute(2),
    );
    let now = minute(4);
    let origin = Origin {
        retry_of: Some(2),
        ..Origin::command_by("eva")
    };
    let changes = [issued(4, &[3], &now, life)];
    deliveries::apply(&connection, &changes, &[(id(4), origin)].into(), &now).expect("written");
    // Written with a later change, they still say when they were heard.
    let later = timestamp_at(Duration::from_millis(240_207));
    let stages = [Stage::Received, Stage::Accepted, Stage::Started].map(|stage| Change::Stage {
        id: id(4),
        to: node(3).id,
        stage,
        at: later.instant - Duration::from_millis(200),
    });
    write(&connection, &stages, &later);
    write(
        &connection,
        &[ended(4, 3, done())],
        &timestamp_at(Duration::from_millis(240_500)),
    );
    connection
}

fn numbers_of(connection: &Connection, query: &HistoryQuery) -> Vec<u64> {
    let found = commands(connection, query, NOW_MS + 5 * 60_000).expect("read");
    found.iter().map(|command| command.command).collect()
}

#[test]
fn history_filters_narrow_the_result() {
    let connection = history_fixture();
    let all = || HistoryQuery {
        limit: 20,
        ..HistoryQuery::default()
    };
    let state = |state| HistoryQuery {
        state: Some(state),
        ..all()
    };
    let nodes = |text: &str| HistoryQuery {
        nodes: Some(Selector::parse(text).expect("a selector")),
        ..all()
    };
    for (query, wanted) in [
        (all(), &[4, 3, 2, 1][..]),
        (HistoryQuery { limit: 2, ..all() }, &[4, 3]),
        (state(HistoryState::Open), &[3]),
        (state(HistoryState::Ended(Outcome::Failed)), &[2]),
        (state(HistoryState::Ended(Outcome::Expired)), &[]),
        (nodes("drone-01"), &[2, 1]),
        (nodes("drone-[03-04]"), &[4, 3, 2]),
        (nodes("id:0404"), &[3]),
        (
            HistoryQuery {
                within_ms: Some(150_000),
                ..all()
            },
            &[4, 3],
        ),
        (
            HistoryQuery {
                action: Some("led".to_owned()),
                ..all()
            },
            &[4, 3, 2, 1],
        ),
        (
            HistoryQuery {
                action: Some("LED".to_owned()),
                ..all()
            },
            &[],
        ),
    ] {
        assert_eq!(numbers_of(&connection, &query), wanted, "{query:?}");
    }
}

#[test]
fn command_view_holds_request_and_outcomes() {
    let connection = history_fixture();
    let shown = command(&connection, 4).expect("read").expect("there");
    assert_eq!(
        (shown.who.as_str(), shown.kind, shown.retry_of),
        ("eva", CommandKind::Command, Some(2))
    );
    assert_eq!(
        shown.arguments,
        json!({"args": [], "kwargs": {"color": "#ff0000"}})
    );
    assert_eq!((shown.deliveries, shown.ttl_ms), (1, 30_000));
    assert_eq!(shown.count(HistoryState::Ended(Outcome::Done)), 1);
    assert!(shown.retried_by.is_empty());
    let repeated = command(&connection, 2).expect("read").expect("there");
    assert_eq!(repeated.retried_by, [4]);
    let listed = commands(
        &connection,
        &HistoryQuery {
            limit: 10,
            ..HistoryQuery::default()
        },
        NOW_MS,
    );
    assert_eq!(listed.expect("read")[2].retried_by, [4]);
    assert_eq!(command_id(&connection, 4).expect("read"), Some(id(4)));
    assert_eq!(command_id(&connection, 5).expect("read"), None);
    assert!(command(&connection, 5).expect("read").is_none());
    assert_eq!(number_range(&connection).expect("read"), Some((1, 4)));

    let shown = deliveries(&connection, 4, &HistoryQuery::default()).expect("read");
    let stages = [
        (Stage::Received, 7.0),
        (Stage::Accepted, 7.0),
        (Stage::Started, 7.0),
        (Stage::Finished, 500.0),
    ];
    assert_eq!(shown[0].stages, stages.into());
    let failed = HistoryQuery {
        state: Some(HistoryState::Ended(Outcome::Failed)),
        ..HistoryQuery::default()
    };
    let shown = deliveries(&connection, 2, &failed).expect("read");
    assert_eq!((shown.len(), shown[0].error.as_deref()), (1, Some("no")));
}

#[test]
fn retries_are_included_transitively() {
    let connection = history_fixture();
    let family = deliveries_with_retries(&connection, 2).expect("read");
    let ends: Vec<_> = family
        .iter()
        .map(|d| (d.command, d.node.as_str(), d.state.as_str()))
        .collect();
    assert_eq!(
        ends,
        [
            (2, "drone-01", "done"),
            (2, "drone-03", "failed"),
            (4, "drone-03", "done")
        ]
    );
}

#[test]
fn audit_records_user_and_action() {
    let connection = history_fixture();
    let entry = audit::AuditEntry {
        at_ms: NOW_MS + 270_000,
        user: "root".to_owned(),
        action: "revoke".to_owned(),
        detail: "é".repeat(1_000),
        outcome: "done".to_owned(),
    };
    audit::insert(&connection, &entry).expect("written");
    let query = HistoryQuery {
        limit: 3,
        within_ms: Some(70_000),
        ..HistoryQuery::default()
    };
    let trail = audit_trail(&connection, &query, NOW_MS + 300_000).expect("read");
    let shown: Vec<_> = trail.iter().map(|e| (e.who.as_str(), e.what.as_str())).collect();
    assert_eq!(shown, [("root", "revoke"), ("eva", "command")]);
    assert_eq!(trail[0].detail.len(), 512, "texts are bounded");
    assert_eq!(trail[1].detail, "led to drone-*");
}

#[test]
fn audit_is_ordered_by_event_time() {
    let connection = history_fixture();
    // What repeats is counted, and noted under the time of the last of it.
    for (what, after_ms) in [("first", 1), ("third", 3), ("second", 2), ("third again", 3)] {
        let entry = audit::AuditEntry {
            at_ms: NOW_MS + 280_000 + after_ms,
            user: "eva".to_owned(),
            action: what.to_owned(),
            detail: String::new(),
            outcome: "done".to_owned(),
        };
        audit::insert(&connection, &entry).expect("written");
    }
    let newest = audit::newest(&connection, 0, 4).expect("read");
    let shown: Vec<&str> = newest.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(shown, ["third again", "third", "second", "first"]);
}
