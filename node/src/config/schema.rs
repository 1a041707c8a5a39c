//! Every key that the configuration knows, once: for naming unknown keys, for environment variables, and for the
//! test that the shipped example leaves none out.

use toml::de::{DeTable, DeValue};

use super::{ConfigError, Origin, line_of};

/// What a key may hold, as far as finding keys needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyKind {
    /// A string.
    Text,
    /// Anything else that is one value: a number, a boolean, a list.
    Value,
    /// A table with fixed keys.
    Table(&'static [Key]),
    /// A table whose keys the owner chooses, and what each holds.
    Map(&'static Self),
    /// A table of the owner's own.
    Any,
}

/// A key and what it may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: KeyKind,
}

const fn key(name: &'static str, kind: KeyKind) -> Key {
    Key { name, kind }
}

use KeyKind::{Any, Map, Table, Text, Value};

const PROGRAM: &[Key] = &[key("command", Value), key("timeout", Text)];

const ARGUMENT: &[Key] = &[
    key("type", Text),
    key("pattern", Text),
    key("min", Value),
    key("max", Value),
    key("choices", Value),
    key("default", Value),
];

const ACTION: &[Key] = &[
    key("command", Value),
    key("args", Map(&Table(ARGUMENT))),
    key("timeout", Text),
    key("idempotent", Value),
    key("while_stopped", Value),
    key("class", Text),
];

const CLEVER_SHOW: &[Key] = &[
    key("server", Text),
    key("announce_port", Value),
    key("allow", Value),
    key("role", Text),
    key("telemetry", Value),
    key("telemetry_every", Text),
    key("clover_dir", Text),
    key("rate", Value),
    key("file_bytes", Value),
];

/// The whole file.
pub(super) const ROOT_KEYS: &[Key] = &[
    key("name", Text),
    key("listen", Text),
    key("tags", Map(&Text)),
    key("join", Text),
    key("adoptable", Value),
    key("stations", Value),
    key("ping_port", Value),
    key("pings", Value),
    key("mdns", Value),
    key("files", Table(&[key("roots", Map(&Text))])),
    key(
        "keepalive",
        Table(&[key("idle", Text), key("interval", Text), key("probes", Value)]),
    ),
    key("heartbeat", Table(&[key("interval", Text)])),
    key("execute", Table(&[key("allowed", Value), key("timeout", Text)])),
    key("services", Table(&[key("allow", Value)])),
    key("reboot", Table(&[key("allowed", Value), key("command", Value)])),
    key("notify", Table(PROGRAM)),
    key(
        "telemetry",
        Table(&[key("interval", Text), key("command", Value), key("timeout", Text)]),
    ),
    key("plugins", Table(&[key("enabled", Value)])),
    key("gateways", Table(&[key("clever_show", Table(CLEVER_SHOW))])),
    key("emergency_stop", Table(PROGRAM)),
    key(
        "lost_link",
        Table(&[
            key("after", Text),
            key("command", Value),
            key("timeout", Text),
            key("while_stopped", Value),
        ]),
    ),
    key("actions", Map(&Table(ACTION))),
    key("private", Any),
];

/// Refuses the first key that is not known.
pub(super) fn reject_unknown_keys(
    text: &str,
    table: &DeTable<'_>,
    origin: &Origin,
) -> Result<(), ConfigError> {
    check_table(text, table, ROOT_KEYS, &mut Vec::new(), origin)
}

fn check_table<'t>(
    text: &str,
    table: &'t DeTable<'_>,
    keys: &'static [Key],
    path: &mut Vec<&'t str>,
    origin: &Origin,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let found = keys.iter().find(|key| key.name == name.get_ref().as_ref());
        let Some(found) = found else {
            path.push(name.get_ref());
            return Err(ConfigError {
                origin: origin.at(line_of(text, name.span().start)),
                message: unknown_key_message(
                    &path.join("."),
                    name.get_ref(),
                    keys.iter().map(|key| key.name),
                ),
            });
        };
        path.push(name.get_ref());
        check_value(text, value.get_ref(), &found.kind, path, origin)?;
        path.pop();
    }
    Ok(())
}

