//! Which guests are stopped, also those that come later, and after the station has started again.
//!
//! A stop is a selector, and so is a release: the newest of them that means a guest says whether it is stopped. They
//! are in force as soon as they are given; a task of its own brings them to the disk, so that no stop waits for one.
//!
//! Invariants: no stop is ever forgotten but by a release that means all that it meant. What would be too much to
//! remember becomes a stop of all; a release that would be is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// Most stops and releases that are remembered, and most bytes of their selectors.
pub(super) const ORDERS_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;
/// Most patterns in releases that names in stops are held against: each is, against each.
const PATTERNS_MAX: usize = 64;
/// How long until what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A stop, or a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    stop: bool,
    selector: Selector,
}

/// Stops and releases, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Orders(Vec<Order>);

impl Orders {
    /// Whom it stops.
    fn stop(&mut self, selector: Selector) -> Selector {
        self.put(Order {
            stop: true,
            selector: selector.clone(),
        });
        if self.is_too_much() {
            tracing::error!(
                "too many stops stand to remember each: all drones are stopped until `release all`"
            );
            *self = Self::of_all();
            return Selector::all();
        }
        selector
    }

    /// A stop of all.
    fn of_all() -> Self {
        let selector = Selector::all();
        Self(vec![Order { stop: true, selector }])
    }

    /// Whether it can be remembered.
    fn release(&mut self, selector: Selector) -> bool {
        let before = self.clone();
        self.put(Order {
            stop: false,
            selector,
        });
        self.forget_released();
        // A release ends what was before it.
        let first = self.0.iter().position(|order| order.stop);
        self.0.drain(..first.unwrap_or(self.0.len()));
        let fits = !self.is_too_much();
        if !fits {
            *self = before;
        }
        fits
    }

    /// The newest; what it makes void goes.
    fn put(&mut self, order: Order) {
        let all = order.selector == Selector::all();
        self.0.retain(|old| !all && old.selector != order.selector);
        self.0.push(order);
    }

    /// Forgets the stops of which each term was released after them, whoever it was released with: whom they mean, one
    /// of those releases means, too, and it is newer. A name is released by whatever means it by its name alone. What
    /// takes somebody away is left alone: it may mean more than its terms say, or less.
    fn forget_released(&mut self) {
        let is_plain = |selector: &Selector| selector.exclusions().next().is_none();
        let (mut released, mut patterns) = (BTreeSet::new(), Vec::new());
        let mut kept = Vec::new();
        while let Some(order) = self.0.pop() {
            let plain = is_plain(&order.selector);
            if !order.stop && plain {
                let some = order.selector.terms();
                let some = some.filter(|term| !term.is_exact() && !term.has_tags());
                patterns.extend(some.take(PATTERNS_MAX - patterns.len()));
                released.extend(order.selector.terms().map(String::from));
            }
            let is_released = |term: &Selector| {
                released.contains(term.as_str())
                    || (term.exact_names().unwrap_or_default().iter())
                        .any(|name| patterns.iter().any(|pattern| pattern.always_matches_name(name)))
            };
            let mut terms = order.selector.terms();
            let over = order.stop && plain && terms.all(|term| is_released(&term));
            drop(terms);
            if !over {
                kept.push(order);
            }
        }
        kept.reverse();
        self.0 = kept;
    }

    fn is_too_much(&self) -> bool {
        let bytes: usize = self.0.iter().map(|order| order.selector.as_str().len()).sum();
        self.0.len() > ORDERS_MAX || bytes > BYTES_MAX
    }

    /// The stop that is in force for a guest.
    fn stopped(&self, target: &NodeAttributes<'_>) -> Option<&Selector> {
        let mut newest_first = self.0.iter().rev();
        let newest = newest_first.find(|order| order.selector.matches(target))?;
        newest.stop.then_some(&newest.selector)
    }
}

#[derive(Debug, Default)]
struct State {
    orders: Orders,
    /// Counts changes.
    version: u64,
    /// What the newest stop made it.
    stop: u64,
}

/// What is on the disk.
#[derive(Debug, Default)]
struct Stored {
    version: u64,
    /// What could not be written, and why.
    fault: Option<(u64, String)>,
}

