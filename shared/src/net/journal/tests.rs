use std::collections::BTreeSet;

use super::*;
use crate::proto::delivery::CommandId;
use crate::proto::delivery::journal::FRAME_BYTES;
use crate::proto::delivery::record::{StoredReply, digest};
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

const ISSUER: PeerId = PeerId([7; 32]);

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: ISSUER,
        epoch: 5,
        seq,
    }
}

fn started(seq: u64) -> Record {
    Record::Started {
        id: id(seq),
        digest: digest("led", b"{}"),
        idempotent: false,
    }
}

fn ended(seq: u64) -> Record {
    let reply = Reply::done(serde_json::json!("x".repeat(900)));
    Record::Ended {
        id: id(seq),
        reply: StoredReply::new(&reply),
    }
}

fn open(disk: &MemoryDisk) -> (JournalFile<MemoryDisk>, Recovery) {
    JournalFile::open(disk.clone())
}

/// The batches of the scripted run: commands, a stop, and in the midst of it a snapshot.
fn script() -> Vec<Vec<Record>> {
    vec![
        vec![started(1)],
        vec![ended(1), started(2)],
        vec![
            Record::Stopped {
                issuer: ISSUER,
                number: 9,
            },
            started(3),
            started(4),
        ],
        vec![ended(2)],
        vec![Record::StopEnded {
            number: 9,
            error: Some("no motor".to_owned()),
        }],
        vec![ended(3), Record::Released { number: 9 }],
    ]
}

/// Runs the script, going on after failures as a node does; returns the table of what was acknowledged and every table
/// that may be found after a crash: that one, with any first part of what was tried since then and refused.
fn run_script(disk: &MemoryDisk) -> (DedupTable, Vec<DedupTable>) {
    let mut acknowledged = DedupTable::default();
    let mut allowed = vec![acknowledged.clone()];
    let (mut journal, _) = open(disk);
    for (at, batch) in script().into_iter().enumerate() {
        if at == 3 {
            // As when the size bound is reached.
            journal.file = None;
        }
        let mut tried = acknowledged.clone();
        let parts: Vec<DedupTable> = batch
            .iter()
            .map(|record| {
                tried.apply(record);
                tried.clone()
            })
            .collect();
        match journal.append(&batch) {
            Ok(()) => {
                acknowledged = tried;
                allowed = vec![acknowledged.clone()];
            }
            Err(_) => allowed.extend(parts),
        }
        assert_eq!(
            *journal.dedup_table(),
            acknowledged,
            "the table holds what is durable"
        );
    }
    (acknowledged, allowed)
}

fn assert_recovers(disk: &MemoryDisk, allowed: &[DedupTable], what: &str) {
    for loss in [Loss::None, Loss::All, Loss::Half, Loss::Zeros] {
        for names in 0..1 << disk.unsynced_name_changes() {
            let after = disk.restarted(loss, names);
            let (mut journal, recovery) = open(&after);
            assert_eq!(recovery.fault, None, "{what}, {loss:?}, {names:b}");
            let found = journal.dedup_table().clone();
            assert!(
                allowed.contains(&found),
                "{what}, {loss:?}, {names:b}: neither what was acknowledged nor a first part of what was tried"
            );
            // What has been read once stays, even through a power cut that comes at once.
            let (again, _) = open(&after.restarted(Loss::All, 0));
            assert_eq!(*again.dedup_table(), found, "{what}, {loss:?}, {names:b}");
            journal.append(&[started(50)]).expect("a good disk");
            let (again, recovery) = open(&after.restarted(Loss::All, 0));
            assert_eq!(
                again.dedup_table(),
                journal.dedup_table(),
                "{what}, {loss:?}, {names:b}"
            );
            assert_eq!(recovery.damage, None);
        }
    }
}

#[test]
fn crash_at_any_disk_call_loses_no_acknowledged_record() {
    let disk = MemoryDisk::default();
    run_script(&disk);
    let calls = disk.calls();
    assert!(calls > 20, "the script is too short: {calls}");
    for call in 0..=calls {
        let disk = MemoryDisk::default();
        disk.fail_at(call, Failure::Crash);
        let (_, allowed) = run_script(&disk);
        assert_recovers(&disk, &allowed, &format!("crash at {call}"));
    }
}

#[test]
fn disk_error_at_any_call_recovers_without_restart() {
    let disk = MemoryDisk::default();
    run_script(&disk);
    for call in 0..disk.calls() {
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            let disk = MemoryDisk::default();
            disk.fail_at(call, Failure::Error(kind));
            let (sure, allowed) = run_script(&disk);
            // Some batch after the failure went through, or the failure was healed when it came.
            if call > 0 {
                assert_ne!(sure, DedupTable::default(), "{kind} at {call}");
            }
            assert_recovers(&disk, &allowed, &format!("{kind} at {call}"));
        }
    }
}

#[test]
fn disk_error_then_crash_loses_no_acknowledged_record() {
    let disk = MemoryDisk::default();
    run_script(&disk);
    let calls = disk.calls();
    for call in 0..calls {
        for crash in call + 1..calls + 8 {
            let disk = MemoryDisk::default();
            disk.fail_at(call, Failure::Error(ErrorKind::Other));
            disk.fail_at(crash, Failure::Crash);
            let (_, allowed) = run_script(&disk);
            assert_recovers(&disk, &allowed, &format!("error at {call}, crash at {crash}"));
        }
    }
}

