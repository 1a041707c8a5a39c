//! How deliveries begin: issued now, or restored from the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::CommandId;
use super::{
    Change, CommandEntry, Delivery, DeliveryTarget, DeliveryTracker, Effect, EncodedCommand, IssueRequest,
    IssuedCommand, OPEN_DELIVERIES_MAX, OPEN_PER_NODE_MAX, OpenCommand, Phase, SentMark, StoredState,
    StoredTarget, WriteInProgress, absent_reply,
};
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

impl DeliveryTracker {
    /// A tracker with the deliveries from the store. All nodes are offline.
    pub fn restore(commands: Vec<OpenCommand>) -> Self {
        let mut tracker = Self::default();
        let mut deferred = Vec::new();
        for OpenCommand { command, deliveries } in commands {
            let id = command.id;
            // It was a frame before, so it is one again.
            let lane = command.lane;
            let Ok(encoded) = EncodedCommand::new(command) else {
                continue;
            };
            let mut open = BTreeSet::new();
            for stored in deliveries {
                let sent = stored.state == StoredState::Sent;
                let delivery = Delivery {
                    phase: Phase::Open,
                    sent_mark: if sent { SentMark::Stored } else { SentMark::Unset },
                    lane,
                    sent,
                    first_send: false,
                    may_queue: true,
                    stage: stored.stage,
                    deadline: stored.deadline,
                    timer: None,
                };
                let node = tracker.nodes.entry(stored.to).or_default();
                if node.open.insert(id, delivery).is_none() {
                    tracker.open_count += 1;
                }
                open.insert(stored.to);
                if stored.state == StoredState::Deferred {
                    deferred.push((stored.to, id));
                } else {
                    node.unsent.insert((lane, id));
                    tracker.set_timer(stored.to, id, stored.deadline);
                }
            }
            let encoded = Arc::new(encoded);
            tracker.commands.insert(id, CommandEntry { encoded, open });
        }
        for (to, id) in deferred {
            let reason = "not sent: the station stopped before its batch had its turn";
            tracker.end(to, id, Reply::refused(reason));
        }
        tracker
    }

    /// Issues a command to its targets.
    pub fn issue(&mut self, issue: IssueRequest) {
        let IssueRequest {
            command,
            selector,
            deadline,
            targets,
        } = issue;
        let id = command.id;
        let refuse = |reason: String| Effect::NotIssued { id, reason };
        if self.open_count + targets.len() > OPEN_DELIVERIES_MAX {
            let reason = format!("busy: {} deliveries have not ended yet", self.open_count);
            return self.effects.push(refuse(reason));
        }
        let encoded = match EncodedCommand::new(command.clone()) {
            Ok(encoded) => Arc::new(encoded),
            Err(error) => return self.effects.push(refuse(error.to_string())),
        };
        let lane = command.lane;
        let mut open = BTreeSet::new();
        let mut write = WriteInProgress {
            issued: Some(id),
            ..WriteInProgress::default()
        };
        let mut ends = Vec::new();
        let mut deliveries = Vec::new();
        for DeliveryTarget {
            to,
            name,
            may_queue: queue,
            deferred: held,
            refusal_reason: refused,
        } in targets
        {
            if !open.insert(to) {
                continue;
            }
            let node = self.nodes.entry(to).or_default();
            let end = if let Some(reason) = refused {
                Some(Reply::refused(reason))
            } else if node.open.len() >= OPEN_PER_NODE_MAX {
                let reason = format!("busy: {OPEN_PER_NODE_MAX} commands wait for this node already");
                Some(Reply::refused(reason))
            } else if !held && !queue && !node.connected {
                Some(absent_reply())
            } else {
                None
            };
            let standing = match (held, node.connected) {
                (true, _) => StoredState::Deferred,
                (false, true) => StoredState::Sent,
                (false, false) => StoredState::Waiting,
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
                        reported: false,
                        writing: true,
                    }
                }
                None => Phase::Issuing {
                    deferred: held,
                    cancel_reason: None,
                },
            };
            let delivery = Delivery {
                phase,
                sent_mark: if standing == StoredState::Sent {
                    SentMark::Stored
                } else {
                    SentMark::Unset
                },
                lane,
                sent: false,
                first_send: false,
                may_queue: queue,
                stage: None,
                deadline,
                timer: None,
            };
            node.open.insert(id, delivery);
            self.open_count += 1;
            deliveries.push(StoredTarget {
                to,
                name,
                state: standing,
                deadline,
            });
        }
        self.commands.insert(id, CommandEntry { encoded, open });
        let mut changes = vec![Change::Issued(IssuedCommand {
            command,
            selector,
            deliveries,
        })];
        changes.append(&mut ends);
        self.store(write, changes);
    }

    pub(super) fn on_issue_stored(&mut self, to: PeerId, id: CommandId) {
        let Some(delivery) = self.delivery_mut(to, id) else {
            return;
        };
        let Phase::Issuing {
            deferred: held,
            cancel_reason: withheld,
        } = &mut delivery.phase
        else {
            return;
        };
        let (held, withheld) = (*held, withheld.take());
        if held {
            delivery.phase = Phase::Deferred;
            if let Some(reason) = withheld {
                self.end(to, id, Reply::refused(reason));
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
