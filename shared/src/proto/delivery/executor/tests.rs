//! Every state and every hindrance, with time moved by hand. `shared/tests/desk_model.rs` throws everything at once.

mod refusal_tests;
mod slot_tests;

use super::super::record::digest;
use super::*;
use crate::net::clock;
use crate::proto::id::PublicKey;
use crate::proto::outcome::Outcome;

const PLAIN: Traits = Traits {
    idempotent: false,
    while_stopped: false,
    flight: false,
    ends_flight: false,
};

const FLIGHT: Traits = Traits {
    flight: true,
    ..PLAIN
};

/// A desk, the disk below it, and all that it has said.
struct Place {
    desk: Desk,
    /// What is durable.
    disk: Vec<Record>,
    /// Why the disk fails; well if there is nothing.
    fails: Option<&'static str>,
    /// Writes are not answered while this is set: see [`Place::write_on`].
    held: Option<Vec<(Ticket, Vec<Record>)>>,
    now: Instant,
    said: Vec<Effect>,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([7; 32]).id(),
        epoch: 5,
        seq,
    }
}

fn incoming(seq: u64, now: Instant, traits: Traits) -> Incoming {
    Incoming {
        id: id(seq),
        digest: digest("led", b"{}"),
        deadline: Some(now + Duration::from_secs(10)),
        life_ms: Some(10_000),
        traits,
    }
}

impl Place {
    fn new() -> Self {
        Self {
            desk: Desk::new(Ledger::default()),
            disk: Vec::new(),
            fails: None,
            held: None,
            now: clock::now(),
            said: Vec::new(),
        }
    }

    /// The process dies here, and another one starts.
    fn crash(&mut self) {
        let mut ledger = Ledger::default();
        for record in &self.disk {
            ledger.apply(record);
        }
        self.desk = Desk::new(ledger);
        self.held = self.held.is_some().then(Vec::new);
        self.said.clear();
    }

    fn carry_out(&mut self) {
        loop {
            let effects = self.desk.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match (effect, &mut self.held) {
                    (Effect::Write { ticket, records }, Some(held)) => held.push((ticket, records)),
                    (Effect::Write { ticket, records }, None) => self.settle(ticket, records),
                    (effect, _) => self.said.push(effect),
                }
            }
        }
    }

    fn settle(&mut self, ticket: Ticket, records: Vec<Record>) {
        match self.fails {
            None => {
                self.disk.extend(records);
                self.desk.written(ticket, self.now);
            }
            Some(why) => self.desk.not_written(ticket, why, self.now),
        }
    }

    /// The disk answers what it has held back, and holds back what follows.
    fn write_on(&mut self) {
        for (ticket, records) in self.held.replace(Vec::new()).unwrap_or_default() {
            self.settle(ticket, records);
        }
        self.carry_out();
    }

    fn take(&mut self, incoming: Incoming) -> bool {
        let taken = self.desk.command(incoming, self.now);
        self.carry_out();
        taken
    }

    fn send(&mut self, seq: u64, traits: Traits) -> bool {
        self.take(incoming(seq, self.now, traits))
    }

    fn ask(&mut self, seq: u64, traits: Traits) {
        let question = Incoming {
            deadline: Some(self.now),
            ..incoming(seq, self.now, traits)
        };
        self.take(question);
    }

    fn finish(&mut self, seq: u64, reply: Reply) {
        self.desk.finished(id(seq), reply, self.now);
        self.carry_out();
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        while self.desk.poll_timeout().is_some_and(|at| at <= self.now) {
            self.desk.handle_timeout(self.now);
            self.carry_out();
        }
    }

    fn stop(&mut self) {
        self.desk.stopped(self.now);
        self.carry_out();
    }

    fn said(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.said)
    }

    /// The one answer said since last asked.
    fn answer(&mut self, seq: u64) -> (Outcome, String) {
        let mut answers = Vec::new();
        for effect in self.said() {
            if let Effect::Answer { id: whose, reply } = effect {
                assert_eq!(whose, id(seq));
                answers.push(reply);
            }
        }
        assert_eq!(answers.len(), 1, "answers to {seq}");
        let reply = answers.remove(0);
        (reply.state, reply.error.unwrap_or_default())
    }

    fn runs(&mut self) -> Vec<u64> {
        let run = |effect: &Effect| match effect {
            Effect::Run { id } => Some(id.seq),
            Effect::Write { .. } | Effect::Stage { .. } | Effect::Kill { .. } | Effect::Answer { .. } => None,
        };
        self.said().iter().filter_map(run).collect()
    }

    /// So many commands, from `first` on, that run until they are told.
    fn fill(&mut self, first: u64) {
        for seq in first..first + ORDINARY_MAX as u64 {
            self.send(seq, PLAIN);
        }
        assert_eq!(self.runs().len(), ORDINARY_MAX);
    }
}

