//! The known addresses of peers, and when to dial each, with its own backoff.
//!
//! A failed dial is repeated after a random time between zero and a bound that doubles from 0.2 s to 10 s
//! (exponential backoff with full jitter). A new announcement of the peer resets the bound and causes a dial at once.
//! An address is not dialled while its peer is linked.

use std::collections::{BTreeMap, BTreeSet};
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

/// Where an address was learned, which decides how long it is kept.
///
/// The order is that of dialling when too many are due at once: an announcement by an unauthenticated sender comes
/// last, so that it cannot keep a known peer from being dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Configuration: kept forever.
    Static,
    /// A former link of the peer: kept for one hour.
    Known,
    /// A notifier ping: kept for 15 s.
    Ping,
    /// Another peer's roster: kept for 5 min.
    Roster,
    /// mDNS: kept until it is withdrawn.
    Mdns,
}

impl Source {
    fn lifetime(self) -> Option<Duration> {
        match self {
            Self::Static | Self::Mdns => None,
            Self::Known => Some(Duration::from_secs(3_600)),
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
        match self {
            Self::None => false,
            Self::IdPrefix(prefix) => id.0.starts_with(&prefix),
            Self::Id(hint) => hint == *id,
        }
    }
}

#[derive(Debug)]
struct Entry {
    hint: Hint,
    source: Source,
    /// The most trusted of its sources so far.
    best_source: Source,
    backoff: Duration,
    next_dial: Instant,
    dialling: bool,
    expires: Option<Instant>,
}

/// All known addresses with their dial state; see the module.
#[derive(Debug, Default)]
pub struct AddressBook {
    entries: BTreeMap<SocketAddr, Entry>,
    linked: BTreeSet<PeerId>,
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
        let expires = source.lifetime().map(|lifetime| now + lifetime);
        let fresh = Entry {
            hint,
            source,
            best_source: source,
            backoff: BACKOFF_MIN,
            next_dial: now,
            dialling: false,
            expires,
        };
        let entry = self.entries.entry(addr).or_insert(fresh);
        match (hint, entry.hint) {
            // The result of a dial is more reliable than an announcement.
            (Hint::None, _) | (Hint::IdPrefix(_), Hint::Id(_)) => {}
            (Hint::IdPrefix(_) | Hint::Id(_), _) => entry.hint = hint,
        }
        entry.best_source = entry.best_source.min(source);
        if entry.expires.is_some() {
            entry.source = source;
            entry.expires = expires.map(|expires| entry.expires.map_or(expires, |old| old.max(expires)));
        }
        if !entry.dialling {
            entry.backoff = BACKOFF_MIN;
            entry.next_dial = entry.next_dial.min(now);
        }
    }

    /// Removes an address whose mDNS announcement was withdrawn, unless another source named it.
    pub fn withdrawn(&mut self, addr: SocketAddr) {
        if self
            .entries
            .get(&addr)
            .is_some_and(|entry| entry.source == Source::Mdns)
        {
            self.remove(addr);
        }
    }

    fn remove(&mut self, addr: SocketAddr) {
        if self.entries.remove(&addr).is_some_and(|entry| entry.dialling) {
            self.dialling -= 1;
        }
    }

    fn remove_expired(&mut self, now: Instant) {
        self.entries
            .retain(|_, entry| entry.dialling || entry.expires.is_none_or(|expires| now < expires));
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

    /// Records that a peer is linked: its addresses are not dialled.
    pub fn linked(&mut self, id: PeerId) {
        self.linked.insert(id);
    }

    /// Records that a peer's link is closed: its addresses are dialled within the first bound, at a time chosen by
    /// `random`, so that the members of a fleet do not all dial in one instant.
    pub fn unlinked(&mut self, id: PeerId, now: Instant, random: u64) {
        self.linked.remove(&id);
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.hint.matches(&id) && !entry.dialling)
        {
            entry.backoff = BACKOFF_MIN;
            entry.next_dial = now + jitter(BACKOFF_MIN, random);
        }
    }

    /// Records that a connection to a peer did not become a link: its addresses are dialled again, and the backoff
    /// continues, so that a peer that answers and refuses is not dialled too often.
    pub fn link_rejected(&mut self, id: PeerId) {
        self.linked.remove(&id);
    }

    /// Removes the addresses of a peer that has left the fleet, except configured ones.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.linked.remove(&id);
        self.entries
            .retain(|_, entry| entry.dialling || entry.source == Source::Static || !entry.hint.matches(&id));
    }

    /// Makes all addresses due now, because the network has changed.
    pub fn retry_now(&mut self, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| !entry.dialling) {
            entry.backoff = BACKOFF_MIN;
            entry.next_dial = now;
        }
    }

    fn can_dial(&self, entry: &Entry) -> bool {
        let linked = match entry.hint {
            Hint::None => false,
            Hint::Id(id) => self.linked.contains(&id),
            Hint::IdPrefix(prefix) => {
                let mut lowest = PeerId([0; 32]);
                lowest.0[..prefix.len()].copy_from_slice(&prefix);
                let next = self.linked.range(lowest..).next();
                next.is_some_and(|id| entry.hint.matches(id))
            }
        };
        !entry.dialling && !linked
    }

    /// Returns the addresses to dial now. Report the end of each with [`Self::dial_succeeded`] or
    /// [`Self::dial_failed`].
    pub fn start_due_dials(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.remove_expired(now);
        let mut due: Vec<(Source, Instant, SocketAddr)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.next_dial <= now && self.can_dial(entry))
            .map(|(addr, entry)| (entry.best_source, entry.next_dial, *addr))
            .collect();
        due.sort_unstable();
        due.truncate(DIALS_MAX.saturating_sub(self.dialling));
        for (_, _, addr) in &due {
            if let Some(entry) = self.entries.get_mut(addr) {
                entry.dialling = true;
                self.dialling += 1;
            }
        }
        due.into_iter().map(|(_, _, addr)| addr).collect()
    }

    /// Records that a dial reached this peer, whether or not the link stays. A further dial backs off.
    pub fn dial_succeeded(&mut self, addr: SocketAddr, id: PeerId, now: Instant, random: u64) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.hint = Hint::Id(id);
        }
        self.dial_failed(addr, now, random);
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
            .values()
            .filter(|entry| self.can_dial(entry))
            .map(|entry| entry.next_dial)
            .min()
    }
}

