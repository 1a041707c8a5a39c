//! What a node keeps of emergency stops over restarts, and the form of the file that holds it.
//!
//! `magic 8 · version u32 · crc32 u32 · generation u64 · length of the body u32 · body · zeros`, numbers big-endian. The
//! checksum covers generation, length and body. The body is JSON. Every file has at least [`LATCH_FILE_BYTES`], so that
//! a later one fits in its place.

use serde::{Deserialize, Serialize};

use crate::proto::id::PeerId;

/// Most issuers whose numbers are kept; the least recent one is evicted.
pub const ISSUERS_MAX: usize = 64;
/// Least length of a latch file, in bytes: [`ISSUERS_MAX`] issuers and the longest error fit.
pub const LATCH_FILE_BYTES: usize = 16 * 1024;
/// Longest kept error of a stop's command, in bytes.
pub const COMMAND_ERROR_BYTES_MAX: usize = 512;

const MAGIC: [u8; 8] = *b"swarmstp";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
/// Place of the checksum.
const CRC: std::ops::Range<usize> = 12..16;
/// Start of what the checksum covers.
const COVERED: usize = 16;

/// What a node keeps of emergency stops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopMemory {
    /// The stop, or the hold, in force.
    pub active: Option<StoredStop>,
    /// Numbers of each known issuer, the most recent issuer last.
    pub issuers: Vec<IssuerNumbers>,
}

/// A stop in force, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredStop {
    /// Station that issued it; of a hold, the node itself.
    pub issuer: PeerId,
    /// Its number, which a release must name.
    pub number: u64,
    /// Whether it is a hold.
    #[serde(default)]
    pub held: bool,
    /// Result of the node's own stop command; `None` while it is not known.
    #[serde(default)]
    pub command_result: Option<Result<(), String>>,
}

/// The numbers of one issuer's orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerNumbers {
    /// The station.
    pub issuer: PeerId,
    /// The highest number that was received.
    pub seen: u64,
    /// The highest number that was released; 0 if none was.
    #[serde(default)]
    pub released: u64,
}

/// Why a latch file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LatchDamage {
    /// It is too short or does not begin as a latch file does.
    #[error("it does not begin as a record of stops")]
    BadHeader,
    /// It was written by a later version.
    #[error("it has format {0} and this program reads {VERSION}")]
    OtherVersion(u32),
    /// The checksum does not match.
    #[error("its checksum is wrong")]
    BadChecksum,
    /// The checksum matches, and the body cannot be read.
    #[error("it cannot be read: {0}")]
    BadBody(String),
}

impl StopMemory {
    /// The highest number that was received of this issuer; 0 if none was.
    pub fn seen(&self, issuer: &PeerId) -> u64 {
        let known = self.issuers.iter().find(|known| known.issuer == *issuer);
        known.map_or(0, |known| known.seen)
    }

    /// Adds what another source knows: higher numbers, and its stop if that is of a number not known here.
    pub fn merge_newer(&mut self, other: &Self) {
        if let Some(stop) = &other.active
            && stop.number > self.seen(&stop.issuer)
        {
            self.active = Some(stop.clone());
        }
        for theirs in &other.issuers {
            match self.issuers.iter_mut().find(|ours| ours.issuer == theirs.issuer) {
                Some(ours) => ours.seen = ours.seen.max(theirs.seen),
                None => self.issuers.push(*theirs),
            }
        }
    }

