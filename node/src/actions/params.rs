//! The arguments of a built-in action.

use std::borrow::Cow;

use serde_json::Value;
use swarm_shared::proto::message::Arguments;

/// Named arguments; positional ones take the given names, in order.
#[derive(Debug)]
pub(crate) struct Params<'a> {
    arguments: &'a Arguments,
    names: &'a [&'a str],
}

impl<'a> Params<'a> {
    /// Parses the arguments; refuses unknown, repeated and surplus ones.
    pub(crate) fn parse(arguments: &'a Arguments, names: &'a [&'a str]) -> Result<Self, String> {
        let takes = || match names {
            [] => "it takes none".to_owned(),
            names => format!("it takes: {}", names.join(", ")),
        };
        if let Some(unknown) = arguments.kwargs.keys().find(|key| !names.contains(&key.as_str())) {
            return Err(format!("unknown argument {unknown:?}; {}", takes()));
        }
        if arguments.args.len() > names.len() {
            return Err(format!("too many arguments; {}", takes()));
        }
        let twice = names[..arguments.args.len()]
            .iter()
            .find(|name| arguments.kwargs.contains_key(**name));
        match twice {
            Some(name) => Err(format!("argument {name} is given twice")),
            None => Ok(Self { arguments, names }),
        }
    }

    /// The argument of this name; `null` counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        let by_position = || {
            let at = self.names.iter().position(|known| *known == name)?;
            self.arguments.args.get(at)
        };
        self.arguments
            .kwargs
            .get(name)
            .or_else(by_position)
            .filter(|value| !value.is_null())
    }

    /// A text. A number or boolean from a command line counts as its text.
    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<Cow<'a, str>>, String> {
        self.get(name)
            .map(|value| match value {
                Value::String(text) => Ok(Cow::Borrowed(text.as_str())),
                Value::Number(_) | Value::Bool(_) => Ok(Cow::Owned(value.to_string())),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    Err(format!("argument {name} must be a text"))
                }
            })
            .transpose()
    }

    /// A text that is required.
    pub(crate) fn required_text(&self, name: &str) -> Result<Cow<'a, str>, String> {
        self.optional_text(name)?
            .ok_or_else(|| format!("argument {name} is missing: it must be a text"))
    }

    /// A whole number, at least 0.
    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<u64>, String> {
        self.get(name)
            .map(|value| {
                let text = value.as_str().and_then(|text| text.parse().ok());
                value
                    .as_u64()
                    .or(text)
                    .ok_or_else(|| format!("argument {name} must be a whole number from 0"))
            })
            .transpose()
    }

    /// A list of texts; empty if absent.
    pub(crate) fn text_list(&self, name: &str) -> Result<Vec<String>, String> {
        let bad = || format!("argument {name} must be a list of texts");
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(value) => value
                .as_array()
                .ok_or_else(bad)?
                .iter()
                .map(|part| part.as_str().map(str::to_owned).ok_or_else(bad))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arguments(value: Value) -> Arguments {
        serde_json::from_value(value).expect("arguments")
    }

    #[test]
    fn arguments_are_found_by_name_and_position() {
        let given = arguments(json!({"args": ["x", 3], "kwargs": {"list": ["a"]}}));
        let params = Params::parse(&given, &["text", "count", "list"]).expect("known");
        assert_eq!(params.required_text("text").as_deref(), Ok("x"));
        assert_eq!(params.optional_count("count"), Ok(Some(3)));
        assert_eq!(params.text_list("list"), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn unexpected_arguments_are_refused() {
        for (given, expected) in [
            (
                json!({"kwargs": {"x": 1}}),
                "unknown argument \"x\"; it takes: text",
            ),
            (json!({"args": [1, 2]}), "too many"),
            (json!({"args": [1], "kwargs": {"text": 2}}), "given twice"),
        ] {
            let error = Params::parse(&arguments(given), &["text"]).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        let given = arguments(json!({"kwargs": {"text": [1]}}));
        let params = Params::parse(&given, &["text"]).expect("known");
        params.required_text("text").expect_err("not a text");
        params.optional_count("text").expect_err("not a number");
        params.text_list("text").expect_err("not texts");
    }
}
