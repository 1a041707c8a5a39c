use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::proto::id::{NodeName, PublicKey};
use crate::proto::selector::Selector;
use crate::proto::stop::StopOrder;
use crate::proto::trust::{FleetRoot, Grant, Signed, SigningKey};

const OWN: PublicKey = PublicKey([3; 32]);

struct Fleet {
    root: FleetRoot,
    membership: Membership,
    grants: BTreeMap<u8, Signed<Grant>>,
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn id(seed: u8) -> PeerId {
    key(seed).public().id()
}

fn latch(seed: u8, number: u64) -> Latch {
    Latch {
        issuer: id(seed),
        number,
    }
}

impl Fleet {
    /// Stations 10 and 11 are operators, 12 is admin, 13 an observer, 14 a node.
    fn new(seed: u8) -> Self {
        let mut root = FleetRoot::create(key(seed)).expect("a fleet");
        let own = root.grant(OWN, Role::Node).expect("a grant");
        let roles = [
            (10, Role::Operator),
            (11, Role::Operator),
            (12, Role::Admin),
            (13, Role::Observer),
            (14, Role::Node),
        ];
        let grants = roles.map(|(seed, role)| (seed, root.grant(key(seed).public(), role).expect("a grant")));
        let membership =
            Membership::new(root.public(), &OWN, own, root.state().clone()).expect("of one root");
        Self {
            root,
            membership,
            grants: grants.into(),
        }
    }

    fn order(&self, seed: u8, number: u64, selector: &str) -> StopOrder {
        StopOrder::new(
            &self.root.fingerprint(),
            key(seed).public(),
            number,
            Selector::parse(selector).expect("a selector"),
        )
    }

    fn datagram(&self, seed: u8, number: u64, selector: &str) -> Vec<u8> {
        let order = self.order(seed, number, selector);
        order.encode(&key(seed), &self.grants[&seed]).expect("short")
    }
}

fn now() -> Instant {
    crate::net::clock::now()
}

fn desk() -> StopDesk {
    StopDesk::new(true, Vec::new(), None)
}

fn hear(desk: &mut StopDesk, fleet: &Fleet, carrier: Carrier, bytes: &[u8]) -> Result<Heard, StopFault> {
    let name = NodeName::parse("drone-07").expect("a name");
    let tags = BTreeMap::from([("row".to_owned(), "3".to_owned())]);
    let me = Target {
        name: &name,
        id: &OWN.id(),
        tags: &tags,
    };
    desk.hear(bytes, carrier, Some(&fleet.membership), &me, now())
}

#[test]
fn an_order_is_heeded_once_by_whatever_way_it_comes() {
    let fleet = Fleet::new(1);
    for first in [Carrier::Link, Carrier::Datagram] {
        let mut desk = desk();
        let bytes = fleet.datagram(10, 5, "drone-*");
        assert_eq!(
            hear(&mut desk, &fleet, first, &bytes),
            Ok(Heard::New(latch(10, 5)))
        );
        assert_eq!(
            hear(&mut desk, &fleet, Carrier::Link, &bytes),
            Ok(Heard::Same(latch(10, 5)))
        );
        assert_eq!(
            hear(&mut desk, &fleet, Carrier::Datagram, &bytes),
            Ok(Heard::Nothing)
        );
        let old = fleet.datagram(10, 4, "all");
        assert_eq!(
            hear(&mut desk, &fleet, Carrier::Link, &old),
            Ok(Heard::Old(latch(10, 4)))
        );
        assert_eq!(
            hear(&mut desk, &fleet, Carrier::Datagram, &old),
            Ok(Heard::Nothing)
        );
    }
}

#[test]
fn what_is_forged_does_nothing() {
    let fleet = Fleet::new(1);
    let other = Fleet::new(2);
    let mut desk = desk();
    let mut refused = |bytes: &[u8]| {
        let fault = hear(&mut desk, &fleet, Carrier::Datagram, bytes).expect_err("refused");
        assert!(desk.present().is_none() && desk.seen().is_empty());
        fault
    };
    // Another key signed it, with the issuer's grant.
    let by_another = fleet.order(10, 5, "all").encode(&key(11), &fleet.grants[&10]);
    assert_eq!(
        refused(&by_another.expect("short")),
        StopFault::Forged(TrustError::BadSignature)
    );
    // The issuer has a grant, but not this one.
    let grant_of_another = fleet.order(10, 5, "all").encode(&key(10), &fleet.grants[&11]);
    assert_eq!(
        refused(&grant_of_another.expect("short")),
        StopFault::OtherKey(id(10))
    );
    for (seed, role) in [(13, Role::Observer), (14, Role::Node)] {
        let issuer = id(seed);
        assert_eq!(
            refused(&fleet.datagram(seed, 5, "all")),
            StopFault::NotAllowed { issuer, role }
        );
    }
    assert_eq!(refused(&other.datagram(10, 5, "all")), StopFault::OtherFleet);
    // Another root's grant in the name of this fleet.
    let claimed = Grant {
        fleet: fleet.root.public(),
        key: key(10).public(),
        role: Role::Admin,
        capabilities: Vec::new(),
        serial: 1,
    };
    let forged = Signed::sign(&claimed, &key(2)).expect("short");
    let bytes = fleet
        .order(10, 5, "all")
        .encode(&key(10), &forged)
        .expect("short");
    assert_eq!(refused(&bytes), StopFault::Forged(TrustError::BadSignature));
    // The other fleet's grant under this fleet's prefix.
    let bytes = fleet.order(10, 5, "all").encode(&key(10), &other.grants[&10]);
    assert_eq!(refused(&bytes.expect("short")), StopFault::OtherFleet);
}

#[test]
fn any_changed_bit_does_nothing() {
    let fleet = Fleet::new(1);
    let good = fleet.datagram(10, 5, "all");
    let mut desk = desk();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(
            hear(&mut desk, &fleet, Carrier::Datagram, &bytes).is_err(),
            "byte {at}"
        );
        assert!(desk.present().is_none());
    }
}

