//! The node's side: which orders it heeds, and what is in force.
//!
//! | state | event | then |
//! |---|---|---|
//! | any | an order for this node, newer than all heard of its issuer | stopped, by this order: [`Heard::New`] |
//! | stopped by it | the same order | nothing; over a link it is answered: [`Heard::Same`] |
//! | any | an order for this node that is not newer | nothing; over a link it is answered: [`Heard::Old`] |
//! | any | an order for others | passed on once: [`Heard::Others`] |
//! | stopped | [`StopReceiver::release`] with the number in force | going |
//! | stopped | a restart | stopped: whoever restores it says so |
//!
//! A second order on top of a first takes its place, so that a release of the first undoes nothing.
//!
//! What costs comes last: an order that was heard before, or is of another fleet, or brings a grant that does not fit,
//! costs no signature check; any other costs at most two.

use std::collections::VecDeque;
use std::time::Instant;

use super::order::{BadStop, NO_NODES, StopDatagram};
use crate::proto::id::PeerId;
use crate::proto::message::{StopCommandState, StopStatus};
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;
use crate::proto::selector::NodeAttributes;
use crate::proto::trust::gate::{Permission, permit};
use crate::proto::trust::{Membership, Role, TrustError};
use crate::proto::wire::Kind;

/// Most issuers whose numbers are remembered; the one heard longest ago is forgotten for a new one.
pub const ISSUERS_MAX: usize = 64;
/// Most orders for others that are remembered, so that each is passed on once.
pub const FORWARDED_MAX: usize = 64;

/// How an order came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedVia {
    /// Over the link of a peer that may give one.
    Link,
    /// From anywhere.
    Datagram,
}

/// Which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StopId {
    /// Who gave it.
    pub issuer: PeerId,
    /// Its number.
    pub number: u64,
}

/// What came of hearing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The node is stopped by it from now on: run the command, write it down, pass it on, tell the stations.
    New(StopId),
    /// It is in force already: over a link, answer.
    Duplicate(StopId),
    /// It was heard before, or is older than one that was: over a link, answer, so that the issuer counts on.
    Stale(StopId),
    /// It does not mean this node. To be passed on if it was not heard before; over a link, answer.
    OtherTargets {
        /// Which.
        id: StopId,
        /// Whether it is to be passed on.
        forward: bool,
    },
    /// Its issuer has counted this far: write it down.
    NumberRaised(StopId),
    /// Nothing is to be done.
    Ignored,
}

/// Why an order is not heeded. On a shared network most of these are everyday.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopRejection {
    /// The bytes.
    #[error(transparent)]
    Malformed(#[from] BadStop),
    /// Nobody can stop a node without a fleet.
    #[error("a stop, and this node belongs to no fleet")]
    NoFleet,
    /// Another fleet's.
    #[error("a stop of another fleet")]
    OtherFleet,
    /// The issuer has been put out.
    #[error("a stop of key {}, which is revoked", .0.short())]
    Revoked(PeerId),
    /// The grant is not the issuer's.
    #[error("a stop of key {} with the grant of another", .0.short())]
    OtherKey(PeerId),
    /// The issuer may not.
    #[error("a stop of key {} with role {role}: it takes role operator or admin", .issuer.short())]
    NotAllowed {
        /// Who gave it.
        issuer: PeerId,
        /// What it is.
        role: Role,
    },
    /// The root does not vouch for the grant, or the issuer did not sign.
    #[error("a forged stop: {0}")]
    Forged(#[from] TrustError),
}

/// Why a stop is not released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// It is not stopped.
    #[error("it is not stopped")]
    NotStopped,
    /// Another stop is in force.
    #[error(
        "stop {asked} is not the one in force, which is number {} of {}: a release names the number in force, so that \
         an old release cannot undo a new stop; type `ground-station release` again",
        .present.number, .present.issuer.short()
    )]
    OtherStop {
        /// What the release named.
        asked: u64,
        /// What is in force.
        present: StopId,
    },
}

/// The stop in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveStop {
    /// Which order.
    pub id: StopId,
    /// When it was heard, or restored.
    pub since: Instant,
    /// How much earlier it was heard than [`Present::since`], as far as that is known, in milliseconds.
    pub earlier_ms: u64,
    /// Whether it is in the journal.
    pub latched: bool,
    /// Why it is not.
    pub latch_error: Option<String>,
    /// What became of the command.
    pub command: StopCommandState,
    /// What went wrong with it.
    pub command_error: Option<String>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct StopReceiver {
    has_command: bool,
    active: Option<ActiveStop>,
    /// The highest number heard of each issuer, the one heard last at the end.
    highest_numbers: Vec<StopId>,
    /// Orders for others that were heard, the newest at the end.
    forwarded: VecDeque<StopId>,
}

