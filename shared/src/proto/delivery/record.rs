//! The records of a node's journal, and their encoding.
//!
//! A body is one byte for the kind, then the fields in the order of their declaration: numbers big-endian, texts with
//! a length of two bytes. The layout of a released kind never changes; a new meaning gets a new kind. Replay stops at
//! a kind that is not known: the record might be the one that forbids a second run.

use std::fmt;

use super::super::id::PeerId;
use super::super::outcome::{Outcome, Reply};
use super::CommandId;

/// Longest stored text of a reply's value, of its output and of its error, in bytes each.
pub const STORED_TEXT_BYTES_MAX: usize = 1024;
/// Longest body of a record, in bytes: an outcome with three texts, and some reserve.
pub const BODY_BYTES_MAX: usize = 4096;

/// The first 8 bytes of SHA-256 over action and content. It distinguishes a duplicate from a second command with the
/// same identity; it is too short to resist a deliberate search for a collision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 8]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", super::super::hex::encode(&self.0))
    }
}

/// The digest of a command: its action and its content, byte for byte as received.
pub fn digest(action: &str, content: &[u8]) -> Digest {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(&(action.len() as u64).to_be_bytes());
    hash.update(action.as_bytes());
    hash.update(content);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finish().as_ref()[..8]);
    Digest(first)
}

/// The stored part of a [`Reply`]: the complete outcome, and texts up to [`STORED_TEXT_BYTES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReply {
    state: Outcome,
    exit: Option<i32>,
    /// The value as JSON text.
    value: Option<String>,
    output: Option<String>,
    error: Option<String>,
    truncated: bool,
}

impl StoredReply {
    /// The part of this reply that is stored.
    pub fn new(reply: &Reply) -> Self {
        let mut cut = false;
        let mut truncate = |text: &Option<String>| {
            text.as_ref().map(|text| {
                let stored = truncate_text(text);
                cut |= stored.len() < text.len();
                stored.to_owned()
            })
        };
        let output = truncate(&reply.output);
        let error = truncate(&reply.error);
        let value = reply.value.as_ref().map(ToString::to_string);
        // A truncated value is not JSON, and one that is nested too deeply to be parsed again must not be stored.
        let readable = |text: &String| text.len() <= STORED_TEXT_BYTES_MAX && is_json(text);
        let stored = value.clone().filter(readable);
        cut |= stored != value;
        Self {
            state: reply.state,
            exit: reply.exit,
            value: stored,
            output,
            error,
            truncated: cut,
        }
    }

    /// The stored outcome.
    pub fn state(&self) -> Outcome {
        self.state
    }

    /// Whether a part of the reply was not stored.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The reply to a duplicate. Truncation is marked at the end of its output.
    pub fn to_reply(&self) -> Reply {
        let mut output = self.output.clone();
        if self.truncated {
            let text = output.get_or_insert_default();
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str("[the node has kept only the beginning of this answer]");
        }
        Reply {
            state: self.state,
            value: self
                .value
                .as_ref()
                .and_then(|text| serde_json::from_str(text).ok()),
            output,
            exit: self.exit,
            error: self.error.clone(),
        }
    }

    /// Length of its texts, in bytes.
    pub(super) fn text_bytes(&self) -> usize {
        [&self.value, &self.output, &self.error]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum()
    }

    /// Drops the texts; the outcome stays.
    pub(super) fn clear_texts(&mut self) {
        self.truncated |= self.text_bytes() > 0;
        (self.value, self.output, self.error) = (None, None, None);
    }
}

/// The part of a text that is stored.
pub(super) fn truncate_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(STORED_TEXT_BYTES_MAX)]
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

