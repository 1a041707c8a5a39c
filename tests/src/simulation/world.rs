//! What is outside of every simulated process: clocks, the trace, what has been done to each host, who is who.
//!
//! A process may die at any instant; the world does not. Everything that an invariant is judged by is kept here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::trust::{Role, SigningKey};

use super::fault::{Fault, FaultCounts};
use super::rng::Rng;
use super::trace::Trace;
use super::truth::Truth;

/// Index of a host in [`World::hosts`].
pub(super) type HostId = usize;

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
    pub(super) kind: HostKind,
    pub(super) key: SigningKey,
    pub(super) id: PeerId,
    pub(super) role: Role,
    pub(super) revoked: bool,
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
    /// Killed, and still to be taken away.
    pub(super) dead: bool,
    pub(super) disk: Option<(DiskTrouble, u64)>,
    pub(super) meddling: Option<(Meddling, u64)>,
    /// Rises when all connections of the host are cut without a word.
    pub(super) cuts: u64,
    /// Runs of its process.
    pub(super) runs: u64,
    pub(super) rng: Rng,
}

pub(super) struct World {
    pub(super) seed: u64,
    base: Instant,
    now_ms: Cell<u64>,
    pub(super) hosts: Vec<Host>,
    ips: RefCell<BTreeMap<IpAddr, HostId>>,
    pub(super) addresses: RefCell<BTreeMap<HostId, IpAddr>>,
    pub(super) controls: Vec<RefCell<Control>>,
    pub(super) counts: RefCell<FaultCounts>,
    pub(super) truth: RefCell<Truth>,
    trace: RefCell<Trace>,
}

impl World {
    pub(super) fn new(seed: u64, base: Instant, hosts: Vec<Host>, print: bool) -> Self {
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
                    dead: false,
                    disk: None,
                    meddling: None,
                    cuts: 0,
                    runs: 0,
                    rng,
                })
            })
            .collect();
        Self {
            seed,
            base,
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
        self.now_ms.set(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
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

    pub(super) fn stations(&self) -> impl Iterator<Item = HostId> + '_ {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].kind == HostKind::Station)
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

    pub(super) fn trace(&self) -> std::cell::Ref<'_, Trace> {
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
        let (meddling, until) = control.meddling?;
        (self.now_ms() < until && control.rng.percent(15)).then_some(meddling)
    }
}
