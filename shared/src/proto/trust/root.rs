//! The fleet root: the key that signs for a fleet, and the record of its statements.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FleetState, Grant, Role, Signed, SigningKey, TrustError};
use crate::proto::hex;
use crate::proto::id::PublicKey;

/// SHA-256 of a fleet root's public key: identifies the fleet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(#[serde(with = "hex")] pub [u8; 32]);

/// Length of the announced part of a fingerprint, in bytes.
pub const FINGERPRINT_PREFIX_BYTES: usize = 8;

impl Fingerprint {
    /// The fingerprint of the fleet of this root.
    pub fn of(root: &PublicKey) -> Self {
        Self(root.id().0)
    }

    /// The first 8 bytes, as announcements carry them: they distinguish fleets, but prove nothing.
    pub fn prefix(&self) -> [u8; FINGERPRINT_PREFIX_BYTES] {
        let mut prefix = [0; FINGERPRINT_PREFIX_BYTES];
        prefix.copy_from_slice(&self.0[..FINGERPRINT_PREFIX_BYTES]);
        prefix
    }

    /// The first 8 bytes in groups of four hexadecimal digits, for display: `a1b2-c3d4-e5f6-0718`.
    pub fn short(&self) -> String {
        hex_groups(&self.0[..FINGERPRINT_PREFIX_BYTES])
    }
}

fn hex_groups(bytes: &[u8]) -> String {
    let groups: Vec<String> = bytes.chunks(2).map(hex::encode).collect();
    groups.join("-")
}

/// The whole fingerprint in groups of four digits, for comparison by eye.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_groups(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.short())
    }
}

/// The last statements of a fleet root: stored beside its key, so that no serial is used twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    /// Serial of the newest grant; 0 if there is none.
    pub grants: u64,
    /// The newest fleet state.
    pub state: Signed<FleetState>,
}

/// A fleet root's key and record.
///
/// Store [`FleetRoot::record`] before sending what an operation returned: a statement that is not in the record can
/// be contradicted by a later one.
#[derive(Debug)]
pub struct FleetRoot {
    key: SigningKey,
    record: RootRecord,
    state: FleetState,
}

impl FleetRoot {
    /// A new fleet: state 1, no revoked key, no grant.
    ///
    /// # Errors
    /// [`TrustError::TooLong`], which does not happen: an empty state is short.
    pub fn create(key: SigningKey) -> Result<Self, TrustError> {
        let state = FleetState {
            fleet: key.public(),
            number: 1,
            revoked: Vec::new(),
        };
        let record = RootRecord {
            grants: 0,
            state: Signed::sign(&state, &key)?,
        };
        Ok(Self { key, record, state })
    }

    /// Restores a fleet root from its stored record.
    ///
    /// # Errors
    /// [`TrustError`] if the record was not signed by this key.
    pub fn restore(key: SigningKey, record: RootRecord) -> Result<Self, TrustError> {
        let state = record.state.verify(&key.public())?;
        Ok(Self { key, record, state })
    }

    /// The record, to be stored.
    pub fn record(&self) -> &RootRecord {
        &self.record
    }

