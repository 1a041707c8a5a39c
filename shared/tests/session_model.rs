//! Two sessions on a model link, under random sequences of sending, moving bytes, losing the link with the bytes in
//! transit, reconnecting, restarting a process, and time.
//!
//! Invariants: no message arrives twice; within a lane the order stays; an accepted message arrives, unless it
//! expired or was sent to a process that has restarted since; every request ends exactly once; queues are bounded;
//! and once the link works, both sides become idle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;
use swarm_shared::net::clock;
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{
    Event, ExpectedReply, LinkFault, Outgoing, RequestEnd, SendError, Session, Timing,
};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane};

const LIMITS: OutboxLimits = OutboxLimits {
    queued_max: 6,
    queued_bytes_max: 4_000,
    window_max: 5,
    window_bytes_max: 3_000,
    window_bytes_min: 3_000,
};

/// Index of one of the two peers.
type Side = usize;

#[derive(Clone, Debug)]
enum Op {
    Send {
        side: Side,
        lane: Lane,
        /// Time-out of a request, in ms; `None` for a message that expects no reply.
        request: Option<u64>,
        /// In ms.
        ttl: Option<u64>,
        padding: usize,
    },
    Transmit {
        side: Side,
        room: usize,
    },
    /// Moves bytes that `side` has written to the other.
    Move {
        side: Side,
        bytes: usize,
    },
    /// The link is lost with all bytes in it; a side may notice only at the next link.
    Drop {
        noticed: [bool; 2],
    },
    /// A new link replaces the old one. `first` is ready first.
    Dial {
        first: Side,
    },
    /// The other side is ready too.
    Ready,
    Restart {
        side: Side,
    },
    Advance {
        ms: u64,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let side = 0_usize..2;
    let lane = prop_oneof![
        4 => Just(Lane::Control),
        2 => Just(Lane::Bulk),
        1 => Just(Lane::Emergency),
        1 => Just(Lane::Telemetry),
    ];
    let request = proptest::option::of(prop_oneof![1 => 1_u64..2_000, 3 => Just(600_000)]);
    let ttl = proptest::option::weighted(0.2, 1_u64..1_500);
    let padding = prop_oneof![4 => 0_usize..50, 1 => 0_usize..2_000, 1 => 4_000_usize..5_000];
    prop_oneof![
        30 => (side.clone(), lane, request, ttl, padding)
            .prop_map(|(side, lane, request, ttl, padding)| Op::Send { side, lane, request, ttl, padding }),
        20 => (side.clone(), prop_oneof![Just(1_usize), Just(300), Just(100_000)])
            .prop_map(|(side, room)| Op::Transmit { side, room }),
        30 => (side.clone(), prop_oneof![1_usize..300, Just(100_000)])
            .prop_map(|(side, bytes)| Op::Move { side, bytes }),
        4 => any::<[bool; 2]>().prop_map(|noticed| Op::Drop { noticed }),
        5 => side.clone().prop_map(|first| Op::Dial { first }),
        8 => Just(Op::Ready),
        1 => side.prop_map(|side| Op::Restart { side }),
        8 => prop_oneof![0_u64..40, 0_u64..1_200].prop_map(|ms| Op::Advance { ms }),
    ]
}

/// The model's record of a message.
#[derive(Debug)]
struct Sent {
    from: Side,
    lane: Lane,
    /// Instance of the sender that accepted it.
    run: u64,
    deadline: Option<Instant>,
    request: bool,
    /// Instance of the receiver that may have read it: set when it is written, cleared when that instance says that
    /// it has not.
    transmitted: Option<u64>,
    /// Whether it has ever been written.
    left_the_queue: bool,
    delivered: bool,
    ended: Option<&'static str>,
}

struct Peer {
    session: Session<u64>,
    run: u64,
    attached: bool,
    /// Written and not yet moved.
    wire: BytesMut,
    /// Parses everything that this side writes.
    tap: FrameReader,
    tapped: BytesMut,
    reader: FrameReader,
    inbox: BytesMut,
    /// Requests that are not answered yet, because the lane was full.
    unanswered: VecDeque<u64>,
    /// The last number of each lane that was delivered here.
    newest: BTreeMap<Lane, u64>,
}

impl Peer {
    fn new(run: u64, now: Instant) -> Self {
        Self {
            session: Session::new(Instance(run), Timing::default(), LIMITS, now).expect("constant frames"),
            run,
            attached: false,
            wire: BytesMut::new(),
            tap: FrameReader::new(FrameLimits::CONTROL),
            tapped: BytesMut::new(),
            reader: FrameReader::new(FrameLimits::CONTROL),
            inbox: BytesMut::new(),
            unanswered: VecDeque::new(),
            newest: BTreeMap::new(),
        }
    }

