//! `[gateways.NAME]`: the gateways for other programs. A gateway is open if its table is there, or one of the
//! environment variables of its keys (`GROUND_STATION_GATEWAYS_NAME_KEY`).
//!
//! ```toml
//! [gateways.knut]
//! listen = "127.0.0.1:8080"     # loopback unless configured
//! allow = ["led", "show_*"]     # actions that may be called; without it, only those that read
//! role = "operator"             # observer, operator or admin: the most that clients may do
//! target = "all"                # the nodes, where the protocol names none
//! token = "…"                   # checked where the protocol has room for one; at least 16 bytes
//! connections = 512             # at once, in all
//! connections_per_address = 64  # at once, from one address
//! message_bytes = 65536         # longest message
//! ttl = "30s"                   # time to live of commands
//! timeout = "10s"               # how long outcomes are waited for
//! rate = 50                     # messages a second from one address
//! idle = "60s"                  # silence after which a connection is closed
//! ```
//!
//! The keys of one gateway alone are in its module.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use swarm_shared::config::{KeyError, Keys, value};
use swarm_shared::proto::selector::{Glob, Selector};
use swarm_shared::proto::trust::Role;

/// Declares the configuration of a gateway: the keys that every gateway has, with the defaults of
/// [`CommonOptions::at`] a port and perhaps another `idle`, and its own keys with their defaults.
macro_rules! gateway_config {
    ($(#[$doc:meta])* $name:ident at $port:expr $(, idle $idle:expr)?; $($(#[$attribute:meta])* $key:ident: $type:ty = $default:expr,)*) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(from = "KeyTable")]
        pub struct $name {
            /// The keys that every gateway has.
            pub common: $crate::config::gateways::CommonOptions,
            $($(#[$attribute])* pub $key: $type,)*
        }

        #[derive(serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct KeyTable {
            #[serde(deserialize_with = "swarm_shared::config::value::address")]
            listen: std::net::SocketAddr,
            #[serde(deserialize_with = "swarm_shared::config::value::globs")]
            allow: Vec<swarm_shared::proto::selector::Glob>,
            #[serde(deserialize_with = "swarm_shared::config::value::gateway_role")]
            role: swarm_shared::proto::trust::Role,
            #[serde(deserialize_with = "super::selector")]
            target: swarm_shared::proto::selector::Selector,
            token: Option<super::Secret>,
            #[serde(deserialize_with = "swarm_shared::config::value::duration")]
            ttl: std::time::Duration,
            #[serde(deserialize_with = "swarm_shared::config::value::duration")]
            timeout: std::time::Duration,
            #[serde(deserialize_with = "swarm_shared::config::value::ranged::<_, _, 1, 65_536>")]
            connections: usize,
            #[serde(deserialize_with = "swarm_shared::config::value::ranged::<_, _, 1, 65_536>")]
            connections_per_address: usize,
            #[serde(deserialize_with = "swarm_shared::config::value::ranged::<_, _, 256, 1_048_576>")]
            message_bytes: usize,
            #[serde(deserialize_with = "swarm_shared::config::value::ranged::<_, _, 1, 1_000_000>")]
            rate: u32,
            #[serde(deserialize_with = "swarm_shared::config::value::duration")]
            idle: std::time::Duration,
            $($(#[$attribute])* $key: $type,)*
        }

        impl Default for KeyTable {
            fn default() -> Self {
                let common = $crate::config::gateways::CommonOptions::at($port);
                let own_idle: Option<std::time::Duration> = None$(.or(Some($idle)))?;
                Self {
                    listen: common.listen,
                    allow: common.allow,
                    role: common.role,
                    target: common.target,
                    token: common.token,
                    ttl: common.ttl,
                    timeout: common.timeout,
                    connections: common.limits.connections,
                    connections_per_address: common.limits.per_address,
                    message_bytes: common.limits.message_bytes,
                    rate: common.limits.rate,
                    idle: own_idle.unwrap_or(common.limits.idle),
                    $($key: $default,)*
                }
            }
        }

        impl From<KeyTable> for $name {
            fn from(table: KeyTable) -> Self {
                let mut common = $crate::config::gateways::CommonOptions::at($port);
                common.listen = table.listen;
                common.allow = table.allow;
                common.role = table.role;
                common.target = table.target;
                common.token = table.token;
                common.ttl = table.ttl;
                common.timeout = table.timeout;
                common.limits.connections = table.connections;
                common.limits.per_address = table.connections_per_address;
                common.limits.message_bytes = table.message_bytes;
                common.limits.rate = table.rate;
                common.limits.idle = table.idle;
                Self { common, $($key: table.$key,)* }
            }
        }
    };
}

mod clever_show;
mod knut;
pub mod platypush_http;
mod platypush_tcp;
mod socktools;
#[cfg(test)]
mod tests;

pub use clever_show::CleverShowConfig;
pub use knut::KnutConfig;
pub use platypush_http::PlatypushHttpConfig;
pub use platypush_tcp::PlatypushTcpConfig;
pub use socktools::{Network, RawEncoding, SocktoolsConfig};

/// The gateways that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaysConfig {
    /// For clever-show's drone clients.
    pub clever_show: Option<CleverShowConfig>,
    /// Platypush's messages over TCP.
    pub platypush_tcp: Option<PlatypushTcpConfig>,
    /// Platypush's messages, hooks and events over HTTP.
    pub platypush_http: Option<PlatypushHttpConfig>,
    /// For peers of socktools.
    pub socktools: Option<SocktoolsConfig>,
    /// For Knut's clients.
    pub knut: Option<KnutConfig>,
}

/// The keys that every gateway has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonOptions {
    /// Address that connections are accepted on.
    pub listen: SocketAddr,
    /// Actions that may be called, beside those that only read.
    pub allow: Vec<Glob>,
    /// The most that a client may do.
    pub role: Role,
    /// The nodes, where the protocol names none.
    pub target: Selector,
    /// What a client has to show, where the protocol has room for it.
    pub token: Option<Secret>,
    /// Time to live of commands.
    pub ttl: Duration,
    /// How long outcomes are waited for.
    pub timeout: Duration,
    /// Limits on connections and messages.
    pub limits: ConnectionLimits,
}

/// Limits on a gateway's connections and messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections at once.
    pub connections: usize,
    /// Most connections at once from one address.
    pub per_address: usize,
    /// Longest message, in bytes.
    pub message_bytes: usize,
    /// Messages a second from one address, on average.
    pub rate: u32,
    /// Silence after which a connection is closed.
    pub idle: Duration,
    /// Connections that the kernel holds until they are accepted.
    pub backlog: u32,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: 64,
            message_bytes: 64 * 1024,
            rate: 50,
            idle: Duration::from_secs(60),
            backlog: 1_024,
        }
    }
}

