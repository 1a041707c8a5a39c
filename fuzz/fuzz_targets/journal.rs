//! A damaged node journal. Replay of arbitrary bytes stops at the first bad record and never panics; a snapshot replays
//! to an equal table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::journal::{
    FRAME_BYTES, HEADER_BYTES, append_record, encode_header, replay, snapshot,
};
use swarm_shared::proto::delivery::record::Record;

fuzz_target!(|data: &[u8]| {
    let read = replay(data, |_record| {});
    assert!(read.valid_bytes <= data.len());
    assert_eq!(
        read.damage.is_none(),
        read.valid_bytes == data.len() && !data.is_empty()
    );

    // Behind the checksums: record bodies in a row, each with a length byte before it.
    let mut rest = data;
    let mut table = DedupTable::default();
    let mut bytes = encode_header(1).to_vec();
    let mut written = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (body, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        if let Ok(record) = Record::decode(body) {
            let mut again = Vec::new();
            record.encode(&mut again);
            assert_eq!(again, body, "each record has one encoding");
            table.apply(&record);
            append_record(&mut bytes, 1 + written.len() as u64, &record);
            written.push(record);
        }
    }
    if written.is_empty() {
        return;
    }
    let (whole, next) = snapshot(&table, 9);
    let mut replayed = DedupTable::default();
    let read = replay(&whole, |record| replayed.apply(&record));
    assert_eq!((read.next_number, read.damage), (next, None));
    assert_eq!(replayed, table);

    // A changed byte is detected, and replay stops before it.
    let at = HEADER_BYTES + usize::from(data[0]) % (bytes.len() - HEADER_BYTES).min(FRAME_BYTES * 4);
    bytes[at] ^= data[data.len() - 1] | 1;
    let mut found = Vec::new();
    let read = replay(&bytes, |record| found.push(record));
    assert!(read.damage.is_some() && read.valid_bytes <= at);
    assert!(found.len() < written.len() && written.starts_with(&found));
});
