//! The one timer of a session's task.

use std::pin::Pin;
use std::time::Instant;

use tokio::time::Sleep;

use crate::net::clock;

/// Wakes the task no later than at the next deadline. Deadlines mostly move later with each frame, so the timer is reset
/// only for an earlier one: waking up too early once is cheaper than a reset at every frame.
///
/// After a suspend it fires late once, by no more than its remaining time then.
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// When it fires, if it is armed.
    deadline: Option<Instant>,
    /// Whether it still has to fire. The sleep itself does not say so: it may elapse on another thread before this task
    /// polls it, and would then be missed.
    armed: bool,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self {
            sleep: None,
            deadline: None,
            armed: false,
        }
    }

    pub(super) fn set(&mut self, next: Option<Instant>) {
        let Some(next) = next else { return };
        if self.armed && self.deadline.is_some_and(|at| at <= next) {
            return;
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(clock::to_tokio_instant(next)),
            None => self.sleep = Some(Box::pin(clock::sleep_until(next))),
        }
        self.deadline = Some(next);
        self.armed = true;
    }

    pub(super) async fn wait(&mut self) {
        match &mut self.sleep {
            Some(sleep) if self.armed => {
                sleep.await;
                self.armed = false;
            }
            // Nothing is due, and it has fired already.
            Some(_) | None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn timer_that_fired_unpolled_still_wakes() {
        let mut timer = Timer::new();
        for _ in 0..50 {
            let next = clock::now() + Duration::from_millis(2);
            timer.set(Some(next));
            tokio::time::sleep(Duration::from_millis(4)).await;
            // Nothing else is due; the one that was has to ring.
            timer.set(None);
            let rung = tokio::time::timeout(Duration::from_secs(5), timer.wait()).await;
            assert!(rung.is_ok() && clock::now() >= next);
        }
        let again = tokio::time::timeout(Duration::from_millis(20), timer.wait()).await;
        assert!(again.is_err(), "it rings once");
    }

    #[tokio::test]
    async fn timer_is_reset_only_for_an_earlier_deadline() {
        let mut timer = Timer::new();
        let now = clock::now();
        timer.set(Some(now + Duration::from_secs(60)));
        timer.set(Some(now + Duration::from_millis(5)));
        timer.set(Some(now + Duration::from_secs(60)));
        timer.wait().await;
        assert!(clock::since(now) < Duration::from_secs(30));
    }
}
