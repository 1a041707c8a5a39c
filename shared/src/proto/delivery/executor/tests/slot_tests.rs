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

fn gateway_command(seq: u64, now: Instant, properties: ActionProperties) -> IncomingCommand {
    IncomingCommand {
        ttl_ms: Some(2_000),
        source: CommandSource::Gateway,
        ..incoming(seq, now, properties)
    }
}

#[test]
fn gateway_commands_leave_slots_to_stations() {
    let mut node = SimulatedNode::new();
    for seq in 1..=9 {
        node.receive(gateway_command(seq, node.now, PLAIN));
    }
    assert_eq!(node.take_started(), [1, 2, 3, 4, 5, 6]);
    node.send(10, PLAIN);
    node.send(11, PLAIN);
    assert_eq!(node.take_started(), [10, 11], "they go past those of the gateway");
    for seq in 21..=24 {
        node.receive(gateway_command(seq, node.now, FLIGHT));
    }
    assert_eq!(node.take_started(), [21, 22], "no more than ten slots are shared");
    node.finish(10, done());
    assert_eq!(node.take_started(), [23]);
    node.finish(1, done());
    assert_eq!(
        node.take_started(),
        [7],
        "three flight actions of the gateway run"
    );
}

#[test]
fn gateway_commands_that_wait_take_no_room_from_stations() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    let limit = WAITING_MAX as u64;
    for seq in 0..limit {
        assert!(node.receive(gateway_command(100 + seq, node.now, PLAIN)));
    }
    assert!(!node.receive(gateway_command(200, node.now, PLAIN)), "busy");
    for seq in 0..limit {
        assert!(node.send(300 + seq, PLAIN));
    }
    assert!(!node.send(400, PLAIN), "busy");
}

#[test]
fn commands_wait_for_the_file_before_them() {
    let mut node = SimulatedNode::new();
    let after = |file, command: IncomingCommand| IncomingCommand {
        after: Some(AfterFile {
            file,
            arrived_at: command.deadline.expect("set") - Duration::from_secs(10),
        }),
        ..command
    };
    node.receive(after(1, gateway_command(1, node.now, FLIGHT)));
    node.receive(after(1, gateway_command(2, node.now, PLAIN)));
    node.receive(after(2, gateway_command(3, node.now, PLAIN)));
    node.receive(gateway_command(4, node.now, PLAIN));
    assert_eq!(node.take_started(), [4]);
    node.executor.on_file_ended(1, None, node.now);
    node.apply_effects();
    assert_eq!(node.take_started(), [1, 2]);
    node.executor
        .on_file_ended(2, Some((node.now, "disk full")), node.now);
    node.apply_effects();
    assert_eq!(node.take_started(), [3], "only flight actions need the file");
}

#[test]
fn only_flights_sent_before_a_failed_file_are_refused() {
    let mut node = SimulatedNode::new();
    let failed_at = node.now + Duration::from_millis(100);
    for (seq, arrived_at) in [
        (1, node.now),
        (2, failed_at),
        (3, failed_at + Duration::from_millis(1)),
    ] {
        let after = Some(AfterFile { file: 2, arrived_at });
        node.receive(IncomingCommand {
            after,
            ..gateway_command(seq, node.now, FLIGHT)
        });
    }
    node.take_effects();
    node.executor
        .on_file_ended(2, Some((failed_at, "disk full")), failed_at);
    node.apply_effects();
    let effects = node.take_effects();
    let refused = |seq| {
        effects.iter().any(|effect| {
            matches!(effect, Effect::Reply { id: replied, reply }
                if *replied == id(seq) && reply.error.as_deref().is_some_and(|error| error.contains("disk full")))
        })
    };
    assert_eq!([1, 2, 3].map(refused), [true, true, false], "{effects:?}");
    assert!(effects.contains(&Effect::Run { id: id(3) }));
}

#[test]
fn a_landing_refuses_flights_that_wait_for_a_file() {
    let mut node = SimulatedNode::new();
    let arrived_at = node.now;
    let after = Some(AfterFile { file: 1, arrived_at });
    node.receive(IncomingCommand {
        after,
        ..gateway_command(1, node.now, FLIGHT)
    });
    node.receive(flight_command(2, node.now, true));
    assert_eq!(node.take_started(), [2]);
    node.executor.on_file_ended(1, None, node.now);
    node.apply_effects();
    assert_eq!(node.take_started(), [0; 0]);
}
