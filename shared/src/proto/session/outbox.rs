//! Messages to one peer that are queued, and those that were sent but not acknowledged. The outbox outlives links.
//!
//! Invariants: within a lane the order never changes; a message is in exactly one of the two places until it is
//! acknowledged, has expired, or is lost with its peer; both places are bounded.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::window::{Acknowledged, Window};
use crate::proto::wire::Lane;
use crate::proto::wire::encoded::EncodedFrame;

/// Limits on queued and on unacknowledged messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Most messages that are queued, for each lane.
    pub queued_max: usize,
    /// No more are queued once this many bytes are queued, over all lanes. One message always fits an empty lane.
    pub queued_bytes_max: usize,
    /// Most messages that are sent and not acknowledged.
    pub window_max: usize,
    /// Largest window: no more is sent once this many bytes are not acknowledged.
    pub window_bytes_max: usize,
    /// Smallest window, for a link of low throughput; see [`Window`]. If it equals the largest, the window never
    /// changes.
    pub window_bytes_min: usize,
}

impl OutboxLimits {
    /// Limits for commands and replies.
    pub const CONTROL: Self = Self {
        queued_max: 4_096,
        queued_bytes_max: 8 * 1024 * 1024,
        window_max: 4_096,
        window_bytes_max: 4 * 1024 * 1024,
        window_bytes_min: 4 * 1024 * 1024,
    };
    /// Limits for files. What is in the window is kept in memory until the receiver has acknowledged it.
    pub const BULK: Self = Self {
        queued_max: 16,
        queued_bytes_max: 512 * 1024,
        window_max: 256,
        window_bytes_max: 2 * 1024 * 1024,
        window_bytes_min: 32 * 1024,
    };
}

/// The lane is full and nothing was queued. The caller retries later or gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("busy: {waiting} messages wait for this peer already")]
pub struct Busy {
    /// Messages queued in that lane.
    pub waiting: usize,
}

/// A queued message.
#[derive(Clone, Debug)]
pub struct OutboxItem {
    /// The encoded frame.
    pub frame: EncodedFrame,
    /// Its priority.
    pub lane: Lane,
    /// Time after which it is not sent any more.
    pub deadline: Option<Instant>,
    /// Number of the request, if the message is one.
    pub request: Option<u64>,
}

/// The acknowledgement of a smaller frame may be delayed, so that it says nothing about the link's delay. In bytes.
pub(super) const DELAY_SAMPLE_BYTES_MIN: usize = 4 * 1024;

#[derive(Debug)]
struct SentItem {
    item: OutboxItem,
    sent_at: Instant,
    /// Whether no other frame was unacknowledged when this one was sent.
    only_in_flight: bool,
}

