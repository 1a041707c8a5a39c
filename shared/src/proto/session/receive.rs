//! The receiving side of a session.

use std::time::Instant;

use super::super::message::Welcome;
use super::super::wire::{Frame, Header, Kind};
use super::outbox::{DELAY_SAMPLE_BYTES_MIN, OutboxLimits};
use super::{Event, LinkFault, RequestEnd, Session, State};

/// After this many numbered frames an acknowledgement is sent at once.
const ACK_FRAMES_MAX: u64 = 256;
/// After this many bytes of content an acknowledgement is sent at once: a quarter of the bulk window.
const ACK_BYTES_MAX: usize = OutboxLimits::BULK.window_bytes_max / 4;

impl<T> Session<T> {
    /// Handles a received frame. The results are in [`Self::take_events`].
    ///
    /// # Errors
    /// [`LinkFault`]: the link has to close; the session is detached and resumes on the next link.
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) -> Result<(), LinkFault> {
        self.process_frame(frame, now).inspect_err(|_fault| self.detach())
    }

    /// Records that bytes of the peer have come, which shows that it is alive even while a large frame takes longer
    /// than [`Timing::lost_after`](super::Timing::lost_after). [`Self::handle_frame`] does this itself; call this
    /// when a read did not complete a frame.
    pub fn on_bytes_received(&mut self, now: Instant) {
        self.last_heard = now;
        if self.silent {
            self.silent = false;
            self.events.push(Event::Recovered);
        }
    }

    fn process_frame(&mut self, frame: Frame, now: Instant) -> Result<(), LinkFault> {
        self.on_bytes_received(now);
        match (frame.header.kind, self.state) {
            (Some(kind @ Kind::Refused), _) => {
                let why = |why| LinkFault::Unreadable { kind, why };
                return Err(LinkFault::Refused(frame.parse_content().map_err(why)?));
            }
            (Some(Kind::Welcome), State::AwaitingWelcome) => return self.on_welcome(&frame, now),
            (Some(Kind::Hello | Kind::Welcome | Kind::Join | Kind::Joined), _)
            | (_, State::Detached | State::AwaitingWelcome) => {
                return Err(LinkFault::UnexpectedFrame(frame.header.kind));
            }
            (_, State::Open) => {}
        }
        // A frame after the welcome shows that the peer has read our welcome.
        self.forgotten_instances.retain(|run| Some(*run) != self.peer);
        self.clock_map.observe(&frame.header, now);
        if let Some(ack) = frame.header.ack {
            let (sent, before) = (self.outbox.sent(), self.outbox.unacknowledged_bytes());
            if !self.outbox.on_acknowledged(ack, now) {
                return Err(LinkFault::AckAhead { ack, sent });
            }
            let arrived = before - self.outbox.unacknowledged_bytes();
            self.path_check.on_acknowledged(ack, arrived);
        }
        if let Some(seq) = frame.header.seq {
            if seq <= self.received {
                return Ok(());
            }
            if seq != self.received + 1 {
                return Err(LinkFault::SequenceGap {
                    got: seq,
                    expected: self.received + 1,
                });
            }
            self.received = seq;
            self.schedule_ack(frame.content.len(), now);
        }
        self.dispatch_frame(frame, now);
        Ok(())
    }

    fn on_welcome(&mut self, frame: &Frame, now: Instant) -> Result<(), LinkFault> {
        let unreadable = |why| LinkFault::Unreadable {
            kind: Kind::Welcome,
            why,
        };
        let welcome: Welcome = frame.parse_content().map_err(unreadable)?;
        if Some(welcome.instance) != self.peer {
            return Err(LinkFault::OtherInstance);
        }
        let remembered = !self.forgotten_instances.contains(&welcome.instance)
            && welcome.peer_instance == self.instance
            && welcome.received >= self.outbox.acknowledged();
        if remembered {
            let (ack, sent) = (welcome.received, self.outbox.sent());
            if !self.outbox.on_acknowledged(ack, now) {
                return Err(LinkFault::AckAhead { ack, sent });
            }
            self.outbox.rewind();
        } else {
            self.reset_peer();
        }
        self.state = State::Open;
        self.clock_map.observe(&frame.header, now);
        let resumed = std::mem::replace(&mut self.established, true);
        self.events.push(Event::Opened { resumed });
        Ok(())
    }

    fn schedule_ack(&mut self, bytes: usize, now: Instant) {
        self.unacked_frames += 1;
        self.unacked_bytes += bytes;
        if self.unacked_frames >= ACK_FRAMES_MAX || self.unacked_bytes >= ACK_BYTES_MAX {
            self.ack_due = Some(now);
            return;
        }
        let due = if bytes >= DELAY_SAMPLE_BYTES_MIN {
            now.max(self.last_ack + self.timing.ack_interval)
        } else {
            now + self.timing.ack_delay
        };
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    fn dispatch_frame(&mut self, frame: Frame, now: Instant) {
        let Header { kind, id, epoch, .. } = frame.header;
        match (kind, id) {
            (Some(Kind::Heartbeat | Kind::Ack | Kind::Unknown), _) => {}
            (Some(Kind::Reply), Some(id)) if self.pending.awaits(id, epoch) => {
                self.resolve(id, RequestEnd::Reply(frame.content));
            }
            _ => {
                let deadline = self.clock_map.local_deadline(&frame.header, now);
                let frame = Box::new(frame);
                self.events.push(Event::Frame { frame, deadline });
            }
        }
    }
}
