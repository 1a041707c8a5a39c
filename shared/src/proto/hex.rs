//! Fixed-size byte arrays as lower-case hexadecimal text, in JSON and for display.

use serde::{Deserialize, Deserializer, Serializer};

/// Writes `bytes` as lower-case hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Reads exactly `N` bytes from hexadecimal text of either case; `None` if it is anything else.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()?
        .try_into()
        .ok()
}

/// For `#[serde(with = "hex")]`: writes the array as text.
///
/// # Errors
/// Only errors of the serializer itself.
pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&encode(bytes))
}

/// For `#[serde(with = "hex")]`: reads the array from text.
///
/// # Errors
/// Text that is not exactly `N` bytes of hexadecimal.
pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(from: D) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(from)?;
    decode(&text).ok_or_else(|| serde::de::Error::custom(format!("expected {} hexadecimal digits", N * 2)))
}