/// A time between zero and `bound`, chosen by `random`.
fn jitter(bound: Duration, random: u64) -> Duration {
    let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % bound_us.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::clock;

    const ID: PeerId = PeerId([9; 32]);

    fn addr(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn backoff_doubles_to_its_bound_and_discovery_resets_it() {
        let (mut addresses, mut now) = (AddressBook::default(), clock::now());
        addresses.discovered(addr(1), Source::Static, Hint::None, now);
        for bound_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            assert_eq!(addresses.start_due_dials(now), [addr(1)]);
            assert_eq!(addresses.start_due_dials(now), [], "it is being dialled");
            addresses.dial_failed(addr(1), now, u64::MAX - 1);
            let next = addresses.poll_timeout().expect("it is tried again");
            assert!(next - now < Duration::from_millis(bound_ms));
            assert_eq!(
                addresses.start_due_dials(next - Duration::from_nanos(1)),
                [],
                "not before its time"
            );
            now += Duration::from_millis(bound_ms);
        }
        addresses.start_due_dials(now);
        addresses.dial_failed(addr(1), now, 9_999_999);
        addresses.discovered(addr(1), Source::Ping, Hint::None, now);
        assert_eq!(addresses.start_due_dials(now), [addr(1)]);
    }

    #[test]
    fn linked_peer_is_not_dialled_and_lost_peer_is_soon() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([9; 8]), now);
        book.discovered(addr(2), Source::Known, Hint::Id(ID), now);
        book.linked(ID);
        assert_eq!(book.start_due_dials(now), []);
        assert_eq!(book.poll_timeout(), None);
        book.unlinked(ID, now, 199_999);
        assert_eq!(book.start_due_dials(now + BACKOFF_MIN).len(), 2);
    }

    #[test]
    fn refusing_peer_is_dialled_with_growing_backoff() {
        let (mut book, mut now) = (AddressBook::default(), clock::now());
        book.discovered(addr(1), Source::Static, Hint::None, now);
        for bound_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            assert_eq!(book.start_due_dials(now), [addr(1)]);
            book.dial_succeeded(addr(1), ID, now, bound_ms * 1_000 - 1);
            book.linked(ID);
            assert_eq!(book.poll_timeout(), None);
            book.link_rejected(ID);
            let before = now + Duration::from_millis(bound_ms) - Duration::from_micros(2);
            assert_eq!(book.start_due_dials(before), []);
            now += Duration::from_millis(bound_ms);
        }
    }

    #[test]
    fn id_prefix_hint_matches_only_its_peer() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        let mut other = ID;
        other.0[7] = 10;
        book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([9; 8]), now);
        book.linked(other);
        assert_eq!(book.poll_timeout(), Some(now), "another peer is linked");
        book.linked(ID);
        assert_eq!(book.poll_timeout(), None);
    }

    #[test]
    fn announcement_flood_does_not_displace_known_peers() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        for port in 1..=8_300 {
            book.discovered(addr(port), Source::Mdns, Hint::None, now);
        }
        let later = now + BACKOFF_MIN;
        book.discovered(addr(20_000), Source::Known, Hint::Id(ID), later);
        assert_eq!(book.start_due_dials(later).first(), Some(&addr(20_000)));
    }

    #[test]
    fn discovered_address_expires_unless_configured() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        book.discovered(addr(1), Source::Ping, Hint::None, now);
        book.discovered(addr(2), Source::Static, Hint::None, now);
        assert_eq!(book.start_due_dials(now + Duration::from_secs(16)), [addr(2)]);
    }

    #[test]
    fn removed_peer_is_not_dialled_unless_configured() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        book.discovered(addr(1), Source::Known, Hint::Id(ID), now);
        book.discovered(addr(2), Source::Static, Hint::Id(ID), now);
        book.linked(ID);
        book.remove_peer(ID);
        assert_eq!(book.start_due_dials(now), [addr(2)]);
    }

    #[test]
    fn concurrent_dials_are_bounded() {
        let (mut book, now) = (AddressBook::default(), clock::now());
        for port in 1..=200 {
            book.discovered(addr(port), Source::Roster, Hint::None, now);
        }
        let first = book.start_due_dials(now);
        assert_eq!(first.len(), DIALS_MAX);
        assert_eq!(book.poll_timeout(), None);
        book.dial_failed(first[0], now, 0);
        assert_eq!(book.start_due_dials(now).len(), 1);
    }
}
