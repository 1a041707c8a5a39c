//! The known addresses of peers, and when to dial each, with its own backoff.
//!
//! A failed dial is repeated after a random time between zero and a bound that doubles from 0.2 s to 10 s
//! (exponential backoff with full jitter). A new announcement of the peer resets the bound and causes a dial at once.
//!
//! Hints add and proof removes: an announcement adds an address, or a peer to an address. Only what the peer itself has
//! proved takes anything away: a dial that reached it, or its link. So a forged announcement costs a dial and hides
//! nothing.
//!
//! | an address is not dialled while | except |
//! |---|---|
//! | the link of one of its peers is up at this address | |
//! | all peers that are known to be there are linked | a configured address, which is then verified once a minute |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::proto::id::PeerId;

/// First bound of the backoff.
pub const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Last bound of the backoff.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Most addresses that are kept, not counting configured ones.
pub const ADDRESSES_MAX: usize = 8_192;
/// Most dials at the same time.
pub const DIALS_MAX: usize = 64;
/// Most peers that hints place at one address; the oldest hint is dropped.
pub const HINTS_MAX: usize = 4;
/// Time between the dials of two addresses of one peer: the first usually answers within it.
pub const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(250);
/// How often a configured address is dialled whose peer is linked at another address: another peer may have it now.
pub const VERIFY_INTERVAL: Duration = Duration::from_secs(60);
/// How long the former address of a peer is kept once the peer has linked at another one.
pub const FORMER_FOR: Duration = Duration::from_secs(3_600);
/// How long an address is kept whose announcement was withdrawn: a withdrawal is not authenticated.
pub const WITHDRAWN_FOR: Duration = Duration::from_secs(300);

/// Where an address was learned, which decides how long it is kept.
///
/// The order is that of dialling when too many are due at once: an announcement by an unauthenticated sender comes
/// last, so that it cannot keep a known peer from being dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Configuration: kept forever.
    Static,
    /// The last link of the peer: kept until the peer links at another address, and then for [`FORMER_FOR`].
    Known,
    /// A notifier ping: kept for 15 s.
    Ping,
    /// Another peer's roster: kept for 5 min.
    Roster,
    /// mDNS: kept until it is withdrawn, and then for [`WITHDRAWN_FOR`].
    Mdns,
}

impl Source {
    fn lifetime(self) -> Option<Duration> {
        match self {
            Self::Static | Self::Known | Self::Mdns => None,
            Self::Ping => Some(Duration::from_secs(15)),
            Self::Roster => Some(Duration::from_secs(300)),
        }
    }
}

/// What is known of the peer behind an address before it is dialled. It carries no trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// No information.
    None,
    /// The first bytes of its id, from mDNS.
    IdPrefix([u8; 8]),
    /// Its id.
    Id(PeerId),
}

impl Hint {
    fn matches(self, id: &PeerId) -> bool {
        self.prefix().is_some_and(|prefix| id.0.starts_with(&prefix))
            && !matches!(self, Self::Id(hint) if hint != *id)
    }

