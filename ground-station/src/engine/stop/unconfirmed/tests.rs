use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::persisted::RETRY_INTERVAL;

const TIMEOUT: Duration = Duration::from_secs(20);

async fn stored(store: &Store) -> BTreeMap<PeerId, u64> {
    store
        .load_value(&UNCONFIRMED)
        .await
        .expect("read")
        .unwrap_or_default()
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
        all.persisted()[0]
            .clone()
            .persist_changes(store.clone(), CancellationToken::new()),
    );
    all.insert([one], 7);
    tokio::time::sleep(RETRY_INTERVAL / 4).await;
    assert_eq!(stored(&store).await, BTreeMap::new());
    disk.execute_batch("DROP TRIGGER full").expect("room");
    tokio::time::timeout(TIMEOUT, async {
        while stored(&store).await != all.unconfirmed() {
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
    assert_eq!(all.unconfirmed(), BTreeMap::new());
    let shutdown = CancellationToken::new();
    let writer = tokio::spawn(
        all.persisted()[0]
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
        store.load_value(&UNCONFIRMED).await.expect_err(damaged);
        let all = UnconfirmedStops::load(&store).await.expect(damaged);
        assert_eq!(all.unconfirmed(), BTreeMap::new(), "{damaged}");
        // The next stop makes it whole.
        let shutdown = CancellationToken::new();
        let writer = tokio::spawn(
            all.persisted()[0]
                .clone()
                .persist_changes(store.clone(), shutdown.clone()),
        );
        all.insert([PeerId([1; 32])], 7);
        shutdown.cancel();
        writer.await.expect("ends");
        assert_eq!(stored(&store).await, all.unconfirmed());
    }
    disk.execute_batch("DROP TABLE meta").expect("gone");
    UnconfirmedStops::load(&store).await.expect_err("no store at all");
}

#[tokio::test]
async fn confirmed_stop_survives_a_restart_until_it_is_confirmed_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let node = PeerId([1; 32]);
    let all = UnconfirmedStops::load(&store).await.expect("read");
    all.insert([node], 7);
    all.on_report(node, &report(true, Some(0)));
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    for persisted in all.persisted() {
        persisted
            .clone()
            .persist_changes(store.clone(), shutdown.clone())
            .await;
    }
    let again = UnconfirmedStops::load(&store).await.expect("read");
    assert_eq!(again.stop_number(node), None);
    assert!(again.refusal(node).is_some());
    again.on_report(node, &report(true, Some(0)));
    assert_eq!(again.refusal(node), None);
}

fn report(stopped: bool, released: Option<u64>) -> StopStatus {
    StopStatus {
        stopped,
        issuer: PeerId([9; 32]),
        number: 7,
        latched: stopped,
        command: swarm_shared::proto::message::StopCommandState::None,
        error: None,
        since_ms: 0,
        seen: 7,
        released,
        held: false,
        not_selected: false,
    }
}

#[test]
fn stop_ends_only_by_a_release_that_the_node_can_show() {
    let node = PeerId([1; 32]);
    let all = UnconfirmedStops::default();
    all.insert([node], 7);
    all.on_report(node, &report(false, Some(6)));
    assert_eq!(all.refusal(node), Some(reason(7)), "it has not heard of it yet");
    all.on_report(node, &report(true, Some(6)));
    assert_eq!(all.refusal(node), None, "it refuses by itself");
    for linked in [false, true] {
        all.on_link_changed(node, linked);
        assert!(all.refusal(node).is_some(), "it has to say so again");
        assert_eq!(all.stop_number(node), None);
    }
    all.on_report(node, &report(true, Some(6)));
    assert_eq!(all.refusal(node), None);
    all.on_link_changed(node, true);
    all.on_report(node, &report(false, Some(6)));
    assert_eq!(all.stop_number(node), Some(7), "it has lost the stop");
    all.on_report(node, &report(false, Some(7)));
    assert_eq!(
        (all.refusal(node), all.numbers(|_| true)),
        (None, StopNumbers::new())
    );
    // Nodes before that field say it by their number.
    all.insert([node], 7);
    all.on_report(node, &report(false, None));
    assert_eq!(all.refusal(node), None);
}

#[tokio::test]
async fn node_that_does_not_report_its_stop_is_unconfirmed() {
    let node = PeerId([1; 32]);
    let all = UnconfirmedStops::new(StopNumbers::new(), [(node, 7)].into());
    all.expire_awaited(clock::now() + REPORT_TIMEOUT);
    assert_eq!(all.stop_number(node), None, "it is not linked");
    all.wait_for_reports(&[node].into()).await;
    all.on_link_changed(node, true);
    let linked = clock::now();
    all.expire_awaited(linked);
    assert_eq!(all.stop_number(node), None);
    all.expire_awaited(linked + REPORT_TIMEOUT);
    assert_eq!(all.stop_number(node), Some(7));
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
