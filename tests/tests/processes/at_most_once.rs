//! A node gets the same command repeatedly, over kills and restarts: it runs it once, and always gives the same
//! reply. The test acts as the station, so that it can send what a real station would not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use swarm_node::fleet_store::FleetStore;
use swarm_shared::net::endpoint::{Config, Endpoint, Events};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::net::peer::{PeerEvent, PeerLink};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::delivery::{Stage, StageMessage};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::message::ActionCatalog;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane, MessageType};
use swarm_tests::fleet::{Host, Node, TEST_TIMEOUT, TestDir};
use swarm_tests::process::{Signal, wait_until};
use tokio::time::timeout;

const EPOCH: u64 = 77;

/// `once` and `again` write a line and take long; `again` only the first time. `fly` writes a line.
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

/// A station that only has links, and a node that is a real process.
struct RawStation {
    endpoint: Endpoint,
    events: Events,
    link: Option<PeerLink>,
    node: Node,
    test_dir: TestDir,
}

fn random_key() -> SigningKey {
    SigningKey::from_seed(random::bytes().expect("randomness"))
}

impl RawStation {
    async fn new() -> Self {
        let field = TestDir::new();
        let mut node = field.node("n1", Host::loopback());
        node.tables = ACTIONS.replace("DIR", &field.path().display().to_string());
        let mut root = FleetRoot::create(random_key()).expect("a fleet");
        let mut member = |key: &SigningKey, role| {
            let grant = root.grant(key.public(), role).expect("a grant");
            Membership::new(root.public(), &key.public(), grant, root.state().clone()).expect("good")
        };
        let theirs = identity::load_or_create(&node.state_dir, KeyFile::Identity).expect("a key");
        FleetStore::new(&node.state_dir)
            .save_fleet(&member(&theirs, Role::Node))
            .await;
        let ours = random_key();
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
        let addr = node.listen_addr().parse().expect("an address");
        endpoint
            .address_discovered(addr, Source::Static, Hint::None)
            .await;
        Self {
            endpoint,
            events,
            link: None,
            node,
            test_dir: field,
        }
    }

    /// Starts the node and waits for the link; returns its action catalog.
    async fn start(&mut self) -> ActionCatalog {
        self.node.start(&[]);
        let linked = async {
            loop {
                if let Some(PeerEvent::Connected { peer, .. }) = self.events.peers.recv().await {
                    return peer.id;
                }
            }
        };
        let id = timeout(TEST_TIMEOUT, linked).await.expect("it links");
        self.link = Some(self.endpoint.open_session(id).await.expect("running"));
        self.receive_frame(Kind::Offer)
            .await
            .parse_content()
            .expect("an offer")
    }

    /// The next frame of this kind; others are dropped.
    async fn receive_frame(&mut self, kind: Kind) -> Frame {
        let found = async {
            loop {
                if let Some(PeerEvent::Frame { frame, .. }) = self.events.peers.recv().await
                    && frame.header.kind == Some(kind)
                {
                    return *frame;
                }
            }
        };
        timeout(TEST_TIMEOUT, found).await.expect("a frame in time")
    }

    fn send(&self, seq: u64, action: &str, kwargs: Value, ttl_ms: u64) {
        let mut frame = Frame::json(Kind::Command, &json!({"args": [], "kwargs": kwargs}));
        frame.header.message_type = MessageType::Request;
        frame.header.action = Some(action.to_owned());
        frame.header.lane = Some(Lane::Control);
        (frame.header.id, frame.header.epoch) = (Some(seq), Some(EPOCH));
        frame.header.life = Some(ttl_ms);
        let outgoing = Outgoing {
            frame: EncodedFrame::new(&frame).expect("it encodes"),
            lane: Lane::Control,
            deadline: Some(clock::now() + Duration::from_millis(ttl_ms)),
        };
        let link = self.link.as_ref().expect("it is linked");
        link.try_send(outgoing).expect("room");
    }

    /// Sends a command and waits for its reply.
    async fn call(&mut self, seq: u64, action: &str) -> Reply {
        self.send(seq, action, json!({}), 60_000);
        self.receive_reply(seq).await
    }

    async fn receive_reply(&mut self, seq: u64) -> Reply {
        let frame = self.receive_frame(Kind::Reply).await;
        assert_eq!((frame.header.id, frame.header.epoch), (Some(seq), Some(EPOCH)));
        frame.parse_content().expect("a reply")
    }

