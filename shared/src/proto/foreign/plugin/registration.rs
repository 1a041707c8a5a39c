//! What a program offers: the `kwargs` of its `register` message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    ACTIONS_MAX, ArgumentSpecs, DESCRIPTION_BYTES_MAX, FIELDS_MAX, NAME_BYTES_MAX, REQUESTS_MAX,
    RESPONSE_TIMEOUT, RESPONSE_TIMEOUT_MAX, UNIT_BYTES_MAX, is_name, truncate,
};

/// Why a registration is refused. The text names the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The plug-in has no name.
    #[error("register needs a name: {{\"name\": \"lamp\", …}}")]
    MissingName,
    /// A name breaks the rule for names.
    #[error(
        "{at}: {name:?} is not a name here: use 1 to {NAME_BYTES_MAX} letters, digits, _ and -, beginning with a \
         letter or digit"
    )]
    BadName {
        /// Where in the message.
        at: String,
        /// The name, truncated.
        name: String,
    },
    /// A key that is not known.
    #[error("{at}: unknown key {key:?}; known: {known}")]
    UnknownKey {
        /// Where in the message.
        at: String,
        /// The key, truncated.
        key: String,
        /// The known keys.
        known: String,
    },
    /// A value of another type, or out of range.
    #[error("{at} must be {expected}")]
    WrongValue {
        /// Where in the message.
        at: String,
        /// The rule that it breaks.
        expected: String,
    },
    /// More entries than allowed.
    #[error("{at}: {count} are more than the {max} allowed")]
    TooMany {
        /// Which list.
        at: String,
        /// How many it has.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// One name for an action and a request.
    #[error("{0:?} is registered both as an action and as a request; name one of them otherwise")]
    DuplicateName(String),
    /// The message has no arguments by name.
    #[error("register takes its arguments by name: {{\"args\": [], \"kwargs\": {{\"name\": \"lamp\", …}}}}")]
    NoArguments,
}

impl RegisterError {
    pub(super) fn wrong_value(at: &str, expected: &str) -> Self {
        Self::WrongValue {
            at: at.to_owned(),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn too_many(at: &str, count: usize, max: usize) -> Self {
        Self::TooMany {
            at: at.to_owned(),
            count,
            max,
        }
    }

    pub(super) fn bad_name(at: &str, name: &str) -> Self {
        Self::BadName {
            at: at.to_owned(),
            name: truncate(name, NAME_BYTES_MAX).to_owned(),
        }
    }
}

/// The two kinds of callables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallableKind {
    /// It changes something.
    Action,
    /// It only reads.
    Request,
}

/// An action or a request of a plug-in.
#[derive(Clone, Debug, PartialEq)]
pub struct Callable {
    /// Action or request.
    pub kind: CallableKind,
    /// Time for its response.
    pub timeout: Duration,
    /// Whether it is a flight action.
    pub flight: bool,
    /// Whether running it twice does no harm.
    pub idempotent: bool,
    /// Whether it may run during an emergency stop.
    pub while_stopped: bool,
    /// Whether the plug-in responds; else the call is done once it is written.
    pub answers: bool,
    /// For users; may be empty.
    pub description: String,
    /// Rules for its arguments; without rules all arguments are passed on.
    pub arguments: Option<ArgumentSpecs>,
}

impl Callable {
    fn with_defaults(kind: CallableKind) -> Self {
        let question = kind == CallableKind::Request;
        Self {
            kind,
            timeout: RESPONSE_TIMEOUT,
            flight: false,
            idempotent: question,
            while_stopped: question,
            answers: true,
            description: String::new(),
            arguments: None,
        }
    }

    fn parse(kind: CallableKind, at: &str, value: &Value) -> Result<Self, RegisterError> {
        let mut entry = Self::with_defaults(kind);
        let object = match value {
            Value::Null => return Ok(entry),
            Value::Object(object) => object,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(RegisterError::wrong_value(
                    at,
                    "an object of settings; {} for none",
                ));
            }
        };
        const REQUEST_KEYS: [&str; 3] = ["timeout", "description", "args"];
        const ACTION_KEYS: [&str; 7] = [
            "timeout",
            "description",
            "args",
            "class",
            "idempotent",
            "while_stopped",
            "answers",
        ];
        match kind {
            CallableKind::Action => check_known_keys(at, object, &ACTION_KEYS)?,
            CallableKind::Request => check_known_keys(at, object, &REQUEST_KEYS)?,
        }
        let at = |key: &str| format!("{at}.{key}");
        let flag = |key: &str, default: bool| match object.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| RegisterError::wrong_value(&at(key), "true or false")),
        };
        entry.idempotent = flag("idempotent", entry.idempotent)?;
        entry.while_stopped = flag("while_stopped", entry.while_stopped)?;
        entry.answers = flag("answers", entry.answers)?;
        if let Some(value) = object.get("class") {
            entry.flight = match value.as_str() {
                Some("ordinary") => false,
                Some("flight") => true,
                _ => {
                    return Err(RegisterError::wrong_value(
                        &at("class"),
                        "\"ordinary\" or \"flight\"",
                    ));
                }
            };
        }
        if let Some(value) = object.get("timeout") {
            entry.timeout = parse_timeout(&at("timeout"), value)?;
        }
        if let Some(value) = object.get("description") {
            entry.description = parse_text(&at("description"), value, DESCRIPTION_BYTES_MAX)?;
        }
        entry.arguments = object
            .get("args")
            .map(|value| ArgumentSpecs::parse(&at("args"), value))
            .transpose()?;
        Ok(entry)
    }
}

