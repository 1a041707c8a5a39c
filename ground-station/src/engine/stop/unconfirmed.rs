//! Nodes that this station has stopped and that have not confirmed it. Such a node may still move, so no command that acts
//! is sent to it, also after a restart of the station.
//!
//! | a node | when |
//! |---|---|
//! | is added | an emergency stop is sent to it |
//! | is removed | it reports that it is stopped, and from then on refuses commands by itself; it replies to the order in another way; or a user releases it, whether or not the release reaches it |

use std::collections::{BTreeMap, BTreeSet};

use swarm_shared::proto::id::PeerId;

use crate::store::meta::MetaValue;
use crate::store::persisted::Persisted;
use crate::store::{Store, StoreError};

const STORED: MetaValue<BTreeMap<PeerId, u64>> = MetaValue::new("unconfirmed_stops");

/// The nodes with an unconfirmed stop, each with the number of the stop. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct UnconfirmedStops(Persisted<BTreeMap<PeerId, u64>>);

impl Default for UnconfirmedStops {
    fn default() -> Self {
        Self(Persisted::new(STORED, BTreeMap::new()))
    }
}

impl UnconfirmedStops {
    /// Reads what the store remembers. A damaged record counts as empty, so that the station still starts and can stop.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub(crate) async fn load(store: &Store) -> Result<Self, StoreError> {
        let nodes = match store.load_value(&STORED).await {
            Err(error @ StoreError::BadRow { .. }) => {
                tracing::error!(
                    %error,
                    "DAMAGED: the record of nodes that have not confirmed an emergency stop is lost, and commands go to \
                     them again; see that they stand still, or type `ground-station stop` again for them, then \
                     `ground-station release`"
                );
                BTreeMap::new()
            }
            read => read?.unwrap_or_default(),
        };
        Ok(Self(Persisted::new(STORED, nodes)))
    }

    /// The state, which is written to the store in the background.
    pub(crate) fn persisted(&self) -> &Persisted<BTreeMap<PeerId, u64>> {
        &self.0
    }

    /// Number of the stop that this node has not confirmed.
    pub(crate) fn stop_number(&self, id: PeerId) -> Option<u64> {
        self.0.with(|all| all.get(&id).copied())
    }

    /// All nodes with an unconfirmed stop.
    pub(crate) fn snapshot(&self) -> BTreeMap<PeerId, u64> {
        self.0.with(BTreeMap::clone)
    }

    /// Adds the targets of a stop.
    pub(crate) fn insert(&self, ids: impl IntoIterator<Item = PeerId>, number: u64) {
        self.0.modify(|all| {
            all.extend(ids.into_iter().map(|id| (id, number)));
            Some(())
        });
    }

    /// Removes a node; whether it was there.
    pub(crate) fn clear(&self, id: PeerId) -> bool {
        self.0.modify(|all| all.remove(&id)).is_some()
    }
}

/// Reports nodes whose stop stays unconfirmed from one check to the next. Most nodes confirm within milliseconds, and their
/// report is enough for watchers.
#[derive(Debug, Default)]
pub(crate) struct Debounce {
    /// All unconfirmed stops at the last check.
    last_seen: BTreeMap<PeerId, u64>,
    reported: BTreeMap<PeerId, u64>,
}

impl Debounce {
    /// Checks. Returns the nodes that watchers are to be notified of.
    pub(crate) fn changes(&mut self, all: &UnconfirmedStops) -> Vec<PeerId> {
        let now = all.snapshot();
        let mut lasting = now.clone();
        lasting.retain(|id, number| self.last_seen.get(id) == Some(number));
        let is_changed = |id: &&PeerId| lasting.get(id) != self.reported.get(id);
        let ids: BTreeSet<&PeerId> = lasting.keys().chain(self.reported.keys()).collect();
        let changed = ids.into_iter().filter(is_changed).copied().collect();
        (self.last_seen, self.reported) = (now, lasting);
        changed
    }
}

/// Error of a command to a node with an unconfirmed stop.
pub(crate) fn reason(number: u64) -> String {
    format!(
        "not sent: it has not confirmed the emergency stop (number {number}), so it is not known to stand still; see to it, \
         then type `ground-station release`"
    )
}

#[cfg(test)]
mod tests;
