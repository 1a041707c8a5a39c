//! `[gateways.NAME]`: which gateways for other programs are open, and how far. A gateway is open if its table is there, or one
//! of its environment variables (`GROUND_STATION_GATEWAYS_NAME_KEY`).
//!
//! ```toml
//! [gateways.knut]
//! listen = "127.0.0.1:8080"     # loopback unless said otherwise
//! allow = ["led", "show_*"]     # actions that may be asked for; none: only what reads
//! role = "operator"             # observer, operator or admin: what this gateway is at most
//! target = "all"                # which nodes, where the protocol names none
//! token = "…"                   # asked for, where the protocol has room for one
//! connections = 512             # at once, in all
//! connections_per_address = 64  # at once, of one address
//! message_bytes = 65536         # longest message
//! ttl = "30s"                   # how long what is asked for may still start
//! timeout = "10s"               # how long its outcomes are waited for
//! rate = 50                     # messages of one address in a second
//! idle = "60s"                  # silence after which a connection is closed
//! ```
//!
//! Each gateway's own keys are in its module.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use swarm_shared::proto::selector::{Glob, Selector};
use swarm_shared::proto::trust::Role;
use toml::de::DeTable;

use super::{ConfigError, RawValue, raw_value, unknown};
use crate::duration;

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
pub use socktools::{Network, RawEncoding, RawMessages, SocktoolsConfig};

/// The gateways that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// What every gateway has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The actions that may be asked for, beside those that only read.
    pub allow: Vec<Glob>,
    /// What whoever comes through is at most.
    pub role: Role,
    /// Which nodes, where the protocol names none.
    pub target: Selector,
    /// What has to be shown, where the protocol has room for it.
    pub token: Option<Secret>,
    /// How long what is asked for may still start.
    pub ttl: Duration,
    /// How long its outcomes are waited for.
    pub timeout: Duration,
    /// How much of it may be used.
    pub limits: ConnectionLimits,
}

/// How much of a gateway may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections at once.
    pub connections: usize,
    /// Most connections at once of one address.
    pub per_address: usize,
    /// Longest message, in bytes.
    pub message_bytes: usize,
    /// Messages of one address in a second, for longer than a moment.
    pub rate: u32,
    /// The longest silence.
    pub idle: Duration,
    /// Connections that the kernel holds until they are let in.
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
    /// A gateway at a port of this machine that lets nothing but questions through.
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

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether `shown` is it. How long that takes tells nothing of it but its length.
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

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueKind {
    Text,
    Number,
    Flag,
    List,
}

impl ValueKind {
    fn rule(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Number => "a whole number",
            Self::Flag => "true or false",
            Self::List => "a list of texts, such as [\"led\", \"show_*\"]",
        }
    }

    /// What a variable of this kind holds.
    fn parse(self, text: &str) -> RawValue<'_> {
        match self {
            Self::Text => RawValue::Text(text),
            Self::Number => text.parse().map_or(RawValue::Text(text), RawValue::Number),
            Self::Flag => text.parse().map_or(RawValue::Text(text), RawValue::Bool),
            Self::List => {
                let parts = text.split(',').map(str::trim);
                RawValue::List(parts.filter(|part| !part.is_empty()).collect())
            }
        }
    }
}

/// The keys that every gateway has.
const COMMON_KEYS: &[(&str, ValueKind)] = &[
    ("listen", ValueKind::Text),
    ("allow", ValueKind::List),
    ("role", ValueKind::Text),
    ("target", ValueKind::Text),
    ("token", ValueKind::Text),
    ("ttl", ValueKind::Text),
    ("timeout", ValueKind::Text),
    ("connections", ValueKind::Number),
    ("connections_per_address", ValueKind::Number),
    ("message_bytes", ValueKind::Number),
    ("rate", ValueKind::Number),
    ("idle", ValueKind::Text),
];

/// A gateway's configuration.
trait GatewayConfig: Sized {
    /// As in `[gateways.NAME]`.
    const NAME: &'static str;
    /// Its own keys.
    const KEYS: &'static [(&'static str, ValueKind)];
    /// The tables within its own, which [`Self::set_table`] takes.
    const TABLES: &'static [&'static str] = &[];
    /// Open, with nothing else said.
    fn with_defaults() -> Self;
    fn common(&mut self) -> &mut CommonOptions;
    /// Sets one of [`Self::KEYS`]; the value is of its kind.
    fn set(&mut self, key: &str, _value: &RawValue<'_>) -> Result<(), String> {
        Err(format!("{key} has no meaning here"))
    }
    /// A common key has been set.
    ///
    /// # Errors
    /// What it is at odds with.
    fn after_set(&mut self, _key: &str) -> Result<(), String> {
        Ok(())
    }
    /// Takes over a table within its own, such as `[gateways.NAME.KEY]`; `None`: there is no such table. Errors carry
    /// the byte at which they are.
    fn set_table(&mut self, _key: &str, _table: &DeTable<'_>) -> Option<Result<(), (usize, String)>> {
        None
    }
}

