use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::engine::transport::bridge::{device_id, device_name};

fn selector(text: &str) -> Selector {
    Selector::parse(text).expect("a selector")
}

async fn persist(latches: &StopLatches, store: &Store, shutdown: &CancellationToken) {
    let log = latches.persisted().clone();
    log.persist_changes(store.clone(), shutdown.clone()).await;
}

fn stopped(latches: &StopLatches, name: &str) -> Option<String> {
    let tags = BTreeMap::from([("system".to_owned(), "test".to_owned())]);
    let target = NodeAttributes {
        name: &device_name(name),
        id: &device_id("test", name),
        tags: &tags,
    };
    latches.stopped(&target).map(|selector| selector.to_string())
}

fn release(latches: &StopLatches, text: &str) -> Result<Option<u64>, ReleaseError> {
    latches.release(&selector(text), latches.stop_count())
}

#[test]
fn newest_matching_entry_decides_whether_stopped() {
    let latches = StopLatches::default();
    assert_eq!(release(&latches, "all"), Ok(None));
    latches.stop(selector("tag:system=test"));
    assert_eq!(stopped(&latches, "d1").as_deref(), Some("tag:system=test"));
    assert_eq!(release(&latches, "d1"), Ok(Some(2)));
    assert_eq!(
        (stopped(&latches, "d1"), stopped(&latches, "d2").is_some()),
        (None, true)
    );
    latches.stop(selector("d*,!d2"));
    assert_eq!(stopped(&latches, "d1").as_deref(), Some("d*,!d2"));
    assert_eq!(stopped(&latches, "d2").as_deref(), Some("tag:system=test"));
    assert_eq!(release(&latches, "all"), Ok(Some(4)));
    assert_eq!((stopped(&latches, "d1"), stopped(&latches, "d2")), (None, None));
    assert_eq!(latches.stops(), Vec::<String>::new());
    assert!(!latches.any_in_force(), "no release stays without a stop");
}

#[test]
fn release_does_not_end_a_later_stop() {
    let latches = StopLatches::default();
    latches.stop(selector("all"));
    let typed = latches.stop_count();
    latches.stop(selector("all"));
    let late = latches.release(&selector("all"), typed);
    assert_eq!(late, Err(ReleaseError::StoppedAgain));
    assert!(stopped(&latches, "d1").is_some());
}

#[test]
fn full_latch_log_stops_all() {
    let latches = StopLatches::default();
    let name = |number: usize| selector(&format!("d{number}"));
    for number in 0..ENTRIES_MAX {
        latches.stop(name(number));
    }
    assert_eq!(release(&latches, "other"), Err(ReleaseError::TooMany));
    assert_eq!(stopped(&latches, "other"), None);
    assert_eq!(release(&latches, "d7"), Ok(Some(257)), "in place of its stop");
    assert_eq!(latches.stop(name(7)), name(7));
    assert_eq!(latches.stop(selector("other")), Selector::all());
    for name in ["d0", "d255", "other"] {
        assert_eq!(stopped(&latches, name).as_deref(), Some("all"));
    }
    assert!(release(&latches, "all").is_ok());
    assert_eq!(stopped(&latches, "d0"), None);
}

#[test]
fn stop_ends_when_each_term_is_released() {
    let latches = StopLatches::default();
    latches.stop(selector("d1,d2, tag:system=other"));
    assert!(release(&latches, "d1,d7").is_ok());
    assert!(release(&latches, "d2").is_ok());
    assert_eq!(latches.stops(), ["d1,d2, tag:system=other"]);
    assert!(release(&latches, "tag:system=other").is_ok());
    assert_eq!(latches.stops(), Vec::<String>::new());
    assert!(!latches.any_in_force(), "no release stays without a stop");
}

