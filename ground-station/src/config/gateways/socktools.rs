//! `[gateways.socktools]`: peers of socktools.
//!
//! ```toml
//! [gateways.socktools]
//! listen = "0.0.0.0:7423"
//! good_peers = ["10.0.0.0/24", "192.168.1.7"]   # peers that may connect; without it, only this machine
//! dial = ["10.0.0.9:7423"]                      # peers that the station connects to, again and again
//! idle = "10s"                                  # silence after which a peer is disconnected
//! keep_alive = "5s"                             # send an empty message after this time without another
//! raw_action = "show_text"                      # the action that gets a message which is not a request
//! raw_argument = "text"                         # the name of its argument
//! raw_encoding = "text"                         # as text, or as base64
//! ```
//!
//! A peer that the station dials need not be in `good_peers`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use swarm_shared::config::{KeyError, Keys, value};
use swarm_shared::proto::foreign::platypush::ACTION_BYTES_MAX;

use super::{CommonOptions, key_error};

/// Silence after which a peer is disconnected, unless configured.
const IDLE: Duration = Duration::from_secs(10);
/// Most peers that are dialled.
const DIAL_MAX: usize = 64;

gateway_config! {
    /// The keys of `[gateways.socktools]`.
    SocktoolsConfig "socktools", common CommonOptions { idle: IDLE, ..CommonOptions::at(7423) };
    /// Networks that may connect; only this machine if empty.
    #[serde(deserialize_with = "networks")]
    good_peers: Vec<Network> = Vec::new(),
    /// Addresses that the station connects to.
    #[serde(deserialize_with = "dial")]
    dial: Vec<SocketAddr> = Vec::new(),
    /// Time without another message after which an empty one is sent.
    #[serde(deserialize_with = "keep_alive")]
    keep_alive: Option<Duration> = None,
    /// The action that gets a message which is not a request; without it such a message is refused.
    #[serde(deserialize_with = "raw_action")]
    raw_action: Option<String> = None,
    /// The name of the argument that such a message becomes.
    #[serde(deserialize_with = "action_name")]
    raw_argument: String = "data".to_owned(),
    /// The form of that argument.
    raw_encoding: RawEncoding = RawEncoding::Base64,
    /// `raw_argument` or `raw_encoding`, if one of them is configured.
    #[serde(skip)]
    raw_option: Option<&'static str> = None,
}

/// How the bytes of a message become an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawEncoding {
    /// As text; bytes that are not UTF-8 are refused.
    Text,
    /// In base64.
    Base64,
}

/// The addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u32,
}

impl Network {
    /// Parses `10.0.0.0/24`, or one address.
    ///
    /// # Errors
    /// The text and the rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither an address (192.168.1.7) nor a network (10.0.0.0/24)");
        let (ip, bits) = match text.split_once('/') {
            None => (text, None),
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().map_err(|_bad| bad())?)),
        };
        let ip: IpAddr = ip.parse().map_err(|_bad| bad())?;
        let bits_max = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(bits_max);
        if bits > bits_max {
            return Err(bad());
        }
        Ok(Self { ip, bits })
    }

    /// Whether an address is in the network. An IPv4 address may come in its IPv6 form.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let difference = u32::from(own) ^ u32::from(ip);
                difference.leading_zeros() >= self.bits.min(32)
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let difference = u128::from(own) ^ u128::from(ip);
                difference.leading_zeros() >= self.bits
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl SocktoolsConfig {
    /// Whether a peer that connects may stay. It is asked before anything is read from it.
    pub fn is_allowed_peer(&self, peer: IpAddr) -> bool {
        if self.good_peers.is_empty() {
            return peer.to_canonical().is_loopback();
        }
        self.good_peers.iter().any(|network| network.contains(peer))
    }

    pub(super) fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        let is_set = |key: &&str| keys.has(&["gateways", Self::NAME, key]);
        self.raw_option = ["raw_argument", "raw_encoding"].into_iter().find(is_set);
        if self.raw_action.is_some() && self.common.token.is_some() {
            let message = "a message that is not a request has no token: remove `raw_action` or `token`";
            return Err(key_error(Self::NAME, &["raw_action"], message));
        }
        match self.raw_option.filter(|_| self.raw_action.is_none()) {
            Some(key) => {
                let message = "has no effect without `raw_action`: name the action, or remove this key";
                Err(key_error(Self::NAME, &[key], message))
            }
            None => Ok(()),
        }
    }
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Network>, D::Error> {
    value::texts(from, Network::parse)
}

