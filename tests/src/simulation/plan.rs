//! What is ordered and what goes wrong in one run: all of it follows from the seed.

use super::fault::Fault;
use super::ground_truth::Nature;
use super::rng::Rng;
use super::world::{DiskTrouble, HostId, Meddling, Moment};

/// Until then the fleet finds itself.
const CALM_MS: u64 = 1_500;
/// From then on nothing goes wrong any more.
pub(super) const HEAL_MS: u64 = 9_000;
/// What is still open so long after healing hangs.
pub(super) const SETTLE_MS: u64 = 12_000;

/// The station.
pub(super) const STATION: HostId = 0;
/// Another machine with the station's key: its replacement, or its clone.
pub(super) const SECOND: HostId = 1;
/// A station of its own, which may give orders too.
pub(super) const RIVAL: HostId = 2;
/// A station that may only look, and somebody without any rights.
pub(super) const OUTSIDER: HostId = 3;
/// The first node.
pub(super) const NODES: HostId = 4;

/// What a station is asked to do, or somebody tries.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Issue {
        by: HostId,
        targets: Vec<HostId>,
        life_ms: u64,
        nature: Nature,
        work_ms: u64,
    },
    Stop {
        by: HostId,
        targets: Vec<HostId>,
    },
    /// Of whatever stop the station knows of.
    Release {
        by: HostId,
        targets: Vec<HostId>,
    },
    /// By a station that may only look: commands, stops, releases, over its links.
    Presume,
    /// A stop of an operator whose key was revoked.
    Revoked,
    /// A stop that nobody signed, or that somebody changed.
    Forge,
    /// A datagram that was heard before.
    Replay,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mishap {
    Meddle(HostId, Meddling, u64),
    /// What is sent between two is kept for so long.
    Hold(HostId, HostId, u64),
    Partition(HostId, HostId, u64),
    OneWay(HostId, HostId, u64),
    HalfOpen(HostId, HostId, u64),
    Slow(HostId, HostId, u64),
    Clock(HostId, i64),
    Pause(HostId, u64),
    Kill(HostId, Moment, u32, u64),
    Disk(HostId, DiskTrouble, u64),
    CorruptTail(HostId, u64),
    Move(HostId),
    Crash(HostId, u64),
    Reboot(HostId, u64),
    /// The store is copied now; the station goes for good so much later, and its second starts on the copy.
    Replace(u64),
    /// The store is copied now, and so much later its second starts on the copy, too.
    Clone(u64),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Order(Order),
    Mishap(Mishap),
}

/// One run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) nodes: usize,
    /// Hosts besides station and nodes that take part.
    pub(super) extras: Vec<HostId>,
    /// By time.
    pub(super) steps: Vec<(u64, Step)>,
    pub(super) latency_ms_max: u64,
    /// Of datagrams, in percent, always.
    pub(super) loss_percent: u64,
}

