//! Slows down whoever guesses: each address may be wrong a few times; then it waits, longer each time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Tries of one address before it waits.
const FREE: u32 = 10;
/// The first wait; each next one is twice as long.
const WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// An address that was not wrong for so long starts anew.
const FORGET: Duration = Duration::from_secs(15 * 60);
/// Most addresses that are remembered; the one that was wrong longest ago makes room.
const ADDRESSES_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Brake {
    addresses: BTreeMap<IpAddr, Tries>,
}

/// A try that was counted, and what was known of its address before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    from: IpAddr,
    before: Tries,
    after: Tries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tries {
    wrong: u32,
    last: Instant,
    free_at: Instant,
}

impl Brake {
    /// Whether this address may try at all.
    ///
    /// # Errors
    /// How long it has to wait first.
    pub(super) fn look(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let tries = self.addresses.get(&network(from));
        match tries.map(|tries| tries.free_at.saturating_duration_since(now)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// Counts a try as wrong, before anybody knows: many at once are many. Then [`Brake::right`], or
    /// [`Brake::take_back`] if nobody looked at it.
    ///
    /// # Errors
    /// How long this address has to wait first.
    pub(super) fn try_now(&mut self, from: IpAddr, now: Instant) -> Result<Counted, Duration> {
        let from = network(from);
        if !self.addresses.contains_key(&from) && self.addresses.len() >= ADDRESSES_MAX {
            self.make_room(now);
        }
        let tries = self.addresses.entry(from).or_insert(Tries {
            wrong: 0,
            last: now,
            free_at: now,
        });
        if now.saturating_duration_since(tries.last) > FORGET {
            tries.wrong = 0;
        }
        if tries.free_at > now {
            return Err(tries.free_at - now);
        }
        let before = *tries;
        tries.wrong = tries.wrong.saturating_add(1);
        tries.last = now;
        if let Some(over) = tries.wrong.checked_sub(FREE) {
            let wait = WAIT.saturating_mul(2_u32.saturating_pow(over));
            tries.free_at = now + wait.min(WAIT_MAX);
        }
        let after = *tries;
        Ok(Counted { from, before, after })
    }

    /// Nobody looked at this try: it does not count, and the others still do.
    pub(super) fn take_back(&mut self, counted: Counted) {
        let Counted { from, before, after } = counted;
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
    pub(super) fn right(&mut self, from: IpAddr) {
        self.addresses.remove(&network(from));
    }

    fn make_room(&mut self, now: Instant) {
        let recent = |tries: &Tries| now.saturating_duration_since(tries.last) <= FORGET;
        self.addresses.retain(|_, tries| recent(tries));
        if self.addresses.len() >= ADDRESSES_MAX {
            let oldest = self.addresses.iter().min_by_key(|(_, tries)| tries.last);
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
    fn whoever_is_wrong_waits_longer_each_time_and_nobody_else_does() {
        let (mut brake, mut now) = (Brake::default(), clock::now());
        let guesser = address("10.0.0.1");
        for _ in 0..FREE {
            brake.try_now(guesser, now).expect("free");
        }
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = Duration::from_secs(wait);
            assert_eq!(brake.try_now(guesser, now).expect_err("waits"), wait);
            assert_eq!(brake.look(guesser, now), Err(wait));
            brake.look(guesser, now + wait).expect("free");
            brake.look(address("10.0.0.2"), now).expect("free");
            brake.try_now(address("10.0.0.2"), now).expect("free");
            brake.right(address("10.0.0.2"));
            now += wait;
            brake.try_now(guesser, now).expect("free");
        }
        now += FORGET + Duration::from_secs(1);
        for _ in 0..FREE {
            brake.try_now(guesser, now).expect("forgotten");
        }
    }

    #[test]
    fn being_right_clears_an_address() {
        let (mut brake, now) = (Brake::default(), clock::now());
        for _ in 0..100 {
            brake.try_now(address("10.0.0.1"), now).expect("right each time");
            brake.right(address("10.0.0.1"));
        }
    }

    #[test]
    fn a_try_that_nobody_looked_at_does_not_count_and_clears_nothing() {
        let (mut brake, now) = (Brake::default(), clock::now());
        let guesser = address("10.0.0.1");
        for _ in 2..FREE {
            brake.try_now(guesser, now).expect("free");
            for _ in 0..3 {
                let counted = brake.try_now(guesser, now).expect("free");
                brake.take_back(counted);
            }
        }
        // Two at once, of which one is not looked at.
        let counted = brake.try_now(guesser, now).expect("free");
        brake.try_now(guesser, now).expect("free");
        brake.take_back(counted);
        let wait = brake.try_now(guesser, now).expect_err("all others count");
        assert_eq!(wait, WAIT);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_the_table_is_bounded() {
        let (mut brake, now) = (Brake::default(), clock::now());
        for host in 0..FREE {
            let guesser = address(&format!("2001:db8::{host:x}"));
            brake.try_now(guesser, now).expect("free");
        }
        brake
            .try_now(address("2001:db8::ffff"), now)
            .expect_err("the same network");
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
        for n in 0..10_000_u32 {
            brake
                .try_now(std::net::Ipv4Addr::from(n).into(), now)
                .expect("new");
        }
        assert_eq!(brake.addresses.len(), ADDRESSES_MAX);
    }
}
