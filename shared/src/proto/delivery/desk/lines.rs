//! Who waits for a place, and how many have one. Nothing slow is to hold up an action of flight: it has a line of its
//! own, which goes first, and two places that nothing else takes.

use std::collections::VecDeque;

use super::super::CommandId;
use super::{ORDINARY_MAX, RUNNING_MAX, WAITING_MAX};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    flight: Line,
    ordinary: Line,
}

#[derive(Debug, Default)]
struct Line {
    /// In the order of their arrival.
    waiting: VecDeque<CommandId>,
    /// How many are starting or running.
    placed: usize,
}

impl Lines {
    fn of(&mut self, flight: bool) -> &mut Line {
        if flight {
            &mut self.flight
        } else {
            &mut self.ordinary
        }
    }

    /// How many have a place.
    pub(super) fn placed(&self) -> usize {
        self.flight.placed + self.ordinary.placed
    }

    pub(super) fn is_full(&self, flight: bool) -> bool {
        let line = if flight { &self.flight } else { &self.ordinary };
        line.waiting.len() >= WAITING_MAX
    }

    pub(super) fn join(&mut self, id: CommandId, flight: bool) {
        self.of(flight).waiting.push_back(id);
    }

    /// Whose turn it is, if there is a place; it leaves its line, and has the place once it [takes](Self::take) it.
    pub(super) fn next(&mut self) -> Option<CommandId> {
        if self.placed() >= RUNNING_MAX {
            return None;
        }
        if let Some(id) = self.flight.waiting.pop_front() {
            return Some(id);
        }
        if self.ordinary.placed >= ORDINARY_MAX {
            return None;
        }
        self.ordinary.waiting.pop_front()
    }

    pub(super) fn take(&mut self, flight: bool) {
        self.of(flight).placed += 1;
    }

    pub(super) fn give_back(&mut self, flight: bool) {
        self.of(flight).placed -= 1;
    }

    /// All that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = CommandId> {
        self.flight.waiting.iter().chain(&self.ordinary.waiting).copied()
    }

    pub(super) fn leave(&mut self, id: CommandId) {
        for line in [&mut self.flight, &mut self.ordinary] {
            line.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// Nobody waits any more; those who did.
    pub(super) fn clear(&mut self) -> Vec<CommandId> {
        let all = self.waiting().collect();
        self.flight.waiting.clear();
        self.ordinary.waiting.clear();
        all
    }
}
