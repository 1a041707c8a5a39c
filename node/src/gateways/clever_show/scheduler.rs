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

use super::queue::{TaskKind, TaskQueue, TaskResult, WAITING_MAX};
use super::task::{RunningTask, Task};

/// What all that is at work or waits may take, in bytes, files apart.
pub(super) const BYTES_MAX: usize = 8 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Scheduler {
    landings: TaskQueue,
    flights: TaskQueue,
    actions: TaskQueue,
    fetches: TaskQueue,
    queries: TaskQueue,
    /// The file that is being put in its place, if there is one.
    file_task: JoinSet<TaskResult>,
    file_path: String,
    after_file: VecDeque<Task>,
    /// Those that could not be kept, and have not come again.
    failed_files: VecDeque<FailedFile>,
    /// Bytes of files that may wait.
    bytes_max: usize,
    rejected: Vec<Rejected>,
}

#[derive(Debug)]
struct FailedFile {
    path: String,
    why: String,
    /// Since then it is known.
    at: Instant,
}

/// What is not done, and why.
pub(super) type Rejected = (Task, String);

impl Scheduler {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            landings: TaskQueue::new(TaskKind::Landing),
            flights: TaskQueue::new(TaskKind::Flight),
            actions: TaskQueue::new(TaskKind::Action),
            fetches: TaskQueue::new(TaskKind::Fetch),
            queries: TaskQueue::new(TaskKind::Query),
            file_task: JoinSet::new(),
            file_path: String::new(),
            after_file: VecDeque::new(),
            failed_files: VecDeque::new(),
            bytes_max,
            rejected: Vec::new(),
        }
    }

    /// Whether more may be heard.
    pub(super) fn has_capacity(&self) -> bool {
        let bytes: usize = self.after_file.iter().map(Task::file_bytes).sum();
        self.waiting_after_file(TaskKind::File) < WAITING_MAX && bytes < self.bytes_max
    }

    /// Lets somebody in.
    pub(super) fn submit(&mut self, job: Task) {
        if job.kind == TaskKind::Landing {
            let why = format!("{:?} came before it could begin; it was not done", job.name);
            let mut overtaken = self.flights.drain();
            let behind = std::mem::take(&mut self.after_file);
            for waiting in behind {
                match waiting.kind {
                    TaskKind::Flight => overtaken.push_back(waiting),
                    TaskKind::Landing
                    | TaskKind::Action
                    | TaskKind::Fetch
                    | TaskKind::Query
                    | TaskKind::File => {
                        self.after_file.push_back(waiting);
                    }
                }
            }
            self.rejected
                .extend(overtaken.into_iter().map(|flight| (flight, why.clone())));
            match self.landings.busy_reason(&job.name) {
                Some(busy) => self.rejected.push((job, busy)),
                None => self.landings.push(job),
            }
            return;
        }
        let (bytes, behind) = (self.bytes() + job.bytes(), self.waiting_after_file(job.kind));
        let at_once = self.after_file.is_empty() && self.file_task.is_empty();
        match self.queue(job.kind) {
            None => self.after_file.push_back(job),
            Some(line) if line.waiting() + behind >= WAITING_MAX || bytes > BYTES_MAX => {
                let why = "busy: too much waits; nothing was done".to_owned();
                self.rejected.push((job, why));
            }
            Some(_) if at_once => self.enqueue(job),
            Some(_) => self.after_file.push_back(job),
        }
    }

    /// Whoever has its turn, if there is a place; it is for the caller to [give](Self::spawn) it what is to be done.
    pub(super) fn next(&mut self) -> Option<Task> {
        while let Some(ended) = self.file_task.try_join_next() {
            self.on_file_ended(ended);
        }
        while self.file_task.is_empty()
            && let Some(job) = self.after_file.pop_front()
        {
            if job.kind == TaskKind::File {
                self.failed_files.retain(|failed| failed.path != job.name);
                return Some(job);
            }
            self.enqueue(job);
        }
        let ending = self.landings.next();
        ending
            .or_else(|| self.flights.next())
            .or_else(|| self.actions.next())
            .or_else(|| self.fetches.next())
            .or_else(|| self.queries.next())
    }

    /// Has this done for one that had its turn.
    pub(super) fn spawn(
        &mut self,
        at_work: RunningTask,
        work: impl Future<Output = TaskResult> + Send + 'static,
    ) {
        match self.queue(at_work.kind) {
            Some(line) => line.spawn(at_work, work),
            None => {
                self.file_path = at_work.name;
                self.file_task.spawn(work);
            }
        }
    }

    /// What has turned out not to be done since this was asked last.
    pub(super) fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// Waits until somebody else may have its turn, without being heard.
    pub(super) async fn wait_for_change(&mut self) {
        let ended = tokio::select! {
            biased;
            () = self.landings.wait_for_slot() => None,
            () = self.flights.wait_for_slot() => None,
            Some(ended) = self.file_task.join_next() => Some(ended),
            () = self.actions.wait_for_slot() => None,
            () = self.fetches.wait_for_slot() => None,
            () = self.queries.wait_for_slot() => None,
        };
        if let Some(ended) = ended {
            self.on_file_ended(ended);
        }
    }

    /// The file is in its place, or never will be.
    fn on_file_ended(&mut self, ended: Result<TaskResult, JoinError>) {
        let path = std::mem::take(&mut self.file_path);
        let Err(why) = ended.unwrap_or_else(|fell_over| Err(fell_over.to_string())) else {
            return;
        };
        if self.failed_files.len() >= WAITING_MAX {
            self.failed_files.pop_front();
        }
        let at = clock::now();
        self.failed_files.push_back(FailedFile { path, why, at });
    }

    fn enqueue(&mut self, job: Task) {
        let without = |failed: &&FailedFile| job.kind == TaskKind::Flight && job.since <= failed.at;
        if let Some(FailedFile { path, why, .. }) = self.failed_files.iter().find(without) {
            let why =
                format!("the file {path:?} that came before it could not be kept, so it was not done: {why}");
            return self.rejected.push((job, why));
        }
        if let Some(line) = self.queue(job.kind) {
            line.push(job);
        }
    }

    fn bytes(&mut self) -> usize {
        let behind: usize = self.after_file.iter().map(Task::bytes).sum();
        let Self {
            flights,
            actions: acts,
            fetches,
            queries: questions,
            ..
        } = self;
        let lines = [flights, acts, fetches, questions];
        behind + lines.into_iter().map(TaskQueue::bytes).sum::<usize>()
    }

    fn waiting_after_file(&self, kind: TaskKind) -> usize {
        self.after_file
            .iter()
            .filter(|behind| behind.kind == kind)
            .count()
    }

    fn queue(&mut self, kind: TaskKind) -> Option<&mut TaskQueue> {
        match kind {
            TaskKind::Landing => Some(&mut self.landings),
            TaskKind::Flight => Some(&mut self.flights),
            TaskKind::Action => Some(&mut self.actions),
            TaskKind::Fetch => Some(&mut self.fetches),
            TaskKind::Query => Some(&mut self.queries),
            TaskKind::File => None,
        }
    }
}
