//! Restart of a station until its store is open and its open deliveries are read; restart of a node until its journal is
//! read and rewritten.

use std::path::Path;
use std::time::Duration;

use ground_station::store::deliveries::{Origin, apply};
use ground_station::store::timestamp::Timestamp;
use ground_station::store::{STORE_FILE, Store, prepare};
use rusqlite::Connection;
use swarm_node::journal::Journal;
use swarm_shared::net::clock;
use swarm_shared::net::journal::{JOURNAL_FILE, JournalFile, StdDisk};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::dedup::{WINDOW_COMMANDS, WINDOW_ISSUERS};
use swarm_shared::proto::delivery::record::{Digest, Record, StoredReply};
use swarm_shared::proto::delivery::tracker::{
    Change, IssuedCommand, StoredCommand, StoredState, StoredTarget,
};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;

use super::{Samples, Table};

/// Nodes of each command.
const NODES: u64 = 1_000;
/// Commands of which the last delivery is still open.
const OPEN_COMMANDS: u64 = 10;
const OWN_ID: PeerId = PeerId([7; 32]);

/// Fills a store with `deliveries` and opens it `runs` times.
///
/// # Errors
/// If the disk is full, or something that was open is not found.
pub async fn station(deliveries: u64, runs: usize, dir: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let path = dir.path().join(STORE_FILE);
    let commands = deliveries.div_ceil(NODES);
    let filling = clock::now();
    tokio::task::spawn_blocking({
        let path = path.clone();
        move || fill(&path, commands)
    })
    .await??;
    let fill_s = clock::now().duration_since(filling).as_secs_f64();
    let (mut opened, mut recovered) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let started = clock::now();
        let store = Store::open(dir.path()).await?;
        opened.add(clock::now().duration_since(started).as_secs_f64() * 1_000.0);
        let open = store.recover(OWN_ID).await?;
        recovered.add(clock::now().duration_since(started).as_secs_f64() * 1_000.0);
        anyhow::ensure!(
            open.len() as u64 == OPEN_COMMANDS.min(commands),
            "{} commands are open",
            open.len()
        );
    }
    let mut table = Table::new();
    let many = commands * NODES;
    table.add_row(format!("a store with {many} deliveries: open"), "ms", &opened);
    table.add_row(
        format!("a store with {many} deliveries: open, and all that is open found"),
        "ms",
        &recovered,
    );
    let mut size = Samples::default();
    size.add(f64::from(u32::try_from(
        std::fs::metadata(&path)?.len() / 1_048_576,
    )?));
    table.add_row("its file", "MiB", &size);
    let mut filled = Samples::default();
    filled.add(fill_s);
    table.add_row(
        "filling it, a commit for each command's issue and end",
        "s",
        &filled,
    );
    Ok(table.print()?)
}

/// Writes commands to [`NODES`] nodes each, all ended but one delivery of the newest few.
fn fill(path: &Path, commands: u64) -> anyhow::Result<()> {
    let mut connection = Connection::open(path)?;
    prepare(&mut connection, path, clock::unix_time_ms(), 1)?;
    let names: Vec<(NodeName, PeerId)> = (0..NODES)
        .map(|number| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            Ok((NodeName::parse(&format!("node-{number:04}"))?, PeerId(id)))
        })
        .collect::<anyhow::Result<_>>()?;
    let now = Timestamp::now();
    for seq in 1..=commands {
        let id = CommandId {
            issuer: OWN_ID,
            epoch: 1,
            seq,
        };
        let issued = Change::Issued(IssuedCommand {
            command: stored_command(id),
            selector: "all".to_owned(),
            deliveries: names
                .iter()
                .map(|(name, to)| StoredTarget {
                    to: *to,
                    name: name.clone(),
                    state: StoredState::Sent,
                    deadline: now.instant + Duration::from_secs(3_600),
                })
                .collect(),
        });
        let left_open = usize::from(seq + OPEN_COMMANDS > commands);
        let ends = names.iter().skip(left_open).map(|(_, to)| Change::Ended {
            id,
            to: *to,
            reply: Reply::done("LED set to #ff0000".into()),
        });
        let changes: Vec<Change> = std::iter::once(issued).chain(ends).collect();
        let transaction = connection.transaction()?;
        apply(
            &transaction,
            &changes,
            &[(id, Origin::command_by("pi"))].into(),
            &now,
        )?;
        transaction.commit()?;
    }
    Ok(())
}

