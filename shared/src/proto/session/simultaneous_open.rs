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

use crate::proto::id::{Instance, PeerId};

/// Which side dialled a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DialedBy {
    /// This side.
    Local,
    /// The peer.
    Remote,
}

/// What counts about a link here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOrigin {
    /// Who dialled it.
    pub dialler: DialedBy,
    /// The run of the peer's process at its other end.
    pub instance: Instance,
}

/// What becomes of a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDecision {
    /// It takes the place of the old one, or there was none.
    Accept,
    /// The old one stays.
    Reject,
    /// Another run is linked, which may be over: the new one is to try again.
    RetryLater,
    /// Two processes hold the same key; the old one stays.
    ClonedKey,
}

/// The links of one peer, as far as the choice needs them.
#[derive(Debug, Default)]
pub struct LinkTieBreaker {
    current: Option<LinkOrigin>,
    /// The first time that another run was told to wait for the current one's end.
    waiting_since: Option<Instant>,
}

impl LinkTieBreaker {
    /// The link that is up.
    pub fn current(&self) -> Option<LinkOrigin> {
        self.current
    }

    /// Decides about a new link between `us` and `peer`, and takes it up if it stays. A link that nothing is heard
    /// on closes after `lost_after`.
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
                // Twice, so that a late timer does not make a clone of a restart.
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

    /// The link that was up is gone.
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
