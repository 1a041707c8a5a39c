//! How often something may happen.

use std::time::{Duration, Instant};

/// Turns that come back with time, and as many as may be taken at once.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    interval: Duration,
    burst: u32,
    /// Taken and not come back yet, as the time until all are there again.
    debt: Duration,
    updated_at: Option<Instant>,
}

impl TokenBucket {
    /// So many in a second; at least one. One second's worth may be taken at once.
    pub fn per_second(rate: u32) -> Self {
        Self::with_burst(rate, rate)
    }

    /// So many in a second, and so many at once; at least one.
    pub fn with_burst(rate: u32, burst: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate.max(1),
            burst: burst.max(1),
            debt: Duration::ZERO,
            updated_at: None,
        }
    }

    /// Takes a turn.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn try_take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = self
            .updated_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.updated_at = Some(self.updated_at.map_or(now, |at| at.max(now)));
        self.debt = self.debt.saturating_sub(passed);
        let most = self.interval * self.burst;
        let after = self.debt + self.interval;
        if after > most {
            return Err(after - most);
        }
        self.debt = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_taken_at_once_then_one_per_interval() {
        let start = crate::net::clock::now();
        let mut pace = TokenBucket::per_second(4);
        for _ in 0..4 {
            assert_eq!(pace.try_take(start), Ok(()));
        }
        assert_eq!(pace.try_take(start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        assert_eq!(pace.try_take(later), Ok(()));
        assert_eq!(pace.try_take(later), Err(Duration::from_millis(250)));
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| pace.try_take(much_later).is_ok()).count(), 4);
    }
}
