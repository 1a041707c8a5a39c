//! Typed arguments of a plug-in's action, checked by the node.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, CHOICES_MAX, DESCRIPTION_BYTES_MAX, RegisterError, is_name, truncate,
};
use crate::proto::message::Arguments;

/// The type of an argument.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgumentKind {
    /// Text of at most [`ARGUMENT_BYTES_MAX`] bytes.
    String,
    /// A whole number within inclusive bounds.
    Integer {
        /// Lower bound.
        min: i64,
        /// Upper bound.
        max: i64,
    },
    /// A number within inclusive bounds.
    Number {
        /// Lower bound.
        min: f64,
        /// Upper bound.
        max: f64,
    },
    /// `true` or `false`.
    Boolean,
    /// One of these texts.
    Choice(Vec<String>),
}

/// An argument's type and default.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgumentSpec {
    /// The type of its value.
    pub kind: ArgumentKind,
    /// Without a default, the argument must be given.
    pub default: Option<Value>,
}

/// The arguments of an action by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArgumentSpecs(BTreeMap<String, ArgumentSpec>);

impl ArgumentSpecs {
    /// Parses `{"color": {"type": "string", "default": "red"}}`; `at` names the place in errors.
    pub(super) fn parse(at: &str, value: &Value) -> Result<Self, RegisterError> {
        let object = value
            .as_object()
            .ok_or_else(|| RegisterError::wrong_value(at, "an object of arguments by their names"))?;
        if object.len() > ARGUMENTS_MAX {
            return Err(RegisterError::too_many(at, object.len(), ARGUMENTS_MAX));
        }
        let mut rules = BTreeMap::new();
        for (name, value) in object {
            if !is_name(name) {
                return Err(RegisterError::bad_name(at, name));
            }
            rules.insert(name.clone(), ArgumentSpec::parse(&format!("{at}.{name}"), value)?);
        }
        Ok(Self(rules))
    }

    /// The arguments for the plug-in: all by name, checked, with defaults.
    ///
    /// # Errors
    /// A text that names the argument and its rule.
    pub fn check(&self, given: &Arguments) -> Result<Arguments, String> {
        let takes = || match self.0.keys().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => "it takes none".to_owned(),
            names => format!("it takes: {}", names.join(", ")),
        };
        if let Some(unknown) = given.kwargs.keys().find(|name| !self.0.contains_key(*name)) {
            return Err(format!(
                "unknown argument {:?}; {}",
                truncate(unknown, 80),
                takes()
            ));
        }
        // A single argument may be given by position.
        let positional = match given.args.as_slice() {
            [] => None,
            [value] if self.0.len() == 1 && given.kwargs.is_empty() => Some(value),
            _ => return Err(format!("give arguments by name, once each; {}", takes())),
        };
        let mut kwargs = Map::new();
        for (name, argument) in &self.0 {
            let value = match given.kwargs.get(name).or(positional) {
                Some(value) => argument.kind.convert(value).ok_or_else(|| {
                    format!(
                        "argument {name} must be {}, not {}",
                        argument.kind,
                        argument.kind.describe_rejected(name, value)
                    )
                })?,
                None => argument
                    .default
                    .clone()
                    .ok_or_else(|| format!("argument {name} is missing: it must be {}", argument.kind))?,
            };
            kwargs.insert(name.clone(), value);
        }
        Ok(Arguments {
            args: Vec::new(),
            kwargs,
        })
    }
}

