//! An owner's action: a command with typed arguments.
//!
//! A value replaces `{name}` within one element of the command and stays within that element: no shell parses it. The
//! program, which is the first element, is fixed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use swarm_shared::config::{toml, value};
use swarm_shared::proto::message::Arguments;

use super::values::{Argv, Identifier};

/// Time-out of an action that configures none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest value of a string argument, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// How long a command may wait before the action starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// May be queued for an absent node until its deadline.
    #[default]
    Ordinary,
    /// Moves the device: its command is at most 2 s old at the start, and is never queued for an absent node.
    Flight,
}

/// An owner's action.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawAction")]
pub struct Action {
    command: Vec<Vec<TemplatePart>>,
    args: BTreeMap<Identifier, Argument>,
    /// When its process group is killed.
    pub timeout: Duration,
    /// Whether a second run is harmless: only then it is repeated after a crash.
    pub idempotent: bool,
    /// Whether it may run while an emergency stop is latched.
    pub while_stopped: bool,
    /// How long its command may wait.
    pub class: Class,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAction {
    command: Argv,
    #[serde(default)]
    args: BTreeMap<Identifier, Argument>,
    #[serde(default = "timeout", deserialize_with = "value::duration")]
    timeout: Duration,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    while_stopped: bool,
    #[serde(default)]
    class: Class,
}

fn timeout() -> Duration {
    TIMEOUT_DEFAULT
}

impl TryFrom<RawAction> for Action {
    type Error = String;

    fn try_from(raw: RawAction) -> Result<Self, String> {
        let mut command = Vec::new();
        for (i, part) in raw.command.as_slice().iter().enumerate() {
            let pieces = parse_template(part)?;
            for piece in &pieces {
                let TemplatePart::Argument(name) = piece else {
                    continue;
                };
                if i == 0 {
                    return Err(format!(
                        "the program itself must be fixed: {part:?} holds {{{name}}}"
                    ));
                }
                if !raw.args.contains_key(name.as_str()) {
                    return Err(format!(
                        "{part:?} uses {{{name}}}, but there is no args.{name}; write {{{{ and }}}} for plain braces"
                    ));
                }
            }
            command.push(pieces);
        }
        let used = |name: &Identifier| {
            command
                .iter()
                .flatten()
                .any(|piece| matches!(piece, TemplatePart::Argument(used) if used == name.as_str()))
        };
        if let Some(name) = raw.args.keys().find(|name| !used(name)) {
            return Err(format!(
                "args.{name} is never used: put {{{name}}} into the command"
            ));
        }
        Ok(Self {
            command,
            args: raw.args,
            timeout: raw.timeout,
            idempotent: raw.idempotent,
            while_stopped: raw.while_stopped,
            class: raw.class,
        })
    }
}

impl Action {
    /// The command for these arguments.
    ///
    /// # Errors
    /// A sentence that names the argument and quotes its rule.
    pub fn argv(&self, given: &Arguments) -> Result<Vec<String>, String> {
        let values = self.values(given)?;
        let fill = |piece: &TemplatePart| match piece {
            TemplatePart::Text(text) => text.clone(),
            TemplatePart::Argument(name) => values.get(name.as_str()).cloned().unwrap_or_default(),
        };
        Ok(self
            .command
            .iter()
            .map(|pieces| pieces.iter().map(fill).collect())
            .collect())
    }

    fn values(&self, given: &Arguments) -> Result<BTreeMap<&str, String>, String> {
        let names: Vec<&str> = self.args.keys().map(Identifier::as_str).collect();
        let takes = || match names.as_slice() {
            [] => "it takes none".to_owned(),
            names => format!("it takes: {}", names.join(", ")),
        };
        if let Some(unknown) = given.kwargs.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("unknown argument {unknown:?}; {}", takes()));
        }
        // A single argument needs no name.
        let positional = match (given.args.as_slice(), names.as_slice()) {
            ([], _) => None,
            ([value], [only]) if !given.kwargs.contains_key(*only) => Some(value),
            _ => return Err(format!("give arguments by name, once each; {}", takes())),
        };
        let mut values = BTreeMap::new();
        for (name, argument) in &self.args {
            let text = match given.kwargs.get(name.as_str()).or(positional) {
                Some(value) => argument.check(value).ok_or_else(|| {
                    format!(
                        "argument {name} must be {}, not {}",
                        argument.describe_rule(),
                        argument.describe_given(name, value)
                    )
                })?,
                None => argument.default.clone().ok_or_else(|| {
                    format!(
                        "argument {name} is missing: it must be {}",
                        argument.describe_rule()
                    )
                })?,
            };
            values.insert(name.as_str(), text);
        }
        Ok(values)
    }
}

