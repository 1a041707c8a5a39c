//! One contract for the task of a session, whatever carries its connections.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::net::{clock, tls};
use crate::proto::message::RefusalCode;
use crate::proto::outcome::Reply;
use crate::proto::session::Timing;
use crate::proto::trust::SigningKey;
use crate::proto::wire::encoded::EncodedFrame;
use crate::proto::wire::{FrameLimits, Kind};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Frames sent each way in a test.
const FRAMES: u64 = 2_000;

/// What carries the connection.
#[derive(Clone, Copy, Debug)]
enum Over {
    /// A pipe in memory that holds this many bytes.
    Pipe(usize),
    Tcp,
    Tls,
}

async fn connect(over: Over) -> (Conn, Conn) {
    if let Over::Pipe(bytes) = over {
        let (here, there) = tokio::io::duplex(bytes);
        return (
            Conn::new(here, FrameLimits::CONTROL),
            Conn::new(there, FrameLimits::CONTROL),
        );
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (here, there) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (here, (there, _from)) = (here.expect("connects"), there.expect("accepts"));
    if !matches!(over, Over::Tls) {
        return (
            Conn::new(here, FrameLimits::CONTROL),
            Conn::new(there, FrameLimits::CONTROL),
        );
    }
    let client = tls::client_config(&SigningKey::from_seed([1; 32])).expect("a good key");
    let server = tls::server_config(&SigningKey::from_seed([2; 32])).expect("a good key");
    let (here, there) = tokio::join!(
        TlsConnector::from(client).connect(tls::server_name(), here),
        TlsAcceptor::from(server).accept(there),
    );
    let here = TlsStream::from(here.expect("greeted"));
    let there = TlsStream::from(there.expect("greeted"));
    (
        Conn::new(here, FrameLimits::CONTROL),
        Conn::new(there, FrameLimits::CONTROL),
    )
}

/// One end: the session's task, and what the endpoint and the application would hold.
struct Side {
    peer: Arc<PeerInfo>,
    control: SessionHandle,
    events: mpsc::Receiver<PeerEvent>,
    link_events: mpsc::Receiver<LinkEvent>,
    links: u64,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Side {
    /// The end of run `own` that faces run `other`.
    fn start(own: u64, other: u64, timing: Timing) -> Self {
        let key = PublicKey([u8::try_from(other).expect("small"); 32]);
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let peer = Arc::new(PeerInfo {
            id: key.id(),
            key,
            kind: PeerKind::Station,
            role: Role::Admin,
            name: NodeName::parse("peer").expect("a name"),
            tags: BTreeMap::new(),
            software: String::new(),
            addr,
            listen_addr: addr,
            instance: Instance(other),
        });
        let (events_sender, events) = mpsc::channel(16);
        let (link_events_sender, link_events) = mpsc::channel(64);
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let control = spawn(TaskParts {
            id: peer.id,
            channel: Channel::Control,
            instance: Instance(own),
            timing,
            events: events_sender,
            deliveries: None,
            stops: mpsc::channel(1).0,
            link_events: link_events_sender,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        Self {
            peer,
            control: control.expect("a session"),
            events,
            link_events,
            links: 0,
            shutdown,
            tasks,
        }
    }

    async fn attach(&mut self, conn: Conn) {
        self.links += 1;
        let attachment = Box::new(Attachment {
            conn,
            info: Arc::clone(&self.peer),
            link_number: self.links,
        });
        let sent = self.control.commands.send(LinkCommand::Attach(attachment)).await;
        sent.expect("running");
    }

    async fn event(&mut self) -> PeerEvent {
        let event = timeout(TEST_TIMEOUT, self.events.recv()).await;
        event.expect("an event in time").expect("running")
    }

    async fn link_event(&mut self) -> LinkEvent {
        let word = timeout(TEST_TIMEOUT, self.link_events.recv()).await;
        word.expect("a word in time").expect("running")
    }

    /// Waits for the link, and says whether it resumed.
    async fn wait_connected(&mut self) -> bool {
        let event = self.event().await;
        let PeerEvent::Connected { resumed, .. } = event else {
            panic!("expected a link, got {event:?}")
        };
        resumed
    }

    async fn wait_ended(self) {
        self.tasks.close();
        timeout(TEST_TIMEOUT, self.tasks.wait())
            .await
            .expect("its tasks end");
    }
}

fn sides() -> (Side, Side) {
    let timing = Timing::default();
    (Side::start(1, 2, timing), Side::start(2, 1, timing))
}

async fn link(over: Over, here: &mut Side, there: &mut Side) {
    let (at_here, at_there) = connect(over).await;
    here.attach(at_here).await;
    there.attach(at_there).await;
}

fn numbered(id: u64) -> Outgoing {
    let mut frame = Frame::json(Kind::Reply, &Reply::done(id.into()));
    frame.header.id = Some(id);
    Outgoing {
        frame: EncodedFrame::new(&frame).expect("short"),
        lane: Lane::Control,
        deadline: None,
    }
}

async fn send_stream(link: PeerLink) {
    for id in 1..=FRAMES {
        link.send(numbered(id)).await.expect("running");
    }
}

/// Reads the stream, checking that each frame comes once, in order, between an up and a down.
async fn read_stream(events: &mut mpsc::Receiver<PeerEvent>, mut up: bool) {
    let mut next = 1;
    while next <= FRAMES {
        let event = timeout(TEST_TIMEOUT, events.recv())
            .await
            .expect("in time")
            .expect("running");
        match event {
            PeerEvent::Frame { frame, .. } => {
                assert!(up, "frame {next} came without a link");
                assert_eq!(frame.header.id, Some(next));
                next += 1;
            }
            PeerEvent::Connected { resumed, .. } => {
                assert!(!up && resumed);
                up = true;
            }
            PeerEvent::Disconnected { .. } => {
                assert!(up);
                up = false;
            }
            PeerEvent::Silent(_) | PeerEvent::Responsive(_) => {}
            PeerEvent::BulkOpened { .. } => panic!("no bulk connection was requested"),
        }
    }
}

/// Streams both ways over one link.
async fn frames_stream_both_ways_in_order(over: Over) {
    let (mut here, mut there) = sides();
    link(over, &mut here, &mut there).await;
    assert!(!here.wait_connected().await && !there.wait_connected().await);
    tokio::join!(
        send_stream(here.control.link.clone()),
        send_stream(there.control.link.clone()),
        read_stream(&mut here.events, true),
        read_stream(&mut there.events, true),
    );
    here.shutdown.cancel();
    there.shutdown.cancel();
    here.wait_ended().await;
    there.wait_ended().await;
}

/// Streams both ways while link after link takes the place of the one before, with frames under way on all of them.
async fn streams_survive_link_replacement(over: Over) {
    let (mut here, mut there) = sides();
    link(over, &mut here, &mut there).await;
    assert!(!here.wait_connected().await && !there.wait_connected().await);
    let (here_link, there_link) = (here.control.link.clone(), there.control.link.clone());
    let (here_links, there_links) = (here.control.commands.clone(), there.control.commands.clone());
    let (here_info, there_info) = (Arc::clone(&here.peer), Arc::clone(&there.peer));
    let (mut here_words, mut there_words) = (here.link_events, there.link_events);
    let relink = async {
        for number in 2..20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let (at_here, at_there) = connect(over).await;
            for (links, info, conn) in [
                (&here_links, &here_info, at_here),
                (&there_links, &there_info, at_there),
            ] {
                let info = Arc::clone(info);
                let attachment = Box::new(Attachment {
                    conn,
                    info,
                    link_number: number,
                });
                links
                    .send(LinkCommand::Attach(attachment))
                    .await
                    .expect("running");
            }
            while here_words.try_recv().is_ok() {}
            while there_words.try_recv().is_ok() {}
        }
        (here_words, there_words)
    };
    let (_words, (), (), (), ()) = tokio::join!(
        relink,
        send_stream(here_link),
        send_stream(there_link),
        read_stream(&mut here.events, true),
        read_stream(&mut there.events, true),
    );
    here.shutdown.cancel();
    there.shutdown.cancel();
}

/// A request has one end, and the words for the endpoint tell of the link by its number.
async fn requests_end_once_and_close_names_the_link(over: Over) {
    let (mut here, mut there) = sides();
    link(over, &mut here, &mut there).await;
    here.wait_connected().await;
    there.wait_connected().await;
    assert!(matches!(here.link_event().await, LinkEvent::Opened { .. }));
    let mut command = Frame::json(Kind::Command, &());
    command.header.id = Some(5);
    command.header.action = Some("ping".to_owned());
    let outgoing = Outgoing {
        frame: EncodedFrame::new(&command).expect("short"),
        lane: Lane::Control,
        deadline: None,
    };
    let (reply_to, mut ends) = mpsc::channel(1);
    let request = Request {
        id: 5,
        timeout_at: clock::now() + TEST_TIMEOUT,
        reply_to: ReplyTo(reply_to),
    };
    here.control.link.try_request(outgoing, request).expect("room");
    assert!(matches!(there.event().await, PeerEvent::Frame { .. }));
    there.control.link.try_send(numbered(5)).expect("room");
    let end = timeout(TEST_TIMEOUT, ends.recv())
        .await
        .expect("in time")
        .expect("one end");
    assert!(matches!(end.result, RequestResult::Reply(_)), "{end:?}");

    let refused = Refused::new(RefusalCode::Revoked, "you are out");
    let close = LinkCommand::EndSession(refused.clone());
    here.control.commands.send(close).await.expect("running");
    assert!(matches!(here.event().await, PeerEvent::Disconnected { reason, .. } if reason == refused.reason));
    assert!(
        matches!(there.event().await, PeerEvent::Disconnected { reason, .. } if reason.contains(&refused.reason))
    );
    assert!(matches!(there.link_event().await, LinkEvent::Opened { .. }));
    let word = there.link_event().await;
    let LinkEvent::Closed {
        link_number: number,
        refused: told,
        ..
    } = word
    else {
        panic!("{word:?}")
    };
    assert_eq!((number, told), (there.links, Some(refused)));
    assert_eq!(here.control.link.send(numbered(1)).await, Err(LinkError::Closed));
    here.wait_ended().await;
}

/// A connection that nothing comes over any more is given up in time, whatever carries it.
async fn silent_connection_is_closed_in_time(over: Over) {
    let timing = Timing::from_heartbeat(Duration::from_millis(200));
    let mut here = Side::start(1, 2, timing);
    let (at_here, at_there) = connect(over).await;
    let started = clock::now();
    here.attach(at_here).await;
    let word = here.link_event().await;
    assert!(
        matches!(
            word,
            LinkEvent::Closed {
                link_number: 1,
                refused: None,
                ..
            }
        ),
        "{word:?}"
    );
    assert!(clock::since(started) >= timing.lost_after);
    assert!(here.events.try_recv().is_err(), "it was never up");
    drop(at_there);
    here.shutdown.cancel();
    here.wait_ended().await;
}

/// While the application sleeps, nothing is read and nothing is lost; and it may stop at any time.
async fn unread_events_apply_backpressure(over: Over) {
    let (mut here, mut there) = sides();
    link(over, &mut here, &mut there).await;
    here.wait_connected().await;
    let sending = tokio::spawn(send_stream(here.control.link.clone()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!there.wait_connected().await);
    read_stream(&mut there.events, true).await;
    sending.await.expect("sent");
    for id in 1..=100 {
        here.control.link.send(numbered(id)).await.expect("running");
    }
    // Stops with its events untaken.
    there.shutdown.cancel();
    there.wait_ended().await;
    here.shutdown.cancel();
    here.wait_ended().await;
}

macro_rules! contract {
    ($($name:ident: $over:expr,)*) => {$(
        mod $name {
            use super::Over;

            #[tokio::test]
            async fn frames_stream_both_ways_in_order() {
                super::frames_stream_both_ways_in_order($over).await;
            }

            #[tokio::test]
            async fn streams_survive_link_replacement() {
                super::streams_survive_link_replacement($over).await;
            }

            #[tokio::test]
            async fn requests_end_once_and_close_names_the_link() {
                super::requests_end_once_and_close_names_the_link($over).await;
            }

            #[tokio::test]
            async fn silent_connection_is_closed_in_time() {
                super::silent_connection_is_closed_in_time($over).await;
            }

            #[tokio::test]
            async fn unread_events_apply_backpressure() {
                super::unread_events_apply_backpressure($over).await;
            }
        }
    )*};
}

contract! {
    over_a_narrow_pipe: Over::Pipe(7),
    over_a_pipe: Over::Pipe(64 * 1024),
    over_tcp: Over::Tcp,
    over_tls: Over::Tls,
}