#[test]
fn a_revoked_key_stops_nobody() {
    let mut fleet = Fleet::new(1);
    let bytes = fleet.datagram(10, 5, "all");
    let state = fleet.root.revoke(key(10).public()).expect("room").clone();
    fleet.membership.adopt_state(state).expect("the root's");
    let mut desk = desk();
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Link, &bytes),
        Err(StopFault::Revoked(id(10)))
    );
    assert!(desk.present().is_none());
}

#[test]
fn a_node_without_a_fleet_hears_nobody() {
    let fleet = Fleet::new(1);
    let name = NodeName::parse("n").expect("a name");
    let me = Target {
        name: &name,
        id: &OWN.id(),
        tags: &BTreeMap::new(),
    };
    let bytes = fleet.datagram(10, 5, "all");
    let heard = desk().hear(&bytes, Carrier::Datagram, None, &me, now());
    assert_eq!(heard, Err(StopFault::NoFleet));
}

#[test]
fn an_old_release_cannot_undo_a_new_stop() {
    let fleet = Fleet::new(1);
    let mut desk = desk();
    assert_eq!(desk.may_release(5, None), Err(NotReleased::NotStopped));
    hear(&mut desk, &fleet, Carrier::Link, &fleet.datagram(10, 5, "all")).expect("new");
    let first = desk.may_release(5, Some(&id(10))).expect("in force");
    // While the release is written down, another station stops.
    hear(&mut desk, &fleet, Carrier::Link, &fleet.datagram(11, 9, "all")).expect("new");
    let not = NotReleased::OtherStop {
        asked: 5,
        present: latch(11, 9),
    };
    assert_eq!(desk.release(first), Err(not.clone()));
    assert_eq!(desk.may_release(5, None), Err(not));
    assert!(
        desk.may_release(9, Some(&id(10))).is_err(),
        "the number of another issuer"
    );
    let second = desk.may_release(9, Some(&id(11))).expect("in force");
    assert_eq!(desk.release(second), Ok(()));
    assert!(desk.present().is_none());
    for replayed in [fleet.datagram(10, 5, "all"), fleet.datagram(11, 9, "all")] {
        assert_eq!(
            hear(&mut desk, &fleet, Carrier::Datagram, &replayed),
            Ok(Heard::Nothing)
        );
        assert!(
            desk.present().is_none(),
            "a replay after the release does nothing"
        );
    }
}

