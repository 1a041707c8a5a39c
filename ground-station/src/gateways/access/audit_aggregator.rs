//! Uses that repeat: whoever asks ten times a second would push all else out of the audit, which has room for so many
//! entries and no more.
//!
//! | use | in the audit |
//! |---|---|
//! | the first of its visitor and kind | at once |
//! | more of them | counted; one entry when [`WINDOW`] is over, or the station shuts down |
//! | kinds beyond [`KINDS_MAX`] of one visitor | counted together as one kind |
//! | visitors and kinds beyond [`KEPT_MAX`], and what would be more entries than [`Purse`] pays for | counted together, as one entry a [`WINDOW`] |
//!
//! A use and a refusal are of two kinds, and have a purse each: a crowd that reads does not hide who was refused. Nothing
//! here is for what acts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::audit::Entry;

/// For how long repeats are counted.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Kinds of use that are told apart of one visitor, and as many of refusals: half of what a door may note at once.
const KINDS_MAX: usize = 16;
/// Visitors and kinds that are told apart.
const KEPT_MAX: usize = 128;
/// Longest text that is kept, in characters.
const TEXT_MAX: usize = 256;
/// What kinds are called that are not told apart.
const OTHER: &str = "other uses";
/// Entries that a door may make at once.
const ENTRIES_MAX: u32 = 30;
/// How long until it may make one more.
const ENTRY_EVERY: Duration = Duration::from_secs(6);

/// Visitor, kind, and whether it was refused.
type Key = (String, String, bool);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Often {
    kept: BTreeMap<Key, Repeats>,
    uses: Purse,
    refusals: Purse,
    closed: bool,
}

#[derive(Debug)]
struct Repeats {
    since: Instant,
    count: u64,
    last: Entry,
}

/// What pays for entries: [`ENTRIES_MAX`] at once, and one every [`ENTRY_EVERY`]. What it does not pay for, it counts.
#[derive(Debug, Default)]
struct Purse {
    spent: u32,
    since: Option<Instant>,
    rest: Option<Repeats>,
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
            let same = |(who, _, refused): &&Key| *who == entry.who && *refused == key.2;
            if self.kept.keys().filter(same).count() >= KINDS_MAX {
                key.1 = OTHER.to_owned();
                entry.what = OTHER.to_owned();
            }
        }
        if let Some(repeats) = self.kept.get_mut(&key) {
            repeats.count += 1;
            repeats.last = entry;
            return None;
        }
        let purse = if key.2 { &mut self.refusals } else { &mut self.uses };
        if self.kept.len() >= KEPT_MAX || !purse.pay(now) {
            purse.count(door, 1, entry, now);
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

    /// What is to be noted at `door` of windows that are over.
    pub(super) fn due(&mut self, door: &str, now: Instant) -> Vec<Entry> {
        let mut due = Vec::new();
        let Self {
            kept, uses, refusals, ..
        } = self;
        kept.retain(|(_, _, refused), repeats| {
            if now.saturating_duration_since(repeats.since) < WINDOW {
                return true;
            }
            let Some(entry) = repeats.told() else { return false };
            let purse = if *refused { &mut *refusals } else { &mut *uses };
            if purse.pay(now) {
                due.push(entry);
            } else {
                purse.count(door, repeats.count, repeats.last.clone(), now);
            }
            (repeats.since, repeats.count) = (now, 0);
            true
        });
        for purse in [uses, refusals] {
            let over = |rest: &mut Repeats| now.saturating_duration_since(rest.since) >= WINDOW;
            due.extend(purse.rest.take_if(over).and_then(|rest| rest.told()));
        }
        due
    }

    /// What is to be noted at the end; from now on everything is, at once.
    pub(super) fn close(&mut self) -> Vec<Entry> {
        self.closed = true;
        let kept = std::mem::take(&mut self.kept);
        let rests = [self.uses.rest.take(), self.refusals.rest.take()];
        let all = kept.into_values().chain(rests.into_iter().flatten());
        all.filter_map(|repeats| repeats.told()).collect()
    }
}

impl Purse {
    /// Whether there is one entry to be had.
    fn pay(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let grown = now.saturating_duration_since(since).as_secs() / ENTRY_EVERY.as_secs();
        let grown = u32::try_from(grown).unwrap_or(u32::MAX).min(ENTRIES_MAX);
        if grown > 0 {
            self.spent = self.spent.saturating_sub(grown);
            // Full, or the time that has not made a whole entry counts on.
            self.since = if self.spent == 0 {
                None
            } else {
                Some(since + ENTRY_EVERY * grown)
            };
        }
        let paid = self.spent < ENTRIES_MAX;
        self.spent += u32::from(paid);
        paid
    }

