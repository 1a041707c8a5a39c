//! The plan of a run: the requests and the faults, all of it from the seed.

use super::fault::Fault;
use super::ground_truth::SimActionProperties;
use super::rng::Rng;
use super::world::{DiskFault, FrameFault, HostId, KillPoint};

/// Until then the peers link, without faults, in milliseconds.
const WARM_UP_MS: u64 = 1_500;
/// From then on there are no faults, in milliseconds.
pub(super) const HEAL_MS: u64 = 9_000;
/// A delivery that is still open at this time, in milliseconds, hangs.
pub(super) const SETTLE_MS: u64 = 12_000;

/// The station.
pub(super) const STATION: HostId = 0;
/// Another machine with the station's key: its replacement, or its clone.
pub(super) const SECOND_STATION: HostId = 1;
/// A station with a key of its own, which may also command.
pub(super) const OTHER_OPERATOR: HostId = 2;
/// A station with the role observer, and an attacker without any role.
pub(super) const OUTSIDER: HostId = 3;
/// The first node.
pub(super) const FIRST_NODE: HostId = 4;

/// A request to a station, or an attempt of an attacker.
#[derive(Clone, Debug)]
pub(super) enum PlannedRequest {
    Issue {
        issuer: HostId,
        targets: Vec<HostId>,
        ttl_ms: u64,
        properties: SimActionProperties,
        run_ms: u64,
    },
    Stop {
        issuer: HostId,
        targets: Vec<HostId>,
    },
    /// Releases any stop that the station knows of.
    Release {
        issuer: HostId,
        targets: Vec<HostId>,
    },
    /// Commands, stops and releases of an observer, over its links.
    SendUnauthorised,
    /// A stop of an operator whose key was revoked.
    SendRevokedStop,
    /// A stop without a valid signature.
    SendForgedStop,
    /// A datagram that was sent before.
    ReplayDatagram,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum PlannedFault {
    FrameFault(HostId, FrameFault, u64),
    /// Messages between two hosts are delayed by this time, in milliseconds.
    Delay(HostId, HostId, u64),
    Partition(HostId, HostId, u64),
    OneWay(HostId, HostId, u64),
    HalfOpen(HostId, HostId, u64),
    SlowLink(HostId, HostId, u64),
    ClockJump(HostId, i64),
    Pause(HostId, u64),
    KillAt(HostId, KillPoint, u32, u64),
    DiskFault(HostId, DiskFault, u64),
    CorruptTail(HostId, u64),
    AddressChange(HostId),
    Crash(HostId, u64),
    Reboot(HostId, u64),
    /// The store is copied now; the station ends for good this much later, and its second starts on the copy.
    ReplaceStation(u64),
    /// The store is copied now, and this much later its second starts on the copy while the station continues.
    CloneStation(u64),
}

#[derive(Clone, Debug)]
pub(super) enum PlanStep {
    Request(PlannedRequest),
    Fault(PlannedFault),
}

/// The plan of one run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) nodes: usize,
    /// Hosts besides station and nodes that take part.
    pub(super) extra_hosts: Vec<HostId>,
    /// Steps and their times, in milliseconds.
    pub(super) steps: Vec<(u64, PlanStep)>,
    pub(super) latency_ms_max: u64,
    /// Share of datagrams that are lost, in percent.
    pub(super) loss_percent: u64,
}

