use super::CommandId;
use super::dedup::{DedupResult, DedupTable, ISSUERS_MAX, REPLY_BYTES_MAX, WINDOW_COMMANDS, WINDOW_ISSUERS};
use super::record::{Digest, Record, StoredReply, digest};
use crate::proto::id::PeerId;
use crate::proto::outcome::{Outcome, Reply};

fn issuer(number: usize) -> PeerId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    PeerId(id)
}

fn id(epoch: u64, seq: u64) -> CommandId {
    CommandId {
        issuer: issuer(1),
        epoch,
        seq,
    }
}

fn led() -> Digest {
    digest("led", b"{}")
}

fn started(id: CommandId) -> Record {
    Record::Started {
        id,
        digest: led(),
        idempotent: false,
    }
}

fn ended(id: CommandId, reply: &Reply) -> Record {
    let reply = StoredReply::new(reply);
    Record::Ended { id, reply }
}

fn table(records: impl IntoIterator<Item = Record>) -> DedupTable {
    let mut ledger = DedupTable::default();
    for record in records {
        ledger.apply(&record);
    }
    ledger
}

fn assert_replays(ledger: &DedupTable) {
    assert_eq!(self::table(ledger.records()), *ledger);
}

#[test]
fn identity_goes_from_new_to_begun_to_ended() {
    let mut ledger = DedupTable::default();
    assert_eq!(ledger.lookup(id(1, 1), led()), DedupResult::New);
    ledger.apply(&started(id(1, 1)));
    assert_eq!(
        ledger.lookup(id(1, 1), led()),
        DedupResult::Begun { idempotent: false }
    );
    assert_eq!(
        ledger.lookup(id(1, 1), digest("led", b"[]")),
        DedupResult::Conflict
    );
    assert_eq!(
        ledger.lookup(id(1, 1), digest("le", b"d{}")),
        DedupResult::Conflict
    );
    ledger.apply(&ended(id(1, 1), &Reply::failed("no motor")));
    // Neither a second start nor a second end changes the stored answer.
    ledger.apply(&started(id(1, 1)));
    ledger.apply(&ended(id(1, 1), &Reply::refused("late")));
    let DedupResult::Ended(reply) = ledger.lookup(id(1, 1), led()) else {
        panic!("it has ended");
    };
    assert_eq!(reply.to_reply(), Reply::failed("no motor"));
    assert_eq!(ledger.lookup(id(1, 2), led()), DedupResult::New);
    // A command that never started has no digest to compare.
    ledger.apply(&ended(id(1, 3), &Reply::refused("late")));
    assert!(matches!(ledger.lookup(id(1, 3), led()), DedupResult::Ended(_)));
    assert_replays(&ledger);
}

#[test]
fn evicted_identity_is_never_new_again() {
    let newest = WINDOW_COMMANDS as u64 + 5;
    let mut ledger = table((1..=newest).map(|seq| started(id(1, seq))));
    for seq in 1..=5 {
        assert_eq!(ledger.lookup(id(1, seq), led()), DedupResult::Evicted);
    }
    assert_eq!(ledger.lookup(id(0, 9), led()), DedupResult::Evicted);
    assert!(matches!(
        ledger.lookup(id(1, 6), led()),
        DedupResult::Begun { .. }
    ));
    // A record below the floor has no effect.
    ledger.apply(&started(id(1, 3)));
    assert_eq!(ledger.lookup(id(1, 3), led()), DedupResult::Evicted);
    // The window spans epochs.
    ledger.apply(&started(id(2, 1)));
    assert_eq!(ledger.lookup(id(1, 6), led()), DedupResult::Evicted);
    assert!(matches!(
        ledger.lookup(id(1, 7), led()),
        DedupResult::Begun { .. }
    ));
    assert_eq!(
        ledger.lookup(id(1, newest + 1), led()),
        DedupResult::OldEpoch { highest: 2 }
    );
    assert_eq!(ledger.lookup(id(2, 2), led()), DedupResult::New);
    assert_replays(&ledger);
}

