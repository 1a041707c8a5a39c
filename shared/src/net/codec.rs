//! Frames for `tokio_util`'s `Framed`, `FramedRead` and `FramedWrite`: a thin adapter of [`wire`](crate::proto::wire).
//!
//! It allocates for a frame only what its caps allow, and only once the header that announces it has been read.

use std::io;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use crate::proto::wire::{Frame, FrameLimits, FrameReader, WireError};

/// Why a stream of frames cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not frames.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket failed, or was closed within a frame ([`io::ErrorKind::UnexpectedEof`]).
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads and writes [`Frame`]s.
#[derive(Debug)]
pub struct FrameCodec {
    reader: FrameReader,
}

impl FrameCodec {
    /// A codec at the start of a stream.
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            reader: FrameReader::new(limits),
        }
    }

    /// Changes the caps, from the next header on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.reader.set_limits(limits);
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        let frame = self.reader.next_frame(from)?;
        if frame.is_none() {
            from.reserve(self.reader.missing_bytes());
        }
        Ok(frame)
    }

    fn decode_eof(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        match self.reader.next_frame(from)? {
            Some(frame) => Ok(Some(frame)),
            None if from.is_empty() && self.reader.is_between_frames() => Ok(None),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection within a frame",
            )
            .into()),
        }
    }
}

impl Encoder<&Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: &Frame, to: &mut BytesMut) -> Result<(), CodecError> {
        Ok(frame.encode(to)?)
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: Frame, to: &mut BytesMut) -> Result<(), CodecError> {
        Ok(frame.encode(to)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::Kind;
    use bytes::Bytes;

    fn frame(content: &'static [u8]) -> Frame {
        Frame::binary(Kind::Chunk, Bytes::from_static(content))
    }

    fn bytes_of(frames: &[Frame]) -> BytesMut {
        let mut codec = FrameCodec::new(FrameLimits::CONTROL);
        let mut bytes = BytesMut::new();
        for frame in frames {
            codec.encode(frame, &mut bytes).expect("fits");
        }
        bytes
    }

    #[test]
    fn codec_round_trips_frames() {
        let frames = [frame(b""), frame(b"abc"), frame(b"d")];
        let mut bytes = bytes_of(&frames);
        let mut codec = FrameCodec::new(FrameLimits::CONTROL);
        for frame in &frames {
            assert_eq!(codec.decode(&mut bytes).expect("sound").as_ref(), Some(frame));
        }
        assert!(codec.decode_eof(&mut bytes).expect("a clean end").is_none());
    }

    #[test]
    fn eof_within_a_frame_is_an_error() {
        let whole = bytes_of(&[frame(b"ab")]);
        for cut in 1..whole.len() {
            let mut codec = FrameCodec::new(FrameLimits::CONTROL);
            let mut bytes = BytesMut::from(&whole[..cut]);
            assert!(codec.decode(&mut bytes).expect("sound so far").is_none());
            let error = codec.decode_eof(&mut bytes).expect_err("cut off");
            assert!(
                matches!(&error, CodecError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof),
                "cut at {cut}: {error}"
            );
        }
    }

    #[test]
    fn buffer_grows_to_the_announced_length_within_caps() {
        let mut announced = frame(b"");
        announced.header.content_length = 1_000_000;
        let mut head = BytesMut::new();
        announced.encode_header_to(&mut head).expect("fits");

        let mut bytes = head.clone();
        assert!(
            FrameCodec::new(FrameLimits::CONTROL)
                .decode(&mut bytes)
                .expect("allowed")
                .is_none()
        );
        assert!(bytes.capacity() >= 1_000_000);

        let mut bytes = head.clone();
        let error = FrameCodec::new(FrameLimits::PREAUTH)
            .decode(&mut bytes)
            .expect_err("too long");
        assert!(matches!(
            error,
            CodecError::Wire(WireError::ContentTooLong { bytes: 1_000_000, .. })
        ));
        assert!(bytes.capacity() < 1_000);
    }
}
