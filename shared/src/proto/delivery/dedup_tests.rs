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
    let mut dedup = DedupTable::default();
    for record in records {
        dedup.apply(&record);
    }
    dedup
}

fn assert_replays(dedup: &DedupTable) {
    assert_eq!(self::table(dedup.records()), *dedup);
}

#[test]
fn identity_goes_from_new_to_begun_to_ended() {
    let mut dedup = DedupTable::default();
    assert_eq!(dedup.lookup(id(1, 1), led()), DedupResult::New);
    dedup.apply(&started(id(1, 1)));
    assert_eq!(
        dedup.lookup(id(1, 1), led()),
        DedupResult::Begun { idempotent: false }
    );
    assert_eq!(
        dedup.lookup(id(1, 1), digest("led", b"[]")),
        DedupResult::Conflict
    );
    assert_eq!(
        dedup.lookup(id(1, 1), digest("le", b"d{}")),
        DedupResult::Conflict
    );
    dedup.apply(&ended(id(1, 1), &Reply::failed("no motor")));
    // Neither a second start nor a second end changes the stored answer.
    dedup.apply(&started(id(1, 1)));
    dedup.apply(&ended(id(1, 1), &Reply::refused("late")));
    let DedupResult::Ended(reply) = dedup.lookup(id(1, 1), led()) else {
        panic!("it has ended");
    };
    assert_eq!(reply.to_reply(), Reply::failed("no motor"));
    assert_eq!(dedup.lookup(id(1, 2), led()), DedupResult::New);
    // A command that never started has no digest to compare.
    dedup.apply(&ended(id(1, 3), &Reply::refused("late")));
    assert!(matches!(dedup.lookup(id(1, 3), led()), DedupResult::Ended(_)));
    assert_replays(&dedup);
}

#[test]
fn evicted_identity_is_never_new_again() {
    let newest = WINDOW_COMMANDS as u64 + 5;
    let mut dedup = table((1..=newest).map(|seq| started(id(1, seq))));
    for seq in 1..=5 {
        assert_eq!(dedup.lookup(id(1, seq), led()), DedupResult::Evicted);
    }
    assert_eq!(dedup.lookup(id(0, 9), led()), DedupResult::Evicted);
    assert!(matches!(dedup.lookup(id(1, 6), led()), DedupResult::Begun { .. }));
    // A record below the floor has no effect.
    dedup.apply(&started(id(1, 3)));
    assert_eq!(dedup.lookup(id(1, 3), led()), DedupResult::Evicted);
    // The window spans epochs.
    dedup.apply(&started(id(2, 1)));
    assert_eq!(dedup.lookup(id(1, 6), led()), DedupResult::Evicted);
    assert!(matches!(dedup.lookup(id(1, 7), led()), DedupResult::Begun { .. }));
    assert_eq!(
        dedup.lookup(id(1, newest + 1), led()),
        DedupResult::OldEpoch { highest: 2 }
    );
    assert_eq!(dedup.lookup(id(2, 2), led()), DedupResult::New);
    assert_replays(&dedup);
}

#[test]
fn floor_covers_every_identity_up_to_it() {
    let mut dedup = table((1..=4).map(|seq| started(id(1, seq))));
    let floor = |seq| Record::Floor {
        issuer: issuer(1),
        epoch: 1,
        seq,
    };
    dedup.apply(&floor(2));
    assert_eq!(dedup.lookup(id(1, 2), led()), DedupResult::Evicted);
    assert!(matches!(dedup.lookup(id(1, 3), led()), DedupResult::Begun { .. }));
    dedup.apply(&floor(9));
    dedup.apply(&floor(8));
    assert_eq!(dedup.lookup(id(1, 9), led()), DedupResult::Evicted);
    assert_eq!(dedup.lookup(id(1, 10), led()), DedupResult::New);
    assert_eq!(dedup.records(), [floor(9)]);
    assert_replays(&dedup);
}

#[test]
fn least_recent_issuer_keeps_only_its_floor() {
    let by = |number: usize, seq| CommandId {
        issuer: issuer(number),
        epoch: 3,
        seq,
    };
    let mut dedup = table((0..WINDOW_ISSUERS).map(|number| started(by(number, 4))));
    dedup.apply(&started(by(0, 5)));
    dedup.apply(&started(by(WINDOW_ISSUERS, 4)));
    assert!(matches!(dedup.lookup(by(0, 4), led()), DedupResult::Begun { .. }));
    assert_eq!(dedup.lookup(by(1, 4), led()), DedupResult::Evicted);
    assert_eq!(dedup.lookup(by(1, 5), led()), DedupResult::New);
    dedup.apply(&started(by(1, 5)));
    assert_eq!(dedup.lookup(by(1, 4), led()), DedupResult::Evicted);
    assert_replays(&dedup);
    for number in 0..WINDOW_ISSUERS + ISSUERS_MAX + 50 {
        dedup.apply(&started(by(number, 9)));
    }
    assert_eq!(dedup.records().len(), WINDOW_ISSUERS + ISSUERS_MAX);
    assert_replays(&dedup);
}

#[test]
fn oldest_reply_texts_are_evicted_and_outcomes_kept() {
    let reply = Reply {
        output: Some("x".repeat(1000)),
        ..Reply::done(serde_json::Value::from("y".repeat(1000)))
    };
    let dedup = table((1..=1000).map(|seq| ended(id(1, seq), &reply)));
    let kept: Vec<StoredReply> = dedup
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
    assert_replays(&dedup);
}

#[test]
fn latch_ends_only_by_its_own_release() {
    let stopped = |number| Record::Stopped {
        issuer: issuer(1),
        number,
    };
    let mut dedup = table([stopped(5), stopped(8)]);
    dedup.apply(&Record::Released { number: 5 });
    dedup.apply(&Record::StopEnded {
        number: 5,
        error: None,
    });
    let latch = dedup.latch().expect("stopped");
    assert_eq!((latch.number, &latch.command_result), (8, &None));
    dedup.apply(&Record::StopEnded {
        number: 8,
        error: Some("x".repeat(5000)),
    });
    let ended = dedup.latch().and_then(|latch| latch.command_result.clone());
    assert_eq!(ended, Some(Err("x".repeat(1024))));
    assert_replays(&dedup);
    dedup.apply(&Record::Released { number: 8 });
    assert_eq!((dedup.latch(), dedup.highest_stop_number(issuer(1))), (None, 8));
    assert_eq!(dedup.highest_stop_number(issuer(2)), 0);
    assert_replays(&dedup);
    dedup.apply(&stopped(9));
    for number in 0..ISSUERS_MAX + 9 {
        dedup.apply(&Record::StopSeen {
            issuer: issuer(number + 2),
            number: 100,
        });
    }
    assert_eq!(
        dedup.highest_stop_number(issuer(1)),
        9,
        "the stop in force is not forgotten"
    );
    assert_replays(&dedup);
}
