//! Splits a byte stream without separators into messages.
//!
//! A message is a JSON object; it ends with the bracket that closes it, whatever brackets its texts contain. White
//! space between messages is skipped. Each byte is examined once, and at most one message and the bytes that arrived
//! with its end are kept.

use crate::proto::json::JSON_DEPTH_MAX;

/// Splits a byte stream into messages.
#[derive(Clone, Debug)]
pub struct MessageReader {
    bytes: Vec<u8>,
    /// How many of them have been examined.
    scanned: usize,
    max: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// Why a stream cannot be split further: the start of the next message is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A message does not start with an object.
    #[error("a message begins with {{, and this does not")]
    NotAnObject,
    /// No end within the bound, which is given in bytes.
    #[error("the message is longer than {0} bytes")]
    TooLong(usize),
    /// Too many brackets are open.
    #[error("the message is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// A control character within a text.
    #[error("not JSON: a text runs past the end of its line")]
    UnterminatedString,
}

impl MessageReader {
    /// Accepts messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            scanned: 0,
            max,
            depth: 0,
            in_string: false,
            escaped: false,
        }
    }

    /// Appends bytes that arrived. All complete messages must be taken before more is fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a message has started and is not complete.
    pub fn has_partial_message(&self) -> bool {
        self.bytes.iter().any(|byte| !is_space(*byte))
    }

    /// Takes the next complete message; `None` until more bytes arrive.
    ///
    /// # Errors
    /// See [`FramingError`]; every later call returns the same error.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.depth == 0 {
            let blank = self.bytes.iter().take_while(|byte| is_space(**byte)).count();
            self.bytes.drain(..blank);
            match self.bytes.first() {
                None => return Ok(None),
                Some(b'{' | b'[') => {}
                Some(_) => return Err(FramingError::NotAnObject),
            }
        }
        while let Some(byte) = self.bytes.get(self.scanned).copied() {
            if self.scanned >= self.max {
                return Err(FramingError::TooLong(self.max));
            }
            if self.scan_byte(byte)? {
                let rest = self.bytes.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
        }
        Ok(None)
    }

    /// Examines a byte; returns whether it ends the message.
    fn scan_byte(&mut self, byte: u8) -> Result<bool, FramingError> {
        if self.in_string {
            match byte {
                0..0x20 => return Err(FramingError::UnterminatedString),
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' if self.depth >= JSON_DEPTH_MAX => return Err(FramingError::TooDeep),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
        }
        self.scanned += 1;
        Ok(self.depth == 0)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}
