//! Allocations per frame: `cargo bench -p swarm-shared --bench allocations`.

#[allow(dead_code, reason = "each bench uses its part")]
mod frames;

use std::hint::black_box;
use std::io::Write as _;

use bytes::BytesMut;
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{FrameLimits, FrameReader};

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

const FRAMES: u64 = 10_000;

fn main() -> std::io::Result<()> {
    let _profiler = dhat::Profiler::builder().testing().build();
    let command = frames::command();
    let frame = EncodedFrame::new(&command).expect("a short header");
    let mut burst = BytesMut::new();
    for seq in 1..=FRAMES {
        frames::number(&command, seq)
            .encode(&mut burst)
            .expect("a short header");
    }
    let length = burst.len() / usize::try_from(FRAMES).expect("a small number");
    let mut report = std::io::stdout().lock();
    writeln!(report, "frame of {length} bytes, {FRAMES} of them in a burst")?;
    let mut measure = |name: &str, run: &mut dyn FnMut()| {
        let before = dhat::HeapStats::get();
        run();
        let after = dhat::HeapStats::get();
        let per_frame = |total: u64| total as f64 / FRAMES as f64;
        let blocks = per_frame(after.total_blocks - before.total_blocks);
        let bytes = per_frame(after.total_bytes - before.total_bytes);
        writeln!(
            report,
            "{name:30} {blocks:6.2} allocations and {bytes:8.1} bytes a frame"
        )
    };
    measure("decode", &mut || {
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        while let Some(frame) = reader.next_frame(&mut burst).expect("sound") {
            black_box(frame);
        }
    })?;
    let mut out = OutBuffer::default();
    measure("encode, shared frame", &mut || {
        for seq in 1..=FRAMES {
            out.push(&frame, frames::trailer(seq));
        }
    })?;
    measure("encode, new frame", &mut || {
        for seq in 1..=FRAMES {
            let frame = EncodedFrame::new(&command).expect("a short header");
            out.push(&frame, frames::trailer(seq));
        }
    })?;
    let mut single = OutBuffer::default();
    measure("encode, one per write", &mut || {
        for seq in 1..=FRAMES {
            single.push(&frame, frames::trailer(seq));
            single.consume(single.len());
        }
    })
}
