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

fn stop_id(seed: u8, number: u64) -> StopId {
    StopId {
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

fn receiver() -> StopReceiver {
    StopReceiver::new(true, Vec::new(), None)
}

fn receive(
    receiver: &mut StopReceiver,
    fleet: &Fleet,
    carrier: ReceivedVia,
    bytes: &[u8],
) -> Result<Received, StopRejection> {
    let name = NodeName::parse("drone-07").expect("a name");
    let tags = BTreeMap::from([("row".to_owned(), "3".to_owned())]);
    let me = NodeAttributes {
        name: &name,
        id: &OWN.id(),
        tags: &tags,
    };
    receiver.receive(bytes, carrier, Some(&fleet.membership), &me, now())
}

#[test]
fn stop_takes_effect_once_over_link_or_datagram() {
    let fleet = Fleet::new(1);
    for first in [ReceivedVia::Link, ReceivedVia::Datagram] {
        let mut receiver = receiver();
        let bytes = fleet.datagram(10, 5, "drone-*");
        assert_eq!(
            receive(&mut receiver, &fleet, first, &bytes),
            Ok(Received::New(stop_id(10, 5)))
        );
        assert_eq!(
            receive(&mut receiver, &fleet, ReceivedVia::Link, &bytes),
            Ok(Received::Duplicate(stop_id(10, 5)))
        );
        assert_eq!(
            receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes),
            Ok(Received::Ignored)
        );
        let old = fleet.datagram(10, 4, "all");
        assert_eq!(
            receive(&mut receiver, &fleet, ReceivedVia::Link, &old),
            Ok(Received::Stale(stop_id(10, 4)))
        );
        assert_eq!(
            receive(&mut receiver, &fleet, ReceivedVia::Datagram, &old),
            Ok(Received::Ignored)
        );
    }
}

#[test]
fn forged_stop_has_no_effect() {
    let fleet = Fleet::new(1);
    let other = Fleet::new(2);
    let mut receiver = receiver();
    let mut refused = |bytes: &[u8]| {
        let fault = receive(&mut receiver, &fleet, ReceivedVia::Datagram, bytes).expect_err("refused");
        assert!(receiver.active_stop().is_none() && receiver.highest_numbers().is_empty());
        fault
    };
    // Another key signed it, with the issuer's grant.
    let by_another = fleet.order(10, 5, "all").encode(&key(11), &fleet.grants[&10]);
    assert_eq!(
        refused(&by_another.expect("short")),
        StopRejection::Forged(TrustError::BadSignature)
    );
    // The issuer has a grant, but not this one.
    let grant_of_another = fleet.order(10, 5, "all").encode(&key(10), &fleet.grants[&11]);
    assert_eq!(
        refused(&grant_of_another.expect("short")),
        StopRejection::OtherKey(id(10))
    );
    for (seed, role) in [(13, Role::Observer), (14, Role::Node)] {
        let issuer = id(seed);
        assert_eq!(
            refused(&fleet.datagram(seed, 5, "all")),
            StopRejection::NotAllowed { issuer, role }
        );
    }
    assert_eq!(refused(&other.datagram(10, 5, "all")), StopRejection::OtherFleet);
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
    assert_eq!(refused(&bytes), StopRejection::Forged(TrustError::BadSignature));
    // The other fleet's grant under this fleet's prefix.
    let bytes = fleet.order(10, 5, "all").encode(&key(10), &other.grants[&10]);
    assert_eq!(refused(&bytes.expect("short")), StopRejection::OtherFleet);
}

#[test]
fn stop_with_any_bit_flipped_has_no_effect() {
    let fleet = Fleet::new(1);
    let good = fleet.datagram(10, 5, "all");
    let mut receiver = receiver();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(
            receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes).is_err(),
            "byte {at}"
        );
        assert!(receiver.active_stop().is_none());
    }
}

#[test]
fn stop_of_a_revoked_key_is_rejected() {
    let mut fleet = Fleet::new(1);
    let bytes = fleet.datagram(10, 5, "all");
    let state = fleet.root.revoke(key(10).public()).expect("room").clone();
    fleet.membership.adopt_state(state).expect("the root's");
    let mut receiver = receiver();
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Link, &bytes),
        Err(StopRejection::Revoked(id(10)))
    );
    assert!(receiver.active_stop().is_none());
}

