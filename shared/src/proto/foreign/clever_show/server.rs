//! The server's side of one drone, over successive connections.
//!
//! | state | ends | next |
//! |---|---|---|
//! | disconnected | [`Drone::on_connected`] | connected |
//! | connected | [`Drone::on_disconnected`]; the driver also calls it after [`Event::IdleTimeout`] and [`Event::IdChanged`] | disconnected |
//!
//! A frame is queued, taken by the driver with [`Drone::next_frame`], and then [written](Drone::on_written):
//!
//! | kind | queued while disconnected, or not written as a whole | written |
//! |---|---|---|
//! | action, file | sent over the next connection with [`DroneOptions::resume_queue`], else dropped | ended: [`Completion::Sent`] |
//! | request | the same | waits for its response; sent again over the next connection with [`DroneOptions::resend_requests`], else ended |
//!
//! The server has two requests of its own, which end with the connection: `clover_dir`, on each connection until it is
//! answered once, and `id` after [`PROBE_AFTER`] of silence.
//!
//! An emergency stop drops every action and file that is queued or half written, overtakes everything else, is sent
//! again over each new connection, and refuses further actions and files until [`Drone::release`]. It is sent even if
//! its ticket was cancelled or has expired: then the ticket ends and the frame stays queued.
//!
//! Invariants: every ticket gets exactly one [`Event::Completed`], unless it is [cancelled](Drone::cancel); nothing
//! starts after its deadline.

mod emergency_stop;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::FILE_TRANSFER;
pub use super::identify::{BadId, id_request, parse_id, parse_id_response};
use super::message::{Message, ResponseBody, file_arguments};
pub use super::readings::{CLOVER_DIR_BYTES_MAX, READING_BYTES_MAX, READINGS_MAX, READINGS_MEMORY_MAX};
use super::readings::{CloverDir, Readings};
use super::send_queue::{FrameKind, QueuedFrame, Request, Resend, SendQueue};
pub use super::types::{Completion, Deadlines, DroneOptions, Event};
use crate::proto::message::Arguments;
use crate::proto::wire::{CONTENT_BYTES_MAX, ContentType, Frame, Header, MessageType};

/// Most frames of one drone that wait to be written.
pub const QUEUE_MAX: usize = 256;
/// Most bytes of files that wait to be written; a single file may be longer.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most requests of one drone that wait for their response.
pub const REQUESTS_MAX: usize = 256;
/// Silence after which the drone is probed with a request.
pub const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Id of the first request of this module; [`id_request`] has the one before.
const FIRST_REQUEST_ID: u16 = 1;

/// What a response must be, and the ticket that it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Value(u64),
    File(u64),
    CloverDir,
    /// The id, as a sign of life.
    Probe,
}

impl Expected {
    fn ticket(self) -> Option<u64> {
        match self {
            Self::Value(ticket) | Self::File(ticket) => Some(ticket),
            Self::CloverDir | Self::Probe => None,
        }
    }
}

/// The send queue, the requests and the readings of one drone.
#[derive(Debug)]
pub struct Drone {
    id: String,
    options: DroneOptions,
    /// When bytes last arrived; `None` while disconnected.
    last_heard: Option<Instant>,
    idle_reported: bool,
    sends: SendQueue<Expected>,
    clover_dir: CloverDir,
    readings: Readings,
    /// The frame of the active emergency stop.
    stop_frame: Option<Frame>,
    events: VecDeque<Event>,
}

impl Drone {
    /// A disconnected drone whose id is known.
    pub fn new(id: String, options: DroneOptions) -> Self {
        let resend = Resend {
            messages: options.resume_queue,
            unsent_requests: options.resume_queue,
            sent_requests: options.resend_requests,
        };
        Self {
            id,
            options,
            last_heard: None,
            idle_reported: false,
            sends: SendQueue::new(resend, FIRST_REQUEST_ID),
            clover_dir: CloverDir::default(),
            readings: Readings::default(),
            stop_frame: None,
            events: VecDeque::new(),
        }
    }

