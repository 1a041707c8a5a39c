//! Invitation codes: their content, their text form, and the proofs of knowing one.
//!
//! A code is `SWARM1-` followed by groups of five letters and digits (Crockford's base 32, without I, L, O and U).
//! Reading accepts either case, spaces and dashes. It holds, in this order:
//!
//! | bytes | content |
//! |---|---|
//! | 32 | the fleet's fingerprint |
//! | 16 | the secret |
//! | 1 | number of addresses, at most 4 |
//! | 7 or 19 each | `4` or `6`, the IP address, the port (big-endian) |
//! | 4 | the first bytes of the SHA-256 of all that, which distinguishes a typing error from a wrong code |
//!
//! Each side proves the secret by an HMAC over the TLS exporter, so that a proof is valid on one connection only, and
//! over a label for its side, so that a peer cannot return the proof that it received.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use super::Fingerprint;
use crate::proto::hex;
use crate::proto::message::JoinProof;

/// Length of an invitation's secret, in bytes.
pub const SECRET_BYTES: usize = 16;
/// Most addresses that a code holds.
pub const CODE_ADDRESSES_MAX: usize = 4;
/// Longest text that is parsed as a code, in bytes: the longest code with every group on its own line fits.
pub const CODE_TEXT_BYTES_MAX: usize = 512;

const PREFIX: &str = "SWARM";
const VERSION: char = '1';
const GROUP_CHARS: usize = 5;
const CHECKSUM_BYTES: usize = 4;
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const IP_V4: u8 = 4;
const IP_V6: u8 = 6;

/// The secret of an invitation: 128 random bits. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InviteSecret(#[serde(with = "hex")] [u8; SECRET_BYTES]);

impl InviteSecret {
    /// A secret of these bytes, which must be random.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// Identifies the secret without revealing it: the first bytes of its SHA-256.
    pub fn code_id(&self) -> [u8; 8] {
        sha256_prefix(&self.0)
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteSecret(code {})", hex::encode(&self.code_id()))
    }
}

/// The end of the connection that makes a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinSide {
    /// The peer that redeems the code.
    Joiner,
    /// The station that issued it.
    Inviter,
}

/// The proof of knowing `secret` on the connection with this TLS exporter.
pub fn prove(secret: &InviteSecret, side: JoinSide, exporter: &[u8]) -> JoinProof {
    let tag = hmac::sign(&hmac_key(secret), &mac_input(side, exporter));
    let mut mac = [0; 32];
    mac.copy_from_slice(tag.as_ref());
    JoinProof {
        code: secret.code_id(),
        mac,
    }
}

/// Whether `proof` was made by `side` with `secret` on this connection. Takes the same time for every wrong proof.
#[must_use]
pub fn verify_proof(secret: &InviteSecret, side: JoinSide, exporter: &[u8], proof: &JoinProof) -> bool {
    hmac::verify(&hmac_key(secret), &mac_input(side, exporter), &proof.mac).is_ok()
}

fn hmac_key(secret: &InviteSecret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &secret.0)
}

fn mac_input(side: JoinSide, exporter: &[u8]) -> Vec<u8> {
    let label: &[u8] = match side {
        JoinSide::Joiner => b"swarm join v1 joiner\0",
        JoinSide::Inviter => b"swarm join v1 inviter\0",
    };
    [label, exporter].concat()
}

/// The content of an invitation code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    fingerprint: Fingerprint,
    secret: InviteSecret,
    addresses: Vec<SocketAddr>,
}

impl Invitation {
    /// An invitation into a fleet. Of `addresses`, where the inviter can be dialled, it keeps the first
    /// [`CODE_ADDRESSES_MAX`] that are valid on other machines: not the link-local ones of IPv6, which need the name
    /// of an interface there.
    pub fn new(
        fingerprint: Fingerprint,
        secret: InviteSecret,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let addresses = addresses
            .into_iter()
            .filter(|address| match address.ip() {
                IpAddr::V4(_) => true,
                IpAddr::V6(ip) => !ip.is_unicast_link_local(),
            })
            .map(|address| SocketAddr::new(address.ip(), address.port()))
            .take(CODE_ADDRESSES_MAX)
            .collect();
        Self {
            fingerprint,
            secret,
            addresses,
        }
    }

    /// Fingerprint of the fleet: the inviter has to show the root key that has it.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The secret that both sides prove.
    pub fn secret(&self) -> &InviteSecret {
        &self.secret
    }

