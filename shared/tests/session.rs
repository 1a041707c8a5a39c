//! The session's clocks, bounds and faults, with time moved by hand.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use swarm_shared::net::clock;
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::message::{RefusalCode, Refused, Welcome};
use swarm_shared::proto::outbox::OutboxLimits;
use swarm_shared::proto::parcel::{OutBuffer, Parcel};
use swarm_shared::proto::session::{
    Event, Expected, LinkFault, Outgoing, PENDING_MAX, SendError, Session, Settled, Timing,
};
use swarm_shared::proto::wire::{Frame, FrameReader, Kind, Lane, Limits};

const US: Instance = Instance(1);
const PEER: Instance = Instance(2);
const ROOM: usize = 1 << 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limits(queued_max: usize, window_max: usize) -> OutboxLimits {
    OutboxLimits {
        queued_max,
        queued_bytes_max: 100_000,
        window_max,
        window_bytes_max: 100_000,
    }
}

/// A session and what it wrote, with the peer played by hand.
struct Rig {
    session: Session<&'static str>,
    start: Instant,
    now: Instant,
}

impl Rig {
    /// Not linked.
    fn new(limits: OutboxLimits) -> Self {
        let now = clock::now();
        let session = Session::new(US, Timing::default(), limits, now).expect("constant frames");
        Self {
            session,
            start: now,
            now,
        }
    }

    /// Linked and open.
    fn open(limits: OutboxLimits) -> Self {
        let mut rig = Self::new(limits);
        rig.link(PEER, 0).expect("a good welcome");
        rig
    }

    /// A new link to `peer`, which has read our frames up to `received`.
    fn link(&mut self, peer: Instance, received: u64) -> Result<(), LinkFault> {
        self.session.attach(peer, self.now);
        let sent = self.written();
        assert_eq!(kinds(&sent), [Kind::Welcome]);
        self.take(welcome(peer, received))
    }

    fn take(&mut self, frame: Frame) -> Result<(), LinkFault> {
        self.session.handle_frame(frame, self.now)
    }

    /// Time passes; what is due is done, as the driver does it.
    fn pass(&mut self, by: Duration) -> Result<Vec<Frame>, LinkFault> {
        self.now += by;
        self.session.handle_timeout(self.now)?;
        let written = self.written();
        assert!(
            self.session.poll_timeout().is_none_or(|next| next > self.now),
            "the driver would spin"
        );
        Ok(written)
    }

    fn written(&mut self) -> Vec<Frame> {
        let mut out = OutBuffer::default();
        self.session.transmit(&mut out, ROOM, self.now).expect("encodes");
        frames(&mut out)
    }

    fn send(&mut self, lane: Lane, ttl: Option<Duration>) -> Result<(), SendError> {
        self.session.send(
            outgoing(Kind::Roster, lane, 0, ttl.map(|ttl| self.now + ttl)),
            None,
        )
    }

    fn request(&mut self, id: u64, ttl: Option<Duration>, timeout: Duration) -> Result<(), SendError> {
        let expected = Expected {
            id,
            until: self.now + timeout,
            token: "token",
        };
        let message = outgoing(Kind::Command, Lane::Control, id, ttl.map(|ttl| self.now + ttl));
        self.session.send(message, Some(expected))
    }

    fn events(&mut self) -> Vec<Event<&'static str>> {
        self.session.take_events().collect()
    }

    /// The events as words.
    fn words(&mut self) -> Vec<&'static str> {
        let word = |event| match event {
            Event::Opened { resumed: true } => "resumed",
            Event::Opened { resumed: false } => "opened",
            Event::Frame(_) => "frame",
            Event::Settled("token", Settled::Reply(_)) => "reply",
            Event::Settled("token", Settled::Expired) => "expired",
            Event::Settled("token", Settled::Lost) => "lost",
            Event::Settled("token", Settled::TimedOut) => "timed out",
            Event::Settled(..) => "another token",
            Event::Silent => "silent",
            Event::Heard => "heard",
        };
        self.events().into_iter().map(word).collect()
    }
}

fn outgoing(kind: Kind, lane: Lane, id: u64, deadline: Option<Instant>) -> Outgoing {
    let mut frame = Frame::binary(kind, Bytes::from_static(b"content"));
    frame.header.id = Some(id);
    frame.header.lane = Some(lane);
    frame.header.epoch = Some(7);
    Outgoing {
        parcel: Parcel::new(&frame).expect("a short header"),
        lane,
        deadline,
    }
}

