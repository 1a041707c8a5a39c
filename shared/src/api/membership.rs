//! This station's fleet, its members and those who want to join.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::id::{NodeName, PeerId, PeerKind};
use crate::proto::trust::Role;

/// This station and its fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipView {
    /// This station's name.
    pub node: NodeName,
    /// This station's id.
    pub id: PeerId,
    /// This station's role.
    pub role: Role,
    /// The fleet's fingerprint: the id of its root key.
    pub fleet: PeerId,
    /// Whether the root's private key is on this machine.
    pub has_root: bool,
}

/// A new invitation code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationView {
    /// The code, for `join` on the other side.
    pub code: String,
    /// The role of a key that joins with it.
    pub role: Role,
    /// How many devices may join with it.
    pub uses: u32,
    /// How long it is valid from now, in milliseconds.
    pub valid_for_ms: u64,
}

/// A member of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The name that it gives itself.
    pub node: NodeName,
    /// The hash of its key.
    pub id: PeerId,
    /// Node or station.
    pub kind: PeerKind,
    /// Its role in the fleet.
    pub role: Role,
    /// Whether the fleet has revoked its key.
    pub revoked: bool,
    /// Its last known address.
    pub address: Option<SocketAddr>,
    /// Milliseconds since this station heard it; absent if it never did.
    pub last_heard_ms: Option<u64>,
}

/// A device without an invitation that waits to be accepted by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingView {
    /// The name that it gives itself.
    pub node: NodeName,
    /// Its id, which its own log shows too: compare both before you accept it.
    pub id: PeerId,
    /// The address that it connected from.
    pub address: Option<SocketAddr>,
    /// Milliseconds since its first attempt.
    pub waiting_ms: u64,
}
