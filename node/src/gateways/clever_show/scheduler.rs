//! Whose turn it is: the [lines](super::lines), and the files that a server pushes.
//!
//! | a file is pushed | what comes after it |
//! |---|---|
//! | none is being put in its place | joins its line |
//! | one is | waits behind it, in its order; but what ends a flight joins its line at once |
//! | one could not be kept | joins its line; but what begins a flight, and came before that was known, is not done |
//!
//! So a `start` has the file that was pushed before it, or is not done, and a `land` waits for no memory card. Which file a
//! flight needs is not known: without any of them it is not begun, unless the same file was pushed once more in between,
//! and could be kept then. A message that was too long to be read counts as such a file. Whoever says `start` after the
//! log has told of it means it, and has what is there.
//!
//! What begins a flight and still waits, behind a file or in its line, is not done once something that ends one has come:
//! it would begin after it. The node's desk does the same with what waits there for a place.
//!
//! Invariants: of each kind [`WAITING_MAX`] wait at most, behind a file and in the line together; what is at work and
//! waits takes [`BYTES_MAX`] at most, and what ends a flight besides; and files of so many bytes wait as the owner allows
//! for one, or one more: then nothing is read until a file is in its place.

use std::collections::VecDeque;
use std::time::Instant;

use swarm_shared::net::clock;
use tokio::task::{JoinError, JoinSet};

use super::queue::{Kind, Line, Told, WAITING_MAX};
use super::task::{AtWork, Job};

/// What all that is at work or waits may take, in bytes, files apart.
pub(super) const BYTES_MAX: usize = 8 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    endings: Line,
    flights: Line,
    acts: Line,
    fetches: Line,
    questions: Line,
    /// The file that is being put in its place, if there is one.
    file: JoinSet<Told>,
    path: String,
    behind: VecDeque<Job>,
    /// Those that could not be kept, and have not come again.
    failed: VecDeque<Failed>,
    /// Bytes of files that may wait.
    bytes_max: usize,
    not_done: Vec<NotDone>,
}

#[derive(Debug)]
struct Failed {
    path: String,
    why: String,
    /// Since then it is known.
    at: Instant,
}

/// What is not done, and why.
pub(super) type NotDone = (Job, String);

