//! What really happened in a run, and the invariants that it violates.
//!
//! Processes report here what is visible from outside: an action that started, an outcome that was reported, a stop
//! that was confirmed. Times are global: no process's own clock decides whether something was late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::StopId;

use super::world::{Host, HostId};

/// A time to live is sent in whole milliseconds, rounded up.
const ROUNDING_MS: u64 = 1;

/// Longest time, in milliseconds, until a command is in the store, and in its copies.
const COPY_SLACK_MS: u64 = 100;

/// An invariant that a run must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the text of each says what it is")]
pub enum Invariant {
    AtMostOnce,
    NeverLate,
    ExecutedOrReported,
    OneOutcome,
    OutcomeIsTrue,
    StopReaches,
    StoppedStaysStopped,
    WithdrawnIsNotSent,
    Unauthorised,
    MemoryBounded,
    Reconverged,
    LaneOrder,
    Progress,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMostOnce => "no identity is executed twice",
            Self::NeverLate => "nothing is executed after its deadline",
            Self::ExecutedOrReported => "every acknowledged command is executed or reported",
            Self::OneOutcome => "every delivery has exactly one outcome",
            Self::OutcomeIsTrue => "an outcome says what happened",
            Self::StopReaches => "a stop reaches every reachable node",
            Self::StoppedStaysStopped => "a stopped node stays stopped until it is released",
            Self::WithdrawnIsNotSent => "what waited for a node when it was stopped is never sent to it",
            Self::Unauthorised => "the unauthorised change nothing",
            Self::MemoryBounded => "memory is bounded",
            Self::Reconverged => "the fleet is whole again 5 s after healing",
            Self::LaneOrder => "an emergency overtakes what waits",
            Self::Progress => "nothing hangs or fails without a fault",
        })
    }
}

/// A violated invariant.
#[derive(Clone, Debug)]
pub(super) struct BrokenInvariant {
    pub(super) invariant: Invariant,
    pub(super) what: String,
}

impl BrokenInvariant {
    pub(super) fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self {
            invariant,
            what: what.into(),
        }
    }
}

/// The behaviour of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimActionProperties {
    pub(super) idempotent: bool,
    pub(super) while_stopped: bool,
    pub(super) flight: bool,
}

pub(super) struct IssuedCommand {
    /// The station whose store has the command.
    pub(super) issuer: HostId,
    pub(super) issued_ms: u64,
    pub(super) ttl_ms: u64,
    pub(super) properties: SimActionProperties,
    pub(super) targets: BTreeSet<HostId>,
    pub(super) authorised: bool,
    /// The station has confirmed that it stored the command.
    pub(super) acknowledged: bool,
    /// A copy of the store in which the command was open has been used since: its state in that copy may be out of
    /// date.
    pub(super) in_copied_store: bool,
}

#[derive(Default)]
struct NodeTruth {
    /// The stop that the node has confirmed to be under.
    latch: Option<StopId>,
    /// The stop whose release it is about to store.
    releasing: Option<StopId>,
    /// The executed orders, and whether each is stored.
    applied_stops: BTreeMap<StopId, bool>,
}

pub(super) struct GroundTruth {
    pub(super) commands: BTreeMap<CommandId, IssuedCommand>,
    executions: BTreeMap<(CommandId, HostId), u32>,
    /// The outcomes that each station has reported, by the number of its store.
    outcomes: BTreeMap<(usize, CommandId, HostId), Outcome>,
    nodes: BTreeMap<HostId, NodeTruth>,
    /// Stops that were really ordered.
    pub(super) issued_stops: BTreeSet<StopId>,
    first_violation: Option<BrokenInvariant>,
    host_names: Vec<String>,
    copied_ms: u64,
    /// Ended deliveries, by outcome.
    pub(super) outcome_counts: BTreeMap<Outcome, u64>,
    pub(super) execution_count: u64,
    pub(super) latch_count: u64,
    pub(super) release_count: u64,
}

