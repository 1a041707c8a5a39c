//! The node's desk: takes commands that act, has each journaled before it begins and after it has ended, and answers.
//!
//! | state | until | then |
//! |---|---|---|
//! | waiting | a place is free: one of [`ORDINARY_MAX`], for an action of flight, which goes first, of two more, and for what ends a flight, which goes before all, of [`ENDING_MAX`] | `started` is written: starting |
//! | waiting | its time is up; an emergency stop; the journal cannot be written; for an action of flight, one that ends a flight has come | ending |
//! | starting | written, in time, and no stop has come | it runs: running |
//! | starting | written, but too late, stopped, or the node shuts down | ending |
//! | starting | not written | answered `refused` |
//! | running | its action has ended, by itself or killed by a stop | ending |
//! | ending | the outcome is written, or cannot be | answered |
//!
//! What is refused or too late on arrival begins at "ending". A copy of a command that is at hand gets its stage
//! again, and its deadline may only come nearer. A copy of one that has been answered gets that answer again.
//!
//! | the ledger says | the command |
//! |---|---|
//! | new | is taken on; without time left it is a question, and ends `expired` for good |
//! | begun | a crash came between: runs again if it was and is idempotent and all else allows it, else ends `unknown` |
//! | ended | gets the stored answer |
//! | forgotten | is answered `unknown` |
//! | of an old epoch | is answered `refused`; without time left, `expired`: it never began, and never will |
//!
//! Invariants:
//! * An identity runs at most once, over crashes too, unless it is idempotent; and only after its start is durable.
//! * Nothing begins at or after its deadline.
//! * Every command is answered, and always in the same way for as long as the ledger remembers it. Where the journal
//!   fails, memory answers, and the journal gets it as soon as it can.
//! * What ends a flight waits for no place that anything else has, and no action of flight that waits begins after it.
//! * Everything is bounded: [`RUNNING_MAX`], [`WAITING_MAX`], [`OPEN_MAX`], [`UNSAVED_MAX`], and the ledger.

mod deadline;
mod pending_writes;
mod queues;
mod replies;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::deadline::{is_late, is_late_by_now};
use self::pending_writes::Unsaved;
pub use self::queues::{ENDING_MAX, ORDINARY_MAX, RUNNING_MAX, WAITING_MAX};
use self::queues::{Line, Lines};
pub use self::types::{Effect, Incoming, Ticket, Traits};
use super::dedup::{Found, Ledger};
use super::record::{Digest, Record, StoredReply};
use super::{CommandId, FLIGHT_LIFE_MS_MAX, Stage};
use crate::proto::outcome::Reply;
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;

/// Commands that are at hand at once, in any state; one more is refused as busy. Only those that end a flight take the
/// last [`WAITING_MAX`], and only those and others of flight as many before.
pub const OPEN_MAX: usize = 320;
/// Answers that are kept in memory because the journal could not take them; the oldest goes first.
pub const UNSAVED_MAX: usize = 256;
/// After a failed write, commands are refused without another attempt for so long.
pub const JOURNAL_RETRY: Duration = Duration::from_secs(2);

/// The desk. See the module.
#[derive(Debug)]
pub struct Desk {
    ledger: Ledger,
    open: BTreeMap<CommandId, Open>,
    /// Who waits, and how many are starting or running.
    lines: Lines,
    writing: BTreeMap<Ticket, Writing>,
    tickets: u64,
    unsaved: Unsaved,
    fault: Option<Fault>,
    stopped: bool,
    closing: bool,
    effects: Vec<Effect>,
    #[cfg(feature = "planted-bugs")]
    heard: BTreeMap<CommandId, Instant>,
}

/// A command at hand.
#[derive(Clone, Copy, Debug)]
struct Open {
    digest: Digest,
    deadline: Option<Instant>,
    traits: Traits,
    /// It began in an earlier run of this process.
    again: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Starting {
        /// An emergency stop has come meanwhile.
        stopped: bool,
    },
    Running {
        /// By an emergency stop.
        killed: bool,
    },
    Ending {
        ran: bool,
    },
}

#[derive(Debug)]
struct Writing {
    records: Vec<Record>,
    what: What,
}

#[derive(Debug)]
enum What {
    Start(CommandId),
    End(CommandId, Reply),
    /// Answers that were in memory only.
    Flush(Vec<CommandId>),
}

#[derive(Debug)]
struct Fault {
    why: String,
    /// When it is worth another attempt.
    retry_at: Instant,
}

