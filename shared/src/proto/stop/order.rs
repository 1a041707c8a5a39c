//! The stop order and its encoding. Layout of version 1, at most [`STOP_BYTES_MAX`] bytes, numbers big-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | `SWST` |
//! | 1 | version, 1 |
//! | 8 | the first bytes of the fleet's fingerprint |
//! | 32 | the issuer's public key |
//! | 8 | number, rising with every order of this issuer |
//! | 1 | length of the selector, from 1 |
//! | … | selector, UTF-8 |
//! | 2 | length of the grant's text |
//! | … | the issuer's grant, its JSON text as the fleet root signed it |
//! | 64 | the fleet root's signature of the grant |
//! | 64 | Ed25519 by the issuer over a label and all bytes before |

use crate::proto::id::{PeerId, PublicKey};
use crate::proto::selector::{BadSelector, Selector};
use crate::proto::trust::{
    FINGERPRINT_PREFIX_BYTES, Fingerprint, Grant, SIGNATURE_BYTES, Signed, SigningKey, TrustError,
};

/// Longest stop order, in bytes: it has to fit one unfragmented datagram on any network.
pub const STOP_BYTES_MAX: usize = 1_200;
/// Longest selector of a stop, in bytes; [`split_selector`] splits a longer one.
pub const STOP_SELECTOR_BYTES_MAX: usize = 255;
/// Reported numbers above this are ignored. The wall clock in milliseconds stays far below it; a station that adopted
/// the largest number of all could not count on, so that no later stop would take effect.
pub const STOP_NUMBER_REPORTED_MAX: u64 = 1 << 53;
/// A selector that matches no node. Over a link, an order with it tells the number of its issuer's last order, so
/// that a node that was absent ignores a replay of an older order.
pub const NO_NODES: &str = "!all";

const MAGIC: &[u8; 4] = b"SWST";
const VERSION: u8 = 1;
const LABEL: &[u8] = b"swarm stop v1\0";
/// Targets of one order that names each by the first 8 bytes of its id: `id:`, 16 digits and a comma each.
pub const IDS_PER_SELECTOR: usize = STOP_SELECTOR_BYTES_MAX / 20;

/// An order to stop all nodes that the selector matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// The first bytes of the fleet's fingerprint.
    pub fleet: [u8; FINGERPRINT_PREFIX_BYTES],
    /// Public key of the issuing station.
    pub issuer: PublicKey,
    /// Rises with every order of this issuer.
    pub number: u64,
    /// The targets.
    pub selector: Selector,
}

/// An order cannot be encoded as a datagram.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopEncodeError {
    /// The selector is too long.
    #[error(
        "a selector of {0} bytes does not fit an emergency stop, which has room for {STOP_SELECTOR_BYTES_MAX}: use a \
         glob or a tag"
    )]
    SelectorTooLong(usize),
    /// The grant is too long.
    #[error("with its grant the stop has {0} bytes, and a datagram has room for {STOP_BYTES_MAX}")]
    TooLong(usize),
}

/// The bytes are not a stop order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStop {
    /// It is longer than any order.
    #[error("{0} bytes are not a stop, which has at most {STOP_BYTES_MAX}")]
    TooLong(usize),
    /// It does not begin with the magic bytes.
    #[error("not a stop")]
    BadMagic,
    /// It is of a later version.
    #[error("stop of version {0}; this program reads version {VERSION}")]
    OtherVersion(u8),
    /// It is shorter or longer than its fields say.
    #[error("a stop of {0} bytes does not have the length that its fields say")]
    BadLength(usize),
    /// The selector is not valid.
    #[error("the selector of a stop is not valid: {0}")]
    BadSelector(#[from] BadSelector),
    /// The selector or the grant is not text.
    #[error("a stop whose text is not UTF-8")]
    NotUtf8,
}

impl StopOrder {
    /// An order issued by the peer with this key.
    pub fn new(fleet: &Fingerprint, issuer: PublicKey, number: u64, selector: Selector) -> Self {
        Self {
            fleet: fleet.prefix(),
            issuer,
            number,
            selector,
        }
    }

