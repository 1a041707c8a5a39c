//! The stops that are in force for bridged devices, also for those that register later, over restarts of the station.
//!
//! A stop is a selector, and so is a release: the newest of them that matches a device says whether it is stopped. They
//! are in force as soon as they are given; a task of its own writes them to the disk, so that no stop waits for one.
//!
//! Invariants: a stop is removed only by releases that match every device that it matches. A stop that exceeds the limit
//! becomes a stop of all; a release that exceeds it is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// Most stops and releases that are remembered.
pub(in crate::engine) const ENTRIES_MAX: usize = 256;
/// Most bytes of their selectors.
const BYTES_MAX: usize = 256 * 1024;
/// Most patterns of releases that are compared with the names in stops, each with each.
const PATTERNS_MAX: usize = 64;
/// How long until a write that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A stop or a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stop: bool,
    selector: Selector,
}

/// Stops and releases, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct LatchLog(Vec<Entry>);

impl LatchLog {
    /// Adds a stop. Returns the selector that is stopped: `all` if the limit is exceeded.
    fn stop(&mut self, selector: Selector) -> Selector {
        self.put(Entry {
            stop: true,
            selector: selector.clone(),
        });
        if self.is_too_much() {
            tracing::error!(
                entries = ENTRIES_MAX,
                "Too many stops are in force to remember each: all drones are stopped until `release all`"
            );
            *self = Self::of_all();
            return Selector::all();
        }
        selector
    }

    /// A stop of all.
    fn of_all() -> Self {
        let selector = Selector::all();
        Self(vec![Entry { stop: true, selector }])
    }

    /// Adds a release; whether it is within the limit.
    fn release(&mut self, selector: Selector) -> bool {
        let before = self.clone();
        self.put(Entry {
            stop: false,
            selector,
        });
        self.remove_released();
        // A release ends what was before it.
        let first = self.0.iter().position(|entry| entry.stop);
        self.0.drain(..first.unwrap_or(self.0.len()));
        let fits = !self.is_too_much();
        if !fits {
            *self = before;
        }
        fits
    }

    /// Adds the newest entry, and removes those that it replaces.
    fn put(&mut self, entry: Entry) {
        let all = entry.selector == Selector::all();
        self.0.retain(|old| !all && old.selector != entry.selector);
        self.0.push(entry);
    }

    /// Removes every stop whose terms are all covered by newer releases. A name is covered by every pattern that always
    /// matches it. Entries with exclusions are left alone: they match other devices than their terms say.
    fn remove_released(&mut self) {
        let is_plain = |selector: &Selector| selector.exclusions().next().is_none();
        let (mut released, mut patterns) = (BTreeSet::new(), Vec::new());
        let mut kept = Vec::new();
        while let Some(entry) = self.0.pop() {
            let plain = is_plain(&entry.selector);
            if !entry.stop && plain {
                let some = entry.selector.terms();
                let some = some.filter(|term| !term.is_exact() && !term.has_tags());
                patterns.extend(some.take(PATTERNS_MAX - patterns.len()));
                released.extend(entry.selector.terms().map(String::from));
            }
            let is_released = |term: &Selector| {
                released.contains(term.as_str())
                    || (term.exact_names().unwrap_or_default().iter())
                        .any(|name| patterns.iter().any(|pattern| pattern.always_matches_name(name)))
            };
            let mut terms = entry.selector.terms();
            let over = entry.stop && plain && terms.all(|term| is_released(&term));
            drop(terms);
            if !over {
                kept.push(entry);
            }
        }
        kept.reverse();
        self.0 = kept;
    }

    fn is_too_much(&self) -> bool {
        let bytes: usize = self.0.iter().map(|entry| entry.selector.as_str().len()).sum();
        self.0.len() > ENTRIES_MAX || bytes > BYTES_MAX
    }

    /// The selector of the stop that is in force for a device.
    fn stopped(&self, target: &NodeAttributes<'_>) -> Option<&Selector> {
        let mut newest_first = self.0.iter().rev();
        let newest = newest_first.find(|entry| entry.selector.matches(target))?;
        newest.stop.then_some(&newest.selector)
    }
}

#[derive(Debug, Default)]
struct State {
    log: LatchLog,
    /// Counts changes.
    version: u64,
    /// The version of the newest stop.
    last_stop: u64,
}

/// What is on the disk.
#[derive(Debug, Default)]
struct Stored {
    version: u64,
    /// The version whose write failed last, and why.
    fault: Option<(u64, String)>,
}

/// Why a release does not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::engine) enum ReleaseError {
    /// A stop came after the release was requested.
    #[error("it was stopped again after this release was typed; type it again if that stop is meant, too")]
    StoppedAgain,
    /// The log of stops and releases is full.
    #[error(
        "too many stops and releases of single drones are in force: `ground-station release all` ends them"
    )]
    TooMany,
}

/// The stops that are in force for bridged devices.
#[derive(Debug, Default)]
pub(in crate::engine) struct StopLatches {
    state: watch::Sender<State>,
    stored: watch::Sender<Stored>,
}

