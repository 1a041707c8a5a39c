//! A frame made ready to send: encoded once, sent to a thousand peers. What differs from peer to peer (sequence
//! number, acknowledgement, time to live) is appended to the header as it goes out.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header_encoder::append_number;
use super::{Frame, HEADER_BYTES_MAX, Header, LENGTH_BYTES, WireError};

/// Room kept in every header for the keys that are appended on sending: five names and five 20-digit numbers.
const TRAILER_BYTES_MAX: usize = 144;
/// Contents up to this many bytes are kept beside their header and copied with it, so that a small frame is one piece of
/// memory and a burst of them one write.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// An encoded frame without its trailer. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// The header's JSON up to, but without, its closing brace; behind it the content, if that is short.
    start: Bytes,
    /// Where the content begins in `start`.
    header_len: usize,
    /// The content, if it is long.
    long_content: Bytes,
    epoch: Option<u64>,
    status_query: bool,
}

/// The header keys that belong to one transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// The frame's number in its session.
    pub seq: Option<u64>,
    /// What the sender has read from the receiver.
    pub ack: Option<u64>,
    /// Time to live left, in milliseconds.
    pub ttl: Option<u64>,
    /// When that ends on the receiver's clock, in milliseconds.
    pub until: Option<u64>,
    /// The sender's clock, in milliseconds.
    pub stamp: Option<u64>,
}

impl Header {
    /// The keys that belong to one transmission.
    pub fn trailer(&self) -> Trailer {
        Trailer {
            seq: self.seq,
            ack: self.ack,
            ttl: self.ttl,
            until: self.until,
            stamp: self.stamp,
        }
    }

    /// Sets the keys that belong to one transmission, as sending would.
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
    /// Encodes a frame. What a [`Trailer`] holds must be absent: the session sets it.
    ///
    /// # Errors
    /// [`WireError::HeaderTooLong`] if the header would not fit with its trailer, [`WireError::BadHeader`] if it tells
    /// another length than the content has.
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
            // Cut to its length, `Bytes` takes it over without an allocation of its own.
            start: start.into_boxed_slice().into(),
            header_len: head,
            long_content: rest,
            epoch: frame.header.epoch,
            status_query: false,
        })
    }

    /// The same command as a question after its end: its time to live is told as 0, so that whoever has not begun it
    /// never will, and whoever has says how it ended.
    #[must_use]
    pub fn into_status_query(self) -> Self {
        Self {
            status_query: true,
            ..self
        }
    }

    /// Whether it is a question; see [`Self::question`].
    pub fn is_status_query(&self) -> bool {
        self.status_query
    }

    /// The epoch that its frame names: a reply to it names the same.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Bytes that it keeps in memory while it waits.
    pub fn memory_bytes(&self) -> usize {
        self.start.len() + self.long_content.len()
    }
}

/// Bytes on their way to a socket: a burst of small frames becomes one slice, large contents stay where they lie.
#[derive(Debug, Default)]
pub struct OutBuffer {
    /// Finished slices, oldest first.
    slices: VecDeque<Bytes>,
    /// Small frames being gathered, after all of `slices`.
    tail: BytesMut,
    bytes: usize,
}

impl OutBuffer {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a parcel with its trailer.
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
        // `Parcel::new` keeps head and trailer within HEADER_BYTES_MAX, which fits a u16.
        let length = u16::try_from(header_len).unwrap_or(u16::MAX);
        self.tail[before..before + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        self.tail.put_slice(content);
        self.bytes += self.tail.len() - before + frame.long_content.len();
        if !frame.long_content.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
            self.slices.push_back(frame.long_content.clone());
        }
    }

    /// Fills `slices` with what is to be written next, oldest first; returns how many it filled.
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

    /// Takes away what has been written.
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
            // A quiet link keeps no buffer.
            self.tail = BytesMut::new();
        }
    }

    /// Forgets everything: the link is gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