fn frames(out: &mut OutBuffer) -> Vec<Frame> {
    let mut bytes = BytesMut::new();
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[])];
        out.fill(&mut slices);
        bytes.extend_from_slice(&slices[0]);
        let written = slices[0].len();
        out.consume(written);
    }
    let mut reader = FrameReader::new(Limits::BULK);
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame(&mut bytes).expect("sound") {
        frames.push(frame);
    }
    assert!(bytes.is_empty());
    frames
}

fn kinds(frames: &[Frame]) -> Vec<Kind> {
    frames
        .iter()
        .map(|frame| frame.header.kind.expect("a kind"))
        .collect()
}

fn lanes(frames: &[Frame]) -> Vec<Lane> {
    frames
        .iter()
        .map(|frame| frame.header.lane.expect("a lane"))
        .collect()
}

fn welcome(peer: Instance, received: u64) -> Frame {
    Frame::json(
        Kind::Welcome,
        &Welcome {
            instance: peer,
            peer_instance: US,
            received,
        },
    )
}

/// A frame of the peer's.
fn numbered(kind: Kind, seq: u64) -> Frame {
    let mut frame = Frame::binary(kind, Bytes::from_static(b"content"));
    frame.header.seq = Some(seq);
    frame
}

fn heartbeat() -> Frame {
    Frame::binary(Kind::Heartbeat, Bytes::new())
}

fn ack(number: u64) -> Frame {
    let mut frame = Frame::binary(Kind::Ack, Bytes::new());
    frame.header.ack = Some(number);
    frame
}

fn reply(seq: u64, id: u64, epoch: Option<u64>) -> Frame {
    let mut frame = numbered(Kind::Reply, seq);
    frame.header.id = Some(id);
    frame.header.epoch = epoch;
    frame
}

#[test]
fn a_quiet_side_sends_a_heartbeat_and_a_busy_one_does_not() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for _beat in 0..5 {
        assert_eq!(rig.pass(ms(999)).expect("heard"), []);
        rig.take(heartbeat()).expect("in place");
        assert_eq!(kinds(&rig.pass(ms(1)).expect("heard")), [Kind::Heartbeat]);
    }
    rig.pass(ms(600)).expect("heard");
    rig.send(Lane::Control, None).expect("room");
    assert_eq!(kinds(&rig.written()), [Kind::Roster]);
    rig.take(heartbeat()).expect("in place");
    assert_eq!(rig.pass(ms(600)).expect("heard"), []);
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
    rig.pass(ms(1_999)).expect("not lost");
    assert_eq!(rig.words(), [""; 0]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(2_000)));
    rig.pass(ms(1)).expect("not lost");
    assert_eq!(rig.words(), ["silent"]);
    rig.pass(ms(999)).expect("not lost");
    assert_eq!(rig.words(), [""; 0], "said once");
    let fault = rig.pass(ms(1)).expect_err("lost");
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
        rig.pass(ms(1_900)).expect("not lost");
        rig.take(heartbeat()).expect("in place");
    }
    assert_eq!(rig.words(), [""; 0]);
}

#[test]
fn a_silent_peer_that_is_heard_again_is_called_so_once() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.pass(ms(2_500)).expect("not lost");
    rig.take(heartbeat()).expect("in place");
    rig.take(heartbeat()).expect("in place");
    assert_eq!(rig.words(), ["silent", "heard"]);
    rig.pass(ms(2_500)).expect("not lost");
    // Part of a large frame is a sign of life too.
    rig.session.heard(rig.now);
    rig.pass(ms(1_900)).expect("not lost");
    assert_eq!(rig.words(), ["silent", "heard"]);
}

#[test]
fn silence_of_our_own_making_is_excused() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.now += ms(60_000);
    rig.session.excuse_silence(rig.now);
    rig.pass(ms(0)).expect("excused");
    assert_eq!(rig.words(), [""; 0]);
}

#[test]
fn a_peer_that_never_welcomes_us_is_lost_too() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.session.attach(PEER, rig.now);
    assert_eq!(kinds(&rig.written()), [Kind::Welcome]);
    assert_eq!(
        rig.pass(ms(2_999)).expect("not yet"),
        [],
        "no heartbeat before the welcome"
    );
    assert!(matches!(rig.pass(ms(1)), Err(LinkFault::Silence(_))));
}

