//! Two sessions on two clocks with different times and rates. Bytes may be delayed anywhere; a process may be
//! suspended anywhere, also between reading its clock and using it; links break and processes restart.
//!
//! Invariants: the deadline that a receiver computes is never later than the sender's. It is earlier by at most the
//! transit time of the receiver's stamp, and the allowance for different clock rates.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use proptest::prelude::*;
use swarm_shared::net::clock;
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{Event, LinkFault, Outgoing, Session, Timing};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane};

type Side = usize;

#[derive(Clone, Debug)]
enum Op {
    /// Time passes for both.
    Wait {
        us: u64,
    },
    Send {
        side: Side,
        ttl_us: u64,
        lane: Lane,
    },
    /// Reads its clock, is suspended for a while, and writes.
    Write {
        side: Side,
        stopped_us: u64,
    },
    /// Takes bytes of the other side, reads its clock, is suspended for a while, and handles them.
    Read {
        side: Side,
        bytes: usize,
        stopped_us: u64,
    },
    Relink,
    Restart {
        side: Side,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let side = 0_usize..2;
    let pause = prop_oneof![6 => Just(0_u64), 2 => 1_u64..50_000, 1 => 1_u64..5_000_000];
    let lane = prop_oneof![Just(Lane::Control), Just(Lane::Emergency), Just(Lane::Bulk)];
    let bytes = prop_oneof![1 => 1_usize..400, 2 => Just(1_000_000)];
    prop_oneof![
        6 => prop_oneof![0_u64..3_000, 0_u64..400_000].prop_map(|us| Op::Wait { us }),
        8 => (side.clone(), 0_u64..4_000_000, lane)
            .prop_map(|(side, ttl_us, lane)| Op::Send { side, ttl_us, lane }),
        10 => (side.clone(), pause.clone()).prop_map(|(side, stopped_us)| Op::Write { side, stopped_us }),
        10 => (side.clone(), bytes, pause)
            .prop_map(|(side, bytes, stopped_us)| Op::Read { side, bytes, stopped_us }),
        1 => Just(Op::Relink),
        1 => side.prop_map(|side| Op::Restart { side }),
    ]
}

struct Peer {
    session: Session<()>,
    run: u64,
    /// Its clock at the true time 0.
    clock: Instant,
    /// How much faster than true time its clock runs, in parts per million.
    fast_ppm: u64,
    /// Written, and not yet received by the other side.
    wire: BytesMut,
    reader: FrameReader,
    inbox: BytesMut,
}

struct Model {
    /// True time since the start.
    now: Duration,
    peers: [Peer; 2],
    linked: bool,
    /// Deadlines in true time, by the number of their message.
    deadlines: BTreeMap<u64, Duration>,
    runs: u64,
    delivered: usize,
}

fn session(run: u64, now: Instant) -> Session<()> {
    Session::new(Instance(run), Timing::default(), OutboxLimits::CONTROL, now).expect("constant frames")
}

impl Model {
    /// Peers whose clocks differ by this many milliseconds and run too fast by these rates.
    fn new(apart_ms: u64, fast_ppm: [u64; 2]) -> Self {
        let base = clock::now();
        let peer = |run, clock, fast_ppm| Peer {
            session: session(run, clock),
            run,
            clock,
            fast_ppm,
            wire: BytesMut::new(),
            reader: FrameReader::new(FrameLimits::CONTROL),
            inbox: BytesMut::new(),
        };
        let far = base + Duration::from_millis(apart_ms);
        Self {
            now: Duration::ZERO,
            peers: [peer(1, base, fast_ppm[0]), peer(2, far, fast_ppm[1])],
            linked: false,
            deadlines: BTreeMap::new(),
            runs: 2,
            delivered: 0,
        }
    }

    fn read_clock(&self, side: Side) -> Instant {
        self.peers[side].clock_at(self.now)
    }

    fn unlink(&mut self) {
        self.linked = false;
        for peer in &mut self.peers {
            peer.session.detach();
            peer.wire.clear();
            peer.inbox.clear();
            peer.reader = FrameReader::new(FrameLimits::CONTROL);
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Wait { us } => self.now += Duration::from_micros(us),
            Op::Send { side, ttl_us, lane } => {
                let number = self.deadlines.len() as u64;
                let ttl = Duration::from_micros(ttl_us);
                let content = Bytes::copy_from_slice(&number.to_be_bytes());
                let outgoing = Outgoing {
                    frame: EncodedFrame::new(&Frame::binary(Kind::Roster, content)).expect("short"),
                    lane,
                    deadline: Some(self.peers[side].clock_at(self.now + ttl)),
                };
                self.deadlines.insert(number, self.now + ttl);
                self.peers[side].session.send(outgoing, None).expect("room");
            }
            Op::Write { side, stopped_us } => {
                let read = self.read_clock(side);
                self.now += Duration::from_micros(stopped_us);
                self.write(side, read);
            }
            Op::Read {
                side,
                bytes,
                stopped_us,
            } => {
                let [left, right] = &mut self.peers;
                let (to, from) = if side == 0 { (left, right) } else { (right, left) };
                let bytes = bytes.min(from.wire.len());
                to.inbox.unsplit(from.wire.split_to(bytes));
                let read = self.read_clock(side);
                self.now += Duration::from_micros(stopped_us);
                self.read(side, read);
            }
            Op::Relink => {
                self.unlink();
                self.linked = true;
                for side in 0..2 {
                    let (read, run) = (self.read_clock(side), self.peers[1 - side].run);
                    self.peers[side].session.attach(Instance(run), read);
                }
            }
            Op::Restart { side } => {
                self.unlink();
                self.runs += 1;
                self.peers[side].run = self.runs;
                self.peers[side].session = session(self.runs, self.read_clock(side));
            }
        }
    }

