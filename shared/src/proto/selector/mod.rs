//! Selectors of nodes: `drone-*,!drone-07`.
//!
//! A selector is a comma-separated list of terms. It selects the nodes that any term matches, except those that any
//! `!term` matches; the order of terms does not matter. A list of `!terms` alone selects all nodes except those.
//!
//! | term | selects |
//! |---|---|
//! | `all` | every node |
//! | `drone-07`, `drone-*`, `drone-0[1-5]`, `drone-[01-12,15]` | by name; upper and lower case differ |
//! | `tag:row` | nodes that have the tag `row` |
//! | `tag:row=3`, `tag:row=[1-3]` | nodes whose tag `row` matches |
//! | `id:a1b2-c3` | nodes whose id starts with these digits |
//! | `!term` | excludes the nodes that `term` matches |
//!
//! A comma inside `[…]` does not end a term, so that a displayed group can be pasted as a selector.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::{NodeName, PeerId};

mod glob;

pub use glob::Glob;

/// Longest selector, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// The attributes of a node that selectors match.
#[derive(Clone, Copy, Debug)]
pub struct NodeAttributes<'a> {
    /// Name of the node.
    pub name: &'a NodeName,
    /// Id of the node.
    pub id: &'a PeerId,
    /// Tags of the node, by key.
    pub tags: &'a BTreeMap<String, String>,
}

/// A parsed selector; see the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    text: String,
    included: Vec<Term>,
    excluded: Vec<Term>,
}

/// The text is not a valid selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{term:?} is not a selector: {rule}")]
pub struct BadSelector {
    /// The invalid term.
    pub term: String,
    /// The rule that it breaks.
    pub rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    All,
    Name(Glob),
    Tag { key: String, value: Option<Glob> },
    Id(String),
}

impl Selector {
    /// Selects every node.
    pub fn all() -> Self {
        Self {
            text: "all".to_owned(),
            included: vec![Term::All],
            excluded: Vec::new(),
        }
    }

