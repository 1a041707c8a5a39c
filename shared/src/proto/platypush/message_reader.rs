//! Where one message ends and the next begins, in a stream that has nothing between them.
//!
//! A message is a JSON object or list: it ends with the bracket that closes it, whatever brackets its texts hold. White
//! space between messages is passed over. Each byte is looked at once, and no more is kept than one message's
//! bytes and what came with its last ones.

use crate::proto::json::JSON_DEPTH_MAX;

/// Cuts a stream into messages.
#[derive(Clone, Debug)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// How many of them have been looked at.
    seen: usize,
    max: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

/// Why a stream cannot be cut any further: where the next message begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// Something else than an object.
    #[error("a message begins with {{, and this does not")]
    NoBeginning,
    /// Its end has not come within the bound.
    #[error("the message is longer than {0} bytes")]
    TooLong(usize),
    /// Nested too deeply.
    #[error("the message is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// A text that JSON cannot hold.
    #[error("not JSON: a text runs past the end of its line")]
    TextUnended,
}

impl Splitter {
    /// For messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            seen: 0,
            max,
            depth: 0,
            in_text: false,
            escaped: false,
        }
    }

    /// Takes what has arrived. Everything that it makes whole is to be taken out before more is fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a message has begun that is not whole.
    pub fn has_begun(&self) -> bool {
        self.bytes.iter().any(|byte| !is_space(*byte))
    }

    /// The next whole message; `None` until more has arrived.
    ///
    /// # Errors
    /// [`Cut`], the same whenever it is asked again.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, Cut> {
        if self.depth == 0 {
            let blank = self.bytes.iter().take_while(|byte| is_space(**byte)).count();
            self.bytes.drain(..blank);
            match self.bytes.first() {
                None => return Ok(None),
                Some(b'{' | b'[') => {}
                Some(_) => return Err(Cut::NoBeginning),
            }
        }
        while let Some(byte) = self.bytes.get(self.seen).copied() {
            if self.seen >= self.max {
                return Err(Cut::TooLong(self.max));
            }
            if self.take(byte)? {
                let rest = self.bytes.split_off(self.seen);
                self.seen = 0;
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
        }
        Ok(None)
    }

    /// Looks at a byte; whether it ends the message.
    fn take(&mut self, byte: u8) -> Result<bool, Cut> {
        if self.in_text {
            match byte {
                0..0x20 => return Err(Cut::TextUnended),
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' if self.depth >= JSON_DEPTH_MAX => return Err(Cut::TooDeep),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
        }
        self.seen += 1;
        Ok(self.depth == 0)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}
