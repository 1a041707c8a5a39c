//! A stream of frames: cut anywhere, it reads the same; what was read is within its caps and writes back.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::wire::{Frame, FrameReader, Limits, WireError};

fn read(stream: &[u8], limits: Limits, piece: usize) -> (Vec<Frame>, Option<WireError>) {
    let mut reader = FrameReader::new(limits);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next_frame(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(reader.lacking() > 0);
        assert!(reader.lacking() <= 2 + limits.header.max(limits.content));
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else {
        return;
    };
    for limits in [Limits::PREAUTH, Limits::CONTROL, Limits::BULK] {
        let whole = read(stream, limits, stream.len().max(1));
        assert_eq!(whole, read(stream, limits, usize::from(*cut) + 1));
        for frame in whole.0 {
            assert_eq!(frame.content.len() as u64, frame.header.content_length);
            assert!(frame.content.len() <= limits.content);
            let _any = frame.value();
            let mut bytes = BytesMut::new();
            // A header that was nearly too long may grow over its cap: escapes are written out.
            if frame.encode(&mut bytes).is_ok() {
                let (again, error) = read(&bytes, Limits::BULK, bytes.len());
                assert_eq!((again, error), (vec![frame], None));
            }
        }
    }
});
