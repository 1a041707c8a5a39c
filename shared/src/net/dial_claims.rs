//! One dial for each peer at a time: which peers are linked, and which a dial has reached.
//!
//! A peer with several addresses is dialled at several. TCP decides which one answers first; the others end without a
//! word, because a second link would replace the first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::net::sync::Mutex;
use crate::proto::id::{Instance, PeerId};

/// Shared by the endpoint's task and its dials; see the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct DialClaims(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    claimed: BTreeSet<PeerId>,
    linked: BTreeMap<PeerId, Instance>,
}

/// The right of one dial to go on with a peer; dropping it lets the next dial go on.
#[derive(Debug)]
pub(crate) struct DialClaim {
    claims: DialClaims,
    id: PeerId,
}

impl DialClaims {
    /// Claims a peer that a dial has reached; `None` if another dial has claimed it.
    pub(crate) fn claim(&self, id: PeerId) -> Option<DialClaim> {
        let is_new = self.0.lock().claimed.insert(id);
        is_new.then(|| DialClaim {
            claims: self.clone(),
            id,
        })
    }

    pub(crate) fn is_claimed(&self, id: PeerId) -> bool {
        self.0.lock().claimed.contains(&id)
    }

    /// Whether this run of the peer's program is linked.
    pub(crate) fn is_linked(&self, id: PeerId, instance: Instance) -> bool {
        self.0.lock().linked.get(&id) == Some(&instance)
    }

    pub(crate) fn set_linked(&self, id: PeerId, instance: Instance) {
        self.0.lock().linked.insert(id, instance);
    }

    pub(crate) fn set_unlinked(&self, id: PeerId) {
        self.0.lock().linked.remove(&id);
    }
}

impl Drop for DialClaim {
    fn drop(&mut self) {
        self.claims.0.lock().claimed.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_dial_of_a_peer_waits_for_the_first() {
        let (claims, id) = (DialClaims::default(), PeerId([1; 32]));
        let first = claims.claim(id);
        assert!(first.is_some() && claims.is_claimed(id));
        assert!(claims.claim(id).is_none());
        assert!(claims.claim(PeerId([2; 32])).is_some());
        drop(first);
        assert!(claims.claim(id).is_some());
    }

    #[test]
    fn only_the_linked_run_of_a_program_counts_as_linked() {
        let (claims, id) = (DialClaims::default(), PeerId([1; 32]));
        claims.set_linked(id, Instance(1));
        assert!(claims.is_linked(id, Instance(1)) && !claims.is_linked(id, Instance(2)));
        claims.set_unlinked(id);
        assert!(!claims.is_linked(id, Instance(1)));
    }
}
