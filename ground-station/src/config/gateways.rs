//! `[doors.NAME]`: which doors for other programs are open, and how far. A door is open if its table is there, or one
//! of its environment variables (`GROUND_STATION_DOORS_NAME_KEY`).
//!
//! ```toml
//! [doors.knut]
//! listen = "127.0.0.1:8080"     # loopback unless said otherwise
//! allow = ["led", "show_*"]     # actions that may be asked for; none: only what reads
//! role = "operator"             # observer, operator or admin: what this door is at most
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
//! Each door's own keys are in its module.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use swarm_shared::proto::selector::{Glob, Selector};
use swarm_shared::proto::trust::Role;
use toml::de::DeTable;

use super::{ConfigError, Raw, raw, unknown};
use crate::duration;

mod clever_show;
mod knut;
pub mod platypush_http;
mod platypush_tcp;
mod socktools;
#[cfg(test)]
mod tests;

pub use clever_show::CleverShow;
pub use knut::Knut;
pub use platypush_http::PlatypushHttp;
pub use platypush_tcp::PlatypushTcp;
pub use socktools::{Network, RawEncoding, Raws, Socktools};

/// The doors that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// For clever-show's drone clients.
    pub clever_show: Option<CleverShow>,
    /// Platypush's messages over TCP.
    pub platypush_tcp: Option<PlatypushTcp>,
    /// Platypush's messages, hooks and events over HTTP.
    pub platypush_http: Option<PlatypushHttp>,
    /// For peers of socktools.
    pub socktools: Option<Socktools>,
    /// For Knut's clients.
    pub knut: Option<Knut>,
}

/// What every door has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
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
    pub limits: Limits,
}

/// How much of a door may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
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
    pub waiting: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: 64,
            message_bytes: 64 * 1024,
            rate: 50,
            idle: Duration::from_secs(60),
            waiting: 1_024,
        }
    }
}

impl Common {
    /// A door at a port of this machine that lets nothing but questions through.
    pub fn at(port: u16) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            allow: Vec::new(),
            role: Role::Operator,
            target: Selector::all(),
            token: None,
            ttl: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            limits: Limits::default(),
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
    pub fn is(&self, shown: &str) -> bool {
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
enum Kind {
    Text,
    Number,
    Flag,
    List,
}

impl Kind {
    fn rule(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Number => "a whole number",
            Self::Flag => "true or false",
            Self::List => "a list of texts, such as [\"led\", \"show_*\"]",
        }
    }

    /// What a variable of this kind holds.
    fn read(self, text: &str) -> Raw<'_> {
        match self {
            Self::Text => Raw::Text(text),
            Self::Number => text.parse().map_or(Raw::Text(text), Raw::Number),
            Self::Flag => text.parse().map_or(Raw::Text(text), Raw::Flag),
            Self::List => {
                let parts = text.split(',').map(str::trim);
                Raw::List(parts.filter(|part| !part.is_empty()).collect())
            }
        }
    }
}

/// The keys that every door has.
const COMMON: &[(&str, Kind)] = &[
    ("listen", Kind::Text),
    ("allow", Kind::List),
    ("role", Kind::Text),
    ("target", Kind::Text),
    ("token", Kind::Text),
    ("ttl", Kind::Text),
    ("timeout", Kind::Text),
    ("connections", Kind::Number),
    ("connections_per_address", Kind::Number),
    ("message_bytes", Kind::Number),
    ("rate", Kind::Number),
    ("idle", Kind::Text),
];

/// A door's configuration.
trait Door: Sized {
    /// As in `[doors.NAME]`.
    const NAME: &'static str;
    /// Its own keys.
    const KEYS: &'static [(&'static str, Kind)];
    /// The tables within its own, which [`Self::set_table`] takes.
    const TABLES: &'static [&'static str] = &[];
    /// Open, with nothing else said.
    fn open() -> Self;
    fn common(&mut self) -> &mut Common;
    /// Sets one of [`Self::KEYS`]; the value is of its kind.
    fn set(&mut self, key: &str, _value: &Raw<'_>) -> Result<(), String> {
        Err(format!("{key} has no meaning here"))
    }
    /// A common key has been set.
    ///
    /// # Errors
    /// What it is at odds with.
    fn has_taken(&mut self, _key: &str) -> Result<(), String> {
        Ok(())
    }
    /// Takes over a table within its own, such as `[doors.NAME.KEY]`; `None`: there is no such table. Errors carry
    /// the byte at which they are.
    fn set_table(&mut self, _key: &str, _table: &DeTable<'_>) -> Option<Result<(), (usize, String)>> {
        None
    }
}

