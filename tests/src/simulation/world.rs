//! Everything outside of the simulated processes: clocks, the trace, the current faults of each host, identities.
//!
//! A process may be killed at any instant; the world stays. Everything that invariants are checked against is kept
//! here.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::{Instance, NodeName, PeerId};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::StopId;
use swarm_shared::proto::trust::{Role, SigningKey};
use turmoil::net::UdpSocket;

use super::check::ExpectedStop;
use super::disk::FileLengths;
use super::fault::{Fault, FaultCounts};
use super::fleet::Fleet;
use super::ground_truth::{GroundTruth, Invariant};
use super::plan::{Plan, PlannedRequest};
use super::rng::Rng;
use super::store::Stores;
use super::trace::Trace;

/// Index of a host in [`World::hosts`].
pub(super) type HostId = usize;

/// One step of simulated time. A process polls its sockets and timers once in it.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// First port of the stations; it increases each time that one moves.
pub(super) const STATION_PORT: u16 = 7421;
/// Port for stop datagrams.
pub(super) const STOP_PORT: u16 = 7422;
/// Datagrams kept for replays.
const SENT_DATAGRAMS_MAX: usize = 8;

/// The wall clock at the start of every run: a day in 2026.
const WALL_START_MS: u64 = 1_780_000_000_000;
/// Largest start value of a monotonic clock, in milliseconds: no code may rely on it.
const UPTIME_MAX_MS: u64 = 1_000_000_000;

/// The kind of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    Node,
    Station,
}

pub(super) struct Host {
    pub(super) name: String,
    pub(super) node_name: NodeName,
    pub(super) kind: HostKind,
    pub(super) key: SigningKey,
    pub(super) id: PeerId,
    pub(super) role: Role,
}

/// An instant at which a process may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillPoint {
    BeforeJournal,
    InJournal,
    AfterJournal,
    BeforeSend,
    AfterSend,
}

impl KillPoint {
    pub(super) fn fault(self) -> Fault {
        match self {
            Self::BeforeJournal => Fault::CrashBeforeJournal,
            Self::InJournal => Fault::CrashInJournal,
            Self::AfterJournal => Fault::CrashAfterJournal,
            Self::BeforeSend => Fault::CrashBeforeSend,
            Self::AfterSend => Fault::CrashAfterSend,
        }
    }
}

/// The process was killed: return, and touch nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Killed;

/// A fault of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskFault {
    NoSpace,
    IoError,
}

/// A fault of a middlebox on a single message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameFault {
    Drop,
    Duplicate,
    Reorder,
}

/// The current state of one host.
pub(super) struct HostState {
    pub(super) paused_until_ms: u64,
    pub(super) wall_skew_ms: i64,
    /// Counts restarts of the machine, not of the process: monotonic clocks are not comparable across them.
    pub(super) boot: u64,
    uptime_ms: u64,
    /// Where the process is to be killed: after reaching this point that many times.
    pub(super) kill_at: Option<(KillPoint, u32)>,
    /// Downtime after that, in milliseconds.
    pub(super) down_ms: u64,
    /// Killed, and still to be removed.
    pub(super) killed: bool,
    pub(super) running: bool,
    pub(super) disk_fault: Option<(DiskFault, u64)>,
    pub(super) corrupt_tail: bool,
    pub(super) file_lengths: FileLengths,
    pub(super) frame_fault: Option<FrameFault>,
    /// How often its address has changed.
    pub(super) address_changes: u16,
    /// Number of starts of its process.
    pub(super) starts: u64,
    pub(super) rng: Rng,
}

/// What a process reports after each tick.
#[derive(Clone, Debug, Default)]
pub(super) struct HostStats {
    /// Hosts with which its links are open.
    pub(super) open_links: Vec<HostId>,
    /// Deliveries that have not ended.
    pub(super) open_deliveries: usize,
}

