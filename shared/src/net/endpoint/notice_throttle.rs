//! Suppresses repeated notices: a peer that is refused, or holds a copied key, dials again and again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Notice;
use crate::proto::id::PeerId;
use crate::proto::message::RefusalCode;
use crate::proto::rate::{KeyedThrottle, TokenBucket};

/// After this time the same notice is reported again.
pub const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Most notices that are remembered; a new one replaces the one that was reported longest ago.
pub const REPORTED_MAX: usize = 256;

/// The identity of a notice: peer, direction and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    peer: Option<PeerId>,
    /// Distinguishes peers whose key is unknown.
    ip: Option<IpAddr>,
    by_us: bool,
    code: RefusalCode,
}

/// The notices that were reported lately.
#[derive(Debug)]
pub struct NoticeThrottle(KeyedThrottle<Refusal>);

impl Default for NoticeThrottle {
    fn default() -> Self {
        let bucket = TokenBucket::every(REPORT_AGAIN_AFTER, 1);
        Self(KeyedThrottle::new(bucket, REPORTED_MAX))
    }
}

impl NoticeThrottle {
    /// Whether this notice is new, or was last reported a long time ago.
    pub fn should_report(&mut self, notice: &Notice, now: Instant) -> bool {
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
            Notice::ClonedKey { id, other, .. } => Refusal {
                peer: Some(*id),
                ip: Some(other.1.ip()),
                by_us: true,
                code: RefusalCode::ClonedKey,
            },
            Notice::Renamed { .. } | Notice::OwnKeyRevoked => return true,
        };
        self.0.count(refusal, now).is_some()
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
    fn repeated_refusal_is_reported_once_per_interval() {
        let (mut throttle, now) = (NoticeThrottle::default(), clock::now());
        let revoked = refused(Some(1), 1, RefusalCode::Revoked);
        assert!(throttle.should_report(&revoked, now));
        assert!(!throttle.should_report(&refused(Some(1), 2, RefusalCode::Revoked), now));
        assert!(throttle.should_report(&refused(Some(1), 1, RefusalCode::BadGrant), now));
        assert!(throttle.should_report(&refused(Some(2), 1, RefusalCode::Revoked), now));
        assert!(throttle.should_report(&revoked, now + REPORT_AGAIN_AFTER));
        assert!(throttle.should_report(&Notice::OwnKeyRevoked, now));
        assert!(throttle.should_report(&Notice::OwnKeyRevoked, now));
    }

    #[test]
    fn unknown_peers_are_tracked_by_address_within_a_bound() {
        let (mut throttle, now) = (NoticeThrottle::default(), clock::now());
        for host in 0..=u8::MAX {
            assert!(throttle.should_report(&refused(None, host, RefusalCode::Protocol), now));
        }
        assert!(throttle.should_report(&refused(Some(1), 0, RefusalCode::Protocol), now));
        assert!(
            throttle.should_report(&refused(None, 0, RefusalCode::Protocol), now),
            "forgotten first"
        );
    }
}
