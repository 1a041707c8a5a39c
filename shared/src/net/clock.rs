//! The one place where clocks are read.
#![allow(
    clippy::disallowed_methods,
    reason = "everything else asks here, so that a test can see who reads a clock"
)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock: for deadlines and for measuring.
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time in milliseconds since 1970-01-01 UTC; 0 if the clock is before that. For people and logs, for what
/// has to outlive a restart of this machine's own program (when its invitations end), and as a start for counters that
/// rise over restarts. Nothing that another machine says is ever compared with it.
pub fn unix_time_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since this machine booted, with those that it slept: a clock that every program on it can read, for
/// what they tell one another.
pub fn boot_time_ms() -> u64 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(since.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(since.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
