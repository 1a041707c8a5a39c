//! Aggregates repeated requests in the audit: a client that asks ten times a second would push all else out of it, since the
//! number of its entries is bounded.
//!
//! | request | in the audit |
//! |---|---|
//! | the first of its client and kind | at once |
//! | repeats | counted; one entry when [`WINDOW`] has passed, or at shutdown |
//! | kinds beyond [`KINDS_MAX`] of one client | counted together as one kind |
//! | beyond [`AGGREGATES_MAX`] clients and kinds, or the entries that [`EntryBudget`] allows | counted together, one entry per [`WINDOW`] |
//!
//! Accepted and refused requests are of two kinds with a budget each: many reads do not hide a refusal. Requests that act
//! are never aggregated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::proto::rate::TokenBucket;

use crate::store::audit::AuditEntry;

/// How long repeats are counted before they become an entry.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Kinds that are counted separately per client, accepted and refused each: half of [`ENTRIES_MAX`], so that one client
/// leaves room for others.
const KINDS_MAX: usize = 16;
/// Clients and kinds that are counted separately.
const AGGREGATES_MAX: usize = 128;
/// Longest text of an entry, in characters.
const TEXT_MAX: usize = 256;
/// The kind of requests that are not counted separately.
const OTHER_KIND: &str = "other uses";
/// Entries that a gateway may make at once.
const ENTRIES_MAX: u32 = 30;
/// Time until it may make one more.
const ENTRY_EVERY: Duration = Duration::from_secs(6);

/// Client, kind, and whether the request was refused.
type AggregateKey = (String, String, bool);

/// Decides which entries of one gateway are written to the audit now.
#[derive(Debug, Default)]
pub(super) struct AuditAggregator {
    aggregates: BTreeMap<AggregateKey, Aggregate>,
    use_budget: EntryBudget,
    refusal_budget: EntryBudget,
    closed: bool,
}

#[derive(Debug)]
struct Aggregate {
    since: Instant,
    count: u64,
    last: AuditEntry,
}

/// Limits entries to [`ENTRIES_MAX`] at once and one per [`ENTRY_EVERY`], and counts what exceeds it.
#[derive(Debug)]
struct EntryBudget {
    bucket: TokenBucket,
    overflow: Option<Aggregate>,
}

impl Default for EntryBudget {
    fn default() -> Self {
        Self {
            bucket: TokenBucket::every(ENTRY_EVERY, ENTRIES_MAX),
            overflow: None,
        }
    }
}

impl AuditAggregator {
    /// Counts a request at `gateway`. Returns its entry if it is to be written now.
    pub(super) fn record(
        &mut self,
        gateway: &str,
        mut entry: AuditEntry,
        now: Instant,
    ) -> Option<AuditEntry> {
        if self.closed {
            return Some(entry);
        }
        for text in [
            &mut entry.user,
            &mut entry.action,
            &mut entry.detail,
            &mut entry.outcome,
        ] {
            if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
                text.truncate(end);
            }
        }
        let mut key = aggregate_key(&entry);
        if !self.aggregates.contains_key(&key) {
            let same = |(who, _, refused): &&AggregateKey| *who == entry.user && *refused == key.2;
            if self.aggregates.keys().filter(same).count() >= KINDS_MAX {
                key.1 = OTHER_KIND.to_owned();
                entry.action = OTHER_KIND.to_owned();
            }
        }
        if let Some(repeats) = self.aggregates.get_mut(&key) {
            repeats.count += 1;
            repeats.last = entry;
            return None;
        }
        let budget = if key.2 {
            &mut self.refusal_budget
        } else {
            &mut self.use_budget
        };
        if self.aggregates.len() >= AGGREGATES_MAX || !budget.try_spend(now) {
            budget.count_overflow(gateway, 1, entry, now);
            return None;
        }
        let repeats = Aggregate {
            since: now,
            count: 0,
            last: entry.clone(),
        };
        self.aggregates.insert(key, repeats);
        Some(entry)
    }

    /// The entries for windows that have ended.
    pub(super) fn take_due(&mut self, gateway: &str, now: Instant) -> Vec<AuditEntry> {
        let mut due = Vec::new();
        let Self {
            aggregates,
            use_budget: uses,
            refusal_budget: refusals,
            ..
        } = self;
        aggregates.retain(|(_, _, refused), repeats| {
            if now.saturating_duration_since(repeats.since) < WINDOW {
                return true;
            }
            let Some(entry) = repeats.to_entry() else {
                return false;
            };
            let budget = if *refused { &mut *refusals } else { &mut *uses };
            if budget.try_spend(now) {
                due.push(entry);
            } else {
                budget.count_overflow(gateway, repeats.count, repeats.last.clone(), now);
            }
            (repeats.since, repeats.count) = (now, 0);
            true
        });
        for budget in [uses, refusals] {
            let over = |rest: &mut Aggregate| now.saturating_duration_since(rest.since) >= WINDOW;
            due.extend(budget.overflow.take_if(over).and_then(|rest| rest.to_entry()));
        }
        due
    }

    /// The entries for all that was counted; from now on [`Self::record`] returns every entry.
    pub(super) fn close(&mut self) -> Vec<AuditEntry> {
        self.closed = true;
        let aggregates = std::mem::take(&mut self.aggregates);
        let rests = [
            self.use_budget.overflow.take(),
            self.refusal_budget.overflow.take(),
        ];
        let all = aggregates.into_values().chain(rests.into_iter().flatten());
        all.filter_map(|repeats| repeats.to_entry()).collect()
    }
}

