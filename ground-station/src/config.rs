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
//! [history]                        # what goes first: the oldest, and never what is open
//! keep_days = 90                   # GROUND_STATION_HISTORY_KEEP_DAYS
//! keep_deliveries = 1000000        # GROUND_STATION_HISTORY_KEEP_DELIVERIES
//! ```
//!
//! `[gateways.NAME]` opens a gateway for other programs: see [`gateways`].
//!
//! An unknown key is refused with its line and the nearest known key: a misspelt key that is ignored is found on the
//! field.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use swarm_shared::proto::id::NodeName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::duration;
use crate::store::retention::RetentionPolicy;

pub mod gateways;
pub(crate) mod nearest;
#[cfg(test)]
mod tests;

use nearest::unknown;

/// Name of the file in the state directory.
pub const CONFIG_FILE: &str = "config.toml";
/// The port that stations listen on.
pub const STATION_PORT: u16 = 7421;
/// The port that notifier pings go to.
pub const PING_PORT: u16 = 7422;
/// Longest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This station's name.
    pub name: NodeName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where notifier pings go.
    pub ping_port: u16,
    /// Whether it sends notifier pings.
    pub pings: bool,
    /// Whether it uses multicast DNS.
    pub mdns: bool,
    /// Addresses that it dials whatever discovery says.
    pub nodes: Vec<SocketAddr>,
    /// TCP keepalive.
    pub keepalive: Keepalive,
    /// How much of the history is kept.
    pub history: RetentionPolicy,
    /// Which gateways are open.
    pub gateways: gateways::GatewaysConfig,
}

/// TCP keepalive, under the heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes until the connection is dead.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(1),
            interval: Duration::from_secs(3),
            probes: 5,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path:?}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something in the file is wrong.
    #[error("{path}:{line}: {fault}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to write.
        fault: String,
    },
    /// An environment variable is wrong.
    #[error("environment variable {variable}: {fault}")]
    Environment {
        /// Which.
        variable: String,
        /// What is wrong and what to write.
        fault: String,
    },
}

/// Every key, with the environment variable that overrides it.
const KEYS: &[(&str, &str)] = &[
    ("name", "GROUND_STATION_NAME"),
    ("listen", "GROUND_STATION_LISTEN"),
    ("ping_port", "GROUND_STATION_PING_PORT"),
    ("pings", "GROUND_STATION_PINGS"),
    ("mdns", "GROUND_STATION_MDNS"),
    ("nodes", "GROUND_STATION_NODES"),
    ("keepalive.idle", "GROUND_STATION_KEEPALIVE_IDLE"),
    ("keepalive.interval", "GROUND_STATION_KEEPALIVE_INTERVAL"),
    ("keepalive.probes", "GROUND_STATION_KEEPALIVE_PROBES"),
    ("history.keep_days", "GROUND_STATION_HISTORY_KEEP_DAYS"),
    (
        "history.keep_deliveries",
        "GROUND_STATION_HISTORY_KEEP_DELIVERIES",
    ),
];

