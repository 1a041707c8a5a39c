//! Says a thing once: a peer that is refused, or holds a copied key, dials again and again.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Notice;
use crate::proto::id::PeerId;
use crate::proto::message::RefusalCode;

/// After this time the same refusal is worth a line again.
pub const SAY_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Most refusals that are remembered; the one said longest ago is forgotten for a new one.
pub const SAID_MAX: usize = 256;

/// Who was refused, by whom, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    peer: Option<PeerId>,
    /// Tells those apart whose key is not known.
    ip: Option<IpAddr>,
    by_us: bool,
    code: RefusalCode,
}

/// What was said lately, oldest first.
#[derive(Debug, Default)]
pub struct Hush {
    said: VecDeque<(Refusal, Instant)>,
}

impl Hush {
    /// Whether an operator who reads along has not been told this yet, or not for a long time.
    pub fn is_news(&mut self, notice: &Notice, now: Instant) -> bool {
        let refusal = match notice {
            Notice::Refused {
                addr,
                peer,
                by_us,
                refused,
                ..
            } => Refusal {
                peer: *peer,
                ip: peer.is_none().then(|| addr.ip()),
                by_us: *by_us,
                code: refused.code,
            },
            Notice::Cloned { id, other, .. } => Refusal {
                peer: Some(*id),
                ip: Some(other.1.ip()),
                by_us: true,
                code: RefusalCode::ClonedKey,
            },
            Notice::Renamed { .. } | Notice::OwnKeyRevoked => return true,
        };
        self.said
            .retain(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN_AFTER);
        if self.said.iter().any(|(said, _)| *said == refusal) {
            return false;
        }
        if self.said.len() >= SAID_MAX {
            self.said.pop_front();
        }
        self.said.push_back((refusal, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::clock;
    use crate::proto::message::Refused;

    fn refused(peer: Option<u8>, host: u8, code: RefusalCode) -> Notice {
        Notice::Refused {
            addr: ([192, 0, 2, host], 7420).into(),
            peer: peer.map(|byte| PeerId([byte; 32])),
            name: None,
            by_us: true,
            refused: Refused::new(code, "no"),
        }
    }

    #[test]
    fn the_same_refusal_is_news_once_in_a_while() {
        let (mut hush, now) = (Hush::default(), clock::now());
        let revoked = refused(Some(1), 1, RefusalCode::Revoked);
        assert!(hush.is_news(&revoked, now));
        assert!(!hush.is_news(&refused(Some(1), 2, RefusalCode::Revoked), now));
        assert!(hush.is_news(&refused(Some(1), 1, RefusalCode::BadGrant), now));
        assert!(hush.is_news(&refused(Some(2), 1, RefusalCode::Revoked), now));
        assert!(hush.is_news(&revoked, now + SAY_AGAIN_AFTER));
        assert!(hush.is_news(&Notice::OwnKeyRevoked, now));
        assert!(hush.is_news(&Notice::OwnKeyRevoked, now));
    }

    #[test]
    fn strangers_are_told_apart_by_address_and_are_bounded() {
        let (mut hush, now) = (Hush::default(), clock::now());
        for host in 0..=u8::MAX {
            assert!(hush.is_news(&refused(None, host, RefusalCode::Protocol), now));
        }
        assert!(hush.is_news(&refused(Some(1), 0, RefusalCode::Protocol), now));
        assert_eq!(hush.said.len(), SAID_MAX);
        assert!(
            hush.is_news(&refused(None, 0, RefusalCode::Protocol), now),
            "forgotten first"
        );
    }
}
