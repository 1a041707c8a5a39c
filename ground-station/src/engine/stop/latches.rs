//! The stops that are in force for bridged devices, also for those that register later and after a restart of the station.
//!
//! A stop is a selector, and so is a release: the newest of them that matches a device decides whether it is stopped.
//! Each takes effect at once; [`Persisted`] writes it to the store.
//!
//! Invariants: a stop is removed only by releases that match every device that it matches. A stop that exceeds the limit
//! becomes a stop of all; a release that exceeds it is refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use swarm_shared::proto::selector::{NodeAttributes, Selector};

use crate::store::meta::MetaValue;
use crate::store::persisted::Persisted;
use crate::store::{Store, StoreError};

const STORED_STOPS: MetaValue<LatchLog> = MetaValue::new("guest_stops");
/// Most stops and releases that are remembered.
pub(crate) const ENTRIES_MAX: usize = 256;
/// Most bytes of their selectors.
const BYTES_MAX: usize = 256 * 1024;
/// Most patterns of releases that are compared with the names in stops, each with each.
const PATTERNS_MAX: usize = 64;

/// A stop or a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stop: bool,
    selector: Selector,
}

/// Stops and releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LatchLog {
    /// Oldest first.
    entries: Vec<Entry>,
    /// Stops since the station started.
    #[serde(skip)]
    stop_count: u64,
}

impl LatchLog {
    /// Adds a stop. Returns the selector that is stopped: `all` if the limit is exceeded.
    fn stop(&mut self, selector: Selector) -> Selector {
        self.stop_count += 1;
        self.put(Entry {
            stop: true,
            selector: selector.clone(),
        });
        if self.exceeds_limit() {
            tracing::error!(
                entries = ENTRIES_MAX,
                "Too many stops are in force to remember each: all drones are stopped until `release all`"
            );
            self.put(Entry {
                stop: true,
                selector: Selector::all(),
            });
            return Selector::all();
        }
        selector
    }

    /// A stop of all.
    fn of_all() -> Self {
        let mut log = Self::default();
        log.stop(Selector::all());
        log
    }

    /// Adds a release. Returns whether it is within the limit; otherwise nothing has changed.
    fn release(&mut self, selector: Selector) -> bool {
        let before = self.entries.clone();
        self.put(Entry {
            stop: false,
            selector,
        });
        self.remove_released();
        // A release has no effect on later stops.
        let first_stop = self.entries.iter().position(|entry| entry.stop);
        self.entries.drain(..first_stop.unwrap_or(self.entries.len()));
        let fits = !self.exceeds_limit();
        if !fits {
            self.entries = before;
        }
        fits
    }

    /// Adds the newest entry, and removes those that it replaces.
    fn put(&mut self, entry: Entry) {
        let all = entry.selector == Selector::all();
        self.entries.retain(|old| !all && old.selector != entry.selector);
        self.entries.push(entry);
    }

    /// Removes every stop whose terms are all covered by newer releases. A name is covered by every pattern that always
    /// matches it. Entries with exclusions stay: they match other devices than their terms.
    fn remove_released(&mut self) {
        let (mut released, mut patterns) = (BTreeSet::new(), Vec::new());
        let mut kept = Vec::new();
        while let Some(entry) = self.entries.pop() {
            let plain = entry.selector.exclusions().next().is_none();
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
            let is_over = entry.stop && plain && entry.selector.terms().all(|term| is_released(&term));
            if !is_over {
                kept.push(entry);
            }
        }
        kept.reverse();
        self.entries = kept;
    }

    fn exceeds_limit(&self) -> bool {
        let selectors = self.entries.iter().map(|entry| entry.selector.as_str());
        self.entries.len() > ENTRIES_MAX || selectors.map(str::len).sum::<usize>() > BYTES_MAX
    }

    /// The selector of the stop that is in force for a device.
    fn stopped(&self, target: &NodeAttributes<'_>) -> Option<&Selector> {
        let mut newest_first = self.entries.iter().rev();
        let newest = newest_first.find(|entry| entry.selector.matches(target))?;
        newest.stop.then_some(&newest.selector)
    }
}

/// Why a release does not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReleaseError {
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
#[derive(Debug)]
pub(crate) struct StopLatches(Persisted<LatchLog>);

impl Default for StopLatches {
    fn default() -> Self {
        Self(Persisted::new(STORED_STOPS, LatchLog::default()))
    }
}

impl StopLatches {
    /// Reads what the store remembers. A damaged record becomes a stop of all, since some stop may have been in force; the
    /// next change replaces it.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub(crate) async fn load(store: &Store) -> Result<Self, StoreError> {
        let log = match store.load_value(&STORED_STOPS).await {
            Err(error @ StoreError::BadRow { .. }) => {
                tracing::error!(
                    %error,
                    "Record of stopped drones of other programs is damaged: all are stopped until `release`; see that they \
                     stand still, then release them"
                );
                LatchLog::of_all()
            }
            read => read?.unwrap_or_default(),
        };
        Ok(Self(Persisted::new(STORED_STOPS, log)))
    }

    /// The log, which is written to the store in the background.
    pub(crate) fn persisted(&self) -> &Persisted<LatchLog> {
        &self.0
    }

    /// Latches a stop for `selector`. Never blocks. Returns the latched selector: `all` if the limit is exceeded.
    pub(crate) fn stop(&self, selector: Selector) -> Selector {
        let stopped = self.0.modify(|log| Some(log.stop(selector)));
        stopped.unwrap_or_else(Selector::all)
    }

    /// Number of stops so far, to which a release refers that is requested now.
    pub(crate) fn stop_count(&self) -> u64 {
        self.0.with(|log| log.stop_count)
    }

    /// Ends the stops that were in force when there had been `stop_count` stops. Returns the version of the log that has to
    /// be stored; `None` if no stop was in force.
    ///
    /// # Errors
    /// [`ReleaseError`]: nothing is released.
    pub(crate) fn release(&self, selector: &Selector, stop_count: u64) -> Result<Option<u64>, ReleaseError> {
        let mut refused = None;
        let released = self.0.modify(|log| {
            if log.stop_count > stop_count {
                refused = Some(ReleaseError::StoppedAgain);
            } else if !log.entries.is_empty() {
                refused = (!log.release(selector.clone())).then_some(ReleaseError::TooMany);
                return refused.is_none().then_some(());
            }
            None
        });
        refused.map_or_else(|| Ok(released.map(|()| self.0.version())), Err)
    }

    /// The selector of the stop that is in force for a device.
    pub(crate) fn stopped(&self, target: &NodeAttributes<'_>) -> Option<Selector> {
        self.0.with(|log| log.stopped(target).cloned())
    }

    /// Whether a stop is in force for any selector.
    pub(crate) fn any_in_force(&self) -> bool {
        self.0.with(|log| !log.entries.is_empty())
    }

    /// The selectors of the stops that are in force.
    pub(crate) fn stops(&self) -> Vec<String> {
        self.0.with(|log| {
            let stops = log.entries.iter().filter(|entry| entry.stop);
            stops.map(|entry| entry.selector.to_string()).collect()
        })
    }
}

#[cfg(test)]
mod tests;
