//! A node is asked for the same command again and again, over kills and restarts: what it does, it does once, and it
//! always answers the same. The station is this test itself, so that it can say what no honest station would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use swarm_node::fleet_store::Memory;
use swarm_shared::net::clock;
use swarm_shared::net::endpoint::{Config, Endpoint, Events};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::net::peer::{PeerEvent, PeerLink};
use swarm_shared::net::random;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::address_book::{Hint, Source};
use swarm_shared::proto::delivery::{Stage, StageMessage};
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::message::Offer;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};
use swarm_shared::proto::wire::{Frame, Kind, Lane, MessageType};
use swarm_tests::fleet::{Field, Node, PATIENCE, Place};
use swarm_tests::process::{Signal, wait_until};
use tokio::time::timeout;

const EPOCH: u64 = 77;

/// `once` and `again` leave a line and take long; `again` only the first time. `fly` leaves a line.
const ACTIONS: &str = r#"
[actions.once]
command = ["/bin/sh", "-c", "echo once >>DIR/once; sleep 20"]

[actions.again]
command = ["/bin/sh", "-c", "echo again >>DIR/again; [ $(grep -c . DIR/again) -gt 1 ] || sleep 20"]
idempotent = true

[actions.fly]
command = ["/bin/sh", "-c", "echo fly >>DIR/fly"]
class = "flight"
"#;

/// A station made of nothing but links, and a node that is a real process.
struct Pair {
    endpoint: Endpoint,
    events: Events,
    link: Option<PeerLink>,
    node: Node,
    field: Field,
}

fn key() -> SigningKey {
    SigningKey::from_seed(random::bytes().expect("randomness"))
}

impl Pair {
    async fn new() -> Self {
        let field = Field::new();
        let mut node = field.node("n1", Place::here());
        node.tables = ACTIONS.replace("DIR", &field.path().display().to_string());
        let mut root = FleetRoot::create(key()).expect("a fleet");
        let mut member = |key: &SigningKey, role| {
            let grant = root.grant(key.public(), role).expect("a grant");
            Membership::new(root.public(), &key.public(), grant, root.state().clone()).expect("good")
        };
        let theirs = identity::load_or_create(&node.dir, KeyFile::Identity).expect("a key");
        Memory::new(&node.dir)
            .keep_fleet(&member(&theirs, Role::Node))
            .await;
        let ours = key();
        let config = Config {
            kind: PeerKind::Station,
            name: NodeName::parse("st").expect("a name"),
            tags: BTreeMap::new(),
            listen: ([127, 0, 0, 1], 0).into(),
            keepalive: KeepaliveConfig::default(),
            timing: Timing::default(),
            membership: Some(member(&ours, Role::Admin)),
            joins: None,
        };
        let identity = Arc::new(Identity::new(ours).expect("randomness"));
        let (endpoint, events) = Endpoint::start(config, identity).expect("started");
        let addr = node.listen().parse().expect("an address");
        endpoint.heard(addr, Source::Static, Hint::None).await;
        Self {
            endpoint,
            events,
            link: None,
            node,
            field,
        }
    }

    /// Starts the node and waits for the link; what the node says of itself.
    async fn start(&mut self) -> Offer {
        self.node.start(&[]);
        let linked = async {
            loop {
                if let Some(PeerEvent::Up { peer, .. }) = self.events.peers.recv().await {
                    return peer.id;
                }
            }
        };
        let id = timeout(PATIENCE, linked).await.expect("it links");
        self.link = Some(self.endpoint.open(id).await.expect("running"));
        self.frame(Kind::Offer).await.read().expect("an offer")
    }

