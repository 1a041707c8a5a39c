use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;

use super::*;
use crate::engine::delivery::history_writer::audit_entry;
use crate::engine::observe::observed_request::RequestBroadcast;
use crate::store::{Origin, history};
use swarm_shared::api::{ActRequest, FleetRequest, HistoryQuery, Request};
use swarm_shared::client::EVENTS_MAX;

#[tokio::test]
async fn audit_has_the_outcome_before_the_caller() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    for (last, outcome) in [
        (Some(Event::End), "done"),
        (
            Some(Event::failed(Failure::NoMatch, "no such node")),
            "no such node",
        ),
        (None, CUT_OFF_BY_CALLER),
    ] {
        let request = FleetRequest::Revoke {
            node: "drone-07".to_owned(),
        };
        let entry = audit_entry(&request.into()).expect("audited");
        let audited = AuditedRequest::new("eva".to_owned(), entry);
        let (caller, mut events) = mpsc::channel(EVENTS_MAX);
        let reporter = Reporter::new((&tasks, &store), caller, clock::now(), None, Some(audited));
        if let Some(last) = last.clone() {
            reporter.send(last).await.expect("room");
        }
        drop(reporter);
        assert_eq!(events.recv().await, last);
        let written = async {
            while !tasks.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        written.await;
        let query = HistoryQuery {
            limit: 1,
            ..HistoryQuery::default()
        };
        let found = history::run_query(dir.path(), move |c| history::audit_trail(c, &query, u64::MAX)).await;
        let found = found.expect("read").expect("there is one");
        let entry = found.first().expect("written");
        let fields = [&entry.who, &entry.what, &entry.detail, &entry.outcome].map(String::as_str);
        assert_eq!(fields, ["eva", "revoke", "drone-07", outcome]);
    }
}

#[tokio::test]
async fn subscribers_learn_that_the_caller_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let tasks = TaskTracker::new();
    let broadcast = RequestBroadcast::default();
    let mut subscriber = broadcast.subscribe();
    let stop: Request = ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: None,
    }
    .into();
    let observed = broadcast.observe(&tasks, &stop, &Origin::command_by("eva"));
    let (caller, events) = mpsc::channel(1);
    let reporter = Reporter::new((&tasks, &store), caller, clock::now(), observed, None);
    drop(events);
    assert!(reporter.send(Event::note("for people")).await.is_err());
    drop(reporter);
    let Ok(Event::Observed { event, .. }) = subscriber.recv().await else {
        panic!("an event")
    };
    assert_eq!(*event, Event::failed(Failure::ShutDown, CUT_OFF_BY_CALLER));
}