impl Doors {
    /// What every door has, of each that is open, by the name of the door.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Common)> {
        fn named<'a, D: Door>(
            door: Option<&'a D>,
            common: impl Fn(&'a D) -> &'a Common,
        ) -> Option<(&'static str, &'a Common)> {
            Some((D::NAME, common(door?)))
        }
        let all = [
            named(self.clever_show.as_ref(), |door| &door.common),
            named(self.platypush_tcp.as_ref(), |door| &door.common),
            named(self.platypush_http.as_ref(), |door| &door.common),
            named(self.socktools.as_ref(), |door| &door.common),
            named(self.knut.as_ref(), |door| &door.common),
        ];
        all.into_iter().flatten()
    }

    /// Whether one is open that programs ask at, and not only drones.
    pub fn are_asked_at(&self) -> bool {
        self.each().any(|(name, _)| name != CleverShow::NAME)
    }

    /// Takes over `[doors]`. Errors carry the byte at which they are.
    pub(super) fn read_table(&mut self, doors: &DeTable<'_>) -> Result<(), (usize, String)> {
        let mut entries: Vec<_> = doors.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let at = name.span().start;
            let name: &str = name.get_ref();
            let table = value.get_ref().as_table();
            let table =
                table.ok_or_else(|| (at, format!("doors.{name} is a table: write [doors.{name}]")))?;
            match name {
                CleverShow::NAME => from_table(&mut self.clever_show, table)?,
                PlatypushTcp::NAME => from_table(&mut self.platypush_tcp, table)?,
                PlatypushHttp::NAME => from_table(&mut self.platypush_http, table)?,
                Socktools::NAME => from_table(&mut self.socktools, table)?,
                Knut::NAME => from_table(&mut self.knut, table)?,
                _ => return Err((at, format!("[doors]: {}", unknown(name, NAMES)))),
            }
        }
        Ok(())
    }

    pub(super) fn read_environment(
        &mut self,
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        from_environment(&mut self.clever_show, &get)?;
        from_environment(&mut self.platypush_tcp, &get)?;
        from_environment(&mut self.platypush_http, &get)?;
        from_environment(&mut self.socktools, &get)?;
        from_environment(&mut self.knut, &get)
    }
}

/// As in `[doors.NAME]`.
const NAMES: &[&str] = &[
    CleverShow::NAME,
    PlatypushTcp::NAME,
    PlatypushHttp::NAME,
    Socktools::NAME,
    Knut::NAME,
];

/// The keys of each that not every door has.
const OWN_KEYS: &[(&str, &[(&str, Kind)])] = &[
    (CleverShow::NAME, CleverShow::KEYS),
    (PlatypushTcp::NAME, PlatypushTcp::KEYS),
    (PlatypushHttp::NAME, PlatypushHttp::KEYS),
    (Socktools::NAME, Socktools::KEYS),
    (Knut::NAME, Knut::KEYS),
];

fn from_table<D: Door>(door: &mut Option<D>, table: &DeTable<'_>) -> Result<(), (usize, String)> {
    let door = door.get_or_insert_with(D::open);
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let at = key.span().start;
        let key: &str = key.get_ref();
        if let Some(table) = value.get_ref().as_table()
            && let Some(taken) = door.set_table(key, table)
        {
            taken?;
            continue;
        }
        if D::TABLES.contains(&key) {
            return Err((at, format!("{key} is a table: write [doors.{}.{key}]", D::NAME)));
        }
        // Before its value is looked at: whoever misspells the name of a table is not helped by what its value is.
        if !keys::<D>().any(|(known, _)| known == key) {
            return Err((at, format!("[doors.{}]: {}", D::NAME, unknown_key::<D>(key))));
        }
        let full = format!("doors.{}.{key}", D::NAME);
        let raw =
            raw(value).ok_or_else(|| (at, format!("{full} holds a value of a kind that no key has")))?;
        match set(door, key, &raw) {
            Some(taken) => taken.map_err(|fault| (value.span().start, fault))?,
            None => return Err((at, format!("[doors.{}]: {}", D::NAME, unknown_key::<D>(key)))),
        }
    }
    Ok(())
}

/// What to say of a key that this door does not have: another one may.
fn unknown_key<D: Door>(key: &str) -> String {
    let has = |(name, keys): &&(&str, &[(&str, Kind)])| {
        *name != D::NAME && keys.iter().any(|(known, _)| *known == key)
    };
    if let Some((other, _)) = OWN_KEYS.iter().find(has) {
        return format!("{key:?} is a key of [doors.{other}], not of this door");
    }
    let own = keys::<D>().map(|(known, _)| known);
    let known: Vec<&str> = own.chain(D::TABLES.iter().copied()).collect();
    unknown(key, &known)
}

