//! The outbox against a simple model of it, and the buffer in front of a socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use swarm_shared::net::clock;
use swarm_shared::proto::session::outbox::{Outbox, OutboxItem, OutboxLimits};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer, Trailer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane};

const LIMITS: OutboxLimits = OutboxLimits {
    queued_max: 4,
    queued_bytes_max: 2_000,
    window_max: 3,
    window_bytes_max: 1_500,
    window_bytes_min: 1_500,
};

#[derive(Clone, Debug)]
enum Op {
    Push {
        lane: Lane,
        /// In ms from the start.
        deadline: Option<u64>,
        padding: usize,
    },
    Next,
    /// Acknowledges this share of the unacknowledged frames, of 255.
    Acknowledge(u8),
    Rewind,
    Reset,
    /// Expires at this many ms after the last time.
    Expire(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let lane = prop_oneof![
        Just(Lane::Emergency),
        Just(Lane::Control),
        Just(Lane::Telemetry),
        Just(Lane::Bulk)
    ];
    let padding = prop_oneof![3 => Just(0_usize), 1 => 0_usize..1_000, 1 => 2_000_usize..2_500];
    prop_oneof![
        8 => (lane, proptest::option::of(0_u64..100), padding)
            .prop_map(|(lane, deadline, padding)| Op::Push { lane, deadline, padding }),
        6 => Just(Op::Next),
        3 => any::<u8>().prop_map(Op::Acknowledge),
        2 => Just(Op::Rewind),
        1 => Just(Op::Reset),
        1 => (0_u64..10).prop_map(Op::Expire),
    ]
}

fn encoded(padding: usize) -> EncodedFrame {
    EncodedFrame::new(&Frame::binary(Kind::Roster, vec![0; padding].into())).expect("a short header")
}

/// Slow and simple: each place is a list of items, in order.
#[derive(Default)]
struct Model {
    emergency: VecDeque<OutboxItem>,
    control: VecDeque<OutboxItem>,
    telemetry: VecDeque<OutboxItem>,
    bulk: VecDeque<OutboxItem>,
    unacked: VecDeque<OutboxItem>,
    acknowledged: u64,
}

fn sum(items: &VecDeque<OutboxItem>) -> usize {
    items.iter().map(|item| item.frame.memory_bytes()).sum()
}

fn ids<'a>(items: impl IntoIterator<Item = &'a OutboxItem>) -> Vec<u64> {
    items.into_iter().filter_map(|item| item.request).collect()
}

