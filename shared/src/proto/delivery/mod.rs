//! Commands that survive restarts: each runs at most once, never late, and ends in exactly one outcome.
//!
//! A command's identity is its [`CommandId`]: the issuing station, the epoch of that station's store, and a number in
//! that epoch. The station stores a delivery for each target until its outcome is known; the node stores which
//! commands it has started and how they ended. Either may be killed at any instant: the station sends the command
//! again with the same identity, and the node replies from what it has stored.

pub mod dedup;
#[cfg(test)]
mod dedup_tests;
pub mod executor;
pub mod journal;
#[cfg(test)]
mod journal_tests;
pub mod record;
pub mod tracker;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::PeerId;
use super::wire::{Frame, Header, Kind};

/// The longest time to live of an action of class `flight`, in milliseconds, from issue to start.
pub const FLIGHT_TTL_MS_MAX: u64 = 2_000;

/// The identity of a command, which all copies of it share. Commands of one issuer are ordered by their issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId {
    /// Station that issued it.
    pub issuer: PeerId,
    /// Epoch of that station's store at that time: rises each time the store is opened, see [`next_epoch`].
    pub epoch: u64,
    /// Its number in that epoch, from 1.
    pub seq: u64,
}

impl CommandId {
    /// The identity in the header of a frame from `issuer`; `None` if there is none.
    pub fn from_header(issuer: PeerId, header: &Header) -> Option<Self> {
        Some(Self {
            issuer,
            epoch: header.epoch?,
            seq: header.id?,
        })
    }
}

/// `epoch-number`, the form for typing; without the issuer.
impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// Random bits at the low end of an epoch.
const EPOCH_RANDOM_BITS: u32 = 12;

/// The epoch of a store that is opened now. It is higher than `last`, the previous epoch, and starts from the wall
/// clock, so that a store that is restored from a backup does not use the same epochs again; if the clock was set
/// back too, the random bits make a repetition unlikely. It stays below 2^53, which every JSON parser can represent.
pub fn next_epoch(last: u64, now_unix_ms: u64, random: u16) -> u64 {
    #[cfg(feature = "planted-bugs")]
    if super::planted::is(super::planted::Bug::ResetEpoch) {
        return 1;
    }
    let random = u64::from(random) & ((1 << EPOCH_RANDOM_BITS) - 1);
    let after = (last >> EPOCH_RANDOM_BITS) + 1;
    (after.max(now_unix_ms) << EPOCH_RANDOM_BITS) | random
}

/// The progress of a delivery, as the node acknowledges it; in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The node has received it.
    Received,
    /// The node has checked and queued it; it may still expire.
    Accepted,
    /// Its start is in the node's journal, and its action has started.
    Started,
    /// Its outcome is known.
    Finished,
}

impl Stage {
    /// The word for it on the wire, in JSON and for display.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Content of a `stage` frame. There is none for `finished`: the reply implies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageMessage {
    /// Stage of the command with this frame's epoch and number.
    pub stage: Stage,
}

impl StageMessage {
    /// The frame for the issuer of `id`.
    pub fn to_frame(self, id: CommandId) -> Frame {
        let mut frame = Frame::json(Kind::Stage, &self);
        frame.header.id = Some(id.seq);
        frame.header.epoch = Some(id.epoch);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_epoch_exceeds_the_last_and_fits_a_double() {
        let now = 1_795_000_000_000;
        let first = next_epoch(0, now, 0xabcd);
        assert_eq!(first, (now << 12) | 0xbcd);
        assert!(next_epoch(first, now, 0) > first);
        assert!(next_epoch(first, now - 1_000_000, 0) > first);
        // Until the year 2039.
        assert!(next_epoch(0, (1 << 41) - 1, u16::MAX) < 1 << 53);
    }

    #[test]
    fn restored_backup_gets_a_new_epoch() {
        let backed_up = next_epoch(0, 1_000, 7);
        let went_on = next_epoch(backed_up, 2_000, 7);
        let put_back = next_epoch(backed_up, 3_000, 7);
        assert!(put_back > went_on);
    }
}
