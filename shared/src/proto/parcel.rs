//! A frame made ready to send: encoded once, sent to a thousand peers. What differs from peer to peer (sequence
//! number, acknowledgement, time to live) is appended to the header as it goes out.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::wire::{Frame, HEADER_BYTES_MAX, LENGTH_BYTES, WireError};

/// Room kept in every header for the keys that are appended on sending: three names and three 20-digit numbers.
const TRAILER_BYTES_MAX: usize = 96;
/// What most headers fit in, so that most take one allocation.
const HEAD_BYTES_USUAL: usize = 256;
/// Contents up to this many bytes are copied beside their header, so that a burst of small frames is one write.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// An encoded frame without its trailer. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The header's JSON up to, but without, its closing brace.
    head: Bytes,
    content: Bytes,
    epoch: Option<u64>,
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
}

impl Parcel {
    /// Encodes a frame. Its own `seq`, `ack` and `ttl` must be absent: the session sets them.
    ///
    /// # Errors
    /// [`WireError::HeaderTooLong`] if the header would not fit with its trailer, [`WireError::BadHeader`] if it tells
    /// another length than the content has.
    pub fn new(frame: &Frame) -> Result<Self, WireError> {
        debug_assert!(frame.header.seq.is_none() && frame.header.ack.is_none() && frame.header.ttl.is_none());
        frame.check_length()?;
        let mut head = Vec::with_capacity(HEAD_BYTES_USUAL);
        serde_json::to_writer(&mut head, &frame.header).map_err(|e| WireError::BadHeader(e.to_string()))?;
        head.pop();
        if head.len() + TRAILER_BYTES_MAX > HEADER_BYTES_MAX {
            return Err(WireError::HeaderTooLong {
                bytes: head.len(),
                max: HEADER_BYTES_MAX - TRAILER_BYTES_MAX,
            });
        }
        Ok(Self {
            head: head.into(),
            content: frame.content.clone(),
            epoch: frame.header.epoch,
        })
    }

    /// The epoch that its frame names: a reply to it names the same.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Bytes that it keeps in memory while it waits.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.content.len()
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
    pub fn put(&mut self, parcel: &Parcel, trailer: Trailer) {
        let copied = if parcel.content.len() <= COPY_BYTES_MAX {
            parcel.content.len()
        } else {
            0
        };
        self.tail
            .reserve(LENGTH_BYTES + parcel.head.len() + TRAILER_BYTES_MAX + copied);
        let before = self.tail.len();
        self.tail.put_u16(0);
        self.tail.put_slice(&parcel.head);
        put_number(&mut self.tail, b",\"seq\":", trailer.seq);
        put_number(&mut self.tail, b",\"ack\":", trailer.ack);
        put_number(&mut self.tail, b",\"ttl\":", trailer.ttl);
        self.tail.put_u8(b'}');
        let header_len = self.tail.len() - before - LENGTH_BYTES;
        // `Parcel::new` keeps head and trailer within HEADER_BYTES_MAX, which fits a u16.
        let length = u16::try_from(header_len).unwrap_or(u16::MAX);
        self.tail[before..before + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        if parcel.content.len() <= COPY_BYTES_MAX {
            self.tail.put_slice(&parcel.content);
            self.bytes += self.tail.len() - before;
        } else {
            self.bytes += self.tail.len() - before + parcel.content.len();
            self.slices.push_back(self.tail.split().freeze());
            self.slices.push_back(parcel.content.clone());
        }
    }

    /// Fills `slices` with what is to be written next, oldest first; returns how many it filled.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
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

/// Appends a key and its number, if there is one. By hand, because `write!` takes longer than the rest of the frame.
fn put_number(to: &mut BytesMut, key: &[u8], number: Option<u64>) {
    const DIGITS_MAX: usize = 20;
    let Some(mut left) = number else {
        return;
    };
    let mut digits = [b'0'; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit += u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
        start = at;
        if left == 0 {
            break;
        }
    }
    to.put_slice(key);
    to.put_slice(&digits[start..]);
}
