//! Nothing that is open is forgotten, and nothing that has ended changes again.

use std::time::Duration;

use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::delivery::tracker::{IssuedCommand, StoredCommand, StoredState, StoredTarget};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::Lane;

use super::super::deliveries::{REPLY_TEXT_BYTES_MAX, RecordTarget, apply, record, record_delivery_end};
use super::super::recovery::recover;
use super::super::retention::{SLICE_DELIVERIES, prune_slice};
use super::super::sql::from_sql;
use super::super::*;
use crate::config::RetentionPolicy;
use swarm_shared::api::{CommandKind, HistoryQuery, HistoryState, NodeRef};

pub(super) const STATION: PeerId = PeerId([0xee; 32]);
pub(super) const NOW_MS: u64 = 1_795_000_000_000;

/// `since` after boot `a`.
pub(super) fn timestamp_at(since: Duration) -> Timestamp {
    Timestamp {
        instant: clock::now(),
        boot: "a".to_owned(),
        since_boot: Duration::from_secs(1_000) + since,
        unix_ms: NOW_MS + u64::try_from(since.as_millis()).expect("short"),
    }
}

pub(super) fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: STATION,
        epoch: 7,
        seq,
    }
}

pub(super) fn node(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::parse(&format!("drone-{number:02}")).expect("a name"),
        id: PeerId([number; 32]),
    }
}

pub(super) fn issued(seq: u64, nodes: &[u8], now: &Timestamp, ttl: Duration) -> Change {
    Change::Issued(IssuedCommand {
        command: StoredCommand {
            id: id(seq),
            action: "led".to_owned(),
            arguments: "{\"args\":[],\"kwargs\":{\"color\":\"#ff0000\"}}".to_owned(),
            lane: Lane::Control,
            ttl_ms: u64::try_from(ttl.as_millis()).expect("short"),
        },
        selector: "drone-*".to_owned(),
        deliveries: nodes
            .iter()
            .map(|number| StoredTarget {
                to: node(*number).id,
                name: node(*number).node,
                state: StoredState::Waiting,
                deadline: now.instant + ttl,
            })
            .collect(),
    })
}

pub(super) fn ended(seq: u64, number: u8, reply: Reply) -> Change {
    Change::Ended {
        id: id(seq),
        to: node(number).id,
        reply,
    }
}

pub(super) fn started(seq: u64, number: u8) -> Change {
    Change::Stage {
        id: id(seq),
        to: node(number).id,
        stage: Stage::Started,
        at: clock::now(),
    }
}

pub(super) fn in_memory_connection() -> Connection {
    open_in_memory(NOW_MS, 7).expect("opens").0
}

pub(super) fn write(connection: &Connection, changes: &[Change], now: &Timestamp) -> Vec<u64> {
    let origins = (1..100).map(|seq| (id(seq), Origin::command_by("pi"))).collect();
    apply(connection, changes, &origins, now).expect("written")
}

const TTL: Duration = Duration::from_secs(30);

/// The book ends a command whose own write has failed, in case it came through after all, and tries until it can.
#[test]
fn ending_an_unstored_command_does_not_fail_its_group() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    write(&connection, &[issued(2, &[1], &now, TTL)], &now);
    let never_stored = ended(1, 1, Reply::refused("the station cannot store it"));
    write(
        &connection,
        &[never_stored, ended(2, 1, Reply::done(json!(1)))],
        &now,
    );
    assert_eq!(recover(&connection, STATION, &now).expect("read"), []);
}

#[test]
fn open_deliveries_are_recovered_unchanged() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    assert_eq!(write(&connection, &[issued(1, &[1, 2, 3], &now, TTL)], &now), [1]);
    assert_eq!(write(&connection, &[issued(2, &[1], &now, TTL)], &now), [2]);
    let stage = |stage| Change::Stage {
        id: id(1),
        to: node(2).id,
        stage,
        at: now.instant,
    };
    let moved = Change::StateChanged {
        id: id(1),
        to: node(2).id,
        state: StoredState::Sent,
        deadline: now.instant + Duration::from_secs(20),
    };
    let changes = [moved, stage(Stage::Received), stage(Stage::Accepted)];
    write(&connection, &changes, &now);
    write(&connection, &[ended(1, 3, Reply::done(json!(1)))], &now);

    let later = timestamp_at(Duration::from_secs(5));
    let open = recover(&connection, STATION, &later).expect("recovered");
    let Change::Issued(first) = issued(1, &[], &now, TTL) else {
        unreachable!("it is issued")
    };
    assert_eq!(open.len(), 2);
    assert_eq!(open[0].command, first.command, "the same bytes go out again");
    assert_eq!(open[1].command.id, id(2));
    let left: Vec<_> = open[0]
        .deliveries
        .iter()
        .map(|d| (d.to, d.state, d.stage, d.deadline.duration_since(later.instant)))
        .collect();
    assert_eq!(
        left,
        [
            (node(1).id, StoredState::Waiting, None, Duration::from_secs(25)),
            (
                node(2).id,
                StoredState::Sent,
                Some(Stage::Accepted),
                Duration::from_secs(15)
            ),
        ]
    );
}