/// What a program offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The plug-in's name, unique on its node.
    pub name: String,
    /// Its actions and requests by name.
    pub callables: BTreeMap<String, Callable>,
    /// Its telemetry fields by name, each with its unit, which may be empty.
    pub fields: BTreeMap<String, String>,
}

impl Registration {
    /// Parses the `kwargs` of a `register` message.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(kwargs: &Map<String, Value>) -> Result<Self, RegisterError> {
        check_known_keys("register", kwargs, &["name", "actions", "requests", "telemetry"])?;
        let name = kwargs.get("name").ok_or(RegisterError::MissingName)?;
        let name = name
            .as_str()
            .ok_or_else(|| RegisterError::wrong_value("name", "a text"))?;
        if !is_name(name) {
            return Err(RegisterError::bad_name("name", name));
        }
        let mut entries = BTreeMap::new();
        for (key, kind, max) in [
            ("actions", CallableKind::Action, ACTIONS_MAX),
            ("requests", CallableKind::Request, REQUESTS_MAX),
        ] {
            for (name, value) in parse_named(key, kwargs.get(key), max)? {
                let entry = Callable::parse(kind, &format!("{key}.{name}"), value)?;
                if entries.insert(name.to_owned(), entry).is_some() {
                    return Err(RegisterError::DuplicateName(name.to_owned()));
                }
            }
        }
        let mut fields = BTreeMap::new();
        for (name, unit) in parse_named("telemetry", kwargs.get("telemetry"), FIELDS_MAX)? {
            let unit = if unit.is_null() {
                String::new()
            } else {
                parse_text(&format!("telemetry.{name}"), unit, UNIT_BYTES_MAX)?
            };
            fields.insert(name.to_owned(), unit);
        }
        Ok(Self {
            name: name.to_owned(),
            callables: entries,
            fields,
        })
    }
}

/// Parses an object by names, or a list of the names.
fn parse_named<'v>(
    at: &str,
    value: Option<&'v Value>,
    max: usize,
) -> Result<Vec<(&'v str, &'v Value)>, RegisterError> {
    let wrong = || RegisterError::wrong_value(at, "an object by names, or a list of names");
    let all: Vec<(&str, &Value)> = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(object)) => object
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect(),
        Some(Value::Array(list)) => {
            let name = |name: &'v Value| name.as_str().map(|name| (name, &Value::Null)).ok_or_else(wrong);
            list.iter().map(name).collect::<Result<_, _>>()?
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => return Err(wrong()),
    };
    if all.len() > max {
        return Err(RegisterError::too_many(at, all.len(), max));
    }
    let mut seen = BTreeSet::new();
    for (name, _) in &all {
        if !is_name(name) {
            return Err(RegisterError::bad_name(at, name));
        }
        if !seen.insert(*name) {
            return Err(RegisterError::wrong_value(
                at,
                &format!("a list that names {name:?} once"),
            ));
        }
    }
    Ok(all)
}

/// Refuses unknown keys: they are typing errors more often than not.
pub(super) fn check_known_keys(
    at: &str,
    object: &Map<String, Value>,
    keys: &[&str],
) -> Result<(), RegisterError> {
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(RegisterError::UnknownKey {
            at: at.to_owned(),
            key: truncate(key, NAME_BYTES_MAX).to_owned(),
            known: keys.join(", "),
        }),
    }
}

pub(super) fn parse_text(at: &str, value: &Value, bytes: usize) -> Result<String, RegisterError> {
    let fits = |text: &&str| text.len() <= bytes && !text.contains(char::is_control);
    value.as_str().filter(fits).map(str::to_owned).ok_or_else(|| {
        RegisterError::wrong_value(
            at,
            &format!("a text of at most {bytes} bytes without control characters"),
        )
    })
}

/// Parses a number of seconds.
fn parse_timeout(at: &str, value: &Value) -> Result<Duration, RegisterError> {
    value
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|wait| !wait.is_zero() && *wait <= RESPONSE_TIMEOUT_MAX)
        .ok_or_else(|| {
            let max = RESPONSE_TIMEOUT_MAX.as_secs();
            RegisterError::wrong_value(at, &format!("a number of seconds above 0, at most {max}"))
        })
}