impl Turns {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            endings: Line::new(Kind::Ending),
            flights: Line::new(Kind::Flight),
            acts: Line::new(Kind::Act),
            fetches: Line::new(Kind::Fetch),
            questions: Line::new(Kind::Question),
            file: JoinSet::new(),
            path: String::new(),
            behind: VecDeque::new(),
            failed: VecDeque::new(),
            bytes_max,
            not_done: Vec::new(),
        }
    }

    /// Whether more may be heard.
    pub(super) fn has_room(&self) -> bool {
        let bytes: usize = self.behind.iter().map(Job::file_bytes).sum();
        self.waiting_behind(Kind::File) < WAITING_MAX && bytes < self.bytes_max
    }

    /// Lets somebody in.
    pub(super) fn hear(&mut self, job: Job) {
        if job.kind == Kind::Ending {
            let why = format!("{:?} came before it could begin; it was not done", job.name);
            let mut overtaken = self.flights.clear();
            let behind = std::mem::take(&mut self.behind);
            for waiting in behind {
                match waiting.kind {
                    Kind::Flight => overtaken.push_back(waiting),
                    Kind::Ending | Kind::Act | Kind::Fetch | Kind::Question | Kind::File => {
                        self.behind.push_back(waiting);
                    }
                }
            }
            self.not_done
                .extend(overtaken.into_iter().map(|flight| (flight, why.clone())));
            match self.endings.is_again(&job.name) {
                Some(busy) => self.not_done.push((job, busy)),
                None => self.endings.join(job),
            }
            return;
        }
        let (bytes, behind) = (self.bytes() + job.bytes(), self.waiting_behind(job.kind));
        let at_once = self.behind.is_empty() && self.file.is_empty();
        match self.line(job.kind) {
            None => self.behind.push_back(job),
            Some(line) if line.waiting() + behind >= WAITING_MAX || bytes > BYTES_MAX => {
                let why = "busy: too much waits; nothing was done".to_owned();
                self.not_done.push((job, why));
            }
            Some(_) if at_once => self.join(job),
            Some(_) => self.behind.push_back(job),
        }
    }

    /// Whoever has its turn, if there is a place; it is for the caller to [give](Self::spawn) it what is to be done.
    pub(super) fn next(&mut self) -> Option<Job> {
        while let Some(ended) = self.file.try_join_next() {
            self.put(ended);
        }
        while self.file.is_empty()
            && let Some(job) = self.behind.pop_front()
        {
            if job.kind == Kind::File {
                self.failed.retain(|failed| failed.path != job.name);
                return Some(job);
            }
            self.join(job);
        }
        let ending = self.endings.next();
        ending
            .or_else(|| self.flights.next())
            .or_else(|| self.acts.next())
            .or_else(|| self.fetches.next())
            .or_else(|| self.questions.next())
    }

    /// Has this done for one that had its turn.
    pub(super) fn spawn(&mut self, at_work: AtWork, work: impl Future<Output = Told> + Send + 'static) {
        match self.line(at_work.kind) {
            Some(line) => line.spawn(at_work, work),
            None => {
                self.path = at_work.name;
                self.file.spawn(work);
            }
        }
    }

    /// What has turned out not to be done since this was asked last.
    pub(super) fn take_not_done(&mut self) -> Vec<NotDone> {
        std::mem::take(&mut self.not_done)
    }

    /// Waits until somebody else may have its turn, without being heard.
    pub(super) async fn changed(&mut self) {
        let ended = tokio::select! {
            biased;
            () = self.endings.has_room() => None,
            () = self.flights.has_room() => None,
            Some(ended) = self.file.join_next() => Some(ended),
            () = self.acts.has_room() => None,
            () = self.fetches.has_room() => None,
            () = self.questions.has_room() => None,
        };
        if let Some(ended) = ended {
            self.put(ended);
        }
    }

    /// The file is in its place, or never will be.
    fn put(&mut self, ended: Result<Told, JoinError>) {
        let path = std::mem::take(&mut self.path);
        let Err(why) = ended.unwrap_or_else(|fell_over| Err(fell_over.to_string())) else {
            return;
        };
        if self.failed.len() >= WAITING_MAX {
            self.failed.pop_front();
        }
        let at = clock::now();
        self.failed.push_back(Failed { path, why, at });
    }

    fn join(&mut self, job: Job) {
        let without = |failed: &&Failed| job.kind == Kind::Flight && job.since <= failed.at;
        if let Some(Failed { path, why, .. }) = self.failed.iter().find(without) {
            let why =
                format!("the file {path:?} that came before it could not be kept, so it was not done: {why}");
            return self.not_done.push((job, why));
        }
        if let Some(line) = self.line(job.kind) {
            line.join(job);
        }
    }

    fn bytes(&mut self) -> usize {
        let behind: usize = self.behind.iter().map(Job::bytes).sum();
        let Self {
            flights,
            acts,
            fetches,
            questions,
            ..
        } = self;
        let lines = [flights, acts, fetches, questions];
        behind + lines.into_iter().map(Line::bytes).sum::<usize>()
    }

    fn waiting_behind(&self, kind: Kind) -> usize {
        self.behind.iter().filter(|behind| behind.kind == kind).count()
    }

    fn line(&mut self, kind: Kind) -> Option<&mut Line> {
        match kind {
            Kind::Ending => Some(&mut self.endings),
            Kind::Flight => Some(&mut self.flights),
            Kind::Act => Some(&mut self.acts),
            Kind::Fetch => Some(&mut self.fetches),
            Kind::Question => Some(&mut self.questions),
            Kind::File => None,
        }
    }
}