    /// Parses a selector.
    ///
    /// # Errors
    /// [`BadSelector`], which quotes the invalid term and states the rule.
    pub fn parse(text: &str) -> Result<Self, BadSelector> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(bad_selector(
                text,
                format!("it is longer than {SELECTOR_BYTES_MAX} bytes; use a glob or a tag"),
            ));
        }
        let mut selector = Self {
            text: text.trim().to_owned(),
            included: Vec::new(),
            excluded: Vec::new(),
        };
        for term in split_terms(text) {
            let term = term.trim();
            match term.strip_prefix('!') {
                Some(taken) => selector.excluded.push(Term::parse(taken.trim_start(), term)?),
                None => selector.included.push(Term::parse(term, term)?),
            }
        }
        if selector.included.is_empty() {
            selector.included.push(Term::All);
        }
        Ok(selector)
    }

    /// Number of terms that are matched: `!term`s too, and the implied `all` of a list of `!term`s alone.
    pub fn term_count(&self) -> usize {
        self.included.len() + self.excluded.len()
    }

    /// Whether it has a tag term: tags are known only of nodes that are or were linked.
    pub fn has_tags(&self) -> bool {
        let mut terms = self.included.iter().chain(&self.excluded);
        terms.any(|term| matches!(term, Term::Tag { .. }))
    }

    /// Splits `SELECTOR:PATH`. The colon of `tag:` and `id:` is part of the selector; a tag's value that holds a
    /// colon itself is written with `?` in its place.
    ///
    /// # Errors
    /// [`BadSelector`] if there is no such colon, or the part before it is not a selector.
    pub fn split_path(text: &str) -> Result<(Self, &str), BadSelector> {
        let mut term_starts = true;
        let mut in_brackets = false;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let prefix = ["tag:", "id:"]
                .iter()
                .find(|prefix| text[at..].starts_with(**prefix));
            if let (true, Some(prefix)) = (term_starts, prefix) {
                at += prefix.len();
                term_starts = false;
                continue;
            }
            match c {
                '[' => in_brackets = true,
                ']' => in_brackets = false,
                ':' if !in_brackets => return Ok((Self::parse(&text[..at])?, &text[at + 1..])),
                _ => {}
            }
            term_starts = (c == ',' && !in_brackets) || (term_starts && (c == '!' || c == ' '));
            at += c.len_utf8();
        }
        Err(bad_selector(
            text,
            "write SELECTOR:PATH, such as drone-*:shows/take1.csv".to_owned(),
        ))
    }

    /// Whether it selects this node.
    pub fn matches(&self, target: &NodeAttributes<'_>) -> bool {
        let any = |terms: &[Term]| terms.iter().any(|term| term.matches(target));
        any(&self.included) && !any(&self.excluded)
    }

    /// Each term without `!`, as written, as a selector of its own: the caller finds out which of them match no node.
    pub fn terms(&self) -> impl Iterator<Item = Self> {
        let written = split_terms(&self.text).map(str::trim);
        let written = written.filter(|term| !term.starts_with('!'));
        // As many as were parsed; in a list of `!terms` alone, the implied `all` was not written.
        written.zip(&self.included).map(|(text, term)| Self {
            text: text.to_owned(),
            included: vec![term.clone()],
            excluded: Vec::new(),
        })
    }

    /// Each `!term`, without the `!`, as a selector of its own: the caller finds out which of them exclude no node.
    pub fn exclusions(&self) -> impl Iterator<Item = Self> {
        let written = split_terms(&self.text).map(str::trim);
        let written = written.filter_map(|term| term.strip_prefix('!')).map(str::trim);
        written.zip(&self.excluded).map(|(text, term)| Self {
            text: text.to_owned(),
            included: vec![term.clone()],
            excluded: Vec::new(),
        })
    }

    /// Whether each term is a name without a pattern, or an id: then each term stands for one particular node.
    pub fn is_exact(&self) -> bool {
        self.included.iter().all(|term| match term {
            Term::Name(glob) => glob.is_literal(),
            Term::Id(_) => true,
            Term::All | Term::Tag { .. } => false,
        })
    }

    /// Its names, if it is a list of names without patterns and nothing else.
    pub fn exact_names(&self) -> Option<Vec<NodeName>> {
        let name = |term: &Term| match term {
            Term::Name(glob) => NodeName::parse(&glob.literal()?).ok(),
            Term::All | Term::Tag { .. } | Term::Id(_) => None,
        };
        let names = self.included.iter().map(name).collect();
        if self.excluded.is_empty() { names } else { None }
    }

    /// Whether it selects every node with this name, whatever its id and tags.
    pub fn always_matches_name(&self, name: &NodeName) -> bool {
        let by_name = |term: &Term| match term {
            Term::All => true,
            Term::Name(glob) => glob.matches(name.as_str()),
            Term::Tag { .. } | Term::Id(_) => false,
        };
        self.excluded.is_empty() && self.included.iter().any(by_name)
    }

    /// The selector without the unwanted terms, including `!term`s; `None` if no term without `!` is left.
    pub fn without(&self, unwanted: impl Fn(&Self) -> bool) -> Option<Self> {
        let kept: Vec<Self> = self.terms().filter(|term| !unwanted(term)).collect();
        let taken_away: Vec<Self> = self.exclusions().filter(|term| !unwanted(term)).collect();
        let texts = kept.iter().map(|term| term.text.clone());
        let texts = texts.chain(taken_away.iter().map(|term| format!("!{term}")));
        let text = texts.collect::<Vec<String>>().join(",");
        let all = |terms: &[Self]| terms.iter().flat_map(|term| term.included.clone()).collect();
        if self.terms().next().is_none() {
            // `!terms` alone start from all nodes.
            let text = if text.is_empty() { "all".to_owned() } else { text };
            return Some(Self {
                text,
                included: self.included.clone(),
                excluded: all(&taken_away),
            });
        }
        (!kept.is_empty()).then(|| Self {
            text,
            included: all(&kept),
            excluded: all(&taken_away),
        })
    }

    /// The selector as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Term {
    /// `text` is the term without its `!`; `whole` is the text that errors quote.
    fn parse(text: &str, whole: &str) -> Result<Self, BadSelector> {
        let glob = |pattern: &str| Glob::parse(pattern).map_err(|rule| bad_selector(whole, rule));
        if text.is_empty() {
            let rule = "a term is empty; use all, a name, a glob such as drone-*, tag:KEY, tag:KEY=VALUE or id:PREFIX";
            return Err(bad_selector(whole, rule.to_owned()));
        }
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(tag) = text.strip_prefix("tag:") {
            let (key, value) = match tag.split_once('=') {
                Some((key, value)) => (key, Some(glob(value)?)),
                None => (tag, None),
            };
            if key.is_empty() {
                return Err(bad_selector(
                    whole,
                    "tag: needs a key, such as tag:row or tag:row=3".to_owned(),
                ));
            }
            return Ok(Self::Tag {
                key: key.to_owned(),
                value,
            });
        }
        if let Some(prefix) = text.strip_prefix("id:") {
            let digits = prefix.bytes().filter(u8::is_ascii_hexdigit).count();
            let dashes = prefix.bytes().filter(|b| *b == b'-').count();
            if digits == 0 || digits > 64 || digits + dashes != prefix.len() {
                let rule = "id: needs 1 to 64 hexadecimal digits, such as id:a1b2-c3";
                return Err(bad_selector(whole, rule.to_owned()));
            }
            return Ok(Self::Id(prefix.to_owned()));
        }
        let name = glob(text)?;
        if let Some(c) = name.literals().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
            return Err(bad_selector(
                whole,
                format!(
                    "a name cannot hold {c:?}; use names, globs such as drone-*, tag:KEY=VALUE or id:PREFIX"
                ),
            ));
        }
        Ok(Self::Name(name))
    }

    fn matches(&self, target: &NodeAttributes<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Name(glob) => glob.matches(target.name.as_str()),
            Self::Tag { key, value } => target
                .tags
                .get(key)
                .is_some_and(|has| value.as_ref().is_none_or(|glob| glob.matches(has))),
            Self::Id(prefix) => target.id.has_prefix(prefix),
        }
    }
}

