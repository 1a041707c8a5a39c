//! The frame of socktools: the number of bytes as a big-endian `u32`, and these bytes.
//!
//! A length is checked before memory is allocated, and memory grows with the bytes that arrive, never with the
//! announced length.

/// Bytes of the length field.
pub const LENGTH_BYTES: usize = 4;

/// A message exceeds the limit. The next message cannot be found without reading all of this one, so the connection
/// ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {length} bytes is longer than {max}")]
pub struct TooLong {
    /// Length of the message, in bytes.
    pub length: usize,
    /// The limit, in bytes.
    pub max: usize,
}

/// Encodes a message with its length.
///
/// # Errors
/// [`TooLong`], if the length exceeds a `u32`.
pub fn encode(message: &[u8]) -> Result<Vec<u8>, TooLong> {
    let length = u32::try_from(message.len()).map_err(|_too_long| TooLong {
        length: message.len(),
        max: usize::try_from(u32::MAX).unwrap_or(usize::MAX),
    })?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Splits a byte stream into messages.
#[derive(Clone, Debug)]
pub struct MessageReader {
    bytes: Vec<u8>,
    max: usize,
}

impl MessageReader {
    /// Accepts messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            max,
        }
    }

    /// Appends bytes that arrived. All complete messages must be taken before more is fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a message has started and is not complete.
    pub fn has_partial_message(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Takes the next complete message, which may be empty; `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`TooLong`]; every later call returns the same error.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let max = self.max;
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > max {
            return Err(TooLong { length, max });
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.bytes.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a stream that arrives in pieces of this length: the messages, and the error that ended it.
    fn read(stream: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<TooLong>) {
        let mut reader = MessageReader::new(max);
        let mut found = Vec::new();
        for piece in stream.chunks(piece) {
            reader.feed(piece);
            loop {
                match reader.next_message() {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(
                            reader.next_message(),
                            Err(error),
                            "later calls return the same error"
                        );
                        return (found, Some(error));
                    }
                }
            }
        }
        (found, None)
    }

    /// The format of socktools: if this fails, undo the change.
    #[test]
    fn frame_is_a_length_and_the_bytes() {
        assert_eq!(encode(b"hello"), Ok(b"\x00\x00\x00\x05hello".to_vec()));
        assert_eq!(encode(b""), Ok(vec![0; 4]));
        let stream = b"\x00\x00\x00\x05hello\x00\x00\x00\x00\x00\x00\x00\x02\xff\x00";
        let wanted = vec![b"hello".to_vec(), Vec::new(), vec![0xff, 0]];
        assert_eq!(read(stream, 1, 5), (wanted, None));
    }

    #[test]
    fn length_is_checked_before_content_arrives() {
        let error = TooLong { length: 6, max: 5 };
        assert_eq!(read(b"\x00\x00\x00\x06", 4, 5), (Vec::new(), Some(error)));
        let most = TooLong {
            length: 0xffff_ffff,
            max: 5,
        };
        assert_eq!(read(b"\xff\xff\xff\xff", 4, 5), (Vec::new(), Some(most)));
        let mut reader = MessageReader::new(1 << 30);
        reader.feed(b"\x3f\xff\xff\xff");
        assert_eq!(reader.next_message(), Ok(None));
        assert!(
            reader.bytes.capacity() < 1024,
            "memory is allocated for received bytes only"
        );
        assert!(reader.has_partial_message());
    }

    proptest! {
        #[test]
        fn encoded_messages_are_read_back(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            piece in 1_usize..400,
        ) {
            let stream: Result<Vec<Vec<u8>>, _> = messages.iter().map(|m| encode(m)).collect();
            let stream = stream.expect("short").concat();
            if !stream.is_empty() {
                prop_assert_eq!(read(&stream, piece, 300), (messages, None));
            }
        }

        #[test]
        fn noise_is_read_the_same_in_any_pieces(
            noise in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 1..200),
            piece in 1_usize..50,
            max in 0_usize..64,
        ) {
            let whole = read(&noise, noise.len(), max);
            prop_assert_eq!(&read(&noise, piece, max), &whole);
            prop_assert!(whole.0.iter().all(|message| message.len() <= max));
        }
    }
}
