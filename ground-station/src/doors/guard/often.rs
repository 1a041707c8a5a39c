//! Uses that repeat: whoever asks ten times a second would push all else out of the audit, which has room for so many
//! entries and no more.
//!
//! | use | in the audit |
//! |---|---|
//! | the first of its visitor and kind | at once |
//! | more of them | counted; one entry when [`WINDOW`] is over, or the station shuts down |
//! | kinds beyond [`KINDS_MAX`] of one visitor | counted together as one kind |
//! | visitors and kinds beyond [`KEPT_MAX`] | counted together as one visitor |
//!
//! A use and a refusal are of two kinds. Nothing here is for what acts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::audit::Entry;

/// For how long repeats are counted.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Kinds of use that are told apart of one visitor.
const KINDS_MAX: usize = 8;
/// Visitors and kinds that are told apart.
const KEPT_MAX: usize = 128;
/// Longest text that is kept, in characters.
const TEXT_MAX: usize = 256;
/// What kinds are called that are not told apart.
const OTHER: &str = "other uses";

/// Visitor, kind, and whether it was refused.
type Key = (String, String, bool);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Often {
    kept: BTreeMap<Key, Repeats>,
    closed: bool,
}

#[derive(Debug)]
struct Repeats {
    since: Instant,
    count: u64,
    last: Entry,
}

impl Often {
    /// Takes a use at `door`; gives it back if it is to be noted now.
    pub(super) fn take(&mut self, door: &str, mut entry: Entry, now: Instant) -> Option<Entry> {
        if self.closed {
            return Some(entry);
        }
        for text in [
            &mut entry.who,
            &mut entry.what,
            &mut entry.detail,
            &mut entry.outcome,
        ] {
            if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
                text.truncate(end);
            }
        }
        let mut key = key(&entry);
        if !self.kept.contains_key(&key) {
            let kinds = self.kept.keys().filter(|(who, _, _)| *who == entry.who).count();
            if self.kept.len() >= KEPT_MAX {
                key = (format!("visitors of {door}"), OTHER.to_owned(), false);
            } else if kinds >= KINDS_MAX {
                key.1 = OTHER.to_owned();
            }
            (entry.who, entry.what) = (key.0.clone(), key.1.clone());
        }
        if let Some(repeats) = self.kept.get_mut(&key) {
            repeats.count += 1;
            repeats.last = entry;
            return None;
        }
        let repeats = Repeats {
            since: now,
            count: 0,
            last: entry.clone(),
        };
        self.kept.insert(key, repeats);
        Some(entry)
    }

    /// What is to be noted of windows that are over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Entry> {
        let mut due = Vec::new();
        self.kept.retain(|_, repeats| {
            if now.saturating_duration_since(repeats.since) < WINDOW {
                return true;
            }
            let Some(entry) = repeats.told() else { return false };
            due.push(entry);
            (repeats.since, repeats.count) = (now, 0);
            true
        });
        due
    }

    /// What is to be noted at the end; from now on everything is, at once.
    pub(super) fn close(&mut self) -> Vec<Entry> {
        self.closed = true;
        let kept = std::mem::take(&mut self.kept);
        kept.values().filter_map(Repeats::told).collect()
    }
}

impl Repeats {
    fn told(&self) -> Option<Entry> {
        let Self { count, last, .. } = self;
        let times = match count {
            0 => return None,
            1 => "once more".to_owned(),
            count => format!("{count} times more"),
        };
        let outcome = format!("{times} within {} s, at last: {}", WINDOW.as_secs(), last.outcome);
        Some(Entry {
            outcome,
            ..last.clone()
        })
    }
}

fn key(entry: &Entry) -> Key {
    let refused = entry.outcome.starts_with("not done");
    (entry.who.clone(), entry.what.clone(), refused)
}

#[cfg(test)]
mod tests {
    use swarm_shared::net::clock;

    use super::*;

    fn entry(who: &str, what: &str, outcome: &str) -> Entry {
        Entry {
            at_ms: 1,
            who: who.to_owned(),
            what: what.to_owned(),
            detail: String::new(),
            outcome: outcome.to_owned(),
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_repeats_as_one() {
        let (mut often, now) = (Often::default(), clock::now());
        let read = entry("a", "nodes", "2 nodes");
        let refused = entry("a", "nodes", "not done: no");
        assert_eq!(often.take("knut", read.clone(), now), Some(read.clone()));
        assert_eq!(often.take("knut", refused.clone(), now), Some(refused));
        for _ in 0..23 {
            assert_eq!(often.take("knut", read.clone(), now), None);
        }
        assert_eq!(often.due(now + WINDOW / 2), []);
        let told = often.due(now + WINDOW);
        assert_eq!(
            told,
            [entry("a", "nodes", "23 times more within 60 s, at last: 2 nodes")]
        );
        assert_eq!(often.take("knut", read.clone(), now + WINDOW), None);
        assert_eq!(often.due(now + WINDOW * 2).len(), 1);
        assert_eq!(often.due(now + WINDOW * 3), []);
        assert!(often.kept.is_empty());
        assert_eq!(often.take("knut", read.clone(), now), Some(read.clone()));
        assert_eq!(often.take("knut", read.clone(), now), None);
        assert_eq!(often.close().len(), 1);
        assert_eq!(often.take("knut", read.clone(), now), Some(read));
    }

    #[test]
    fn neither_many_kinds_nor_many_visitors_fill_the_audit() {
        let (mut often, now) = (Often::default(), clock::now());
        let mut told = 0;
        for n in 0..10_000 {
            let refused = entry("a", &format!("{n}{}", "x".repeat(10_000)), "not done: no");
            told += usize::from(often.take("knut", refused, now).is_some());
        }
        assert_eq!(told, KINDS_MAX + 1);
        for n in 0..10_000 {
            let read = entry(&format!("b{n}"), "nodes", "2 nodes");
            told += usize::from(often.take("knut", read, now).is_some());
        }
        assert_eq!(told, KEPT_MAX + 1);
        assert_eq!(often.kept.len(), KEPT_MAX + 1);
        let told = often.due(now + WINDOW);
        let who: Vec<&str> = told.iter().map(|entry| entry.who.as_str()).collect();
        assert_eq!(who, ["a", "visitors of knut"]);
    }
}
