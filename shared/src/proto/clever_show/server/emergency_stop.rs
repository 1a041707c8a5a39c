//! A drone's emergency stop: what it drops, and how the drone comes to hear of it.
//!
//! Invariant: while one is in force, either it has been written over the connection at hand since it was given, or its
//! frame waits or is being written; whoever asked for it may have gone long ago.

use std::time::Instant;

use super::{Drone, End, Message, OWN, Queued, What};
use crate::proto::message::Arguments;

pub(super) const DROPPED: End = End::Refused("dropped by an emergency stop");
const NOT_YET_STOPPED: &str = "not told yet: it is told to stop as soon as what is being sent to it has gone out, unless \
                               it is released before";
const STOPPED_WHEN_BACK: &str = "offline: it is told to stop when it is back, unless it is released before";

impl Drone {
    /// Stops it, or tells it once more. Ended as [`End::Sent`] when that is written; while it is away, that waits. Ended
    /// before, it is told all the same.
    pub fn stop(&mut self, ticket: u64, action: &str, begin: Instant) {
        let arguments = Arguments::default();
        let action = action.to_owned();
        let message = Message::Action { action, arguments };
        let frame = message.to_frame();
        self.stopped = Some(message);
        self.queue
            .retain(|queued| queued.what != What::Stop || queued.ticket.is_some());
        self.drop_acts();
        self.queue.push_back(Queued {
            what: What::Stop,
            ticket: Some(ticket),
            begin: Some(begin),
            frame,
        });
    }

    /// Drops what acts and waits, as a stop does, where there is no word to stop it with.
    pub fn drop_acts(&mut self) {
        for queued in std::mem::take(&mut self.queue) {
            match queued.what {
                What::Act | What::Dropped => self.drop_queued(queued, DROPPED),
                What::Stop | What::Request(_) => self.queue.push_back(queued),
            }
        }
        if let Some(half) = self.in_hand.as_mut().filter(|half| half.what == What::Act) {
            half.what = What::Dropped;
        }
    }

    /// Ends an emergency stop. Whether there was one.
    pub fn release(&mut self) -> bool {
        self.queue
            .retain(|queued| queued.what != What::Stop || queued.ticket.is_some());
        self.stopped.take().is_some()
    }

    /// Whether it will be told to stop, whatever becomes of whoever asked for that.
    pub(super) fn has_stop(&self) -> bool {
        self.queue.iter().any(|queued| queued.what == What::Stop)
    }

    /// A stop that is in force is told, whoever has given up waiting for it.
    pub(super) fn keep_stop(&mut self) {
        if let Some(stop) = self.stopped.as_ref().filter(|_| !self.has_stop()) {
            self.queue.push_back(Queued {
                what: What::Stop,
                ticket: OWN,
                begin: None,
                frame: stop.to_frame(),
            });
        }
    }

    /// Its time is up. That ends a ticket, and no stop.
    pub(super) fn drop_late(&mut self, queued: Queued) {
        if queued.what != What::Stop || !self.is_stopped() {
            return self.drop_queued(queued, End::Expired);
        }
        let why = if self.is_here() {
            NOT_YET_STOPPED
        } else {
            STOPPED_WHEN_BACK
        };
        self.drop_queued(queued, End::NoAnswer(why));
        self.keep_stop();
    }
}
