//! What passes is noted, and what is noted passes.

use serde_json::json;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::wire::Lane;

use super::*;
use crate::store::deliveries::RecordTarget;
use crate::store::{Origin, history};
use swarm_shared::api::{CommandKind, HistoryQuery, HistoryState, NodeRef};

fn node(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::parse(&format!("drone-{number:02}")).expect("a name"),
        id: PeerId([number; 32]),
    }
}

fn two_files_each() -> Record {
    let to = |number: u8, part: u32| RecordTarget {
        node: node(number),
        part,
        about: Some(format!("shows/{part}.csv")),
    };
    Record {
        origin: Origin {
            kind: CommandKind::Send,
            ..Origin::command_by("pi")
        },
        action: "shows/0.csv shows/1.csv".to_owned(),
        arguments: "null".to_owned(),
        lane: Lane::Bulk,
        selector: "all".to_owned(),
        ttl_ms: 30_000,
        deliveries: vec![to(1, 0), to(1, 1), to(2, 0), to(2, 1)],
    }
}

fn end(number: u8, part: u32, reply: Reply) -> DeliveryEnd {
    DeliveryEnd {
        node: node(number).id,
        part,
        reply,
    }
}

fn abandoned(_id: &PeerId) -> Reply {
    Reply::ended(Outcome::NoAnswer, "given up")
}

async fn states(dir: &std::path::Path) -> Vec<(String, HistoryState)> {
    let found = history::run_query(dir, |c| history::deliveries(c, 1, &HistoryQuery::default())).await;
    let found = found.expect("read").expect("there is one");
    found
        .into_iter()
        .map(|d| (format!("{} {}", d.node, d.about.unwrap_or_default()), d.state))
        .collect()
}

async fn assert_one_done_and_one_abandoned(dir: &std::path::Path) {
    let states = states(dir).await.into_iter().map(|(_, state)| state);
    let ended = [Outcome::Done, Outcome::NoAnswer].map(HistoryState::Ended);
    assert!(states.eq(ended), "{:?}", self::states(dir).await);
}

#[tokio::test]
async fn file_outcomes_are_stored_before_they_are_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let history = HistoryEntry::open(&TaskTracker::new(), store, two_files_each(), abandoned, None);
    let done = || Reply::done(json!(1));
    for end in [
        end(1, 0, done()),
        end(2, 0, Reply::failed("no room")),
        end(1, 1, done()),
        end(2, 1, done()),
    ] {
        history.store_end(end).await;
    }
    let ended = HistoryState::Ended(Outcome::Done);
    let wanted = [
        ("drone-01 shows/0.csv".to_owned(), ended),
        ("drone-01 shows/1.csv".to_owned(), ended),
        (
            "drone-02 shows/0.csv".to_owned(),
            HistoryState::Ended(Outcome::Failed),
        ),
        ("drone-02 shows/1.csv".to_owned(), ended),
    ];
    assert_eq!(states(dir.path()).await, wanted);
}

#[tokio::test]
async fn abandoned_transfer_has_its_ends_in_the_history() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    let history = HistoryEntry::open(&tasks, store, two_files_each(), abandoned, None);
    history.store_end(end(1, 0, Reply::done(json!(1)))).await;
    drop(history);
    tasks.close();
    tasks.wait().await;
    let ended: Vec<HistoryState> = states(dir.path())
        .await
        .into_iter()
        .map(|(_, state)| state)
        .collect();
    let no_answer = HistoryState::Ended(Outcome::NoAnswer);
    assert_eq!(ended[0], HistoryState::Ended(Outcome::Done));
    assert_eq!(ended[1..], [no_answer; 3]);
}

#[tokio::test]
async fn stop_outcomes_are_recorded_without_awaiting_the_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    // A disk that stands still: another connection writes to the same database.
    let other = rusqlite::Connection::open(dir.path().join("station.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let tasks = TaskTracker::new();
    let mut stop = two_files_each();
    stop.deliveries.retain(|to| to.part == 0);
    let history = HistoryEntry::open(&tasks, store, stop, abandoned, None);
    history.add_end(end(1, 0, Reply::done(json!(1))));
    history.add_end(end(3, 0, Reply::done(json!(1))));
    drop(history);
    other.execute_batch("ROLLBACK").expect("unlocked");
    tasks.close();
    tasks.wait().await;
    assert_one_done_and_one_abandoned(dir.path()).await;
}

#[tokio::test]
async fn outcomes_are_retried_until_the_disk_accepts_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    let full = "CREATE TRIGGER disk_full BEFORE UPDATE ON deliveries BEGIN SELECT RAISE(ABORT, 'full'); END";
    disk.execute_batch(full).expect("made");
    let tasks = TaskTracker::new();
    let mut stop = two_files_each();
    stop.deliveries.retain(|to| to.part == 0);
    let number = stop.origin.history_number.clone();
    let history = HistoryEntry::open(&tasks, store.clone(), stop, abandoned, None);
    history.add_end(end(1, 0, Reply::done(json!(1))));
    drop(history);
    // It has been refused once all that is left is to try again.
    number.wait().await;
    let started = clock::now();
    while tasks.len() != 2 {
        assert!(clock::since(started) < Duration::from_secs(20), "{}", tasks.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        states(dir.path())
            .await
            .iter()
            .all(|(_, state)| *state == HistoryState::Open)
    );
    disk.execute_batch("DROP TRIGGER disk_full")
        .expect("there is room");
    // A station that stops tries once more.
    tasks.close();
    tasks.wait().await;
    assert_one_done_and_one_abandoned(dir.path()).await;
}

#[test]
fn audit_never_contains_an_invitation_code() {
    let request = FleetRequest::Join {
        code: "swarm-secret".to_owned(),
        timeout_ms: 1,
    };
    let (_, detail) = audit_entry(&request.into()).expect("audited");
    assert!(!detail.contains("secret"), "{detail}");
}

#[test]
fn audit_details_are_readable() {
    let token = |days, label: &str| {
        AdminRequest::Users(UserRequest::MakeToken {
            name: "ann".to_owned(),
            days,
            label: label.to_owned(),
        })
    };
    let tell = |message: &[u8], peer: Option<&str>| AdminRequest::SendToPeers {
        gateway: "socktools".to_owned(),
        peer: peer.map(str::to_owned),
        message: data_encoding::BASE64.encode(message),
    };
    for (request, what, detail) in [
        (token(365, ""), "gateway token", "for ann, 365 days"),
        (token(1, "clock"), "gateway token", "for ann, 1 day: clock"),
        (tell(b"hello", None), "socktools.send", "5 bytes to all peers"),
        (
            tell(b"h", Some("10.0.0.9")),
            "socktools.send",
            "1 byte to 10.0.0.9",
        ),
    ] {
        let wanted = (what.to_owned(), detail.to_owned());
        assert_eq!(audit_entry(&request.into()), Some(wanted));
    }
}
