//! What a program says that it can do: the `kwargs` of its `register` message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    ACTIONS_MAX, ANSWER_WAIT, ANSWER_WAIT_MAX, DESCRIPTION_BYTES_MAX, FIELDS_MAX, NAME_BYTES_MAX,
    REQUESTS_MAX, Rules, UNIT_BYTES_MAX, cut, is_name,
};

/// Why a registration is refused. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The plug-in has no name.
    #[error("register needs a name: {{\"name\": \"lamp\", …}}")]
    NoName,
    /// A name that is none.
    #[error(
        "{at}: {name:?} is not a name here: use 1 to {NAME_BYTES_MAX} letters, digits, _ and -, beginning with a \
         letter or digit"
    )]
    BadName {
        /// Where.
        at: String,
        /// What is there, cut.
        name: String,
    },
    /// A key that means nothing.
    #[error("{at}: unknown key {key:?}; known: {known}")]
    UnknownKey {
        /// Where.
        at: String,
        /// The key, cut.
        key: String,
        /// What is known there.
        known: String,
    },
    /// A value of another type, or out of range.
    #[error("{at} must be {expected}")]
    WrongValue {
        /// Where.
        at: String,
        /// What it must be.
        expected: String,
    },
    /// More than one node can hold.
    #[error("{at}: {count} are more than the {max} allowed")]
    TooMany {
        /// Of what.
        at: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// An action and a request of one name.
    #[error("{0:?} is registered both as an action and as a request; name one of them otherwise")]
    Twice(String),
    /// The message has no arguments by name.
    #[error("register takes its arguments by name: {{\"args\": [], \"kwargs\": {{\"name\": \"lamp\", …}}}}")]
    NoArguments,
}

impl RegisterError {
    pub(super) fn wrong(at: &str, expected: &str) -> Self {
        Self::WrongValue {
            at: at.to_owned(),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn many(at: &str, count: usize, max: usize) -> Self {
        Self::TooMany {
            at: at.to_owned(),
            count,
            max,
        }
    }

    pub(super) fn name(at: &str, name: &str) -> Self {
        Self::BadName {
            at: at.to_owned(),
            name: cut(name, NAME_BYTES_MAX).to_owned(),
        }
    }
}

/// What a plug-in offers under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// It does something.
    Action,
    /// It only answers.
    Request,
}

/// An action or a request of a plug-in.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Which of the two.
    pub kind: EntryKind,
    /// How long the plug-in has for its answer.
    pub timeout: Duration,
    /// Whether it moves something and must never be late.
    pub flight: bool,
    /// Whether it does no harm to run it twice.
    pub idempotent: bool,
    /// Whether it may run while an emergency stop is latched.
    pub while_stopped: bool,
    /// Whether the plug-in answers at all; else it is done as soon as it is handed over.
    pub answers: bool,
    /// For people; may be empty.
    pub description: String,
    /// What it may be given; without rules anything is passed on.
    pub args: Option<Rules>,
}

impl Entry {
    fn of(kind: EntryKind) -> Self {
        let question = kind == EntryKind::Request;
        Self {
            kind,
            timeout: ANSWER_WAIT,
            flight: false,
            idempotent: question,
            while_stopped: question,
            answers: true,
            description: String::new(),
            args: None,
        }
    }

    fn read(kind: EntryKind, at: &str, value: &Value) -> Result<Self, RegisterError> {
        let mut entry = Self::of(kind);
        let object = match value {
            Value::Null => return Ok(entry),
            Value::Object(object) => object,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(RegisterError::wrong(at, "an object of settings; {} for none"));
            }
        };
        const QUESTION: [&str; 3] = ["timeout", "description", "args"];
        const ACTION: [&str; 7] = [
            "timeout",
            "description",
            "args",
            "class",
            "idempotent",
            "while_stopped",
            "answers",
        ];
        match kind {
            EntryKind::Action => known(at, object, &ACTION)?,
            EntryKind::Request => known(at, object, &QUESTION)?,
        }
        let at = |key: &str| format!("{at}.{key}");
        let flag = |key: &str, default: bool| match object.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| RegisterError::wrong(&at(key), "true or false")),
        };
        entry.idempotent = flag("idempotent", entry.idempotent)?;
        entry.while_stopped = flag("while_stopped", entry.while_stopped)?;
        entry.answers = flag("answers", entry.answers)?;
        if let Some(value) = object.get("class") {
            entry.flight = match value.as_str() {
                Some("ordinary") => false,
                Some("flight") => true,
                _ => return Err(RegisterError::wrong(&at("class"), "\"ordinary\" or \"flight\"")),
            };
        }
        if let Some(value) = object.get("timeout") {
            entry.timeout = timeout(&at("timeout"), value)?;
        }
        if let Some(value) = object.get("description") {
            entry.description = text(&at("description"), value, DESCRIPTION_BYTES_MAX)?;
        }
        entry.args = object
            .get("args")
            .map(|value| Rules::read(&at("args"), value))
            .transpose()?;
        Ok(entry)
    }
}