/// A value of any key, before it is checked.
enum RawValue<'a> {
    Text(&'a str),
    Number(i64),
    Bool(bool),
    List(Vec<&'a str>),
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

    /// Reads `file`, or `config.toml` in the state directory if that exists, and then the environment.
    ///
    /// # Errors
    /// [`ConfigError`]: the first fault that is found.
    pub fn load(file: Option<&Path>, state_dir: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::defaults();
        config.apply_sources(file, state_dir)?;
        Ok(config)
    }

    /// The same for an emergency stop, which no slip in a file may keep from going out: what was read before the fault, the
    /// usual for the rest, and the fault.
    pub fn load_best_effort(file: Option<&Path>, state_dir: &Path) -> (Self, Option<ConfigError>) {
        let mut config = Self::defaults();
        let fault = config.apply_sources(file, state_dir).err();
        (config, fault)
    }

    fn defaults() -> Self {
        let host = rustix::system::uname();
        Self::for_host(&host.nodename().to_string_lossy())
    }

    fn apply_sources(&mut self, file: Option<&Path>, state_dir: &Path) -> Result<(), ConfigError> {
        let default = state_dir.join(CONFIG_FILE);
        let path = file.unwrap_or(&default);
        match read_bounded(path) {
            Ok(text) => self.read_file(path, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {}
            Err(error) => {
                return Err(ConfigError::Unreadable {
                    path: path.to_owned(),
                    reason: error.to_string(),
                });
            }
        }
        self.read_environment(|variable| std::env::var(variable).ok())?;
        // One that is not text is none of ours: ours are all text.
        let texts = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let named = texts.filter(|(name, value)| !is_container_service_variable(name, value));
        check_unknown_variables(named.map(|(name, _)| name))
    }

    /// Takes over what the text of a file says; `path` is what errors call it.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn read_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let fault = |at: usize, fault: String| {
            let line = text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1;
            ConfigError::File {
                path: path.to_owned(),
                line,
                fault,
            }
        };
        let table = DeTable::parse(text).map_err(|error| {
            fault(
                error.span().map_or(0, |span| span.start),
                error.message().to_owned(),
            )
        })?;
        self.read_table(table.get_ref(), "")
            .map_err(|(at, text)| fault(at, text))
    }

    /// Errors carry the byte at which they are.
    fn read_table(&mut self, table: &DeTable<'_>, prefix: &str) -> Result<(), (usize, String)> {
        let mut entries: Vec<_> = table.iter().collect();
        // The first fault in the file is the one that is reported.
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let at = key.span().start;
            let full = format!("{prefix}{}", key.get_ref());
            if full == "gateways" {
                let table = value.get_ref().as_table();
                let table =
                    table.ok_or_else(|| (at, "gateways are tables: write [gateways.NAME]".to_owned()))?;
                self.gateways.read_table(table)?;
                continue;
            }
            if ["keepalive", "history"].contains(&full.as_str()) {
                let table = value
                    .get_ref()
                    .as_table()
                    .ok_or_else(|| (at, format!("{full} is a table: write [{full}]")))?;
                self.read_table(table, &format!("{full}."))?;
                continue;
            }
            if !KEYS.iter().any(|(known, _)| *known == full) {
                return Err((at, unknown_key(&full)));
            }
            let raw = raw_value(value)
                .ok_or_else(|| (at, format!("{full} holds a value of a kind that no key has")))?;
            self.set_key(&full, &raw)
                .map_err(|fault| (value.span().start, fault))?;
        }
        Ok(())
    }

    fn read_environment(&mut self, get: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        for (key, variable) in KEYS {
            let Some(text) = get(variable) else { continue };
            let raw = match *key {
                "ping_port" | "keepalive.probes" | "history.keep_days" | "history.keep_deliveries" => {
                    text.parse().map_or(RawValue::Text(&text), RawValue::Number)
                }
                "pings" | "mdns" => text.parse().map_or(RawValue::Text(&text), RawValue::Bool),
                "nodes" => RawValue::List(
                    text.split(',')
                        .map(str::trim)
                        .filter(|part| !part.is_empty())
                        .collect(),
                ),
                _ => RawValue::Text(&text),
            };
            self.set_key(key, &raw)
                .map_err(|fault| ConfigError::Environment {
                    variable: (*variable).to_owned(),
                    fault,
                })?;
        }
        self.gateways.read_environment(get)
    }

    fn set_key(&mut self, key: &str, raw: &RawValue<'_>) -> Result<(), String> {
        let want = |rule: &str| format!("{key} has to be {rule}");
        let address = |text: &str| {
            text.parse::<SocketAddr>()
                .map_err(|_bad| format!("{text:?} is not ADDR:PORT, such as 10.0.0.7:7420"))
        };
        match (key, raw) {
            ("name", RawValue::Text(text)) => {
                self.name = NodeName::parse(text).map_err(|error| error.to_string())?;
            }
            ("listen", RawValue::Text(text)) => self.listen = address(text)?,
            ("ping_port", RawValue::Number(port)) => {
                self.ping_port = u16::try_from(*port)
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| want("1 to 65535"))?;
            }
            ("pings", RawValue::Bool(on)) => self.pings = *on,
            ("mdns", RawValue::Bool(on)) => self.mdns = *on,
            ("nodes", RawValue::List(list)) => {
                self.nodes = list.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
            }
            ("keepalive.idle", RawValue::Text(text)) => self.keepalive.idle = parse_whole_seconds(text)?,
            ("keepalive.interval", RawValue::Text(text)) => {
                self.keepalive.interval = parse_whole_seconds(text)?;
            }
            ("keepalive.probes", RawValue::Number(probes)) => {
                self.keepalive.probes = u32::try_from(*probes)
                    .ok()
                    .filter(|probes| (1..=127).contains(probes))
                    .ok_or_else(|| want("1 to 127"))?;
            }
            ("history.keep_days", RawValue::Number(days)) => {
                self.history.days = u32::try_from(*days)
                    .ok()
                    .filter(|days| (1..=36_500).contains(days))
                    .ok_or_else(|| want("1 to 36500"))?;
            }
            ("history.keep_deliveries", RawValue::Number(deliveries)) => {
                self.history.deliveries = u64::try_from(*deliveries)
                    .ok()
                    .filter(|deliveries| (1..=100_000_000).contains(deliveries))
                    .ok_or_else(|| want("1 to 100000000"))?;
            }
            ("name" | "listen", _) => return Err(want("a text in quotes")),
            ("ping_port" | "keepalive.probes" | "history.keep_days" | "history.keep_deliveries", _) => {
                return Err(want("a whole number"));
            }
            ("pings" | "mdns", _) => return Err(want("true or false")),
            ("nodes", _) => return Err(want("a list of addresses, such as [\"10.0.0.7:7420\"]")),
            _ => return Err(want("a length of time in quotes, such as \"3s\"")),
        }
        Ok(())
    }
}

