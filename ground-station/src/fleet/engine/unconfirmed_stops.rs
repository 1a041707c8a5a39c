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
const RETRY: Duration = Duration::from_secs(1);

/// Each of them, with the number of the stop; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Unconfirmed(Arc<watch::Sender<BTreeMap<PeerId, u64>>>);

impl Unconfirmed {
    /// As the store kept them. What is damaged there keeps nobody from stopping his fleet: then none is known.
    ///
    /// # Errors
    /// [`StoreError`]: nothing can be read there at all.
    pub(super) async fn load(store: &Store) -> Result<Self, StoreError> {
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
    pub(super) fn of(&self, id: PeerId) -> Option<u64> {
        self.0.borrow().get(&id).copied()
    }

    pub(super) fn all(&self) -> BTreeMap<PeerId, u64> {
        self.0.borrow().clone()
    }

    /// A stop has gone out to these.
    pub(super) fn ordered(&self, ids: impl IntoIterator<Item = PeerId>, number: u64) {
        self.0
            .send_modify(|all| all.extend(ids.into_iter().map(|id| (id, number))));
    }

    /// It is known how this one stands, or somebody answers for it; whether it was not before.
    pub(super) fn settle(&self, id: PeerId) -> bool {
        self.0.send_if_modified(|all| all.remove(&id).is_some())
    }

    /// Writes down what changes from now on, the newest at a time, and again until it is written: no stop waits for a disk.
    pub(super) fn keep(self, store: Store, stop: CancellationToken) -> impl Future<Output = ()> {
        let mut seen = self.0.subscribe();
        let mut kept = self.all();
        async move {
            let mut failed = false;
            loop {
                let due = async {
                    if failed {
                        tokio::time::sleep(RETRY).await;
                    } else {
                        // The sender is `self`.
                        let _always = seen.changed().await;
                    }
                };
                let over = stop.run_until_cancelled(due).await.is_none();
                let now = self.all();
                if now != kept {
                    let stored = store.keep_unconfirmed_stops(now.clone()).await;
                    failed = stored.is_err();
                    match stored {
                        Ok(()) => kept = now,
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
pub(super) struct Lasting {
    /// At the last look.
    seen: BTreeMap<PeerId, u64>,
    told: BTreeMap<PeerId, u64>,
}

impl Lasting {
    /// Looks; whom watchers have to hear of again.
    pub(super) fn news(&mut self, all: &Unconfirmed) -> Vec<PeerId> {
        let now = all.all();
        let mut lasting = now.clone();
        lasting.retain(|id, number| self.seen.get(id) == Some(number));
        let changed = |id: &&PeerId| lasting.get(id) != self.told.get(id);
        let ids: BTreeSet<&PeerId> = lasting.keys().chain(self.told.keys()).collect();
        let news = ids.into_iter().filter(changed).copied().collect();
        (self.seen, self.told) = (now, lasting);
        news
    }
}

/// Why nothing is sent there.
pub(super) fn why(number: u64) -> String {
    format!(
        "not sent: it has not confirmed the emergency stop (number {number}), so it is not known to stand still; see to it, \
         then type `ground-station release`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_disk_did_not_take_is_written_once_it_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let disk = rusqlite::Connection::open(store.path()).expect("opens");
        let full = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'full'); END";
        disk.execute_batch(full).expect("made");
        let (all, one) = (Unconfirmed::default(), PeerId([1; 32]));
        let keeping = tokio::spawn(all.clone().keep(store.clone(), CancellationToken::new()));
        all.ordered([one], 7);
        tokio::time::sleep(RETRY / 4).await;
        assert_eq!(store.unconfirmed_stops().await.expect("read"), BTreeMap::new());
        disk.execute_batch("DROP TRIGGER full").expect("room");
        tokio::time::timeout(RETRY * 20, async {
            while store.unconfirmed_stops().await.expect("read") != all.all() {
                tokio::time::sleep(RETRY / 10).await;
            }
        })
        .await
        .expect("tried again");
        keeping.abort();
    }

    #[tokio::test]
    async fn who_has_not_confirmed_a_stop_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
        let all = Unconfirmed::new(store.unconfirmed_stops().await.expect("read"));
        assert_eq!(all.all(), BTreeMap::new());
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(all.clone().keep(store.clone(), stop.clone()));
        all.ordered([one, two], 7);
        all.ordered([two], 9);
        assert!(all.settle(one) && !all.settle(one), "once");
        stop.cancel();
        keeping.await.expect("ends");
        store.close().await;
        let store = Store::open(dir.path()).await.expect("opens");
        let again = Unconfirmed::new(store.unconfirmed_stops().await.expect("read"));
        assert_eq!((again.of(one), again.of(two)), (None, Some(9)));
    }

    #[tokio::test]
    async fn what_is_damaged_keeps_nobody_from_stopping_his_fleet() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let disk = rusqlite::Connection::open(store.path()).expect("opens");
        for damaged in ["'{\"no'", "'{\"nobody\": 7}'", "7", "x'ff'", "''"] {
            let put =
                format!("INSERT OR REPLACE INTO meta (key, value) VALUES ('unconfirmed_stops', {damaged})");
            disk.execute_batch(&put).expect(damaged);
            store.unconfirmed_stops().await.expect_err(damaged);
            let all = Unconfirmed::load(&store).await.expect(damaged);
            assert_eq!(all.all(), BTreeMap::new(), "{damaged}");
            // The next stop makes it whole.
            let stop = CancellationToken::new();
            let keeping = tokio::spawn(all.clone().keep(store.clone(), stop.clone()));
            all.ordered([PeerId([1; 32])], 7);
            stop.cancel();
            keeping.await.expect("ends");
            assert_eq!(store.unconfirmed_stops().await.expect("whole"), all.all());
        }
        disk.execute_batch("DROP TABLE meta").expect("gone");
        Unconfirmed::load(&store).await.expect_err("no store at all");
    }

    #[test]
    fn only_what_lasts_is_news() {
        let (all, mut lasting) = (Unconfirmed::default(), Lasting::default());
        let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
        all.ordered([one, two], 7);
        assert_eq!(lasting.news(&all), []);
        all.settle(one);
        assert_eq!(lasting.news(&all), [two]);
        assert_eq!(lasting.news(&all), []);
        all.settle(two);
        assert_eq!(lasting.news(&all), [two]);
    }
}
