//! Judges, when a link has broken, whether its path drops large packets and passes small ones.
//!
//! Such a path has a smaller MTU than the interfaces, and the ICMP that would say so is lost. A link over it works until
//! one side sends more than fits into a packet: what that side sends from then on arrives no more, so the peer hears
//! nothing and closes the link, while this side hears the peer until the end.

use std::time::{Duration, Instant};

use super::Session;

/// Frames of more bytes than this may fill a packet that does not pass.
const LARGE_BYTES: usize = 1_000;
/// Links that have to break one after the other where a single one proves nothing.
const BROKEN_LINKS_MIN: u8 = 2;

/// What a broken link says of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathVerdict {
    /// No sign of a fault.
    Fine,
    /// Small segments are worth a try: the link did not open, though the peer had said hello.
    Doubtful,
    /// It drops large packets.
    DropsLarge,
}

/// What is remembered of large frames, beside the outbox.
#[derive(Debug, Default)]
pub(super) struct PathCheck {
    /// The oldest large frame without a number that may be lost: when it was sent, and the number of the next frame,
    /// whose acknowledgement proves that it has arrived.
    unnumbered: Option<(Instant, u64)>,
    /// Whether large frames have arrived over this link.
    large_arrived: bool,
    broken_links: u8,
}

impl PathCheck {
    pub(super) fn on_attached(&mut self) {
        self.unnumbered = None;
        self.large_arrived = false;
    }

    /// A frame without a number was sent. `arrived_after` is the time after which a link that is still up shows that it
    /// has arrived.
    pub(super) fn on_sent_unnumbered(
        &mut self,
        bytes: usize,
        next_number: u64,
        arrived_after: Duration,
        now: Instant,
    ) {
        self.unnumbered
            .take_if(|(sent_at, _)| now > *sent_at + arrived_after);
        if bytes > LARGE_BYTES {
            self.unnumbered.get_or_insert((now, next_number));
        }
    }

    /// The peer has acknowledged frames up to `number`, of `bytes` in total.
    pub(super) fn on_acknowledged(&mut self, number: u64, bytes: usize) {
        self.unnumbered.take_if(|(_, next)| *next <= number);
        self.large_arrived |= bytes > LARGE_BYTES;
    }
}

impl<T> Session<T> {
    /// Judges the path of a link that has broken without a reason. Call it once for each, before the next is attached;
    /// `opened` says whether frames were exchanged on it.
    pub fn judge_path(&mut self, opened: bool, now: Instant) -> PathVerdict {
        if !opened {
            return PathVerdict::Doubtful;
        }
        let heard_since = |sent_at: Instant| self.last_heard >= sent_at + self.timing.heartbeat;
        let unacknowledged = self
            .outbox
            .oldest_unacknowledged()
            .filter(|_| self.outbox.unacknowledged_bytes() > LARGE_BYTES);
        let proved = unacknowledged.is_some_and(heard_since);
        // Both sides may have sent large frames at once, so that neither heard the other. A radio that is gone looks the
        // same, but not on one link after the other before anything large arrives.
        let both_lost = unacknowledged.is_some() && !self.path_check.large_arrived;
        // No acknowledgement tells whether a frame without a number has arrived.
        let unnumbered_lost = self
            .path_check
            .unnumbered
            .is_some_and(|(sent_at, _)| heard_since(sent_at) && now <= sent_at + self.arrival_proof_time());
        let broken_links = if both_lost || unnumbered_lost {
            self.path_check.broken_links.saturating_add(1)
        } else {
            0
        };
        if proved || broken_links >= BROKEN_LINKS_MIN {
            self.path_check.broken_links = 0;
            return PathVerdict::DropsLarge;
        }
        self.path_check.broken_links = broken_links;
        PathVerdict::Fine
    }

    /// A link that is up this long after a frame shows that the frame has arrived: otherwise the peer would have heard
    /// nothing since, and closed the link.
    pub(super) fn arrival_proof_time(&self) -> Duration {
        self.timing.lost_after + self.timing.heartbeat
    }
}
