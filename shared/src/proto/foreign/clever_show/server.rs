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
//! A frame that was half written when the connection was lost is sent again as a whole: a drone never acts on half a
//! frame. `clover_dir` is requested until it is answered once; `id` is requested after [`PROBE_AFTER`] of silence.
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
use serde_json::{Map, Value};

pub use super::identify::{BadId, id_request, parse_id, parse_id_response};
use super::message::Message;
use super::pending::{ExpectedResponse, PendingRequest, PendingRequests};
pub use super::readings::{CLOVER_DIR_BYTES_MAX, READING_BYTES_MAX, READINGS_MAX, READINGS_MEMORY_MAX};
use super::readings::{CloverDir, Readings};
use super::send_queue::{FrameKind, QueuedFrame, pop_next};
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

/// The send queue, the requests and the readings of one drone.
#[derive(Debug)]
pub struct Drone {
    id: String,
    options: DroneOptions,
    /// When bytes last arrived; `None` while disconnected.
    last_heard: Option<Instant>,
    idle_reported: bool,
    queue: VecDeque<QueuedFrame>,
    writing: Option<QueuedFrame>,
    /// By number: queued, being written, or waiting for a response.
    requests: PendingRequests,
    clover_dir: CloverDir,
    readings: Readings,
    stop_message: Option<Message>,
    events: VecDeque<Event>,
}

/// Ticket of frames that no caller waits for: the server's own requests, and a stop that is sent again.
const NO_TICKET: Option<u64> = None;