#[test]
fn passed_or_unknowable_deadlines_recover_as_expired() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, TTL)], &now);
    let deadline = |now: &Timestamp| {
        let open = recover(&connection, STATION, now).expect("recovered");
        open[0].deliveries[0].deadline.duration_since(now.instant)
    };
    assert_eq!(deadline(&timestamp_at(Duration::from_secs(31))), Duration::ZERO);
    let rebooted = |unix_ms| Timestamp {
        boot: "b".to_owned(),
        since_boot: Duration::from_secs(3),
        unix_ms,
        ..timestamp_at(Duration::ZERO)
    };
    assert_eq!(
        deadline(&rebooted(NOW_MS - 1)),
        Duration::ZERO,
        "a clock that was put back proves nothing"
    );
    let connection = in_memory_connection();
    write(&connection, &[issued(1, &[1], &now, TTL)], &now);
    let later = rebooted(NOW_MS + 10_000);
    let open = recover(&connection, STATION, &later).expect("recovered");
    let left = open[0].deliveries[0].deadline.duration_since(later.instant);
    assert_eq!(left, Duration::from_secs(20));
}

#[test]
fn a_delivery_ends_only_once() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, TTL)], &now);
    let later = timestamp_at(Duration::from_millis(12));
    write(&connection, &[ended(1, 1, Reply::done(json!("first")))], &later);
    let much_later = timestamp_at(Duration::from_secs(9));
    let again = [
        ended(1, 1, Reply::failed("second")),
        Change::Stage {
            id: id(1),
            to: node(1).id,
            stage: Stage::Started,
            at: much_later.instant,
        },
    ];
    write(&connection, &again, &much_later);
    let found = history::deliveries(&connection, 1, &HistoryQuery::default()).expect("read");
    assert_eq!(found[0].state, HistoryState::Ended(Outcome::Done));
    assert_eq!(found[0].value, Some(json!("first")));
    assert_eq!(found[0].ms, Some(12.0));
    assert_eq!(found[0].stages, [(Stage::Finished, 12.0)].into());
    assert_eq!(recover(&connection, STATION, &much_later).expect("recovered"), []);
}

#[test]
fn updating_an_unknown_command_is_an_error() {
    let error = apply(
        &in_memory_connection(),
        &[started(1, 1)],
        &BTreeMap::new(),
        &timestamp_at(Duration::ZERO),
    );
    assert!(error.expect_err("unknown").to_string().contains("no command 7-1"));
}

#[test]
fn commands_of_another_key_recover_as_unknown() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, TTL)], &now);
    let stranger = PeerId([1; 32]);
    assert_eq!(recover(&connection, stranger, &now).expect("recovered"), []);
    let found = history::deliveries(&connection, 1, &HistoryQuery::default()).expect("read");
    assert_eq!(found[0].state, HistoryState::Ended(Outcome::Unknown));
    assert_eq!(
        recover(&connection, STATION, &now).expect("recovered"),
        [],
        "it has ended"
    );
}

#[test]
fn interrupted_transfer_is_recorded_as_unknown() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    let files = Record {
        origin: Origin {
            kind: CommandKind::Send,
            ..Origin::command_by("pi")
        },
        action: "2 files".to_owned(),
        arguments: "{}".to_owned(),
        lane: Lane::Bulk,
        selector: "all".to_owned(),
        ttl_ms: 30_000,
        deliveries: [(1, 0), (1, 1), (2, 0)]
            .map(|(number, part)| RecordTarget {
                node: node(number),
                part,
                about: Some(format!("shows/{part}.csv")),
            })
            .into(),
    };
    let number = record(&connection, &files, &now).expect("noted");
    let end = DeliveryEnd {
        node: node(1).id,
        part: 1,
        reply: Reply::done(json!(1)),
    };
    record_delivery_end(&connection, number, &end, &now).expect("noted");
    assert_eq!(recover(&connection, STATION, &now).expect("recovered"), []);
    let found = history::deliveries(&connection, number, &HistoryQuery::default()).expect("read");
    let states: Vec<_> = found
        .iter()
        .map(|d| (d.about.as_deref(), d.state.as_str()))
        .collect();
    assert_eq!(
        states,
        [
            (Some("shows/0.csv"), "unknown"),
            (Some("shows/1.csv"), "done"),
            (Some("shows/0.csv"), "unknown")
        ]
    );
}