#[test]
fn named_stop_is_released_by_covering_patterns() {
    for (stop, releases, over) in [
        ("d7", vec!["d*"], true),
        ("d7,e1", vec!["d[1-9]", "e?"], true),
        ("d7,e1", vec!["d*"], false),
        ("d7", vec!["tag:row=1,all"], true),
        ("d7", vec!["d*,!d2"], false),
        ("d7", vec!["tag:system=test"], false),
        ("d7", vec!["id:0,id:1"], false),
        ("tag:system=test", vec!["d*"], false),
        ("d*", vec!["d[1-9]*"], false),
    ] {
        let latches = StopLatches::default();
        latches.stop(selector(stop));
        for text in &releases {
            assert!(release(&latches, text).is_ok());
        }
        let stands = !latches.stops().is_empty();
        assert_eq!(stands, !over, "{stop:?} {releases:?}");
        // A stop that is newer than the release is another one.
        latches.stop(selector("d7"));
        assert!(stopped(&latches, "d7").is_some());
    }
}

/// Every short history: what is removed changes no answer.
#[test]
fn removed_latches_never_change_who_is_stopped() {
    const SELECTORS: [&str; 8] = [
        "d1",
        "d2",
        "d1,d2",
        "d*",
        "d*,!d2",
        "!d1",
        "tag:row=1,d2",
        "all,e1",
    ];
    const LENGTH: u32 = 4;
    let selectors = SELECTORS.map(selector);
    let (with, without) = (
        BTreeMap::from([("row".to_owned(), "1".to_owned())]),
        BTreeMap::new(),
    );
    let named = ["d1", "d2", "d3", "e1"].map(|name| (device_name(name), device_id("test", name)));
    let targets = named
        .iter()
        .flat_map(|(name, id)| [&with, &without].map(|tags| NodeAttributes { name, id, tags }));
    let targets: Vec<NodeAttributes<'_>> = targets.collect();
    let choices = selectors.len() * 2;
    for history in 0..choices.pow(LENGTH) {
        let (mut log, mut all) = (LatchLog::default(), Vec::new());
        let mut rest = history;
        for _ in 0..LENGTH {
            let (selector, stop) = (selectors[rest % choices / 2].clone(), rest % 2 == 0);
            rest /= choices;
            if stop {
                log.stop(selector.clone());
            } else {
                assert!(log.release(selector.clone()));
            }
            all.push(Entry { stop, selector });
            for target in &targets {
                let newest = all.iter().rev().find(|entry| entry.selector.matches(target));
                let stopped = newest.is_some_and(|entry| entry.stop);
                assert_eq!(log.stopped(target).is_some(), stopped, "{all:?} {target:?}");
            }
        }
    }
}

#[tokio::test]
async fn damaged_latch_record_stops_all_until_release() {
    for damage in ["'[{\"stop\":'", "7", "x'ff'", "CAST(x'ff' AS TEXT)"] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        store
            .save_value(&STORED_STOPS, &LatchLog::default())
            .await
            .expect("kept");
        let disk = rusqlite::Connection::open(store.path()).expect("opens");
        let sql = format!("UPDATE meta SET value = {damage} WHERE key = 'guest_stops'");
        assert_eq!(disk.execute(&sql, []).expect("damaged"), 1);
        let latches = StopLatches::load(&store).await.expect("the station starts");
        assert_eq!(stopped(&latches, "d1").as_deref(), Some("all"), "{damage}");
        assert_eq!(release(&latches, "d1"), Ok(Some(1)));
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        persist(&latches, &store, &shutdown).await;
        let latches = StopLatches::load(&store).await.expect("written over");
        assert_eq!(stopped(&latches, "d1"), None);
        assert_eq!(stopped(&latches, "d2").as_deref(), Some("all"));
    }
}

#[tokio::test]
async fn stop_latches_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let shutdown = CancellationToken::new();
    let latches = StopLatches::load(&store).await.expect("nothing yet");
    latches.stop(selector("all"));
    let lifted = release(&latches, "d1").expect("fits").expect("something stood");
    tokio::select! {
        () = persist(&latches, &store, &shutdown) => panic!("no shutdown was requested"),
        stored = latches.persisted().wait_stored(lifted) => stored.expect("written"),
    }
    latches.stop(selector("d1,d9"));
    shutdown.cancel();
    persist(&latches, &store, &shutdown).await;
    store.close().await;
    let store = Store::open(dir.path()).await.expect("opens");
    let latches = StopLatches::load(&store).await.expect("readable");
    assert_eq!(stopped(&latches, "d1").as_deref(), Some("d1,d9"));
    assert_eq!(stopped(&latches, "d2").as_deref(), Some("all"));
}