/// Each variable of each door, behind what all of its door begin with.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    OWN_KEYS.iter().flat_map(|(name, own)| {
        let keys = COMMON.iter().chain(*own);
        keys.map(|(key, _)| (variable(name, ""), variable(name, key)))
    })
}

fn variable(door: &str, key: &str) -> String {
    format!("GROUND_STATION_DOORS_{door}_{key}").to_uppercase()
}

fn from_environment<D: Door>(
    door: &mut Option<D>,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    for (key, kind) in keys::<D>() {
        let variable = variable(D::NAME, key);
        let Some(text) = get(&variable) else { continue };
        let door = door.get_or_insert_with(D::open);
        if let Some(Err(fault)) = set(door, key, &kind.read(&text)) {
            return Err(ConfigError::Environment { variable, fault });
        }
    }
    Ok(())
}

fn keys<D: Door>() -> impl Iterator<Item = (&'static str, Kind)> {
    COMMON.iter().chain(D::KEYS).copied()
}

/// `None`: the door has no such key.
fn set<D: Door>(door: &mut D, key: &str, raw: &Raw<'_>) -> Option<Result<(), String>> {
    let (_, kind) = keys::<D>().find(|(known, _)| *known == key)?;
    let fits = matches!(
        (kind, raw),
        (Kind::Text, Raw::Text(_))
            | (Kind::Number, Raw::Number(_))
            | (Kind::Flag, Raw::Flag(_))
            | (Kind::List, Raw::List(_))
    );
    Some(if !fits {
        Err(format!("doors.{}.{key} has to be {}", D::NAME, kind.rule()))
    } else if COMMON.iter().any(|(known, _)| *known == key) {
        set_common(door.common(), key, raw).and_then(|()| door.has_taken(key))
    } else {
        door.set(key, raw)
    })
}

fn set_common(common: &mut Common, key: &str, raw: &Raw<'_>) -> Result<(), String> {
    match (key, raw) {
        ("listen", Raw::Text(text)) => common.listen = address(text)?,
        ("allow", Raw::List(list)) => common.allow = globs(list)?,
        ("role", Raw::Text(text)) => {
            common.role = match *text {
                "observer" => Role::Observer,
                "operator" => Role::Operator,
                "admin" => Role::Admin,
                _ => return Err(format!("{text:?} is not observer, operator or admin")),
            }
        }
        ("target", Raw::Text(text)) => {
            common.target = Selector::parse(text).map_err(|error| error.to_string())?;
        }
        ("token", Raw::Text(text)) => {
            if text.len() < TOKEN_BYTES_MIN {
                return Err(format!("a token has at least {TOKEN_BYTES_MIN} characters"));
            }
            common.token = Some(Secret((*text).to_owned()));
        }
        ("ttl", Raw::Text(text)) => common.ttl = time(text)?,
        ("timeout", Raw::Text(text)) => common.timeout = time(text)?,
        ("connections", Raw::Number(number)) => common.limits.connections = within(key, *number, 1, 65_536)?,
        ("connections_per_address", Raw::Number(number)) => {
            common.limits.per_address = within(key, *number, 1, 65_536)?;
        }
        ("message_bytes", Raw::Number(number)) => {
            common.limits.message_bytes = within(key, *number, 256, 1024 * 1024)?;
        }
        ("rate", Raw::Number(number)) => common.limits.rate = within(key, *number, 1, 1_000_000)?,
        ("idle", Raw::Text(text)) => common.limits.idle = time(text)?,
        _ => return Err(format!("{key} has no meaning here")),
    }
    Ok(())
}

/// Shortest token.
const TOKEN_BYTES_MIN: usize = 16;

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_bad| format!("{text:?} is not ADDR:PORT, such as 127.0.0.1:8080"))
}

fn globs(list: &[&str]) -> Result<Vec<Glob>, String> {
    if list.contains(&"") {
        return Err("\"\" in `allow` names nothing: write the name of an action, or take it out".to_owned());
    }
    let parsed = list
        .iter()
        .map(|text| Glob::parse(text).map_err(|rule| format!("{text:?}: {rule}")));
    parsed.collect()
}

fn within<T: TryFrom<i64>>(key: &str, number: i64, least: i64, most: i64) -> Result<T, String> {
    let fits = (least..=most).contains(&number);
    let number = T::try_from(number).ok().filter(|_| fits);
    number.ok_or_else(|| format!("{key} has to be {least} to {most}"))
}

/// A length of time that is not nothing.
fn time(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        return Err(format!("{text:?} is no time at all: write at least 1ms"));
    }
    Ok(time)
}
