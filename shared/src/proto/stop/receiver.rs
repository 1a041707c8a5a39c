//! The node's side: which orders take effect, and which stop is in force.
//!
//! | state | event | then |
//! |---|---|---|
//! | any | an order for this node, newer than all received of its issuer | stopped by this order: [`Received::New`] |
//! | stopped by it | the same order | no change; answered over a link: [`Received::Duplicate`] |
//! | any | an order for this node that is not newer | no change; answered over a link: [`Received::Stale`] |
//! | any | an order for other nodes | forwarded once: [`Received::OtherTargets`] |
//! | stopped | [`StopReceiver::release`] with the number in force | not stopped |
//! | stopped | a restart | stopped: [`StopReceiver::restored`] gets what [`StopReceiver::memory`] gave |
//! | any | a restart, and what was stored cannot be read | held: no action starts until a release, and no command runs |
//! | held | an order for this node; a release | stopped by it; not held |
//!
//! A second order replaces the first, so that a release of the first has no effect.
//!
//! Expensive checks come last: an order that was received before, or is of another fleet, or has a grant that does
//! not fit, costs no signature check; any other costs at most two.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::memory::{ISSUERS_MAX, IssuerNumbers, StopMemory, StoredStop};
use super::order::{BadStop, NO_NODES, StopDatagram};
use crate::proto::id::PeerId;
use crate::proto::message::{StopCommandState, StopStatus};
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;
use crate::proto::selector::NodeAttributes;
use crate::proto::trust::gate::{Permission, permit};
use crate::proto::trust::{Membership, Role, TrustError};
use crate::proto::wire::Kind;

/// Most orders for other nodes that are kept, so that each is forwarded once.
pub const FORWARDED_MAX: usize = 64;

/// The path by which an order came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedVia {
    /// The link of a peer that may issue one.
    Link,
    /// A UDP datagram from any sender.
    Datagram,
}

/// Identifies an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StopId {
    /// Station that issued it.
    pub issuer: PeerId,
    /// Its number.
    pub number: u64,
}

/// Whether the node may start actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopState {
    /// No stop is in force.
    #[default]
    Free,
    /// It is not known whether a stop is in force. What may run while stopped and landing actions may start.
    Held,
    /// A stop is in force. What may run while stopped may start.
    Stopped,
}

/// The result of receiving an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The node is stopped by it from now on. The caller runs the command, stores the order, forwards it and informs
    /// the stations.
    New(StopId),
    /// It is in force already. Over a link, the caller answers.
    Duplicate(StopId),
    /// It was received before, or is older than one that was. Over a link, the caller answers, so that the issuer
    /// raises its number.
    Stale(StopId),
    /// It does not match this node. Over a link, the caller answers.
    OtherTargets {
        /// The order.
        id: StopId,
        /// Whether the caller forwards it, because it was not received before.
        forward: bool,
    },
    /// It tells the number of its issuer's last order, which the caller stores.
    NumberRaised(StopId),
    /// There is nothing to do.
    Ignored,
}

/// The order is ignored. On a shared network most of these are normal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopRejection {
    /// The bytes are not a stop order.
    #[error(transparent)]
    Malformed(#[from] BadStop),
    /// The node has no fleet, so that no station may stop it.
    #[error("a stop, and this node belongs to no fleet")]
    NoFleet,
    /// It is from a station of another fleet.
    #[error("a stop of another fleet")]
    OtherFleet,
    /// The issuer's key is revoked.
    #[error("a stop of key {}, which is revoked", .0.short())]
    Revoked(PeerId),
    /// The grant is for another key than the issuer's.
    #[error("a stop of key {} with the grant of another", .0.short())]
    OtherKey(PeerId),
    /// The issuer's role does not permit a stop.
    #[error("a stop of key {} with role {role}: it takes role operator or admin", .issuer.short())]
    NotAllowed {
        /// The issuer.
        issuer: PeerId,
        /// Its role.
        role: Role,
    },
    /// The root did not sign the grant, or the issuer did not sign the order.
    #[error("a forged stop: {0}")]
    Forged(#[from] TrustError),
}

/// The stop cannot be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The node is not stopped.
    #[error("it is not stopped")]
    NotStopped,
    /// Another stop is in force.
    #[error(
        "stop {asked} is not the one in force, which is number {} of {}: a release names the number in force, so that \
         an old release cannot undo a new stop; type `ground-station release` again",
        .present.number, .present.issuer.short()
    )]
    OtherStop {
        /// Number that the release named.
        asked: u64,
        /// Stop in force.
        present: StopId,
    },
}

