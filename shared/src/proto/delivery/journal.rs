//! The encoding of a journal: a header, then records, each framed so that damage is not mistaken for a record.
//!
//! `magic 8 · version u32 · crc32 u32 · number of the first record u64`, then for each record
//! `length of the body u32 · crc32 u32 · number u64 · body`, all big-endian. A checksum covers its whole header or
//! frame except itself. Numbers rise by one and continue over snapshots, so that the remains of an older file on the
//! disk are not taken for the end of this one. Replay stops at the first invalid byte and reports the reason.

use super::dedup::DedupTable;
use super::record::{BODY_BYTES_MAX, BadRecord, Record};

/// Length of a journal's header, in bytes.
pub const HEADER_BYTES: usize = 24;
/// Bytes around a record's body.
pub const FRAME_BYTES: usize = 16;
/// The version of the format that is written, and the newest that can be read.
pub const JOURNAL_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"swarmjnl";

/// The reason why replay stopped before the end of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file does not begin with the header of a journal.
    #[error("it does not begin with a journal's header")]
    BadHeader,
    /// The file was written by a later version, and is intact.
    #[error(
        "it has format {found} and this program reads up to {JOURNAL_VERSION}: install the newer swarm-node"
    )]
    NewerFormat {
        /// Version of the file's format.
        found: u32,
    },
    /// The file ends in the middle of a record, as after a power cut.
    #[error("its last record is torn")]
    Truncated,
    /// A record's length is out of range.
    #[error("a record claims to be {0} bytes long")]
    BadLength(u32),
    /// A record's checksum does not match.
    #[error("a record's checksum is wrong")]
    BadChecksum,
    /// A record's number is not the next one: it belongs to another place or to an older file.
    #[error("record {found} was found where record {expected} was expected")]
    Sequence {
        /// Number that was found.
        found: u64,
        /// Number that was expected.
        expected: u64,
    },
    /// A record's checksum matches, but its content is not valid.
    #[error("record {number} cannot be read: {reason}")]
    Record {
        /// Number of the record.
        number: u64,
        /// Fault in its content.
        reason: BadRecord,
    },
}

impl Damage {
    /// Whether the file is intact and was written by a later version: it must not be replaced.
    pub fn is_newer(&self) -> bool {
        match self {
            Self::NewerFormat { .. }
            | Self::Record {
                reason: BadRecord::UnknownKind(_),
                ..
            } => true,
            Self::BadHeader
            | Self::Truncated
            | Self::BadLength(_)
            | Self::BadChecksum
            | Self::Sequence { .. }
            | Self::Record { .. } => false,
        }
    }
}

/// The result of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Number of records read.
    pub records: u64,
    /// Number of the next record to be written.
    pub next_number: u64,
    /// Length of the valid part, from the start of the file, in bytes.
    pub valid_bytes: usize,
    /// Why replay stopped there; `None` at the end of an intact file.
    pub damage: Option<Damage>,
}

/// The header of a journal whose first record has this number.
pub fn encode_header(first: u64) -> [u8; HEADER_BYTES] {
    encode_header_version(JOURNAL_VERSION, first)
}

fn encode_header_version(version: u32, first: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&version.to_be_bytes());
    bytes[16..].copy_from_slice(&first.to_be_bytes());
    let crc = checksum(&[&bytes[..12], &bytes[16..]]);
    bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// Appends a framed record with this number.
pub fn append_record(out: &mut Vec<u8>, number: u64, record: &Record) {
    let start = out.len();
    out.extend([0; FRAME_BYTES]);
    record.encode(out);
    let body = start + FRAME_BYTES;
    let length = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 8..body].copy_from_slice(&number.to_be_bytes());
    let crc = checksum(&[&out[start..start + 4], &out[start + 8..]]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

/// A whole journal with the content of the table, and the number of the record after it.
pub fn snapshot(table: &DedupTable, first: u64) -> (Vec<u8>, u64) {
    let mut bytes = encode_header(first).to_vec();
    let mut next = first;
    for record in table.records() {
        append_record(&mut bytes, next, &record);
        next = next.wrapping_add(1);
    }
    (bytes, next)
}

/// Replays a journal from its start; passes each record to `each`, in order.
pub fn replay(bytes: &[u8], mut each: impl FnMut(Record)) -> Replayed {
    let mut replayed = Replayed {
        records: 0,
        next_number: 0,
        valid_bytes: 0,
        damage: None,
    };
    match decode_header(bytes) {
        Ok(first) => replayed.next_number = first,
        Err(damage) => {
            replayed.damage = Some(damage);
            return replayed;
        }
    }
    replayed.valid_bytes = HEADER_BYTES;
    while replayed.valid_bytes < bytes.len() {
        match decode_record(&bytes[replayed.valid_bytes..], replayed.next_number) {
            Ok((record, length)) => {
                each(record);
                replayed.records += 1;
                replayed.next_number = replayed.next_number.wrapping_add(1);
                replayed.valid_bytes += length;
            }
            Err(damage) => {
                replayed.damage = Some(damage);
                break;
            }
        }
    }
    replayed
}

fn decode_header(bytes: &[u8]) -> Result<u64, Damage> {
    let (header, _) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(Damage::BadHeader)?;
    let first = be_u64(&header[16..]);
    let version = be_u32(&header[8..]);
    if *header != encode_header_version(version, first) {
        return Err(Damage::BadHeader);
    }
    if version != JOURNAL_VERSION {
        return Err(Damage::NewerFormat { found: version });
    }
    Ok(first)
}

fn decode_record(bytes: &[u8], expected: u64) -> Result<(Record, usize), Damage> {
    let (head, rest) = bytes
        .split_first_chunk::<FRAME_BYTES>()
        .ok_or(Damage::Truncated)?;
    let length = be_u32(head);
    let body_bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if body_bytes == 0 || body_bytes > BODY_BYTES_MAX {
        return Err(Damage::BadLength(length));
    }
    let body = rest.get(..body_bytes).ok_or(Damage::Truncated)?;
    if checksum(&[&head[..4], &head[8..], body]) != be_u32(&head[4..]) {
        return Err(Damage::BadChecksum);
    }
    let number = be_u64(&head[8..]);
    if number != expected {
        return Err(Damage::Sequence {
            found: number,
            expected,
        });
    }
    let record = Record::decode(body).map_err(|reason| Damage::Record { number, reason })?;
    Ok((record, FRAME_BYTES + body_bytes))
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(part);
    }
    crc.finalize()
}

fn be_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
