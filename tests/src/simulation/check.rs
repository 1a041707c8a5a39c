//! The promises that are looked at from outside, after each step and at the end.

use std::collections::BTreeMap;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::tracker::NODE_OPEN_MAX;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::Latch;

use super::ground_truth::Invariant;
use super::plan::OUTSIDER;
use super::world::{HostId, World};

/// Over an open link a stop is heeded within this and twice the time that a message may take.
const STOP_MS: u64 = 200;
/// Without one, within this from when nothing is in the way any more.
const STOP_ANYHOW_MS: u64 = 5_000;

/// A stop that somebody waits for.
#[derive(Debug)]
pub(super) struct Watch {
    by: HostId,
    order: Latch,
    /// Of each target: since when nothing is in the way, and whether the link was open then.
    targets: BTreeMap<HostId, (u64, bool)>,
}

impl World {
    /// A station orders a stop. Each node that it can reach has to heed it soon.
    pub(super) fn watch(&self, by: HostId, order: Latch, targets: &[HostId], linked: &[HostId]) {
        let now = self.now_ms();
        let since = |target: &HostId| (*target, (now, linked.contains(target)));
        self.watches.borrow_mut().push(Watch {
            by,
            order,
            targets: targets.iter().map(since).collect(),
        });
    }

    /// The station has been told that a node is stopped and cannot write it down.
    pub(super) fn unwatch(&self, by: HostId, order: Latch, node: &PeerId) {
        let node = self.node_of(node);
        for watch in self.watches.borrow_mut().iter_mut() {
            if watch.by == by && watch.order == order {
                watch.targets.retain(|target, _| Some(*target) != node);
            }
        }
    }

    /// The station has learned that it has to count on.
    pub(super) fn watch_anew(&self, by: HostId, old: Latch, new: Latch) {
        let now = self.now_ms();
        for watch in self.watches.borrow_mut().iter_mut() {
            if watch.by == by && watch.order == old {
                watch.order = new;
                for (since, open) in watch.targets.values_mut() {
                    (*since, *open) = (now, false);
                }
            }
        }
    }

    /// Whether anything is in the way between the two, or wrong with either.
    fn is_troubled(&self, station: HostId, node: HostId) -> bool {
        let ill = |host: HostId| {
            let control = self.controls[host].borrow();
            !control.running
                || control.dead
                || control.meddling.is_some()
                || self.now_ms() < control.paused_until_ms
        };
        let pair = (station.min(node), station.max(node));
        ill(station) || ill(node) || self.busy.borrow().contains(&pair)
    }

    fn check_stops(&self) {
        let now = self.now_ms();
        let mut watches = std::mem::take(&mut *self.watches.borrow_mut());
        // A station that died does not know any more that it gave an order.
        watches.retain(|watch| self.controls[watch.by].borrow().running);
        for watch in &mut watches {
            let by = watch.by;
            watch.targets.retain(|node, (since, open)| {
                let truth = self.truth.borrow();
                if truth.has_promised(*node, watch.order) {
                    return false;
                }
                // What it has heeded and not written down a crash may take from it again.
                let heeded = truth.has_heeded(*node, watch.order);
                drop(truth);
                if heeded || self.is_troubled(by, *node) {
                    (*since, *open) = (now, false);
                }
                let bound = if *open {
                    STOP_MS + 2 * self.latency_ms_max
                } else {
                    STOP_ANYHOW_MS
                };
                if now > *since + bound {
                    let what = format!(
                        "{} has not heeded stop {} {bound} ms after nothing was in its way",
                        self.hosts[*node].name, watch.order.number
                    );
                    self.truth
                        .borrow_mut()
                        .break_promise(Invariant::StopReaches, what);
                }
                true
            });
        }
        watches.retain(|watch| !watch.targets.is_empty());
        *self.watches.borrow_mut() = watches;
    }

    /// After each step.
    pub(super) fn check_step(&self) {
        self.check_stops();
        let most = NODE_OPEN_MAX * self.nodes().count();
        for (host, gauge) in self.gauges.borrow().iter() {
            if gauge.unended > most {
                let what = format!("{} holds {} deliveries", self.hosts[*host].name, gauge.unended);
                self.truth
                    .borrow_mut()
                    .break_promise(Invariant::MemoryBounded, what);
            }
        }
    }

