//! A peer's own membership of its fleet, and the check of other members.

use serde::{Deserialize, Serialize};

use super::{Fingerprint, FleetState, Grant, Role, Signed, TrustError};
use crate::proto::id::PublicKey;
use crate::proto::message::{RefusalCode, Refused};

/// The membership of a peer: the fleet root that it trusts, its own grant, and the newest fleet state.
///
/// A value of this type is verified: reading one from a file checks every signature again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredMembership", into = "StoredMembership")]
pub struct Membership {
    root: PublicKey,
    signed_grant: Signed<Grant>,
    signed_state: Signed<FleetState>,
    grant: Grant,
    state: FleetState,
}

/// A membership as stored in files.
#[derive(Serialize, Deserialize)]
struct StoredMembership {
    root: PublicKey,
    grant: Signed<Grant>,
    fleet_state: Signed<FleetState>,
}

impl TryFrom<StoredMembership> for Membership {
    type Error = TrustError;

    fn try_from(stored: StoredMembership) -> Result<Self, TrustError> {
        Self::verified(stored.root, stored.grant, stored.fleet_state)
    }
}

impl From<Membership> for StoredMembership {
    fn from(membership: Membership) -> Self {
        Self {
            root: membership.root,
            grant: membership.signed_grant,
            fleet_state: membership.signed_state,
        }
    }
}

impl Membership {
    /// The membership of the peer that holds `own`, from the content of its `joined` frame.
    ///
    /// # Errors
    /// [`TrustError`] if the root did not sign both statements, or the grant is for another key.
    pub fn new(
        root: PublicKey,
        own: &PublicKey,
        grant: Signed<Grant>,
        fleet_state: Signed<FleetState>,
    ) -> Result<Self, TrustError> {
        let membership = Self::verified(root, grant, fleet_state)?;
        membership.check_own(own)?;
        Ok(membership)
    }

    fn verified(
        root: PublicKey,
        signed_grant: Signed<Grant>,
        signed_state: Signed<FleetState>,
    ) -> Result<Self, TrustError> {
        Ok(Self {
            grant: signed_grant.verify(&root)?,
            state: signed_state.verify(&root)?,
            root,
            signed_grant,
            signed_state,
        })
    }

    /// Checks that this is the membership of the peer that holds `own`. For use after reading it from a file.
    ///
    /// # Errors
    /// [`TrustError::OtherKey`] if the file was copied from another device.
    pub fn check_own(&self, own: &PublicKey) -> Result<(), TrustError> {
        if self.grant.key == *own {
            return Ok(());
        }
        Err(TrustError::OtherKey {
            granted: self.grant.key,
            held: *own,
        })
    }

    /// The fleet root's public key.
    pub fn root(&self) -> &PublicKey {
        &self.root
    }