#[test]
fn node_without_fleet_rejects_stops() {
    let fleet = Fleet::new(1);
    let name = NodeName::parse("n").expect("a name");
    let me = NodeAttributes {
        name: &name,
        id: &OWN.id(),
        tags: &BTreeMap::new(),
    };
    let bytes = fleet.datagram(10, 5, "all");
    let heard = receiver().receive(&bytes, ReceivedVia::Datagram, None, &me, now());
    assert_eq!(heard, Err(StopRejection::NoFleet));
}

#[test]
fn stale_release_does_not_end_a_newer_stop() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    assert_eq!(receiver.check_release(5, None), Err(ReleaseError::NotStopped));
    receive(
        &mut receiver,
        &fleet,
        ReceivedVia::Link,
        &fleet.datagram(10, 5, "all"),
    )
    .expect("new");
    let first = receiver.check_release(5, Some(&id(10))).expect("in force");
    // Another station stops the node while the release is being stored.
    receive(
        &mut receiver,
        &fleet,
        ReceivedVia::Link,
        &fleet.datagram(11, 9, "all"),
    )
    .expect("new");
    let not = ReleaseError::OtherStop {
        asked: 5,
        present: stop_id(11, 9),
    };
    assert_eq!(receiver.release(first), Err(not.clone()));
    assert_eq!(receiver.check_release(5, None), Err(not));
    assert!(
        receiver.check_release(9, Some(&id(10))).is_err(),
        "the number of another issuer"
    );
    let second = receiver.check_release(9, Some(&id(11))).expect("in force");
    assert_eq!(receiver.release(second), Ok(()));
    assert!(receiver.active_stop().is_none());
    for replayed in [fleet.datagram(10, 5, "all"), fleet.datagram(11, 9, "all")] {
        assert_eq!(
            receive(&mut receiver, &fleet, ReceivedVia::Datagram, &replayed),
            Ok(Received::Ignored)
        );
        assert!(
            receiver.active_stop().is_none(),
            "a replay after the release does nothing"
        );
    }
}

#[test]
fn stop_for_other_targets_is_forwarded_once() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    let bytes = fleet.datagram(10, 5, "drone-08");
    let id = stop_id(10, 5);
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes),
        Ok(Received::OtherTargets { id, forward: true })
    );
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes),
        Ok(Received::Ignored)
    );
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Link, &bytes),
        Ok(Received::OtherTargets { id, forward: false })
    );
    assert!(receiver.active_stop().is_none());
    // An order with a lower number that matches this node is still executed: it took longer to arrive.
    let mine = fleet.datagram(10, 4, "drone-07");
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &mine),
        Ok(Received::New(stop_id(10, 4)))
    );
    for number in 0..200 {
        let bytes = fleet.datagram(11, number, "drone-08");
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes).expect("sound");
    }
    assert_eq!(receiver.forwarded.len(), FORWARDED_MAX);
}

#[test]
fn raised_number_makes_a_recorded_stop_stale() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    let kept = fleet.datagram(10, 5, "all");
    let counted = fleet.datagram(10, 5, NO_NODES);
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &counted),
        Ok(Received::Ignored),
        "only over a link"
    );
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Link, &counted),
        Ok(Received::NumberRaised(stop_id(10, 5)))
    );
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Link, &counted),
        Ok(Received::Ignored)
    );
    assert_eq!(
        receive(&mut receiver, &fleet, ReceivedVia::Datagram, &kept),
        Ok(Received::Ignored)
    );
    assert!(receiver.active_stop().is_none());
}

#[test]
fn restart_does_not_release_the_stop() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    let bytes = fleet.datagram(10, 5, "all");
    receive(&mut receiver, &fleet, ReceivedVia::Link, &bytes).expect("new");
    let mut again = StopReceiver::new(
        true,
        receiver.highest_numbers().to_vec(),
        receiver.active_stop().cloned(),
    );
    assert_eq!(
        again.active_stop().map(|present| present.id),
        Some(stop_id(10, 5))
    );
    assert_eq!(
        receive(&mut again, &fleet, ReceivedVia::Link, &bytes),
        Ok(Received::Duplicate(stop_id(10, 5)))
    );
}

