//! Heartbeats, silence, acknowledgements and deadlines.

use std::time::Duration;

use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{LinkFault, Timing};
use swarm_shared::proto::wire::encoded::OutBuffer;
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::rig::{PEER, Rig, ack, heartbeat, kinds, ms, numbered};

#[test]
fn only_an_idle_side_sends_heartbeats() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for _beat in 0..5 {
        assert_eq!(rig.advance(ms(999)), []);
        rig.receive(heartbeat()).expect("in place");
        assert_eq!(kinds(&rig.advance(ms(1))), [Kind::Heartbeat]);
    }
    rig.advance(ms(600));
    rig.send(Lane::Control, None).expect("room");
    assert_eq!(kinds(&rig.transmit()), [Kind::Roster]);
    rig.receive(heartbeat()).expect("in place");
    assert_eq!(rig.advance(ms(600)), []);
}

#[test]
fn heartbeats_do_not_pile_up_at_a_blocked_peer() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    let mut out = OutBuffer::default();
    let mut lengths = Vec::new();
    for seq in 1..100 {
        rig.receive(numbered(Kind::Roster, seq)).expect("in order");
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
fn peer_is_silent_after_two_beats_and_lost_after_three() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.advance(ms(1_999));
    assert_eq!(rig.event_names(), [""; 0]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(2_000)));
    rig.advance(ms(1));
    assert_eq!(rig.event_names(), ["silent"]);
    rig.advance(ms(999));
    assert_eq!(rig.event_names(), [""; 0], "said once");
    let fault = rig.wait_for_timeout(ms(1)).expect_err("lost");
    assert!(
        matches!(fault, LinkFault::Silence(for_) if for_ == ms(3_000)),
        "{fault}"
    );
    assert!(!rig.session.is_open());
    assert_eq!(rig.session.poll_timeout(), None);
    assert_eq!(rig.session.last_heard(), rig.start);
}

#[test]
fn one_lost_packet_does_not_make_a_peer_silent() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    // A heartbeat is retransmitted by TCP and comes 0.9 s late, repeatedly.
    for _beat in 0..10 {
        rig.advance(ms(1_900));
        rig.receive(heartbeat()).expect("in place");
    }
    assert_eq!(rig.event_names(), [""; 0]);
}

#[test]
fn recovery_from_silence_is_reported_once() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.advance(ms(2_500));
    rig.receive(heartbeat()).expect("in place");
    rig.receive(heartbeat()).expect("in place");
    assert_eq!(rig.event_names(), ["silent", "heard"]);
    rig.advance(ms(2_500));
    // Part of a large frame also shows that the peer is alive.
    rig.session.on_bytes_received(rig.now);
    rig.advance(ms(1_900));
    assert_eq!(rig.event_names(), ["silent", "heard"]);
}

#[test]
fn local_suspension_does_not_count_as_silence() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.now += ms(60_000);
    rig.session.reset_silence_timer(rig.now);
    rig.advance(ms(0));
    assert_eq!(rig.event_names(), [""; 0]);
}

#[test]
fn peer_that_sends_no_welcome_is_lost() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.session.attach(PEER, rig.now);
    assert_eq!(kinds(&rig.transmit()), [Kind::Welcome]);
    assert_eq!(rig.advance(ms(2_999)), [], "no heartbeat before the welcome");
    assert!(matches!(rig.wait_for_timeout(ms(1)), Err(LinkFault::Silence(_))));
}

#[test]
fn acknowledgements_are_delayed_to_piggyback() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.receive(numbered(Kind::Roster, 1)).expect("in order");
    assert_eq!(rig.transmit(), []);
    assert_eq!(rig.advance(ms(24)), []);
    let sent = rig.advance(ms(1));
    assert_eq!(kinds(&sent), [Kind::Ack]);
    assert_eq!((sent[0].header.ack, sent[0].header.seq), (Some(1), None));
    assert_eq!(rig.advance(ms(100)), [], "said once");

    rig.receive(numbered(Kind::Roster, 2)).expect("in order");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Control, None).expect("room");
    let sent = rig.transmit();
    let numbers: Vec<_> = sent
        .iter()
        .map(|frame| (frame.header.seq, frame.header.ack))
        .collect();
    assert_eq!(numbers, [(Some(1), Some(2)), (Some(2), None)]);
    assert_eq!(rig.advance(ms(100)), []);
    rig.receive(ack(2)).expect("sent");
    assert!(rig.session.is_idle());
}

