//! What really happened, and whether any of it should not have.
//!
//! Processes report here what the world could see: an action that began, an outcome that was told, a stop that was
//! promised. Times are global: no process's own clock decides whether something was late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::Latch;

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
pub(super) struct Broken {
    pub(super) invariant: Invariant,
    pub(super) what: String,
}

impl Broken {
    pub(super) fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self {
            invariant,
            what: what.into(),
        }
    }
}

/// How an action behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nature {
    pub(super) idempotent: bool,
    pub(super) while_stopped: bool,
    pub(super) flight: bool,
}

pub(super) struct Issued {
    /// The station whose store has it.
    pub(super) by: HostId,
    pub(super) at_ms: u64,
    pub(super) life_ms: u64,
    pub(super) nature: Nature,
    pub(super) targets: BTreeSet<HostId>,
    pub(super) authorised: bool,
    /// The station has said that it has it.
    pub(super) acknowledged: bool,
    /// A copy of the store that held it open has been used since: what that copy says of it may be out of date.
    pub(super) copied: bool,
}

#[derive(Default)]
struct NodeTruth {
    /// The stop that the node has promised to stay under.
    latch: Option<Latch>,
    /// The stop that it is about to write down the release of.
    releasing: Option<Latch>,
    /// The orders that it has heeded, and whether it has written them down.
    heeded: BTreeMap<Latch, bool>,
}

pub(super) struct Truth {
    pub(super) commands: BTreeMap<CommandId, Issued>,
    effects: BTreeMap<(CommandId, HostId), u32>,
    /// What each station has said, by the number of its store.
    outcomes: BTreeMap<(usize, CommandId, HostId), Outcome>,
    nodes: BTreeMap<HostId, NodeTruth>,
    /// Stops that were really ordered.
    pub(super) stops: BTreeSet<Latch>,
    broken: Option<Broken>,
    names: Vec<String>,
    copied_ms: u64,
    /// Deliveries that ended, by outcome.
    pub(super) ended: BTreeMap<Outcome, u64>,
    pub(super) executed: u64,
    pub(super) latched: u64,
    pub(super) released: u64,
}

impl Truth {
    pub(super) fn new(hosts: &[Host]) -> Self {
        Self {
            commands: BTreeMap::new(),
            effects: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            nodes: (0..hosts.len())
                .map(|host| (host, NodeTruth::default()))
                .collect(),
            stops: BTreeSet::new(),
            broken: None,
            names: hosts.iter().map(|host| host.name.clone()).collect(),
            copied_ms: 0,
            ended: BTreeMap::new(),
            executed: 0,
            latched: 0,
            released: 0,
        }
    }

    /// The first promise that was broken counts.
    pub(super) fn break_promise(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.broken.get_or_insert_with(|| Broken::new(invariant, what));
    }

    pub(super) fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    pub(super) fn issued(&mut self, id: CommandId, issued: Issued) {
        if self.commands.insert(id, issued).is_some() {
            self.break_promise(Invariant::AtMostOnce, format!("{id} names two commands"));
        }
    }

    /// The station has stored it, and says so.
    pub(super) fn acknowledged(&mut self, id: CommandId) {
        if let Some(issued) = self.commands.get_mut(&id) {
            issued.acknowledged = true;
        }
    }

    /// The store of this station has been copied: whatever it holds open may go on in two places.
    pub(super) fn copied(&mut self, by: HostId, now_ms: u64) {
        for issued in self.commands.values_mut() {
            issued.copied |= issued.by == by;
        }
        self.copied_ms = now_ms;
    }

    /// The station is gone for good, and its second has the copy: nobody is left to report what came after it.
    pub(super) fn replaced(&mut self, by: HostId, with: HostId) {
        for issued in self.commands.values_mut().filter(|issued| issued.by == by) {
            issued.by = with;
            if issued.at_ms + COPY_SLACK_MS >= self.copied_ms {
                issued.acknowledged = false;
            }
        }
    }

    /// What this station has told the end of.
    pub(super) fn told(&self, store: HostId) -> Vec<(CommandId, HostId)> {
        let keys = self.outcomes.keys();
        keys.filter(|(by, _, _)| *by == store)
            .map(|(_, id, node)| (*id, *node))
            .collect()
    }

    /// An action began on a node, for all to see.
    pub(super) fn executed(&mut self, node: HostId, id: CommandId, at_ms: u64) {
        self.executed += 1;
        let name = &self.names[node];
        let before = self.effects.entry((id, node)).or_insert(0);
        *before += 1;
        let times = *before;
        let Some(issued) = self.commands.get(&id) else {
            let what = format!("{name} executed {id}, which nobody issued");
            return self.break_promise(Invariant::Unauthorised, what);
        };
        let (late, nature) = (issued.at_ms + issued.life_ms, issued.nature);
        if !issued.authorised {
            let what = format!("{name} executed {id} of somebody who may not order it");
            self.break_promise(Invariant::Unauthorised, what);
        } else if !issued.targets.contains(&node) {
            let what = format!("{name} executed {id}, which was not for it");
            self.break_promise(Invariant::Unauthorised, what);
        } else if times > 1 && !nature.idempotent {
            let what = format!("{name} executed {id} {times} times");
            self.break_promise(Invariant::AtMostOnce, what);
        } else if at_ms > late + ROUNDING_MS {
            let what = format!("{name} executed {id} {} ms after its deadline", at_ms - late);
            self.break_promise(Invariant::NeverLate, what);
        } else if let Some(latch) = self.nodes.get(&node).and_then(|node| node.latch)
            && !nature.while_stopped
        {
            let what = format!("{name} executed {id} while under stop {}", latch.number);
            self.break_promise(Invariant::StoppedStaysStopped, what);
        }
    }

