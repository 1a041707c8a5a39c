//! Who waits for a place, and how many have one. Nothing slow is to hold up an action of flight, and nothing at all one
//! that ends a flight: each has a line of its own, and they go first.

use std::collections::VecDeque;

use super::super::CommandId;
use super::ActionProperties;

/// Commands that run at once.
pub const RUNNING_MAX: usize = LANDING_MAX + SHARED_SLOTS_MAX;
/// Of them, those that end a flight: they have these places for themselves, and no others.
pub const LANDING_MAX: usize = 12;
/// Of them, those that end no flight.
const SHARED_SLOTS_MAX: usize = 10;
/// Of those, the ones that are not of flight.
pub const ORDINARY_MAX: usize = 8;
/// Commands that wait for a place at once, in each line; one more is refused as busy.
pub const WAITING_MAX: usize = 64;

/// The lines, first come those that go first.
///
/// | line | who | places |
/// |---|---|---|
/// | ending | what ends a flight, or holds it up | [`ENDING_MAX`], for nothing else |
/// | flight | other actions of flight | [`SHARED_SLOTS_MAX`], with the next |
/// | ordinary | all else | [`ORDINARY_MAX`] of those |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Landing,
    Flight,
    Ordinary,
}

impl Priority {
    pub(super) fn of(traits: ActionProperties) -> Self {
        match traits {
            ActionProperties {
                ends_flight: true, ..
            } => Self::Landing,
            ActionProperties { flight: true, .. } => Self::Flight,
            _ => Self::Ordinary,
        }
    }

    /// How many of it run at once, at most.
    pub(super) fn slots(self) -> usize {
        match self {
            Self::Landing => LANDING_MAX,
            Self::Flight => SHARED_SLOTS_MAX,
            Self::Ordinary => ORDINARY_MAX,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RunQueues {
    landing: Queue,
    flight: Queue,
    ordinary: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of their arrival.
    waiting: VecDeque<CommandId>,
    /// How many are starting or running.
    active: usize,
}

impl RunQueues {
    fn queue_mut(&mut self, line: Priority) -> &mut Queue {
        match line {
            Priority::Landing => &mut self.landing,
            Priority::Flight => &mut self.flight,
            Priority::Ordinary => &mut self.ordinary,
        }
    }

    /// How many have a place.
    pub(super) fn active(&self) -> usize {
        self.landing.active + self.shared_active()
    }

    fn shared_active(&self) -> usize {
        self.flight.active + self.ordinary.active
    }

    pub(super) fn is_full(&self, line: Priority) -> bool {
        let queue = match line {
            Priority::Landing => &self.landing,
            Priority::Flight => &self.flight,
            Priority::Ordinary => &self.ordinary,
        };
        queue.waiting.len() >= WAITING_MAX
    }

    pub(super) fn push(&mut self, id: CommandId, line: Priority) {
        self.queue_mut(line).waiting.push_back(id);
    }

    /// Whose turn it is, if there is a place; it leaves its line, and has the place once it [takes](Self::take) it.
    pub(super) fn pop_next(&mut self) -> Option<CommandId> {
        let free = |line: Priority, taken: usize| taken < line.slots();
        if free(Priority::Landing, self.landing.active)
            && let Some(id) = self.landing.waiting.pop_front()
        {
            return Some(id);
        }
        if !free(Priority::Flight, self.shared_active()) {
            return None;
        }
        if let Some(id) = self.flight.waiting.pop_front() {
            return Some(id);
        }
        if !free(Priority::Ordinary, self.ordinary.active) {
            return None;
        }
        self.ordinary.waiting.pop_front()
    }

    pub(super) fn acquire_slot(&mut self, line: Priority) {
        self.queue_mut(line).active += 1;
    }

    pub(super) fn release_slot(&mut self, line: Priority) {
        self.queue_mut(line).active -= 1;
    }

    /// All that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = CommandId> {
        let waiting = self.landing.waiting.iter().chain(&self.flight.waiting);
        waiting.chain(&self.ordinary.waiting).copied()
    }

    pub(super) fn remove(&mut self, id: CommandId) {
        for queue in self.queues_mut() {
            queue.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// No action of flight waits any more; those that did.
    pub(super) fn drain_flight(&mut self) -> Vec<CommandId> {
        self.flight.waiting.drain(..).collect()
    }

    /// Nobody waits any more; those who did.
    pub(super) fn drain(&mut self) -> Vec<CommandId> {
        self.queues_mut()
            .into_iter()
            .flat_map(|queue| queue.waiting.drain(..))
            .collect()
    }

    fn queues_mut(&mut self) -> [&mut Queue; 3] {
        [&mut self.landing, &mut self.flight, &mut self.ordinary]
    }
}
