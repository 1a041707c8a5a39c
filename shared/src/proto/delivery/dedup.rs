//! The deduplication table: the state that a journal replays to. It holds which commands a node has started, how they
//! ended, and whether the node is stopped.
//!
//! Invariants:
//! * Every command above an issuer's floor is known: one that is not in the window has never started. A command up to
//!   the floor must not run; whether it has run is not known any more.
//! * Only the order of records matters: the same records give an equal table, and [`DedupTable::records`] gives
//!   records that replay to an equal one.
//! * Bounded: [`WINDOW_COMMANDS`] for each of [`WINDOW_ISSUERS`], [`REPLY_BYTES_MAX`] of text for all, and a floor or
//!   a number for each of [`ISSUERS_MAX`].

use std::collections::BTreeMap;

use super::super::id::PeerId;
#[cfg(feature = "planted-bugs")]
use super::super::planted;
use super::CommandId;
use super::record::{Digest, Record, StoredReply, truncate_text};

/// Newest commands of an issuer that are known one by one.
pub const WINDOW_COMMANDS: usize = 1024;
/// Issuers that have a window; of the least recent others only the floor is kept.
pub const WINDOW_ISSUERS: usize = 64;
/// Text of all stored replies, in bytes. The oldest texts are dropped first; their outcomes stay.
pub const REPLY_BYTES_MAX: usize = 1024 * 1024;
/// Issuers without a window whose floor is kept; also the issuers whose highest stop number is kept.
pub const ISSUERS_MAX: usize = 1024;

/// Epoch and sequence number of a command of one issuer.
type SequenceKey = (u64, u64);

/// The state that replaying a journal yields; see the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DedupTable {
    /// Issuers with a window, which is never empty.
    windows: BTreeMap<PeerId, IssuerWindow>,
    /// The same issuers, the most recent last.
    by_recency: Vec<PeerId>,
    /// Floors of the issuers without a window.
    floors: BTreeMap<PeerId, SequenceKey>,
    text_bytes: usize,
    latch: Option<Latch>,
    stops: BTreeMap<PeerId, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IssuerWindow {
    floor: Option<SequenceKey>,
    entries: BTreeMap<SequenceKey, Entry>,
    text_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// `None` if it ended without having started.
    digest: Option<Digest>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Begun { idempotent: bool },
    Ended(StoredReply),
}

/// What the table says about an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DedupResult<'a> {
    /// It has never started.
    New,
    /// It has started, and its end is not known: it is running, or a crash came between.
    Begun {
        /// Whether it may run again.
        idempotent: bool,
    },
    /// It has ended with this reply.
    Ended(&'a StoredReply),
    /// It is at or below the floor; it may have run.
    Evicted,
    /// It has never started, and its issuer has used a later epoch since: the station's store was restored from a
    /// backup, or the frame was delayed for very long.
    OldEpoch {
        /// The highest epoch of that issuer so far.
        highest: u64,
    },
    /// Another command has used this identity.
    Conflict,
}

/// The emergency stop in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latch {
    /// Station that issued it.
    pub issuer: PeerId,
    /// Its number, which a release must name.
    pub number: u64,
    /// Result of the node's own stop command; `None` while it is not known.
    pub command_result: Option<Result<(), String>>,
}

