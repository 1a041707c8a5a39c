//! The node's executor: takes commands that act, has each journaled before its start and after its end, and replies.
//!
//! | state | until | then |
//! |---|---|---|
//! | waiting | a slot is free: one of [`ORDINARY_MAX`]; for a flight action, which goes first, also one of two more; for a landing action, which goes before all, one of [`LANDING_MAX`] | the record `started` is written: starting |
//! | waiting | its deadline passes; an emergency stop comes; the journal fails; for a flight action, a landing action comes | ending |
//! | starting | it is written, in time, and no stop has come | its action runs: running |
//! | starting | it is written, but too late, stopped, or the node shuts down | ending |
//! | starting | the write fails | `refused` is sent |
//! | running | its action has ended, by itself or killed by a stop | ending |
//! | ending | the outcome is written, or the write fails | the reply is sent |
//!
//! A command that is refused or expired on arrival starts at "ending". A duplicate of a command in flight gets its
//! stage again, and may only bring the deadline nearer. A duplicate of one that has been answered gets the same reply
//! again.
//!
//! | the table says | the command |
//! |---|---|
//! | new | is accepted; without time left it is a status query, and its outcome is `expired` |
//! | begun | a crash came between: it runs again if it was idempotent, still is, and nothing else forbids it; otherwise it ends `unknown` |
//! | ended | gets the stored reply |
//! | evicted | gets `unknown` |
//! | old epoch | gets `refused`; without time left, `expired`: it never started, and never will |
//!
//! Invariants:
//! * An identity runs at most once, also over crashes, unless it is idempotent; and only after its start is durable.
//! * No action starts at or after its deadline.
//! * Every command gets a reply, and always the same one for as long as the table has it. While the journal fails,
//!   memory provides the reply, and the journal gets it as soon as it can be written.
//! * A landing action waits for no slot that other actions use, and no flight action that waits starts after it.
//! * Everything is bounded: [`RUNNING_MAX`], [`WAITING_MAX`], [`IN_FLIGHT_MAX`], [`PENDING_WRITES_MAX`], and the
//!   table.

mod deadline;
mod in_flight;
mod pending_writes;
mod queues;
mod replies;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::deadline::{is_expired, is_expired_in_queue};
use self::in_flight::{InFlight, State};
use self::pending_writes::PendingWrites;
pub use self::queues::{LANDING_MAX, ORDINARY_MAX, RUNNING_MAX, WAITING_MAX};
use self::queues::{Priority, RunQueues};
pub use self::types::{ActionProperties, AfterFile, CommandSource, Effect, IncomingCommand, WriteId};
use super::dedup::{DedupResult, DedupTable};
use super::record::{Record, StoredReply};
use super::{CommandId, FLIGHT_TTL_MS_MAX, Stage};
use crate::proto::outcome::Reply;
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;
use crate::proto::stop::StopState;

/// Most commands in flight, in any state; a further one is refused as busy. Only landing actions may use the last
/// [`WAITING_MAX`], and only flight and landing actions the [`WAITING_MAX`] before those.
pub const IN_FLIGHT_MAX: usize = 320;
/// Replies kept in memory because the journal could not be written; the oldest is dropped first.
pub const PENDING_WRITES_MAX: usize = 256;
/// Time after a failed write during which commands are refused without another attempt.
pub const JOURNAL_RETRY: Duration = Duration::from_secs(2);

/// The executor of one node; see the module.
#[derive(Debug)]
pub struct Executor {
    dedup: DedupTable,
    in_flight: BTreeMap<CommandId, InFlight>,
    /// The waiting commands, and the number that are starting or running.
    queues: RunQueues,
    writes: BTreeMap<WriteId, WriteInProgress>,
    last_write_id: u64,
    pending_writes: PendingWrites,
    journal_fault: Option<JournalFault>,
    stop_state: StopState,
    shutting_down: bool,
    effects: Vec<Effect>,
    #[cfg(feature = "planted-bugs")]
    last_seen: BTreeMap<CommandId, Instant>,
}

#[derive(Debug)]
struct WriteInProgress {
    records: Vec<Record>,
    purpose: WritePurpose,
}

