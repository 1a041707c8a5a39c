//! Files of earlier versions, and files that are broken.

use super::super::*;
use super::{knocker, member};

/// A file with schema 1 as the first release made it: its real step, and rows.
fn old_file(path: &Path) {
    let mut connection = Connection::open(path).expect("opens");
    schema::prepare_up_to(&mut connection, path, 1).expect("schema 1");
    let rows = "
        INSERT INTO meta VALUES ('epoch', 41), ('membership', '{\"me\":1}'), ('root_record', '{}');
        INSERT INTO members VALUES
            ('0202020202020202020202020202020202020202020202020202020202020202', 'id', 'drone-02', '\"node\"', '\"node\"',
             '{\"row\":\"3\"}', '10.0.0.7:7420', 5, '{}', 0);
        INSERT INTO pending VALUES
            ('0004000000000000000000000000000000000000000000000000000000000000', 'pi', '\"node\"', NULL, 4, 9);";
    connection.execute_batch(rows).expect("rows");
}

#[tokio::test]
async fn a_file_of_the_first_release_keeps_its_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    old_file(&dir.path().join(STORE_FILE));
    let read = history::ask(dir.path(), |_connection| Ok(()))
        .await
        .expect("read");
    assert!(read.is_none(), "it has no history yet, and is not touched");
    let store = Store::open(dir.path()).await.expect("opens");
    assert!(store.epoch() > 41);
    assert_eq!(store.members().await.expect("reads"), [member(2, "drone-02")]);
    assert_eq!(store.pending().await.expect("reads"), [knocker(4)]);
    let membership = store.membership().await.expect("reads");
    assert_eq!(membership.as_deref(), Some("{\"me\":1}"));
    let open = store.recover(PeerId([1; 32])).await.expect("reads");
    assert_eq!(open, []);
}

#[test]
fn a_kill_between_two_steps_is_made_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    old_file(&path);
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
fn a_file_whose_tables_are_not_what_its_schema_says_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    old_file(&path);
    let connection = Connection::open(&path).expect("opens");
    connection
        .execute_batch("CREATE TABLE commands (x)")
        .expect("made");
    drop(connection);
    let error = open(&path).expect_err("refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn what_is_open_is_found_without_looking_at_what_has_ended() {
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
