//! Files of earlier versions, and files that are broken.

use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::proto::outcome::Reply;

use super::super::*;
use super::deliveries::{STATION, ended, id, issued, node, write};
use super::{member_row, pending_row};
use swarm_shared::api::HistoryQuery;

const RAW_MEMBERSHIP: meta::MetaValue<Value> = meta::MetaValue::new("membership");
/// A file as the first release left it, with a row in each table.
const SCHEMA_1: &[u8] = include_bytes!("schema-1.db");

fn write_schema_1_file(path: &Path) {
    std::fs::write(path, SCHEMA_1).expect("written");
}

#[test]
fn first_migration_matches_the_first_release() {
    let tables = |connection: &Connection| -> Vec<String> {
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = connection.prepare(sql).expect("asked");
        let rows = statement.query_map([], |row| row.get(0)).expect("asked");
        rows.collect::<Result<_, _>>().expect("read")
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    write_schema_1_file(&path);
    let released = Connection::open(&path).expect("opens");
    let now = Connection::open_in_memory().expect("opens");
    now.execute_batch(schema::MIGRATIONS[0]).expect("made");
    assert_eq!(
        tables(&now),
        tables(&released),
        "undo your change, and add a step"
    );
}

#[tokio::test]
async fn first_release_database_keeps_its_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    write_schema_1_file(&dir.path().join(STORE_FILE));
    let read = history::run_query(dir.path(), |_connection| Ok(()))
        .await
        .expect("read");
    assert!(read.is_none(), "it has no history yet, and is not touched");
    let store = Store::open(dir.path()).await.expect("opens");
    assert!(store.epoch() > 41);
    assert_eq!(store.members().await.expect("reads"), [member_row(2, "drone-02")]);
    assert_eq!(store.pending().await.expect("reads"), [pending_row(4)]);
    let membership = store.load_value(&RAW_MEMBERSHIP).await.expect("reads");
    assert_eq!(membership, Some(json!({"me": 1})));
    let open = store.recover(PeerId([1; 32])).await.expect("reads");
    assert_eq!(open, []);
}

/// As the release left it that had a history, and no gateways: schema 2.
#[tokio::test]
async fn schema_2_database_keeps_its_open_deliveries() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    {
        let connection = Connection::open(&path).expect("opens");
        for step in &schema::MIGRATIONS[..2] {
            connection.execute_batch(step).expect("made");
        }
        let pragmas = "PRAGMA application_id = 0x53775374; PRAGMA user_version = 2";
        connection.execute_batch(pragmas).expect("set");
        let meta = "INSERT INTO meta (key, value) VALUES ('epoch', 41), ('stop_number', 9), ('membership', '{\"me\":1}')";
        connection.execute_batch(meta).expect("written");
        let audit =
            "INSERT INTO audit (at_ms, who, what, detail, outcome) VALUES (5, 'pi', 'init', '', 'done')";
        connection.execute_batch(audit).expect("written");
        let now = Timestamp::now();
        let changes = [
            issued(1, &[1, 2], &now, Duration::from_secs(3_600)),
            ended(1, 1, Reply::done(json!(7))),
        ];
        assert_eq!(write(&connection, &changes, &now), [1]);
    }
    let store = Store::open(dir.path()).await.expect("opens");
    let open = store.recover(STATION).await.expect("reads");
    let [command] = open.as_slice() else {
        panic!("{open:?}")
    };
    let left: Vec<PeerId> = command.deliveries.iter().map(|delivery| delivery.to).collect();
    assert_eq!((command.command.id, left), (id(1), vec![node(2).id]));
    let past = history::run_query(dir.path(), |connection| {
        let query = HistoryQuery {
            limit: 9,
            ..HistoryQuery::default()
        };
        let trail = history::audit_trail(connection, &query, 5)?;
        let deliveries = history::deliveries(connection, 1, &query)?;
        Ok((trail.iter().any(|entry| entry.what == "init"), deliveries.len()))
    });
    assert_eq!(past.await.expect("reads"), Some((true, 2)));
    assert!(store.epoch() > 41);
    assert_eq!(
        store.load_value(&meta::STOP_NUMBER).await.expect("reads"),
        Some(9)
    );
    let membership = store.load_value(&RAW_MEMBERSHIP).await.expect("reads");
    assert_eq!(membership, Some(json!({"me": 1})));
    // What has come since is there, and empty.
    assert!(!store.has_users().await.expect("reads"));
    let new: meta::MetaValue<Value> = meta::MetaValue::new("unconfirmed_stops");
    assert_eq!(store.load_value(&new).await.expect("reads"), None);
}

#[test]
fn interrupted_migration_resumes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    write_schema_1_file(&path);
    // Killed within the second step: its transaction never came to be.
    {
        let connection = Connection::open(&path).expect("opens");
        connection
            .execute_batch("BEGIN IMMEDIATE; CREATE TABLE boots (half INTEGER)")
            .expect("begun");
    }
    let (connection, epoch) = open(&path).expect("opens");
    assert!(epoch > 41);
    let sql = "SELECT count(*) FROM deliveries";
    let count: i64 = connection
        .query_row(sql, [], |row| row.get(0))
        .expect("the table is there");
    assert_eq!(count, 0);
}

#[test]
fn tables_that_contradict_the_schema_are_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    write_schema_1_file(&path);
    let connection = Connection::open(&path).expect("opens");
    connection
        .execute_batch("CREATE TABLE commands (x)")
        .expect("made");
    drop(connection);
    let error = open(&path).expect_err("refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn open_delivery_query_uses_the_partial_index() {
    let (connection, _) = open_in_memory(1, 1).expect("opens");
    let plan = |sql: &str| -> String {
        let mut statement = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .expect(sql);
        let rows = statement.query_map([], |row| row.get::<_, String>(3)).expect(sql);
        rows.collect::<Result<Vec<_>, _>>().expect(sql).join("; ")
    };
    let open =
        plan("SELECT DISTINCT command FROM deliveries INDEXED BY deliveries_open WHERE outcome IS NULL");
    assert!(open.contains("INDEX deliveries_open"), "{open}");
    let of_one = plan("SELECT node FROM deliveries WHERE command = 1 AND outcome IS NULL ORDER BY node");
    assert!(of_one.contains("SEARCH"), "{of_one}");
}