/// The stop in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveStop {
    /// The order.
    pub id: StopId,
    /// When it was received, or restored after a restart.
    pub since: Instant,
    /// Time from its receipt to [`ActiveStop::since`], as far as it is known, in milliseconds: not 0 after a restart.
    pub earlier_ms: u64,
    /// Whether it is a hold: it is not known whether a stop is in force.
    pub held: bool,
    /// Whether it is on the disk.
    pub latched: bool,
    /// Why it is not on the disk.
    pub latch_error: Option<String>,
    /// State of the node's stop command.
    pub command: StopCommandState,
    /// Why the command failed.
    pub command_error: Option<String>,
}

/// The emergency stop of one node; see the module.
#[derive(Clone, Debug)]
pub struct StopReceiver {
    has_command: bool,
    active: Option<ActiveStop>,
    /// The highest number of each issuer, the most recent issuer last.
    highest_numbers: Vec<StopId>,
    /// The highest released number of each of these issuers that has one.
    released: BTreeMap<PeerId, u64>,
    /// Received orders for other nodes, the newest last.
    forwarded: VecDeque<StopId>,
}

impl StopReceiver {
    /// A receiver that has received these numbers, stopped by `present` if there is one. `has_command`: whether the
    /// node's configuration names a stop command.
    pub fn new(has_command: bool, seen: Vec<StopId>, present: Option<ActiveStop>) -> Self {
        let mut receiver = Self {
            has_command,
            active: None,
            highest_numbers: Vec::new(),
            released: BTreeMap::new(),
            forwarded: VecDeque::new(),
        };
        for order in seen {
            receiver.raise_number(order);
        }
        if let Some(present) = present {
            if !present.held {
                receiver.raise_number(present.id);
            }
            receiver.active = Some(present);
        }
        receiver
    }

    /// A receiver that continues from what [`Self::memory`] gave. The command of a stop is running unless its result
    /// is known; a hold has none.
    pub fn restored(has_command: bool, memory: &StopMemory, now: Instant) -> Self {
        let seen = memory.issuers.iter().map(|known| StopId {
            issuer: known.issuer,
            number: known.seen,
        });
        let present = memory.active.as_ref().map(|stop| {
            let (command, command_error) = match &stop.command_result {
                None if has_command && !stop.held => (StopCommandState::Running, None),
                None => (StopCommandState::None, None),
                Some(Ok(())) => (StopCommandState::Done, None),
                Some(Err(why)) => (StopCommandState::Failed, Some(why.clone())),
            };
            ActiveStop {
                id: StopId {
                    issuer: stop.issuer,
                    number: stop.number,
                },
                since: now,
                earlier_ms: 0,
                held: stop.held,
                latched: true,
                latch_error: None,
                command,
                command_error,
            }
        });
        let mut receiver = Self::new(has_command, seen.collect(), present);
        let released = memory.issuers.iter().filter(|known| known.released > 0);
        receiver.released = released.map(|known| (known.issuer, known.released)).collect();
        receiver
    }

    /// What has to survive a restart.
    pub fn memory(&self) -> StopMemory {
        let active = self.active.as_ref().map(|present| StoredStop {
            issuer: present.id.issuer,
            number: present.id.number,
            held: present.held,
            command_result: match present.command {
                StopCommandState::None | StopCommandState::Running => None,
                StopCommandState::Done => Some(Ok(())),
                StopCommandState::Failed => Some(Err(present.command_error.clone().unwrap_or_default())),
            },
        });
        let issuers = self.highest_numbers.iter().map(|known| IssuerNumbers {
            issuer: known.issuer,
            seen: known.number,
            released: self.released.get(&known.issuer).copied().unwrap_or(0),
        });
        StopMemory {
            active,
            issuers: issuers.collect(),
        }
    }

    /// Whether the node may start actions.
    pub fn state(&self) -> StopState {
        match &self.active {
            None => StopState::Free,
            Some(present) if present.held => StopState::Held,
            Some(_) => StopState::Stopped,
        }
    }

    /// The stop in force.
    pub fn active_stop(&self) -> Option<&ActiveStop> {
        self.active.as_ref()
    }

