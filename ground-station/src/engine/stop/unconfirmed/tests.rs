use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::persisted::RETRY_INTERVAL;

const TIMEOUT: Duration = Duration::from_secs(20);

async fn stored(store: &Store) -> BTreeMap<PeerId, u64> {
    store.load_value(&STORED).await.expect("read").unwrap_or_default()
}

#[tokio::test]
async fn unconfirmed_stops_are_retried_after_a_full_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    let full = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'full'); END";
    disk.execute_batch(full).expect("made");
    let (all, one) = (UnconfirmedStops::default(), PeerId([1; 32]));
    let writer = tokio::spawn(
        all.persisted()
            .clone()
            .persist_changes(store.clone(), CancellationToken::new()),
    );
    all.insert([one], 7);
    tokio::time::sleep(RETRY_INTERVAL / 4).await;
    assert_eq!(stored(&store).await, BTreeMap::new());
    disk.execute_batch("DROP TRIGGER full").expect("room");
    tokio::time::timeout(TIMEOUT, async {
        while stored(&store).await != all.snapshot() {
            tokio::time::sleep(RETRY_INTERVAL / 10).await;
        }
    })
    .await
    .expect("tried again");
    writer.abort();
}

#[tokio::test]
async fn unconfirmed_stops_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
    let all = UnconfirmedStops::load(&store).await.expect("read");
    assert_eq!(all.snapshot(), BTreeMap::new());
    let shutdown = CancellationToken::new();
    let writer = tokio::spawn(
        all.persisted()
            .clone()
            .persist_changes(store.clone(), shutdown.clone()),
    );
    all.insert([one, two], 7);
    all.insert([two], 9);
    assert!(all.clear(one) && !all.clear(one), "once");
    shutdown.cancel();
    writer.await.expect("ends");
    store.close().await;
    let store = Store::open(dir.path()).await.expect("opens");
    let again = UnconfirmedStops::load(&store).await.expect("read");
    assert_eq!((again.stop_number(one), again.stop_number(two)), (None, Some(9)));
}

#[tokio::test]
async fn damaged_unconfirmed_stops_do_not_block_stopping() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    for damaged in ["'{\"no'", "'{\"nobody\": 7}'", "7", "x'ff'", "''"] {
        let put = format!("INSERT OR REPLACE INTO meta (key, value) VALUES ('unconfirmed_stops', {damaged})");
        disk.execute_batch(&put).expect(damaged);
        store.load_value(&STORED).await.expect_err(damaged);
        let all = UnconfirmedStops::load(&store).await.expect(damaged);
        assert_eq!(all.snapshot(), BTreeMap::new(), "{damaged}");
        // The next stop makes it whole.
        let shutdown = CancellationToken::new();
        let writer = tokio::spawn(
            all.persisted()
                .clone()
                .persist_changes(store.clone(), shutdown.clone()),
        );
        all.insert([PeerId([1; 32])], 7);
        shutdown.cancel();
        writer.await.expect("ends");
        assert_eq!(stored(&store).await, all.snapshot());
    }
    disk.execute_batch("DROP TABLE meta").expect("gone");
    UnconfirmedStops::load(&store).await.expect_err("no store at all");
}

#[test]
fn short_unconfirmed_stops_are_not_reported() {
    let (all, mut lasting) = (UnconfirmedStops::default(), Debounce::default());
    let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
    all.insert([one, two], 7);
    assert_eq!(lasting.changes(&all), []);
    all.clear(one);
    assert_eq!(lasting.changes(&all), [two]);
    assert_eq!(lasting.changes(&all), []);
    all.clear(two);
    assert_eq!(lasting.changes(&all), [two]);
}
