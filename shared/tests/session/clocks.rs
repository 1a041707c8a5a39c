//! Heartbeats, silence, acknowledgements and deadlines.

use std::time::Duration;

use swarm_shared::proto::encoded::OutBuffer;
use swarm_shared::proto::outbox::OutboxLimits;
use swarm_shared::proto::session::LinkFault;
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::rig::{PEER, Rig, ack, heartbeat, kinds, ms, numbered};

#[test]
fn a_quiet_side_sends_a_heartbeat_and_a_busy_one_does_not() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for _beat in 0..5 {
        assert_eq!(rig.pass(ms(999)), []);
        rig.take(heartbeat()).expect("in place");
        assert_eq!(kinds(&rig.pass(ms(1))), [Kind::Heartbeat]);
    }
    rig.pass(ms(600));
    rig.send(Lane::Control, None).expect("room");
    assert_eq!(kinds(&rig.written()), [Kind::Roster]);
    rig.take(heartbeat()).expect("in place");
    assert_eq!(rig.pass(ms(600)), []);
}

#[test]
fn heartbeats_do_not_pile_up_behind_a_peer_that_does_not_read() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    let mut out = OutBuffer::default();
    let mut lengths = Vec::new();
    for seq in 1..100 {
        rig.take(numbered(Kind::Roster, seq)).expect("in order");
        rig.now += ms(1_000);
        rig.session.handle_timeout(rig.now).expect("heard");
        rig.session.transmit(&mut out, 100, rig.now).expect("encodes");
        assert!(
            rig.session.poll_timeout() > Some(rig.now),
            "the driver would spin"
        );
        lengths.push(out.len());
    }
    assert!(lengths.iter().all(|length| *length < 400), "{lengths:?}");
}

#[test]
fn a_peer_is_silent_after_two_beats_and_lost_after_three() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.pass(ms(1_999));
    assert_eq!(rig.words(), [""; 0]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(2_000)));
    rig.pass(ms(1));
    assert_eq!(rig.words(), ["silent"]);
    rig.pass(ms(999));
    assert_eq!(rig.words(), [""; 0], "said once");
    let fault = rig.wait(ms(1)).expect_err("lost");
    assert!(
        matches!(fault, LinkFault::Silence(for_) if for_ == ms(3_000)),
        "{fault}"
    );
    assert!(!rig.session.is_open());
    assert_eq!(rig.session.poll_timeout(), None);
    assert_eq!(rig.session.last_heard(), rig.start);
}

#[test]
fn one_lost_packet_makes_nobody_silent() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    // A beat is retransmitted by TCP and comes 0.9 s late, again and again.
    for _beat in 0..10 {
        rig.pass(ms(1_900));
        rig.take(heartbeat()).expect("in place");
    }
    assert_eq!(rig.words(), [""; 0]);
}

#[test]
fn a_silent_peer_that_is_heard_again_is_called_so_once() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.pass(ms(2_500));
    rig.take(heartbeat()).expect("in place");
    rig.take(heartbeat()).expect("in place");
    assert_eq!(rig.words(), ["silent", "heard"]);
    rig.pass(ms(2_500));
    // Part of a large frame is a sign of life too.
    rig.session.heard(rig.now);
    rig.pass(ms(1_900));
    assert_eq!(rig.words(), ["silent", "heard"]);
}

#[test]
fn silence_of_our_own_making_is_excused() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.now += ms(60_000);
    rig.session.excuse_silence(rig.now);
    rig.pass(ms(0));
    assert_eq!(rig.words(), [""; 0]);
}

#[test]
fn a_peer_that_never_welcomes_us_is_lost_too() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.session.attach(PEER, rig.now);
    assert_eq!(kinds(&rig.written()), [Kind::Welcome]);
    assert_eq!(rig.pass(ms(2_999)), [], "no heartbeat before the welcome");
    assert!(matches!(rig.wait(ms(1)), Err(LinkFault::Silence(_))));
}