    async fn receive_stage(&mut self, seq: u64) -> Stage {
        let frame = self.receive_frame(Kind::Stage).await;
        assert_eq!((frame.header.id, frame.header.epoch), (Some(seq), Some(EPOCH)));
        frame.parse_content::<StageMessage>().expect("a stage").stage
    }

    fn count_lines(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(self.test_dir.path().join(name)).unwrap_or_default();
        text.lines().count()
    }

    /// Sends a command, and checks each stage until it has started.
    async fn start_command(&mut self, seq: u64, action: &str, lines: usize) {
        self.send(seq, action, json!({}), 60_000);
        for stage in [Stage::Received, Stage::Accepted, Stage::Started] {
            assert_eq!(self.receive_stage(seq).await, stage);
        }
        wait_until(TEST_TIMEOUT, action, || self.count_lines(action) == lines);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_node_reruns_only_idempotent_actions() {
    let mut pair = RawStation::new().await;
    let offer = pair.start().await;
    assert!(offer.actions["again"].idempotent && !offer.actions["once"].idempotent);
    pair.start_command(1, "once", 1).await;
    pair.start_command(2, "again", 1).await;
    pair.node.signal_and_wait(Signal::KILL);
    pair.start().await;

    let first = pair.call(1, "once").await;
    assert_eq!(first.state, Outcome::Unknown, "{first:?}");
    assert_eq!(pair.call(1, "once").await, first);
    assert_eq!(pair.call(2, "again").await.state, Outcome::Done);
    assert_eq!(pair.call(2, "again").await.state, Outcome::Done);
    pair.send(2, "once", json!({"other": true}), 60_000);
    let other = pair.receive_reply(2).await;
    assert_eq!(other.state, Outcome::Refused, "{other:?}");

    pair.node.signal_and_wait(Signal::KILL);
    pair.start().await;
    assert_eq!(pair.call(1, "once").await, first);
    assert_eq!(pair.call(2, "again").await.state, Outcome::Done);
    assert_eq!((pair.count_lines("once"), pair.count_lines("again")), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_node_keeps_outcomes_of_killed_actions() {
    let mut pair = RawStation::new().await;
    pair.start().await;
    pair.start_command(1, "once", 1).await;
    pair.node.signal_and_wait(Signal::TERM);
    pair.start().await;
    let reply = pair.call(1, "once").await;
    assert_eq!(reply.state, Outcome::Failed, "{reply:?}");
    let why = reply.error.unwrap_or_default();
    assert!(why.contains("shutting down"), "{why}");
    assert_eq!(pair.count_lines("once"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flight_action_ttl_is_capped_at_two_seconds() {
    let mut pair = RawStation::new().await;
    pair.start().await;
    pair.send(1, "fly", json!({}), 2_001);
    assert_eq!(pair.receive_reply(1).await.state, Outcome::Refused);
    pair.send(2, "fly", json!({}), 2_000);
    assert_eq!(pair.receive_reply(2).await.state, Outcome::Done);
    assert_eq!(pair.count_lines("fly"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_with_unwritable_journal_refuses_then_recovers() {
    let mut pair = RawStation::new().await;
    // Blocks every snapshot, and so the first write.
    let in_the_way = pair.node.state_dir.join("journal.new/stone");
    std::fs::create_dir_all(&in_the_way).expect("made");
    pair.start().await;
    let refused = pair.call(1, "log").await;
    assert_eq!(refused.state, Outcome::Refused, "{refused:?}");
    let why = refused.error.clone().unwrap_or_default();
    assert!(why.starts_with("the node's journal cannot be written: "), "{why}");
    assert_eq!(
        pair.call(2, "ping").await.state,
        Outcome::Done,
        "what reads goes on"
    );

    std::fs::remove_dir_all(pair.node.state_dir.join("journal.new")).expect("out of the way");
    let healed = async {
        for seq in 3.. {
            if pair.call(seq, "log").await.state == Outcome::Done {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(TEST_TIMEOUT, healed).await.expect("it recovers");
    // A refused command stays refused, also over a restart.
    assert_eq!(pair.call(1, "log").await, refused);
    pair.node.signal_and_wait(Signal::KILL);
    pair.start().await;
    assert_eq!(pair.call(1, "log").await, refused);
}
