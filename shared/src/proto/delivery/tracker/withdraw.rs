//! Withdrawing deliveries at an emergency stop.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::CommandId;
use super::{Change, DeliveryTracker, Phase, StoredState, WriteInProgress};
use crate::proto::id::PeerId;

impl DeliveryTracker {
    /// Withdraws the deliveries to nodes that are being stopped: what was not sent to them is never sent, and ends as
    /// `refused` with this reason, whatever its action. What they may have is not sent again, even if the link that
    /// took it was dead already: a node that has lost it only gets a status query. What was sent over a live link is
    /// refused by the node itself. Returns the number of withdrawn deliveries.
    pub fn withdraw(&mut self, targets: &[PeerId], why: &str, now: Instant) -> usize {
        let mut query_only = Vec::new();
        for to in targets {
            let Some(node) = self.nodes.get_mut(to) else {
                continue;
            };
            for (id, delivery) in &mut node.open {
                let resend = !node.connected || node.unsent.contains(&(delivery.lane, *id));
                let open = matches!(delivery.phase, Phase::Open) && delivery.sent;
                if open && now < delivery.deadline {
                    delivery.deadline = now;
                    query_only.push((*to, *id, resend));
                }
            }
        }
        let targets: BTreeSet<&PeerId> = targets.iter().collect();
        let found = self.cancel(|_, to| targets.contains(to), why, now);
        self.query_only(&query_only, now);
        found.cancelled.len()
    }

    /// Sends status queries now for the deliveries that would be sent `again`. The others run, and are queried at the
    /// usual time.
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
        for (to, id, _) in deliveries.iter().filter(|(.., resend)| *resend) {
            self.on_deadline(*to, *id, now);
        }
    }
}
