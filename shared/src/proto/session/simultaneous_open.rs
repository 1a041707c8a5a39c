//! Decides which of two links between the same two peers stays. Both sides compute the same answer from what both
//! know.
//!
//! | the new link | stays |
//! |---|---|
//! | was dialled by the side that dialled the old one | the new one: its dialler has lost the old one |
//! | was dialled by the other side | the one dialled by the peer with the smaller id |
//! | comes from another run of the peer's process | the old one, while it lives |
//!
//! After a restart, the old instance's link closes as soon as its kernel resets it, and otherwise after a silence of
//! `lost_after`; so the new instance is asked to retry, and then finds it closed. If it finds the old link alive after
//! that time, two devices hold one key (a cloned card): the first stays linked, the second is refused, and the
//! operator gets a warning.

use std::time::{Duration, Instant};

use crate::proto::id::{Instance, PeerId};

/// The side that dialled a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DialedBy {
    /// This side.
    Local,
    /// The peer.
    Remote,
}

/// The properties of a link that the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOrigin {
    /// The side that dialled it.
    pub dialler: DialedBy,
    /// The instance of the peer's process at its other end.
    pub instance: Instance,
}

/// Result of the decision about a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDecision {
    /// The new link replaces the old one, or there was none.
    Accept,
    /// The old one stays.
    Reject,
    /// Another instance is linked, which may have ended: the new one is to retry.
    RetryLater,
    /// Two processes hold the same key; the old one stays.
    ClonedKey,
}

/// The current link of one peer, as far as the decision needs it.
#[derive(Debug, Default)]
pub struct LinkTieBreaker {
    current: Option<LinkOrigin>,
    /// The first time that another instance was asked to retry.
    waiting_since: Option<Instant>,
}

impl LinkTieBreaker {
    /// The link that is open.
    pub fn current(&self) -> Option<LinkOrigin> {
        self.current
    }

    /// Decides about a new link between `us` and `peer`, and records it if it stays. A silent link closes after
    /// `lost_after`.
    pub fn decide(
        &mut self,
        us: PeerId,
        peer: PeerId,
        new: LinkOrigin,
        now: Instant,
        lost_after: Duration,
    ) -> LinkDecision {
        if let Some(old) = self.current {
            if old.instance != new.instance {
                let since = *self.waiting_since.get_or_insert(now);
                // Twice the time, so that a late timer does not make a clone of a restarted process.
                let alive = now >= since + lost_after * 2;
                return if alive {
                    LinkDecision::ClonedKey
                } else {
                    LinkDecision::RetryLater
                };
            }
            let ours_stays = us < peer;
            let new_is_ours = new.dialler == DialedBy::Local;
            if old.dialler != new.dialler && ours_stays != new_is_ours {
                return LinkDecision::Reject;
            }
        }
        self.current = Some(new);
        LinkDecision::Accept
    }

    /// Records that the current link is closed.
    pub fn on_closed(&mut self) {
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

    fn link(dialler: DialedBy, run: u64) -> LinkOrigin {
        LinkOrigin {
            dialler,
            instance: Instance(run),
        }
    }

    #[test]
    fn both_sides_keep_the_same_crossing_link() {
        let now = clock::now();
        for low_first in [true, false] {
            for high_first in [true, false] {
                let (mut low, mut high) = (LinkTieBreaker::default(), LinkTieBreaker::default());
                let mut at_low = [link(DialedBy::Local, 7), link(DialedBy::Remote, 7)];
                let mut at_high = [link(DialedBy::Remote, 8), link(DialedBy::Local, 8)];
                if !low_first {
                    at_low.reverse();
                }
                if !high_first {
                    at_high.reverse();
                }
                for (a, b) in at_low.into_iter().zip(at_high) {
                    low.decide(LOW, HIGH, a, now, LOST_AFTER);
                    high.decide(HIGH, LOW, b, now, LOST_AFTER);
                }
                assert_eq!(low.current().map(|l| l.dialler), Some(DialedBy::Local));
                assert_eq!(high.current().map(|l| l.dialler), Some(DialedBy::Remote));
            }
        }
    }

    #[test]
    fn redial_by_the_same_side_replaces_the_link() {
        let (mut choice, now) = (LinkTieBreaker::default(), clock::now());
        for _ in 0..2 {
            let verdict = choice.decide(LOW, HIGH, link(DialedBy::Remote, 1), now, LOST_AFTER);
            assert_eq!(verdict, LinkDecision::Accept);
        }
    }

    #[test]
    fn restarted_peer_is_accepted_once_its_old_link_closed() {
        let (mut choice, now) = (LinkTieBreaker::default(), clock::now());
        choice.decide(LOW, HIGH, link(DialedBy::Remote, 1), now, LOST_AFTER);
        let restarted = link(DialedBy::Remote, 2);
        assert_eq!(
            choice.decide(LOW, HIGH, restarted, now, LOST_AFTER),
            LinkDecision::RetryLater
        );
        choice.on_closed();
        assert_eq!(
            choice.decide(LOW, HIGH, restarted, now, LOST_AFTER),
            LinkDecision::Accept
        );
    }

    #[test]
    fn cloned_key_is_detected_while_the_first_link_lives() {
        let (mut choice, now) = (LinkTieBreaker::default(), clock::now());
        let (first, clone) = (link(DialedBy::Remote, 1), link(DialedBy::Local, 2));
        choice.decide(LOW, HIGH, first, now, LOST_AFTER);
        assert_eq!(
            choice.decide(LOW, HIGH, clone, now, LOST_AFTER),
            LinkDecision::RetryLater
        );
        let later = now + LOST_AFTER * 2;
        let just_before = later - Duration::from_nanos(1);
        assert_eq!(
            choice.decide(LOW, HIGH, clone, just_before, LOST_AFTER),
            LinkDecision::RetryLater
        );
        assert_eq!(
            choice.decide(LOW, HIGH, clone, later, LOST_AFTER),
            LinkDecision::ClonedKey
        );
        assert_eq!(choice.current(), Some(first));
    }
}
