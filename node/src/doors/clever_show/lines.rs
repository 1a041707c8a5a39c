//! What the server asks for, in three lines, so that nothing slow keeps an action of flight from being read, or from
//! starting: the node has ten places, eight of them for what is not of flight, and this door leaves some of each.
//!
//! | line | what | at once |
//! |---|---|---|
//! | flight | what ends a flight, or holds it up: [`ENDING`] | 8 with the next, 2 of one name |
//! | flight | other actions of that class, and those by whose names clever-show moves a drone | 3 |
//! | act | everything else that does something, in its order | 6 |
//! | question | what only looks; it takes no place of the node | 48 |
//!
//! In each, 64 wait; one more is not done, and the log says so: the protocol has no word for it. What ends a flight waits
//! for nothing that begins one, and nothing that came before it begins one after it: what still waits is not done.

use std::collections::VecDeque;

use swarm_shared::net::clever_show::{Event, Heard};
use swarm_shared::proto::clever_show::FLIGHT;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::task::{Id, JoinError, JoinSet};

/// Most that wait in one line.
pub(super) const WAITING_MAX: usize = 64;
/// Most of one name that ends a flight, at work or waiting: the others by which one can be ended keep their places.
const AGAIN_MAX: usize = 2;
/// Those of [`FLIGHT`] after which a drone does not go on with what it did.
const ENDING: [&str; 5] = ["pause", "stop", "land", "emergency_land", "disarm"];

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends a flight, or holds it up.
    Ending,
    Flight,
    Act,
    Question,
    /// A file that is pushed: in no line.
    File,
}

impl Kind {
    /// Of what is asked for by this name; `flight`: that is the class of it.
    pub(super) fn of(name: &str, arguments: &Arguments, flight: bool) -> Self {
        match classify(name, arguments) {
            // By these names a server moves it, or stops it, whatever class the owner has given them.
            _ if ENDING.contains(&name) => Self::Ending,
            _ if flight || FLIGHT.contains(&name) => Self::Flight,
            ActionClass::Read => Self::Question,
            ActionClass::Act | ActionClass::Execute => Self::Act,
        }
    }

    /// How many of it are at work at once.
    fn places(self) -> usize {
        match self {
            Self::Ending => 8,
            // With all acts at work they leave one of the node's ten places to what ends a flight.
            Self::Flight => 3,
            Self::Act => 6,
            Self::Question => 48,
            Self::File => 1,
        }
    }
}

/// What is asked for, and its name.
pub(super) fn asked_for(event: &Event) -> Option<(&'static str, &str, &Arguments)> {
    match event {
        Event::Action { action, arguments } => Some(("action", action, arguments)),
        Event::Asked { value, arguments, .. } => Some(("request", value, arguments)),
        Event::File { .. }
        | Event::Unreadable(_)
        | Event::TooLong { .. }
        | Event::Stray { .. }
        | Event::Answered { .. }
        | Event::Unanswered { .. } => None,
    }
}

pub(super) fn name_of(heard: &Heard) -> &str {
    asked_for(&heard.event).map_or("", |(_, name, _)| name)
}

/// One line, and what of it is at work.
#[derive(Debug)]
pub(super) struct Line {
    places: usize,
    waiting: VecDeque<(Kind, Heard)>,
    at_work: JoinSet<()>,
    /// Of each of these, what it is.
    known: Vec<(Id, Kind, String)>,
}

impl Line {
    /// With the places of this kind, which is the widest in it.
    pub(super) fn new(widest: Kind) -> Self {
        Self {
            places: widest.places(),
            waiting: VecDeque::new(),
            at_work: JoinSet::new(),
            known: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn join(&mut self, kind: Kind, heard: Heard) {
        self.waiting.push_back((kind, heard));
    }

    /// Why this one may not join, for there are enough of its name.
    pub(super) fn is_again(&mut self, heard: &Heard) -> Option<String> {
        self.clear_away();
        let name = name_of(heard);
        let waiting = self.waiting.iter().filter(|(_, heard)| name_of(heard) == name);
        let at_work = self.known.iter().filter(|(_, _, known)| known == name);
        (waiting.count() + at_work.count() >= AGAIN_MAX)
            .then(|| format!("busy: {AGAIN_MAX} of this name are at work; nothing more was done"))
    }

    /// Takes out what begins a flight.
    pub(super) fn without_flights(&mut self) -> Vec<Heard> {
        take_flights(&mut self.waiting)
    }

    /// Whoever has its turn, if there is a place.
    pub(super) fn next(&mut self) -> Option<(Kind, Heard)> {
        self.clear_away();
        let (kind, _) = *self.waiting.front().as_ref()?;
        let of_it = self.known.iter().filter(|(_, known, _)| known == kind).count();
        if self.at_work.len() >= self.places || of_it >= kind.places() {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Gives a place.
    pub(super) fn spawn(
        &mut self,
        kind: Kind,
        name: String,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.at_work.spawn(work).id();
        self.known.push((id, kind, name));
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

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|fell_over| fell_over.id(), |(id, ())| id);
        self.known.retain(|(known, _, _)| *known != id);
    }
}

/// Takes out what begins a flight.
pub(super) fn take_flights(waiting: &mut VecDeque<(Kind, Heard)>) -> Vec<Heard> {
    let (flights, others) = std::mem::take(waiting)
        .into_iter()
        .partition::<VecDeque<_>, _>(|(kind, _)| *kind == Kind::Flight);
    *waiting = others;
    flights.into_iter().map(|(_, heard)| heard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_flight_goes_past_all_else() {
        let none = Arguments::default();
        for (name, flight, kind) in [
            ("led", false, Kind::Act),
            ("execute", false, Kind::Act),
            ("dance", true, Kind::Flight),
            ("land", false, Kind::Ending),
            ("pause", true, Kind::Ending),
            ("telemetry", false, Kind::Question),
            ("id", false, Kind::Question),
            ("takeoff", false, Kind::Flight),
            ("resume", false, Kind::Flight),
        ] {
            assert_eq!(Kind::of(name, &none, flight), kind, "{name}");
        }
        assert!(ENDING.iter().all(|name| FLIGHT.contains(name)));
    }
}
