//! The node's journal and latch file: one thread owns both, a cloneable handle sends it records.
//!
//! Appends that wait together are written together and flushed once. While the disk refuses, the thread retries by
//! itself every [`RETRY_INTERVAL`]. It ends when the last handle is dropped and every append has its result;
//! [`Journal::close`] waits for that.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;

use swarm_shared::net::journal::{
    Disk, JournalFault, JournalFile, JournalStats, LatchContent, LatchFile, Recovery, StdDisk,
};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::stop::StopMemory;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};

/// Appends that wait for the thread. More than all [`PendingAppends`] of a node may have open together, so that none of
/// them finds the queue full.
pub const APPENDS_MAX: usize = 512;
/// How long after a failed write the thread tries again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The state of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing can be written; `None` while healthy.
    pub fault: Option<JournalFault>,
    /// Bytes, flushes and records since the start.
    pub stats: JournalStats,
}

/// What a journal and its latch file held at the start.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The state that the journal's records yield.
    pub dedup: DedupTable,
    /// What reading the journal found.
    pub recovery: Recovery,
    /// The content of the latch file.
    pub latch: LatchContent,
}

struct Append {
    records: Vec<Record>,
    /// New content of the latch file. Then the result is that of the latch file.
    stops: Option<StopMemory>,
    /// `None` once it has been given.
    result: Option<oneshot::Sender<Result<(), JournalFault>>>,
}

/// A handle of the journal; clones share it.
#[derive(Clone, Debug)]
pub struct Journal {
    appends: mpsc::Sender<Append>,
    health: watch::Receiver<Health>,
}

/// Appends of one task that are under way, in their order, each with what it is for.
#[derive(Debug)]
pub struct PendingAppends<T> {
    journal: Journal,
    max: usize,
    queue: VecDeque<(T, oneshot::Receiver<Result<(), JournalFault>>)>,
}

impl Journal {
    /// Opens the journal and the latch file in a directory. Blocks on the disk. A journal that cannot be written is
    /// returned as well and refuses every append with the reason.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn open(dir: &Path) -> io::Result<(Self, Opened)> {
        let (file, recovery) = JournalFile::open(StdDisk::new(dir));
        let (latch_file, latch) = LatchFile::open(dir);
        let (journal, dedup) = Self::start(file, Some(latch_file), &recovery)?;
        let opened = Opened {
            dedup,
            recovery,
            latch,
        };
        Ok((journal, opened))
    }

    /// Starts the thread of a journal that is open. Without a latch file, stops are in the journal only.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start<D>(
        file: JournalFile<D>,
        latch: Option<LatchFile>,
        recovery: &Recovery,
    ) -> io::Result<(Self, DedupTable)>
    where
        D: Disk + Send + 'static,
        D::File: Send,
    {
        let dedup = file.dedup_table().clone();
        let (appends, queue) = mpsc::channel(APPENDS_MAX);
        let (publisher, health) = watch::channel(Health {
            fault: recovery.fault.clone(),
            stats: file.stats(),
        });
        // A timer on a blocking thread: it waits for its queue and for the time of the next retry.
        let runtime = Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run_thread(file, latch, queue, &publisher, &runtime))?;
        Ok((Self { appends, health }, dedup))
    }

    /// The state of the journal; the receiver is notified when a fault begins or ends.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Waits until every append has its result and the file is closed. Waits for all other handles to be dropped.
    pub async fn close(self) {
        let Self { appends, mut health } = self;
        drop(appends);
        // The thread drops its sender when it ends.
        while health.changed().await.is_ok() {}
    }
}

impl<T> PendingAppends<T> {
    /// No appends yet, and never more than `max` at once.
    pub fn new(journal: Journal, max: usize) -> Self {
        Self {
            journal,
            max,
            queue: VecDeque::new(),
        }
    }

