//! A statement and its signature over the exact bytes that were signed.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Fingerprint, FleetState, Grant, SigningKey, TrustError};
use crate::proto::id::PublicKey;
use crate::proto::{hex, json};

/// Longest text of a grant, in bytes.
pub const GRANT_BYTES_MAX: usize = 4 * 1024;
/// Longest text of a fleet state, in bytes: room for about 7,800 revoked keys, and half of the content of a control
/// frame, in which the text is escaped once more.
pub const FLEET_STATE_BYTES_MAX: usize = 512 * 1024;

/// A statement of a fleet root.
pub trait Statement: Serialize + DeserializeOwned {
    /// Its name in errors.
    const NAME: &'static str;
    /// Prefix of the signed bytes, so that a statement cannot be used as one of another kind. Ends in a zero byte,
    /// which JSON text never holds.
    const LABEL: &'static [u8];
    /// Longest text that is signed or accepted, in bytes.
    const BYTES_MAX: usize;

    /// The fleet root that it names.
    fn fleet(&self) -> &PublicKey;
}

impl Statement for Grant {
    const NAME: &'static str = "grant";
    const LABEL: &'static [u8] = b"swarm grant v1\0";
    const BYTES_MAX: usize = GRANT_BYTES_MAX;

    fn fleet(&self) -> &PublicKey {
        &self.fleet
    }
}

impl Statement for FleetState {
    const NAME: &'static str = "fleet state";
    const LABEL: &'static [u8] = b"swarm fleet state v1\0";
    const BYTES_MAX: usize = FLEET_STATE_BYTES_MAX;

    fn fleet(&self) -> &PublicKey {
        &self.fleet
    }
}

/// A statement with the fleet root's signature over its exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// The statement as JSON text, exactly as it was signed.
    body: String,
    /// Ed25519 signature over the label of the type and the body.
    #[serde(with = "hex")]
    signature: [u8; 64],
    #[serde(skip)]
    statement: PhantomData<T>,
}

impl<T: Statement> Signed<T> {
    /// Signs a statement.
    ///
    /// # Errors
    /// [`TrustError::TooLong`] if receivers would reject it.
    pub fn sign(statement: &T, key: &SigningKey) -> Result<Self, TrustError> {
        let body = serde_json::to_string(statement).map_err(unreadable::<T>)?;
        check_length::<T>(&body)?;
        Ok(Self {
            signature: key.sign(&signed_bytes::<T>(&body)),
            body,
            statement: PhantomData,
        })
    }

    /// The statement, if `root` signed it and it names `root`.
    ///
    /// # Errors
    /// [`TrustError`]: why it is not valid.
    pub fn verify(&self, root: &PublicKey) -> Result<T, TrustError> {
        check_length::<T>(&self.body)?;
        root.verify(&signed_bytes::<T>(&self.body), &self.signature)?;
        let statement = self.read_unverified()?;
        if statement.fleet() == root {
            Ok(statement)
        } else {
            Err(TrustError::OtherFleet {
                what: T::NAME,
                theirs: Fingerprint::of(statement.fleet()),
                ours: Fingerprint::of(root),
            })
        }
    }

    /// Builds it from the fields of another encoding. Not verified until [`Signed::verify`].
    pub(in crate::proto) fn from_parts(body: String, signature: [u8; 64]) -> Self {
        Self {
            body,
            signature,
            statement: PhantomData,
        }
    }

    /// The text that was signed, for another encoding.
    pub(in crate::proto) fn text(&self) -> &str {
        &self.body
    }

    /// The root's signature, for another encoding.
    pub(in crate::proto) fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The statement without verification: for the text of a refusal, or to refuse before the signature is checked.
    pub(in crate::proto) fn read_unverified(&self) -> Result<T, TrustError> {
        check_length::<T>(&self.body)?;
        if !json::has_safe_depth(self.body.as_bytes()) {
            return Err(TrustError::TooDeep(T::NAME));
        }
        serde_json::from_str(&self.body).map_err(unreadable::<T>)
    }
}

fn check_length<T: Statement>(body: &str) -> Result<(), TrustError> {
    if body.len() > T::BYTES_MAX {
        return Err(TrustError::TooLong {
            what: T::NAME,
            bytes: body.len(),
            max: T::BYTES_MAX,
        });
    }
    Ok(())
}

fn signed_bytes<T: Statement>(body: &str) -> Vec<u8> {
    [T::LABEL, body.as_bytes()].concat()
}

