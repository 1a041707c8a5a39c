//! The node's desk under everything at once: arrivals, copies, questions, crashes at any point, writes that fail,
//! stops and time, in random order. What may never happen is checked at each step.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use swarm_shared::net::clock;
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::delivery::executor::{
    Desk, ENDING_MAX, Effect, Incoming, OPEN_MAX, RUNNING_MAX, Ticket, Traits,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::outcome::{Outcome, Reply};

/// Commands in one run.
const COMMANDS: u64 = 24;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A copy of a command arrives; late ones are questions.
    Send(u64),
    /// A command with the number of another one arrives.
    SendOther(u64),
    /// The n-th of those that run ends.
    Finish(usize),
    /// The disk answers the oldest write.
    Write,
    /// The disk fails it; whether it is there all the same after a crash, nobody knows.
    Fail {
        there: bool,
    },
    /// The process dies; so many of the writes under way are durable.
    Crash {
        durable: usize,
    },
    /// Time passes, and timers fire.
    Pass(u64),
    /// Time passes while the process is suspended.
    Suspend(u64),
    Stop,
    Release,
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
        1 => Just(Step::Stop),
        1 => Just(Step::Release),
    ]
}

struct World {
    desk: Desk,
    disk: Vec<Record>,
    under_way: VecDeque<(Ticket, Vec<Record>)>,
    now: Instant,
    start: Instant,
    running: Vec<CommandId>,
    stopped: bool,
    /// How often each has run.
    runs: BTreeMap<CommandId, u32>,
    /// What each was answered; with `failing`, since the last crash.
    answers: BTreeMap<CommandId, Outcome>,
    failing: bool,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([u8::try_from(seq % 2).expect("small"); 32]).id(),
        epoch: 5,
        seq: seq + 1,
    }
}

fn traits(seq: u64) -> Traits {
    Traits {
        idempotent: seq.is_multiple_of(3),
        while_stopped: seq.is_multiple_of(4),
        flight: seq.is_multiple_of(5),
        ends_flight: seq.is_multiple_of(7),
    }
}

impl World {
    fn new(failing: bool) -> Self {
        let start = clock::now();
        Self {
            desk: Desk::new(Ledger::default()),
            disk: Vec::new(),
            under_way: VecDeque::new(),
            now: start,
            start,
            running: Vec::new(),
            stopped: false,
            runs: BTreeMap::new(),
            answers: BTreeMap::new(),
            failing,
        }
    }

    fn seq(id: CommandId) -> u64 {
        id.seq - 1
    }

    fn deadline(&self, seq: u64) -> Instant {
        self.start + Duration::from_millis(500 + 400 * seq)
    }

    fn take(&mut self, step: Step) {
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
                self.desk.finished(id, reply, self.now);
            }
            Step::Finish(_) => {}
            Step::Write => {
                if let Some((ticket, records)) = self.under_way.pop_front() {
                    self.disk.extend(records);
                    self.desk.written(ticket, self.now);
                }
            }
            Step::Fail { there } => {
                if let Some((ticket, records)) = self.under_way.pop_front() {
                    if there {
                        self.disk.extend(records);
                    }
                    self.desk.not_written(ticket, "I/O error", self.now);
                }
            }
            Step::Crash { durable } => self.crash(durable),
            Step::Pass(ms) => {
                let until = self.now + Duration::from_millis(ms);
                while let Some(at) = self.desk.poll_timeout().filter(|at| *at <= until) {
                    self.now = self.now.max(at);
                    self.desk.handle_timeout(self.now);
                    self.carry_out();
                }
                self.now = until;
            }
            Step::Suspend(ms) => self.now += Duration::from_millis(ms),
            Step::Stop => {
                self.stopped = true;
                self.desk.stopped(self.now);
            }
            Step::Release => {
                self.stopped = false;
                self.desk.released();
            }
        }
        self.carry_out();
    }

    fn send(&mut self, seq: u64, what: &str) {
        let incoming = Incoming {
            id: id(seq),
            digest: digest(what, b""),
            deadline: Some(self.deadline(seq)),
            life_ms: Some(2_000),
            traits: traits(seq),
        };
        let taken = self.desk.command(incoming, self.now);
        assert!(!taken || self.desk.holds(id(seq)));
    }

    /// Only where the first is known: else the impostor would be the first.
    fn send_other(&mut self, seq: u64) {
        let id = id(seq);
        if !self.desk.holds(id) {
            return;
        }
        let before = self.desk.take_effects();
        assert!(before.is_empty(), "all was carried out: {before:?}");
        self.send(seq, "another");
        let effects = self.desk.take_effects();
        assert!(
            matches!(effects.as_slice(), [Effect::Answer { reply, .. }] if reply.state == Outcome::Refused),
            "{effects:?}"
        );
    }

    fn crash(&mut self, durable: usize) {
        for (_, records) in self.under_way.drain(..).take(durable) {
            self.disk.extend(records);
        }
        self.under_way.clear();
        let mut ledger = Ledger::default();
        for record in &self.disk {
            ledger.apply(record);
        }
        self.desk = Desk::new(ledger);
        if self.stopped {
            self.desk.stopped(self.now);
        }
        self.running.clear();
        if self.failing {
            self.answers.clear();
        }
    }

    fn carry_out(&mut self) {
        loop {
            let effects = self.desk.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.carry_out_one(effect);
            }
        }
        let ends = |id: &&CommandId| traits(Self::seq(**id)).ends_flight;
        let ending = self.running.iter().filter(ends).count();
        assert!(ending <= ENDING_MAX && self.running.len() - ending <= RUNNING_MAX - ENDING_MAX);
        assert!(self.under_way.len() <= OPEN_MAX + 1);
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Write { ticket, records } => {
                assert!(!records.is_empty());
                self.under_way.push_back((ticket, records));
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
                self.desk.finished(id, Reply::failed("was killed"), self.now);
            }
            Effect::Answer { id, reply } => {
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

    /// The disk is well, everything ends, and everybody asks.
    fn settle(&mut self) {
        for _ in 0..2 {
            for seq in 0..COMMANDS {
                self.take(Step::Send(seq));
            }
            self.take(Step::Pass(20_000));
            while !(self.under_way.is_empty() && self.running.is_empty()) {
                self.take(Step::Write);
                self.take(Step::Finish(0));
            }
        }
        assert!(self.desk.is_idle());
        for seq in 0..COMMANDS {
            assert!(!self.desk.holds(id(seq)));
            assert!(self.answers.contains_key(&id(seq)), "{seq} has no answer");
        }
        // And what has been said holds after one more crash.
        let answers = self.answers.clone();
        self.take(Step::Pass(20_000));
        while !self.under_way.is_empty() {
            self.take(Step::Write);
        }
        self.take(Step::Crash { durable: 0 });
        self.answers = answers;
        for seq in 0..COMMANDS {
            self.take(Step::Send(seq));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn at_most_once_never_late_and_one_answer(steps in prop::collection::vec(step(false), 1..300)) {
        let mut world = World::new(false);
        for step in steps {
            world.take(step);
        }
        world.settle();
    }

    /// Where writes fail, memory answers; a crash may cost what was in it, but never makes anything run twice.
    #[test]
    fn at_most_once_and_never_late_where_writes_fail(steps in prop::collection::vec(step(true), 1..300)) {
        let mut world = World::new(true);
        for step in steps {
            world.take(step);
        }
        world.settle();
    }
}
