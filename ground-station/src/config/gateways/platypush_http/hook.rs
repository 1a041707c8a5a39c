//! Hooks: what can be set off by a URL.
//!
//! ```toml
//! [gateways.platypush_http.hooks.lights]        # /hook/lights
//! action = "led"                             # `allow` of the gateway has to name it too, unless it only reads
//! target = "drone-*"                         # the gateway's own target unless said
//! methods = ["POST"]                         # any unless said
//! token = "…"                                # demanded as `X-Token: …` or `Authorization: Bearer …`
//!
//! [gateways.platypush_http.hooks.lights.parameters.color]
//! from = "query"                             # query, body or const
//! key = "colour"                             # what it is called there; `color` unless said
//! type = "string"                            # string, integer, number or boolean
//! pattern = "#[0-9a-f]{6}"                   # all of a string
//! min = 0                                    # of a number
//! max = 100
//! choices = ["#ff0000", "#00ff00"]
//! default = "#ffffff"                        # demanded if there is none
//! value = "#ffffff"                          # of a const
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;

use regex_lite::Regex;
use serde_json::{Map, Number, Value};
use swarm_shared::proto::selector::Selector;
use toml::de::{DeTable, DeValue};

use super::super::{Secret, TOKEN_BYTES_MIN, unknown};

/// A hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it has nodes do.
    pub action: String,
    /// Which; the gateway's own if there is none.
    pub target: Option<Selector>,
    /// How it may be called, in capitals; any way if there is none.
    pub methods: Vec<String>,
    /// What has to be shown.
    pub token: Option<Secret>,
    /// What the action is given, by name.
    pub parameters: BTreeMap<String, Parameter>,
}

/// Something that the action is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    source: Source,
    key: String,
    kind: Type,
    pattern: Option<Pattern>,
    min: Option<Number>,
    max: Option<Number>,
    choices: Vec<Value>,
    default: Option<Value>,
}

/// Where a parameter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `?key=value`.
    Query,
    /// A field of the body, which is a form or a JSON object.
    Body,
    /// The configuration.
    Const(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
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

/// What came with a call.
#[derive(Clone, Copy, Debug)]
pub struct HookInput<'a> {
    /// After the `?`.
    pub query: &'a BTreeMap<String, String>,
    /// The body, if it has fields.
    pub body: Option<&'a Map<String, Value>>,
}

/// Why a call does not fit its hook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter {name:?}: {rule}")]
pub struct BadValue {
    /// Which.
    pub name: String,
    /// What it has to be.
    pub rule: String,
}

/// Longest text of a parameter, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

const KEYS: &[&str] = &["action", "target", "methods", "token", "parameters"];
const PARAMETER_KEYS: &[&str] = &[
    "from", "key", "type", "pattern", "min", "max", "choices", "default", "value",
];

/// The byte at which something is wrong, and what.
type Fault = (usize, String);

impl Hook {
    pub(super) fn parse(name: &str, at: usize, table: &DeTable<'_>) -> Result<Self, Fault> {
        let mut hook = Self {
            action: String::new(),
            target: None,
            methods: Vec::new(),
            token: None,
            parameters: BTreeMap::new(),
        };
        for (key, value) in table {
            let at = value.span().start;
            let fault = |fault: String| (at, fault);
            let text = || {
                let text = value.get_ref().as_str();
                text.ok_or_else(|| fault(format!("{} of a hook has to be a text in quotes", key.get_ref())))
            };
            match key.get_ref().as_ref() {
                "action" => hook.action = text()?.to_owned(),
                "target" => {
                    let target = Selector::parse(text()?);
                    hook.target = Some(target.map_err(|error| fault(error.to_string()))?);
                }
                "methods" => hook.methods = parse_methods(value.get_ref()).map_err(fault)?,
                "token" => {
                    let token = text()?;
                    if token.len() < TOKEN_BYTES_MIN {
                        return Err(fault(format!(
                            "a token has at least {TOKEN_BYTES_MIN} characters"
                        )));
                    }
                    hook.token = Some(Secret::new(token));
                }
                "parameters" => {
                    let table = value.get_ref().as_table();
                    let table = table.ok_or_else(|| fault("parameters are tables".to_owned()))?;
                    for (name, value) in table {
                        let parameter = Parameter::parse(name.get_ref(), name.span().start, value.get_ref())?;
                        hook.parameters.insert(name.get_ref().to_string(), parameter);
                    }
                }
                other => return Err((key.span().start, format!("hook {name}: {}", unknown(other, KEYS)))),
            }
        }
        if hook.action.is_empty() {
            return Err((at, format!("hook {name} says no action: write action = \"led\"")));
        }
        Ok(hook)
    }

    /// What the action is given by a call.
    ///
    /// # Errors
    /// [`BadValue`].
    pub fn arguments(&self, given: HookInput<'_>) -> Result<Map<String, Value>, BadValue> {
        let values = self.parameters.iter().filter_map(|(name, parameter)| {
            let value = parameter.extract(given).map_err(|rule| BadValue {
                name: name.clone(),
                rule,
            });
            Some(value.transpose()?.map(|value| (name.clone(), value)))
        });
        values.collect()
    }
}

fn parse_methods(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let rule = || "methods are a list, in capitals, such as [\"POST\", \"PUT\"]".to_owned();
    let list = value.as_array().ok_or_else(rule)?;
    let method = |item: &DeValue<'_>| {
        let text = item.as_str().filter(|text| {
            (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase())
        });
        text.map(str::to_owned).ok_or_else(rule)
    };
    list.iter().map(|item| method(item.get_ref())).collect()
}