    pub(super) fn has_executed(&self, node: HostId, id: CommandId) -> bool {
        self.effects.contains_key(&(id, node))
    }

    /// A station's store holds an outcome, or its book has told one.
    pub(super) fn ended(&mut self, store: usize, id: CommandId, node: HostId, how: Outcome) {
        let name = &self.names[node];
        if let Some(before) = self.outcomes.insert((store, id, node), how) {
            if before != how {
                let what = format!("{id} on {name} ended as {before}, and then as {how}");
                self.break_promise(Invariant::OneOutcome, what);
            }
            return;
        }
        *self.ended.entry(how).or_default() += 1;
        let executed = self.has_executed(node, id);
        let copied = self.commands.get(&id).is_some_and(|issued| issued.copied);
        let lie = match how {
            Outcome::Done => !executed,
            // A copy of the store may not know that the command was sent.
            Outcome::Refused | Outcome::Expired => executed && !copied,
            Outcome::Failed | Outcome::Unknown | Outcome::NoAnswer => false,
        };
        if lie {
            let seen = if executed { "executed" } else { "never executed" };
            let what = format!("{id} on {name} ended as {how}, and was {seen}");
            self.break_promise(Invariant::OutcomeIsTrue, what);
        }
    }

    /// A node heeds an order to stop.
    pub(super) fn heard_stop(&mut self, node: HostId, order: Latch) {
        if !self.stops.contains(&order) {
            let what = format!(
                "{} was stopped by {} of {}, which nobody who may has ordered",
                self.names[node],
                order.number,
                order.issuer.short()
            );
            return self.break_promise(Invariant::Unauthorised, what);
        }
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        // Before it is on the disk a crash may take it, and then it counts once more.
        if truth.heeded.insert(order, false) == Some(true) {
            let what = format!("{} heeded stop {} twice", self.names[node], order.number);
            self.break_promise(Invariant::StoppedStaysStopped, what);
        }
    }

    /// A node has an order on its disk.
    pub(super) fn wrote_stop(&mut self, node: HostId, order: Latch) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.heeded.insert(order, true);
        }
    }

    /// Whether a node has written down an order of this issuer that is as new.
    pub(super) fn has_promised(&self, node: HostId, order: Latch) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth.heeded.iter().any(|(heeded, promised)| {
                *promised && heeded.issuer == order.issuer && heeded.number >= order.number
            })
        })
    }

    /// Whether a node has heeded an order of this issuer that is as new.
    pub(super) fn has_heeded(&self, node: HostId, order: Latch) -> bool {
        self.nodes.get(&node).is_some_and(|truth| {
            truth
                .heeded
                .keys()
                .any(|heeded| heeded.issuer == order.issuer && heeded.number >= order.number)
        })
    }

    /// A node says that it is under this stop, and will be after a restart.
    pub(super) fn promised_stop(&mut self, node: HostId, latch: Latch) {
        if let Some(truth) = self.nodes.get_mut(&node)
            && truth.latch.replace(latch) != Some(latch)
        {
            truth.heeded.insert(latch, true);
            self.latched += 1;
        }
    }

    /// A node is about to write down that it is released from this stop.
    pub(super) fn releasing(&mut self, node: HostId, order: Latch) {
        if let Some(truth) = self.nodes.get_mut(&node) {
            truth.releasing = Some(order);
        }
    }

    /// A node goes again, by an order to release `named`.
    pub(super) fn released(&mut self, node: HostId, named: u64) {
        self.released += 1;
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        if let Some(latch) = truth.latch
            && latch.number != named
        {
            let what = format!(
                "{} is under stop {}, and was released by an order to release {named}",
                self.names[node], latch.number
            );
            return self.break_promise(Invariant::StoppedStaysStopped, what);
        }
        (truth.latch, truth.releasing) = (None, None);
    }

    /// A node that has just started finds this stop in its journal.
    pub(super) fn restored(&mut self, node: HostId, found: Option<Latch>) {
        let Some(truth) = self.nodes.get_mut(&node) else {
            return;
        };
        // What it had not written down it has never heard.
        truth.heeded.retain(|_, promised| *promised);
        if let Some(found) = found {
            truth.heeded.insert(found, true);
        }
        let releasing = truth.releasing.take();
        let Some(latch) = truth.latch else { return };
        if found.is_none() && releasing == Some(latch) {
            // It died between writing its release down and saying so.
            truth.latch = None;
        } else if found.is_none() {
            let what = format!("{} forgot stop {} over a restart", self.names[node], latch.number);
            self.break_promise(Invariant::StoppedStaysStopped, what);
        }
    }
}
