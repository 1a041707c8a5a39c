//! Lanes, windows and bounds.

use swarm_shared::proto::encoded::OutBuffer;
use swarm_shared::proto::outbox::OutboxLimits;
use swarm_shared::proto::pending::{PENDING_MAX, PendingError};
use swarm_shared::proto::session::SendError;
use swarm_shared::proto::wire::{Kind, Lane};

use super::rig::{PEER, Rig, ack, frames, lanes, limits, ms, outgoing};

#[test]
fn a_full_window_stops_the_lanes_and_an_acknowledgement_lets_them_go_on() {
    let mut rig = Rig::open(limits(10, 2));
    for _message in 0..3 {
        rig.send(Lane::Control, None).expect("room");
        rig.send(Lane::Bulk, None).expect("room");
    }
    assert_eq!(lanes(&rig.written()), [Lane::Control; 2]);
    assert_eq!(rig.written(), []);
    rig.send(Lane::Telemetry, None).expect("always room");
    assert_eq!(
        lanes(&rig.written()),
        [Lane::Telemetry],
        "telemetry needs no window"
    );
    rig.send(Lane::Emergency, None).expect("room");
    assert_eq!(
        lanes(&rig.written()),
        [Lane::Emergency],
        "an emergency jumps a full window"
    );
    rig.take(ack(2)).expect("sent");
    assert_eq!(lanes(&rig.written()), [Lane::Control]);
    rig.take(ack(4)).expect("sent");
    assert_eq!(lanes(&rig.written()), [Lane::Bulk; 2]);
    rig.take(ack(6)).expect("sent");
    assert_eq!(lanes(&rig.written()), [Lane::Bulk]);
}

#[test]
fn a_window_full_of_bytes_empties_too() {
    let mut rig = Rig::open(OutboxLimits {
        window_bytes_max: 1,
        window_bytes_min: 1,
        ..limits(10, 10)
    });
    for seq in 1..=3 {
        rig.send(Lane::Control, None).expect("room");
        rig.send(Lane::Control, None).expect("room");
        assert_eq!(rig.written().len(), 1);
        assert_eq!(rig.written(), []);
        rig.take(ack(seq * 2 - 1)).expect("sent");
        assert_eq!(rig.written().len(), 1);
        rig.take(ack(seq * 2)).expect("sent");
    }
    assert!(rig.session.is_idle());
}

#[test]
fn a_peer_that_never_acknowledges_is_not_sent_emergencies_for_ever() {
    let mut rig = Rig::open(limits(3, 2));
    let mut sent = 0;
    for _message in 0..20 {
        let _busy = rig.send(Lane::Emergency, None);
        sent += rig.written().len();
    }
    assert_eq!(sent, 5);
    rig.take(ack(1)).expect("sent");
    assert_eq!(rig.written().len(), 1);
}

#[test]
fn emergencies_go_first_and_bulk_last() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for lane in [Lane::Bulk, Lane::Telemetry, Lane::Control, Lane::Emergency] {
        rig.send(lane, None).expect("room");
    }
    assert_eq!(
        lanes(&rig.written()),
        [Lane::Emergency, Lane::Control, Lane::Telemetry, Lane::Bulk]
    );
}

#[test]
fn only_the_newest_telemetry_is_sent_and_it_is_never_repeated() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for id in 1..=3 {
        rig.session
            .send(outgoing(Kind::Roster, Lane::Telemetry, id, None), None)
            .expect("always room");
    }
    let sent = rig.written();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].header.id, sent[0].header.seq), (Some(3), None));
    rig.link(PEER, 0);
    assert_eq!(rig.written(), []);
}

#[test]
fn a_full_lane_is_busy_at_once_and_only_that_lane() {
    let mut rig = Rig::new(limits(2, 2));
    for _message in 0..2 {
        rig.send(Lane::Control, None).expect("room");
    }
    assert!(!rig.session.has_room(Lane::Control));
    let error = rig.request(1, None, ms(1)).expect_err("full");
    assert!(
        matches!(error, SendError::Busy(busy) if busy.waiting == 2),
        "{error}"
    );
    for lane in [Lane::Emergency, Lane::Bulk, Lane::Telemetry] {
        assert!(rig.session.has_room(lane));
        rig.send(lane, None).expect("room");
    }
    // Nothing of the refused request stays behind.
    rig.pass(ms(10));
    assert_eq!(rig.words(), [""; 0]);
}

#[test]
fn bytes_that_wait_fill_a_lane_too_but_one_message_always_fits() {
    let mut rig = Rig::new(OutboxLimits {
        queued_bytes_max: 1,
        ..limits(10, 10)
    });
    rig.send(Lane::Control, None).expect("an empty lane takes one");
    assert!(!rig.session.has_room(Lane::Control));
    assert!(matches!(rig.send(Lane::Control, None), Err(SendError::Busy(_))));
    rig.send(Lane::Bulk, None).expect("an empty lane takes one");
    rig.send(Lane::Emergency, None)
        .expect("emergencies count by themselves");
    rig.send(Lane::Emergency, None)
        .expect("emergencies count by themselves");
}

#[test]
fn requests_that_wait_for_replies_are_bounded() {
    let many = PENDING_MAX as u64;
    let mut rig = Rig::new(OutboxLimits {
        queued_bytes_max: usize::MAX,
        ..limits(usize::MAX / 2, 2)
    });
    for id in 0..many {
        rig.request(id, None, ms(10)).expect("room");
    }
    assert!(matches!(
        rig.request(many, None, ms(1)),
        Err(SendError::Pending(PendingError::TooMany))
    ));
    rig.pass(ms(10));
    assert_eq!(rig.events().len(), PENDING_MAX);
    rig.request(many, None, ms(1)).expect("room again");
}

#[test]
fn no_more_is_written_than_there_is_room_for() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for _message in 0..10 {
        rig.send(Lane::Control, None).expect("room");
    }
    let mut out = OutBuffer::default();
    rig.session.transmit(&mut out, 1, rig.now).expect("encodes");
    let one = out.len();
    rig.session.transmit(&mut out, 1, rig.now).expect("encodes");
    assert_eq!(out.len(), one, "no room, nothing written");
    rig.session.transmit(&mut out, one + 1, rig.now).expect("encodes");
    assert_eq!(frames(&mut out).len(), 2);
}