impl Parameter {
    fn parse(name: &str, at: usize, value: &DeValue<'_>) -> Result<Self, Fault> {
        let table = value.as_table();
        let table = table.ok_or_else(|| (at, format!("parameter {name} is a table")))?;
        let mut parameter = Self {
            source: Source::Query,
            key: name.to_owned(),
            kind: Type::String,
            pattern: None,
            min: None,
            max: None,
            choices: Vec::new(),
            default: None,
        };
        let (mut from, mut constant) = ("query".to_owned(), None);
        for (key, value) in table {
            let at = value.span().start;
            let fault = |rule: &str| (at, format!("{} of parameter {name}: {rule}", key.get_ref()));
            let value = value.get_ref();
            let text = || {
                value
                    .as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| fault("a text in quotes"))
            };
            let plain = || scalar_value(value).ok_or_else(|| fault("a text, a number, true or false"));
            let number = || match plain()? {
                Value::Number(number) => Ok(number),
                Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                    Err(fault("a number"))
                }
            };
            match key.get_ref().as_ref() {
                "from" => from = text()?,
                "key" => parameter.key = text()?,
                "type" => {
                    parameter.kind = match text()?.as_str() {
                        "string" => Type::String,
                        "integer" => Type::Integer,
                        "number" => Type::Number,
                        "boolean" => Type::Boolean,
                        _ => return Err(fault("string, integer, number or boolean")),
                    }
                }
                "pattern" => {
                    parameter.pattern = Some(Pattern::parse(&text()?).map_err(|rule| fault(&rule))?);
                }
                "min" => parameter.min = Some(number()?),
                "max" => parameter.max = Some(number()?),
                "choices" => {
                    let list = value.as_array().ok_or_else(|| fault("a list"))?;
                    let all: Option<_> = list
                        .iter()
                        .map(|item| self::scalar_value(item.get_ref()))
                        .collect();
                    parameter.choices = all.ok_or_else(|| fault("a list of texts or numbers"))?;
                }
                "default" => parameter.default = Some(plain()?),
                "value" => constant = Some(plain()?),
                other => {
                    let text = unknown(other, PARAMETER_KEYS);
                    return Err((key.span().start, format!("parameter {name}: {text}")));
                }
            }
        }
        parameter.source = match (from.as_str(), constant) {
            ("query", None) => Source::Query,
            ("body", None) => Source::Body,
            ("const", Some(value)) => Source::Const(value),
            ("const", None) => return Err((at, format!("parameter {name} is a const and has no `value`"))),
            ("query" | "body", Some(_)) => {
                return Err((
                    at,
                    format!("parameter {name} has a `value`: write from = \"const\""),
                ));
            }
            (other, _) => {
                return Err((
                    at,
                    format!("parameter {name}: from is query, body or const, not {other:?}"),
                ));
            }
        };
        parameter.check_definition(name).map_err(|fault| (at, fault))?;
        Ok(parameter)
    }

    /// Whether what the configuration itself says fits.
    fn check_definition(&self, name: &str) -> Result<(), String> {
        if self.pattern.is_some() && self.kind != Type::String {
            return Err(format!("parameter {name}: a pattern is for strings"));
        }
        if (self.min.is_some() || self.max.is_some()) && !matches!(self.kind, Type::Integer | Type::Number) {
            return Err(format!("parameter {name}: min and max are for numbers"));
        }
        let constant = match &self.source {
            Source::Const(value) => Some(value),
            Source::Query | Source::Body => None,
        };
        let own = [("value", constant), ("default", self.default.as_ref())];
        for (key, own) in own.into_iter().filter_map(|(key, own)| Some((key, own?))) {
            self.check(own)
                .map_err(|rule| format!("parameter {name}: `{key}` is {own}, but it {rule}"))?;
        }
        Ok(())
    }

    fn extract(&self, given: HookInput<'_>) -> Result<Option<Value>, String> {
        let value = match &self.source {
            Source::Const(value) => return Ok(Some(value.clone())),
            Source::Query => given.query.get(&self.key).map(|text| self.parse_text(text)),
            Source::Body => given.body.and_then(|body| body.get(&self.key)).map(|value| {
                // Forms know texts only.
                value
                    .as_str()
                    .map_or_else(|| value.clone(), |text| self.parse_text(text))
            }),
        };
        match (value, &self.default) {
            (Some(value), _) => self.check(&value).map(|()| Some(value)),
            (None, Some(default)) => Ok(Some(default.clone())),
            (None, None) => {
                let place = if self.source == Source::Query {
                    "query"
                } else {
                    "body"
                };
                Err(format!("{:?} is missing in the {place}", self.key))
            }
        }
    }

    /// A text as the value that it stands for; as it is, if it stands for none.
    fn parse_text(&self, text: &str) -> Value {
        let read = match self.kind {
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
        let fits = match self.kind {
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
        let mut rule = match self.kind {
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

/// Whole numbers as what they are: not all of them are floating-point numbers.
fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// The same value; `1` and `1.0` are.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_some_and(Ordering::is_eq),
        _ => a == b,
    }
}

/// A value without parts.
fn scalar_value(value: &DeValue<'_>) -> Option<Value> {
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    if let Some(flag) = value.as_bool() {
        return Some(flag.into());
    }
    if let Some(number) = value.as_integer() {
        let number = i64::from_str_radix(number.as_str(), number.radix());
        return number.ok().map(Value::from);
    }
    let number: f64 = value.as_float()?.as_str().parse().ok()?;
    Number::from_f64(number).map(Value::Number)
}
