//! A byte stream of frames. Frames do not depend on how the stream is split, stay within the caps, and encode to
//! frames that decode equal.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, WireError};

fn read(stream: &[u8], limits: FrameLimits, piece: usize) -> (Vec<Frame>, Option<WireError>) {
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
        assert!(reader.missing_bytes() > 0);
        assert!(reader.missing_bytes() <= 2 + limits.header.max(limits.content));
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else {
        return;
    };
    for limits in [FrameLimits::PREAUTH, FrameLimits::CONTROL, FrameLimits::BULK] {
        let whole = read(stream, limits, stream.len().max(1));
        assert_eq!(whole, read(stream, limits, usize::from(*cut) + 1));
        for frame in whole.0 {
            assert_eq!(frame.content.len() as u64, frame.header.content_length);
            assert!(frame.content.len() <= limits.content);
            let _any = frame.json_value();
            let mut bytes = BytesMut::new();
            // Escapes may make a header longer than its cap.
            if frame.encode(&mut bytes).is_ok() {
                let (again, error) = read(&bytes, FrameLimits::BULK, bytes.len());
                assert_eq!((again, error), (vec![frame], None));
            }
        }
    }
});
