//! Two links between the same two peers: which one stays. Both sides reach the same answer from what both know.
//!
//! | the new link | stays |
//! |---|---|
//! | comes from another run of the peer's process | the new one: the old process is gone |
//! | was dialled by the side that dialled the old one | the new one: its dialler had lost the old one |
//! | was dialled by the other side | the one dialled by the peer with the smaller id |
//!
//! A key that two devices hold (a cloned card) shows itself when a run that was replaced comes back while the other
//! is linked: then the linked one stays, the other is refused, and the operator is told.

use std::collections::VecDeque;

use super::id::{Instance, PeerId};

/// Runs of a peer that are remembered as replaced.
const REPLACED_MAX: usize = 8;

/// Which side dialled a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialler {
    /// This side.
    Us,
    /// The peer.
    Them,
}

/// What counts about a link here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Who dialled it.
    pub dialler: Dialler,
    /// The run of the peer's process at its other end.
    pub instance: Instance,
}

/// What becomes of a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the place of the old one, or there was none.
    Take,
    /// The old one stays.
    Refuse,
    /// Two processes hold the same key; the old one stays.
    Cloned,
}

/// The links of one peer, as far as the choice needs them.
#[derive(Debug, Default)]
pub struct LinkChoice {
    current: Option<LinkFacts>,
    /// Runs whose link was taken away while it was up.
    replaced: VecDeque<Instance>,
}

impl LinkChoice {
    /// The link that is up.
    pub fn current(&self) -> Option<LinkFacts> {
        self.current
    }

    /// Decides about a new link between `us` and `peer`, and takes it up if it stays.
    pub fn offer(&mut self, us: PeerId, peer: PeerId, new: LinkFacts) -> Verdict {
        let Some(old) = self.current else {
            self.current = Some(new);
            return Verdict::Take;
        };
        if old.instance != new.instance {
            if self.replaced.contains(&new.instance) {
                return Verdict::Cloned;
            }
            self.replaced.push_back(old.instance);
            if self.replaced.len() > REPLACED_MAX {
                self.replaced.pop_front();
            }
        } else if old.dialler != new.dialler {
            let ours_stays = us < peer;
            let new_is_ours = new.dialler == Dialler::Us;
            if ours_stays != new_is_ours {
                return Verdict::Refuse;
            }
        }
        self.current = Some(new);
        Verdict::Take
    }

    /// The link that was up is gone.
    pub fn closed(&mut self) {
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: PeerId = PeerId([1; 32]);
    const HIGH: PeerId = PeerId([2; 32]);

    fn link(dialler: Dialler, run: u64) -> LinkFacts {
        LinkFacts {
            dialler,
            instance: Instance(run),
        }
    }

    #[test]
    fn both_sides_keep_the_same_of_two_crossing_links() {
        for low_first in [true, false] {
            for high_first in [true, false] {
                let (mut low, mut high) = (LinkChoice::default(), LinkChoice::default());
                let mut at_low = [link(Dialler::Us, 7), link(Dialler::Them, 7)];
                let mut at_high = [link(Dialler::Them, 8), link(Dialler::Us, 8)];
                if !low_first {
                    at_low.reverse();
                }
                if !high_first {
                    at_high.reverse();
                }
                for (a, b) in at_low.into_iter().zip(at_high) {
                    low.offer(LOW, HIGH, a);
                    high.offer(HIGH, LOW, b);
                }
                assert_eq!(low.current().map(|l| l.dialler), Some(Dialler::Us));
                assert_eq!(high.current().map(|l| l.dialler), Some(Dialler::Them));
            }
        }
    }

    #[test]
    fn who_dials_again_has_lost_its_link() {
        let mut choice = LinkChoice::default();
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 1)), Verdict::Take);
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 1)), Verdict::Take);
    }

    #[test]
    fn a_restarted_peer_is_taken_and_a_clone_is_told_apart() {
        let mut choice = LinkChoice::default();
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 1)), Verdict::Take);
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 2)), Verdict::Take);
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 1)), Verdict::Cloned);
        assert_eq!(choice.current(), Some(link(Dialler::Them, 2)));
        choice.closed();
        assert_eq!(choice.offer(LOW, HIGH, link(Dialler::Them, 1)), Verdict::Take);
    }
}