    /// Some time after healing: every node is linked with every station again. Of two processes with one key a node
    /// is linked with one.
    pub(super) fn check_reconverged(&self) {
        let mut stations: BTreeMap<PeerId, Vec<HostId>> = BTreeMap::new();
        for station in self.members() {
            stations.entry(self.hosts[station].id).or_default().push(station);
        }
        let gauges = self.gauges.borrow();
        let flows = |a: HostId, b: HostId| gauges.get(&a).is_some_and(|gauge| gauge.open.contains(&b));
        for same_key in stations.values() {
            for node in self.nodes() {
                if !same_key
                    .iter()
                    .any(|station| flows(*station, node) && flows(node, *station))
                {
                    let what = format!(
                        "{} has no link with {}",
                        self.hosts[node].name, self.hosts[same_key[0]].name
                    );
                    self.truth
                        .borrow_mut()
                        .break_promise(Invariant::Reconverged, what);
                }
            }
        }
    }

    /// Whether nothing is open any more.
    pub(super) fn is_settled(&self) -> bool {
        let gauges = self.gauges.borrow();
        self.members()
            .iter()
            .all(|host| *host == OUTSIDER || gauges.get(host).is_some_and(|gauge| gauge.unended == 0))
    }

    /// Long after healing nothing may be open any more.
    pub(super) fn check_settled(&self) {
        for host in self.members() {
            let unended = self.gauges.borrow().get(&host).map_or(0, |gauge| gauge.unended);
            // A node has one link for two processes with one key: the other may wait for ever.
            let twin = self
                .members()
                .into_iter()
                .any(|other| other != host && self.hosts[other].id == self.hosts[host].id);
            if unended > 0 && !twin {
                let what = format!("{} still waits for {unended} ends", self.hosts[host].name);
                self.truth
                    .borrow_mut()
                    .break_promise(Invariant::ExecutedOrReported, what);
            }
        }
    }

    /// At the end: what the stores hold is what was told, and all that was acknowledged has its end.
    pub(super) fn check_end(&self) {
        for host in self.members() {
            if host == OUTSIDER {
                continue;
            }
            let held = self.stores.borrow_mut().deliveries(host, self.hosts[host].id);
            match held {
                Ok(held) => self.check_store(host, &held),
                Err(error) => self
                    .truth
                    .borrow_mut()
                    .break_promise(Invariant::Progress, format!("the store fails: {error}")),
            }
        }
    }

    fn check_store(&self, host: HostId, held: &[(CommandId, PeerId, Option<Outcome>)]) {
        let mut truth = self.truth.borrow_mut();
        let mut ends: BTreeMap<(CommandId, HostId), Option<Outcome>> = BTreeMap::new();
        for (id, node, how) in held {
            let Some(node) = self.node_of(node) else { continue };
            if ends.insert((*id, node), *how).is_some() {
                truth.break_promise(
                    Invariant::OneOutcome,
                    format!("{id} is stored twice for one node"),
                );
            }
            if let Some(how) = how {
                truth.ended(host, *id, node, *how);
            }
        }
        let twin = self
            .members()
            .into_iter()
            .any(|other| other != host && self.hosts[other].id == self.hosts[host].id);
        let mut missing = Vec::new();
        for (id, issued) in &truth.commands {
            if issued.by != host || !issued.acknowledged || twin {
                continue;
            }
            for node in &issued.targets {
                if ends.get(&(*id, *node)).copied().flatten().is_none() {
                    missing.push(format!("{id} on {}", self.hosts[*node].name));
                }
            }
        }
        if !missing.is_empty() {
            let what = format!("acknowledged, and without an end: {}", missing.join(", "));
            truth.break_promise(Invariant::ExecutedOrReported, what);
        }
        for (id, node) in truth.told(host) {
            if ends.get(&(id, node)).copied().flatten().is_none() {
                truth.break_promise(
                    Invariant::OneOutcome,
                    format!("the end of {id} was told, and is not in the store"),
                );
            }
        }
    }
}