    /// Hands `records` to the journal without waiting. [`Self::next`] returns `what` once they are durable or refused.
    /// Appends keep the order of these calls.
    ///
    /// # Errors
    /// `what` with [`JournalFault::Busy`] if too many are open, or [`JournalFault::Closed`].
    pub fn push(&mut self, records: Vec<Record>, what: T) -> Result<(), (T, JournalFault)> {
        self.push_with_stops(records, None, what)
    }

    /// [`Self::push`] with new content of the latch file, which decides the result: the records are written if the
    /// journal accepts them.
    ///
    /// # Errors
    /// As of [`Self::push`].
    pub fn push_with_stops(
        &mut self,
        records: Vec<Record>,
        stops: Option<StopMemory>,
        what: T,
    ) -> Result<(), (T, JournalFault)> {
        if self.queue.len() >= self.max {
            return Err((what, JournalFault::Busy));
        }
        let (result, receipt) = oneshot::channel();
        let append = Append {
            records,
            stops,
            result: Some(result),
        };
        match self.journal.appends.try_send(append) {
            Ok(()) => {
                self.queue.push_back((what, receipt));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(_)) => Err((what, JournalFault::Busy)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err((what, JournalFault::Closed)),
        }
    }

    /// The oldest append and its result, when it has one; waits for ever while none is open. Cancel safe.
    /// After a fault the records do not count, although they may be on the disk.
    pub async fn next(&mut self) -> (T, Result<(), JournalFault>) {
        if let Some((_, receipt)) = self.queue.front_mut() {
            let result = receipt.await.unwrap_or(Err(JournalFault::Closed));
            if let Some((what, _)) = self.queue.pop_front() {
                return (what, result);
            }
        }
        std::future::pending().await
    }
}

fn run_thread<D: Disk>(
    mut file: JournalFile<D>,
    mut latch: Option<LatchFile>,
    mut queue: mpsc::Receiver<Append>,
    publisher: &watch::Sender<Health>,
    runtime: &tokio::runtime::Runtime,
) {
    let mut batch = Vec::new();
    loop {
        let next = queue.recv_many(&mut batch, APPENDS_MAX);
        let received = if publisher.borrow().fault.is_none() {
            Some(runtime.block_on(next))
        } else {
            let until_retry = async { tokio::time::timeout(RETRY_INTERVAL, next).await };
            runtime.block_on(until_retry).ok()
        };
        match received {
            Some(0) => return,
            Some(_) => {
                if let Some(latch) = &mut latch {
                    store_stops(latch, &mut batch);
                }
                commit(&mut file, &mut batch, publisher);
            }
            None => {
                let recovered = file.recover();
                publish_health(publisher, &file, recovered.err());
            }
        }
    }
}

/// Writes the newest of the waiting stops to the latch file, and gives each its result before the journal is written.
fn store_stops(latch: &mut LatchFile, batch: &mut [Append]) {
    let Some(newest) = batch.iter().rev().find_map(|append| append.stops.as_ref()) else {
        return;
    };
    let written = latch.write(newest);
    for append in batch.iter_mut().filter(|append| append.stops.is_some()) {
        if let Some(result) = append.result.take() {
            // The receiver may have been dropped; the stop is durable all the same.
            result.send(written.clone()).ok();
        }
    }
}

/// Writes all waiting appends with one flush, and gives each its result.
fn commit<D: Disk>(file: &mut JournalFile<D>, batch: &mut Vec<Append>, publisher: &watch::Sender<Health>) {
    let mut records = Vec::new();
    let results: Vec<_> = batch
        .drain(..)
        .map(|append| {
            records.extend(append.records);
            append.result
        })
        .collect();
    let written = file.append(&records);
    publish_health(publisher, file, written.clone().err());
    for result in results.into_iter().flatten() {
        // The receiver may have been dropped; the records are durable all the same.
        result.send(written.clone()).ok();
    }
}

fn publish_health<D: Disk>(
    publisher: &watch::Sender<Health>,
    file: &JournalFile<D>,
    fault: Option<JournalFault>,
) {
    publisher.send_if_modified(|health| {
        health.stats = file.stats();
        let changed = health.fault != fault;
        if changed {
            match &fault {
                Some(fault) => tracing::warn!(%fault, "Journal cannot be written: commands are refused"),
                None => tracing::info!("Journal can be written again"),
            }
        }
        health.fault = fault;
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use swarm_shared::net::journal::{Failure, Loss, MemoryDisk};
    use swarm_shared::proto::id::PeerId;

    use super::*;

    fn stop_record(number: u64) -> Record {
        Record::Stopped {
            issuer: PeerId([1; 32]),
            number,
        }
    }

    fn start(disk: &MemoryDisk) -> (Journal, DedupTable) {
        let (file, recovery) = JournalFile::open(disk.clone());
        Journal::start(file, None, &recovery).expect("a thread")
    }

    fn latch(dedup: &DedupTable) -> Option<u64> {
        dedup.latch().map(|latch| latch.number)
    }

    async fn append(journal: &Journal, number: u64) -> Result<(), JournalFault> {
        let mut appends = PendingAppends::new(journal.clone(), 1);
        appends.push(vec![stop_record(number)], ()).expect("room");
        appends.next().await.1
    }

    #[tokio::test]
    async fn appended_records_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (journal, opened) = Journal::open(dir.path()).expect("a thread");
        assert_eq!(opened.dedup, DedupTable::default());
        append(&journal, 7).await.expect("room");
        journal.close().await;
        let (_, opened) = Journal::open(dir.path()).expect("a thread");
        assert_eq!((latch(&opened.dedup), opened.recovery.records), (Some(7), 1));
    }

    #[tokio::test]
    async fn queued_appends_share_one_flush() {
        let disk = MemoryDisk::default();
        let (file, recovery) = JournalFile::open(disk.clone());
        let before = file.stats();
        let (appends, queue) = mpsc::channel(APPENDS_MAX);
        let (publisher, health) = watch::channel(Health::default());
        let journal = Journal {
            appends,
            health: health.clone(),
        };
        let mut pending = PendingAppends::new(journal, 100);
        for number in 1..=100 {
            pending.push(vec![stop_record(number)], number).expect("room");
        }
        assert_eq!(pending.push(Vec::new(), 101), Err((101, JournalFault::Busy)));
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a timer");
        std::thread::spawn(move || run_thread(file, None, queue, &publisher, &runtime));
        for number in 1..=100 {
            assert_eq!(pending.next().await, (number, Ok(())));
        }
        assert_eq!(recovery.fault, None);
        assert_eq!(health.borrow().stats.syncs, before.syncs + 1);
        assert_eq!(latch(&start(&disk.restarted(Loss::All, 0)).1), Some(100));
    }

    #[tokio::test]
    async fn appends_fail_on_a_full_disk_until_it_recovers() {
        let disk = MemoryDisk::default();
        let (journal, _) = start(&disk);
        let mut health = journal.health();
        disk.fail_at(disk.calls(), Failure::Error(ErrorKind::StorageFull));
        let fault = append(&journal, 1).await.expect_err("full").to_string();
        assert!(fault.contains("free some space"), "{fault}");
        assert!(health.borrow_and_update().fault.is_some());
        let recovered = health.wait_for(|health| health.fault.is_none());
        tokio::time::timeout(RETRY_INTERVAL * 5, recovered)
            .await
            .expect("by itself")
            .expect("it runs");
        append(&journal, 2).await.expect("room again");
        assert_eq!(latch(&start(&disk.restarted(Loss::All, 0)).1), Some(2));
    }

    #[tokio::test]
    async fn appends_fail_without_a_journal_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let (journal, opened) = Journal::open(&dir.path().join("none")).expect("a thread");
        let fault = append(&journal, 1).await.expect_err("no directory");
        assert_eq!(Some(&fault), opened.recovery.fault.as_ref());
        assert_eq!(journal.health().borrow().fault, Some(fault));
    }
}