impl CommonOptions {
    /// The defaults, at a loopback port: clients may only read.
    pub fn at(port: u16) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            allow: Vec::new(),
            role: Role::Operator,
            target: Selector::all(),
            token: None,
            ttl: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            limits: ConnectionLimits::default(),
        }
    }
}

impl GatewaysConfig {
    /// The name and the common keys of each gateway that is open.
    pub fn enabled(&self) -> impl Iterator<Item = (&'static str, &CommonOptions)> {
        let all = [
            (
                clever_show::NAME,
                self.clever_show.as_ref().map(|gateway| &gateway.common),
            ),
            (
                "platypush_tcp",
                self.platypush_tcp.as_ref().map(|gateway| &gateway.common),
            ),
            (
                "platypush_http",
                self.platypush_http.as_ref().map(|gateway| &gateway.common),
            ),
            (
                "socktools",
                self.socktools.as_ref().map(|gateway| &gateway.common),
            ),
            ("knut", self.knut.as_ref().map(|gateway| &gateway.common)),
        ];
        all.into_iter().filter_map(|(name, common)| Some((name, common?)))
    }

    /// Whether a gateway is open that programs use, beside that of drones.
    pub fn needs_low_priority_runtime(&self) -> bool {
        self.enabled().any(|(name, _)| name != clever_show::NAME)
    }

    pub(super) fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        if self.clever_show.is_some() {
            clever_show::check(keys)?;
        }
        if let Some(gateway) = &mut self.platypush_tcp {
            gateway.check(keys)?;
        }
        if let Some(gateway) = &mut self.platypush_http {
            gateway.check()?;
        }
        if let Some(gateway) = &mut self.socktools {
            gateway.check(keys)?;
        }
        Ok(())
    }
}

/// A text that is not logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Shortest token, in bytes.
const TOKEN_BYTES_MIN: usize = 16;

impl Secret {
    /// Compares in a time that depends on the length alone.
    pub fn matches(&self, shown: &str) -> bool {
        let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
        self.0.len() == shown.len() && std::hint::black_box(differ(self.0.as_bytes(), shown.as_bytes())) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        value::text(from, |text| {
            if text.len() < TOKEN_BYTES_MIN {
                return Err(format!("a token has at least {TOKEN_BYTES_MIN} bytes"));
            }
            Ok(Self(text.to_owned()))
        })
    }
}

fn selector<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
    value::text(from, Selector::parse)
}

fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    value::ranged::<_, _, 1, 65535>(from).map(Some)
}

/// An error at a key of `[gateways.GATEWAY]`.
fn key_error(gateway: &str, key: &[&str], message: impl Into<String>) -> KeyError {
    let path = ["gateways", gateway].into_iter().chain(key.iter().copied());
    KeyError {
        key: path.map(str::to_owned).collect(),
        message: message.into(),
    }
}
