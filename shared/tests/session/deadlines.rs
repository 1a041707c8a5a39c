//! Deadlines on the receiver's side.

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{Event, Session, Timing};
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::rig::{PEER, ROOM, Rig, ack, frames, heartbeat, kinds, ms, numbered, outgoing, welcome};

fn with_clock(mut frame: Frame, stamp: u64) -> Frame {
    frame.header.stamp = Some(stamp);
    frame
}

/// The `until` keys of the frames that the session writes.
fn sent_deadlines(rig: &mut Rig) -> Vec<Option<u64>> {
    rig.transmit().iter().map(|frame| frame.header.until).collect()
}

fn received_deadline(rig: &mut Rig, seq: u64, ttl: Option<u64>, until: Option<u64>) -> Option<Instant> {
    let mut frame = numbered(Kind::Roster, seq);
    (frame.header.ttl, frame.header.until) = (ttl, until);
    rig.receive(frame).expect("in order");
    let found = rig.events().into_iter().find_map(|event| match event {
        Event::Frame { deadline, .. } => Some(deadline),
        Event::Opened { .. } | Event::RequestEnded(..) | Event::Silent | Event::Recovered => None,
    });
    found.expect("a frame")
}

#[test]
fn frames_that_acknowledge_carry_the_local_clock() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.now += Duration::from_micros(1_999);
    rig.session.attach(PEER, rig.now);
    let stamps = |frames: Vec<Frame>| -> Vec<_> {
        let told = |frame: &Frame| (frame.header.kind.expect("a kind"), frame.header.stamp);
        frames.iter().map(told).collect()
    };
    assert_eq!(stamps(rig.transmit()), [(Kind::Welcome, Some(1))], "rounded down");
    rig.receive(welcome(PEER, 0)).expect("a good welcome");
    rig.receive(numbered(Kind::Roster, 1)).expect("in order");
    assert_eq!(stamps(rig.advance(ms(25))), [(Kind::Ack, Some(26))]);
    assert_eq!(stamps(rig.advance(ms(1_000))), [(Kind::Heartbeat, Some(1_026))]);
    rig.receive(numbered(Kind::Roster, 2)).expect("in order");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Control, None).expect("room");
    let carries = [(Kind::Roster, Some(1_026)), (Kind::Roster, None)];
    assert_eq!(stamps(rig.transmit()), carries);
}

#[test]
fn deadline_is_sent_in_the_peers_clock() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.send(Lane::Control, Some(ms(500))).expect("room");
    rig.send(Lane::Control, None).expect("room");
    rig.now += ms(100);
    rig.session.attach(PEER, rig.now);
    rig.transmit();
    rig.receive(with_clock(welcome(PEER, 0), 7_000))
        .expect("a good welcome");
    // 400 ms, less a thousandth for different clock rates; rounded down.
    assert_eq!(sent_deadlines(&mut rig), [Some(7_399), None]);

    rig.now += ms(300);
    rig.receive(with_clock(heartbeat(), 7_320)).expect("in place");
    rig.now += ms(40);
    // A frame without a stamp changes nothing.
    rig.receive(ack(2)).expect("sent");
    let odd = Some(Duration::from_micros(10_999));
    rig.send(Lane::Telemetry, odd).expect("room");
    assert_eq!(sent_deadlines(&mut rig), [Some(7_370)], "rounded down");
}

#[test]
fn least_delayed_clock_sample_is_used() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.receive(with_clock(heartbeat(), 10_000)).expect("in place");
    let until = |rig: &mut Rig| {
        rig.send(Lane::Telemetry, Some(ms(500))).expect("room");
        sent_deadlines(rig)[0].expect("told")
    };
    assert_eq!(until(&mut rig), 10_499);
    // This one was in transit for 800 ms longer.
    rig.now += ms(1_000);
    rig.receive(with_clock(heartbeat(), 10_200)).expect("in place");
    assert_eq!(until(&mut rig), 11_498);
    // This one a little longer; but the first has become less certain since, because clocks drift.
    rig.now += ms(19_000);
    rig.receive(with_clock(heartbeat(), 29_979)).expect("in place");
    assert_eq!(until(&mut rig), 30_479);
    rig.receive(with_clock(heartbeat(), 29_980)).expect("in place");
    assert_eq!(until(&mut rig), 30_479);
    rig.receive(with_clock(heartbeat(), 29_985)).expect("in place");
    assert_eq!(until(&mut rig), 30_484);
}