#[test]
fn status_tells_the_highest_released_number() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    let released = |receiver: &StopReceiver, seed| receiver.status(&id(seed), None, now()).released;
    for (seed, number) in [(10, 5), (11, 9)] {
        let order = fleet.datagram(seed, number, "all");
        receive(&mut receiver, &fleet, ReceivedVia::Link, &order).expect("new");
    }
    assert_eq!(released(&receiver, 10), Some(0));
    // The second stop had replaced the first.
    receiver.release(stop_id(11, 9)).expect("in force");
    let again = StopReceiver::restored(true, &receiver.memory(), now());
    for receiver in [&receiver, &again] {
        assert_eq!(
            (released(receiver, 10), released(receiver, 11)),
            (Some(5), Some(9))
        );
    }
    let lost = StopReceiver::new(true, vec![stop_id(10, 5)], None);
    let report = lost.status(&id(10), None, now());
    assert!(report.seen == 5 && !report.proves_release(5));
}

#[test]
fn held_node_is_stopped_by_a_new_order_and_released_by_number() {
    let fleet = Fleet::new(1);
    let hold = StoredStop {
        issuer: OWN.id(),
        number: 3,
        held: true,
        command_result: None,
    };
    let memory = StopMemory {
        active: Some(hold),
        issuers: Vec::new(),
    };
    let mut held = StopReceiver::restored(true, &memory, now());
    assert_eq!((held.state(), held.memory()), (StopState::Held, memory.clone()));
    let report = held.status(&id(10), None, now());
    assert!(report.stopped && report.held && report.command == StopCommandState::None);
    assert!(held.check_release(0, None).is_err());
    let mut stopped = held.clone();
    held.release(StopId {
        issuer: report.issuer,
        number: report.number,
    })
    .expect("in force");
    assert_eq!(held.state(), StopState::Free);
    receive(
        &mut stopped,
        &fleet,
        ReceivedVia::Datagram,
        &fleet.datagram(10, 5, "all"),
    )
    .expect("new");
    assert_eq!(stopped.state(), StopState::Stopped);
    assert_eq!(
        stopped.active_stop().map(|stop| stop.command),
        Some(StopCommandState::Running)
    );
}

#[test]
fn stop_status_describes_the_latch() {
    let fleet = Fleet::new(1);
    let mut receiver = receiver();
    let calm = receiver.status(&id(10), Some(stop_id(10, 5)), now());
    assert!(!calm.stopped && calm.number == 5 && calm.seen == 0);
    receive(
        &mut receiver,
        &fleet,
        ReceivedVia::Link,
        &fleet.datagram(10, 5, "all"),
    )
    .expect("new");
    let stopped = receiver.status(&id(10), None, now());
    assert!(stopped.stopped && !stopped.latched && stopped.seen == 5);
    assert_eq!(
        (stopped.command, stopped.error),
        (StopCommandState::Running, None)
    );
    assert_eq!(receiver.status(&id(11), None, now()).seen, 0);
    assert!(receiver.on_write_failed(stop_id(10, 5), "the disk is full"));
    assert_eq!(
        receiver.on_command_ended(Err("exit status 3".to_owned())),
        Some(stop_id(10, 5))
    );
    let error = receiver.status(&id(10), None, now()).error.expect("two faults");
    assert!(
        error.contains("the disk is full") && error.contains("exit status 3"),
        "{error}"
    );
    assert!(receiver.on_written(stop_id(10, 5)));
    assert!(
        !receiver.on_written(stop_id(10, 4)),
        "of a stop that is not in force"
    );
    let report = receiver.status(&id(10), None, now() + Duration::from_secs(3));
    assert!(report.latched && report.command == StopCommandState::Failed && report.since_ms >= 3_000);
}