fn stored_command(id: CommandId) -> StoredCommand {
    StoredCommand {
        id,
        action: "led".to_owned(),
        arguments: "{\"args\":[],\"kwargs\":{\"color\":\"#ff0000\"}}".to_owned(),
        lane: Lane::Control,
        ttl_ms: 3_600_000,
    }
}

/// Fills a node's journal up to the record before its next snapshot, and opens it `runs` times: with the commands of one
/// station, and with as many as a journal can know.
///
/// # Errors
/// If the disk is full, or not everything is read.
pub async fn node(runs: usize, dir: &Path) -> anyhow::Result<()> {
    let mut table = Table::new();
    for issuers in [1, WINDOW_ISSUERS] {
        let dir = tempfile::tempdir_in(dir)?;
        let full = full_journal(dir.path(), u8::try_from(issuers)?)?;
        let mut opened = Samples::default();
        let mut records = 0;
        for _ in 0..runs {
            // Restored, since opening writes a snapshot.
            std::fs::write(dir.path().join(JOURNAL_FILE), &full)?;
            std::fs::File::open(dir.path().join(JOURNAL_FILE))?.sync_all()?;
            let started = clock::now();
            let (journal, read) = Journal::open(dir.path())?;
            let recovery = read.recovery;
            opened.add(clock::since(started).as_secs_f64() * 1_000.0);
            anyhow::ensure!(
                recovery.damage.is_none() && recovery.fault.is_none(),
                "not everything is read: {recovery:?}"
            );
            records = recovery.records;
            journal.close().await;
        }
        let known = issuers * WINDOW_COMMANDS;
        table.add_row(
            format!("a full journal of {known} known commands, {records} records: open"),
            "ms",
            &opened,
        );
        let mut size = Samples::default();
        size.add(full.len() as f64 / 1_048_576.0);
        table.add_row("  its file", "MiB", &size);
    }
    Ok(table.print()?)
}

/// The content of a journal file whose windows are full, just before its next snapshot.
fn full_journal(dir: &Path, issuers: u8) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(JOURNAL_FILE);
    let (mut journal, _) = JournalFile::open(StdDisk::new(dir));
    let window = WINDOW_COMMANDS as u64;
    for issuer in 0..issuers {
        journal.append(&command_records(issuer, 0..window))?;
    }
    let snapshots = journal.stats().snapshots;
    // Small beside the bound, and few enough to be quick.
    let step = if issuers == 1 { 8 } else { 256 };
    for first in (window..).step_by(step) {
        let before = std::fs::read(&path)?;
        let issuer = u8::try_from(first / step as u64 % u64::from(issuers))?;
        journal.append(&command_records(issuer, first..first + step as u64))?;
        if journal.stats().snapshots > snapshots {
            return Ok(before);
        }
    }
    anyhow::bail!("the journal makes no snapshot")
}

/// Begun and ended, with an answer of usual length.
fn command_records(issuer: u8, numbers: std::ops::Range<u64>) -> Vec<Record> {
    let of = |seq| {
        let id = CommandId {
            issuer: PeerId([issuer; 32]),
            epoch: 1,
            seq,
        };
        let started = Record::Started {
            id,
            digest: Digest(seq.to_be_bytes()),
            idempotent: false,
        };
        let reply = StoredReply::new(&Reply::done("LED set to #ff0000".into()));
        [started, Record::Ended { id, reply }]
    };
    numbers.flat_map(of).collect()
}
