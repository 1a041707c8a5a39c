//! The small types of the configuration, each parsed once.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use swarm_shared::config::value;
use swarm_shared::proto::id::NodeName;

/// The name of an action, an argument, a tag's key or a root: 1 to 64 ASCII letters, digits, `_` and `-`,
/// starting with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identifier(String);

impl Identifier {
    /// Parses a word.
    ///
    /// # Errors
    /// A sentence that quotes the text and says the rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let good =
            (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['_', '-']);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is not a name here: use 1 to 64 letters, digits, _ and -, beginning with a letter or digit"
            ))
        }
    }

    /// The word as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::borrow::Borrow<str> for Identifier {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Identifier {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A program and its arguments: at least the program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawArgv")]
pub struct Argv(Vec<String>);

impl Argv {
    /// Checks a command.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(argv: Vec<String>) -> Result<Self, String> {
        if argv.first().is_none_or(String::is_empty) {
            return Err("command is empty: write [\"/path/to/program\", \"argument\"]".to_owned());
        }
        if argv.iter().any(|part| part.contains('\0')) {
            return Err("a command cannot hold NUL characters".to_owned());
        }
        Ok(Self(argv))
    }

    /// Program first.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// A newtype, so that the environment variable of a command is not split at commas.
#[derive(Deserialize)]
struct RawArgv(Vec<String>);

impl TryFrom<RawArgv> for Argv {
    type Error = String;

    fn try_from(raw: RawArgv) -> Result<Self, String> {
        Self::new(raw.0)
    }
}

/// A tag's value: what a selector such as `tag:row=3,!drone-07` can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagValue(String);

impl TagValue {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for TagValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.len() > 64 || text.contains(|c: char| c == ',' || c.is_control()) {
            let rule = "use at most 64 bytes without commas and control characters";
            return Err(D::Error::custom(format!("{text:?} is not a tag's value: {rule}")));
        }
        Ok(Self(text))
    }
}

pub(super) fn node_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NodeName>, D::Error> {
    value::text(from, NodeName::parse).map(Some)
}

/// A systemd unit's name, such as `nginx` or `nginx.service`: nothing that could be taken for an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName(String);

impl UnitName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for UnitName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.@\\".contains(&b);
        if text.is_empty() || text.len() > 255 || text.starts_with('-') || !text.bytes().all(allowed) {
            let rule = "use letters, digits and :-_.@, not beginning with -";
            return Err(D::Error::custom(format!(
                "{text:?} is not the name of a unit: {rule}"
            )));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_validated() {
        for good in ["led", "take-off", "0", "a_b", "Led"] {
            Identifier::parse(good).expect(good);
        }
        for bad in ["", "-a", "_a", "a b", "a/b", "é", &"x".repeat(65)] {
            Identifier::parse(bad).expect_err(bad);
        }
    }

    #[test]
    fn a_command_needs_a_program() {
        Argv::new(vec![]).expect_err("empty");
        Argv::new(vec![String::new()]).expect_err("empty");
        Argv::new(vec!["a".to_owned(), "b\0".to_owned()]).expect_err("NUL");
    }
}
