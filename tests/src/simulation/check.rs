//! Invariants that are checked from outside, after each step and at the end.

use std::collections::BTreeMap;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::tracker::OPEN_PER_NODE_MAX;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::StopId;

use super::ground_truth::Invariant;
use super::plan::OUTSIDER;
use super::world::{HostId, World};

/// Over an open link a stop is executed within this time, in milliseconds, and twice the transit time.
const STOP_OVER_LINK_MS_MAX: u64 = 200;
/// Without a link, within this time after the last obstacle, in milliseconds.
const STOP_WITHOUT_LINK_MS_MAX: u64 = 5_000;

/// A stop that is expected to take effect.
#[derive(Debug)]
pub(super) struct ExpectedStop {
    issuer: HostId,
    latch: StopId,
    /// For each target: the time of the last obstacle, and whether the link was open then.
    targets: BTreeMap<HostId, (u64, bool)>,
}

impl World {
    /// A station orders a stop. Each node that it can reach has to execute it soon.
    pub(super) fn expect_stop(&self, by: HostId, order: StopId, targets: &[HostId], linked: &[HostId]) {
        let now = self.now_ms();
        let since = |target: &HostId| (*target, (now, linked.contains(target)));
        self.expected_stops.borrow_mut().push(ExpectedStop {
            issuer: by,
            latch: order,
            targets: targets.iter().map(since).collect(),
        });
    }

    /// The station was told that a node is stopped and cannot store the stop.
    pub(super) fn forget_expected_stop(&self, by: HostId, order: StopId, node: &PeerId) {
        let node = self.node_with_id(node);
        for watch in self.expected_stops.borrow_mut().iter_mut() {
            if watch.issuer == by && watch.latch == order {
                watch.targets.retain(|target, _| Some(*target) != node);
            }
        }
    }

    /// The station was told to reissue the stop with a higher number.
    pub(super) fn renumber_expected_stop(&self, by: HostId, old: StopId, new: StopId) {
        let now = self.now_ms();
        for watch in self.expected_stops.borrow_mut().iter_mut() {
            if watch.issuer == by && watch.latch == old {
                watch.latch = new;
                for (since, open) in watch.targets.values_mut() {
                    (*since, *open) = (now, false);
                }
            }
        }
    }

    /// Whether a fault affects one of the two, or the path between them.
    fn is_impaired(&self, station: HostId, node: HostId) -> bool {
        let ill = |host: HostId| {
            let control = self.controls[host].borrow();
            !control.running
                || control.killed
                || control.frame_fault.is_some()
                || self.now_ms() < control.paused_until_ms
        };
        let pair = (station.min(node), station.max(node));
        ill(station) || ill(node) || self.impaired_links.borrow().contains(&pair)
    }

    fn check_stops(&self) {
        let now = self.now_ms();
        let mut watches = std::mem::take(&mut *self.expected_stops.borrow_mut());
        // A station that was killed has forgotten that it gave an order.
        watches.retain(|watch| self.controls[watch.issuer].borrow().running);
        for watch in &mut watches {
            let by = watch.issuer;
            watch.targets.retain(|node, (since, open)| {
                let truth = self.truth.borrow();
                if truth.has_persisted_stop(*node, watch.latch) {
                    return false;
                }
                // A crash may undo a stop that was executed and not stored.
                let executed = truth.has_applied_stop(*node, watch.latch);
                drop(truth);
                if executed || self.is_impaired(by, *node) {
                    (*since, *open) = (now, false);
                }
                let bound = if *open {
                    STOP_OVER_LINK_MS_MAX + 2 * self.latency_ms_max
                } else {
                    STOP_WITHOUT_LINK_MS_MAX
                };
                if now > *since + bound {
                    let what = format!(
                        "{} has not executed stop {} {bound} ms after the last obstacle",
                        self.hosts[*node].name, watch.latch.number
                    );
                    self.truth
                        .borrow_mut()
                        .report_violation(Invariant::StopReaches, what);
                }
                true
            });
        }
        watches.retain(|watch| !watch.targets.is_empty());
        *self.expected_stops.borrow_mut() = watches;
    }

