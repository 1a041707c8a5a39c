//! What the server asks for, in lines, so that nothing slow keeps an action of flight from being read, or from starting.
//! The node has ten places for what ends no flight, eight of them for what is not of flight, and twelve for what ends
//! one; of each this door leaves some to others.
//!
//! | line | what | at once |
//! |---|---|---|
//! | ending | what ends a flight, or holds it up: [`ENDS_FLIGHT`]; nobody waits in it | 2 of each name |
//! | flight | other actions of that class, and those by whose names clever-show moves a drone | 3 |
//! | act | everything else that does something, in its order | 6 |
//! | fetch | files that the server asks for | 1 |
//! | question | what only looks; it takes no place of the node | 48 |
//!
//! In each, 64 wait; one more is not done, and the log says so: the protocol has no word for it. What ends a flight waits
//! for nothing that begins one, and nothing that came before it begins one after it: what still waits is not done. But what
//! has not `class = "flight"`, and waits for one of the node's places already, may still begin, within 2 s of its coming.

use std::collections::VecDeque;

use swarm_shared::proto::clever_show::FLIGHT;
use swarm_shared::proto::delivery::executor::Traits;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::task::{Id, JoinError, JoinSet};

use super::task::{AtWork, Job};
use crate::actions::ENDS_FLIGHT;

/// Most that wait in one line.
pub(super) const WAITING_MAX: usize = 64;
/// Most of one name that ends a flight: the others by which one can be ended keep their places.
const AGAIN_MAX: usize = 2;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends a flight, or holds it up.
    Ending,
    Flight,
    Act,
    Fetch,
    Question,
    /// A file that is pushed: in no line.
    File,
}

impl Kind {
    /// Of an action or a question of this name, which is like this.
    pub(super) fn of(name: &str, arguments: &Arguments, traits: Traits) -> Self {
        match classify(name, arguments) {
            _ if traits.ends_flight => Self::Ending,
            // By these names a server moves it, whatever class the owner has given them.
            _ if traits.flight || FLIGHT.contains(&name) => Self::Flight,
            ActionClass::Read => Self::Question,
            ActionClass::Act | ActionClass::Execute => Self::Act,
        }
    }

    /// How many of it are at work at once.
    fn places(self) -> usize {
        match self {
            Self::Ending => AGAIN_MAX * ENDS_FLIGHT.len(),
            Self::Flight => 3,
            Self::Act => 6,
            Self::Question => 48,
            Self::Fetch | Self::File => 1,
        }
    }
}

/// How one has ended: why it was not done, if it was not. The log knows.
pub(super) type Told = Result<(), String>;

/// One line, and what of it is at work.
#[derive(Debug)]
pub(super) struct Line {
    places: usize,
    waiting: VecDeque<Job>,
    at_work: JoinSet<Told>,
    known: Vec<(Id, AtWork)>,
}

impl Line {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            places: kind.places(),
            waiting: VecDeque::new(),
            at_work: JoinSet::new(),
            known: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What all of it takes, at work or waiting, in bytes.
    pub(super) fn bytes(&mut self) -> usize {
        self.clear_away();
        let waiting = self.waiting.iter().map(Job::bytes);
        let at_work = self.known.iter().map(|(_, at_work)| at_work.bytes);
        waiting.sum::<usize>() + at_work.sum::<usize>()
    }

    pub(super) fn join(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Why one more of this name may not join, for there are enough of it.
    pub(super) fn is_again(&mut self, name: &str) -> Option<String> {
        self.clear_away();
        let waiting = self.waiting.iter().filter(|job| job.name == name);
        let at_work = self.known.iter().filter(|(_, at_work)| at_work.name == name);
        (waiting.count() + at_work.count() >= AGAIN_MAX)
            .then(|| format!("busy: {AGAIN_MAX} of this name are at work; nothing more was done"))
    }

    /// Takes out all that wait.
    pub(super) fn clear(&mut self) -> VecDeque<Job> {
        std::mem::take(&mut self.waiting)
    }

    /// Whoever has its turn, if there is a place.
    pub(super) fn next(&mut self) -> Option<Job> {
        self.clear_away();
        if self.at_work.len() >= self.places {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Gives a place.
    pub(super) fn spawn(&mut self, at_work: AtWork, work: impl Future<Output = Told> + Send + 'static) {
        let id = self.at_work.spawn(work).id();
        self.known.push((id, at_work));
    }

    /// Waits until there is a place for somebody who waits.
    pub(super) async fn has_room(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        match self.at_work.join_next_with_id().await {
            Some(ended) => self.forget(ended),
            None => std::future::pending().await,
        }
    }

    fn clear_away(&mut self) {
        while let Some(ended) = self.at_work.try_join_next_with_id() {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(Id, Told), JoinError>) {
        let id = ended.map_or_else(|fell_over| fell_over.id(), |(id, _)| id);
        self.known.retain(|(known, _)| *known != id);
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::proto::delivery::executor::{ENDING_MAX, ORDINARY_MAX, RUNNING_MAX};

    use super::*;

    #[test]
    fn what_ends_a_flight_goes_past_all_else() {
        let none = Arguments::default();
        let (plain, flight) = (
            Traits::default(),
            Traits {
                flight: true,
                ..Traits::default()
            },
        );
        let ending = |traits| Traits {
            ends_flight: true,
            ..traits
        };
        for (name, traits, kind) in [
            ("led", plain, Kind::Act),
            ("execute", plain, Kind::Act),
            ("dance", flight, Kind::Flight),
            ("land", ending(plain), Kind::Ending),
            ("pause", ending(flight), Kind::Ending),
            // This node cannot land, so it ends nothing by that.
            ("land", plain, Kind::Flight),
            ("telemetry", plain, Kind::Question),
            ("id", plain, Kind::Question),
            ("takeoff", plain, Kind::Flight),
            ("resume", plain, Kind::Flight),
        ] {
            assert_eq!(Kind::of(name, &none, traits), kind, "{name}");
        }
        assert!(ENDS_FLIGHT.iter().all(|name| FLIGHT.contains(name)));
    }

    #[test]
    fn some_of_the_nodes_places_are_left_to_others() {
        assert!(Kind::Ending.places() < ENDING_MAX);
        assert!(Kind::Act.places() < ORDINARY_MAX);
        assert!(Kind::Act.places() + Kind::Flight.places() < RUNNING_MAX - ENDING_MAX);
    }
}