#[test]
fn long_replies_are_truncated_with_a_note() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, TTL)], &now);
    let long = "é".repeat(REPLY_TEXT_BYTES_MAX);
    let reply = Reply {
        output: Some(long.clone()),
        ..Reply::done(json!([long]))
    };
    write(&connection, &[ended(1, 1, reply)], &now);
    let found = history::deliveries(&connection, 1, &HistoryQuery::default()).expect("read");
    let output = found[0].output.as_deref().expect("output");
    assert!(output.ends_with("[cut: 8192 bytes in all]") && output.len() < REPLY_TEXT_BYTES_MAX + 100);
    let value = found[0].value.as_ref().and_then(serde_json::Value::as_str);
    assert!(value.expect("text").len() < REPLY_TEXT_BYTES_MAX + 100);
}

fn row_counts(connection: &Connection) -> (u64, u64) {
    let count = |table: &str| {
        connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .map(from_sql)
            .expect("counted")
    };
    (count("commands"), count("deliveries"))
}

fn prune_all(connection: &Connection, policy: RetentionPolicy, now_ms: u64) -> usize {
    let mut slices = 1;
    while prune_slice(connection, policy, now_ms).expect("pruned") {
        slices += 1;
        assert!(slices < 1_000, "no end");
    }
    slices
}

#[test]
fn pruning_removes_oldest_but_never_open_deliveries() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    for seq in 1..=50 {
        let nodes: Vec<u8> = (0..40).collect();
        write(&connection, &[issued(seq, &nodes, &now, TTL)], &now);
        for number in nodes {
            // Of the first command one stays open.
            if (seq, number) != (1, 5) {
                write(&connection, &[ended(seq, number, Reply::done(json!(1)))], &now);
            }
        }
    }
    let keep = RetentionPolicy {
        days: 90,
        deliveries: 100,
    };
    assert!(prune_all(&connection, keep, NOW_MS) >= 1_900 / usize::try_from(SLICE_DELIVERIES).expect("fits"));
    let (commands, deliveries) = row_counts(&connection);
    assert!(
        commands >= 2 && (40..=100).contains(&deliveries),
        "{commands} {deliveries}"
    );
    assert_eq!(
        meta::get_number(&connection, meta::DELIVERY_COUNT).expect("read"),
        deliveries
    );
    let open = recover(&connection, STATION, &now).expect("recovered");
    assert_eq!((open.len(), open[0].deliveries.len()), (1, 1));
    assert!(
        history::command(&connection, 50).expect("read").is_some(),
        "the newest stays"
    );

    let old = NOW_MS + 91 * 86_400_000;
    prune_all(&connection, keep, old);
    assert_eq!(
        row_counts(&connection),
        (1, 40),
        "what is open keeps its command whole"
    );
    write(&connection, &[ended(1, 5, Reply::done(json!(1)))], &now);
    prune_all(&connection, keep, old);
    assert_eq!(row_counts(&connection), (0, 0));
    // Numbers are not given again.
    assert_eq!(write(&connection, &[issued(51, &[1], &now, TTL)], &now), [51]);
}

#[test]
fn prune_slice_is_bounded() {
    let connection = in_memory_connection();
    let now = timestamp_at(Duration::ZERO);
    let nodes: Vec<u8> = (0..=255).collect();
    for seq in 1..=8 {
        let ends = nodes
            .iter()
            .map(|number| ended(seq, *number, Reply::done(json!(1))));
        let changes: Vec<_> = std::iter::once(issued(seq, &nodes, &now, TTL))
            .chain(ends)
            .collect();
        write(&connection, &changes, &now);
    }
    let keep = RetentionPolicy {
        days: 90,
        deliveries: 0,
    };
    let before = row_counts(&connection).1;
    assert!(prune_slice(&connection, keep, NOW_MS).expect("pruned"));
    assert_eq!(before - row_counts(&connection).1, u64::from(SLICE_DELIVERIES));
}
