//! How much may be on its way at once: as much as the link carries without making others wait.
//!
//! A file's bytes share the link with commands. Whatever lies in the link's queue is what a command has to wait for, so
//! the window follows the delay, as LEDBAT does: the least time that a frame ever took to be acknowledged is the empty
//! link's; what it takes longer is queue. While that is below [`QUEUE_DELAY_TARGET`] the window grows, the faster the less
//! queue there is; above, it shrinks.
//!
//! A link that is never empty would be taken for a slow one. So every `LOOK_INTERVAL` all that is on its way is let
//! through, and one frame sent alone shows the empty link.
//!
//! Invariant: between the least and the most; a window whose least is its most never changes.

use std::time::{Duration, Instant};

/// How long a queue of ours may be on the link.
pub const QUEUE_DELAY_TARGET: Duration = Duration::from_millis(25);
/// How often the empty link is looked at.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// The link is not known to be empty before this share of the window is unused.
const USED_WINDOW_DIVISOR: usize = 2;
/// Shortest chunk of a file that is worth a frame, in bytes.
pub const SENT_CHUNK_BYTES_MIN: usize = 16 * 1024;
/// Longest chunk of a file that we send, in bytes.
pub const SENT_CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Chunks in a window: one that fills it makes everything else wait for its whole length.
const CHUNKS_PER_WINDOW: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Window {
    bytes: usize,
    min_bytes: usize,
    max_bytes: usize,
    /// What the empty link takes.
    base_delay: Option<Duration>,
    probe: DelayProbe,
}

#[derive(Clone, Copy, Debug)]
enum DelayProbe {
    /// Not before; `None` before the first frame.
    Scheduled(Option<Instant>),
    /// One frame at a time, until one that was alone has come through.
    Probing,
}

/// What an acknowledgement shows.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// How much was on its way before.
    pub in_flight_before: usize,
    /// How much of it has come through.
    pub bytes: usize,
    /// How long the last frame took, from its writing on.
    pub delay: Duration,
    /// Whether nothing else was on its way when that was written.
    pub only_in_flight: bool,
}

impl Window {
    /// At its least.
    pub fn new(least: usize, most: usize) -> Self {
        Self {
            bytes: least,
            min_bytes: least,
            max_bytes: most,
            base_delay: None,
            probe: DelayProbe::Scheduled(None),
        }
    }

    /// No more is sent once this much is on its way; one frame always is, if there is none.
    pub fn bytes(&self) -> usize {
        match self.probe {
            DelayProbe::Scheduled(_) => self.bytes,
            DelayProbe::Probing => 0,
        }
    }

    /// How long a chunk of a file is best.
    pub fn chunk_bytes(&self) -> usize {
        (self.bytes / CHUNKS_PER_WINDOW).clamp(SENT_CHUNK_BYTES_MIN, SENT_CHUNK_BYTES_MAX)
    }

    /// Another link, of which nothing is known.
    pub fn reset(&mut self) {
        *self = Self::new(self.min_bytes, self.max_bytes);
    }

    /// Something has come through.
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
            // All of it at once would be a queue that was not there before.
            self.bytes = (self.bytes / 2).max(self.min_bytes);
            return;
        }
        let empty = self.base_delay.map_or(delay, |empty| empty.min(delay));
        self.base_delay = Some(empty);
        match self.probe {
            // What is still on its way from before the look says nothing new.
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
            // Half of the window in the time that all of it takes, at most.
            self.bytes.saturating_sub(part(queue - QUEUE_DELAY_TARGET) / 2)
        } else if before.saturating_mul(USED_WINDOW_DIVISOR) >= self.bytes {
            // Twice the window in the time that all of it takes, at most; with care once there is a queue, because
            // what is added now shows only when all that is on its way has come through.
            let more = part(QUEUE_DELAY_TARGET - queue);
            let divisor = if queue > QUEUE_DELAY_TARGET / 5 { 4 } else { 1 };
            self.bytes.saturating_add(more / divisor)
        } else {
            // It was not the window that held the sender back.
            self.bytes
        };
        self.bytes = bytes.clamp(self.min_bytes, self.max_bytes);
    }
}
