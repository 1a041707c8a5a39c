//! What two peers share across links: numbering, acknowledgement, resume, heartbeat, pending requests.
//!
//! ```text
//!            attach                    welcome received
//! Detached ──────────▶ Greeting ──────────────────────▶ Open
//!    ▲                    │ Timing::lost_after             │ Timing::lost_after of silence,
//!    └────────────────────┴────────────────────────────────┘ detach, or an error
//! ```
//!
//! Each side sends a welcome as the first frame of a link: which run of which process it is, and the last number it
//! has read from the other. The other forgets what was read and sends the rest again, in order. So nothing is lost
//! and nothing comes twice while both processes live. When the peer has restarted, what was sent and not
//! acknowledged is settled as [`Settled::Lost`]: nobody knows whether the old process did it.
//!
//! A session never asks for the time: every call that may need it brings it.

use std::time::{Duration, Instant};

use super::id::Instance;
use super::json::JsonError;
use super::message::{Refused, Welcome};
use super::outbox::{Busy, Item, Outbox, OutboxLimits, TELLING_BYTES_MIN};
use super::parcel::{OutBuffer, Parcel, Trailer};
use super::pending::{Pending, PendingError};
use super::wire::{Frame, Header, Kind, Lane, WireError};

mod stamps;

use stamps::{Stamps, millis_up};

/// The session's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A peer that has sent nothing for this long sends a heartbeat.
    pub heartbeat: Duration,
    /// A peer that was not heard for this long is called silent.
    pub silent_after: Duration,
    /// A peer that was not heard for this long is offline, and its link closes.
    pub lost_after: Duration,
    /// How long an acknowledgement may wait for a frame that carries it.
    pub ack_delay: Duration,
    /// How soon after another one a large frame is acknowledged: its sender learns from it how full the link is.
    pub ack_interval: Duration,
}

impl Timing {
    /// Silent after two heartbeats, lost after three.
    pub const fn from_heartbeat(heartbeat: Duration) -> Self {
        Self {
            heartbeat,
            silent_after: heartbeat.saturating_mul(2),
            lost_after: heartbeat.saturating_mul(3),
            ack_delay: Duration::from_millis(25),
            ack_interval: Duration::from_millis(2),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::from_heartbeat(Duration::from_secs(1))
    }
}

/// Most runs of the peer that are remembered to have been forgotten.
const FORGOTTEN_MAX: usize = 8;
/// After this many numbered frames an acknowledgement waits no longer.
const ACK_FRAMES_MAX: u64 = 256;
/// After this many bytes of content an acknowledgement waits no longer: a quarter of the bulk window.
const ACK_BYTES_MAX: usize = OutboxLimits::BULK.window_bytes_max / 4;

/// A request's end, or what the application has to know; see [`Session::handle_frame`].
#[derive(Debug)]
pub enum Event<T> {
    /// Both welcomes are through: frames flow.
    Opened {
        /// Whether the peer is the same process as when frames flowed last: a link to another one in between that
        /// never opened counts.
        resumed: bool,
    },
    /// A frame for the application: each once, in order within its lane.
    Frame {
        /// The frame.
        frame: Box<Frame>,
        /// When it is too late to act on it: never later than its sender meant, however long it was on its way.
        deadline: Option<Instant>,
    },
    /// A request that waited has ended.
    Settled(T, Settled),
    /// Nothing was heard for [`Timing::silent_after`].
    Silent,
    /// The silent peer was heard again.
    Heard,
}

/// How a request ended.
#[derive(Debug)]
pub enum Settled {
    /// The content of its reply.
    Reply(bytes::Bytes),
    /// It was too late to send it.
    Expired,
    /// It was sent, and the peer restarted: it may or may not have run.
    Lost,
    /// No reply came in time.
    TimedOut,
}

/// Why a link has to close. The session survives it and resumes on the next one.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// The peer refused us.
    #[error("refused: {0}")]
    Refused(Refused),
    /// A frame that should be JSON of ours is not.
    #[error("unreadable {kind:?} frame: {why}")]
    Unreadable {
        /// Which frame.
        kind: Kind,
        /// What is wrong with it.
        why: JsonError,
    },
    /// A frame came before the peer's welcome, or a second welcome.
    #[error("{0:?} frame out of place")]
    OutOfPlace(Option<Kind>),
    /// A number is missing: the link has lost a frame.
    #[error("frame {got} came where {expected} was due")]
    Gap {
        /// The number of the frame.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// An acknowledgement of something never sent.
    #[error("acknowledges frame {ack}, but only {sent} were sent")]
    AckAhead {
        /// What is acknowledged.
        ack: u64,
        /// What was sent.
        sent: u64,
    },
    /// The peer's process is not the one that said hello.
    #[error("the welcome is of another process than the hello")]
    OtherInstance,
    /// Nothing was heard for too long.
    #[error("not heard for {} ms", .0.as_millis())]
    Silence(Duration),
}

/// A message that was not taken. Nothing was queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The lane is full.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The request cannot wait for its reply.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// The header is too long.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The frame, ready to send.
    pub parcel: Parcel,
    /// Its lane.
    pub lane: Lane,
    /// When it is too late to send it; also the time to live that the peer is told.
    pub deadline: Option<Instant>,
}

