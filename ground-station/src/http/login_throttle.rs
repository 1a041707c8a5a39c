//! Limits failed logins per source: after [`FREE_ATTEMPTS`] the next attempt waits, twice as long each time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use swarm_shared::proto::rate::{Source, SourceTable};

/// Failed attempts of one source without a wait.
const FREE_ATTEMPTS: u32 = 10;
/// The first wait; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A source without a failed attempt for this time starts anew.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);
/// Sources that are remembered; the one whose last attempt is oldest makes room.
const SOURCES_MAX: usize = 4_096;

/// Failed attempts per source. IPv6 counts by /64, link-local addresses too: changing them must not help to guess.
#[derive(Debug)]
pub(crate) struct LoginThrottle {
    sources: SourceTable<AttemptState>,
}

/// An attempt whose result is not known yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    source: Source,
    before: AttemptState,
    after: AttemptState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AttemptState {
    failures: u32,
    last_attempt: Instant,
    blocked_until: Instant,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self {
            sources: SourceTable::new(SOURCES_MAX),
        }
    }
}

impl LoginThrottle {
    /// Whether this address may try now.
    ///
    /// # Errors
    /// The time until it may.
    pub(crate) fn check(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let state = self.sources.get(Source::network(from));
        match state.map(|state| state.blocked_until.saturating_duration_since(now)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// Counts an attempt as failed before its result is known, so that attempts at the same time count too. Ended by
    /// [`Self::reset`] if it succeeds, or [`Self::cancel_attempt`] if it was not checked.
    ///
    /// # Errors
    /// The time until this address may try.
    pub(crate) fn begin_attempt(&mut self, from: IpAddr, now: Instant) -> Result<Attempt, Duration> {
        let source = Source::network(from);
        let new = AttemptState {
            failures: 0,
            last_attempt: now,
            blocked_until: now,
        };
        let is_idle = |state: &AttemptState| now.saturating_duration_since(state.last_attempt) > FORGET_AFTER;
        if self.sources.entry(source, is_idle, || new).is_none() {
            self.sources.remove_min_by_key(|state| state.last_attempt);
        }
        let Some(state) = self.sources.entry(source, is_idle, || new) else {
            return Err(FIRST_WAIT);
        };
        if is_idle(state) {
            state.failures = 0;
        }
        if state.blocked_until > now {
            return Err(state.blocked_until - now);
        }
        let before = *state;
        state.failures = state.failures.saturating_add(1);
        state.last_attempt = now;
        if let Some(over) = state.failures.checked_sub(FREE_ATTEMPTS) {
            let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(over));
            state.blocked_until = now + wait.min(WAIT_MAX);
        }
        let after = *state;
        Ok(Attempt {
            source,
            before,
            after,
        })
    }

    /// Takes back an attempt that was not checked; others still count.
    pub(crate) fn cancel_attempt(&mut self, attempt: Attempt) {
        let Attempt {
            source,
            before,
            after,
        } = attempt;
        if let Some(state) = self.sources.get_mut(source) {
            if *state == after {
                *state = before;
            } else {
                // Another attempt followed; its wait stays.
                state.failures = state.failures.saturating_sub(1);
            }
        }
    }

    /// Forgets the failures of an address, after a success.
    pub(crate) fn reset(&mut self, from: IpAddr) {
        self.sources.remove(Source::network(from));
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::net::clock;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn failed_logins_back_off_per_address() {
        let (mut throttle, mut now) = (LoginThrottle::default(), clock::now());
        let guesser = address("10.0.0.1");
        for _ in 0..FREE_ATTEMPTS {
            throttle.begin_attempt(guesser, now).expect("free");
        }
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = Duration::from_secs(wait);
            assert_eq!(throttle.begin_attempt(guesser, now).expect_err("waits"), wait);
            assert_eq!(throttle.check(guesser, now), Err(wait));
            throttle.check(guesser, now + wait).expect("free");
            throttle.check(address("10.0.0.2"), now).expect("free");
            throttle.begin_attempt(address("10.0.0.2"), now).expect("free");
            throttle.reset(address("10.0.0.2"));
            now += wait;
            throttle.begin_attempt(guesser, now).expect("free");
        }
        now += FORGET_AFTER + Duration::from_secs(1);
        for _ in 0..FREE_ATTEMPTS {
            throttle.begin_attempt(guesser, now).expect("forgotten");
        }
    }

    #[test]
    fn successful_login_resets_its_address() {
        let (mut throttle, now) = (LoginThrottle::default(), clock::now());
        for _ in 0..100 {
            throttle
                .begin_attempt(address("10.0.0.1"), now)
                .expect("right each time");
            throttle.reset(address("10.0.0.1"));
        }
    }

    #[test]
    fn cancelled_attempt_neither_counts_nor_resets() {
        let (mut throttle, now) = (LoginThrottle::default(), clock::now());
        let guesser = address("10.0.0.1");
        for _ in 2..FREE_ATTEMPTS {
            throttle.begin_attempt(guesser, now).expect("free");
            for _ in 0..3 {
                let counted = throttle.begin_attempt(guesser, now).expect("free");
                throttle.cancel_attempt(counted);
            }
        }
        // Two at once, of which one is not checked.
        let counted = throttle.begin_attempt(guesser, now).expect("free");
        throttle.begin_attempt(guesser, now).expect("free");
        throttle.cancel_attempt(counted);
        let wait = throttle
            .begin_attempt(guesser, now)
            .expect_err("all others count");
        assert_eq!(wait, FIRST_WAIT);
    }

    #[test]
    fn ipv6_prefix_counts_as_one_address_in_a_bounded_table() {
        let (mut throttle, now) = (LoginThrottle::default(), clock::now());
        for host in 0..FREE_ATTEMPTS {
            let guesser = address(&format!("2001:db8::{host:x}"));
            throttle.begin_attempt(guesser, now).expect("free");
        }
        throttle
            .begin_attempt(address("2001:db8::ffff"), now)
            .expect_err("the same network");
        for n in 0..10_000_u32 {
            throttle
                .begin_attempt(std::net::Ipv4Addr::from(n).into(), now)
                .expect("new");
        }
        assert_eq!(throttle.sources.len(), SOURCES_MAX);
    }
}
