//! Every state and every fault, with time moved by hand. `shared/tests/executor_model.rs` combines them at random.

mod refusal_tests;
mod slot_tests;

use super::super::record::digest;
use super::*;
use crate::net::clock;
use crate::proto::id::PublicKey;
use crate::proto::outcome::Outcome;

const PLAIN: ActionProperties = ActionProperties {
    idempotent: false,
    while_stopped: false,
    flight: false,
    ends_flight: false,
};

const FLIGHT: ActionProperties = ActionProperties {
    flight: true,
    ..PLAIN
};

/// An executor, its journal's disk, and the effects it asked for.
struct SimulatedNode {
    executor: Executor,
    /// The durable records.
    disk: Vec<Record>,
    /// The disk fails with this reason; it works if `None`.
    write_error: Option<&'static str>,
    /// While this is set, writes are not confirmed; see [`SimulatedNode::finish_held_writes`].
    unanswered_writes: Option<Vec<(WriteId, Vec<Record>)>>,
    now: Instant,
    effects: Vec<Effect>,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([7; 32]).id(),
        epoch: 5,
        seq,
    }
}

fn incoming(seq: u64, now: Instant, traits: ActionProperties) -> IncomingCommand {
    IncomingCommand {
        id: id(seq),
        digest: digest("led", b"{}"),
        deadline: Some(now + Duration::from_secs(10)),
        ttl_ms: Some(10_000),
        properties: traits,
        source: CommandSource::Peer,
        after: None,
    }
}

impl SimulatedNode {
    fn new() -> Self {
        Self {
            executor: Executor::new(DedupTable::default()),
            disk: Vec::new(),
            write_error: None,
            unanswered_writes: None,
            now: clock::now(),
            effects: Vec::new(),
        }
    }

    /// The process is killed, and another one starts.
    fn crash(&mut self) {
        let mut dedup = DedupTable::default();
        for record in &self.disk {
            dedup.apply(record);
        }
        self.executor = Executor::new(dedup);
        self.unanswered_writes = self.unanswered_writes.is_some().then(Vec::new);
        self.effects.clear();
    }

    fn apply_effects(&mut self) {
        loop {
            let effects = self.executor.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match (effect, &mut self.unanswered_writes) {
                    (Effect::Write { write_id, records }, Some(held)) => held.push((write_id, records)),
                    (Effect::Write { write_id, records }, None) => self.finish_write(write_id, records),
                    (effect, _) => self.effects.push(effect),
                }
            }
        }
    }

    fn finish_write(&mut self, write_id: WriteId, records: Vec<Record>) {
        match self.write_error {
            None => {
                self.disk.extend(records);
                self.executor.on_written(write_id, self.now);
            }
            Some(why) => self.executor.on_write_failed(write_id, why, self.now),
        }
    }

    /// Confirms the writes that were held back, and holds back the ones that follow.
    fn finish_held_writes(&mut self) {
        for (write_id, records) in self.unanswered_writes.replace(Vec::new()).unwrap_or_default() {
            self.finish_write(write_id, records);
        }
        self.apply_effects();
    }

    fn receive(&mut self, incoming: IncomingCommand) -> bool {
        let taken = self.executor.on_command(incoming, self.now);
        self.apply_effects();
        taken
    }

    fn send(&mut self, seq: u64, traits: ActionProperties) -> bool {
        self.receive(incoming(seq, self.now, traits))
    }

    fn query(&mut self, seq: u64, traits: ActionProperties) {
        let question = IncomingCommand {
            deadline: Some(self.now),
            ..incoming(seq, self.now, traits)
        };
        self.receive(question);
    }

    fn finish(&mut self, seq: u64, reply: Reply) {
        self.executor.on_finished(id(seq), reply, self.now);
        self.apply_effects();
    }

    fn advance(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        while self.executor.poll_timeout().is_some_and(|at| at <= self.now) {
            self.executor.handle_timeout(self.now);
            self.apply_effects();
        }
    }

    fn stop(&mut self) {
        self.executor.on_stop(self.now);
        self.apply_effects();
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The only reply since the last call.
    fn take_reply(&mut self, seq: u64) -> (Outcome, String) {
        let mut answers = Vec::new();
        for effect in self.take_effects() {
            if let Effect::Reply { id: of, reply } = effect {
                assert_eq!(of, id(seq));
                answers.push(reply);
            }
        }
        assert_eq!(answers.len(), 1, "answers to {seq}");
        let reply = answers.remove(0);
        (reply.state, reply.error.unwrap_or_default())
    }

    fn take_started(&mut self) -> Vec<u64> {
        let run = |effect: &Effect| match effect {
            Effect::Run { id } => Some(id.seq),
            Effect::Write { .. } | Effect::Stage { .. } | Effect::Kill { .. } | Effect::Reply { .. } => None,
        };
        self.take_effects().iter().filter_map(run).collect()
    }

    /// Fills all slots of one kind, from command `first` on, with commands that run until they are finished.
    fn fill_slots(&mut self, first: u64) {
        for seq in first..first + ORDINARY_MAX as u64 {
            self.send(seq, PLAIN);
        }
        assert_eq!(self.take_started().len(), ORDINARY_MAX);
    }
}

