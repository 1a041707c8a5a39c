//! What somebody meant who wrote a name that nothing has.

/// What to say of a key that is none of `known`.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    let quoted = |name: &&str| format!("{name:?}");
    match any_of(nearest(key, known).iter().map(quoted).collect()) {
        Some(meant) => format!("unknown key {key:?}; did you mean {meant}?"),
        None => format!("unknown key {key:?}; known are {}", known.join(", ")),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn any_of(mut names: Vec<String>) -> Option<String> {
    let last = names.pop()?;
    Some(if names.is_empty() {
        last
    } else {
        format!("{} or {last}", names.join(", "))
    })
}

/// The one that differs by a slip or two; else those that the name is a whole part of. A guess that is far off sends
/// people the wrong way, so there may be none.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let slips = |known: &str| (name.chars().count().max(known.chars().count()) / 3).clamp(1, SLIPS_MAX);
    let near = known
        .iter()
        .map(|known| (distance(name, known), *known))
        .filter(|(distance, known)| *distance <= slips(known))
        .min();
    if let Some((_, known)) = near {
        return vec![known];
    }
    let is_part = |known: &&&str| {
        let parted = |c: char| "_.".contains(c);
        let rest = known.strip_prefix(name).filter(|rest| rest.starts_with(parted));
        rest.or_else(|| known.strip_suffix(name).filter(|rest| rest.ends_with(parted)))
            .is_some()
    };
    known.iter().filter(is_part).copied().collect()
}

/// Most slips in one name.
const SLIPS_MAX: usize = 3;

/// How many characters to add, take away, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(row[j - 1] + 1).min(rows[i - 1][j] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
