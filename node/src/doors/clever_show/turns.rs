//! Whose turn it is: three [lines](super::lines), and the files that a server pushes.
//!
//! | a file is pushed | what comes after it |
//! |---|---|
//! | none is being put in its place | joins its line |
//! | one is | waits behind it, in its order; but what ends a flight joins its line at once |
//!
//! So a `start` has the file that was pushed before it, and a `land` waits for no memory card. What begins a flight and
//! still waits, behind a file or in its line, is not done once something that ends one has come: it would begin after it.
//!
//! Invariants: of each kind [`WAITING_MAX`] wait at most, behind a file and in the line together, and files of so many
//! bytes as the owner allows for one, or one more; then nothing is read until a file is in its place.

use std::collections::VecDeque;

use swarm_shared::net::clever_show::{Event, Heard};
use tokio::task::JoinSet;

use super::lines::{Kind, Line, WAITING_MAX, name_of, take_flights};

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    flights: Line,
    acts: Line,
    questions: Line,
    /// The file that is being put in its place, if there is one.
    file: JoinSet<()>,
    behind: VecDeque<(Kind, Heard)>,
    /// Bytes of files that may wait.
    bytes_max: usize,
}

/// What is not done, and why.
pub(super) type NotDone = (Heard, String);

impl Turns {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            flights: Line::new(Kind::Ending),
            acts: Line::new(Kind::Act),
            questions: Line::new(Kind::Question),
            file: JoinSet::new(),
            behind: VecDeque::new(),
            bytes_max,
        }
    }

    /// Whether more may be heard.
    pub(super) fn has_room(&self) -> bool {
        let bytes = self.behind.iter().map(|(_, heard)| {
            if let Event::File { bytes, .. } = &heard.event {
                bytes.len()
            } else {
                0
            }
        });
        self.waiting_behind(Kind::File) < WAITING_MAX && bytes.sum::<usize>() < self.bytes_max
    }

    /// Lets somebody in. Tells what is not done because of that.
    pub(super) fn hear(&mut self, kind: Kind, heard: Heard) -> Vec<NotDone> {
        let mut not_done = Vec::new();
        if kind == Kind::Ending {
            let why = format!(
                "{:?} came before it could begin; it was not done",
                name_of(&heard)
            );
            let mut overtaken = self.flights.without_flights();
            overtaken.extend(take_flights(&mut self.behind));
            not_done.extend(overtaken.into_iter().map(|heard| (heard, why.clone())));
            if let Some(busy) = self.flights.is_again(&heard) {
                not_done.push((heard, busy));
                return not_done;
            }
        }
        let behind = self.waiting_behind(kind);
        let at_once = kind == Kind::Ending || self.behind.is_empty() && self.file.is_empty();
        match self.line(kind) {
            None => self.behind.push_back((kind, heard)),
            Some(line) if line.waiting() + behind >= WAITING_MAX => {
                let why = "busy: too much waits; nothing was done".to_owned();
                not_done.push((heard, why));
            }
            Some(line) if at_once => line.join(kind, heard),
            Some(_) => self.behind.push_back((kind, heard)),
        }
        not_done
    }

    /// Whoever has its turn, if there is a place; it is for the caller to [give](Self::spawn) it what is to be done.
    pub(super) fn next(&mut self) -> Option<(Kind, Heard)> {
        while self.file.try_join_next().is_some() {}
        while self.file.is_empty()
            && let Some((kind, heard)) = self.behind.pop_front()
        {
            match self.line(kind) {
                None => return Some((kind, heard)),
                Some(line) => line.join(kind, heard),
            }
        }
        let flight = self.flights.next();
        flight
            .or_else(|| self.acts.next())
            .or_else(|| self.questions.next())
    }

    /// Has this done for one that had its turn.
    pub(super) fn spawn(
        &mut self,
        kind: Kind,
        name: String,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        match self.line(kind) {
            Some(line) => line.spawn(kind, name, work),
            None => {
                self.file.spawn(work);
            }
        }
    }

    /// Waits until somebody else may have its turn, without being heard.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            biased;
            () = self.flights.has_room() => {}
            Some(_in_place) = self.file.join_next() => {}
            () = self.acts.has_room() => {}
            () = self.questions.has_room() => {}
        }
    }

    fn waiting_behind(&self, kind: Kind) -> usize {
        self.behind.iter().filter(|(behind, _)| *behind == kind).count()
    }

    fn line(&mut self, kind: Kind) -> Option<&mut Line> {
        match kind {
            Kind::Ending | Kind::Flight => Some(&mut self.flights),
            Kind::Act => Some(&mut self.acts),
            Kind::Question => Some(&mut self.questions),
            Kind::File => None,
        }
    }
}