/// A fact that a node must know after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A command is about to run: written before its first effect.
    Started {
        /// Command.
        id: CommandId,
        /// Digest of its action and arguments.
        digest: Digest,
        /// Whether its action may run again after a crash.
        idempotent: bool,
    },
    /// A command has ended, or will never run: written before the reply is sent.
    Ended {
        /// Command.
        id: CommandId,
        /// Stored part of its reply.
        reply: StoredReply,
    },
    /// Nothing is known any more about this issuer's commands up to this one, and none of them may run.
    Floor {
        /// Issuer of the commands.
        issuer: PeerId,
        /// Epoch of the last of them.
        epoch: u64,
        /// Its number in that epoch.
        seq: u64,
    },
    /// An emergency stop is in force.
    Stopped {
        /// Station that issued it.
        issuer: PeerId,
        /// Its number.
        number: u64,
    },
    /// The stop with this number was released.
    Released {
        /// Number of the stop.
        number: u64,
    },
    /// The node's own command for the stop with this number has ended.
    StopEnded {
        /// Number of the stop.
        number: u64,
        /// The command's fault, up to [`STORED_TEXT_BYTES_MAX`]; `None` if it succeeded.
        error: Option<String>,
    },
    /// The highest stop number received from this issuer, in force or not.
    StopSeen {
        /// Station that issued it.
        issuer: PeerId,
        /// Its number.
        number: u64,
    },
}

/// The bytes are not a valid record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// A kind of a later version.
    #[error("it is of kind {0}, which this version does not know")]
    UnknownKind(u8),
    /// The body ends in the middle of a field.
    #[error("it ends too early")]
    Truncated,
    /// Bytes follow the last field.
    #[error("it has {0} bytes too many")]
    TrailingBytes(usize),
    /// A field has a value that is not valid for it.
    #[error("its {0} is not valid")]
    InvalidField(&'static str),
}

const STARTED: u8 = 1;
const ENDED: u8 = 2;
const FLOOR: u8 = 3;
const STOPPED: u8 = 4;
const RELEASED: u8 = 5;
const STOP_ENDED: u8 = 6;
const STOP_SEEN: u8 = 7;

const HAS_VALUE: u8 = 1;
const HAS_OUTPUT: u8 = 2;
const HAS_ERROR: u8 = 4;
const HAS_EXIT: u8 = 8;
const IS_TRUNCATED: u8 = 16;
const REPLY_FLAGS: u8 = HAS_VALUE | HAS_OUTPUT | HAS_ERROR | HAS_EXIT | IS_TRUNCATED;

impl Record {
    /// Appends the body, which is at most [`BODY_BYTES_MAX`] long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Started {
                id,
                digest,
                idempotent,
            } => {
                out.push(STARTED);
                encode_id(out, id);
                out.extend(digest.0);
                out.push(u8::from(*idempotent));
            }
            Self::Ended { id, reply } => {
                out.push(ENDED);
                encode_id(out, id);
                encode_reply(out, reply);
            }
            Self::Floor { issuer, epoch, seq } => {
                out.push(FLOOR);
                encode_numbered(out, issuer, *epoch);
                out.extend(seq.to_be_bytes());
            }
            Self::Stopped { issuer, number } => {
                out.push(STOPPED);
                encode_numbered(out, issuer, *number);
            }
            Self::Released { number } => {
                out.push(RELEASED);
                out.extend(number.to_be_bytes());
            }
            Self::StopEnded { number, error } => {
                out.push(STOP_ENDED);
                out.extend(number.to_be_bytes());
                out.push(u8::from(error.is_some()));
                encode_text(out, error.as_ref());
            }
            Self::StopSeen { issuer, number } => {
                out.push(STOP_SEEN);
                encode_numbered(out, issuer, *number);
            }
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// [`BadRecord`], also if bytes follow the last field.
    pub fn decode(body: &[u8]) -> Result<Self, BadRecord> {
        let mut from = Reader(body);
        let record = match from.byte()? {
            STARTED => Self::Started {
                id: from.id()?,
                digest: Digest(from.array()?),
                idempotent: from.flag("flag")?,
            },
            ENDED => Self::Ended {
                id: from.id()?,
                reply: from.reply()?,
            },
            FLOOR => Self::Floor {
                issuer: PeerId(from.array()?),
                epoch: from.number()?,
                seq: from.number()?,
            },
            STOPPED => Self::Stopped {
                issuer: PeerId(from.array()?),
                number: from.number()?,
            },
            RELEASED => Self::Released {
                number: from.number()?,
            },
            STOP_ENDED => Self::StopEnded {
                number: from.number()?,
                error: from.flag("flag")?.then(|| from.text("error")).transpose()?,
            },
            STOP_SEEN => Self::StopSeen {
                issuer: PeerId(from.array()?),
                number: from.number()?,
            },
            kind => return Err(BadRecord::UnknownKind(kind)),
        };
        match from.0.len() {
            0 => Ok(record),
            left => Err(BadRecord::TrailingBytes(left)),
        }
    }
}

