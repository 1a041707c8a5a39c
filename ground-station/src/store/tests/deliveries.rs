//! Nothing that is open is forgotten, and nothing that has ended changes again.

use std::time::Duration;

use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::delivery::tracker::{Issued, IssuedTo, Order, Standing};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::Lane;

use super::super::deliveries::{REPLY_TEXT_BYTES_MAX, RecordTo, apply, record, record_end, recover};
use super::super::retention::{Keep, SLICE_DELIVERIES, slice};
use super::super::*;
use crate::fleet::{CommandKind, NodeRef, PastQuery, PastState};

pub(super) const OWN: PeerId = PeerId([0xee; 32]);
pub(super) const NOW_MS: u64 = 1_795_000_000_000;

/// `since` after boot `a`.
pub(super) fn at(since: Duration) -> Moment {
    Moment {
        instant: clock::now(),
        boot: "a".to_owned(),
        since_boot: Duration::from_secs(1_000) + since,
        unix_ms: NOW_MS + u64::try_from(since.as_millis()).expect("short"),
    }
}

pub(super) fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: OWN,
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

pub(super) fn issued(seq: u64, nodes: &[u8], now: &Moment, life: Duration) -> Change {
    Change::Issued(Issued {
        order: Order {
            id: id(seq),
            action: "led".to_owned(),
            arguments: "{\"args\":[],\"kwargs\":{\"color\":\"#ff0000\"}}".to_owned(),
            lane: Lane::Control,
            life_ms: u64::try_from(life.as_millis()).expect("short"),
        },
        selector: "drone-*".to_owned(),
        deliveries: nodes
            .iter()
            .map(|number| IssuedTo {
                to: node(*number).id,
                name: node(*number).node,
                standing: Standing::Waiting,
                deadline: now.instant + life,
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

pub(super) fn memory() -> Connection {
    open_in_memory(NOW_MS, 7).expect("opens").0
}

pub(super) fn write(connection: &Connection, changes: &[Change], now: &Moment) -> Vec<u64> {
    let origins = (1..100).map(|seq| (id(seq), Origin::of("pi"))).collect();
    apply(connection, changes, &origins, now).expect("written")
}

const LIFE: Duration = Duration::from_secs(30);

/// The book ends a command whose own write has failed, in case it came through after all, and tries until it can.
#[test]
fn the_end_of_what_was_never_stored_does_not_fail_what_is_written_with_it() {
    let connection = memory();
    let now = at(Duration::ZERO);
    write(&connection, &[issued(2, &[1], &now, LIFE)], &now);
    let never_stored = ended(1, 1, Reply::refused("the station cannot store it"));
    write(
        &connection,
        &[never_stored, ended(2, 1, Reply::done(json!(1)))],
        &now,
    );
    assert_eq!(recover(&connection, OWN, &now).expect("read"), []);
}

#[test]
fn what_is_open_is_given_back_as_it_was() {
    let connection = memory();
    let now = at(Duration::ZERO);
    assert_eq!(
        write(&connection, &[issued(1, &[1, 2, 3], &now, LIFE)], &now),
        [1]
    );
    assert_eq!(write(&connection, &[issued(2, &[1], &now, LIFE)], &now), [2]);
    let stage = |stage| Change::Stage {
        id: id(1),
        to: node(2).id,
        stage,
        at: now.instant,
    };
    let moved = Change::Moved {
        id: id(1),
        to: node(2).id,
        standing: Standing::Sent,
        deadline: now.instant + Duration::from_secs(20),
    };
    let changes = [moved, stage(Stage::Received), stage(Stage::Accepted)];
    write(&connection, &changes, &now);
    write(&connection, &[ended(1, 3, Reply::done(json!(1)))], &now);

    let later = at(Duration::from_secs(5));
    let open = recover(&connection, OWN, &later).expect("recovered");
    let Change::Issued(first) = issued(1, &[], &now, LIFE) else {
        unreachable!("it is issued")
    };
    assert_eq!(open.len(), 2);
    assert_eq!(open[0].order, first.order, "the same bytes go out again");
    assert_eq!(open[1].order.id, id(2));
    let left: Vec<_> = open[0]
        .deliveries
        .iter()
        .map(|d| {
            (
                d.to,
                d.standing,
                d.stage,
                d.deadline.duration_since(later.instant),
            )
        })
        .collect();
    assert_eq!(
        left,
        [
            (node(1).id, Standing::Waiting, None, Duration::from_secs(25)),
            (
                node(2).id,
                Standing::Sent,
                Some(Stage::Accepted),
                Duration::from_secs(15)
            ),
        ]
    );
}

#[test]
fn a_deadline_that_passed_meanwhile_or_cannot_be_told_has_passed() {
    let connection = memory();
    let now = at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, LIFE)], &now);
    let deadline = |now: &Moment| {
        let open = recover(&connection, OWN, now).expect("recovered");
        open[0].deliveries[0].deadline.duration_since(now.instant)
    };
    assert_eq!(deadline(&at(Duration::from_secs(31))), Duration::ZERO);
    let rebooted = |unix_ms| Moment {
        boot: "b".to_owned(),
        since_boot: Duration::from_secs(3),
        unix_ms,
        ..at(Duration::ZERO)
    };
    assert_eq!(
        deadline(&rebooted(NOW_MS - 1)),
        Duration::ZERO,
        "a clock that was put back proves nothing"
    );
    let connection = memory();
    write(&connection, &[issued(1, &[1], &now, LIFE)], &now);
    let later = rebooted(NOW_MS + 10_000);
    let open = recover(&connection, OWN, &later).expect("recovered");
    let left = open[0].deliveries[0].deadline.duration_since(later.instant);
    assert_eq!(left, Duration::from_secs(20));
}

#[test]
fn a_delivery_ends_once() {
    let connection = memory();
    let now = at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, LIFE)], &now);
    let later = at(Duration::from_millis(12));
    write(&connection, &[ended(1, 1, Reply::done(json!("first")))], &later);
    let much_later = at(Duration::from_secs(9));
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
    let found = history::deliveries(&connection, 1, &PastQuery::default()).expect("read");
    assert_eq!(found[0].state, PastState::Ended(Outcome::Done));
    assert_eq!(found[0].value, Some(json!("first")));
    assert_eq!(found[0].ms, Some(12.0));
    assert_eq!(found[0].stages, [(Stage::Finished, 12.0)].into());
    assert_eq!(recover(&connection, OWN, &much_later).expect("recovered"), []);
}

