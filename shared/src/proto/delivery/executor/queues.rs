//! Run queues by priority. Slow ordinary commands never delay flight actions, and nothing delays landing actions.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::CommandId;
use super::{ActionProperties, AfterFile, CommandSource};

/// Commands that run at once.
pub const RUNNING_MAX: usize = LANDING_MAX + SHARED_SLOTS_MAX;
/// Slots that only landing actions use.
pub const LANDING_MAX: usize = 12;
/// Slots of flight actions and ordinary commands together.
const SHARED_SLOTS_MAX: usize = 10;
/// Shared slots that ordinary commands may use: two are left to flight actions.
pub const ORDINARY_MAX: usize = 8;
/// Commands of one source that wait in one queue; one more is refused as busy.
pub const WAITING_MAX: usize = 64;

/// The queues, in the order in which they are served.
///
/// | priority | commands | slots | of them for gateways |
/// |---|---|---|---|
/// | landing | actions that end or interrupt a flight | [`LANDING_MAX`] of their own | 10 |
/// | flight | other flight actions | [`SHARED_SLOTS_MAX`], shared with ordinary commands | 3 |
/// | ordinary | everything else | [`ORDINARY_MAX`] of the shared slots | 6 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Landing,
    Flight,
    Ordinary,
}

impl Priority {
    pub(super) fn of(properties: ActionProperties) -> Self {
        match properties {
            ActionProperties {
                ends_flight: true, ..
            } => Self::Landing,
            ActionProperties { flight: true, .. } => Self::Flight,
            _ => Self::Ordinary,
        }
    }

    /// How many commands of this priority and source run at once, at most.
    pub(super) fn slots(self, source: CommandSource) -> usize {
        match (self, source) {
            (Self::Landing, CommandSource::Peer) => LANDING_MAX,
            (Self::Landing, CommandSource::Gateway) => LANDING_MAX - 2,
            (Self::Flight, CommandSource::Peer) => SHARED_SLOTS_MAX,
            (Self::Flight, CommandSource::Gateway) => 3,
            (Self::Ordinary, CommandSource::Peer) => ORDINARY_MAX,
            (Self::Ordinary, CommandSource::Gateway) => ORDINARY_MAX - 2,
        }
    }
}

/// The waiting commands of each priority, and how many are starting or running.
#[derive(Debug, Default)]
pub(super) struct RunQueues {
    landing: Queue,
    flight: Queue,
    ordinary: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
    /// Starting or running, from peers and from gateways.
    active: usize,
    /// Those of `active` that came from gateways.
    active_gateway: usize,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: CommandId,
    source: CommandSource,
    after: Option<AfterFile>,
}

impl Queue {
    fn waiting_from(&self, source: CommandSource) -> usize {
        let same = self.waiting.iter().filter(|waiting| waiting.source == source);
        same.count()
    }

    /// The oldest command that waits for no file, and whose source has a slot left.
    fn pop_ready(&mut self, priority: Priority) -> Option<CommandId> {
        let gateway_has_slot = self.active_gateway < priority.slots(CommandSource::Gateway);
        let ready = |waiting: &Waiting| {
            waiting.after.is_none() && (waiting.source == CommandSource::Peer || gateway_has_slot)
        };
        let index = self.waiting.iter().position(ready)?;
        self.waiting.remove(index).map(|waiting| waiting.id)
    }
}

impl RunQueues {
    fn queue(&self, priority: Priority) -> &Queue {
        match priority {
            Priority::Landing => &self.landing,
            Priority::Flight => &self.flight,
            Priority::Ordinary => &self.ordinary,
        }
    }

    fn queue_mut(&mut self, priority: Priority) -> &mut Queue {
        match priority {
            Priority::Landing => &mut self.landing,
            Priority::Flight => &mut self.flight,
            Priority::Ordinary => &mut self.ordinary,
        }
    }

    /// How many commands are starting or running.
    pub(super) fn active(&self) -> usize {
        self.landing.active + self.shared_active()
    }

