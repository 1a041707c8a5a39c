//! One run: the fleet, its plan, and the result.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::trust::TrustError;
use turmoil::Sim;

use super::fault::{Fault, FaultCounts};
use super::ground_truth::Invariant;
use super::plan::{
    FIRST_NODE, HEAL_MS, OUTSIDER, Plan, PlanStep, PlannedFault, PlannedRequest, SECOND_STATION, SETTLE_MS,
    STATION,
};
use super::rng::Rng;
use super::world::{HostId, TICK, World};
use super::{fleet, node, outsider, station};

/// Longest time after healing until the fleet is linked again, in milliseconds.
const RECONVERGE_MS: u64 = 5_000;
/// Longest delay of a slow link's messages, in milliseconds.
const SLOW_MS_MAX: u64 = 2_500;
/// Size of a disk block, in bytes: a write is torn between two blocks.
const DISK_BLOCK_BYTES: u64 = 32;

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of the run.
    pub seed: u64,
    /// Number of nodes; chosen by the seed if `None`.
    pub nodes: Option<usize>,
    /// Whether to print each event.
    pub trace: bool,
}

/// The result of a run without a violation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of runs in this sum.
    pub runs: u64,
    /// Steps of simulated time.
    pub steps: u64,
    /// Events in the trace.
    pub events: u64,
    /// Digest of the trace: equal for two runs of one seed.
    pub digest: String,
    /// Faults that occurred, by kind.
    pub faults: FaultCounts,
    /// Deliveries by outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Commands that were issued.
    pub issued: u64,
    /// Actions that started.
    pub executed: u64,
    /// Stops that nodes have latched, and stops that were released.
    pub stops: (u64, u64),
}

impl Report {
    /// Adds the report of another run; the digest becomes that of the other.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.events += other.events;
        self.digest.clone_from(&other.digest);
        self.faults.add(&other.faults);
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
        self.issued += other.issued;
        self.executed += other.executed;
        self.stops.0 += other.stops.0;
        self.stops.1 += other.stops.1;
    }
}

/// A violated invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Seed of the run.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Step in which it was violated.
    pub step: u64,
    /// The invariant.
    pub invariant: Invariant,
    /// What happened.
    pub what: String,
    /// The last lines of the trace.
    pub tail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed, nodes, step, ..
        } = self;
        write!(
            f,
            "seed {seed} with {nodes} nodes breaks a promise in step {step}\n\
             promise: {}\nbut:     {}\nbefore:\n{}\
             replay:  cargo run --release -p swarm-tests --bin simulate -- --seed {seed} --nodes {nodes} --trace",
            self.invariant, self.what, self.tail
        )
    }
}

/// Runs one seed.
///
/// # Errors
/// [`Violation`], which names the command that replays it.
pub fn run(options: &Options) -> Result<Report, Box<Violation>> {
    let nodes = options.nodes.unwrap_or_else(|| fleet_size(options.seed));
    let mut runner = Runner::new(options, nodes).map_err(|error| {
        Box::new(Violation {
            seed: options.seed,
            nodes,
            step: 0,
            invariant: Invariant::Progress,
            what: format!("the fleet root cannot sign: {error}"),
            tail: String::new(),
        })
    })?;
    let result = runner.run();
    let world = Rc::clone(&runner.world);
    result.map_err(|()| {
        let truth = world.truth.borrow();
        let broken = truth.first_violation().cloned();
        let (invariant, what) = broken.map_or_else(
            || (Invariant::Progress, "no reason given".to_owned()),
            |broken| (broken.invariant, broken.what),
        );
        Box::new(Violation {
            seed: options.seed,
            nodes,
            step: runner.steps,
            invariant,
            what,
            tail: world.trace().tail(),
        })
    })?;
    Ok(runner.report())
}

