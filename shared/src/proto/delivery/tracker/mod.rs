//! The station's delivery tracker: follows every command that acts until each of its deliveries has ended in one
//! outcome and the store has written it.
//!
//! | a delivery | meaning | leaves when |
//! |---|---|---|
//! | issuing | being stored; nothing is sent | stored: deferred or open. Not stored: [`Effect::NotIssued`] |
//! | deferred | in a later batch | [`DeliveryTracker::start_batch`]: open. [`DeliveryTracker::cancel_deferred`], or the station restarts: ending |
//! | open, waiting | stored, never sent | its node is online: it is marked in the store, then sent. Deadline: ending (`expired`) |
//! | open, sent | may be at the node | the node replies: ending. Deadline: queried |
//! | open, queried | may be at the node, too late to start: a status query is sent on each new link and every [`QUERY_INTERVAL`] | the node replies: ending. [`ABANDON_AFTER`] beyond its deadline: ending (`no-answer`) |
//! | ending | its outcome is being stored, again every [`STORE_RETRY_DELAY`] after a failure | stored: [`Effect::Ended`], and it is removed |
//!
//! Invariants:
//! * Nothing is sent before it is stored, and nothing is sent for the first time before the store has recorded that
//!   it may have been sent.
//! * Nothing is first sent at or after its deadline, or after it was withdrawn.
//! * Each delivery gets one [`Effect::Ended`], over all restarts except one between the write and the effect, and
//!   none before its outcome is stored.
//! * Within a lane a node gets its commands in the order of their issue.
//!
//! So a station that is killed at any instant continues from what was stored.
//!
//! [`DeliveryTracker::withdraw`] is the tracker's part of an emergency stop: deliveries that have not been sent to
//! the stopped nodes end as `refused`, and for those that would be sent again only status queries are sent from then
//! on.
//!
//! A link that resumes its session redelivers by itself what it had accepted. A link to a process that has lost the
//! session gets all open deliveries again, oldest first, with the same identities.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CommandId, Stage};
use crate::proto::id::PeerId;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::Lane;

mod cancel;
mod change;
mod effect;
mod issue;
#[cfg(test)]
mod model_tests;
mod send;
#[cfg(test)]
mod tests;
mod withdraw;

pub use cancel::CancelResult;
pub use change::{
    Change, EncodedCommand, IssuedCommand, OpenCommand, OpenDelivery, StoredCommand, StoredState,
    StoredTarget,
};
pub use effect::{DeliveryTarget, Effect, IssueRequest, WriteId};

/// Most open deliveries of one node; further ones are refused as `busy`.
pub const OPEN_PER_NODE_MAX: usize = 4_096;
/// Most open deliveries in all; further commands are not issued.
pub const OPEN_DELIVERIES_MAX: usize = 262_144;
/// Most deliveries that were sent to one node and that it has neither started nor answered, so that the node's own
/// queue does not overflow by what was queued while it was offline.
pub const IN_FLIGHT_MAX: usize = 32;
/// Time between two status queries to a linked node about deliveries beyond their deadline.
pub const QUERY_INTERVAL: Duration = Duration::from_secs(30);
/// Time after its deadline for which an outcome is still awaited.
pub const ABANDON_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// Delay before a failed write is tried again.
pub const STORE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Delay before a send that found no room is tried again.
pub const SEND_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Longest time for which a stage may wait for another write.
pub const STAGE_WRITE_DELAY: Duration = Duration::from_millis(200);
/// Stages that wait for another write; one more causes a write at once.
const UNSAVED_STAGES_MAX: usize = 1_024;

#[derive(Clone, Debug)]
enum Phase {
    Issuing {
        deferred: bool,
        /// Why it ends as soon as it is stored, if so.
        cancel_reason: Option<String>,
    },
    Deferred,
    Open,
    Ending {
        reply: Reply,
        /// Whether another reason was reported to its issuer already.
        reported: bool,
        /// Whether its write is in progress.
        writing: bool,
    },
}

/// Whether the store has recorded that a delivery may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentMark {
    Unset,
    Writing,
    Stored,
}

#[derive(Clone, Debug)]
struct Delivery {
    phase: Phase,
    sent_mark: SentMark,
    lane: Lane,
    /// Whether the node may have it.
    sent: bool,
    /// Whether the last send was the first.
    first_send: bool,
    may_queue: bool,
    stage: Option<Stage>,
    deadline: Instant,
    timer: Option<Instant>,
}

