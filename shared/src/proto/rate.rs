//! Rate limits: token buckets, state per source address, and throttles for repeated log lines. Each takes `now` as an
//! argument; none grows without a bound.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A token bucket: one token returns per interval, up to a burst. A new bucket is full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    interval: Duration,
    /// The time in which an empty bucket fills: the interval times the burst.
    capacity: Duration,
    /// The time until the bucket is full, at the time of its last use.
    debt: Duration,
    updated_at: Option<Instant>,
}

impl TokenBucket {
    /// `rate` tokens a second, at least one; as many may be taken at once.
    pub fn per_second(rate: u32) -> Self {
        Self::with_burst(rate, rate)
    }

    /// `rate` tokens a second and `burst` at once, each at least one.
    pub fn with_burst(rate: u32, burst: u32) -> Self {
        Self::every(Duration::from_secs(1) / rate.max(1), burst)
    }

    /// One token per `interval`, and `burst` at once, at least one.
    pub fn every(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            capacity: interval.saturating_mul(burst.max(1)),
            debt: Duration::ZERO,
            updated_at: None,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The time until there is one.
    pub fn try_take(&mut self, now: Instant) -> Result<(), Duration> {
        self.debt = self.debt_at(now);
        self.updated_at = Some(self.updated_at.map_or(now, |at| at.max(now)));
        let debt = self.debt + self.interval;
        if debt > self.capacity {
            return Err(debt - self.capacity);
        }
        self.debt = debt;
        Ok(())
    }

    /// Whether the bucket holds what a new one would.
    pub fn is_full(&self, now: Instant) -> bool {
        self.debt_at(now).is_zero()
    }

    fn debt_at(&self, now: Instant) -> Duration {
        let passed = self.updated_at.map(|at| now.saturating_duration_since(at));
        self.debt.saturating_sub(passed.unwrap_or_default())
    }
}

/// What connections and datagrams are counted by: an IPv4 address, or a /64 of IPv6, since a host that has one address
/// of a /64 can use all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl Source {
    /// The source of an address. A link-local IPv6 address counts by itself: all hosts of a link share one /64, so that
    /// one of them could use up what the others may.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Self(ip),
            IpAddr::V4(_) | IpAddr::V6(_) => Self::network(ip),
        }
    }

    /// The same, with link-local addresses by their /64 too: for guesses, where changing addresses must not help.
    pub fn network(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into()),
            v4 => Self(v4),
        }
    }
}

/// State per source, for at most so many sources.
#[derive(Clone, Debug)]
pub struct SourceTable<T> {
    entries: BTreeMap<Source, T>,
    max: usize,
}

impl<T> SourceTable<T> {
    /// A table of at most `max` sources.
    pub fn new(max: usize) -> Self {
        let entries = BTreeMap::new();
        Self { entries, max }
    }

    /// The state of a source, which is made of `new` if there is none. If there is no room for it, entries that `is_idle`
    /// are removed; `None` if all are in use.
    pub fn entry(
        &mut self,
        source: Source,
        is_idle: impl Fn(&T) -> bool,
        new: impl FnOnce() -> T,
    ) -> Option<&mut T> {
        if self.entries.len() >= self.max && !self.entries.contains_key(&source) {
            self.entries.retain(|_, state| !is_idle(state));
            if self.entries.len() >= self.max {
                return None;
            }
        }
        Some(self.entries.entry(source).or_insert_with(new))
    }

    /// The state of a source.
    pub fn get(&self, source: Source) -> Option<&T> {
        self.entries.get(&source)
    }

    /// The state of a source, to change it.
    pub fn get_mut(&mut self, source: Source) -> Option<&mut T> {
        self.entries.get_mut(&source)
    }

    /// Forgets a source.
    pub fn remove(&mut self, source: Source) {
        self.entries.remove(&source);
    }

    /// Forgets the source with the smallest key, such as the time of its last use.
    pub fn remove_min_by_key<K: Ord>(&mut self, key: impl Fn(&T) -> K) {
        let min = self.entries.iter().min_by_key(|(_, state)| key(state));
        if let Some(source) = min.map(|(source, _)| *source) {
            self.remove(source);
        }
    }

    /// The number of sources.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Lets events of one kind into the log as often as a token bucket allows, and counts the others.
#[derive(Clone, Debug)]
pub struct Throttle {
    bucket: TokenBucket,
    suppressed: u64,
}

impl Throttle {
    /// A throttle with this bucket.
    pub fn new(bucket: TokenBucket) -> Self {
        let suppressed = 0;
        Self { bucket, suppressed }
    }

