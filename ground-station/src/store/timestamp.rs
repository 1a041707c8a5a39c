//! Deadlines that outlive this process.
//!
//! An [`Instant`] means nothing to another process, and the wall clock may be set at any time. So a deadline is stored
//! on two clocks, with the boot in which that was:
//!
//! | read back | how long is left |
//! |---|---|
//! | in the same boot | exact: time since boot counts sleep and cannot be set |
//! | in another boot | by the wall clock |
//! | in another boot, and the wall clock is before the newest time stored | nothing: the elapsed time is unknown, and a late command is worse than none |
//!
//! A machine without a clock of its own that boots with yesterday's time, but later than anything stored, measures too
//! little: nothing on that machine could tell.

use std::time::{Duration, Instant};

use swarm_shared::net::{boot, clock};

/// Rounds up to milliseconds.
const ROUND_UP_MS: Duration = Duration::from_nanos(999_999);

/// A moment on all clocks that are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// For what counts in this process.
    pub instant: Instant,
    /// Which boot it is in; empty if unknown.
    pub boot: String,
    /// Time since that boot.
    pub since_boot: Duration,
    /// The wall clock, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        Self {
            instant: clock::now(),
            boot: boot::id(),
            since_boot: boot::time(),
            unix_ms: clock::unix_time_ms(),
        }
    }

    /// What to store of a deadline: in milliseconds since boot, and since 1970. It is not later than the deadline.
    pub(super) fn encode_deadline(&self, deadline: Instant) -> (u64, u64) {
        let now_ms = whole_ms(self.since_boot);
        match deadline.checked_duration_since(self.instant) {
            Some(left) => {
                let left = whole_ms(left);
                (now_ms.saturating_add(left), self.unix_ms.saturating_add(left))
            }
            None => {
                let over = whole_ms(self.instant.saturating_duration_since(deadline)).saturating_add(1);
                (now_ms.saturating_sub(over), self.unix_ms.saturating_sub(over))
            }
        }
    }

    /// Microseconds since an earlier moment; 0 if that seems to be later.
    pub(super) fn micros_since(&self, boot: &str, since_boot_us: u64, unix_ms: u64) -> u64 {
        if self.is_same_boot(boot) {
            whole_micros(self.since_boot).saturating_sub(since_boot_us)
        } else {
            self.unix_ms.saturating_sub(unix_ms).saturating_mul(1_000)
        }
    }

    fn is_same_boot(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }
}

/// A deadline as it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredDeadline<'a> {
    /// The boot in which it was stored.
    pub boot: &'a str,
    /// The deadline, in milliseconds since that boot.
    pub boot_ms: u64,
    /// The deadline, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The time to live when the command was issued: more can never be left.
    pub ttl_ms: u64,
}

/// How long is left until a stored deadline, in milliseconds; `None` if it has passed or cannot be computed.
/// `newest_ms`: the newest wall-clock time that is stored anywhere.
pub fn remaining_ms(due: StoredDeadline<'_>, now: &Timestamp, newest_ms: u64) -> Option<u64> {
    let left = if now.is_same_boot(due.boot) {
        due.boot_ms.checked_sub(whole_ms(now.since_boot + ROUND_UP_MS))?
    } else if now.unix_ms < newest_ms {
        return None;
    } else {
        due.unix_ms.checked_sub(now.unix_ms)?
    };
    Some(left.min(due.ttl_ms)).filter(|left| *left > 0)
}

pub(super) fn whole_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp_at(boot: &str, boot_ms: u64, unix_ms: u64) -> Timestamp {
        Timestamp {
            instant: clock::now(),
            boot: boot.to_owned(),
            since_boot: Duration::from_millis(boot_ms),
            unix_ms,
        }
    }

    /// Stored in boot `a`: 30 s to live from 100 s after boot, when the wall clock showed 1,000 s.
    const DEADLINE: StoredDeadline<'_> = StoredDeadline {
        boot: "a",
        boot_ms: 130_000,
        unix_ms: 1_030_000,
        ttl_ms: 30_000,
    };

    #[test]
    fn same_boot_deadlines_ignore_the_wall_clock() {
        for unix_ms in [0, 1_005_000, 9_999_999] {
            assert_eq!(
                remaining_ms(DEADLINE, &timestamp_at("a", 105_000, unix_ms), 1_000_000),
                Some(25_000)
            );
            assert_eq!(
                remaining_ms(DEADLINE, &timestamp_at("a", 130_000, unix_ms), 1_000_000),
                None,
                "just over"
            );
            assert_eq!(
                remaining_ms(DEADLINE, &timestamp_at("a", 500_000, unix_ms), 1_000_000),
                None
            );
        }
    }

    #[test]
    fn deadlines_of_another_boot_use_the_wall_clock() {
        assert_eq!(
            remaining_ms(DEADLINE, &timestamp_at("b", 5_000, 1_010_000), 1_000_000),
            Some(20_000)
        );
        assert_eq!(
            remaining_ms(DEADLINE, &timestamp_at("b", 5_000, 1_030_000), 1_000_000),
            None
        );
    }

    #[test]
    fn deadlines_expire_if_the_wall_clock_went_back() {
        assert_eq!(
            remaining_ms(DEADLINE, &timestamp_at("b", 5_000, 1_004_999), 1_005_000),
            None
        );
        assert_eq!(
            remaining_ms(DEADLINE, &timestamp_at("b", 5_000, 1_005_000), 1_005_000),
            Some(25_000)
        );
        assert_eq!(
            remaining_ms(DEADLINE, &timestamp_at("b", 5_000, 0), 1_005_000),
            None
        );
    }

    #[test]
    fn unknown_boot_ids_never_match() {
        let due = StoredDeadline { boot: "", ..DEADLINE };
        assert_eq!(
            remaining_ms(due, &timestamp_at("", 105_000, 1_029_000), 0),
            Some(1_000)
        );
    }

    #[test]
    fn remaining_time_never_exceeds_the_ttl() {
        assert_eq!(remaining_ms(DEADLINE, &timestamp_at("a", 5, 0), 0), Some(30_000));
        assert_eq!(remaining_ms(DEADLINE, &timestamp_at("b", 5, 0), 0), Some(30_000));
    }

    #[test]
    fn stored_deadline_is_never_later_than_the_original() {
        let now = timestamp_at("a", 100_000, 1_000_000);
        let soon = now.instant + Duration::from_micros(1_999);
        assert_eq!(now.encode_deadline(soon), (100_001, 1_000_001));
        assert_eq!(now.encode_deadline(now.instant), (100_000, 1_000_000));
        let over = now
            .instant
            .checked_sub(Duration::from_micros(10))
            .expect("not at boot");
        assert_eq!(now.encode_deadline(over), (99_999, 999_999));
    }

    #[test]
    fn stage_times_span_a_restart() {
        let now = timestamp_at("a", 100_000, 1_000_000);
        assert_eq!(now.micros_since("a", 99_000_000, 5), 1_000_000);
        assert_eq!(now.micros_since("a", 101_000_000, 5), 0);
        assert_eq!(now.micros_since("b", 0, 999_000), 1_000_000);
        assert_eq!(now.micros_since("b", 0, 1_001_000), 0, "the clock was put back");
    }
}
