//! The node's side: which orders it heeds, and what is in force.
//!
//! | state | event | then |
//! |---|---|---|
//! | any | an order for this node, newer than all heard of its issuer | stopped, by this order: [`Heard::New`] |
//! | stopped by it | the same order | nothing; over a link it is answered: [`Heard::Same`] |
//! | any | an order for this node that is not newer | nothing; over a link it is answered: [`Heard::Old`] |
//! | any | an order for others | passed on once: [`Heard::Others`] |
//! | stopped | [`StopDesk::release`] with the number in force | going |
//! | stopped | a restart | stopped: whoever restores it says so |
//!
//! A second order on top of a first takes its place, so that a release of the first undoes nothing.
//!
//! What costs comes last: an order that was heard before, or is of another fleet, or brings a grant that does not fit,
//! costs no signature check; any other costs at most two.

use std::collections::VecDeque;
use std::time::Instant;

use super::order::{BadStop, NOBODY, StopDatagram};
use crate::proto::id::PeerId;
use crate::proto::message::{StopCommand, Stopped};
#[cfg(feature = "planted-bugs")]
use crate::proto::planted;
use crate::proto::selector::Target;
use crate::proto::trust::gate::{Wish, permit};
use crate::proto::trust::{Membership, Role, TrustError};
use crate::proto::wire::Kind;

/// Most issuers whose numbers are remembered; the one heard longest ago is forgotten for a new one.
pub const ISSUERS_MAX: usize = 64;
/// Most orders for others that are remembered, so that each is passed on once.
pub const PASSED_MAX: usize = 64;

/// How an order came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Over the link of a peer that may give one.
    Link,
    /// From anywhere.
    Datagram,
}

/// Which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Latch {
    /// Who gave it.
    pub issuer: PeerId,
    /// Its number.
    pub number: u64,
}

/// What came of hearing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The node is stopped by it from now on: run the command, write it down, pass it on, tell the stations.
    New(Latch),
    /// It is in force already: over a link, answer.
    Same(Latch),
    /// It was heard before, or is older than one that was: over a link, answer, so that the issuer counts on.
    Old(Latch),
    /// It does not mean this node. To be passed on if it was not heard before; over a link, answer.
    Others {
        /// Which.
        order: Latch,
        /// Whether it is to be passed on.
        pass_on: bool,
    },
    /// Its issuer has counted this far: write it down.
    Counted(Latch),
    /// Nothing is to be done.
    Nothing,
}

/// Why an order is not heeded. On a shared network most of these are everyday.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopFault {
    /// The bytes.
    #[error(transparent)]
    Bad(#[from] BadStop),
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
pub enum NotReleased {
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
        present: Latch,
    },
}

/// The stop in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Which order.
    pub order: Latch,
    /// When it was heard, or restored.
    pub since: Instant,
    /// How much earlier it was heard than [`Present::since`], as far as that is known, in milliseconds.
    pub before_ms: u64,
    /// Whether it is in the journal.
    pub latched: bool,
    /// Why it is not.
    pub unlatched_why: Option<String>,
    /// What became of the command.
    pub command: StopCommand,
    /// What went wrong with it.
    pub command_error: Option<String>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct StopDesk {
    has_command: bool,
    present: Option<Present>,
    /// The highest number heard of each issuer, the one heard last at the end.
    seen: Vec<Latch>,
    /// Orders for others that were heard, the newest at the end.
    passed: VecDeque<Latch>,
}

impl StopDesk {
    /// A desk that has heard up to these numbers, stopped by `present` if there is one. `has_command`: whether the node's
    /// owner has named one.
    pub fn new(has_command: bool, seen: Vec<Latch>, present: Option<Present>) -> Self {
        let mut desk = Self {
            has_command,
            present: None,
            seen: Vec::new(),
            passed: VecDeque::new(),
        };
        for order in seen {
            desk.note(order);
        }
        if let Some(present) = present {
            desk.note(present.order);
            desk.present = Some(present);
        }
        desk
    }

    /// The stop in force.
    pub fn present(&self) -> Option<&Present> {
        self.present.as_ref()
    }

    /// The highest number heard of each issuer.
    pub fn seen(&self) -> &[Latch] {
        &self.seen
    }

    fn seen_of(&self, issuer: &PeerId) -> Option<u64> {
        let known = self.seen.iter().find(|known| known.issuer == *issuer);
        known.map(|known| known.number)
    }

    /// Notes how far an issuer has counted.
    fn note(&mut self, order: Latch) {
        let before = self.seen_of(&order.issuer).unwrap_or(0);
        self.seen.retain(|known| known.issuer != order.issuer);
        if self.seen.len() >= ISSUERS_MAX {
            self.seen.remove(0);
        }
        self.seen.push(Latch {
            number: order.number.max(before),
            ..order
        });
    }

