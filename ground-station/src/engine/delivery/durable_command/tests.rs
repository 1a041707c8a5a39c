use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use swarm_shared::net::endpoint::{Config, Endpoint};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::SigningKey;
use swarm_shared::proto::wire::Lane;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::engine::delivery::handle;
use crate::engine::delivery::task::DeliveryTask;
use crate::engine::registry::{Device, NodeDevice};
use crate::engine::stop::coordinator::StopCoordinator;
use crate::store::{Store, history};
use swarm_shared::api::{Batch, BatchSize, HistoryQuery, HistoryState, NodeRef};

const SOON: Duration = Duration::from_secs(20);

/// A station without links, and three of its nodes.
async fn rig(store: &Store) -> (SharedContext, Vec<Target>) {
    let config = Config {
        kind: PeerKind::Station,
        name: NodeName::from_host("station"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership: None,
        joins: None,
    };
    let identity = Identity::new(SigningKey::from_seed([1; 32])).expect("randomness");
    let (endpoint, _events) = Endpoint::start(config, Arc::new(identity)).expect("started");
    let next_id = Arc::new(AtomicU64::new(1));
    let (deliveries, inbox) = handle::channel();
    let delivery_task = DeliveryTask::open(store.clone(), endpoint.id(), next_id, |_| true).await;
    tokio::spawn(delivery_task.expect("read").run(inbox, CancellationToken::new()));
    let mut targets = Vec::new();
    for number in 1..=3 {
        let id = PublicKey([number; 32]).id();
        targets.push(Target {
            node: NodeRef {
                node: NodeName::from_host(&format!("n{number}")),
                id,
            },
            device: Device::Node(NodeDevice {
                link: endpoint.open_session(id).await.expect("opened"),
                online: watch::channel(false).1,
                action_catalog: watch::channel(Default::default()).1,
                address: None,
            }),
            name_is_unique: true,
        });
    }
    let stops = StopCoordinator::new(0, Default::default(), None);
    let shared = SharedContext::for_test(endpoint, store.clone(), deliveries, stops);
    (shared, targets)
}

/// Each target has its outcome though nothing was stored in time; when that is made up for, no batch waits for a
/// release that never comes.
#[tokio::test]
async fn batch_run_stored_too_late_ends_for_every_target() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("a store");
    let (shared, targets) = rig(&store).await;
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    disk.execute_batch("BEGIN IMMEDIATE")
        .expect("the test alone writes");
    let act = DurableCommand {
        command: Command {
            action: "led".to_owned(),
            arguments: Arguments::default(),
            lane: Lane::Control,
            ttl: Duration::from_secs(60),
            ttl_given: true,
            timeout: Duration::from_millis(300),
            batch: Some(Batch {
                size: BatchSize::Count(1),
                wait_ms: 0,
                keep_going: true,
            }),
        },
        selector: "all".to_owned(),
        origin: Origin::command_by("pi"),
    };
    let (events, mut told) = mpsc::channel(64);
    let running = tokio::spawn(run(
        shared.clone(),
        targets,
        act,
        Reporter::for_test(&shared, events),
    ));
    let mut ends = Vec::new();
    loop {
        let event = clock::timeout_at(clock::now() + SOON, told.recv()).await;
        match event.expect("in time") {
            Some(Event::Delivery(delivery)) => ends.push((delivery.node.to_string(), delivery.state)),
            Some(Event::End) => break,
            Some(Event::Targets { .. } | Event::Note { .. } | Event::Issued { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        ends,
        ["n1", "n2", "n3"].map(|node| (node.to_owned(), Outcome::NoAnswer))
    );
    disk.execute_batch("ROLLBACK").expect("free again");
    let stopped = clock::timeout_at(clock::now() + SOON, running).await;
    stopped.expect("in time").expect("it did not panic");
    let begun = clock::now();
    loop {
        let past = history::run_query(dir.path(), |connection| {
            history::deliveries(connection, 1, &HistoryQuery::default())
        });
        let past = past.await.expect("read").expect("a file");
        let states: Vec<HistoryState> = past.iter().map(|delivery| delivery.state).collect();
        let refused = HistoryState::Ended(Outcome::Refused);
        if states == [HistoryState::Open, refused, refused] {
            break;
        }
        assert!(clock::now() - begun < SOON, "{states:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shared.endpoint.shutdown().await;
}

#[test]
fn zero_timeout_does_not_blame_the_disk() {
    let error = |reply: Reply| reply.error.expect("says why");
    assert!(error(not_stored(Duration::from_secs(10))).contains("look whether its disk is full"));
    let nothing = error(not_stored(Duration::ZERO));
    assert!(
        nothing.starts_with("not waited for") && !nothing.contains("disk"),
        "{nothing}"
    );
    let texts = [Duration::ZERO, Duration::from_millis(500)].map(query::no_answer_text);
    assert_eq!(
        texts,
        [
            "not waited for (a time-out of 0); it may still be at work",
            "no answer within 0.5 s; it may still be at work"
        ]
    );
}

/// What one act on all comes to: each node's end, by name.
async fn final_replies(shared: &SharedContext, targets: &[Target]) -> Vec<(String, Reply)> {
    let act = DurableCommand {
        command: Command {
            action: "led".to_owned(),
            arguments: Arguments::default(),
            lane: Lane::Control,
            ttl: Duration::from_secs(60),
            ttl_given: true,
            timeout: Duration::from_millis(800),
            batch: None,
        },
        selector: "all".to_owned(),
        origin: Origin::command_by("pi"),
    };
    let (events, mut told) = mpsc::channel(64);
    tokio::spawn(run(
        shared.clone(),
        targets.to_vec(),
        act,
        Reporter::for_test(shared, events),
    ));
    let mut ends = Vec::new();
    while let Some(event) = told.recv().await {
        if let Event::Delivery(delivery) = event {
            let reply = Reply::ended(delivery.state, delivery.error.unwrap_or_default());
            ends.push((delivery.node.to_string(), reply));
        }
    }
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    ends
}

#[tokio::test]
async fn commands_to_unconfirmed_stopped_nodes_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("a store");
    let (shared, targets) = rig(&store).await;
    let stopped = targets[1].node.id;
    shared.stops.unconfirmed.insert([stopped], 7);
    let refused = final_replies(&shared, &targets).await;
    let states: Vec<Outcome> = refused.iter().map(|(_, reply)| reply.state).collect();
    assert_eq!(states, [Outcome::NoAnswer, Outcome::Refused, Outcome::NoAnswer]);
    assert_eq!(refused[1].1.error, shared.stops.unconfirmed.refusal(stopped));
    let past = history::run_query(dir.path(), |connection| {
        history::deliveries(connection, 1, &HistoryQuery::default())
    });
    let past = past.await.expect("read").expect("a file");
    let kept: Vec<HistoryState> = past.iter().map(|delivery| delivery.state).collect();
    let refused = HistoryState::Ended(Outcome::Refused);
    assert_eq!(kept, [HistoryState::Open, refused, HistoryState::Open]);
    // Its word, or a release, and it is a node as any other.
    assert!(shared.stops.unconfirmed.clear(stopped));
    let states: Vec<Outcome> = final_replies(&shared, &targets)
        .await
        .iter()
        .map(|(_, reply)| reply.state)
        .collect();
    assert_eq!(states, [Outcome::NoAnswer; 3]);
    shared.endpoint.shutdown().await;
}
