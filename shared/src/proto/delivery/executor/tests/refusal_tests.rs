//! What keeps a command from running: another one, too many, the disk, a stop, the end of the process.

use super::*;

#[test]
fn another_command_with_the_same_number_never_gets_its_outcome() {
    let mut place = Place::new();
    let other = Incoming {
        digest: digest("camera", b"{}"),
        ..incoming(1, place.now, PLAIN)
    };
    let refused = |place: &mut Place, when: &str| {
        assert!(!place.take(other));
        let (state, why) = place.answer(1);
        assert_eq!(state, Outcome::Refused, "{when}");
        assert!(why.contains("another command"), "{why}");
    };
    place.send(1, PLAIN);
    place.said();
    refused(&mut place, "running");
    assert!(place.desk.holds(id(1)), "the first goes on");
    place.crash();
    refused(&mut place, "begun");
    place.send(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Unknown);
    refused(&mut place, "ended");
    place.fails = Some("no space left");
    place.send(2, PLAIN);
    place.said();
    let other = Incoming { id: id(2), ..other };
    assert!(!place.take(other));
    assert!(place.answer(2).1.contains("another command"));
}

#[test]
fn too_many_are_refused_as_busy_and_stay_refused() {
    let mut place = Place::new();
    place.fill(1);
    let full = 100 + WAITING_MAX as u64;
    for seq in 100..full {
        assert!(place.send(seq, PLAIN));
    }
    place.said();
    assert!(!place.send(full, PLAIN));
    let (state, why) = place.answer(full);
    assert_eq!(state, Outcome::Refused);
    assert!(why.starts_with("busy"), "{why}");
    for seq in 1..=ORDINARY_MAX as u64 {
        place.finish(seq, done());
    }
    assert_eq!(
        place.runs().len(),
        ORDINARY_MAX,
        "the first of the line take the places"
    );
    assert!(
        !place.send(full, PLAIN),
        "its issuer has been told that it does not run"
    );
    assert!(place.answer(full).1.starts_with("busy"));
    place.crash();
    assert!(!place.send(full, PLAIN));
    assert!(place.answer(full).1.starts_with("busy"));
}

#[test]
fn what_is_at_hand_is_bounded_while_the_disk_stands_still() {
    let mut place = Place::new();
    place.held = Some(Vec::new());
    for seq in 0..10 * OPEN_MAX as u64 {
        place.ask(seq, PLAIN);
    }
    assert!(place.desk.open.len() <= OPEN_MAX);
    assert!(place.desk.writing.len() <= OPEN_MAX + 1);
    assert!(place.desk.unsaved.take_due().0.len() <= UNSAVED_MAX);
}

#[test]
fn a_journal_that_fails_refuses_what_acts_and_heals_by_itself() {
    let mut place = Place::new();
    place.fails = Some("No space left on device; free space below /var");
    place.send(1, PLAIN);
    let (state, why) = place.answer(1);
    assert_eq!(state, Outcome::Refused);
    assert!(
        why.starts_with("the node's journal cannot be written: No space left on device; free space"),
        "{why}"
    );
    // At once, and without a word of acceptance.
    assert!(!place.send(2, PLAIN));
    let refused = place.said();
    assert!(matches!(
        refused.as_slice(),
        [
            Effect::Stage {
                stage: Stage::Received,
                ..
            },
            Effect::Answer { .. }
        ]
    ));

    place.fails = None;
    place.pass(u64::try_from(JOURNAL_RETRY.as_millis()).expect("short"));
    assert!(place.send(3, PLAIN));
    assert_eq!(place.runs(), [3]);
    // What was answered meanwhile is durable by now.
    place.crash();
    for seq in [1, 2] {
        assert!(!place.send(seq, PLAIN));
        assert_eq!(place.answer(seq).0, Outcome::Refused);
    }
}

#[test]
fn an_outcome_that_cannot_be_written_is_told_all_the_same() {
    let mut place = Place::new();
    place.send(1, PLAIN);
    place.said();
    place.fails = Some("I/O error");
    place.finish(1, done());
    assert_eq!(place.answer(1).0, Outcome::Done);
    place.send(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Done, "memory answers");
    place.fails = None;
    place.pass(2_000);
    place.crash();
    place.send(1, PLAIN);
    assert_eq!(place.answer(1).0, Outcome::Done, "it was made durable later");
}

#[test]
fn a_failing_journal_is_not_tried_again_before_its_time() {
    let mut place = Place::new();
    place.fails = Some("I/O error");
    place.send(1, PLAIN);
    place.held = Some(Vec::new());
    place.pass(1_999);
    place.send(2, PLAIN);
    assert_eq!(place.held.as_ref().map(Vec::len), Some(0));
    place.pass(1);
    assert_eq!(place.held.as_ref().map(Vec::len), Some(1));
    assert_eq!(place.desk.poll_timeout(), None, "one attempt at a time");
}

