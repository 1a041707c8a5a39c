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
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    let full = 100 + WAITING_MAX as u64;
    for seq in 100..full {
        assert!(node.send(seq, PLAIN));
    }
    node.take_effects();
    assert!(!node.send(full, PLAIN));
    let (state, why) = node.take_reply(full);
    assert_eq!(state, Outcome::Refused);
    assert!(why.starts_with("busy"), "{why}");
    for seq in 1..=ORDINARY_MAX as u64 {
        node.finish(seq, done());
    }
    assert_eq!(
        node.take_started().len(),
        ORDINARY_MAX,
        "the first of the line take the places"
    );
    assert!(
        !node.send(full, PLAIN),
        "its issuer has been told that it does not run"
    );
    assert!(node.take_reply(full).1.starts_with("busy"));
    node.crash();
    assert!(!node.send(full, PLAIN));
    assert!(node.take_reply(full).1.starts_with("busy"));
}

#[test]
fn in_flight_commands_are_bounded_while_the_disk_stalls() {
    let mut node = SimulatedNode::new();
    node.unanswered_writes = Some(Vec::new());
    for seq in 0..10 * IN_FLIGHT_MAX as u64 {
        node.query(seq, PLAIN);
    }
    assert!(node.executor.in_flight.len() <= IN_FLIGHT_MAX);
    assert!(node.executor.writes.len() <= IN_FLIGHT_MAX + 1);
    assert!(node.executor.pending_writes.next_batch().0.len() <= PENDING_WRITES_MAX);
}

#[test]
fn failing_journal_refuses_commands_and_recovers() {
    let mut node = SimulatedNode::new();
    node.write_error = Some("No space left on device; free space below /var");
    node.send(1, PLAIN);
    let (state, why) = node.take_reply(1);
    assert_eq!(state, Outcome::Refused);
    assert!(
        why.starts_with("the node's journal cannot be written: No space left on device; free space"),
        "{why}"
    );
    // Refused at once, without the stage `accepted`.
    assert!(!node.send(2, PLAIN));
    let refused = node.take_effects();
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

    node.write_error = None;
    node.advance(u64::try_from(JOURNAL_RETRY.as_millis()).expect("short"));
    assert!(node.send(3, PLAIN));
    assert_eq!(node.take_started(), [3]);
    // The replies from that time are durable by now.
    node.crash();
    for seq in [1, 2] {
        assert!(!node.send(seq, PLAIN));
        assert_eq!(node.take_reply(seq).0, Outcome::Refused);
    }
}

#[test]
fn unwritable_outcome_is_still_reported() {
    let mut node = SimulatedNode::new();
    node.send(1, PLAIN);
    node.take_effects();
    node.write_error = Some("I/O error");
    node.finish(1, done());
    assert_eq!(node.take_reply(1).0, Outcome::Done);
    node.send(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Done, "memory answers");
    node.write_error = None;
    node.advance(2_000);
    node.crash();
    node.send(1, PLAIN);
    assert_eq!(node.take_reply(1).0, Outcome::Done, "it was made durable later");
}

#[test]
fn failing_journal_is_not_retried_early() {
    let mut node = SimulatedNode::new();
    node.write_error = Some("I/O error");
    node.send(1, PLAIN);
    node.unanswered_writes = Some(Vec::new());
    node.advance(1_999);
    node.send(2, PLAIN);
    assert_eq!(node.unanswered_writes.as_ref().map(Vec::len), Some(0));
    node.advance(1);
    assert_eq!(node.unanswered_writes.as_ref().map(Vec::len), Some(1));
    assert_eq!(node.executor.poll_timeout(), None, "one attempt at a time");
}

#[test]
fn hold_refuses_starts_but_landing_and_kills_nothing() {
    let through = ActionProperties {
        while_stopped: true,
        ..PLAIN
    };
    let landing = ActionProperties {
        ends_flight: true,
        ..PLAIN
    };
    let mut node = SimulatedNode::new();
    node.send(1, PLAIN);
    node.take_effects();
    node.executor.on_hold();
    assert_eq!(node.executor.take_effects(), [], "what runs goes on");
    assert!(!node.send(2, PLAIN));
    let (state, error) = node.take_reply(2);
    assert!(
        state == Outcome::Refused && error.starts_with("held: "),
        "{state}: {error}"
    );
    assert!(node.send(3, through) && node.send(4, landing));
    assert_eq!(node.take_started(), [3, 4]);
    node.stop();
    assert!(!node.send(5, landing), "a stop refuses it");
    node.executor.on_release();
    assert!(node.send(6, PLAIN));
}