    fn lose_buffers(&mut self) {
        self.wire.clear();
        self.tapped.clear();
        self.inbox.clear();
        self.tap = FrameReader::new(FrameLimits::CONTROL);
        self.reader = FrameReader::new(FrameLimits::CONTROL);
    }
}

struct Model {
    now: Instant,
    peers: [Peer; 2],
    /// Whether bytes can move.
    linked: bool,
    messages: BTreeMap<u64, Sent>,
    next_id: u64,
    next_run: u64,
}

fn encoded(kind: Kind, id: Option<u64>, message: u64, lane: Lane, padding: usize) -> EncodedFrame {
    let mut content = BytesMut::new();
    content.put_u64(message);
    content.put_bytes(b'.', padding);
    let mut frame = Frame::binary(kind, content.freeze());
    frame.header.id = id;
    frame.header.lane = Some(lane);
    EncodedFrame::new(&frame).expect("a short header")
}

fn message_of(content: &Bytes) -> u64 {
    content.clone().get_u64()
}

impl Model {
    fn new() -> Self {
        let now = clock::now();
        Self {
            now,
            peers: [Peer::new(1, now), Peer::new(2, now)],
            linked: false,
            messages: BTreeMap::new(),
            next_id: 1,
            next_run: 3,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Send {
                side,
                lane,
                request,
                ttl,
                padding,
            } => self.send(side, lane, request, ttl, padding),
            Op::Transmit { side, room } => self.transmit(side, room),
            Op::Move { side, bytes } => self.move_bytes(side, bytes),
            Op::Drop { noticed } => {
                self.linked = false;
                for (peer, noticed) in self.peers.iter_mut().zip(noticed) {
                    if noticed {
                        peer.attached = false;
                        peer.session.detach();
                    }
                }
            }
            Op::Dial { first } => {
                self.linked = true;
                for peer in &mut self.peers {
                    // A side that is not ready yet reads nothing from the new link, and may still use the old one.
                    peer.attached = false;
                    peer.lose_buffers();
                }
                self.attach(first);
            }
            Op::Ready => {
                for side in 0..2 {
                    if self.linked && !self.peers[side].attached {
                        self.attach(side);
                    }
                }
            }
            Op::Restart { side } => {
                self.linked = false;
                let run = self.next_run;
                self.next_run += 1;
                self.peers[side] = Peer::new(run, self.now);
                // Messages delivered to the old instance were delivered before; numbers continue.
                let far = &mut self.peers[1 - side];
                far.attached = false;
                far.session.detach();
            }
            Op::Advance { ms } => self.advance(Duration::from_millis(ms)),
        }
    }

    fn attach(&mut self, side: Side) {
        let far = Instance(self.peers[1 - side].run);
        let peer = &mut self.peers[side];
        peer.attached = true;
        peer.session.attach(far, self.now);
        self.take_events(side);
    }

    fn send(&mut self, side: Side, lane: Lane, request: Option<u64>, ttl: Option<u64>, padding: usize) {
        let id = self.next_id;
        let kind = if request.is_some() {
            Kind::Command
        } else {
            Kind::Roster
        };
        let deadline = ttl.map(|ms| self.now + Duration::from_millis(ms));
        // A telemetry value is replaced silently, so that a request on that lane would get no end.
        let request = request.filter(|_| lane != Lane::Telemetry);
        let outgoing = Outgoing {
            frame: encoded(kind, Some(id), id, lane, padding),
            lane,
            deadline,
        };
        let expected = request.map(|ms| ExpectedReply {
            id,
            deadline: self.now + Duration::from_millis(ms),
            token: id,
        });
        let had_room = self.peers[side].session.has_room(lane);
        let result = self.peers[side].session.send(outgoing, expected);
        assert_eq!(had_room, result.is_ok(), "has_room and send agree: {result:?}");
        match result {
            Ok(()) => self.record_sent(side, lane, request.is_some(), deadline),
            Err(error) => assert!(matches!(error, SendError::Busy(_)), "{error}"),
        }
    }

