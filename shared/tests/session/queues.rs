//! Lanes, windows and bounds.

use swarm_shared::proto::session::SendError;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::pending::{PENDING_REQUESTS_MAX, PendingError};
use swarm_shared::proto::wire::encoded::OutBuffer;
use swarm_shared::proto::wire::{Kind, Lane};

use super::rig::{PEER, Rig, ack, frames, lanes, limits, ms, outgoing};

#[test]
fn full_window_blocks_lanes_until_acknowledged() {
    let mut rig = Rig::open(limits(10, 2));
    for _message in 0..3 {
        rig.send(Lane::Control, None).expect("room");
        rig.send(Lane::Bulk, None).expect("room");
    }
    assert_eq!(lanes(&rig.transmit()), [Lane::Control; 2]);
    assert_eq!(rig.transmit(), []);
    rig.send(Lane::Telemetry, None).expect("always room");
    assert_eq!(
        lanes(&rig.transmit()),
        [Lane::Telemetry],
        "telemetry needs no window"
    );
    rig.send(Lane::Emergency, None).expect("room");
    assert_eq!(
        lanes(&rig.transmit()),
        [Lane::Emergency],
        "an emergency jumps a full window"
    );
    rig.receive(ack(2)).expect("sent");
    assert_eq!(lanes(&rig.transmit()), [Lane::Control]);
    rig.receive(ack(4)).expect("sent");
    assert_eq!(lanes(&rig.transmit()), [Lane::Bulk; 2]);
    rig.receive(ack(6)).expect("sent");
    assert_eq!(lanes(&rig.transmit()), [Lane::Bulk]);
}

#[test]
fn byte_window_reopens_when_acknowledged() {
    let mut rig = Rig::open(OutboxLimits {
        window_bytes_max: 1,
        window_bytes_min: 1,
        ..limits(10, 10)
    });
    for seq in 1..=3 {
        rig.send(Lane::Control, None).expect("room");
        rig.send(Lane::Control, None).expect("room");
        assert_eq!(rig.transmit().len(), 1);
        assert_eq!(rig.transmit(), []);
        rig.receive(ack(seq * 2 - 1)).expect("sent");
        assert_eq!(rig.transmit().len(), 1);
        rig.receive(ack(seq * 2)).expect("sent");
    }
    assert!(rig.session.is_idle());
}

#[test]
fn emergency_lane_is_bounded_without_acknowledgements() {
    let mut rig = Rig::open(limits(3, 2));
    let mut sent = 0;
    for _message in 0..20 {
        let _busy = rig.send(Lane::Emergency, None);
        sent += rig.transmit().len();
    }
    assert_eq!(sent, 5);
    rig.receive(ack(1)).expect("sent");
    assert_eq!(rig.transmit().len(), 1);
}

#[test]
fn emergencies_go_first_and_bulk_last() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for lane in [Lane::Bulk, Lane::Telemetry, Lane::Control, Lane::Emergency] {
        rig.send(lane, None).expect("room");
    }
    assert_eq!(
        lanes(&rig.transmit()),
        [Lane::Emergency, Lane::Control, Lane::Telemetry, Lane::Bulk]
    );
}

#[test]
fn only_newest_telemetry_is_sent_and_never_resent() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for id in 1..=3 {
        rig.session
            .send(outgoing(Kind::Roster, Lane::Telemetry, id, None), None)
            .expect("always room");
    }
    let sent = rig.transmit();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].header.id, sent[0].header.seq), (Some(3), None));
    rig.link(PEER, 0);
    assert_eq!(rig.transmit(), []);
}

#[test]
fn full_lane_is_busy_at_once_and_others_are_not() {
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
    // Nothing of the refused request is kept.
    rig.advance(ms(10));
    assert_eq!(rig.event_names(), [""; 0]);
}

#[test]
fn lane_byte_limit_always_admits_one_message() {
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
fn pending_requests_are_bounded() {
    let many = PENDING_REQUESTS_MAX as u64;
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
    rig.advance(ms(10));
    assert_eq!(rig.events().len(), PENDING_REQUESTS_MAX);
    rig.request(many, None, ms(1)).expect("room again");
}

#[test]
fn transmit_writes_no_more_than_the_given_room() {
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
