//! A station's database file, damaged: it opens, migrated and usable, or is refused with a reason. No panic, no hang.
//!
//! The first byte says what is damaged (nothing but bytes, a file of the first release, or a file of today with
//! commands in it) and what is asked of it then. The rest is the file, or changes to it: two bytes for where, one
//! for what.
//!
//! Without the address sanitizer it is four times as fast, and SQLite is built without it either way:
//! `cargo +nightly fuzz run --sanitizer none store …`
#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use ground_station::fleet::PastQuery;
use ground_station::store::deliveries::{self, Origin};
use ground_station::store::moment::Moment;
use ground_station::store::retention::{self, Keep};
use ground_station::store::{self, StoreError, history};
use libfuzzer_sys::fuzz_target;
use rusqlite::{Connection, MAIN_DB};
use swarm_shared::proto::delivery::book::{Change, Issued, StoredTarget, Order, Standing};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;

const SCHEMA_1: &[u8] = include_bytes!("../../ground-station/src/store/tests/schema-1.db");
const OWN: PeerId = PeerId([7; 32]);
const NOW_MS: u64 = 1_795_000_000_000;

fn moment() -> Moment {
    static NOW: OnceLock<Moment> = OnceLock::new();
    NOW.get_or_init(|| Moment {
        boot: "boot".to_owned(),
        since_boot: Duration::from_secs(100),
        unix_ms: NOW_MS,
        ..Moment::now()
    })
    .clone()
}

/// A small file of today: one command that is open on one node and has ended on another.
fn today() -> &'static [u8] {
    static TODAY: OnceLock<Vec<u8>> = OnceLock::new();
    TODAY.get_or_init(|| {
        let mut connection = Connection::open_in_memory().expect("opens");
        connection.pragma_update(None, "page_size", 512).expect("set");
        store::prepare(&mut connection, Path::new("today"), NOW_MS, 1).expect("made");
        let id = CommandId {
            issuer: OWN,
            epoch: 1,
            seq: 1,
        };
        let now = moment();
        let to = |number| StoredTarget {
            to: PeerId([number; 32]),
            name: NodeName::parse("drone-1").expect("a name"),
            standing: Standing::Sent,
            deadline: now.instant + Duration::from_secs(30),
        };
        let order = Order {
            id,
            action: "led".to_owned(),
            arguments: "{}".to_owned(),
            lane: Lane::Control,
            life_ms: 30_000,
        };
        let changes = [
            Change::Issued(Issued {
                order,
                selector: "all".to_owned(),
                deliveries: vec![to(1), to(2)],
            }),
            Change::Stage {
                id,
                to: PeerId([1; 32]),
                stage: Stage::Received,
                at: now.instant,
            },
            Change::Ended {
                id,
                to: PeerId([2; 32]),
                reply: Reply::failed("no"),
            },
        ];
        deliveries::apply(&connection, &changes, &[(id, Origin::of("pi"))].into(), &now).expect("written");
        connection.serialize(MAIN_DB).expect("bytes").to_vec()
    })
}

fn changed(base: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let file = match kind % 3 {
        0 => rest.to_vec(),
        1 => changed(SCHEMA_1, rest),
        _ => changed(today(), rest),
    };
    let mut connection = Connection::open_in_memory().expect("opens");
    if connection
        .deserialize_read_exact(MAIN_DB, file.as_slice(), file.len(), false)
        .is_err()
    {
        return;
    }
    match store::prepare(&mut connection, Path::new("fuzzed"), NOW_MS, 1) {
        Ok(epoch) => assert!(epoch > 0),
        Err(StoreError::Corrupt { .. } | StoreError::Newer { .. }) => return,
        // What a full disk or a lock would say too: some damage looks like it.
        Err(StoreError::Sql(error)) => {
            assert!(error.sqlite_error_code().is_some(), "{error}");
            return;
        }
        Err(other) => panic!("{other}"),
    }
    // Any of these may find damage further in. None may panic. One a run: each is slower than the opening.
    let now = moment();
    let query = PastQuery {
        limit: 5,
        ..PastQuery::default()
    };
    match kind / 3 % 5 {
        0 => drop(deliveries::recover(&connection, OWN, &now)),
        1 => drop(history::commands(&connection, &query, NOW_MS)),
        2 => {
            drop(history::deliveries(&connection, 1, &query));
            drop(history::family(&connection, 1));
        }
        3 => drop(history::audit_trail(&connection, &query, NOW_MS)),
        _ => {
            let keep = Keep {
                days: 1,
                deliveries: 1,
            };
            drop(retention::slice(&connection, keep, NOW_MS + 864_000_000));
        }
    }
});
