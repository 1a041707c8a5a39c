//! The task of one session.
//!
//! Inputs: messages to send, connections to attach or to close, bytes, time. Outputs: events for the application and for
//! the endpoint. While an event channel is full, nothing more is read from the peer. While the session's outbox is full,
//! no more messages are accepted, so that senders get `busy` at once.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::event_queue::{EventQueue, Route};
use super::permission::check_permission;
use super::timer::Timer;
use super::{
    Attachment, ChunkBytes, LastHeard, LinkCommand, LinkError, LinkEvent, PeerEvent, PeerInfo, PeerLink,
    RequestResult, RequestToken, SessionHandle, SessionMessage, StopReceived,
};
use crate::net::clock;
use crate::net::conn::{Conn, IoProgress};
use crate::proto::id::{Instance, PeerId};
use crate::proto::message::{Channel, RefusalCode, Refused};
use crate::proto::outcome::Reply;
use crate::proto::session::outbox::OutboxLimits;
use crate::proto::session::path_check::PathVerdict;
use crate::proto::session::{Event as SessionEvent, LinkFault, Outgoing, Session, Timing};
use crate::proto::wire::encoded::EncodedFrame;
use crate::proto::wire::{Frame, Kind, Lane, WireError};

/// Messages that wait in front of a control session, beyond its outbox.
const CONTROL_INPUT_MESSAGES: usize = 256;
/// Chunks that wait in front of a bulk session, beyond its outbox.
const BULK_INPUT_MESSAGES: usize = 4;
/// Emergency messages that wait in front of a session.
const EMERGENCY_INPUT_MESSAGES: usize = 64;
/// Connections and commands that wait for one session.
const COMMANDS_MAX: usize = 8;
/// Messages accepted in one go before the connection gets its turn.
const MESSAGES_PER_TURN: usize = 256;
/// Bytes that wait for the socket before the session is asked for no more.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Room for events that a quiet session keeps.
const EVENT_BUFFER_KEPT: usize = 16;
/// How long a closing link may take to send its reason.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// A bulk connection on which nothing was to be sent or read for this long is closed.
const BULK_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a bulk session that has something to send asks for a connection.
const BULK_REQUEST_INTERVAL: Duration = Duration::from_millis(500);

struct ActiveLink {
    conn: Conn,
    info: Arc<PeerInfo>,
    link_number: u64,
    /// Whether `Connected` has been sent for it.
    announced: bool,
}