/// The number of nodes by the seed: most fleets are small, so that many can run.
fn fleet_size(seed: u64) -> usize {
    let mut rng = Rng::stream(seed, "size");
    let size = match rng.between(0, 100) {
        0..=79 => 3,
        80..=97 => rng.between(4, 12),
        _ => rng.between(12, 21),
    };
    usize::try_from(size).unwrap_or(3)
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Release(HostId, HostId),
    Repair(HostId, HostId),
    RestoreLatency(HostId, HostId),
    Restart(HostId),
    EndFrameFaults(HostId),
}

struct Runner {
    sim: Sim<'static>,
    world: Rc<World>,
    steps_left: VecDeque<(u64, PlanStep)>,
    /// By time, then by order of insertion.
    undo_queue: BTreeMap<(u64, u64), Undo>,
    undo_count: u64,
    down_hosts: BTreeSet<HostId>,
    /// Stations that have ended for good.
    retired_stations: BTreeSet<HostId>,
    /// When the second station starts, and whether the first one stays.
    second_station_start: Option<(u64, bool)>,
    ips: BTreeMap<HostId, IpAddr>,
    latency: Duration,
    steps: u64,
}

impl Runner {
    fn new(options: &Options, nodes: usize) -> Result<Self, TrustError> {
        let seed = options.seed;
        let plan = Plan::new(seed, nodes);
        let latency = Duration::from_millis(plan.latency_ms_max);
        let found = fleet::create_fleet(seed, nodes)?;
        let world = Rc::new(World::new(seed, clock::now(), found, &plan, options.trace));
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .tick_duration(TICK)
            .epoch(std::time::UNIX_EPOCH)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(latency)
            .tcp_capacity(256)
            .udp_capacity(256)
            .enable_random_order();
        builder.fs().block_size(DISK_BLOCK_BYTES);
        let mut sim = builder.build();
        let mut ips = BTreeMap::new();
        let members = [STATION]
            .into_iter()
            .chain(plan.extra_hosts.iter().copied())
            .chain(FIRST_NODE..FIRST_NODE + nodes);
        for host in members {
            let name = world.hosts[host].name.clone();
            let software = Rc::clone(&world);
            match host {
                OUTSIDER => sim.host(name.as_str(), move || {
                    outsider::process(Rc::clone(&software), host)
                }),
                host if host < FIRST_NODE => {
                    sim.host(name.as_str(), move || {
                        station::process(Rc::clone(&software), host)
                    });
                }
                _ => sim.host(name.as_str(), move || node::process(Rc::clone(&software), host)),
            }
            let ip = sim.lookup(name.as_str());
            world.set_address(host, ip);
            ips.insert(host, ip);
        }
        world.set_member(STATION, true);
        for host in plan.extra_hosts {
            // The second station joins later.
            world.set_member(host, host != SECOND_STATION);
        }
        if world.is_member(super::plan::OTHER_OPERATOR) {
            world.count_fault(Fault::SecondIssuer);
        }
        Ok(Self {
            sim,
            world,
            steps_left: plan.steps.into(),
            undo_queue: BTreeMap::new(),
            undo_count: 0,
            down_hosts: BTreeSet::new(),
            retired_stations: BTreeSet::new(),
            second_station_start: None,
            ips,
            latency,
            steps: 0,
        })
    }

    fn now_ms(&self) -> u64 {
        self.world.now_ms()
    }

    fn run(&mut self) -> Result<(), ()> {
        let mut healed = false;
        let mut checked = false;
        loop {
            self.world.set_now(self.sim.elapsed());
            let now = self.now_ms();
            if now < HEAL_MS {
                self.apply_plan();
            } else if !healed {
                healed = true;
                self.heal();
            }
            self.step()?;
            if healed && !checked && now >= HEAL_MS + RECONVERGE_MS {
                checked = true;
                self.world.check_reconverged();
            }
            if checked && self.world.is_quiescent() {
                break;
            }
            if now >= HEAL_MS + SETTLE_MS {
                self.world.check_quiescent();
                break;
            }
        }
        self.world.check_end();
        self.verdict()
    }