/// Splits at commas outside brackets.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut in_brackets = false;
    text.split(move |c| {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        c == ',' && !in_brackets
    })
}

fn bad_selector(term: &str, rule: String) -> BadSelector {
    BadSelector {
        term: term.chars().take(80).collect(),
        rule,
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for Selector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Selector {
    type Error = BadSelector;

    fn try_from(text: String) -> Result<Self, BadSelector> {
        Self::parse(&text)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::PublicKey;
    use proptest::prelude::*;

    fn selects(selector: &str, name: &str, tags: &[(&str, &str)]) -> bool {
        let tags = tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Selector::parse(selector)
            .expect(selector)
            .matches(&NodeAttributes {
                name: &NodeName::parse(name).expect(name),
                id: &PublicKey([7; 32]).id(),
                tags: &tags,
            })
    }

    #[test]
    fn selector_terms_include_and_exclude_in_any_order() {
        assert!(selects("all", "drone-07", &[]));
        assert!(selects("drone-*, lead", "lead", &[]));
        assert!(!selects("drone-*,!drone-07", "drone-07", &[]));
        assert!(!selects("!drone-07,drone-*", "drone-07", &[]));
        assert!(selects("drone-*,!drone-07", "drone-08", &[]));
        assert!(!selects("Drone-07", "drone-07", &[]));
        assert!(!selects("all,!all", "drone-07", &[]));
    }

    #[test]
    fn each_selector_term_parses_on_its_own() {
        let terms = |text: &str| {
            let selector = Selector::parse(text).expect(text);
            let terms: Vec<Selector> = selector.terms().collect();
            for term in &terms {
                assert_eq!(Selector::parse(term.as_str()).as_ref(), Ok(term));
            }
            terms.iter().map(Selector::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            terms("drone-[1,3], tag:row=2,! lead,all"),
            ["drone-[1,3]", "tag:row=2", "all"]
        );
        assert!(terms("!lead").is_empty());
    }

    #[test]
    fn always_matches_name_ignores_tags_and_ids() {
        let name = NodeName::parse("drone-07").expect("a name");
        for (selector, expected) in [
            ("all", true),
            ("lead,drone-0[1-9]", true),
            ("tag:row=3,drone-07", true),
            ("tag:row,id:0,id:1", false),
            ("drone-08", false),
            // A node with this name may be excluded by its tag.
            ("drone-*,!tag:row", false),
            ("!lead", false),
        ] {
            let selector = Selector::parse(selector).expect("a selector");
            assert_eq!(selector.always_matches_name(&name), expected, "{selector}");
        }
    }

    #[test]
    fn exclusions_can_be_listed_and_removed() {
        let selector = Selector::parse("drone-*, lead,! drone-4,!tag:row=2,!id:ab").expect("a selector");
        let away: Vec<Selector> = selector.exclusions().collect();
        let texts: Vec<String> = away.iter().map(Selector::to_string).collect();
        assert_eq!(texts, ["drone-4", "tag:row=2", "id:ab"]);
        for term in &away {
            assert_eq!(Selector::parse(term.as_str()).as_ref(), Ok(term));
        }
        let exact: Vec<bool> = away.iter().map(Selector::is_exact).collect();
        assert_eq!(exact, [true, false, true]);
        let less = selector.without(|term| ["lead", "drone-4"].contains(&term.as_str()));
        assert_eq!(less, Selector::parse("drone-*,!tag:row=2,!id:ab").ok());
        let only = Selector::parse("!lead").expect("a selector");
        assert_eq!(only.without(|_| true), Some(Selector::all()));
        assert_eq!(only.without(|_| false), Some(only.clone()));
        assert_eq!(Selector::all().without(|_| true), None);
    }

    #[test]
    fn exclusions_alone_start_from_all_nodes() {
        assert!(selects("!drone-07", "lead", &[]));
        assert!(!selects("!drone-07", "drone-07", &[]));
        assert!(!selects("! tag:row", "lead", &[("row", "3")]));
    }

    #[test]
    fn selector_tags_match_by_key_and_value() {
        let tags = [("row", "3"), ("site", "a,b")];
        assert!(selects("tag:row", "x", &tags));
        assert!(selects("tag:row=3", "x", &tags));
        assert!(selects("tag:row=[2-4]", "x", &tags));
        assert!(!selects("tag:row=", "x", &tags));
        assert!(!selects("tag:role", "x", &tags));
        assert!(!selects("tag:row=33", "x", &tags));
    }

    #[test]
    fn exact_names_exist_only_for_plain_name_lists() {
        let names = |text: &str| {
            let names = Selector::parse(text).expect("good").exact_names()?;
            Some(
                names
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        assert_eq!(names("drone-1").as_deref(), Some("drone-1"));
        assert_eq!(names("lead, drone-1").as_deref(), Some("lead drone-1"));
        for more in [
            "all",
            "drone-*",
            "lead,drone-[1-2]",
            "tag:row",
            "lead,id:a1",
            "lead,!drone-1",
            "!lead",
        ] {
            assert_eq!(names(more), None, "{more}");
        }
        let count = |text| Selector::parse(text).expect("good").term_count();
        assert_eq!(
            (count("all"), count("!lead"), count("lead,d-[1,2],!drone-1")),
            (1, 2, 3)
        );
    }

    #[test]
    fn selector_ids_match_by_prefix() {
        let id = PublicKey([7; 32]).id();
        assert!(selects(&format!("id:{}", id.short()), "x", &[]));
        assert!(selects(
            &format!("id:{}", &id.to_string()[..2].to_uppercase()),
            "x",
            &[]
        ));
        assert!(!selects(&format!("!id:{id}"), "x", &[]));
    }

    #[test]
    fn selector_terms_can_be_removed() {
        let selector = Selector::parse("a, drone-[1,2],!b,c").expect("good");
        let left = selector.without(|term| term.as_str() == "a" || term.as_str() == "c");
        let left = left.expect("one is left");
        assert_eq!(left.as_str(), "drone-[1,2],!b");
        assert_eq!(Selector::parse(left.as_str()), Ok(left));
        assert_eq!(selector.without(|_any| true), None);
    }

    #[test]
    fn bad_selector_term_is_quoted_with_its_rule() {
        for (text, rule) in [
            ("", "a term is empty"),
            ("drone-1,,x", "a term is empty"),
            ("!", "a term is empty"),
            ("drone_1", "a name cannot hold '_'"),
            ("tags:row", "a name cannot hold ':'"),
            ("tag:=3", "needs a key"),
            ("id:", "hexadecimal"),
            ("id:xyz", "hexadecimal"),
            ("x,drone-[1", "needs its `]`"),
        ] {
            let error = Selector::parse(text).expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
        let error = Selector::parse("ok,dr one").expect_err("a space").to_string();
        assert!(error.starts_with("\"dr one\" is not a selector"), "{error}");
    }

    #[test]
    fn path_follows_the_first_colon_outside_terms() {
        for (text, selector, path) in [
            ("all:shows/a.csv", "all", "shows/a.csv"),
            (
                "drone-*,!tag:row=3:logs/12:00.txt",
                "drone-*,!tag:row=3",
                "logs/12:00.txt",
            ),
            ("id:a1b2:x", "id:a1b2", "x"),
            ("d-[01-03,05]:x", "d-[01-03,05]", "x"),
            ("a, ! tag:b:x", "a, ! tag:b", "x"),
        ] {
            let (found, rest) = Selector::split_path(text).expect(text);
            assert_eq!((found.as_str(), rest), (selector, path));
        }
        for bad in ["all", "tag:x", ":x", "a_b:x"] {
            Selector::split_path(bad).expect_err(bad);
        }
    }

    proptest! {
        #[test]
        fn parsed_selector_round_trips_and_never_panics(text in "[a-c0-9!,:=*?\\[\\] -]{0,24}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(&Selector::parse(selector.as_str()).expect("its own text"), &selector);
                let json = serde_json::to_string(&selector).expect("serialises");
                prop_assert_eq!(serde_json::from_str::<Selector>(&json).expect("reads back"), selector);
            }
            if let Ok((selector, path)) = Selector::split_path(&text) {
                prop_assert_eq!(selector.as_str(), text[..text.len() - path.len() - 1].trim());
            }
        }

        #[test]
        fn selector_is_union_of_terms_minus_exclusions(
            names in proptest::collection::vec("[a-b]{1,2}", 1..4),
            taken in proptest::collection::vec("[a-b]{1,2}", 0..3),
            name in "[a-b]{1,2}",
        ) {
            let text: Vec<String> =
                names.iter().cloned().chain(taken.iter().map(|name| format!("!{name}"))).collect();
            let wanted = names.contains(&name) && !taken.contains(&name);
            prop_assert_eq!(selects(&text.join(","), &name, &[]), wanted);
        }
    }
}
