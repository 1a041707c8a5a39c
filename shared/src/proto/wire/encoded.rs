//! A frame that is encoded once and sent to many peers. What differs from peer to peer (sequence number,
//! acknowledgement, time to live) is appended to the header on sending.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header_encoder::append_number;
use super::{Frame, HEADER_BYTES_MAX, Header, LENGTH_BYTES, WireError};

/// Bytes reserved in every header for the keys that are appended on sending: five names and five 20-digit numbers.
const TRAILER_BYTES_MAX: usize = 144;
/// Contents up to this size, in bytes, are stored beside their header and copied with it, so that a small frame is
/// one allocation and a burst of small frames one write.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// An encoded frame without its trailer. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// The header's JSON without its closing brace, followed by the content if that is short.
    start: Bytes,
    /// Offset of the content in `start`.
    header_len: usize,
    /// The content, if it is long.
    long_content: Bytes,
    epoch: Option<u64>,
    status_query: bool,
}

/// The header keys that belong to one transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Sequence number in the session.
    pub seq: Option<u64>,
    /// The last sequence number that the sender has read from the receiver.
    pub ack: Option<u64>,
    /// Time to live left, in milliseconds.
    pub ttl: Option<u64>,
    /// The deadline on the receiver's clock, in milliseconds.
    pub until: Option<u64>,
    /// The sender's clock, in milliseconds since its session began.
    pub stamp: Option<u64>,
}

impl Header {
    /// The header keys that belong to one transmission.
    pub fn trailer(&self) -> Trailer {
        Trailer {
            seq: self.seq,
            ack: self.ack,
            ttl: self.ttl,
            until: self.until,
            stamp: self.stamp,
        }
    }

    /// Sets the header keys that belong to one transmission, as sending does.
    pub fn set_trailer(&mut self, trailer: Trailer) {
        let Trailer {
            seq,
            ack,
            ttl,
            until,
            stamp,
        } = trailer;
        (self.seq, self.ack, self.ttl) = (seq, ack, ttl);
        (self.until, self.stamp) = (until, stamp);
    }
}

impl EncodedFrame {
    /// Encodes a frame. The keys of a [`Trailer`] must be absent: the session sets them.
    ///
    /// # Errors
    /// [`WireError::HeaderTooLong`] if the header and its trailer do not fit the cap, [`WireError::BadHeader`] if its
    /// content length is not the content's.
    pub fn new(frame: &Frame) -> Result<Self, WireError> {
        debug_assert_eq!(frame.header.trailer(), Trailer::default());
        frame.check_length()?;
        let mut start = frame.header.to_json()?;
        start.pop();
        let head = start.len();
        if head + TRAILER_BYTES_MAX > HEADER_BYTES_MAX {
            return Err(WireError::HeaderTooLong {
                bytes: head,
                max: HEADER_BYTES_MAX - TRAILER_BYTES_MAX,
            });
        }
        let rest = if frame.content.len() <= COPY_BYTES_MAX {
            start.extend_from_slice(&frame.content);
            Bytes::new()
        } else {
            frame.content.clone()
        };
        Ok(Self {
            // Cut to its length first: `Bytes` then takes it over without another allocation.
            start: start.into_boxed_slice().into(),
            header_len: head,
            long_content: rest,
            epoch: frame.header.epoch,
            status_query: false,
        })
    }

    /// The same command as a status query after its deadline. It is sent with a time to live of 0: a node that has
    /// not started it never will, and one that has answers with the outcome.
    #[must_use]
    pub fn into_status_query(self) -> Self {
        Self {
            status_query: true,
            ..self
        }
    }

    /// Whether it is a status query; see [`Self::into_status_query`].
    pub fn is_status_query(&self) -> bool {
        self.status_query
    }

    /// The epoch in its header, which a reply to it repeats.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Bytes of memory that it holds while it is queued.
    pub fn memory_bytes(&self) -> usize {
        self.start.len() + self.long_content.len()
    }
}

/// Bytes queued for a socket. A burst of small frames becomes one slice; long contents are not copied.
#[derive(Debug, Default)]
pub struct OutBuffer {
    /// Complete slices, oldest first.
    slices: VecDeque<Bytes>,
    /// Small frames being collected, after all of `slices`.
    tail: BytesMut,
    bytes: usize,
}

impl OutBuffer {
    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether no bytes are queued.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a frame with its trailer.
    pub fn push(&mut self, frame: &EncodedFrame, trailer: Trailer) {
        let (head, content) = frame.start.split_at(frame.header_len);
        self.tail
            .reserve(LENGTH_BYTES + frame.start.len() + TRAILER_BYTES_MAX);
        let before = self.tail.len();
        self.tail.put_u16(0);
        self.tail.put_slice(head);
        append_number(&mut self.tail, b",\"seq\":", trailer.seq);
        append_number(&mut self.tail, b",\"ack\":", trailer.ack);
        append_number(&mut self.tail, b",\"ttl\":", trailer.ttl);
        append_number(&mut self.tail, b",\"until\":", trailer.until);
        append_number(&mut self.tail, b",\"stamp\":", trailer.stamp);
        self.tail.put_u8(b'}');
        let header_len = self.tail.len() - before - LENGTH_BYTES;
        // `EncodedFrame::new` keeps header and trailer within HEADER_BYTES_MAX, which fits a u16.
        let length = u16::try_from(header_len).unwrap_or(u16::MAX);
        self.tail[before..before + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        self.tail.put_slice(content);
        self.bytes += self.tail.len() - before + frame.long_content.len();
        if !frame.long_content.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
            self.slices.push_back(frame.long_content.clone());
        }
    }

    /// Fills `slices` with the next bytes to write, oldest first; returns the number of slices filled.
    pub fn fill_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let waiting = self
            .slices
            .iter()
            .map(|s| &s[..])
            .chain(std::iter::once(&self.tail[..]));
        let mut filled = 0;
        for (slot, bytes) in slices.iter_mut().zip(waiting.filter(|s| !s.is_empty())) {
            *slot = IoSlice::new(bytes);
            filled += 1;
        }
        filled
    }

    /// Removes bytes that have been written.
    pub fn consume(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        while let Some(front) = self.slices.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.slices.pop_front();
        }
        self.tail.advance(written.min(self.tail.len()));
        if self.tail.is_empty() {
            // An idle link keeps no buffer.
            self.tail = BytesMut::new();
        }
    }

    /// Drops all queued bytes, when the link is closed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
