//! The desk with real programs and a journal in memory. Nobody is linked: what was answered is asked of the journal.

use std::io::ErrorKind;
use std::sync::Arc;

use serde_json::json;
use swarm_shared::net::journal::{Failure, JournalFile, Loss, MemoryDisk};
use swarm_shared::proto::delivery::dedup::Found;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::trust::Role;
use tokio::sync::Semaphore;

use super::super::Work;
use super::super::commands::{ANSWERS_MAX, COMMANDS_MAX};
use super::super::tests::endpoint;
use super::*;
use crate::actions::tests::Place;
use crate::transfers::Transfers;

const SOON: Duration = Duration::from_secs(20);

const FILE: &str = r#"
[actions.mark]
command = ["sh", "-c", "echo $1 >>$2", "sh", "{what}", "{file}"]
args.what = { type = "string" }
args.file = { type = "string" }

[actions.hold]
command = ["sh", "-c", "sleep 60 & echo $! >$1; wait", "sh", "{file}"]
args.file = { type = "string" }
"#;

struct Counter {
    place: Place,
    work: Work,
    acts: Acts,
    disk: MemoryDisk,
    link: PeerLink,
    stop: CancellationToken,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([2; 32]).id(),
        epoch: 3,
        seq,
    }
}

fn journal(disk: &MemoryDisk) -> (Journal, Ledger) {
    let (file, recovery) = JournalFile::open(disk.clone());
    Journal::start(file, &recovery).expect("a thread")
}

/// What the node would know after a power cut now.
fn ledger(disk: &MemoryDisk) -> Ledger {
    journal(&disk.restarted(Loss::All, 0)).1
}

fn outcome(disk: &MemoryDisk, seq: u64, action: &str, content: &[u8]) -> Option<Reply> {
    match ledger(disk).find(id(seq), digest(action, content)) {
        Found::Ended(reply) => Some(reply.reply()),
        Found::New | Found::Begun { .. } | Found::Forgotten | Found::OldEpoch { .. } | Found::Different => {
            None
        }
    }
}

impl Counter {
    async fn new() -> Self {
        let place = Place::new(FILE);
        let disk = MemoryDisk::default();
        let (journal, ledger) = journal(&disk);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let roots = swarm_shared::net::roots::Roots::new(BTreeMap::new());
        let work = Work {
            stopping: crate::stop::Stopping::none(),
            endpoint: endpoint(),
            actions: place.actions.clone(),
            transfers: Transfers::new(roots, stop.clone()),
            commands: Arc::new(Semaphore::new(COMMANDS_MAX)),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let link = work.endpoint.open(id(1).issuer).await.expect("running");
        Self {
            link,
            acts: Acts::new(place.actions.clone(), journal, ledger, tasks),
            place,
            work,
            disk,
            stop,
        }
    }

    /// The content of its frame.
    fn send(&mut self, seq: u64, action: &str, kwargs: &serde_json::Value) -> Vec<u8> {
        let arguments = json!({ "args": [], "kwargs": kwargs });
        let content = arguments.to_string().into_bytes();
        let command = Command {
            id: id(seq),
            role: Role::Admin,
            action: action.to_owned(),
            arguments: serde_json::from_value(arguments).expect("arguments"),
            deadline: None,
            stop: self.stop.child_token(),
        };
        self.acts
            .command(command, &self.link, &Header::default(), &content, &self.work);
        content
    }

    /// Takes words until that is so.
    async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let reached = async {
            while !so(self) {
                // What a program does shows without a word.
                let word = tokio::time::timeout(Duration::from_millis(20), self.acts.word()).await;
                if let Ok(word) = word {
                    self.take(word);
                }
            }
        };
        let in_time = tokio::time::timeout(SOON, reached).await;
        in_time.unwrap_or_else(|_late| panic!("in time: {what}"));
    }

    fn take(&mut self, word: Word) {
        self.acts.take(word, &self.work);
    }