#[test]
fn full_disk_refuses_appends_until_space_is_freed() {
    let disk = MemoryDisk::default();
    let (mut journal, _) = open(&disk);
    journal.append(&[started(1)]).expect("room");
    disk.set_free_bytes(Some(100));
    journal.append(&[started(2)]).expect("just enough");
    for _again in 0..3 {
        let fault = journal.append(&[started(3)]).expect_err("full").to_string();
        assert!(fault.contains("free some space"), "{fault}");
        assert_eq!(
            journal.recover().map_err(|fault| fault.to_string()),
            Err(fault.replace("be written", "make a snapshot"))
        );
    }
    disk.set_free_bytes(None);
    journal.append(&[started(4)]).expect("room again");
    let (again, _) = open(&disk.restarted(Loss::All, 0));
    assert_eq!(again.dedup_table(), journal.dedup_table());
    assert_eq!(again.dedup_table().records().len(), 3);
}

#[test]
fn damaged_journal_is_read_to_the_damage_and_rest_saved() {
    let disk = MemoryDisk::default();
    let (mut journal, _) = open(&disk);
    journal
        .append(&[started(1), started(2), started(3)])
        .expect("room");
    let mut bytes = disk.content(JOURNAL_FILE).expect("a journal");
    let record = (bytes.len() - 24) / 3;
    bytes[24 + record + FRAME_BYTES + 3] ^= 4;
    disk.put(JOURNAL_FILE, &bytes);
    let (journal, recovery) = open(&disk);
    assert_eq!((recovery.records, recovery.dropped_bytes), (1, 2 * record as u64));
    assert!(recovery.damage.expect("damage").contains("checksum"));
    assert_eq!(journal.dedup_table().records(), [started(1)]);
    assert_eq!(disk.content(DAMAGED_FILE).as_deref(), Some(&bytes[24 + record..]));
    let (_, recovery) = open(&disk);
    assert_eq!((recovery.records, recovery.damage), (1, None));

    disk.put(JOURNAL_FILE, b"not a journal");
    let (journal, recovery) = open(&disk);
    assert!(recovery.damage.expect("damage").contains("does not begin"));
    assert_eq!(*journal.dedup_table(), DedupTable::default());
    assert_eq!(disk.content(DAMAGED_FILE).as_deref(), Some(&b"not a journal"[..]));
}

#[test]
fn newer_or_unreadable_journal_is_left_unchanged() {
    let disk = MemoryDisk::default();
    let (mut journal, _) = open(&disk);
    journal.append(&[started(1)]).expect("room");
    // A record of a kind to come, framed as it should be.
    let mut bytes = disk.content(JOURNAL_FILE).expect("a journal");
    let mut later = Vec::new();
    append_record(&mut later, 2, &Record::Released { number: 1 });
    later[FRAME_BYTES] = 200;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&later[..4]);
    crc.update(&later[8..]);
    later[4..8].copy_from_slice(&crc.finalize().to_be_bytes());
    bytes.extend(later);
    disk.put(JOURNAL_FILE, &bytes);
    let (mut journal, recovery) = open(&disk);
    assert!(
        matches!(recovery.fault, Some(JournalFault::NewerVersion(_))),
        "{recovery:?}"
    );
    assert_eq!(journal.dedup_table().records(), [started(1)]);
    assert!(matches!(
        journal.append(&[started(2)]),
        Err(JournalFault::NewerVersion(_))
    ));
    assert_eq!(disk.content(JOURNAL_FILE), Some(bytes));

    let unread = disk.restarted(Loss::None, 0);
    unread.fail_at(0, Failure::Error(ErrorKind::Other));
    let (mut journal, recovery) = open(&unread);
    assert!(
        matches!(recovery.fault, Some(JournalFault::Unreadable(_))),
        "{recovery:?}"
    );
    assert!(journal.append(&[started(2)]).is_err());
    assert_eq!(unread.content(JOURNAL_FILE), disk.content(JOURNAL_FILE));
}

#[test]
fn journal_size_and_writes_per_command_are_bounded() {
    let disk = MemoryDisk::default();
    let (mut journal, _) = open(&disk);
    let before = journal.stats();
    journal.append(&[started(0)]).expect("room");
    let after = journal.stats();
    assert_eq!(after.syncs - before.syncs, 1);
    assert_eq!(after.bytes_written - before.bytes_written, 74);
    let mut lengths = BTreeSet::new();
    for seq in 1..4000 {
        journal.append(&[started(seq)]).expect("room");
        journal.append(&[ended(seq)]).expect("room");
        lengths.insert(disk.content(JOURNAL_FILE).expect("a journal").len() as u64);
    }
    let longest = lengths.last().copied().unwrap_or_default();
    let snapshot = snapshot(journal.dedup_table(), 1).0.len() as u64;
    assert!(
        longest <= snapshot + APPENDED_BYTES_MAX.max(2 * snapshot),
        "{longest}"
    );
    assert!(journal.stats().snapshots > 1);
    let (again, _) = open(&disk);
    assert_eq!(again.dedup_table(), journal.dedup_table());
}

#[test]
fn journal_works_on_a_real_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = || StdDisk::new(dir.path());
    let (mut journal, recovery) = JournalFile::open(disk());
    assert_eq!(recovery, Recovery::default());
    journal.append(&[started(1), ended(1)]).expect("room");
    journal.file = None;
    journal.append(&[started(2)]).expect("room");
    let table = journal.dedup_table().clone();
    drop(journal);
    let (mut journal, recovery) = JournalFile::open(disk());
    assert_eq!((recovery.records, recovery.damage), (3, None));
    assert_eq!(*journal.dedup_table(), table);
    journal.append(&[ended(2)]).expect("room");
    let names: BTreeSet<_> = std::fs::read_dir(dir.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, BTreeSet::from([JOURNAL_FILE.into()]));
    let (_, recovery) = JournalFile::open(StdDisk::new(&dir.path().join("none")));
    assert!(recovery.fault.is_some());
}