impl EntryBudget {
    fn try_spend(&mut self, now: Instant) -> bool {
        self.bucket.try_take(now).is_ok()
    }

    /// Counts `uses` requests that get no entry of their own; `last` is the newest of them.
    fn count_overflow(&mut self, gateway: &str, uses: u64, mut last: AuditEntry, now: Instant) {
        last.outcome = format!("{}: {}: {}", last.user, last.action, last.outcome);
        last.user = format!("visitors of {gateway}");
        OTHER_KIND.clone_into(&mut last.action);
        last.detail.clear();
        let (since, count) = self
            .overflow
            .as_ref()
            .map_or((now, 0), |rest| (rest.since, rest.count));
        self.overflow = Some(Aggregate {
            since,
            count: count + uses,
            last,
        });
    }
}

impl Aggregate {
    fn to_entry(&self) -> Option<AuditEntry> {
        let Self { count, last, .. } = self;
        let times = match count {
            0 => return None,
            1 => "once more".to_owned(),
            count => format!("{count} times more"),
        };
        let outcome = format!("{times} within {} s, at last: {}", WINDOW.as_secs(), last.outcome);
        Some(AuditEntry {
            outcome,
            ..last.clone()
        })
    }
}

/// Refusals are counted by their reasons too: a wrong token must not be counted as a malformed request.
fn aggregate_key(entry: &AuditEntry) -> AggregateKey {
    let refused = entry.outcome.starts_with("not done");
    let kind = if refused {
        // Numbers, such as the seconds until the next attempt, make no other reason.
        let reason = entry.outcome.chars().filter(|c| !c.is_ascii_digit());
        format!("{}: {}", entry.action, reason.collect::<String>())
    } else {
        entry.action.clone()
    };
    (entry.user.clone(), kind, refused)
}

#[cfg(test)]
mod tests {
    use swarm_shared::net::clock;

    use super::*;

    fn entry(who: &str, what: &str, outcome: &str) -> AuditEntry {
        AuditEntry {
            at_ms: 1,
            user: who.to_owned(),
            action: what.to_owned(),
            detail: String::new(),
            outcome: outcome.to_owned(),
        }
    }

    #[test]
    fn refusals_aggregate_per_reason() {
        let (mut aggregator, now) = (AuditAggregator::default(), clock::now());
        let mut take = |outcome: &str| {
            aggregator
                .record("knut", entry("a", "led", outcome), now)
                .is_some()
        };
        assert!(take("not done: `args` has to be an object"));
        assert!(take("not done: the token is wrong"));
        assert!(!take("not done: the token is wrong"));
        assert!(take("1 done"));
        assert!(
            !take("2 done"),
            "accepted requests are counted by their kind alone"
        );
    }