/// The reply that a request waits for.
#[derive(Debug)]
pub struct Expected<T> {
    /// The number of the request, in its header as [`Header::id`].
    pub id: u64,
    /// When to stop waiting.
    pub until: Instant,
    /// Handed back with the end.
    pub token: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Detached,
    /// Our welcome is sent or about to be; the peer's is awaited.
    Greeting,
    Open,
}

/// See the module. `T` is what the application wants back when a request ends.
#[derive(Debug)]
pub struct Session<T> {
    timing: Timing,
    instance: Instance,
    state: State,
    /// The run of the peer's process that `received` and the unacknowledged frames belong to.
    peer: Option<Instance>,
    /// Whether frames have flowed with that run: only then does the application know of it.
    acquainted: bool,
    /// Runs that were forgotten for another one, and may still remember us: two processes with one key. To each is said
    /// that nothing is known of it, until it is heard to have understood.
    forgotten: Vec<Instance>,
    outbox: Outbox,
    pending: Pending<T>,
    /// The last number read from the peer.
    received: u64,
    unacked_frames: u64,
    unacked_bytes: usize,
    ack_due: Option<Instant>,
    last_ack: Instant,
    welcome_due: bool,
    last_heard: Instant,
    last_sent: Instant,
    silent: bool,
    stamps: Stamps,
    heartbeat: Parcel,
    ack: Parcel,
    events: Vec<Event<T>>,
}

impl<T> Session<T> {
    /// A session without a link. `instance` is this run of our process; a session that is made anew for the same
    /// peer needs a new one, because the peer resumes by it.
    ///
    /// # Errors
    /// Never in practice: [`WireError`] if the constant frames did not encode.
    pub fn new(
        instance: Instance,
        timing: Timing,
        limits: OutboxLimits,
        now: Instant,
    ) -> Result<Self, WireError> {
        let empty = |kind| Parcel::new(&Frame::binary(kind, bytes::Bytes::new()));
        Ok(Self {
            timing,
            instance,
            state: State::Detached,
            peer: None,
            acquainted: false,
            forgotten: Vec::new(),
            outbox: Outbox::new(limits),
            pending: Pending::default(),
            received: 0,
            unacked_frames: 0,
            unacked_bytes: 0,
            ack_due: None,
            last_ack: now,
            welcome_due: false,
            last_heard: now,
            last_sent: now,
            silent: false,
            stamps: Stamps::new(now),
            heartbeat: empty(Kind::Heartbeat)?,
            ack: empty(Kind::Ack)?,
            events: Vec::new(),
        })
    }