impl Plan {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        let mut rng = Rng::stream(seed, "plan");
        let mut extras = Vec::new();
        for (host, chance) in [(OTHER_OPERATOR, 25), (OUTSIDER, 25)] {
            if rng.percent(chance) {
                extras.push(host);
            }
        }
        let mut steps = Vec::new();
        if rng.percent(15) {
            extras.insert(0, SECOND_STATION);
            let at = rng.between(WARM_UP_MS + 500, HEAL_MS - 3_500);
            let later = rng.between(300, 3_000);
            let mishap = if rng.percent(50) {
                PlannedFault::ReplaceStation(later)
            } else {
                PlannedFault::CloneStation(later)
            };
            steps.push((at, PlanStep::Fault(mishap)));
        }
        let mut plan = Self {
            nodes,
            extra_hosts: extras,
            steps,
            latency_ms_max: rng.pick(&[10, 30, 60, 120]),
            loss_percent: rng.pick(&[0, 0, 10, 30]),
        };
        plan.add_requests(&mut rng);
        plan.add_faults(&mut rng);
        plan.steps.sort_by_key(|(at, _)| *at);
        plan
    }

    fn has_host(&self, host: HostId) -> bool {
        self.extra_hosts.contains(&host)
    }

    fn random_nodes(&self, rng: &mut Rng) -> Vec<HostId> {
        if rng.percent(40) {
            return (FIRST_NODE..FIRST_NODE + self.nodes).collect();
        }
        let first = FIRST_NODE + rng.index(self.nodes);
        let second = FIRST_NODE + rng.index(self.nodes);
        let mut some = vec![first, second];
        some.sort_unstable();
        some.dedup();
        some
    }

    fn add_requests(&mut self, rng: &mut Rng) {
        let count = rng.between(8, 30);
        // A burst fills queues and makes commands wait for a slot.
        let burst = rng.percent(25).then(|| rng.between(WARM_UP_MS, HEAL_MS));
        for _ in 0..count {
            let at = match burst {
                Some(at) if rng.percent(60) => at,
                Some(_) | None => rng.between(500, HEAL_MS),
            };
            let by = if self.has_host(OTHER_OPERATOR) && rng.percent(30) {
                OTHER_OPERATOR
            } else {
                STATION
            };
            let targets = self.random_nodes(rng);
            let nature = SimActionProperties {
                idempotent: rng.percent(25),
                while_stopped: rng.percent(10),
                flight: rng.percent(20),
            };
            let life_ms = if nature.flight {
                rng.pick(&[500, 1_000, 2_000])
            } else {
                rng.pick(&[200, 800, 2_000, 5_000, 9_000])
            };
            let order = PlannedRequest::Issue {
                issuer: by,
                targets,
                ttl_ms: life_ms,
                properties: nature,
                run_ms: rng.pick(&[0, 0, 30, 200, 1_500]),
            };
            self.steps.push((at, PlanStep::Request(order)));
        }
        if rng.percent(50) {
            let at = rng.between(WARM_UP_MS, HEAL_MS - 2_000);
            let by = if self.has_host(OTHER_OPERATOR) && rng.percent(40) {
                OTHER_OPERATOR
            } else {
                STATION
            };
            let targets = self.random_nodes(rng);
            self.steps.push((
                at,
                PlanStep::Request(PlannedRequest::Stop {
                    issuer: by,
                    targets: targets.clone(),
                }),
            ));
            if rng.percent(30) {
                let again = at + rng.between(50, 1_500);
                let targets = targets.clone();
                self.steps.push((
                    again,
                    PlanStep::Request(PlannedRequest::Stop {
                        issuer: STATION,
                        targets,
                    }),
                ));
            }
            for _ in 0..rng.between(1, 4) {
                let at = at + rng.between(100, 4_000);
                let targets = targets.clone();
                self.steps.push((
                    at,
                    PlanStep::Request(PlannedRequest::Release {
                        issuer: STATION,
                        targets,
                    }),
                ));
            }
            if rng.percent(40) {
                self.steps.push((
                    at + rng.between(200, 5_000),
                    PlanStep::Request(PlannedRequest::ReplayDatagram),
                ));
            }
        }
        if self.has_host(OUTSIDER) {
            for order in [
                PlannedRequest::SendUnauthorised,
                PlannedRequest::SendRevokedStop,
                PlannedRequest::SendForgedStop,
                PlannedRequest::ReplayDatagram,
            ] {
                self.steps
                    .push((rng.between(WARM_UP_MS, HEAL_MS), PlanStep::Request(order)));
            }
        }
    }

    fn add_faults(&mut self, rng: &mut Rng) {
        // Some runs have no faults.
        let count = if rng.percent(5) { 0 } else { rng.between(2, 9) };
        for _ in 0..count * (1 + self.nodes as u64 / 8) {
            let node = FIRST_NODE + rng.index(self.nodes);
            let other = if self.nodes > 1 && rng.percent(15) {
                FIRST_NODE + (node - FIRST_NODE + 1) % self.nodes
            } else if self.has_host(OTHER_OPERATOR) && rng.percent(20) {
                OTHER_OPERATOR
            } else {
                STATION
            };
            let any = if rng.percent(35) { other } else { node };
            let short = rng.between(50, 1_500);
            let long = rng.between(500, 5_000);
            let jump = i64::try_from(rng.between(1_000, 100_000_000)).unwrap_or(1_000);
            let moments = [
                KillPoint::BeforeJournal,
                KillPoint::InJournal,
                KillPoint::AfterJournal,
                KillPoint::BeforeSend,
                KillPoint::AfterSend,
            ];
            let passes = u32::try_from(rng.between(0, 4)).unwrap_or(0);
            let mishap = match rng.between(0, 34) {
                0 => PlannedFault::FrameFault(node, FrameFault::Drop, long),
                1 => PlannedFault::FrameFault(node, FrameFault::Duplicate, long),
                2 => PlannedFault::FrameFault(node, FrameFault::Reorder, long),
                3 | 4 => PlannedFault::Delay(other, node, if rng.percent(50) { short } else { long }),
                5..=7 => PlannedFault::Partition(other, node, if rng.percent(50) { short } else { long }),
                8 => PlannedFault::OneWay(other, node, long),
                9 => PlannedFault::OneWay(node, other, long),
                10 => PlannedFault::HalfOpen(other, node, short),
                11 => PlannedFault::SlowLink(other, node, long),
                12 => PlannedFault::ClockJump(any, jump),
                13 => PlannedFault::ClockJump(any, -jump),
                14..=16 => PlannedFault::Pause(any, if rng.percent(50) { short } else { long }),
                17..=24 => {
                    let who = if rng.percent(25) { STATION } else { node };
                    PlannedFault::KillAt(who, rng.pick(&moments), passes, short)
                }
                25 | 26 => PlannedFault::DiskFault(node, DiskFault::NoSpace, long),
                27 => PlannedFault::DiskFault(node, DiskFault::IoError, short),
                28 => PlannedFault::CorruptTail(node, short),
                29 | 30 => PlannedFault::AddressChange(any),
                31 | 32 => PlannedFault::Crash(STATION, short),
                _ => PlannedFault::Reboot(any, long),
            };
            self.steps
                .push((rng.between(WARM_UP_MS, HEAL_MS - 200), PlanStep::Fault(mishap)));
        }
    }
}

impl PlannedFault {
    /// The kind that it counts as; `None` if it is counted when it takes effect.
    pub(super) fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::Delay(..) => Fault::Delay,
            Self::Partition(..) => Fault::Partition,
            Self::OneWay(..) => Fault::AsymmetricPartition,
            Self::HalfOpen(..) => Fault::HalfOpenLink,
            Self::SlowLink(..) => Fault::SlowLink,
            Self::ClockJump(_, jump) if jump > 0 => Fault::ClockForward,
            Self::ClockJump(..) => Fault::ClockBack,
            Self::Pause(..) => Fault::Pause,
            Self::AddressChange(_) => Fault::AddressChange,
            Self::Crash(..) => Fault::StationCrash,
            Self::Reboot(..) => Fault::Reboot,
            Self::ReplaceStation(_) => Fault::StationReplaced,
            Self::CloneStation(_) => Fault::ClonedStation,
            Self::FrameFault(..) | Self::KillAt(..) | Self::DiskFault(..) | Self::CorruptTail(..) => {
                return None;
            }
        })
    }
}