impl GatewaysConfig {
    /// What every gateway has, of each that is open, by the name of the gateway.
    pub fn enabled(&self) -> impl Iterator<Item = (&'static str, &CommonOptions)> {
        fn named<'a, D: GatewayConfig>(
            gateway: Option<&'a D>,
            common: impl Fn(&'a D) -> &'a CommonOptions,
        ) -> Option<(&'static str, &'a CommonOptions)> {
            Some((D::NAME, common(gateway?)))
        }
        let all = [
            named(self.clever_show.as_ref(), |gateway| &gateway.common),
            named(self.platypush_tcp.as_ref(), |gateway| &gateway.common),
            named(self.platypush_http.as_ref(), |gateway| &gateway.common),
            named(self.socktools.as_ref(), |gateway| &gateway.common),
            named(self.knut.as_ref(), |gateway| &gateway.common),
        ];
        all.into_iter().flatten()
    }

    /// Whether one is open that programs ask at, and not only drones.
    pub fn needs_low_priority_runtime(&self) -> bool {
        self.enabled().any(|(name, _)| name != CleverShowConfig::NAME)
    }

    /// Takes over `[gateways]`. Errors carry the byte at which they are.
    pub(super) fn read_table(&mut self, gateways: &DeTable<'_>) -> Result<(), (usize, String)> {
        let mut entries: Vec<_> = gateways.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let at = name.span().start;
            let name: &str = name.get_ref();
            let table = value.get_ref().as_table();
            let table =
                table.ok_or_else(|| (at, format!("gateways.{name} is a table: write [gateways.{name}]")))?;
            match name {
                CleverShowConfig::NAME => apply_table(&mut self.clever_show, table)?,
                PlatypushTcpConfig::NAME => apply_table(&mut self.platypush_tcp, table)?,
                PlatypushHttpConfig::NAME => apply_table(&mut self.platypush_http, table)?,
                SocktoolsConfig::NAME => apply_table(&mut self.socktools, table)?,
                KnutConfig::NAME => apply_table(&mut self.knut, table)?,
                _ => return Err((at, format!("[gateways]: {}", unknown(name, GATEWAY_NAMES)))),
            }
        }
        Ok(())
    }

    pub(super) fn read_environment(
        &mut self,
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        apply_environment(&mut self.clever_show, &get)?;
        apply_environment(&mut self.platypush_tcp, &get)?;
        apply_environment(&mut self.platypush_http, &get)?;
        apply_environment(&mut self.socktools, &get)?;
        apply_environment(&mut self.knut, &get)
    }
}

/// As in `[gateways.NAME]`.
const GATEWAY_NAMES: &[&str] = &[
    CleverShowConfig::NAME,
    PlatypushTcpConfig::NAME,
    PlatypushHttpConfig::NAME,
    SocktoolsConfig::NAME,
    KnutConfig::NAME,
];

/// The keys of each that not every gateway has.
const OWN_KEYS: &[(&str, &[(&str, ValueKind)])] = &[
    (CleverShowConfig::NAME, CleverShowConfig::KEYS),
    (PlatypushTcpConfig::NAME, PlatypushTcpConfig::KEYS),
    (PlatypushHttpConfig::NAME, PlatypushHttpConfig::KEYS),
    (SocktoolsConfig::NAME, SocktoolsConfig::KEYS),
    (KnutConfig::NAME, KnutConfig::KEYS),
];

fn apply_table<D: GatewayConfig>(
    gateway: &mut Option<D>,
    table: &DeTable<'_>,
) -> Result<(), (usize, String)> {
    let gateway = gateway.get_or_insert_with(D::with_defaults);
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let at = key.span().start;
        let key: &str = key.get_ref();
        if let Some(table) = value.get_ref().as_table()
            && let Some(taken) = gateway.set_table(key, table)
        {
            taken?;
            continue;
        }
        if D::TABLES.contains(&key) {
            return Err((
                at,
                format!("{key} is a table: write [gateways.{}.{key}]", D::NAME),
            ));
        }
        // Before its value is looked at: whoever misspells the name of a table is not helped by what its value is.
        if !all_keys::<D>().any(|(known, _)| known == key) {
            return Err((at, format!("[gateways.{}]: {}", D::NAME, unknown_key::<D>(key))));
        }
        let full = format!("gateways.{}.{key}", D::NAME);
        let raw = raw_value(value)
            .ok_or_else(|| (at, format!("{full} holds a value of a kind that no key has")))?;
        match set_key(gateway, key, &raw) {
            Some(taken) => taken.map_err(|fault| (value.span().start, fault))?,
            None => return Err((at, format!("[gateways.{}]: {}", D::NAME, unknown_key::<D>(key)))),
        }
    }
    Ok(())
}

/// What to say of a key that this gateway does not have: another one may.
fn unknown_key<D: GatewayConfig>(key: &str) -> String {
    let has = |(name, keys): &&(&str, &[(&str, ValueKind)])| {
        *name != D::NAME && keys.iter().any(|(known, _)| *known == key)
    };
    if let Some((other, _)) = OWN_KEYS.iter().find(has) {
        return format!("{key:?} is a key of [gateways.{other}], not of this gateway");
    }
    let own = all_keys::<D>().map(|(known, _)| known);
    let known: Vec<&str> = own.chain(D::TABLES.iter().copied()).collect();
    unknown(key, &known)
}

