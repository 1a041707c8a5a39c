//! The task of one session.
//!
//! Inputs: messages to send, links to take up or to close, bytes, time. Outputs: events for the application, word of
//! its link for the endpoint. While the application takes no events, nothing more is read from the peer; while the
//! session's outbox is full, no more messages are taken, so that their senders hear of it at once.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::timer::Alarm;
use super::{
    Attachment, ChunkBytes, Ended, LastHeard, LinkError, LinkInput, LinkWord, Message, PeerControl,
    PeerEvent, PeerInfo, PeerLink, StopHeard, Token,
};
use crate::net::clock;
use crate::net::conn::{Conn, Driven};
use crate::proto::encoded::Parcel;
use crate::proto::id::{Instance, PeerId};
use crate::proto::message::{Arguments, Channel, RefusalCode, Refused};
use crate::proto::outbox::OutboxLimits;
use crate::proto::outcome::Reply;
use crate::proto::session::{Event as SessionEvent, LinkFault, Outgoing, Session, Settled, Timing};
use crate::proto::trust::Role;
use crate::proto::trust::gate::{Wish, classify, permit};
use crate::proto::wire::{Frame, Kind, Lane, WireError};

/// Messages that wait in front of a control session, beyond its outbox.
const CONTROL_INPUT_MESSAGES: usize = 256;
/// Chunks that wait in front of a bulk session, beyond its outbox.
const BULK_INPUT_MESSAGES: usize = 4;
/// Emergency messages that wait in front of a session.
const URGENT_INPUT_MESSAGES: usize = 64;
/// Links that wait to be taken up by one session.
const LINK_INPUTS: usize = 8;
/// Messages taken in one go before the connection gets its turn.
const MESSAGES_A_TURN: usize = 256;
/// Bytes that wait for the socket before the session is asked for no more.
const OUT_BYTES_ROOM: usize = 256 * 1024;
/// Room for events that a quiet session keeps.
const HAPPENED_KEPT: usize = 16;
/// How long a closing link may take to say why it closes.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// A bulk connection on which nothing was to be sent or read for this long is closed.
const BULK_IDLE: Duration = Duration::from_secs(30);
/// How often a bulk session that has something to send asks for a connection.
const BULK_WANT_INTERVAL: Duration = Duration::from_millis(500);

struct Linked {
    conn: Conn,
    info: Arc<PeerInfo>,
    number: u64,
    /// Whether the application has been told that it is up.
    told: bool,
}

