//! Deadline checks. A command is expired from its deadline on, not only after it.

use std::time::Instant;

#[cfg(feature = "planted-bugs")]
use crate::proto::planted;

/// Whether its deadline has passed while it was waiting or being written.
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
