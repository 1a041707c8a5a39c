//! The node's configuration: a TOML file, environment variables over it, flags over both.
//!
//! The variable of a key is `SWARM_NODE_` and its path in capitals; see [`swarm_shared::config`] for how it is written.
//! Every value is checked here, and only here.

mod action;
mod edit;
mod gateways;
mod tables;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use swarm_shared::config::{self, Configuration, Keepalive, KeyError, Keys, Kind, toml, value};
use swarm_shared::proto::id::NodeName;

pub use action::{Action, Class, TEXT_BYTES_MAX};
use edit::PRIVATE;
pub use edit::{CONFIG_BYTES_MAX, EditError, modify, rewrite, without_secrets, write_file};
pub use gateways::{CleverShow, Gateways, Server};
pub use swarm_shared::config::{ConfigError, Origin, variables};
pub use tables::{
    EmergencyStop, Execute, Files, Heartbeat, LostLink, Notify, Plugins, Reboot, RootDir, Services, Telemetry,
};
pub use values::{Argv, Identifier, TagValue, UnitName};

/// The names of the actions that every node has; an owner's action cannot take one.
pub const BUILT_IN_ACTIONS: [&str; 12] = [
    "config",
    "execute",
    "filetransfer",
    "id",
    "log",
    "notify",
    "ping",
    "reboot",
    "selfcheck",
    "service_restart",
    "telemetry",
    "time",
];

/// The configuration, whole and checked. Defaults are those of a node without a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's name; the host's if absent.
    #[serde(deserialize_with = "values::node_name")]
    pub name: Option<NodeName>,
    /// Where links are accepted; port 0 picks a free one.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
    /// Tags, which selectors match.
    pub tags: BTreeMap<Identifier, TagValue>,
    /// An invitation code to join with, while the node belongs to no fleet.
    pub join: Option<String>,
    /// Whether a station may take the node in without a code.
    pub adoptable: bool,
    /// Stations to dial, for networks that drop broadcasts.
    #[serde(deserialize_with = "value::addresses")]
    pub stations: Vec<SocketAddr>,
    /// UDP port of the stations' notifier pings.
    pub ping_port: u16,
    /// Whether to listen for notifier pings.
    pub pings: bool,
    /// Whether to publish and browse by mDNS.
    pub mdns: bool,
    /// Where files may go and come from.
    pub files: Files,
    /// TCP keepalive of links.
    pub keepalive: Keepalive,
    /// The frames that show that a peer is alive.
    pub heartbeat: Heartbeat,
    /// The action `execute`.
    pub execute: Execute,
    /// Which services may be restarted.
    pub services: Services,
    /// Restarting the device.
    pub reboot: Reboot,
    /// The action `notify`.
    pub notify: Notify,
    /// Telemetry samples.
    pub telemetry: Telemetry,
    /// Plug-ins: programs on this device that add actions and readings.
    pub plugins: Plugins,
    /// Servers of other systems that the node connects to.
    pub gateways: Gateways,
    /// What an emergency stop runs.
    pub emergency_stop: Option<EmergencyStop>,
    /// What runs when no station is heard for some time.
    pub lost_link: Option<LostLink>,
    /// The owner's actions.
    pub actions: BTreeMap<ActionName, Action>,
    /// The owner's data: never shown to a peer, never changed by one.
    pub private: toml::Table,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7420),
            tags: BTreeMap::new(),
            join: None,
            adoptable: false,
            stations: Vec::new(),
            ping_port: 7422,
            pings: true,
            mdns: true,
            files: Files::default(),
            keepalive: Keepalive::default(),
            heartbeat: Heartbeat::default(),
            execute: Execute::default(),
            services: Services::default(),
            reboot: Reboot::default(),
            notify: Notify::default(),
            telemetry: Telemetry::default(),
            plugins: Plugins::default(),
            gateways: Gateways::default(),
            emergency_stop: None,
            lost_link: None,
            actions: BTreeMap::new(),
            private: toml::Table::new(),
        }
    }
}

/// The name of an owner's action: not that of a built-in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActionName(Identifier);

impl ActionName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl std::borrow::Borrow<str> for ActionName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl<'de> Deserialize<'de> for ActionName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = Identifier::deserialize(from)?;
        if BUILT_IN_ACTIONS.contains(&name.as_str()) {
            let rule = "is the name of a built-in action; choose another";
            return Err(D::Error::custom(format!("{:?} {rule}", name.as_str())));
        }
        Ok(Self(name))
    }
}

impl Configuration for Config {
    const VARIABLE_PREFIX: &'static str = "SWARM_NODE_";
    const RESERVED_VARIABLES: &'static [&'static str] =
        &["SWARM_NODE_CONFIG", "SWARM_NODE_STATE_DIR", "SWARM_NODE_LOG"];

    fn check(&mut self, _keys: &Keys<'_>) -> Result<(), KeyError> {
        let checked = self.gateways.check(&self.files, &self.execute, &self.actions);
        checked.map_err(|(key, message)| KeyError {
            key: ["gateways", "clever_show", key].map(str::to_owned).to_vec(),
            message,
        })
    }
}

impl Config {
    /// Reads the file, if there is one, and the variables over it.
    ///
    /// # Errors
    /// The first fault, with its line or its variable.
    pub fn load(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let Some(path) = file else {
            return config::parse("", &Origin::Text(None), variables);
        };
        let origin = Origin::File(path.to_owned(), None);
        config::parse(&config::read_file(path)?, &origin, variables)
    }

    /// Reads a file's text, and the variables over it.
    ///
    /// # Errors
    /// The first fault, with its line or its variable.
    pub fn parse_with_variables(
        text: &str,
        origin: &Origin,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        config::parse(text, origin, variables)
    }

    /// Reads text as a whole configuration.
    #[cfg(test)]
    pub(crate) fn parse(text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        Self::parse_with_variables(text, origin, std::iter::empty())
    }

    /// The tags as text, for peers.
    pub fn tag_map(&self) -> BTreeMap<String, String> {
        let text = |(key, value): (&Identifier, &TagValue)| (key.to_string(), value.as_str().to_owned());
        self.tags.iter().map(text).collect()
    }

    /// The roots' directories by name.
    pub fn root_map(&self) -> BTreeMap<String, PathBuf> {
        let dir = |(name, dir): (&Identifier, &RootDir)| (name.to_string(), dir.0.clone());
        self.files.roots.iter().map(dir).collect()
    }
}

/// Every key that a peer may see, as nested objects with `string`, `value` or a table at each key; `*` stands for a name
/// that the owner chooses.
pub fn spec() -> serde_json::Value {
    spec_of(&Kind::of::<Config>())
}

fn spec_of(kind: &Kind) -> serde_json::Value {
    match kind {
        Kind::Text => "string".into(),
        Kind::List | Kind::Value | Kind::Any => "value".into(),
        Kind::Table(keys) => {
            let shown = keys.iter().filter(|(key, _)| *key != PRIVATE);
            let spec = shown.map(|(key, kind)| ((*key).to_owned(), spec_of(kind)));
            serde_json::Value::Object(spec.collect())
        }
        Kind::Map(each) => serde_json::json!({ "*": spec_of(each) }),
    }
}