    fn write(&mut self, side: Side, read: Instant) {
        let peer = &mut self.peers[side];
        match peer.session.handle_timeout(read) {
            Ok(()) => {}
            Err(LinkFault::Silence(_)) => return self.unlink(),
            Err(other) => panic!("{other}"),
        }
        let mut out = OutBuffer::default();
        peer.session.transmit(&mut out, 1_000_000, read).expect("encodes");
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[])];
            out.fill_slices(&mut slices);
            peer.wire.extend_from_slice(&slices[0]);
            let written = slices[0].len();
            out.consume(written);
        }
        peer.session.take_events();
    }

    fn read(&mut self, side: Side, read: Instant) {
        while let Some(frame) = self.peers[side].next_frame() {
            let peer = &mut self.peers[side];
            peer.session.handle_frame(frame, read).expect("an honest peer");
            let events: Vec<_> = peer.session.take_events().collect();
            for event in events {
                let Event::Frame { frame, deadline } = event else {
                    continue;
                };
                let number = frame.content.clone().get_u64();
                let meant = self.deadlines[&number];
                let taken = deadline.expect("every message has one");
                let late = taken.checked_duration_since(peer.clock_at(meant));
                assert!(
                    late.is_none_or(|late| late.is_zero()),
                    "message {number}: {late:?} late"
                );
                self.delivered += 1;
            }
        }
    }
}

impl Peer {
    /// Its clock at a true time.
    fn clock_at(&self, at: Duration) -> Instant {
        let micros = u64::try_from(at.as_micros()).expect("a short test");
        self.clock + at + Duration::from_nanos(micros * self.fast_ppm / 1_000)
    }

    fn next_frame(&mut self) -> Option<Frame> {
        self.reader.next_frame(&mut self.inbox).expect("sound frames")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn received_deadline_is_never_later_than_sent(
        apart_ms in 0_u64..1_000_000_000,
        fast_ppm in [0_u64..900, 0_u64..900],
        ops in proptest::collection::vec(any_op(), 1..120),
    ) {
        let mut model = Model::new(apart_ms, fast_ppm);
        model.apply(&Op::Relink);
        for op in &ops {
            model.apply(op);
        }
    }

    #[test]
    fn deadline_error_is_bounded_by_the_clock_transit_time(
        apart_ms in 0_u64..1_000_000_000,
        fast_ppm in [0_u64..900, 0_u64..900],
        age_us in 0_u64..10_000_000,
        way_us in 0_u64..100_000,
        ttl_us in 200_000_u64..4_000_000,
        lay_us in 0_u64..2_000_000,
    ) {
        let mut model = Model::new(apart_ms, fast_ppm);
        model.apply(&Op::Wait { us: age_us });
        model.apply(&Op::Relink);
        let all = usize::MAX;
        model.apply(&Op::Write { side: 1, stopped_us: way_us });
        model.apply(&Op::Read { side: 0, bytes: all, stopped_us: 0 });
        model.apply(&Op::Send { side: 0, ttl_us, lane: Lane::Control });
        model.apply(&Op::Write { side: 0, stopped_us: lay_us });
        let meant = model.now - Duration::from_micros(lay_us) + Duration::from_micros(ttl_us);
        let bytes = model.peers[0].wire.split();
        model.peers[1].inbox.unsplit(bytes);
        let read = model.read_clock(1);
        let peer = &mut model.peers[1];
        let mut taken = None;
        while let Some(frame) = peer.next_frame() {
            peer.session.handle_frame(frame, read).expect("an honest peer");
            for event in peer.session.take_events() {
                if let Event::Frame { deadline, .. } = event {
                    taken = deadline;
                }
            }
        }
        let (taken, meant) = (taken.expect("delivered"), peer.clock_at(meant));
        prop_assert!(taken <= meant);
        // The difference of the rates and the allowance for it, in four seconds, and two roundings.
        let given = Duration::from_micros(way_us) + Duration::from_millis(4 * 2 + 2);
        prop_assert!(taken + given >= meant, "{:?} early", meant - taken);
    }
}

#[test]
fn deadline_model_delivers_messages() {
    let mut model = Model::new(77, [0, 0]);
    model.apply(&Op::Relink);
    for side in [0, 1] {
        model.apply(&Op::Write { side, stopped_us: 0 });
    }
    for side in [0, 1] {
        let bytes = usize::MAX;
        model.apply(&Op::Read {
            side,
            bytes,
            stopped_us: 0,
        });
    }
    model.apply(&Op::Send {
        side: 0,
        ttl_us: 1_000_000,
        lane: Lane::Control,
    });
    model.apply(&Op::Write {
        side: 0,
        stopped_us: 2_000_000,
    });
    let bytes = usize::MAX;
    model.apply(&Op::Read {
        side: 1,
        bytes,
        stopped_us: 0,
    });
    assert_eq!(model.delivered, 1);
}
