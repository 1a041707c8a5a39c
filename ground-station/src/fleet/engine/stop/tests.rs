use std::path::Path;

use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::book::{Change, Issued, IssuedTo, Order, Standing};
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::trust::Role;

use super::*;
use crate::config::Config;
use crate::fleet::engine::{Engine, Purpose, Settings};
use crate::fleet::{PastQuery, PastState, Request};
use crate::store::{MemberRow, history};

const SOON: Duration = Duration::from_secs(20);

async fn start(dir: &Path, purpose: Purpose) -> Engine {
    let mut config = Config::load(None, dir).expect("the usual");
    config.listen = ([127, 0, 0, 1], 0).into();
    (config.pings, config.mdns) = (false, false);
    let settings = Settings {
        config,
        state_dir: dir.to_owned(),
        purpose,
    };
    Engine::start(settings).await.expect("started")
}

/// A fleet with one node, for which a command waits.
async fn fleet_with_what_waits(dir: &Path) {
    let engine = start(dir, Purpose::Once).await;
    let mut made = engine.fleet().perform(Request::Init).await;
    assert!(matches!(made.recv().await, Some(Event::Membership(_))));
    engine.stop().await;
    let own = identity::load_or_create(dir, KeyFile::Identity).expect("a key");
    let store = Store::open(dir).await.expect("a store");
    let (key, name) = (PublicKey([9; 32]), NodeName::from_host("n1"));
    let member = MemberRow {
        key,
        name: name.clone(),
        role: Role::Node,
        kind: PeerKind::Node,
        tags: BTreeMap::new(),
        address: None,
        last_seen_ms: 0,
        grant: None,
        revoked: false,
    };
    store.put_members(vec![member]).await.expect("kept");
    let issued = Change::Issued(Issued {
        order: Order {
            id: CommandId {
                issuer: own.public().id(),
                epoch: store.epoch(),
                seq: 1,
            },
            action: "led".to_owned(),
            arguments: "{\"args\":[],\"kwargs\":{}}".to_owned(),
            lane: Lane::Control,
            life_ms: 60_000,
        },
        selector: "all".to_owned(),
        deliveries: vec![IssuedTo {
            to: key.id(),
            name,
            standing: Standing::Waiting,
            deadline: clock::now() + Duration::from_secs(60),
        }],
    });
    store.keep(vec![issued], [].into()).await.expect("kept");
    store.close().await;
}

#[tokio::test]
async fn what_waits_is_withdrawn_before_the_stop_of_a_station_that_starts_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    fleet_with_what_waits(dir.path()).await;
    let engine = start(dir.path(), Purpose::Stop(Selector::all())).await;
    // The stop has not been asked for yet.
    let begun = clock::now();
    loop {
        let past = history::ask(dir.path(), |connection| {
            history::deliveries(connection, 1, &PastQuery::default())
        });
        let past = past.await.expect("read").expect("a file");
        let [delivery] = past.as_slice() else {
            panic!("{past:?}")
        };
        if delivery.state == PastState::Ended(Outcome::Refused) {
            let why = delivery.error.clone().unwrap_or_default();
            assert!(why.starts_with("withdrawn by the emergency stop of"), "{why}");
            break;
        }
        assert!(clock::now() - begun < SOON, "{delivery:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // And it is told how many those were.
    let stop = Request::Stop {
        selector: Selector::all(),
        timeout_ms: Some(300),
        beside: false,
    };
    let mut events = engine.fleet().perform(stop).await;
    let mut notes = Vec::new();
    while let Some(event) = events.recv().await {
        if let Event::Note { text, .. } = event {
            notes.push(text);
        }
    }
    assert!(
        notes
            .iter()
            .any(|note| note.starts_with("1 delivery that waited")),
        "{notes:?}"
    );
    engine.stop().await;
}
