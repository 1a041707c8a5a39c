//! What passes is noted, and what is noted passes.

use serde_json::json;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::wire::Lane;

use super::*;
use crate::fleet::{CommandKind, Failure, NodeRef, PastQuery, PastState};
use crate::store::deliveries::RecordTo;
use crate::store::{Origin, history};

fn node(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::parse(&format!("drone-{number:02}")).expect("a name"),
        id: PeerId([number; 32]),
    }
}

fn two_files_each() -> Record {
    let to = |number: u8, part: u32| RecordTo {
        node: node(number),
        part,
        about: Some(format!("shows/{part}.csv")),
    };
    Record {
        origin: Origin {
            kind: CommandKind::Send,
            ..Origin::of("pi")
        },
        action: "shows/0.csv shows/1.csv".to_owned(),
        arguments: "null".to_owned(),
        lane: Lane::Bulk,
        selector: "all".to_owned(),
        life_ms: 30_000,
        deliveries: vec![to(1, 0), to(1, 1), to(2, 0), to(2, 1)],
    }
}

fn delivery(number: u8, reply: Reply) -> Event {
    Event::Delivery(Delivery::new(node(number), reply, 1.0))
}

async fn states(dir: &std::path::Path) -> Vec<(String, PastState)> {
    let found = history::ask(dir, |c| history::deliveries(c, 1, &PastQuery::default())).await;
    let found = found.expect("read").expect("there is one");
    found
        .into_iter()
        .map(|d| (format!("{} {}", d.node, d.about.unwrap_or_default()), d.state))
        .collect()
}

async fn assert_one_done_and_one_given_up(dir: &std::path::Path) {
    let states = states(dir).await.into_iter().map(|(_, state)| state);
    let ended = [Outcome::Done, Outcome::NoAnswer].map(PastState::Ended);
    assert!(states.eq(ended), "{:?}", self::states(dir).await);
}

#[tokio::test]
async fn each_file_of_a_transfer_has_its_end_before_anybody_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    let (events, mut told) = mpsc::channel(EVENTS_MAX);
    let to = transfer(&tasks, store, two_files_each(), events);
    let done = || Reply::done(json!(1));
    for event in [
        delivery(1, done()),
        delivery(2, Reply::failed("no room")),
        delivery(1, done()),
        delivery(2, done()),
        Event::End,
    ] {
        to.send(event).await.expect("taken");
    }
    drop(to);
    let mut last = None;
    while let Some(event) = told.recv().await {
        if event == Event::End {
            let ended = PastState::Ended(Outcome::Done);
            let wanted = [
                ("drone-01 shows/0.csv".to_owned(), ended),
                ("drone-01 shows/1.csv".to_owned(), ended),
                (
                    "drone-02 shows/0.csv".to_owned(),
                    PastState::Ended(Outcome::Failed),
                ),
                ("drone-02 shows/1.csv".to_owned(), ended),
            ];
            assert_eq!(states(dir.path()).await, wanted);
        }
        last = Some(event);
    }
    assert_eq!(last, Some(Event::End));
}