impl GroundTruth {
    pub(super) fn new(hosts: &[Host]) -> Self {
        Self {
            commands: BTreeMap::new(),
            executions: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            nodes: (0..hosts.len())
                .map(|host| (host, NodeTruth::default()))
                .collect(),
            issued_stops: BTreeSet::new(),
            first_violation: None,
            host_names: hosts.iter().map(|host| host.name.clone()).collect(),
            copied_ms: 0,
            outcome_counts: BTreeMap::new(),
            execution_count: 0,
            latch_count: 0,
            release_count: 0,
        }
    }

    /// Records a violation; only the first one counts.
    pub(super) fn report_violation(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.first_violation
            .get_or_insert_with(|| BrokenInvariant::new(invariant, what));
    }

    pub(super) fn first_violation(&self) -> Option<&BrokenInvariant> {
        self.first_violation.as_ref()
    }

    pub(super) fn record_issued(&mut self, id: CommandId, issued: IssuedCommand) {
        if self.commands.insert(id, issued).is_some() {
            self.report_violation(Invariant::AtMostOnce, format!("{id} names two commands"));
        }
    }

    /// The station has stored the command and confirmed it.
    pub(super) fn record_acknowledged(&mut self, id: CommandId) {
        if let Some(issued) = self.commands.get_mut(&id) {
            issued.acknowledged = true;
        }
    }

    /// The store of this station was copied: open deliveries in it may continue in two places.
    pub(super) fn record_store_copy(&mut self, by: HostId, now_ms: u64) {
        for issued in self.commands.values_mut() {
            issued.in_copied_store |= issued.issuer == by;
        }
        self.copied_ms = now_ms;
    }

    /// The station has ended for good, and its second has the copy: nothing is reported any more about later changes.
    pub(super) fn record_replacement(&mut self, by: HostId, with: HostId) {
        for issued in self.commands.values_mut().filter(|issued| issued.issuer == by) {
            issued.issuer = with;
            if issued.issued_ms + COPY_SLACK_MS >= self.copied_ms {
                issued.acknowledged = false;
            }
        }
    }

    /// The deliveries whose outcome this station has reported.
    pub(super) fn reported_outcomes(&self, store: HostId) -> Vec<(CommandId, HostId)> {
        let keys = self.outcomes.keys();
        keys.filter(|(by, _, _)| *by == store)
            .map(|(_, id, node)| (*id, *node))
            .collect()
    }

    /// An action started on a node.
    pub(super) fn record_execution(&mut self, node: HostId, id: CommandId, at_ms: u64) {
        self.execution_count += 1;
        let name = &self.host_names[node];
        let before = self.executions.entry((id, node)).or_insert(0);
        *before += 1;
        let times = *before;
        let Some(issued) = self.commands.get(&id) else {
            let what = format!("{name} executed {id}, which was never issued");
            return self.report_violation(Invariant::Unauthorised, what);
        };
        let (late, nature) = (issued.issued_ms + issued.ttl_ms, issued.properties);
        if !issued.authorised {
            let what = format!("{name} executed {id} of a peer without permission");
            self.report_violation(Invariant::Unauthorised, what);
        } else if !issued.targets.contains(&node) {
            let what = format!("{name} executed {id}, which was not for it");
            self.report_violation(Invariant::Unauthorised, what);
        } else if times > 1 && !nature.idempotent {
            let what = format!("{name} executed {id} {times} times");
            self.report_violation(Invariant::AtMostOnce, what);
        } else if at_ms > late + ROUNDING_MS {
            let what = format!("{name} executed {id} {} ms after its deadline", at_ms - late);
            self.report_violation(Invariant::NeverLate, what);
        } else if let Some(latch) = self.nodes.get(&node).and_then(|node| node.latch)
            && !nature.while_stopped
        {
            let what = format!("{name} executed {id} while under stop {}", latch.number);
            self.report_violation(Invariant::StoppedStaysStopped, what);
        }
    }

    pub(super) fn has_executed(&self, node: HostId, id: CommandId) -> bool {
        self.executions.contains_key(&(id, node))
    }

