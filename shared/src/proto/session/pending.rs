//! Requests that wait for their replies, each until its own deadline.
//!
//! Invariant: a request is removed exactly once; the caller that removes it reports its end.

use std::collections::BTreeMap;
use std::time::Instant;

/// Most requests of one session that wait for replies.
pub const PENDING_REQUESTS_MAX: usize = 16 * 1024;

#[derive(Debug)]
struct PendingRequest<T> {
    /// The issuer's epoch in which the request was sent.
    epoch: Option<u64>,
    deadline: Instant,
    token: T,
}

/// The waiting requests of one session; see the module. `T` is the token that the application gets back.
#[derive(Debug)]
pub struct PendingRequests<T> {
    waiting: BTreeMap<u64, PendingRequest<T>>,
    /// Lower bound of all deadlines; `None` if no request waits.
    earliest_deadline: Option<Instant>,
}

/// The request cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    /// The limit of waiting requests is reached.
    #[error("busy: {PENDING_REQUESTS_MAX} requests wait for replies of this peer already")]
    TooMany,
    /// A request with this number waits already.
    #[error("request {0} waits already")]
    Repeated(u64),
}

impl<T> Default for PendingRequests<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            earliest_deadline: None,
        }
    }
}

impl<T> PendingRequests<T> {
    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a request with this number can be registered.
    ///
    /// # Errors
    /// [`PendingError`].
    pub fn check(&self, id: u64) -> Result<(), PendingError> {
        if self.waiting.len() >= PENDING_REQUESTS_MAX {
            return Err(PendingError::TooMany);
        }
        if self.waiting.contains_key(&id) {
            return Err(PendingError::Repeated(id));
        }
        Ok(())
    }

    /// Registers a request that has been [checked](Self::check).
    pub fn insert(&mut self, id: u64, epoch: Option<u64>, until: Instant, token: T) {
        self.earliest_deadline = Some(
            self.earliest_deadline
                .map_or(until, |earliest| earliest.min(until)),
        );
        self.waiting.insert(
            id,
            PendingRequest {
                epoch,
                deadline: until,
                token,
            },
        );
    }

    /// Whether a reply with this number and epoch is expected. A reply of an earlier epoch answers a request of a
    /// former process, whatever its number.
    pub fn awaits(&self, id: u64, epoch: Option<u64>) -> bool {
        self.waiting
            .get(&id)
            .is_some_and(|waiting| epoch.is_none() || epoch == waiting.epoch)
    }

    /// Removes a request and returns its token.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.waiting.remove(&id).map(|waiting| waiting.token)
    }

    /// Numbers of all waiting requests, lowest first.
    pub fn ids(&self) -> Vec<u64> {
        self.waiting.keys().copied().collect()
    }

    /// Numbers of the requests whose deadline has passed, lowest first. The caller removes each.
    pub fn timed_out(&mut self, now: Instant) -> Vec<u64> {
        if self.earliest_deadline.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let (late, left): (Vec<_>, Vec<_>) = self
            .waiting
            .iter()
            .partition(|(_, waiting)| now >= waiting.deadline);
        self.earliest_deadline = left.into_iter().map(|(_, waiting)| waiting.deadline).min();
        late.into_iter().map(|(id, _)| *id).collect()
    }

    /// When [`Self::timed_out`] may return something.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.earliest_deadline
    }
}