/// What [`spawn`] needs.
pub(crate) struct TaskParts {
    pub(crate) id: PeerId,
    pub(crate) channel: Channel,
    /// This run of our process.
    pub(crate) instance: Instance,
    pub(crate) timing: Timing,
    /// For the application.
    pub(crate) events: mpsc::Sender<PeerEvent>,
    /// For the application's delivery task; see [`Endpoint::start_routed`](crate::net::endpoint::Endpoint::start_routed).
    pub(crate) deliveries: Option<mpsc::Sender<PeerEvent>>,
    /// For the application, ahead of everything that is queued in `events`.
    pub(crate) stops: mpsc::Sender<StopReceived>,
    /// For the endpoint.
    pub(crate) link_events: mpsc::Sender<LinkEvent>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

struct PeerTask {
    id: PeerId,
    /// The handle of this session, which every `Connected` carries.
    handle: PeerLink,
    channel: Channel,
    session: Session<RequestToken>,
    link: Option<ActiveLink>,
    messages: mpsc::Receiver<SessionMessage>,
    emergency: mpsc::Receiver<SessionMessage>,
    commands: mpsc::Receiver<LinkCommand>,
    /// Nothing is read from the peer while an event waits here.
    events: EventQueue,
    stops: mpsc::Sender<StopReceived>,
    link_events: mpsc::Sender<LinkEvent>,
    /// Empty between calls; kept to save an allocation for each frame.
    event_buffer: Vec<SessionEvent<RequestToken>>,
    last_heard: Arc<LastHeard>,
    chunk_bytes: ChunkBytes,
    /// When a bulk session last had anything to do, or asked for a connection.
    last_active: Instant,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What woke the task.
enum Wakeup {
    Shutdown,
    Command(LinkCommand),
    Message(SessionMessage),
    Io(std::io::Result<IoProgress>),
    EventDelivered,
    Timeout,
}

/// Starts the task of one session.
pub(crate) fn spawn(parts: TaskParts) -> Result<SessionHandle, WireError> {
    let TaskParts {
        id,
        channel,
        instance,
        timing,
        events,
        deliveries,
        stops,
        link_events,
        shutdown,
        tasks,
    } = parts;
    let (limits, depth) = match channel {
        Channel::Control | Channel::Join => (OutboxLimits::CONTROL, CONTROL_INPUT_MESSAGES),
        Channel::Bulk => (OutboxLimits::BULK, BULK_INPUT_MESSAGES),
    };
    let now = clock::now();
    let timing = match channel {
        // Commands and replies follow one another: the next frame carries the acknowledgement, or the heartbeat.
        Channel::Control | Channel::Join => timing.acknowledged_by_heartbeats(),
        Channel::Bulk => timing,
    };
    let session = Session::new(instance, timing, limits, now)?;
    let (message_sender, messages) = mpsc::channel(depth);
    let (emergency_sender, emergency) = mpsc::channel(EMERGENCY_INPUT_MESSAGES);
    let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
    let tracker = tasks.clone();
    let last_heard = LastHeard::new(now);
    let chunk_bytes = ChunkBytes::new(session.chunk_bytes());
    let link = PeerLink {
        id,
        messages: message_sender,
        last_heard: Arc::clone(&last_heard),
        emergency: emergency_sender,
        chunk_bytes: chunk_bytes.clone(),
    };
    let task = PeerTask {
        id,
        handle: link.clone(),
        channel,
        session,
        link: None,
        messages,
        emergency,
        commands,
        events: EventQueue::new(events, deliveries),
        stops,
        link_events,
        event_buffer: Vec::new(),
        last_heard,
        chunk_bytes,
        last_active: now,
        shutdown,
        tasks,
    };
    tracker.spawn(task.run());
    Ok(SessionHandle {
        link,
        commands: command_sender,
    })
}

impl PeerTask {
    async fn run(mut self) {
        // Both are kept across wake-ups: a busy link has a hundred thousand of them a second.
        let mut shutdown = pin!(self.shutdown.clone().cancelled_owned());
        let mut timer = Timer::new();
        let close_reason = loop {
            self.queue_waiting_messages();
            self.manage_bulk_link().await;
            self.transmit().await;
            match self.next_wakeup(shutdown.as_mut(), &mut timer).await {
                Wakeup::Shutdown => break Refused::new(RefusalCode::ShuttingDown, "it is shutting down"),
                Wakeup::Command(LinkCommand::EndSession(refused)) => break refused,
                Wakeup::Command(LinkCommand::Attach(attachment)) => self.attach(*attachment).await,
                Wakeup::Command(LinkCommand::Close(refused)) => self.close_link(&refused).await,
                Wakeup::Message(message) => self.queue_message(message),
                Wakeup::Io(Ok(IoProgress::Received)) => {
                    self.receive_frames().await;
                    // A busy link always has something to read, which must not starve its time-outs.
                    if self.next_timeout().is_some_and(|next| clock::now() >= next) {
                        self.handle_timeout().await;
                    }
                }
                Wakeup::Io(Ok(IoProgress::Flushed)) | Wakeup::EventDelivered => {}
                Wakeup::Io(Ok(IoProgress::Closed)) => {
                    self.on_link_lost("the other side closed the connection", None)
                        .await;
                }
                Wakeup::Io(Err(error)) => self.on_link_lost(&error.to_string(), None).await,
                Wakeup::Timeout => self.handle_timeout().await,
            }
        };
        self.close_link(&close_reason).await;
        self.end_session().await;
    }