    /// Counts an event. If it is to be logged, returns the number of events since the last one that was, itself included.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.suppressed += 1;
        self.bucket.try_take(now).ok()?;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A [`Throttle`] for each kind of event, of at most so many kinds: the kind logged longest ago is forgotten for a new one.
#[derive(Clone, Debug)]
pub struct KeyedThrottle<K> {
    /// Oldest first.
    kinds: VecDeque<(K, Throttle)>,
    bucket: TokenBucket,
    max: usize,
}

impl<K: PartialEq> KeyedThrottle<K> {
    /// Throttles with this bucket each, for at most `max` kinds.
    pub fn new(bucket: TokenBucket, max: usize) -> Self {
        let kinds = VecDeque::new();
        Self { kinds, bucket, max }
    }

    /// Counts an event of a kind: see [`Throttle::count`].
    pub fn count(&mut self, kind: K, now: Instant) -> Option<u64> {
        let known = self.kinds.iter().position(|(known, _)| *known == kind);
        let mut throttle = match known {
            Some(index) => {
                let (_, throttle) = self.kinds.get_mut(index)?;
                let count = throttle.count(now)?;
                let throttle = self.kinds.remove(index)?.1;
                self.kinds.push_back((kind, throttle));
                return Some(count);
            }
            None => Throttle::new(self.bucket.clone()),
        };
        if self.kinds.len() >= self.max {
            self.kinds.pop_front();
        }
        let count = throttle.count(now);
        self.kinds.push_back((kind, throttle));
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().expect("an address"))
    }

    #[test]
    fn burst_is_taken_at_once_then_one_per_interval() {
        let start = crate::net::clock::now();
        let mut bucket = TokenBucket::per_second(4);
        for _ in 0..4 {
            assert_eq!(bucket.try_take(start), Ok(()));
        }
        assert_eq!(bucket.try_take(start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        assert!(!bucket.is_full(later));
        assert_eq!(bucket.try_take(later), Ok(()));
        assert_eq!(bucket.try_take(later), Err(Duration::from_millis(250)));
        let much_later = start + Duration::from_secs(60);
        assert!(bucket.is_full(much_later));
        assert_eq!((0..9).filter(|_| bucket.try_take(much_later).is_ok()).count(), 4);
    }

    #[test]
    fn ipv6_sources_are_64_prefixes_except_link_local() {
        assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(source("2001:db8:0:7::1"), source("2001:db8:0:7:ffff::2"));
        assert_ne!(source("2001:db8:0:7::1"), source("2001:db8:0:8::1"));
        assert_ne!(source("fe80::1"), source("fe80::2"));
        let network = |text: &str| Source::network(text.parse().expect("an address"));
        assert_eq!(network("fe80::1"), network("fe80::2"));
        assert_eq!(network("::ffff:10.0.0.1"), source("10.0.0.1"));
    }

    #[test]
    fn full_table_removes_idle_sources_only() {
        let mut table = SourceTable::new(2);
        let is_idle = |uses: &u32| *uses == 0;
        let mut entry = |text: &str, uses| table.entry(source(text), is_idle, || uses).copied();
        assert_eq!(entry("10.0.0.1", 1), Some(1));
        assert_eq!(entry("10.0.0.2", 0), Some(0));
        assert_eq!(entry("10.0.0.1", 7), Some(1), "a known source needs no room");
        assert_eq!(entry("10.0.0.3", 2), Some(2));
        assert_eq!(entry("10.0.0.4", 3), None);
        table.remove_min_by_key(|uses| *uses);
        assert_eq!(table.get(source("10.0.0.1")), None);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn throttle_passes_first_event_then_counts_the_others() {
        let (start, interval) = (crate::net::clock::now(), Duration::from_secs(10));
        let mut throttle = Throttle::new(TokenBucket::every(interval, 1));
        assert_eq!(throttle.count(start), Some(1));
        for _ in 0..1_000 {
            assert_eq!(throttle.count(start + interval / 2), None);
        }
        assert_eq!(throttle.count(start + interval), Some(1_001));
    }

    #[test]
    fn keyed_throttle_forgets_the_kind_logged_longest_ago() {
        let (start, interval) = (crate::net::clock::now(), Duration::from_secs(10));
        let mut throttle = KeyedThrottle::new(TokenBucket::every(interval, 1), 2);
        assert_eq!(throttle.count('a', start), Some(1));
        assert_eq!(throttle.count('b', start), Some(1));
        assert_eq!(throttle.count('a', start), None);
        assert_eq!(throttle.count('a', start + interval), Some(2));
        assert_eq!(throttle.count('c', start + interval), Some(1), "b makes room");
        assert_eq!(throttle.count('a', start + interval), None);
        assert_eq!(throttle.count('b', start + interval), Some(1));
        assert_eq!(throttle.kinds.len(), 2);
    }
}