fn check_value<'t>(
    text: &str,
    value: &'t DeValue<'_>,
    kind: &KeyKind,
    path: &mut Vec<&'t str>,
    origin: &Origin,
) -> Result<(), ConfigError> {
    // A value of another type is for the typed reading to refuse.
    let DeValue::Table(table) = value else {
        return Ok(());
    };
    match kind {
        Text | Value | Any => Ok(()),
        Table(keys) => check_table(text, table, keys, path, origin),
        Map(each) => {
            for (name, value) in table {
                path.push(name.get_ref());
                check_value(text, value.get_ref(), each, path, origin)?;
                path.pop();
            }
            Ok(())
        }
    }
}

/// The message for a key that is not known.
pub(super) fn unknown_key_message<'a>(
    path: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("unknown key `{path}`; did you mean `{near}`?"),
        None => format!(
            "unknown key `{path}`; known here: {}",
            known.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The known name that a typing mistake probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .map(|known| (edit_distance(&name, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1) + 1)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Every key that has an environment variable, as its path: keys with fixed names. What lies below a name of the
/// owner's own is set through the variable of the whole table.
pub(super) fn paths() -> Vec<(Vec<&'static str>, KeyKind)> {
    let mut found = Vec::new();
    collect_paths(ROOT_KEYS, &mut Vec::new(), &mut found);
    found
}

fn collect_paths(
    keys: &'static [Key],
    path: &mut Vec<&'static str>,
    found: &mut Vec<(Vec<&'static str>, KeyKind)>,
) {
    for key in keys {
        path.push(key.name);
        match key.kind {
            Table(keys) => collect_paths(keys, path, found),
            Text | Value | Map(_) | Any => found.push((path.clone(), key.kind)),
        }
        path.pop();
    }
}

/// What the key at `path` may hold; `None` if there is no such key.
pub(super) fn kind_of(path: &[&str]) -> Option<KeyKind> {
    let mut kind = Table(ROOT_KEYS);
    for name in path {
        kind = match kind {
            Table(keys) => keys.iter().find(|key| key.name == *name)?.kind,
            Map(each) => *each,
            Any => Any,
            Text | Value => return None,
        };
    }
    Some(kind)
}

/// Every key that a peer may see, in its table, with what it holds: for programs that ask what there is to set.
pub(super) fn spec() -> serde_json::Value {
    table_spec(ROOT_KEYS)
}

fn table_spec(keys: &'static [Key]) -> serde_json::Value {
    let shown = keys.iter().filter(|key| !matches!(key.kind, Any));
    let spec = shown.map(|key| (key.name.to_owned(), kind_spec(key.kind)));
    serde_json::Value::Object(spec.collect())
}

fn kind_spec(kind: KeyKind) -> serde_json::Value {
    match kind {
        Text => "string".into(),
        Value | Any => "value".into(),
        Table(keys) => table_spec(keys),
        Map(each) => serde_json::json!({ "*": kind_spec(*each) }),
    }
}

/// A value given as text, in a variable or on a command line: a string's own characters, or TOML for the rest.
pub(super) fn parse_value(kind: KeyKind, text: &str) -> Result<toml::Value, String> {
    if matches!(kind, Text) {
        return Ok(toml::Value::String(text.to_owned()));
    }
    let mut table: toml::Table = format!("v = {text}")
        .parse()
        .map_err(|error: toml::de::Error| format!("{text:?} is not a TOML value: {}", error.message()))?;
    match (table.remove("v"), table.is_empty()) {
        (Some(value), true) => Ok(value),
        _ => Err(format!("{text:?} is not one TOML value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested_for_a_typo() {
        let names = || ROOT_KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("lisen", names()), Some("listen"));
        assert_eq!(nearest("ping-port", names()), Some("ping_port"));
        assert_eq!(nearest("emergency", names()), Some("emergency_stop"));
        assert_eq!(nearest("xyzzy", names()), None);
    }

    #[test]
    fn keys_are_found_by_path() {
        assert!(matches!(kind_of(&["telemetry", "interval"]), Some(Text)));
        assert!(matches!(
            kind_of(&["actions", "led", "args", "color", "min"]),
            Some(Value)
        ));
        assert!(kind_of(&["telemetry", "nope"]).is_none());
        assert!(kind_of(&["name", "x"]).is_none());
    }

    #[test]
    fn text_is_parsed_by_the_kind_of_its_key() {
        assert_eq!(parse_value(Text, "7"), Ok(toml::Value::String("7".to_owned())));
        assert_eq!(parse_value(Value, "7"), Ok(toml::Value::Integer(7)));
        parse_value(Value, "1\nname = 2").expect_err("two keys");
    }
}
