//! Ed25519 keys (RFC 8032) and the two DER encodings that TLS needs (RFC 8410).

use std::fmt;
use std::sync::Arc;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::TrustError;
use crate::proto::id::PublicKey;

/// Length of the seed of a private key, in bytes.
pub const KEY_SEED_BYTES: usize = 32;
/// Length of a signature, in bytes.
pub const SIGNATURE_BYTES: usize = 64;
/// Length of an Ed25519 `SubjectPublicKeyInfo`, in bytes.
pub const SPKI_BYTES: usize = SPKI_PREFIX.len() + 32;

/// `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes follow) }`
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// `SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING (32 bytes follow) } }`
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A private Ed25519 key. A clone is the same key; `Debug` shows the public half only.
#[derive(Clone)]
pub struct SigningKey {
    seed: [u8; KEY_SEED_BYTES],
    pair: Arc<Ed25519KeyPair>,
}

impl SigningKey {
    /// Derives the key from this seed; the same seed always gives the same key.
    ///
    /// # Panics
    /// Never: ring rejects a seed by its length alone, which the type fixes.
    pub fn from_seed(seed: [u8; KEY_SEED_BYTES]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("an Ed25519 seed is 32 bytes");
        Self {
            seed,
            pair: Arc::new(pair),
        }
    }

    /// The seed, for storing. It is the private key.
    pub fn seed(&self) -> &[u8; KEY_SEED_BYTES] {
        &self.seed
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(key)
    }

    /// Signs `message`. The caller puts a label in front, so that a signature cannot be used as one of another kind.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// The private key as PKCS#8 DER, the form that TLS libraries load.
    pub fn pkcs8_der(&self) -> Vec<u8> {
        [PKCS8_PREFIX.as_slice(), &self.seed].concat()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.public())
    }
}

impl PublicKey {
    /// Checks a signature over exactly `message`.
    ///
    /// # Errors
    /// [`TrustError::BadSignature`] for a signature of any other key, message or length.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), TrustError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_unspecified| TrustError::BadSignature)
    }

    /// The key as `SubjectPublicKeyInfo` DER: a raw public key in TLS (RFC 7250).
    pub fn to_spki(&self) -> [u8; SPKI_BYTES] {
        let mut der = [0; SPKI_BYTES];
        der[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        der[SPKI_PREFIX.len()..].copy_from_slice(&self.0);
        der
    }

    /// Parses a `SubjectPublicKeyInfo`. DER has one form only, so anything but the 44 known bytes is refused.
    ///
    /// # Errors
    /// [`TrustError::NotEd25519`].
    pub fn from_spki(der: &[u8]) -> Result<Self, TrustError> {
        der.strip_prefix(SPKI_PREFIX.as_slice())
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or(TrustError::NotEd25519)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::hex;

    #[test]
    fn signing_matches_first_vector_of_rfc_8032() {
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = SigningKey::from_seed(seed.expect("32 bytes"));
        assert_eq!(
            hex::encode(&key.public().0),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert!(hex::encode(&key.sign(b"")).starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974"));
        key.public()
            .verify(b"", &key.sign(b""))
            .expect("our own signature");
    }

    #[test]
    fn key_encodings_match_rfc_8410() {
        // The private and public key of RFC 8410, sections 10.3 and 10.1.
        let seed = hex::decode("d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842");
        let key = SigningKey::from_seed(seed.expect("32 bytes"));
        let pkcs8 = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
        let spki = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
        assert_eq!(data_encoding::BASE64.encode(&key.pkcs8_der()), pkcs8);
        assert_eq!(data_encoding::BASE64.encode(&key.public().to_spki()), spki);
        assert_eq!(PublicKey::from_spki(&key.public().to_spki()), Ok(key.public()));
    }

    #[test]
    fn debug_output_hides_the_key_seed() {
        let key = SigningKey::from_seed([0xab; 32]);
        let shown = format!("{key:?} {key:#?}");
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }

    proptest! {
        #[test]
        fn only_rfc_8410_encodings_parse_as_keys(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(PublicKey::from_spki(&bytes), Err(TrustError::NotEd25519));
        }

        #[test]
        fn signature_is_bound_to_message_and_key(
            seed: [u8; 32], message: Vec<u8>, flip in 0_usize..SIGNATURE_BYTES, bit in 0_u32..8
        ) {
            let key = SigningKey::from_seed(seed);
            let mut signature = key.sign(&message);
            prop_assert_eq!(key.public().verify(&message, &signature), Ok(()));
            prop_assert!(key.public().verify(&[&message[..], b"x"].concat(), &signature).is_err());
            prop_assert!(key.public().verify(&message, &signature[1..]).is_err());
            signature[flip] ^= 1 << bit;
            prop_assert!(key.public().verify(&message, &signature).is_err());
        }
    }
}
