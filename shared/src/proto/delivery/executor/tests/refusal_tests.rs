//! Reasons that keep a command from running: a conflicting identity, a limit, the disk, a stop, a shutdown.

use super::*;

#[test]
fn conflicting_identity_never_gets_the_outcome() {
    let mut node = SimulatedNode::new();
    let other = IncomingCommand {
        digest: digest("camera", b"{}"),
        ..incoming(1, node.now, PLAIN)
    };
    let refused = |node: &mut SimulatedNode, when: &str| {
        assert!(!node.receive(other));
        let (state, why) = node.take_reply(1);
        assert_eq!(state, Outcome::Refused, "{when}");
        assert!(why.contains("another command"), "{why}");
    };
    node.send(1, PLAIN);
    node.take_effects();
    refused(&mut node, "running");
    assert!(node.executor.contains(id(1)), "the first goes on");
    node.crash();
    refused(&mut node, "begun");
    node.send(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Unknown);
    refused(&mut node, "ended");
    node.write_error = Some("no space left");
    node.send(2, PLAIN);
    node.take_effects();
    let other = IncomingCommand { id: id(2), ..other };
    assert!(!node.receive(other));
    assert!(node.take_reply(2).1.contains("another command"));
}

#[test]
fn excess_commands_are_refused_as_busy_permanently() {
    let mut place = SimulatedNode::new();
    place.fill_slots(1);
    let full = 100 + WAITING_MAX as u64;
    for seq in 100..full {
        assert!(place.send(seq, PLAIN));
    }
    place.take_effects();
    assert!(!place.send(full, PLAIN));
    let (state, why) = place.take_reply(full);
    assert_eq!(state, Outcome::Refused);
    assert!(why.starts_with("busy"), "{why}");
    for seq in 1..=ORDINARY_MAX as u64 {
        place.finish(seq, done());
    }
    assert_eq!(
        place.take_started().len(),
        ORDINARY_MAX,
        "the first of the line take the places"
    );
    assert!(
        !place.send(full, PLAIN),
        "its issuer has been told that it does not run"
    );
    assert!(place.take_reply(full).1.starts_with("busy"));
    place.crash();
    assert!(!place.send(full, PLAIN));
    assert!(place.take_reply(full).1.starts_with("busy"));
}

#[test]
fn in_flight_commands_are_bounded_while_the_disk_stalls() {
    let mut place = SimulatedNode::new();
    place.unanswered_writes = Some(Vec::new());
    for seq in 0..10 * IN_FLIGHT_MAX as u64 {
        place.query(seq, PLAIN);
    }
    assert!(place.executor.in_flight.len() <= IN_FLIGHT_MAX);
    assert!(place.executor.writes.len() <= IN_FLIGHT_MAX + 1);
    assert!(place.executor.pending_writes.next_batch().0.len() <= PENDING_WRITES_MAX);
}

#[test]
fn failing_journal_refuses_commands_and_recovers() {
    let mut place = SimulatedNode::new();
    place.write_error = Some("No space left on device; free space below /var");
    place.send(1, PLAIN);
    let (state, why) = place.take_reply(1);
    assert_eq!(state, Outcome::Refused);
    assert!(
        why.starts_with("the node's journal cannot be written: No space left on device; free space"),
        "{why}"
    );
    // Refused at once, without the stage `accepted`.
    assert!(!place.send(2, PLAIN));
    let refused = place.take_effects();
    assert!(matches!(
        refused.as_slice(),
        [
            Effect::Stage {
                stage: Stage::Received,
                ..
            },
            Effect::Reply { .. }
        ]
    ));

    place.write_error = None;
    place.advance(u64::try_from(JOURNAL_RETRY.as_millis()).expect("short"));
    assert!(place.send(3, PLAIN));
    assert_eq!(place.take_started(), [3]);
    // The replies from that time are durable by now.
    place.crash();
    for seq in [1, 2] {
        assert!(!place.send(seq, PLAIN));
        assert_eq!(place.take_reply(seq).0, Outcome::Refused);
    }
}

#[test]
fn unwritable_outcome_is_still_reported() {
    let mut place = SimulatedNode::new();
    place.send(1, PLAIN);
    place.take_effects();
    place.write_error = Some("I/O error");
    place.finish(1, done());
    assert_eq!(place.take_reply(1).0, Outcome::Done);
    place.send(1, PLAIN);
    assert_eq!(place.take_reply(1).0, Outcome::Done, "memory answers");
    place.write_error = None;
    place.advance(2_000);
    place.crash();
    place.send(1, PLAIN);
    assert_eq!(place.take_reply(1).0, Outcome::Done, "it was made durable later");
}

#[test]
fn failing_journal_is_not_retried_early() {
    let mut place = SimulatedNode::new();
    place.write_error = Some("I/O error");
    place.send(1, PLAIN);
    place.unanswered_writes = Some(Vec::new());
    place.advance(1_999);
    place.send(2, PLAIN);
    assert_eq!(place.unanswered_writes.as_ref().map(Vec::len), Some(0));
    place.advance(1);
    assert_eq!(place.unanswered_writes.as_ref().map(Vec::len), Some(1));
    assert_eq!(place.executor.poll_timeout(), None, "one attempt at a time");
}

