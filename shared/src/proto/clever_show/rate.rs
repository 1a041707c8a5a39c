//! How often something may happen.

use std::time::{Duration, Instant};

/// Turns that come back with time, and as many as may be taken at once.
#[derive(Clone, Debug)]
pub struct Pace {
    each: Duration,
    most: u32,
    /// Taken and not come back yet, as the time until all are there again.
    owed: Duration,
    at: Option<Instant>,
}

impl Pace {
    /// So many in a second; at least one. One second's worth may be taken at once.
    pub fn per_second(rate: u32) -> Self {
        Self::with_burst(rate, rate)
    }

    /// So many in a second, and so many at once; at least one.
    pub fn with_burst(rate: u32, burst: u32) -> Self {
        Self {
            each: Duration::from_secs(1) / rate.max(1),
            most: burst.max(1),
            owed: Duration::ZERO,
            at: None,
        }
    }

    /// Takes a turn.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.owed = self.owed.saturating_sub(passed);
        let most = self.each * self.most;
        let after = self.owed + self.each;
        if after > most {
            return Err(after - most);
        }
        self.owed = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_then_one_by_one() {
        let start = crate::net::clock::now();
        let mut pace = Pace::per_second(4);
        for _ in 0..4 {
            assert_eq!(pace.take(start), Ok(()));
        }
        assert_eq!(pace.take(start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        assert_eq!(pace.take(later), Ok(()));
        assert_eq!(pace.take(later), Err(Duration::from_millis(250)));
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| pace.take(much_later).is_ok()).count(), 4);
    }
}
