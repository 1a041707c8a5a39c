//! A deadline on the clock of the machine that has to keep it, without either machine knowing the other's clock.
//!
//! Each side tells its own clock as it writes: the stamp, in milliseconds since its session was made. A stamp was
//! written before it came. So whoever wants a thing done before its own `deadline` may ask for it until
//! `stamp + (deadline − when the stamp came)` on the other's clock: that is never later than the deadline, however long
//! the stamp, the asking, or either process was held up, and earlier by no more than the stamp's way took. Of all
//! stamps the one is kept that allows the most: one that was held up on its way would take that from every deadline.
//!
//! No two clocks run alike. They are taken to differ by less than [`RATE_DIFFERENCE`], and that part is given away.
//!
//! Invariant: what is rounded is rounded towards earlier. A peer that tells nonsense can shorten or lengthen only what
//! it is asked itself, and can never lengthen a deadline of ours beyond the time to live that came with it.

use std::time::{Duration, Instant};

use crate::proto::wire::Header;

/// One part in so many: more than two kernels that are both steering their clocks differ by.
const CLOCK_DRIFT_DIVISOR: u32 = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct ClockMap {
    /// Our clock's zero.
    start: Instant,
    /// The best stamp of the peer on this link, and when it came.
    peer_clock: Option<(u64, Instant)>,
}

impl ClockMap {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            peer_clock: None,
        }
    }

    /// Our clock, for the peer.
    pub(super) fn local_ms(&self, now: Instant) -> u64 {
        millis_down(now.saturating_duration_since(self.start))
    }

    /// The peer's clock, if the frame that came tells it.
    pub(super) fn observe(&mut self, header: &Header, now: Instant) {
        if let Some(stamp) = header.stamp
            && self.to_peer_clock(now).is_none_or(|known| stamp >= known)
        {
            self.peer_clock = Some((stamp, now));
        }
    }

    /// A new link: its welcome tells the clock of whoever is there now.
    pub(super) fn reset(&mut self) {
        self.peer_clock = None;
    }

    /// A deadline of ours on the peer's clock; `None` while the peer has told no clock.
    pub(super) fn to_peer_clock(&self, deadline: Instant) -> Option<u64> {
        let (stamp, came) = self.peer_clock?;
        Some(match deadline.checked_duration_since(came) {
            Some(left) => stamp.saturating_add(millis_down(left - left / CLOCK_DRIFT_DIVISOR)),
            None => stamp.saturating_sub(millis_up(came.saturating_duration_since(deadline))),
        })
    }

    /// The deadline of a frame that came at `now`: the earlier of what its two keys say. What lies beyond all clocks
    /// is no deadline.
    pub(super) fn local_deadline(&self, header: &Header, now: Instant) -> Option<Instant> {
        let after = |from: Instant, ms: Option<u64>| from.checked_add(Duration::from_millis(ms?));
        let deadlines = [after(now, header.ttl), after(self.start, header.until)];
        deadlines.into_iter().flatten().min()
    }
}

/// Whole milliseconds, rounded down.
fn millis_down(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds, rounded up.
pub(super) fn millis_up(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