    fn record_sent(&mut self, from: Side, lane: Lane, request: bool, deadline: Option<Instant>) {
        let sent = Sent {
            from,
            lane,
            run: self.peers[from].run,
            deadline,
            request,
            transmitted: None,
            left_the_queue: false,
            delivered: false,
            ended: None,
        };
        self.messages.insert(self.next_id, sent);
        self.next_id += 1;
    }

    fn reply_to_requests(&mut self, side: Side) {
        while let Some(request) = self.peers[side].unanswered.front().copied() {
            let outgoing = Outgoing {
                frame: encoded(Kind::Reply, Some(request), self.next_id, Lane::Control, 0),
                lane: Lane::Control,
                deadline: None,
            };
            if self.peers[side].session.send(outgoing, None).is_err() {
                return;
            }
            self.peers[side].unanswered.pop_front();
            self.record_sent(side, Lane::Control, false, None);
        }
    }

    fn transmit(&mut self, side: Side, room: usize) {
        self.reply_to_requests(side);
        let far_run = self.peers[1 - side].run;
        let peer = &mut self.peers[side];
        let mut out = OutBuffer::default();
        peer.session.transmit(&mut out, room, self.now).expect("encodes");
        let live = self.linked && peer.attached;
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = out.fill_slices(&mut slices);
            assert!(filled > 0, "bytes wait and none are shown");
            let mut written = 0;
            for slice in &slices[..filled] {
                peer.tapped.extend_from_slice(slice);
                if live {
                    peer.wire.extend_from_slice(slice);
                }
                written += slice.len();
            }
            out.consume(written);
        }
        while let Some(frame) = peer
            .tap
            .next_frame(&mut peer.tapped)
            .expect("our own frames are sound")
        {
            if frame
                .header
                .kind
                .is_some_and(|kind| matches!(kind, Kind::Command | Kind::Roster | Kind::Reply))
            {
                let sent = self
                    .messages
                    .get_mut(&message_of(&frame.content))
                    .expect("a known message");
                assert_eq!(
                    frame.header.ttl.is_some(),
                    sent.deadline.is_some(),
                    "the ttl is told"
                );
                assert_ne!(frame.header.ttl, Some(0), "nothing is sent too late");
                assert_eq!(frame.header.seq.is_none(), sent.lane == Lane::Telemetry);
                sent.left_the_queue = true;
                let first_to = *sent.transmitted.get_or_insert(far_run);
                assert_eq!(
                    first_to, far_run,
                    "what an old process may have read is not sent to a new one"
                );
            }
        }
        assert!(peer.tapped.is_empty(), "whole frames only");
        self.take_events(side);
        self.check_bounds(side);
    }

    /// Moves up to `bytes` from `side` to the other, which handles every complete frame.
    fn move_bytes(&mut self, side: Side, bytes: usize) {
        let [left, right] = &mut self.peers;
        let (from, to) = if side == 0 { (left, right) } else { (right, left) };
        if !self.linked || !to.attached {
            return;
        }
        let bytes = bytes.min(from.wire.len());
        to.inbox.unsplit(from.wire.split_to(bytes));
        while let Some(frame) = to.reader.next_frame(&mut to.inbox).expect("sound frames") {
            to.session
                .handle_frame(frame, self.now)
                .expect("an honest peer causes no fault");
        }
        self.take_events(1 - side);
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        for side in 0..2 {
            let fault = self.peers[side].session.handle_timeout(self.now);
            self.take_events(side);
            match fault {
                Ok(()) => {}
                Err(LinkFault::Silence(_)) => {
                    self.linked = false;
                    self.peers[side].attached = false;
                }
                Err(other) => panic!("{other}"),
            }
        }
        for side in 0..2 {
            self.transmit(side, 100_000);
            if let Some(next) = self.peers[side].session.poll_timeout() {
                assert!(next > self.now, "what is due was done; else the driver spins");
            }
        }
    }

