//! What two peers share across links: numbering, acknowledgement, resume, heartbeat, pending requests.
//!
//! ```text
//!            attach                    welcome received
//! Detached ──────────▶ Greeting ──────────────────────▶ Open
//!    ▲                    │ Timing::lost_after             │ Timing::lost_after of silence,
//!    └────────────────────┴────────────────────────────────┘ detach, or an error
//! ```
//!
//! Each side sends a welcome as the first frame of a link: the instance of its process, and the last number that it
//! has read from the other. The other removes what was read from its outbox and sends the rest again, in order. So
//! nothing is lost and nothing arrives twice while both processes live. When the peer has restarted, requests that
//! were sent and not acknowledged end as [`RequestEnd::Lost`]: it is unknown whether the old process has run them.
//!
//! A session never reads a clock: every call that needs the time takes it as an argument.

mod clock_map;
pub mod outbox;
pub mod path_check;
pub mod pending;
mod receive;
pub mod simultaneous_open;
mod transmit;
mod types;
pub mod window;

use std::time::Instant;

use self::clock_map::ClockMap;
use self::outbox::{Outbox, OutboxItem, OutboxLimits};
use self::path_check::PathCheck;
use self::pending::PendingRequests;
pub use self::types::{Event, ExpectedReply, LinkFault, Outgoing, RequestEnd, SendError, Timing};
use crate::proto::id::Instance;
use crate::proto::wire::encoded::EncodedFrame;
use crate::proto::wire::{Frame, Kind, Lane, WireError};

/// Most former instances of the peer that are remembered as forgotten.
const FORGOTTEN_MAX: usize = 8;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Detached,
    /// Our welcome is sent or about to be sent; the peer's is awaited.
    AwaitingWelcome,
    Open,
}

/// The state of one session; see the module. `T` is the token that the application gets back when a request ends.
#[derive(Debug)]
pub struct Session<T> {
    timing: Timing,
    instance: Instance,
    state: State,
    /// The instance of the peer that `received` and the unacknowledged frames belong to.
    peer: Option<Instance>,
    /// Whether frames have been exchanged with that instance: only then does the application know of it.
    established: bool,
    /// Instances that were replaced by another one and may still remember this session: two processes with one key.
    /// Each is notified that its session is forgotten, until one of its frames shows that it has read the notification.
    forgotten_instances: Vec<Instance>,
    outbox: Outbox,
    pending: PendingRequests<T>,
    /// The last sequence number read from the peer.
    received: u64,
    unacked_frames: u64,
    unacked_bytes: usize,
    ack_due: Option<Instant>,
    last_ack: Instant,
    welcome_due: bool,
    last_heard: Instant,
    last_sent: Instant,
    silent: bool,
    clock_map: ClockMap,
    path_check: PathCheck,
    heartbeat: EncodedFrame,
    ack: EncodedFrame,
    events: Vec<Event<T>>,
}

impl<T> Session<T> {
    /// A session without a link. `instance` is this run of our process. A new session for the same peer needs a new
    /// instance, because the peer resumes by it.
    ///
    /// # Errors
    /// [`WireError`] if one of the constant frames does not encode, which does not happen.
    pub fn new(
        instance: Instance,
        timing: Timing,
        limits: OutboxLimits,
        now: Instant,
    ) -> Result<Self, WireError> {
        let empty = |kind| EncodedFrame::new(&Frame::binary(kind, bytes::Bytes::new()));
        Ok(Self {
            timing,
            instance,
            state: State::Detached,
            peer: None,
            established: false,
            forgotten_instances: Vec::new(),
            outbox: Outbox::new(limits),
            pending: PendingRequests::default(),
            received: 0,
            unacked_frames: 0,
            unacked_bytes: 0,
            ack_due: None,
            last_ack: now,
            welcome_due: false,
            last_heard: now,
            last_sent: now,
            silent: false,
            clock_map: ClockMap::new(now),
            path_check: PathCheck::default(),
            heartbeat: empty(Kind::Heartbeat)?,
            ack: empty(Kind::Ack)?,
            events: Vec::new(),
        })
    }