    /// The content of a latch file.
    pub fn encode(&self, generation: u64) -> Vec<u8> {
        let mut stored = self.clone();
        stored
            .issuers
            .drain(..self.issuers.len().saturating_sub(ISSUERS_MAX));
        if let Some(Some(Err(error))) = stored.active.as_mut().map(|stop| &mut stop.command_result) {
            error.truncate(error.floor_char_boundary(COMMAND_ERROR_BYTES_MAX));
        }
        // It has text keys only, which always encode.
        let body = serde_json::to_vec(&stored).unwrap_or_default();
        let mut bytes = Vec::with_capacity(LATCH_FILE_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(generation.to_be_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(body);
        let crc = crc32fast::hash(&bytes[COVERED..]);
        bytes[CRC].copy_from_slice(&crc.to_be_bytes());
        bytes.resize(bytes.len().max(LATCH_FILE_BYTES), 0);
        bytes
    }

    /// The content of a latch file and its generation.
    ///
    /// # Errors
    /// [`LatchDamage`].
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), LatchDamage> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .filter(|(header, _)| header.starts_with(&MAGIC))
            .ok_or(LatchDamage::BadHeader)?;
        let [.., v0, v1, v2, v3] = header[..CRC.start] else {
            return Err(LatchDamage::BadHeader);
        };
        let version = u32::from_be_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(LatchDamage::OtherVersion(version));
        }
        let (generation, length) = header[COVERED..].split_at(8);
        let length = length
            .iter()
            .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let body = rest.get(..length).ok_or(LatchDamage::BadChecksum)?;
        if header[CRC] != crc32fast::hash(&bytes[COVERED..HEADER_BYTES + length]).to_be_bytes() {
            return Err(LatchDamage::BadChecksum);
        }
        let generation = generation
            .iter()
            .fold(0_u64, |generation, byte| generation << 8 | u64::from(*byte));
        let memory = serde_json::from_slice(body).map_err(|error| LatchDamage::BadBody(error.to_string()))?;
        Ok((generation, memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::PublicKey;

    fn issuer(n: u8) -> PeerId {
        PublicKey([n; 32]).id()
    }

    fn stopped_by(n: u8, number: u64) -> StopMemory {
        StopMemory {
            active: Some(StoredStop {
                issuer: issuer(n),
                number,
                held: false,
                command_result: None,
            }),
            issuers: vec![IssuerNumbers {
                issuer: issuer(n),
                seen: number,
                released: 0,
            }],
        }
    }

    #[test]
    fn largest_record_of_stops_fits_its_file() {
        let mut memory = stopped_by(1, u64::MAX);
        memory.issuers = (0..100)
            .map(|n| IssuerNumbers {
                issuer: issuer(n),
                seen: u64::MAX,
                released: u64::MAX,
            })
            .collect();
        let error = "\u{1}".repeat(10_000);
        memory.active.as_mut().expect("stopped").command_result = Some(Err(error.clone()));
        let bytes = memory.encode(u64::MAX);
        assert_eq!(bytes.len(), LATCH_FILE_BYTES);
        let (generation, read) = StopMemory::decode(&bytes).expect("sound");
        assert_eq!(generation, u64::MAX);
        assert_eq!(read.issuers, memory.issuers[36..], "the most recent stay");
        let kept = read.active.expect("stopped").command_result;
        assert_eq!(kept, Some(Err(error[..COMMAND_ERROR_BYTES_MAX].to_owned())));
    }

    #[test]
    fn any_flipped_bit_of_a_stop_record_is_noticed() {
        let good = stopped_by(1, 7).encode(3);
        let length = HEADER_BYTES + serde_json::to_vec(&stopped_by(1, 7)).expect("encodes").len();
        for bit in 0..8 * length {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(StopMemory::decode(&bytes).is_err(), "bit {bit}");
        }
        for cut in 0..length {
            assert!(StopMemory::decode(&good[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn journal_stop_counts_only_if_the_file_has_not_seen_it() {
        let mut released = stopped_by(1, 7);
        released.active = None;
        let mut merged = released.clone();
        merged.merge_newer(&stopped_by(1, 7));
        assert_eq!(merged, released, "it was released since");
        merged.merge_newer(&stopped_by(1, 8));
        assert_eq!(merged.active, stopped_by(1, 8).active, "the file missed this one");
        assert_eq!(merged.seen(&issuer(1)), 8);
        merged.merge_newer(&stopped_by(2, 3));
        assert_eq!(merged.active, stopped_by(2, 3).active);
    }
}