#[test]
fn stop_refuses_waiting_and_kills_running_commands() {
    let through = ActionProperties {
        while_stopped: true,
        ..PLAIN
    };
    let mut place = SimulatedNode::new();
    place.send(1, through);
    for seq in 2..=ORDINARY_MAX as u64 {
        place.send(seq, PLAIN);
    }
    place.send(20, PLAIN);
    place.send(21, through);
    place.take_effects();
    place.stop();
    let said = place.take_effects();
    let kills = said.iter().filter(|effect| matches!(effect, Effect::Kill { .. }));
    assert_eq!(kills.count(), ORDINARY_MAX - 1);
    assert!(!said.contains(&Effect::Kill { id: id(1) }));
    let refused = |effect: &Effect| matches!(effect, Effect::Reply { id: whose, reply } if *whose == id(20) && reply.state == Outcome::Refused);
    assert!(said.iter().any(refused), "{said:?}");

    place.stop();
    assert_eq!(place.take_effects(), [], "once is enough");
    let ended_by_us = Reply {
        exit: Some(143),
        ..Reply::failed("it was killed")
    };
    place.finish(2, ended_by_us);
    let said = place.take_effects();
    assert!(
        said.contains(&Effect::Run { id: id(21) }),
        "the place goes on to it"
    );
    let killed = Reply {
        exit: Some(143),
        ..Reply::failed("emergency stop: it was killed")
    };
    assert!(said.contains(&Effect::Reply {
        id: id(2),
        reply: killed
    }));
    place.finish(3, done());
    assert_eq!(place.take_reply(3).0, Outcome::Done, "it was quicker");
    place.finish(4, done());
    place.take_effects();

    assert!(!place.send(30, PLAIN));
    let (state, why) = place.take_reply(30);
    assert_eq!(state, Outcome::Refused);
    assert!(why.contains("emergency stop"), "{why}");
    assert!(place.send(31, through));
    place.executor.on_release();
    assert!(place.send(32, PLAIN));
    assert_eq!(place.take_started(), [31, 32]);
    assert!(!place.send(30, PLAIN), "a release does not bring it back");
    assert_eq!(place.take_reply(30).0, Outcome::Refused);
}

#[test]
fn stop_between_write_and_start_prevents_execution() {
    for released in [false, true] {
        let mut place = SimulatedNode::new();
        place.unanswered_writes = Some(Vec::new());
        place.send(1, PLAIN);
        place.stop();
        if released {
            place.executor.on_release();
        }
        place.finish_held_writes();
        assert!(place.take_started().is_empty());
        place.finish_held_writes();
        assert_eq!(place.take_reply(1).0, Outcome::Refused);
    }
}

#[test]
fn shutdown_starts_nothing_and_journals_outcomes() {
    let mut place = SimulatedNode::new();
    place.fill_slots(1);
    place.send(20, PLAIN);
    place.finish(1, done());
    assert_eq!(place.take_started(), [20]);
    place.send(21, PLAIN);
    place.take_effects();
    place.unanswered_writes = Some(Vec::new());
    place.finish(20, done());
    // The write of 21 is in progress, and that of 20 too.
    place.send(22, PLAIN);
    place.executor.shut_down(place.now);
    place.apply_effects();
    place.finish_held_writes();
    place.finish_held_writes();
    let said = place.take_effects();
    assert!(
        !said.iter().any(|effect| matches!(effect, Effect::Run { .. })),
        "{said:?}"
    );
    assert!(!place.executor.is_idle());
    place.unanswered_writes = None;
    for seq in 2..=ORDINARY_MAX as u64 {
        place.finish(seq, Reply::failed("it was killed"));
    }
    assert!(place.executor.is_idle());
    assert!(!place.send(40, PLAIN));
    place.crash();
    assert!(
        place.send(22, PLAIN),
        "it waited, so it is as if it had never come"
    );
    place.take_effects();
    place.send(3, PLAIN);
    let why = place.take_reply(3).1;
    assert_eq!(why, "the node is shutting down: it was killed");
    for (seq, state) in [(2, Outcome::Failed), (20, Outcome::Done), (21, Outcome::Refused)] {
        assert!(!place.send(seq, PLAIN));
        assert_eq!(place.take_reply(seq).0, state, "{seq}");
    }
}

#[test]
fn events_for_unknown_commands_change_nothing() {
    let mut place = SimulatedNode::new();
    place.finish(1, done());
    place.executor.on_written(WriteId(9), place.now);
    place.executor.on_write_failed(WriteId(9), "?", place.now);
    place.apply_effects();
    assert_eq!(place.take_effects(), []);
    place.unanswered_writes = Some(Vec::new());
    place.send(1, PLAIN);
    place.take_effects();
    place.finish(1, done());
    assert_eq!(place.take_effects(), [], "it does not run yet");
}
