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
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Role;

/// Calls a macro with the keys that every gateway has, followed by further input. Each key has a deserializer and a type;
/// its default is in [`CommonOptions::at`].
macro_rules! with_common_keys {
    ($macro:ident $($input:tt)*) => {
        $macro! {
            {
                /// Address that connections are accepted on.
                listen: std::net::SocketAddr, "swarm_shared::config::value::address";
                /// Actions that may be called, beside those that only read.
                allow: Vec<swarm_shared::proto::selector::Glob>, "swarm_shared::config::value::globs";
                /// The most that a client may do.
                role: swarm_shared::proto::trust::Role, "swarm_shared::config::value::gateway_role";
                /// The nodes, where the protocol names none.
                target: swarm_shared::proto::selector::Selector, "crate::config::gateways::selector";
                /// The token that a client has to show, where the protocol has room for it.
                token: Option<crate::config::gateways::Secret>, "serde::Deserialize::deserialize";
                /// Time to live of commands.
                ttl: std::time::Duration, "swarm_shared::config::value::duration";
                /// How long outcomes are waited for.
                timeout: std::time::Duration, "swarm_shared::config::value::duration";
                /// Most connections at once.
                connections: usize, "swarm_shared::config::value::ranged::<_, _, 1, 65_536>";
                /// Most connections at once from one address.
                connections_per_address: usize, "swarm_shared::config::value::ranged::<_, _, 1, 65_536>";
                /// Longest message, in bytes.
                message_bytes: usize, "swarm_shared::config::value::ranged::<_, _, 256, 1_048_576>";
                /// Messages a second from one address, on average.
                rate: u32, "swarm_shared::config::value::ranged::<_, _, 1, 1_000_000>";
                /// Silence after which a connection is closed.
                idle: std::time::Duration, "swarm_shared::config::value::duration";
            }
            $($input)*
        }
    };
}

macro_rules! common_options {
    ({ $($(#[$doc:meta])* $key:ident: $type:ty, $parse:literal;)* }) => {
        /// The keys that every gateway has.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct CommonOptions {
            $($(#[$doc])* pub $key: $type,)*
            /// Connections that the kernel holds until they are accepted.
            pub backlog: u32,
        }
    };
}

with_common_keys! { common_options }

/// Declares a gateway's configuration: its name, the defaults of its common keys, and its own keys with their defaults.
///
/// The derived reader works on `KeyTable`, where common keys and own keys stand side by side as in the file: a flattened
/// struct would lose the lines of errors and the names of unknown keys.
macro_rules! gateway_config {
    ($(#[$doc:meta])* $config:ident $($rest:tt)*) => {
        with_common_keys! { declare_gateway_config $(#[$doc])* $config $($rest)* }
    };
}

macro_rules! declare_gateway_config {
    (
        { $($(#[$common_doc:meta])* $common:ident: $common_type:ty, $parse:literal;)* }
        $(#[$doc:meta])* $config:ident $name:literal, common $defaults:expr;
        $($(#[$attribute:meta])* $key:ident: $type:ty = $default:expr,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(from = "KeyTable")]
        pub struct $config {
            /// The keys that every gateway has.
            pub common: crate::config::gateways::CommonOptions,
            $($(#[$attribute])* pub $key: $type,)*
        }

        #[derive(serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct KeyTable {
            $(#[serde(deserialize_with = $parse)] $common: $common_type,)*
            $($(#[$attribute])* $key: $type,)*
        }

        impl Default for KeyTable {
            fn default() -> Self {
                let common: crate::config::gateways::CommonOptions = $defaults;
                Self { $($common: common.$common,)* $($key: $default,)* }
            }
        }

        impl From<KeyTable> for $config {
            fn from(table: KeyTable) -> Self {
                let common = crate::config::gateways::CommonOptions {
                    $($common: table.$common,)*
                    ..$defaults
                };
                Self { common, $($key: table.$key,)* }
            }
        }

        impl $config {
            /// The gateway's name in the configuration.
            pub const NAME: &str = $name;
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
            connections: 512,
            connections_per_address: 64,
            message_bytes: 64 * 1024,
            rate: 50,
            idle: Duration::from_secs(60),
            backlog: 1_024,
        }
    }
}

impl GatewaysConfig {
    /// The name and the common keys of each gateway that is open.
    pub fn enabled(&self) -> impl Iterator<Item = (&'static str, &CommonOptions)> {
        let mut open = Vec::new();
        if let Some(gateway) = &self.clever_show {
            open.push((CleverShowConfig::NAME, &gateway.common));
        }
        if let Some(gateway) = &self.platypush_tcp {
            open.push((PlatypushTcpConfig::NAME, &gateway.common));
        }
        if let Some(gateway) = &self.platypush_http {
            open.push((PlatypushHttpConfig::NAME, &gateway.common));
        }
        if let Some(gateway) = &self.socktools {
            open.push((SocktoolsConfig::NAME, &gateway.common));
        }
        if let Some(gateway) = &self.knut {
            open.push((KnutConfig::NAME, &gateway.common));
        }
        open.into_iter()
    }

    /// Whether a gateway other than clever-show's is open.
    pub fn needs_low_priority_runtime(&self) -> bool {
        self.enabled().any(|(name, _)| name != CleverShowConfig::NAME)
    }

    pub(super) fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        if self.clever_show.is_some() {
            clever_show::check(keys)?;
        }
        if let Some(gateway) = &mut self.platypush_tcp {
            gateway.check(keys)?;
        }
        if let Some(gateway) = &self.platypush_http {
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
