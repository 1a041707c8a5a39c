//! The node's configuration: a TOML file, environment variables over it, flags over both.
//!
//! * A key that is not known is refused, with its line and the nearest known key.
//! * `SWARM_NODE_` and the key's path in capitals, joined by `_`, is its variable: `telemetry.interval` is
//!   `SWARM_NODE_TELEMETRY_INTERVAL`. A string is written as it is, anything else as in TOML:
//!   `SWARM_NODE_STATIONS='["10.0.0.2:7421"]'`, `SWARM_NODE_TAGS='{ row = "3" }'`. Tables whose keys the owner
//!   chooses (`tags`, `files.roots`, `actions`, `private`) have one variable each, merged over the file's table.
//! * What is read here is right: nothing is checked again later.

mod action;
mod edit;
mod gateways;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use swarm_shared::proto::id::NodeName;
use toml::de::DeTable;

pub use action::{Action, Class, TEXT_BYTES_MAX};
pub use edit::{CONFIG_BYTES_MAX, EditError, modify, rewrite, without_secrets, write_file};
pub use gateways::{CleverShow, Gateways, Server};
pub use tables::{
    EmergencyStop, Execute, Files, Heartbeat, Keepalive, LostLink, Notify, Plugins, Reboot, RootDir,
    Services, Telemetry,
};
pub use values::{Argv, Identifier, TagValue, UnitName, parse_duration};

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

/// What variables of the configuration begin with.
const VARIABLE_PREFIX: &str = "SWARM_NODE_";
/// Variables that belong to flags that are not keys.
const RESERVED_VARIABLES: [&str; 3] = ["SWARM_NODE_CONFIG", "SWARM_NODE_STATE_DIR", "SWARM_NODE_LOG"];

/// Where a mistake is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file, at a line if that is known.
    File(PathBuf, Option<usize>),
    /// In an environment variable.
    Variable(String),
    /// In text that came with a command.
    Text(Option<usize>),
}

