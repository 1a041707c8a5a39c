use super::CommandId;
use super::dedup::{Found, ISSUERS_MAX, Ledger, REPLY_BYTES_MAX, WINDOW_IDENTITIES, WINDOW_ISSUERS};
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

fn ledger(records: impl IntoIterator<Item = Record>) -> Ledger {
    let mut ledger = Ledger::default();
    for record in records {
        ledger.apply(&record);
    }
    ledger
}

fn replays(ledger: &Ledger) {
    assert_eq!(self::ledger(ledger.records()), *ledger);
}

#[test]
fn an_identity_is_new_then_begun_then_ended_for_good() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.find(id(1, 1), led()), Found::New);
    ledger.apply(&started(id(1, 1)));
    assert_eq!(ledger.find(id(1, 1), led()), Found::Begun { idempotent: false });
    assert_eq!(ledger.find(id(1, 1), digest("led", b"[]")), Found::Different);
    assert_eq!(ledger.find(id(1, 1), digest("le", b"d{}")), Found::Different);
    ledger.apply(&ended(id(1, 1), &Reply::failed("no motor")));
    // Neither a second beginning nor a second end changes what was answered.
    ledger.apply(&started(id(1, 1)));
    ledger.apply(&ended(id(1, 1), &Reply::refused("late")));
    let Found::Ended(reply) = ledger.find(id(1, 1), led()) else {
        panic!("it has ended");
    };
    assert_eq!(reply.reply(), Reply::failed("no motor"));
    assert_eq!(ledger.find(id(1, 2), led()), Found::New);
    // One that never began has no digest to compare.
    ledger.apply(&ended(id(1, 3), &Reply::refused("late")));
    assert!(matches!(ledger.find(id(1, 3), led()), Found::Ended(_)));
    replays(&ledger);
}

#[test]
fn what_leaves_the_window_is_forgotten_and_never_new_again() {
    let newest = WINDOW_IDENTITIES as u64 + 5;
    let mut ledger = ledger((1..=newest).map(|seq| started(id(1, seq))));
    for seq in 1..=5 {
        assert_eq!(ledger.find(id(1, seq), led()), Found::Forgotten);
    }
    assert_eq!(ledger.find(id(0, 9), led()), Found::Forgotten);
    assert!(matches!(ledger.find(id(1, 6), led()), Found::Begun { .. }));
    // A record from below the floor brings nothing back.
    ledger.apply(&started(id(1, 3)));
    assert_eq!(ledger.find(id(1, 3), led()), Found::Forgotten);
    // The window spans epochs.
    ledger.apply(&started(id(2, 1)));
    assert_eq!(ledger.find(id(1, 6), led()), Found::Forgotten);
    assert!(matches!(ledger.find(id(1, 7), led()), Found::Begun { .. }));
    assert_eq!(ledger.find(id(1, newest + 1), led()), Found::OldEpoch { seen: 2 });
    assert_eq!(ledger.find(id(2, 2), led()), Found::New);
    replays(&ledger);
}

#[test]
fn a_floor_takes_all_up_to_it() {
    let mut ledger = ledger((1..=4).map(|seq| started(id(1, seq))));
    let floor = |seq| Record::Floor {
        issuer: issuer(1),
        epoch: 1,
        seq,
    };
    ledger.apply(&floor(2));
    assert_eq!(ledger.find(id(1, 2), led()), Found::Forgotten);
    assert!(matches!(ledger.find(id(1, 3), led()), Found::Begun { .. }));
    ledger.apply(&floor(9));
    ledger.apply(&floor(8));
    assert_eq!(ledger.find(id(1, 9), led()), Found::Forgotten);
    assert_eq!(ledger.find(id(1, 10), led()), Found::New);
    assert_eq!(ledger.records(), [floor(9)]);
    replays(&ledger);
}

#[test]
fn the_issuer_that_issued_longest_ago_keeps_only_its_floor() {
    let by = |number: usize, seq| CommandId {
        issuer: issuer(number),
        epoch: 3,
        seq,
    };
    let mut ledger = ledger((0..WINDOW_ISSUERS).map(|number| started(by(number, 4))));
    ledger.apply(&started(by(0, 5)));
    ledger.apply(&started(by(WINDOW_ISSUERS, 4)));
    assert!(matches!(ledger.find(by(0, 4), led()), Found::Begun { .. }));
    assert_eq!(ledger.find(by(1, 4), led()), Found::Forgotten);
    assert_eq!(ledger.find(by(1, 5), led()), Found::New);
    ledger.apply(&started(by(1, 5)));
    assert_eq!(ledger.find(by(1, 4), led()), Found::Forgotten);
    replays(&ledger);
    for number in 0..WINDOW_ISSUERS + ISSUERS_MAX + 50 {
        ledger.apply(&started(by(number, 9)));
    }
    assert_eq!(ledger.records().len(), WINDOW_ISSUERS + ISSUERS_MAX);
    replays(&ledger);
}

#[test]
fn the_texts_of_old_replies_go_first_and_their_outcomes_stay() {
    let reply = Reply {
        output: Some("x".repeat(1000)),
        ..Reply::done(serde_json::Value::from("y".repeat(1000)))
    };
    let ledger = ledger((1..=1000).map(|seq| ended(id(1, seq), &reply)));
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
    let whole = kept.iter().filter(|reply| !reply.is_cut()).count();
    assert_eq!(whole, REPLY_BYTES_MAX / 2002);
    assert!(kept[..1000 - whole].iter().all(StoredReply::is_cut));
    replays(&ledger);
}

#[test]
fn a_stop_stays_until_its_own_release() {
    let stopped = |number| Record::Stopped {
        issuer: issuer(1),
        number,
    };
    let mut ledger = ledger([stopped(5), stopped(8)]);
    ledger.apply(&Record::Released { number: 5 });
    ledger.apply(&Record::StopEnded {
        number: 5,
        error: None,
    });
    let latch = ledger.latch().expect("stopped");
    assert_eq!((latch.number, &latch.ended), (8, &None));
    ledger.apply(&Record::StopEnded {
        number: 8,
        error: Some("x".repeat(5000)),
    });
    let ended = ledger.latch().and_then(|latch| latch.ended.clone());
    assert_eq!(ended, Some(Err("x".repeat(1024))));
    replays(&ledger);
    ledger.apply(&Record::Released { number: 8 });
    assert_eq!((ledger.latch(), ledger.stop_seen(issuer(1))), (None, 8));
    assert_eq!(ledger.stop_seen(issuer(2)), 0);
    replays(&ledger);
    ledger.apply(&stopped(9));
    for number in 0..ISSUERS_MAX + 9 {
        ledger.apply(&Record::StopSeen {
            issuer: issuer(number + 2),
            number: 100,
        });
    }
    assert_eq!(
        ledger.stop_seen(issuer(1)),
        9,
        "the stop in force is not forgotten"
    );
    replays(&ledger);
}
