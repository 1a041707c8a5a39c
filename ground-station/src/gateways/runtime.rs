//! Threads of the gateways' own. The fleet goes first: the kernel lets whoever has waited for the links run before these,
//! so that a crowd at the gateways is felt at the gateways.

use std::io;
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use swarm_shared::net::sync::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How much less than the rest of the station they count for where processors are short: see nice(2). At 10, about a
/// tenth.
const NICE_INCREMENT: i32 = 10;
/// What they are called, as in `ps -L`.
pub(super) const THREAD_NAME: &str = "gateways";
/// The kernel's lowest priority.
const NICE_MAX: i32 = 19;

/// See the module.
#[derive(Debug)]
pub(super) struct LowPriorityRuntime {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl LowPriorityRuntime {
    /// As many as there are processors.
    ///
    /// # Errors
    /// The kernel's: there are no more threads to be had.
    pub(super) fn start() -> io::Result<Self> {
        // Absolute: a thread begins with the priority of the one that starts it, which may have stepped back already.
        let priority = (getpriority_process(None)? + NICE_INCREMENT).min(NICE_MAX);
        let count = thread::available_parallelism()?.get();
        // The runtime has no error for threads that cannot be had: it panics.
        check_thread_limit(count)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name(THREAD_NAME)
            .on_thread_start(move || lower_priority(priority))
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// How many tasks run there.
    #[cfg(test)]
    pub(super) fn alive_tasks(&self) -> usize {
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
fn check_thread_limit(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let held = gate.lock();
        let wait = || drop(gate.lock());
        let tried = (0..count).try_for_each(|_| thread::Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(held);
        tried
    })
}

/// Gives way, for the thread that calls it: on Linux each has a priority of its own.
fn lower_priority(priority: i32) {
    if let Err(error) = setpriority_process(None, priority) {
        tracing::debug!(%error, "gateways count for as much as the fleet");
    }
}

impl Drop for LowPriorityRuntime {
    /// Waits for nobody: whoever closes the gateways has.
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
    async fn only_gateway_threads_run_at_low_priority() {
        let own = getpriority_process(None).expect("a priority");
        let threads = LowPriorityRuntime::start().expect("threads");
        let there = threads.spawn(async {
            // What that spawns, and what it has done by threads that may wait.
            let spawned = tokio::spawn(async { getpriority_process(None) });
            let waits = tokio::task::spawn_blocking(|| getpriority_process(None));
            (spawned.await.expect("runs"), waits.await.expect("runs"))
        });
        let (spawned, waits) = there.await.expect("runs");
        let wanted = (own + NICE_INCREMENT).min(NICE_MAX);
        assert_eq!((spawned, waits), (Ok(wanted), Ok(wanted)));
        assert_eq!(getpriority_process(None), Ok(own));
    }
}