    /// The next frame of this kind; others are passed over.
    async fn frame(&mut self, kind: Kind) -> Frame {
        let found = async {
            loop {
                if let Some(PeerEvent::Frame { frame, .. }) = self.events.peers.recv().await
                    && frame.header.kind == Some(kind)
                {
                    return *frame;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("a frame in time")
    }

    fn send(&self, seq: u64, action: &str, kwargs: Value, life_ms: u64) {
        let mut frame = Frame::json(Kind::Command, &json!({"args": [], "kwargs": kwargs}));
        frame.header.message_type = MessageType::Request;
        frame.header.action = Some(action.to_owned());
        frame.header.lane = Some(Lane::Control);
        (frame.header.id, frame.header.epoch) = (Some(seq), Some(EPOCH));
        frame.header.life = Some(life_ms);
        let outgoing = Outgoing {
            parcel: Parcel::new(&frame).expect("it encodes"),
            lane: Lane::Control,
            deadline: Some(clock::now() + Duration::from_millis(life_ms)),
        };
        let link = self.link.as_ref().expect("it is linked");
        link.try_send(outgoing).expect("room");
    }

    /// Sends it and waits for its end.
    async fn ask(&mut self, seq: u64, action: &str) -> Reply {
        self.send(seq, action, json!({}), 60_000);
        self.reply(seq).await
    }

    async fn reply(&mut self, seq: u64) -> Reply {
        let frame = self.frame(Kind::Reply).await;
        assert_eq!((frame.header.id, frame.header.epoch), (Some(seq), Some(EPOCH)));
        frame.read().expect("a reply")
    }

    async fn stage(&mut self, seq: u64) -> Stage {
        let frame = self.frame(Kind::Stage).await;
        assert_eq!((frame.header.id, frame.header.epoch), (Some(seq), Some(EPOCH)));
        frame.read::<StageMessage>().expect("a stage").stage
    }

    fn lines(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(self.field.path().join(name)).unwrap_or_default();
        text.lines().count()
    }

    /// Has it begin, and is told of each stage.
    async fn begin(&mut self, seq: u64, action: &str, lines: usize) {
        self.send(seq, action, json!({}), 60_000);
        for stage in [Stage::Received, Stage::Accepted, Stage::Started] {
            assert_eq!(self.stage(seq).await, stage);
        }
        wait_until(PATIENCE, action, || self.lines(action) == lines);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_midway_does_nothing_twice_that_may_not_be() {
    let mut pair = Pair::new().await;
    let offer = pair.start().await;
    assert!(offer.actions["again"].idempotent && !offer.actions["once"].idempotent);
    pair.begin(1, "once", 1).await;
    pair.begin(2, "again", 1).await;
    pair.node.end(Signal::KILL);
    pair.start().await;

    let first = pair.ask(1, "once").await;
    assert_eq!(first.state, Outcome::Unknown, "{first:?}");
    assert_eq!(pair.ask(1, "once").await, first);
    assert_eq!(pair.ask(2, "again").await.state, Outcome::Done);
    assert_eq!(pair.ask(2, "again").await.state, Outcome::Done);
    pair.send(2, "once", json!({"other": true}), 60_000);
    let other = pair.reply(2).await;
    assert_eq!(other.state, Outcome::Refused, "{other:?}");

    pair.node.end(Signal::KILL);
    pair.start().await;
    assert_eq!(pair.ask(1, "once").await, first);
    assert_eq!(pair.ask(2, "again").await.state, Outcome::Done);
    assert_eq!((pair.lines("once"), pair.lines("again")), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_end_keeps_the_outcome_of_what_it_ended() {
    let mut pair = Pair::new().await;
    pair.start().await;
    pair.begin(1, "once", 1).await;
    pair.node.end(Signal::TERM);
    pair.start().await;
    let reply = pair.ask(1, "once").await;
    assert_eq!(reply.state, Outcome::Failed, "{reply:?}");
    let why = reply.error.unwrap_or_default();
    assert!(why.contains("shutting down"), "{why}");
    assert_eq!(pair.lines("once"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flight_action_has_two_seconds_and_no_more() {
    let mut pair = Pair::new().await;
    pair.start().await;
    pair.send(1, "fly", json!({}), 2_001);
    assert_eq!(pair.reply(1).await.state, Outcome::Refused);
    pair.send(2, "fly", json!({}), 2_000);
    assert_eq!(pair.reply(2).await.state, Outcome::Done);
    assert_eq!(pair.lines("fly"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_write_refuses_what_acts_and_recovers_by_itself() {
    let mut pair = Pair::new().await;
    // In the way of every snapshot, and so of the first write.
    let in_the_way = pair.node.dir.join("journal.new/stone");
    std::fs::create_dir_all(&in_the_way).expect("made");
    pair.start().await;
    let refused = pair.ask(1, "log").await;
    assert_eq!(refused.state, Outcome::Refused, "{refused:?}");
    let why = refused.error.clone().unwrap_or_default();
    assert!(why.starts_with("the node's journal cannot be written: "), "{why}");
    assert_eq!(
        pair.ask(2, "ping").await.state,
        Outcome::Done,
        "what reads goes on"
    );

    std::fs::remove_dir_all(pair.node.dir.join("journal.new")).expect("out of the way");
    let healed = async {
        for seq in 3.. {
            if pair.ask(seq, "log").await.state == Outcome::Done {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, healed).await.expect("it recovers");
    // And what was refused stays refused, over a restart too.
    assert_eq!(pair.ask(1, "log").await, refused);
    pair.node.end(Signal::KILL);
    pair.start().await;
    assert_eq!(pair.ask(1, "log").await, refused);
}
