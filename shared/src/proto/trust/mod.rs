//! Who may do what: the fleet root's signed words.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::hex;
use super::id::PublicKey;

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

/// A statement with the fleet root's signature over its exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// The statement as JSON text, as it was signed.
    body: String,
    /// Ed25519 over a label for the type and the body.
    #[serde(with = "hex")]
    signature: [u8; 64],
    #[serde(skip)]
    of: PhantomData<T>,
}