    /// Fingerprint of the fleet.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root)
    }

    /// Role of this peer.
    pub fn own_role(&self) -> Role {
        self.grant.role
    }

    /// This peer's grant, to be sent to others.
    pub fn grant(&self) -> &Signed<Grant> {
        &self.signed_grant
    }

    /// Serial number of this peer's grant.
    pub fn own_serial(&self) -> u64 {
        self.grant.serial
    }

    /// The newest fleet state, to be sent to others.
    pub fn fleet_state(&self) -> &Signed<FleetState> {
        &self.signed_state
    }

    /// Number of the newest fleet state.
    pub fn state_number(&self) -> u64 {
        self.state.number
    }

    /// Whether `key` is revoked.
    pub fn is_revoked(&self, key: &PublicKey) -> bool {
        self.state.revoked.contains(key)
    }

    /// Whether this peer's own key is revoked: then no member links with it until it joins again with a new key.
    pub fn is_own_key_revoked(&self) -> bool {
        self.is_revoked(&self.grant.key)
    }

    /// Adopts a fleet state if it is newer; `Ok(true)` if it was. Then the caller stores this membership, closes the
    /// links of keys that are revoked now, and checks [`Membership::is_own_key_revoked`].
    ///
    /// # Errors
    /// [`TrustError`] if the root did not sign it, or signed a different one with the same number. The current state
    /// stays then.
    pub fn adopt_state(&mut self, offered: Signed<FleetState>) -> Result<bool, TrustError> {
        if offered == self.signed_state {
            return Ok(false);
        }
        let state = offered.verify(&self.root)?;
        if state.number < self.state.number || state == self.state {
            return Ok(false);
        }
        if state.number == self.state.number {
            return Err(TrustError::Forked(state.number));
        }
        self.state = state;
        self.signed_state = offered;
        Ok(true)
    }

    /// Checks by the grant in its hello that the peer which has proved to hold `peer_key` is a member of this fleet.
    ///
    /// # Errors
    /// [`Refused`], which tells the peer the fault and the remedy.
    pub fn check_peer(
        &self,
        peer_key: &PublicKey,
        hello_grant: Option<&Signed<Grant>>,
    ) -> Result<Grant, Refused> {
        let ours = self.fingerprint().short();
        if self.is_revoked(peer_key) {
            return Err(Refused::new(
                RefusalCode::Revoked,
                format!(
                    "key {} is revoked in fleet {ours} (fleet state {}): to come back, delete identity.key and \
                     fleet.json, which makes a new key, and join with a new code",
                    peer_key.id().short(),
                    self.state.number
                ),
            ));
        }
        let Some(signed) = hello_grant else {
            return Err(Refused::new(
                RefusalCode::NoGrant,
                format!(
                    "key {} is not in fleet {ours}: on its station type `ground-station fleet invite`, and join \
                     with the code",
                    peer_key.id().short()
                ),
            ));
        };
        match signed.verify(&self.root) {
            Ok(grant) if grant.key == *peer_key => Ok(grant),
            Ok(grant) => Err(Refused::new(
                RefusalCode::BadGrant,
                format!(
                    "the grant is for key {}, and the peer holds key {}: its fleet.json was copied from another \
                     device; delete it there and join with a new code",
                    grant.key.id().short(),
                    peer_key.id().short()
                ),
            )),
            Err(error) => Err(self.unverified_refusal(signed, &error)),
        }
    }

    /// The refusal of a grant that our root did not sign. A grant of another fleet is an honest mistake; one in our
    /// root's name is a forgery.
    fn unverified_refusal(&self, signed: &Signed<Grant>, error: &TrustError) -> Refused {
        let ours = self.fingerprint().short();
        match signed.read_unverified() {
            Ok(grant) if grant.fleet != self.root => Refused::new(
                RefusalCode::WrongFleet,
                format!(
                    "the peer belongs to fleet {}, and this is fleet {ours}: to move it here, join with a code of \
                     this fleet",
                    Fingerprint::of(&grant.fleet).short()
                ),
            ),
            Ok(_) | Err(_) => Refused::new(
                RefusalCode::BadGrant,
                format!(
                    "the root of fleet {ours} does not vouch for the grant ({error}): delete the peer's fleet.json \
                     and join with a new code"
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::trust::{FleetRoot, SigningKey};

    const OWN: PublicKey = PublicKey([3; 32]);
    const PEER: PublicKey = PublicKey([4; 32]);

    fn fleet(seed: u8) -> (FleetRoot, Membership) {
        let mut root = FleetRoot::create(SigningKey::from_seed([seed; 32])).expect("a new fleet");
        let grant = root.grant(OWN, Role::Node).expect("a grant");
        let membership = Membership::new(root.public(), &OWN, grant, root.state().clone());
        (root, membership.expect("all signed by one root"))
    }

    fn refusal(membership: &Membership, grant: Option<&Signed<Grant>>) -> (RefusalCode, String) {
        let refused = membership.check_peer(&PEER, grant).expect_err("refused");
        (refused.code, refused.reason)
    }

    #[test]
    fn member_is_accepted_with_its_role() {
        let (mut root, membership) = fleet(1);
        let grant = root.grant(PEER, Role::Operator).expect("a grant");
        let seen = membership.check_peer(&PEER, Some(&grant)).expect("a member");
        assert_eq!((seen.key, seen.role), (PEER, Role::Operator));
        assert_eq!(membership.own_role(), Role::Node);
    }

    #[test]
    fn each_membership_refusal_has_its_code_and_advice() {
        let (mut root, mut membership) = fleet(1);
        let (mut other, _) = fleet(2);

        let (code, reason) = refusal(&membership, None);
        assert_eq!(code, RefusalCode::NoGrant);
        assert!(reason.contains("fleet invite"), "{reason}");

        let foreign = other.grant(PEER, Role::Node).expect("a grant");
        let (code, reason) = refusal(&membership, Some(&foreign));
        assert_eq!(code, RefusalCode::WrongFleet);
        assert!(reason.contains(&other.fingerprint().short()), "{reason}");

        let for_another = root.grant(PublicKey([5; 32]), Role::Node).expect("a grant");
        let (code, reason) = refusal(&membership, Some(&for_another));
        assert_eq!(code, RefusalCode::BadGrant);
        assert!(reason.contains("copied"), "{reason}");

        let mut in_our_name = foreign.verify(&other.public()).expect("theirs");
        in_our_name.fleet = root.public();
        let forged = Signed::sign(&in_our_name, &SigningKey::from_seed([2; 32])).expect("short");
        let (code, reason) = refusal(&membership, Some(&forged));
        assert_eq!(code, RefusalCode::BadGrant);
        assert!(reason.contains("bad signature"), "{reason}");

        let good = root.grant(PEER, Role::Node).expect("a grant");
        root.revoke(PEER).expect("room");
        assert_eq!(membership.adopt_state(root.state().clone()), Ok(true));
        for grant in [Some(&good), None] {
            let (code, reason) = refusal(&membership, grant);
            assert_eq!(code, RefusalCode::Revoked);
            assert!(reason.contains("new key"), "{reason}");
        }
    }

    #[test]
    fn highest_fleet_state_signed_by_the_root_wins() {
        let (mut root, mut membership) = fleet(1);
        let first = root.state().clone();
        let second = root.revoke(PEER).expect("room").clone();
        let third = root.revoke(OWN).expect("room").clone();

        assert_eq!(membership.adopt_state(first.clone()), Ok(false));
        assert_eq!(membership.adopt_state(third.clone()), Ok(true));
        assert_eq!(membership.adopt_state(second), Ok(false));
        assert_eq!(membership.adopt_state(third), Ok(false));
        assert_eq!(membership.state_number(), 3);
        assert!(membership.is_revoked(&PEER) && membership.is_own_key_revoked());

        let foreign = fleet(2).0.state().clone();
        assert_eq!(membership.adopt_state(foreign), Err(TrustError::BadSignature));
        assert_eq!(membership.state_number(), 3);
    }

    #[test]
    fn conflicting_fleet_states_of_one_number_are_reported() {
        let (mut root, mut membership) = fleet(1);
        let mut copy =
            FleetRoot::restore(SigningKey::from_seed([1; 32]), root.record().clone()).expect("a copy");
        let ours = root.revoke(PEER).expect("room").clone();
        let theirs = copy.revoke(OWN).expect("room").clone();
        assert_eq!(membership.adopt_state(ours), Ok(true));
        assert_eq!(membership.adopt_state(theirs), Err(TrustError::Forked(2)));
        assert!(!membership.is_own_key_revoked());
    }

    #[test]
    fn membership_file_is_verified_on_load() {
        let (root, membership) = fleet(1);
        let text = serde_json::to_string(&membership).expect("JSON");
        let back: Membership = serde_json::from_str(&text).expect("our own file");
        assert_eq!(back, membership);
        assert_eq!(back.check_own(&OWN), Ok(()));
        assert!(matches!(back.check_own(&PEER), Err(TrustError::OtherKey { .. })));
        let changed = text.replace(r#"\"role\":\"node\""#, r#"\"role\":\"admin\""#);
        assert_ne!(changed, text);
        let error = serde_json::from_str::<Membership>(&changed).expect_err("forged");
        assert!(error.to_string().contains("bad signature"), "{error}");
        let another = Membership::new(
            root.public(),
            &PEER,
            membership.grant().clone(),
            membership.fleet_state().clone(),
        );
        assert!(matches!(another, Err(TrustError::OtherKey { .. })));
    }
}
