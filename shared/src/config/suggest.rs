//! Known names that are near a misspelt one.

/// Most edits between a name and its suggestion.
const EDITS_MAX: usize = 3;

/// The known name that is one to three edits away, depending on length; else all known names that begin or end with
/// `name` as a whole word. Empty if none is near: a wrong suggestion is worse than none.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    let edits_max = |known: &str| (name.chars().count().max(known.chars().count()) / 3).clamp(1, EDITS_MAX);
    let near = known
        .iter()
        .map(|known| (strsim::osa_distance(&name, &known.to_lowercase()), *known))
        .filter(|(edits, known)| *edits <= edits_max(known))
        .min();
    if let Some((_, known)) = near {
        return vec![known];
    }
    let is_part = |known: &&&str| {
        let separator = |c: char| "_.".contains(c);
        known
            .strip_prefix(&name)
            .is_some_and(|rest| rest.starts_with(separator))
            || known
                .strip_suffix(&name)
                .is_some_and(|rest| rest.ends_with(separator))
    };
    known.iter().filter(is_part).copied().collect()
}

/// `a`, `a or b`, `a, b or c`; `None` without names.
pub fn any_of(mut names: Vec<String>) -> Option<String> {
    let last = names.pop()?;
    Some(if names.is_empty() {
        last
    } else {
        format!("{} or {last}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let known = [
            "listen",
            "ping_port",
            "emergency_stop",
            "raw_action",
            "raw_argument",
        ];
        for (name, near) in [
            ("lisen", &["listen"][..]),
            ("ping-port", &["ping_port"]),
            ("emergency", &["emergency_stop"]),
            ("action", &["raw_action"]),
            ("raw", &["raw_action", "raw_argument"]),
            ("LISTNE", &["listen"]),
            ("xyzzy", &[]),
            ("", &[]),
        ] {
            assert_eq!(nearest(name, &known), near, "{name}");
        }
    }

    #[test]
    fn alternatives_are_joined_by_or() {
        let joined = |names: &[&str]| any_of(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(joined(&[]), None);
        assert_eq!(joined(&["a"]).as_deref(), Some("a"));
        assert_eq!(joined(&["a", "b", "c"]).as_deref(), Some("a, b or c"));
    }
}
