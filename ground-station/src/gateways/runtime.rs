//! A tokio runtime whose threads have a lower priority than the fleet's, so that many requests at gateways delay neither
//! commands nor stops.

use std::io;
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use swarm_shared::net::sync::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// Added to the process's nice value: see nice(2). At 10, the kernel gives these threads about a tenth of the processor time
/// of others if all are busy.
const NICE_INCREMENT: i32 = 10;
/// The threads' name, as in `ps -L`.
pub(super) const THREAD_NAME: &str = "gateways";
/// The kernel's highest nice value.
const NICE_MAX: i32 = 19;

/// A runtime of low-priority threads. Tasks on it end when it is dropped.
#[derive(Debug)]
pub(super) struct LowPriorityRuntime {
    handle: Handle,
    /// `None` in `drop` only.
    runtime: Option<Runtime>,
}

impl LowPriorityRuntime {
    /// Starts as many threads as there are processors.
    ///
    /// # Errors
    /// The kernel's, if no more threads are available.
    pub(super) fn start() -> io::Result<Self> {
        // Absolute, since a thread inherits the priority of the one that starts it, which may be lowered already.
        let priority = (getpriority_process(None)? + NICE_INCREMENT).min(NICE_MAX);
        let count = thread::available_parallelism()?.get();
        // The runtime panics if a thread cannot be started.
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

    /// The number of tasks that have not ended.
    #[cfg(test)]
    pub(super) fn alive_tasks(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }

    /// Runs a task on this runtime; tasks that it spawns run here too.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}

/// Starts `count` threads at the same time and ends them, to find out whether the limit permits them.
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

/// Lowers the priority of the calling thread: on Linux each thread has its own.
fn lower_priority(priority: i32) {
    if let Err(error) = setpriority_process(None, priority) {
        tracing::debug!(%error, "Priority of gateway threads not lowered");
    }
}

impl Drop for LowPriorityRuntime {
    /// Does not wait: [`super::Gateways::close`] has waited for the tasks.
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
            // A spawned task, and a blocking one.
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
