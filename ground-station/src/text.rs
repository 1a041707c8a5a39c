//! Short texts about nodes: folded names, and numbers with their noun.

use std::collections::{BTreeMap, BTreeSet};

use swarm_shared::proto::id::NodeName;

/// Most digits that are read as a number; longer runs are left as text. The selector's own bound.
const DIGITS_MAX: usize = 18;

/// A name around its last number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct NameGroup<'a> {
    prefix: &'a str,
    suffix: &'a str,
    /// Digits, where numbers of this family are padded with zeros; 0 where they are not.
    width: usize,
}

/// Folds names into a selector for exactly those names: `drone-[01-12,15],lead`. Repeated names count once.
pub fn fold<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> String {
    let names: BTreeSet<&str> = names.into_iter().map(NodeName::as_str).collect();
    let split: Vec<_> = names.iter().filter_map(|name| split_number(name)).collect();
    let padded: BTreeSet<(&str, &str)> = split
        .iter()
        .filter(|(_, digits, _)| digits.len() > 1 && digits.starts_with('0'))
        .map(|(prefix, _, suffix)| (*prefix, *suffix))
        .collect();

    let mut families: BTreeMap<NameGroup<'_>, BTreeSet<u64>> = BTreeMap::new();
    for (prefix, digits, suffix) in &split {
        let width = if padded.contains(&(*prefix, *suffix)) {
            digits.len()
        } else {
            0
        };
        let Ok(value) = digits.parse() else { continue };
        families
            .entry(NameGroup {
                prefix,
                suffix,
                width,
            })
            .or_default()
            .insert(value);
    }
    let mut parts: Vec<String> = families
        .iter()
        .map(|(family, numbers)| family.format(numbers))
        .collect();
    parts.extend(
        names
            .iter()
            .filter(|name| split_number(name).is_none())
            .map(|name| (*name).to_owned()),
    );
    parts.join(",")
}

/// A number with its noun: `1 node`, `2 nodes`.
pub fn pluralize(number: impl std::fmt::Display, one: &str) -> String {
    let number = number.to_string();
    let end = if number == "1" { "" } else { "s" };
    format!("{number} {one}{end}")
}

/// A sort key that puts `drone-2` before `drone-10`.
pub fn natural_key(name: &NodeName) -> (String, u64, String) {
    match split_number(name.as_str()) {
        Some((prefix, digits, _)) => (
            prefix.to_owned(),
            digits.parse().unwrap_or(u64::MAX),
            name.to_string(),
        ),
        None => (name.to_string(), 0, String::new()),
    }
}

impl NameGroup<'_> {
    fn format(&self, numbers: &BTreeSet<u64>) -> String {
        let digits = |number: u64| format!("{number:0width$}", width = self.width);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                Some(_) | None => ranges.push((*number, *number)),
            }
        }
        let (prefix, suffix) = (self.prefix, self.suffix);
        if let ([(first, last)], true) = (&ranges[..], numbers.len() == 1) {
            debug_assert_eq!(first, last);
            return format!("{prefix}{}{suffix}", digits(*first));
        }
        let ranges: Vec<String> = ranges
            .iter()
            .map(|(first, last)| {
                if first == last {
                    digits(*first)
                } else {
                    format!("{}-{}", digits(*first), digits(*last))
                }
            })
            .collect();
        format!("{prefix}[{}]{suffix}", ranges.join(","))
    }
}

/// The last run of digits, and what is around it.
fn split_number(name: &str) -> Option<(&str, &str, &str)> {
    let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + 1);
    (end - start <= DIGITS_MAX).then(|| (&name[..start], &name[start..end], &name[end..]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;
    use swarm_shared::proto::id::PublicKey;
    use swarm_shared::proto::selector::{NodeAttributes, Selector};

    fn names(texts: &[&str]) -> Vec<NodeName> {
        texts
            .iter()
            .map(|text| NodeName::parse(text).expect(text))
            .collect()
    }

    #[test]
    fn consecutive_names_fold_to_ranges() {
        for (texts, folded) in [
            (&["d-01", "d-02", "d-03"][..], "d-[01-03]"),
            (&["d-01", "d-03", "d-04", "d-10"], "d-[01,03-04,10]"),
            (&["d-9", "d-10", "d-11"], "d-[9-11]"),
            (&["d-7"], "d-7"),
            (&["d-07", "lead", "d-07"], "d-07,lead"),
            (&["a1x", "a2x", "b1"], "a[1-2]x,b1"),
            (&["1", "2"], "[1-2]"),
            (&["d1", "d01", "d02"], "d1,d[01-02]"),
            (&[], ""),
        ] {
            assert_eq!(fold(&names(texts)), folded);
        }
    }

    #[test]
    fn node_names_sort_naturally() {
        let mut sorted = names(&["d-10", "lead", "d-2", "a"]);
        sorted.sort_by_key(natural_key);
        assert_eq!(sorted, names(&["a", "d-2", "d-10", "lead"]));
    }

    proptest! {
        #[test]
        fn folded_selector_matches_exactly_its_names(
            inside in proptest::collection::btree_set("[ab]-?[0-2]{0,3}[x]?", 1..12),
            other in "[ab]-?[0-2]{0,3}[x]?",
        ) {
            let folded = fold(&names(&inside.iter().map(String::as_str).collect::<Vec<_>>()));
            let selector = Selector::parse(&folded).expect("a selector");
            let selects = |name: &str| {
                let name = NodeName::parse(name).expect("a name");
                selector.matches(&NodeAttributes { name: &name, id: &PublicKey([0; 32]).id(), tags: &BTreeMap::new() })
            };
            for name in &inside {
                prop_assert!(selects(name), "{} {}", folded, name);
            }
            prop_assert_eq!(selects(&other), inside.contains(&other), "{} {}", folded, other);
        }
    }
}