    /// So many uses, this one the last, without an entry of their own.
    fn count(&mut self, door: &str, uses: u64, mut last: Entry, now: Instant) {
        last.outcome = format!("{}: {}: {}", last.who, last.what, last.outcome);
        last.who = format!("visitors of {door}");
        OTHER.clone_into(&mut last.what);
        last.detail.clear();
        let (since, count) = self
            .rest
            .as_ref()
            .map_or((now, 0), |rest| (rest.since, rest.count));
        self.rest = Some(Repeats {
            since,
            count: count + uses,
            last,
        });
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

/// Refusals of one visitor are told apart by their reasons, too: a wrong token is not counted as a slip.
fn key(entry: &Entry) -> Key {
    let refused = entry.outcome.starts_with("not done");
    let kind = if refused {
        // What is to be waited for, and such, is no other reason.
        let reason = entry.outcome.chars().filter(|c| !c.is_ascii_digit());
        format!("{}: {}", entry.what, reason.collect::<String>())
    } else {
        entry.what.clone()
    };
    (entry.who.clone(), kind, refused)
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
    fn a_wrong_token_is_not_counted_as_another_slip() {
        let (mut often, now) = (Often::default(), clock::now());
        let mut take = |outcome: &str| often.take("knut", entry("a", "led", outcome), now).is_some();
        assert!(take("not done: `args` has to be an object"));
        assert!(take("not done: the token is wrong"));
        assert!(!take("not done: the token is wrong"));
        assert!(take("1 done"));
        assert!(!take("2 done"), "uses are told apart by what they are alone");
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
        assert_eq!(often.due("knut", now + WINDOW / 2), []);
        let told = often.due("knut", now + WINDOW);
        assert_eq!(
            told,
            [entry("a", "nodes", "23 times more within 60 s, at last: 2 nodes")]
        );
        assert_eq!(often.take("knut", read.clone(), now + WINDOW), None);
        assert_eq!(often.due("knut", now + WINDOW * 2).len(), 1);
        assert_eq!(often.due("knut", now + WINDOW * 3), []);
        assert!(often.kept.is_empty());
        assert_eq!(often.take("knut", read.clone(), now), Some(read.clone()));
        assert_eq!(often.take("knut", read.clone(), now), None);
        assert_eq!(often.close().len(), 1);
        assert_eq!(often.take("knut", read.clone(), now), Some(read));
    }

    #[test]
    fn many_kinds_of_one_visitor_do_not_fill_the_audit() {
        let (mut often, now) = (Often::default(), clock::now());
        let mut told = 0;
        for n in 0..10_000 {
            let refused = entry("a", &format!("{n}{}", "x".repeat(10_000)), "not done: no");
            told += usize::from(often.take("knut", refused, now).is_some());
        }
        assert_eq!((told, often.kept.len()), (KINDS_MAX + 1, KINDS_MAX + 1));
        let told = often.due("knut", now + WINDOW);
        let [other] = told.as_slice() else {
            panic!("one entry: {told:#?}");
        };
        assert_eq!((other.who.as_str(), other.what.as_str()), ("a", OTHER));
        assert!(other.outcome.starts_with("9983 times more"), "{other:?}");
    }

    /// Crowds that change their addresses all the time, for an hour.
    #[test]
    fn many_visitors_do_not_fill_the_audit_and_all_are_counted() {
        let (mut often, start) = (Often::default(), clock::now());
        let (mut told, mut asked) = (Vec::new(), 0);
        for second in 0..3_600 {
            let now = start + Duration::from_secs(second);
            for n in 0..20 {
                // Some are new each time, some come again within their window.
                for who in [format!("a{second}-{n}"), format!("b{}-{n}", second / 40)] {
                    let used = entry(&who, "nodes", "2 nodes");
                    told.extend(often.take("knut", used, now));
                    let refused = entry(&who, "led", "not done: no");
                    told.extend(often.take("knut", refused, now));
                    asked += 2;
                }
            }
            told.extend(often.due("knut", now));
            assert!(often.kept.len() <= KEPT_MAX);
        }
        // Of uses and of refusals: what is there at first, what comes back, and one entry a minute for all others.
        let most = 2 * (30 + 60 * 10 + 60);
        assert!(told.len() <= most, "{} entries", told.len());
        told.extend(often.close());
        let count = |entry: &Entry| match entry.outcome.split_once(" times more") {
            Some((count, _)) => count.parse().expect("a number"),
            None => 1,
        };
        assert_eq!(told.iter().map(count).sum::<u64>(), asked);
        let rest = told.iter().rfind(|entry| entry.who == "visitors of knut");
        let rest = rest.expect("all others");
        let (_, at_last) = rest.outcome.split_once("at last: ").expect("the last of them");
        assert!(at_last.ends_with("-19: led: not done: no"), "{rest:?}");
    }

    #[test]
    fn a_crowd_that_reads_does_not_hide_who_was_refused() {
        let (mut often, now) = (Often::default(), clock::now());
        let used =
            (0..1_000).filter_map(|n| often.take("knut", entry(&format!("a{n}"), "nodes", "2 nodes"), now));
        assert_eq!(used.count(), 30);
        let refused = entry("b", "led", "not done: no");
        assert_eq!(often.take("knut", refused.clone(), now), Some(refused));
        // A minute later there are ten entries more, and an idle door soon has all of them again.
        for (later, wanted) in [(60, 10), (3_600, 30)] {
            let later = now + Duration::from_secs(later);
            often.due("knut", later);
            let used = (0..100).filter_map(|n| often.take("knut", entry(&format!("c{n}"), "x", "y"), later));
            assert_eq!(used.count(), wanted);
        }
    }
}