/// Each variable of each gateway, behind what all of its gateway begin with.
pub(super) fn environment_variables() -> impl Iterator<Item = (String, String)> {
    OWN_KEYS.iter().flat_map(|(name, own)| {
        let keys = COMMON_KEYS.iter().chain(*own);
        keys.map(|(key, _)| (environment_variable(name, ""), environment_variable(name, key)))
    })
}

fn environment_variable(gateway: &str, key: &str) -> String {
    format!("GROUND_STATION_GATEWAYS_{gateway}_{key}").to_uppercase()
}

fn apply_environment<D: GatewayConfig>(
    gateway: &mut Option<D>,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    for (key, kind) in all_keys::<D>() {
        let variable = environment_variable(D::NAME, key);
        let Some(text) = get(&variable) else { continue };
        let gateway = gateway.get_or_insert_with(D::with_defaults);
        if let Some(Err(fault)) = set_key(gateway, key, &kind.parse(&text)) {
            return Err(ConfigError::Environment { variable, fault });
        }
    }
    Ok(())
}

fn all_keys<D: GatewayConfig>() -> impl Iterator<Item = (&'static str, ValueKind)> {
    COMMON_KEYS.iter().chain(D::KEYS).copied()
}

/// `None`: the gateway has no such key.
fn set_key<D: GatewayConfig>(gateway: &mut D, key: &str, raw: &RawValue<'_>) -> Option<Result<(), String>> {
    let (_, kind) = all_keys::<D>().find(|(known, _)| *known == key)?;
    let fits = matches!(
        (kind, raw),
        (ValueKind::Text, RawValue::Text(_))
            | (ValueKind::Number, RawValue::Number(_))
            | (ValueKind::Flag, RawValue::Bool(_))
            | (ValueKind::List, RawValue::List(_))
    );
    Some(if !fits {
        Err(format!("gateways.{}.{key} has to be {}", D::NAME, kind.rule()))
    } else if COMMON_KEYS.iter().any(|(known, _)| *known == key) {
        set_common(gateway.common(), key, raw).and_then(|()| gateway.after_set(key))
    } else {
        gateway.set(key, raw)
    })
}

fn set_common(common: &mut CommonOptions, key: &str, raw: &RawValue<'_>) -> Result<(), String> {
    match (key, raw) {
        ("listen", RawValue::Text(text)) => common.listen = parse_address(text)?,
        ("allow", RawValue::List(list)) => common.allow = parse_globs(list)?,
        ("role", RawValue::Text(text)) => {
            common.role = match *text {
                "observer" => Role::Observer,
                "operator" => Role::Operator,
                "admin" => Role::Admin,
                _ => return Err(format!("{text:?} is not observer, operator or admin")),
            }
        }
        ("target", RawValue::Text(text)) => {
            common.target = Selector::parse(text).map_err(|error| error.to_string())?;
        }
        ("token", RawValue::Text(text)) => {
            if text.len() < TOKEN_BYTES_MIN {
                return Err(format!("a token has at least {TOKEN_BYTES_MIN} characters"));
            }
            common.token = Some(Secret((*text).to_owned()));
        }
        ("ttl", RawValue::Text(text)) => common.ttl = parse_duration(text)?,
        ("timeout", RawValue::Text(text)) => common.timeout = parse_duration(text)?,
        ("connections", RawValue::Number(number)) => {
            common.limits.connections = in_range(key, *number, 1, 65_536)?;
        }
        ("connections_per_address", RawValue::Number(number)) => {
            common.limits.per_address = in_range(key, *number, 1, 65_536)?;
        }
        ("message_bytes", RawValue::Number(number)) => {
            common.limits.message_bytes = in_range(key, *number, 256, 1024 * 1024)?;
        }
        ("rate", RawValue::Number(number)) => common.limits.rate = in_range(key, *number, 1, 1_000_000)?,
        ("idle", RawValue::Text(text)) => common.limits.idle = parse_duration(text)?,
        _ => return Err(format!("{key} has no meaning here")),
    }
    Ok(())
}

/// Shortest token.
const TOKEN_BYTES_MIN: usize = 16;

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_bad| format!("{text:?} is not ADDR:PORT, such as 127.0.0.1:8080"))
}

fn parse_globs(list: &[&str]) -> Result<Vec<Glob>, String> {
    if list.contains(&"") {
        return Err("\"\" in `allow` names nothing: write the name of an action, or take it out".to_owned());
    }
    let parsed = list
        .iter()
        .map(|text| Glob::parse(text).map_err(|rule| format!("{text:?}: {rule}")));
    parsed.collect()
}

fn in_range<T: TryFrom<i64>>(key: &str, number: i64, least: i64, most: i64) -> Result<T, String> {
    let fits = (least..=most).contains(&number);
    let number = T::try_from(number).ok().filter(|_| fits);
    number.ok_or_else(|| format!("{key} has to be {least} to {most}"))
}

/// A length of time that is not nothing.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        return Err(format!("{text:?} is no time at all: write at least 1ms"));
    }
    Ok(time)
}