/// What a session's task is made of.
pub(crate) struct TaskParts {
    pub(crate) id: PeerId,
    pub(crate) channel: Channel,
    /// This run of our process.
    pub(crate) instance: Instance,
    pub(crate) timing: Timing,
    /// For the application.
    pub(crate) events: mpsc::Sender<PeerEvent>,
    /// For the application, past all that waits in `events`.
    pub(crate) stops: mpsc::Sender<StopHeard>,
    /// For the endpoint.
    pub(crate) words: mpsc::Sender<LinkWord>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

struct PeerTask {
    id: PeerId,
    channel: Channel,
    session: Session<Token>,
    linked: Option<Linked>,
    messages: mpsc::Receiver<Message>,
    urgent: mpsc::Receiver<Message>,
    links: mpsc::Receiver<LinkInput>,
    events: mpsc::Sender<PeerEvent>,
    stops: mpsc::Sender<StopHeard>,
    /// Events that the application has not taken yet; nothing is read while there are any.
    backlog: VecDeque<PeerEvent>,
    words: mpsc::Sender<LinkWord>,
    /// Empty; kept so that not every frame needs an allocation.
    happened: Vec<SessionEvent<Token>>,
    heard: Arc<LastHeard>,
    chunk_bytes: ChunkBytes,
    /// When a bulk session last had anything to do, or asked for a connection.
    last_busy: Instant,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What woke the task.
enum Woken {
    Stop,
    Link(LinkInput),
    Message(Message),
    Driven(std::io::Result<Driven>),
    EventTaken,
    Time,
}

/// Starts the task of one session.
pub(crate) fn spawn(parts: TaskParts) -> Result<PeerControl, WireError> {
    let TaskParts {
        id,
        channel,
        instance,
        timing,
        events,
        stops,
        words,
        stop,
        tasks,
    } = parts;
    let (limits, depth) = match channel {
        Channel::Control | Channel::Join => (OutboxLimits::CONTROL, CONTROL_INPUT_MESSAGES),
        Channel::Bulk => (OutboxLimits::BULK, BULK_INPUT_MESSAGES),
    };
    let now = clock::now();
    let session = Session::new(instance, timing, limits, now)?;
    let (message_sender, messages) = mpsc::channel(depth);
    let (urgent_sender, urgent) = mpsc::channel(URGENT_INPUT_MESSAGES);
    let (link_sender, links) = mpsc::channel(LINK_INPUTS);
    let tracker = tasks.clone();
    let heard = LastHeard::never(now);
    let chunk_bytes = ChunkBytes::new(session.chunk_bytes());
    let task = PeerTask {
        id,
        channel,
        session,
        linked: None,
        messages,
        urgent,
        links,
        events,
        stops,
        backlog: VecDeque::new(),
        words,
        happened: Vec::new(),
        heard: Arc::clone(&heard),
        chunk_bytes: chunk_bytes.clone(),
        last_busy: now,
        stop,
        tasks,
    };
    tracker.spawn(task.run());
    Ok(PeerControl {
        link: PeerLink {
            id,
            messages: message_sender,
            heard,
            urgent: urgent_sender,
            chunk_bytes,
        },
        links: link_sender,
    })
}

impl PeerTask {
    async fn run(mut self) {
        // Both are kept from one wait to the next: a busy link wakes up a hundred thousand times a second.
        let mut stopped = pin!(self.stop.clone().cancelled_owned());
        let mut alarm = Alarm::new();
        let farewell = loop {
            self.take_waiting_messages();
            self.look_after_bulk().await;
            self.transmit().await;
            match self.wait(stopped.as_mut(), &mut alarm).await {
                Woken::Stop => break Refused::new(RefusalCode::ShuttingDown, "it is shutting down"),
                Woken::Link(LinkInput::End(refused)) => break refused,
                Woken::Link(LinkInput::Attach(attachment)) => self.attach(*attachment).await,
                Woken::Link(LinkInput::Close(refused)) => self.close_link(&refused).await,
                Woken::Message(message) => self.take_message(message),
                Woken::Driven(Ok(Driven::Read)) => {
                    self.take_frames().await;
                    // A busy link has always something to read, and its time-outs would wait for a quiet moment.
                    if self.next_timeout().is_some_and(|next| clock::now() >= next) {
                        self.handle_timeout().await;
                    }
                }
                Woken::Driven(Ok(Driven::Flushed)) | Woken::EventTaken => {}
                Woken::Driven(Ok(Driven::Closed)) => {
                    self.lose_link("the other side closed the connection", None).await;
                }
                Woken::Driven(Err(error)) => self.lose_link(&error.to_string(), None).await,
                Woken::Time => self.handle_timeout().await,
            }
        };
        self.close_link(&farewell).await;
        self.end().await;
    }

    /// Gives everything that still waits its end.
    async fn end(&mut self) {
        let not_sent = || Ended::NotSent(LinkError::Stopped.to_string());
        for token in self.session.end() {
            token.settle(self.id, not_sent());
        }
        for queue in [&mut self.urgent, &mut self.messages] {
            queue.close();
            while let Some(message) = queue.recv().await {
                if let Some(expected) = message.expected {
                    expected.token.settle(self.id, not_sent());
                }
            }
        }
        self.pass_events().await;
        for event in self.backlog.drain(..) {
            if self.events.try_send(event).is_err() {
                tracing::debug!(peer = %self.id.short(), "the application has not taken the last events");
                break;
            }
        }
    }