#[derive(Debug, Default)]
struct NodeQueue {
    connected: bool,
    /// The node's key is revoked.
    revoked: bool,
    open: BTreeMap<CommandId, Delivery>,
    /// Open, before the deadline, and not sent over the current link; in the order of sending.
    unsent: BTreeSet<(Lane, CommandId)>,
    /// Open, beyond the deadline, may be at the node, and a status query is due.
    to_query: BTreeSet<CommandId>,
    /// Sent over the current link, before the deadline, neither started nor answered.
    in_flight: BTreeSet<CommandId>,
}

#[derive(Debug)]
struct CommandEntry {
    encoded: Arc<EncodedCommand>,
    open: BTreeSet<PeerId>,
}

/// The subject of a write.
#[derive(Debug, Default)]
struct WriteInProgress {
    issued: Option<CommandId>,
    marked: Vec<(PeerId, CommandId)>,
    ended: Vec<(PeerId, CommandId)>,
}

/// All open deliveries of one station; see the module.
#[derive(Debug, Default)]
pub struct DeliveryTracker {
    commands: BTreeMap<CommandId, CommandEntry>,
    nodes: BTreeMap<PeerId, NodeQueue>,
    open_count: usize,
    timers: BTreeSet<(Instant, PeerId, CommandId)>,
    writes: BTreeMap<WriteId, WriteInProgress>,
    last_write_id: u64,
    unsaved_stages: Vec<Change>,
    stages_due: Option<Instant>,
    effects: Vec<Effect>,
}

impl DeliveryTracker {
    /// Removes and returns all effects, to be carried out in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The peers that have open deliveries.
    pub fn open_peers(&self) -> Vec<PeerId> {
        let open = self.nodes.iter().filter(|(_, node)| !node.open.is_empty());
        open.map(|(id, _)| *id).collect()
    }

    /// Number of deliveries that have not ended.
    pub fn open_deliveries(&self) -> usize {
        self.open_count
    }

