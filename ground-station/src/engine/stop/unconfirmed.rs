//! Nodes that this station has stopped and that have not said so: whether they stand still is not known, so nothing that
//! acts is sent to them until they are released, also after a restart of the station.
//!
//! | a node | because |
//! |---|---|
//! | comes in | an emergency stop goes out to it |
//! | goes out | it says that it is stopped: from then on it refuses by itself; or it answers the order otherwise; or somebody releases it, reached or not |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::proto::id::PeerId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// How long until what could not be written is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Each of them, with the number of the stop; clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct UnconfirmedStops(Arc<watch::Sender<BTreeMap<PeerId, u64>>>);

impl UnconfirmedStops {
    /// As the store kept them. What is damaged there keeps nobody from stopping his fleet: then none is known.
    ///
    /// # Errors
    /// [`StoreError`]: nothing can be read there at all.
    pub(in crate::engine) async fn load(store: &Store) -> Result<Self, StoreError> {
        match store.unconfirmed_stops().await {
            Ok(stored) => Ok(Self::new(stored)),
            Err(error @ StoreError::BadRow { .. }) => {
                tracing::error!(
                    %error,
                    "DAMAGED: it is not known any more which nodes have not confirmed an emergency stop, and none is held \
                     back for it; see to them, and type `ground-station stop` again for those that have to stand still, \
                     then `ground-station release`"
                );
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }

    /// As the store kept them.
    fn new(stored: BTreeMap<PeerId, u64>) -> Self {
        Self(Arc::new(watch::Sender::new(stored)))
    }

    /// The stop that this node has not confirmed.
    pub(in crate::engine) fn stop_number(&self, id: PeerId) -> Option<u64> {
        self.0.borrow().get(&id).copied()
    }

    pub(in crate::engine) fn snapshot(&self) -> BTreeMap<PeerId, u64> {
        self.0.borrow().clone()
    }

    /// A stop has gone out to these.
    pub(in crate::engine) fn insert(&self, ids: impl IntoIterator<Item = PeerId>, number: u64) {
        self.0
            .send_modify(|all| all.extend(ids.into_iter().map(|id| (id, number))));
    }

    /// It is known how this one stands, or somebody answers for it; whether it was not before.
    pub(in crate::engine) fn clear(&self, id: PeerId) -> bool {
        self.0.send_if_modified(|all| all.remove(&id).is_some())
    }

    /// Writes down what changes from now on, the newest at a time, and again until it is written: no stop waits for a disk.
    pub(in crate::engine) fn persist_changes(
        self,
        store: Store,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> {
        let mut seen = self.0.subscribe();
        let mut persisted = self.snapshot();
        async move {
            let mut failed = false;
            loop {
                let due = async {
                    if failed {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    } else {
                        // The sender is `self`.
                        let _always = seen.changed().await;
                    }
                };
                let over = shutdown.run_until_cancelled(due).await.is_none();
                let now = self.snapshot();
                if now != persisted {
                    let stored = store.save_unconfirmed_stops(now.clone()).await;
                    failed = stored.is_err();
                    match stored {
                        Ok(()) => persisted = now,
                        Err(error) => {
                            tracing::error!(%error, "it is not stored which nodes have not confirmed a stop");
                        }
                    }
                } else {
                    failed = false;
                }
                if over {
                    return;
                }
            }
        }
    }
}

/// Who is unconfirmed for longer than from one look to the next: watchers are told of no others. Most confirm a stop
/// within milliseconds, and their word is news enough.
#[derive(Debug, Default)]
pub(in crate::engine) struct Debounce {
    /// At the last look.
    last_seen: BTreeMap<PeerId, u64>,
    reported: BTreeMap<PeerId, u64>,
}

impl Debounce {
    /// Looks; whom watchers have to hear of again.
    pub(in crate::engine) fn changes(&mut self, all: &UnconfirmedStops) -> Vec<PeerId> {
        let now = all.snapshot();
        let mut lasting = now.clone();
        lasting.retain(|id, number| self.last_seen.get(id) == Some(number));
        let changed = |id: &&PeerId| lasting.get(id) != self.reported.get(id);
        let ids: BTreeSet<&PeerId> = lasting.keys().chain(self.reported.keys()).collect();
        let news = ids.into_iter().filter(changed).copied().collect();
        (self.last_seen, self.reported) = (now, lasting);
        news
    }
}

/// Why nothing is sent there.
pub(in crate::engine) fn reason(number: u64) -> String {
    format!(
        "not sent: it has not confirmed the emergency stop (number {number}), so it is not known to stand still; see to it, \
         then type `ground-station release`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unconfirmed_stops_are_retried_after_a_full_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let disk = rusqlite::Connection::open(store.path()).expect("opens");
        let full = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'full'); END";
        disk.execute_batch(full).expect("made");
        let (all, one) = (UnconfirmedStops::default(), PeerId([1; 32]));
        let keeping = tokio::spawn(
            all.clone()
                .persist_changes(store.clone(), CancellationToken::new()),
        );
        all.insert([one], 7);
        tokio::time::sleep(RETRY_INTERVAL / 4).await;
        assert_eq!(store.unconfirmed_stops().await.expect("read"), BTreeMap::new());
        disk.execute_batch("DROP TRIGGER full").expect("room");
        tokio::time::timeout(RETRY_INTERVAL * 20, async {
            while store.unconfirmed_stops().await.expect("read") != all.snapshot() {
                tokio::time::sleep(RETRY_INTERVAL / 10).await;
            }
        })
        .await
        .expect("tried again");
        keeping.abort();
    }

    #[tokio::test]
    async fn unconfirmed_stops_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
        let all = UnconfirmedStops::new(store.unconfirmed_stops().await.expect("read"));
        assert_eq!(all.snapshot(), BTreeMap::new());
        let shutdown = CancellationToken::new();
        let keeping = tokio::spawn(all.clone().persist_changes(store.clone(), shutdown.clone()));
        all.insert([one, two], 7);
        all.insert([two], 9);
        assert!(all.clear(one) && !all.clear(one), "once");
        shutdown.cancel();
        keeping.await.expect("ends");
        store.close().await;
        let store = Store::open(dir.path()).await.expect("opens");
        let again = UnconfirmedStops::new(store.unconfirmed_stops().await.expect("read"));
        assert_eq!((again.stop_number(one), again.stop_number(two)), (None, Some(9)));
    }

    #[tokio::test]
    async fn damaged_unconfirmed_stops_do_not_block_stopping() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let disk = rusqlite::Connection::open(store.path()).expect("opens");
        for damaged in ["'{\"no'", "'{\"nobody\": 7}'", "7", "x'ff'", "''"] {
            let put =
                format!("INSERT OR REPLACE INTO meta (key, value) VALUES ('unconfirmed_stops', {damaged})");
            disk.execute_batch(&put).expect(damaged);
            store.unconfirmed_stops().await.expect_err(damaged);
            let all = UnconfirmedStops::load(&store).await.expect(damaged);
            assert_eq!(all.snapshot(), BTreeMap::new(), "{damaged}");
            // The next stop makes it whole.
            let shutdown = CancellationToken::new();
            let keeping = tokio::spawn(all.clone().persist_changes(store.clone(), shutdown.clone()));
            all.insert([PeerId([1; 32])], 7);
            shutdown.cancel();
            keeping.await.expect("ends");
            assert_eq!(store.unconfirmed_stops().await.expect("whole"), all.snapshot());
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
}
