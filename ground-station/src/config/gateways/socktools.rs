//! `[gateways.socktools]`: peers of socktools.
//!
//! ```toml
//! [gateways.socktools]
//! listen = "0.0.0.0:7423"
//! good_peers = ["10.0.0.0/24", "192.168.1.7"]   # who may connect; without it, only this machine
//! dial = ["10.0.0.9:7423"]                      # peers to connect to, and to connect to again
//! idle = "10s"                                  # silence after which a peer is dropped
//! keep_alive = "5s"                             # send an empty message whenever nothing else was sent for so long
//! raw_action = "show_text"                      # what a message that is no request is given to
//! raw_argument = "text"                         # under this name
//! raw_encoding = "text"                         # as text, or as base64
//! ```
//!
//! Who is dialled is welcome: somebody has named it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use swarm_shared::proto::foreign::platypush::ACTION_BYTES_MAX;

use super::{CommonOptions, GatewayConfig, RawValue, ValueKind, parse_address, parse_duration};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocktoolsConfig {
    /// What every gateway has.
    pub common: CommonOptions,
    /// Who may connect; nobody but this machine, if empty.
    pub good_peers: Vec<Network>,
    /// Whom to connect to.
    pub dial: Vec<SocketAddr>,
    /// How often an empty message is sent where nothing else is.
    pub keep_alive: Option<Duration>,
    /// What is done with messages that are no requests.
    pub raw: RawMessages,
}

/// What is done with messages that are no requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawMessages {
    /// The action that they are given to; they are refused without one.
    pub action: Option<String>,
    /// The argument that they become.
    pub argument: String,
    /// How.
    pub encoding: RawEncoding,
    /// The key that says how or as what, if one is set: in vain without an action.
    pub option_set: Option<&'static str>,
}

/// How bytes become an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawEncoding {
    /// As they are; bytes that are not UTF-8 are refused.
    Text,
    /// In base64.
    Base64,
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u32,
}

impl Network {
    /// `10.0.0.0/24`, or one address.
    ///
    /// # Errors
    /// The rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither an address (192.168.1.7) nor a network (10.0.0.0/24)");
        let (ip, bits) = match text.split_once('/') {
            None => (text, None),
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().map_err(|_bad| bad())?)),
        };
        let ip: IpAddr = ip.parse().map_err(|_bad| bad())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(bad());
        }
        Ok(Self { ip, bits })
    }

    /// Whether an address is of it. An IPv4 address may come in its IPv6 form.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let apart = u32::from(own) ^ u32::from(ip);
                apart.leading_zeros() >= self.bits.min(32)
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let apart = u128::from(own) ^ u128::from(ip);
                apart.leading_zeros() >= self.bits
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

    fn check(&self) -> Result<(), String> {
        if self.raw.action.is_some() && self.common.token.is_some() {
            return Err(
                "a message that is no request shows no token: leave out `raw_action` or `token`".to_owned(),
            );
        }
        Ok(())
    }
}

/// Its usual port.
const PORT: u16 = 7423;
/// A peer silent for so long is dropped.
const IDLE: Duration = Duration::from_secs(10);
/// Most peers that are dialled.
const DIAL_MAX: usize = 64;

impl GatewayConfig for SocktoolsConfig {
    const NAME: &'static str = "socktools";
    const KEYS: &'static [(&'static str, ValueKind)] = &[
        ("good_peers", ValueKind::List),
        ("dial", ValueKind::List),
        ("keep_alive", ValueKind::Text),
        ("raw_action", ValueKind::Text),
        ("raw_argument", ValueKind::Text),
        ("raw_encoding", ValueKind::Text),
    ];

    fn with_defaults() -> Self {
        let mut common = CommonOptions::at(PORT);
        common.limits.idle = IDLE;
        Self {
            common,
            good_peers: Vec::new(),
            dial: Vec::new(),
            keep_alive: None,
            raw: RawMessages {
                action: None,
                argument: "data".to_owned(),
                encoding: RawEncoding::Base64,
                option_set: None,
            },
        }
    }

    fn common(&mut self) -> &mut CommonOptions {
        &mut self.common
    }

    fn after_set(&mut self, _key: &str) -> Result<(), String> {
        self.check()
    }

    fn set(&mut self, key: &str, value: &RawValue<'_>) -> Result<(), String> {
        match (key, value) {
            ("good_peers", RawValue::List(list)) => {
                let parsed = list.iter().map(|text| Network::parse(text));
                self.good_peers = parsed.collect::<Result<_, _>>()?;
            }
            ("dial", RawValue::List(list)) => {
                if list.len() > DIAL_MAX {
                    return Err(format!("no more than {DIAL_MAX} peers are dialled"));
                }
                self.dial = list
                    .iter()
                    .map(|text| parse_address(text))
                    .collect::<Result<_, _>>()?;
            }
            ("keep_alive", RawValue::Text(text)) => self.keep_alive = Some(parse_duration(text)?),
            ("raw_action", RawValue::Text(text)) => {
                self.raw.action = Some(check_name(key, text)?);
                self.check()?;
            }
            ("raw_argument", RawValue::Text(text)) => {
                self.raw.option_set = Some("raw_argument");
                self.raw.argument = check_name(key, text)?;
            }
            ("raw_encoding", RawValue::Text(text)) => {
                self.raw.option_set = Some("raw_encoding");
                self.raw.encoding = match *text {
                    "text" => RawEncoding::Text,
                    "base64" => RawEncoding::Base64,
                    _ => return Err(format!("{text:?} is neither text nor base64")),
                };
            }
            _ => return Err(format!("{key} has no meaning here")),
        }
        Ok(())
    }
}

fn check_name(key: &str, text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ACTION_BYTES_MAX {
        return Err(format!("{key} has to be a name of 1 to {ACTION_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
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
        assert_eq!(gateway.common.limits.idle, IDLE);
        let raw = RawMessages {
            action: Some("show_text".to_owned()),
            argument: "text".to_owned(),
            encoding: RawEncoding::Text,
            option_set: Some("raw_encoding"),
        };
        assert_eq!(gateway.raw, raw);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let both = "raw_action = \"x\"\ntoken = \"0123456789abcdef\"";
        let both_turned = "token = \"0123456789abcdef\"\nraw_action = \"x\"";
        for (text, says) in [
            ("good_peers = [\"10.0.0.0/33\"]", "is neither an address"),
            ("good_peers = [\"::/129\"]", "is neither an address"),
            ("good_peers = [\"everybody\"]", "is neither an address"),
            ("dial = [\"10.0.0.9\"]", "is not ADDR:PORT"),
            ("keep_alive = \"0s\"", "no time at all"),
            ("allow = [\"led\", \"\"]", "\"\" in `allow` names nothing"),
            ("raw_action = \"\"", "raw_action has to be a name"),
            ("raw_encoding = \"hex\"", "neither text nor base64"),
            (both, "leave out `raw_action` or `token`"),
            (both_turned, "leave out `raw_action` or `token`"),
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