/// Why a release does not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotLifted {
    /// A stop came between.
    #[error("it was stopped again after this release was typed; type it again if that stop is meant, too")]
    StoppedAgain,
    /// See the module.
    #[error("too many stops and releases of single drones stand: `ground-station release all` ends them")]
    TooMany,
}

/// Stops that are in force for guests. See the module.
#[derive(Debug, Default)]
pub(super) struct Standing {
    state: watch::Sender<State>,
    stored: watch::Sender<Stored>,
}

impl Standing {
    /// What the store remembers. What cannot be read any more becomes a stop of all: some stop may have stood, and a
    /// station that does not start helps nobody. The next change is written over it.
    pub(super) async fn load(store: &Store) -> Result<Self, StoreError> {
        let read = match store.bridged_stops().await {
            Ok(None) => return Ok(Self::default()),
            Ok(Some(json)) => serde_json::from_str(&json).map_err(|error| error.to_string()),
            Err(StoreError::Sql(
                error @ (rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::Utf8Error(..)),
            )) => Err(error.to_string()),
            Err(other) => return Err(other),
        };
        let orders = read.unwrap_or_else(|reason| {
            tracing::error!(
                reason,
                "which drones of other programs are stopped cannot be read: all are, until `release`; look whether \
                 they stand, then release them"
            );
            Orders::of_all()
        });
        let standing = Self::default();
        standing.state.send_modify(|state| state.orders = orders);
        Ok(standing)
    }

    /// Stops whoever is meant, and whoever comes and is. Waits for nothing. Whom it stops: all, if it is too much.
    pub(super) fn stop(&self, selector: Selector) -> Selector {
        let mut stopped = Selector::all();
        self.state.send_modify(|state| {
            stopped = state.orders.stop(selector);
            state.version += 1;
            state.stop = state.version;
        });
        stopped
    }

    /// What a release refers to that is typed now.
    pub(super) fn version(&self) -> u64 {
        self.state.borrow().version
    }

    /// Ends stops that were in force at this version. The version that has to be stored; `None` if nothing was stopped.
    pub(super) fn release(&self, selector: &Selector, typed_at: u64) -> Result<Option<u64>, NotLifted> {
        let mut done = Ok(None);
        self.state.send_if_modified(|state| {
            if state.stop > typed_at {
                done = Err(NotLifted::StoppedAgain);
                return false;
            }
            if state.orders.0.is_empty() {
                return false;
            }
            if !state.orders.release(selector.clone()) {
                done = Err(NotLifted::TooMany);
                return false;
            }
            state.version += 1;
            done = Ok(Some(state.version));
            true
        });
        done
    }

    /// The stop that is in force for a guest.
    pub(super) fn stopped(&self, target: &NodeAttributes<'_>) -> Option<Selector> {
        self.state.borrow().orders.stopped(target).cloned()
    }

    /// Whether there is one, of whomever.
    pub(super) fn stands(&self) -> bool {
        !self.state.borrow().orders.0.is_empty()
    }

    /// The stops that stand, for people.
    pub(super) fn stops(&self) -> Vec<String> {
        let state = self.state.borrow();
        let stops = state.orders.0.iter().filter(|order| order.stop);
        stops.map(|order| order.selector.to_string()).collect()
    }

    /// Waits until a version is on the disk.
    ///
    /// # Errors
    /// Why it is not yet; it is tried again.
    pub(super) async fn stored(&self, version: u64) -> Result<(), String> {
        let mut stored = self.stored.subscribe();
        let tried = stored.wait_for(|stored| {
            let failed = stored.fault.as_ref().is_some_and(|(of, _)| *of >= version);
            stored.version >= version || failed
        });
        match tried.await {
            Ok(stored) if stored.version >= version => Ok(()),
            Ok(stored) => Err(stored
                .fault
                .as_ref()
                .map_or(String::new(), |(_, why)| why.clone())),
            Err(_stopping) => Err("the station is shutting down".to_owned()),
        }
    }

