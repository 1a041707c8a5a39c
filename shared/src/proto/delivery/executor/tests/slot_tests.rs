//! Who has a place, however much runs and waits.

use super::*;

#[test]
fn a_flight_action_starts_however_much_runs_and_waits() {
    let mut place = Place::new();
    place.fill(1);
    for seq in 9..=100 {
        place.send(seq, PLAIN);
    }
    place.said();
    // Two places are for them alone, and who waits goes before all others.
    for seq in 101..=103 {
        let land = Incoming {
            life_ms: Some(2_000),
            ..incoming(seq, place.now, FLIGHT)
        };
        assert!(place.take(land));
    }
    assert_eq!(place.runs(), [101, 102]);
    place.finish(1, done());
    assert_eq!(place.runs(), [103]);
    for seq in 101..=103 {
        place.finish(seq, done());
    }
    assert_eq!(place.runs(), [9], "seven others run, so one more may");
}

fn fly(seq: u64, now: Instant, ends_flight: bool) -> Incoming {
    let traits = Traits {
        ends_flight,
        ..FLIGHT
    };
    Incoming {
        life_ms: Some(2_000),
        ..incoming(seq, now, traits)
    }
}

#[test]
fn no_flight_that_waits_begins_after_what_ends_one() {
    let mut place = Place::new();
    place.fill(1);
    for seq in 101..=103 {
        place.take(fly(seq, place.now, false));
    }
    assert_eq!(place.runs(), [101, 102]);
    place.take(fly(104, place.now, true));
    let said = place.said();
    assert!(said.contains(&Effect::Run { id: id(104) }), "{said:?}");
    let refused = said.iter().any(|effect| {
        matches!(effect, Effect::Answer { id: whose, reply } if *whose == id(103) && reply.state == Outcome::Refused)
    });
    assert!(refused, "{said:?}");
    for seq in [101, 102, 104] {
        place.finish(seq, done());
    }
    assert_eq!(place.runs(), [0; 0]);
    // What comes after it begins.
    place.take(fly(105, place.now, false));
    assert_eq!(place.runs(), [105]);
}

#[test]
fn what_ends_a_flight_starts_whatever_else_has_all_places_or_waits() {
    let mut place = Place::new();
    place.fill(1);
    // As many as can be, of each.
    for seq in 9..=400 {
        place.send(seq, PLAIN);
    }
    for seq in 401..=800 {
        place.take(fly(seq, place.now, false));
    }
    assert_eq!(place.runs(), [401, 402]);
    let ends = ENDING_MAX as u64;
    for seq in 801..=801 + ends {
        assert!(place.take(fly(seq, place.now, true)));
    }
    assert_eq!(place.runs(), (801..801 + ends).collect::<Vec<_>>());
    // They take no place of others, and wait only for one another.
    place.finish(1, done());
    assert_eq!(place.runs(), [9]);
    place.finish(801, done());
    assert_eq!(place.runs(), [801 + ends]);
    // Whatever its class.
    place.finish(802, done());
    let ordinary = Traits {
        ends_flight: true,
        ..PLAIN
    };
    place.said();
    assert!(place.send(900, ordinary));
    assert_eq!(place.runs(), [900]);
}