    /// When [`Self::handle_timeout`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _, _)| *at);
        [timer, self.stages_due].into_iter().flatten().min()
    }

    /// Records that a write is durable.
    pub fn on_stored(&mut self, write_id: WriteId, now: Instant) {
        let Some(write) = self.writes.remove(&write_id) else {
            return;
        };
        let WriteInProgress {
            issued,
            marked,
            ended,
        } = write;
        let mut changed_nodes = BTreeSet::new();
        if let Some(id) = issued {
            for to in self.open_targets(id) {
                self.on_issue_stored(to, id);
                changed_nodes.insert(to);
            }
        }
        for (to, id) in marked {
            if let Some(delivery) = self.delivery_mut(to, id) {
                delivery.sent_mark = SentMark::Stored;
            }
            changed_nodes.insert(to);
        }
        for (to, id) in ended {
            self.remove(to, id);
        }
        for to in changed_nodes {
            self.send_ready(to, now);
        }
    }

    /// Records that a write failed: as far as is known, nothing of it is stored.
    pub fn on_store_failed(&mut self, write_id: WriteId, why: &str, now: Instant) {
        let Some(write) = self.writes.remove(&write_id) else {
            return;
        };
        let retry_at = now + STORE_RETRY_DELAY;
        if let Some(id) = write.issued {
            let why = format!("the station cannot store it: {why}");
            for to in self.open_targets(id) {
                if let Some(delivery) = self.delivery_mut(to, id) {
                    // The write may have reached the disk nevertheless; then its end is written after it.
                    delivery.phase = Phase::Ending {
                        reply: Reply::refused(why.clone()),
                        reported: true,
                        writing: false,
                    };
                    self.set_timer(to, id, retry_at);
                }
            }
            self.effects.push(Effect::NotIssued { id, reason: why });
        }
        for (to, id) in write.marked {
            if let Some(delivery) = self.delivery_mut(to, id)
                && delivery.sent_mark == SentMark::Writing
            {
                delivery.sent_mark = SentMark::Unset;
                let wake = delivery.deadline.min(retry_at);
                if matches!(delivery.phase, Phase::Open) {
                    self.set_timer(to, id, wake);
                }
            }
        }
        for (to, id) in write.ended {
            if let Some(delivery) = self.delivery_mut(to, id)
                && let Phase::Ending { writing, .. } = &mut delivery.phase
            {
                *writing = false;
                self.set_timer(to, id, retry_at);
            }
        }
    }

    /// Records that the node is linked. If its session resumed, what was sent to it is not sent again.
    pub fn on_connected(&mut self, peer: PeerId, resumed: bool, now: Instant) {
        let node = self.nodes.entry(peer).or_default();
        node.connected = true;
        node.revoked = false;
        if !resumed {
            node.in_flight.clear();
            node.unsent.clear();
            for (id, delivery) in node.open.iter().filter(|(_, delivery)| delivery.is_open()) {
                if delivery.sent && now >= delivery.deadline {
                    node.to_query.insert(*id);
                } else {
                    node.unsent.insert((delivery.lane, *id));
                }
            }
        }
        self.send_ready(peer, now);
    }

    /// Records that the node's link is closed.
    pub fn on_disconnected(&mut self, peer: PeerId) {
        if let Some(node) = self.nodes.get_mut(&peer) {
            node.connected = false;
        }
        self.remove_if_idle(peer);
    }

    /// Records that the node's key is revoked: nothing is sent to it any more.
    pub fn on_revoked(&mut self, peer: PeerId, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&peer) {
            node.connected = false;
            node.revoked = true;
        }
        self.send_ready(peer, now);
        self.remove_if_idle(peer);
    }

    /// Records that a link had no room for the frame of an [`Effect::Send`].
    pub fn on_send_failed(&mut self, peer: PeerId, id: CommandId, now: Instant) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        let Some(delivery) = node.open.get_mut(&id).filter(|delivery| delivery.is_open()) else {
            return;
        };
        if delivery.first_send {
            delivery.sent = false;
            delivery.first_send = false;
        }
        node.in_flight.remove(&id);
        node.unsent.insert((delivery.lane, id));
        let retry_at = now + SEND_RETRY_DELAY;
        let wake = if now < delivery.deadline {
            retry_at.min(delivery.deadline)
        } else {
            retry_at
        };
        self.set_timer(peer, id, wake);
    }

    /// Records a stage that the node acknowledges.
    pub fn on_stage(&mut self, peer: PeerId, id: CommandId, stage: Stage, now: Instant) {
        let Some(node) = self.nodes.get_mut(&peer) else {
            return;
        };
        let Some(delivery) = node.open.get_mut(&id) else {
            return;
        };
        if !delivery.is_open() || !delivery.sent || delivery.stage >= Some(stage) {
            return;
        }
        delivery.stage = Some(stage);
        if stage >= Stage::Started {
            node.in_flight.remove(&id);
        }
        self.effects.push(Effect::Stage { to: peer, id, stage });
        self.unsaved_stages.push(Change::Stage {
            id,
            to: peer,
            stage,
            at: now,
        });
        self.stages_due.get_or_insert(now + STAGE_WRITE_DELAY);
        if self.unsaved_stages.len() >= UNSAVED_STAGES_MAX {
            self.store(WriteInProgress::default(), Vec::new());
        }
        self.send_ready(peer, now);
    }

    /// Records the reply of a node. Only the first reply of a delivery counts.
    pub fn on_reply(&mut self, peer: PeerId, id: CommandId, reply: Reply, now: Instant) {
        let may_answer = |delivery: &mut Delivery| delivery.is_open() && delivery.sent;
        if self.delivery_mut(peer, id).is_some_and(may_answer) {
            self.end(peer, id, reply);
            self.send_ready(peer, now);
        }
    }

    /// Starts a later batch of a command that is stored: these targets may start it until `deadline`.
    pub fn start_batch(&mut self, id: CommandId, targets: &[PeerId], deadline: Instant, now: Instant) {
        let mut changes = Vec::new();
        let mut released = Vec::new();
        for to in targets {
            let Some(node) = self.nodes.get_mut(to) else {
                continue;
            };
            let Some(delivery) = node.open.get_mut(&id) else {
                continue;
            };
            if !matches!(delivery.phase, Phase::Deferred) {
                continue;
            }
            delivery.phase = Phase::Open;
            delivery.deadline = deadline;
            if !delivery.may_queue && !node.connected {
                self.end(*to, id, absent_reply());
                continue;
            }
            node.unsent.insert((delivery.lane, id));
            changes.push(Change::StateChanged {
                id,
                to: *to,
                state: StoredState::Waiting,
                deadline,
            });
            released.push(*to);
        }
        if !changes.is_empty() {
            // If this is not stored, the deliveries only count as deferred after a restart.
            self.store(WriteInProgress::default(), changes);
        }
        for to in released {
            self.set_timer(to, id, deadline);
            self.send_ready(to, now);
        }
    }

    /// Cancels all deliveries of a command that are still deferred.
    pub fn cancel_deferred(&mut self, id: CommandId, why: &str) {
        for to in self.open_targets(id) {
            let Some(delivery) = self.delivery_mut(to, id) else {
                continue;
            };
            match &mut delivery.phase {
                Phase::Issuing {
                    deferred: true,
                    cancel_reason,
                } => *cancel_reason = Some(why.to_owned()),
                Phase::Deferred => self.end(to, id, Reply::refused(why)),
                Phase::Issuing { deferred: false, .. } | Phase::Open | Phase::Ending { .. } => {}
            }
        }
    }

    /// Handles the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, to, id)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            let Some(delivery) = self.delivery_mut(to, id) else {
                continue;
            };
            delivery.timer = None;
            match &mut delivery.phase {
                Phase::Issuing { .. } | Phase::Deferred => {}
                Phase::Ending { writing: true, .. } => {}
                Phase::Ending { .. } => self.store_outcome(to, id),
                Phase::Open => {
                    self.on_deadline(to, id, now);
                    self.send_ready(to, now);
                }
            }
        }
        if self.stages_due.is_some_and(|due| now >= due) {
            self.store(WriteInProgress::default(), Vec::new());
        }
    }

    fn end(&mut self, to: PeerId, id: CommandId, reply: Reply) {
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        let Some(delivery) = node.open.get_mut(&id) else {
            return;
        };
        node.unsent.remove(&(delivery.lane, id));
        node.to_query.remove(&id);
        node.in_flight.remove(&id);
        delivery.phase = Phase::Ending {
            reply,
            reported: false,
            writing: false,
        };
        self.store_outcome(to, id);
    }

    fn store_outcome(&mut self, to: PeerId, id: CommandId) {
        self.clear_timer(to, id);
        let Some(delivery) = self.delivery_mut(to, id) else {
            return;
        };
        let Phase::Ending { reply, writing, .. } = &mut delivery.phase else {
            return;
        };
        *writing = true;
        let reply = reply.clone();
        let write = WriteInProgress {
            ended: vec![(to, id)],
            ..WriteInProgress::default()
        };
        self.store(write, vec![Change::Ended { id, to, reply }]);
    }

    /// Asks for a write; stages that wait are written with it, before it.
    fn store(&mut self, write: WriteInProgress, mut changes: Vec<Change>) {
        self.stages_due = None;
        let mut all = std::mem::take(&mut self.unsaved_stages);
        all.append(&mut changes);
        if all.is_empty() {
            return;
        }
        self.last_write_id += 1;
        let write_id = WriteId(self.last_write_id);
        self.writes.insert(write_id, write);
        self.effects.push(Effect::Store {
            write_id,
            changes: all,
        });
    }

    /// The outcome is stored: reports it, and removes the delivery.
    fn remove(&mut self, to: PeerId, id: CommandId) {
        self.clear_timer(to, id);
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        let Some(delivery) = node.open.remove(&id) else {
            return;
        };
        self.open_count -= 1;
        if let Some(command) = self.commands.get_mut(&id) {
            command.open.remove(&to);
            if command.open.is_empty() {
                self.commands.remove(&id);
            }
        }
        if let Phase::Ending {
            reply,
            reported: false,
            ..
        } = delivery.phase
        {
            self.effects.push(Effect::Ended { to, id, reply });
        }
        self.remove_if_idle(to);
    }

    fn remove_if_idle(&mut self, peer: PeerId) {
        let idle = |node: &NodeQueue| !node.connected && node.open.is_empty();
        if self.nodes.get(&peer).is_some_and(idle) {
            self.nodes.remove(&peer);
        }
    }

    fn open_targets(&self, id: CommandId) -> Vec<PeerId> {
        let command = self.commands.get(&id);
        command.map_or_else(Vec::new, |command| command.open.iter().copied().collect())
    }

    fn delivery_mut(&mut self, to: PeerId, id: CommandId) -> Option<&mut Delivery> {
        self.nodes.get_mut(&to)?.open.get_mut(&id)
    }

    fn set_timer(&mut self, to: PeerId, id: CommandId, at: Instant) {
        self.clear_timer(to, id);
        if let Some(delivery) = self.delivery_mut(to, id) {
            delivery.timer = Some(at);
            self.timers.insert((at, to, id));
        }
    }

    fn clear_timer(&mut self, to: PeerId, id: CommandId) {
        if let Some(at) = self
            .delivery_mut(to, id)
            .and_then(|delivery| delivery.timer.take())
        {
            self.timers.remove(&(at, to, id));
        }
    }
}

impl Delivery {
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }
}

fn absent_reply() -> Reply {
    Reply::ended(
        Outcome::NoAnswer,
        "offline: flight actions are never queued for an absent node",
    )
}
