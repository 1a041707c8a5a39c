//! The nodes that this station has stopped, until they are released: nothing that acts is sent to a node that may not be
//! stopped, also after a restart of the station.
//!
//! | event | then the node is |
//! |---|---|
//! | an emergency stop goes out to it | unconfirmed: no actions are sent to it |
//! | it reports that it is stopped | confirmed: it refuses actions by itself |
//! | a confirmed node loses its link | awaited: no actions are sent to it |
//! | an awaited node is linked, and reports nothing for [`REPORT_TIMEOUT`] | unconfirmed |
//! | it reports that it is not stopped, and that the stop was released | forgotten |
//! | it reports that it is not stopped, without that | unconfirmed: it has lost its record of the stop |
//! | it reports that the order does not match it; the operator releases it, reached or not | forgotten |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::StopStatus;
use tokio::sync::watch;

use crate::store::meta::MetaValue;
use crate::store::persisted::Persisted;
use crate::store::{Store, StoreError};

/// Number of the stop of each node.
type StopNumbers = BTreeMap<PeerId, u64>;

const UNCONFIRMED: MetaValue<StopNumbers> = MetaValue::new("unconfirmed_stops");
const CONFIRMED: MetaValue<StopNumbers> = MetaValue::new("confirmed_stops");

/// How long after its link a node may take to report how its stop stands.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The stopped nodes. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct UnconfirmedStops {
    nodes: Arc<watch::Sender<BTreeMap<PeerId, NodeStop>>>,
    unconfirmed: Persisted<StopNumbers>,
    confirmed: Persisted<StopNumbers>,
}

/// The stop of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NodeStop {
    /// The lowest number that its order may have.
    number: u64,
    state: Confirmation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    Unconfirmed,
    Confirmed,
    /// Confirmed over an earlier link. `linked`: when the present link came up.
    Awaited {
        linked: Option<Instant>,
    },
}

impl Default for UnconfirmedStops {
    fn default() -> Self {
        Self::new(StopNumbers::new(), StopNumbers::new())
    }
}