impl Origin {
    fn at(&self, line: usize) -> Self {
        match self {
            Self::File(path, _) => Self::File(path.clone(), Some(line)),
            Self::Variable(name) => Self::Variable(name.clone()),
            Self::Text(_) => Self::Text(Some(line)),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}, line {line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Text(Some(line)) => write!(f, "line {line}"),
            Self::Text(None) => f.write_str("configuration"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct ConfigError {
    /// Where.
    pub origin: Origin,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// The configuration, whole and checked. Defaults are those of a node without a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's name; the host's if absent.
    #[serde(deserialize_with = "values::node_name")]
    pub name: Option<NodeName>,
    /// Where links are accepted; port 0 picks a free one.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// For selectors.
    pub tags: BTreeMap<Identifier, TagValue>,
    /// An invitation code to join with, while the node belongs to no fleet.
    pub join: Option<String>,
    /// Whether a station may take the node in without a code.
    pub adoptable: bool,
    /// Stations to dial, for networks that drop broadcasts.
    #[serde(deserialize_with = "addresses")]
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
    /// Running any program at all.
    pub execute: Execute,
    /// Which services may be restarted.
    pub services: Services,
    /// Restarting the device.
    pub reboot: Reboot,
    /// What shows a text to people near the device.
    pub notify: Notify,
    /// Readings.
    pub telemetry: Telemetry,
    /// Programs on this device that add to the node.
    pub plugins: Plugins,
    /// Programs of other systems that the node works for.
    pub gateways: Gateways,
    /// What an emergency stop runs.
    pub emergency_stop: Option<EmergencyStop>,
    /// What the loss of every station runs.
    pub lost_link: Option<LostLink>,
    /// The owner's actions.
    pub actions: BTreeMap<ActionName, Action>,
    /// The owner's own: never shown to a peer, never changed by one.
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

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_syntax| {
        format!("{text:?} is not an address: write ADDR:PORT, such as \"192.168.1.10:7421\"")
    })
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    parse_address(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts: Vec<String> = Vec::deserialize(from)?;
    texts
        .iter()
        .map(|text| parse_address(text).map_err(D::Error::custom))
        .collect()
}

impl Config {
    /// Reads the file, if there is one, and the variables over it.
    ///
    /// # Errors
    /// The first mistake, with its line or its variable.
    pub fn load(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let Some(path) = file else {
            return Self::parse_with_variables("", &Origin::Text(None), variables);
        };
        let origin = Origin::File(path.to_owned(), None);
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            origin: origin.clone(),
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse_with_variables(&text, &origin, variables)
    }

    /// Reads a file's text, and the variables over it.
    ///
    /// # Errors
    /// The first mistake, with its line or its variable.
    pub fn parse_with_variables(
        text: &str,
        origin: &Origin,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = Self::parse_table(text, origin)?;
        for (variable, over) in overrides(variables)? {
            // On its own first, so that a mistake is told with the variable's name; what else its table needs may
            // come from elsewhere.
            match deserialize_config(over.clone(), &Origin::Variable(variable)) {
                Err(error) if !error.message.starts_with("missing field") => return Err(error),
                _ => merge(&mut table, over),
            }
        }
        let config = deserialize_config(table, &Origin::Text(None))?;
        // Only now: what a key of the file goes with may come from a variable.
        config.validate(text, origin)?;
        Ok(config)
    }

    /// Reads text as a whole configuration.
    #[cfg(test)]
    pub(crate) fn parse(text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        Self::parse_with_variables(text, origin, std::iter::empty())
    }

    /// Finds keys that do not go together.
    fn validate(&self, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        self.gateways
            .validate(&self.files, &self.execute, &self.actions)
            .map_err(|(key, wrong)| ConfigError {
                origin: line_of_key(text, &["gateways", "clever_show", key])
                    .map_or_else(|| origin.clone(), |line| origin.at(line)),
                message: format!("[gateways.clever_show]: {wrong}"),
            })
    }

    /// Reads text whose keys are well each by itself: what one goes with may come from elsewhere.
    fn parse_table(text: &str, origin: &Origin) -> Result<toml::Table, ConfigError> {
        let located = |error: toml::de::Error| ConfigError {
            origin: match error.span() {
                Some(span) => origin.at(line_of(text, span.start)),
                None => origin.clone(),
            },
            message: error.message().trim().to_owned(),
        };
        let spanned = DeTable::parse(text).map_err(located)?;
        schema::reject_unknown_keys(text, spanned.get_ref(), origin)?;
        let _right: Self = toml::from_str(text).map_err(located)?;
        text.parse().map_err(located)
    }

    /// The tags, as peers are told.
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

/// Every key that a peer may see, with what it holds, as nested objects; a name of the owner's own is `*`.
pub fn spec() -> serde_json::Value {
    schema::spec()
}

/// The variables of this process. One that is not text is none of ours: ours are all text.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

fn deserialize_config(table: toml::Table, origin: &Origin) -> Result<Config, ConfigError> {
    Config::deserialize(table).map_err(|error| ConfigError {
        origin: origin.clone(),
        message: error.message().trim().to_owned(),
    })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Where a text has a key, if it has.
fn line_of_key(text: &str, path: &[&str]) -> Option<usize> {
    let parsed = DeTable::parse(text).ok()?;
    let (key, above) = path.split_last()?;
    let table = above.iter().try_fold(parsed.get_ref(), |table, name| {
        table.get(*name)?.get_ref().as_table()
    })?;
    let (key, _) = table.get_key_value(*key)?;
    Some(line_of(text, key.span().start))
}

/// What the variables say, each as a table to lay over the file's.
fn overrides(
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Vec<(String, toml::Table)>, ConfigError> {
    let known: BTreeMap<String, _> = schema::paths()
        .into_iter()
        .map(|(path, kind)| {
            (
                format!("{VARIABLE_PREFIX}{}", path.join("_").to_uppercase()),
                (path, kind),
            )
        })
        .collect();
    let mut found = Vec::new();
    let mut sorted: Vec<_> = variables
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .collect();
    sorted.sort();
    for (variable, text) in sorted {
        if RESERVED_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let refused = |message| ConfigError {
            origin: Origin::Variable(variable.clone()),
            message,
        };
        let Some((path, kind)) = known.get(&variable) else {
            // Without what all have in common, which would make any two look alike.
            let short = |name: &str| {
                name.get(VARIABLE_PREFIX.len()..)
                    .unwrap_or_default()
                    .to_lowercase()
            };
            let names: Vec<String> = known.keys().map(|name| short(name)).collect();
            return Err(refused(
                match schema::nearest(&short(&variable), names.iter().map(String::as_str)) {
                    Some(near) => format!(
                        "is no key of the configuration; did you mean {VARIABLE_PREFIX}{}?",
                        near.to_uppercase()
                    ),
                    None => "is no key of the configuration".to_owned(),
                },
            ));
        };
        let mut value = schema::parse_value(*kind, &text).map_err(refused)?;
        let (mut table, mut path) = (toml::Table::new(), path.as_slice());
        while let [above @ .., key] = path {
            table = toml::Table::from_iter([((*key).to_owned(), value)]);
            value = toml::Value::Table(table.clone());
            path = above;
        }
        reject_unknown_keys(&table).map_err(refused)?;
        found.push((variable, table));
    }
    Ok(found)
}

/// The text of a table is checked like a file's, for its unknown keys.
fn reject_unknown_keys(table: &toml::Table) -> Result<(), String> {
    let text = table.to_string();
    let spanned = DeTable::parse(&text).map_err(|error| error.message().to_owned())?;
    schema::reject_unknown_keys(&text, spanned.get_ref(), &Origin::Text(None)).map_err(|error| error.message)
}

/// Lays `over` over `under`: tables are merged, anything else is replaced.
pub(crate) fn merge(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
