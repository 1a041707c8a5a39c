//! The configuration layer of both programs: a TOML file, and environment variables over it.
//!
//! * A program declares its keys once, as a type with `#[derive(Deserialize)]`, and implements [`Configuration`].
//! * An unknown key is refused with its line and the nearest known key.
//! * The variable of a key is the program's prefix and the key's path in capitals, joined by `_`:
//!   `telemetry.interval` is `SWARM_NODE_TELEMETRY_INTERVAL`. A string is written as it is; a list with commas between its
//!   texts or as in TOML; anything else as in TOML. A table whose keys the owner chooses has one variable, an inline
//!   table that is merged over the file's.
//! * File and variables are merged before they are read, so that a key of the file may go with a variable.
//!   An error still names the line or the variable that it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
pub use toml;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub mod duration;
mod schema;
pub mod suggest;
#[cfg(test)]
mod tests;
pub mod value;

pub use schema::Kind;
use suggest::{any_of, nearest};

/// Longest configuration file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The whole configuration of a program.
pub trait Configuration: DeserializeOwned + Default {
    /// What the variables of its keys begin with, such as `SWARM_NODE_`.
    const VARIABLE_PREFIX: &'static str;
    /// Variables with this prefix that are not keys, such as `SWARM_NODE_LOG`.
    const RESERVED_VARIABLES: &'static [&'static str];

    /// Checks keys that depend on one another, once each is valid by itself.
    ///
    /// # Errors
    /// The key that has to change.
    fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError>;
}

/// Which keys a file or a variable sets.
#[derive(Debug)]
pub struct Keys<'a>(&'a DeTable<'a>);

impl Keys<'_> {
    /// Whether the key at `path` is set.
    pub fn has(&self, path: &[&str]) -> bool {
        span_of(self.0, path).is_some()
    }
}

/// A key that does not fit the others.
#[derive(Debug)]
pub struct KeyError {
    /// Its path, such as `gateways`, `knut`, `listen`.
    pub key: Vec<String>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Where a fault is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file, at a line from 1 if it is known.
    File(PathBuf, Option<usize>),
    /// In an environment variable.
    Variable(String),
    /// In a text that is not a file, at a line from 1 if it is known.
    Text(Option<usize>),
}

impl Origin {
    fn at(&self, text: &str, byte: usize) -> Self {
        let line = 1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count();
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
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Text(Some(line)) => write!(f, "line {line}"),
            Self::Text(None) => f.write_str("configuration"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct ConfigError {
    /// Where the fault is.
    pub origin: Origin,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// TCP keepalive, under the heartbeat of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keepalive {
    /// Silence before the first probe: 1 to 32767 whole seconds.
    #[serde(deserialize_with = "whole_seconds")]
    pub idle: Duration,
    /// Time between probes: 1 to 32767 whole seconds.
    #[serde(deserialize_with = "whole_seconds")]
    pub interval: Duration,
    /// Unanswered probes after which the connection is closed: 1 to 127.
    #[serde(deserialize_with = "value::ranged::<_, _, 1, 127>")]
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

/// The kernel counts keepalive in whole seconds, in 15 bits (tcp(7)).
fn whole_seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    value::text(from, |text| {
        let duration = duration::parse(text).map_err(|error| error.to_string())?;
        if duration.subsec_nanos() == 0 && (1..=32_767).contains(&duration.as_secs()) {
            return Ok(duration);
        }
        Err(format!(
            "{text:?} is not 1 to 32767 whole seconds, as TCP keepalive needs"
        ))
    })
}

/// The variables of this process that are text, as those of a configuration are.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

/// Reads a file of at most [`FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// The file cannot be read, is longer, or is not UTF-8.
pub fn read_file(path: &Path) -> Result<String, ConfigError> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
            return Err(io::Error::other(format!(
                "it is longer than {FILE_BYTES_MAX} bytes"
            )));
        }
        Ok(text)
    };
    read().map_err(|error| ConfigError {
        origin: Origin::File(path.to_owned(), None),
        message: format!("cannot be read: {error}"),
    })
}

