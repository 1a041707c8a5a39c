//! Who waits for a place, and how many have one. Nothing slow is to hold up an action of flight, and nothing at all one
//! that ends a flight: each has a line of its own, and they go first.

use std::collections::VecDeque;

use super::super::CommandId;
use super::Traits;

/// Commands that run at once.
pub const RUNNING_MAX: usize = ENDING_MAX + OTHERS_MAX;
/// Of them, those that end a flight: they have these places for themselves, and no others.
pub const ENDING_MAX: usize = 12;
/// Of them, those that end no flight.
const OTHERS_MAX: usize = 10;
/// Of those, the ones that are not of flight.
pub const ORDINARY_MAX: usize = 8;
/// Commands that wait for a place at once, in each line; one more is refused as busy.
pub const WAITING_MAX: usize = 64;

/// The lines, first come those that go first.
///
/// | line | who | places |
/// |---|---|---|
/// | ending | what ends a flight, or holds it up | [`ENDING_MAX`], for nothing else |
/// | flight | other actions of flight | [`OTHERS_MAX`], with the next |
/// | ordinary | all else | [`ORDINARY_MAX`] of those |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Ending,
    Flight,
    Ordinary,
}

impl Line {
    pub(super) fn of(traits: Traits) -> Self {
        match traits {
            Traits {
                ends_flight: true, ..
            } => Self::Ending,
            Traits { flight: true, .. } => Self::Flight,
            _ => Self::Ordinary,
        }
    }

    /// How many of it run at once, at most.
    pub(super) fn places(self) -> usize {
        match self {
            Self::Ending => ENDING_MAX,
            Self::Flight => OTHERS_MAX,
            Self::Ordinary => ORDINARY_MAX,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    ending: Queue,
    flight: Queue,
    ordinary: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of their arrival.
    waiting: VecDeque<CommandId>,
    /// How many are starting or running.
    placed: usize,
}

impl Lines {
    fn at(&mut self, line: Line) -> &mut Queue {
        match line {
            Line::Ending => &mut self.ending,
            Line::Flight => &mut self.flight,
            Line::Ordinary => &mut self.ordinary,
        }
    }

    /// How many have a place.
    pub(super) fn placed(&self) -> usize {
        self.ending.placed + self.others()
    }

    fn others(&self) -> usize {
        self.flight.placed + self.ordinary.placed
    }

    pub(super) fn is_full(&self, line: Line) -> bool {
        let queue = match line {
            Line::Ending => &self.ending,
            Line::Flight => &self.flight,
            Line::Ordinary => &self.ordinary,
        };
        queue.waiting.len() >= WAITING_MAX
    }

    pub(super) fn join(&mut self, id: CommandId, line: Line) {
        self.at(line).waiting.push_back(id);
    }

    /// Whose turn it is, if there is a place; it leaves its line, and has the place once it [takes](Self::take) it.
    pub(super) fn next(&mut self) -> Option<CommandId> {
        let free = |line: Line, taken: usize| taken < line.places();
        if free(Line::Ending, self.ending.placed)
            && let Some(id) = self.ending.waiting.pop_front()
        {
            return Some(id);
        }
        if !free(Line::Flight, self.others()) {
            return None;
        }
        if let Some(id) = self.flight.waiting.pop_front() {
            return Some(id);
        }
        if !free(Line::Ordinary, self.ordinary.placed) {
            return None;
        }
        self.ordinary.waiting.pop_front()
    }

    pub(super) fn take(&mut self, line: Line) {
        self.at(line).placed += 1;
    }

    pub(super) fn give_back(&mut self, line: Line) {
        self.at(line).placed -= 1;
    }

    /// All that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = CommandId> {
        let waiting = self.ending.waiting.iter().chain(&self.flight.waiting);
        waiting.chain(&self.ordinary.waiting).copied()
    }

    pub(super) fn leave(&mut self, id: CommandId) {
        for queue in self.all() {
            queue.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// No action of flight waits any more; those that did.
    pub(super) fn clear_flights(&mut self) -> Vec<CommandId> {
        self.flight.waiting.drain(..).collect()
    }

    /// Nobody waits any more; those who did.
    pub(super) fn clear(&mut self) -> Vec<CommandId> {
        self.all()
            .into_iter()
            .flat_map(|queue| queue.waiting.drain(..))
            .collect()
    }

    fn all(&mut self) -> [&mut Queue; 3] {
        [&mut self.ending, &mut self.flight, &mut self.ordinary]
    }
}