#[test]
fn an_acknowledgement_waits_for_a_frame_to_ride_on_and_not_for_long() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.take(numbered(Kind::Roster, 1)).expect("in order");
    assert_eq!(rig.written(), []);
    assert_eq!(rig.pass(ms(24)).expect("heard"), []);
    let sent = rig.pass(ms(1)).expect("heard");
    assert_eq!(kinds(&sent), [Kind::Ack]);
    assert_eq!((sent[0].header.ack, sent[0].header.seq), (Some(1), None));
    assert_eq!(rig.pass(ms(100)).expect("heard"), [], "said once");

    rig.take(numbered(Kind::Roster, 2)).expect("in order");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Control, None).expect("room");
    let sent = rig.written();
    let numbers: Vec<_> = sent
        .iter()
        .map(|frame| (frame.header.seq, frame.header.ack))
        .collect();
    assert_eq!(numbers, [(Some(1), Some(2)), (Some(2), None)]);
    assert_eq!(rig.pass(ms(100)).expect("heard"), []);
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

    let mut chunk = Frame::binary(Kind::Chunk, vec![0; 1024 * 1024].into());
    for seq in 257..=258 {
        assert_eq!(rig.written(), []);
        chunk.header.seq = Some(seq);
        rig.take(chunk.clone()).expect("in order");
    }
    assert_eq!(rig.written()[0].header.ack, Some(258));
}

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
    rig.link(PEER, 0).expect("a good welcome");
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
    rig.pass(ms(10)).expect("nothing to lose");
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
        Err(SendError::TooManyPending)
    ));
    rig.pass(ms(10)).expect("nothing to lose");
    assert_eq!(rig.events().len(), PENDING_MAX);
    rig.request(many, None, ms(1)).expect("room again");
}

#[test]
fn the_time_to_live_is_told_as_what_is_left() {
    let mut rig = Rig::new(OutboxLimits::CONTROL);
    rig.send(Lane::Control, Some(ms(500))).expect("room");
    rig.send(Lane::Control, None).expect("room");
    rig.send(Lane::Telemetry, Some(Duration::from_micros(200_001)))
        .expect("room");
    rig.now += ms(200);
    rig.link(PEER, 0).expect("a good welcome");
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
    rig.pass(ms(499)).expect("nothing to lose");
    assert_eq!(rig.words(), [""; 0]);
    rig.pass(ms(1)).expect("nothing to lose");
    assert_eq!(rig.words(), ["expired"]);
    assert_eq!(rig.session.poll_timeout(), Some(rig.start + ms(600)));
    // Transmitting looks at the clock itself.
    rig.now += ms(100);
    rig.link(PEER, 0).expect("a good welcome");
    assert_eq!(rig.written(), []);
}

#[test]
fn a_reply_ends_its_request_once_and_a_late_one_is_an_ordinary_frame() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.request(5, None, ms(100)).expect("room");
    rig.request(6, None, ms(100)).expect("room");
    rig.written();
    assert!(matches!(
        rig.request(5, None, ms(100)),
        Err(SendError::Repeated(5))
    ));
    rig.take(reply(1, 5, Some(7))).expect("in order");
    assert_eq!(rig.words(), ["reply"]);
    rig.pass(ms(100)).expect("heard");
    assert_eq!(rig.words(), ["timed out"]);
    rig.take(reply(2, 6, Some(7))).expect("in order");
    rig.take(reply(3, 5, Some(7))).expect("in order");
    assert_eq!(rig.words(), ["frame", "frame"]);
    rig.request(5, None, ms(100)).expect("the number is free again");
}

#[test]
fn a_reply_of_an_old_epoch_answers_no_new_request() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.request(5, None, ms(100)).expect("room");
    rig.written();
    rig.take(reply(1, 5, Some(6))).expect("in order");
    assert_eq!(rig.words(), ["frame"]);
    rig.take(reply(2, 5, Some(7))).expect("in order");
    assert_eq!(rig.words(), ["reply"]);
}

#[test]
fn a_restarted_peer_loses_what_was_sent_and_gets_what_never_was() {
    let mut rig = Rig::open(limits(10, 2));
    rig.events();
    for id in 1..=4 {
        rig.request(id, None, ms(10_000)).expect("room");
    }
    // 1 is acknowledged and not answered, 2 is on the way, 3 and 4 wait.
    assert_eq!(rig.written().len(), 2);
    rig.take(ack(1)).expect("sent");
    rig.session.detach();
    rig.send(Lane::Control, None).expect("room");

    let mut links = 0;
    for (peer, expected) in [
        (Instance(3), vec!["lost", "lost", "opened"]),
        (Instance(3), vec!["resumed"]),
    ] {
        rig.link(peer, 0).expect("a good welcome");
        assert_eq!(rig.words(), expected);
        let sent: Vec<_> = rig
            .written()
            .iter()
            .map(|f| (f.header.seq, f.header.id))
            .collect();
        assert_eq!(sent, [(Some(1), Some(3)), (Some(2), Some(4))], "link {links}");
        links += 1;
    }
    rig.take(ack(2)).expect("sent");
    assert_eq!(kinds(&rig.written()), [Kind::Roster]);
}