/// Reads a text and the variables over it.
///
/// # Errors
/// The first fault.
pub fn parse<C: Configuration>(
    text: &str,
    origin: &Origin,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<C, ConfigError> {
    parse_with(text, origin, variables, Err)
}

/// Reads what is valid of a text and the variables over it, and leaves out each key that is not. Also gives the first
/// fault.
pub fn parse_best_effort<C: Configuration>(
    text: &str,
    origin: &Origin,
    variables: impl Iterator<Item = (String, String)>,
) -> (C, Option<ConfigError>) {
    let mut first = None;
    let read = parse_with(text, origin, variables, |error| {
        first.get_or_insert(error);
        Ok(())
    });
    let config = read.unwrap_or_else(|error| {
        first.get_or_insert(error);
        C::default()
    });
    (config, first)
}

/// Reads the syntax of a text, whatever its keys are.
///
/// # Errors
/// The first fault.
pub fn parse_syntax(text: &str, origin: &Origin) -> Result<toml::Table, ConfigError> {
    text.parse().map_err(|error| syntax_error(text, origin, &error))
}

fn syntax_error(text: &str, origin: &Origin, error: &toml::de::Error) -> ConfigError {
    let span = error.span();
    ConfigError {
        origin: span.map_or_else(|| origin.clone(), |span| origin.at(text, span.start)),
        message: error.message().trim().to_owned(),
    }
}

/// Each fault goes to `on_fault`. Where that accepts it, the key is left out.
fn parse_with<C: Configuration>(
    text: &str,
    origin: &Origin,
    variables: impl Iterator<Item = (String, String)>,
    mut on_fault: impl FnMut(ConfigError) -> Result<(), ConfigError>,
) -> Result<C, ConfigError> {
    let schema = Kind::of::<C>();
    let mut overrides = Vec::new();
    let mut bytes = text.len();
    for (variable, value) in own_variables::<C>(variables) {
        match override_text(&schema, C::VARIABLE_PREFIX, &variable, &value) {
            Ok(line) => {
                // After as many spaces as there are bytes before it, so that its spans are in no other text's range.
                let line = format!("{}{line}", " ".repeat(bytes + 1));
                bytes = line.len();
                overrides.push((variable, line));
            }
            Err(message) => on_fault(ConfigError {
                origin: Origin::Variable(variable),
                message,
            })?,
        }
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    let first = errors
        .iter()
        .min_by_key(|error| error.span().map(|span| span.start));
    if let Some(error) = first {
        on_fault(syntax_error(text, origin, error))?;
    }
    let mut table = table.into_inner();
    for (variable, line) in &overrides {
        match DeTable::parse(line) {
            Ok(over) => merge(&mut table, over.into_inner()),
            Err(error) => on_fault(syntax_error("", &Origin::Variable(variable.clone()), &error))?,
        }
    }
    let locate = |byte: usize| {
        let over = overrides.iter().find(|(_, line)| byte < line.len());
        match over.filter(|_| byte > text.len()) {
            Some((variable, _)) => Origin::Variable(variable.clone()),
            None => origin.at(text, byte),
        }
    };
    loop {
        let fault = match read_table::<C>(&schema, &table) {
            Ok(config) => return Ok(config),
            Err(fault) => fault,
        };
        let error = ConfigError {
            origin: fault.byte.map_or_else(|| origin.clone(), locate),
            message: fault.message,
        };
        let path = fault.path.unwrap_or_default();
        let removed = remove(&mut table, &path);
        on_fault(error.clone())?;
        if !removed {
            return Err(error);
        }
    }
}

/// What is wrong with a table: where, and the path of the key to leave out.
struct Fault {
    byte: Option<usize>,
    path: Option<Vec<String>>,
    message: String,
}

fn read_table<C: Configuration>(schema: &Kind, table: &DeTable<'_>) -> Result<C, Fault> {
    let mut unknown = Vec::new();
    find_unknown(schema, table, &mut Vec::new(), &mut unknown);
    if let Some((byte, path)) = unknown.into_iter().min() {
        let message = schema.unknown_key(&path.iter().map(String::as_str).collect::<Vec<_>>());
        return Err(Fault {
            byte: Some(byte),
            path: Some(path),
            message,
        });
    }
    let root = Spanned::new(0..0, table.clone());
    let mut config = C::deserialize(toml::Deserializer::from(root)).map_err(|error| {
        let byte = error.span().map(|span| span.start);
        let path = byte.map(|byte| path_at(table, byte)).unwrap_or_default();
        let message = error.message().trim();
        Fault {
            byte,
            message: if path.is_empty() {
                message.to_owned()
            } else {
                format!("{}: {message}", path.join("."))
            },
            path: Some(path),
        }
    })?;
    config.check(&Keys(table)).map_err(|error| {
        let path: Vec<&str> = error.key.iter().map(String::as_str).collect();
        Fault {
            byte: span_of(table, &path),
            message: format!("{}: {}", path.join("."), error.message),
            path: Some(error.key),
        }
    })?;
    Ok(config)
}

fn find_unknown(
    kind: &Kind,
    table: &DeTable<'_>,
    path: &mut Vec<String>,
    found: &mut Vec<(usize, Vec<String>)>,
) {
    for (name, value) in table {
        path.push(name.get_ref().to_string());
        match (kind.at(&[name.get_ref()]), value.get_ref()) {
            (None, _) => found.push((name.span().start, path.clone())),
            (Some(kind @ (Kind::Table(_) | Kind::Map(_))), DeValue::Table(table)) => {
                find_unknown(kind, table, path, found);
            }
            // A value of the wrong type is refused by the type itself.
            (Some(_), _) => {}
        }
        path.pop();
    }
}

/// The path of the innermost key that covers a byte. A key of a variable may be in a table of the file.
fn path_at(table: &DeTable<'_>, byte: usize) -> Vec<String> {
    let paths = table.iter().filter_map(|(name, value)| {
        let table = value.get_ref().as_table();
        let mut path = table.map(|table| path_at(table, byte)).unwrap_or_default();
        // A value that could not be read has an empty span.
        let covered = |span: Range<usize>| span.contains(&byte) || span.start == byte;
        let covers = !path.is_empty() || covered(name.span()) || covered(value.span());
        covers.then(|| {
            path.insert(0, name.get_ref().to_string());
            path
        })
    });
    paths.max_by_key(Vec::len).unwrap_or_default()
}

/// Where the value at `path` begins.
fn span_of(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let (name, below) = path.split_first()?;
    let (key, value) = table.get_key_value(*name)?;
    if below.is_empty() {
        return Some(key.span().start);
    }
    span_of(value.get_ref().as_table()?, below)
}

/// Takes a key out; with an empty path, all. Whether anything was taken out.
fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    let Some((name, below)) = path.split_first() else {
        let any = !table.is_empty();
        *table = DeTable::new();
        return any;
    };
    if below.is_empty() {
        return table.remove(name.as_str()).is_some();
    }
    match table.get_mut(name.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => remove(table, below),
        Some(_) | None => false,
    }
}

/// Lays `over` over `under`: tables are merged, anything else is replaced.
fn merge<'t>(under: &mut DeTable<'t>, over: DeTable<'t>) {
    for (key, mut value) in over {
        if let (Some(DeValue::Table(under)), DeValue::Table(over)) = (
            under.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut),
            value.get_mut(),
        ) {
            merge(under, std::mem::take(over));
            continue;
        }
        // The key too, for its span.
        under.remove(key.get_ref().as_ref());
        under.insert(key, value);
    }
}

