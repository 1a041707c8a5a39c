//! A drone's emergency stop: what it drops, and when it is sent.
//!
//! Invariant: while a stop is active, either it has been written over the present connection, or its frame is queued
//! or being written, whatever happened to its ticket.

use std::time::Instant;

use super::{Completion, Drone, FrameKind, Message, NO_TICKET, QueuedFrame};
use crate::proto::message::Arguments;

pub(super) const DROPPED_BY_STOP: Completion = Completion::Refused("dropped by an emergency stop");
const STOP_QUEUED: &str = "not told yet: it is told to stop as soon as what is being sent to it has gone out, unless \
                               it is released before";
const STOP_WHEN_RECONNECTED: &str =
    "offline: it is told to stop when it is back, unless it is released before";

impl Drone {
    /// Sends an emergency stop, or sends it again. Its ticket ends with [`Completion::Sent`] once it is written;
    /// without a connection it waits. If the ticket ends earlier, the stop is sent all the same.
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

    /// Drops queued actions and files, as a stop does: for a drone without a stop action.
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

    /// Ends the emergency stop. Returns whether there was one.
    pub fn release(&mut self) -> bool {
        self.queue
            .retain(|queued| queued.kind != FrameKind::Stop || queued.ticket.is_some());
        self.stop_message.take().is_some()
    }

    /// Whether a stop frame waits to be written.
    pub(super) fn has_queued_stop(&self) -> bool {
        self.queue.iter().any(|queued| queued.kind == FrameKind::Stop)
    }

    /// Queues the active stop again, without a ticket, if it is not queued.
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

    /// A queued frame has expired. A stop's ticket ends then, but the stop stays queued.
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
