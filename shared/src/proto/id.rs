//! Keys, the ids derived from them, and peer names, which are checked once, when they are parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::hex;

/// An Ed25519 public key (RFC 8032): a peer's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "hex")] pub [u8; 32]);

impl PublicKey {
    /// The id of the peer that holds this key.
    pub fn id(&self) -> PeerId {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut id = [0; 32];
        id.copy_from_slice(digest.as_ref());
        PeerId(id)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", hex::encode(&self.0))
    }
}

/// SHA-256 of a peer's public key. Names and addresses may change or be shared; the id does not change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(#[serde(with = "hex")] pub [u8; 32]);

impl PeerId {
    /// The first 8 bytes in groups of four hexadecimal digits, for display: `a1b2-c3d4-e5f6-0718`.
    pub fn short(&self) -> String {
        let digits = hex::encode(&self.0[..8]);
        [&digits[..4], &digits[4..8], &digits[8..12], &digits[12..]].join("-")
    }

    /// Whether the id starts with these hexadecimal digits; dashes and case are ignored.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        let wanted: String = prefix
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        !wanted.is_empty() && hex::encode(&self.0).starts_with(&wanted)
    }
}

/// The whole id as 64 hexadecimal digits.
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

/// One run of one process: a random number drawn at its start. A peer that reconnects with another instance has
/// restarted and has lost the old session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub u64);

/// Longest name in bytes: what one DNS label holds (RFC 1035, section 2.3.4), as mDNS and host names need.
pub const NAME_BYTES_MAX: usize = 63;

/// A peer's name: 1 to 63 ASCII letters, digits and dashes, not starting with a dash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// The text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a name: use 1 to {NAME_BYTES_MAX} letters, digits and dashes, not starting with a dash"
)]
pub struct BadName {
    text: String,
}

impl NodeName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`BadName`], which quotes the text and states the rule.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let good = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName {
                text: text.chars().take(80).collect(),
            })
        }
    }

    /// The nearest valid name to a host name: its first label, with each invalid character replaced by a dash.
    pub fn from_host(host: &str) -> Self {
        let label = host.split('.').next().unwrap_or_default();
        let mut text: String = label
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(NAME_BYTES_MAX)
            .collect();
        text = text.trim_matches('-').to_owned();
        Self(if text.is_empty() { "node".to_owned() } else { text })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for NodeName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::parse(text)
    }
}

impl TryFrom<String> for NodeName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

/// What kind of program a peer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// `swarm-node`, on a device.
    Node,
    /// `ground-station`, on the operator's machine.
    Station,
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Node => "node",
            Self::Station => "station",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_follow_the_dns_label_rule() {
        for good in ["drone-07", "7", "A", &"x".repeat(63)] {
            assert_eq!(NodeName::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "-x", "a b", "a_b", "a.b", "é", &"x".repeat(64)] {
            let error = NodeName::parse(bad).expect_err(bad).to_string();
            assert!(error.contains("letters, digits and dashes"), "{error}");
        }
    }

    #[test]
    fn any_host_name_maps_to_a_node_name() {
        for (host, name) in [
            ("pi.local", "pi"),
            ("my_pi", "my-pi"),
            ("", "node"),
            ("--", "node"),
            ("é", "node"),
        ] {
            assert_eq!(NodeName::from_host(host).as_str(), name);
            NodeName::parse(NodeName::from_host(host).as_str()).expect("a name");
        }
    }

    #[test]
    fn peer_id_has_short_form_and_matches_by_prefix() {
        let id = PublicKey([7; 32]).id();
        assert_eq!(id.short().len(), 19);
        assert!(id.has_prefix(&id.short()));
        assert!(id.has_prefix(&id.to_string()[..3].to_uppercase()));
        assert!(!id.has_prefix(""));
        assert!(!id.has_prefix("zz"));
    }
}