fn own_variables<C: Configuration>(
    variables: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let own = |name: &str| name.starts_with(C::VARIABLE_PREFIX) && !C::RESERVED_VARIABLES.contains(&name);
    variables.filter(|(name, _)| own(name)).collect()
}

/// The name of the variable of the key at `path`.
pub fn variable_name(prefix: &str, path: &[&str]) -> String {
    format!("{prefix}{}", path.join("_").to_uppercase())
}

/// A variable as a line of TOML.
fn override_text(schema: &Kind, prefix: &str, variable: &str, value: &str) -> Result<String, String> {
    let leaves = schema.leaves();
    let key = leaves
        .iter()
        .find(|(path, _)| variable_name(prefix, path) == variable);
    let Some((path, kind)) = key else {
        return Err(unknown_variable(schema, prefix, variable));
    };
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let as_toml = DeValue::parse(value).ok();
    let value = match kind {
        Kind::Text => quoted(value),
        Kind::List if !as_toml.as_ref().is_some_and(|value| value.get_ref().is_array()) => {
            let texts = value.split(',').map(str::trim).filter(|text| !text.is_empty());
            format!("[{}]", texts.map(quoted).collect::<Vec<_>>().join(", "))
        }
        Kind::Map(_) if as_toml.is_none() => {
            return Err(format!(
                "{value:?} is not an inline table, such as {{ key = \"value\" }}"
            ));
        }
        Kind::List | Kind::Map(_) | Kind::Table(_) | Kind::Value | Kind::Any if as_toml.is_some() => {
            value.to_owned()
        }
        // The type refuses it, and says what it takes.
        Kind::List | Kind::Map(_) | Kind::Table(_) | Kind::Value | Kind::Any => quoted(value),
    };
    Ok(format!("{} = {value}", path.join(".")))
}

fn unknown_variable(schema: &Kind, prefix: &str, variable: &str) -> String {
    let leaves = schema.leaves();
    let known: Vec<String> = leaves
        .iter()
        .map(|(path, _)| variable_name(prefix, path))
        .collect();
    // What a variable shares with all others of its table does not tell which of them is meant.
    let tables = leaves
        .iter()
        .flat_map(|(path, _)| (0..path.len()).map(|end| path.get(..end).unwrap_or_default()));
    let shared = tables
        .map(|table| variable_name(prefix, table) + if table.is_empty() { "" } else { "_" })
        .filter(|table| variable.starts_with(table))
        .max_by_key(String::len)
        .unwrap_or_default();
    let candidates: Vec<&str> = known
        .iter()
        .filter_map(|name| name.strip_prefix(&shared))
        .collect();
    let near = nearest(variable.strip_prefix(&shared).unwrap_or_default(), &candidates);
    match any_of(near.iter().map(|name| format!("{shared}{name}")).collect()) {
        Some(near) => format!("no key has this variable; did you mean {near}?"),
        None => format!(
            "no key has this variable; that of a key is {prefix} and its path in capitals, such as {} for `{}`",
            known.last().map(String::as_str).unwrap_or_default(),
            leaves.last().map(|(path, _)| path.join(".")).unwrap_or_default(),
        ),
    }
}