    /// Ends every request that is still open.
    async fn end_session(&mut self) {
        let not_sent = || RequestResult::NotSent(LinkError::Closed.to_string());
        for token in self.session.end() {
            token.resolve(self.id, not_sent());
        }
        for queue in [&mut self.emergency, &mut self.messages] {
            queue.close();
            while let Some(message) = queue.recv().await {
                if let Some(expected) = message.expected {
                    expected.token.resolve(self.id, not_sent());
                }
            }
        }
        self.forward_events().await;
        if !self.events.try_deliver_all() {
            tracing::debug!(peer = %self.id.short(), "Last events dropped: the application does not take them");
        }
    }

    async fn next_wakeup(
        &mut self,
        shutdown: Pin<&mut WaitForCancellationFutureOwned>,
        timer: &mut Timer,
    ) -> Wakeup {
        let can_queue = self.can_queue_message();
        let can_queue_emergency = self.session.has_room(Lane::Emergency);
        let can_read = self.events.is_empty();
        timer.set(self.next_timeout());
        let conn = self.link.as_mut().map(|linked| &mut linked.conn);
        tokio::select! {
            biased;
            () = shutdown => Wakeup::Shutdown,
            // The endpoint holds the senders while the session lives, and ends it by a command.
            Some(link) = self.commands.recv() => Wakeup::Command(link),
            Some(message) = self.emergency.recv(), if can_queue_emergency => Wakeup::Message(message),
            () = self.events.deliver_first(), if !can_read => Wakeup::EventDelivered,
            driven = drive(conn, can_read) => Wakeup::Io(driven),
            Some(message) = self.messages.recv(), if can_queue => Wakeup::Message(message),
            () = timer.wait() => Wakeup::Timeout,
        }
    }

    /// While the outbox is full the input fills up, and senders wait or get `busy`.
    fn can_queue_message(&self) -> bool {
        self.session.has_room(match self.channel {
            Channel::Control | Channel::Join => Lane::Control,
            Channel::Bulk => Lane::Bulk,
        })
    }

    fn next_timeout(&self) -> Option<Instant> {
        let bulk = match (self.channel, self.link.is_some(), self.session.is_idle()) {
            // While events are pending, the connection is left as it is.
            (Channel::Bulk, _, _) if !self.events.is_empty() => None,
            (Channel::Bulk, true, true) => Some(self.last_active + BULK_IDLE_TIMEOUT),
            (Channel::Bulk, false, false) => Some(self.last_active + BULK_REQUEST_INTERVAL),
            (Channel::Bulk, true, false)
            | (Channel::Bulk, false, true)
            | (Channel::Control | Channel::Join, _, _) => None,
        };
        [self.session.poll_timeout(), bulk].into_iter().flatten().min()
    }

    fn queue_waiting_messages(&mut self) {
        while self.session.has_room(Lane::Emergency)
            && let Ok(message) = self.emergency.try_recv()
        {
            self.queue_message(message);
        }
        for _ in 0..MESSAGES_PER_TURN {
            if !self.can_queue_message() {
                return;
            }
            let Ok(message) = self.messages.try_recv() else {
                return;
            };
            self.queue_message(message);
        }
    }

    fn queue_message(&mut self, message: SessionMessage) {
        let SessionMessage { outgoing, expected } = message;
        let token = expected.as_ref().map(|expected| expected.token.clone());
        if let Err(error) = self.session.send(outgoing, expected) {
            match token {
                Some(token) => token.resolve(self.id, RequestResult::NotSent(error.to_string())),
                None => tracing::warn!(peer = %self.id.short(), %error, "Message not queued"),
            }
        }
    }

    async fn transmit(&mut self) {
        let now = clock::now();
        if let Some(linked) = &mut self.link {
            let before = linked.conn.output.len();
            if let Err(error) = self
                .session
                .transmit(&mut linked.conn.output, OUTPUT_BYTES_MAX, now)
            {
                tracing::error!(peer = %self.id.short(), %error, "Own frame not encodable");
            }
            if linked.conn.output.len() > before && !self.session.is_idle() {
                self.last_active = now;
            }
        }
        // Requests may have expired in the queue.
        self.forward_events().await;
    }