fn stage(seq: u64, stage: Stage) -> Effect {
    Effect::Stage { id: id(seq), stage }
}

fn done() -> Reply {
    Reply::done("lit".into())
}

#[test]
fn executed_command_reports_every_stage() {
    let mut node = SimulatedNode::new();
    node.unanswered_writes = Some(Vec::new());
    assert!(node.send(1, PLAIN));
    assert_eq!(
        node.take_effects(),
        [stage(1, Stage::Received), stage(1, Stage::Accepted)]
    );
    node.finish_held_writes();
    assert_eq!(
        node.take_effects(),
        [Effect::Run { id: id(1) }, stage(1, Stage::Started)]
    );
    node.finish(1, done());
    assert_eq!(node.take_effects(), [], "not before it is durable");
    node.finish_held_writes();
    let reply = done();
    assert_eq!(node.take_effects(), [Effect::Reply { id: id(1), reply }]);
    assert!(node.executor.is_idle() && !node.executor.contains(id(1)));
}

#[test]
fn duplicate_command_never_runs_again_in_any_state() {
    let mut node = SimulatedNode::new();
    node.unanswered_writes = Some(Vec::new());
    node.send(1, PLAIN);
    node.take_effects();
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_effects(), [stage(1, Stage::Accepted)], "starting");
    node.finish_held_writes();
    node.take_effects();
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_effects(), [stage(1, Stage::Started)], "running");
    node.finish(1, done());
    node.take_effects();
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_effects(), [stage(1, Stage::Started)], "ending");
    node.finish_held_writes();
    assert_eq!(node.take_reply(1).0, Outcome::Done);
    for _ in 0..3 {
        assert!(!node.send(1, PLAIN));
        assert_eq!(node.take_reply(1).0, Outcome::Done, "ended");
    }
    node.crash();
    node.query(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Done, "ended before a crash");
}

#[test]
fn duplicate_of_waiting_command_reports_its_stage() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    assert!(node.send(20, PLAIN));
    assert!(!node.send(20, PLAIN));
    let accepted = stage(20, Stage::Accepted);
    assert_eq!(
        node.take_effects(),
        [stage(20, Stage::Received), accepted.clone(), accepted]
    );
    node.finish(1, done());
    assert_eq!(node.take_started(), [20]);
}

#[test]
fn crash_before_durable_start_leaves_command_new() {
    let mut node = SimulatedNode::new();
    node.unanswered_writes = Some(Vec::new());
    node.send(1, PLAIN);
    node.crash();
    assert!(node.send(1, PLAIN));
    node.finish_held_writes();
    assert_eq!(node.take_started(), [1]);
}

#[test]
fn crash_midway_is_unknown_permanently() {
    let mut node = SimulatedNode::new();
    node.send(1, PLAIN);
    assert_eq!(node.take_started(), [1]);
    node.crash();
    assert!(!node.send(1, PLAIN));
    let first = node.take_reply(1);
    assert_eq!(first.0, Outcome::Unknown);
    node.crash();
    node.send(1, PLAIN);
    assert_eq!(node.take_reply(1), first, "it is in the journal");
    assert!(
        node.disk
            .iter()
            .any(|record| matches!(record, Record::Ended { .. }))
    );
}

