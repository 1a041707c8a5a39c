//! Users of gateways with authentication: makes and checks passwords and tokens.
//!
//! Invariants: a password is stored as its argon2id hash only, a token as its SHA-256 only. A token has 256 random bits.
//! Few passwords are checked at the same time, since each check takes 19 MiB and tens of milliseconds of a processor.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use data_encoding::BASE64URL_NOPAD;
use swarm_shared::api::PASSWORD_BYTES_MAX;
pub use swarm_shared::api::Password;
use swarm_shared::net::random::{self, NoRandomness};
use tokio::sync::Semaphore;

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest label of a token, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest validity of a token, in days.
pub const TOKEN_DAYS_MAX: u32 = 3_650;
/// Passwords that are checked at the same time.
pub const PASSWORD_CHECKS_MAX: usize = 2;
/// Passwords that wait to be checked; more are refused as busy.
pub const PASSWORD_QUEUE_MAX: usize = 32;

/// The prefix of every token, so that scanners recognise one in a log or a repository.
const TOKEN_PREFIX: &str = "gst_";

/// Checks the name of a new user.
///
/// # Errors
/// The rule that it breaks.
pub fn validate_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a user's name: 1 to {NAME_BYTES_MAX} letters, digits and . _ - @ +"
    ))
}

/// Why a password was not checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// [`PASSWORD_QUEUE_MAX`] passwords wait already.
    #[error("too many passwords wait to be checked; try again in a few seconds")]
    Busy,
    /// Hashing failed, for lack of memory or randomness.
    #[error("a password cannot be checked here: {0}")]
    Failed(String),
}

/// Hashes and checks passwords, [`PASSWORD_CHECKS_MAX`] at the same time; clones share the limit.
#[derive(Clone, Debug)]
pub struct PasswordChecker {
    slots: Arc<Semaphore>,
    admissions: Arc<Semaphore>,
}

impl Default for PasswordChecker {
    fn default() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(PASSWORD_CHECKS_MAX)),
            admissions: Arc::new(Semaphore::new(PASSWORD_CHECKS_MAX + PASSWORD_QUEUE_MAX)),
        }
    }
}

impl PasswordChecker {
    /// The hash of a password, to be stored.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        let salt: [u8; 16] = random::bytes().map_err(|error| PasswordError::Failed(error.to_string()))?;
        let work = move || {
            let hashed = Argon2::default().hash_password_with_salt(password.as_str().as_bytes(), &salt);
            hashed.map(|hash: PasswordHash| hash.to_string())
        };
        let hashed = self.run_blocking(work).await?;
        hashed.map_err(|error| PasswordError::Failed(error.to_string()))
    }

    /// Whether a password has this hash. `false` without a hash, after the same time, so that the time does not tell whether a
    /// user exists.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn verify(
        &self,
        password: Password,
        stored_hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        if password.as_str().len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        self.run_blocking(move || {
            let known = stored_hash.is_some();
            let kept = stored_hash.as_deref().unwrap_or(DUMMY_HASH);
            let same = PasswordHash::new(kept).is_ok_and(|kept| {
                Argon2::default()
                    .verify_password(password.as_str().as_bytes(), &kept)
                    .is_ok()
            });
            known && same
        })
        .await
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _waiting = self
            .admissions
            .try_acquire()
            .map_err(|_full| PasswordError::Busy)?;
        let gone = |error: &dyn std::fmt::Display| PasswordError::Failed(error.to_string());
        let place = Arc::clone(&self.slots).acquire_owned().await;
        let place = place.map_err(|error| gone(&error))?;
        let done = tokio::task::spawn_blocking(move || {
            // Held by the work, which goes on if the caller's future is dropped.
            let _place = place;
            work()
        });
        done.await.map_err(|error| gone(&error))
    }
}

/// The hash of a random password, with the parameters of real ones.
const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c3dhcm0tbm9ib2R5LTE$Z2NnpOxZqvHXyTRGgZqRfvOz0C0yV9yq3bY3a3WzKfk";

/// A new token, and its hash to be stored.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_token() -> Result<(String, [u8; 32]), NoRandomness> {
    let secret: [u8; 32] = random::bytes()?;
    let token = format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&secret));
    let kept = token_hash(&token);
    Ok((token, kept))
}

/// The SHA-256 of a token.
pub fn token_hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// When a token of this validity expires, in milliseconds since 1970.
pub fn expiry_ms(now_ms: u64, days: u32) -> u64 {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let life = crate::duration::to_ms(DAY.saturating_mul(days.min(TOKEN_DAYS_MAX)));
    now_ms.saturating_add(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stored_hash_verifies_its_password() {
        let checker = PasswordChecker::default();
        let kept = checker
            .hash(Password::new("correct horse"))
            .await
            .expect("hashed");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        let is = |text: &str, kept: &str| checker.verify(Password::new(text), Some(kept.to_owned()));
        assert!(is("correct horse", &kept).await.expect("checked"));
        assert!(!is("correct horsf", &kept).await.expect("checked"));
        assert!(!is("correct horse", "nonsense").await.expect("checked"));
        assert!(!checker.verify(Password::new("x"), None).await.expect("checked"));
        let again = checker
            .hash(Password::new("correct horse"))
            .await
            .expect("hashed");
        assert_ne!(kept, again, "salted");
    }

    #[test]
    fn dummy_hash_has_the_real_hash_length() {
        let kept = PasswordHash::new(DUMMY_HASH).expect("well formed");
        assert_eq!(kept.hash.map(|hash| hash.len()), Some(32));
    }

    #[tokio::test]
    async fn excess_password_checks_are_refused_as_busy() {
        let checker = PasswordChecker::default();
        let all = PASSWORD_CHECKS_MAX + PASSWORD_QUEUE_MAX;
        let held: Vec<_> = (0..all)
            .map(|_| checker.admissions.try_acquire().expect("room"))
            .collect();
        assert_eq!(
            checker.verify(Password::new("x"), None).await,
            Err(PasswordError::Busy)
        );
        drop(held);
        assert_eq!(checker.verify(Password::new("x"), None).await, Ok(false));
    }

    #[test]
    fn tokens_are_long_and_unique() {
        let (one, kept) = new_token().expect("random");
        let (other, _) = new_token().expect("random");
        assert!(one.len() == TOKEN_PREFIX.len() + 43 && one != other);
        assert_eq!(token_hash(&one), kept);
    }

    #[test]
    fn user_names_and_passwords_are_validated() {
        for good in ["ann", "a.b-c_d@e+f", &"x".repeat(64)] {
            validate_name(good).expect(good);
        }
        for bad in ["", "a b", "ä", "a:b", "a/b", &"x".repeat(65)] {
            validate_name(bad).expect_err(bad);
        }
        Password::new("12345678").validate().expect("long enough");
        Password::new("1234567").validate().expect_err("short");
        Password::new("x".repeat(257)).validate().expect_err("long");
        assert_eq!(format!("{:?}", Password::new("secret")), "Password");
    }
}