    async fn manage_bulk_link(&mut self) {
        if self.channel != Channel::Bulk || !self.events.is_empty() {
            return;
        }
        let now = clock::now();
        let idle = self.session.is_idle();
        if self.link.is_some() && idle && now >= self.last_active + BULK_IDLE_TIMEOUT {
            self.close_link(&Refused::new(RefusalCode::ShuttingDown, "no files to move"))
                .await;
        }
        if self.link.is_none() && !idle && now >= self.last_active + BULK_REQUEST_INTERVAL {
            self.last_active = now;
            self.notify_endpoint(LinkEvent::BulkWanted { id: self.id }).await;
        }
    }

    async fn attach(&mut self, attachment: Attachment) {
        self.close_link(&Refused::new(
            RefusalCode::Duplicate,
            "another link takes the place of this one",
        ))
        .await;
        let Attachment {
            conn,
            info,
            link_number,
        } = attachment;
        let now = clock::now();
        self.session.attach(info.instance, now);
        self.last_active = now;
        self.link = Some(ActiveLink {
            conn,
            info,
            link_number,
            announced: false,
        });
        // Frames behind the hello are in the connection's buffer already.
        self.receive_frames().await;
    }

    async fn receive_frames(&mut self) {
        let now = clock::now();
        self.last_heard.record(now);
        self.session.on_bytes_received(now);
        while let Some(linked) = &mut self.link {
            match linked.conn.next_frame() {
                Ok(Some(frame)) => {
                    if self.channel == Channel::Bulk && frame.header.seq.is_some() {
                        self.last_active = now;
                    }
                    match self.session.handle_frame(frame, now) {
                        Ok(()) => {}
                        Err(LinkFault::Refused(refused)) => {
                            let reason = if refused.code == RefusalCode::ShuttingDown {
                                refused.reason.clone()
                            } else {
                                format!("refused by the peer: {refused}")
                            };
                            self.on_link_lost(&reason, Some(refused)).await;
                        }
                        Err(fault) => self.on_link_lost(&fault.to_string(), None).await,
                    }
                }
                Ok(None) => break,
                Err(error) => self.on_link_lost(&error.to_string(), None).await,
            }
        }
        self.chunk_bytes.set(self.session.chunk_bytes());
        self.forward_events().await;
    }

    async fn handle_timeout(&mut self) {
        let now = clock::now();
        if !self.events.is_empty() {
            // Nothing was read meanwhile, so the silence is not the peer's.
            self.session.reset_silence_timer(now);
        }
        if let Err(fault) = self.session.handle_timeout(now) {
            self.on_link_lost(&fault.to_string(), None).await;
        }
        self.forward_events().await;
    }

    /// Forwards the session's events.
    async fn forward_events(&mut self) {
        let mut events = std::mem::take(&mut self.event_buffer);
        events.extend(self.session.take_events());
        for event in events.drain(..) {
            match event {
                SessionEvent::RequestEnded(token, how) => token.resolve(self.id, how.into()),
                SessionEvent::Silent => self.events.push(Route::Application, PeerEvent::Silent(self.id)),
                SessionEvent::Recovered => {
                    self.events
                        .push(Route::Application, PeerEvent::Responsive(self.id));
                }
                SessionEvent::Opened { resumed } => {
                    let Some(linked) = &mut self.link else { continue };
                    linked.announced = true;
                    self.events.push_to_all(|| PeerEvent::Connected {
                        peer: Arc::clone(&linked.info),
                        link: self.handle.clone(),
                        resumed,
                    });
                    self.notify_endpoint(LinkEvent::Opened {
                        id: self.id,
                        channel: self.channel,
                    })
                    .await;
                }
                SessionEvent::Frame { frame, deadline } => self.forward_frame(frame, deadline).await,
            }
        }
        if events.capacity() <= EVENT_BUFFER_KEPT {
            self.event_buffer = events;
        }
    }

