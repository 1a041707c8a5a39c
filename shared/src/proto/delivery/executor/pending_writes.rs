//! Replies that the journal could not store, kept in memory until it can.

use std::collections::{BTreeMap, VecDeque};

use super::super::CommandId;
use super::super::record::{Digest, Record, StoredReply};
use super::PENDING_WRITES_MAX;

/// Most replies in one write.
const BATCH_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct PendingWrites {
    replies: BTreeMap<CommandId, (Digest, StoredReply)>,
    /// Identities, oldest first.
    order: VecDeque<CommandId>,
    /// Whether a batch is being written.
    writing: bool,
}

impl PendingWrites {
    pub(super) fn get(&self, id: CommandId) -> Option<(Digest, &StoredReply)> {
        self.replies.get(&id).map(|(digest, reply)| (*digest, reply))
    }

    pub(super) fn insert(&mut self, id: CommandId, digest: Digest, reply: StoredReply) {
        if self.replies.insert(id, (digest, reply)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > PENDING_WRITES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.replies.remove(&oldest);
            }
        }
    }

    /// Whether there are replies and none are being written.
    pub(super) fn is_due(&self) -> bool {
        !self.writing && !self.order.is_empty()
    }

    /// The oldest replies, to be written; empty while others are being written.
    pub(super) fn next_batch(&mut self) -> (Vec<CommandId>, Vec<Record>) {
        if !self.is_due() {
            return (Vec::new(), Vec::new());
        }
        self.writing = true;
        let ids: Vec<CommandId> = self.order.iter().take(BATCH_MAX).copied().collect();
        let ended = |id: &CommandId| {
            let (_, reply) = self.replies.get(id)?;
            let (id, reply) = (*id, reply.clone());
            Some(Record::Ended { id, reply })
        };
        let records = ids.iter().filter_map(ended).collect();
        (ids, records)
    }

    /// These replies are in the journal.
    pub(super) fn on_written(&mut self, ids: &[CommandId]) {
        self.writing = false;
        self.order.retain(|id| !ids.contains(id));
        for id in ids {
            self.replies.remove(id);
        }
    }

    /// The write failed; the replies are kept.
    pub(super) fn on_write_failed(&mut self) {
        self.writing = false;
    }
}
