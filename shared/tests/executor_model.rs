//! The node's executor under random sequences of commands, duplicates, status queries, crashes, failed writes, stops
//! and time. The invariants are checked at each step.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use swarm_shared::net::clock;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::executor::{
    ActionProperties, AfterFile, CommandSource, Effect, Executor, IN_FLIGHT_MAX, IncomingCommand,
    LANDING_MAX, RUNNING_MAX, WriteId,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::outcome::{Outcome, Reply};

/// Commands in one run.
const COMMANDS: u64 = 24;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A copy of a command arrives; after its deadline it is a status query.
    Send(u64),
    /// A command with the number of another one arrives.
    SendOther(u64),
    /// The n-th of the running commands ends.
    Finish(usize),
    /// The oldest write completes.
    Write,
    /// The oldest write fails; it may be on the disk all the same.
    Fail {
        there: bool,
    },
    /// The process is killed; this many of the writes in progress are durable.
    Crash {
        durable: usize,
    },
    /// Time passes, and timers fire.
    Pass(u64),
    /// Time passes while the process is suspended.
    Suspend(u64),
    Stop,
    Release,
    /// The file that commands wait for is stored, or is not.
    EndFile {
        stored: bool,
    },
}

fn step(failing: bool) -> impl Strategy<Value = Step> {
    let fails = u32::from(failing) * 3;
    prop_oneof![
        14 => (0..COMMANDS).prop_map(Step::Send),
        1 => (0..COMMANDS).prop_map(Step::SendOther),
        6 => (0..RUNNING_MAX).prop_map(Step::Finish),
        16 => Just(Step::Write),
        fails => any::<bool>().prop_map(|there| Step::Fail { there }),
        2 => (0..4_usize).prop_map(|durable| Step::Crash { durable }),
        3 => (1..2_500_u64).prop_map(Step::Pass),
        1 => (1..2_500_u64).prop_map(Step::Suspend),
        2 => prop_oneof![Just(Step::Stop), Just(Step::Release)],
        2 => any::<bool>().prop_map(|stored| Step::EndFile { stored }),
    ]
}

struct Model {
    executor: Executor,
    disk: Vec<Record>,
    pending_writes: VecDeque<(WriteId, Vec<Record>)>,
    now: Instant,
    start: Instant,
    running: Vec<CommandId>,
    stopped: bool,
    /// How often each command has run.
    runs: BTreeMap<CommandId, u32>,
    /// The reply of each command; with `failing`, since the last crash.
    answers: BTreeMap<CommandId, Outcome>,
    failing: bool,
    /// Files that have ended; they are numbered from 1.
    files_ended: u64,
    /// The file that each command waits for.
    after: BTreeMap<CommandId, u64>,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([u8::try_from(seq % 2).expect("small"); 32]).id(),
        epoch: 5,
        seq: seq + 1,
    }
}

fn traits(seq: u64) -> ActionProperties {
    ActionProperties {
        idempotent: seq.is_multiple_of(3),
        while_stopped: seq.is_multiple_of(4),
        flight: seq.is_multiple_of(5),
        ends_flight: seq.is_multiple_of(7),
    }
}

impl Model {
    fn new(failing: bool) -> Self {
        let start = clock::now();
        Self {
            executor: Executor::new(DedupTable::default()),
            disk: Vec::new(),
            pending_writes: VecDeque::new(),
            now: start,
            start,
            running: Vec::new(),
            stopped: false,
            runs: BTreeMap::new(),
            answers: BTreeMap::new(),
            failing,
            files_ended: 0,
            after: BTreeMap::new(),
        }
    }

    fn seq(id: CommandId) -> u64 {
        id.seq - 1
    }

