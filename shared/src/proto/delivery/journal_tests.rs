use proptest::collection::vec;
use proptest::prelude::*;

use super::CommandId;
use super::dedup::DedupTable;
use super::journal::{HEADER_BYTES, append_record, encode_header, replay, snapshot};
use super::record::{BODY_BYTES_MAX, Record, STORED_TEXT_BYTES_MAX, StoredReply, digest};
use crate::proto::id::PeerId;
use crate::proto::outcome::{Outcome, Reply};

fn reply() -> impl Strategy<Value = StoredReply> {
    let text = || proptest::option::of("[a-zé]{0,12}");
    (text(), text(), text(), any::<Option<i32>>(), any::<bool>()).prop_map(
        |(value, output, error, exit, long)| {
            let long = if long { STORED_TEXT_BYTES_MAX } else { 0 };
            StoredReply::new(&Reply {
                state: Outcome::Failed,
                value: value.map(Into::into),
                output: output.map(|text| text + &"é".repeat(long)),
                exit,
                error,
            })
        },
    )
}

/// Records of few issuers, so that they collide.
pub(super) fn record() -> impl Strategy<Value = Record> {
    let issuer = || (0..4_u8).prop_map(|n| PeerId([n; 32]));
    let id = move || {
        (issuer(), 1..4_u64, 1..20_u64).prop_map(|(issuer, epoch, seq)| CommandId { issuer, epoch, seq })
    };
    prop_oneof![
        4 => (id(), any::<u8>(), any::<bool>()).prop_map(|(id, content, idempotent)| Record::Started {
            id,
            digest: digest("led", &[content]),
            idempotent,
        }),
        4 => (id(), reply()).prop_map(|(id, reply)| Record::Ended { id, reply }),
        1 => id().prop_map(|CommandId { issuer, epoch, seq }| Record::Floor { issuer, epoch, seq }),
        1 => (issuer(), 1..9_u64).prop_map(|(issuer, number)| Record::Stopped { issuer, number }),
        1 => (1..9_u64).prop_map(|number| Record::Released { number }),
        1 => (1..9_u64, proptest::option::of("[a-z]{0,9}"))
            .prop_map(|(number, error)| Record::StopEnded { number, error }),
        1 => (issuer(), 1..9_u64).prop_map(|(issuer, number)| Record::StopSeen { issuer, number }),
    ]
}

fn written(first: u64, records: &[Record]) -> Vec<u8> {
    let mut bytes = encode_header(first).to_vec();
    for (number, record) in (first..).zip(records) {
        append_record(&mut bytes, number, record);
    }
    bytes
}

fn read(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let replayed = replay(bytes, |record| records.push(record));
    assert_eq!(replayed.records, records.len() as u64);
    records
}

proptest! {
    #[test]
    fn journal_records_round_trip(record in record()) {
        let mut body = Vec::new();
        record.encode(&mut body);
        prop_assert!(body.len() <= BODY_BYTES_MAX);
        prop_assert_eq!(Record::decode(&body), Ok(record));
    }

    #[test]
    fn truncated_journal_yields_a_prefix_of_its_records(
        records in vec(record(), 0..12), first in 1..9_u64, cut in any::<prop::sample::Index>(),
    ) {
        let bytes = written(first, &records);
        prop_assert_eq!(&read(&bytes), &records);
        let part = read(&bytes[..cut.index(bytes.len() + 1)]);
        prop_assert!(records.starts_with(&part));
    }

    #[test]
    fn bit_flip_yields_no_record_that_was_not_written(
        records in vec(record(), 1..6), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let mut bytes = written(1, &records);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut part = Vec::new();
        let replayed = replay(&bytes, |record| part.push(record));
        prop_assert!(replayed.damage.is_some());
        prop_assert!(replayed.valid_bytes <= at);
        prop_assert!(part.len() < records.len() && records.starts_with(&part));
    }

    #[test]
    fn arbitrary_bytes_only_end_journal_replay(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(read(&bytes), []);
        let mut after = written(1, &[]);
        after.extend(&bytes);
        prop_assert_eq!(read(&after), []);
    }

    #[test]
    fn snapshot_replays_to_an_equal_dedup_table(records in vec(record(), 0..120)) {
        let mut dedup = DedupTable::default();
        for record in &records {
            dedup.apply(record);
        }
        let (bytes, next) = snapshot(&dedup, 5);
        let mut again = DedupTable::default();
        let replayed = replay(&bytes, |record| again.apply(&record));
        prop_assert_eq!((replayed.next_number, replayed.damage), (next, None));
        prop_assert_eq!(again, dedup);
    }
}

#[test]
fn zeros_and_stale_records_end_journal_replay() {
    let record = Record::Released { number: 3 };
    let mut zeros = written(1, std::slice::from_ref(&record));
    zeros.extend([0; 500]);
    assert_eq!(read(&zeros), std::slice::from_ref(&record));

    let older = written(1, &[record.clone(), record.clone()]);
    let mut newer = written(9, std::slice::from_ref(&record));
    newer.extend(&older[HEADER_BYTES..]);
    assert_eq!(read(&newer), [record]);
}

#[test]
fn golden_journal_version_1() {
    // If this fails, undo your change, not the test.
    let record = Record::Started {
        id: CommandId {
            issuer: PeerId([0xab; 32]),
            epoch: 2,
            seq: 3,
        },
        digest: digest("led", b"{}"),
        idempotent: true,
    };
    let bytes = written(7, &[record]);
    let issuer = "ab".repeat(32);
    let expected = format!(
        "737761726d6a6e6c00000001aa7548c00000000000000007\
         0000003a9153637e000000000000000701{issuer}000000000000000200000000000000036f30daf961e3d12801"
    );
    assert_eq!(crate::proto::hex::encode(&bytes), expected);
}

#[test]
fn long_stored_replies_are_truncated_and_marked() {
    let long = "é".repeat(STORED_TEXT_BYTES_MAX);
    let deep = serde_json::from_str(&format!("{}{}", "[".repeat(100), "]".repeat(100)));
    let mut value: serde_json::Value = deep.expect("JSON");
    for _level in 0..100 {
        value = serde_json::json!([value]);
    }
    let stored = StoredReply::new(&Reply {
        state: Outcome::Done,
        value: Some(value),
        output: Some(long.clone()),
        exit: Some(0),
        error: None,
    });
    assert!(stored.is_truncated());
    let reply = stored.to_reply();
    assert_eq!(
        (reply.state, reply.exit, reply.value),
        (Outcome::Done, Some(0), None)
    );
    let output = reply.output.expect("the beginning");
    assert!(output.starts_with("éé") && output.ends_with("of this answer]") && output.len() < long.len());

    let short = Reply::failed("no motor");
    assert_eq!(StoredReply::new(&short).to_reply(), short);
}
