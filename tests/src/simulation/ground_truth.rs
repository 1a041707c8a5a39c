//! What really happened, and whether any of it should not have.
//!
//! Processes report here what the world could see: an action that began, an outcome that was told, a stop that was
//! promised. Times are global: no process's own clock decides whether something was late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::StopId;

use super::world::{Host, HostId};

/// A time to live is told in whole milliseconds, rounded up.
const ROUNDING_MS: u64 = 1;

/// How long a command may wait for the store before it is in there, and in its copies.
const COPY_SLACK_MS: u64 = 100;

/// A promise that a run is judged by.
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
            Self::Progress => "nothing hangs or fails that nobody disturbed",
        })
    }
}

/// A promise that was broken.
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

/// How an action behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimActionProperties {
    pub(super) idempotent: bool,
    pub(super) while_stopped: bool,
    pub(super) flight: bool,
}

pub(super) struct IssuedCommand {
    /// The station whose store has it.
    pub(super) issuer: HostId,
    pub(super) issued_ms: u64,
    pub(super) ttl_ms: u64,
    pub(super) properties: SimActionProperties,
    pub(super) targets: BTreeSet<HostId>,
    pub(super) authorised: bool,
    /// The station has said that it has it.
    pub(super) acknowledged: bool,
    /// A copy of the store that held it open has been used since: what that copy says of it may be out of date.
    pub(super) in_copied_store: bool,
}

#[derive(Default)]
struct NodeTruth {
    /// The stop that the node has promised to stay under.
    latch: Option<StopId>,
    /// The stop that it is about to write down the release of.
    releasing: Option<StopId>,
    /// The orders that it has heeded, and whether it has written them down.
    applied_stops: BTreeMap<StopId, bool>,
}

pub(super) struct GroundTruth {
    pub(super) commands: BTreeMap<CommandId, IssuedCommand>,
    executions: BTreeMap<(CommandId, HostId), u32>,
    /// What each station has said, by the number of its store.
    outcomes: BTreeMap<(usize, CommandId, HostId), Outcome>,
    nodes: BTreeMap<HostId, NodeTruth>,
    /// Stops that were really ordered.
    pub(super) issued_stops: BTreeSet<StopId>,
    first_violation: Option<BrokenInvariant>,
    host_names: Vec<String>,
    copied_ms: u64,
    /// Deliveries that ended, by outcome.
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

    /// The first promise that was broken counts.
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

    /// The station has stored it, and says so.
    pub(super) fn record_acknowledged(&mut self, id: CommandId) {
        if let Some(issued) = self.commands.get_mut(&id) {
            issued.acknowledged = true;
        }
    }

    /// The store of this station has been copied: whatever it holds open may go on in two places.
    pub(super) fn record_store_copy(&mut self, by: HostId, now_ms: u64) {
        for issued in self.commands.values_mut() {
            issued.in_copied_store |= issued.issuer == by;
        }
        self.copied_ms = now_ms;
    }

    /// The station is gone for good, and its second has the copy: nobody is left to report what came after it.
    pub(super) fn record_replacement(&mut self, by: HostId, with: HostId) {
        for issued in self.commands.values_mut().filter(|issued| issued.issuer == by) {
            issued.issuer = with;
            if issued.issued_ms + COPY_SLACK_MS >= self.copied_ms {
                issued.acknowledged = false;
            }
        }
    }

    /// What this station has told the end of.
    pub(super) fn reported_outcomes(&self, store: HostId) -> Vec<(CommandId, HostId)> {
        let keys = self.outcomes.keys();
        keys.filter(|(by, _, _)| *by == store)
            .map(|(_, id, node)| (*id, *node))
            .collect()
    }

    /// An action began on a node, for all to see.
    pub(super) fn record_execution(&mut self, node: HostId, id: CommandId, at_ms: u64) {
        self.execution_count += 1;
        let name = &self.host_names[node];
        let before = self.executions.entry((id, node)).or_insert(0);
        *before += 1;
        let times = *before;
        let Some(issued) = self.commands.get(&id) else {
            let what = format!("{name} executed {id}, which nobody issued");
            return self.report_violation(Invariant::Unauthorised, what);
        };
        let (late, nature) = (issued.issued_ms + issued.ttl_ms, issued.properties);
        if !issued.authorised {
            let what = format!("{name} executed {id} of somebody who may not order it");
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

    /// A station's store holds an outcome, or its book has told one.
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
            // A copy of the store may not know that the command was sent.
            Outcome::Refused | Outcome::Expired => executed && !copied,
            Outcome::Failed | Outcome::Unknown | Outcome::NoAnswer => false,
        };
        if lie {
            let seen = if executed { "executed" } else { "never executed" };
            let what = format!("{id} on {name} ended as {how}, and was {seen}");
            self.report_violation(Invariant::OutcomeIsTrue, what);
        }
    }

    /// A node heeds an order to stop.
    pub(super) fn record_stop_received(&mut self, node: HostId, order: StopId) {
        if !self.issued_stops.contains(&order) {
            let what = format!(
                "{} was stopped by {} of {}, which nobody who may has ordered",
                self.host_names[node],
                order.number,
                order.issuer.short()
            );
            return self.report_violation(Invariant::Unauthorised, what);
        }
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        // Before it is on the disk a crash may take it, and then it counts once more.
        if truth.applied_stops.insert(order, false) == Some(true) {
            let what = format!("{} heeded stop {} twice", self.host_names[node], order.number);
            self.report_violation(Invariant::StoppedStaysStopped, what);
        }
    }

    /// A node has an order on its disk.
    pub(super) fn record_stop_persisted(&mut self, node: HostId, order: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.applied_stops.insert(order, true);
        }
    }

    /// Whether a node has written down an order of this issuer that is as new.
    pub(super) fn has_persisted_stop(&self, node: HostId, order: StopId) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth.applied_stops.iter().any(|(heeded, promised)| {
                *promised && heeded.issuer == order.issuer && heeded.number >= order.number
            })
        })
    }

    /// Whether a node has heeded an order of this issuer that is as new.
    pub(super) fn has_applied_stop(&self, node: HostId, order: StopId) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth
                .applied_stops
                .keys()
                .any(|heeded| heeded.issuer == order.issuer && heeded.number >= order.number)
        })
    }

    /// A node says that it is under this stop, and will be after a restart.
    pub(super) fn record_latch_reported(&mut self, node: HostId, latch: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node)
            && truth.latch.replace(latch) != Some(latch)
        {
            truth.applied_stops.insert(latch, true);
            self.latch_count += 1;
        }
    }

    /// A node is about to write down that it is released from this stop.
    pub(super) fn record_release_started(&mut self, node: HostId, order: StopId) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.releasing = Some(order);
        }
    }

    /// A node goes again, by an order to release `named`.
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
        // What it had not written down it has never heard.
        truth.applied_stops.retain(|_, promised| *promised);
        if let Some(found) = found {
            truth.applied_stops.insert(found, true);
        }
        let releasing = truth.releasing.take();
        let Some(latch) = truth.latch else { return };
        if found.is_none() && releasing == Some(latch) {
            // It died between writing its release down and saying so.
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