    async fn forward_frame(&mut self, frame: Box<Frame>, deadline: Option<Instant>) {
        let Some(linked) = &self.link else { return };
        let peer = Arc::clone(&linked.info);
        let class = match check_permission(peer.role, &frame) {
            Ok(class) => class,
            Err(refused) => return self.refuse_frame(&frame, &refused),
        };
        if frame.header.kind == Some(Kind::Stop) {
            let stop = StopReceived {
                peer: peer.id,
                order: frame.content,
            };
            if self.stops.try_send(stop).is_err() {
                // The station repeats it every second until it is acknowledged.
                tracing::warn!(peer = %peer.name, "Stop dropped until its repeat: too many at once");
            }
        } else if let Some(Kind::Roster | Kind::FleetState | Kind::OpenBulk) = frame.header.kind {
            self.notify_endpoint(LinkEvent::Frame { peer, frame }).await;
        } else {
            let route = Route::of_kind(frame.header.kind);
            let event = PeerEvent::Frame {
                peer,
                channel: self.channel,
                frame,
                class,
                deadline,
            };
            self.events.push(route, event);
        }
    }

    async fn notify_endpoint(&mut self, event: LinkEvent) {
        // Fails only during shutdown.
        self.link_events.send(event).await.ok();
    }

    fn refuse_frame(&mut self, frame: &Frame, refused: &Refused) {
        tracing::warn!(peer = %self.id.short(), kind = ?frame.header.kind, %refused, "Frame refused");
        if frame.header.kind != Some(Kind::Command) {
            return;
        }
        let reply = Reply::refused(refused.reason.clone()).to_frame(&frame.header);
        match EncodedFrame::new(&reply) {
            Ok(frame) => {
                let outgoing = Outgoing {
                    frame,
                    lane: Lane::Control,
                    deadline: None,
                };
                self.queue_message(SessionMessage {
                    outgoing,
                    expected: None,
                });
            }
            Err(error) => tracing::error!(%error, "Own frame not encodable"),
        }
    }

    /// The connection is closed or unusable; the session waits for the next one.
    async fn on_link_lost(&mut self, reason: &str, refused: Option<Refused>) {
        self.session.detach();
        // Frames from before the end still count.
        self.forward_events().await;
        if let Some(linked) = self.link.take() {
            let path = match &refused {
                Some(_) => PathVerdict::Fine,
                None => self.session.judge_path(linked.announced, clock::now()),
            };
            let ActiveLink {
                info,
                link_number,
                announced,
                ..
            } = linked;
            self.notify_link_closed(&info, link_number, announced, reason, (refused, path))
                .await;
        }
    }

    /// Sends the peer the reason, and closes its link.
    async fn close_link(&mut self, refused: &Refused) {
        self.session.detach();
        self.forward_events().await;
        let Some(ActiveLink {
            mut conn,
            info,
            link_number,
            announced,
        }) = self.link.take()
        else {
            return;
        };
        if let Err(error) = conn.queue_frame(&Frame::json(Kind::Refused, refused)) {
            tracing::error!(%error, "Own frame not encodable");
        }
        self.tasks.spawn(async move {
            if timeout(CLOSE_GRACE, conn.close()).await.is_err() {
                tracing::debug!("Link not closed in time");
            }
        });
        let end = (None, PathVerdict::Fine);
        self.notify_link_closed(&info, link_number, announced, &refused.reason, end)
            .await;
    }

    async fn notify_link_closed(
        &mut self,
        info: &PeerInfo,
        link_number: u64,
        announced: bool,
        reason: &str,
        (refused, path): (Option<Refused>, PathVerdict),
    ) {
        tracing::debug!(peer = %info.name, channel = ?self.channel, reason, "Link closed");
        if announced {
            self.events.push_to_all(|| PeerEvent::Disconnected {
                id: self.id,
                reason: reason.to_owned(),
            });
        }
        let (id, channel, addr) = (self.id, self.channel, info.addr);
        self.notify_endpoint(LinkEvent::Closed {
            id,
            channel,
            link_number,
            addr,
            refused,
            path,
        })
        .await;
    }
}

async fn drive(conn: Option<&mut Conn>, read: bool) -> std::io::Result<IoProgress> {
    match conn {
        Some(conn) => conn.drive(read).await,
        None => std::future::pending().await,
    }
}