/// What every variable of this program begins with.
const VARIABLE_PREFIX: &str = "GROUND_STATION_";
/// Those that the command line reads.
const COMMAND_LINE_VARIABLES: [&str; 3] = [
    "GROUND_STATION_STATE_DIR",
    "GROUND_STATION_CONFIG",
    "GROUND_STATION_LOG",
];

/// Whether a container has it because there is a service called ground-station: Kubernetes and Docker tell of each so.
fn is_container_service_variable(name: &str, value: &str) -> bool {
    match name.strip_prefix(VARIABLE_PREFIX) {
        Some("PORT") => value.contains("://"),
        Some(rest) => rest == "SERVICE_HOST" || rest.starts_with("SERVICE_PORT") || rest.starts_with("PORT_"),
        None => false,
    }
}

/// Finds the first variable of this program's that nobody reads: a slip, as a key is that nobody knows.
fn check_unknown_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    let mut ours: Vec<String> = names.filter(|name| name.starts_with(VARIABLE_PREFIX)).collect();
    ours.sort();
    let known: Vec<String> = KEYS
        .iter()
        .map(|(_, variable)| (*variable).to_owned())
        .chain(COMMAND_LINE_VARIABLES.map(str::to_owned))
        .chain(gateways::environment_variables().map(|(_, variable)| variable))
        .collect();
    let Some(variable) = ours.into_iter().find(|name| !known.contains(name)) else {
        return Ok(());
    };
    // What a variable shares with all others, or with those of its gateway, says nothing of which is meant.
    let shared = gateways::environment_variables().map(|(prefix, _)| prefix);
    let shared = shared
        .filter(|prefix| variable.starts_with(prefix))
        .max_by_key(String::len);
    let shared = shared.unwrap_or_else(|| VARIABLE_PREFIX.to_owned());
    let candidates: Vec<&str> = known
        .iter()
        .filter_map(|name| name.strip_prefix(&shared))
        .collect();
    let rest = variable.strip_prefix(&shared).unwrap_or_default();
    let suggestions = nearest::nearest(rest, &candidates)
        .into_iter()
        .map(|name| format!("{shared}{name}"))
        .collect();
    let fault = match nearest::any_of(suggestions) {
        Some(meant) => format!("nothing is called so; did you mean {meant}?"),
        None => "nothing is called so; each key of config.toml has its own, such as GROUND_STATION_LISTEN for `listen` and \
                 GROUND_STATION_GATEWAYS_KNUT_ALLOW for `allow` of [gateways.knut]"
            .to_owned(),
    };
    Err(ConfigError::Environment { variable, fault })
}

/// The kernel counts keepalive in whole seconds (tcp(7)).
fn parse_whole_seconds(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).map_err(|error| error.to_string())?;
    let whole = time.subsec_nanos() == 0 && (1..=32_767).contains(&time.as_secs());
    if whole {
        Ok(time)
    } else {
        Err(format!(
            "{text:?} is not 1 to 32767 whole seconds, as TCP keepalive needs"
        ))
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(text.len()).map_or(true, |bytes| bytes > CONFIG_BYTES_MAX) {
        return Err(std::io::Error::other(format!(
            "it is longer than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

fn raw_value<'a>(value: &'a Spanned<DeValue<'_>>) -> Option<RawValue<'a>> {
    let value = value.get_ref();
    if let Some(text) = value.as_str() {
        return Some(RawValue::Text(text));
    }
    if let Some(on) = value.as_bool() {
        return Some(RawValue::Bool(on));
    }
    if let Some(number) = value.as_integer() {
        return i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(RawValue::Number);
    }
    let list = value.as_array()?;
    list.iter()
        .map(|item| item.get_ref().as_str())
        .collect::<Option<_>>()
        .map(RawValue::List)
}

fn unknown_key(key: &str) -> String {
    let known = KEYS.iter().map(|(known, _)| *known);
    let known: Vec<&str> = known.chain(["gateways"]).collect();
    unknown(key, &known)
}
