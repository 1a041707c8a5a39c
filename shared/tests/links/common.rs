//! Endpoints for the tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::endpoint::{Config, Endpoint, Events, JoinRequest, Notice};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::peer::{CompletedRequest, LinkError, PeerEvent, PeerInfo, PeerLink, ReplyTo, Request};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::{Arguments, RefusalCode, Refused};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::{Outgoing, Timing};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Header, Kind, Lane};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Time-out for anything that has to happen; the machine may be busy.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(random::bytes().expect("randomness"))
}

pub(crate) fn fleet() -> FleetRoot {
    FleetRoot::create(key()).expect("a fleet")
}

pub(crate) fn membership(root: &mut FleetRoot, key: &SigningKey, role: Role) -> Membership {
    let grant = root.grant(key.public(), role).expect("a grant");
    Membership::new(root.public(), &key.public(), grant, root.state().clone()).expect("good")
}

/// The setup of one program.
pub(crate) struct Setup {
    pub(crate) kind: PeerKind,
    pub(crate) name: &'static str,
    pub(crate) key: SigningKey,
    pub(crate) membership: Option<Membership>,
    pub(crate) timing: Timing,
    pub(crate) listen: SocketAddr,
    pub(crate) joins: Option<mpsc::Sender<JoinRequest>>,
}

impl Setup {
    pub(crate) fn without_fleet(kind: PeerKind, name: &'static str) -> Self {
        Self {
            kind,
            name,
            key: key(),
            membership: None,
            timing: Timing::default(),
            listen: ([127, 0, 0, 1], 0).into(),
            joins: None,
        }
    }

    pub(crate) fn member(root: &mut FleetRoot, kind: PeerKind, role: Role, name: &'static str) -> Self {
        let mut setup = Self::without_fleet(kind, name);
        setup.membership = Some(membership(root, &setup.key, role));
        setup
    }

    pub(crate) fn station(root: &mut FleetRoot) -> Self {
        Self::member(root, PeerKind::Station, Role::Admin, "station")
    }

    pub(crate) fn node(root: &mut FleetRoot) -> Self {
        Self::member(root, PeerKind::Node, Role::Node, "drone-1")
    }

    pub(crate) fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.timing = Timing::from_heartbeat(heartbeat);
        self
    }

    pub(crate) fn start(self) -> Program {
        let config = Config {
            kind: self.kind,
            name: NodeName::parse(self.name).expect("a name"),
            tags: BTreeMap::new(),
            listen: self.listen,
            keepalive: KeepaliveConfig::default(),
            timing: self.timing,
            membership: self.membership,
            joins: self.joins,
        };
        let identity = Arc::new(Identity::new(self.key).expect("randomness"));
        let (endpoint, events) = Endpoint::start(config, identity).expect("started");
        Program { endpoint, events }
    }
}

pub(crate) struct Program {
    pub(crate) endpoint: Endpoint,
    pub(crate) events: Events,
}

impl Program {
    pub(crate) fn id(&self) -> PeerId {
        self.endpoint.id()
    }

    pub(crate) async fn dial(&self, addr: SocketAddr) {
        self.endpoint
            .address_discovered(addr, Source::Static, Hint::None)
            .await;
    }

    pub(crate) async fn link(&self, id: PeerId) -> PeerLink {
        self.endpoint.open_session(id).await.expect("running")
    }

    pub(crate) async fn next_event(&mut self) -> PeerEvent {
        let event = timeout(TEST_TIMEOUT, self.events.peers.recv()).await;
        event.expect("an event in time").expect("running")
    }