    fn file(&self, name: &str) -> String {
        self.place.dir.path().join(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }
}

/// Whether a process is there and not a zombie.
fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

#[tokio::test]
async fn it_is_durable_before_it_begins_and_its_outcome_before_it_is_told() {
    let mut counter = Counter::new().await;
    let kwargs = json!({"what": "x", "file": counter.file("marks")});
    let content = counter.send(1, "mark", &kwargs);
    counter.send(1, "mark", &kwargs);
    counter
        .until("it ends", |counter| !counter.acts.desk.holds(id(1)))
        .await;
    counter.send(1, "mark", &kwargs);
    let reply = outcome(&counter.disk, 1, "mark", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Done, "{reply:?}");
    assert_eq!(counter.text("marks"), "x\n");
    assert!(counter.acts.is_idle() && counter.acts.kept.is_empty() && counter.acts.askers.is_empty());
}

#[tokio::test]
async fn a_stop_kills_the_group_of_what_runs() {
    let mut counter = Counter::new().await;
    let kwargs = json!({"file": counter.file("pid")});
    let content = counter.send(1, "hold", &kwargs);
    counter
        .until("it runs", |counter| counter.text("pid").ends_with('\n'))
        .await;
    assert!(lives(&counter.text("pid")));
    counter.acts.desk.stopped(clock::now());
    counter.take(Word::Timeout);
    counter
        .until("it ends", |counter| !counter.acts.desk.holds(id(1)))
        .await;
    let reply = outcome(&counter.disk, 1, "hold", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(
        reply.error.as_deref(),
        Some("emergency stop: it was killed before its end")
    );
    counter
        .until("its child dies", |counter| !lives(&counter.text("pid")))
        .await;
}

#[tokio::test]
async fn at_shutdown_the_outcome_is_written() {
    let mut counter = Counter::new().await;
    let kwargs = json!({"file": counter.file("pid")});
    let content = counter.send(1, "hold", &kwargs);
    counter
        .until("it runs", |counter| counter.text("pid").ends_with('\n'))
        .await;
    counter.stop.cancel();
    counter.acts.desk.close(clock::now());
    counter
        .until("it is idle", |counter| counter.acts.is_idle())
        .await;
    let reply = outcome(&counter.disk, 1, "hold", &content).expect("it is written");
    let why = reply.error.unwrap_or_default();
    assert!(why.contains("shutting down"), "{why}");
}

#[tokio::test]
async fn a_full_disk_refuses_and_nothing_runs() {
    let mut counter = Counter::new().await;
    let kwargs = json!({"what": "x", "file": counter.file("marks")});
    counter
        .disk
        .fail_at(counter.disk.calls(), Failure::Error(ErrorKind::StorageFull));
    let content = counter.send(1, "mark", &kwargs);
    counter
        .until("it ends", |counter| !counter.acts.desk.holds(id(1)))
        .await;
    counter
        .until("it recovers, and says what it refused", |counter| {
            outcome(&counter.disk, 1, "mark", &content).is_some()
        })
        .await;
    let reply = outcome(&counter.disk, 1, "mark", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Refused);
    let why = reply.error.unwrap_or_default();
    assert!(
        why.starts_with("the node's journal cannot be written") && why.contains("free some space"),
        "{why}"
    );
    assert_eq!(counter.text("marks"), "");
    counter.send(2, "mark", &kwargs);
    counter
        .until("the next one runs", |counter| counter.text("marks") == "x\n")
        .await;
}

#[tokio::test]
async fn an_action_that_falls_over_has_failed() {
    let (to, mut told) = mpsc::channel(1);
    let end = End {
        id: id(1),
        reply: None,
        to,
    };
    let fallen = tokio::spawn(async move {
        let _end = end;
        panic!("on purpose");
    });
    assert!(fallen.await.is_err());
    let (whose, reply) = told.recv().await.expect("told");
    assert_eq!((whose, reply.state), (id(1), Outcome::Failed));
}