    async fn wait(&mut self, stopped: Pin<&mut WaitForCancellationFutureOwned>, alarm: &mut Alarm) -> Woken {
        let takes_message = self.takes_message();
        let takes_urgent = self.session.has_room(Lane::Emergency);
        let reads = self.backlog.is_empty();
        alarm.set(self.next_timeout());
        let conn = self.linked.as_mut().map(|linked| &mut linked.conn);
        tokio::select! {
            biased;
            () = stopped => Woken::Stop,
            // The endpoint holds the senders for as long as the session is to live, and says when it ends.
            Some(link) = self.links.recv() => Woken::Link(link),
            Some(message) = self.urgent.recv(), if takes_urgent => Woken::Message(message),
            permit = self.events.reserve(), if !reads => {
                if let (Ok(permit), Some(event)) = (permit, self.backlog.pop_front()) {
                    permit.send(event);
                }
                Woken::EventTaken
            }
            driven = drive(conn, reads) => Woken::Driven(driven),
            Some(message) = self.messages.recv(), if takes_message => Woken::Message(message),
            () = alarm.ring() => Woken::Time,
        }
    }

    /// A full session takes no more: its input fills up, and whoever sends waits or is told that it is busy.
    fn takes_message(&self) -> bool {
        self.session.has_room(match self.channel {
            Channel::Control | Channel::Join => Lane::Control,
            Channel::Bulk => Lane::Bulk,
        })
    }

    fn next_timeout(&self) -> Option<Instant> {
        let bulk = match (self.channel, self.linked.is_some(), self.session.is_idle()) {
            // While the application takes no events, nothing is done about the connection.
            (Channel::Bulk, _, _) if !self.backlog.is_empty() => None,
            (Channel::Bulk, true, true) => Some(self.last_busy + BULK_IDLE),
            (Channel::Bulk, false, false) => Some(self.last_busy + BULK_WANT_INTERVAL),
            (Channel::Bulk, true, false)
            | (Channel::Bulk, false, true)
            | (Channel::Control | Channel::Join, _, _) => None,
        };
        [self.session.poll_timeout(), bulk].into_iter().flatten().min()
    }

    fn take_waiting_messages(&mut self) {
        while self.session.has_room(Lane::Emergency)
            && let Ok(message) = self.urgent.try_recv()
        {
            self.take_message(message);
        }
        for _ in 0..MESSAGES_A_TURN {
            if !self.takes_message() {
                return;
            }
            let Ok(message) = self.messages.try_recv() else {
                return;
            };
            self.take_message(message);
        }
    }

    fn take_message(&mut self, message: Message) {
        let Message { outgoing, expected } = message;
        let back = expected.as_ref().map(|expected| expected.token.clone());
        if let Err(error) = self.session.send(outgoing, expected) {
            match back {
                Some(token) => token.settle(self.id, Ended::NotSent(error.to_string())),
                None => tracing::warn!(peer = %self.id.short(), %error, "message not queued"),
            }
        }
    }

    async fn transmit(&mut self) {
        let now = clock::now();
        if let Some(linked) = &mut self.linked {
            let before = linked.conn.out.len();
            if let Err(error) = self.session.transmit(&mut linked.conn.out, OUT_BYTES_ROOM, now) {
                tracing::error!(peer = %self.id.short(), %error, "a frame of ours does not encode");
            }
            if linked.conn.out.len() > before && !self.session.is_idle() {
                self.last_busy = now;
            }
        }
        // Requests may have expired in the queue.
        self.pass_events().await;
    }

    async fn look_after_bulk(&mut self) {
        if self.channel != Channel::Bulk || !self.backlog.is_empty() {
            return;
        }
        let now = clock::now();
        let idle = self.session.is_idle();
        if self.linked.is_some() && idle && now >= self.last_busy + BULK_IDLE {
            self.close_link(&Refused::new(RefusalCode::ShuttingDown, "no files to move"))
                .await;
        }
        if self.linked.is_none() && !idle && now >= self.last_busy + BULK_WANT_INTERVAL {
            self.last_busy = now;
            self.say(LinkWord::WantBulk { id: self.id }).await;
        }
    }

