//! What waits to be written to a drone, and what of it goes first.

use std::collections::VecDeque;
use std::time::Instant;

use crate::proto::wire::Frame;

/// What a queued frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// An action or a file.
    Act,
    /// One that was being written when an emergency stop came, or when nobody waited for it any more: if it is lost half
    /// written, it never goes again, not even after a release.
    Dropped,
    /// The emergency stop.
    Stop,
    /// A request, with its number.
    Request(u32),
}

#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) what: What,
    pub(super) ticket: Option<u64>,
    /// Not begun after this, if anything asks for it.
    pub(super) begin: Option<Instant>,
    pub(super) frame: Frame,
}

/// The next: a stop, wherever it is, then the oldest.
pub(super) fn take_first(queue: &mut VecDeque<Queued>) -> Option<Queued> {
    let stop = queue.iter().position(|queued| queued.what == What::Stop);
    queue.remove(stop.unwrap_or(0))
}
