//! The desk with real programs and a journal in memory. Nobody is linked: what was answered is asked of the journal.

use std::io::ErrorKind;
use std::sync::Arc;

use serde_json::json;
use swarm_shared::net::journal::{Failure, JournalFile, Loss, MemoryDisk};
use swarm_shared::proto::delivery::dedup::DedupResult;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::trust::Role;
use tokio::sync::Semaphore;

use super::super::CommandContext;
use super::super::commands::{COMMANDS_MAX, REPLIES_MAX};
use super::super::tests::endpoint;
use super::*;
use crate::actions::tests::TestNode;
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

struct Fixture {
    node: TestNode,
    context: CommandContext,
    driver: ExecutorDriver,
    disk: MemoryDisk,
    link: PeerLink,
    shutdown: CancellationToken,
}

fn id(seq: u64) -> CommandId {
    CommandId {
        issuer: PublicKey([2; 32]).id(),
        epoch: 3,
        seq,
    }
}

fn journal(disk: &MemoryDisk) -> (Journal, DedupTable) {
    let (file, recovery) = JournalFile::open(disk.clone());
    Journal::start(file, &recovery).expect("a thread")
}

/// What the node would know after a power cut now.
fn ledger(disk: &MemoryDisk) -> DedupTable {
    journal(&disk.restarted(Loss::All, 0)).1
}

fn outcome(disk: &MemoryDisk, seq: u64, action: &str, content: &[u8]) -> Option<Reply> {
    match ledger(disk).lookup(id(seq), digest(action, content)) {
        DedupResult::Ended(reply) => Some(reply.to_reply()),
        DedupResult::New
        | DedupResult::Begun { .. }
        | DedupResult::Evicted
        | DedupResult::OldEpoch { .. }
        | DedupResult::Conflict => None,
    }
}

impl Fixture {
    async fn new() -> Self {
        let node = TestNode::new(FILE);
        let disk = MemoryDisk::default();
        let (journal, ledger) = journal(&disk);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let roots = swarm_shared::net::roots::Roots::new(BTreeMap::new());
        let context = CommandContext {
            stop_handle: crate::stop::StopHandle::detached(),
            endpoint: endpoint(),
            actions: node.actions.clone(),
            transfers: Transfers::new(roots, shutdown.clone()),
            command_slots: Arc::new(Semaphore::new(COMMANDS_MAX)),
            reply_slots: Arc::new(Semaphore::new(REPLIES_MAX)),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let link = context
            .endpoint
            .open_session(id(1).issuer)
            .await
            .expect("running");
        Self {
            link,
            driver: ExecutorDriver::new(node.actions.clone(), journal, ledger, tasks),
            node,
            context,
            disk,
            shutdown,
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
            cancel: self.shutdown.child_token(),
        };
        self.driver
            .on_command(command, &self.link, &Header::default(), &content, &self.context);
        content
    }

    /// Takes words until that is so.
    async fn wait_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let reached = async {
            while !so(self) {
                // What a program does shows without a word.
                let word = tokio::time::timeout(Duration::from_millis(20), self.driver.next_event()).await;
                if let Ok(word) = word {
                    self.on_event(word);
                }
            }
        };
        let in_time = tokio::time::timeout(SOON, reached).await;
        in_time.unwrap_or_else(|_late| panic!("in time: {what}"));
    }

    fn on_event(&mut self, word: ExecutorEvent) {
        self.driver.on_event(word, &self.context);
    }

    fn file(&self, name: &str) -> String {
        self.node.dir.path().join(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }
}

/// Whether a process is there and not a zombie.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

#[tokio::test]
async fn start_and_outcome_are_journaled_before_they_take_effect() {
    let mut counter = Fixture::new().await;
    let kwargs = json!({"what": "x", "file": counter.file("marks")});
    let content = counter.send(1, "mark", &kwargs);
    counter.send(1, "mark", &kwargs);
    counter
        .wait_until("it ends", |counter| !counter.driver.executor.contains(id(1)))
        .await;
    counter.send(1, "mark", &kwargs);
    let reply = outcome(&counter.disk, 1, "mark", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Done, "{reply:?}");
    assert_eq!(counter.text("marks"), "x\n");
    assert!(
        counter.driver.is_idle()
            && counter.driver.pending.is_empty()
            && counter.driver.reply_targets.is_empty()
    );
}

#[tokio::test]
async fn emergency_stop_kills_the_process_group() {
    let mut counter = Fixture::new().await;
    let kwargs = json!({"file": counter.file("pid")});
    let content = counter.send(1, "hold", &kwargs);
    counter
        .wait_until("it runs", |counter| counter.text("pid").ends_with('\n'))
        .await;
    assert!(is_alive(&counter.text("pid")));
    counter.driver.executor.on_stop(clock::now());
    counter.on_event(ExecutorEvent::Timeout);
    counter
        .wait_until("it ends", |counter| !counter.driver.executor.contains(id(1)))
        .await;
    let reply = outcome(&counter.disk, 1, "hold", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(
        reply.error.as_deref(),
        Some("emergency stop: it was killed before it ended")
    );
    counter
        .wait_until("its child dies", |counter| !is_alive(&counter.text("pid")))
        .await;
}

#[tokio::test]
async fn shutdown_journals_the_outcome_of_running_actions() {
    let mut counter = Fixture::new().await;
    let kwargs = json!({"file": counter.file("pid")});
    let content = counter.send(1, "hold", &kwargs);
    counter
        .wait_until("it runs", |counter| counter.text("pid").ends_with('\n'))
        .await;
    counter.shutdown.cancel();
    counter.driver.executor.shut_down(clock::now());
    counter
        .wait_until("it is idle", |counter| counter.driver.is_idle())
        .await;
    let reply = outcome(&counter.disk, 1, "hold", &content).expect("it is written");
    let why = reply.error.unwrap_or_default();
    assert!(why.contains("shutting down"), "{why}");
}

#[tokio::test]
async fn a_full_disk_refuses_commands_until_it_recovers() {
    let mut counter = Fixture::new().await;
    let kwargs = json!({"what": "x", "file": counter.file("marks")});
    counter
        .disk
        .fail_at(counter.disk.calls(), Failure::Error(ErrorKind::StorageFull));
    let content = counter.send(1, "mark", &kwargs);
    counter
        .wait_until("it ends", |counter| !counter.driver.executor.contains(id(1)))
        .await;
    counter
        .wait_until("it recovers, and says what it refused", |counter| {
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
        .wait_until("the next one runs", |counter| counter.text("marks") == "x\n")
        .await;
}

#[tokio::test]
async fn a_panicking_action_is_reported_as_failed() {
    let (completions, mut told) = mpsc::channel(1);
    let end = CompletionGuard {
        id: id(1),
        reply: None,
        completions,
    };
    let fallen = tokio::spawn(async move {
        let _end = end;
        panic!("on purpose");
    });
    assert!(fallen.await.is_err());
    let (whose, reply) = told.recv().await.expect("told");
    assert_eq!((whose, reply.state), (id(1), Outcome::Failed));
}
