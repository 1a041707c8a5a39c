//! A node's journal after anything may have happened to it: no bytes do more than stop the replay, and what was
//! understood is kept by a snapshot.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::delivery::journal::{FRAME_BYTES, HEADER_BYTES, frame, header, replay, snapshot};
use swarm_shared::proto::delivery::ledger::Ledger;
use swarm_shared::proto::delivery::record::Record;

fuzz_target!(|data: &[u8]| {
    let read = replay(data, |_record| {});
    assert!(read.sound_bytes <= data.len());
    assert_eq!(read.damage.is_none(), read.sound_bytes == data.len() && !data.is_empty());

    // Past the checksums: bodies one after the other, each with its length before it.
    let mut rest = data;
    let mut ledger = Ledger::default();
    let mut bytes = header(1).to_vec();
    let mut written = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (body, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        if let Ok(record) = Record::decode(body) {
            let mut again = Vec::new();
            record.encode(&mut again);
            assert_eq!(again, body, "one way to write each record");
            ledger.apply(&record);
            frame(&mut bytes, 1 + written.len() as u64, &record);
            written.push(record);
        }
    }
    if written.is_empty() {
        return;
    }
    let (whole, next) = snapshot(&ledger, 9);
    let mut replayed = Ledger::default();
    let read = replay(&whole, |record| replayed.apply(&record));
    assert_eq!((read.next, read.damage), (next, None));
    assert_eq!(replayed, ledger);

    // Any one change is noticed, and nothing is read from there on.
    let at = HEADER_BYTES + usize::from(data[0]) % (bytes.len() - HEADER_BYTES).min(FRAME_BYTES * 4);
    bytes[at] ^= data[data.len() - 1] | 1;
    let mut found = Vec::new();
    let read = replay(&bytes, |record| found.push(record));
    assert!(read.damage.is_some() && read.sound_bytes <= at);
    assert!(found.len() < written.len() && written.starts_with(&found));
});
