//! Frames that wait to be written to a drone, and which of them is next.

use std::collections::VecDeque;
use std::time::Instant;

use crate::proto::wire::Frame;

/// How a queued frame is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// An action or a file.
    Action,
    /// An action or file that was being written when an emergency stop or a cancellation arrived: if the connection
    /// is lost before it is written, it is never sent again.
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
    /// Not started at or after this time; `None` for frames without a deadline.
    pub(super) start_by: Option<Instant>,
    pub(super) frame: Frame,
}

/// Takes the next frame: a stop if there is one, else the oldest.
pub(super) fn pop_next(queue: &mut VecDeque<QueuedFrame>) -> Option<QueuedFrame> {
    let stop = queue.iter().position(|queued| queued.kind == FrameKind::Stop);
    queue.remove(stop.unwrap_or(0))
}
