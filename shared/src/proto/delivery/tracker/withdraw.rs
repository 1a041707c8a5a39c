//! What an emergency stop calls back.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::CommandId;
use super::{Book, Change, Phase, Standing, Write};
use crate::proto::id::PeerId;

impl Book {
    /// These nodes are being stopped: whatever they have not been sent yet never is, and ends as refused for this
    /// reason, whatever it would do. What they may have is not sent again, also if the link that took it was dead
    /// already: whoever has forgotten it is only asked how it ended. What has gone out over a link that lives the node
    /// refuses itself. Returns how many are withdrawn.
    pub fn withdraw(&mut self, targets: &[PeerId], why: &str, now: Instant) -> usize {
        let mut only_asked = Vec::new();
        for to in targets {
            let Some(node) = self.nodes.get_mut(to) else {
                continue;
            };
            for (id, delivery) in &mut node.open {
                let again = !node.up || node.unsent.contains(&(delivery.lane, *id));
                let open = matches!(delivery.phase, Phase::Open) && delivery.sent;
                if open && now < delivery.deadline {
                    delivery.deadline = now;
                    only_asked.push((*to, *id, again));
                }
            }
        }
        let targets: BTreeSet<&PeerId> = targets.iter().collect();
        let found = self.take_back(|_, to| targets.contains(to), why, now);
        self.only_ask(&only_asked, now);
        found.taken_back.len()
    }

    /// Those that would go `again` are asked about now. The others are at work, and nobody asks them sooner than else.
    fn only_ask(&mut self, those: &[(PeerId, CommandId, bool)], now: Instant) {
        if those.is_empty() {
            return;
        }
        let moved = |(to, id, _): &(PeerId, CommandId, bool)| Change::Moved {
            id: *id,
            to: *to,
            standing: Standing::Sent,
            deadline: now,
        };
        self.write(Write::default(), those.iter().map(moved).collect());
        for (to, id, _) in those.iter().filter(|(.., again)| *again) {
            self.due(*to, *id, now);
        }
    }
}
