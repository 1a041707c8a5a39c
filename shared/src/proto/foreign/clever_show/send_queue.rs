//! What waits to be written to a drone, and what of it goes first.

use std::collections::VecDeque;
use std::time::Instant;

use crate::proto::wire::Frame;

/// What a queued frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// An action or a file.
    Action,
    /// One that was being written when an emergency stop came, or when nobody waited for it any more: if it is lost half
    /// written, it never goes again, not even after a release.
    ActionNoResend,
    /// The emergency stop.
    Stop,
    /// A request, with its number.
    Request(u32),
}

#[derive(Clone, Debug)]
pub(super) struct QueuedFrame {
    pub(super) kind: FrameKind,
    pub(super) ticket: Option<u64>,
    /// Not begun after this, if anything asks for it.
    pub(super) start_by: Option<Instant>,
    pub(super) frame: Frame,
}

/// The next: a stop, wherever it is, then the oldest.
pub(super) fn pop_next(queue: &mut VecDeque<QueuedFrame>) -> Option<QueuedFrame> {
    let stop = queue.iter().position(|queued| queued.kind == FrameKind::Stop);
    queue.remove(stop.unwrap_or(0))
}