#[tokio::test]
async fn a_transfer_that_is_given_up_is_noted_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    let (events, told) = mpsc::channel(EVENTS_MAX);
    let to = transfer(&tasks, store, two_files_each(), events);
    to.send(delivery(1, Reply::done(json!(1)))).await.expect("taken");
    drop(told);
    to.closed().await;
    tasks.close();
    tasks.wait().await;
    let open = states(dir.path()).await;
    assert_eq!(open.len(), 4);
    assert!(
        open.iter().all(|(_, state)| *state != PastState::Open),
        "{open:?}"
    );
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_disk_and_is_noted_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    // A disk that stands still: somebody else writes to the same database.
    let other = rusqlite::Connection::open(dir.path().join("station.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let tasks = TaskTracker::new();
    let mut stop = two_files_each();
    stop.deliveries.retain(|to| to.part == 0);
    let given_up = Reply::ended(Outcome::NoAnswer, "given up");
    let to = beside(&tasks, store, stop, given_up);
    let end = PartEnd {
        node: node(1).id,
        part: 0,
        reply: Reply::done(json!(1)),
    };
    to.try_send(end.clone()).expect("there is room");
    to.try_send(PartEnd {
        node: node(3).id,
        ..end
    })
    .expect("for each");
    drop(to);
    other.execute_batch("ROLLBACK").expect("unlocked");
    tasks.close();
    tasks.wait().await;
    assert_one_done_and_one_given_up(dir.path()).await;
}

#[tokio::test]
async fn ends_that_the_disk_refuses_are_stored_when_it_takes_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    let full = "CREATE TRIGGER disk_full BEFORE UPDATE ON deliveries BEGIN SELECT RAISE(ABORT, 'full'); END";
    disk.execute_batch(full).expect("made");
    let tasks = TaskTracker::new();
    let mut stop = two_files_each();
    stop.deliveries.retain(|to| to.part == 0);
    let number = stop.origin.number.clone();
    let given_up = Reply::ended(Outcome::NoAnswer, "given up");
    let to = beside(&tasks, store.clone(), stop, given_up);
    to.try_send(PartEnd {
        node: node(1).id,
        part: 0,
        reply: Reply::done(json!(1)),
    })
    .expect("there is room");
    drop(to);
    // It has been refused once all that is left is to try again.
    number.known().await;
    let started = clock::now();
    while tasks.len() != 2 {
        assert!(clock::since(started) < Duration::from_secs(20), "{}", tasks.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        states(dir.path())
            .await
            .iter()
            .all(|(_, state)| *state == PastState::Open)
    );
    disk.execute_batch("DROP TRIGGER disk_full")
        .expect("there is room");
    // A station that stops tries once more.
    tasks.close();
    tasks.wait().await;
    assert_one_done_and_one_given_up(dir.path()).await;
}

#[tokio::test]
async fn the_audit_names_who_asked_and_how_it_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    for (last, outcome) in [
        (Some(Event::End), "done"),
        (
            Some(Event::failed(Failure::NobodyMatched, "no such node")),
            "no such node",
        ),
        (None, "cut off: whoever asked went away"),
    ] {
        let request = Request::Revoke {
            node: "drone-07".to_owned(),
        };
        let what = audited(&request).expect("audited");
        let (events, mut told) = mpsc::channel(EVENTS_MAX);
        let to = audit(&tasks, store.clone(), "eva".to_owned(), what, events);
        match last.clone() {
            Some(last) => to.send(last).await.expect("taken"),
            None => drop(to),
        }
        assert_eq!(told.recv().await, last);
        let query = PastQuery {
            limit: 1,
            ..PastQuery::default()
        };
        let found = history::ask(dir.path(), move |c| history::audit_trail(c, &query, u64::MAX)).await;
        let found = found.expect("read").expect("there is one");
        let entry = found.first().expect("noted before it was told");
        let noted = [&entry.who, &entry.what, &entry.detail, &entry.outcome].map(String::as_str);
        assert_eq!(noted, ["eva", "revoke", "drone-07", outcome]);
    }
}

#[test]
fn no_code_gets_into_the_audit() {
    let request = Request::Join {
        code: "swarm-secret".to_owned(),
        timeout_ms: 1,
    };
    let (_, detail) = audited(&request).expect("audited");
    assert!(!detail.contains("secret"), "{detail}");
}

#[test]
fn the_audit_is_written_as_people_write() {
    let token = |days, label: &str| Request::Users {
        ask: UserAsk::MakeToken {
            name: "ann".to_owned(),
            days,
            label: label.to_owned(),
        },
    };
    let tell = |message: &[u8], peer: Option<&str>| Request::Tell {
        door: "socktools".to_owned(),
        peer: peer.map(str::to_owned),
        message: data_encoding::BASE64.encode(message),
    };
    for (request, what, detail) in [
        (token(365, ""), "door token", "for ann, 365 days"),
        (token(1, "clock"), "door token", "for ann, 1 day: clock"),
        (tell(b"hello", None), "socktools.send", "5 bytes to all peers"),
        (
            tell(b"h", Some("10.0.0.9")),
            "socktools.send",
            "1 byte to 10.0.0.9",
        ),
    ] {
        let wanted = (what.to_owned(), detail.to_owned());
        assert_eq!(audited(&request), Some(wanted));
    }
}

#[tokio::test]
async fn whom_it_goes_to_is_told_before_a_slow_disk_has_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    disk.execute_batch("BEGIN IMMEDIATE").expect("held");
    let tasks = TaskTracker::new();
    let (events, mut told) = mpsc::channel(EVENTS_MAX);
    let to = transfer(&tasks, store, two_files_each(), events);
    let targets = Event::Targets {
        targets: vec![node(1), node(2)],
    };
    to.send(targets.clone()).await.expect("taken");
    assert_eq!(told.recv().await, Some(targets));
    let end = delivery(1, Reply::done(json!(1)));
    to.send(end.clone()).await.expect("taken");
    to.send(Event::End).await.expect("taken");
    tokio::task::yield_now().await;
    assert!(told.try_recv().is_err(), "not before it is noted");
    disk.execute_batch("ROLLBACK").expect("let go");
    assert_eq!(told.recv().await, Some(end));
    assert_eq!(told.recv().await, Some(Event::End));
}