    /// The next event that `wanted` accepts; others are dropped.
    pub(crate) async fn wait_for<T>(&mut self, mut wanted: impl FnMut(PeerEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.peers.recv().await.expect("running");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        timeout(TEST_TIMEOUT, found).await.expect("the event in time")
    }

    pub(crate) async fn wait_for_up(&mut self) -> (Arc<PeerInfo>, bool) {
        self.wait_for(|event| {
            let PeerEvent::Connected { peer, resumed, .. } = event else {
                return None;
            };
            Some((peer, resumed))
        })
        .await
    }

    pub(crate) async fn wait_for_down(&mut self) -> String {
        self.wait_for(|event| {
            let PeerEvent::Disconnected { reason: why, .. } = event else {
                return None;
            };
            Some(why)
        })
        .await
    }

    pub(crate) async fn next_frame(&mut self) -> Frame {
        self.wait_for(|event| {
            let PeerEvent::Frame { frame, .. } = event else {
                return None;
            };
            Some(*frame)
        })
        .await
    }

    /// The bulk session with a peer, once it has begun.
    pub(crate) async fn wait_for_bulk(&mut self) -> (PeerLink, mpsc::Receiver<PeerEvent>) {
        self.wait_for(|event| {
            let PeerEvent::BulkOpened { link, events, .. } = event else {
                return None;
            };
            Some((link, events))
        })
        .await
    }

    pub(crate) async fn next_notice(&mut self) -> Notice {
        let notice = timeout(TEST_TIMEOUT, self.events.notices.recv()).await;
        notice.expect("a notice in time").expect("running")
    }

    /// The next refusal with this code, and whether this side refused.
    pub(crate) async fn wait_for_refusal(&mut self, wanted: RefusalCode) -> (bool, Refused) {
        let found = async {
            loop {
                if let Notice::Refused { by_us, refused, .. } =
                    self.events.notices.recv().await.expect("running")
                    && refused.code == wanted
                {
                    return (by_us, refused);
                }
            }
        };
        let found = timeout(TEST_TIMEOUT, found).await;
        found.unwrap_or_else(|_elapsed| panic!("no refusal with {wanted:?}"))
    }

    /// Replies to every command with its own number, until the endpoint stops.
    pub(crate) async fn reply_to_all(mut self) {
        while let Some(event) = self.events.peers.recv().await {
            if let PeerEvent::Frame { peer, frame, .. } = event
                && frame.header.kind == Some(Kind::Command)
            {
                let link = self.link(peer.id).await;
                let done = Reply::done(frame.header.id.into());
                link.try_send(reply(&done, &frame.header)).expect("room");
            }
        }
    }
}

/// Two programs linked with each other; the first dialled.
pub(crate) async fn linked(first: Setup, second: Setup) -> (Program, Program) {
    let (mut first, mut second) = (first.start(), second.start());
    first.dial(second.endpoint.listen_addr()).await;
    assert_eq!(first.wait_for_up().await.0.id, second.id());
    assert_eq!(second.wait_for_up().await.0.id, first.id());
    (first, second)
}

pub(crate) fn outgoing(frame: &Frame, lane: Lane) -> Outgoing {
    Outgoing {
        frame: EncodedFrame::new(frame).expect("it encodes"),
        lane,
        deadline: None,
    }
}

pub(crate) fn command(action: &str, id: u64) -> Outgoing {
    let mut frame = Frame::json(Kind::Command, &Arguments::default());
    frame.header.action = Some(action.to_owned());
    frame.header.id = Some(id);
    outgoing(&frame, Lane::Control)
}

pub(crate) fn reply(reply: &Reply, to: &Header) -> Outgoing {
    outgoing(&reply.to_frame(to), Lane::Control)
}

/// A message that any peer may send and that expects no reply.
pub(crate) fn numbered(id: u64) -> Outgoing {
    let mut frame = Frame::json(Kind::Reply, &Reply::done(id.into()));
    frame.header.id = Some(id);
    outgoing(&frame, Lane::Control)
}

/// Sends; waits while the link is busy.
pub(crate) async fn send_when_possible(link: &PeerLink, message: &Outgoing) {
    let sent = async {
        loop {
            match link.try_send(message.clone()) {
                Ok(()) => return,
                Err(LinkError::Busy) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(LinkError::Closed) => panic!("stopped"),
            }
        }
    };
    timeout(TEST_TIMEOUT, sent).await.expect("room in time");
}

pub(crate) struct Requester {
    deliveries: mpsc::Receiver<CompletedRequest>,
    reply_to: ReplyTo,
}

impl Requester {
    pub(crate) fn new() -> Self {
        let (reply_to, ends) = mpsc::channel(10_000);
        Self {
            deliveries: ends,
            reply_to: ReplyTo(reply_to),
        }
    }

    pub(crate) fn request(&self, link: &PeerLink, action: &str, id: u64) -> Result<(), LinkError> {
        let request = Request {
            id,
            timeout_at: clock::now() + TEST_TIMEOUT,
            reply_to: self.reply_to.clone(),
        };
        link.try_request(command(action, id), request)
    }

    pub(crate) async fn next_delivery(&mut self) -> CompletedRequest {
        let end = timeout(TEST_TIMEOUT, self.deliveries.recv()).await;
        end.expect("an end in time").expect("we hold the sender")
    }
}
