//! What the server asks for, in three lines, so that nothing slow keeps an action of flight from being read, or from
//! starting: the desk has eight places for what is not of flight, and this door takes six of them for what is not urgent.
//!
//! | line | what | places |
//! |---|---|---|
//! | flight | actions of that class, and those by whose names clever-show moves or stops a drone | 8 |
//! | act | everything else that does something, in its order | 6 |
//! | question | what only looks; it takes no place of the desk | 48 |
//!
//! What moves a drone is in the line of what stops it: a landing overtakes no take-off, which would come after it then.
//! In each, 64 wait; one more is not done, and the log says so: the protocol has no word for it.

use std::collections::VecDeque;

use swarm_shared::net::clever_show::Heard;
use swarm_shared::proto::clever_show::FLIGHT;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::task::JoinSet;

/// Most that wait in one line.
const WAITING_MAX: usize = 64;

/// Which line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flight,
    Act,
    Question,
}

impl Kind {
    /// Of what is asked for by this name; `flight`: that is the class of it.
    pub(super) fn of(name: &str, arguments: &Arguments, flight: bool) -> Self {
        match classify(name, arguments) {
            // By these names a server moves it, or stops it, whatever class the owner has given them.
            _ if flight || FLIGHT.contains(&name) => Self::Flight,
            ActionClass::Read => Self::Question,
            ActionClass::Act | ActionClass::Execute => Self::Act,
        }
    }

    fn places(self) -> usize {
        match self {
            Self::Flight => 8,
            Self::Act => 6,
            Self::Question => 48,
        }
    }
}

/// One line, and what of it is at work.
#[derive(Debug)]
pub(super) struct Line {
    kind: Kind,
    waiting: VecDeque<Heard>,
    pub(super) at_work: JoinSet<()>,
}

impl Line {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            waiting: VecDeque::new(),
            at_work: JoinSet::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    pub(super) fn join(&mut self, heard: Heard) {
        self.waiting.push_back(heard);
    }

    /// Whoever has its turn, if there is a place.
    pub(super) fn next(&mut self) -> Option<Heard> {
        while self.at_work.try_join_next().is_some() {}
        if self.at_work.len() >= self.kind.places() {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Waits until there is a place for somebody who waits.
    pub(super) async fn has_room(&mut self) {
        if self.waiting.is_empty() || self.at_work.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_flight_goes_past_all_else_but_what_begins_one() {
        let none = Arguments::default();
        for (name, flight, kind) in [
            ("led", false, Kind::Act),
            ("execute", false, Kind::Act),
            ("dance", true, Kind::Flight),
            ("land", false, Kind::Flight),
            ("telemetry", false, Kind::Question),
            ("id", false, Kind::Question),
            ("takeoff", false, Kind::Flight),
        ] {
            assert_eq!(Kind::of(name, &none, flight), kind, "{name}");
        }
    }
}
