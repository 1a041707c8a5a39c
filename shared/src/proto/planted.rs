//! Deliberate bugs, planted one at a time to prove that the simulator finds them. Built only with the feature
//! `planted-bugs`, which no released program enables. Each is a mistake that a programmer could make at that place.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// A realistic mistake. Each variant names what the code does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The directory is not synced after a snapshot is renamed.
    SkipDirSync,
    /// The journal confirms a record before it is on the disk.
    AckBeforeJournal,
    /// The deadline of a command is checked on arrival, but not at its start.
    CheckTtlOnArrivalOnly,
    /// A duplicate is recognised by the time since the first copy, not by its identity.
    DedupeByTime,
    /// A station starts with the same epoch after each restart.
    ResetEpoch,
    /// The newest unacknowledged frame is dropped when a link resumes.
    DropNewestOnReconnect,
    /// A release is accepted without the number of the stop in force.
    ReleaseWithoutNumber,
    /// Ordinary commands are sent before emergency frames.
    LaneInversion,
    /// The resume point in the welcome is one too high.
    ResumeOffByOne,
    /// A stop is not restored after a restart.
    ForgetLatch,
}

impl Bug {
    /// All bugs, in the order of the enumeration.
    pub const ALL: [Self; 10] = [
        Self::SkipDirSync,
        Self::AckBeforeJournal,
        Self::CheckTtlOnArrivalOnly,
        Self::DedupeByTime,
        Self::ResetEpoch,
        Self::DropNewestOnReconnect,
        Self::ReleaseWithoutNumber,
        Self::LaneInversion,
        Self::ResumeOffByOne,
        Self::ForgetLatch,
    ];
}

/// Plants this bug on the current thread, and removes any other.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted on the current thread.
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
