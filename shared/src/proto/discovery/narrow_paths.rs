//! Addresses behind a path that seems to drop large packets without telling their sender: its MTU is smaller than the
//! interfaces', and ICMP is lost. Links to them use small segments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long links to such an address use small segments.
pub const NARROW_FOR: Duration = Duration::from_secs(600);
/// Most addresses that are kept; the one that expires first is evicted.
pub const NARROW_PATHS_MAX: usize = 1_024;

/// The addresses, and until when each counts as one; see the module.
#[derive(Clone, Debug, Default)]
pub struct NarrowPaths(BTreeMap<IpAddr, Instant>);

impl NarrowPaths {
    /// Adds an address for [`NARROW_FOR`]. Returns whether it was not there.
    pub fn insert(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.0.retain(|_, until| now < *until);
        if self.0.len() >= NARROW_PATHS_MAX
            && !self.0.contains_key(&ip)
            && let Some(first) = self.0.iter().min_by_key(|(_, until)| **until).map(|(ip, _)| *ip)
        {
            self.0.remove(&first);
        }
        self.0.insert(ip, now + NARROW_FOR).is_none()
    }

    /// Whether links to this address use small segments.
    pub fn contains(&self, ip: IpAddr, now: Instant) -> bool {
        self.0.get(&ip).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::clock;

    fn ip(number: usize) -> IpAddr {
        let [.., high, low] = number.to_be_bytes();
        [10, 0, high, low].into()
    }

    #[test]
    fn narrow_path_is_forgotten_after_ten_minutes() {
        let (mut paths, now) = (NarrowPaths::default(), clock::now());
        assert!(paths.insert(ip(1), now));
        assert!(!paths.insert(ip(1), now + Duration::from_secs(1)));
        let end = now + Duration::from_secs(601);
        assert!(paths.contains(ip(1), end - Duration::from_millis(1)));
        assert!(!paths.contains(ip(1), end) && !paths.contains(ip(2), now));
        assert!(paths.insert(ip(1), end));
    }

    #[test]
    fn narrow_paths_are_bounded_and_the_oldest_is_evicted() {
        let (mut paths, now) = (NarrowPaths::default(), clock::now());
        for number in 0..=NARROW_PATHS_MAX {
            let at = now + Duration::from_millis(u64::try_from(number).expect("small"));
            paths.insert(ip(number), at);
        }
        assert_eq!(paths.0.len(), NARROW_PATHS_MAX);
        assert!(!paths.contains(ip(0), now) && paths.contains(ip(NARROW_PATHS_MAX), now));
    }
}