    fn prefix(self) -> Option<[u8; 8]> {
        match self {
            Self::None => None,
            Self::IdPrefix(prefix) => Some(prefix),
            Self::Id(id) => id.0.first_chunk().copied(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// The peers that may be there, the newest last; never [`Hint::None`].
    hints: Vec<Hint>,
    /// The most trusted of its sources so far.
    best_source: Source,
    /// Whether mDNS announces it now.
    announced: bool,
    /// Whether it is the last address of a peer.
    last_known: bool,
    /// When sources with a lifetime no longer keep it.
    expires: Instant,
    backoff: Duration,
    next_dial: Instant,
    dialling: bool,
}

impl Entry {
    fn is_kept(&self, now: Instant) -> bool {
        let is_configured = self.best_source == Source::Static;
        self.dialling || is_configured || self.announced || self.last_known || now < self.expires
    }

    fn may_have(&self, id: &PeerId) -> bool {
        self.hints.iter().any(|hint| hint.matches(id))
    }

    fn add_hint(&mut self, hint: Hint) {
        let Some(prefix) = hint.prefix() else { return };
        if let Hint::Id(id) = hint {
            self.hints.retain(|old| !old.matches(&id));
        } else if self.hints.iter().any(|old| old.prefix() == Some(prefix)) {
            return;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.remove(0);
        }
        self.hints.push(hint);
    }
}

/// All known addresses with their dial state; see the module.
#[derive(Debug, Default)]
pub struct AddressBook {
    entries: BTreeMap<SocketAddr, Entry>,
    /// Linked peers, and the address of their link once it is open.
    linked: BTreeMap<PeerId, Option<SocketAddr>>,
    dialling: usize,
}

impl AddressBook {
    /// Adds an address. It is dialled at once unless its peer is linked.
    pub fn discovered(&mut self, addr: SocketAddr, source: Source, hint: Hint, now: Instant) {
        if !self.entries.contains_key(&addr)
            && self.entries.len() >= ADDRESSES_MAX
            && source != Source::Static
        {
            self.remove_expired(now);
            if self.entries.len() >= ADDRESSES_MAX && !self.evict_worse_than(source) {
                return;
            }
        }
        let entry = self.entries.entry(addr).or_insert_with(|| Entry {
            hints: Vec::new(),
            best_source: source,
            announced: false,
            last_known: false,
            expires: now,
            backoff: BACKOFF_MIN,
            next_dial: now,
            dialling: false,
        });
        entry.add_hint(hint);
        entry.best_source = entry.best_source.min(source);
        entry.announced |= source == Source::Mdns;
        entry.last_known |= source == Source::Known;
        if let Some(lifetime) = source.lifetime() {
            entry.expires = entry.expires.max(now + lifetime);
        }
        if !entry.dialling {
            entry.backoff = BACKOFF_MIN;
            entry.next_dial = entry.next_dial.min(now);
        }
    }

    /// Records that mDNS no longer announces an address: it is kept for [`WITHDRAWN_FOR`], and longer if another source
    /// keeps it.
    pub fn withdrawn(&mut self, addr: SocketAddr, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&addr)
            && std::mem::take(&mut entry.announced)
        {
            entry.expires = entry.expires.max(now + WITHDRAWN_FOR);
        }
    }

    fn remove_expired(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.is_kept(now));
    }

    /// Makes room for an address by removing one from a worse source; false if there is none.
    fn evict_worse_than(&mut self, source: Source) -> bool {
        let worst = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.dialling && entry.best_source > source)
            .max_by_key(|(_, entry)| entry.best_source)
            .map(|(addr, _)| *addr);
        worst.is_some_and(|addr| self.entries.remove(&addr).is_some())
    }

    /// Records that a peer has a connection that becomes a link: its addresses are not dialled.
    pub fn linked(&mut self, id: PeerId) {
        self.linked.insert(id, None);
    }

    /// Records that a linked peer's link is open at this address, which is kept from now on as the peer's last one. Its
    /// former addresses are kept for [`FORMER_FOR`].
    pub fn link_opened(&mut self, id: PeerId, addr: SocketAddr, now: Instant) {
        self.discovered(addr, Source::Known, Hint::Id(id), now);
        self.linked.insert(id, Some(addr));
        for (of, entry) in &mut self.entries {
            if *of == addr {
                entry.hints = vec![Hint::Id(id)];
            } else if entry.hints == [Hint::Id(id)] && std::mem::take(&mut entry.last_known) {
                entry.expires = entry.expires.max(now + FORMER_FOR);
            }
        }
    }

    /// Records that a peer's link is closed: its addresses are dialled within the first bound, at a time chosen by
    /// `random`, so that the members of a fleet do not all dial in one instant.
    pub fn unlinked(&mut self, id: PeerId, now: Instant, random: u64) {
        self.linked.remove(&id);
        for entry in self.entries.values_mut() {
            if entry.may_have(&id) && !entry.dialling {
                entry.backoff = BACKOFF_MIN;
                entry.next_dial = now + jitter(BACKOFF_MIN, random);
            }
        }
    }

    /// Records that a connection to a peer did not become a link: its addresses are dialled again, and the backoff
    /// continues, so that a peer that answers and refuses is not dialled too often.
    pub fn link_rejected(&mut self, id: PeerId) {
        self.linked.remove(&id);
    }