    /// The highest number of each issuer.
    pub fn highest_numbers(&self) -> &[StopId] {
        &self.highest_numbers
    }

    fn highest_number(&self, issuer: &PeerId) -> Option<u64> {
        let known = self.highest_numbers.iter().find(|known| known.issuer == *issuer);
        known.map(|known| known.number)
    }

    /// Records the number of an issuer's order.
    fn raise_number(&mut self, order: StopId) {
        let before = self.highest_number(&order.issuer).unwrap_or(0);
        self.highest_numbers.retain(|known| known.issuer != order.issuer);
        if self.highest_numbers.len() >= ISSUERS_MAX {
            let evicted = self.highest_numbers.remove(0);
            self.released.remove(&evicted.issuer);
        }
        self.highest_numbers.push(StopId {
            number: order.number.max(before),
            ..order
        });
    }

    /// Handles an order. `me` are the attributes that its selector matches.
    ///
    /// # Errors
    /// [`StopRejection`]: why it is ignored; nothing has changed.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        via: ReceivedVia,
        membership: Option<&Membership>,
        me: &NodeAttributes<'_>,
        now: Instant,
    ) -> Result<Received, StopRejection> {
        let datagram = StopDatagram::parse(bytes)?;
        let membership = membership.ok_or(StopRejection::NoFleet)?;
        if datagram.fleet != membership.fingerprint().prefix() {
            return Err(StopRejection::OtherFleet);
        }
        let order = StopId {
            issuer: datagram.issuer.id(),
            number: datagram.number,
        };
        let raises_number_only = datagram.selector == NO_NODES;
        let matches = !raises_number_only && datagram.selector()?.matches(me);
        let newer = self
            .highest_number(&order.issuer)
            .is_none_or(|seen| order.number > seen);
        // A repeated order costs no signature check.
        if matches && !newer {
            let in_force = self.active.as_ref().is_some_and(|present| present.id == order);
            return Ok(match (in_force, via) {
                (true, ReceivedVia::Link) => Received::Duplicate(order),
                (false, ReceivedVia::Link) => Received::Stale(order),
                (true | false, ReceivedVia::Datagram) => Received::Ignored,
            });
        }
        if raises_number_only && (via == ReceivedVia::Datagram || !newer) {
            return Ok(Received::Ignored);
        }
        if !matches && self.forwarded.contains(&order) {
            return Ok(match via {
                ReceivedVia::Link => Received::OtherTargets {
                    id: order,
                    forward: false,
                },
                ReceivedVia::Datagram => Received::Ignored,
            });
        }
        verify_issuer(&datagram, order.issuer, membership)?;
        if matches {
            self.raise_number(order);
            self.active = Some(self.activate(order, now));
            return Ok(Received::New(order));
        }
        if raises_number_only {
            self.raise_number(order);
            return Ok(Received::NumberRaised(order));
        }
        if self.forwarded.len() >= FORWARDED_MAX {
            self.forwarded.pop_front();
        }
        self.forwarded.push_back(order);
        Ok(Received::OtherTargets {
            id: order,
            forward: true,
        })
    }

    fn activate(&self, order: StopId, now: Instant) -> ActiveStop {
        let running = self
            .active
            .as_ref()
            .is_some_and(|present| present.command == StopCommandState::Running);
        ActiveStop {
            id: order,
            since: now,
            earlier_ms: 0,
            held: false,
            latched: false,
            latch_error: None,
            // A command that is running already serves this order too.
            command: if self.has_command || running {
                StopCommandState::Running
            } else {
                StopCommandState::None
            },
            command_error: None,
        }
    }

    /// Records that the order is in the journal; true if that changes the stop in force.
    pub fn on_written(&mut self, order: StopId) -> bool {
        self.update_active(order, |present| {
            present.latched = true;
            present.latch_error = None;
        })
    }

    /// Records that the order could not be stored; true if that changes the stop in force.
    pub fn on_write_failed(&mut self, order: StopId, why: &str) -> bool {
        self.update_active(order, |present| {
            present.latched = false;
            present.latch_error = Some(why.to_owned());
        })
    }

    fn update_active(&mut self, order: StopId, change: impl FnOnce(&mut ActiveStop)) -> bool {
        let present = self.active.as_mut().filter(|present| present.id == order);
        present.map(change).is_some()
    }

    /// Records the end of the command. It served the order that is in force now; returns that, if there is one.
    pub fn on_command_ended(&mut self, result: Result<(), String>) -> Option<StopId> {
        let present = self.active.as_mut()?;
        present.command = match result {
            Ok(()) => StopCommandState::Done,
            Err(_) => StopCommandState::Failed,
        };
        present.command_error = result.err();
        Some(present.id)
    }

    /// The order that a release with this number, and this issuer if it names one, would release. The caller stores
    /// the release, then calls [`StopReceiver::release`].
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn check_release(&self, number: u64, issuer: Option<&PeerId>) -> Result<StopId, ReleaseError> {
        let present = self.active.as_ref().ok_or(ReleaseError::NotStopped)?.id;
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::ReleaseWithoutNumber) {
            return Ok(present);
        }
        if present.number == number && issuer.is_none_or(|issuer| *issuer == present.issuer) {
            Ok(present)
        } else {
            Err(ReleaseError::OtherStop {
                asked: number,
                present,
            })
        }
    }

    /// Releases the stop, if it is still this one.
    ///
    /// # Errors
    /// [`ReleaseError`]: another order was received meanwhile.
    pub fn release(&mut self, order: StopId) -> Result<(), ReleaseError> {
        self.check_release(order.number, Some(&order.issuer))?;
        self.active = None;
        // The released stop stood for all earlier orders, which it had replaced.
        self.released = self
            .highest_numbers
            .iter()
            .map(|known| (known.issuer, known.number))
            .collect();
        Ok(())
    }

    /// The status for the station `to`; `about` is the order that it answers, if it answers one.
    pub fn status(&self, to: &PeerId, about: Option<StopId>, now: Instant) -> StopStatus {
        let seen = self.highest_number(to).unwrap_or(0);
        let released = Some(self.released.get(to).copied().unwrap_or(0));
        match &self.active {
            Some(present) => StopStatus {
                stopped: true,
                issuer: present.id.issuer,
                number: present.id.number,
                latched: present.latched,
                command: present.command,
                error: present.error(),
                since_ms: present.since_ms(now),
                seen,
                released,
                held: present.held,
                not_selected: false,
            },
            None => StopStatus {
                stopped: false,
                issuer: about.map_or(*to, |order| order.issuer),
                number: about.map_or(0, |order| order.number),
                latched: false,
                command: StopCommandState::None,
                error: None,
                since_ms: 0,
                seen,
                released,
                held: false,
                not_selected: false,
            },
        }
    }
}

