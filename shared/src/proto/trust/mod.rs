//! Who may do what: the fleet root's signed words, and the one gate that asks them.
//!
//! A fleet is a root key and everybody whom it has granted a role. The root signs two kinds of [`Statement`]:
//! a [`Grant`] for each member, and the numbered [`FleetState`] that says who is out. Invariants:
//!
//! * A statement is believed only after [`Signed::verify`] against the root that this peer joined.
//! * No dates are in any statement: a Pi has no clock at boot. Serials and numbers only rise.
//! * What a linked peer may do is decided in one place, [`gate::permit`].
//! * Nothing here draws randomness or reads a clock: seeds, secrets and times come in as arguments.

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

/// What a key may be in its fleet.
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

/// The fleet root's word that a key belongs to its fleet. Carries no dates: a Pi has no clock at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The fleet root's public key.
    pub fleet: PublicKey,
    /// The key it is for.
    pub key: PublicKey,
    /// What that key may be.
    pub role: Role,
    /// What it may do beyond its role; none are defined yet.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Counts the root's grants, from 1.
    pub serial: u64,
}

/// Which keys are out. The highest number wins, is stored, and is exchanged on every link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetState {
    /// The fleet root's public key.
    pub fleet: PublicKey,
    /// Counts the root's states, from 1.
    pub number: u64,
    /// Keys that no longer belong.
    pub revoked: Vec<PublicKey>,
}

/// Why a key or a signed statement is not to be believed, or could not be made. What was held before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The statement is longer than its kind may be; found before it was read.
    #[error("{what} of {bytes} bytes is longer than the {max} allowed")]
    TooLong {
        /// The kind of statement.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The statement is nested too deeply; found before it was read.
    #[error("{0} is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep(&'static str),
    /// The statement's text is not what its kind has to be.
    #[error("{what} cannot be read: {fault}")]
    Unreadable {
        /// The kind of statement.
        what: &'static str,
        /// What the parser says.
        fault: String,
    },
    /// The signature does not belong to these bytes and this key.
    #[error("bad signature: the bytes were changed on the way, or another key signed them")]
    BadSignature,
    /// The statement speaks for another fleet.
    #[error("{what} is of fleet {theirs}, and this is fleet {ours}", theirs = theirs.short(), ours = ours.short())]
    OtherFleet {
        /// The kind of statement.
        what: &'static str,
        /// The fleet it names.
        theirs: Fingerprint,
        /// The fleet that was asked.
        ours: Fingerprint,
    },
    /// The grant is somebody else's.
    #[error(
        "the grant is for key {granted}, and this device holds key {held}: its state was copied from another \
         device; delete fleet.json and join again",
        granted = granted.id().short(), held = held.id().short()
    )]
    OtherKey {
        /// The key in the grant.
        granted: PublicKey,
        /// The key that is here.
        held: PublicKey,
    },
    /// Two different fleet states carry one number. The one that is held stays.
    #[error(
        "two different fleet states are numbered {0}: the fleet root's key is in use in two places; keep one, \
         and revoke there once more"
    )]
    Forked(u64),
    /// A revoked key stays out.
    #[error("key {} is revoked and stays out: let it make a new key (delete its identity.key) and join again", .0.id().short())]
    KeyRevoked(PublicKey),
    /// Not the DER form of an Ed25519 public key.
    #[error("not an Ed25519 public key as RFC 8410 writes it")]
    NotEd25519,
}