#[derive(Debug)]
enum WritePurpose {
    Start(CommandId),
    End(CommandId, Reply),
    /// Writing replies that were in memory only.
    Flush(Vec<CommandId>),
}

#[derive(Debug)]
struct JournalFault {
    reason: String,
    /// When the next attempt is made.
    retry_at: Instant,
}

/// A [`DedupResult`] without its borrow.
enum Lookup {
    New,
    Begun { idempotent: bool },
    Answered(Reply),
}

impl Executor {
    /// An executor with the state of the journal: stopped, if the journal says so.
    pub fn new(dedup: DedupTable) -> Self {
        Self {
            stop_state: if dedup.latch().is_some() {
                StopState::Stopped
            } else {
                StopState::Free
            },
            dedup,
            in_flight: BTreeMap::new(),
            queues: RunQueues::default(),
            writes: BTreeMap::new(),
            last_write_id: 0,
            pending_writes: PendingWrites::default(),
            journal_fault: None,
            shutting_down: false,
            effects: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            last_seen: BTreeMap::new(),
        }
    }

    /// Removes and returns all effects, to be carried out in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether this command is in flight: its arguments are still needed.
    pub fn contains(&self, id: CommandId) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// Whether no command runs and no write is in progress.
    pub fn is_idle(&self) -> bool {
        self.queues.active() == 0 && self.writes.is_empty()
    }

