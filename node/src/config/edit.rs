//! Changes the configuration file at the request of a peer. The owner's comments are kept.
//!
//! `[private]` is neither shown nor changed. A new text is checked as a whole before it is written, with the environment
//! variables over it, as the daemon reads it at its start.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde_json::{Map, Value};
use swarm_shared::config::{Kind, parse_syntax, toml};
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike};

use super::{Config, ConfigError, Origin};

/// Longest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: usize = 256 * 1024;

/// Neither read nor written by `config`.
pub(super) const PRIVATE: &str = "private";
/// The invitation code, which is a secret: not shown.
const JOIN: &str = "join";

/// Why a configuration is not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The request names a protected or unknown key, or no key.
    #[error("{0}")]
    Refused(String),
    /// The new text is not a configuration.
    #[error("{0}; the file was not changed")]
    Config(#[from] ConfigError),
    /// It could not be written.
    #[error("{path}: cannot be written: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A configuration as it may be shown: without `[private]` and the invitation code.
///
/// # Errors
/// [`ConfigError`] if the text is not a configuration.
pub fn without_secrets(text: &str) -> Result<Map<String, Value>, ConfigError> {
    let mut table = parse_syntax(text, &Origin::Text(None))?;
    table.remove(PRIVATE);
    table.remove(JOIN);
    Ok(table
        .into_iter()
        .map(|(key, value)| (key, to_json(value)))
        .collect())
}

/// The text with these keys changed: a key may be a path (`telemetry.interval`), an object is merged key by key,
/// `null` takes a key out. Returns the new text, checked with the variables.
///
/// # Errors
/// [`EditError`]
pub fn modify(
    text: &str,
    changes: &Map<String, Value>,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<String, EditError> {
    let mut document = parse(text)?;
    if changes.is_empty() {
        return Err(EditError::Refused("no key to change was given".to_owned()));
    }
    let schema = Kind::of::<Config>();
    for (key, value) in changes {
        let mut path: Vec<&str> = key.split('.').collect();
        apply_change(
            &schema,
            document.as_table_mut(),
            &mut Vec::new(),
            &mut path,
            value,
        )?;
    }
    validate(document.to_string(), variables)
}

/// `new`, with the `[private]` table of `text`; checked with the variables.
///
/// # Errors
/// [`EditError`], also if `new` has a `[private]` of its own.
pub fn rewrite(
    text: &str,
    new: &str,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<String, EditError> {
    let mut document = parse(new)?;
    if document.contains_key(PRIVATE) {
        return Err(private_refusal());
    }
    if let Some((key, mut kept)) = parse(text)?.remove_entry(PRIVATE) {
        move_to_end(&mut kept);
        document.insert_formatted(&key, kept);
    }
    validate(document.to_string(), variables)
}

/// Replaces the file by the text, at once and whole, keeping its mode and, if that is possible, its owner.
///
/// # Errors
/// [`EditError::Io`]; the old file is unchanged then.
pub fn write_file(path: &Path, text: &str) -> Result<(), EditError> {
    // A symbolic link is kept: its target is replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_absent| path.to_owned());
    let result = replace_file(&target, text);
    result.map_err(|source| EditError::Io {
        path: target.display().to_string(),
        source,
    })
}

fn replace_file(target: &Path, text: &str) -> io::Result<()> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temp = target.with_file_name(name);
    let written = (|| {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&temp)?;
        if let Ok(old) = std::fs::metadata(target) {
            file.set_permissions(PermissionsExt::from_mode(old.mode() & 0o7777))?;
            // Only root can set the owner. Otherwise the new file belongs to the daemon's user.
            let _not_root = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temp, target)
    })();
    if written.is_err() {
        let _not_made = std::fs::remove_file(&temp);
        return written;
    }
    let dir = target.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all())
}

fn parse(text: &str) -> Result<DocumentMut, EditError> {
    if text.len() > CONFIG_BYTES_MAX {
        let bytes = text.len();
        return Err(EditError::Refused(format!(
            "a configuration of {bytes} bytes is longer than the {CONFIG_BYTES_MAX} allowed"
        )));
    }
    // Its errors name the line, which those of `DocumentMut` do not.
    parse_syntax(text, &Origin::Text(None))?;
    text.parse()
        .map_err(|error: toml_edit::TomlError| EditError::Refused(error.to_string()))
}

