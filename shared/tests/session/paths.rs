//! What a broken link says of its path.

use bytes::Bytes;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::path_check::PathVerdict;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::rig::{PEER, Rig, ack, heartbeat, ms};

const LARGE: usize = 2_000;

impl Rig {
    fn send_bytes(&mut self, lane: Lane, bytes: usize) {
        let frame = Frame::binary(Kind::Roster, Bytes::from(vec![7; bytes]));
        let frame = EncodedFrame::new(&frame).expect("encodes");
        let message = Outgoing {
            frame,
            lane,
            deadline: None,
        };
        self.session.send(message, None).expect("room");
        self.transmit();
    }

    /// The peer is heard each second.
    fn hear_for(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += ms(1_000);
            self.receive(heartbeat()).expect("good");
        }
    }

    fn break_link(&mut self) -> PathVerdict {
        self.session.detach();
        self.session.judge_path(true, self.now)
    }
}

#[test]
fn large_frame_lost_while_the_peer_is_heard_convicts_the_path() {
    for (bytes, verdict) in [(LARGE, PathVerdict::DropsLarge), (100, PathVerdict::Fine)] {
        let mut rig = Rig::open(OutboxLimits::CONTROL);
        rig.send_bytes(Lane::Control, bytes);
        rig.hear_for(3);
        assert_eq!(rig.break_link(), verdict, "{bytes} bytes");
    }
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.send_bytes(Lane::Control, LARGE);
    rig.receive(ack(1)).expect("sent");
    rig.hear_for(3);
    assert_eq!(rig.break_link(), PathVerdict::Fine, "it has arrived");
}

#[test]
fn lost_radio_does_not_convict_the_path() {
    let mut rig = Rig::open(OutboxLimits::BULK);
    for received in 1..5 {
        rig.send_bytes(Lane::Bulk, LARGE);
        rig.receive(ack(received)).expect("sent");
        rig.send_bytes(Lane::Bulk, LARGE);
        rig.now += ms(3_000);
        assert_eq!(rig.break_link(), PathVerdict::Fine);
        rig.link(PEER, received);
        rig.transmit();
    }
}

#[test]
fn two_links_that_break_at_once_under_large_frames_convict_the_path() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.send_bytes(Lane::Control, LARGE);
    rig.now += ms(3_000);
    assert_eq!(rig.break_link(), PathVerdict::Fine);
    rig.link(PEER, 0);
    rig.transmit();
    rig.now += ms(3_000);
    assert_eq!(rig.break_link(), PathVerdict::DropsLarge);
}

#[test]
fn large_telemetry_convicts_the_path_after_two_links() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for verdict in [PathVerdict::Fine, PathVerdict::DropsLarge] {
        rig.send_bytes(Lane::Telemetry, LARGE);
        rig.hear_for(3);
        assert_eq!(rig.break_link(), verdict);
        rig.link(PEER, 0);
    }
}

#[test]
fn arrived_telemetry_does_not_convict_the_path() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for _ in 0..3 {
        rig.send_bytes(Lane::Telemetry, LARGE);
        // The link is up for so long only because it has arrived.
        rig.hear_for(5);
        assert_eq!(rig.break_link(), PathVerdict::Fine);
        rig.link(PEER, 0);
    }
    for received in 1..4 {
        rig.send_bytes(Lane::Telemetry, LARGE);
        rig.send_bytes(Lane::Control, 100);
        rig.receive(ack(received)).expect("sent");
        rig.hear_for(2);
        assert_eq!(rig.break_link(), PathVerdict::Fine);
        rig.link(PEER, received);
    }
}

#[test]
fn link_that_never_opens_makes_the_path_doubtful() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.session.attach(PEER, rig.now);
    rig.transmit();
    rig.session.detach();
    assert_eq!(rig.session.judge_path(false, rig.now), PathVerdict::Doubtful);
}