#[test]
fn an_unknown_command_is_an_error_and_not_nothing() {
    let error = apply(&memory(), &[started(1, 1)], &BTreeMap::new(), &at(Duration::ZERO));
    assert!(error.expect_err("unknown").to_string().contains("no command 7-1"));
}

#[test]
fn another_key_does_not_carry_on_what_the_old_one_began() {
    let connection = memory();
    let now = at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, LIFE)], &now);
    let stranger = PeerId([1; 32]);
    assert_eq!(recover(&connection, stranger, &now).expect("recovered"), []);
    let found = history::deliveries(&connection, 1, &PastQuery::default()).expect("read");
    assert_eq!(found[0].state, PastState::Ended(Outcome::Unknown));
    assert_eq!(
        recover(&connection, OWN, &now).expect("recovered"),
        [],
        "it has ended"
    );
}

#[test]
fn a_transfer_that_was_cut_off_ends_as_unknown() {
    let connection = memory();
    let now = at(Duration::ZERO);
    let files = Record {
        origin: Origin {
            kind: CommandKind::Send,
            ..Origin::of("pi")
        },
        action: "2 files".to_owned(),
        arguments: "{}".to_owned(),
        lane: Lane::Bulk,
        selector: "all".to_owned(),
        life_ms: 30_000,
        deliveries: [(1, 0), (1, 1), (2, 0)]
            .map(|(number, part)| RecordTo {
                node: node(number),
                part,
                about: Some(format!("shows/{part}.csv")),
            })
            .into(),
    };
    let number = record(&connection, &files, &now).expect("noted");
    let end = PartEnd {
        node: node(1).id,
        part: 1,
        reply: Reply::done(json!(1)),
    };
    record_end(&connection, number, &end, &now).expect("noted");
    assert_eq!(recover(&connection, OWN, &now).expect("recovered"), []);
    let found = history::deliveries(&connection, number, &PastQuery::default()).expect("read");
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
fn a_long_reply_is_cut_and_says_so() {
    let connection = memory();
    let now = at(Duration::ZERO);
    write(&connection, &[issued(1, &[1], &now, LIFE)], &now);
    let long = "é".repeat(REPLY_TEXT_BYTES_MAX);
    let reply = Reply {
        output: Some(long.clone()),
        ..Reply::done(json!([long]))
    };
    write(&connection, &[ended(1, 1, reply)], &now);
    let found = history::deliveries(&connection, 1, &PastQuery::default()).expect("read");
    let output = found[0].output.as_deref().expect("output");
    assert!(output.ends_with("[cut: 8192 bytes in all]") && output.len() < REPLY_TEXT_BYTES_MAX + 100);
    let value = found[0].value.as_ref().and_then(serde_json::Value::as_str);
    assert!(value.expect("text").len() < REPLY_TEXT_BYTES_MAX + 100);
}

fn left(connection: &Connection) -> (u64, u64) {
    let count = |table: &str| {
        connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .map(from_sql)
            .expect("counted")
    };
    (count("commands"), count("deliveries"))
}

fn prune(connection: &Connection, keep: Keep, now_ms: u64) -> usize {
    let mut slices = 1;
    while slice(connection, keep, now_ms).expect("pruned") {
        slices += 1;
        assert!(slices < 1_000, "no end");
    }
    slices
}

#[test]
fn the_oldest_go_when_there_are_too_many_and_open_ones_never() {
    let connection = memory();
    let now = at(Duration::ZERO);
    for seq in 1..=50 {
        let nodes: Vec<u8> = (0..40).collect();
        write(&connection, &[issued(seq, &nodes, &now, LIFE)], &now);
        for number in nodes {
            // Of the first command one stays open.
            if (seq, number) != (1, 5) {
                write(&connection, &[ended(seq, number, Reply::done(json!(1)))], &now);
            }
        }
    }
    let keep = Keep {
        days: 90,
        deliveries: 100,
    };
    assert!(prune(&connection, keep, NOW_MS) >= 1_900 / usize::try_from(SLICE_DELIVERIES).expect("fits"));
    let (commands, deliveries) = left(&connection);
    assert!(
        commands >= 2 && (40..=100).contains(&deliveries),
        "{commands} {deliveries}"
    );
    assert_eq!(
        meta::number(&connection, meta::DELIVERIES).expect("read"),
        deliveries
    );
    let open = recover(&connection, OWN, &now).expect("recovered");
    assert_eq!((open.len(), open[0].deliveries.len()), (1, 1));
    assert!(
        history::command(&connection, 50).expect("read").is_some(),
        "the newest stays"
    );

    let old = NOW_MS + 91 * 86_400_000;
    prune(&connection, keep, old);
    assert_eq!(left(&connection), (1, 40), "what is open keeps its command whole");
    write(&connection, &[ended(1, 5, Reply::done(json!(1)))], &now);
    prune(&connection, keep, old);
    assert_eq!(left(&connection), (0, 0));
    // Numbers are not given again.
    assert_eq!(write(&connection, &[issued(51, &[1], &now, LIFE)], &now), [51]);
}

#[test]
fn a_slice_is_small() {
    let connection = memory();
    let now = at(Duration::ZERO);
    let nodes: Vec<u8> = (0..=255).collect();
    for seq in 1..=8 {
        let ends = nodes
            .iter()
            .map(|number| ended(seq, *number, Reply::done(json!(1))));
        let changes: Vec<_> = std::iter::once(issued(seq, &nodes, &now, LIFE))
            .chain(ends)
            .collect();
        write(&connection, &changes, &now);
    }
    let keep = Keep {
        days: 90,
        deliveries: 0,
    };
    let before = left(&connection).1;
    assert!(slice(&connection, keep, NOW_MS).expect("pruned"));
    assert_eq!(before - left(&connection).1, u64::from(SLICE_DELIVERIES));
}
