//! What goes to a node, in which order, and when.

use std::time::Instant;

use super::super::{CommandId, Stage};
use super::{ASK_EVERY, Book, Change, Effect, GIVE_UP_AFTER, IN_FLIGHT_MAX, Mark, Phase, Standing, Write};
use crate::proto::id::PeerId;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::Lane;

impl Book {
    pub(super) fn due(&mut self, to: PeerId, id: CommandId, now: Instant) {
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
            self.end(to, id, expired());
        } else if now >= deadline + GIVE_UP_AFTER {
            let why = "no answer until a day after its deadline; it may have run: look before you repeat";
            self.end(to, id, Reply::ended(Outcome::NoAnswer, why));
        } else {
            node.in_flight.remove(&id);
            node.unsent.remove(&(delivery.lane, id));
            node.to_ask.insert(id);
            self.set_timer(to, id, (now + ASK_EVERY).min(deadline + GIVE_UP_AFTER));
        }
    }

    /// Sends what can be sent to a node now.
    pub(super) fn stir(&mut self, peer: PeerId, now: Instant) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        if node.gone {
            return self.close(peer);
        }
        if !node.up {
            return;
        }
        let mut late = Vec::new();
        let mut marks = Vec::new();
        let mut sends = Vec::new();
        let mut written_first = false;
        for (lane, id) in &node.unsent {
            let in_flight = node.in_flight.len() + marks.len() + sends.len();
            if in_flight >= IN_FLIGHT_MAX && *lane != Lane::Emergency {
                break;
            }
            let Some(delivery) = node.open.get_mut(id) else {
                continue;
            };
            if now >= delivery.deadline {
                late.push(*id);
                continue;
            }
            match delivery.mark {
                Mark::No => {
                    delivery.mark = Mark::Writing;
                    marks.push((*id, delivery.deadline));
                    written_first = true;
                }
                Mark::Writing => written_first = true,
                // In order: not before what is still being written.
                Mark::Yes if written_first => break,
                Mark::Yes => sends.push(*id),
            }
        }
        for id in sends {
            self.send(peer, id);
        }
        if !marks.is_empty() {
            let write = Write {
                marked: marks.iter().map(|(id, _)| (peer, *id)).collect(),
                ..Write::default()
            };
            let mark = |(id, deadline)| Change::Moved {
                id,
                to: peer,
                standing: Standing::Sent,
                deadline,
            };
            self.write(write, marks.into_iter().map(mark).collect());
        }
        for id in late {
            self.due(peer, id, now);
        }
        self.ask(peer);
    }

    /// Asks what is beyond its deadline. No window holds that back: the node answers at once.
    fn ask(&mut self, peer: PeerId) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        for id in std::mem::take(&mut node.to_ask) {
            let Some(delivery) = node.open.get_mut(&id) else {
                continue;
            };
            let Some(command) = self.commands.get(&id) else {
                continue;
            };
            delivery.first = false;
            self.effects.push(Effect::Send {
                to: peer,
                id,
                parcel: command.parcel.clone().question(),
                lane: command.lane,
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
        delivery.first = !delivery.sent;
        delivery.sent = true;
        node.unsent.remove(&(delivery.lane, id));
        if delivery.stage < Some(Stage::Started) {
            node.in_flight.insert(id);
        }
        self.effects.push(Effect::Send {
            to: peer,
            id,
            parcel: command.parcel.clone(),
            lane: command.lane,
            deadline: Some(delivery.deadline),
        });
    }

    /// Ends all that a node that was put out had open.
    fn close(&mut self, peer: PeerId) {
        let Some(node) = self.nodes.get(&peer) else { return };
        let open = node.open.iter();
        let open = open.filter(|(_, delivery)| delivery.is_open() || matches!(delivery.phase, Phase::Held));
        let open: Vec<(CommandId, bool)> = open.map(|(id, delivery)| (*id, delivery.sent)).collect();
        for (id, sent) in open {
            let reply = if sent {
                let why = "put out of the fleet before it answered; it may have run";
                Reply::ended(Outcome::NoAnswer, why)
            } else {
                Reply::refused("not sent: the node has been put out of the fleet")
            };
            self.end(peer, id, reply);
        }
    }
}

fn expired() -> Reply {
    Reply::ended(
        Outcome::Expired,
        "its time to live ran out before it could be sent",
    )
}
