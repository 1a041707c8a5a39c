use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use swarm_shared::net::endpoint::{self, Endpoint};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::tracker::{
    Change, IssuedCommand, StoredCommand, StoredState, StoredTarget,
};
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::Role;

use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::proto::wire::Lane;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::config::Config;
use crate::engine::delivery::handle;
use crate::engine::membership::authority;
use crate::engine::stop::coordinator::StopCoordinator;
use crate::engine::stop::devices::stop_devices;
use crate::engine::stop::unconfirmed::UnconfirmedStops;
use crate::engine::{Engine, Mode, Settings};
use crate::store::{MemberRow, Store, history};
use swarm_shared::api::{ActRequest, FleetRequest, HistoryQuery, HistoryState, NodeRef};

const SOON: Duration = Duration::from_secs(20);

async fn start(dir: &Path, purpose: Mode) -> Engine {
    let mut config = Config::load(None, dir).expect("the usual");
    config.listen = ([127, 0, 0, 1], 0).into();
    (config.pings, config.mdns) = (false, false);
    let settings = Settings {
        config,
        state_dir: dir.to_owned(),
        mode: purpose,
        bridges_devices: false,
    };
    Engine::start(settings).await.expect("started")
}

/// A fleet with one node, for which a command waits.
async fn fleet_with_queued_command(dir: &Path) {
    let engine = start(dir, Mode::OneShot).await;
    let mut made = engine.fleet().perform(FleetRequest::Init).await;
    assert!(matches!(made.recv().await, Some(Event::Membership(_))));
    engine.shut_down().await;
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
            to: key.id(),
            name,
            state: StoredState::Waiting,
            deadline: clock::now() + Duration::from_secs(60),
        }],
    });
    store.apply(vec![issued], [].into()).await.expect("kept");
    store.close().await;
}

#[tokio::test]
async fn one_shot_stop_withdraws_queued_commands_at_start() {
    let dir = tempfile::tempdir().expect("a directory");
    fleet_with_queued_command(dir.path()).await;
    let engine = start(dir.path(), Mode::Stop(Selector::all())).await;
    // The stop has not been asked for yet.
    let begun = clock::now();
    loop {
        let past = history::run_query(dir.path(), |connection| {
            history::deliveries(connection, 1, &HistoryQuery::default())
        });
        let past = past.await.expect("read").expect("a file");
        let [delivery] = past.as_slice() else {
            panic!("{past:?}")
        };
        if delivery.state == HistoryState::Ended(Outcome::Refused) {
            let why = delivery.error.clone().unwrap_or_default();
            assert!(why.starts_with("withdrawn by the emergency stop of"), "{why}");
            break;
        }
        assert!(clock::now() - begun < SOON, "{delivery:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // And it is told how many those were.
    let stop = ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: Some(300),
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
    engine.shut_down().await;
}

/// What is asked for while the first datagrams are still on their way out was asked for after the stop: the withdrawal
/// does not find it.
#[tokio::test]
async fn stop_targets_are_unconfirmed_before_the_first_await() {
    let dir = tempfile::tempdir().expect("a directory");
    fleet_with_queued_command(dir.path()).await;
    let key = identity::load_or_create(dir.path(), KeyFile::Identity).expect("a key");
    let store = Store::open(dir.path()).await.expect("a store");
    let membership = authority::load_membership(&store, &key.public()).await;
    let config = endpoint::Config {
        kind: PeerKind::Station,
        name: NodeName::from_host("station"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership: membership.expect("sound"),
        joins: None,
    };
    let identity = Arc::new(Identity::new(key).expect("randomness"));
    let (endpoint, _events) = Endpoint::start(config, identity).expect("started");
    let node = PublicKey([9; 32]).id();
    let heard = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = heard.local_addr().expect("bound");
    let name = NodeRef {
        node: NodeName::from_host("n1"),
        id: node,
    };
    let device = NodeDevice {
        link: endpoint.open_session(node).await.expect("opened"),
        online: watch::channel(false).1,
        action_catalog: watch::channel(Default::default()).1,
        address: Some(address),
    };
    let nowhere: Interfaces = [].into();
    let datagrams = Some((watch::channel(nowhere).1, address.port()));
    let (deliveries, _inbox) = handle::channel();
    let stops = StopCoordinator::new(0, UnconfirmedStops::default(), datagrams);
    let shared = SharedContext::for_test(endpoint, store, deliveries, stops);
    let request = StopRequest {
        selector: Selector::all(),
        no_match_text: String::new(),
        notes: Vec::new(),
        timeout: None,
        latched: false,
        devices: stop_devices(&shared, Vec::new(), None),
        origin: Origin::command_by("pi"),
    };
    let (events, _told) = mpsc::channel(8);
    let mut stopping = pin!(run(
        shared.clone(),
        vec![(name, device)],
        request,
        Reporter::for_test(&shared, events)
    ));
    tokio::select! {
        biased;
        () = &mut stopping => panic!("it waits for an answer"),
        () = std::future::ready(()) => {}
    }
    assert!(shared.stops.unconfirmed.stop_number(node).is_some());
    shared.endpoint.shutdown().await;
}
