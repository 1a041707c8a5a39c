//! A drone's emergency stop: what it drops, and how the drone comes to hear of it.
//!
//! Invariant: while one is in force, either it has been written over the connection at hand since it was given, or its
//! frame waits or is being written; whoever asked for it may have gone long ago.

use std::time::Instant;

use super::{Completion, Drone, FrameKind, Message, NO_TICKET, QueuedFrame};
use crate::proto::message::Arguments;

pub(super) const DROPPED_BY_STOP: Completion = Completion::Refused("dropped by an emergency stop");
const STOP_QUEUED: &str = "not told yet: it is told to stop as soon as what is being sent to it has gone out, unless \
                               it is released before";
const STOP_WHEN_RECONNECTED: &str =
    "offline: it is told to stop when it is back, unless it is released before";

impl Drone {
    /// Stops it, or tells it once more. Ended as [`End::Sent`] when that is written; while it is away, that waits. Ended
    /// before, it is told all the same.
    pub fn stop(&mut self, ticket: u64, action: &str, start_by: Instant) {
        let arguments = Arguments::default();
        let action = action.to_owned();
        let message = Message::Action { action, arguments };
        let frame = message.to_frame();
        self.stop_message = Some(message);
        self.queue
            .retain(|queued| queued.kind != FrameKind::Stop || queued.ticket.is_some());
        self.drop_queued_actions();
        self.queue.push_back(QueuedFrame {
            kind: FrameKind::Stop,
            ticket: Some(ticket),
            start_by: Some(start_by),
            frame,
        });
    }

    /// Drops what acts and waits, as a stop does, where there is no word to stop it with.
    pub fn drop_queued_actions(&mut self) {
        for queued in std::mem::take(&mut self.queue) {
            match queued.kind {
                FrameKind::Action | FrameKind::ActionNoResend => {
                    self.complete_queued(queued, DROPPED_BY_STOP);
                }
                FrameKind::Stop | FrameKind::Request(_) => self.queue.push_back(queued),
            }
        }
        if let Some(half) = self
            .writing
            .as_mut()
            .filter(|half| half.kind == FrameKind::Action)
        {
            half.kind = FrameKind::ActionNoResend;
        }
    }

    /// Ends an emergency stop. Whether there was one.
    pub fn release(&mut self) -> bool {
        self.queue
            .retain(|queued| queued.kind != FrameKind::Stop || queued.ticket.is_some());
        self.stop_message.take().is_some()
    }

    /// Whether it will be told to stop, whatever becomes of whoever asked for that.
    pub(super) fn has_queued_stop(&self) -> bool {
        self.queue.iter().any(|queued| queued.kind == FrameKind::Stop)
    }

    /// A stop that is in force is told, whoever has given up waiting for it.
    pub(super) fn requeue_stop(&mut self) {
        if let Some(stop) = self.stop_message.as_ref().filter(|_| !self.has_queued_stop()) {
            self.queue.push_back(QueuedFrame {
                kind: FrameKind::Stop,
                ticket: NO_TICKET,
                start_by: None,
                frame: stop.to_frame(),
            });
        }
    }

    /// Its time is up. That ends a ticket, and no stop.
    pub(super) fn expire_queued(&mut self, queued: QueuedFrame) {
        if queued.kind != FrameKind::Stop || !self.is_stopped() {
            return self.complete_queued(queued, Completion::Expired);
        }
        let why = if self.is_connected() {
            STOP_QUEUED
        } else {
            STOP_WHEN_RECONNECTED
        };
        self.complete_queued(queued, Completion::NoAnswer(why));
        self.requeue_stop();
    }
}