fn stage(seq: u64, stage: Stage) -> Effect {
    Effect::Stage { id: id(seq), stage }
}

fn done() -> Reply {
    Reply::done("lit".into())
}

#[test]
fn a_command_goes_through_its_stages_and_each_is_told() {
    let mut place = Place::new();
    place.held = Some(Vec::new());
    assert!(place.send(1, PLAIN));
    assert_eq!(
        place.said(),
        [stage(1, Stage::Received), stage(1, Stage::Accepted)]
    );
    place.write_on();
    assert_eq!(
        place.said(),
        [Effect::Run { id: id(1) }, stage(1, Stage::Started)]
    );
    place.finish(1, done());
    assert_eq!(place.said(), [], "not before it is durable");
    place.write_on();
    let reply = done();
    assert_eq!(place.said(), [Effect::Answer { id: id(1), reply }]);
    assert!(place.desk.is_idle() && !place.desk.holds(id(1)));
}

#[test]
fn a_copy_at_any_state_does_not_run_again() {
    let mut place = Place::new();
    place.held = Some(Vec::new());
    place.send(1, PLAIN);
    place.said();
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.said(), [stage(1, Stage::Accepted)], "starting");
    place.write_on();
    place.said();
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.said(), [stage(1, Stage::Started)], "running");
    place.finish(1, done());
    place.said();
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.said(), [stage(1, Stage::Started)], "ending");
    place.write_on();
    assert_eq!(place.answer(1).0, Outcome::Done);
    for _ in 0..3 {
        assert!(!place.send(1, PLAIN));
        assert_eq!(place.answer(1).0, Outcome::Done, "ended");
    }
    place.crash();
    place.ask(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Done, "ended before a crash");
}

#[test]
fn a_copy_of_one_that_waits_gets_its_stage() {
    let mut place = Place::new();
    place.fill(1);
    assert!(place.send(20, PLAIN));
    assert!(!place.send(20, PLAIN));
    let accepted = stage(20, Stage::Accepted);
    assert_eq!(
        place.said(),
        [stage(20, Stage::Received), accepted.clone(), accepted]
    );
    place.finish(1, done());
    assert_eq!(place.runs(), [20]);
}

#[test]
fn a_crash_before_the_start_is_durable_leaves_it_new() {
    let mut place = Place::new();
    place.held = Some(Vec::new());
    place.send(1, PLAIN);
    place.crash();
    assert!(place.send(1, PLAIN));
    place.write_on();
    assert_eq!(place.runs(), [1]);
}

#[test]
fn a_crash_midway_is_unknown_for_good() {
    let mut place = Place::new();
    place.send(1, PLAIN);
    assert_eq!(place.runs(), [1]);
    place.crash();
    assert!(!place.send(1, PLAIN));
    let first = place.answer(1);
    assert_eq!(first.0, Outcome::Unknown);
    place.crash();
    place.send(1, PLAIN);
    assert_eq!(place.answer(1), first, "it is in the journal");
    assert!(
        place
            .disk
            .iter()
            .any(|record| matches!(record, Record::Ended { .. }))
    );
}

#[test]
fn what_is_idempotent_runs_again_after_a_crash() {
    let traits = Traits {
        idempotent: true,
        ..PLAIN
    };
    let mut place = Place::new();
    place.send(1, traits);
    place.crash();
    assert!(place.send(1, traits));
    assert_eq!(place.runs(), [1]);
    place.finish(1, done());
    assert_eq!(place.answer(1).0, Outcome::Done);
    place.crash();
    assert!(!place.send(1, traits));
    assert_eq!(
        place.answer(1).0,
        Outcome::Done,
        "once ended it does not run again"
    );
}