    /// Handles a received command. If it returns `true`, the command may have to run: keep its arguments while
    /// [`Executor::contains`] it. Otherwise they are not needed, or those of the first copy are.
    pub fn on_command(&mut self, incoming: IncomingCommand, now: Instant) -> bool {
        if self.shutting_down {
            // The issuer sends it again after the restart.
            return false;
        }
        let id = incoming.id;
        if self.in_flight.contains_key(&id) {
            self.on_duplicate(&incoming, now);
            return false;
        }
        if let Some((digest, reply)) = self.pending_writes.get(id) {
            let reply = if digest == incoming.digest {
                reply.to_reply()
            } else {
                replies::identity_conflict(id)
            };
            self.effects.push(Effect::Reply { id, reply });
            return false;
        }
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::DedupeByTime) && !self.seen_recently(id, now) {
            return self.accept_command(&incoming, false, now);
        }
        match self.look_up(&incoming, now) {
            Lookup::Answered(reply) => {
                self.effects.push(Effect::Reply { id, reply });
                false
            }
            Lookup::New => self.accept_command(&incoming, false, now),
            Lookup::Begun { idempotent } if idempotent && incoming.properties.idempotent => {
                self.accept_command(&incoming, true, now)
            }
            Lookup::Begun { .. } => {
                self.report_stage(id, Stage::Received);
                self.end_without_slot(&incoming, true, replies::crashed(), now);
                false
            }
        }
    }

    /// Records that a write is durable.
    pub fn on_written(&mut self, write_id: WriteId, now: Instant) {
        let Some(WriteInProgress { records, purpose }) = self.writes.remove(&write_id) else {
            return;
        };
        self.journal_fault = None;
        for record in &records {
            self.dedup.apply(record);
        }
        match purpose {
            WritePurpose::Start(id) => self.on_start_written(id, now),
            WritePurpose::End(id, reply) => {
                self.in_flight.remove(&id);
                self.effects.push(Effect::Reply { id, reply });
            }
            WritePurpose::Flush(ids) => self.pending_writes.on_written(&ids),
        }
        self.flush(now);
        self.start_waiting(now);
    }

    /// Records that a write failed, and why. The records may be on the disk nevertheless.
    pub fn on_write_failed(&mut self, write_id: WriteId, why: &str, now: Instant) {
        let Some(WriteInProgress { purpose, .. }) = self.writes.remove(&write_id) else {
            return;
        };
        self.journal_fault = Some(JournalFault {
            reason: why.to_owned(),
            retry_at: now + JOURNAL_RETRY,
        });
        match purpose {
            WritePurpose::Start(id) => {
                self.release_slot(id);
                self.reply_unwritten(id, replies::journal_failed(why));
            }
            WritePurpose::End(id, reply) => self.reply_unwritten(id, reply),
            WritePurpose::Flush(_) => self.pending_writes.on_write_failed(),
        }
        for id in self.queues.drain() {
            self.reply_unwritten(id, replies::journal_failed(why));
        }
    }

    /// Records that a command's action has ended.
    pub fn on_finished(&mut self, id: CommandId, reply: Reply, now: Instant) {
        let Some(InFlight {
            state: State::Running { killed },
            ..
        }) = self.in_flight.get(&id).copied()
        else {
            return;
        };
        let reply = if killed {
            replies::interrupted_by("emergency stop", reply)
        } else if self.shutting_down {
            replies::interrupted_by("the node is shutting down", reply)
        } else {
            reply
        };
        self.release_slot(id);
        self.end(id, true, reply);
        self.start_waiting(now);
    }

    /// Refuses the flight actions that wait: a landing action has arrived, and they would start after it.
    pub fn cancel_waiting_flights(&mut self) {
        for flight in self.queues.drain_flight() {
            self.end(flight, false, replies::superseded_by_landing());
        }
    }

    /// A file that commands [wait for](AfterFile) has ended. `failed` is `None` if it and those before it are stored; else
    /// the time at which the failure became known, and its reason. Flight actions that arrived by then are refused.
    pub fn on_file_ended(&mut self, file: u64, failed: Option<(Instant, &str)>, now: Instant) {
        for id in self.queues.on_file_ended(file, failed.map(|(at, _)| at)) {
            self.end(
                id,
                false,
                replies::file_not_stored(failed.map_or("", |(_, why)| why)),
            );
        }
        self.start_waiting(now);
    }

    /// An emergency stop is in force: waiting commands are refused and running ones killed, unless they may run while
    /// stopped.
    pub fn on_stop(&mut self, now: Instant) {
        self.stop_state = StopState::Stopped;
        let ids: Vec<CommandId> = self.in_flight.keys().copied().collect();
        for id in ids {
            let Some(open) = self.in_flight.get_mut(&id) else {
                continue;
            };
            if open.properties.while_stopped {
                continue;
            }
            match &mut open.state {
                State::Waiting => {
                    self.queues.remove(id);
                    self.end(id, false, replies::stopped());
                }
                State::Starting { stopped } => *stopped = true,
                State::Running { killed: true } | State::Ending { .. } => {}
                State::Running { killed } => {
                    *killed = true;
                    self.effects.push(Effect::Kill { id });
                }
            }
        }
        self.start_waiting(now);
    }

    /// The node is held: only actions that may run while stopped and landing actions are accepted. What runs goes on.
    pub fn on_hold(&mut self) {
        self.stop_state = StopState::Held;
    }

    /// The emergency stop or the hold was released.
    pub fn on_release(&mut self) {
        self.stop_state = StopState::Free;
    }

    /// Starts the shutdown: nothing starts any more. Waiting commands are dropped, since nothing of them is durable:
    /// their issuer sends them again. Running ones still have to be [finished](Executor::on_finished) and written,
    /// until the executor [is idle](Executor::is_idle).
    pub fn shut_down(&mut self, now: Instant) {
        self.shutting_down = true;
        // The last attempt for the replies that are in memory only.
        self.journal_fault = None;
        self.flush(now);
        for id in self.queues.drain() {
            self.in_flight.remove(&id);
        }
    }

    /// When [`Executor::handle_timeout`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self
            .queues
            .waiting()
            .filter_map(|id| self.in_flight.get(&id).and_then(|open| open.deadline));
        let retry = self
            .journal_fault
            .as_ref()
            .filter(|_| self.pending_writes.is_due())
            .map(|fault| fault.retry_at);
        deadlines.chain(retry).min()
    }

    /// Handles the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late: Vec<CommandId> = self
            .queues
            .waiting()
            .filter(|id| {
                self.in_flight
                    .get(id)
                    .is_some_and(|open| is_expired_in_queue(open.deadline, now))
            })
            .collect();
        for id in late {
            self.queues.remove(id);
            self.end(id, false, replies::expired());
        }
        self.flush(now);
    }

    /// Handles a duplicate of a command in flight.
    fn on_duplicate(&mut self, incoming: &IncomingCommand, now: Instant) {
        let id = incoming.id;
        let Some(open) = self.in_flight.get_mut(&id) else {
            return;
        };
        if open.digest != incoming.digest {
            let reply = replies::identity_conflict(id);
            return self.effects.push(Effect::Reply { id, reply });
        }
        open.deadline = open.deadline.into_iter().chain(incoming.deadline).min();
        let stage = match open.state {
            State::Waiting | State::Starting { .. } => Stage::Accepted,
            State::Running { .. } | State::Ending { has_run: true } => Stage::Started,
            State::Ending { has_run: false } => Stage::Received,
        };
        self.report_stage(id, stage);
        self.handle_timeout(now);
    }

    /// What the planted bug takes for a duplicate.
    #[cfg(feature = "planted-bugs")]
    fn seen_recently(&mut self, id: CommandId, now: Instant) -> bool {
        let before = self.last_seen.insert(id, now);
        before.is_some_and(|before| now < before + Duration::from_secs(2))
    }

    fn look_up(&self, incoming: &IncomingCommand, now: Instant) -> Lookup {
        let id = incoming.id;
        match self.dedup.lookup(id, incoming.digest) {
            DedupResult::New => Lookup::New,
            DedupResult::Begun { idempotent } => Lookup::Begun { idempotent },
            DedupResult::Ended(reply) => Lookup::Answered(reply.to_reply()),
            DedupResult::Conflict => Lookup::Answered(replies::identity_conflict(id)),
            DedupResult::Evicted => Lookup::Answered(replies::forgotten()),
            // It has not started, and any later copy is refused.
            DedupResult::OldEpoch { .. } if is_expired(incoming.deadline, now) => {
                Lookup::Answered(replies::expired())
            }
            DedupResult::OldEpoch { highest: seen } => Lookup::Answered(replies::old_epoch(id, seen)),
        }
    }

    /// Accepts a command that has not run in this process, or ends it at once. `again`: it started before a crash.
    fn accept_command(&mut self, incoming: &IncomingCommand, again: bool, now: Instant) -> bool {
        let id = incoming.id;
        self.report_stage(id, Stage::Received);
        if let Err(reply) = self.validate(incoming, now) {
            self.end_without_slot(incoming, again, reply, now);
            return false;
        }
        let issued_before = incoming
            .properties
            .flight
            .then(|| now + Duration::from_millis(FLIGHT_TTL_MS_MAX));
        let open = InFlight {
            deadline: incoming.deadline.into_iter().chain(issued_before).min(),
            ..InFlight::new(incoming, again, State::Waiting)
        };
        self.in_flight.insert(id, open);
        let priority = Priority::of(incoming.properties);
        self.queues.push(id, priority, incoming.source, incoming.after);
        self.report_stage(id, Stage::Accepted);
        if priority == Priority::Landing {
            self.cancel_waiting_flights();
        }
        self.start_waiting(now);
        true
    }

    fn validate(&self, incoming: &IncomingCommand, now: Instant) -> Result<(), Reply> {
        let ActionProperties {
            while_stopped,
            flight,
            ends_flight,
            ..
        } = incoming.properties;
        if is_expired(incoming.deadline, now) {
            return Err(replies::expired());
        }
        if flight && incoming.ttl_ms.is_none_or(|life| life > FLIGHT_TTL_MS_MAX) {
            return Err(replies::ttl_too_long(incoming.ttl_ms));
        }
        match self.stop_state {
            StopState::Stopped if !while_stopped => return Err(replies::stopped()),
            StopState::Held if !while_stopped && !ends_flight => return Err(replies::held()),
            StopState::Free | StopState::Held | StopState::Stopped => {}
        }
        if let Some(fault) = self.journal_fault.as_ref().filter(|fault| now < fault.retry_at) {
            return Err(replies::journal_failed(&fault.reason));
        }
        let priority = Priority::of(incoming.properties);
        if self.is_full(priority, incoming.source) {
            return Err(replies::busy(priority.slots(incoming.source)));
        }
        Ok(())
    }

    fn is_full(&self, priority: Priority, source: CommandSource) -> bool {
        let limit = match priority {
            Priority::Landing => IN_FLIGHT_MAX,
            Priority::Flight => IN_FLIGHT_MAX - WAITING_MAX,
            Priority::Ordinary => IN_FLIGHT_MAX - 2 * WAITING_MAX,
        };
        self.in_flight.len() >= limit || self.queues.is_full(priority, source)
    }

    fn release_slot(&mut self, id: CommandId) {
        if let Some(open) = self.in_flight.get(&id) {
            self.queues
                .release_slot(Priority::of(open.properties), open.source);
        }
    }

    /// Starts waiting commands while slots are free.
    fn start_waiting(&mut self, now: Instant) {
        while !self.shutting_down {
            let Some(id) = self.queues.pop_next() else { return };
            let Some(open) = self.in_flight.get_mut(&id) else {
                continue;
            };
            if is_expired_in_queue(open.deadline, now) {
                self.end(id, false, replies::expired());
                continue;
            }
            open.state = State::Starting { stopped: false };
            let started = Record::Started {
                id,
                digest: open.digest,
                idempotent: open.properties.idempotent,
            };
            self.queues
                .acquire_slot(Priority::of(open.properties), open.source);
            self.write(vec![started], WritePurpose::Start(id));
        }
    }

    /// The start of a command is durable. This is the last check before it runs.
    fn on_start_written(&mut self, id: CommandId, now: Instant) {
        let Some(open) = self.in_flight.get_mut(&id) else {
            return;
        };
        let State::Starting { stopped } = open.state else {
            return;
        };
        let refusal = if self.shutting_down {
            Some(replies::shutting_down())
        } else if stopped {
            Some(replies::stopped())
        } else if is_expired_in_queue(open.deadline, now) {
            Some(replies::expired())
        } else {
            None
        };
        match refusal {
            None => {
                open.state = State::Running { killed: false };
                self.effects.push(Effect::Run { id });
                self.report_stage(id, Stage::Started);
            }
            Some(reply) => {
                self.release_slot(id);
                self.end(id, false, reply);
            }
        }
    }

    /// Ends a command that never had a slot. With `again` its outcome is `unknown`, whatever the reason.
    fn end_without_slot(&mut self, incoming: &IncomingCommand, again: bool, reply: Reply, now: Instant) {
        let id = incoming.id;
        let full = self.is_full(Priority::of(incoming.properties), incoming.source);
        self.in_flight.insert(
            id,
            InFlight::new(incoming, again, State::Ending { has_run: false }),
        );
        if self.journal_fault.is_some() || full {
            // At once: the journal fails or has too much to write.
            self.reply_unwritten(id, reply);
            self.flush(now);
        } else {
            self.end(id, false, reply);
        }
    }

    /// Has the outcome of a command written, then replied.
    fn end(&mut self, id: CommandId, ran: bool, reply: Reply) {
        let Some(open) = self.in_flight.get_mut(&id) else {
            return;
        };
        open.state = State::Ending { has_run: ran };
        let reply = open.final_reply(ran, reply);
        let ended = Record::Ended {
            id,
            reply: StoredReply::new(&reply),
        };
        self.write(vec![ended], WritePurpose::End(id, reply));
    }

    /// Sends the reply of a command, and keeps it in memory until the journal can be written.
    fn reply_unwritten(&mut self, id: CommandId, reply: Reply) {
        let Some(open) = self.in_flight.remove(&id) else {
            return;
        };
        let ran = matches!(open.state, State::Ending { has_run: true });
        let reply = open.final_reply(ran, reply);
        self.pending_writes
            .insert(id, open.digest, StoredReply::new(&reply));
        self.effects.push(Effect::Reply { id, reply });
    }

    /// Writes the replies that are in memory only, unless an attempt failed just now.
    fn flush(&mut self, now: Instant) {
        if self
            .journal_fault
            .as_ref()
            .is_some_and(|fault| now < fault.retry_at)
        {
            return;
        }
        let (ids, records) = self.pending_writes.next_batch();
        if ids.is_empty() {
            return;
        }
        self.write(records, WritePurpose::Flush(ids));
    }

    fn write(&mut self, records: Vec<Record>, purpose: WritePurpose) {
        self.last_write_id += 1;
        let write_id = WriteId(self.last_write_id);
        self.effects.push(Effect::Write {
            write_id,
            records: records.clone(),
        });
        self.writes.insert(write_id, WriteInProgress { records, purpose });
    }

    fn report_stage(&mut self, id: CommandId, stage: Stage) {
        self.effects.push(Effect::Stage { id, stage });
    }
}
