//! How deliveries begin: issued here, or given back by the store.

use std::collections::BTreeSet;

use super::super::CommandId;
use super::{
    Addressee, Book, Change, Command, Delivery, Effect, Issue, Issued, IssuedTo, Mark, NODE_OPEN_MAX,
    OPEN_MAX, OpenCommand, Phase, Standing, Write, absent,
};
use crate::proto::encoded::Parcel;
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

impl Book {
    /// The book as the store kept it. All nodes are down.
    pub fn restore(commands: Vec<OpenCommand>) -> Self {
        let mut book = Self::default();
        let mut held = Vec::new();
        for OpenCommand { order, deliveries } in commands {
            let id = order.id;
            // It was a frame before, so it is one again.
            let Ok(parcel) = Parcel::new(&order.frame()) else {
                continue;
            };
            let mut open = BTreeSet::new();
            for stored in deliveries {
                let sent = stored.standing == Standing::Sent;
                let delivery = Delivery {
                    phase: Phase::Open,
                    mark: if sent { Mark::Yes } else { Mark::No },
                    lane: order.lane,
                    sent,
                    first: false,
                    queue: true,
                    stage: stored.stage,
                    deadline: stored.deadline,
                    timer: None,
                };
                let node = book.nodes.entry(stored.to).or_default();
                if node.open.insert(id, delivery).is_none() {
                    book.open += 1;
                }
                open.insert(stored.to);
                if stored.standing == Standing::Held {
                    held.push((stored.to, id));
                } else {
                    node.unsent.insert((order.lane, id));
                    book.set_timer(stored.to, id, stored.deadline);
                }
            }
            let lane = order.lane;
            book.commands.insert(id, Command { parcel, lane, open });
        }
        for (to, id) in held {
            let why = "not sent: the station stopped before its batch had its turn";
            book.end(to, id, Reply::refused(why));
        }
        book
    }

    /// A command is to be issued to its targets.
    pub fn issue(&mut self, issue: Issue) {
        let Issue {
            order,
            selector,
            deadline,
            targets,
        } = issue;
        let id = order.id;
        let refuse = |why: String| Effect::NotIssued { id, why };
        if self.open + targets.len() > OPEN_MAX {
            let why = format!("busy: {} deliveries have not ended yet", self.open);
            return self.effects.push(refuse(why));
        }
        let parcel = match Parcel::new(&order.frame()) {
            Ok(parcel) => parcel,
            Err(error) => return self.effects.push(refuse(error.to_string())),
        };
        let lane = order.lane;
        let mut open = BTreeSet::new();
        let mut write = Write {
            issued: Some(id),
            ..Write::default()
        };
        let mut ends = Vec::new();
        let mut deliveries = Vec::new();
        for Addressee {
            to,
            name,
            queue,
            held,
            refused,
        } in targets
        {
            if !open.insert(to) {
                continue;
            }
            let node = self.nodes.entry(to).or_default();
            let end = if let Some(why) = refused {
                Some(Reply::refused(why))
            } else if node.open.len() >= NODE_OPEN_MAX {
                let why = format!("busy: {NODE_OPEN_MAX} commands wait for this node already");
                Some(Reply::refused(why))
            } else if !held && !queue && !node.up {
                Some(absent())
            } else {
                None
            };
            let standing = match (held, node.up) {
                (true, _) => Standing::Held,
                (false, true) => Standing::Sent,
                (false, false) => Standing::Waiting,
            };
            let phase = match end {
                Some(reply) => {
                    ends.push(Change::Ended {
                        id,
                        to,
                        reply: reply.clone(),
                    });
                    write.ended.push((to, id));
                    Phase::Ending {
                        reply,
                        told: false,
                        writing: true,
                    }
                }
                None => Phase::Issuing { held, withheld: None },
            };
            let delivery = Delivery {
                phase,
                mark: if standing == Standing::Sent {
                    Mark::Yes
                } else {
                    Mark::No
                },
                lane,
                sent: false,
                first: false,
                queue,
                stage: None,
                deadline,
                timer: None,
            };
            node.open.insert(id, delivery);
            self.open += 1;
            deliveries.push(IssuedTo {
                to,
                name,
                standing,
                deadline,
            });
        }
        self.commands.insert(id, Command { parcel, lane, open });
        let mut changes = vec![Change::Issued(Issued {
            order,
            selector,
            deliveries,
        })];
        changes.append(&mut ends);
        self.write(write, changes);
    }

    pub(super) fn issued_to(&mut self, to: PeerId, id: CommandId) {
        let Some(delivery) = self.delivery(to, id) else {
            return;
        };
        let Phase::Issuing { held, withheld } = &mut delivery.phase else {
            return;
        };
        let (held, withheld) = (*held, withheld.take());
        if held {
            delivery.phase = Phase::Held;
            if let Some(why) = withheld {
                self.end(to, id, Reply::refused(why));
            }
            return;
        }
        delivery.phase = Phase::Open;
        let (lane, deadline) = (delivery.lane, delivery.deadline);
        if let Some(node) = self.nodes.get_mut(&to) {
            node.unsent.insert((lane, id));
        }
        self.set_timer(to, id, deadline);
    }
}