/// What the ledger says, without borrowing it.
enum Known {
    New,
    Begun { idempotent: bool },
    Answered(Reply),
}

impl Desk {
    /// A desk that knows what the journal knows; stopped, if the journal says so.
    pub fn new(ledger: Ledger) -> Self {
        Self {
            stopped: ledger.latch().is_some(),
            ledger,
            open: BTreeMap::new(),
            lines: Lines::default(),
            writing: BTreeMap::new(),
            tickets: 0,
            unsaved: Unsaved::default(),
            fault: None,
            closing: false,
            effects: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            heard: BTreeMap::new(),
        }
    }

    /// What is to be done now.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether this command is at hand: its arguments are still needed.
    pub fn holds(&self, id: CommandId) -> bool {
        self.open.contains_key(&id)
    }

    /// Whether nothing runs and nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.lines.placed() == 0 && self.writing.is_empty()
    }

    /// A command has arrived. If this says `true`, it may have to run: its arguments are to be kept while
    /// [`Desk::holds`] it. Otherwise they are not needed, or those that came first are.
    pub fn command(&mut self, incoming: Incoming, now: Instant) -> bool {
        if self.closing {
            // After the restart it is asked for again.
            return false;
        }
        let id = incoming.id;
        if self.open.contains_key(&id) {
            self.repeated(&incoming, now);
            return false;
        }
        if let Some((digest, reply)) = self.unsaved.get(id) {
            let reply = if digest == incoming.digest {
                reply.reply()
            } else {
                replies::different(id)
            };
            self.effects.push(Effect::Answer { id, reply });
            return false;
        }
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::DedupeByTime) && !self.heard_lately(id, now) {
            return self.take_on(&incoming, false, now);
        }
        match self.look_up(&incoming, now) {
            Known::Answered(reply) => {
                self.effects.push(Effect::Answer { id, reply });
                false
            }
            Known::New => self.take_on(&incoming, false, now),
            Known::Begun { idempotent } if idempotent && incoming.traits.idempotent => {
                self.take_on(&incoming, true, now)
            }
            Known::Begun { .. } => {
                self.stage(id, Stage::Received);
                self.end_unplaced(&incoming, true, replies::crashed(), now);
                false
            }
        }
    }

    /// A write is durable.
    pub fn written(&mut self, ticket: Ticket, now: Instant) {
        let Some(Writing { records, what }) = self.writing.remove(&ticket) else {
            return;
        };
        self.fault = None;
        for record in &records {
            self.ledger.apply(record);
        }
        match what {
            What::Start(id) => self.begin(id, now),
            What::End(id, reply) => {
                self.open.remove(&id);
                self.effects.push(Effect::Answer { id, reply });
            }
            What::Flush(ids) => self.unsaved.saved(&ids),
        }
        self.flush(now);
        self.serve(now);
    }

    /// A write is not durable, and `why`. It may be on the disk all the same.
    pub fn not_written(&mut self, ticket: Ticket, why: &str, now: Instant) {
        let Some(Writing { what, .. }) = self.writing.remove(&ticket) else {
            return;
        };
        self.fault = Some(Fault {
            why: why.to_owned(),
            retry_at: now + JOURNAL_RETRY,
        });
        match what {
            What::Start(id) => {
                self.give_place_back(id);
                self.answer_unsaved(id, replies::journal_fails(why));
            }
            What::End(id, reply) => self.answer_unsaved(id, reply),
            What::Flush(_) => self.unsaved.not_saved(),
        }
        for id in self.lines.clear() {
            self.answer_unsaved(id, replies::journal_fails(why));
        }
    }

    /// A command's action has ended.
    pub fn finished(&mut self, id: CommandId, reply: Reply, now: Instant) {
        let Some(Open {
            state: State::Running { killed },
            ..
        }) = self.open.get(&id).copied()
        else {
            return;
        };
        let reply = if killed {
            replies::ended_by("emergency stop", reply)
        } else if self.closing {
            replies::ended_by("the node is shutting down", reply)
        } else {
            reply
        };
        self.give_place_back(id);
        self.end(id, true, reply);
        self.serve(now);
    }

    /// An emergency stop is in force: what waits is refused, what runs is killed, unless it may go on while stopped.
    pub fn stopped(&mut self, now: Instant) {
        self.stopped = true;
        let ids: Vec<CommandId> = self.open.keys().copied().collect();
        for id in ids {
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            if open.traits.while_stopped {
                continue;
            }
            match &mut open.state {
                State::Waiting => {
                    self.lines.leave(id);
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
        self.serve(now);
    }

    /// No emergency stop is in force any more.
    pub fn released(&mut self) {
        self.stopped = false;
    }

    /// The process ends: nothing begins any more. What waits is forgotten, for nothing of it is durable: its issuer
    /// asks again. What runs is still to be [finished](Desk::finished), and to be written, until the desk
    /// [is idle](Desk::is_idle).
    pub fn close(&mut self, now: Instant) {
        self.closing = true;
        // The last chance for what is in memory only.
        self.fault = None;
        self.flush(now);
        for id in self.lines.clear() {
            self.open.remove(&id);
        }
    }

    /// When [`Desk::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self
            .lines
            .waiting()
            .filter_map(|id| self.open.get(&id).and_then(|open| open.deadline));
        let retry = self
            .fault
            .as_ref()
            .filter(|_| self.unsaved.is_due())
            .map(|fault| fault.retry_at);
        deadlines.chain(retry).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late: Vec<CommandId> = self
            .lines
            .waiting()
            .filter(|id| {
                self.open
                    .get(id)
                    .is_some_and(|open| is_late_by_now(open.deadline, now))
            })
            .collect();
        for id in late {
            self.lines.leave(id);
            self.end(id, false, replies::expired());
        }
        self.flush(now);
    }

    /// A copy of a command that is at hand.
    fn repeated(&mut self, incoming: &Incoming, now: Instant) {
        let id = incoming.id;
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        if open.digest != incoming.digest {
            let reply = replies::different(id);
            return self.effects.push(Effect::Answer { id, reply });
        }
        open.deadline = open.deadline.into_iter().chain(incoming.deadline).min();
        let stage = match open.state {
            State::Waiting | State::Starting { .. } => Stage::Accepted,
            State::Running { .. } | State::Ending { ran: true } => Stage::Started,
            State::Ending { ran: false } => Stage::Received,
        };
        self.stage(id, stage);
        self.handle_timeout(now);
    }

    /// What the planted bug takes for a repeat.
    #[cfg(feature = "planted-bugs")]
    fn heard_lately(&mut self, id: CommandId, now: Instant) -> bool {
        let before = self.heard.insert(id, now);
        before.is_some_and(|before| now < before + Duration::from_secs(2))
    }

    fn look_up(&self, incoming: &Incoming, now: Instant) -> Known {
        let id = incoming.id;
        match self.ledger.find(id, incoming.digest) {
            Found::New => Known::New,
            Found::Begun { idempotent } => Known::Begun { idempotent },
            Found::Ended(reply) => Known::Answered(reply.reply()),
            Found::Different => Known::Answered(replies::different(id)),
            Found::Forgotten => Known::Answered(replies::forgotten()),
            // It has not begun, and whatever copy still comes is refused.
            Found::OldEpoch { .. } if is_late(incoming.deadline, now) => Known::Answered(replies::expired()),
            Found::OldEpoch { seen } => Known::Answered(replies::old_epoch(id, seen)),
        }
    }

    /// Takes a command on that has not run in this process, or ends it at once.
    fn take_on(&mut self, incoming: &Incoming, again: bool, now: Instant) -> bool {
        let id = incoming.id;
        self.stage(id, Stage::Received);
        if let Err(reply) = self.judge(incoming, now) {
            self.end_unplaced(incoming, again, reply, now);
            return false;
        }
        let issued_before = incoming
            .traits
            .flight
            .then(|| now + Duration::from_millis(FLIGHT_LIFE_MS_MAX));
        let open = Open {
            deadline: incoming.deadline.into_iter().chain(issued_before).min(),
            ..Open::new(incoming, again, State::Waiting)
        };
        self.open.insert(id, open);
        let line = Line::of(incoming.traits);
        self.lines.join(id, line);
        self.stage(id, Stage::Accepted);
        if line == Line::Ending {
            // They would begin after it.
            for flight in self.lines.clear_flights() {
                self.end(flight, false, replies::overtaken());
            }
        }
        self.serve(now);
        true
    }

    fn judge(&self, incoming: &Incoming, now: Instant) -> Result<(), Reply> {
        let Traits {
            while_stopped,
            flight,
            ..
        } = incoming.traits;
        if is_late(incoming.deadline, now) {
            return Err(replies::expired());
        }
        if flight && incoming.life_ms.is_none_or(|life| life > FLIGHT_LIFE_MS_MAX) {
            return Err(replies::too_long_a_life(incoming.life_ms));
        }
        if self.stopped && !while_stopped {
            return Err(replies::stopped());
        }
        if let Some(fault) = self.fault.as_ref().filter(|fault| now < fault.retry_at) {
            return Err(replies::journal_fails(&fault.why));
        }
        let line = Line::of(incoming.traits);
        if self.is_full(line) {
            return Err(replies::busy(line));
        }
        Ok(())
    }

    fn is_full(&self, line: Line) -> bool {
        let most = match line {
            Line::Ending => OPEN_MAX,
            Line::Flight => OPEN_MAX - WAITING_MAX,
            Line::Ordinary => OPEN_MAX - 2 * WAITING_MAX,
        };
        self.open.len() >= most || self.lines.is_full(line)
    }

    fn give_place_back(&mut self, id: CommandId) {
        if let Some(open) = self.open.get(&id) {
            self.lines.give_back(Line::of(open.traits));
        }
    }

    /// Lets those that wait start, as far as there are places.
    fn serve(&mut self, now: Instant) {
        while !self.closing {
            let Some(id) = self.lines.next() else { return };
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            if is_late_by_now(open.deadline, now) {
                self.end(id, false, replies::expired());
                continue;
            }
            open.state = State::Starting { stopped: false };
            let started = Record::Started {
                id,
                digest: open.digest,
                idempotent: open.traits.idempotent,
            };
            self.lines.take(Line::of(open.traits));
            self.write(vec![started], What::Start(id));
        }
    }

    /// The start of a command is durable: the last moment at which it can be kept from running.
    fn begin(&mut self, id: CommandId, now: Instant) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let State::Starting { stopped } = open.state else {
            return;
        };
        let hindered = if self.closing {
            Some(replies::closing())
        } else if stopped {
            Some(replies::stopped())
        } else if is_late_by_now(open.deadline, now) {
            Some(replies::expired())
        } else {
            None
        };
        match hindered {
            None => {
                open.state = State::Running { killed: false };
                self.effects.push(Effect::Run { id });
                self.stage(id, Stage::Started);
            }
            Some(reply) => {
                self.give_place_back(id);
                self.end(id, false, reply);
            }
        }
    }

    /// Ends a command that never had a place. With `again`, its outcome is not known, whatever hinders it now.
    fn end_unplaced(&mut self, incoming: &Incoming, again: bool, reply: Reply, now: Instant) {
        let id = incoming.id;
        let full = self.is_full(Line::of(incoming.traits));
        self.open
            .insert(id, Open::new(incoming, again, State::Ending { ran: false }));
        if self.fault.is_some() || full {
            // At once: the journal cannot take it, or would be in the way.
            self.answer_unsaved(id, reply);
            self.flush(now);
        } else {
            self.end(id, false, reply);
        }
    }

    /// Has the outcome of a command written, and then told.
    fn end(&mut self, id: CommandId, ran: bool, reply: Reply) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        open.state = State::Ending { ran };
        let reply = open.verdict(ran, reply);
        let ended = Record::Ended {
            id,
            reply: StoredReply::new(&reply),
        };
        self.write(vec![ended], What::End(id, reply));
    }

    /// Tells the outcome of a command, and keeps it in memory until the journal takes it.
    fn answer_unsaved(&mut self, id: CommandId, reply: Reply) {
        let Some(open) = self.open.remove(&id) else { return };
        let ran = matches!(open.state, State::Ending { ran: true });
        let reply = open.verdict(ran, reply);
        self.unsaved.keep(id, open.digest, StoredReply::new(&reply));
        self.effects.push(Effect::Answer { id, reply });
    }

    /// Has written what is in memory only, unless that was tried just now.
    fn flush(&mut self, now: Instant) {
        if self.fault.as_ref().is_some_and(|fault| now < fault.retry_at) {
            return;
        }
        let (ids, records) = self.unsaved.take_due();
        if ids.is_empty() {
            return;
        }
        self.write(records, What::Flush(ids));
    }

    fn write(&mut self, records: Vec<Record>, what: What) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.effects.push(Effect::Write {
            ticket,
            records: records.clone(),
        });
        self.writing.insert(ticket, Writing { records, what });
    }

    fn stage(&mut self, id: CommandId, stage: Stage) {
        self.effects.push(Effect::Stage { id, stage });
    }
}

impl Open {
    fn new(incoming: &Incoming, again: bool, state: State) -> Self {
        Self {
            digest: incoming.digest,
            deadline: incoming.deadline,
            traits: incoming.traits,
            again,
            state,
        }
    }
}