/// What a program says that it can do.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The plug-in's name: unique on its node.
    pub name: String,
    /// Its actions and requests by their names.
    pub entries: BTreeMap<String, Entry>,
    /// Its telemetry fields by their names, each with its unit, which may be empty.
    pub fields: BTreeMap<String, String>,
}

impl Registration {
    /// Reads the `kwargs` of a `register` message.
    ///
    /// # Errors
    /// [`RegisterError`]: the first mistake.
    pub fn read(kwargs: &Map<String, Value>) -> Result<Self, RegisterError> {
        known("register", kwargs, &["name", "actions", "requests", "telemetry"])?;
        let name = kwargs.get("name").ok_or(RegisterError::NoName)?;
        let name = name
            .as_str()
            .ok_or_else(|| RegisterError::wrong("name", "a text"))?;
        if !is_name(name) {
            return Err(RegisterError::name("name", name));
        }
        let mut entries = BTreeMap::new();
        for (key, kind, max) in [
            ("actions", EntryKind::Action, ACTIONS_MAX),
            ("requests", EntryKind::Request, REQUESTS_MAX),
        ] {
            for (name, value) in named(key, kwargs.get(key), max)? {
                let entry = Entry::read(kind, &format!("{key}.{name}"), value)?;
                if entries.insert(name.to_owned(), entry).is_some() {
                    return Err(RegisterError::Twice(name.to_owned()));
                }
            }
        }
        let mut fields = BTreeMap::new();
        for (name, unit) in named("telemetry", kwargs.get("telemetry"), FIELDS_MAX)? {
            let unit = if unit.is_null() {
                String::new()
            } else {
                text(&format!("telemetry.{name}"), unit, UNIT_BYTES_MAX)?
            };
            fields.insert(name.to_owned(), unit);
        }
        Ok(Self {
            name: name.to_owned(),
            entries,
            fields,
        })
    }
}

/// A table by names, or just a list of the names.
fn named<'v>(
    at: &str,
    value: Option<&'v Value>,
    max: usize,
) -> Result<Vec<(&'v str, &'v Value)>, RegisterError> {
    let wrong = || RegisterError::wrong(at, "an object by names, or a list of names");
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
        return Err(RegisterError::many(at, all.len(), max));
    }
    let mut seen = BTreeSet::new();
    for (name, _) in &all {
        if !is_name(name) {
            return Err(RegisterError::name(at, name));
        }
        if !seen.insert(*name) {
            return Err(RegisterError::wrong(
                at,
                &format!("a list that names {name:?} once"),
            ));
        }
    }
    Ok(all)
}

/// Refuses a key that means nothing, which is a typing mistake more often than not.
pub(super) fn known(at: &str, object: &Map<String, Value>, keys: &[&str]) -> Result<(), RegisterError> {
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(RegisterError::UnknownKey {
            at: at.to_owned(),
            key: cut(key, NAME_BYTES_MAX).to_owned(),
            known: keys.join(", "),
        }),
    }
}

pub(super) fn text(at: &str, value: &Value, bytes: usize) -> Result<String, RegisterError> {
    let fits = |text: &&str| text.len() <= bytes && !text.contains(char::is_control);
    value.as_str().filter(fits).map(str::to_owned).ok_or_else(|| {
        RegisterError::wrong(
            at,
            &format!("a text of at most {bytes} bytes without control characters"),
        )
    })
}

/// Seconds, as a number.
fn timeout(at: &str, value: &Value) -> Result<Duration, RegisterError> {
    value
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|wait| !wait.is_zero() && *wait <= ANSWER_WAIT_MAX)
        .ok_or_else(|| {
            let max = ANSWER_WAIT_MAX.as_secs();
            RegisterError::wrong(at, &format!("a number of seconds above 0, at most {max}"))
        })
}
