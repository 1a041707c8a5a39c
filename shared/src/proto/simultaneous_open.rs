//! Two links between the same two peers: which one stays. Both sides reach the same answer from what both know.
//!
//! | the new link | stays |
//! |---|---|
//! | was dialled by the side that dialled the old one | the new one: its dialler had lost the old one |
//! | was dialled by the other side | the one dialled by the peer with the smaller id |
//! | comes from another run of the peer's process | the old one, while it lives |
//!
//! After a restart the old run's link is gone as soon as its machine says so, and otherwise after a silence of
//! `lost_after`; so the new run is asked to try again, and finds it gone. If it finds it alive after that time, then
//! two devices hold one key (a cloned card): the first stays linked, the other is refused, and the operator is told.

use std::time::{Duration, Instant};

use super::id::{Instance, PeerId};

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
    /// Another run is linked, which may be over: the new one is to try again.
    Wait,
    /// Two processes hold the same key; the old one stays.
    Cloned,
}

/// The links of one peer, as far as the choice needs them.
#[derive(Debug, Default)]
pub struct LinkChoice {
    current: Option<LinkFacts>,
    /// The first time that another run was told to wait for the current one's end.
    waiting: Option<Instant>,
}

impl LinkChoice {
    /// The link that is up.
    pub fn current(&self) -> Option<LinkFacts> {
        self.current
    }

    /// Decides about a new link between `us` and `peer`, and takes it up if it stays. A link that nothing is heard
    /// on closes after `lost_after`.
    pub fn offer(
        &mut self,
        us: PeerId,
        peer: PeerId,
        new: LinkFacts,
        now: Instant,
        lost_after: Duration,
    ) -> Verdict {
        if let Some(old) = self.current {
            if old.instance != new.instance {
                let since = *self.waiting.get_or_insert(now);
                // Twice, so that a late timer does not make a clone of a restart.
                let alive = now >= since + lost_after * 2;
                return if alive { Verdict::Cloned } else { Verdict::Wait };
            }
            let ours_stays = us < peer;
            let new_is_ours = new.dialler == Dialler::Us;
            if old.dialler != new.dialler && ours_stays != new_is_ours {
                return Verdict::Refuse;
            }
        }
        self.current = Some(new);
        Verdict::Take
    }

    /// The link that was up is gone.
    pub fn closed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::clock;

    const LOW: PeerId = PeerId([1; 32]);
    const HIGH: PeerId = PeerId([2; 32]);
    const LOST_AFTER: Duration = Duration::from_secs(3);

    fn link(dialler: Dialler, run: u64) -> LinkFacts {
        LinkFacts {
            dialler,
            instance: Instance(run),
        }
    }

    #[test]
    fn both_sides_keep_the_same_of_two_crossing_links() {
        let now = clock::now();
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
                    low.offer(LOW, HIGH, a, now, LOST_AFTER);
                    high.offer(HIGH, LOW, b, now, LOST_AFTER);
                }
                assert_eq!(low.current().map(|l| l.dialler), Some(Dialler::Us));
                assert_eq!(high.current().map(|l| l.dialler), Some(Dialler::Them));
            }
        }
    }

    #[test]
    fn who_dials_again_has_lost_its_link() {
        let (mut choice, now) = (LinkChoice::default(), clock::now());
        for _ in 0..2 {
            let verdict = choice.offer(LOW, HIGH, link(Dialler::Them, 1), now, LOST_AFTER);
            assert_eq!(verdict, Verdict::Take);
        }
    }

    #[test]
    fn a_restarted_peer_is_taken_once_its_old_link_is_gone() {
        let (mut choice, now) = (LinkChoice::default(), clock::now());
        choice.offer(LOW, HIGH, link(Dialler::Them, 1), now, LOST_AFTER);
        let restarted = link(Dialler::Them, 2);
        assert_eq!(choice.offer(LOW, HIGH, restarted, now, LOST_AFTER), Verdict::Wait);
        choice.closed();
        assert_eq!(choice.offer(LOW, HIGH, restarted, now, LOST_AFTER), Verdict::Take);
    }

    #[test]
    fn a_clone_is_told_apart_by_the_first_one_living_on() {
        let (mut choice, now) = (LinkChoice::default(), clock::now());
        let (first, clone) = (link(Dialler::Them, 1), link(Dialler::Us, 2));
        choice.offer(LOW, HIGH, first, now, LOST_AFTER);
        assert_eq!(choice.offer(LOW, HIGH, clone, now, LOST_AFTER), Verdict::Wait);
        let later = now + LOST_AFTER * 2;
        let just_before = later - Duration::from_nanos(1);
        assert_eq!(
            choice.offer(LOW, HIGH, clone, just_before, LOST_AFTER),
            Verdict::Wait
        );
        assert_eq!(choice.offer(LOW, HIGH, clone, later, LOST_AFTER), Verdict::Cloned);
        assert_eq!(choice.current(), Some(first));
    }
}
