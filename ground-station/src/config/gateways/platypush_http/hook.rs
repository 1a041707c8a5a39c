//! Hooks: commands that a URL sends.
//!
//! ```toml
//! [gateways.platypush_http.hooks.lights]        # /hook/lights
//! action = "led"                             # has to be in `allow` of the gateway too, unless it only reads
//! target = "drone-*"                         # the gateway's target unless configured
//! methods = ["POST"]                         # any unless configured
//! token = "…"                                # shown as `X-Token: …` or `Authorization: Bearer …`
//!
//! [gateways.platypush_http.hooks.lights.parameters.color]
//! from = "query"                             # query, body or const
//! key = "colour"                             # its name there; `color` unless configured
//! type = "string"                            # string, integer, number or boolean
//! pattern = "#[0-9a-f]{6}"                   # matches the whole string
//! min = 0                                    # of a number
//! max = 100
//! choices = ["#ff0000", "#00ff00"]
//! default = "#ffffff"                        # without it the parameter is required
//! value = "#ffffff"                          # of a const
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;

use regex_lite::Regex;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};
use swarm_shared::config::value;
use swarm_shared::proto::selector::Selector;

use super::super::Secret;

/// A command that a URL sends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The action that is called.
    pub action: String,
    /// The nodes; those of the gateway's `target` if absent.
    #[serde(default, deserialize_with = "target")]
    pub target: Option<Selector>,
    /// HTTP methods that are accepted, in capitals; all if empty.
    #[serde(default, deserialize_with = "methods")]
    pub methods: Vec<String>,
    /// What a caller has to show.
    pub token: Option<Secret>,
    /// The arguments of the action, by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
}

/// An argument of a hook's action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    #[serde(default)]
    from: Source,
    /// Its name in the source; that of the parameter if absent.
    key: Option<String>,
    #[serde(default)]
    r#type: Type,
    #[serde(default, deserialize_with = "pattern")]
    pattern: Option<Pattern>,
    min: Option<Number>,
    max: Option<Number>,
    #[serde(default)]
    choices: Vec<Value>,
    default: Option<Value>,
    /// The value of a const.
    value: Option<Value>,
}

/// Where the value of a parameter comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    /// `?key=value`.
    #[default]
    Query,
    /// A field of the body, which is a form or a JSON object.
    Body,
    /// The configuration.
    Const,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    #[default]
    String,
    Integer,
    Number,
    Boolean,
}

#[derive(Clone, Debug)]
struct Pattern {
    source: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

/// The query and the body of a call.
#[derive(Clone, Copy, Debug)]
pub struct HookInput<'a> {
    /// The fields after the `?`.
    pub query: &'a BTreeMap<String, String>,
    /// The fields of the body, if it has any.
    pub body: Option<&'a Map<String, Value>>,
}

/// A parameter of a call that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter {name:?}: {rule}")]
pub struct BadValue {
    /// The parameter's name.
    pub name: String,
    /// What its value has to be.
    pub rule: String,
}

/// Longest text of a parameter, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

impl Hook {
    /// The arguments that a call gives the action.
    ///
    /// # Errors
    /// [`BadValue`].
    pub fn arguments(&self, given: HookInput<'_>) -> Result<Map<String, Value>, BadValue> {
        let arguments = self.parameters.iter().map(|(name, parameter)| {
            let value = parameter.extract(name, given).map_err(|rule| BadValue {
                name: name.clone(),
                rule,
            });
            Ok((name.clone(), value?))
        });
        arguments.collect()
    }
}

fn target<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Selector>, D::Error> {
    value::text(from, Selector::parse).map(Some)
}

fn methods<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    value::texts(from, |text| {
        let valid = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase());
        let rule = "is not a method in capitals, such as POST";
        valid
            .then(|| text.to_owned())
            .ok_or_else(|| format!("{text:?} {rule}"))
    })
}

fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Pattern>, D::Error> {
    value::text(from, Pattern::parse).map(Some)
}

impl Parameter {
    /// Checks keys that depend on one another, and the values that the configuration itself gives.
    pub(super) fn check_definition(&self) -> Result<(), String> {
        match (self.from, &self.value) {
            (Source::Const, None) => return Err("from = \"const\" needs a `value`".to_owned()),
            (Source::Query | Source::Body, Some(_)) => {
                return Err("`value` needs from = \"const\"".to_owned());
            }
            (Source::Const, Some(_)) | (Source::Query | Source::Body, None) => {}
        }
        if self.pattern.is_some() && self.r#type != Type::String {
            return Err("`pattern` is for type string".to_owned());
        }
        if (self.min.is_some() || self.max.is_some()) && !matches!(self.r#type, Type::Integer | Type::Number)
        {
            return Err("`min` and `max` are for types integer and number".to_owned());
        }
        let is_scalar = |value: &Value| value.is_string() || value.is_number() || value.is_boolean();
        if let Some(choice) = self.choices.iter().find(|choice| !is_scalar(choice)) {
            return Err(format!(
                "`choices` holds {choice}, which is not a text, a number, true or false"
            ));
        }
        for (key, value) in [("value", &self.value), ("default", &self.default)] {
            if let Some(value) = value {
                self.check(value)
                    .map_err(|rule| format!("`{key}` is {value}, but it {rule}"))?;
            }
        }
        Ok(())
    }