#[test]
fn idempotent_command_runs_again_after_a_crash() {
    let traits = ActionProperties {
        idempotent: true,
        ..PLAIN
    };
    let mut node = SimulatedNode::new();
    node.send(1, traits);
    node.crash();
    assert!(node.send(1, traits));
    assert_eq!(node.take_started(), [1]);
    node.finish(1, done());
    assert_eq!(node.take_reply(1).0, Outcome::Done);
    node.crash();
    assert!(!node.send(1, traits));
    assert_eq!(
        node.take_reply(1).0,
        Outcome::Done,
        "once ended it does not run again"
    );
}

#[test]
fn rerun_requires_idempotence_before_and_after_the_crash() {
    let idempotent = ActionProperties {
        idempotent: true,
        ..PLAIN
    };
    for (then, today) in [(PLAIN, idempotent), (idempotent, PLAIN)] {
        let mut node = SimulatedNode::new();
        node.send(1, then);
        node.crash();
        assert!(!node.send(1, today));
        assert_eq!(node.take_reply(1).0, Outcome::Unknown);
    }
}

#[test]
fn begun_command_that_cannot_rerun_is_unknown_not_refused() {
    let traits = ActionProperties {
        idempotent: true,
        ..PLAIN
    };
    let mut node = SimulatedNode::new();
    node.send(1, traits);
    node.crash();
    node.stop();
    assert!(!node.send(1, traits));
    let (state, why) = node.take_reply(1);
    assert_eq!(state, Outcome::Unknown);
    assert!(why.contains("emergency stop"), "{why}");

    let mut node = SimulatedNode::new();
    node.send(1, traits);
    node.crash();
    node.query(1, traits);
    assert_eq!(node.take_reply(1).0, Outcome::Unknown, "too late to run again");

    let mut node = SimulatedNode::new();
    node.send(1, traits);
    node.crash();
    node.write_error = Some("no space left");
    node.send(1, traits);
    assert_eq!(node.take_reply(1).0, Outcome::Unknown);
}

#[test]
fn deadline_is_checked_on_arrival_and_before_execution() {
    let mut node = SimulatedNode::new();
    node.query(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Expired);

    node.unanswered_writes = Some(Vec::new());
    node.send(2, PLAIN);
    node.advance(9_999);
    node.send(3, PLAIN);
    node.now += Duration::from_millis(1);
    node.finish_held_writes();
    assert_eq!(node.take_started(), [3], "2 became late while it was written");
    node.finish_held_writes();
    assert_eq!(node.take_reply(2).0, Outcome::Expired);
    node.crash();
    node.unanswered_writes = None;
    node.send(2, PLAIN);
    assert_eq!(
        node.take_reply(2).0,
        Outcome::Expired,
        "not unknown: it never ran"
    );
}

#[test]
fn waiting_command_expires_at_its_deadline() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    node.send(20, PLAIN);
    node.take_effects();
    assert_eq!(
        node.executor.poll_timeout(),
        Some(node.now + Duration::from_secs(10))
    );
    node.advance(10_000);
    assert_eq!(node.take_reply(20).0, Outcome::Expired);
    node.finish(1, done());
    assert!(node.take_started().is_empty());
    assert_eq!(node.executor.poll_timeout(), None);
}

#[test]
fn slot_freed_after_the_deadline_is_not_used() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    node.send(20, PLAIN);
    // The process was suspended: the timer fires after the slot is freed.
    node.now += Duration::from_secs(60);
    node.finish(1, done());
    let effects = node.take_effects();
    assert!(!effects.contains(&Effect::Run { id: id(20) }));
    let started = |record: &Record| matches!(record, Record::Started { id: of, .. } if *of == id(20));
    assert!(!node.disk.iter().any(started), "and nothing is written for it");
    let expired = |effect: &Effect| matches!(effect, Effect::Reply { id: of, reply } if *of == id(20) && reply.state == Outcome::Expired);
    assert!(effects.iter().any(expired));
}

#[test]
fn status_query_and_later_duplicates_never_run() {
    let mut node = SimulatedNode::new();
    node.query(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Expired);
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_reply(1).0, Outcome::Expired);
    node.crash();
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_reply(1).0, Outcome::Expired);
    assert!(
        node.disk
            .iter()
            .all(|record| !matches!(record, Record::Started { .. }))
    );
}

#[test]
fn status_query_ends_a_waiting_command() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    node.send(20, PLAIN);
    node.take_effects();
    node.query(20, PLAIN);
    assert_eq!(node.take_reply(20).0, Outcome::Expired);
    node.finish(1, done());
    assert!(node.take_started().is_empty());
}