impl ActiveStop {
    /// The faults of the stop in force: of storing it, and of its command.
    pub fn error(&self) -> Option<String> {
        let held = self.held.then(|| {
            "held: its record of stops could not be read, so that it may have been stopped".to_owned()
        });
        let unlatched = self
            .latch_error
            .as_ref()
            .map(|why| format!("stopped, but not stored, so that a restart would undo it: {why}"));
        let command = self
            .command_error
            .as_ref()
            .map(|why| format!("stopped, but its emergency_stop command failed: {why}"));
        let faults: Vec<String> = [held, unlatched, command].into_iter().flatten().collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Milliseconds since it was received.
    pub fn since_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since).as_millis();
        u64::try_from(elapsed)
            .unwrap_or(u64::MAX)
            .saturating_add(self.earlier_ms)
    }
}

/// Verifies that the issuer signed the order and may issue it.
fn verify_issuer(
    datagram: &StopDatagram<'_>,
    issuer: PeerId,
    membership: &Membership,
) -> Result<(), StopRejection> {
    if membership.is_revoked(&datagram.issuer) {
        return Err(StopRejection::Revoked(issuer));
    }
    let signed = datagram.grant();
    let grant = signed.read_unverified()?;
    if grant.fleet != *membership.root() {
        return Err(StopRejection::OtherFleet);
    }
    if grant.key != datagram.issuer {
        return Err(StopRejection::OtherKey(issuer));
    }
    let role = grant.role;
    permit(role, &Permission::Frame(Kind::Stop))
        .map_err(|_refused| StopRejection::NotAllowed { issuer, role })?;
    // The issuer's signature is checked first: most forgeries use a made-up key with a made-up grant, and fail here.
    datagram.check_signature()?;
    signed.verify(membership.root())?;
    Ok(())
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