fn unreadable<T: Statement>(error: serde_json::Error) -> TrustError {
    TrustError::Unreadable {
        what: T::NAME,
        fault: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::trust::Role;

    fn root() -> SigningKey {
        SigningKey::from_seed([1; 32])
    }

    fn grant() -> Grant {
        Grant {
            fleet: root().public(),
            key: PublicKey([2; 32]),
            role: Role::Node,
            capabilities: Vec::new(),
            serial: 7,
        }
    }

    fn signed(body: String) -> Signed<Grant> {
        Signed {
            signature: root().sign(&signed_bytes::<Grant>(&body)),
            body,
            statement: PhantomData,
        }
    }

    #[test]
    fn signed_statement_round_trips_through_json() {
        let signed = Signed::sign(&grant(), &root()).expect("a short grant");
        assert_eq!(signed.verify(&root().public()), Ok(grant()));
        let text = serde_json::to_string(&signed).expect("JSON");
        let back: Signed<Grant> = serde_json::from_str(&text).expect("our own JSON");
        assert_eq!(back.verify(&root().public()), Ok(grant()));
    }

    #[test]
    fn statement_verifies_only_with_its_own_root() {
        let other = SigningKey::from_seed([9; 32]);
        let signed = Signed::sign(&grant(), &root()).expect("a short grant");
        assert_eq!(signed.verify(&other.public()), Err(TrustError::BadSignature));
        // Another root signs a grant in our root's name.
        let forged = Signed::sign(&grant(), &other).expect("a short grant");
        assert_eq!(forged.verify(&root().public()), Err(TrustError::BadSignature));
        assert!(matches!(
            forged.verify(&other.public()),
            Err(TrustError::OtherFleet { .. })
        ));
    }

    #[test]
    fn statement_never_verifies_as_another_kind() {
        let state = FleetState {
            fleet: root().public(),
            number: 1,
            revoked: Vec::new(),
        };
        let signed = Signed::sign(&state, &root()).expect("a short state");
        let dressed_up: Signed<Grant> = Signed {
            body: signed.body,
            signature: signed.signature,
            statement: PhantomData,
        };
        assert_eq!(dressed_up.verify(&root().public()), Err(TrustError::BadSignature));
    }

    #[test]
    fn long_deep_and_malformed_bodies_have_distinct_errors() {
        let root_key = root().public();
        let long = signed(" ".repeat(GRANT_BYTES_MAX + 1));
        assert!(matches!(long.verify(&root_key), Err(TrustError::TooLong { .. })));
        let deep = signed("[".repeat(json::JSON_DEPTH_MAX + 1));
        assert_eq!(deep.verify(&root_key), Err(TrustError::TooDeep("grant")));
        let odd = signed("{}".to_owned());
        assert!(matches!(
            odd.verify(&root_key),
            Err(TrustError::Unreadable { .. })
        ));
        let mut wordy = grant();
        wordy.capabilities = vec!["x".repeat(GRANT_BYTES_MAX)];
        assert!(matches!(
            Signed::sign(&wordy, &root()),
            Err(TrustError::TooLong { .. })
        ));
    }

    /// Bytes of a released version never change: if this fails, undo your change, not the test.
    #[test]
    fn golden_grant() {
        let signed = Signed::sign(&grant(), &root()).expect("a short grant");
        assert_eq!(
            signed.body,
            concat!(
                r#"{"fleet":"8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c","#,
                r#""key":"0202020202020202020202020202020202020202020202020202020202020202","#,
                r#""role":"node","capabilities":[],"serial":7}"#
            )
        );
        assert_eq!(
            hex::encode(&signed.signature),
            concat!(
                "bff581fdaee45c03a9629086ae6127dd13155897fcdb270864446de662aafbfc3651261bb473e322",
                "9e0de39a319fff7a89e6b853ea816dcf64aa2be0afd9e106"
            )
        );
    }

    proptest! {
        #[test]
        fn statement_with_any_bit_flipped_is_refused(at in 0_usize..64, bit in 0_u32..7, in_body: bool) {
            let mut signed = Signed::sign(&grant(), &root()).expect("a short grant");
            if in_body {
                let mut bytes = signed.body.into_bytes();
                let at = at * bytes.len() / 64;
                bytes[at] ^= 1 << bit;
                signed.body = String::from_utf8(bytes).expect("ASCII stays ASCII below bit 7");
            } else {
                signed.signature[at] ^= 1 << bit;
            }
            prop_assert_eq!(signed.verify(&root().public()), Err(TrustError::BadSignature));
        }

        #[test]
        fn arbitrary_signed_body_never_panics(body: String) {
            prop_assert!(signed(body).verify(&root().public()).is_err());
        }
    }
}
