//! Slows down whoever guesses: each address may be wrong a few times; then it waits, longer each time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Tries of one address before it waits.
const FREE_ATTEMPTS: u32 = 10;
/// The first wait; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// An address that was not wrong for so long starts anew.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);
/// Most addresses that are remembered; the one that was wrong longest ago makes room.
const ADDRESSES_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LoginThrottle {
    addresses: BTreeMap<IpAddr, AttemptState>,
}

/// A try that was counted, and what was known of its address before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    from: IpAddr,
    before: AttemptState,
    after: AttemptState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AttemptState {
    wrong: u32,
    last_attempt: Instant,
    blocked_until: Instant,
}

impl LoginThrottle {
    /// Whether this address may try at all.
    ///
    /// # Errors
    /// How long it has to wait first.
    pub(super) fn check(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let tries = self.addresses.get(&network(from));
        match tries.map(|tries| tries.blocked_until.saturating_duration_since(now)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// Counts a try as wrong, before anybody knows: many at once are many. Then [`Brake::right`], or
    /// [`Brake::take_back`] if nobody looked at it.
    ///
    /// # Errors
    /// How long this address has to wait first.
    pub(super) fn begin_attempt(&mut self, from: IpAddr, now: Instant) -> Result<Attempt, Duration> {
        let from = network(from);
        if !self.addresses.contains_key(&from) && self.addresses.len() >= ADDRESSES_MAX {
            self.make_room(now);
        }
        let tries = self.addresses.entry(from).or_insert(AttemptState {
            wrong: 0,
            last_attempt: now,
            blocked_until: now,
        });
        if now.saturating_duration_since(tries.last_attempt) > FORGET_AFTER {
            tries.wrong = 0;
        }
        if tries.blocked_until > now {
            return Err(tries.blocked_until - now);
        }
        let before = *tries;
        tries.wrong = tries.wrong.saturating_add(1);
        tries.last_attempt = now;
        if let Some(over) = tries.wrong.checked_sub(FREE_ATTEMPTS) {
            let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(over));
            tries.blocked_until = now + wait.min(WAIT_MAX);
        }
        let after = *tries;
        Ok(Attempt { from, before, after })
    }

    /// Nobody looked at this try: it does not count, and the others still do.
    pub(super) fn cancel_attempt(&mut self, counted: Attempt) {
        let Attempt { from, before, after } = counted;
        if let Some(tries) = self.addresses.get_mut(&from) {
            if *tries == after {
                *tries = before;
            } else {
                // There were others since; when the next may be is theirs to say.
                tries.wrong = tries.wrong.saturating_sub(1);
            }
        }
    }

    /// Somebody at this address was right.
    pub(super) fn reset(&mut self, from: IpAddr) {
        self.addresses.remove(&network(from));
    }

    fn make_room(&mut self, now: Instant) {
        let recent = |tries: &AttemptState| now.saturating_duration_since(tries.last_attempt) <= FORGET_AFTER;
        self.addresses.retain(|_, tries| recent(tries));
        if self.addresses.len() >= ADDRESSES_MAX {
            let oldest = self.addresses.iter().min_by_key(|(_, tries)| tries.last_attempt);
            if let Some(oldest) = oldest.map(|(from, _)| *from) {
                self.addresses.remove(&oldest);
            }
        }
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        },
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
        // Two at once, of which one is not looked at.
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
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
        for n in 0..10_000_u32 {
            throttle
                .begin_attempt(std::net::Ipv4Addr::from(n).into(), now)
                .expect("new");
        }
        assert_eq!(throttle.addresses.len(), ADDRESSES_MAX);
    }
}
