//! Answers that the journal could not take: in memory until it can.

use std::collections::{BTreeMap, VecDeque};

use super::super::CommandId;
use super::super::record::{Digest, Record, StoredReply};
use super::UNSAVED_MAX;

/// How many answers go into one write.
const FLUSH_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Unsaved {
    answers: BTreeMap<CommandId, (Digest, StoredReply)>,
    /// Oldest first.
    order: VecDeque<CommandId>,
    /// Some are being written.
    flushing: bool,
}

impl Unsaved {
    pub(super) fn get(&self, id: CommandId) -> Option<(Digest, &StoredReply)> {
        self.answers.get(&id).map(|(digest, reply)| (*digest, reply))
    }

    pub(super) fn keep(&mut self, id: CommandId, digest: Digest, reply: StoredReply) {
        if self.answers.insert(id, (digest, reply)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > UNSAVED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }

    /// Whether there is something that nobody is writing.
    pub(super) fn is_due(&self) -> bool {
        !self.flushing && !self.order.is_empty()
    }

    /// The oldest answers, to be written; nothing while others are.
    pub(super) fn take_due(&mut self) -> (Vec<CommandId>, Vec<Record>) {
        if !self.is_due() {
            return (Vec::new(), Vec::new());
        }
        self.flushing = true;
        let ids: Vec<CommandId> = self.order.iter().take(FLUSH_MAX).copied().collect();
        let ended = |id: &CommandId| {
            let (_, reply) = self.answers.get(id)?;
            let (id, reply) = (*id, reply.clone());
            Some(Record::Ended { id, reply })
        };
        let records = ids.iter().filter_map(ended).collect();
        (ids, records)
    }

    /// These are in the journal now.
    pub(super) fn saved(&mut self, ids: &[CommandId]) {
        self.flushing = false;
        self.order.retain(|id| !ids.contains(id));
        for id in ids {
            self.answers.remove(id);
        }
    }

    /// They are not, and stay.
    pub(super) fn not_saved(&mut self) {
        self.flushing = false;
    }
}