fn encode_id(out: &mut Vec<u8>, id: &CommandId) {
    encode_numbered(out, &id.issuer, id.epoch);
    out.extend(id.seq.to_be_bytes());
}

fn encode_numbered(out: &mut Vec<u8>, issuer: &PeerId, number: u64) {
    out.extend(issuer.0);
    out.extend(number.to_be_bytes());
}

fn encode_text(out: &mut Vec<u8>, text: Option<&String>) {
    if let Some(text) = text {
        let text = truncate_text(text);
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        out.extend(length.to_be_bytes());
        out.extend(text.as_bytes());
    }
}

fn encode_reply(out: &mut Vec<u8>, reply: &StoredReply) {
    out.push(outcome_byte(reply.state));
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    out.push(
        flag(reply.value.is_some(), HAS_VALUE)
            | flag(reply.output.is_some(), HAS_OUTPUT)
            | flag(reply.error.is_some(), HAS_ERROR)
            | flag(reply.exit.is_some(), HAS_EXIT)
            | flag(reply.truncated, IS_TRUNCATED),
    );
    for text in [&reply.value, &reply.output, &reply.error] {
        encode_text(out, text.as_ref());
    }
    out.extend(reply.exit.map(i32::to_be_bytes).into_iter().flatten());
}

fn outcome_byte(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Done => 1,
        Outcome::Failed => 2,
        Outcome::Refused => 3,
        Outcome::Expired => 4,
        Outcome::Unknown => 5,
        Outcome::NoAnswer => 6,
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let (array, rest) = self.0.split_first_chunk().ok_or(BadRecord::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, BadRecord> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_be_bytes)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, BadRecord> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadRecord::InvalidField(field)),
        }
    }

    fn id(&mut self) -> Result<CommandId, BadRecord> {
        Ok(CommandId {
            issuer: PeerId(self.array()?),
            epoch: self.number()?,
            seq: self.number()?,
        })
    }

    fn text(&mut self, field: &'static str) -> Result<String, BadRecord> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        if length > STORED_TEXT_BYTES_MAX {
            return Err(BadRecord::InvalidField(field));
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(BadRecord::Truncated)?;
        self.0 = rest;
        String::from_utf8(text.to_owned()).map_err(|_bytes| BadRecord::InvalidField(field))
    }

    fn reply(&mut self) -> Result<StoredReply, BadRecord> {
        let state = match self.byte()? {
            1 => Outcome::Done,
            2 => Outcome::Failed,
            3 => Outcome::Refused,
            4 => Outcome::Expired,
            5 => Outcome::Unknown,
            6 => Outcome::NoAnswer,
            _ => return Err(BadRecord::InvalidField("outcome")),
        };
        let flags = self.byte()?;
        if flags & !REPLY_FLAGS != 0 {
            return Err(BadRecord::InvalidField("set of flags"));
        }
        let mut text = |flag: u8, field| (flags & flag != 0).then(|| self.text(field)).transpose();
        let value = text(HAS_VALUE, "value")?;
        if !value.as_deref().is_none_or(is_json) {
            return Err(BadRecord::InvalidField("value"));
        }
        let output = text(HAS_OUTPUT, "output")?;
        let error = text(HAS_ERROR, "error")?;
        let exit = (flags & HAS_EXIT != 0).then(|| self.array().map(i32::from_be_bytes));
        Ok(StoredReply {
            state,
            exit: exit.transpose()?,
            value,
            output,
            error,
            truncated: flags & IS_TRUNCATED != 0,
        })
    }
}
