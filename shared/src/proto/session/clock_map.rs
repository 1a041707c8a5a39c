//! Converts deadlines between the clocks of two machines, without synchronising them.
//!
//! Each side sends its own clock with its frames: the stamp, in milliseconds since its session began. A stamp is
//! written before it is received. So a side that wants something done before its own `deadline` may ask for it until
//! `stamp + (deadline − time of receiving the stamp)` on the other's clock. That is never later than the deadline,
//! however long the stamp, the request or either process was delayed, and earlier by at most the transit time of the
//! stamp. Of all stamps the one that allows the latest deadline is kept: a stamp that was delayed would shorten every
//! deadline by its delay.
//!
//! No two clocks run at the same rate. Their rates are assumed to differ by less than one part in
//! [`CLOCK_DRIFT_DIVISOR`], and deadlines are shortened by that part.
//!
//! Invariant: rounding is always towards earlier. A peer that sends wrong stamps can shorten or lengthen only the
//! deadlines of requests to itself, and can never lengthen one of ours beyond the time to live that came with it.

use std::time::{Duration, Instant};

use crate::proto::wire::Header;

/// The assumed rate difference is 1/1000: larger than that between two kernels that both adjust their clocks (at most
/// 500 ppm each).
const CLOCK_DRIFT_DIVISOR: u32 = 1_000;

/// The mapping between the local clock and the peer's; see the module.
#[derive(Debug)]
pub(super) struct ClockMap {
    /// Zero of the local clock.
    start: Instant,
    /// The best stamp of the peer on this link, and the time of receiving it.
    peer_clock: Option<(u64, Instant)>,
}

impl ClockMap {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            peer_clock: None,
        }
    }

    /// The local clock in milliseconds, to be sent to the peer.
    pub(super) fn local_ms(&self, now: Instant) -> u64 {
        millis_down(now.saturating_duration_since(self.start))
    }

    /// Takes the peer's stamp from a received frame, if it has one.
    pub(super) fn observe(&mut self, header: &Header, now: Instant) {
        if let Some(stamp) = header.stamp
            && self.to_peer_clock(now).is_none_or(|latest| stamp >= latest)
        {
            self.peer_clock = Some((stamp, now));
        }
    }

    /// Forgets the peer's clock, for a new link: the peer's process may be another one.
    pub(super) fn reset(&mut self) {
        self.peer_clock = None;
    }

    /// A local deadline on the peer's clock; `None` while the peer has sent no stamp.
    pub(super) fn to_peer_clock(&self, deadline: Instant) -> Option<u64> {
        let (stamp, received_at) = self.peer_clock?;
        Some(match deadline.checked_duration_since(received_at) {
            Some(remaining) => stamp.saturating_add(millis_down(remaining - remaining / CLOCK_DRIFT_DIVISOR)),
            None => stamp.saturating_sub(millis_up(received_at.saturating_duration_since(deadline))),
        })
    }

    /// The deadline of a frame received at `now`: the earlier of what its two keys say. `None` if it has neither, or
    /// if the deadline is beyond the range of `Instant`.
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