impl DedupTable {
    /// Applies the next record.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Started {
                id,
                digest,
                idempotent,
            } => {
                let state = State::Begun {
                    idempotent: *idempotent,
                };
                self.insert(id, Some(*digest), state);
            }
            Record::Ended { id, reply } => self.insert(id, None, State::Ended(reply.clone())),
            Record::Floor { issuer, epoch, seq } => self.raise_floor(*issuer, (*epoch, *seq)),
            #[cfg(feature = "planted-bugs")]
            Record::Stopped { issuer, number } if planted::is(planted::Bug::ForgetLatch) => {
                self.record_stop_number(*issuer, *number);
            }
            Record::Stopped { issuer, number } => {
                self.latch = Some(Latch {
                    issuer: *issuer,
                    number: *number,
                    command_result: None,
                });
                self.record_stop_number(*issuer, *number);
            }
            Record::Released { number } => {
                self.latch.take_if(|latch| latch.number == *number);
            }
            Record::StopEnded { number, error } => {
                if let Some(latch) = self.latch.as_mut().filter(|latch| latch.number == *number) {
                    latch.command_result = Some(match error {
                        None => Ok(()),
                        Some(error) => Err(truncate_text(error).to_owned()),
                    });
                }
            }
            Record::StopSeen { issuer, number } => self.record_stop_number(*issuer, *number),
        }
    }

    /// The fewest records that replay to an equal table: the content of a snapshot.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        // Floors of issuers with a window come first: each makes room for the next by becoming a window.
        for issuer in &self.by_recency {
            if let Some(window) = self.windows.get(issuer) {
                window.records(*issuer, &mut records);
            }
        }
        records.extend(self.floors.iter().map(|(issuer, floor)| Record::Floor {
            issuer: *issuer,
            epoch: floor.0,
            seq: floor.1,
        }));
        records.extend(self.stops.iter().map(|(issuer, number)| Record::StopSeen {
            issuer: *issuer,
            number: *number,
        }));
        if let Some(latch) = &self.latch {
            let number = latch.number;
            records.push(Record::Stopped {
                issuer: latch.issuer,
                number,
            });
            if let Some(ended) = &latch.command_result {
                let error = ended.as_ref().err().cloned();
                records.push(Record::StopEnded { number, error });
            }
        }
        records
    }

    /// What the table says about a command with this identity and this digest.
    pub fn lookup(&self, id: CommandId, digest: Digest) -> DedupResult<'_> {
        let key = (id.epoch, id.seq);
        let (floor, seen) = match self.windows.get(&id.issuer) {
            Some(window) => {
                if let Some(entry) = window.entries.get(&key) {
                    return entry.lookup(digest);
                }
                (window.floor, window.highest_epoch())
            }
            None => {
                let floor = self.floors.get(&id.issuer).copied();
                (floor, self.highest_epoch(id.issuer))
            }
        };
        if floor.is_some_and(|floor| key <= floor) {
            DedupResult::Evicted
        } else if id.epoch < seen {
            DedupResult::OldEpoch { highest: seen }
        } else {
            DedupResult::New
        }
    }

    /// The highest known epoch of this issuer; 0 if none is known.
    pub fn highest_epoch(&self, issuer: PeerId) -> u64 {
        match self.windows.get(&issuer) {
            Some(window) => window.highest_epoch(),
            None => self.floors.get(&issuer).map_or(0, |floor| floor.0),
        }
    }

    /// The stop in force; `None` if the node is not stopped.
    pub fn latch(&self) -> Option<&Latch> {
        self.latch.as_ref()
    }

    /// The highest stop number of this issuer; 0 if none was received.
    pub fn highest_stop_number(&self, issuer: PeerId) -> u64 {
        self.stops.get(&issuer).copied().unwrap_or(0)
    }

    fn insert(&mut self, id: &CommandId, digest: Option<Digest>, state: State) {
        let key = (id.epoch, id.seq);
        let window = self.windows.get(&id.issuer);
        let floor = match window {
            Some(window) => window.floor,
            None => self.floors.get(&id.issuer).copied(),
        };
        if floor.is_some_and(|floor| key <= floor) {
            return;
        }
        self.touch_window(id.issuer);
        let Some(window) = self.windows.get_mut(&id.issuer) else {
            return;
        };
        let before = window.text_bytes;
        window.floor = floor;
        window.insert(key, digest, state);
        self.text_bytes = self.text_bytes - before + window.text_bytes;
        self.evict_old_texts();
    }

    /// Creates the issuer's window if there is none, and marks it as the most recent.
    fn touch_window(&mut self, issuer: PeerId) {
        self.by_recency.retain(|used| *used != issuer);
        self.by_recency.push(issuer);
        self.floors.remove(&issuer);
        self.windows.entry(issuer).or_default();
        if self.by_recency.len() > WINDOW_ISSUERS {
            let oldest = self.by_recency.remove(0);
            self.collapse_window(oldest);
        }
    }

    /// Replaces a window by its floor, above everything in it.
    fn collapse_window(&mut self, issuer: PeerId) {
        let Some(window) = self.windows.remove(&issuer) else {
            return;
        };
        self.text_bytes -= window.text_bytes;
        let newest = window.entries.last_key_value().map(|(key, _)| *key);
        if let Some(floor) = newest.max(window.floor) {
            self.store_floor(issuer, floor);
        }
    }

    fn raise_floor(&mut self, issuer: PeerId, floor: SequenceKey) {
        let Some(window) = self.windows.get_mut(&issuer) else {
            self.store_floor(issuer, floor);
            return;
        };
        let before = window.text_bytes;
        while let Some(first) = window.entries.first_entry().filter(|first| *first.key() <= floor) {
            window.text_bytes -= first.remove().text_bytes();
        }
        window.floor = window.floor.max(Some(floor));
        self.text_bytes = self.text_bytes - before + window.text_bytes;
        if window.entries.is_empty() {
            self.by_recency.retain(|used| *used != issuer);
            self.collapse_window(issuer);
        }
    }

    fn store_floor(&mut self, issuer: PeerId, floor: SequenceKey) {
        let kept = self.floors.entry(issuer).or_insert(floor);
        *kept = floor.max(*kept);
        if self.floors.len() > ISSUERS_MAX {
            let oldest = self.floors.iter().min_by_key(|(_, floor)| **floor);
            if let Some(issuer) = oldest.map(|(issuer, _)| *issuer) {
                self.floors.remove(&issuer);
            }
        }
    }

    fn evict_old_texts(&mut self) {
        while self.text_bytes > REPLY_BYTES_MAX {
            let windows = &mut self.windows;
            let oldest = self
                .by_recency
                .iter()
                .find(|issuer| windows.get(issuer).is_some_and(|window| window.text_bytes > 0));
            let Some(window) = oldest.and_then(|issuer| windows.get_mut(issuer)) else {
                return;
            };
            self.text_bytes -= window.evict_oldest_text();
        }
    }

    fn record_stop_number(&mut self, issuer: PeerId, number: u64) {
        let highest = self.stops.entry(issuer).or_insert(number);
        *highest = number.max(*highest);
        if self.stops.len() > ISSUERS_MAX {
            let latched = self.latch.as_ref().map(|latch| latch.issuer);
            let others = self.stops.iter().filter(|(issuer, _)| Some(**issuer) != latched);
            let oldest = others
                .min_by_key(|(_, number)| **number)
                .map(|(issuer, _)| *issuer);
            if let Some(issuer) = oldest {
                self.stops.remove(&issuer);
            }
        }
    }
}