    /// Checks after each step.
    pub(super) fn check_step(&self) {
        self.check_stops();
        let most = OPEN_PER_NODE_MAX * self.nodes().count();
        for (host, gauge) in self.host_stats.borrow().iter() {
            if gauge.open_deliveries > most {
                let what = format!(
                    "{} holds {} deliveries",
                    self.hosts[*host].name, gauge.open_deliveries
                );
                self.truth
                    .borrow_mut()
                    .report_violation(Invariant::MemoryBounded, what);
            }
        }
    }

    /// Some time after healing, every node must be linked with every station. With two processes of one key, a node
    /// is linked with one of them.
    pub(super) fn check_reconverged(&self) {
        let mut stations: BTreeMap<PeerId, Vec<HostId>> = BTreeMap::new();
        for station in self.members() {
            stations.entry(self.hosts[station].id).or_default().push(station);
        }
        let gauges = self.host_stats.borrow();
        let flows = |a: HostId, b: HostId| gauges.get(&a).is_some_and(|gauge| gauge.open_links.contains(&b));
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
                        .report_violation(Invariant::Reconverged, what);
                }
            }
        }
    }

    /// Whether no delivery is open any more.
    pub(super) fn is_quiescent(&self) -> bool {
        let gauges = self.host_stats.borrow();
        self.members()
            .iter()
            .all(|host| *host == OUTSIDER || gauges.get(host).is_some_and(|gauge| gauge.open_deliveries == 0))
    }

    /// Long after healing no delivery may be open any more.
    pub(super) fn check_quiescent(&self) {
        for host in self.members() {
            let unended = self
                .host_stats
                .borrow()
                .get(&host)
                .map_or(0, |gauge| gauge.open_deliveries);
            // A node has one link for two processes with one key: the other process may wait forever.
            let twin = self
                .members()
                .into_iter()
                .any(|other| other != host && self.hosts[other].id == self.hosts[host].id);
            if unended > 0 && !twin {
                let what = format!("{} still waits for {unended} ends", self.hosts[host].name);
                self.truth
                    .borrow_mut()
                    .report_violation(Invariant::ExecutedOrReported, what);
            }
        }
    }

    /// At the end: the stores hold the outcomes that were reported, and all acknowledged deliveries have ended.
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
                    .report_violation(Invariant::Progress, format!("the store fails: {error}")),
            }
        }
    }

    fn check_store(&self, host: HostId, held: &[(CommandId, PeerId, Option<Outcome>)]) {
        let mut truth = self.truth.borrow_mut();
        let mut ends: BTreeMap<(CommandId, HostId), Option<Outcome>> = BTreeMap::new();
        for (id, node, how) in held {
            let Some(node) = self.node_with_id(node) else {
                continue;
            };
            if ends.insert((*id, node), *how).is_some() {
                truth.report_violation(
                    Invariant::OneOutcome,
                    format!("{id} is stored twice for one node"),
                );
            }
            if let Some(how) = how {
                truth.record_outcome(host, *id, node, *how);
            }
        }
        let twin = self
            .members()
            .into_iter()
            .any(|other| other != host && self.hosts[other].id == self.hosts[host].id);
        let mut missing = Vec::new();
        for (id, issued) in &truth.commands {
            if issued.issuer != host || !issued.acknowledged || twin {
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
            truth.report_violation(Invariant::ExecutedOrReported, what);
        }
        for (id, node) in truth.reported_outcomes(host) {
            if ends.get(&(id, node)).copied().flatten().is_none() {
                truth.report_violation(
                    Invariant::OneOutcome,
                    format!("the end of {id} was told, and is not in the store"),
                );
            }
        }
    }
}