impl StopLatches {
    /// Reads what the store remembers. A damaged record becomes a stop of all, since some stop may have been in force; the
    /// next change replaces it.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub(in crate::engine) async fn load(store: &Store) -> Result<Self, StoreError> {
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
        let log = read.unwrap_or_else(|reason| {
            tracing::error!(
                reason,
                "Record of stopped drones of other programs is damaged: all are stopped until `release`; see that they \
                 stand still, then release them"
            );
            LatchLog::of_all()
        });
        let latches = Self::default();
        latches.state.send_modify(|state| state.log = log);
        Ok(latches)
    }

    /// Latches a stop for `selector`. Never blocks. Returns the latched selector: `all` if the limit is exceeded.
    pub(in crate::engine) fn stop(&self, selector: Selector) -> Selector {
        let mut stopped = Selector::all();
        self.state.send_modify(|state| {
            stopped = state.log.stop(selector);
            state.version += 1;
            state.last_stop = state.version;
        });
        stopped
    }

    /// The version that a release requested now refers to.
    pub(in crate::engine) fn version(&self) -> u64 {
        self.state.borrow().version
    }

    /// Ends the stops that were in force at version `requested_at`. Returns the version that has to be stored; `None` if no
    /// stop was in force.
    ///
    /// # Errors
    /// [`ReleaseError`]: nothing is released.
    pub(in crate::engine) fn release(
        &self,
        selector: &Selector,
        requested_at: u64,
    ) -> Result<Option<u64>, ReleaseError> {
        let mut done = Ok(None);
        self.state.send_if_modified(|state| {
            if state.last_stop > requested_at {
                done = Err(ReleaseError::StoppedAgain);
                return false;
            }
            if state.log.0.is_empty() {
                return false;
            }
            if !state.log.release(selector.clone()) {
                done = Err(ReleaseError::TooMany);
                return false;
            }
            state.version += 1;
            done = Ok(Some(state.version));
            true
        });
        done
    }

    /// The selector of the stop that is in force for a device.
    pub(in crate::engine) fn stopped(&self, target: &NodeAttributes<'_>) -> Option<Selector> {
        self.state.borrow().log.stopped(target).cloned()
    }

    /// Whether a stop is in force for any selector.
    pub(in crate::engine) fn any_in_force(&self) -> bool {
        !self.state.borrow().log.0.is_empty()
    }

    /// The selectors of the stops that are in force.
    pub(in crate::engine) fn stops(&self) -> Vec<String> {
        let state = self.state.borrow();
        let stops = state.log.0.iter().filter(|entry| entry.stop);
        stops.map(|entry| entry.selector.to_string()).collect()
    }

    /// Waits until a version is on the disk.
    ///
    /// # Errors
    /// Why it is not stored yet; the write is tried again.
    pub(in crate::engine) async fn wait_stored(&self, version: u64) -> Result<(), String> {
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

    /// Writes each change to the disk until shutdown, and then the last one.
    pub(in crate::engine) async fn persist_changes(&self, store: &Store, shutdown: &CancellationToken) {
        let mut changes = self.state.subscribe();
        loop {
            let over = shutdown.is_cancelled();
            let (version, json) = {
                let state = changes.borrow_and_update();
                (state.version, serde_json::to_string(&state.log))
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
                self.set_stored(version, fault.clone());
                fault
            };
            let changed = async {
                if fault.is_some() {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                } else {
                    // Its sender is `self`.
                    changes.changed().await.ok();
                }
            };
            if over {
                return;
            }
            // Once more after the shutdown, for what has come meanwhile.
            shutdown.run_until_cancelled(changed).await;
        }
    }

    fn set_stored(&self, version: u64, fault: Option<(u64, String)>) {
        self.stored.send_modify(|stored| match fault {
            Some((of, why)) => {
                if stored.fault.is_none() {
                    tracing::error!(
                        why,
                        "Stops of drones are in force and not stored; tried again each second"
                    );
                }
                stored.fault = Some((of, why));
            }
            None => {
                if stored.fault.take().is_some() {
                    tracing::info!("Stops of drones are stored again");
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
    use crate::engine::transport::bridge::{device_id, device_name};

    fn selector(text: &str) -> Selector {
        Selector::parse(text).expect("a selector")
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
        latches.release(&selector(text), latches.version())
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
        assert_eq!(
            latches.state.borrow().log,
            LatchLog::default(),
            "nothing is left over"
        );
    }

    #[test]
    fn release_does_not_end_a_later_stop() {
        let latches = StopLatches::default();
        latches.stop(selector("all"));
        let typed = latches.version();
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
        assert_eq!(
            latches.state.borrow().log,
            LatchLog::default(),
            "nothing is left over"
        );
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
            store.save_bridged_stops("[]".to_owned()).await.expect("kept");
            let disk = rusqlite::Connection::open(store.path()).expect("opens");
            let sql = format!("UPDATE meta SET value = {damage} WHERE key = 'guest_stops'");
            assert_eq!(disk.execute(&sql, []).expect("damaged"), 1);
            let latches = StopLatches::load(&store).await.expect("the station starts");
            assert_eq!(stopped(&latches, "d1").as_deref(), Some("all"), "{damage}");
            assert_eq!(release(&latches, "d1"), Ok(Some(1)));
            let shutdown = CancellationToken::new();
            shutdown.cancel();
            latches.persist_changes(&store, &shutdown).await;
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
            () = latches.persist_changes(&store, &shutdown) => panic!("not told to end"),
            stored = latches.wait_stored(lifted) => stored.expect("written"),
        }
        latches.stop(selector("d1,d9"));
        shutdown.cancel();
        latches.persist_changes(&store, &shutdown).await;
        store.close().await;
        let store = Store::open(dir.path()).await.expect("opens");
        let latches = StopLatches::load(&store).await.expect("readable");
        assert_eq!(stopped(&latches, "d1").as_deref(), Some("d1,d9"));
        assert_eq!(stopped(&latches, "d2").as_deref(), Some("all"));
    }
}
