//! What is outside of every simulated process: clocks, the trace, what has been done to each host, who is who.
//!
//! A process may die at any instant; the world does not. Everything that an invariant is judged by is kept here.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::{Instance, NodeName, PeerId};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::stop::Latch;
use swarm_shared::proto::trust::{Role, SigningKey};
use turmoil::net::UdpSocket;

use super::check::Watch;
use super::disk::Lengths;
use super::fault::{Fault, FaultCounts};
use super::fleet::Fleet;
use super::ground_truth::{Invariant, Truth};
use super::plan::{Order, Plan};
use super::rng::Rng;
use super::store::Stores;
use super::trace::Trace;

/// Index of a host in [`World::hosts`].
pub(super) type HostId = usize;

/// One step of simulated time. A process looks at its sockets and timers once in it.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// Where stations listen at first; it counts up each time that one moves.
pub(super) const STATION_PORT: u16 = 7421;
/// Where stops are heard.
pub(super) const STOP_PORT: u16 = 7422;
/// Datagrams kept for those who replay them.
const OVERHEARD_MAX: usize = 8;

/// The wall clock at the start of every run: some day in 2026.
const WALL_START_MS: u64 = 1_780_000_000_000;
/// Monotonic clocks start somewhere, and nobody may rely on where.
const UPTIME_MAX_MS: u64 = 1_000_000_000;

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    Node,
    Station,
}

pub(super) struct Host {
    pub(super) name: String,
    pub(super) called: NodeName,
    pub(super) kind: HostKind,
    pub(super) key: SigningKey,
    pub(super) id: PeerId,
    pub(super) role: Role,
}

/// An instant at which a process may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    BeforeJournal,
    InJournal,
    AfterJournal,
    BeforeSend,
    AfterSend,
}

impl Moment {
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

/// The process has been killed: unwind, and touch nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Died;

/// What the disk does instead of what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskTrouble {
    NoSpace,
    IoError,
}

/// What a bad middlebox does to single messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meddling {
    Drop,
    Duplicate,
    Reorder,
}

/// What has been done to one host.
pub(super) struct Control {
    pub(super) paused_until_ms: u64,
    pub(super) wall_skew_ms: i64,
    /// Counts restarts of the machine, not of the process: monotonic clocks mean nothing across them.
    pub(super) boot: u64,
    uptime_ms: u64,
    /// Where the process is to be killed: after passing this moment that many times.
    pub(super) kill_at: Option<(Moment, u32)>,
    /// For how long it stays down then.
    pub(super) down_ms: u64,
    /// Killed, and still to be taken away.
    pub(super) dead: bool,
    pub(super) running: bool,
    pub(super) disk: Option<(DiskTrouble, u64)>,
    pub(super) corrupt_tail: bool,
    pub(super) lengths: Lengths,
    pub(super) meddling: Option<Meddling>,
    /// How often its address has changed.
    pub(super) moves: u16,
    /// Runs of its process.
    pub(super) runs: u64,
    pub(super) rng: Rng,
}

