//! Users of doors that ask for a name: passwords and tokens, as they are made and checked.
//!
//! Invariants: a password leaves memory only as what argon2id makes of it, a token only as its SHA-256; a token has 256
//! random bits, so that nobody guesses one; few passwords are looked at at once, as each takes 19 MiB and much time of
//! a processor.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use swarm_shared::net::random::{self, NoRandomness};
use tokio::sync::Semaphore;

/// Shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest label of a token, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// The longest that a token may be good, in days.
pub const TOKEN_DAYS_MAX: u32 = 3_650;
/// Passwords that are looked at at once.
pub const PASSWORDS_AT_ONCE: usize = 2;
/// Passwords that wait to be looked at; beyond them the station is busy.
pub const PASSWORDS_WAITING_MAX: usize = 32;

/// What begins every token, so that one in a log or a repository is known for what it is.
const TOKEN_PREFIX: &str = "gst_";

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// Of what somebody typed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What it is.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is fit to be somebody's from now on.
    ///
    /// # Errors
    /// The rule.
    pub fn check(&self) -> Result<(), String> {
        if self.0.chars().count() < PASSWORD_CHARS_MIN {
            return Err(format!("a password has at least {PASSWORD_CHARS_MIN} characters"));
        }
        if self.0.len() > PASSWORD_BYTES_MAX {
            return Err(format!("a password has at most {PASSWORD_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// Checks a user's name.
///
/// # Errors
/// The rule.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a user's name: 1 to {NAME_BYTES_MAX} letters, digits and . _ - @ +"
    ))
}

/// Why a password was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Too many wait already.
    #[error("too many passwords wait to be checked; try again in a few seconds")]
    Busy,
    /// The machine does not do it.
    #[error("a password cannot be checked here: {0}")]
    Failed(String),
}

/// Where passwords are looked at, few at once; clones share it.
#[derive(Clone, Debug)]
pub struct Desk {
    places: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE)),
            queue: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE + PASSWORDS_WAITING_MAX)),
        }
    }
}

impl Desk {
    /// What to keep of a password.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        let salt: [u8; 16] = random::bytes().map_err(|error| PasswordError::Failed(error.to_string()))?;
        let work = move || {
            let hashed = Argon2::default().hash_password_with_salt(password.0.as_bytes(), &salt);
            hashed.map(|hash: PasswordHash| hash.to_string())
        };
        let hashed = self.aside(work).await?;
        hashed.map_err(|error| PasswordError::Failed(error.to_string()))
    }

    /// Whether a password is what `kept` was made of. Without `kept` it is not, which takes as long to find out.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn is(&self, password: Password, kept: Option<String>) -> Result<bool, PasswordError> {
        if password.0.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        self.aside(move || {
            let known = kept.is_some();
            let kept = kept.as_deref().unwrap_or(NOBODYS);
            let same = PasswordHash::new(kept).is_ok_and(|kept| {
                Argon2::default()
                    .verify_password(password.0.as_bytes(), &kept)
                    .is_ok()
            });
            known && same
        })
        .await
    }

    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _waiting = self.queue.try_acquire().map_err(|_full| PasswordError::Busy)?;
        let gone = |error: &dyn std::fmt::Display| PasswordError::Failed(error.to_string());
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|error| gone(&error))?;
        let done = tokio::task::spawn_blocking(move || {
            // Held by the work itself: whoever asked may go meanwhile, and the work does not end by that.
            let _place = place;
            work()
        });
        done.await.map_err(|error| gone(&error))
    }
}

/// What argon2 made of a password that nobody has, with the parameters of all others.
const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c3dhcm0tbm9ib2R5LTE$Z2NnpOxZqvHXyTRGgZqRfvOz0C0yV9yq3bY3a3WzKfk";

/// A new token, and what is kept of it.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_token() -> Result<(String, [u8; 32]), NoRandomness> {
    let secret: [u8; 32] = random::bytes()?;
    let token = format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&secret));
    let kept = token_hash(&token);
    Ok((token, kept))
}

/// What is kept of a token.
pub fn token_hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// Until when a token of so many days is good, in milliseconds since 1970.
pub fn expiry_ms(now_ms: u64, days: u32) -> u64 {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let life = crate::duration::to_ms(DAY.saturating_mul(days.min(TOKEN_DAYS_MAX)));
    now_ms.saturating_add(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_known_by_what_is_kept_of_it() {
        let desk = Desk::default();
        let kept = desk.hash(Password::new("correct horse")).await.expect("hashed");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        let is = |text: &str, kept: &str| desk.is(Password::new(text), Some(kept.to_owned()));
        assert!(is("correct horse", &kept).await.expect("checked"));
        assert!(!is("correct horsf", &kept).await.expect("checked"));
        assert!(!is("correct horse", "nonsense").await.expect("checked"));
        assert!(!desk.is(Password::new("x"), None).await.expect("checked"));
        let again = desk.hash(Password::new("correct horse")).await.expect("hashed");
        assert_ne!(kept, again, "salted");
    }

    #[test]
    fn nobodys_password_costs_what_others_cost() {
        let kept = PasswordHash::new(NOBODYS).expect("well formed");
        assert_eq!(kept.hash.map(|hash| hash.len()), Some(32));
    }

    #[tokio::test]
    async fn too_many_at_once_are_told_so() {
        let desk = Desk::default();
        let all = PASSWORDS_AT_ONCE + PASSWORDS_WAITING_MAX;
        let held: Vec<_> = (0..all)
            .map(|_| desk.queue.try_acquire().expect("room"))
            .collect();
        assert_eq!(desk.is(Password::new("x"), None).await, Err(PasswordError::Busy));
        drop(held);
        assert_eq!(desk.is(Password::new("x"), None).await, Ok(false));
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, kept) = new_token().expect("random");
        let (other, _) = new_token().expect("random");
        assert!(one.len() == TOKEN_PREFIX.len() + 43 && one != other);
        assert_eq!(token_hash(&one), kept);
    }

    #[test]
    fn names_and_passwords_have_rules() {
        for good in ["ann", "a.b-c_d@e+f", &"x".repeat(64)] {
            check_name(good).expect(good);
        }
        for bad in ["", "a b", "ä", "a:b", "a/b", &"x".repeat(65)] {
            check_name(bad).expect_err(bad);
        }
        Password::new("12345678").check().expect("long enough");
        Password::new("1234567").check().expect_err("short");
        Password::new("x".repeat(257)).check().expect_err("long");
        assert_eq!(format!("{:?}", Password::new("secret")), "Password");
    }
}