impl UnconfirmedStops {
    /// Reads what the store remembers. A damaged record counts as empty, so that the station still starts and can stop.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub(crate) async fn load(store: &Store) -> Result<Self, StoreError> {
        let unconfirmed = load_numbers(store, &UNCONFIRMED).await?;
        let confirmed = load_numbers(store, &CONFIRMED).await?;
        Ok(Self::new(unconfirmed, confirmed))
    }

    fn new(unconfirmed: StopNumbers, confirmed: StopNumbers) -> Self {
        let with_state = |numbers: &StopNumbers, state| {
            let stops = numbers.iter();
            let stops = stops.map(|(id, number)| {
                (
                    *id,
                    NodeStop {
                        number: *number,
                        state,
                    },
                )
            });
            stops.collect::<Vec<_>>()
        };
        let mut nodes = with_state(&confirmed, Confirmation::Awaited { linked: None });
        nodes.extend(with_state(&unconfirmed, Confirmation::Unconfirmed));
        Self {
            nodes: Arc::new(watch::Sender::new(nodes.into_iter().collect())),
            unconfirmed: Persisted::new(UNCONFIRMED, unconfirmed),
            confirmed: Persisted::new(CONFIRMED, confirmed),
        }
    }

    /// The state, which is written to the store in the background.
    pub(crate) fn persisted(&self) -> [&Persisted<StopNumbers>; 2] {
        [&self.unconfirmed, &self.confirmed]
    }

    /// Changes the nodes; `change` returns whether it has changed any.
    fn modify(&self, change: impl FnOnce(&mut BTreeMap<PeerId, NodeStop>) -> bool) {
        if !self.nodes.send_if_modified(change) {
            return;
        }
        for (persisted, is_unconfirmed) in [(&self.unconfirmed, true), (&self.confirmed, false)] {
            persisted.modify(|stored| {
                // Read under the lock: the last of two changes writes both.
                let now = self.numbers(|stop| (stop.state == Confirmation::Unconfirmed) == is_unconfirmed);
                (*stored != now).then(|| *stored = now)
            });
        }
    }

    fn numbers(&self, wanted: impl Fn(&NodeStop) -> bool) -> StopNumbers {
        let nodes = self.nodes.borrow();
        let wanted = nodes.iter().filter(|(_, stop)| wanted(stop));
        wanted.map(|(id, stop)| (*id, stop.number)).collect()
    }

    /// Number of the stop that this node has not confirmed.
    pub(crate) fn stop_number(&self, id: PeerId) -> Option<u64> {
        let nodes = self.nodes.borrow();
        let stop = nodes.get(&id)?;
        (stop.state == Confirmation::Unconfirmed).then_some(stop.number)
    }

    /// All nodes with an unconfirmed stop.
    fn unconfirmed(&self) -> StopNumbers {
        self.numbers(|stop| stop.state == Confirmation::Unconfirmed)
    }

    /// Why no actions are sent to this node; `None` if they are.
    pub(crate) fn refusal(&self, id: PeerId) -> Option<String> {
        let stop = *self.nodes.borrow().get(&id)?;
        match stop.state {
            Confirmation::Confirmed => None,
            Confirmation::Unconfirmed => Some(reason(stop.number)),
            Confirmation::Awaited { .. } => Some(format!(
                "not sent: it was stopped (number {}), and has not said since it was last linked whether it still is; \
                 type `ground-station release` first",
                stop.number
            )),
        }
    }

    /// Adds the targets of a stop. `number` is the lowest of its orders.
    pub(crate) fn insert(&self, ids: impl IntoIterator<Item = PeerId>, number: u64) {
        let state = Confirmation::Unconfirmed;
        self.modify(|nodes| {
            nodes.extend(ids.into_iter().map(|id| (id, NodeStop { number, state })));
            true
        });
    }

    /// Removes a node: the operator has released it, or the order does not match it. Returns whether its stop was
    /// unconfirmed.
    pub(crate) fn clear(&self, id: PeerId) -> bool {
        let mut was_unconfirmed = false;
        self.modify(|nodes| {
            let removed = nodes.remove(&id);
            was_unconfirmed = removed.is_some_and(|stop| stop.state == Confirmation::Unconfirmed);
            removed.is_some()
        });
        was_unconfirmed
    }

    /// A node reports how its stop stands.
    pub(crate) fn on_report(&self, id: PeerId, report: &StopStatus) {
        self.modify(|all| {
            let Some(stop) = all.get_mut(&id) else { return false };
            let before = stop.state;
            if report.stopped {
                stop.state = Confirmation::Confirmed;
            } else if report.proves_release(stop.number) {
                all.remove(&id);
                return true;
            } else if !report.not_selected {
                stop.state = Confirmation::Unconfirmed;
                if before != stop.state {
                    tracing::error!(
                        peer = %id.short(),
                        number = stop.number,
                        "NOT STOPPED although it was, and no release is known: no actions are sent to it until \
                         `ground-station release`"
                    );
                }
            }
            before != stop.state
        });
    }

    /// Its link came up, or was lost: what it has confirmed it has to confirm again.
    pub(crate) fn on_link_changed(&self, id: PeerId, linked: bool) {
        let linked = linked.then(clock::now);
        self.modify(|all| {
            let stop = all.get_mut(&id);
            let stop = stop.filter(|stop| stop.state != Confirmation::Unconfirmed);
            stop.map(|stop| stop.state = Confirmation::Awaited { linked })
                .is_some()
        });
    }

    /// Ends the wait for reports that have not come in time.
    pub(crate) fn expire_awaited(&self, now: Instant) {
        self.modify(|all| {
            let late = all.values_mut().filter(|stop| {
                matches!(stop.state, Confirmation::Awaited { linked: Some(since) } if now >= since + REPORT_TIMEOUT)
            });
            late.map(|stop| stop.state = Confirmation::Unconfirmed).count() > 0
        });
    }

    /// Waits until none of these is linked and has its report still to come, for at most [`REPORT_TIMEOUT`].
    pub(crate) async fn wait_for_reports(&self, ids: &BTreeSet<PeerId>) {
        let mut changes = self.nodes.subscribe();
        let reported = changes.wait_for(|all| {
            !ids.iter()
                .filter_map(|id| all.get(id))
                .any(|stop| matches!(stop.state, Confirmation::Awaited { linked: Some(_) }))
        });
        // What has not come is refused.
        clock::timeout_at(clock::now() + REPORT_TIMEOUT, reported)
            .await
            .ok();
    }
}

async fn load_numbers(store: &Store, value: &MetaValue<StopNumbers>) -> Result<StopNumbers, StoreError> {
    match store.load_value(value).await {
        Err(error @ StoreError::BadRow { .. }) => {
            tracing::error!(
                %error,
                "DAMAGED: the record of nodes that were stopped is lost, and commands go to them again; see that they \
                 stand still, or type `ground-station stop` again for them, then `ground-station release`"
            );
            Ok(StopNumbers::new())
        }
        read => Ok(read?.unwrap_or_default()),
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
        let now = all.unconfirmed();
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
fn reason(number: u64) -> String {
    format!(
        "not sent: it has not confirmed the emergency stop (number {number}), so it is not known to stand still; see to it, \
         then type `ground-station release`"
    )
}

#[cfg(test)]
mod tests;