    #[test]
    fn first_use_is_audited_and_repeats_are_aggregated() {
        let (mut aggregator, now) = (AuditAggregator::default(), clock::now());
        let read = entry("a", "nodes", "2 nodes");
        let refused = entry("a", "nodes", "not done: no");
        assert_eq!(aggregator.record("knut", read.clone(), now), Some(read.clone()));
        assert_eq!(aggregator.record("knut", refused.clone(), now), Some(refused));
        for _ in 0..23 {
            assert_eq!(aggregator.record("knut", read.clone(), now), None);
        }
        assert_eq!(aggregator.take_due("knut", now + WINDOW / 2), []);
        let told = aggregator.take_due("knut", now + WINDOW);
        assert_eq!(
            told,
            [entry("a", "nodes", "23 times more within 60 s, at last: 2 nodes")]
        );
        assert_eq!(aggregator.record("knut", read.clone(), now + WINDOW), None);
        assert_eq!(aggregator.take_due("knut", now + WINDOW * 2).len(), 1);
        assert_eq!(aggregator.take_due("knut", now + WINDOW * 3), []);
        assert!(aggregator.aggregates.is_empty());
        assert_eq!(aggregator.record("knut", read.clone(), now), Some(read.clone()));
        assert_eq!(aggregator.record("knut", read.clone(), now), None);
        assert_eq!(aggregator.close().len(), 1);
        assert_eq!(aggregator.record("knut", read.clone(), now), Some(read));
    }

    #[test]
    fn many_kinds_from_one_client_do_not_fill_the_audit() {
        let (mut aggregator, now) = (AuditAggregator::default(), clock::now());
        let mut told = 0;
        for n in 0..10_000 {
            let refused = entry("a", &format!("{n}{}", "x".repeat(10_000)), "not done: no");
            told += usize::from(aggregator.record("knut", refused, now).is_some());
        }
        assert_eq!(
            (told, aggregator.aggregates.len()),
            (KINDS_MAX + 1, KINDS_MAX + 1)
        );
        let told = aggregator.take_due("knut", now + WINDOW);
        let [other] = told.as_slice() else {
            panic!("one entry: {told:#?}");
        };
        assert_eq!((other.user.as_str(), other.action.as_str()), ("a", OTHER_KIND));
        assert!(other.outcome.starts_with("9983 times more"), "{other:?}");
    }

    /// Clients that change their addresses all the time, for an hour.
    #[test]
    fn many_clients_do_not_fill_the_audit_and_all_are_counted() {
        let (mut aggregator, start) = (AuditAggregator::default(), clock::now());
        let (mut told, mut asked) = (Vec::new(), 0);
        for second in 0..3_600 {
            let now = start + Duration::from_secs(second);
            for n in 0..20 {
                // Some are new each time, some repeat within their window.
                for who in [format!("a{second}-{n}"), format!("b{}-{n}", second / 40)] {
                    let used = entry(&who, "nodes", "2 nodes");
                    told.extend(aggregator.record("knut", used, now));
                    let refused = entry(&who, "led", "not done: no");
                    told.extend(aggregator.record("knut", refused, now));
                    asked += 2;
                }
            }
            told.extend(aggregator.take_due("knut", now));
            assert!(aggregator.aggregates.len() <= AGGREGATES_MAX);
        }
        // Accepted and refused each: the burst, the rate, and one entry a minute for all others.
        let most = 2 * (30 + 60 * 10 + 60);
        assert!(told.len() <= most, "{} entries", told.len());
        told.extend(aggregator.close());
        let count = |entry: &AuditEntry| match entry.outcome.split_once(" times more") {
            Some((count, _)) => count.parse().expect("a number"),
            None => 1,
        };
        assert_eq!(told.iter().map(count).sum::<u64>(), asked);
        let rest = told.iter().rfind(|entry| entry.user == "visitors of knut");
        let rest = rest.expect("all others");
        let (_, at_last) = rest.outcome.split_once("at last: ").expect("the last of them");
        assert!(at_last.ends_with("-19: led: not done: no"), "{rest:?}");
    }

    #[test]
    fn reads_do_not_use_up_the_audit_budget_of_refusals() {
        let (mut aggregator, now) = (AuditAggregator::default(), clock::now());
        let used = (0..1_000)
            .filter_map(|n| aggregator.record("knut", entry(&format!("a{n}"), "nodes", "2 nodes"), now));
        assert_eq!(used.count(), 30);
        let refused = entry("b", "led", "not done: no");
        assert_eq!(aggregator.record("knut", refused.clone(), now), Some(refused));
        // A minute later there are ten entries more, and after an idle hour the whole burst.
        for (later, wanted) in [(60, 10), (3_600, 30)] {
            let later = now + Duration::from_secs(later);
            aggregator.take_due("knut", later);
            let used =
                (0..100).filter_map(|n| aggregator.record("knut", entry(&format!("c{n}"), "x", "y"), later));
            assert_eq!(used.count(), wanted);
        }
    }
}