    /// The root's public key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Fingerprint of the fleet.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.public())
    }

    /// The newest fleet state.
    pub fn state(&self) -> &Signed<FleetState> {
        &self.record.state
    }

    /// Merges a state that this root has signed elsewhere: its key was moved to this machine, or the record comes
    /// from an old backup. Later statements are numbered above it.
    ///
    /// # Errors
    /// [`TrustError`] if this root did not sign the state, or if two of its states have one number. Nothing has
    /// changed then.
    pub fn merge_state(&mut self, state: &Signed<FleetState>, grants: u64) -> Result<(), TrustError> {
        let received = state.verify(&self.public())?;
        if received.number == self.state.number && received != self.state {
            return Err(TrustError::Forked(received.number));
        }
        if received.number > self.state.number {
            self.record.state = state.clone();
            self.state = received;
        }
        self.record.grants = self.record.grants.max(grants);
        Ok(())
    }

    /// Grants `key` a role, with a new serial.
    ///
    /// # Errors
    /// [`TrustError::KeyRevoked`] if the key is revoked.
    pub fn grant(&mut self, key: PublicKey, role: Role) -> Result<Signed<Grant>, TrustError> {
        if self.state.revoked.contains(&key) {
            return Err(TrustError::KeyRevoked(key));
        }
        let serial = self.record.grants.saturating_add(1);
        let grant = Grant {
            fleet: self.public(),
            key,
            role,
            capabilities: Vec::new(),
            serial,
        };
        let signed = Signed::sign(&grant, &self.key)?;
        self.record.grants = serial;
        Ok(signed)
    }

    /// Revokes `key`, with a new state number. A key that is revoked already changes nothing.
    ///
    /// # Errors
    /// [`TrustError::TooLong`] if the state is full: then a new fleet is needed. Nothing has changed then.
    pub fn revoke(&mut self, key: PublicKey) -> Result<&Signed<FleetState>, TrustError> {
        if !self.state.revoked.contains(&key) {
            let mut state = self.state.clone();
            state.number = state.number.saturating_add(1);
            state.revoked.push(key);
            self.record.state = Signed::sign(&state, &self.key)?;
            self.state = state;
        }
        Ok(&self.record.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> FleetRoot {
        FleetRoot::create(SigningKey::from_seed([1; 32])).expect("a new fleet")
    }

    #[test]
    fn grant_serials_and_state_numbers_rise_across_restarts() {
        let mut root = root();
        let key = PublicKey([5; 32]);
        let first = root.grant(key, Role::Node).expect("a grant");
        assert_eq!(first.verify(&root.public()).expect("ours").serial, 1);
        root.revoke(PublicKey([6; 32])).expect("room");
        let stored = serde_json::to_string(root.record()).expect("JSON");

        let record = serde_json::from_str(&stored).expect("our own JSON");
        let mut root = FleetRoot::restore(SigningKey::from_seed([1; 32]), record).expect("our own record");
        let second = root.grant(key, Role::Admin).expect("a grant");
        assert_eq!(second.verify(&root.public()).expect("ours").serial, 2);
        root.revoke(key).expect("room");
        let state = root.state().verify(&root.public()).expect("ours");
        assert_eq!((state.number, state.revoked), (3, vec![PublicKey([6; 32]), key]));
    }

    #[test]
    fn moved_root_continues_from_the_merged_state() {
        let mut old = root();
        let (first, second) = (PublicKey([5; 32]), PublicKey([6; 32]));
        old.grant(first, Role::Node).expect("a grant");
        old.revoke(first).expect("room");
        // Another machine, which has the key but not the record.
        let mut moved = root();
        moved.merge_state(old.state(), 1).expect("its own state");
        assert_eq!(moved.grant(first, Role::Node), Err(TrustError::KeyRevoked(first)));
        let grant = moved.grant(second, Role::Node).expect("a grant");
        assert_eq!(grant.verify(&moved.public()).expect("ours").serial, 2);
        let state = moved.revoke(second).expect("room").verify(&old.public());
        let state = state.expect("ours");
        assert_eq!((state.number, state.revoked), (3, vec![first, second]));
        moved.merge_state(old.state(), 0).expect("older, and nothing new");
        assert_eq!(moved.record().grants, 2);
        let mut other = FleetRoot::create(SigningKey::from_seed([2; 32])).expect("a new fleet");
        assert_eq!(other.merge_state(old.state(), 0), Err(TrustError::BadSignature));
        let mut forked = root();
        forked.revoke(second).expect("room");
        assert_eq!(forked.merge_state(old.state(), 0), Err(TrustError::Forked(2)));
    }

    #[test]
    fn revoking_is_idempotent_and_permanent() {
        let mut root = root();
        let key = PublicKey([5; 32]);
        let once = root.revoke(key).expect("room").clone();
        assert_eq!(root.revoke(key).expect("room"), &once);
        assert_eq!(root.grant(key, Role::Node), Err(TrustError::KeyRevoked(key)));
    }

    #[test]
    fn root_record_of_another_root_is_refused() {
        let record = root().record().clone();
        let other = FleetRoot::restore(SigningKey::from_seed([2; 32]), record);
        assert_eq!(other.map(|_| ()), Err(TrustError::BadSignature));
    }

    #[test]
    fn full_fleet_state_is_an_error_and_unchanged() {
        let mut root = root();
        root.state.revoked = (0..8_000_u16)
            .map(|n| {
                let mut key = [0; 32];
                key[..2].copy_from_slice(&n.to_be_bytes());
                PublicKey(key)
            })
            .collect();
        let before = root.record().clone();
        let refused = root.revoke(PublicKey([9; 32])).map(|_| ());
        assert!(matches!(refused, Err(TrustError::TooLong { .. })));
        assert_eq!(root.record(), &before);
    }

    #[test]
    fn fingerprint_displays_in_groups() {
        let fingerprint = root().fingerprint();
        assert_eq!(fingerprint.short().len(), 19);
        assert_eq!(fingerprint.to_string().len(), 79);
        assert!(fingerprint.to_string().starts_with(&fingerprint.short()));
        assert_eq!(
            hex::encode(&fingerprint.prefix()),
            fingerprint.short().replace('-', "")
        );
    }
}