impl Drone {
    /// A disconnected drone whose id is known.
    pub fn new(id: String, options: DroneOptions) -> Self {
        Self {
            id,
            options,
            last_heard: None,
            idle_reported: false,
            queue: VecDeque::new(),
            writing: None,
            requests: PendingRequests::default(),
            clover_dir: CloverDir::default(),
            readings: Readings::default(),
            stop_message: None,
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
        self.stop_message.is_some()
    }

    /// Whether a file is expected: then frames may have the length of files.
    pub fn is_awaiting_file(&self) -> bool {
        let mut requests = self.requests.values();
        requests.any(|request| request.is_written && matches!(request.expects, ExpectedResponse::File(_)))
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
        for (number, request) in self
            .requests
            .iter_mut()
            .rev()
            .filter(|(_, request)| request.is_written)
        {
            request.is_written = false;
            self.queue.push_front(QueuedFrame {
                kind: FrameKind::Request(*number),
                ticket: request.expects.ticket(),
                // It was started in time already.
                start_by: None,
                frame: request.frame.clone(),
            });
        }
        let asks_dir = |request: &PendingRequest| request.expects == ExpectedResponse::CloverDir;
        if matches!(self.clover_dir, CloverDir::NotReported) && !self.requests.values().any(asks_dir) {
            self.send_own_request("clover_dir", ExpectedResponse::CloverDir);
        }
        self.requeue_stop();
    }

    /// The connection is lost or closed.
    pub fn on_disconnected(&mut self, now: Instant) {
        if self.last_heard.take().is_none() {
            return;
        }
        match self.writing.take() {
            Some(half) if half.kind == FrameKind::ActionNoResend => {
                self.complete_queued(half, emergency_stop::DROPPED_BY_STOP);
            }
            // The stop was released in the meantime, or another stop frame is queued.
            Some(half)
                if half.kind == FrameKind::Stop
                    && half.ticket.is_none()
                    && (!self.is_stopped() || self.has_queued_stop()) => {}
            half => half.into_iter().for_each(|half| self.queue.push_front(half)),
        }
        let own: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| match request.expects {
                ExpectedResponse::Probe | ExpectedResponse::Cancelled => true,
                ExpectedResponse::CloverDir => !self.options.resend_requests,
                ExpectedResponse::Value(_) | ExpectedResponse::File(_) => {
                    request.was_ever_written && !self.options.resend_requests
                }
            })
            .map(|(number, _)| *number)
            .collect();
        for number in own {
            self.queue
                .retain(|queued| queued.kind != FrameKind::Request(number));
            self.complete_request(number, || {
                Completion::NoAnswer("the connection was lost before its answer")
            });
        }
        if !self.options.resume_queue {
            for queued in std::mem::take(&mut self.queue) {
                let kept = match queued.kind {
                    FrameKind::Stop => queued.ticket.is_some(),
                    FrameKind::Action | FrameKind::ActionNoResend => false,
                    // A request that was written once is subject to `resend_requests`, wherever it is.
                    FrameKind::Request(number) => self.requests.get(&number).is_some_and(|request| {
                        request.was_ever_written || request.expects == ExpectedResponse::CloverDir
                    }),
                };
                if kept {
                    self.queue.push_back(queued);
                } else {
                    self.complete_queued(
                        queued,
                        Completion::NoAnswer("the connection was lost before it was sent"),
                    );
                }
            }
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
        let message = Message::Action {
            action: action.to_owned(),
            arguments,
        };
        self.enqueue_action(ticket, &message, start_by, now);
    }

    /// Sends a file; it has no response.
    pub fn send_file(&mut self, ticket: u64, path: &str, content: Bytes, start_by: Instant, now: Instant) {
        let waiting: usize = self.queue.iter().map(|queued| queued.frame.content.len()).sum();
        if waiting > 0 && waiting + content.len() > QUEUE_BYTES_MAX {
            return self.complete(
                ticket,
                Completion::Refused("busy: too many files wait for this drone; try again"),
            );
        }
        let path = path.to_owned();
        self.enqueue_action(ticket, &Message::FilePush { path, content }, start_by, now);
    }

    fn enqueue_action(&mut self, ticket: u64, message: &Message, start_by: Instant, now: Instant) {
        if self.is_stopped() {
            let why = "an emergency stop is in force: release it first";
            return self.complete(ticket, Completion::Refused(why));
        }
        if let Some(end) = self.rejection(start_by, now) {
            return self.complete(ticket, end);
        }
        self.queue.push_back(QueuedFrame {
            kind: FrameKind::Action,
            ticket: Some(ticket),
            start_by: Some(start_by),
            frame: message.to_frame(),
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
        let id = String::new();
        let name = name.to_owned();
        let message = Message::Request { name, id, arguments };
        self.enqueue_request(message, ExpectedResponse::Value(ticket), deadlines, now);
    }

    /// Requests a file.
    pub fn request_file(&mut self, ticket: u64, path: &str, deadlines: Deadlines, now: Instant) {
        let message = Message::file_request(path, String::new());
        self.enqueue_request(message, ExpectedResponse::File(ticket), deadlines, now);
    }

    fn enqueue_request(
        &mut self,
        message: Message,
        expects: ExpectedResponse,
        deadlines: Deadlines,
        now: Instant,
    ) {
        let Some(ticket) = expects.ticket() else { return };
        if let Some(end) = self.rejection(deadlines.start_by.min(deadlines.respond_by), now) {
            return self.complete(ticket, end);
        }
        if self.requests.len() >= REQUESTS_MAX {
            return self.complete(
                ticket,
                Completion::Refused("busy: too many questions wait for this drone"),
            );
        }
        let (number, frame) = self
            .requests
            .register(message, expects, Some(deadlines.respond_by));
        self.queue.push_back(QueuedFrame {
            kind: FrameKind::Request(number),
            ticket: Some(ticket),
            start_by: Some(deadlines.start_by),
            frame,
        });
    }

    fn rejection(&self, start_by: Instant, now: Instant) -> Option<Completion> {
        if start_by <= now {
            return Some(Completion::Expired);
        }
        if !self.is_connected() && !self.options.resume_queue {
            return Some(Completion::NoAnswer(
                "offline, and `resume_queue` is not set: nothing was sent",
            ));
        }
        (self.queue.len() >= QUEUE_MAX).then_some(Completion::Refused(
            "busy: too much waits for this drone; try again",
        ))
    }

    /// Requests the id as a sign of life, unless such a request is open.
    pub fn probe(&mut self) {
        let asked = self
            .requests
            .values()
            .any(|request| request.expects == ExpectedResponse::Probe);
        if self.is_connected() && !asked {
            self.send_own_request("id", ExpectedResponse::Probe);
        }
    }

    fn send_own_request(&mut self, name: &str, expects: ExpectedResponse) {
        let message = Message::Request {
            name: name.to_owned(),
            id: String::new(),
            arguments: Arguments::default(),
        };
        let (number, frame) = self.requests.register(message, expects, None);
        self.queue.push_front(QueuedFrame {
            kind: FrameKind::Request(number),
            ticket: NO_TICKET,
            start_by: None,
            frame,
        });
    }

    /// Drops a ticket. A frame that is not being written yet is never sent, unless it is the active stop; one that is
    /// being written may be finished over this connection only.
    pub fn cancel(&mut self, ticket: u64) {
        let mine = |queued: &QueuedFrame| queued.ticket == Some(ticket);
        let unwritten = self
            .queue
            .iter()
            .find(|queued| mine(queued))
            .map(|queued| queued.kind);
        self.queue.retain(|queued| !mine(queued));
        match unwritten {
            Some(FrameKind::Request(number)) => drop(self.requests.remove(&number)),
            Some(FrameKind::Stop) => self.requeue_stop(),
            Some(FrameKind::Action | FrameKind::ActionNoResend) | None => {}
        }
        if let Some(in_hand) = self.writing.as_mut().filter(|queued| mine(queued)) {
            in_hand.ticket = None;
            if in_hand.kind == FrameKind::Action {
                in_hand.kind = FrameKind::ActionNoResend;
            }
        }
        let mine = |request: &PendingRequest| request.expects.ticket() == Some(ticket);
        if !self.is_connected() {
            // Its response cannot arrive any more.
            self.requests.retain(|_, request| !mine(request));
        }
        for request in self.requests.values_mut().filter(|request| mine(request)) {
            request.expects = ExpectedResponse::Cancelled;
        }
    }

    /// Ends all tickets.
    pub fn close(&mut self, why: &'static str) {
        let queued = std::mem::take(&mut self.queue);
        for queued in self.writing.take().into_iter().chain(queued) {
            self.complete_queued(queued, Completion::NoAnswer(why));
        }
        let left: Vec<u32> = self.requests.keys().copied().collect();
        for number in left {
            self.complete_request(number, || Completion::NoAnswer(why));
        }
        self.last_heard = None;
    }

    /// The next frame to write; none while the last one is not [written](Self::on_written).
    pub fn next_frame(&mut self, now: Instant) -> Option<Frame> {
        if !self.is_connected() || self.writing.is_some() {
            return None;
        }
        while let Some(queued) = pop_next(&mut self.queue) {
            if queued.start_by.is_some_and(|begin| now >= begin) {
                self.expire_queued(queued);
                continue;
            }
            let frame = queued.frame.clone();
            self.writing = Some(queued);
            return Some(frame);
        }
        None
    }

    /// The frame that was taken last has been written as a whole.
    pub fn on_written(&mut self) {
        let Some(written) = self.writing.take() else {
            return;
        };
        match written.kind {
            FrameKind::Action | FrameKind::ActionNoResend | FrameKind::Stop => {
                if let Some(ticket) = written.ticket {
                    self.complete(ticket, Completion::Sent);
                }
            }
            FrameKind::Request(number) => {
                if let Some(request) = self.requests.get_mut(&number) {
                    (request.is_written, request.was_ever_written) = (true, true);
                }
            }
        }
    }

    /// The frame that was taken last cannot be encoded: its names are too long for a header.
    pub fn on_unwritable(&mut self) {
        if let Some(queued) = self.writing.take() {
            self.complete_queued(queued, Completion::Refused("its names are too long for a frame"));
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
        for request in self.requests.values_mut() {
            if let (true, ExpectedResponse::File(_), Some(at)) =
                (request.is_written, &request.expects, &mut request.respond_by)
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
                self.on_telemetry(arguments.kwargs);
            }
            Ok(Message::Response { name, id, value }) => self.on_response(&name, &id, Ok(value)),
            Ok(Message::FileResponse { name, id, content }) => self.on_response(&name, &id, Err(content)),
            Ok(Message::Action { action, .. }) => self.report_ignored("action", &action),
            Ok(Message::Request { name, .. }) => self.report_ignored("request", &name),
            Ok(Message::FilePush { path, .. }) => self.report_ignored("file", &path),
            Err(error) => self.events.push_back(Event::Ignored(error.to_string())),
        }
    }

    fn report_ignored(&mut self, what: &str, name: &str) {
        let name: String = name.chars().take(80).collect();
        let note = format!("{what} {name:?} means nothing to a server");
        self.events.push_back(Event::Ignored(note));
    }

    fn on_response(&mut self, name: &str, id: &str, answer: Result<Value, Bytes>) {
        let number = Some(id).filter(|id| id.len() <= 10 && id.bytes().all(|b| b.is_ascii_digit()));
        let number: Option<u32> = number.and_then(|id| id.parse().ok());
        let asked = |number: &u32| {
            let request = self.requests.get(number);
            request.is_some_and(|request| request.is_written && request.name == name)
        };
        let Some(number) = number.filter(asked) else {
            return self.report_ignored("an answer to nothing that is asked,", id);
        };
        let Some(request) = self.requests.remove(&number) else {
            return;
        };
        match (request.expects, answer) {
            (ExpectedResponse::Value(ticket), Ok(value)) => {
                self.complete(ticket, Completion::Response(value));
            }
            (ExpectedResponse::File(ticket), Err(content)) => {
                self.complete(ticket, Completion::File(content));
            }
            (ExpectedResponse::Value(ticket), Err(_)) => {
                self.complete(ticket, Completion::WrongKind("it answered with a file"));
            }
            (ExpectedResponse::File(ticket), Ok(_)) => {
                self.complete(ticket, Completion::WrongKind("it answered, but not with a file"));
            }
            (ExpectedResponse::CloverDir, Ok(value)) => self.clover_dir = CloverDir::from_response(value),
            (ExpectedResponse::Probe, Ok(value)) => {
                if let Some(id) = parse_id(&value).filter(|id| *id != self.id) {
                    self.events.push_back(Event::IdChanged(id));
                }
            }
            // It was answered, though not with a path.
            (ExpectedResponse::CloverDir, Err(_)) => self.clover_dir = CloverDir::Unknown,
            (ExpectedResponse::Probe, Err(_)) | (ExpectedResponse::Cancelled, _) => {}
        }
    }

    fn on_telemetry(&mut self, kwargs: Map<String, Value>) {
        let left_out = self.readings.update(kwargs);
        self.events.push_back(Event::Telemetry);
        self.events.extend(left_out.map(Event::Ignored));
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let begin = self.queue.iter().filter_map(|queued| queued.start_by).min();
        let answer = self
            .requests
            .values()
            .filter_map(|request| request.respond_by)
            .min();
        let quiet = self.last_heard.filter(|_| !self.idle_reported).map(|heard| {
            let asked = self
                .requests
                .values()
                .any(|request| request.expects == ExpectedResponse::Probe);
            let wait = if asked {
                self.options.idle_timeout
            } else {
                PROBE_AFTER.min(self.options.idle_timeout)
            };
            heard + wait
        });
        [begin, answer, quiet].into_iter().flatten().min()
    }

    /// Ends what has exceeded its time, and probes a silent drone.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = |queued: &QueuedFrame| queued.start_by.is_some_and(|begin| now >= begin);
        if self.queue.iter().any(late) {
            let (over, left): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.queue).into_iter().partition(late);
            self.queue = left;
            for queued in over {
                self.expire_queued(queued);
            }
        }
        let unanswered: Vec<(u32, bool)> = self
            .requests
            .iter()
            .filter(|(_, request)| request.respond_by.is_some_and(|until| now >= until))
            .map(|(number, request)| (*number, request.is_written))
            .collect();
        for (number, written) in unanswered {
            let why = match (written, self.is_connected()) {
                (true, true) => "no answer: it may not know the question",
                (true, false) => "no answer before its connection was lost",
                (false, true) => "not asked in time: the drone takes nothing",
                (false, false) => "offline: not asked",
            };
            self.queue
                .retain(|queued| queued.kind != FrameKind::Request(number));
            self.complete_request(number, || Completion::NoAnswer(why));
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

    fn complete_queued(&mut self, queued: QueuedFrame, end: Completion) {
        match queued.kind {
            FrameKind::Request(number) => self.complete_request(number, || end),
            FrameKind::Action | FrameKind::ActionNoResend | FrameKind::Stop => {
                if let Some(ticket) = queued.ticket {
                    self.complete(ticket, end);
                }
            }
        }
    }

    fn complete_request(&mut self, number: u32, end: impl FnOnce() -> Completion) {
        let request = self.requests.remove(&number);
        if let Some(ticket) = request.and_then(|request| request.expects.ticket()) {
            self.complete(ticket, end());
        }
    }

    fn complete(&mut self, ticket: u64, end: Completion) {
        self.events.push_back(Event::Completed(ticket, end));
    }
}