/// The outbox of one session; see the module.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    emergency: VecDeque<OutboxItem>,
    control: VecDeque<OutboxItem>,
    /// Only the newest telemetry is kept.
    telemetry: Option<OutboxItem>,
    bulk: VecDeque<OutboxItem>,
    queued_bytes: usize,
    /// Sent items, oldest first; the last has number `next_seq - 1`.
    unacked: VecDeque<SentItem>,
    unacked_bytes: usize,
    window: Window,
    next_seq: u64,
    /// Lower bound of the deadlines of queued items; `None` if none has a deadline.
    earliest_deadline: Option<Instant>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            emergency: VecDeque::new(),
            control: VecDeque::new(),
            telemetry: None,
            bulk: VecDeque::new(),
            queued_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            window: Window::new(limits.window_bytes_min, limits.window_bytes_max),
            next_seq: 1,
            earliest_deadline: None,
        }
    }

    /// Queues an item at the end of its lane. A telemetry item replaces the queued one.
    ///
    /// # Errors
    /// [`Busy`] if the lane is full. The emergency lane has a limit of its own, so that other lanes cannot fill it.
    pub fn push(&mut self, item: OutboxItem) -> Result<(), Busy> {
        let bytes = item.frame.memory_bytes();
        let deadline = item.deadline;
        let has_room = self.has_room(item.lane);
        let queue = match item.lane {
            Lane::Telemetry => {
                let old = self
                    .telemetry
                    .replace(item)
                    .map_or(0, |old| old.frame.memory_bytes());
                self.queued_bytes = self.queued_bytes + bytes - old;
                self.track_deadline(deadline);
                return Ok(());
            }
            Lane::Emergency => &mut self.emergency,
            Lane::Control => &mut self.control,
            Lane::Bulk => &mut self.bulk,
        };
        if !has_room {
            return Err(Busy { waiting: queue.len() });
        }
        queue.push_back(item);
        self.queued_bytes += bytes;
        self.track_deadline(deadline);
        Ok(())
    }

    /// Whether the lane accepts another item now: if so, [`Self::push`] succeeds.
    pub fn has_room(&self, lane: Lane) -> bool {
        let waiting = match lane {
            Lane::Telemetry => return true,
            Lane::Emergency => return self.emergency.len() < self.limits.queued_max,
            Lane::Control => self.control.len(),
            Lane::Bulk => self.bulk.len(),
        };
        waiting == 0 || (waiting < self.limits.queued_max && self.queued_bytes < self.limits.queued_bytes_max)
    }

    /// The next item to send, by lane, with its sequence number (telemetry has none). Items with a number are kept as
    /// unacknowledged until [`Self::on_acknowledged`].
    pub fn next_to_send(&mut self, now: Instant) -> Option<(Option<u64>, Cow<'_, OutboxItem>)> {
        let window_full = !self.unacked.is_empty()
            && (self.unacked.len() >= self.limits.window_max || self.unacked_bytes >= self.window.bytes());
        // An emergency frame is sent although the window is full: it is small and must not wait for acknowledgements.
        // Only a peer that reads and never acknowledges reaches this limit.
        let over_window_max = self.limits.window_max.saturating_add(self.limits.queued_max);
        #[cfg(feature = "planted-bugs")]
        if crate::proto::planted::is(crate::proto::planted::Bug::LaneInversion)
            && !window_full
            && let Some(item) = self.control.pop_front()
        {
            return Some(self.number(item, now));
        }
        if self.unacked.len() < over_window_max
            && let Some(item) = self.emergency.pop_front()
        {
            return Some(self.number(item, now));
        }
        if !window_full && let Some(item) = self.control.pop_front() {
            return Some(self.number(item, now));
        }
        if let Some(item) = self.telemetry.take() {
            self.queued_bytes -= item.frame.memory_bytes();
            return Some((None, Cow::Owned(item)));
        }
        if window_full {
            return None;
        }
        let item = self.bulk.pop_front()?;
        Some(self.number(item, now))
    }

    fn number(&mut self, item: OutboxItem, now: Instant) -> (Option<u64>, Cow<'_, OutboxItem>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.queued_bytes -= item.frame.memory_bytes();
        self.unacked_bytes += item.frame.memory_bytes();
        let sent = SentItem {
            only_in_flight: self.unacked.is_empty(),
            sent_at: now,
            item,
        };
        (Some(seq), Cow::Borrowed(&self.unacked.push_back_mut(sent).item))
    }

    /// Whether any item is queued.
    pub fn has_queued(&self) -> bool {
        self.telemetry.is_some()
            || [&self.emergency, &self.control, &self.bulk]
                .iter()
                .any(|q| !q.is_empty())
    }

    /// Numbers of the queued requests.
    pub fn queued_requests(&self) -> BTreeSet<u64> {
        let queued = [&self.emergency, &self.control, &self.bulk].into_iter().flatten();
        queued
            .chain(&self.telemetry)
            .filter_map(|item| item.request)
            .collect()
    }

    /// The highest number that has been sent; 0 before the first.
    pub fn sent(&self) -> u64 {
        self.next_seq - 1
    }

    /// The highest number that has been acknowledged; 0 before the first.
    pub fn acknowledged(&self) -> u64 {
        self.sent() - self.unacked.len() as u64
    }

    /// When the oldest of the unacknowledged items was sent on this link.
    pub fn oldest_unacknowledged(&self) -> Option<Instant> {
        self.unacked.front().map(|sent| sent.sent_at)
    }

    /// Size of all unacknowledged items, in bytes of memory.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.unacked_bytes
    }

    /// Removes the items that the peer has read, up to `number`, and adjusts the window by their delay. Returns
    /// false, and changes nothing, if `number` was never sent.
    #[must_use]
    pub fn on_acknowledged(&mut self, number: u64, now: Instant) -> bool {
        if number > self.sent() {
            return false;
        }
        let before = self.unacked_bytes;
        let mut last = None;
        while self.acknowledged() < number
            && let Some(sent) = self.unacked.pop_front()
        {
            self.unacked_bytes -= sent.item.frame.memory_bytes();
            last = Some(sent);
        }
        if let Some(sent) = last.filter(|sent| sent.item.frame.memory_bytes() >= DELAY_SAMPLE_BYTES_MIN) {
            let ack = Acknowledged {
                in_flight_before: before,
                bytes: before - self.unacked_bytes,
                delay: now.saturating_duration_since(sent.sent_at),
                only_in_flight: sent.only_in_flight,
            };
            self.window.on_acknowledged(ack, now);
        }
        true
    }

    /// Best size of a file chunk now, in bytes.
    pub fn chunk_bytes(&self) -> usize {
        self.window.chunk_bytes()
    }

    /// Prepares a new link of the session: what was sent and never read goes back to the front, oldest first, and is
    /// numbered again. Call [`Self::on_acknowledged`] with the peer's resume point first.
    pub fn rewind(&mut self) {
        self.next_seq -= self.unacked.len() as u64;
        self.window.reset();
        #[cfg(feature = "planted-bugs")]
        if crate::proto::planted::is(crate::proto::planted::Bug::DropNewestOnReconnect) {
            self.unacked.pop_back();
        }
        while let Some(SentItem { item, .. }) = self.unacked.pop_back() {
            self.queued_bytes += item.frame.memory_bytes();
            self.track_deadline(item.deadline);
            match item.lane {
                Lane::Emergency => self.emergency.push_front(item),
                Lane::Control | Lane::Telemetry => self.control.push_front(item),
                Lane::Bulk => self.bulk.push_front(item),
            }
        }
        self.unacked_bytes = 0;
    }

    /// Restarts the numbering, because the peer has restarted. Returns the items that were sent and never
    /// acknowledged: it is unknown whether the old process has handled them. Queued items stay.
    pub fn reset(&mut self) -> Vec<OutboxItem> {
        self.next_seq = 1;
        self.unacked_bytes = 0;
        self.window.reset();
        self.unacked.drain(..).map(|sent| sent.item).collect()
    }

    /// Removes and returns the queued items whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<OutboxItem> {
        if self.earliest_deadline.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let late = |item: &OutboxItem| item.deadline.is_some_and(|deadline| now >= deadline);
        let mut expired = Vec::new();
        self.earliest_deadline = None;
        for queue in [&mut self.emergency, &mut self.control, &mut self.bulk] {
            queue.retain(|item| {
                if late(item) {
                    expired.push(item.clone());
                }
                !late(item)
            });
        }
        expired.extend(self.telemetry.take_if(|item| late(item)));
        let left = [&self.emergency, &self.control, &self.bulk].into_iter().flatten();
        self.earliest_deadline = left.chain(&self.telemetry).filter_map(|item| item.deadline).min();
        self.queued_bytes -= expired
            .iter()
            .map(|item| item.frame.memory_bytes())
            .sum::<usize>();
        expired
    }

    /// When [`Self::expire`] may return something.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.earliest_deadline
    }

    fn track_deadline(&mut self, deadline: Option<Instant>) {
        self.earliest_deadline = [self.earliest_deadline, deadline].into_iter().flatten().min();
    }
}