#[test]
fn an_order_for_others_is_passed_on_once_and_answered_over_a_link() {
    let fleet = Fleet::new(1);
    let mut desk = desk();
    let bytes = fleet.datagram(10, 5, "drone-08");
    let order = latch(10, 5);
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Datagram, &bytes),
        Ok(Heard::Others { order, pass_on: true })
    );
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Datagram, &bytes),
        Ok(Heard::Nothing)
    );
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Link, &bytes),
        Ok(Heard::Others {
            order,
            pass_on: false
        })
    );
    assert!(desk.present().is_none());
    // An order with a lower number that is for this node is still heeded: it was on its way longer.
    let mine = fleet.datagram(10, 4, "drone-07");
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Datagram, &mine),
        Ok(Heard::New(latch(10, 4)))
    );
    for number in 0..200 {
        let bytes = fleet.datagram(11, number, "drone-08");
        hear(&mut desk, &fleet, Carrier::Datagram, &bytes).expect("sound");
    }
    assert_eq!(desk.passed.len(), PASSED_MAX);
}

#[test]
fn a_station_counts_on_over_its_link_so_that_a_kept_order_is_old() {
    let fleet = Fleet::new(1);
    let mut desk = desk();
    let kept = fleet.datagram(10, 5, "all");
    let counted = fleet.datagram(10, 5, NOBODY);
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Datagram, &counted),
        Ok(Heard::Nothing),
        "only over a link"
    );
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Link, &counted),
        Ok(Heard::Counted(latch(10, 5)))
    );
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Link, &counted),
        Ok(Heard::Nothing)
    );
    assert_eq!(
        hear(&mut desk, &fleet, Carrier::Datagram, &kept),
        Ok(Heard::Nothing)
    );
    assert!(desk.present().is_none());
}

#[test]
fn a_restart_does_not_release() {
    let fleet = Fleet::new(1);
    let mut desk = desk();
    let bytes = fleet.datagram(10, 5, "all");
    hear(&mut desk, &fleet, Carrier::Link, &bytes).expect("new");
    let mut again = StopDesk::new(true, desk.seen().to_vec(), desk.present().cloned());
    assert_eq!(again.present().map(|present| present.order), Some(latch(10, 5)));
    assert_eq!(
        hear(&mut again, &fleet, Carrier::Link, &bytes),
        Ok(Heard::Same(latch(10, 5)))
    );
}

#[test]
fn a_report_says_how_it_stands() {
    let fleet = Fleet::new(1);
    let mut desk = desk();
    let calm = desk.report(&id(10), Some(latch(10, 5)), now());
    assert!(!calm.stopped && calm.number == 5 && calm.seen == 0);
    hear(&mut desk, &fleet, Carrier::Link, &fleet.datagram(10, 5, "all")).expect("new");
    let stopped = desk.report(&id(10), None, now());
    assert!(stopped.stopped && !stopped.latched && stopped.seen == 5);
    assert_eq!((stopped.command, stopped.error), (StopCommand::Running, None));
    assert_eq!(desk.report(&id(11), None, now()).seen, 0);
    assert!(desk.not_written(latch(10, 5), "the disk is full"));
    assert_eq!(
        desk.command_ended(Err("exit status 3".to_owned())),
        Some(latch(10, 5))
    );
    let error = desk.report(&id(10), None, now()).error.expect("two faults");
    assert!(
        error.contains("the disk is full") && error.contains("exit status 3"),
        "{error}"
    );
    assert!(desk.written(latch(10, 5)));
    assert!(!desk.written(latch(10, 4)), "of a stop that is not in force");
    let report = desk.report(&id(10), None, now() + Duration::from_secs(3));
    assert!(report.latched && report.command == StopCommand::Failed && report.since_ms >= 3_000);
}

