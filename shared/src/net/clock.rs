//! The only file that reads clocks.
//!
//! [`now`] counts the time that the machine was suspended (`CLOCK_BOOTTIME`): a command that was to run within two
//! seconds is late after an hour's sleep. The runtime's timers do not count it (`CLOCK_MONOTONIC`), and neither does
//! [`Instant::elapsed`]. So code waits for an instant of this clock by [`sleep_until`] or [`timeout_at`], and measures
//! from one by [`since`]; `clippy.toml` bans the others.
//!
//! A timer that was set before a suspend fires late, by at most its remaining time: a heartbeat, for instance, is late
//! once. Code that must not be late compares with [`now`] when it acts and does not rely on timers.
#![allow(
    clippy::disallowed_methods,
    reason = "everything else asks here, so that a test can see who reads a clock"
)]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::error::Elapsed;

/// Readings of both clocks, from which the closest pair is taken.
const CLOCK_SAMPLES: usize = 8;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
struct ClockMapping {
    instant: Instant,
    /// Since boot, with suspended time.
    boot: Duration,
}

impl ClockMapping {
    /// `None` where the kernel has no such clock.
    fn sample() -> Option<Self> {
        let pair = || {
            // In this order the mapped clock is never ahead of `Instant::now`, and behind it by this gap only.
            let instant = Instant::now();
            let boot = since_boot()?;
            Some((instant.elapsed(), Self { instant, boot }))
        };
        let pairs = (0..CLOCK_SAMPLES).map_while(|_again| pair());
        pairs.min_by_key(|(gap, _)| *gap).map(|(_, base)| base)
    }
}

fn since_boot() -> Option<Duration> {
    Duration::try_from(clock_gettime(ClockId::Boottime)).ok()
}

/// The monotonic clock: for deadlines and for measuring. It never goes back, and goes on while the machine is suspended.
pub fn now() -> Instant {
    static MAPPING: OnceLock<Option<ClockMapping>> = OnceLock::new();
    let mapped = || {
        let base = MAPPING.get_or_init(ClockMapping::sample).as_ref()?;
        base.instant.checked_add(since_boot()?.checked_sub(base.boot)?)
    };
    mapped().unwrap_or_else(Instant::now)
}

/// How long ago `then` was; zero if it is still to come.
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// `at` on the runtime's clock, if nothing is suspended until then.
pub fn to_tokio_instant(at: Instant) -> tokio::time::Instant {
    let left = at.saturating_duration_since(now());
    let from = tokio::time::Instant::now();
    // Beyond the clock's range the exact value does not matter.
    from.checked_add(left).unwrap_or(from + FAR_FUTURE)
}

/// Longer than any program runs.
const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Waits until `at`.
pub fn sleep_until(at: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(to_tokio_instant(at))
}

/// Waits for `future`, until `at` at the latest.
///
/// # Errors
/// [`Elapsed`]: it was not ready by then.
pub async fn timeout_at<F: IntoFuture>(at: Instant, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout_at(to_tokio_instant(at), future).await
}

/// Wall-clock time in milliseconds since 1970-01-01 UTC; 0 if the clock is before that. For people and logs, for what
/// has to outlive a restart of this machine's own program (when its invitations end), and as a start for counters that
/// rise over restarts. It is never compared with a time from another machine.
pub fn unix_time_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since this machine booted, with those that it slept; 0 where the kernel has no such clock. Every program
/// on the machine can read it, for what they tell one another.
pub fn boot_time_ms() -> u64 {
    since_boot().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings that are compared.
    const READINGS: usize = 100_000;

    #[test]
    fn clock_agrees_with_std_without_a_suspend() {
        now();
        let (before, boot) = (Instant::now(), now());
        assert!(boot <= Instant::now(), "never ahead");
        // Generous for a machine that stops a thread between two readings.
        assert!(before.saturating_duration_since(boot) < Duration::from_millis(50));
    }

    #[test]
    fn clock_never_goes_back() {
        let mut last = now();
        for _ in 0..READINGS {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }

    #[test]
    fn clock_counts_suspended_time() {
        let base = ClockMapping::sample().expect("a kernel with CLOCK_BOOTTIME");
        let uptime = std::fs::read_to_string("/proc/uptime").expect("readable");
        let uptime: f64 = uptime
            .split(' ')
            .next()
            .and_then(|s| s.parse().ok())
            .expect("seconds");
        assert!(
            (base.boot.as_secs_f64() - uptime).abs() < 5.0,
            "{base:?}, up {uptime} s"
        );
    }

    #[tokio::test]
    async fn sleep_until_and_timeout_at_reach_their_instant() {
        for left in [0, 1, 5, 20].map(Duration::from_millis) {
            let at = now() + left;
            sleep_until(at).await;
            assert!(now() >= at);
            let at = now() + left;
            let late = timeout_at(at, std::future::pending::<()>()).await;
            assert!(late.is_err() && now() >= at);
        }
        let far = now() + FAR_FUTURE;
        assert!(timeout_at(far, async {}).await.is_ok());
        assert!(since(now() + FAR_FUTURE).is_zero());
    }
}