    /// Brings each change to the disk, until `stop`, and then the last one.
    pub(super) async fn keep(&self, store: &Store, stop: &CancellationToken) {
        let mut changes = self.state.subscribe();
        loop {
            let over = stop.is_cancelled();
            let (version, json) = {
                let state = changes.borrow_and_update();
                (state.version, serde_json::to_string(&state.orders))
            };
            let fault = if self.stored.borrow().version == version {
                None
            } else {
                let stored = match json {
                    Ok(json) => store
                        .save_bridged_stops(json)
                        .await
                        .map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let fault = stored.err().map(|why| (version, why));
                self.note(version, fault.clone());
                fault
            };
            let changed = async {
                if fault.is_some() {
                    tokio::time::sleep(RETRY).await;
                } else {
                    // Its sender is ours.
                    let _always = changes.changed().await;
                }
            };
            if over {
                return;
            }
            // Once more after the stop, for what has come meanwhile.
            let _stopped = stop.run_until_cancelled(changed).await;
        }
    }

    fn note(&self, version: u64, fault: Option<(u64, String)>) {
        self.stored.send_modify(|stored| match fault {
            Some((of, why)) => {
                if stored.fault.is_none() {
                    tracing::error!(why, "stops of drones are in force, and not stored: tried again");
                }
                stored.fault = Some((of, why));
            }
            None => {
                if stored.fault.take().is_some() {
                    tracing::info!("stops of drones are stored again");
                }
                stored.version = version;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fleet::guests::{guest_id, guest_name};

    fn selector(text: &str) -> Selector {
        Selector::parse(text).expect("a selector")
    }

    fn stopped(standing: &Standing, name: &str) -> Option<String> {
        let tags = BTreeMap::from([("system".to_owned(), "test".to_owned())]);
        let target = NodeAttributes {
            name: &guest_name(name),
            id: &guest_id("test", name),
            tags: &tags,
        };
        standing.stopped(&target).map(|selector| selector.to_string())
    }

    fn release(standing: &Standing, text: &str) -> Result<Option<u64>, NotLifted> {
        standing.release(&selector(text), standing.version())
    }

    #[test]
    fn the_newest_that_means_a_guest_says_whether_it_is_stopped() {
        let standing = Standing::default();
        assert_eq!(release(&standing, "all"), Ok(None));
        standing.stop(selector("tag:system=test"));
        assert_eq!(stopped(&standing, "d1").as_deref(), Some("tag:system=test"));
        assert_eq!(release(&standing, "d1"), Ok(Some(2)));
        assert_eq!(
            (stopped(&standing, "d1"), stopped(&standing, "d2").is_some()),
            (None, true)
        );
        standing.stop(selector("d*,!d2"));
        assert_eq!(stopped(&standing, "d1").as_deref(), Some("d*,!d2"));
        assert_eq!(stopped(&standing, "d2").as_deref(), Some("tag:system=test"));
        assert_eq!(release(&standing, "all"), Ok(Some(4)));
        assert_eq!((stopped(&standing, "d1"), stopped(&standing, "d2")), (None, None));
        assert_eq!(standing.stops(), Vec::<String>::new());
        assert_eq!(
            standing.state.borrow().orders,
            Orders::default(),
            "nothing is left over"
        );
    }

    #[test]
    fn a_release_does_not_end_a_stop_that_came_after_it_was_typed() {
        let standing = Standing::default();
        standing.stop(selector("all"));
        let typed = standing.version();
        standing.stop(selector("all"));
        let late = standing.release(&selector("all"), typed);
        assert_eq!(late, Err(NotLifted::StoppedAgain));
        assert!(stopped(&standing, "d1").is_some());
    }

    #[test]
    fn no_stop_is_forgotten_for_want_of_room() {
        let standing = Standing::default();
        let name = |number: usize| selector(&format!("d{number}"));
        for number in 0..ORDERS_MAX {
            standing.stop(name(number));
        }
        assert_eq!(release(&standing, "other"), Err(NotLifted::TooMany));
        assert_eq!(stopped(&standing, "other"), None);
        assert_eq!(release(&standing, "d7"), Ok(Some(257)), "in place of its stop");
        assert_eq!(standing.stop(name(7)), name(7));
        assert_eq!(standing.stop(selector("other")), Selector::all());
        for name in ["d0", "d255", "other"] {
            assert_eq!(stopped(&standing, name).as_deref(), Some("all"));
        }
        assert!(release(&standing, "all").is_ok());
        assert_eq!(stopped(&standing, "d0"), None);
    }

    #[test]
    fn a_stop_that_was_released_name_by_name_stands_no_longer() {
        let standing = Standing::default();
        standing.stop(selector("d1,d2, tag:system=other"));
        assert!(release(&standing, "d1,d7").is_ok());
        assert!(release(&standing, "d2").is_ok());
        assert_eq!(standing.stops(), ["d1,d2, tag:system=other"]);
        assert!(release(&standing, "tag:system=other").is_ok());
        assert_eq!(standing.stops(), Vec::<String>::new());
        assert_eq!(
            standing.state.borrow().orders,
            Orders::default(),
            "nothing is left over"
        );
    }

    #[test]
    fn a_name_that_was_stopped_is_released_by_whatever_means_all_that_are_called_so() {
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
            let standing = Standing::default();
            standing.stop(selector(stop));
            for text in &releases {
                assert!(release(&standing, text).is_ok());
            }
            let stands = !standing.stops().is_empty();
            assert_eq!(stands, !over, "{stop:?} {releases:?}");
            // A stop that is newer than the release is another one.
            standing.stop(selector("d7"));
            assert!(stopped(&standing, "d7").is_some());
        }
    }

    /// Every short history: what is forgotten changes nothing for anybody.
    #[test]
    fn what_is_forgotten_of_stops_and_releases_held_for_nobody() {
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
        let named = ["d1", "d2", "d3", "e1"].map(|name| (guest_name(name), guest_id("test", name)));
        let targets = named
            .iter()
            .flat_map(|(name, id)| [&with, &without].map(|tags| NodeAttributes { name, id, tags }));
        let targets: Vec<NodeAttributes<'_>> = targets.collect();
        let choices = selectors.len() * 2;
        for history in 0..choices.pow(LENGTH) {
            let (mut orders, mut all) = (Orders::default(), Vec::new());
            let mut rest = history;
            for _ in 0..LENGTH {
                let (selector, stop) = (selectors[rest % choices / 2].clone(), rest % 2 == 0);
                rest /= choices;
                if stop {
                    orders.stop(selector.clone());
                } else {
                    assert!(orders.release(selector.clone()));
                }
                all.push(Order { stop, selector });
                for target in &targets {
                    let newest = all.iter().rev().find(|order| order.selector.matches(target));
                    let stopped = newest.is_some_and(|order| order.stop);
                    assert_eq!(orders.stopped(target).is_some(), stopped, "{all:?} {target:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_a_stop_of_all_until_a_release() {
        for damage in ["'[{\"stop\":'", "7", "x'ff'", "CAST(x'ff' AS TEXT)"] {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(dir.path()).await.expect("opens");
            store.save_bridged_stops("[]".to_owned()).await.expect("kept");
            let disk = rusqlite::Connection::open(store.path()).expect("opens");
            let sql = format!("UPDATE meta SET value = {damage} WHERE key = 'guest_stops'");
            assert_eq!(disk.execute(&sql, []).expect("damaged"), 1);
            let standing = Standing::load(&store).await.expect("the station starts");
            assert_eq!(stopped(&standing, "d1").as_deref(), Some("all"), "{damage}");
            assert_eq!(release(&standing, "d1"), Ok(Some(1)));
            let stop = CancellationToken::new();
            stop.cancel();
            standing.keep(&store, &stop).await;
            let standing = Standing::load(&store).await.expect("written over");
            assert_eq!(stopped(&standing, "d1"), None);
            assert_eq!(stopped(&standing, "d2").as_deref(), Some("all"));
        }
    }

    #[tokio::test]
    async fn what_stands_outlives_the_station() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).await.expect("opens");
        let stop = CancellationToken::new();
        let standing = Standing::load(&store).await.expect("nothing yet");
        standing.stop(selector("all"));
        let lifted = release(&standing, "d1").expect("fits").expect("something stood");
        tokio::select! {
            () = standing.keep(&store, &stop) => panic!("not told to end"),
            stored = standing.stored(lifted) => stored.expect("written"),
        }
        standing.stop(selector("d1,d9"));
        stop.cancel();
        standing.keep(&store, &stop).await;
        store.close().await;
        let store = Store::open(dir.path()).await.expect("opens");
        let standing = Standing::load(&store).await.expect("readable");
        assert_eq!(stopped(&standing, "d1").as_deref(), Some("d1,d9"));
        assert_eq!(stopped(&standing, "d2").as_deref(), Some("all"));
    }
}
