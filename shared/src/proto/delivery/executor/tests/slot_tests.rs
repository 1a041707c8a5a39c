//! Slots and priorities of commands.

use super::*;

#[test]
fn flight_action_starts_when_ordinary_slots_are_full() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    for seq in 9..=100 {
        node.send(seq, PLAIN);
    }
    node.take_effects();
    // Two slots are reserved for flight actions, and waiting ones start before all ordinary commands.
    for seq in 101..=103 {
        let land = IncomingCommand {
            ttl_ms: Some(2_000),
            ..incoming(seq, node.now, FLIGHT)
        };
        assert!(node.receive(land));
    }
    assert_eq!(node.take_started(), [101, 102]);
    node.finish(1, done());
    assert_eq!(node.take_started(), [103]);
    for seq in 101..=103 {
        node.finish(seq, done());
    }
    assert_eq!(node.take_started(), [9], "seven others run, so one more may");
}

fn flight_command(seq: u64, now: Instant, ends_flight: bool) -> IncomingCommand {
    let traits = ActionProperties {
        ends_flight,
        ..FLIGHT
    };
    IncomingCommand {
        ttl_ms: Some(2_000),
        ..incoming(seq, now, traits)
    }
}

#[test]
fn waiting_flight_action_never_starts_after_a_landing() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    for seq in 101..=103 {
        node.receive(flight_command(seq, node.now, false));
    }
    assert_eq!(node.take_started(), [101, 102]);
    node.receive(flight_command(104, node.now, true));
    let effects = node.take_effects();
    assert!(effects.contains(&Effect::Run { id: id(104) }), "{effects:?}");
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::Reply { id: of, reply } if *of == id(103) && reply.state == Outcome::Refused)
    });
    assert!(refused, "{effects:?}");
    for seq in [101, 102, 104] {
        node.finish(seq, done());
    }
    assert_eq!(node.take_started(), [0; 0]);
    // A flight action that comes after the landing action starts.
    node.receive(flight_command(105, node.now, false));
    assert_eq!(node.take_started(), [105]);
}

#[test]
fn landing_action_starts_when_all_other_slots_are_full() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    // As many as the limits allow, of each kind.
    for seq in 9..=400 {
        node.send(seq, PLAIN);
    }
    for seq in 401..=800 {
        node.receive(flight_command(seq, node.now, false));
    }
    assert_eq!(node.take_started(), [401, 402]);
    let ends = LANDING_MAX as u64;
    for seq in 801..=801 + ends {
        assert!(node.receive(flight_command(seq, node.now, true)));
    }
    assert_eq!(node.take_started(), (801..801 + ends).collect::<Vec<_>>());
    // Landing actions use no other slots, and wait only for one another.
    node.finish(1, done());
    assert_eq!(node.take_started(), [9]);
    node.finish(801, done());
    assert_eq!(node.take_started(), [801 + ends]);
    // The TTL class does not matter.
    node.finish(802, done());
    let ordinary = ActionProperties {
        ends_flight: true,
        ..PLAIN
    };
    node.take_effects();
    assert!(node.send(900, ordinary));
    assert_eq!(node.take_started(), [900]);
}