    /// Whether frames are exchanged.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Time of the last bytes from the peer; the session's start before the first.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Whether the lane accepts another message now.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.outbox.has_room(lane)
    }

    /// Best size of a file chunk on this link now, in bytes.
    pub fn chunk_bytes(&self) -> usize {
        self.outbox.chunk_bytes()
    }

    /// Whether no message is queued, unacknowledged or unanswered.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.outbox.acknowledged() == self.outbox.sent()
            && !self.outbox.has_queued()
            && self.ack_due.is_none()
    }

    /// Attaches a new link to the peer's instance `peer`, which replaces the old link. After this, nothing that the
    /// old link received may be passed in.
    pub fn attach(&mut self, peer: Instance, now: Instant) {
        if let Some(known) = self.peer.filter(|known| *known != peer) {
            self.reset_peer();
            self.forgotten_instances.retain(|run| *run != known);
            if self.forgotten_instances.len() >= FORGOTTEN_MAX {
                self.forgotten_instances.remove(0);
            }
            self.forgotten_instances.push(known);
        }
        self.peer = Some(peer);
        self.state = State::AwaitingWelcome;
        self.welcome_due = true;
        self.ack_due = None;
        self.unacked_frames = 0;
        self.unacked_bytes = 0;
        self.last_heard = now;
        self.last_sent = now;
        self.silent = false;
        self.clock_map.reset();
        self.path_check.on_attached();
    }

    /// Detaches the link. Queued messages stay for the next link.
    pub fn detach(&mut self) {
        self.state = State::Detached;
        self.welcome_due = false;
        self.ack_due = None;
    }

    /// Ends the session and its link. Requests that were sent end as [`RequestEnd::Lost`]; returns the tokens of the
    /// others.
    pub fn end(&mut self) -> Vec<T> {
        self.detach();
        let queued = self.outbox.queued_requests();
        let mut unsent = Vec::new();
        for id in self.pending.ids() {
            if !queued.contains(&id) {
                self.resolve(id, RequestEnd::Lost);
            } else if let Some(token) = self.pending.remove(id) {
                unsent.push(token);
            }
        }
        unsent
    }

    /// Queues a message, and registers its expected reply if there is one. It is sent while a link is open.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued, and the token is dropped.
    pub fn send(&mut self, message: Outgoing, expected: Option<ExpectedReply<T>>) -> Result<(), SendError> {
        if let Some(expected) = &expected {
            self.pending.check(expected.id)?;
        }
        let request = expected.as_ref().map(|expected| expected.id);
        let epoch = message.frame.epoch();
        let Outgoing {
            frame,
            lane,
            deadline,
        } = message;
        self.outbox.push(OutboxItem {
            frame,
            lane,
            deadline,
            request,
        })?;
        if let Some(ExpectedReply {
            id,
            deadline: until,
            token,
        }) = expected
        {
            self.pending.insert(id, epoch, until, token);
        }
        Ok(())
    }

    /// Restarts the numbering in both directions: the peer has lost the session.
    fn reset_peer(&mut self) {
        self.established = false;
        self.received = 0;
        for item in self.outbox.reset() {
            self.resolve_item(&item, RequestEnd::Lost);
        }
        let queued = self.outbox.queued_requests();
        // These were acknowledged but not answered: the old process had them.
        for id in self.pending.ids() {
            if !queued.contains(&id) {
                self.resolve(id, RequestEnd::Lost);
            }
        }
    }

    fn resolve_item(&mut self, item: &OutboxItem, end: RequestEnd) {
        if let Some(id) = item.request {
            self.resolve(id, end);
        }
    }

    fn resolve(&mut self, id: u64, end: RequestEnd) {
        if let Some(token) = self.pending.remove(id) {
            self.events.push(Event::RequestEnded(token, end));
        }
    }

    /// Removes and returns all events, oldest first.
    pub fn take_events(&mut self) -> std::vec::Drain<'_, Event<T>> {
        self.events.drain(..)
    }

    /// When [`Self::handle_timeout`] or [`Self::transmit`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lost = self.last_heard + self.timing.lost_after;
        let silent = self.last_heard + self.timing.silent_after;
        let alive = match self.state {
            State::Detached => None,
            State::AwaitingWelcome => Some(lost),
            State::Open => {
                let beat = self.last_sent + self.timing.heartbeat;
                Some(beat.min(if self.silent { lost } else { silent }))
            }
        };
        let deadlines = [
            alive,
            self.ack_due,
            self.outbox.earliest_deadline(),
            self.pending.earliest_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Handles the timers that are due.
    ///
    /// # Errors
    /// [`LinkFault::Silence`] if the peer is offline; the session is detached then.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkFault> {
        for item in self.outbox.expire(now) {
            self.resolve_item(&item, RequestEnd::Expired);
        }
        for id in self.pending.timed_out(now) {
            self.resolve(id, RequestEnd::TimedOut);
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

    /// Restarts the silence timer. Call this after a pause in reading that we chose ourselves: the peer's silence in
    /// that time means nothing.
    pub fn reset_silence_timer(&mut self, now: Instant) {
        self.last_heard = now;
    }
}