/// What a process tells of itself after each look at its sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge {
    /// Whom frames flow with.
    pub(super) open: Vec<HostId>,
    /// Deliveries that have not ended.
    pub(super) unended: usize,
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
    orders: RefCell<BTreeMap<HostId, VecDeque<Order>>>,
    overheard: RefCell<VecDeque<Vec<u8>>>,
    pub(super) gauges: RefCell<BTreeMap<HostId, Gauge>>,
    pub(super) watches: RefCell<Vec<Watch>>,
    /// Pairs whose link something is the matter with: one thing at a time.
    pub(super) busy: RefCell<BTreeSet<(HostId, HostId)>>,
    ips: RefCell<BTreeMap<IpAddr, HostId>>,
    addresses: RefCell<BTreeMap<HostId, IpAddr>>,
    pub(super) controls: Vec<RefCell<Control>>,
    pub(super) counts: RefCell<FaultCounts>,
    pub(super) truth: RefCell<Truth>,
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
                RefCell::new(Control {
                    paused_until_ms: 0,
                    wall_skew_ms: 0,
                    boot: 1,
                    uptime_ms: rng.between(1_000_000, UPTIME_MAX_MS),
                    kill_at: None,
                    down_ms: 0,
                    dead: false,
                    running: false,
                    disk: None,
                    corrupt_tail: false,
                    lengths: Lengths::default(),
                    meddling: None,
                    moves: 0,
                    runs: 0,
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
            orders: RefCell::default(),
            overheard: RefCell::default(),
            gauges: RefCell::default(),
            watches: RefCell::default(),
            busy: RefCell::default(),
            now_ms: Cell::new(0),
            truth: RefCell::new(Truth::new(&hosts)),
            hosts,
            ips: RefCell::default(),
            addresses: RefCell::default(),
            controls,
            counts: RefCell::default(),
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

    /// What the monotonic clock of this host says.
    pub(super) fn instant(&self, host: HostId) -> Instant {
        self.base + Duration::from_millis(self.controls[host].borrow().uptime_ms + self.now_ms())
    }

    /// What the wall clock of this host says.
    pub(super) fn wall_ms(&self, host: HostId) -> u64 {
        (WALL_START_MS + self.now_ms()).saturating_add_signed(self.controls[host].borrow().wall_skew_ms)
    }

    /// The machine starts anew: its monotonic clock counts from somewhere else.
    pub(super) fn reboot(&self, host: HostId) {
        let mut control = self.controls[host].borrow_mut();
        control.boot += 1;
        control.uptime_ms = control.rng.between(1_000_000, UPTIME_MAX_MS);
    }

    /// Which boot of this host's machine it is.
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

    pub(super) fn at(&self, ip: IpAddr) -> Option<HostId> {
        self.ips.borrow().get(&ip).copied()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = HostId> + '_ {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].kind == HostKind::Node)
    }

    /// The node with this key.
    pub(super) fn node_of(&self, id: &PeerId) -> Option<HostId> {
        self.nodes().find(|host| self.hosts[*host].id == *id)
    }

    pub(super) fn note(&self, host: HostId, what: std::fmt::Arguments<'_>) {
        self.trace
            .borrow_mut()
            .note(self.now_ms(), &self.hosts[host].name, what);
    }

    pub(super) fn note_world(&self, what: std::fmt::Arguments<'_>) {
        self.trace.borrow_mut().note(self.now_ms(), "world", what);
    }

    pub(super) fn count(&self, fault: Fault) {
        self.counts.borrow_mut().count(fault);
    }

    pub(super) fn trace(&self) -> Ref<'_, Trace> {
        self.trace.borrow()
    }

    /// The process passes a moment at which it may be killed.
    pub(super) fn pass(&self, host: HostId, moment: Moment) -> Result<(), Died> {
        let mut control = self.controls[host].borrow_mut();
        if control.dead {
            return Err(Died);
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
        control.dead = true;
        drop(control);
        self.count(moment.fault());
        self.note(host, format_args!("killed {moment:?}"));
        Err(Died)
    }

    pub(super) fn is_paused(&self, host: HostId) -> bool {
        self.now_ms() < self.controls[host].borrow().paused_until_ms
    }

    /// What the middlebox in front of this host does to the message at hand.
    pub(super) fn meddle(&self, host: HostId) -> Option<Meddling> {
        let mut control = self.controls[host].borrow_mut();
        let meddling = control.meddling?;
        control.rng.percent(15).then_some(meddling)
    }

    /// Whether the air swallows the datagram at hand.
    pub(super) fn is_datagram_lost(&self, host: HostId) -> bool {
        self.controls[host].borrow_mut().rng.percent(self.loss_percent)
    }

    /// Sends a datagram, to all if the address says so.
    pub(super) fn broadcast(&self, socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
        let mut overheard = self.overheard.borrow_mut();
        if overheard.len() >= OVERHEARD_MAX {
            overheard.pop_front();
        }
        overheard.push_back(bytes.to_vec());
        // What does not go out is as good as lost on its way.
        let _lost = socket.try_send_to(bytes, to);
    }

    /// A datagram that somebody sent before.
    pub(super) fn overheard(&self, host: HostId) -> Option<Vec<u8>> {
        let overheard = self.overheard.borrow();
        if overheard.is_empty() {
            return None;
        }
        let at = self.controls[host].borrow_mut().rng.index(overheard.len());
        overheard.get(at).cloned()
    }

    /// Another run of a host's process begins.
    pub(super) fn begin_run(&self, host: HostId) -> Instance {
        let mut control = self.controls[host].borrow_mut();
        control.runs += 1;
        control.running = true;
        Instance(control.rng.next())
    }

    pub(super) fn is_dead(&self, host: HostId) -> bool {
        self.controls[host].borrow().dead
    }

    /// Whether its process has just been killed.
    pub(super) fn take_dead(&self, host: HostId) -> Option<u64> {
        let mut control = self.controls[host].borrow_mut();
        std::mem::take(&mut control.dead).then_some(control.down_ms)
    }

    /// Its process is gone.
    pub(super) fn crashed(&self, host: HostId) {
        let mut control = self.controls[host].borrow_mut();
        (control.running, control.kill_at, control.dead) = (false, None, false);
        drop(control);
        self.orders.borrow_mut().remove(&host);
        self.gauges.borrow_mut().remove(&host);
    }

    /// Nodes look for the stations that are members.
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

    /// Where a host is to be found now.
    pub(super) fn address(&self, host: HostId, port: u16) -> Option<SocketAddr> {
        let ip = *self.addresses.borrow().get(&host)?;
        Some(SocketAddr::new(ip, port + self.controls[host].borrow().moves))
    }

    /// Somebody types at a station.
    pub(super) fn give(&self, host: HostId, order: Order) {
        self.orders.borrow_mut().entry(host).or_default().push_back(order);
    }

    pub(super) fn take_order(&self, host: HostId) -> Option<Order> {
        self.orders.borrow_mut().get_mut(&host)?.pop_front()
    }

    pub(super) fn measure(&self, host: HostId, gauge: Gauge) {
        self.gauges.borrow_mut().insert(host, gauge);
    }

    pub(super) fn executed(&self, node: HostId, id: CommandId) {
        self.truth.borrow_mut().executed(node, id, self.now_ms());
    }

    /// A node heeds an order.
    pub(super) fn heard_stop(&self, node: HostId, order: Latch) {
        self.note(node, format_args!("is stopped by {}", order.number));
        self.truth.borrow_mut().heard_stop(node, order);
    }

    /// A delivery has ended, as a station tells.
    pub(super) fn ended(&self, station: HostId, id: CommandId, to: PeerId, how: Outcome) {
        if let Some(node) = self.node_of(&to) {
            self.truth.borrow_mut().ended(station, id, node, how);
        }
    }

    /// Why a station's disk takes nothing now.
    pub(super) fn store_trouble(&self, host: HostId) -> Option<&'static str> {
        let (trouble, until) = self.controls[host].borrow().disk?;
        if self.now_ms() >= until {
            return None;
        }
        let (fault, why) = match trouble {
            DiskTrouble::NoSpace => (Fault::NoSpace, "no space"),
            DiskTrouble::IoError => (Fault::IoError, "input/output error"),
        };
        self.count(fault);
        Some(why)
    }

    /// Copies one station's disk to another's. What is open there may be out of date by the time it is used.
    pub(super) fn copy_store(&self, from: HostId, to: HostId) {
        if let Err(error) = self.stores.borrow_mut().copy(from, to) {
            self.truth
                .borrow_mut()
                .break_promise(Invariant::Progress, format!("the store fails: {error}"));
        }
        let now = self.now_ms();
        self.truth.borrow_mut().copied(from, now);
    }
}