impl IssuerWindow {
    fn highest_epoch(&self) -> u64 {
        let newest = self.entries.last_key_value().map(|(key, _)| *key);
        newest.max(self.floor).map_or(0, |key| key.0)
    }

    fn insert(&mut self, key: SequenceKey, digest: Option<Digest>, state: State) {
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            digest,
            state: State::Begun { idempotent: false },
        });
        entry.digest = entry.digest.or(digest);
        // An outcome is final: a later record must not change what may have been sent already.
        if matches!(entry.state, State::Begun { .. }) {
            entry.state = state;
            self.text_bytes += entry.text_bytes();
        }
        if self.entries.len() > WINDOW_COMMANDS
            && let Some((key, entry)) = self.entries.pop_first()
        {
            self.text_bytes -= entry.text_bytes();
            self.floor = self.floor.max(Some(key));
        }
    }

    /// Drops the oldest text; returns its length in bytes.
    fn evict_oldest_text(&mut self) -> usize {
        for entry in self.entries.values_mut() {
            let bytes = entry.text_bytes();
            if bytes > 0
                && let State::Ended(reply) = &mut entry.state
            {
                reply.clear_texts();
                self.text_bytes -= bytes;
                return bytes;
            }
        }
        0
    }

    fn records(&self, issuer: PeerId, records: &mut Vec<Record>) {
        if let Some((epoch, seq)) = self.floor {
            records.push(Record::Floor { issuer, epoch, seq });
        }
        for ((epoch, seq), entry) in &self.entries {
            let id = CommandId {
                issuer,
                epoch: *epoch,
                seq: *seq,
            };
            let idempotent = match &entry.state {
                State::Begun { idempotent } => *idempotent,
                State::Ended(_) => false,
            };
            if let Some(digest) = entry.digest {
                records.push(Record::Started {
                    id,
                    digest,
                    idempotent,
                });
            }
            if let State::Ended(reply) = &entry.state {
                let reply = reply.clone();
                records.push(Record::Ended { id, reply });
            }
        }
    }
}

impl Entry {
    fn text_bytes(&self) -> usize {
        match &self.state {
            State::Begun { .. } => 0,
            State::Ended(reply) => reply.text_bytes(),
        }
    }

    fn lookup(&self, digest: Digest) -> DedupResult<'_> {
        if self.digest.is_some_and(|ours| ours != digest) {
            return DedupResult::Conflict;
        }
        match &self.state {
            State::Begun { idempotent } => DedupResult::Begun {
                idempotent: *idempotent,
            },
            State::Ended(reply) => DedupResult::Ended(reply),
        }
    }
}
