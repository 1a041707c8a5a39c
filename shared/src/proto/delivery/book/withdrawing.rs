//! What an emergency stop calls back.

use std::time::Instant;

use super::super::CommandId;
use super::{Book, Change, Phase, Standing, Write};
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

impl Book {
    /// These nodes are being stopped: whatever they have not been sent yet never is, and ends as refused for this
    /// reason, whatever it would do. What they may have is not sent again: they are only asked how it ended. What has gone
    /// out over a link that is up the node refuses itself. Returns how many are withdrawn.
    pub fn withdraw(&mut self, targets: &[PeerId], why: &str, now: Instant) -> usize {
        let mut withdrawn = 0;
        let mut only_asked = Vec::new();
        for to in targets {
            let Some(node) = self.nodes.get_mut(to) else {
                continue;
            };
            let up = node.up;
            let mut unsent = Vec::new();
            for (id, delivery) in &mut node.open {
                match delivery.phase {
                    // Its end is written behind its beginning, and so before whatever is issued after the stop.
                    Phase::Issuing { .. } | Phase::Held => unsent.push(*id),
                    Phase::Open if !delivery.sent => unsent.push(*id),
                    Phase::Open
                        if now < delivery.deadline
                            && (!up || node.unsent.contains(&(delivery.lane, *id))) =>
                    {
                        delivery.deadline = now;
                        only_asked.push((*to, *id));
                    }
                    Phase::Open | Phase::Ending { .. } => {}
                }
            }
            withdrawn += unsent.len();
            for id in unsent {
                self.end(*to, id, Reply::refused(why));
            }
        }
        self.only_ask(&only_asked, now);
        withdrawn
    }

    fn only_ask(&mut self, those: &[(PeerId, CommandId)], now: Instant) {
        if those.is_empty() {
            return;
        }
        let moved = |(to, id): &(PeerId, CommandId)| Change::Moved {
            id: *id,
            to: *to,
            standing: Standing::Sent,
            deadline: now,
        };
        self.write(Write::default(), those.iter().map(moved).collect());
        for (to, id) in those {
            self.due(*to, *id, now);
        }
    }
}
