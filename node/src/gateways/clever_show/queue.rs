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

use swarm_shared::proto::delivery::executor::ActionProperties;
use swarm_shared::proto::foreign::clever_show::FLIGHT_ACTIONS;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::task::{Id, JoinError, JoinSet};

use super::task::{RunningTask, Task};
use crate::actions::LANDING_ACTIONS;

/// Most that wait in one line.
pub(super) const WAITING_MAX: usize = 64;
/// Most of one name that ends a flight: the others by which one can be ended keep their places.
const SAME_NAME_MAX: usize = 2;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskKind {
    /// Ends a flight, or holds it up.
    Landing,
    Flight,
    Action,
    Fetch,
    Query,
    /// A file that is pushed: in no line.
    File,
}

impl TaskKind {
    /// Of an action or a question of this name, which is like this.
    pub(super) fn for_action(name: &str, arguments: &Arguments, traits: ActionProperties) -> Self {
        match classify(name, arguments) {
            _ if traits.ends_flight => Self::Landing,
            // By these names a server moves it, whatever class the owner has given them.
            _ if traits.flight || FLIGHT_ACTIONS.contains(&name) => Self::Flight,
            ActionClass::Read => Self::Query,
            ActionClass::Modify | ActionClass::Execute => Self::Action,
        }
    }

    /// How many of it are at work at once.
    fn slots(self) -> usize {
        match self {
            Self::Landing => SAME_NAME_MAX * LANDING_ACTIONS.len(),
            Self::Flight => 3,
            Self::Action => 6,
            Self::Query => 48,
            Self::Fetch | Self::File => 1,
        }
    }
}

/// How one has ended: why it was not done, if it was not. The log knows.
pub(super) type TaskResult = Result<(), String>;

/// One line, and what of it is at work.
#[derive(Debug)]
pub(super) struct TaskQueue {
    slots: usize,
    waiting: VecDeque<Task>,
    running: JoinSet<TaskResult>,
    running_info: Vec<(Id, RunningTask)>,
}

impl TaskQueue {
    pub(super) fn new(kind: TaskKind) -> Self {
        Self {
            slots: kind.slots(),
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            running_info: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What all of it takes, at work or waiting, in bytes.
    pub(super) fn bytes(&mut self) -> usize {
        self.reap();
        let waiting = self.waiting.iter().map(Task::bytes);
        let at_work = self.running_info.iter().map(|(_, at_work)| at_work.bytes);
        waiting.sum::<usize>() + at_work.sum::<usize>()
    }

    pub(super) fn push(&mut self, job: Task) {
        self.waiting.push_back(job);
    }

    /// Why one more of this name may not join, for there are enough of it.
    pub(super) fn busy_reason(&mut self, name: &str) -> Option<String> {
        self.reap();
        let waiting = self.waiting.iter().filter(|job| job.name == name);
        let at_work = self
            .running_info
            .iter()
            .filter(|(_, at_work)| at_work.name == name);
        (waiting.count() + at_work.count() >= SAME_NAME_MAX)
            .then(|| format!("busy: {SAME_NAME_MAX} of this name are at work; nothing more was done"))
    }

    /// Takes out all that wait.
    pub(super) fn drain(&mut self) -> VecDeque<Task> {
        std::mem::take(&mut self.waiting)
    }

    /// Whoever has its turn, if there is a place.
    pub(super) fn next(&mut self) -> Option<Task> {
        self.reap();
        if self.running.len() >= self.slots {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Gives a place.
    pub(super) fn spawn(
        &mut self,
        at_work: RunningTask,
        work: impl Future<Output = TaskResult> + Send + 'static,
    ) {
        let id = self.running.spawn(work).id();
        self.running_info.push((id, at_work));
    }

    /// Waits until there is a place for somebody who waits.
    pub(super) async fn wait_for_slot(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        match self.running.join_next_with_id().await {
            Some(ended) => self.on_ended(ended),
            None => std::future::pending().await,
        }
    }

    fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.on_ended(ended);
        }
    }

    fn on_ended(&mut self, ended: Result<(Id, TaskResult), JoinError>) {
        let id = ended.map_or_else(|fell_over| fell_over.id(), |(id, _)| id);
        self.running_info.retain(|(known, _)| *known != id);
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::proto::delivery::executor::{LANDING_MAX, ORDINARY_MAX, RUNNING_MAX};

    use super::*;

    #[test]
    fn actions_are_sorted_into_task_kinds() {
        let none = Arguments::default();
        let (plain, flight) = (
            ActionProperties::default(),
            ActionProperties {
                flight: true,
                ..ActionProperties::default()
            },
        );
        let ending = |traits| ActionProperties {
            ends_flight: true,
            ..traits
        };
        for (name, traits, kind) in [
            ("led", plain, TaskKind::Action),
            ("execute", plain, TaskKind::Action),
            ("dance", flight, TaskKind::Flight),
            ("land", ending(plain), TaskKind::Landing),
            ("pause", ending(flight), TaskKind::Landing),
            // This node cannot land, so it ends nothing by that.
            ("land", plain, TaskKind::Flight),
            ("telemetry", plain, TaskKind::Query),
            ("id", plain, TaskKind::Query),
            ("takeoff", plain, TaskKind::Flight),
            ("resume", plain, TaskKind::Flight),
        ] {
            assert_eq!(TaskKind::for_action(name, &none, traits), kind, "{name}");
        }
        assert!(LANDING_ACTIONS.iter().all(|name| FLIGHT_ACTIONS.contains(name)));
    }

    #[test]
    fn server_tasks_leave_slots_for_others() {
        assert!(TaskKind::Landing.slots() < LANDING_MAX);
        assert!(TaskKind::Action.slots() < ORDINARY_MAX);
        assert!(TaskKind::Action.slots() + TaskKind::Flight.slots() < RUNNING_MAX - LANDING_MAX);
    }
}
