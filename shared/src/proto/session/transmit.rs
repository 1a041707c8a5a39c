//! The sending side of a session: welcome, frames in order, acknowledgements, heartbeats.

use std::time::Instant;

use super::super::id::Instance;
use super::super::message::Welcome;
use super::super::wire::{Frame, Kind, WireError};
use super::clock_map::millis_up;
use super::{RequestEnd, Session, State};
use crate::proto::wire::encoded::{EncodedFrame, OutBuffer, Trailer};

impl<T> Session<T> {
    /// Appends the frames that are to be sent now to `to`, until it holds `room` bytes.
    ///
    /// # Errors
    /// [`WireError`] if the welcome does not encode, which does not happen.
    pub fn transmit(&mut self, to: &mut OutBuffer, room: usize, now: Instant) -> Result<(), WireError> {
        let before = to.len();
        let stamp = Some(self.clock_map.local_ms(now));
        if self.welcome_due
            && let Some(peer) = self.peer
        {
            // A forgotten instance is sent a different number, so that neither side resumes.
            let peer_instance = if self.forgotten_instances.contains(&peer) {
                Instance(!peer.0)
            } else {
                peer
            };
            let welcome = Welcome {
                instance: self.instance,
                peer_instance,
                received: self.resume_point(),
            };
            to.push(
                &EncodedFrame::new(&Frame::json(Kind::Welcome, &welcome))?,
                Trailer {
                    stamp,
                    ..Trailer::default()
                },
            );
            self.welcome_due = false;
        }
        if self.state == State::Open {
            for item in self.outbox.expire(now) {
                self.resolve_item(&item, RequestEnd::Expired);
            }
            let arrived_after = self.arrival_proof_time();
            // An acknowledgement always carries our clock.
            let trailer = |received| Trailer {
                ack: Some(received),
                stamp,
                ..Trailer::default()
            };
            while to.len() < room {
                let ack = self.ack_due.map(|_due| trailer(self.received));
                let Some((seq, item)) = self.outbox.next_to_send(now) else {
                    break;
                };
                // Rounded up, so that less than a millisecond is not sent as 0.
                let remaining = |deadline: Instant| millis_up(deadline.saturating_duration_since(now));
                let question = item.frame.is_status_query().then_some(0);
                let ttl = question.or(item.deadline.map(remaining));
                let until = item
                    .deadline
                    .and_then(|deadline| self.clock_map.to_peer_clock(deadline));
                to.push(
                    &item.frame,
                    Trailer {
                        seq,
                        ttl,
                        until,
                        ..ack.unwrap_or_default()
                    },
                );
                if seq.is_none() {
                    let (bytes, next) = (item.frame.memory_bytes(), self.outbox.sent() + 1);
                    self.path_check
                        .on_sent_unnumbered(bytes, next, arrived_after, now);
                }
                if ack.is_some() {
                    self.clear_pending_ack(now);
                }
            }
            if self.ack_due.is_some_and(|due| now >= due) {
                if to.len() < room {
                    to.push(&self.ack, trailer(self.received));
                    self.clear_pending_ack(now);
                } else {
                    // Queued behind other bytes the acknowledgement would arrive no sooner, and for a peer that does
                    // not read the acknowledgements would pile up.
                    self.ack_due = Some(now + self.timing.ack_delay);
                }
            }
            if now >= self.last_sent + self.timing.heartbeat {
                // Bytes still queued in the buffer show that we are alive as well as a heartbeat does.
                if to.is_empty() {
                    to.push(&self.heartbeat, trailer(self.received));
                    self.clear_pending_ack(now);
                }
                self.last_sent = now;
            }
        }
        if to.len() > before {
            self.last_sent = now;
        }
        Ok(())
    }

    /// The last number that was read from the peer.
    fn resume_point(&self) -> u64 {
        #[cfg(feature = "planted-bugs")]
        if crate::proto::planted::is(crate::proto::planted::Bug::ResumeOffByOne) {
            return self.received + u64::from(self.received > 0);
        }
        self.received
    }

    /// Resets the acknowledgement timers after one was sent.
    fn clear_pending_ack(&mut self, now: Instant) {
        self.last_ack = now;
        self.ack_due = None;
        self.unacked_frames = 0;
        self.unacked_bytes = 0;
    }
}