    async fn attach(&mut self, attachment: Attachment) {
        self.close_link(&Refused::new(
            RefusalCode::Duplicate,
            "another link takes the place of this one",
        ))
        .await;
        let Attachment { conn, info, number } = attachment;
        let now = clock::now();
        self.session.attach(info.instance, now);
        self.last_busy = now;
        self.linked = Some(Linked {
            conn,
            info,
            number,
            told: false,
        });
        // What came behind the hello is in the connection's buffer already.
        self.take_frames().await;
    }

    async fn take_frames(&mut self) {
        let now = clock::now();
        self.heard.note(now);
        self.session.heard(now);
        while let Some(linked) = &mut self.linked {
            match linked.conn.next_frame() {
                Ok(Some(frame)) => {
                    if self.channel == Channel::Bulk && frame.header.seq.is_some() {
                        self.last_busy = now;
                    }
                    match self.session.handle_frame(frame, now) {
                        Ok(()) => {}
                        Err(LinkFault::Refused(refused)) => {
                            let why = if refused.code == RefusalCode::ShuttingDown {
                                refused.reason.clone()
                            } else {
                                format!("refused by the peer: {refused}")
                            };
                            self.lose_link(&why, Some(refused)).await;
                        }
                        Err(fault) => self.lose_link(&fault.to_string(), None).await,
                    }
                }
                Ok(None) => break,
                Err(error) => self.lose_link(&error.to_string(), None).await,
            }
        }
        self.chunk_bytes.set(self.session.chunk_bytes());
        self.pass_events().await;
    }

    async fn handle_timeout(&mut self) {
        let now = clock::now();
        if !self.backlog.is_empty() {
            // We were not reading, so we could not have heard it.
            self.session.excuse_silence(now);
        }
        if let Err(fault) = self.session.handle_timeout(now) {
            self.lose_link(&fault.to_string(), None).await;
        }
        self.pass_events().await;
    }

    /// Hands on what has happened in the session.
    async fn pass_events(&mut self) {
        let mut events = std::mem::take(&mut self.happened);
        events.extend(self.session.take_events());
        for event in events.drain(..) {
            match event {
                SessionEvent::Settled(token, how) => token.settle(self.id, ended(how)),
                SessionEvent::Silent => self.tell(PeerEvent::Silent(self.id)),
                SessionEvent::Heard => self.tell(PeerEvent::Heard(self.id)),
                SessionEvent::Opened { resumed } => {
                    let Some(linked) = &mut self.linked else { continue };
                    linked.told = true;
                    let peer = Arc::clone(&linked.info);
                    self.tell(PeerEvent::Up { peer, resumed });
                    self.say(LinkWord::Opened {
                        id: self.id,
                        channel: self.channel,
                    })
                    .await;
                }
                SessionEvent::Frame { frame, deadline } => self.pass_frame(frame, deadline).await,
            }
        }
        if events.capacity() <= HAPPENED_KEPT {
            self.happened = events;
        }
    }

    async fn pass_frame(&mut self, frame: Box<Frame>, deadline: Option<Instant>) {
        let Some(linked) = &self.linked else { return };
        let peer = Arc::clone(&linked.info);
        if let Err(refused) = gate(peer.role, &frame) {
            self.refuse_frame(&frame, &refused);
        } else if frame.header.kind == Some(Kind::Stop) {
            let stop = StopHeard {
                peer: peer.id,
                order: frame.content,
            };
            if self.stops.try_send(stop).is_err() {
                // It is sent every second until it is answered.
                tracing::warn!(peer = %peer.name, "a stop over its link waits for its repeat: too many at once");
            }
        } else if let Some(Kind::Roster | Kind::FleetState | Kind::OpenBulk) = frame.header.kind {
            self.say(LinkWord::Frame { peer, frame }).await;
        } else {
            self.tell(PeerEvent::Frame {
                peer,
                channel: self.channel,
                frame,
                deadline,
            });
        }
    }