    /// A station's store holds an outcome, or its tracker has reported one.
    pub(super) fn record_outcome(&mut self, store: usize, id: CommandId, node: HostId, how: Outcome) {
        let name = &self.host_names[node];
        if let Some(before) = self.outcomes.insert((store, id, node), how) {
            if before != how {
                let what = format!("{id} on {name} ended as {before}, and then as {how}");
                self.report_violation(Invariant::OneOutcome, what);
            }
            return;
        }
        *self.outcome_counts.entry(how).or_default() += 1;
        let executed = self.has_executed(node, id);
        let copied = self
            .commands
            .get(&id)
            .is_some_and(|issued| issued.in_copied_store);
        let lie = match how {
            Outcome::Done => !executed,
            // A copy of the store may not have recorded that the command was sent.
            Outcome::Refused | Outcome::Expired => executed && !copied,
            Outcome::Failed | Outcome::Unknown | Outcome::NoAnswer => false,
        };
        if lie {
            let seen = if executed { "executed" } else { "never executed" };
            let what = format!("{id} on {name} ended as {how}, and was {seen}");
            self.report_violation(Invariant::OutcomeIsTrue, what);
        }
    }

    /// A node executes a stop order.
    pub(super) fn record_stop_received(&mut self, node: HostId, order: StopId) {
        if !self.issued_stops.contains(&order) {
            let what = format!(
                "{} was stopped by {} of {}, which no permitted station has ordered",
                self.host_names[node],
                order.number,
                order.issuer.short()
            );
            return self.report_violation(Invariant::Unauthorised, what);
        }
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        // A crash may undo it before it is on the disk, and then it is executed once more.
        if truth.applied_stops.insert(order, false) == Some(true) {
            let what = format!("{} executed stop {} twice", self.host_names[node], order.number);
            self.report_violation(Invariant::StoppedStaysStopped, what);
        }
    }

    /// A node has an order on its disk.
    pub(super) fn record_stop_persisted(&mut self, node: HostId, order: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.applied_stops.insert(order, true);
        }
    }

    /// Whether a node has stored an order of this issuer that is as new.
    pub(super) fn has_persisted_stop(&self, node: HostId, order: StopId) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth.applied_stops.iter().any(|(executed, promised)| {
                *promised && executed.issuer == order.issuer && executed.number >= order.number
            })
        })
    }

    /// Whether a node has executed an order of this issuer that is as new.
    pub(super) fn has_applied_stop(&self, node: HostId, order: StopId) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth
                .applied_stops
                .keys()
                .any(|executed| executed.issuer == order.issuer && executed.number >= order.number)
        })
    }

    /// A node confirms that it is under this stop, and will be after a restart.
    pub(super) fn record_latch_reported(&mut self, node: HostId, latch: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node)
            && truth.latch.replace(latch) != Some(latch)
        {
            truth.applied_stops.insert(latch, true);
            self.latch_count += 1;
        }
    }

    /// A node is about to store that it is released from this stop.
    pub(super) fn record_release_started(&mut self, node: HostId, order: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.releasing = Some(order);
        }
    }

    /// A node is released, by an order that named `named`.
    pub(super) fn record_released(&mut self, node: HostId, named: u64) {
        self.release_count += 1;
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        if let Some(latch) = truth.latch
            && latch.number != named
        {
            let what = format!(
                "{} is under stop {}, and was released by an order to release {named}",
                self.host_names[node], latch.number
            );
            return self.report_violation(Invariant::StoppedStaysStopped, what);
        }
        (truth.latch, truth.releasing) = (None, None);
    }

    /// A node that has just started finds this stop in its journal.
    pub(super) fn record_restart(&mut self, node: HostId, found: Option<StopId>) {
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        // It has forgotten the orders that it had not stored.
        truth.applied_stops.retain(|_, promised| *promised);
        if let Some(found) = found {
            truth.applied_stops.insert(found, true);
        }
        let releasing = truth.releasing.take();
        let Some(latch) = truth.latch else { return };
        if found.is_none() && releasing == Some(latch) {
            // It was killed between storing its release and reporting it.
            truth.latch = None;
        } else if found.is_none() {
            let what = format!(
                "{} forgot stop {} over a restart",
                self.host_names[node], latch.number
            );
            self.report_violation(Invariant::StoppedStaysStopped, what);
        }
    }
}