#[test]
fn issuers_are_bounded_and_the_one_heard_longest_ago_goes() {
    let seen = (0..100).map(|n| Latch {
        issuer: PublicKey([n; 32]).id(),
        number: 1,
    });
    let desk = StopDesk::new(false, seen.collect(), None);
    assert_eq!(desk.seen().len(), ISSUERS_MAX);
    assert_eq!(
        desk.seen().last().map(|last| last.issuer),
        Some(PublicKey([99; 32]).id())
    );
}

/// What may happen to a node, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Hear(Carrier, u8, u64),
    Release(u64),
    Restart,
}

fn steps() -> Vec<Step> {
    let mut steps = vec![Step::Restart, Step::Release(1), Step::Release(2)];
    steps.push(Step::Hear(Carrier::Link, 10, 1));
    for (seed, number) in [(10, 1), (10, 2), (11, 2)] {
        steps.push(Step::Hear(Carrier::Datagram, seed, number));
    }
    steps
}

/// Every sequence of four: stopped by exactly the newest order that was heeded and not released by its number, and
/// none is heeded twice.
#[test]
fn every_short_history() {
    let fleet = Fleet::new(1);
    let all = steps();
    let orders: BTreeMap<(u8, u64), Vec<u8>> = [(10, 1), (10, 2), (11, 2)]
        .into_iter()
        .map(|(seed, number)| ((seed, number), fleet.datagram(seed, number, "all")))
        .collect();
    let mut histories = 0;
    for history in 0..all.len().pow(4) {
        let mut desk = desk();
        let (mut in_force, mut heeded): (Option<Latch>, Vec<Latch>) = (None, Vec::new());
        for place in 0..4_u32 {
            match all[history / all.len().pow(place) % all.len()] {
                Step::Hear(carrier, seed, number) => {
                    let heard = hear(&mut desk, &fleet, carrier, &orders[&(seed, number)]).expect("sound");
                    let order = latch(seed, number);
                    let newer = !heeded
                        .iter()
                        .any(|old| old.issuer == order.issuer && old.number >= order.number);
                    assert_eq!(heard == Heard::New(order), newer);
                    if newer {
                        heeded.push(order);
                        in_force = Some(order);
                    }
                }
                Step::Release(number) => {
                    let fits = in_force.is_some_and(|order| order.number == number);
                    let may = desk.may_release(number, None);
                    assert_eq!(may.is_ok(), fits);
                    if let Ok(order) = may {
                        desk.release(order).expect("just asked");
                        in_force = None;
                    }
                }
                Step::Restart => desk = StopDesk::new(true, desk.seen().to_vec(), desk.present().cloned()),
            }
            assert_eq!(desk.present().map(|present| present.order), in_force);
        }
        histories += 1;
    }
    assert_eq!(histories, 7_usize.pow(4));
}

proptest! {
    #[test]
    fn no_bytes_stop_a_node(bytes in prop::collection::vec(any::<u8>(), 0..600), link: bool) {
        let fleet = Fleet::new(1);
        let carrier = if link { Carrier::Link } else { Carrier::Datagram };
        let mut desk = desk();
        let marked = [b"SWST\x01".as_slice(), &fleet.root.fingerprint().prefix(), &bytes].concat();
        for bytes in [&bytes, &marked] {
            prop_assert!(hear(&mut desk, &fleet, carrier, bytes).is_err());
        }
        prop_assert!(desk.present().is_none() && desk.seen().is_empty());
    }

    #[test]
    fn the_number_in_force_of_one_issuer_only_rises(numbers in prop::collection::vec(1_u64..6, 1..12)) {
        let fleet = Fleet::new(1);
        let mut desk = desk();
        let mut last = 0;
        for number in numbers {
            let bytes = fleet.datagram(10, number, "all");
            hear(&mut desk, &fleet, Carrier::Datagram, &bytes).expect("sound");
            let present = desk.present().expect("stopped").order.number;
            prop_assert_eq!(present, last.max(number));
            last = present;
        }
    }
}