    /// The id that the drone reported.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.last_heard.is_some()
    }

    /// When bytes last arrived; `None` while disconnected.
    pub fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// The directory of the drone's programs, if it reported one of at most [`CLOVER_DIR_BYTES_MAX`].
    pub fn clover_dir(&self) -> Option<&str> {
        self.clover_dir.path()
    }

    /// The newest readings by name.
    pub fn readings(&self) -> &BTreeMap<String, Value> {
        self.readings.all()
    }

    /// Whether an emergency stop is active.
    pub fn is_stopped(&self) -> bool {
        self.stop_frame.is_some()
    }

    /// Whether a file is expected: then frames may have the length of files.
    pub fn is_awaiting_file(&self) -> bool {
        let mut requests = self.sends.requests();
        requests.any(|request| request.was_written && matches!(request.purpose, Expected::File(_)))
    }

    /// The oldest event that was not taken yet.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The drone has connected and reported its id.
    pub fn on_connected(&mut self, now: Instant) {
        if self.is_connected() {
            self.on_disconnected(now);
        }
        self.last_heard = Some(now);
        self.idle_reported = false;
        if matches!(self.clover_dir, CloverDir::NotReported) {
            self.send_own_request("clover_dir", Expected::CloverDir);
        }
        self.requeue_stop();
    }

    /// The connection is lost or closed.
    pub fn on_disconnected(&mut self, now: Instant) {
        if self.last_heard.take().is_none() {
            return;
        }
        self.sends
            .remove_requests(|request| request.purpose.ticket().is_none());
        for lost in self.sends.on_disconnected() {
            let end = match lost.kind {
                FrameKind::NoResend => emergency_stop::DROPPED_BY_STOP,
                FrameKind::Request(number)
                    if self
                        .sends
                        .request(number)
                        .is_some_and(|request| request.was_written) =>
                {
                    Completion::NoAnswer("the connection was lost before its answer")
                }
                FrameKind::Request(_) | FrameKind::Message | FrameKind::Latest | FrameKind::Stop => {
                    Completion::NoAnswer("the connection was lost before it was sent")
                }
            };
            self.complete_frame(lost, end);
        }
        self.handle_timeout(now);
    }

    /// Sends an action; it has no response.
    pub fn send_action(
        &mut self,
        ticket: u64,
        action: &str,
        arguments: Arguments,
        start_by: Instant,
        now: Instant,
    ) {
        let action = action.to_owned();
        self.enqueue(ticket, &Message::Action { action, arguments }, start_by, now);
    }

    /// Sends a file; it has no response.
    pub fn send_file(&mut self, ticket: u64, path: &str, content: Bytes, start_by: Instant, now: Instant) {
        let waiting = self.sends.queue.iter().map(|queued| queued.frame.content.len());
        let waiting: usize = waiting.sum();
        if waiting > 0 && waiting + content.len() > QUEUE_BYTES_MAX {
            let why = "busy: too many files wait for this drone; try again";
            return self.complete(ticket, Completion::Refused(why));
        }
        let path = path.to_owned();
        self.enqueue(ticket, &Message::FilePush { path, content }, start_by, now);
    }

    fn enqueue(&mut self, ticket: u64, message: &Message, start_by: Instant, now: Instant) {
        if self.is_stopped() {
            let why = "an emergency stop is in force: release it first";
            return self.complete(ticket, Completion::Refused(why));
        }
        if let Some(end) = self.rejection(start_by, now) {
            return self.complete(ticket, end);
        }
        self.sends.queue.push_back(QueuedFrame {
            ticket: Some(ticket),
            start_by: Some(start_by),
            ..QueuedFrame::new(FrameKind::Message, message.to_frame())
        });
    }

    /// Requests a value.
    pub fn send_request(
        &mut self,
        ticket: u64,
        name: &str,
        arguments: Arguments,
        deadlines: Deadlines,
        now: Instant,
    ) {
        self.enqueue_request((name, arguments), Expected::Value(ticket), ticket, deadlines, now);
    }

    /// Requests a file.
    pub fn request_file(&mut self, ticket: u64, path: &str, deadlines: Deadlines, now: Instant) {
        let request = (FILE_TRANSFER, file_arguments(path));
        self.enqueue_request(request, Expected::File(ticket), ticket, deadlines, now);
    }

    fn enqueue_request(
        &mut self,
        request: (&str, Arguments),
        expected: Expected,
        ticket: u64,
        deadlines: Deadlines,
        now: Instant,
    ) {
        let Deadlines { start_by, respond_by } = deadlines;
        if let Some(end) = self.rejection(start_by.min(respond_by), now) {
            return self.complete(ticket, end);
        }
        if self.sends.requests().len() >= REQUESTS_MAX {
            let why = "busy: too many requests wait for this drone; try again";
            return self.complete(ticket, Completion::Refused(why));
        }
        self.sends
            .add_request(request, expected, Some(start_by), Some(respond_by));
    }

    /// Why nothing can be queued now.
    fn rejection(&self, start_by: Instant, now: Instant) -> Option<Completion> {
        if start_by <= now {
            return Some(Completion::Expired);
        }
        if !self.is_connected() && !self.options.resume_queue {
            return Some(Completion::NoAnswer(
                "offline, and `resume_queue` is not set: nothing was sent",
            ));
        }
        (self.sends.queue.len() >= QUEUE_MAX).then_some(Completion::Refused(
            "busy: too many messages wait for this drone; try again",
        ))
    }

    /// Requests the id as a sign of life, unless such a request is open.
    pub fn probe(&mut self) {
        if self.is_connected() && !self.is_probing() {
            self.send_own_request("id", Expected::Probe);
        }
    }

    fn is_probing(&self) -> bool {
        let mut requests = self.sends.requests();
        requests.any(|request| request.purpose == Expected::Probe)
    }

    /// Queues a request of the server before all other frames.
    fn send_own_request(&mut self, name: &str, expected: Expected) {
        let request = (name, Arguments::default());
        self.sends.add_request(request, expected, None, None);
        self.sends.queue.rotate_right(1);
    }

    /// Drops a ticket. A frame that is not being written yet is never sent, unless it is the active stop; one that is
    /// being written may be finished over this connection only.
    pub fn cancel(&mut self, ticket: u64) {
        self.sends
            .remove_requests(|request| request.purpose.ticket() == Some(ticket));
        let is_its_own = |queued: &QueuedFrame| queued.ticket == Some(ticket);
        let dropped = self.sends.take_queued(is_its_own);
        if dropped.iter().any(|queued| queued.kind == FrameKind::Stop) {
            self.requeue_stop();
        }
        if let Some(half) = self.sends.writing.as_mut().filter(|half| is_its_own(half)) {
            half.ticket = None;
            half.forbid_resend();
        }
    }

    /// Ends all tickets.
    pub fn close(&mut self, why: &'static str) {
        let half = self.sends.writing.take();
        let queued = self.sends.take_queued(|_| true);
        for frame in half.into_iter().chain(queued) {
            self.complete_frame(frame, Completion::NoAnswer(why));
        }
        for request in self.sends.remove_requests(|_| true) {
            self.complete_request(&request, Completion::NoAnswer(why));
        }
        self.last_heard = None;
    }

    /// The next frame to write; none while the last one is not [written](Self::on_written).
    pub fn next_frame(&mut self, now: Instant) -> Option<Frame> {
        if !self.is_connected() {
            return None;
        }
        self.expire_queued(now);
        self.sends.next_frame()
    }

    /// The frame that was taken last has been written as a whole.
    pub fn on_written(&mut self) {
        if let Some(ticket) = self.sends.on_written().and_then(|written| written.ticket) {
            self.complete(ticket, Completion::Sent);
        }
    }

    /// The frame that was taken last cannot be encoded: its names are too long for a header.
    pub fn on_unwritable(&mut self) {
        if let Some(frame) = self.sends.writing.take() {
            self.complete_frame(frame, Completion::Refused("its names are too long for a frame"));
        }
    }

    /// Bytes have arrived, but not necessarily a whole frame.
    pub fn on_bytes_received(&mut self, now: Instant) {
        if let Some(heard) = &mut self.last_heard {
            *heard = now.max(*heard);
        }
    }

    /// The content of a frame is arriving. If it is a file, the request for it waits until `until` at least; other
    /// content, such as readings, extends no deadline.
    pub fn extend_file_deadline(&mut self, header: &Header, until: Instant) {
        if header.message_type != MessageType::Response || header.content_type != ContentType::Binary {
            return;
        }
        for request in self.sends.requests_mut() {
            if let (true, Expected::File(_), Some(at)) =
                (request.was_written, request.purpose, &mut request.respond_by)
            {
                *at = until.max(*at);
            }
        }
    }

    /// Handles a frame. JSON of more than [`CONTENT_BYTES_MAX`] is ignored, since it takes many times its length in
    /// memory; only files may be longer.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        if !self.is_connected() {
            return;
        }
        self.on_bytes_received(now);
        if frame.header.content_type == ContentType::Json && frame.content.len() > CONTENT_BYTES_MAX {
            let bytes = frame.content.len();
            let note = format!("{bytes} bytes of JSON; at most {CONTENT_BYTES_MAX} are read");
            return self.events.push_back(Event::Ignored(note));
        }
        match Message::from_frame(frame) {
            Ok(Message::Action { action, arguments }) if action == "telemetry" => {
                let ignored = self.readings.update(arguments.kwargs);
                self.events.push_back(Event::Telemetry);
                self.events.extend(ignored.map(Event::Ignored));
            }
            Ok(Message::Response { name, id, value }) => {
                self.on_response(&name, &id, ResponseBody::Value(value));
            }
            Ok(Message::FileResponse { name, id, content }) => {
                self.on_response(&name, &id, ResponseBody::File(content));
            }
            Ok(Message::Action { action, .. }) => self.report_ignored("action", &action),
            Ok(Message::Request { name, .. }) => self.report_ignored("request", &name),
            Ok(Message::FilePush { path, .. }) => self.report_ignored("file", &path),
            Err(error) => self.events.push_back(Event::Ignored(error.to_string())),
        }
    }

    fn report_ignored(&mut self, what: &str, name: &str) {
        let name: String = name.chars().take(80).collect();
        let note = format!("a server does not handle the {what} {name:?}");
        self.events.push_back(Event::Ignored(note));
    }

    fn on_response(&mut self, name: &str, id: &str, body: ResponseBody) {
        let Some((_, request)) = self.sends.take_answered(name, id) else {
            return self.report_ignored("response without an open request,", id);
        };
        match (request.purpose, body) {
            (Expected::Value(ticket), ResponseBody::Value(value)) => {
                self.complete(ticket, Completion::Response(value));
            }
            (Expected::File(ticket), ResponseBody::File(content)) => {
                self.complete(ticket, Completion::File(content));
            }
            (Expected::Value(ticket), ResponseBody::File(_)) => {
                self.complete(ticket, Completion::WrongKind("it answered with a file"));
            }
            (Expected::File(ticket), ResponseBody::Value(_)) => {
                self.complete(ticket, Completion::WrongKind("it answered, but not with a file"));
            }
            (Expected::CloverDir, ResponseBody::Value(value)) => {
                self.clover_dir = CloverDir::from_response(value);
            }
            (Expected::CloverDir, ResponseBody::File(_)) => self.clover_dir = CloverDir::Unknown,
            (Expected::Probe, ResponseBody::Value(value)) => {
                let changed = parse_id(&value).filter(|id| *id != self.id);
                self.events.extend(changed.map(Event::IdChanged));
            }
            (Expected::Probe, ResponseBody::File(_)) => {}
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silence = self.last_heard.filter(|_| !self.idle_reported).map(|heard| {
            let idle_timeout = self.options.idle_timeout;
            heard
                + if self.is_probing() {
                    idle_timeout
                } else {
                    PROBE_AFTER.min(idle_timeout)
                }
        });
        silence.into_iter().chain(self.sends.next_deadline()).min()
    }

    /// Ends what has exceeded its time, and probes a silent drone.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_queued(now);
        let is_late = |request: &Request<_>| request.respond_by.is_some_and(|until| now >= until);
        for request in self.sends.remove_requests(is_late) {
            let why = match (request.was_written, self.is_connected()) {
                (true, true) => "no answer: the drone may not know the request",
                (true, false) => "no answer before the connection was lost",
                (false, true) => "not sent in time: the drone accepts no data",
                (false, false) => "offline: not sent",
            };
            self.complete_request(&request, Completion::NoAnswer(why));
        }
        let Some(heard) = self.last_heard else { return };
        if now >= heard + self.options.idle_timeout {
            if !self.idle_reported {
                self.idle_reported = true;
                self.events.push_back(Event::IdleTimeout);
            }
        } else if now >= heard + PROBE_AFTER {
            self.probe();
        }
    }

    /// Ends the ticket of a frame, or of its request.
    fn complete_frame(&mut self, frame: QueuedFrame, end: Completion) {
        if let FrameKind::Request(number) = frame.kind {
            if let Some(request) = self.sends.remove_request(number) {
                self.complete_request(&request, end);
            }
        } else if let Some(ticket) = frame.ticket {
            self.complete(ticket, end);
        }
    }

    fn complete_request(&mut self, request: &Request<Expected>, end: Completion) {
        if let Some(ticket) = request.purpose.ticket() {
            self.complete(ticket, end);
        }
    }

    fn complete(&mut self, ticket: u64, end: Completion) {
        self.events.push_back(Event::Completed(ticket, end));
    }
}