#[test]
fn clock_samples_apply_to_their_link_only() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.receive(with_clock(heartbeat(), 1_000_000)).expect("in place");
    for peer in [PEER, Instance(9)] {
        rig.link(peer, 0);
        rig.send(Lane::Control, Some(ms(500))).expect("room");
        assert!(sent_deadlines(&mut rig).iter().all(Option::is_none));
        rig.receive(with_clock(heartbeat(), 2_000_000)).expect("in place");
        rig.receive(ack(1)).expect("sent");
    }
}

#[test]
fn implausible_clock_samples_are_harmless() {
    for stamps in [[u64::MAX, 0], [0, u64::MAX - 1], [u64::MAX - 1, u64::MAX], [5, 3]] {
        let mut rig = Rig::open(OutboxLimits::CONTROL);
        for stamp in stamps {
            rig.receive(with_clock(heartbeat(), stamp)).expect("in place");
            rig.send(Lane::Telemetry, Some(ms(500))).expect("room");
            let best = stamps[0].max(stamp);
            assert_eq!(sent_deadlines(&mut rig), [Some(best.saturating_add(499))]);
        }
    }
}

#[test]
fn the_earlier_of_both_deadlines_counts() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.now += ms(10_000);
    let (start, now) = (rig.start, rig.now);
    let cases = [
        (None, None, None),
        (Some(300), None, Some(now + ms(300))),
        (Some(300), Some(10_200), Some(start + ms(10_200))),
        (Some(300), Some(10_400), Some(now + ms(300))),
        (Some(300), Some(u64::MAX), Some(now + ms(300))),
        (Some(300), Some(0), Some(start)),
        (None, Some(9_000), Some(start + ms(9_000))),
        (Some(0), Some(20_000), Some(now)),
        (Some(u64::MAX), Some(10_001), Some(start + ms(10_001))),
    ];
    for (seq, (ttl, until, expected)) in (1..).zip(cases) {
        assert_eq!(
            received_deadline(&mut rig, seq, ttl, until),
            expected,
            "{ttl:?} {until:?}"
        );
    }
    // For any values, nothing panics.
    received_deadline(&mut rig, 10, Some(u64::MAX), Some(u64::MAX));
}

#[test]
fn question_is_sent_with_zero_ttl() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    let mut frame = Frame::binary(Kind::Command, bytes::Bytes::new());
    frame.header.id = Some(1);
    let mut question = outgoing(Kind::Command, Lane::Control, 1, None);
    question.frame = question.frame.into_status_query();
    rig.session.send(question, None).expect("room");
    let told: Vec<_> = rig.transmit().iter().map(|frame| frame.header.ttl).collect();
    assert_eq!(told, [Some(0)]);
}

#[test]
fn undelayed_deadlines_agree_to_the_millisecond() {
    // Two unrelated clocks, and sessions of different age.
    let base = clock::now();
    let (near, far) = (base, base + ms(86_400_123));
    let session = |run, now| {
        Session::<()>::new(Instance(run), Timing::default(), OutboxLimits::CONTROL, now).expect("constant")
    };
    let (mut here, mut there) = (session(1, near), session(2, far));
    let (near, far) = (near + ms(55), far + ms(55));
    here.attach(Instance(2), near);
    there.attach(Instance(1), far);
    let mut out = Default::default();
    there.transmit(&mut out, ROOM, far).expect("encodes");
    for frame in frames(&mut out) {
        here.handle_frame(frame, near).expect("a welcome");
    }
    here.send(
        outgoing(Kind::Command, Lane::Control, 1, Some(near + ms(1_000))),
        None,
    )
    .expect("room");
    here.transmit(&mut out, ROOM, near).expect("encodes");
    // The frame is delayed for most of its time to live.
    let arrived = far + ms(900);
    let sent = frames(&mut out);
    assert_eq!(kinds(&sent), [Kind::Welcome, Kind::Command]);
    for frame in sent {
        there.handle_frame(frame, arrived).expect("in order");
    }
    let deadline = there.take_events().find_map(|event| match event {
        Event::Frame { deadline, .. } => deadline,
        Event::Opened { .. } | Event::RequestEnded(..) | Event::Silent | Event::Recovered => None,
    });
    assert_eq!(deadline, Some(far + ms(999)), "a thousandth is given away");
}
