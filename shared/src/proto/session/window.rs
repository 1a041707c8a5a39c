//! The send window: how many bytes may be unacknowledged, so that a link is used fully and commands do not wait.
//!
//! The bytes of a file share the link with commands, and a command waits for everything that is in the link's queue.
//! So the window follows the delay, as in LEDBAT (RFC 6817): the shortest time that a frame ever took to be
//! acknowledged is the delay of the empty link; anything above it is queueing. While the queueing delay is below
//! [`QUEUE_DELAY_TARGET`] the window grows, and faster with less delay; above it, the window shrinks.
//!
//! A link that is never empty would be measured as a slow one. So every `PROBE_INTERVAL` the sender waits until all
//! frames are acknowledged, and one frame that is sent alone measures the empty link.
//!
//! Invariant: the window stays between its smallest and largest size; if these are equal, it never changes.

use std::time::{Duration, Instant};

/// Target for the delay that our own frames cause in the link's queue. 25 ms is below what a person notices.
pub const QUEUE_DELAY_TARGET: Duration = Duration::from_millis(25);
/// Time between two measurements of the empty link.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// The window does not grow while less than this share of it (1/2) is in use: then the sender was not held back by
/// it.
const USED_WINDOW_DIVISOR: usize = 2;
/// Smallest file chunk that is sent, in bytes.
pub const SENT_CHUNK_BYTES_MIN: usize = 16 * 1024;
/// Largest file chunk that is sent, in bytes.
pub const SENT_CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Chunks in a full window: a chunk as large as the window would delay every other frame by its whole length.
const CHUNKS_PER_WINDOW: usize = 4;

/// The window of one link; see the module.
#[derive(Debug)]
pub struct Window {
    bytes: usize,
    min_bytes: usize,
    max_bytes: usize,
    /// Delay of the empty link.
    base_delay: Option<Duration>,
    probe: DelayProbe,
}

#[derive(Clone, Copy, Debug)]
enum DelayProbe {
    /// Time of the next measurement; `None` before the first frame.
    Scheduled(Option<Instant>),
    /// One frame at a time, until one that was sent alone is acknowledged.
    Probing,
}

/// Measurements from one acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// Bytes that were unacknowledged before it.
    pub in_flight_before: usize,
    /// Bytes that it acknowledges.
    pub bytes: usize,
    /// Time from the sending of its last frame to the acknowledgement.
    pub delay: Duration,
    /// Whether no other frame was unacknowledged when that frame was sent.
    pub only_in_flight: bool,
}

impl Window {
    /// A window at its smallest size. `least` and `most` are in bytes.
    pub fn new(min_bytes: usize, max_bytes: usize) -> Self {
        Self {
            bytes: min_bytes,
            min_bytes,
            max_bytes,
            base_delay: None,
            probe: DelayProbe::Scheduled(None),
        }
    }

    /// Current size in bytes: no more is sent once this much is unacknowledged. One frame is always sent if none is.
    pub fn bytes(&self) -> usize {
        match self.probe {
            DelayProbe::Scheduled(_) => self.bytes,
            DelayProbe::Probing => 0,
        }
    }

    /// Best size of a file chunk, in bytes.
    pub fn chunk_bytes(&self) -> usize {
        (self.bytes / CHUNKS_PER_WINDOW).clamp(SENT_CHUNK_BYTES_MIN, SENT_CHUNK_BYTES_MAX)
    }

    /// Forgets all measurements, for a new link.
    pub fn reset(&mut self) {
        *self = Self::new(self.min_bytes, self.max_bytes);
    }

    /// Adjusts the window by an acknowledgement.
    pub fn on_acknowledged(&mut self, ack: Acknowledged, now: Instant) {
        if self.min_bytes == self.max_bytes {
            return;
        }
        let Acknowledged {
            in_flight_before: before,
            bytes,
            delay,
            only_in_flight: alone,
        } = ack;
        let probing = matches!(self.probe, DelayProbe::Probing);
        if alone && probing {
            self.base_delay = Some(delay);
            self.probe = DelayProbe::Scheduled(Some(now + PROBE_INTERVAL));
            // Restoring the full window at once would create a queue that was not there before.
            self.bytes = (self.bytes / 2).max(self.min_bytes);
            return;
        }
        let empty = self.base_delay.map_or(delay, |empty| empty.min(delay));
        self.base_delay = Some(empty);
        match self.probe {
            // Frames that were sent before the measurement began say nothing new.
            DelayProbe::Probing => return,
            DelayProbe::Scheduled(None) => self.probe = DelayProbe::Scheduled(Some(now + PROBE_INTERVAL)),
            DelayProbe::Scheduled(Some(at)) if now >= at => self.probe = DelayProbe::Probing,
            DelayProbe::Scheduled(Some(_)) => {}
        }
        let queue = delay.saturating_sub(empty);
        let part = |time: Duration| {
            let share =
                time.min(QUEUE_DELAY_TARGET).as_micros() * bytes as u128 / QUEUE_DELAY_TARGET.as_micros();
            usize::try_from(share).unwrap_or(bytes)
        };
        let bytes = if queue >= QUEUE_DELAY_TARGET {
            // Shrinks to half at most, in the time that one window takes.
            self.bytes.saturating_sub(part(queue - QUEUE_DELAY_TARGET) / 2)
        } else if before.saturating_mul(USED_WINDOW_DIVISOR) >= self.bytes {
            // Doubles at most, in the time that one window takes; more slowly once there is queueing, because bytes
            // that are added now show up only when the whole window is acknowledged.
            let more = part(QUEUE_DELAY_TARGET - queue);
            let divisor = if queue > QUEUE_DELAY_TARGET / 5 { 4 } else { 1 };
            self.bytes.saturating_add(more / divisor)
        } else {
            // The window did not hold the sender back.
            self.bytes
        };
        self.bytes = bytes.clamp(self.min_bytes, self.max_bytes);
    }
}
