//! What the server asks for, and how much of each kind may be under way.
//!
//! | kind | what | limit in the executor | limit here |
//! |---|---|---|---|
//! | landing | actions that end or interrupt a flight | 10 of the 12 slots for landings | [`SAME_LANDING_MAX`] of each name, so that the others keep their slots |
//! | flight | other flight actions, and actions by whose names clever-show moves a drone | 3 slots | memory |
//! | action | everything else that changes something, in its order | 6 slots | memory |
//! | query | what only reads | none: it needs no slot | [`QUERIES_RUNNING_MAX`] run, [`WAITING_MAX`] wait; memory |
//! | fetch | a file that the server asks for | none | one runs, [`WAITING_MAX`] wait; memory |
//!
//! What exceeds a limit is not done, and logged: the protocol has no answer for it.

use std::sync::Arc;

use swarm_shared::proto::delivery::executor::{ActionProperties, WAITING_MAX};
use swarm_shared::proto::foreign::clever_show::{FLIGHT_ACTIONS, memory_bytes};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::actions::LANDING_ACTIONS;

/// Landing actions of one name that run at once.
const SAME_LANDING_MAX: usize = 2;
/// Queries that run at once.
const QUERIES_RUNNING_MAX: usize = 48;
/// Memory that names and arguments of everything but landing actions take together, in bytes. Files are not counted.
pub(super) const MEMORY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How a task is limited; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskKind {
    Landing,
    Flight,
    Action,
    Query,
    Fetch,
}

impl TaskKind {
    /// The kind of the node's action `name` with these arguments.
    pub(super) fn for_action(name: &str, arguments: &Arguments, properties: ActionProperties) -> Self {
        match classify(name, arguments) {
            _ if properties.ends_flight => Self::Landing,
            // A server moves a drone by these names, whatever class the owner has given to them.
            _ if properties.flight || FLIGHT_ACTIONS.contains(&name) => Self::Flight,
            ActionClass::Read => Self::Query,
            ActionClass::Modify | ActionClass::Execute => Self::Action,
        }
    }
}

/// What the server asks for.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) kind: TaskKind,
    /// For the log: what arrived.
    pub(super) what: &'static str,
    /// Name of the action or request, or path of the file, as the server gave it.
    pub(super) name: String,
    pub(super) work: TaskWork,
}

#[derive(Debug)]
pub(super) enum TaskWork {
    /// Run an action of this node.
    Command {
        action: String,
        arguments: Arguments,
        /// The request that waits for the value; an action has none.
        request: Option<PendingRequest>,
    },
    /// Answer this request with a file.
    Fetch { id: String },
}

/// A request that waits for its response.
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) id: String,
    /// Whether the response describes what a configuration may contain.
    pub(super) with_spec: bool,
}

impl Task {
    /// The memory that it takes until it ends, in bytes.
    fn memory_bytes(&self) -> usize {
        let arguments = match &self.work {
            TaskWork::Command {
                action, arguments, ..
            } => action.len() + memory_bytes(arguments),
            TaskWork::Fetch { .. } => 0,
        };
        self.name.len() + arguments
    }
}

/// The limits of one gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    memory: Arc<Semaphore>,
    /// In the order of [`LANDING_ACTIONS`].
    landings: [Arc<Semaphore>; LANDING_ACTIONS.len()],
    queries: Arc<Semaphore>,
    queries_running: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    fetches_running: Arc<Semaphore>,
}

/// Holds a task's part of the limits until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Default for Limits {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            memory: semaphore(MEMORY_BYTES_MAX),
            landings: std::array::from_fn(|_| semaphore(SAME_LANDING_MAX)),
            queries: semaphore(QUERIES_RUNNING_MAX + WAITING_MAX),
            queries_running: semaphore(QUERIES_RUNNING_MAX),
            fetches: semaphore(1 + WAITING_MAX),
            fetches_running: semaphore(1),
        }
    }
}