    /// Encodes and signs the datagram, with the issuer's grant. `key` must be the private half of
    /// [`StopOrder::issuer`]: receivers reject any other signature.
    ///
    /// # Errors
    /// [`StopEncodeError`]: the selector or the grant is too long.
    pub fn encode(&self, key: &SigningKey, grant: &Signed<Grant>) -> Result<Vec<u8>, StopEncodeError> {
        let selector = self.selector.as_str().as_bytes();
        let selector_length =
            u8::try_from(selector.len()).map_err(|_long| StopEncodeError::SelectorTooLong(selector.len()))?;
        let grant_text = grant.text().as_bytes();
        let grant_length =
            u16::try_from(grant_text.len()).map_err(|_long| StopEncodeError::TooLong(grant_text.len()))?;
        let mut bytes = Vec::with_capacity(STOP_BYTES_MAX);
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.fleet);
        bytes.extend_from_slice(&self.issuer.0);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.push(selector_length);
        bytes.extend_from_slice(selector);
        bytes.extend_from_slice(&grant_length.to_be_bytes());
        bytes.extend_from_slice(grant_text);
        bytes.extend_from_slice(grant.signature());
        let signature = key.sign(&with_label(&bytes));
        bytes.extend_from_slice(&signature);
        if bytes.len() > STOP_BYTES_MAX {
            return Err(StopEncodeError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }
}

/// Whether the bytes begin as a stop order: the port is shared with pings.
pub fn is_stop_datagram(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The number of a new order: higher than `last`, the number of this station's previous order, and at least its wall
/// clock in milliseconds, so that it also rises where `last` was lost.
pub fn next_number(last: u64, now_unix_ms: u64) -> u64 {
    now_unix_ms.max(last.saturating_add(1))
}

/// The selectors of the orders that reach all nodes that `selector` matches: itself if it fits an order, otherwise
/// lists of the targets' ids, [`IDS_PER_SELECTOR`] in each.
///
/// # Errors
/// [`BadSelector`], which does not happen: ids are valid selectors.
pub fn split_selector(selector: &Selector, targets: &[PeerId]) -> Result<Vec<Selector>, BadSelector> {
    if selector.as_str().len() <= STOP_SELECTOR_BYTES_MAX {
        return Ok(vec![selector.clone()]);
    }
    let named = |ids: &[PeerId]| {
        let terms: Vec<String> = ids
            .iter()
            .map(|id| format!("id:{}", id.short().replace('-', "")))
            .collect();
        Selector::parse(&terms.join(","))
    };
    targets.chunks(IDS_PER_SELECTOR).map(named).collect()
}

/// A received stop order, decoded but not verified.
#[derive(Clone, Copy, Debug)]
pub struct StopDatagram<'a> {
    /// The first bytes of the fleet's fingerprint.
    pub fleet: [u8; FINGERPRINT_PREFIX_BYTES],
    /// Key that claims to have issued it.
    pub issuer: PublicKey,
    /// Number of the order.
    pub number: u64,
    /// The targets.
    pub selector: &'a str,
    grant_text: &'a str,
    grant_signature: &'a [u8; SIGNATURE_BYTES],
    signed: &'a [u8],
    signature: &'a [u8; SIGNATURE_BYTES],
}

impl<'a> StopDatagram<'a> {
    /// Decodes the fields. Checks no signature and allocates nothing.
    ///
    /// # Errors
    /// [`BadStop`]: the first fault found.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadStop> {
        if bytes.len() > STOP_BYTES_MAX {
            return Err(BadStop::TooLong(bytes.len()));
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(BadStop::BadMagic)?;
        let short = || BadStop::BadLength(bytes.len());
        let (version, rest) = rest.split_first().ok_or_else(short)?;
        if *version != VERSION {
            return Err(BadStop::OtherVersion(*version));
        }
        let (fleet, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (issuer, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (number, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (selector_length, rest) = rest.split_first().ok_or_else(short)?;
        let (selector, rest) = rest
            .split_at_checked(usize::from(*selector_length))
            .ok_or_else(short)?;
        let (grant_length, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (grant, rest) = rest
            .split_at_checked(usize::from(u16::from_be_bytes(*grant_length)))
            .ok_or_else(short)?;
        let (grant_signature, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let signature: &[u8; SIGNATURE_BYTES] = rest.try_into().map_err(|_length| short())?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_bytes| BadStop::NotUtf8);
        Ok(Self {
            fleet: *fleet,
            issuer: PublicKey(*issuer),
            number: u64::from_be_bytes(*number),
            selector: text(selector)?,
            grant_text: text(grant)?,
            grant_signature,
            signed: &bytes[..bytes.len() - SIGNATURE_BYTES],
            signature,
        })
    }

    /// Parses the selector.
    ///
    /// # Errors
    /// [`BadStop::BadSelector`].
    pub fn selector(&self) -> Result<Selector, BadStop> {
        Ok(Selector::parse(self.selector)?)
    }

    /// The issuer's grant as received, not verified.
    pub fn grant(&self) -> Signed<Grant> {
        Signed::from_parts(self.grant_text.to_owned(), *self.grant_signature)
    }

    /// Verifies the issuer's signature over the whole order.
    ///
    /// # Errors
    /// [`TrustError::BadSignature`].
    pub fn check_signature(&self) -> Result<(), TrustError> {
        self.issuer.verify(&with_label(self.signed), self.signature)
    }
}

fn with_label(signed: &[u8]) -> Vec<u8> {
    [LABEL, signed].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::hex;
    use crate::proto::trust::{FleetRoot, Role};

    fn key() -> SigningKey {
        SigningKey::from_seed([2; 32])
    }

    fn root() -> FleetRoot {
        FleetRoot::create(SigningKey::from_seed([1; 32])).expect("a fleet")
    }

    fn order(selector: &str) -> StopOrder {
        StopOrder::new(
            &root().fingerprint(),
            key().public(),
            1_700_000_000_000,
            Selector::parse(selector).expect("a selector"),
        )
    }

    fn datagram(selector: &str) -> Vec<u8> {
        let grant = root().grant(key().public(), Role::Operator).expect("a grant");
        order(selector).encode(&key(), &grant).expect("short")
    }

    /// Bytes of a released version never change: if this fails, undo your change, not the test.
    #[test]
    fn golden_stop() {
        let bytes = datagram("drone-*");
        assert_eq!(bytes.len(), 387);
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        assert_eq!(
            (hex::encode(&bytes[..61]), hex::encode(digest.as_ref())),
            (GOLDEN_START.to_owned(), GOLDEN_SHA256.to_owned())
        );
        let read = StopDatagram::parse(&bytes).expect("ours");
        assert_eq!((read.number, read.selector), (1_700_000_000_000, "drone-*"));
        assert_eq!(read.issuer, key().public());
        assert_eq!(read.fleet, root().fingerprint().prefix());
        assert_eq!(
            read.grant().verify(&root().public()).map(|grant| grant.role),
            Ok(Role::Operator)
        );
        assert_eq!(read.check_signature(), Ok(()));
    }

    const GOLDEN_START: &str = concat!(
        "535753540134750f98bd59fcfc8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394",
        "0000018bcfe568000764726f6e652d2a"
    );
    const GOLDEN_SHA256: &str = "fcf95930e84c7ed96f0cd241a555964a6b322761cd72eea06ce6e6dc2d64c7b0";

    #[test]
    fn each_stop_datagram_fault_has_its_error() {
        let good = datagram("all");
        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            StopDatagram::parse(&bytes).map(|_| ())
        };
        assert_eq!(change(0, b'X'), Err(BadStop::BadMagic));
        assert_eq!(change(4, 2), Err(BadStop::OtherVersion(2)));
        assert_eq!(change(53, 200), Err(BadStop::BadLength(good.len())));
        assert_eq!(change(54, 0xff), Err(BadStop::NotUtf8));
        for cut in 5..good.len() {
            assert_eq!(
                StopDatagram::parse(&good[..cut]).map(|_| ()),
                Err(BadStop::BadLength(cut))
            );
        }
        let long = [&good[..], &[0]].concat();
        assert_eq!(
            StopDatagram::parse(&long).map(|_| ()),
            Err(BadStop::BadLength(long.len()))
        );
        assert_eq!(
            StopDatagram::parse(&[0; STOP_BYTES_MAX + 1]).map(|_| ()),
            Err(BadStop::TooLong(STOP_BYTES_MAX + 1))
        );
        let mut odd = order("all");
        odd.selector = Selector::parse(&"a".repeat(STOP_SELECTOR_BYTES_MAX + 1)).expect("a long name");
        let grant = root().grant(key().public(), Role::Operator).expect("a grant");
        assert_eq!(
            odd.encode(&key(), &grant),
            Err(StopEncodeError::SelectorTooLong(256))
        );
    }

    #[test]
    fn any_bit_flip_invalidates_a_stop_datagram() {
        let good = datagram("all");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let believed = StopDatagram::parse(&bytes).is_ok_and(|read| read.check_signature().is_ok());
                assert!(!believed, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn longest_stop_fits_a_datagram() {
        let longest = "a".repeat(STOP_SELECTOR_BYTES_MAX);
        let bytes = datagram(&longest);
        assert!(bytes.len() < STOP_BYTES_MAX);
        assert_eq!(
            StopDatagram::parse(&bytes).map(|read| read.selector.len()),
            Ok(255)
        );
    }

    #[test]
    fn stop_numbers_rise_despite_restarts_and_clock_setbacks() {
        assert_eq!(next_number(0, 1_000), 1_000);
        assert_eq!(next_number(1_000, 1_000), 1_001);
        assert_eq!(next_number(5_000, 10), 5_001);
    }

    #[test]
    fn long_selector_is_split_into_selectors_by_id() {
        let ids: Vec<PeerId> = (0..30).map(|n| PublicKey([n; 32]).id()).collect();
        let short = Selector::parse("drone-*").expect("a selector");
        assert_eq!(split_selector(&short, &ids), Ok(vec![short]));
        let long = Selector::parse(&vec!["drone-07"; 40].join(",")).expect("a selector");
        let orders = split_selector(&long, &ids).expect("ids");
        assert_eq!(orders.len(), 3);
        let name = crate::proto::id::NodeName::parse("x").expect("a name");
        let tags = std::collections::BTreeMap::new();
        for id in &ids {
            let target = crate::proto::selector::NodeAttributes {
                name: &name,
                id,
                tags: &tags,
            };
            assert_eq!(orders.iter().filter(|order| order.matches(&target)).count(), 1);
        }
        assert!(
            orders
                .iter()
                .all(|order| order.as_str().len() <= STOP_SELECTOR_BYTES_MAX)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_stop_datagram_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(StopDatagram::parse(&bytes).is_err());
            let marked = [b"SWST\x01".as_slice(), &bytes].concat();
            if let Ok(read) = StopDatagram::parse(&marked) {
                prop_assert!(read.check_signature().is_err());
            }
        }

        #[test]
        fn stop_order_round_trips(fleet: [u8; 8], seed: [u8; 32], number: u64, selector in "[a-z]{1,255}") {
            let key = SigningKey::from_seed(seed);
            let grant = root().grant(key.public(), Role::Admin).expect("a grant");
            let order = StopOrder {
                fleet,
                issuer: key.public(),
                number,
                selector: Selector::parse(&selector).expect("a name"),
            };
            let bytes = order.encode(&key, &grant).expect("fits");
            let read = StopDatagram::parse(&bytes).expect("ours");
            let back = StopOrder {
                fleet: read.fleet,
                issuer: read.issuer,
                number: read.number,
                selector: read.selector().expect("a name"),
            };
            prop_assert_eq!(back, order);
            prop_assert!(read.check_signature().is_ok() && read.grant() == grant);
        }
    }
}