impl StopReceiver {
    /// A desk that has heard up to these numbers, stopped by `present` if there is one. `has_command`: whether the node's
    /// owner has named one.
    pub fn new(has_command: bool, seen: Vec<StopId>, present: Option<ActiveStop>) -> Self {
        let mut receiver = Self {
            has_command,
            active: None,
            highest_numbers: Vec::new(),
            forwarded: VecDeque::new(),
        };
        for order in seen {
            receiver.raise_number(order);
        }
        if let Some(present) = present {
            receiver.raise_number(present.id);
            receiver.active = Some(present);
        }
        receiver
    }

    /// The stop in force.
    pub fn active_stop(&self) -> Option<&ActiveStop> {
        self.active.as_ref()
    }

    /// The highest number heard of each issuer.
    pub fn highest_numbers(&self) -> &[StopId] {
        &self.highest_numbers
    }

    fn highest_number(&self, issuer: &PeerId) -> Option<u64> {
        let known = self.highest_numbers.iter().find(|known| known.issuer == *issuer);
        known.map(|known| known.number)
    }

    /// Notes how far an issuer has counted.
    fn raise_number(&mut self, order: StopId) {
        let before = self.highest_number(&order.issuer).unwrap_or(0);
        self.highest_numbers.retain(|known| known.issuer != order.issuer);
        if self.highest_numbers.len() >= ISSUERS_MAX {
            self.highest_numbers.remove(0);
        }
        self.highest_numbers.push(StopId {
            number: order.number.max(before),
            ..order
        });
    }

    /// Hears an order. `me` is what selectors look at.
    ///
    /// # Errors
    /// [`StopRejection`]: why it is not heeded; nothing has changed.
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
        // What was heard before costs nothing more.
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
            latched: false,
            latch_error: None,
            // A command that is at work already serves this order too.
            command: if self.has_command || running {
                StopCommandState::Running
            } else {
                StopCommandState::None
            },
            command_error: None,
        }
    }

    /// The order is in the journal; whether that is news of the stop in force.
    pub fn on_written(&mut self, order: StopId) -> bool {
        self.update_active(order, |present| {
            present.latched = true;
            present.latch_error = None;
        })
    }

    /// The order cannot be written down; whether that is news of the stop in force.
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

    /// The command ended. It served whatever order is in force now; none may be.
    pub fn on_command_ended(&mut self, how: Result<(), String>) -> Option<StopId> {
        let present = self.active.as_mut()?;
        present.command = match how {
            Ok(()) => StopCommandState::Done,
            Err(_) => StopCommandState::Failed,
        };
        present.command_error = how.err();
        Some(present.id)
    }

    /// Whether a release that names this number, and this issuer if it names one, would be heeded: the order that it
    /// releases. Write the release down, then [`StopReceiver::release`] it.
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
    /// [`ReleaseError`]: another order came meanwhile.
    pub fn release(&mut self, order: StopId) -> Result<(), ReleaseError> {
        self.check_release(order.number, Some(&order.issuer))?;
        self.active = None;
        Ok(())
    }

    /// How things stand, for the station `to`; `about` is the order that it answers, if it answers one.
    pub fn status(&self, to: &PeerId, about: Option<StopId>, now: Instant) -> StopStatus {
        let seen = self.highest_number(to).unwrap_or(0);
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
                not_selected: false,
            },
        }
    }
}

impl ActiveStop {
    /// What is wrong: with writing it down, and with the command.
    pub fn error(&self) -> Option<String> {
        let unlatched = self
            .latch_error
            .as_ref()
            .map(|why| format!("stopped, but not written down, so that a restart would undo it: {why}"));
        let command = self
            .command_error
            .as_ref()
            .map(|why| format!("stopped, but its emergency_stop command failed: {why}"));
        let faults: Vec<String> = [unlatched, command].into_iter().flatten().collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Milliseconds since it was heard.
    pub fn since_ms(&self, now: Instant) -> u64 {
        let here = now.saturating_duration_since(self.since).as_millis();
        u64::try_from(here)
            .unwrap_or(u64::MAX)
            .saturating_add(self.earlier_ms)
    }
}

/// Whether the issuer gave the order and may.
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
    // Whoever has the issuer's key is an enemy less often than whoever made up a key and its grant.
    datagram.check_signature()?;
    signed.verify(membership.root())?;
    Ok(())
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