#[test]
fn a_stop_refuses_what_waits_and_kills_what_runs() {
    let through = Traits {
        while_stopped: true,
        ..PLAIN
    };
    let mut place = Place::new();
    place.send(1, through);
    for seq in 2..=ORDINARY_MAX as u64 {
        place.send(seq, PLAIN);
    }
    place.send(20, PLAIN);
    place.send(21, through);
    place.said();
    place.stop();
    let said = place.said();
    let kills = said.iter().filter(|effect| matches!(effect, Effect::Kill { .. }));
    assert_eq!(kills.count(), ORDINARY_MAX - 1);
    assert!(!said.contains(&Effect::Kill { id: id(1) }));
    let refused = |effect: &Effect| matches!(effect, Effect::Answer { id: whose, reply } if *whose == id(20) && reply.state == Outcome::Refused);
    assert!(said.iter().any(refused), "{said:?}");

    place.stop();
    assert_eq!(place.said(), [], "once is enough");
    let ended_by_us = Reply {
        exit: Some(143),
        ..Reply::failed("it was killed")
    };
    place.finish(2, ended_by_us);
    let said = place.said();
    assert!(
        said.contains(&Effect::Run { id: id(21) }),
        "the place goes on to it"
    );
    let killed = Reply {
        exit: Some(143),
        ..Reply::failed("emergency stop: it was killed")
    };
    assert!(said.contains(&Effect::Answer {
        id: id(2),
        reply: killed
    }));
    place.finish(3, done());
    assert_eq!(place.answer(3).0, Outcome::Done, "it was quicker");
    place.finish(4, done());
    place.said();

    assert!(!place.send(30, PLAIN));
    let (state, why) = place.answer(30);
    assert_eq!(state, Outcome::Refused);
    assert!(why.contains("emergency stop"), "{why}");
    assert!(place.send(31, through));
    place.desk.released();
    assert!(place.send(32, PLAIN));
    assert_eq!(place.runs(), [31, 32]);
    assert!(!place.send(30, PLAIN), "a release does not bring it back");
    assert_eq!(place.answer(30).0, Outcome::Refused);
}

#[test]
fn a_stop_between_the_write_and_the_start_comes_in_time_even_if_released() {
    for released in [false, true] {
        let mut place = Place::new();
        place.held = Some(Vec::new());
        place.send(1, PLAIN);
        place.stop();
        if released {
            place.desk.released();
        }
        place.write_on();
        assert!(place.runs().is_empty());
        place.write_on();
        assert_eq!(place.answer(1).0, Outcome::Refused);
    }
}

#[test]
fn at_shutdown_nothing_begins_and_what_ran_is_written() {
    let mut place = Place::new();
    place.fill(1);
    place.send(20, PLAIN);
    place.finish(1, done());
    assert_eq!(place.runs(), [20]);
    place.send(21, PLAIN);
    place.said();
    place.held = Some(Vec::new());
    place.finish(20, done());
    // 21 is being written, 20 too.
    place.send(22, PLAIN);
    place.desk.close(place.now);
    place.carry_out();
    place.write_on();
    place.write_on();
    let said = place.said();
    assert!(
        !said.iter().any(|effect| matches!(effect, Effect::Run { .. })),
        "{said:?}"
    );
    assert!(!place.desk.is_idle());
    place.held = None;
    for seq in 2..=ORDINARY_MAX as u64 {
        place.finish(seq, Reply::failed("it was killed"));
    }
    assert!(place.desk.is_idle());
    assert!(!place.send(40, PLAIN));
    place.crash();
    assert!(
        place.send(22, PLAIN),
        "it waited, so it is as if it had never come"
    );
    place.said();
    place.send(3, PLAIN);
    let why = place.answer(3).1;
    assert_eq!(why, "the node is shutting down: it was killed");
    for (seq, state) in [(2, Outcome::Failed), (20, Outcome::Done), (21, Outcome::Refused)] {
        assert!(!place.send(seq, PLAIN));
        assert_eq!(place.answer(seq).0, state, "{seq}");
    }
}

#[test]
fn a_word_about_something_else_changes_nothing() {
    let mut place = Place::new();
    place.finish(1, done());
    place.desk.written(Ticket(9), place.now);
    place.desk.not_written(Ticket(9), "?", place.now);
    place.carry_out();
    assert_eq!(place.said(), []);
    place.held = Some(Vec::new());
    place.send(1, PLAIN);
    place.said();
    place.finish(1, done());
    assert_eq!(place.said(), [], "it does not run yet");
}
