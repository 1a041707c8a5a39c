//! Changes that are committed together.

use serde_json::json;
use swarm_shared::proto::outcome::{Outcome, Reply};

use super::super::*;
use super::deliveries::{ended, id, issued, started};
use swarm_shared::api::{HistoryQuery, HistoryState};

const TTL: std::time::Duration = std::time::Duration::from_secs(30);

fn origins() -> BTreeMap<CommandId, Origin> {
    (1..1_000)
        .map(|seq| (id(seq), Origin::command_by("pi")))
        .collect()
}

#[tokio::test]
async fn acknowledged_writes_survive_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let now = Timestamp::now();
    let numbers = store
        .apply(vec![issued(1, &[1, 2], &now, TTL)], origins())
        .await
        .expect("kept");
    assert_eq!(numbers, [1]);
    store
        .apply(vec![ended(1, 1, Reply::done(json!("ok")))], BTreeMap::new())
        .await
        .expect("kept");
    // The files as a crash leaves them at this instant: copied under the open store.
    let copy = tempfile::tempdir().expect("a directory");
    for file in [STORE_FILE, "station.db-wal"] {
        std::fs::copy(dir.path().join(file), copy.path().join(file)).expect(file);
    }
    let again = Store::open(copy.path()).await.expect("opens");
    let open = again.recover(id(1).issuer).await.expect("recovered");
    assert_eq!((open.len(), open[0].deliveries.len()), (1, 1));
    assert_eq!(open[0].command.id, id(1));
    let found = history::run_query(copy.path(), |c| {
        history::deliveries(c, 1, &HistoryQuery::default())
    });
    let found = found.await.expect("read").expect("there is one");
    assert_eq!(found[0].state, HistoryState::Ended(Outcome::Done));
    assert!(again.epoch() > store.epoch());
}

#[tokio::test]
async fn grouped_writes_get_individual_results() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let now = Timestamp::now();
    let mut answers = Vec::new();
    for seq in 1..=200 {
        let (store, now) = (store.clone(), now.clone());
        answers.push(tokio::spawn(async move {
            // Every tenth begins well, and then is about a command that does not exist.
            let mut changes = vec![issued(seq, &[1], &now, TTL)];
            if seq % 10 == 0 {
                changes.push(started(seq + 500, 1));
            }
            (seq, store.apply(changes, origins()).await)
        }));
    }
    let mut numbers = Vec::new();
    for answer in answers {
        match answer.await.expect("no panic") {
            (seq, Ok(found)) => {
                assert_ne!(seq % 10, 0);
                numbers.extend(found);
            }
            (seq, Err(error)) => {
                assert_eq!(seq % 10, 0, "{error}");
                assert!(matches!(error, StoreError::BadRow { .. }), "{error}");
            }
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 180, "each its own");
    let open = store.recover(id(1).issuer).await.expect("recovered");
    assert_eq!(open.len(), 180, "one that fails takes no other with it");
}

#[test]
fn write_group_is_one_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut connection, _) = open(&dir.path().join(STORE_FILE)).expect("opens");
    let commits = |connection: &Connection| -> i64 {
        let sql = "SELECT count(*) FROM commands";
        connection.query_row(sql, [], |row| row.get(0)).expect("counted")
    };
    let (jobs, mut queue) = mpsc::channel(STORE_QUEUE_MAX);
    let now = Timestamp::now();
    let mut answers = Vec::new();
    for seq in 1..=50 {
        let (change, now) = (issued(seq, &[1], &now, TTL), now.clone());
        let (job, answer) =
            write_thread::grouped_job(move |c| deliveries::apply(c, &[change], &BTreeMap::new(), &now));
        jobs.blocking_send(job).map_err(drop).expect("room");
        answers.push(answer);
    }
    drop(jobs);
    // Its file grows by one frame for each page of each commit: fifty commits would write the same pages fifty times.
    write_thread::run(&mut connection, &mut queue);
    let wal = std::fs::metadata(dir.path().join("station.db-wal"))
        .expect("there")
        .len();
    assert!(
        answers
            .into_iter()
            .all(|answer| matches!(answer.blocking_recv(), Ok(Ok(_))))
    );
    assert_eq!(commits(&connection), 50);
    let one_each = 50 * 5 * 4_096;
    assert!(wal < one_each, "{wal} bytes for 50 changes");
}

#[tokio::test]
async fn full_disk_error_reaches_every_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let full = store.read(|connection| {
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        connection.pragma_update(None, "max_page_count", pages)?;
        Ok(())
    });
    full.await.expect("set");
    let now = Timestamp::now();
    let nodes: Vec<u8> = (0..=255).collect();
    let mut refused = 0;
    for seq in 1..=20 {
        if let Err(error) = store.apply(vec![issued(seq, &nodes, &now, TTL)], origins()).await {
            assert!(error.to_string().contains("disk is not full"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    let room = store.read(|connection| Ok(connection.pragma_update(None, "max_page_count", 100_000)?));
    room.await.expect("set");
    store
        .apply(vec![issued(99, &nodes, &now, TTL)], origins())
        .await
        .expect("there is room again");
    let open = store.recover(id(1).issuer).await.expect("recovered");
    assert_eq!(open.len(), 21 - refused, "what was refused is not there");
    assert!(
        open.iter().all(|command| command.deliveries.len() == 256),
        "all or none"
    );
}