    fn verdict(&self) -> Result<(), ()> {
        if self.world.truth.borrow().first_violation().is_some() {
            return Err(());
        }
        Ok(())
    }

    /// One tick of every process; then killed processes are removed, and the invariants are checked.
    fn step(&mut self) -> Result<(), ()> {
        self.steps += 1;
        if let Err(error) = self.sim.step() {
            self.world
                .truth
                .borrow_mut()
                .report_violation(Invariant::Progress, format!("a process ended: {error}"));
        }
        let hosts: Vec<HostId> = self.ips.keys().copied().collect();
        for host in hosts {
            if let Some(down_ms) = self.world.take_killed(host) {
                self.crash(host, down_ms);
            }
        }
        self.world.check_step();
        self.verdict()
    }

    /// Applies the steps of the plan that are due, and ends faults that are over.
    fn apply_plan(&mut self) {
        let now = self.now_ms();
        while self.steps_left.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, step)) = self.steps_left.pop_front() else {
                break;
            };
            match step {
                PlanStep::Request(order) => self.forward_request(order),
                PlanStep::Fault(mishap) => self.inject_fault(mishap),
            }
        }
        if let Some((at, stays)) = self.second_station_start
            && at <= now
        {
            self.second_station_start = None;
            self.start_second(stays);
        }
        while let Some(((at, _), _)) = self.undo_queue.first_key_value()
            && *at <= now
        {
            if let Some((_, undo)) = self.undo_queue.pop_first() {
                self.undo(undo);
            }
        }
    }

    fn forward_request(&mut self, order: PlannedRequest) {
        let to = match &order {
            PlannedRequest::Issue { issuer: by, .. }
            | PlannedRequest::Stop { issuer: by, .. }
            | PlannedRequest::Release { issuer: by, .. } => *by,
            PlannedRequest::SendUnauthorised
            | PlannedRequest::SendRevokedStop
            | PlannedRequest::SendForgedStop
            | PlannedRequest::ReplayDatagram => OUTSIDER,
        };
        // Requests to a station that has ended go to the second.
        let to = if self.retired_stations.contains(&to) {
            SECOND_STATION
        } else {
            to
        };
        if to == OUTSIDER && !self.world.is_member(OUTSIDER) {
            return;
        }
        if !self.down_hosts.contains(&to) {
            self.world.queue_request(to, order);
        }
    }

    fn schedule_undo(&mut self, ms: u64, undo: Undo) {
        self.undo_count += 1;
        self.undo_queue
            .insert((self.now_ms() + ms, self.undo_count), undo);
    }

    fn inject_fault(&mut self, mishap: PlannedFault) {
        let world = Rc::clone(&self.world);
        if !self.is_applicable(mishap) {
            return;
        }
        if let Some(fault) = mishap.fault() {
            world.count_fault(fault);
        }
        world.log_world(format_args!("{mishap:?}"));
        match mishap {
            PlannedFault::FrameFault(host, how, ms) => {
                world.controls[host].borrow_mut().frame_fault = Some(how);
                self.schedule_undo(ms, Undo::EndFrameFaults(host));
            }
            PlannedFault::Delay(a, b, ms) => {
                self.sim.hold(self.ips[&a], self.ips[&b]);
                self.schedule_undo(ms, Undo::Release(a, b));
            }
            PlannedFault::Partition(a, b, ms) => {
                self.sim.partition(self.ips[&a], self.ips[&b]);
                self.schedule_undo(ms, Undo::Repair(a, b));
            }
            PlannedFault::OneWay(a, b, ms) => {
                self.sim.partition_oneway(self.ips[&a], self.ips[&b]);
                self.schedule_undo(ms, Undo::Repair(a, b));
            }
            PlannedFault::HalfOpen(a, b, ms) => {
                self.sim.partition(self.ips[&a], self.ips[&b]);
                self.crash(b, ms);
                self.schedule_undo(ms, Undo::Repair(a, b));
            }
            PlannedFault::SlowLink(a, b, ms) => {
                let slow = Duration::from_millis(SLOW_MS_MAX);
                self.sim
                    .set_link_max_message_latency(self.ips[&a], self.ips[&b], slow);
                self.schedule_undo(ms, Undo::RestoreLatency(a, b));
            }
            PlannedFault::ClockJump(host, jump) => world.controls[host].borrow_mut().wall_skew_ms += jump,
            PlannedFault::Pause(host, ms) => {
                let mut control = world.controls[host].borrow_mut();
                control.paused_until_ms = control.paused_until_ms.max(self.now_ms() + ms);
            }
            PlannedFault::KillAt(host, moment, passes, ms) => {
                let mut control = world.controls[host].borrow_mut();
                control.kill_at = Some((moment, passes));
                control.down_ms = ms;
            }
            PlannedFault::DiskFault(host, trouble, ms) => {
                world.controls[host].borrow_mut().disk_fault = Some((trouble, self.now_ms() + ms));
            }
            PlannedFault::CorruptTail(host, ms) => {
                world.controls[host].borrow_mut().corrupt_tail = true;
                self.crash(host, ms);
            }
            PlannedFault::AddressChange(host) => self.change_address(host),
            PlannedFault::Crash(host, ms) => self.crash(host, ms),
            PlannedFault::Reboot(host, ms) => {
                world.reboot(host);
                self.crash(host, ms);
            }
            PlannedFault::ReplaceStation(later) | PlannedFault::CloneStation(later) => {
                world.copy_store(STATION, SECOND_STATION);
                let stays = matches!(mishap, PlannedFault::CloneStation(_));
                self.second_station_start = Some((self.now_ms() + later, stays));
            }
        }
    }

    /// Whether it can be applied now: each link and each host has at most one fault.
    fn is_applicable(&mut self, mishap: PlannedFault) -> bool {
        let pair = match mishap {
            PlannedFault::Delay(a, b, _)
            | PlannedFault::Partition(a, b, _)
            | PlannedFault::OneWay(a, b, _)
            | PlannedFault::HalfOpen(a, b, _)
            | PlannedFault::SlowLink(a, b, _) => Some((a.min(b), a.max(b))),
            PlannedFault::FrameFault(..)
            | PlannedFault::ClockJump(..)
            | PlannedFault::Pause(..)
            | PlannedFault::KillAt(..)
            | PlannedFault::DiskFault(..)
            | PlannedFault::CorruptTail(..)
            | PlannedFault::AddressChange(_)
            | PlannedFault::Crash(..)
            | PlannedFault::Reboot(..)
            | PlannedFault::ReplaceStation(_)
            | PlannedFault::CloneStation(_) => None,
        };
        if let Some((a, b)) = pair {
            return a != b
                && self.ips.contains_key(&a)
                && self.ips.contains_key(&b)
                && !(matches!(mishap, PlannedFault::HalfOpen(..)) && self.down_hosts.contains(&b))
                && self.world.impaired_links.borrow_mut().insert((a, b));
        }
        match mishap {
            PlannedFault::Crash(host, _) | PlannedFault::CorruptTail(host, _) => {
                !self.down_hosts.contains(&host)
            }
            // A wall clock that is set back while the machine is off cannot be distinguished from a correct one.
            PlannedFault::Reboot(host, _) => {
                !self.down_hosts.contains(&host) && self.world.controls[host].borrow().wall_skew_ms >= 0
            }
            PlannedFault::ClockJump(host, jump) => {
                self.ips.contains_key(&host) && (jump > 0 || self.world.controls[host].borrow().boot == 1)
            }
            PlannedFault::ReplaceStation(_) => !self.down_hosts.contains(&STATION),
            PlannedFault::AddressChange(host) => {
                let busy = self.world.impaired_links.borrow();
                let clear = busy.iter().all(|(a, b)| *a != host && *b != host);
                clear && self.ips.contains_key(&host)
            }
            PlannedFault::FrameFault(..)
            | PlannedFault::Delay(..)
            | PlannedFault::Partition(..)
            | PlannedFault::OneWay(..)
            | PlannedFault::HalfOpen(..)
            | PlannedFault::SlowLink(..)
            | PlannedFault::Pause(..)
            | PlannedFault::KillAt(..)
            | PlannedFault::DiskFault(..)
            | PlannedFault::CloneStation(_) => true,
        }
    }

    /// Changes the host's address: messages to the old one do not arrive any more.
    fn change_address(&mut self, host: HostId) {
        let others: Vec<HostId> = self.ips.keys().copied().filter(|other| *other != host).collect();
        for other in others {
            let (a, b) = (host.min(other), host.max(other));
            self.world.impaired_links.borrow_mut().insert((a, b));
            self.sim.partition(self.ips[&a], self.ips[&b]);
            self.schedule_undo(50, Undo::Repair(a, b));
        }
        self.world.controls[host].borrow_mut().address_changes += 1;
    }

    /// Kills the process, and starts it again after this time. Unsynced data is lost, completely or in part.
    fn crash(&mut self, host: HostId, ms: u64) {
        self.world.log(host, format_args!("crashed, back in {ms} ms"));
        self.sim.crash(self.ips[&host]);
        self.world.end_process(host);
        if self.down_hosts.insert(host) {
            self.schedule_undo(ms.max(20), Undo::Restart(host));
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Release(a, b) => self.sim.release(self.ips[&a], self.ips[&b]),
            Undo::Repair(a, b) => self.sim.repair(self.ips[&a], self.ips[&b]),
            Undo::RestoreLatency(a, b) => {
                self.sim
                    .set_link_max_message_latency(self.ips[&a], self.ips[&b], self.latency);
            }
            Undo::EndFrameFaults(host) => self.world.controls[host].borrow_mut().frame_fault = None,
            Undo::Restart(host) => {
                if self.down_hosts.remove(&host) && !self.retired_stations.contains(&host) {
                    self.sim.bounce(self.ips[&host]);
                }
            }
        }
        if let Undo::Release(a, b) | Undo::Repair(a, b) | Undo::RestoreLatency(a, b) = undo {
            self.world.log_world(format_args!("link {a}-{b} is well again"));
            self.world
                .impaired_links
                .borrow_mut()
                .remove(&(a.min(b), a.max(b)));
        }
    }

    /// Starts a second station with the key of the first on the copy of its store.
    fn start_second(&mut self, first_stays: bool) {
        if !first_stays {
            self.retired_stations.insert(STATION);
            if self.down_hosts.insert(STATION) {
                self.sim.crash(self.ips[&STATION]);
                self.world.end_process(STATION);
            }
            self.world.set_member(STATION, false);
            self.world
                .truth
                .borrow_mut()
                .record_replacement(STATION, SECOND_STATION);
        }
        self.world.set_member(SECOND_STATION, true);
        self.world.log(SECOND_STATION, format_args!("starts on the copy"));
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.world.log_world(format_args!("healed"));
        if let Some((_, stays)) = self.second_station_start.take() {
            self.start_second(stays);
        }
        for control in &self.world.controls {
            let mut control = control.borrow_mut();
            control.paused_until_ms = 0;
            control.kill_at = None;
            control.disk_fault = None;
            control.frame_fault = None;
        }
        while let Some((_, undo)) = self.undo_queue.pop_first() {
            self.undo(undo);
        }
    }

    fn report(&self) -> Report {
        let truth = self.world.truth.borrow();
        Report {
            runs: 1,
            steps: self.steps,
            events: self.world.trace().line_count(),
            digest: self.world.trace().digest(),
            faults: self.world.fault_counts.borrow().clone(),
            outcomes: truth.outcome_counts.clone(),
            issued: truth.commands.len() as u64,
            executed: truth.execution_count,
            stops: (truth.latch_count, truth.release_count),
        }
    }
}