impl Limits {
    /// Reserves what `task` needs.
    ///
    /// # Errors
    /// Why there is no room for it.
    pub(super) fn reserve(&self, task: &Task) -> Result<Reservation, String> {
        let count = match task.kind {
            TaskKind::Landing => {
                let index = LANDING_ACTIONS.iter().position(|name| *name == task.name);
                index.and_then(|index| self.landings.get(index))
            }
            TaskKind::Query => Some(&self.queries),
            TaskKind::Fetch => Some(&self.fetches),
            TaskKind::Flight | TaskKind::Action => None,
        };
        let bytes = match task.kind {
            // A landing action is never refused for the memory that others take.
            TaskKind::Landing => 0,
            TaskKind::Flight | TaskKind::Action | TaskKind::Query | TaskKind::Fetch => task.memory_bytes(),
        };
        let busy = || format!("busy: too many {:?} wait or run; not done", task.name);
        let count = count.map(|count| Arc::clone(count).try_acquire_owned());
        let count = count.transpose().map_err(|_full| busy())?;
        let bytes = u32::try_from(bytes).map_err(|_too_long| busy())?;
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(bytes);
        let memory = memory.map_err(|_full| "busy: too much waits or runs; not done".to_owned())?;
        let permits = count.into_iter().chain([memory]).collect();
        Ok(Reservation { _permits: permits })
    }

    /// Waits until a query or a file request may run; others never wait here.
    pub(super) async fn acquire_slot(&self, kind: TaskKind) -> Option<OwnedSemaphorePermit> {
        let slots = match kind {
            TaskKind::Query => &self.queries_running,
            TaskKind::Fetch => &self.fetches_running,
            TaskKind::Landing | TaskKind::Flight | TaskKind::Action => return None,
        };
        // The semaphores are never closed.
        Arc::clone(slots).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
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
        let ending = |properties| ActionProperties {
            ends_flight: true,
            ..properties
        };
        for (name, properties, kind) in [
            ("led", plain, TaskKind::Action),
            ("execute", plain, TaskKind::Action),
            ("dance", flight, TaskKind::Flight),
            ("land", ending(plain), TaskKind::Landing),
            ("pause", ending(flight), TaskKind::Landing),
            // Without an action of this name the node cannot land.
            ("land", plain, TaskKind::Flight),
            ("telemetry", plain, TaskKind::Query),
            ("id", plain, TaskKind::Query),
            ("takeoff", plain, TaskKind::Flight),
            ("resume", plain, TaskKind::Flight),
        ] {
            assert_eq!(TaskKind::for_action(name, &none, properties), kind, "{name}");
        }
        assert!(LANDING_ACTIONS.iter().all(|name| FLIGHT_ACTIONS.contains(name)));
    }

    /// A task whose arguments have so many bytes.
    fn task(kind: TaskKind, name: &str, bytes: usize) -> Task {
        let mut arguments = Arguments::default();
        arguments.args.push("x".repeat(bytes).into());
        let action = name.to_owned();
        let request = None;
        Task {
            kind,
            what: "action",
            name: name.to_owned(),
            work: TaskWork::Command {
                action,
                arguments,
                request,
            },
        }
    }

    #[test]
    fn memory_of_waiting_and_running_tasks_is_limited() {
        const BYTES: usize = 500_000;
        let kinds = [TaskKind::Action, TaskKind::Query, TaskKind::Flight];
        let limits = Limits::default();
        let mut held = Vec::new();
        while let Ok(reservation) = limits.reserve(&task(kinds[held.len() % kinds.len()], "x", BYTES)) {
            held.push(reservation);
            assert!(held.len() * BYTES <= MEMORY_BYTES_MAX);
        }
        assert!((held.len() + 1) * BYTES >= MEMORY_BYTES_MAX, "{}", held.len());
        limits
            .reserve(&task(TaskKind::Landing, "land", BYTES))
            .expect("never refused for memory");
        held.pop();
        limits.reserve(&task(TaskKind::Query, "x", BYTES)).expect("freed");
    }

    #[test]
    fn landings_of_one_name_leave_slots_to_others() {
        let limits = Limits::default();
        let reserve = |name| limits.reserve(&task(TaskKind::Landing, name, 1));
        let held = [reserve("land"), reserve("land"), reserve("disarm")];
        assert!(held.iter().all(Result::is_ok), "{held:?}");
        reserve("land").expect_err("busy");
    }

    #[test]
    fn waiting_queries_and_fetches_are_limited() {
        let limits = Limits::default();
        for (kind, limit) in [
            (TaskKind::Query, QUERIES_RUNNING_MAX + WAITING_MAX),
            (TaskKind::Fetch, 1 + WAITING_MAX),
        ] {
            let reserve = || limits.reserve(&task(kind, "x", 1));
            let held: Vec<_> = std::iter::from_fn(|| reserve().ok()).take(limit + 1).collect();
            assert_eq!(held.len(), limit, "{kind:?}");
        }
    }
}
