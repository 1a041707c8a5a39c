//! Threads of the doors' own. The fleet goes first: the kernel lets whoever has waited for the links run before these,
//! so that a crowd at the doors is felt at the doors.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How much less than the rest of the station they count for where processors are short: see nice(2). At 10, about a
/// tenth.
const NICE: i32 = 10;
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
        let runtime = Builder::new_multi_thread()
            .thread_name("doors")
            .on_thread_start(move || step_back(priority))
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs something there; what that spawns stays there.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
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