#[test]
fn stop_refuses_waiting_and_kills_running_commands() {
    let through = ActionProperties {
        while_stopped: true,
        ..PLAIN
    };
    let mut node = SimulatedNode::new();
    node.send(1, through);
    for seq in 2..=ORDINARY_MAX as u64 {
        node.send(seq, PLAIN);
    }
    node.send(20, PLAIN);
    node.send(21, through);
    node.take_effects();
    node.stop();
    let effects = node.take_effects();
    let kills = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Kill { .. }));
    assert_eq!(kills.count(), ORDINARY_MAX - 1);
    assert!(!effects.contains(&Effect::Kill { id: id(1) }));
    let refused = |effect: &Effect| matches!(effect, Effect::Reply { id: of, reply } if *of == id(20) && reply.state == Outcome::Refused);
    assert!(effects.iter().any(refused), "{effects:?}");

    node.stop();
    assert_eq!(node.take_effects(), [], "once is enough");
    let ended_by_us = Reply {
        exit: Some(143),
        ..Reply::failed("it was killed")
    };
    node.finish(2, ended_by_us);
    let effects = node.take_effects();
    assert!(
        effects.contains(&Effect::Run { id: id(21) }),
        "the place goes on to it"
    );
    let killed = Reply {
        exit: Some(143),
        ..Reply::failed("emergency stop: it was killed")
    };
    assert!(effects.contains(&Effect::Reply {
        id: id(2),
        reply: killed
    }));
    node.finish(3, done());
    assert_eq!(node.take_reply(3).0, Outcome::Done, "it was quicker");
    node.finish(4, done());
    node.take_effects();

    assert!(!node.send(30, PLAIN));
    let (state, why) = node.take_reply(30);
    assert_eq!(state, Outcome::Refused);
    assert!(why.contains("emergency stop"), "{why}");
    assert!(node.send(31, through));
    node.executor.on_release();
    assert!(node.send(32, PLAIN));
    assert_eq!(node.take_started(), [31, 32]);
    assert!(!node.send(30, PLAIN), "a release does not bring it back");
    assert_eq!(node.take_reply(30).0, Outcome::Refused);
}

#[test]
fn stop_between_write_and_start_prevents_execution() {
    for released in [false, true] {
        let mut node = SimulatedNode::new();
        node.unanswered_writes = Some(Vec::new());
        node.send(1, PLAIN);
        node.stop();
        if released {
            node.executor.on_release();
        }
        node.finish_held_writes();
        assert!(node.take_started().is_empty());
        node.finish_held_writes();
        assert_eq!(node.take_reply(1).0, Outcome::Refused);
    }
}

#[test]
fn shutdown_starts_nothing_and_journals_outcomes() {
    let mut node = SimulatedNode::new();
    node.fill_slots(1);
    node.send(20, PLAIN);
    node.finish(1, done());
    assert_eq!(node.take_started(), [20]);
    node.send(21, PLAIN);
    node.take_effects();
    node.unanswered_writes = Some(Vec::new());
    node.finish(20, done());
    // The write of 21 is in progress, and that of 20 too.
    node.send(22, PLAIN);
    node.executor.shut_down(node.now);
    node.apply_effects();
    node.finish_held_writes();
    node.finish_held_writes();
    let effects = node.take_effects();
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Run { .. })),
        "{effects:?}"
    );
    assert!(!node.executor.is_idle());
    node.unanswered_writes = None;
    for seq in 2..=ORDINARY_MAX as u64 {
        node.finish(seq, Reply::failed("it was killed"));
    }
    assert!(node.executor.is_idle());
    assert!(!node.send(40, PLAIN));
    node.crash();
    assert!(
        node.send(22, PLAIN),
        "it waited, so it is as if it had never come"
    );
    node.take_effects();
    node.send(3, PLAIN);
    let why = node.take_reply(3).1;
    assert_eq!(why, "the node is shutting down: it was killed");
    for (seq, state) in [(2, Outcome::Failed), (20, Outcome::Done), (21, Outcome::Refused)] {
        assert!(!node.send(seq, PLAIN));
        assert_eq!(node.take_reply(seq).0, state, "{seq}");
    }
}

#[test]
fn events_for_unknown_commands_change_nothing() {
    let mut node = SimulatedNode::new();
    node.finish(1, done());
    node.executor.on_written(WriteId(9), node.now);
    node.executor.on_write_failed(WriteId(9), "?", node.now);
    node.apply_effects();
    assert_eq!(node.take_effects(), []);
    node.unanswered_writes = Some(Vec::new());
    node.send(1, PLAIN);
    node.take_effects();
    node.finish(1, done());
    assert_eq!(node.take_effects(), [], "it does not run yet");
}