    fn take_events(&mut self, side: Side) {
        let events: Vec<_> = self.peers[side].session.take_events().collect();
        for event in events {
            match event {
                Event::Silent | Event::Recovered => {}
                Event::Opened { .. } => {
                    let (run, far) = (self.peers[side].run, self.peers[1 - side].run);
                    let unread = |m: &&mut Sent| {
                        (m.from, m.run, m.transmitted, m.delivered) == (side, run, Some(far), false)
                    };
                    for sent in self.messages.values_mut().filter(unread) {
                        sent.transmitted = None;
                    }
                }
                Event::Frame { frame, .. } => self.delivered(side, &frame.content, frame.header.kind),
                Event::RequestEnded(request, how) => {
                    let word = match &how {
                        RequestEnd::Reply(content) => {
                            self.delivered(side, content, Some(Kind::Reply));
                            "reply"
                        }
                        RequestEnd::Expired => "expired",
                        RequestEnd::Lost => "lost",
                        RequestEnd::TimedOut => "timed out",
                    };
                    let sent = self.messages.get_mut(&request).expect("a known request");
                    assert_eq!((sent.from, sent.request), (side, true));
                    assert_eq!(sent.ended, None, "request {request} ends twice, now {word}");
                    sent.ended = Some(word);
                    match how {
                        RequestEnd::Reply(_) => assert!(sent.delivered),
                        RequestEnd::Expired => {
                            assert!(sent.deadline.is_some_and(|deadline| self.now >= deadline));
                            assert!(!sent.delivered, "expired, and yet delivered");
                        }
                        RequestEnd::Lost => {
                            let run = sent
                                .transmitted
                                .expect("what the old process cannot have read is not lost");
                            assert_ne!(run, self.peers[1 - side].run, "lost, though its process lives");
                        }
                        RequestEnd::TimedOut => {}
                    }
                }
            }
        }
    }

    fn delivered(&mut self, side: Side, content: &Bytes, kind: Option<Kind>) {
        let message = message_of(content);
        let sent = self.messages.get_mut(&message).expect("a known message");
        assert_eq!(sent.from, 1 - side);
        assert!(!sent.delivered, "message {message} comes twice");
        sent.delivered = true;
        let peer = &mut self.peers[side];
        let before = peer.newest.insert(sent.lane, message);
        assert!(
            before < Some(message),
            "{message} after {before:?} in {:?}",
            sent.lane
        );
        if kind == Some(Kind::Command) && sent.request {
            peer.unanswered.push_back(message);
        }
    }

    fn check_bounds(&self, side: Side) {
        let run = self.peers[side].run;
        let mine = || self.messages.values().filter(|m| m.from == side && m.run == run);
        let now = self.now;
        for lane in [Lane::Emergency, Lane::Control, Lane::Bulk] {
            let waiting = mine()
                .filter(|m| m.lane == lane && !m.left_the_queue && m.deadline.is_none_or(|d| now < d))
                .count();
            assert!(waiting <= LIMITS.queued_max, "{waiting} wait in {lane:?}");
        }
        let far = self.peers[1 - side].run;
        let on_the_way = mine()
            .filter(|m| {
                m.transmitted == Some(far)
                    && !m.delivered
                    && m.lane != Lane::Telemetry
                    && m.deadline.is_none()
            })
            .count();
        assert!(
            on_the_way <= LIMITS.window_max + LIMITS.queued_max,
            "{on_the_way} are on the way"
        );
    }

    /// From here on the link works, until both sides are idle.
    fn reconnect_and_drain(&mut self) {
        self.apply(&Op::Dial { first: 0 });
        self.apply(&Op::Ready);
        for _round in 0..200 {
            for side in 0..2 {
                self.transmit(side, 1_000);
                self.move_bytes(side, usize::MAX);
            }
            self.advance(Duration::from_millis(10));
        }
        assert!(self.linked && self.peers.iter().all(|peer| peer.session.is_open()));
    }

    fn check_end(&self) {
        for (side, peer) in self.peers.iter().enumerate() {
            assert!(peer.unanswered.is_empty());
            assert!(peer.session.is_idle(), "{side} rests: {:?}", peer.session);
        }
        let live: BTreeSet<u64> = self.peers.iter().map(|peer| peer.run).collect();
        for (id, sent) in &self.messages {
            if !live.contains(&sent.run) {
                continue;
            }
            if sent.request {
                assert!(sent.ended.is_some(), "request {id} has no end: {sent:?}");
            }
            let expired = sent.deadline.is_some_and(|deadline| self.now >= deadline);
            let gone_with_its_process = sent.transmitted.is_some_and(|run| !live.contains(&run));
            let excused = sent.lane == Lane::Telemetry || expired || gone_with_its_process;
            assert!(sent.delivered || excused, "message {id} is lost: {sent:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(ops in proptest::collection::vec(any_op(), 1..150)) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
        }
        model.reconnect_and_drain();
        model.check_end();
    }
}