fn truncated(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Text(String),
    Argument(String),
}

/// Splits `a{name}b` at its placeholders; `{{` and `}}` are plain braces.
fn parse_template(part: &str) -> Result<Vec<TemplatePart>, String> {
    let bad = || format!("{part:?}: write {{name}} for an argument, {{{{ and }}}} for plain braces");
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = part;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{") {
            text.push('{');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("}}") {
            text.push('}');
            rest = after;
        } else {
            let (name, after) = rest
                .strip_prefix('{')
                .and_then(|inner| inner.split_once('}'))
                .ok_or_else(bad)?;
            let name = Identifier::parse(name).map_err(|_rule| bad())?;
            if !text.is_empty() {
                pieces.push(TemplatePart::Text(std::mem::take(&mut text)));
            }
            pieces.push(TemplatePart::Argument(name.as_str().to_owned()));
            rest = after;
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(TemplatePart::Text(text));
    }
    Ok(pieces)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawArgument")]
struct Argument {
    rule: Rule,
    default: Option<String>,
}

#[derive(Clone, Debug)]
enum Rule {
    Text(Option<Pattern>),
    Integer { min: i64, max: i64 },
    Number { min: f64, max: f64 },
    Boolean,
    Choice(Vec<String>),
}

/// A pattern that the whole value has to match.
#[derive(Clone, Debug)]
struct Pattern {
    source: String,
    regex: regex_lite::Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ArgumentType {
    String,
    Integer,
    Number,
    Boolean,
    Choice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArgument {
    r#type: ArgumentType,
    pattern: Option<String>,
    min: Option<toml::Value>,
    max: Option<toml::Value>,
    choices: Option<Vec<String>>,
    default: Option<Value>,
}

impl TryFrom<RawArgument> for Argument {
    type Error = String;

    fn try_from(raw: RawArgument) -> Result<Self, String> {
        let kind = raw.r#type;
        let numeric = matches!(kind, ArgumentType::Integer | ArgumentType::Number);
        let misplaced = [
            (
                "pattern",
                raw.pattern.is_some() && kind != ArgumentType::String,
                "string",
            ),
            ("min", raw.min.is_some() && !numeric, "integer or number"),
            ("max", raw.max.is_some() && !numeric, "integer or number"),
            (
                "choices",
                raw.choices.is_some() && kind != ArgumentType::Choice,
                "choice",
            ),
        ];
        if let Some((key, _, of)) = misplaced.iter().find(|(_, misplaced, _)| *misplaced) {
            return Err(format!("{key} is for an argument of type {of}"));
        }
        let rule = match kind {
            ArgumentType::String => Rule::Text(raw.pattern.map(Pattern::parse).transpose()?),
            ArgumentType::Integer => Rule::Integer {
                min: bound("min", raw.min, toml::Value::as_integer)?.unwrap_or(i64::MIN),
                max: bound("max", raw.max, toml::Value::as_integer)?.unwrap_or(i64::MAX),
            },
            ArgumentType::Number => Rule::Number {
                min: bound("min", raw.min, as_number)?.unwrap_or(f64::NEG_INFINITY),
                max: bound("max", raw.max, as_number)?.unwrap_or(f64::INFINITY),
            },
            ArgumentType::Boolean => Rule::Boolean,
            ArgumentType::Choice => match raw.choices {
                Some(choices) if !choices.is_empty() => Rule::Choice(choices),
                _ => return Err("an argument of type choice needs choices = [\"a\", \"b\"]".to_owned()),
            },
        };
        let mut argument = Self { rule, default: None };
        if argument.rule.is_empty() {
            return Err("min is above max".to_owned());
        }
        if let Some(default) = raw.default {
            let checked = argument.check(&default).ok_or_else(|| {
                format!(
                    "its default {} is not {}",
                    truncated(&default),
                    argument.describe_rule()
                )
            })?;
            argument.default = Some(checked);
        }
        Ok(argument)
    }
}

fn as_number(value: &toml::Value) -> Option<f64> {
    match value.as_integer() {
        Some(integer) => i32::try_from(integer).ok().map(f64::from),
        None => value.as_float().filter(|number| !number.is_nan()),
    }
}

fn bound<T>(
    key: &str,
    value: Option<toml::Value>,
    read: impl Fn(&toml::Value) -> Option<T>,
) -> Result<Option<T>, String> {
    value
        .map(|value| {
            read(&value).ok_or_else(|| format!("{key} = {value} is not a number of the argument's type"))
        })
        .transpose()
}

impl Pattern {
    fn parse(shown: String) -> Result<Self, String> {
        let whole = regex_lite::Regex::new(&format!("^(?:{shown})$"))
            .map_err(|error| format!("pattern {shown:?} is not a regular expression: {error}"))?;
        Ok(Self {
            source: shown,
            regex: whole,
        })
    }
}

impl Rule {
    fn is_empty(&self) -> bool {
        match self {
            Self::Integer { min, max } => min > max,
            Self::Number { min, max } => min > max,
            Self::Text(_) | Self::Boolean | Self::Choice(_) => false,
        }
    }
}

impl Argument {
    /// The value as it goes into the command; `None` if it breaks the rule.
    fn check(&self, value: &Value) -> Option<String> {
        match &self.rule {
            Rule::Text(pattern) => plain_text(value).filter(|text| {
                let fits = text.len() <= TEXT_BYTES_MAX && !text.contains('\0');
                fits && pattern
                    .as_ref()
                    .is_none_or(|pattern| pattern.regex.is_match(text))
            }),
            Rule::Integer { min, max } => value
                .as_i64()
                .filter(|number| min <= number && number <= max)
                .map(|number| number.to_string()),
            Rule::Number { min, max } => value
                .as_f64()
                .filter(|number| *min <= *number && *number <= *max)
                .map(|_in_range| value.to_string()),
            Rule::Boolean => value.as_bool().map(|yes| yes.to_string()),
            Rule::Choice(choices) => plain_text(value).filter(|text| choices.contains(text)),
        }
    }

    /// A refused value, for errors; with advice if it would be accepted as text.
    fn describe_given(&self, name: &Identifier, value: &Value) -> String {
        let given = truncated(value);
        let as_text = Value::String(value.to_string());
        if value.is_f64() && self.check(&as_text).is_some() {
            return format!(
                "the number {given}: put it in quotation marks to send it as text, as in {name}='\"{given}\"'"
            );
        }
        given
    }

    /// The rule as a phrase, for errors.
    fn describe_rule(&self) -> String {
        match &self.rule {
            Rule::Text(None) => format!("a string of at most {TEXT_BYTES_MAX} bytes"),
            Rule::Text(Some(pattern)) => format!("a string that matches {}", pattern.source),
            Rule::Integer { min, max } => match (*min, *max) {
                (i64::MIN, i64::MAX) => "an integer".to_owned(),
                (min, i64::MAX) => format!("an integer of at least {min}"),
                (i64::MIN, max) => format!("an integer of at most {max}"),
                (min, max) => format!("an integer from {min} to {max}"),
            },
            Rule::Number { min, max } => match (min.is_finite(), max.is_finite()) {
                (false, false) => "a number".to_owned(),
                (true, false) => format!("a number of at least {min}"),
                (false, true) => format!("a number of at most {max}"),
                (true, true) => format!("a number from {min} to {max}"),
            },
            Rule::Boolean => "true or false".to_owned(),
            Rule::Choice(choices) => format!("one of: {}", choices.join(", ")),
        }
    }
}

/// The value as text. The command line reads `code=7` as a number and `on=true` as a boolean: both have one spelling.
/// `None` for a number with a decimal point, whose spelling is lost, and for other types.
fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests;
