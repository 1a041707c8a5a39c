//! The only file that draws randomness.

use ring::rand::{SecureRandom as _, SystemRandom};

/// The system gave no randomness: nothing that needs a secret can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes; is /dev/urandom there?")]
pub struct NoRandomness;

/// Fresh random bytes.
///
/// # Errors
/// [`NoRandomness`].
pub fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| NoRandomness)?;
    Ok(bytes)
}

/// A random number that spreads retries; 0 if the system gives none, which only makes retries coincide.
pub fn jitter() -> u64 {
    bytes().map_or(0, u64::from_le_bytes)
}