fn dial<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    let addresses = value::addresses(from)?;
    if addresses.len() > DIAL_MAX {
        let message = format!("{} addresses are more than {DIAL_MAX}", addresses.len());
        return Err(serde::de::Error::custom(message));
    }
    Ok(addresses)
}

fn keep_alive<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    value::duration(from).map(Some)
}

fn raw_action<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    action_name(from).map(Some)
}

fn action_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    value::text(from, |text| {
        if (1..=ACTION_BYTES_MAX).contains(&text.len()) {
            return Ok(text.to_owned());
        }
        Err(format!("{text:?} is not a name of 1 to {ACTION_BYTES_MAX} bytes"))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<SocktoolsConfig, String> {
        let mut config = Config::for_host("pi");
        let text = format!("[gateways.socktools]\n{text}");
        let read = config.read_file(Path::new("c"), &text);
        read.map_err(|error| error.to_string())?;
        config.gateways.socktools.ok_or_else(|| "closed".to_owned())
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            good_peers = ["10.0.0.0/24"]
            dial = ["10.0.0.9:7423", "[fe80::1]:7423"]
            keep_alive = "5s"
            raw_action = "show_text"
            raw_argument = "text"
            raw_encoding = "text"
        "#;
        let gateway = read(text).expect("reads");
        assert_eq!(gateway.dial.len(), 2);
        assert_eq!(gateway.keep_alive, Some(Duration::from_secs(5)));
        assert_eq!(gateway.common.idle, IDLE);
        assert_eq!(gateway.raw_action.as_deref(), Some("show_text"));
        assert_eq!(gateway.raw_argument, "text");
        assert_eq!(gateway.raw_encoding, RawEncoding::Text);
        assert_eq!(gateway.raw_option, Some("raw_argument"));
    }

    #[test]
    fn invalid_values_are_refused_with_the_rule() {
        let both = "raw_action = \"x\"\ntoken = \"0123456789abcdef\"";
        let both_turned = "token = \"0123456789abcdef\"\nraw_action = \"x\"";
        for (text, says) in [
            ("good_peers = [\"10.0.0.0/33\"]", "is neither an address"),
            ("good_peers = [\"::/129\"]", "is neither an address"),
            ("good_peers = [\"everybody\"]", "is neither an address"),
            ("dial = [\"10.0.0.9\"]", "is not ADDR:PORT"),
            ("keep_alive = \"0s\"", "is zero"),
            ("allow = [\"led\", \"\"]", "allow: \"\" names no action"),
            ("raw_action = \"\"", "raw_action: \"\" is not a name of 1 to 128"),
            ("raw_encoding = \"hex\"", "expected `text` or `base64`"),
            (both, "remove `raw_action` or `token`"),
            (
                "raw_encoding = \"base64\"",
                "raw_encoding: has no effect without `raw_action`",
            ),
            (
                "raw_argument = \"text\"",
                "raw_argument: has no effect without `raw_action`",
            ),
            (both_turned, "remove `raw_action` or `token`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn network_contains_its_addresses() {
        for (network, inside, outside) in [
            ("10.0.0.0/24", "10.0.0.255", "10.0.1.0"),
            ("10.0.0.0/24", "::ffff:10.0.0.7", "::10.0.0.7"),
            ("192.168.1.7", "192.168.1.7", "192.168.1.8"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("fe80::1", "fe80::1", "fe80::2"),
        ] {
            let network = Network::parse(network).expect(network);
            assert!(
                network.contains(inside.parse().expect("an address")),
                "{network:?} {inside}"
            );
            assert!(
                !network.contains(outside.parse().expect("an address")),
                "{network:?} {outside}"
            );
        }
        let all = Network::parse("0.0.0.0/0").expect("all of IPv4");
        assert!(all.contains("1.2.3.4".parse().expect("an address")));
        assert!(!all.contains("::1".parse().expect("an address")));
    }

    #[test]
    fn without_good_peers_only_loopback_is_allowed() {
        let gateway = read("").expect("reads");
        assert!(gateway.is_allowed_peer("127.0.0.1".parse().expect("an address")));
        assert!(gateway.is_allowed_peer("::ffff:127.0.0.1".parse().expect("an address")));
        assert!(!gateway.is_allowed_peer("10.0.0.7".parse().expect("an address")));
        let gateway = read("good_peers = [\"10.0.0.7\"]").expect("reads");
        assert!(gateway.is_allowed_peer("10.0.0.7".parse().expect("an address")));
        assert!(!gateway.is_allowed_peer("127.0.0.1".parse().expect("an address")));
    }
}
