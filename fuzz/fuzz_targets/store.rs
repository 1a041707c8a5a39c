//! A damaged station database. It is migrated and opened, or refused with a reason; it never panics or hangs.
//!
//! The first byte selects the base (arbitrary bytes, a file of schema 1, or a current file with commands) and the query
//! that follows. The rest is the file itself, or changes to the base: two bytes of offset, one of value.
//!
//! It runs four times as fast without the address sanitizer, which SQLite is compiled without in any case:
//! `cargo +nightly fuzz run --sanitizer none store …`
#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use ground_station::config::RetentionPolicy;
use swarm_shared::api::HistoryQuery;
use ground_station::store::deliveries::{self, Origin};
use ground_station::store::retention;
use ground_station::store::timestamp::Timestamp;
use ground_station::store::{self, StoreError, history, recovery};
use libfuzzer_sys::fuzz_target;
use rusqlite::{Connection, MAIN_DB};
use swarm_shared::proto::delivery::tracker::{
    Change, IssuedCommand, StoredCommand, StoredState, StoredTarget,
};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;

const SCHEMA_1: &[u8] = include_bytes!("../../ground-station/src/store/tests/schema-1.db");
const OWN: PeerId = PeerId([7; 32]);
const NOW_MS: u64 = 1_795_000_000_000;

fn timestamp() -> Timestamp {
    static NOW: OnceLock<Timestamp> = OnceLock::new();
    NOW.get_or_init(|| Timestamp {
        boot: "boot".to_owned(),
        since_boot: Duration::from_secs(100),
        unix_ms: NOW_MS,
        ..Timestamp::now()
    })
    .clone()
}

/// A small file of the current schema: one command, open on one node and ended on another.
fn current_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut connection = Connection::open_in_memory().expect("opens");
        connection.pragma_update(None, "page_size", 512).expect("set");
        store::prepare(&mut connection, Path::new("current"), NOW_MS, 1).expect("made");
        let id = CommandId {
            issuer: OWN,
            epoch: 1,
            seq: 1,
        };
        let now = timestamp();
        let to = |number| StoredTarget {
            to: PeerId([number; 32]),
            name: NodeName::parse("drone-1").expect("a name"),
            state: StoredState::Sent,
            deadline: now.instant + Duration::from_secs(30),
        };
        let command = StoredCommand {
            id,
            action: "led".to_owned(),
            arguments: "{}".to_owned(),
            lane: Lane::Control,
            ttl_ms: 30_000,
        };
        let changes = [
            Change::Issued(IssuedCommand {
                command,
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
        deliveries::apply(
            &connection,
            &changes,
            &[(id, Origin::command_by("pi"))].into(),
            &now,
        )
        .expect("written");
        connection.serialize(MAIN_DB).expect("bytes").to_vec()
    })
}

fn with_changes(base: &[u8], changes: &[u8]) -> Vec<u8> {
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
        1 => with_changes(SCHEMA_1, rest),
        _ => with_changes(current_file(), rest),
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
        Err(StoreError::Corrupt { .. } | StoreError::NewerSchema { .. }) => return,
        // Some damage gives the error of a full disk or of a lock.
        Err(StoreError::Sql(error)) => {
            assert!(error.sqlite_error_code().is_some(), "{error}");
            return;
        }
        Err(other) => panic!("{other}"),
    }
    // Each query may meet more damage and must not panic. One query a run: each is slower than opening.
    let now = timestamp();
    let query = HistoryQuery {
        limit: 5,
        ..HistoryQuery::default()
    };
    match kind / 3 % 5 {
        0 => drop(recovery::recover(&connection, OWN, &now)),
        1 => drop(history::commands(&connection, &query, NOW_MS)),
        2 => {
            drop(history::deliveries(&connection, 1, &query));
            drop(history::deliveries_with_retries(&connection, 1));
        }
        3 => drop(history::audit_trail(&connection, &query, NOW_MS)),
        _ => {
            let policy = RetentionPolicy {
                days: 1,
                deliveries: 1,
            };
            drop(retention::prune_slice(&connection, policy, NOW_MS + 864_000_000));
        }
    }
});
