//! Which deliveries are sent to a node, in which order, and when.

use std::sync::Arc;
use std::time::Instant;

use super::super::{CommandId, Stage};
use super::{
    ABANDON_AFTER, Change, DeliveryTracker, Effect, IN_FLIGHT_MAX, Phase, QUERY_INTERVAL, SentMark,
    StoredState, WriteInProgress,
};
use crate::proto::id::PeerId;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::Lane;

impl DeliveryTracker {
    pub(super) fn on_deadline(&mut self, to: PeerId, id: CommandId, now: Instant) {
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        let Some(delivery) = node.open.get_mut(&id) else {
            return;
        };
        let deadline = delivery.deadline;
        if now < deadline {
            self.set_timer(to, id, deadline);
        } else if !delivery.sent {
            self.end(to, id, expired_reply());
        } else if now >= deadline + ABANDON_AFTER {
            let why = "no answer until a day after its deadline; it may have run: check before you repeat it";
            self.end(to, id, Reply::ended(Outcome::NoAnswer, why));
        } else {
            node.in_flight.remove(&id);
            node.unsent.remove(&(delivery.lane, id));
            node.to_query.insert(id);
            self.set_timer(to, id, (now + QUERY_INTERVAL).min(deadline + ABANDON_AFTER));
        }
    }

    /// Sends what can be sent to a node now.
    pub(super) fn send_ready(&mut self, peer: PeerId, now: Instant) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        if node.revoked {
            return self.end_revoked(peer);
        }
        if !node.connected {
            return;
        }
        let mut overdue = Vec::new();
        let mut marks = Vec::new();
        let mut sends = Vec::new();
        let mut write_pending = false;
        for (lane, id) in &node.unsent {
            let in_flight = node.in_flight.len() + marks.len() + sends.len();
            if in_flight >= IN_FLIGHT_MAX && *lane != Lane::Emergency {
                break;
            }
            let Some(delivery) = node.open.get_mut(id) else {
                continue;
            };
            if now >= delivery.deadline {
                overdue.push(*id);
                continue;
            }
            match delivery.sent_mark {
                SentMark::Unset => {
                    delivery.sent_mark = SentMark::Writing;
                    marks.push((*id, delivery.deadline));
                    write_pending = true;
                }
                SentMark::Writing => write_pending = true,
                // In order: not before the deliveries whose write is in progress.
                SentMark::Stored if write_pending => break,
                SentMark::Stored => sends.push(*id),
            }
        }
        for id in sends {
            self.send(peer, id);
        }
        if !marks.is_empty() {
            let write = WriteInProgress {
                marked: marks.iter().map(|(id, _)| (peer, *id)).collect(),
                ..WriteInProgress::default()
            };
            let mark = |(id, deadline)| Change::StateChanged {
                id,
                to: peer,
                state: StoredState::Sent,
                deadline,
            };
            self.store(write, marks.into_iter().map(mark).collect());
        }
        for id in overdue {
            self.on_deadline(peer, id, now);
        }
        self.query_status(peer);
    }

    /// Sends status queries for deliveries beyond their deadline. The in-flight limit does not apply: the node
    /// replies at once.
    fn query_status(&mut self, peer: PeerId) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        for id in std::mem::take(&mut node.to_query) {
            let Some(delivery) = node.open.get_mut(&id) else {
                continue;
            };
            let Some(command) = self.commands.get(&id) else {
                continue;
            };
            delivery.first_send = false;
            self.effects.push(Effect::Send {
                to: peer,
                id,
                command: Arc::clone(&command.encoded),
                deadline: None,
            });
        }
    }

    fn send(&mut self, peer: PeerId, id: CommandId) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        let Some(delivery) = node.open.get_mut(&id) else {
            return;
        };
        let Some(command) = self.commands.get(&id) else {
            return;
        };
        delivery.first_send = !delivery.sent;
        delivery.sent = true;
        node.unsent.remove(&(delivery.lane, id));
        if delivery.stage < Some(Stage::Started) {
            node.in_flight.insert(id);
        }
        self.effects.push(Effect::Send {
            to: peer,
            id,
            command: Arc::clone(&command.encoded),
            deadline: Some(delivery.deadline),
        });
    }

    /// Ends all open deliveries of a node whose key was revoked.
    fn end_revoked(&mut self, peer: PeerId) {
        let why = "the node's key was revoked before it answered; it may have run";
        let sent = Reply::ended(Outcome::NoAnswer, why);
        let unsent = Reply::refused("not sent: the node's key was revoked");
        self.end_all(peer, Some(&sent), &unsent);
    }

    /// Ends the open deliveries of a peer: with `unsent` those that it was never sent, with `sent` the others. Without
    /// `sent` the others stay open: their replies are still to come.
    pub fn end_all(&mut self, peer: PeerId, sent: Option<&Reply>, unsent: &Reply) {
        let Some(node) = self.nodes.get(&peer) else { return };
        let open = node.open.iter();
        let open =
            open.filter(|(_, delivery)| delivery.is_open() || matches!(delivery.phase, Phase::Deferred));
        let open: Vec<(CommandId, bool)> = open.map(|(id, delivery)| (*id, delivery.sent)).collect();
        for (id, was_sent) in open {
            if let Some(reply) = if was_sent { sent } else { Some(unsent) } {
                self.end(peer, id, reply.clone());
            }
        }
    }
}

fn expired_reply() -> Reply {
    Reply::ended(
        Outcome::Expired,
        "its time to live ran out before it could be sent",
    )
}
