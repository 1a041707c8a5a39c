//! What an emergency stop calls back.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::CommandId;
use super::{Change, DeliveryTracker, Phase, StoredState, WriteInProgress};
use crate::proto::id::PeerId;

impl DeliveryTracker {
    /// These nodes are being stopped: whatever they have not been sent yet never is, and ends as refused for this
    /// reason, whatever it would do. What they may have is not sent again, also if the link that took it was dead
    /// already: whoever has forgotten it is only asked how it ended. What has gone out over a link that lives the node
    /// refuses itself. Returns how many are withdrawn.
    pub fn withdraw(&mut self, targets: &[PeerId], why: &str, now: Instant) -> usize {
        let mut query_only = Vec::new();
        for to in targets {
            let Some(node) = self.nodes.get_mut(to) else {
                continue;
            };
            for (id, delivery) in &mut node.open {
                let again = !node.connected || node.unsent.contains(&(delivery.lane, *id));
                let open = matches!(delivery.phase, Phase::Open) && delivery.sent;
                if open && now < delivery.deadline {
                    delivery.deadline = now;
                    query_only.push((*to, *id, again));
                }
            }
        }
        let targets: BTreeSet<&PeerId> = targets.iter().collect();
        let found = self.cancel(|_, to| targets.contains(to), why, now);
        self.query_only(&query_only, now);
        found.cancelled.len()
    }

    /// Those that would go `again` are asked about now. The others are at work, and nobody asks them sooner than else.
    fn query_only(&mut self, deliveries: &[(PeerId, CommandId, bool)], now: Instant) {
        if deliveries.is_empty() {
            return;
        }
        let moved = |(to, id, _): &(PeerId, CommandId, bool)| Change::StateChanged {
            id: *id,
            to: *to,
            state: StoredState::Sent,
            deadline: now,
        };
        self.store(WriteInProgress::default(), deliveries.iter().map(moved).collect());
        for (to, id, _) in deliveries.iter().filter(|(.., again)| *again) {
            self.on_deadline(*to, *id, now);
        }
    }
}