#[test]
fn floor_covers_every_identity_up_to_it() {
    let mut ledger = table((1..=4).map(|seq| started(id(1, seq))));
    let floor = |seq| Record::Floor {
        issuer: issuer(1),
        epoch: 1,
        seq,
    };
    ledger.apply(&floor(2));
    assert_eq!(ledger.lookup(id(1, 2), led()), DedupResult::Evicted);
    assert!(matches!(
        ledger.lookup(id(1, 3), led()),
        DedupResult::Begun { .. }
    ));
    ledger.apply(&floor(9));
    ledger.apply(&floor(8));
    assert_eq!(ledger.lookup(id(1, 9), led()), DedupResult::Evicted);
    assert_eq!(ledger.lookup(id(1, 10), led()), DedupResult::New);
    assert_eq!(ledger.records(), [floor(9)]);
    assert_replays(&ledger);
}

#[test]
fn least_recent_issuer_keeps_only_its_floor() {
    let by = |number: usize, seq| CommandId {
        issuer: issuer(number),
        epoch: 3,
        seq,
    };
    let mut ledger = table((0..WINDOW_ISSUERS).map(|number| started(by(number, 4))));
    ledger.apply(&started(by(0, 5)));
    ledger.apply(&started(by(WINDOW_ISSUERS, 4)));
    assert!(matches!(
        ledger.lookup(by(0, 4), led()),
        DedupResult::Begun { .. }
    ));
    assert_eq!(ledger.lookup(by(1, 4), led()), DedupResult::Evicted);
    assert_eq!(ledger.lookup(by(1, 5), led()), DedupResult::New);
    ledger.apply(&started(by(1, 5)));
    assert_eq!(ledger.lookup(by(1, 4), led()), DedupResult::Evicted);
    assert_replays(&ledger);
    for number in 0..WINDOW_ISSUERS + ISSUERS_MAX + 50 {
        ledger.apply(&started(by(number, 9)));
    }
    assert_eq!(ledger.records().len(), WINDOW_ISSUERS + ISSUERS_MAX);
    assert_replays(&ledger);
}

#[test]
fn oldest_reply_texts_are_evicted_and_outcomes_kept() {
    let reply = Reply {
        output: Some("x".repeat(1000)),
        ..Reply::done(serde_json::Value::from("y".repeat(1000)))
    };
    let ledger = table((1..=1000).map(|seq| ended(id(1, seq), &reply)));
    let kept: Vec<StoredReply> = ledger
        .records()
        .into_iter()
        .filter_map(|record| match record {
            Record::Ended { reply, .. } => Some(reply),
            Record::Started { .. }
            | Record::Floor { .. }
            | Record::Stopped { .. }
            | Record::Released { .. }
            | Record::StopEnded { .. }
            | Record::StopSeen { .. } => None,
        })
        .collect();
    assert_eq!(kept.len(), 1000);
    assert!(kept.iter().all(|reply| reply.state() == Outcome::Done));
    let whole = kept.iter().filter(|reply| !reply.is_truncated()).count();
    assert_eq!(whole, REPLY_BYTES_MAX / 2002);
    assert!(kept[..1000 - whole].iter().all(StoredReply::is_truncated));
    assert_replays(&ledger);
}

#[test]
fn latch_ends_only_by_its_own_release() {
    let stopped = |number| Record::Stopped {
        issuer: issuer(1),
        number,
    };
    let mut ledger = table([stopped(5), stopped(8)]);
    ledger.apply(&Record::Released { number: 5 });
    ledger.apply(&Record::StopEnded {
        number: 5,
        error: None,
    });
    let latch = ledger.latch().expect("stopped");
    assert_eq!((latch.number, &latch.command_result), (8, &None));
    ledger.apply(&Record::StopEnded {
        number: 8,
        error: Some("x".repeat(5000)),
    });
    let ended = ledger.latch().and_then(|latch| latch.command_result.clone());
    assert_eq!(ended, Some(Err("x".repeat(1024))));
    assert_replays(&ledger);
    ledger.apply(&Record::Released { number: 8 });
    assert_eq!((ledger.latch(), ledger.highest_stop_number(issuer(1))), (None, 8));
    assert_eq!(ledger.highest_stop_number(issuer(2)), 0);
    assert_replays(&ledger);
    ledger.apply(&stopped(9));
    for number in 0..ISSUERS_MAX + 9 {
        ledger.apply(&Record::StopSeen {
            issuer: issuer(number + 2),
            number: 100,
        });
    }
    assert_eq!(
        ledger.highest_stop_number(issuer(1)),
        9,
        "the stop in force is not forgotten"
    );
    assert_replays(&ledger);
}
