//! Links over real sockets: two endpoints of one fleet find each other and talk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::{Config, Endpoint, Events};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::{Delivery, Ended, PeerEvent, PeerInfo, ReplyTo, Request};
use swarm_shared::net::random;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::dial::{Hint, Source};
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::parcel::Parcel;
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

struct Program {
    endpoint: Endpoint,
    events: Events,
}

fn start(root: &mut FleetRoot, kind: PeerKind, role: Role, name: &str) -> Program {
    let key = SigningKey::from_seed(random::bytes().expect("randomness"));
    let grant = root.grant(key.public(), role).expect("a grant");
    let membership =
        Membership::new(root.public(), &key.public(), grant, root.state().clone()).expect("good");
    let config = Config {
        kind,
        name: NodeName::parse(name).expect("a name"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership: Some(membership),
        joins: None,
    };
    let identity = Arc::new(Identity::new(key).expect("randomness"));
    let (endpoint, events) = Endpoint::start(config, identity).expect("started");
    Program { endpoint, events }
}

impl Program {
    async fn event(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.events.peers.recv())
            .await
            .expect("in time")
            .expect("running")
    }

    async fn up(&mut self) -> Arc<PeerInfo> {
        let event = self.event().await;
        let PeerEvent::Up { peer, .. } = event else {
            panic!("expected a link, got {event:?}")
        };
        peer
    }
}

fn fleet() -> FleetRoot {
    FleetRoot::create(SigningKey::from_seed(random::bytes().expect("randomness"))).expect("a fleet")
}

#[tokio::test]
async fn a_command_goes_out_and_its_reply_comes_back() {
    let mut root = fleet();
    let mut station = start(&mut root, PeerKind::Station, Role::Admin, "station");
    let mut node = start(&mut root, PeerKind::Node, Role::Node, "drone-1");
    station
        .endpoint
        .heard(node.endpoint.listens(), Source::Static, Hint::None)
        .await;
    let seen = station.up().await;
    assert_eq!(seen.name.as_str(), "drone-1");
    assert_eq!(node.up().await.id, station.endpoint.id());

    let mut command = Frame::json(Kind::Command, &Arguments::default());
    command.header.action = Some("ping".to_owned());
    command.header.id = Some(7);
    let (reply_to, mut ends) = mpsc::channel(1);
    let link = station.endpoint.open(seen.id).await.expect("running");
    let outgoing = Outgoing {
        parcel: Parcel::new(&command).expect("short"),
        lane: Lane::Control,
        deadline: None,
    };
    let until = clock::now() + PATIENCE;
    link.try_request(
        outgoing,
        Request {
            id: 7,
            until,
            reply_to: ReplyTo(reply_to),
        },
    )
    .expect("room");

    let PeerEvent::Frame { peer, frame, .. } = node.event().await else {
        panic!("expected the command")
    };
    assert_eq!(frame.header.action.as_deref(), Some("ping"));
    let reply = Reply::done("pong".into()).to_frame(&frame.header);
    let back = node.endpoint.open(peer.id).await.expect("running");
    back.try_send(Outgoing {
        parcel: Parcel::new(&reply).expect("short"),
        lane: Lane::Control,
        deadline: None,
    })
    .expect("room");

    let Delivery {
        ended: Ended::Reply(content),
        ..
    } = timeout(PATIENCE, ends.recv())
        .await
        .expect("in time")
        .expect("one end")
    else {
        panic!("expected a reply")
    };
    let reply: Reply = serde_json::from_slice(&content).expect("a reply");
    assert_eq!(reply.state, Outcome::Done);
    station.endpoint.shutdown().await;
    assert!(matches!(node.event().await, PeerEvent::Down { .. }));
    node.endpoint.shutdown().await;
}
