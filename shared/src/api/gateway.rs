//! Users and peers of gateways.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a peer at a gateway may read nothing before its connection is closed.
pub const PEER_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;

/// A password in clear text. `Debug` does not show it, so that no log does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// Holds a text of any length; [`Password::validate`] checks the rules for a new password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The clear text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the rules for a new password.
    ///
    /// # Errors
    /// The rule that it breaks: [`PASSWORD_CHARS_MIN`] or [`PASSWORD_BYTES_MAX`].
    pub fn validate(&self) -> Result<(), String> {
        if self.0.chars().count() < PASSWORD_CHARS_MIN {
            return Err(format!("a password has at least {PASSWORD_CHARS_MIN} characters"));
        }
        if self.0.len() > PASSWORD_BYTES_MAX {
            return Err(format!("a password has at most {PASSWORD_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// A peer at a gateway, and whether its message was sent; with `gateway peers --json` exactly this object, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The gateway's name, as in `[gateways.NAME]`.
    #[serde(rename = "door")]
    pub gateway: String,
    /// Address of the peer's end of the connection.
    pub peer: SocketAddr,
    /// Whether this station opened the connection.
    pub dialled: bool,
    /// Why the message was not sent; absent if it was, or if there was none.
    pub error: Option<String>,
}

/// A user of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// The login name.
    pub user: String,
    /// When the user was added, in milliseconds since 1970.
    pub added_ms: u64,
    /// Number of the user's tokens, browser sessions included.
    pub tokens: u64,
    /// What this request changed: `added`, `changed` or `removed`; absent in a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// A token of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its number, by which it is revoked.
    pub number: u64,
    /// The login name of its user.
    pub user: String,
    /// `program`, or `session` for the login of a browser.
    pub kind: String,
    /// A text that its maker chose; may be empty.
    pub label: String,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The token itself; present only in the answer to the request that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}