#[test]
fn heartbeats_carry_delayed_acknowledgements() {
    let timing = Timing::default().acknowledged_by_heartbeats();
    let mut rig = Rig::with_timing(OutboxLimits::CONTROL, timing);
    rig.link(PEER, 0);
    rig.now += ms(400);
    rig.receive(numbered(Kind::Roster, 1)).expect("in order");
    assert_eq!(rig.advance(ms(599)), [], "no frame before the heartbeat is due");
    let sent = rig.advance(ms(1));
    assert_eq!(kinds(&sent), [Kind::Heartbeat]);
    assert_eq!(sent[0].header.ack, Some(1));
    assert!(rig.session.is_idle());
    rig.receive(numbered(Kind::Roster, 2)).expect("in order");
    assert_eq!(rig.advance(ms(999)), [], "acknowledged once");
}

#[test]
fn many_frames_or_many_bytes_are_acknowledged_at_once() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for seq in 1..=255 {
        rig.receive(numbered(Kind::Roster, seq)).expect("in order");
    }
    assert_eq!(rig.transmit(), []);
    rig.receive(numbered(Kind::Roster, 256)).expect("in order");
    assert_eq!(rig.transmit()[0].header.ack, Some(256));
    assert_eq!(rig.transmit(), []);

    // A quarter of the window, in two chunks.
    let chunk_bytes = OutboxLimits::BULK.window_bytes_max / 8;
    let mut chunk = Frame::binary(Kind::Chunk, vec![0; chunk_bytes].into());
    for seq in 257..=258 {
        assert_eq!(rig.transmit(), []);
        chunk.header.seq = Some(seq);
        rig.receive(chunk.clone()).expect("in order");
    }
    assert_eq!(rig.transmit()[0].header.ack, Some(258));
}

#[test]
fn ttl_is_sent_as_the_time_left() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.send(Lane::Control, Some(ms(500))).expect("room");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Telemetry, Some(Duration::from_micros(200_001)))
        .expect("room");
    rig.now += ms(200);
    rig.link(PEER, 0);
    let told: Vec<_> = rig.transmit().iter().map(|frame| frame.header.ttl).collect();
    assert_eq!(told, [Some(300), None, Some(1)]);
}

#[test]
fn expired_messages_are_never_sent() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.request(1, Some(ms(500)), ms(5_000)).expect("room");
    rig.send(Lane::Telemetry, Some(ms(500))).expect("room");
    rig.send(Lane::Control, Some(ms(600))).expect("room");
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(500)));
    rig.advance(ms(499));
    assert_eq!(rig.event_names(), [""; 0]);
    rig.advance(ms(1));
    assert_eq!(rig.event_names(), ["expired"]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(600)));
    // Transmitting checks the deadlines itself.
    rig.now += ms(100);
    rig.link(PEER, 0);
    assert_eq!(rig.transmit(), []);
}

#[test]
fn large_frames_are_acknowledged_soon_in_batches() {
    let mut rig = Rig::open(OutboxLimits::BULK);
    let mut chunk = Frame::binary(Kind::Chunk, vec![0; 16 * 1024].into());
    let mut take = |rig: &mut Rig, seq| {
        chunk.header.seq = Some(seq);
        rig.receive(chunk.clone()).expect("in order");
    };
    rig.advance(ms(10));
    take(&mut rig, 1);
    assert_eq!(kinds(&rig.transmit()), [Kind::Ack], "at once after a pause");
    take(&mut rig, 2);
    take(&mut rig, 3);
    assert_eq!(rig.transmit(), []);
    assert_eq!(rig.advance(ms(1)), []);
    assert_eq!(rig.advance(ms(1))[0].header.ack, Some(3));
    rig.receive(numbered(Kind::ChunkEnd, 4)).expect("in order");
    assert_eq!(
        rig.advance(ms(24)),
        [],
        "a small one waits for something to ride on"
    );
}
