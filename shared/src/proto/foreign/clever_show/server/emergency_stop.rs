//! A drone's emergency stop: what it drops, and when it is sent.
//!
//! Invariant: while a stop is active and the drone is connected, the stop has been written over this connection, or its
//! frame is queued or being written, even if its ticket has ended.

use std::time::Instant;

use super::{Completion, Drone, FrameKind, Message, QueuedFrame};
use crate::proto::message::Arguments;

pub(super) const DROPPED_BY_STOP: Completion = Completion::Refused("dropped by an emergency stop");
const STOP_QUEUED: &str =
    "not sent yet: it is sent after the frame that is being written, unless it is released before";
const STOP_WHEN_RECONNECTED: &str =
    "offline: it is sent when the drone is back, unless it is released before";

impl Drone {
    /// Sends an emergency stop, or sends it again. Its ticket ends with [`Completion::Sent`] once it is written;
    /// without a connection it waits. If the ticket ends earlier, the stop is sent all the same.
    pub fn stop(&mut self, ticket: u64, action: &str, start_by: Instant) {
        let arguments = Arguments::default();
        let action = action.to_owned();
        let frame = Message::Action { action, arguments }.to_frame();
        self.stop_frame = Some(frame.clone());
        self.drop_stops_without_ticket();
        self.drop_queued_actions();
        self.sends.queue.push_back(QueuedFrame {
            ticket: Some(ticket),
            start_by: Some(start_by),
            ..QueuedFrame::new(FrameKind::Stop, frame)
        });
    }

    /// Drops queued actions and files, as a stop does: for a drone without a stop action.
    pub fn drop_queued_actions(&mut self) {
        for dropped in self.sends.take_queued(|queued| queued.kind == FrameKind::Message) {
            self.complete_frame(dropped, DROPPED_BY_STOP);
        }
        if let Some(half) = &mut self.sends.writing {
            half.forbid_resend();
        }
    }

    /// Ends the emergency stop. Returns whether there was one.
    pub fn release(&mut self) -> bool {
        self.drop_stops_without_ticket();
        self.stop_frame.take().is_some()
    }

    fn drop_stops_without_ticket(&mut self) {
        let is_dropped = |queued: &QueuedFrame| queued.kind == FrameKind::Stop && queued.ticket.is_none();
        self.sends.take_queued(is_dropped);
    }

    /// Queues the active stop again, without a ticket, if it is not queued.
    pub(super) fn requeue_stop(&mut self) {
        let mut queue = self.sends.queue.iter();
        if queue.any(|queued| queued.kind == FrameKind::Stop) {
            return;
        }
        let stop = self.stop_frame.clone();
        let stop = stop.map(|frame| QueuedFrame::new(FrameKind::Stop, frame));
        self.sends.queue.extend(stop);
    }

    /// Ends the tickets of queued frames whose deadline has passed. The active stop stays queued.
    pub(super) fn expire_queued(&mut self, now: Instant) {
        let is_late = |queued: &QueuedFrame| queued.start_by.is_some_and(|start_by| now >= start_by);
        for late in self.sends.take_queued(is_late) {
            let is_active_stop = late.kind == FrameKind::Stop && self.is_stopped();
            let end = match (is_active_stop, self.is_connected()) {
                (false, _) => Completion::Expired,
                (true, true) => Completion::NoAnswer(STOP_QUEUED),
                (true, false) => Completion::NoAnswer(STOP_WHEN_RECONNECTED),
            };
            self.complete_frame(late, end);
            if is_active_stop {
                self.requeue_stop();
            }
        }
    }
}