    fn shared_active(&self) -> usize {
        self.flight.active + self.ordinary.active
    }

    /// Whether one more command of this priority and source would exceed [`WAITING_MAX`].
    pub(super) fn is_full(&self, priority: Priority, source: CommandSource) -> bool {
        self.queue(priority).waiting_from(source) >= WAITING_MAX
    }

    pub(super) fn push(
        &mut self,
        id: CommandId,
        priority: Priority,
        source: CommandSource,
        after: Option<AfterFile>,
    ) {
        let waiting = Waiting { id, source, after };
        self.queue_mut(priority).waiting.push_back(waiting);
    }

    /// Takes the next command out of its queue if there is a slot; the caller then [acquires](Self::acquire_slot) it.
    pub(super) fn pop_next(&mut self) -> Option<CommandId> {
        let has_slot = |priority: Priority, active: usize| active < priority.slots(CommandSource::Peer);
        if has_slot(Priority::Landing, self.landing.active)
            && let Some(id) = self.landing.pop_ready(Priority::Landing)
        {
            return Some(id);
        }
        if !has_slot(Priority::Flight, self.shared_active()) {
            return None;
        }
        if let Some(id) = self.flight.pop_ready(Priority::Flight) {
            return Some(id);
        }
        if !has_slot(Priority::Ordinary, self.ordinary.active) {
            return None;
        }
        self.ordinary.pop_ready(Priority::Ordinary)
    }

    pub(super) fn acquire_slot(&mut self, priority: Priority, source: CommandSource) {
        let queue = self.queue_mut(priority);
        queue.active += 1;
        queue.active_gateway += usize::from(source == CommandSource::Gateway);
    }

    pub(super) fn release_slot(&mut self, priority: Priority, source: CommandSource) {
        let queue = self.queue_mut(priority);
        queue.active -= 1;
        queue.active_gateway -= usize::from(source == CommandSource::Gateway);
    }

    /// A file has ended, stored or not; with `failed_at`, it or one before it was not stored, which became known then.
    /// Commands that waited for it are ready. Returns the flight actions which are not, since they arrived by then.
    pub(super) fn on_file_ended(&mut self, file: u64, failed_at: Option<Instant>) -> Vec<CommandId> {
        let is_refused = |waiting: &Waiting| {
            let after = waiting.after.filter(|after| after.file <= file);
            after.is_some_and(|after| failed_at.is_some_and(|at| after.arrived_at <= at))
        };
        let refused: Vec<CommandId> = self
            .flight
            .waiting
            .iter()
            .filter(|waiting| is_refused(waiting))
            .map(|waiting| waiting.id)
            .collect();
        self.flight.waiting.retain(|waiting| !is_refused(waiting));
        for queue in self.queues_mut() {
            for waiting in &mut queue.waiting {
                waiting.after = waiting.after.filter(|after| after.file > file);
            }
        }
        refused
    }

    /// All commands that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = CommandId> {
        let waiting = self.landing.waiting.iter().chain(&self.flight.waiting);
        waiting.chain(&self.ordinary.waiting).map(|waiting| waiting.id)
    }

    pub(super) fn remove(&mut self, id: CommandId) {
        for queue in self.queues_mut() {
            queue.waiting.retain(|waiting| waiting.id != id);
        }
    }

    /// Takes all flight actions out of their queue.
    pub(super) fn drain_flight(&mut self) -> Vec<CommandId> {
        self.flight.waiting.drain(..).map(|waiting| waiting.id).collect()
    }

    /// Takes all commands out of all queues.
    pub(super) fn drain(&mut self) -> Vec<CommandId> {
        let waiting = self
            .queues_mut()
            .into_iter()
            .flat_map(|queue| queue.waiting.drain(..));
        waiting.map(|waiting| waiting.id).collect()
    }

    fn queues_mut(&mut self) -> [&mut Queue; 3] {
        [&mut self.landing, &mut self.flight, &mut self.ordinary]
    }
}