    /// Removes the addresses of a peer that has left the fleet, except configured ones and those where other peers may
    /// be.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.linked.remove(&id);
        self.entries.retain(|_, entry| {
            let had = entry.may_have(&id);
            entry.hints.retain(|hint| !hint.matches(&id));
            !had || entry.dialling || entry.best_source == Source::Static || !entry.hints.is_empty()
        });
    }

    /// Makes all addresses due now, because the network has changed.
    pub fn retry_now(&mut self, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| !entry.dialling) {
            entry.backoff = BACKOFF_MIN;
            entry.next_dial = now;
        }
    }

    fn linked_at(&self, hint: Hint) -> Option<Option<SocketAddr>> {
        let mut lowest = PeerId([0; 32]);
        let prefix = hint.prefix()?;
        lowest.0[..prefix.len()].copy_from_slice(&prefix);
        let (id, addr) = self.linked.range(lowest..).find(|(id, _)| {
            // Of a full id, others with the same prefix come in between.
            hint.matches(id) || !id.0.starts_with(&prefix)
        })?;
        hint.matches(id).then_some(*addr)
    }

    fn can_dial(&self, addr: SocketAddr, entry: &Entry) -> bool {
        let is_used = || {
            let mut links = entry.hints.iter().filter_map(|hint| self.linked_at(*hint));
            links.any(|at| at.is_none_or(|at| at == addr))
        };
        let is_configured = entry.best_source == Source::Static;
        let all_linked =
            !entry.hints.is_empty() && entry.hints.iter().all(|hint| self.linked_at(*hint).is_some());
        !entry.dialling && !is_used() && (is_configured || !all_linked)
    }

    /// Returns the addresses to dial now: of a peer one at a time, each further one [`NEXT_ADDRESS_DELAY`] later. Report
    /// the end of each with [`Self::dial_succeeded`] or [`Self::dial_failed`].
    pub fn start_due_dials(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.remove_expired(now);
        let mut due: Vec<(Source, Instant, SocketAddr)> = self
            .entries
            .iter()
            .filter(|(addr, entry)| entry.next_dial <= now && self.can_dial(**addr, entry))
            .map(|(addr, entry)| (entry.best_source, entry.next_dial, *addr))
            .collect();
        due.sort_unstable();
        let mut delays: BTreeMap<[u8; 8], Duration> = BTreeMap::new();
        let mut dials = Vec::new();
        for (_, _, addr) in due {
            let Some(entry) = self.entries.get_mut(&addr) else {
                continue;
            };
            if let [hint] = entry.hints[..]
                && let Some(prefix) = hint.prefix()
            {
                let next_delay = delays.entry(prefix).or_default();
                let delay = std::mem::replace(next_delay, *next_delay + NEXT_ADDRESS_DELAY);
                if delay > Duration::ZERO {
                    entry.next_dial = now + delay;
                    continue;
                }
            }
            if self.dialling < DIALS_MAX {
                entry.dialling = true;
                self.dialling += 1;
                dials.push(addr);
            }
        }
        dials
    }

    /// Records that a dial reached this peer, whether or not the link stays. A further dial backs off.
    pub fn dial_succeeded(&mut self, addr: SocketAddr, id: PeerId, now: Instant, random: u64) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.hints = vec![Hint::Id(id)];
        }
        self.dial_failed(addr, now, random);
    }

    /// Records that a dial reached a peer that was linked already, and ended there.
    pub fn dial_reached_linked(&mut self, addr: SocketAddr, id: PeerId, now: Instant) {
        self.dial_succeeded(addr, id, now, 0);
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.next_dial = now + VERIFY_INTERVAL;
        }
    }

    /// Records that a dial failed.
    pub fn dial_failed(&mut self, addr: SocketAddr, now: Instant, random: u64) {
        if let Some(entry) = self.entries.get_mut(&addr)
            && entry.dialling
        {
            entry.dialling = false;
            self.dialling -= 1;
            entry.next_dial = now + jitter(entry.backoff, random);
            entry.backoff = (entry.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// When [`Self::start_due_dials`] may return something, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.dialling >= DIALS_MAX {
            return None;
        }
        self.entries
            .iter()
            .filter(|(addr, entry)| self.can_dial(**addr, entry))
            .map(|(_, entry)| entry.next_dial)
            .min()
    }
}

/// A time between zero and `bound`, chosen by `random`.
fn jitter(bound: Duration, random: u64) -> Duration {
    let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % bound_us.max(1))
}

#[cfg(test)]
#[path = "address_book_tests.rs"]
mod tests;