    /// Addresses to dial first; may be empty.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.fingerprint.0.as_slice(), &self.secret.0].concat();
        bytes.push(u8::try_from(self.addresses.len()).unwrap_or(0));
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(IP_V4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(IP_V6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        bytes
    }

    /// `None` if the bytes are too few, too many or not of this format.
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let fingerprint = Fingerprint(split_array(&mut bytes)?);
        let secret = InviteSecret(split_array(&mut bytes)?);
        let [count] = split_array(&mut bytes)?;
        if usize::from(count) > CODE_ADDRESSES_MAX {
            return None;
        }
        let mut addresses = Vec::new();
        for _ in 0..count {
            let ip: IpAddr = match split_array(&mut bytes)? {
                [IP_V4] => Ipv4Addr::from(split_array::<4>(&mut bytes)?).into(),
                [IP_V6] => Ipv6Addr::from(split_array::<16>(&mut bytes)?).into(),
                [_] => return None,
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(split_array(&mut bytes)?)));
        }
        bytes
            .is_empty()
            .then(|| Self::new(fingerprint, secret, addresses))
    }
}

fn split_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn sha256_prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&digest::digest(&digest::SHA256, bytes).as_ref()[..N]);
    first
}

/// The code in the form that is copied.
impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.to_bytes();
        bytes.extend(sha256_prefix::<CHECKSUM_BYTES>(&bytes));
        write!(f, "{PREFIX}{VERSION}")?;
        for (at, digit) in to_base32(&bytes).chars().enumerate() {
            if at % GROUP_CHARS == 0 {
                f.write_str("-")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// The text is not an invitation code. No error repeats the text, because it may hold a valid secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteCodeError {
    /// It is longer than any code.
    #[error("an invitation code has at most {CODE_TEXT_BYTES_MAX} characters; copy the code alone")]
    TooLong,
    /// It does not begin with the prefix of codes.
    #[error("an invitation code begins with SWARM1-; copy all of what `ground-station fleet invite` prints")]
    NotACode,
    /// It is of another version.
    #[error("this is a code of version {0}, and this program reads version 1: update it")]
    OtherVersion(char),
    /// It holds a character that no code holds.
    #[error(
        "{found:?}, digit {position} after SWARM1-, is in no invitation code: check it against the original"
    )]
    BadCharacter {
        /// The invalid character.
        found: char,
        /// Its position after the prefix, from 1; dashes and spaces are not counted.
        position: usize,
    },
    /// Characters are missing, doubled, swapped or wrong: the checksum does not match.
    #[error("the code has a typing error, or a part is missing: check it against the original")]
    Mistyped,
    /// The checksum matches, but the content is not of a known format.
    #[error("the code is complete, but its content is not understood: update this program")]
    Malformed,
}

impl FromStr for Invitation {
    type Err = InviteCodeError;

    fn from_str(text: &str) -> Result<Self, InviteCodeError> {
        if text.len() > CODE_TEXT_BYTES_MAX {
            return Err(InviteCodeError::TooLong);
        }
        let mut digits = text.chars().filter(|c| !is_separator(*c)).map(normalise_digit);
        if !PREFIX.chars().all(|c| digits.next() == Some(c)) {
            return Err(InviteCodeError::NotACode);
        }
        match digits.next() {
            Some(VERSION) => {}
            Some(other) if other.is_ascii_digit() => return Err(InviteCodeError::OtherVersion(other)),
            Some(_) | None => return Err(InviteCodeError::NotACode),
        }
        let bytes = from_base32(digits)?;
        let (body, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(InviteCodeError::Mistyped)?;
        if sha256_prefix(body) != *checksum {
            return Err(InviteCodeError::Mistyped);
        }
        Self::from_bytes(body).ok_or(InviteCodeError::Malformed)
    }
}

/// Separators between digits: white space and every dash that a program may have put in place of `-`.
fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}')
}

/// The canonical digit: upper case, with the letters that look like 0 and 1 replaced.
fn normalise_digit(c: char) -> char {
    match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    }
}

fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    for group in bytes.chunks(5) {
        let mut padded = [0; 8];
        padded[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(padded);
        for digit in 0..(group.len() * 8).div_ceil(5) {
            let index = (bits >> (35 - 5 * digit)) & 31;
            text.extend(usize::try_from(index).map(|index| char::from(ALPHABET[index])));
        }
    }
    text
}

fn from_base32(digits: impl Iterator<Item = char>) -> Result<Vec<u8>, InviteCodeError> {
    let mut bytes = Vec::new();
    let mut bits = 0_u16;
    let mut bit_count = 0;
    for (at, found) in digits.enumerate() {
        let value = ALPHABET
            .iter()
            .position(|c| char::from(*c) == found)
            .and_then(|value| u16::try_from(value).ok())
            .ok_or(InviteCodeError::BadCharacter {
                found,
                position: at + 1,
            })?;
        bits = (bits << 5) | value;
        bit_count += 5;
        if bit_count >= 8 {
            bit_count -= 8;
            let [_, byte] = (bits >> bit_count).to_be_bytes();
            bytes.push(byte);
            bits &= (1 << bit_count) - 1;
        }
    }
    // The rest pads the last byte: fewer bits than one digit, all of them zero.
    if bit_count >= 5 || bits != 0 {
        return Err(InviteCodeError::Mistyped);
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "invite_tests.rs"]
mod tests;
