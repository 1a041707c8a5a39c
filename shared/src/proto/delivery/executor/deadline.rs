//! Whether it is too late to begin: at its deadline it is.

use std::time::Instant;

#[cfg(feature = "planted-bugs")]
use crate::proto::planted;

/// Whether it has become too late while it was at hand.
pub(super) fn is_expired_in_queue(deadline: Option<Instant>, now: Instant) -> bool {
    #[cfg(feature = "planted-bugs")]
    if planted::is(planted::Bug::CheckTtlOnArrivalOnly) {
        return false;
    }
    is_expired(deadline, now)
}

pub(super) fn is_expired(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| now >= deadline)
}
