//! The station's configuration: `config.toml`, then `GROUND_STATION_*`, then the command line; later ones win.
//!
//! ```toml
//! name = "field-laptop"            # GROUND_STATION_NAME; default: the host's name
//! listen = "0.0.0.0:7421"          # GROUND_STATION_LISTEN; port 0 picks a free one
//! ping_port = 7422                 # GROUND_STATION_PING_PORT
//! pings = true                     # GROUND_STATION_PINGS: broadcast notifier pings
//! mdns = true                      # GROUND_STATION_MDNS: publish and browse by multicast DNS
//! nodes = ["10.0.0.7:7420"]        # GROUND_STATION_NODES, separated by commas: dial these too
//!
//! [keepalive]                      # of TCP, under the heartbeat
//! idle = "1s"                      # GROUND_STATION_KEEPALIVE_IDLE
//! interval = "3s"                  # GROUND_STATION_KEEPALIVE_INTERVAL
//! probes = 5                       # GROUND_STATION_KEEPALIVE_PROBES
//!
//! [history]                        # beyond these the oldest ended deliveries are removed
//! keep_days = 90                   # GROUND_STATION_HISTORY_KEEP_DAYS
//! keep_deliveries = 1000000        # GROUND_STATION_HISTORY_KEEP_DELIVERIES
//! ```
//!
//! `[gateways.NAME]` opens a gateway for other programs: see [`gateways`]. File and variables are read by
//! [`swarm_shared::config`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Deserializer};
use swarm_shared::config::{self, Configuration, Keepalive, KeyError, Keys, Origin, value};
use swarm_shared::proto::id::NodeName;

pub use swarm_shared::config::ConfigError;

pub mod gateways;
#[cfg(test)]
mod tests;

/// Name of the file in the state directory.
pub const CONFIG_FILE: &str = "config.toml";
/// TCP port that stations listen on unless configured.
pub const STATION_PORT: u16 = 7421;
/// UDP port that notifier pings go to unless configured.
pub const PING_PORT: u16 = 7422;

/// The whole configuration, valid.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The station's name; the host's unless configured.
    #[serde(deserialize_with = "name")]
    pub name: NodeName,
    /// Address that links are accepted on.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
    /// UDP port that notifier pings go to.
    #[serde(deserialize_with = "value::ranged::<_, _, 1, 65535>")]
    pub ping_port: u16,
    /// Whether notifier pings are sent.
    pub pings: bool,
    /// Whether multicast DNS is used, to publish and to browse.
    pub mdns: bool,
    /// Addresses of nodes that are dialled without discovery.
    #[serde(deserialize_with = "value::addresses")]
    pub nodes: Vec<SocketAddr>,
    /// TCP keepalive of links.
    pub keepalive: Keepalive,
    /// How much of the history is kept.
    pub history: RetentionPolicy,
    /// The gateways that are open.
    pub gateways: gateways::GatewaysConfig,
}

/// How much of the history is kept; the oldest ended deliveries are removed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionPolicy {
    /// Age in days: 1 to 36500.
    #[serde(rename = "keep_days", deserialize_with = "value::ranged::<_, _, 1, 36_500>")]
    pub days: u32,
    /// Number of deliveries: 1 to 100 million.
    #[serde(
        rename = "keep_deliveries",
        deserialize_with = "value::ranged::<_, _, 1, 100_000_000>"
    )]
    pub deliveries: u64,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self {
            days: 90,
            deliveries: 1_000_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::for_host(&rustix::system::uname().nodename().to_string_lossy())
    }
}

impl Configuration for Config {
    const VARIABLE_PREFIX: &'static str = "GROUND_STATION_";
    const RESERVED_VARIABLES: &'static [&'static str] = &[
        "GROUND_STATION_STATE_DIR",
        "GROUND_STATION_CONFIG",
        "GROUND_STATION_LOG",
    ];

    fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        self.gateways.check(keys)
    }
}

impl Config {
    /// The defaults, for a host of this name.
    pub fn for_host(host: &str) -> Self {
        Self {
            name: NodeName::from_host(host),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, STATION_PORT)),
            ping_port: PING_PORT,
            pings: true,
            mdns: true,
            nodes: Vec::new(),
            keepalive: Keepalive::default(),
            history: RetentionPolicy::default(),
            gateways: gateways::GatewaysConfig::default(),
        }
    }

    /// Reads `file`, or `config.toml` in the state directory if that exists, and the environment over it.
    ///
    /// # Errors
    /// The first fault.
    pub fn load(file: Option<&Path>, state_dir: &Path) -> Result<Self, ConfigError> {
        let (origin, text) = read(file, state_dir);
        config::parse(&text?, &origin, variables())
    }

    /// [`Self::load`] for an emergency stop, which no fault in the configuration prevents: what is valid, with defaults
    /// for the rest, and the first fault.
    pub fn load_best_effort(file: Option<&Path>, state_dir: &Path) -> (Self, Option<ConfigError>) {
        let (origin, text) = read(file, state_dir);
        let (text, unreadable) = match text {
            Ok(text) => (text, None),
            Err(error) => (String::new(), Some(error)),
        };
        let (config, fault) = config::parse_best_effort(&text, &origin, variables());
        (config, unreadable.or(fault))
    }

    /// Reads a text over this configuration's name and the defaults.
    #[cfg(test)]
    pub(crate) fn read_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let origin = Origin::File(path.to_owned(), None);
        let mut read: Self = config::parse(text, &origin, std::iter::empty())?;
        if read.name == Self::default().name {
            read.name = self.name.clone();
        }
        *self = read;
        Ok(())
    }
}

fn read(file: Option<&Path>, state_dir: &Path) -> (Origin, Result<String, ConfigError>) {
    let default = state_dir.join(CONFIG_FILE);
    let path = file.unwrap_or(&default);
    let text = if file.is_none() && !path.exists() {
        Ok(String::new())
    } else {
        config::read_file(path)
    };
    (Origin::File(path.to_owned(), None), text)
}

fn variables() -> impl Iterator<Item = (String, String)> {
    config::variables().filter(|(name, value)| !is_container_service_variable(name, value))
}

/// Whether Kubernetes or Docker set a variable because a service of the container's network is called ground-station.
fn is_container_service_variable(name: &str, value: &str) -> bool {
    match name.strip_prefix(Config::VARIABLE_PREFIX) {
        Some("PORT") => value.contains("://"),
        Some(rest) => rest == "SERVICE_HOST" || rest.starts_with("SERVICE_PORT") || rest.starts_with("PORT_"),
        None => false,
    }
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<NodeName, D::Error> {
    value::text(from, NodeName::parse)
}