    fn deadline(&self, seq: u64) -> Instant {
        self.start + Duration::from_millis(500 + 400 * seq)
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Send(seq) => self.send(seq, "this"),
            Step::SendOther(seq) => self.send_other(seq),
            Step::Finish(n) if n < self.running.len() => {
                let id = self.running.swap_remove(n);
                let reply = if n.is_multiple_of(2) {
                    Reply::done("ran".into())
                } else {
                    Reply::failed("ran badly")
                };
                self.executor.on_finished(id, reply, self.now);
            }
            Step::Finish(_) => {}
            Step::Write => {
                if let Some((ticket, records)) = self.pending_writes.pop_front() {
                    self.disk.extend(records);
                    self.executor.on_written(ticket, self.now);
                }
            }
            Step::Fail { there } => {
                if let Some((ticket, records)) = self.pending_writes.pop_front() {
                    if there {
                        self.disk.extend(records);
                    }
                    self.executor.on_write_failed(ticket, "I/O error", self.now);
                }
            }
            Step::Crash { durable } => self.crash(durable),
            Step::EndFile { stored } => {
                self.files_ended += 1;
                let failed = (!stored).then_some((self.now, "disk full"));
                self.executor.on_file_ended(self.files_ended, failed, self.now);
            }
            Step::Pass(ms) => {
                let until = self.now + Duration::from_millis(ms);
                while let Some(at) = self.executor.poll_timeout().filter(|at| *at <= until) {
                    self.now = self.now.max(at);
                    self.executor.handle_timeout(self.now);
                    self.apply_effects();
                }
                self.now = until;
            }
            Step::Suspend(ms) => self.now += Duration::from_millis(ms),
            Step::Stop => {
                self.stopped = true;
                self.executor.on_stop(self.now);
            }
            Step::Release => {
                self.stopped = false;
                self.executor.on_release();
            }
        }
        self.apply_effects();
    }

    fn send(&mut self, seq: u64, what: &str) {
        let waits = seq % 4 == 1;
        if !self.executor.contains(id(seq)) && waits {
            self.after.insert(id(seq), self.files_ended + 1);
        }
        let incoming = IncomingCommand {
            id: id(seq),
            digest: digest(what, b""),
            deadline: Some(self.deadline(seq)),
            ttl_ms: Some(2_000),
            properties: traits(seq),
            source: if waits {
                CommandSource::Gateway
            } else {
                CommandSource::Peer
            },
            after: waits.then_some(AfterFile {
                file: self.files_ended + 1,
                arrived_at: self.now,
            }),
        };
        let taken = self.executor.on_command(incoming, self.now);
        assert!(!taken || self.executor.contains(id(seq)));
    }

    /// Only where the first command is known: otherwise the second would count as the first.
    fn send_other(&mut self, seq: u64) {
        let id = id(seq);
        if !self.executor.contains(id) {
            return;
        }
        let before = self.executor.take_effects();
        assert!(before.is_empty(), "all was carried out: {before:?}");
        self.send(seq, "another");
        let effects = self.executor.take_effects();
        assert!(
            matches!(effects.as_slice(), [Effect::Reply { reply, .. }] if reply.state == Outcome::Refused),
            "{effects:?}"
        );
    }

    fn crash(&mut self, durable: usize) {
        for (_, records) in self.pending_writes.drain(..).take(durable) {
            self.disk.extend(records);
        }
        self.pending_writes.clear();
        let mut dedup = DedupTable::default();
        for record in &self.disk {
            dedup.apply(record);
        }
        self.executor = Executor::new(dedup);
        if self.stopped {
            self.executor.on_stop(self.now);
        }
        self.running.clear();
        if self.failing {
            self.answers.clear();
        }
    }

    fn apply_effects(&mut self) {
        loop {
            let effects = self.executor.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.apply_effect(effect);
            }
        }
        let ends = |id: &&CommandId| traits(Self::seq(**id)).ends_flight;
        let ending = self.running.iter().filter(ends).count();
        assert!(ending <= LANDING_MAX && self.running.len() - ending <= RUNNING_MAX - LANDING_MAX);
        assert!(self.pending_writes.len() <= IN_FLIGHT_MAX + 1);
    }

    fn apply_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Write {
                write_id: ticket,
                records,
            } => {
                assert!(!records.is_empty());
                self.pending_writes.push_back((ticket, records));
            }
            Effect::Stage { id, stage } => {
                let runs = self.runs.get(&id).copied().unwrap_or_default();
                assert!(stage < Stage::Started || runs > 0);
            }
            Effect::Run { id } => self.run(id),
            Effect::Kill { id } => {
                assert!(self.stopped && !traits(Self::seq(id)).while_stopped);
                let n = self.running.iter().position(|running| *running == id);
                self.running.swap_remove(n.expect("it runs"));
                self.executor
                    .on_finished(id, Reply::failed("was killed"), self.now);
            }
            Effect::Reply { id, reply } => {
                let first = *self.answers.entry(id).or_insert(reply.state);
                assert_eq!(first, reply.state, "{id:?}: {:?}", reply.error);
                if reply.state == Outcome::Done {
                    assert!(self.runs.contains_key(&id));
                }
                if reply.state == Outcome::Refused || reply.state == Outcome::Expired {
                    assert!(!self.runs.contains_key(&id), "{id:?} has run: {:?}", reply.error);
                }
            }
        }
    }

    fn run(&mut self, id: CommandId) {
        let (seq, runs) = (Self::seq(id), self.runs.entry(id).or_default());
        *runs += 1;
        assert!(*runs == 1 || traits(seq).idempotent, "{id:?} runs again");
        assert!(!self.answers.contains_key(&id), "{id:?} runs after its answer");
        assert!(self.now < self.deadline(seq), "{id:?} runs late");
        let file = self.after.get(&id).copied().unwrap_or_default();
        assert!(file <= self.files_ended, "{id:?} runs before its file has ended");
        assert!(
            !self.stopped || traits(seq).while_stopped,
            "{id:?} runs while stopped"
        );
        let started = |record: &Record| matches!(record, Record::Started { id: whose, .. } if *whose == id);
        assert!(
            self.disk.iter().any(started),
            "{id:?} runs and nothing is durable"
        );
        assert!(!self.running.contains(&id));
        self.running.push(id);
    }

    /// The disk works, every action ends, and every issuer asks for its outcome.
    fn finish(&mut self) {
        for _ in 0..2 {
            for seq in 0..COMMANDS {
                self.apply(Step::Send(seq));
            }
            self.apply(Step::Pass(20_000));
            while !(self.pending_writes.is_empty() && self.running.is_empty()) {
                self.apply(Step::Write);
                self.apply(Step::Finish(0));
            }
        }
        assert!(self.executor.is_idle());
        for seq in 0..COMMANDS {
            assert!(!self.executor.contains(id(seq)));
            assert!(self.answers.contains_key(&id(seq)), "{seq} has no answer");
        }
        // The replies are the same after one more crash.
        let answers = self.answers.clone();
        self.apply(Step::Pass(20_000));
        while !self.pending_writes.is_empty() {
            self.apply(Step::Write);
        }
        self.apply(Step::Crash { durable: 0 });
        self.answers = answers;
        for seq in 0..COMMANDS {
            self.apply(Step::Send(seq));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn commands_run_at_most_once_never_late_with_one_reply(steps in prop::collection::vec(step(false), 1..300)) {
        let mut world = Model::new(false);
        for step in steps {
            world.apply(step);
        }
        world.finish();
    }

    /// Where writes fail, memory provides the reply; a crash may lose it, but never makes a command run twice.
    #[test]
    fn commands_run_at_most_once_even_if_writes_fail(steps in prop::collection::vec(step(true), 1..300)) {
        let mut world = Model::new(true);
        for step in steps {
            world.apply(step);
        }
        world.finish();
    }
}