impl Plan {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        let mut rng = Rng::stream(seed, "plan");
        let mut extras = Vec::new();
        for (host, chance) in [(RIVAL, 25), (OUTSIDER, 25)] {
            if rng.percent(chance) {
                extras.push(host);
            }
        }
        let mut steps = Vec::new();
        if rng.percent(15) {
            extras.insert(0, SECOND);
            let at = rng.between(CALM_MS + 500, HEAL_MS - 3_500);
            let later = rng.between(300, 3_000);
            let mishap = if rng.percent(50) {
                Mishap::Replace(later)
            } else {
                Mishap::Clone(later)
            };
            steps.push((at, Step::Mishap(mishap)));
        }
        let mut plan = Self {
            nodes,
            extras,
            steps,
            latency_ms_max: rng.pick(&[10, 30, 60, 120]),
            loss_percent: rng.pick(&[0, 0, 10, 30]),
        };
        plan.add_orders(&mut rng);
        plan.add_mishaps(&mut rng);
        plan.steps.sort_by_key(|(at, _)| *at);
        plan
    }

    fn has(&self, host: HostId) -> bool {
        self.extras.contains(&host)
    }

    fn some_nodes(&self, rng: &mut Rng) -> Vec<HostId> {
        if rng.percent(40) {
            return (NODES..NODES + self.nodes).collect();
        }
        let first = NODES + rng.index(self.nodes);
        let second = NODES + rng.index(self.nodes);
        let mut some = vec![first, second];
        some.sort_unstable();
        some.dedup();
        some
    }

    fn add_orders(&mut self, rng: &mut Rng) {
        let count = rng.between(8, 30);
        // A burst fills queues and makes commands wait for a place.
        let burst = rng.percent(25).then(|| rng.between(CALM_MS, HEAL_MS));
        for _ in 0..count {
            let at = match burst {
                Some(at) if rng.percent(60) => at,
                Some(_) | None => rng.between(500, HEAL_MS),
            };
            let by = if self.has(RIVAL) && rng.percent(30) {
                RIVAL
            } else {
                STATION
            };
            let targets = self.some_nodes(rng);
            let nature = Nature {
                idempotent: rng.percent(25),
                while_stopped: rng.percent(10),
                flight: rng.percent(20),
            };
            let life_ms = if nature.flight {
                rng.pick(&[500, 1_000, 2_000])
            } else {
                rng.pick(&[200, 800, 2_000, 5_000, 9_000])
            };
            let order = Order::Issue {
                by,
                targets,
                life_ms,
                nature,
                work_ms: rng.pick(&[0, 0, 30, 200, 1_500]),
            };
            self.steps.push((at, Step::Order(order)));
        }
        if rng.percent(50) {
            let at = rng.between(CALM_MS, HEAL_MS - 2_000);
            let by = if self.has(RIVAL) && rng.percent(40) {
                RIVAL
            } else {
                STATION
            };
            let targets = self.some_nodes(rng);
            self.steps.push((
                at,
                Step::Order(Order::Stop {
                    by,
                    targets: targets.clone(),
                }),
            ));
            if rng.percent(30) {
                let again = at + rng.between(50, 1_500);
                let targets = targets.clone();
                self.steps
                    .push((again, Step::Order(Order::Stop { by: STATION, targets })));
            }
            for _ in 0..rng.between(1, 4) {
                let at = at + rng.between(100, 4_000);
                let targets = targets.clone();
                self.steps
                    .push((at, Step::Order(Order::Release { by: STATION, targets })));
            }
            if rng.percent(40) {
                self.steps
                    .push((at + rng.between(200, 5_000), Step::Order(Order::Replay)));
            }
        }
        if self.has(OUTSIDER) {
            for order in [Order::Presume, Order::Revoked, Order::Forge, Order::Replay] {
                self.steps
                    .push((rng.between(CALM_MS, HEAL_MS), Step::Order(order)));
            }
        }
    }

    fn add_mishaps(&mut self, rng: &mut Rng) {
        // A run without any mishap shows what has to hold on a good day.
        let count = if rng.percent(5) { 0 } else { rng.between(2, 9) };
        for _ in 0..count * (1 + self.nodes as u64 / 8) {
            let node = NODES + rng.index(self.nodes);
            let other = if self.nodes > 1 && rng.percent(15) {
                NODES + (node - NODES + 1) % self.nodes
            } else if self.has(RIVAL) && rng.percent(20) {
                RIVAL
            } else {
                STATION
            };
            let any = if rng.percent(35) { other } else { node };
            let short = rng.between(50, 1_500);
            let long = rng.between(500, 5_000);
            let jump = i64::try_from(rng.between(1_000, 100_000_000)).unwrap_or(1_000);
            let moments = [
                Moment::BeforeJournal,
                Moment::InJournal,
                Moment::AfterJournal,
                Moment::BeforeSend,
                Moment::AfterSend,
            ];
            let passes = u32::try_from(rng.between(0, 4)).unwrap_or(0);
            let mishap = match rng.between(0, 34) {
                0 => Mishap::Meddle(node, Meddling::Drop, long),
                1 => Mishap::Meddle(node, Meddling::Duplicate, long),
                2 => Mishap::Meddle(node, Meddling::Reorder, long),
                3 | 4 => Mishap::Hold(other, node, if rng.percent(50) { short } else { long }),
                5..=7 => Mishap::Partition(other, node, if rng.percent(50) { short } else { long }),
                8 => Mishap::OneWay(other, node, long),
                9 => Mishap::OneWay(node, other, long),
                10 => Mishap::HalfOpen(other, node, short),
                11 => Mishap::Slow(other, node, long),
                12 => Mishap::Clock(any, jump),
                13 => Mishap::Clock(any, -jump),
                14..=16 => Mishap::Pause(any, if rng.percent(50) { short } else { long }),
                17..=24 => {
                    let who = if rng.percent(25) { STATION } else { node };
                    Mishap::Kill(who, rng.pick(&moments), passes, short)
                }
                25 | 26 => Mishap::Disk(node, DiskTrouble::NoSpace, long),
                27 => Mishap::Disk(node, DiskTrouble::IoError, short),
                28 => Mishap::CorruptTail(node, short),
                29 | 30 => Mishap::Move(any),
                31 | 32 => Mishap::Crash(STATION, short),
                _ => Mishap::Reboot(any, long),
            };
            self.steps
                .push((rng.between(CALM_MS, HEAL_MS - 200), Step::Mishap(mishap)));
        }
    }
}

impl Mishap {
    /// What it counts as; those that count when they take effect count there.
    pub(super) fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::Hold(..) => Fault::Delay,
            Self::Partition(..) => Fault::Partition,
            Self::OneWay(..) => Fault::AsymmetricPartition,
            Self::HalfOpen(..) => Fault::HalfOpenLink,
            Self::Slow(..) => Fault::SlowLink,
            Self::Clock(_, jump) if jump > 0 => Fault::ClockForward,
            Self::Clock(..) => Fault::ClockBack,
            Self::Pause(..) => Fault::Pause,
            Self::Move(_) => Fault::AddressChange,
            Self::Crash(..) => Fault::StationCrash,
            Self::Reboot(..) => Fault::Reboot,
            Self::Replace(_) => Fault::StationReplaced,
            Self::Clone(_) => Fault::ClonedStation,
            Self::Meddle(..) | Self::Kill(..) | Self::Disk(..) | Self::CorruptTail(..) => return None,
        })
    }
}
