//! The executor with real programs and a journal in memory. No peer is linked: the journal shows the replies.

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
    Journal::start(file, None, &recovery).expect("a thread")
}

/// What the journal would hold after a power cut now.
fn dedup_table(disk: &MemoryDisk) -> DedupTable {
    journal(&disk.restarted(Loss::All, 0)).1
}

fn outcome(disk: &MemoryDisk, seq: u64, action: &str, content: &[u8]) -> Option<Reply> {
    match dedup_table(disk).lookup(id(seq), digest(action, content)) {
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
        let (journal, dedup) = journal(&disk);
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
            driver: ExecutorDriver::new(node.actions.clone(), journal, dedup, tasks),
            node,
            context,
            disk,
            shutdown,
        }
    }

    /// Hands in a command; returns the content of its frame.
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

    /// Handles events until the condition holds.
    async fn wait_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let reached = async {
            while !so(self) {
                self.driver.flush_writes();
                // What a program does to a file causes no event.
                let event = tokio::time::timeout(Duration::from_millis(20), self.driver.next_event()).await;
                if let Ok(event) = event {
                    self.on_event(event);
                }
            }
        };
        let in_time = tokio::time::timeout(SOON, reached).await;
        in_time.unwrap_or_else(|_late| panic!("in time: {what}"));
    }

    fn on_event(&mut self, event: ExecutorEvent) {
        self.driver.on_event(event, &self.context);
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
    let mut fixture = Fixture::new().await;
    let kwargs = json!({"what": "x", "file": fixture.file("marks")});
    let content = fixture.send(1, "mark", &kwargs);
    fixture.send(1, "mark", &kwargs);
    fixture
        .wait_until("it ends", |fixture| !fixture.driver.executor.contains(id(1)))
        .await;
    fixture.send(1, "mark", &kwargs);
    let reply = outcome(&fixture.disk, 1, "mark", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Done, "{reply:?}");
    assert_eq!(fixture.text("marks"), "x\n");
    assert!(
        fixture.driver.is_idle()
            && fixture.driver.pending.is_empty()
            && fixture.driver.reply_targets.is_empty()
    );
}

#[tokio::test]
async fn emergency_stop_kills_the_process_group() {
    let mut fixture = Fixture::new().await;
    let kwargs = json!({"file": fixture.file("pid")});
    let content = fixture.send(1, "hold", &kwargs);
    fixture
        .wait_until("it runs", |fixture| fixture.text("pid").ends_with('\n'))
        .await;
    assert!(is_alive(&fixture.text("pid")));
    fixture.driver.executor.on_stop(clock::now());
    fixture.on_event(ExecutorEvent::Timeout);
    fixture
        .wait_until("it ends", |fixture| !fixture.driver.executor.contains(id(1)))
        .await;
    let reply = outcome(&fixture.disk, 1, "hold", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(
        reply.error.as_deref(),
        Some("emergency stop: it was killed before it ended")
    );
    fixture
        .wait_until("its child dies", |fixture| !is_alive(&fixture.text("pid")))
        .await;
}

#[tokio::test]
async fn shutdown_journals_the_outcome_of_running_actions() {
    let mut fixture = Fixture::new().await;
    let kwargs = json!({"file": fixture.file("pid")});
    let content = fixture.send(1, "hold", &kwargs);
    fixture
        .wait_until("it runs", |fixture| fixture.text("pid").ends_with('\n'))
        .await;
    fixture.shutdown.cancel();
    fixture.driver.executor.shut_down(clock::now());
    fixture
        .wait_until("it is idle", |fixture| fixture.driver.is_idle())
        .await;
    let reply = outcome(&fixture.disk, 1, "hold", &content).expect("it is written");
    let why = reply.error.unwrap_or_default();
    assert!(why.contains("shutting down"), "{why}");
}

#[tokio::test]
async fn a_full_disk_refuses_commands_until_it_recovers() {
    let mut fixture = Fixture::new().await;
    let kwargs = json!({"what": "x", "file": fixture.file("marks")});
    fixture
        .disk
        .fail_at(fixture.disk.calls(), Failure::Error(ErrorKind::StorageFull));
    let content = fixture.send(1, "mark", &kwargs);
    fixture
        .wait_until("it ends", |fixture| !fixture.driver.executor.contains(id(1)))
        .await;
    fixture
        .wait_until("it recovers, and says what it refused", |fixture| {
            outcome(&fixture.disk, 1, "mark", &content).is_some()
        })
        .await;
    let reply = outcome(&fixture.disk, 1, "mark", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Refused);
    let why = reply.error.unwrap_or_default();
    assert!(
        why.starts_with("the node's journal cannot be written") && why.contains("free some space"),
        "{why}"
    );
    assert_eq!(fixture.text("marks"), "");
    fixture.send(2, "mark", &kwargs);
    fixture
        .wait_until("the next one runs", |fixture| fixture.text("marks") == "x\n")
        .await;
}

#[tokio::test]
async fn a_panicking_action_is_reported_as_failed() {
    let mut fixture = Fixture::new().await;
    let kwargs = json!({"file": fixture.file("pid")});
    let content = fixture.send(1, "hold", &kwargs);
    fixture
        .wait_until("it runs", |fixture| fixture.text("pid").ends_with('\n'))
        .await;
    let panicked = fixture.driver.action_tasks.spawn(async { panic!("on purpose") });
    fixture.driver.running.get_mut(&id(1)).expect("it runs").task = panicked.id();
    fixture
        .wait_until("it ends", |fixture| !fixture.driver.executor.contains(id(1)))
        .await;
    let reply = outcome(&fixture.disk, 1, "hold", &content).expect("it is written");
    assert_eq!(reply.state, Outcome::Failed);
    assert!(reply.error.is_some_and(|error| error.contains("panicked")));
}
