use swarm_shared::proto::delivery::tracker::{
    Change, IssuedCommand, StoredCommand, StoredState, StoredTarget,
};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::wire::Lane;

use super::*;
use crate::store::Origin;
use crate::store::deliveries::Record;

#[tokio::test]
async fn offline_cancel_is_stored_before_the_end_event() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = identity::load_or_create(dir.path(), KeyFile::Identity).expect("a key");
    let store = Store::open(dir.path()).await.expect("a store");
    let life = Duration::from_secs(60);
    let issued = Change::Issued(IssuedCommand {
        command: StoredCommand {
            id: CommandId {
                issuer: own.public().id(),
                epoch: store.epoch(),
                seq: 1,
            },
            action: "led".to_owned(),
            arguments: "{\"args\":[],\"kwargs\":{}}".to_owned(),
            lane: Lane::Control,
            ttl_ms: 60_000,
        },
        selector: "all".to_owned(),
        deliveries: vec![StoredTarget {
            to: PeerId([1; 32]),
            name: NodeName::from_host("n1"),
            state: StoredState::Waiting,
            deadline: clock::now() + life,
        }],
    });
    let numbers = store.apply(vec![issued], [].into()).await.expect("kept");
    store.close().await;

    let lock = StateLock::try_acquire(dir.path(), "a test").expect("free");
    let cancel = HistoryRequest::Cancel {
        number: numbers[0],
        timeout_ms: 5_000,
    };
    let mut events = cancel_only_fleet(lock).perform(cancel).await;
    let mut states = Vec::new();
    loop {
        match events.recv().await {
            Some(Event::HistoryDelivery(delivery)) => states.push(delivery.state),
            Some(Event::End) => break,
            Some(Event::Note { .. } | Event::CommandDetails(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let wal = dir.path().join("station.db-wal");
    assert!(!wal.exists(), "the file is closed, with all that was written");
    assert_eq!(
        states,
        [HistoryState::Ended(
            swarm_shared::proto::outcome::Outcome::Refused
        )]
    );
}

#[tokio::test]
async fn commands_to_bridged_devices_cannot_be_cancelled() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("a store");
    let record = Record {
        origin: Origin::command_by("ada".to_owned()),
        action: "led".to_owned(),
        arguments: "{\"args\":[],\"kwargs\":{}}".to_owned(),
        lane: Lane::Control,
        selector: "d1".to_owned(),
        ttl_ms: 60_000,
        deliveries: Vec::new(),
    };
    let number = store.record(record).await.expect("kept");
    store.close().await;
    let Err((failure, message)) = find_command(dir.path(), number).await else {
        panic!("nothing to take back")
    };
    assert_eq!(failure, Failure::Usage);
    assert!(
        message.contains("drones of other programs") && message.contains("`ground-station stop SELECTOR`"),
        "{message}"
    );
}