#[test]
fn least_recent_stop_issuer_is_evicted() {
    let seen = (0..100).map(|n| StopId {
        issuer: PublicKey([n; 32]).id(),
        number: 1,
    });
    let receiver = StopReceiver::new(false, seen.collect(), None);
    assert_eq!(receiver.highest_numbers().len(), ISSUERS_MAX);
    assert_eq!(
        receiver.highest_numbers().last().map(|last| last.issuer),
        Some(PublicKey([99; 32]).id())
    );
}

/// An event at a node, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Receive(ReceivedVia, u8, u64),
    Release(u64),
    Restart,
}

fn steps() -> Vec<Step> {
    let mut steps = vec![Step::Restart, Step::Release(1), Step::Release(2)];
    steps.push(Step::Receive(ReceivedVia::Link, 10, 1));
    for (seed, number) in [(10, 1), (10, 2), (11, 2)] {
        steps.push(Step::Receive(ReceivedVia::Datagram, seed, number));
    }
    steps
}

/// Every sequence of four events: the node is stopped by exactly the newest order that was executed and not released
/// by its number, and no order is executed twice.
#[test]
fn stop_state_holds_for_every_short_history() {
    let fleet = Fleet::new(1);
    let all = steps();
    let orders: BTreeMap<(u8, u64), Vec<u8>> = [(10, 1), (10, 2), (11, 2)]
        .into_iter()
        .map(|(seed, number)| ((seed, number), fleet.datagram(seed, number, "all")))
        .collect();
    let mut histories = 0;
    for history in 0..all.len().pow(4) {
        let mut receiver = receiver();
        let (mut in_force, mut executed): (Option<StopId>, Vec<StopId>) = (None, Vec::new());
        for place in 0..4_u32 {
            match all[history / all.len().pow(place) % all.len()] {
                Step::Receive(carrier, seed, number) => {
                    let heard =
                        receive(&mut receiver, &fleet, carrier, &orders[&(seed, number)]).expect("sound");
                    let order = stop_id(seed, number);
                    let newer = !executed
                        .iter()
                        .any(|old| old.issuer == order.issuer && old.number >= order.number);
                    assert_eq!(heard == Received::New(order), newer);
                    if newer {
                        executed.push(order);
                        in_force = Some(order);
                    }
                }
                Step::Release(number) => {
                    let fits = in_force.is_some_and(|order| order.number == number);
                    let may = receiver.check_release(number, None);
                    assert_eq!(may.is_ok(), fits);
                    if let Ok(order) = may {
                        receiver.release(order).expect("just asked");
                        in_force = None;
                    }
                }
                Step::Restart => {
                    receiver = StopReceiver::new(
                        true,
                        receiver.highest_numbers().to_vec(),
                        receiver.active_stop().cloned(),
                    );
                }
            }
            assert_eq!(receiver.active_stop().map(|present| present.id), in_force);
        }
        histories += 1;
    }
    assert_eq!(histories, 7_usize.pow(4));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_stop_a_node(bytes in prop::collection::vec(any::<u8>(), 0..600), link: bool) {
        let fleet = Fleet::new(1);
        let carrier = if link { ReceivedVia::Link } else { ReceivedVia::Datagram };
        let mut receiver = receiver();
        let marked = [b"SWST\x01".as_slice(), &fleet.root.fingerprint().prefix(), &bytes].concat();
        for bytes in [&bytes, &marked] {
            prop_assert!(receive(&mut receiver, &fleet, carrier, bytes).is_err());
        }
        prop_assert!(receiver.active_stop().is_none() && receiver.highest_numbers().is_empty());
    }

    #[test]
    fn active_stop_number_of_an_issuer_only_rises(numbers in prop::collection::vec(1_u64..6, 1..12)) {
        let fleet = Fleet::new(1);
        let mut receiver = receiver();
        let mut last = 0;
        for number in numbers {
            let bytes = fleet.datagram(10, number, "all");
            receive(&mut receiver, &fleet, ReceivedVia::Datagram, &bytes).expect("sound");
            let present = receiver.active_stop().expect("stopped").id.number;
            prop_assert_eq!(present, last.max(number));
            last = present;
        }
    }
}
