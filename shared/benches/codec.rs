//! Frames per second on one core: `cargo bench -p swarm-shared --bench codec`.

mod frames;

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader};

/// Frames in one burst, as one read or write of a busy link holds them.
const BURST: u64 = 256;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(BURST));
    for (name, frame) in [("command", frames::command()), ("reply", frames::reply())] {
        let mut burst = BytesMut::new();
        for seq in 1..=BURST {
            frames::number(&frame, seq)
                .encode(&mut burst)
                .expect("a short header");
        }
        group.bench_function(name, |b| {
            let mut reader = FrameReader::new(FrameLimits::CONTROL);
            b.iter_batched(
                || BytesMut::from(&burst[..]),
                |mut bytes| {
                    while let Some(frame) = reader.next_frame(&mut bytes).expect("sound") {
                        black_box(frame);
                    }
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(BURST));
    let frame = frames::command();
    let frame_bytes = EncodedFrame::new(&frame).expect("a short header");
    group.bench_function("shared frame", |b| {
        b.iter(|| {
            let mut out = OutBuffer::default();
            for seq in 1..=BURST {
                out.push(black_box(&frame_bytes), frames::trailer(seq));
            }
            out
        });
    });
    group.bench_function("shared frame, one per buffer", |b| {
        b.iter(|| {
            for seq in 1..=BURST {
                let mut out = OutBuffer::default();
                out.push(black_box(&frame_bytes), frames::trailer(seq));
                black_box(out);
            }
        });
    });
    let reply = frames::reply();
    group.bench_function("new frame", |b| {
        b.iter(|| {
            let mut out = OutBuffer::default();
            for seq in 1..=BURST {
                let frame_bytes = EncodedFrame::new(black_box(&reply)).expect("a short header");
                out.push(&frame_bytes, frames::trailer(seq));
            }
            out
        });
    });
    let numbered = frames::number(&frame, 1_000_000);
    group.bench_function("frame", |b| {
        b.iter(|| {
            let mut bytes = BytesMut::new();
            for _frame in 0..BURST {
                Frame::encode(black_box(&numbered), &mut bytes).expect("a short header");
            }
            bytes
        });
    });
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