impl ArgumentSpec {
    fn parse(at: &str, value: &Value) -> Result<Self, RegisterError> {
        let wrong = |expected: &str| RegisterError::wrong_value(at, expected);
        let object = value
            .as_object()
            .ok_or_else(|| wrong("an object such as {\"type\": \"string\"}"))?;
        super::registration::check_known_keys(at, object, &["type", "min", "max", "choices", "default"])?;
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
        for (key, of) in [
            ("min", "integer number"),
            ("max", "integer number"),
            ("choices", "choice"),
        ] {
            if object.contains_key(key) && !of.split(' ').any(|of| of == kind) {
                return Err(RegisterError::wrong_value(
                    &format!("{at}.{key}"),
                    &format!("left out for type {kind:?}"),
                ));
            }
        }
        let kind = match kind {
            "string" => ArgumentKind::String,
            "integer" => ArgumentKind::Integer {
                min: parse_bound(at, object, "min", Value::as_i64)?.unwrap_or(i64::MIN),
                max: parse_bound(at, object, "max", Value::as_i64)?.unwrap_or(i64::MAX),
            },
            "number" => ArgumentKind::Number {
                min: parse_bound(at, object, "min", Value::as_f64)?.unwrap_or(f64::MIN),
                max: parse_bound(at, object, "max", Value::as_f64)?.unwrap_or(f64::MAX),
            },
            "boolean" => ArgumentKind::Boolean,
            "choice" => ArgumentKind::Choice(parse_choices(at, object.get("choices"))?),
            _ => return Err(wrong("of a \"type\": string, integer, number, boolean or choice")),
        };
        let mut argument = Self { kind, default: None };
        if let Some(default) = object.get("default") {
            let checked = argument.kind.convert(default);
            let rule = argument.kind.to_string();
            argument.default =
                Some(checked.ok_or_else(|| RegisterError::wrong_value(&format!("{at}.default"), &rule))?);
        }
        Ok(argument)
    }
}

fn parse_bound<T>(
    at: &str,
    object: &Map<String, Value>,
    key: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, RegisterError> {
    let wrong = || RegisterError::wrong_value(&format!("{at}.{key}"), "a number of the argument's type");
    object
        .get(key)
        .map(|value| read(value).ok_or_else(wrong))
        .transpose()
}

fn parse_choices(at: &str, value: Option<&Value>) -> Result<Vec<String>, RegisterError> {
    let at = format!("{at}.choices");
    let list = value.and_then(Value::as_array).filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| RegisterError::wrong_value(&at, "a list of texts, such as [\"a\", \"b\"]"))?;
    if list.len() > CHOICES_MAX {
        return Err(RegisterError::too_many(&at, list.len(), CHOICES_MAX));
    }
    list.iter()
        .map(|choice| super::registration::parse_text(&at, choice, DESCRIPTION_BYTES_MAX))
        .collect()
}

impl ArgumentKind {
    /// The value for the plug-in; `None` if it breaks the rule.
    fn convert(&self, value: &Value) -> Option<Value> {
        match self {
            Self::String => plain_text(value)
                .filter(|text| text.len() <= ARGUMENT_BYTES_MAX)
                .map(Value::String),
            Self::Integer { min, max } => value
                .as_i64()
                .filter(|number| (min..=max).contains(&number))
                .map(Value::from),
            Self::Number { min, max } => value
                .as_f64()
                .filter(|number| (min..=max).contains(&number))
                .map(|_in_range| value.clone()),
            Self::Boolean => value.as_bool().map(Value::Bool),
            Self::Choice(choices) => plain_text(value)
                .filter(|text| choices.contains(text))
                .map(Value::String),
        }
    }

    /// Quotes the given value, and says how to send the intended one if that is clear.
    fn describe_rejected(&self, name: &str, value: &Value) -> String {
        let shown = value.to_string();
        let given = truncate(&shown, 80);
        if value.is_f64() && self.convert(&Value::String(shown.clone())).is_some() {
            return format!(
                "the number {given}: put it in quotation marks to send it as text, as in {name}='\"{given}\"'"
            );
        }
        given.to_owned()
    }
}

/// The rule, as a phrase.
impl std::fmt::Display for ArgumentKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::String => write!(f, "a string of at most {ARGUMENT_BYTES_MAX} bytes"),
            Self::Integer {
                min: i64::MIN,
                max: i64::MAX,
            } => f.write_str("an integer"),
            Self::Integer { min, max: i64::MAX } => write!(f, "an integer of at least {min}"),
            Self::Integer { min: i64::MIN, max } => write!(f, "an integer of at most {max}"),
            Self::Integer { min, max } => write!(f, "an integer from {min} to {max}"),
            Self::Number { min, max } => match (*min > f64::MIN, *max < f64::MAX) {
                (false, false) => f.write_str("a number"),
                (true, false) => write!(f, "a number of at least {min}"),
                (false, true) => write!(f, "a number of at most {max}"),
                (true, true) => write!(f, "a number from {min} to {max}"),
            },
            Self::Boolean => f.write_str("true or false"),
            Self::Choice(choices) => write!(f, "one of: {}", choices.join(", ")),
        }
    }
}

/// A number or boolean as text, for a command line such as `code=7`. A number with a point has lost its spelling, and
/// is refused.
fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