    /// The value of the parameter with this name in a call; an error is the rule that it breaks.
    fn extract(&self, name: &str, given: HookInput<'_>) -> Result<Value, String> {
        let key = self.key.as_deref().filter(|key| !key.is_empty()).unwrap_or(name);
        let (place, value) = match self.from {
            Source::Const => return Ok(self.value.clone().unwrap_or_default()),
            Source::Query => ("query", given.query.get(key).map(|text| self.parse_text(text))),
            Source::Body => (
                "body",
                given.body.and_then(|body| body.get(key)).map(|value| {
                    // A form has only texts.
                    value
                        .as_str()
                        .map_or_else(|| value.clone(), |text| self.parse_text(text))
                }),
            ),
        };
        match (value, &self.default) {
            (Some(value), _) => self.check(&value).map(|()| value),
            (None, Some(default)) => Ok(default.clone()),
            (None, None) => Err(format!("{key:?} is missing in the {place}")),
        }
    }

    /// The value that a text stands for; the text itself if it stands for none.
    fn parse_text(&self, text: &str) -> Value {
        let read = match self.r#type {
            Type::String => None,
            Type::Integer => text.parse().ok().map(|number: i64| number.into()),
            Type::Number => text
                .parse()
                .ok()
                .and_then(|number: f64| Number::from_f64(number).map(Value::Number)),
            Type::Boolean => match text {
                "true" | "1" | "yes" | "on" => Some(true.into()),
                "false" | "0" | "no" | "off" => Some(false.into()),
                _ => None,
            },
        };
        read.unwrap_or_else(|| text.into())
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match self.r#type {
            Type::String => value.as_str().is_some_and(|text| {
                text.len() <= TEXT_BYTES_MAX
                    && !text.contains('\0')
                    && self
                        .pattern
                        .as_ref()
                        .is_none_or(|pattern| pattern.regex.is_match(text))
            }),
            Type::Integer => (value.is_i64() || value.is_u64()) && self.is_between(value),
            Type::Number => value.is_number() && self.is_between(value),
            Type::Boolean => value.is_boolean(),
        };
        if fits && (self.choices.is_empty() || self.choices.iter().any(|choice| is_same(choice, value))) {
            return Ok(());
        }
        Err(self.rule())
    }

    fn is_between(&self, value: &Value) -> bool {
        let Value::Number(value) = value else { return false };
        let is_least = |min: &Number| compare(value, min).is_some_and(Ordering::is_ge);
        let is_most = |max: &Number| compare(value, max).is_some_and(Ordering::is_le);
        self.min.as_ref().is_none_or(is_least) && self.max.as_ref().is_none_or(is_most)
    }

    fn rule(&self) -> String {
        let mut rule = match self.r#type {
            Type::String => "has to be a text".to_owned(),
            Type::Integer => "has to be a whole number".to_owned(),
            Type::Number => "has to be a number".to_owned(),
            Type::Boolean => "has to be true or false".to_owned(),
        };
        if let Some(pattern) = &self.pattern {
            rule.push_str(&format!(" that matches {}", pattern.source));
        }
        if let Some(min) = &self.min {
            rule.push_str(&format!(", at least {min}"));
        }
        if let Some(max) = &self.max {
            rule.push_str(&format!(", at most {max}"));
        }
        if !self.choices.is_empty() {
            let choices: Vec<String> = self.choices.iter().map(Value::to_string).collect();
            rule.push_str(&format!(", one of {}", choices.join(", ")));
        }
        rule
    }
}

impl Pattern {
    fn parse(shown: &str) -> Result<Self, String> {
        let whole = Regex::new(&format!("^(?:{shown})$"));
        Ok(Self {
            source: shown.to_owned(),
            regex: whole.map_err(|error| format!("{shown:?} is not a regular expression: {error}"))?,
        })
    }
}

/// Compares whole numbers exactly: not all of them are floating-point numbers.
fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// Whether two values are equal; `1` and `1.0` are.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_some_and(Ordering::is_eq),
        _ => a == b,
    }
}