impl Model {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<OutboxItem> {
        match lane {
            Lane::Emergency => &mut self.emergency,
            Lane::Control => &mut self.control,
            Lane::Telemetry => &mut self.telemetry,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn queues(&self) -> [&VecDeque<OutboxItem>; 4] {
        [&self.emergency, &self.control, &self.bulk, &self.telemetry]
    }

    fn has_room(&mut self, lane: Lane) -> bool {
        let bytes: usize = self.queues().into_iter().map(sum).sum();
        let waiting = self.lane(lane).len();
        match lane {
            Lane::Telemetry => true,
            Lane::Emergency => waiting < LIMITS.queued_max,
            Lane::Control | Lane::Bulk => {
                waiting == 0 || (waiting < LIMITS.queued_max && bytes < LIMITS.queued_bytes_max)
            }
        }
    }

    fn next(&mut self) -> Option<(Option<u64>, OutboxItem)> {
        let window_full =
            self.unacked.len() >= LIMITS.window_max || sum(&self.unacked) >= LIMITS.window_bytes_max;
        for lane in [Lane::Emergency, Lane::Control, Lane::Telemetry, Lane::Bulk] {
            let open = match lane {
                Lane::Emergency => self.unacked.len() < LIMITS.window_max + LIMITS.queued_max,
                Lane::Telemetry => true,
                Lane::Control | Lane::Bulk => !window_full,
            };
            if !open {
                continue;
            }
            let Some(item) = self.lane(lane).pop_front() else {
                continue;
            };
            if lane == Lane::Telemetry {
                return Some((None, item));
            }
            self.unacked.push_back(item.clone());
            return Some((Some(self.acknowledged + self.unacked.len() as u64), item));
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn outbox_matches_its_model(ops in proptest::collection::vec(any_op(), 1..120)) {
        let start = clock::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut now = 0;
        let mut outbox = Outbox::new(LIMITS);
        let mut model = Model::default();
        for (id, op) in (0_u64..).zip(ops) {
            match op {
                Op::Push { lane, deadline, padding } => {
                    let item = OutboxItem { frame: encoded(padding), lane, deadline: deadline.map(at), request: Some(id) };
                    let room = model.has_room(lane);
                    prop_assert_eq!(outbox.has_room(lane), room);
                    prop_assert_eq!(outbox.push(item.clone()).is_ok(), room);
                    if lane == Lane::Telemetry {
                        model.telemetry.clear();
                    }
                    if room {
                        model.lane(lane).push_back(item);
                    }
                }
                Op::Next => {
                    let sent = outbox.next_to_send(at(now)).map(|(seq, item)| (seq, item.request));
                    prop_assert_eq!(sent, model.next().map(|(seq, item)| (seq, item.request)));
                }
                Op::Acknowledge(share) => {
                    let read = model.unacked.len() * usize::from(share) / 255;
                    model.unacked.drain(..read);
                    model.acknowledged += read as u64;
                    prop_assert!(!outbox.on_acknowledged(outbox.sent() + 1, at(now)));
                    prop_assert!(outbox.on_acknowledged(model.acknowledged, at(now)));
                    // An older acknowledgement changes nothing.
                    prop_assert!(outbox.on_acknowledged(model.acknowledged.saturating_sub(1), at(now)));
                }
                Op::Rewind => {
                    outbox.rewind();
                    for item in std::mem::take(&mut model.unacked).into_iter().rev() {
                        model.lane(item.lane).push_front(item);
                    }
                }
                Op::Reset => {
                    prop_assert_eq!(ids(&outbox.reset()), ids(&model.unacked));
                    model.unacked.clear();
                    model.acknowledged = 0;
                }
                Op::Expire(ms) => {
                    now += ms;
                    let late = |item: &OutboxItem| item.deadline.is_some_and(|deadline| at(now) >= deadline);
                    let mut expected: Vec<u64> =
                        ids(model.queues().into_iter().flatten().filter(|item| late(item)));
                    for lane in [Lane::Emergency, Lane::Control, Lane::Telemetry, Lane::Bulk] {
                        model.lane(lane).retain(|item| !late(item));
                    }
                    let mut expired = ids(&outbox.expire(at(now)));
                    expired.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(expired, expected);
                    prop_assert!(outbox.earliest_deadline().is_none_or(|earliest: Instant| earliest > at(now)));
                }
            }
            prop_assert_eq!(outbox.acknowledged(), model.acknowledged);
            prop_assert_eq!(outbox.sent(), model.acknowledged + model.unacked.len() as u64);
            prop_assert_eq!(outbox.has_queued(), model.queues().iter().any(|queue| !queue.is_empty()));
            let mut waiting = ids(model.queues().into_iter().flatten());
            let mut requests: Vec<u64> = outbox.queued_requests().into_iter().collect();
            waiting.sort_unstable();
            requests.sort_unstable();
            prop_assert_eq!(requests, waiting);
            let earliest = model.queues().into_iter().flatten().filter_map(|item| item.deadline).min();
            prop_assert!(earliest.is_none() || outbox.earliest_deadline() <= earliest, "it would expire late");
        }
    }

    #[test]
    fn partial_writes_keep_the_byte_order(
        sizes in proptest::collection::vec(prop_oneof![0_usize..100, 4_000_usize..4_200, Just(20_000)], 1..20),
        writes in proptest::collection::vec(1_usize..6_000, 1..20),
        trailer in any::<[Option<u64>; 3]>(),
        slots in 1_usize..5,
    ) {
        let mut out = OutBuffer::default();
        let mut frames = Vec::new();
        let mut bytes = BytesMut::new();
        let mut writes = writes.iter().cycle();
        let mut sizes = sizes.iter();
        let mut fill = u8::MIN;
        loop {
            let size = sizes.next();
            if let Some(size) = size {
                fill = fill.wrapping_add(1);
                let mut frame = Frame::binary(Kind::Chunk, Bytes::from(vec![fill; *size]));
                let [seq, ack, ttl] = trailer;
                out.push(&EncodedFrame::new(&frame).expect("a short header"), Trailer { seq, ack, ttl, ..Trailer::default() });
                (frame.header.seq, frame.header.ack, frame.header.ttl) = (seq, ack, ttl);
                frames.push(frame);
            } else if out.is_empty() {
                break;
            }
            let mut slices = vec![IoSlice::new(&[]); slots];
            let filled = out.fill_slices(&mut slices);
            let mut left = *writes.next().expect("a cycle");
            let mut written = 0;
            for slice in &slices[..filled] {
                prop_assert!(!slice.is_empty());
                let part = left.min(slice.len());
                bytes.extend_from_slice(&slice[..part]);
                left -= part;
                written += part;
            }
            let before = out.len();
            out.consume(written);
            prop_assert_eq!(out.len(), before - written);
        }
        let mut reader = FrameReader::new(FrameLimits::BULK);
        for frame in frames {
            prop_assert_eq!(reader.next_frame(&mut bytes), Ok(Some(frame)));
        }
        prop_assert!(bytes.is_empty());
    }
}

#[test]
fn small_frames_share_a_slice_and_large_ones_are_not_copied() {
    let content = Bytes::from(vec![7; 100_000]);
    let large = EncodedFrame::new(&Frame::binary(Kind::Chunk, content.clone())).expect("a short header");
    let mut out = OutBuffer::default();
    for _frame in 0..100 {
        out.push(&encoded(50), Trailer::default());
    }
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(out.fill_slices(&mut slices), 1);
    out.push(&large, Trailer::default());
    out.push(&encoded(50), Trailer::default());
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(out.fill_slices(&mut slices), 3);
    assert_eq!(slices[1].as_ptr(), content.as_ptr());
    out.clear();
    assert!(out.is_empty());
}