#[test]
fn it_runs_again_only_if_it_was_idempotent_then_and_is_now() {
    let idempotent = Traits {
        idempotent: true,
        ..PLAIN
    };
    for (then, today) in [(PLAIN, idempotent), (idempotent, PLAIN)] {
        let mut place = Place::new();
        place.send(1, then);
        place.crash();
        assert!(!place.send(1, today));
        assert_eq!(place.answer(1).0, Outcome::Unknown);
    }
}

#[test]
fn what_began_and_may_not_run_again_now_is_unknown_and_not_refused() {
    let traits = Traits {
        idempotent: true,
        ..PLAIN
    };
    let mut place = Place::new();
    place.send(1, traits);
    place.crash();
    place.stop();
    assert!(!place.send(1, traits));
    let (state, why) = place.answer(1);
    assert_eq!(state, Outcome::Unknown);
    assert!(why.contains("emergency stop"), "{why}");

    let mut place = Place::new();
    place.send(1, traits);
    place.crash();
    place.ask(1, traits);
    assert_eq!(place.answer(1).0, Outcome::Unknown, "too late to run again");

    let mut place = Place::new();
    place.send(1, traits);
    place.crash();
    place.fails = Some("no space left");
    place.send(1, traits);
    assert_eq!(place.answer(1).0, Outcome::Unknown);
}

#[test]
fn a_deadline_is_looked_at_on_arrival_and_again_when_the_start_is_durable() {
    let mut place = Place::new();
    place.ask(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Expired);

    place.held = Some(Vec::new());
    place.send(2, PLAIN);
    place.pass(9_999);
    place.send(3, PLAIN);
    place.now += Duration::from_millis(1);
    place.write_on();
    assert_eq!(place.runs(), [3], "2 became late while it was written");
    place.write_on();
    assert_eq!(place.answer(2).0, Outcome::Expired);
    place.crash();
    place.held = None;
    place.send(2, PLAIN);
    assert_eq!(place.answer(2).0, Outcome::Expired, "not unknown: it never ran");
}

#[test]
fn what_waits_too_long_expires_when_its_time_is_up() {
    let mut place = Place::new();
    place.fill(1);
    place.send(20, PLAIN);
    place.said();
    assert_eq!(
        place.desk.poll_timeout(),
        Some(place.now + Duration::from_secs(10))
    );
    place.pass(10_000);
    assert_eq!(place.answer(20).0, Outcome::Expired);
    place.finish(1, done());
    assert!(place.runs().is_empty());
    assert_eq!(place.desk.poll_timeout(), None);
}

#[test]
fn a_place_that_frees_up_too_late_is_not_used() {
    let mut place = Place::new();
    place.fill(1);
    place.send(20, PLAIN);
    // The process was suspended: the timer comes after the place.
    place.now += Duration::from_secs(60);
    place.finish(1, done());
    let said = place.said();
    assert!(!said.contains(&Effect::Run { id: id(20) }));
    let started = |record: &Record| matches!(record, Record::Started { id: whose, .. } if *whose == id(20));
    assert!(!place.disk.iter().any(started), "and nothing is written for it");
    let expired = |effect: &Effect| matches!(effect, Effect::Answer { id: whose, reply } if *whose == id(20) && reply.state == Outcome::Expired);
    assert!(said.iter().any(expired));
}

#[test]
fn a_question_never_runs_and_neither_does_a_copy_that_comes_after_it() {
    let mut place = Place::new();
    place.ask(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Expired);
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.answer(1).0, Outcome::Expired);
    place.crash();
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.answer(1).0, Outcome::Expired);
    assert!(
        place
            .disk
            .iter()
            .all(|record| !matches!(record, Record::Started { .. }))
    );
}

#[test]
fn a_question_about_one_that_waits_ends_it() {
    let mut place = Place::new();
    place.fill(1);
    place.send(20, PLAIN);
    place.said();
    place.ask(20, PLAIN);
    assert_eq!(place.answer(20).0, Outcome::Expired);
    place.finish(1, done());
    assert!(place.runs().is_empty());
}