#[test]
fn a_new_link_resumes_where_the_old_one_broke() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    assert_eq!(rig.words(), ["opened"]);
    for id in 1..=3 {
        rig.session
            .send(outgoing(Kind::Roster, Lane::Control, id, None), None)
            .expect("room");
    }
    rig.written();
    rig.take(numbered(Kind::Roster, 1)).expect("in order");
    rig.session.detach();
    assert_eq!(rig.written(), []);
    rig.session.attach(PEER, rig.now);
    let told: Welcome = rig.written()[0].read().expect("a welcome");
    assert_eq!(
        told,
        Welcome {
            instance: US,
            peer_instance: PEER,
            received: 1
        }
    );
    rig.take(welcome(PEER, 2)).expect("a good welcome");
    assert_eq!(rig.words(), ["frame", "resumed"]);
    let sent: Vec<_> = rig
        .written()
        .iter()
        .map(|f| (f.header.seq, f.header.id))
        .collect();
    assert_eq!(sent, [(Some(3), Some(3))]);
    rig.take(numbered(Kind::Roster, 2)).expect("in order");
}

#[test]
fn faults_close_the_link_and_the_session_survives() {
    type Check = fn(&LinkFault) -> bool;
    let other = Frame::json(
        Kind::Welcome,
        &Welcome {
            instance: Instance(9),
            peer_instance: US,
            received: 0,
        },
    );
    let refused = Frame::json(
        Kind::Refused,
        &Refused::new(RefusalCode::Revoked, "revoked by the operator"),
    );
    let open: [(Frame, Check); 8] = [
        (numbered(Kind::Roster, 2), |f| {
            matches!(f, LinkFault::Gap { got: 2, expected: 1 })
        }),
        (ack(1), |f| matches!(f, LinkFault::AckAhead { ack: 1, sent: 0 })),
        (welcome(PEER, 0), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Welcome)))
        }),
        (Frame::json(Kind::Hello, &()), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Hello)))
        }),
        (Frame::json(Kind::Join, &()), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Join)))
        }),
        (Frame::json(Kind::Joined, &()), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Joined)))
        }),
        (refused.clone(), |f| {
            f.to_string() == "refused: revoked by the operator"
        }),
        (Frame::json(Kind::Refused, &1), |f| {
            matches!(
                f,
                LinkFault::Unreadable {
                    kind: Kind::Refused,
                    ..
                }
            )
        }),
    ];
    let greeting: [(Frame, Check); 7] = [
        (other, |f| matches!(f, LinkFault::OtherInstance)),
        (welcome(PEER, 1), |f| {
            matches!(f, LinkFault::AckAhead { ack: 1, sent: 0 })
        }),
        (Frame::json(Kind::Welcome, &1), |f| {
            matches!(
                f,
                LinkFault::Unreadable {
                    kind: Kind::Welcome,
                    ..
                }
            )
        }),
        (heartbeat(), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Heartbeat)))
        }),
        (numbered(Kind::Command, 1), |f| {
            matches!(f, LinkFault::OutOfPlace(Some(Kind::Command)))
        }),
        (Frame::default(), |f| matches!(f, LinkFault::OutOfPlace(None))),
        (refused, |f| matches!(f, LinkFault::Refused(_))),
    ];
    for (is_open, cases) in [(true, &open[..]), (false, &greeting[..])] {
        for (frame, check) in cases {
            let mut rig = Rig::new(OutboxLimits::CONTROL);
            if is_open {
                rig.link(PEER, 0).expect("a good welcome");
            } else {
                rig.session.attach(PEER, rig.now);
                rig.written();
            }
            let fault = rig.take(frame.clone()).expect_err("a fault");
            assert!(check(&fault), "{fault:?}");
            assert!(!rig.session.is_open());
            assert!(
                matches!(rig.take(heartbeat()), Err(LinkFault::OutOfPlace(_))),
                "detached"
            );
            rig.link(PEER, 0).expect("the next link is good");
            rig.take(numbered(Kind::Roster, 1)).expect("in order");
        }
    }
}

#[test]
fn a_number_that_comes_twice_is_passed_over() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.take(numbered(Kind::Roster, 1)).expect("in order");
    rig.take(numbered(Kind::Roster, 1)).expect("passed over");
    assert_eq!(rig.words(), ["frame"]);
}

#[test]
fn kinds_of_a_later_version_are_counted_and_passed_over() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.take(numbered(Kind::Unknown, 1)).expect("in order");
    rig.take(numbered(Kind::Roster, 2)).expect("in order");
    assert_eq!(rig.words(), ["frame"]);
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
