//! Threads of the doors' own. The fleet goes first: the kernel lets whoever has waited for the links run before these,
//! so that a crowd at the doors is felt at the doors.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How much less than the rest of the station they count for where processors are short: see nice(2). At 10, about a
/// tenth.
const NICE: i32 = 10;
/// What they are called, as in `ps -L`.
pub(super) const NAME: &str = "doors";
/// The kernel's lowest priority.
const NICE_MAX: i32 = 19;

/// See the module.
#[derive(Debug)]
pub(super) struct Threads {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    /// As many as there are processors.
    ///
    /// # Errors
    /// The kernel's: there are no more threads to be had.
    pub(super) fn start() -> io::Result<Self> {
        // Absolute: a thread begins with the priority of the one that starts it, which may have stepped back already.
        let priority = (getpriority_process(None)? + NICE).min(NICE_MAX);
        let count = thread::available_parallelism()?.get();
        // The runtime has no error for threads that cannot be had: it panics.
        try_threads(count)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name(NAME)
            .on_thread_start(move || step_back(priority))
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// How many tasks run there.
    #[cfg(test)]
    pub(super) fn at_work(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }

    /// Runs something there; what that spawns stays there.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}

/// Has so many threads at one time, and ends them.
fn try_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let held = gate.lock();
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        let tried = (0..count).try_for_each(|_| thread::Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(held);
        tried
    })
}

/// Gives way, for the thread that calls it: on Linux each has a priority of its own.
fn step_back(priority: i32) {
    if let Err(error) = setpriority_process(None, priority) {
        tracing::debug!(%error, "doors count for as much as the fleet");
    }
}

impl Drop for Threads {
    /// Waits for nobody: whoever closes the doors has.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn doors_give_way_and_nobody_else_does() {
        let own = getpriority_process(None).expect("a priority");
        let threads = Threads::start().expect("threads");
        let there = threads.spawn(async {
            // What that spawns, and what it has done by threads that may wait.
            let spawned = tokio::spawn(async { getpriority_process(None) });
            let waits = tokio::task::spawn_blocking(|| getpriority_process(None));
            (spawned.await.expect("runs"), waits.await.expect("runs"))
        });
        let (spawned, waits) = there.await.expect("runs");
        let wanted = (own + NICE).min(NICE_MAX);
        assert_eq!((spawned, waits), (Ok(wanted), Ok(wanted)));
        assert_eq!(getpriority_process(None), Ok(own));
    }
}
