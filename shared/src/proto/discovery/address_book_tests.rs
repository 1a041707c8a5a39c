//! The address book, with time moved by hand.

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
    assert_eq!(book.start_due_dials(now + BACKOFF_MIN), [addr(2)]);
    let next = now + BACKOFF_MIN + NEXT_ADDRESS_DELAY;
    assert_eq!(
        book.start_due_dials(next),
        [addr(1)],
        "the first has not answered"
    );
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
fn address_of_a_link_is_dialled_after_any_gap() {
    let (mut book, mut now) = (AddressBook::default(), clock::now());
    book.discovered(addr(1), Source::Ping, Hint::Id(ID), now);
    book.linked(ID);
    book.link_opened(ID, addr(1), now);
    for hours in [1, 100] {
        now += Duration::from_secs(hours * 3_600 + 60);
        assert_eq!(book.start_due_dials(now), []);
    }
    book.unlinked(ID, now, 0);
    for _ in 0..3 {
        assert_eq!(book.start_due_dials(now), [addr(1)]);
        book.dial_failed(addr(1), now, 0);
        now += Duration::from_secs(2 * 3_600);
    }
}

#[test]
fn former_address_of_a_peer_is_dialled_for_an_hour() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    for port in [1, 2] {
        book.linked(ID);
        book.link_opened(ID, addr(port), now);
        book.unlinked(ID, now, 0);
    }
    let later = now + FORMER_FOR - Duration::from_secs(1);
    book.start_due_dials(later);
    let all = book.start_due_dials(later + NEXT_ADDRESS_DELAY);
    assert_eq!(all.len(), 1, "one was dialled before");
    for port in [1, 2] {
        book.dial_failed(addr(port), later, 0);
    }
    assert_eq!(book.start_due_dials(now + FORMER_FOR), [addr(2)]);
    assert_eq!(book.entries.len(), 1);
}

#[test]
fn withdrawn_announcement_hides_no_address_at_once() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([9; 8]), now);
    book.withdrawn(addr(1), now);
    assert_eq!(book.start_due_dials(now), [addr(1)]);
    book.dial_failed(addr(1), now, 0);
    assert_eq!(book.start_due_dials(now + WITHDRAWN_FOR), []);
    // Withdrawn in time, announced again.
    book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([9; 8]), now);
    book.withdrawn(addr(1), now);
    book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([9; 8]), now);
    assert_eq!(book.start_due_dials(now + WITHDRAWN_FOR), [addr(1)]);
}

#[test]
fn address_that_passed_to_another_peer_is_dialled() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    book.linked(ID);
    book.link_opened(ID, addr(1), now);
    book.unlinked(ID, now, 0);
    book.linked(ID);
    book.link_opened(ID, addr(2), now);
    assert_eq!(book.start_due_dials(now), []);
    let other = PeerId([8; 32]);
    book.discovered(addr(1), Source::Mdns, Hint::IdPrefix([8; 8]), now);
    assert_eq!(book.start_due_dials(now), [addr(1)]);
    book.dial_succeeded(addr(1), other, now, 0);
    book.linked(other);
    book.link_opened(other, addr(1), now);
    book.unlinked(ID, now, 0);
    assert_eq!(
        book.start_due_dials(now),
        [addr(2)],
        "it is no address of the first peer now"
    );
}

#[test]
fn false_hints_never_silence_a_configured_address() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    let linked = PeerId([8; 32]);
    book.linked(linked);
    book.link_opened(linked, addr(2), now);
    book.discovered(addr(1), Source::Static, Hint::None, now);
    book.discovered(addr(1), Source::Roster, Hint::Id(linked), now);
    assert_eq!(book.start_due_dials(now), [addr(1)]);
    // Also if it was true, and the peer has moved since.
    book.dial_reached_linked(addr(1), linked, now);
    assert_eq!(book.start_due_dials(now), []);
    assert_eq!(book.start_due_dials(now + VERIFY_INTERVAL), [addr(1)]);
}

#[test]
fn address_of_an_open_link_is_not_dialled() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    book.discovered(addr(1), Source::Static, Hint::None, now);
    book.linked(ID);
    book.link_opened(ID, addr(1), now);
    book.discovered(addr(1), Source::Roster, Hint::Id(PeerId([8; 32])), now);
    assert_eq!(book.start_due_dials(now + VERIFY_INTERVAL), []);
}

#[test]
fn addresses_of_one_peer_are_dialled_one_after_the_other() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    for port in 1..=8 {
        book.discovered(addr(port), Source::Mdns, Hint::IdPrefix([9; 8]), now);
    }
    for step in 0..8 {
        let at = now + NEXT_ADDRESS_DELAY * step;
        assert_eq!(book.start_due_dials(at).len(), 1);
        assert_eq!(book.start_due_dials(at), []);
    }
}

#[test]
fn hints_of_one_address_are_bounded() {
    let (mut book, now) = (AddressBook::default(), clock::now());
    for byte in 1..=100 {
        book.discovered(addr(1), Source::Roster, Hint::Id(PeerId([byte; 32])), now);
    }
    assert_eq!(book.entries[&addr(1)].hints.len(), HINTS_MAX);
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
