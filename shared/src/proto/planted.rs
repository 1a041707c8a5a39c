//! Bugs to be planted, one at a time, to see that the simulator finds them. Built only with the feature
//! `planted-bugs`, which no product has; each is planted where a programmer could have made it.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// A realistic mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A snapshot's name is not made durable.
    SkipDirSync,
    /// The journal says that a record is written before it is on the disk.
    AckBeforeJournal,
    /// Whether a command is too late is checked when it arrives, and not when it starts.
    CheckTtlOnArrivalOnly,
    /// A repeat is told by how long ago the first one came.
    DedupeByTime,
    /// A station counts from the beginning after each start.
    ResetEpoch,
    /// Of what was not acknowledged the newest is lost when a link resumes.
    DropNewestOnReconnect,
    /// A release need not name the stop in force.
    ReleaseWithoutNumber,
    /// Ordinary commands go out before emergencies.
    LaneInversion,
    /// The resume point is one too high.
    ResumeOffByOne,
    /// A stop is not put back in force at a restart.
    ForgetLatch,
}

impl Bug {
    /// All of them.
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

/// Plants this bug, and no other, in what runs on this thread.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted here.
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