fn validate(text: String, variables: impl Iterator<Item = (String, String)>) -> Result<String, EditError> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(EditError::Refused(format!(
            "the configuration would be longer than the {CONFIG_BYTES_MAX} bytes allowed"
        )));
    }
    Config::parse_with_variables(&text, &Origin::Text(None), variables)?;
    Ok(text)
}

fn private_refusal() -> EditError {
    EditError::Refused("[private] is changed on the device only".to_owned())
}

/// Walks down `path`, which has at least one element, and changes what is there.
fn apply_change<'k>(
    schema: &Kind,
    table: &mut dyn TableLike,
    above: &mut Vec<&'k str>,
    path: &mut Vec<&'k str>,
    value: &'k Value,
) -> Result<(), EditError> {
    let key = path.remove(0);
    above.push(key);
    if above.first() == Some(&PRIVATE) {
        return Err(private_refusal());
    }
    let Some(kind) = schema.at(above) else {
        return Err(EditError::Refused(schema.unknown_key(above)));
    };
    match value {
        _ if !path.is_empty() => {
            apply_change(schema, sub_table(table, key)?, above, path, value)?;
        }
        Value::Null => {
            table.remove(key);
        }
        Value::Object(fields) => {
            let below = sub_table(table, key)?;
            for (field, value) in fields {
                apply_change(schema, below, above, &mut vec![field], value)?;
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            set_value(table, key, to_toml(kind, value)?);
        }
    }
    above.pop();
    Ok(())
}

fn sub_table<'t>(table: &'t mut dyn TableLike, key: &str) -> Result<&'t mut dyn TableLike, EditError> {
    if table.get(key).is_none() {
        table.insert(key, Item::Table(Table::new()));
    }
    table
        .get_mut(key)
        .and_then(Item::as_table_like_mut)
        .ok_or_else(|| EditError::Refused(format!("{key} is not a table")))
}

/// Puts the value in place of the old one, which keeps the comment behind it.
fn set_value(table: &mut dyn TableLike, key: &str, mut value: toml_edit::Value) {
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *value.decor_mut() = old.decor().clone();
    }
    match table.get_mut(key) {
        Some(item) => *item = Item::Value(value),
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn to_toml(kind: &Kind, value: &Value) -> Result<toml_edit::Value, EditError> {
    match (kind, value) {
        // A command line's text for a key that holds no text: `ping_port=7000`, `stations=["10.0.0.2:7421"]`.
        (Kind::Value | Kind::List, Value::String(text)) => match text.parse::<toml_edit::Value>() {
            Ok(value) => Ok(value),
            Err(_not_toml) => Ok(text.as_str().into()),
        },
        (Kind::Text, Value::Number(_) | Value::Bool(_)) => Ok(value.to_string().into()),
        _ => json_to_toml(value).ok_or_else(|| EditError::Refused(format!("{value} has no form in TOML"))),
    }
}

fn json_to_toml(value: &Value) -> Option<toml_edit::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(yes) => (*yes).into(),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => integer.into(),
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => values
            .iter()
            .map(json_to_toml)
            .collect::<Option<toml_edit::Array>>()?
            .into(),
        Value::Object(fields) => {
            let mut table = InlineTable::new();
            for (key, value) in fields {
                table.insert(key, json_to_toml(value)?);
            }
            table.into()
        }
    })
}

/// Clears the positions of tables: they refer to the document that the tables come from.
fn move_to_end(item: &mut Item) {
    if let Some(table) = item.as_table_mut() {
        table.set_position(None);
        for (_, below) in table.iter_mut() {
            move_to_end(below);
        }
    } else if let Some(tables) = item.as_array_of_tables_mut() {
        for table in tables.iter_mut() {
            table.set_position(None);
        }
    }
}

fn to_json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(yes) => Value::Bool(yes),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(values) => values.into_iter().map(to_json).collect(),
        toml::Value::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, value)| (key, to_json(value)))
                .collect(),
        ),
    }
}