    /// Whether frames flow.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// When the peer was last heard; the session's start before that.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Whether another message fits the lane now.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.outbox.has_room(lane)
    }

    /// How long a chunk of a file is best on this link now, in bytes.
    pub fn chunk_bytes(&self) -> usize {
        self.outbox.chunk_bytes()
    }

    /// Whether nothing waits to be sent, acknowledged or answered.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.outbox.acknowledged() == self.outbox.sent()
            && !self.outbox.has_queued()
            && self.ack_due.is_none()
    }

    /// A new link to the peer's process `peer` takes the place of the old one, if there was one. From here on
    /// nothing that the old link brings may be handed in.
    pub fn attach(&mut self, peer: Instance, now: Instant) {
        if let Some(known) = self.peer.filter(|known| *known != peer) {
            self.forget_peer();
            self.forgotten.retain(|run| *run != known);
            if self.forgotten.len() >= FORGOTTEN_MAX {
                self.forgotten.remove(0);
            }
            self.forgotten.push(known);
        }
        self.peer = Some(peer);
        self.state = State::Greeting;
        self.welcome_due = true;
        self.ack_due = None;
        self.unacked_frames = 0;
        self.unacked_bytes = 0;
        self.last_heard = now;
        self.last_sent = now;
        self.silent = false;
        self.stamps.forget();
    }

    /// The link is gone. What waits, waits for the next one.
    pub fn detach(&mut self) {
        self.state = State::Detached;
        self.welcome_due = false;
        self.ack_due = None;
    }

    /// The session is over, and its link gone. Requests that were sent end as [`Settled::Lost`]; the others are handed
    /// back.
    pub fn end(&mut self) -> Vec<T> {
        self.detach();
        let queued = self.outbox.queued_requests();
        let mut unsent = Vec::new();
        for id in self.pending.ids() {
            if !queued.contains(&id) {
                self.settle(id, Settled::Lost);
            } else if let Some(token) = self.pending.remove(id) {
                unsent.push(token);
            }
        }
        unsent
    }

    /// Queues a message, and waits for its reply if one is expected. It is sent when a link is open.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued, and the token is dropped.
    pub fn send(&mut self, message: Outgoing, expected: Option<Expected<T>>) -> Result<(), SendError> {
        if let Some(expected) = &expected {
            self.pending.check(expected.id)?;
        }
        let request = expected.as_ref().map(|expected| expected.id);
        let epoch = message.parcel.epoch();
        let Outgoing {
            parcel,
            lane,
            deadline,
        } = message;
        self.outbox.push(Item {
            parcel,
            lane,
            deadline,
            request,
        })?;
        if let Some(Expected { id, until, token }) = expected {
            self.pending.insert(id, epoch, until, token);
        }
        Ok(())
    }

    /// Writes what is to be sent now, until `room` bytes wait in `to`.
    ///
    /// # Errors
    /// Never in practice: [`WireError`] if the welcome did not encode.
    pub fn transmit(&mut self, to: &mut OutBuffer, room: usize, now: Instant) -> Result<(), WireError> {
        let before = to.len();
        let stamp = Some(self.stamps.stamp(now));
        if self.welcome_due
            && let Some(peer) = self.peer
        {
            // Of a forgotten run another one is named: then neither side resumes.
            let peer_instance = if self.forgotten.contains(&peer) {
                Instance(!peer.0)
            } else {
                peer
            };
            let welcome = Welcome {
                instance: self.instance,
                peer_instance,
                received: self.resume_point(),
            };
            to.put(
                &Parcel::new(&Frame::json(Kind::Welcome, &welcome))?,
                Trailer {
                    stamp,
                    ..Trailer::default()
                },
            );
            self.welcome_due = false;
        }
        if self.state == State::Open {
            for item in self.outbox.expire(now) {
                self.settle_item(&item, Settled::Expired);
            }
            // An acknowledgement never goes without our clock.
            let word = |received| Trailer {
                ack: Some(received),
                stamp,
                ..Trailer::default()
            };
            while to.len() < room {
                let word = self.ack_due.map(|_due| word(self.received));
                let Some((seq, item)) = self.outbox.next_to_send(now) else {
                    break;
                };
                // Rounded up, so that less than a millisecond is not told as none.
                let left = |deadline: Instant| millis_up(deadline.saturating_duration_since(now));
                let question = item.parcel.is_question().then_some(0);
                let ttl = question.or(item.deadline.map(left));
                let until = item.deadline.and_then(|deadline| self.stamps.until(deadline));
                to.put(
                    &item.parcel,
                    Trailer {
                        seq,
                        ttl,
                        until,
                        ..word.unwrap_or_default()
                    },
                );
                if word.is_some() {
                    self.forget_ack(now);
                }
            }
            if self.ack_due.is_some_and(|due| now >= due) {
                if to.len() < room {
                    to.put(&self.ack, word(self.received));
                    self.forget_ack(now);
                } else {
                    // Behind what waits it would come no sooner, and a peer that does not read would pile them up.
                    self.ack_due = Some(now + self.timing.ack_delay);
                }
            }
            if now >= self.last_sent + self.timing.heartbeat {
                // What still waits in the buffer is as good a sign of life.
                if to.is_empty() {
                    to.put(&self.heartbeat, word(self.received));
                }
                self.last_sent = now;
            }
        }
        if to.len() > before {
            self.last_sent = now;
        }
        Ok(())
    }

    /// The last number that was read from the peer.
    fn resume_point(&self) -> u64 {
        #[cfg(feature = "planted-bugs")]
        if super::planted::is(super::planted::Bug::ResumeOffByOne) {
            return self.received + u64::from(self.received > 0);
        }
        self.received
    }

    /// Takes a frame that the link brought. What follows from it is in [`Self::take_events`].
    ///
    /// # Errors
    /// [`LinkFault`]: the link has to close; the session is detached and resumes on the next link.
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) -> Result<(), LinkFault> {
        self.take_frame(frame, now).inspect_err(|_fault| self.detach())
    }

    /// Bytes of the peer have come: it lives, even if a large frame takes longer than [`Timing::lost_after`].
    /// [`Self::handle_frame`] says so itself; call this when a read did not complete a frame.
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        if self.silent {
            self.silent = false;
            self.events.push(Event::Heard);
        }
    }

    fn take_frame(&mut self, frame: Frame, now: Instant) -> Result<(), LinkFault> {
        self.heard(now);
        match (frame.header.kind, self.state) {
            (Some(kind @ Kind::Refused), _) => {
                let why = |why| LinkFault::Unreadable { kind, why };
                return Err(LinkFault::Refused(frame.read().map_err(why)?));
            }
            (Some(Kind::Welcome), State::Greeting) => return self.take_welcome(&frame, now),
            (Some(Kind::Hello | Kind::Welcome | Kind::Join | Kind::Joined), _)
            | (_, State::Detached | State::Greeting) => return Err(LinkFault::OutOfPlace(frame.header.kind)),
            (_, State::Open) => {}
        }
        // It is open, so it has read our welcome.
        self.forgotten.retain(|run| Some(*run) != self.peer);
        self.stamps.note(&frame.header, now);
        if let Some(ack) = frame.header.ack {
            let sent = self.outbox.sent();
            if !self.outbox.acknowledge(ack, now) {
                return Err(LinkFault::AckAhead { ack, sent });
            }
        }
        if let Some(seq) = frame.header.seq {
            if seq <= self.received {
                return Ok(());
            }
            if seq != self.received + 1 {
                return Err(LinkFault::Gap {
                    got: seq,
                    expected: self.received + 1,
                });
            }
            self.received = seq;
            self.owe_ack(frame.content.len(), now);
        }
        self.pass_on(frame, now);
        Ok(())
    }

    fn take_welcome(&mut self, frame: &Frame, now: Instant) -> Result<(), LinkFault> {
        let unreadable = |why| LinkFault::Unreadable {
            kind: Kind::Welcome,
            why,
        };
        let welcome: Welcome = frame.read().map_err(unreadable)?;
        if Some(welcome.instance) != self.peer {
            return Err(LinkFault::OtherInstance);
        }
        let remembered = !self.forgotten.contains(&welcome.instance)
            && welcome.peer_instance == self.instance
            && welcome.received >= self.outbox.acknowledged();
        if remembered {
            let (ack, sent) = (welcome.received, self.outbox.sent());
            if !self.outbox.acknowledge(ack, now) {
                return Err(LinkFault::AckAhead { ack, sent });
            }
            self.outbox.rewind();
        } else {
            self.forget_peer();
        }
        self.state = State::Open;
        self.stamps.note(&frame.header, now);
        let resumed = std::mem::replace(&mut self.acquainted, true);
        self.events.push(Event::Opened { resumed });
        Ok(())
    }

    /// The peer remembers nothing of us: numbering starts anew both ways.
    fn forget_peer(&mut self) {
        self.acquainted = false;
        self.received = 0;
        for item in self.outbox.reset() {
            self.settle_item(&item, Settled::Lost);
        }
        let queued = self.outbox.queued_requests();
        // Acknowledged, and not answered: the old process had it.
        for id in self.pending.ids() {
            if !queued.contains(&id) {
                self.settle(id, Settled::Lost);
            }
        }
    }

    fn owe_ack(&mut self, bytes: usize, now: Instant) {
        self.unacked_frames += 1;
        self.unacked_bytes += bytes;
        if self.unacked_frames >= ACK_FRAMES_MAX || self.unacked_bytes >= ACK_BYTES_MAX {
            self.ack_due = Some(now);
            return;
        }
        let due = if bytes >= TELLING_BYTES_MIN {
            now.max(self.last_ack + self.timing.ack_interval)
        } else {
            now + self.timing.ack_delay
        };
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// What was owed has been told.
    fn forget_ack(&mut self, now: Instant) {
        self.last_ack = now;
        self.ack_due = None;
        self.unacked_frames = 0;
        self.unacked_bytes = 0;
    }

    fn pass_on(&mut self, frame: Frame, now: Instant) {
        let Header { kind, id, epoch, .. } = frame.header;
        match (kind, id) {
            (Some(Kind::Heartbeat | Kind::Ack | Kind::Unknown), _) => {}
            (Some(Kind::Reply), Some(id)) if self.pending.awaits(id, epoch) => {
                self.settle(id, Settled::Reply(frame.content));
            }
            _ => {
                let deadline = self.stamps.deadline(&frame.header, now);
                let frame = Box::new(frame);
                self.events.push(Event::Frame { frame, deadline });
            }
        }
    }

    fn settle_item(&mut self, item: &Item, how: Settled) {
        if let Some(id) = item.request {
            self.settle(id, how);
        }
    }

    fn settle(&mut self, id: u64, how: Settled) {
        if let Some(token) = self.pending.remove(id) {
            self.events.push(Event::Settled(token, how));
        }
    }

    /// Takes out everything that has happened, oldest first.
    pub fn take_events(&mut self) -> std::vec::Drain<'_, Event<T>> {
        self.events.drain(..)
    }

    /// When [`Self::handle_timeout`] or [`Self::transmit`] has something to do, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lost = self.last_heard + self.timing.lost_after;
        let silent = self.last_heard + self.timing.silent_after;
        let alive = match self.state {
            State::Detached => None,
            State::Greeting => Some(lost),
            State::Open => {
                let beat = self.last_sent + self.timing.heartbeat;
                Some(beat.min(if self.silent { lost } else { silent }))
            }
        };
        let deadlines = [
            alive,
            self.ack_due,
            self.outbox.earliest_deadline(),
            self.pending.earliest(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Does what is due.
    ///
    /// # Errors
    /// [`LinkFault::Silence`]: the peer is offline; the session is detached.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkFault> {
        for item in self.outbox.expire(now) {
            self.settle_item(&item, Settled::Expired);
        }
        for id in self.pending.late(now) {
            self.settle(id, Settled::TimedOut);
        }
        if self.state == State::Detached {
            return Ok(());
        }
        let quiet = now.saturating_duration_since(self.last_heard);
        if quiet >= self.timing.lost_after {
            self.detach();
            return Err(LinkFault::Silence(quiet));
        }
        if quiet >= self.timing.silent_after && !self.silent && self.is_open() {
            self.silent = true;
            self.events.push(Event::Silent);
        }
        Ok(())
    }

    /// We were not reading for a while, by our own choice: the peer's silence meanwhile means nothing.
    pub fn excuse_silence(&mut self, now: Instant) {
        self.last_heard = now;
    }
}