    /// Hears an order. `me` is what selectors look at.
    ///
    /// # Errors
    /// [`StopFault`]: why it is not heeded; nothing has changed.
    pub fn hear(
        &mut self,
        bytes: &[u8],
        carrier: Carrier,
        membership: Option<&Membership>,
        me: &Target<'_>,
        now: Instant,
    ) -> Result<Heard, StopFault> {
        let told = StopDatagram::read(bytes)?;
        let membership = membership.ok_or(StopFault::NoFleet)?;
        if told.fleet != membership.fingerprint().prefix() {
            return Err(StopFault::OtherFleet);
        }
        let order = Latch {
            issuer: told.issuer.id(),
            number: told.number,
        };
        let counts_only = told.selector == NOBODY;
        let for_me = !counts_only && told.selector()?.matches(me);
        let newer = self.seen_of(&order.issuer).is_none_or(|seen| order.number > seen);
        // What was heard before costs nothing more.
        if for_me && !newer {
            let in_force = self
                .present
                .as_ref()
                .is_some_and(|present| present.order == order);
            return Ok(match (in_force, carrier) {
                (true, Carrier::Link) => Heard::Same(order),
                (false, Carrier::Link) => Heard::Old(order),
                (true | false, Carrier::Datagram) => Heard::Nothing,
            });
        }
        if counts_only && (carrier == Carrier::Datagram || !newer) {
            return Ok(Heard::Nothing);
        }
        if !for_me && self.passed.contains(&order) {
            return Ok(match carrier {
                Carrier::Link => Heard::Others {
                    order,
                    pass_on: false,
                },
                Carrier::Datagram => Heard::Nothing,
            });
        }
        verify(&told, order.issuer, membership)?;
        if for_me {
            self.note(order);
            self.present = Some(self.stopped_by(order, now));
            return Ok(Heard::New(order));
        }
        if counts_only {
            self.note(order);
            return Ok(Heard::Counted(order));
        }
        if self.passed.len() >= PASSED_MAX {
            self.passed.pop_front();
        }
        self.passed.push_back(order);
        Ok(Heard::Others { order, pass_on: true })
    }

    fn stopped_by(&self, order: Latch, now: Instant) -> Present {
        let running = self
            .present
            .as_ref()
            .is_some_and(|present| present.command == StopCommand::Running);
        Present {
            order,
            since: now,
            before_ms: 0,
            latched: false,
            unlatched_why: None,
            // A command that is at work already serves this order too.
            command: if self.has_command || running {
                StopCommand::Running
            } else {
                StopCommand::None
            },
            command_error: None,
        }
    }

    /// The order is in the journal; whether that is news of the stop in force.
    pub fn written(&mut self, order: Latch) -> bool {
        self.change(order, |present| {
            present.latched = true;
            present.unlatched_why = None;
        })
    }

    /// The order cannot be written down; whether that is news of the stop in force.
    pub fn not_written(&mut self, order: Latch, why: &str) -> bool {
        self.change(order, |present| {
            present.latched = false;
            present.unlatched_why = Some(why.to_owned());
        })
    }

    fn change(&mut self, order: Latch, change: impl FnOnce(&mut Present)) -> bool {
        let present = self.present.as_mut().filter(|present| present.order == order);
        present.map(change).is_some()
    }

    /// The command ended. It served whatever order is in force now; none may be.
    pub fn command_ended(&mut self, how: Result<(), String>) -> Option<Latch> {
        let present = self.present.as_mut()?;
        present.command = match how {
            Ok(()) => StopCommand::Done,
            Err(_) => StopCommand::Failed,
        };
        present.command_error = how.err();
        Some(present.order)
    }

    /// Whether a release that names this number, and this issuer if it names one, would be heeded: the order that it
    /// releases. Write the release down, then [`StopDesk::release`] it.
    ///
    /// # Errors
    /// [`NotReleased`].
    pub fn may_release(&self, number: u64, issuer: Option<&PeerId>) -> Result<Latch, NotReleased> {
        let present = self.present.as_ref().ok_or(NotReleased::NotStopped)?.order;
        #[cfg(feature = "planted-bugs")]
        if planted::is(planted::Bug::ReleaseWithoutNumber) {
            return Ok(present);
        }
        if present.number == number && issuer.is_none_or(|issuer| *issuer == present.issuer) {
            Ok(present)
        } else {
            Err(NotReleased::OtherStop {
                asked: number,
                present,
            })
        }
    }

    /// Releases the stop, if it is still this one.
    ///
    /// # Errors
    /// [`NotReleased`]: another order came meanwhile.
    pub fn release(&mut self, order: Latch) -> Result<(), NotReleased> {
        self.may_release(order.number, Some(&order.issuer))?;
        self.present = None;
        Ok(())
    }

    /// How things stand, for the station `to`; `about` is the order that it answers, if it answers one.
    pub fn report(&self, to: &PeerId, about: Option<Latch>, now: Instant) -> Stopped {
        let seen = self.seen_of(to).unwrap_or(0);
        match &self.present {
            Some(present) => Stopped {
                stopped: true,
                issuer: present.order.issuer,
                number: present.order.number,
                latched: present.latched,
                command: present.command,
                error: present.error(),
                since_ms: present.since_ms(now),
                seen,
                not_meant: false,
            },
            None => Stopped {
                stopped: false,
                issuer: about.map_or(*to, |order| order.issuer),
                number: about.map_or(0, |order| order.number),
                latched: false,
                command: StopCommand::None,
                error: None,
                since_ms: 0,
                seen,
                not_meant: false,
            },
        }
    }
}

impl Present {
    /// What is wrong: with writing it down, and with the command.
    pub fn error(&self) -> Option<String> {
        let unlatched = self
            .unlatched_why
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
            .saturating_add(self.before_ms)
    }
}

/// Whether the issuer gave the order and may.
fn verify(told: &StopDatagram<'_>, issuer: PeerId, membership: &Membership) -> Result<(), StopFault> {
    if membership.is_revoked(&told.issuer) {
        return Err(StopFault::Revoked(issuer));
    }
    let signed = told.grant();
    let grant = signed.read_unverified()?;
    if grant.fleet != *membership.root() {
        return Err(StopFault::OtherFleet);
    }
    if grant.key != told.issuer {
        return Err(StopFault::OtherKey(issuer));
    }
    let role = grant.role;
    permit(role, &Wish::Frame(Kind::Stop)).map_err(|_refused| StopFault::NotAllowed { issuer, role })?;
    // Whoever has the issuer's key is an enemy less often than whoever made up a key and its grant.
    told.check_signature()?;
    signed.verify(membership.root())?;
    Ok(())
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