#[test]
fn an_acknowledgement_waits_for_a_frame_to_ride_on_and_not_for_long() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.take(numbered(Kind::Roster, 1)).expect("in order");
    assert_eq!(rig.written(), []);
    assert_eq!(rig.pass(ms(24)), []);
    let sent = rig.pass(ms(1));
    assert_eq!(kinds(&sent), [Kind::Ack]);
    assert_eq!((sent[0].header.ack, sent[0].header.seq), (Some(1), None));
    assert_eq!(rig.pass(ms(100)), [], "said once");

    rig.take(numbered(Kind::Roster, 2)).expect("in order");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Control, None).expect("room");
    let sent = rig.written();
    let numbers: Vec<_> = sent
        .iter()
        .map(|frame| (frame.header.seq, frame.header.ack))
        .collect();
    assert_eq!(numbers, [(Some(1), Some(2)), (Some(2), None)]);
    assert_eq!(rig.pass(ms(100)), []);
    rig.take(ack(2)).expect("sent");
    assert!(rig.session.is_idle());
}

#[test]
fn many_frames_or_many_bytes_are_acknowledged_at_once() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for seq in 1..=255 {
        rig.take(numbered(Kind::Roster, seq)).expect("in order");
    }
    assert_eq!(rig.written(), []);
    rig.take(numbered(Kind::Roster, 256)).expect("in order");
    assert_eq!(rig.written()[0].header.ack, Some(256));
    assert_eq!(rig.written(), []);

    // A quarter of the window, in two chunks.
    let chunk_bytes = OutboxLimits::BULK.window_bytes_max / 8;
    let mut chunk = Frame::binary(Kind::Chunk, vec![0; chunk_bytes].into());
    for seq in 257..=258 {
        assert_eq!(rig.written(), []);
        chunk.header.seq = Some(seq);
        rig.take(chunk.clone()).expect("in order");
    }
    assert_eq!(rig.written()[0].header.ack, Some(258));
}

#[test]
fn the_time_to_live_is_told_as_what_is_left() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.send(Lane::Control, Some(ms(500))).expect("room");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Telemetry, Some(Duration::from_micros(200_001)))
        .expect("room");
    rig.now += ms(200);
    rig.link(PEER, 0);
    let told: Vec<_> = rig.written().iter().map(|frame| frame.header.ttl).collect();
    assert_eq!(told, [Some(300), None, Some(1)]);
}

#[test]
fn what_waits_beyond_its_deadline_is_never_sent() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.request(1, Some(ms(500)), ms(5_000)).expect("room");
    rig.send(Lane::Telemetry, Some(ms(500))).expect("room");
    rig.send(Lane::Control, Some(ms(600))).expect("room");
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(500)));
    rig.pass(ms(499));
    assert_eq!(rig.words(), [""; 0]);
    rig.pass(ms(1));
    assert_eq!(rig.words(), ["expired"]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(600)));
    // Transmitting looks at the clock itself.
    rig.now += ms(100);
    rig.link(PEER, 0);
    assert_eq!(rig.written(), []);
}

#[test]
fn a_large_frame_is_acknowledged_soon_but_not_one_by_one() {
    let mut rig = Rig::open(OutboxLimits::BULK);
    let mut chunk = Frame::binary(Kind::Chunk, vec![0; 16 * 1024].into());
    let mut take = |rig: &mut Rig, seq| {
        chunk.header.seq = Some(seq);
        rig.take(chunk.clone()).expect("in order");
    };
    rig.pass(ms(10));
    take(&mut rig, 1);
    assert_eq!(kinds(&rig.written()), [Kind::Ack], "at once after a pause");
    take(&mut rig, 2);
    take(&mut rig, 3);
    assert_eq!(rig.written(), []);
    assert_eq!(rig.pass(ms(1)), []);
    assert_eq!(rig.pass(ms(1))[0].header.ack, Some(3));
    rig.take(numbered(Kind::ChunkEnd, 4)).expect("in order");
    assert_eq!(rig.pass(ms(24)), [], "a small one waits for something to ride on");
}
