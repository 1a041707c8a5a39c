//! The node's journal: a thread that owns the file, and a handle that asks it.
//!
//! What waits together is written together and flushed once. While the journal cannot write, the thread tries again by
//! itself every [`RETRY`], so that the node goes on as soon as there is room. The thread ends when the last handle is
//! gone and everything that was asked for is answered; [`Journal::close`] waits for that.

use std::io;
use std::path::Path;
use std::time::Duration;

use swarm_shared::net::journal::{Disk, JournalFault, JournalFile, JournalStats, Recovery, StdDisk};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};

/// How many appends may wait for the thread; the next one waits for a place.
pub const APPENDS_MAX: usize = 256;
/// How long after a failure the journal tries again by itself.
pub const RETRY: Duration = Duration::from_secs(2);

/// How the journal is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing can be written; `None` if all is well.
    pub fault: Option<JournalFault>,
    /// What was asked of the disk since the start.
    pub stats: JournalStats,
}

struct Append {
    records: Vec<Record>,
    reply: oneshot::Sender<Result<(), JournalFault>>,
}

/// A handle on the journal; clones share it.
#[derive(Clone, Debug)]
pub struct Journal {
    appends: mpsc::Sender<Append>,
    health: watch::Receiver<Health>,
}

impl Journal {
    /// Opens the journal in a directory. It blocks on the disk, and always gives a journal, one that refuses with the
    /// reason if need be.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn open(dir: &Path) -> io::Result<(Self, DedupTable, Recovery)> {
        let (file, recovery) = JournalFile::open(StdDisk::new(dir));
        let (journal, ledger) = Self::start(file, &recovery)?;
        Ok((journal, ledger, recovery))
    }

    /// Starts the thread of a journal that is open.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start<D>(file: JournalFile<D>, recovery: &Recovery) -> io::Result<(Self, DedupTable)>
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
        // A timer on a thread that blocks: it may wait for its queue and for the time to try again.
        let runtime = Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run_thread(file, queue, &publisher, &runtime))?;
        Ok((Self { appends, health }, dedup))
    }

    /// Makes these records durable, all of them when it returns with success. Those of one call, and of calls that one
    /// task makes one after the other, stay in their order.
    ///
    /// # Errors
    /// [`JournalFault`]; then they do not count, and may be on the disk all the same.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), JournalFault> {
        let (answer, answered) = oneshot::channel();
        let asked = self
            .appends
            .send(Append {
                records,
                reply: answer,
            })
            .await;
        asked.map_err(|_gone| JournalFault::Closed)?;
        answered.await.map_err(|_gone| JournalFault::Closed)?
    }

    /// How the journal is; it counts as changed when a fault comes or goes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Waits until all that was asked for is on the disk and the file is closed. There must be no other handle, or it
    /// waits for that one.
    pub async fn close(self) {
        let Self { appends, mut health } = self;
        drop(appends);
        // The thread says nothing more once it has ended.
        while health.changed().await.is_ok() {}
    }
}

fn run_thread<D: Disk>(
    mut file: JournalFile<D>,
    mut queue: mpsc::Receiver<Append>,
    publisher: &watch::Sender<Health>,
    runtime: &tokio::runtime::Runtime,
) {
    let mut batch = Vec::new();
    loop {
        let next = queue.recv_many(&mut batch, APPENDS_MAX);
        let taken = if publisher.borrow().fault.is_none() {
            Some(runtime.block_on(next))
        } else {
            let patient = async { tokio::time::timeout(RETRY, next).await };
            runtime.block_on(patient).ok()
        };
        match taken {
            Some(0) => return,
            Some(_) => commit(&mut file, &mut batch, publisher),
            None => {
                let recovered = file.recover();
                publish_health(publisher, &file, recovered.err());
            }
        }
    }
}

/// Writes all that waits in one step, and answers each.
fn commit<D: Disk>(file: &mut JournalFile<D>, batch: &mut Vec<Append>, publisher: &watch::Sender<Health>) {
    let mut records = Vec::new();
    let answers: Vec<_> = batch
        .drain(..)
        .map(|append| {
            records.extend(append.records);
            append.reply
        })
        .collect();
    let written = file.append(&records);
    publish_health(publisher, file, written.clone().err());
    for answer in answers {
        // Whoever asked may have gone; it is written all the same.
        answer.send(written.clone()).ok();
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
                Some(fault) => tracing::warn!(%fault, "the journal cannot be written: commands are refused"),
                None => tracing::info!("the journal can be written again"),
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
        Journal::start(file, &recovery).expect("a thread")
    }

    fn latch(ledger: &DedupTable) -> Option<u64> {
        ledger.latch().map(|latch| latch.number)
    }

    #[tokio::test]
    async fn appended_records_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (journal, ledger, _) = Journal::open(dir.path()).expect("a thread");
        assert_eq!(ledger, DedupTable::default());
        journal.append(vec![stop_record(7)]).await.expect("room");
        journal.close().await;
        let (_, ledger, recovery) = Journal::open(dir.path()).expect("a thread");
        assert_eq!((latch(&ledger), recovery.records), (Some(7), 1));
    }

    #[tokio::test]
    async fn queued_appends_share_one_flush() {
        let disk = MemoryDisk::default();
        let (file, recovery) = JournalFile::open(disk.clone());
        let before = file.stats();
        let (appends, queue) = mpsc::channel(APPENDS_MAX);
        let mut answers = Vec::new();
        for number in 1..=100 {
            let (reply, answered) = oneshot::channel();
            let records = vec![stop_record(number)];
            appends.try_send(Append { records, reply }).expect("room");
            answers.push(answered);
        }
        drop(appends);
        let (said, health) = watch::channel(Health::default());
        let waiting = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a timer");
        std::thread::spawn(move || run_thread(file, queue, &said, &waiting))
            .join()
            .expect("it ends by itself");
        for answer in answers {
            assert_eq!(answer.await.expect("answered"), Ok(()));
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
        let fault = journal
            .append(vec![stop_record(1)])
            .await
            .expect_err("full")
            .to_string();
        assert!(fault.contains("free some space"), "{fault}");
        assert!(health.borrow_and_update().fault.is_some());
        let recovered = health.wait_for(|health| health.fault.is_none());
        tokio::time::timeout(RETRY * 5, recovered)
            .await
            .expect("nobody has to ask")
            .expect("it runs");
        journal.append(vec![stop_record(2)]).await.expect("room again");
        assert_eq!(latch(&start(&disk.restarted(Loss::All, 0)).1), Some(2));
    }

    #[tokio::test]
    async fn appends_fail_without_a_journal_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let (journal, _, recovery) = Journal::open(&dir.path().join("none")).expect("a thread");
        let fault = journal
            .append(vec![stop_record(1)])
            .await
            .expect_err("no directory");
        assert_eq!(Some(&fault), recovery.fault.as_ref());
        assert_eq!(journal.health().borrow().fault, Some(fault));
    }
}