    fn tell(&mut self, event: PeerEvent) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(event);
        } else if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.backlog.push_back(event);
        }
    }

    async fn say(&mut self, word: LinkWord) {
        // Fails only while everything is being shut down.
        let _stopping = self.words.send(word).await;
    }

    fn refuse_frame(&mut self, frame: &Frame, refused: &Refused) {
        tracing::warn!(peer = %self.id.short(), kind = ?frame.header.kind, %refused, "refused a frame");
        if frame.header.kind != Some(Kind::Command) {
            return;
        }
        let reply = Reply::refused(refused.reason.clone()).to_frame(&frame.header);
        match Parcel::new(&reply) {
            Ok(parcel) => {
                let outgoing = Outgoing {
                    parcel,
                    lane: Lane::Control,
                    deadline: None,
                };
                self.take_message(Message {
                    outgoing,
                    expected: None,
                });
            }
            Err(error) => tracing::error!(%error, "a refusal does not encode"),
        }
    }

    /// The connection is gone or useless; the session waits for the next one.
    async fn lose_link(&mut self, why: &str, refused: Option<Refused>) {
        self.session.detach();
        // What came before the end still counts.
        self.pass_events().await;
        if let Some(linked) = self.linked.take() {
            self.report_loss(&linked.info, linked.number, linked.told, why, refused)
                .await;
        }
    }

    /// Tells the peer why its link closes, and closes it.
    async fn close_link(&mut self, refused: &Refused) {
        self.session.detach();
        self.pass_events().await;
        let Some(Linked {
            mut conn,
            info,
            number,
            told,
        }) = self.linked.take()
        else {
            return;
        };
        if let Err(error) = conn.put(&Frame::json(Kind::Refused, refused)) {
            tracing::error!(%error, "a refusal does not encode");
        }
        self.tasks.spawn(async move {
            if timeout(CLOSE_GRACE, conn.close()).await.is_err() {
                tracing::debug!("a link would not close in good order");
            }
        });
        self.report_loss(&info, number, told, &refused.reason, None).await;
    }

    async fn report_loss(
        &mut self,
        info: &PeerInfo,
        number: u64,
        told: bool,
        why: &str,
        refused: Option<Refused>,
    ) {
        tracing::debug!(peer = %info.name, channel = ?self.channel, why, "link closed");
        if told {
            self.tell(PeerEvent::Down {
                id: self.id,
                why: why.to_owned(),
            });
        }
        let (id, channel, addr) = (self.id, self.channel, info.addr);
        self.say(LinkWord::Closed {
            id,
            channel,
            number,
            addr,
            refused,
        })
        .await;
    }
}

/// Whether a peer with this role may have what the frame asks for.
fn gate(role: Role, frame: &Frame) -> Result<(), Refused> {
    let Some(kind) = frame.header.kind else {
        return Err(Refused::new(
            RefusalCode::Protocol,
            "a frame without a kind on a link of ours",
        ));
    };
    if kind != Kind::Command {
        return permit(role, &Wish::Frame(kind));
    }
    let action = frame.header.action.as_deref().unwrap_or_default();
    // Most commands need no look at their arguments. What cannot be read asks for the most.
    let arguments: Arguments = match action {
        "id" | "config" => match frame.read() {
            Ok(arguments) => arguments,
            Err(_unreadable) => return permit(role, &Wish::Frame(Kind::Command)),
        },
        _ => Arguments::default(),
    };
    permit(role, &Wish::Command(classify(action, &arguments)))
}

async fn drive(conn: Option<&mut Conn>, read: bool) -> std::io::Result<Driven> {
    match conn {
        Some(conn) => conn.drive(read).await,
        None => std::future::pending().await,
    }
}

fn ended(how: Settled) -> Ended {
    match how {
        Settled::Reply(content) => Ended::Reply(content),
        Settled::Expired => Ended::Expired,
        Settled::Lost => Ended::Lost,
        Settled::TimedOut => Ended::TimedOut,
    }
}