pub(super) struct World {
    base: Instant,
    now_ms: Cell<u64>,
    pub(super) hosts: Vec<Host>,
    pub(super) fleet: Fleet,
    pub(super) stores: RefCell<Stores>,
    pub(super) latency_ms_max: u64,
    loss_percent: u64,
    members: RefCell<BTreeSet<HostId>>,
    requests: RefCell<BTreeMap<HostId, VecDeque<PlannedRequest>>>,
    sent_datagrams: RefCell<VecDeque<Vec<u8>>>,
    pub(super) host_stats: RefCell<BTreeMap<HostId, HostStats>>,
    pub(super) expected_stops: RefCell<Vec<ExpectedStop>>,
    /// Pairs whose link has a fault: one at a time.
    pub(super) impaired_links: RefCell<BTreeSet<(HostId, HostId)>>,
    ips: RefCell<BTreeMap<IpAddr, HostId>>,
    addresses: RefCell<BTreeMap<HostId, IpAddr>>,
    pub(super) controls: Vec<RefCell<HostState>>,
    pub(super) fault_counts: RefCell<FaultCounts>,
    pub(super) truth: RefCell<GroundTruth>,
    trace: RefCell<Trace>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        base: Instant,
        (hosts, fleet): (Vec<Host>, Fleet),
        plan: &Plan,
        print: bool,
    ) -> Self {
        let controls = hosts
            .iter()
            .map(|host| {
                let mut rng = Rng::stream(seed, &host.name);
                RefCell::new(HostState {
                    paused_until_ms: 0,
                    wall_skew_ms: 0,
                    boot: 1,
                    uptime_ms: rng.between(1_000_000, UPTIME_MAX_MS),
                    kill_at: None,
                    down_ms: 0,
                    killed: false,
                    running: false,
                    disk_fault: None,
                    corrupt_tail: false,
                    file_lengths: FileLengths::default(),
                    frame_fault: None,
                    address_changes: 0,
                    starts: 0,
                    rng,
                })
            })
            .collect();
        Self {
            base,
            fleet,
            stores: RefCell::default(),
            latency_ms_max: plan.latency_ms_max,
            loss_percent: plan.loss_percent,
            members: RefCell::default(),
            requests: RefCell::default(),
            sent_datagrams: RefCell::default(),
            host_stats: RefCell::default(),
            expected_stops: RefCell::default(),
            impaired_links: RefCell::default(),
            now_ms: Cell::new(0),
            truth: RefCell::new(GroundTruth::new(&hosts)),
            hosts,
            ips: RefCell::default(),
            addresses: RefCell::default(),
            controls,
            fault_counts: RefCell::default(),
            trace: RefCell::new(Trace::new(print)),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    pub(super) fn set_now(&self, elapsed: Duration) {
        self.now_ms
            .set(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// The monotonic clock of this host.
    pub(super) fn monotonic_now(&self, host: HostId) -> Instant {
        self.base + Duration::from_millis(self.controls[host].borrow().uptime_ms + self.now_ms())
    }

    /// The wall clock of this host, in milliseconds.
    pub(super) fn wall_clock_ms(&self, host: HostId) -> u64 {
        (WALL_START_MS + self.now_ms()).saturating_add_signed(self.controls[host].borrow().wall_skew_ms)
    }

    /// Restarts the machine: its monotonic clock starts from another value.
    pub(super) fn reboot(&self, host: HostId) {
        let mut control = self.controls[host].borrow_mut();
        control.boot += 1;
        control.uptime_ms = control.rng.between(1_000_000, UPTIME_MAX_MS);
    }

    /// The boot id of this host's machine.
    pub(super) fn boot_id(&self, host: HostId) -> String {
        format!("{}-{}", self.hosts[host].name, self.controls[host].borrow().boot)
    }

    pub(super) fn since_boot(&self, host: HostId) -> Duration {
        Duration::from_millis(self.controls[host].borrow().uptime_ms + self.now_ms())
    }

    pub(super) fn set_address(&self, host: HostId, ip: IpAddr) {
        self.ips.borrow_mut().insert(ip, host);
        self.addresses.borrow_mut().insert(host, ip);
    }

    pub(super) fn host_at(&self, ip: IpAddr) -> Option<HostId> {
        self.ips.borrow().get(&ip).copied()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = HostId> + '_ {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].kind == HostKind::Node)
    }

    /// The node with this key.
    pub(super) fn node_with_id(&self, id: &PeerId) -> Option<HostId> {
        self.nodes().find(|host| self.hosts[*host].id == *id)
    }

    pub(super) fn log(&self, host: HostId, what: std::fmt::Arguments<'_>) {
        self.trace
            .borrow_mut()
            .log(self.now_ms(), &self.hosts[host].name, what);
    }

    pub(super) fn log_world(&self, what: std::fmt::Arguments<'_>) {
        self.trace.borrow_mut().log(self.now_ms(), "world", what);
    }

    pub(super) fn count_fault(&self, fault: Fault) {
        self.fault_counts.borrow_mut().increment(fault);
    }

    pub(super) fn trace(&self) -> Ref<'_, Trace> {
        self.trace.borrow()
    }

    /// Called at each kill point of a process; fails if it is killed there.
    pub(super) fn reach_kill_point(&self, host: HostId, moment: KillPoint) -> Result<(), Killed> {
        let mut control = self.controls[host].borrow_mut();
        if control.killed {
            return Err(Killed);
        }
        match &mut control.kill_at {
            Some((at, 0)) if *at == moment => {}
            Some((at, left)) if *at == moment => {
                *left -= 1;
                return Ok(());
            }
            Some(_) | None => return Ok(()),
        }
        control.kill_at = None;
        control.killed = true;
        drop(control);
        self.count_fault(moment.fault());
        self.log(host, format_args!("killed {moment:?}"));
        Err(Killed)
    }

    pub(super) fn is_paused(&self, host: HostId) -> bool {
        self.now_ms() < self.controls[host].borrow().paused_until_ms
    }

    /// Draws the fault of the middlebox in front of this host for the current message.
    pub(super) fn draw_frame_fault(&self, host: HostId) -> Option<FrameFault> {
        let mut control = self.controls[host].borrow_mut();
        let meddling = control.frame_fault?;
        control.rng.percent(15).then_some(meddling)
    }

    /// Whether the current datagram is lost.
    pub(super) fn is_datagram_lost(&self, host: HostId) -> bool {
        self.controls[host].borrow_mut().rng.percent(self.loss_percent)
    }

    /// Sends a datagram, to all hosts if the address is the broadcast address.
    pub(super) fn broadcast(&self, socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
        let mut overheard = self.sent_datagrams.borrow_mut();
        if overheard.len() >= SENT_DATAGRAMS_MAX {
            overheard.pop_front();
        }
        overheard.push_back(bytes.to_vec());
        // A datagram that cannot be sent counts as lost in transit.
        let _lost = socket.try_send_to(bytes, to);
    }

    /// A datagram that was sent before.
    pub(super) fn random_sent_datagram(&self, host: HostId) -> Option<Vec<u8>> {
        let overheard = self.sent_datagrams.borrow();
        if overheard.is_empty() {
            return None;
        }
        let at = self.controls[host].borrow_mut().rng.index(overheard.len());
        overheard.get(at).cloned()
    }

    /// Records the start of a host's process.
    pub(super) fn start_process(&self, host: HostId) -> Instance {
        let mut control = self.controls[host].borrow_mut();
        control.starts += 1;
        control.running = true;
        Instance(control.rng.next())
    }

    pub(super) fn is_killed(&self, host: HostId) -> bool {
        self.controls[host].borrow().killed
    }

    /// Takes the mark that its process was just killed.
    pub(super) fn take_killed(&self, host: HostId) -> Option<u64> {
        let mut control = self.controls[host].borrow_mut();
        std::mem::take(&mut control.killed).then_some(control.down_ms)
    }

    /// Records the end of its process.
    pub(super) fn end_process(&self, host: HostId) {
        let mut control = self.controls[host].borrow_mut();
        (control.running, control.kill_at, control.killed) = (false, None, false);
        drop(control);
        self.requests.borrow_mut().remove(&host);
        self.host_stats.borrow_mut().remove(&host);
    }

    /// The stations that nodes look for.
    pub(super) fn members(&self) -> Vec<HostId> {
        self.members.borrow().iter().copied().collect()
    }

    pub(super) fn is_member(&self, host: HostId) -> bool {
        self.members.borrow().contains(&host)
    }

    pub(super) fn set_member(&self, host: HostId, member: bool) {
        let mut members = self.members.borrow_mut();
        if member {
            members.insert(host);
        } else {
            members.remove(&host);
        }
    }

    /// The current address of a host.
    pub(super) fn address(&self, host: HostId, port: u16) -> Option<SocketAddr> {
        let ip = *self.addresses.borrow().get(&host)?;
        Some(SocketAddr::new(
            ip,
            port + self.controls[host].borrow().address_changes,
        ))
    }

    /// Queues a request at a station.
    pub(super) fn queue_request(&self, host: HostId, order: PlannedRequest) {
        self.requests
            .borrow_mut()
            .entry(host)
            .or_default()
            .push_back(order);
    }

    pub(super) fn take_request(&self, host: HostId) -> Option<PlannedRequest> {
        self.requests.borrow_mut().get_mut(&host)?.pop_front()
    }

    pub(super) fn set_stats(&self, host: HostId, gauge: HostStats) {
        self.host_stats.borrow_mut().insert(host, gauge);
    }

    pub(super) fn record_execution(&self, node: HostId, id: CommandId) {
        self.truth.borrow_mut().record_execution(node, id, self.now_ms());
    }

    /// A node executes a stop order.
    pub(super) fn record_stop_received(&self, node: HostId, order: StopId) {
        self.log(node, format_args!("is stopped by {}", order.number));
        self.truth.borrow_mut().record_stop_received(node, order);
    }

    /// A station reports the outcome of a delivery.
    pub(super) fn record_outcome(&self, station: HostId, id: CommandId, to: PeerId, how: Outcome) {
        if let Some(node) = self.node_with_id(&to) {
            self.truth.borrow_mut().record_outcome(station, id, node, how);
        }
    }

    /// The current fault of a station's disk.
    pub(super) fn store_fault(&self, host: HostId) -> Option<&'static str> {
        let (trouble, until) = self.controls[host].borrow().disk_fault?;
        if self.now_ms() >= until {
            return None;
        }
        let (fault, why) = match trouble {
            DiskFault::NoSpace => (Fault::NoSpace, "no space"),
            DiskFault::IoError => (Fault::IoError, "input/output error"),
        };
        self.count_fault(fault);
        Some(why)
    }

    /// Copies one station's store to another. Its open deliveries may be out of date when it is used.
    pub(super) fn copy_store(&self, from: HostId, to: HostId) {
        if let Err(error) = self.stores.borrow_mut().copy(from, to) {
            self.truth
                .borrow_mut()
                .report_violation(Invariant::Progress, format!("the store fails: {error}"));
        }
        let now = self.now_ms();
        self.truth.borrow_mut().record_store_copy(from, now);
    }
}