#[test]
fn a_question_about_one_that_starts_keeps_it_from_running() {
    let mut place = Place::new();
    place.held = Some(Vec::new());
    place.send(1, PLAIN);
    place.ask(1, PLAIN);
    place.write_on();
    assert!(place.runs().is_empty());
    place.write_on();
    assert_eq!(place.answer(1).0, Outcome::Expired);
}

#[test]
fn a_later_copy_never_has_more_time() {
    let mut place = Place::new();
    place.fill(1);
    place.send(20, PLAIN);
    place.pass(9_000);
    place.send(20, PLAIN);
    place.said();
    place.pass(1_000);
    assert_eq!(place.answer(20).0, Outcome::Expired);
}

#[test]
fn a_flight_action_is_young_or_refused() {
    let mut place = Place::new();
    for (seq, life_ms) in [(1, Some(2_001)), (2, None)] {
        let too_old = Incoming {
            life_ms,
            ..incoming(seq, place.now, FLIGHT)
        };
        assert!(!place.take(too_old));
        let (state, why) = place.answer(seq);
        assert_eq!(state, Outcome::Refused);
        assert!(why.contains("2000 ms"), "{why}");
    }
    let young = Incoming {
        life_ms: Some(2_000),
        ..incoming(3, place.now, FLIGHT)
    };
    assert!(place.take(young));
    assert_eq!(place.runs(), [3]);
    // Whatever deadline it claims.
    place.held = Some(Vec::new());
    let claims = Incoming {
        id: id(4),
        deadline: None,
        ..young
    };
    place.take(claims);
    place.now += Duration::from_secs(2);
    place.write_on();
    assert!(place.runs().is_empty());
}

#[test]
fn an_older_epoch_is_refused_unless_it_is_remembered() {
    let mut place = Place::new();
    place.send(1, PLAIN);
    place.finish(1, done());
    let newer = Incoming {
        id: CommandId { epoch: 6, ..id(1) },
        ..incoming(1, place.now, PLAIN)
    };
    assert!(place.take(newer));
    place.said();
    place.send(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Done);
    assert!(!place.send(2, PLAIN));
    let (state, why) = place.answer(2);
    assert_eq!(state, Outcome::Refused);
    assert!(why.contains("epoch 5") && why.contains("epoch 6"), "{why}");
}

/// Whoever asks what became of a command is not told of a hindrance that it may never have met.
#[test]
fn a_question_of_an_older_epoch_is_answered_with_what_became_of_the_command() {
    let mut place = Place::new();
    place.send(1, PLAIN);
    place.finish(1, done());
    place.send(2, PLAIN);
    let newer = Incoming {
        id: CommandId { epoch: 6, ..id(1) },
        ..incoming(1, place.now, PLAIN)
    };
    assert!(place.take(newer));
    for round in 0..2 {
        place.said();
        place.ask(1, PLAIN);
        assert_eq!(place.answer(1).0, Outcome::Done, "it ran");
        place.ask(3, PLAIN);
        let (state, why) = place.answer(3);
        assert_eq!(state, Outcome::Expired, "it never began: {why}");
        assert!(!place.send(3, PLAIN), "and never will");
        assert_eq!(place.answer(3).0, Outcome::Refused);
        if round == 0 {
            place.ask(2, PLAIN);
            assert!(
                place
                    .said()
                    .iter()
                    .all(|said| !matches!(said, Effect::Answer { .. }))
            );
        } else {
            place.ask(2, PLAIN);
            assert_eq!(place.answer(2).0, Outcome::Unknown, "a crash midway");
        }
        place.crash();
    }
}

#[test]
fn one_that_is_forgotten_is_unknown_and_does_not_run() {
    let mut place = Place::new();
    for seq in 1..=3_000 {
        place.send(seq, PLAIN);
        place.finish(seq, done());
    }
    place.said();
    assert!(!place.send(1, PLAIN));
    assert_eq!(place.answer(1).0, Outcome::Unknown);
    place.send(3_000, PLAIN);
    assert_eq!(place.answer(3_000).0, Outcome::Done);
}