#[test]
fn status_query_prevents_a_starting_command_from_running() {
    let mut node = SimulatedNode::new();
    node.unanswered_writes = Some(Vec::new());
    node.send(1, PLAIN);
    node.query(1, PLAIN);
    node.finish_held_writes();
    assert!(node.take_started().is_empty());
    node.finish_held_writes();
    assert_eq!(node.take_reply(1).0, Outcome::Expired);
}

#[test]
fn duplicate_command_never_extends_the_deadline() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    node.send(20, PLAIN);
    node.advance(9_000);
    node.send(20, PLAIN);
    node.take_effects();
    node.advance(1_000);
    assert_eq!(node.take_reply(20).0, Outcome::Expired);
}

#[test]
fn flight_action_with_long_ttl_is_refused() {
    let mut node = SimulatedNode::new();
    for (seq, life_ms) in [(1, Some(2_001)), (2, None)] {
        let too_old = IncomingCommand {
            ttl_ms: life_ms,
            ..incoming(seq, node.now, FLIGHT)
        };
        assert!(!node.receive(too_old));
        let (state, why) = node.take_reply(seq);
        assert_eq!(state, Outcome::Refused);
        assert!(why.contains("2000 ms"), "{why}");
    }
    let young = IncomingCommand {
        ttl_ms: Some(2_000),
        ..incoming(3, node.now, FLIGHT)
    };
    assert!(node.receive(young));
    assert_eq!(node.take_started(), [3]);
    // The limit holds whatever deadline the frame claims.
    node.unanswered_writes = Some(Vec::new());
    let claims = IncomingCommand {
        id: id(4),
        deadline: None,
        ..young
    };
    node.receive(claims);
    node.now += Duration::from_secs(2);
    node.finish_held_writes();
    assert!(node.take_started().is_empty());
}

#[test]
fn older_epoch_is_refused_unless_remembered() {
    let mut node = SimulatedNode::new();
    node.send(1, PLAIN);
    node.finish(1, done());
    let newer = IncomingCommand {
        id: CommandId { epoch: 6, ..id(1) },
        ..incoming(1, node.now, PLAIN)
    };
    assert!(node.receive(newer));
    node.take_effects();
    node.send(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Done);
    assert!(!node.send(2, PLAIN));
    let (state, why) = node.take_reply(2);
    assert_eq!(state, Outcome::Refused);
    assert!(why.contains("epoch 5") && why.contains("epoch 6"), "{why}");
}

/// A status query is not answered with a refusal that the command may never have met.
#[test]
fn status_query_of_older_epoch_gets_the_outcome() {
    let mut node = SimulatedNode::new();
    node.send(1, PLAIN);
    node.finish(1, done());
    node.send(2, PLAIN);
    let newer = IncomingCommand {
        id: CommandId { epoch: 6, ..id(1) },
        ..incoming(1, node.now, PLAIN)
    };
    assert!(node.receive(newer));
    for round in 0..2 {
        node.take_effects();
        node.query(1, PLAIN);
        assert_eq!(node.take_reply(1).0, Outcome::Done, "it ran");
        node.query(3, PLAIN);
        let (state, why) = node.take_reply(3);
        assert_eq!(state, Outcome::Expired, "it never began: {why}");
        assert!(!node.send(3, PLAIN), "and never will");
        assert_eq!(node.take_reply(3).0, Outcome::Refused);
        if round == 0 {
            node.query(2, PLAIN);
            assert!(
                node.take_effects()
                    .iter()
                    .all(|effects| !matches!(effects, Effect::Reply { .. }))
            );
        } else {
            node.query(2, PLAIN);
            assert_eq!(node.take_reply(2).0, Outcome::Unknown, "a crash midway");
        }
        node.crash();
    }
}

#[test]
fn forgotten_command_is_unknown_and_does_not_run() {
    let mut node = SimulatedNode::new();
    for seq in 1..=3_000 {
        node.send(seq, PLAIN);
        node.finish(seq, done());
    }
    node.take_effects();
    assert!(!node.send(1, PLAIN));
    assert_eq!(node.take_reply(1).0, Outcome::Unknown);
    node.send(3_000, PLAIN);
    assert_eq!(node.take_reply(3_000).0, Outcome::Done);
}
