//! Trust: the statements that the fleet root signs, and the access control that uses them.
//!
//! A fleet is a root key and all keys to which it has granted a role. The root signs two kinds of [`Statement`]: a
//! [`Grant`] for each member, and the numbered [`FleetState`] with the revoked keys. Invariants:
//!
//! * A statement is used only after [`Signed::verify`] with the root of the fleet that this peer joined.
//! * No dates are in any statement: a Pi has no clock at boot. Serials and numbers only rise.
//! * The permissions of a linked peer are decided in one place, [`gate::permit`].
//! * Nothing here draws randomness or reads a clock: seeds, secrets and times are arguments.

pub mod gate;
pub mod invitations;
pub mod invite;
mod key;
mod membership;
mod root;
mod signed;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use key::{KEY_SEED_BYTES, SIGNATURE_BYTES, SPKI_BYTES, SigningKey};
pub use membership::Membership;
pub use root::{FINGERPRINT_PREFIX_BYTES, Fingerprint, FleetRoot, RootRecord};
pub use signed::{FLEET_STATE_BYTES_MAX, GRANT_BYTES_MAX, Signed, Statement};

use super::id::PublicKey;
use super::json::JSON_DEPTH_MAX;

/// The role of a key in its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A station that only reads.
    Observer,
    /// A device: exchanges rosters, chunks and fleet state.
    Node,
    /// A station that commands.
    Operator,
    /// A station that commands, enrols and revokes.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Observer => "observer",
            Self::Node => "node",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// The fleet root's statement that a key is a member of its fleet. Carries no dates: a Pi has no clock at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The fleet root's public key.
    pub fleet: PublicKey,
    /// Key of the member.
    pub key: PublicKey,
    /// Role of the member.
    pub role: Role,
    /// Permissions beyond the role; none are defined yet.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Counts the root's grants, from 1.
    pub serial: u64,
}

/// The revoked keys. The highest number wins, is stored, and is exchanged on every link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetState {
    /// The fleet root's public key.
    pub fleet: PublicKey,
    /// Counts the root's states, from 1.
    pub number: u64,
    /// Keys that are not members any more.
    pub revoked: Vec<PublicKey>,
}

/// A key or a signed statement is not valid, or could not be made. What was stored before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The statement is longer than its kind allows; found before it is parsed.
    #[error("{what} of {bytes} bytes is longer than the {max} allowed")]
    TooLong {
        /// Kind of statement.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// Length that is allowed.
        max: usize,
    },
    /// The statement is nested too deeply; found before it is parsed.
    #[error("{0} is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep(&'static str),
    /// The statement's text does not have the format of its kind.
    #[error("{what} cannot be read: {fault}")]
    Unreadable {
        /// Kind of statement.
        what: &'static str,
        /// Message of the parser.
        fault: String,
    },
    /// The signature does not match these bytes and this key.
    #[error("bad signature: the bytes were changed on the way, or another key signed them")]
    BadSignature,
    /// The statement names another fleet.
    #[error("{what} is of fleet {theirs}, and this is fleet {ours}", theirs = theirs.short(), ours = ours.short())]
    OtherFleet {
        /// Kind of statement.
        what: &'static str,
        /// Fleet that it names.
        theirs: Fingerprint,
        /// Fleet of this peer.
        ours: Fingerprint,
    },
    /// The grant is for another key.
    #[error(
        "the grant is for key {granted}, and this device holds key {held}: its state was copied from another \
         device; delete fleet.json and join again",
        granted = granted.id().short(), held = held.id().short()
    )]
    OtherKey {
        /// Key in the grant.
        granted: PublicKey,
        /// Key of this device.
        held: PublicKey,
    },
    /// Two different fleet states have one number. The current one stays.
    #[error(
        "two different fleet states are numbered {0}: the fleet root's key is in use in two places; keep one, \
         and revoke there once more"
    )]
    Forked(u64),
    /// A revoked key cannot be granted a role again.
    #[error("key {} is revoked and stays out: let it make a new key (delete its identity.key) and join again", .0.id().short())]
    KeyRevoked(PublicKey),
    /// The bytes are not the DER form of an Ed25519 public key.
    #[error("not an Ed25519 public key as RFC 8410 writes it")]
    NotEd25519,
}
