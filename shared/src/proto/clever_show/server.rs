//! A server's side of one drone, whatever becomes of its connections.
//!
//! | state | ends | into |
//! |---|---|---|
//! | away | [`Drone::connected`] | here |
//! | here | [`Drone::disconnected`]; the driver does that too after [`Event::TooQuiet`] and [`Event::OtherId`] | away |
//!
//! A frame is queued, then handed to the driver by [`Drone::next_frame`], then [written](Drone::written). What that
//! means, and what a lost connection means, depends on what it is:
//!
//! | | queued while away, or not yet written whole | written |
//! |---|---|---|
//! | action, file | sent at the next connection if [`Rules::resume_queue`], else dropped | ended: [`End::Sent`] |
//! | request | the same | waits for its answer; asked again at the next connection if [`Rules::resend_requests`], else ended |
//!
//! A frame that the connection lost half of goes again whole: nobody acts on half a frame. `clover_dir` is asked until
//! it is answered once; `id` is asked again after [`QUIET`], as a sign of life.
//!
//! An emergency stop drops every action and file that is queued, or lost half written, goes before everything else, goes
//! again at each new connection, and refuses further actions and files, until [`Drone::release`]. It is told though
//! nobody waits for it any more, or its time is up: then its ticket ends, and its frame stays.
//!
//! Invariants: every ticket gets exactly one [`Event::Ended`], unless it is [cancelled](Drone::cancel); nothing is begun
//! after its deadline.

mod emergency_stop;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};

pub use super::identify::{BadId, answers_id, ask_id, said_id};
use super::message::Message;
use super::pending::{Asked, Request, Requests};
pub use super::readings::{CLOVER_DIR_BYTES_MAX, READING_BYTES_MAX, READINGS_MAX, READINGS_MEMORY_MAX};
use super::readings::{CloverDir, Readings};
use super::send_queue::{Queued, What, take_first};
pub use super::types::{End, Event, Rules, Until};
use crate::proto::message::Arguments;
use crate::proto::wire::{CONTENT_BYTES_MAX, ContentType, Frame, Header, MessageType};

/// Most frames of one drone that wait to be written.
pub const QUEUE_MAX: usize = 256;
/// Most bytes of files that wait to be written; one file may be longer, alone.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most requests of one drone that wait for their answers.
pub const REQUESTS_MAX: usize = 256;
/// Silence after which a drone is asked for a sign of life.
pub const QUIET: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Drone {
    id: String,
    rules: Rules,
    /// When it was heard last, while it is here.
    heard: Option<Instant>,
    too_quiet: bool,
    queue: VecDeque<Queued>,
    in_hand: Option<Queued>,
    /// By number: queued, in hand or waiting for its answer.
    requests: Requests,
    clover_dir: CloverDir,
    readings: Readings,
    stopped: Option<Message>,
    events: VecDeque<Event>,
}

/// Our own questions and our own stop make no tickets.
const OWN: Option<u64> = None;

impl Drone {
    /// One that has told its id, and is away.
    pub fn new(id: String, rules: Rules) -> Self {
        Self {
            id,
            rules,
            heard: None,
            too_quiet: false,
            queue: VecDeque::new(),
            in_hand: None,
            requests: Requests::default(),
            clover_dir: CloverDir::default(),
            readings: Readings::default(),
            stopped: None,
            events: VecDeque::new(),
        }
    }

    /// What it calls itself.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is connected.
    pub fn is_here(&self) -> bool {
        self.heard.is_some()
    }

    /// When it was heard last, while it is here.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Where it keeps its programs, once it has said so in at most [`CLOVER_DIR_BYTES_MAX`].
    pub fn clover_dir(&self) -> Option<&str> {
        self.clover_dir.path()
    }

    /// What it last told of itself.
    pub fn readings(&self) -> &BTreeMap<String, Value> {
        self.readings.all()
    }

    /// Whether an emergency stop is in force.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Whether a file has been asked for: then frames may be as long as files are.
    pub fn awaits_file(&self) -> bool {
        let mut requests = self.requests.values();
        requests.any(|request| request.written && matches!(request.asked, Asked::File(_)))
    }

    /// What is to be told next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// It has connected and said its id.
    pub fn connected(&mut self, now: Instant) {
        if self.is_here() {
            self.disconnected(now);
        }
        self.heard = Some(now);
        self.too_quiet = false;
        for (number, request) in self
            .requests
            .iter_mut()
            .rev()
            .filter(|(_, request)| request.written)
        {
            request.written = false;
            self.queue.push_front(Queued {
                what: What::Request(*number),
                ticket: request.asked.ticket(),
                // It began in time.
                begin: None,
                frame: request.frame.clone(),
            });
        }
        let asks_dir = |request: &Request| request.asked == Asked::CloverDir;
        if matches!(self.clover_dir, CloverDir::Unanswered) && !self.requests.values().any(asks_dir) {
            self.ask_own("clover_dir", Asked::CloverDir);
        }
        self.keep_stop();
    }

    /// Its connection is gone.
    pub fn disconnected(&mut self, now: Instant) {
        if self.heard.take().is_none() {
            return;
        }
        match self.in_hand.take() {
            Some(half) if half.what == What::Dropped => self.drop_queued(half, emergency_stop::DROPPED),
            // Released meanwhile, or told by another one.
            Some(half)
                if half.what == What::Stop
                    && half.ticket.is_none()
                    && (!self.is_stopped() || self.has_stop()) => {}
            half => half.into_iter().for_each(|half| self.queue.push_front(half)),
        }
        let own: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| match request.asked {
                Asked::Life | Asked::Cancelled => true,
                Asked::CloverDir => !self.rules.resend_requests,
                Asked::Value(_) | Asked::File(_) => request.ever && !self.rules.resend_requests,
            })
            .map(|(number, _)| *number)
            .collect();
        for number in own {
            self.queue.retain(|queued| queued.what != What::Request(number));
            self.end_request(number, || {
                End::NoAnswer("the connection was lost before its answer")
            });
        }
        if !self.rules.resume_queue {
            for queued in std::mem::take(&mut self.queue) {
                let kept = match queued.what {
                    What::Stop => queued.ticket.is_some(),
                    What::Act | What::Dropped => false,
                    // What is asked again counts as asked, wherever it was.
                    What::Request(number) => self
                        .requests
                        .get(&number)
                        .is_some_and(|request| request.ever || request.asked == Asked::CloverDir),
                };
                if kept {
                    self.queue.push_back(queued);
                } else {
                    self.drop_queued(
                        queued,
                        End::NoAnswer("the connection was lost before it was sent"),
                    );
                }
            }
        }
        self.handle_timeout(now);
    }

    /// Has it do something. There will be no answer.
    pub fn tell(&mut self, ticket: u64, action: &str, arguments: Arguments, begin: Instant, now: Instant) {
        let message = Message::Action {
            action: action.to_owned(),
            arguments,
        };
        self.act(ticket, &message, begin, now);
    }

    /// Sends it a file. There will be no answer.
    pub fn push(&mut self, ticket: u64, path: &str, content: Bytes, begin: Instant, now: Instant) {
        let waiting: usize = self.queue.iter().map(|queued| queued.frame.content.len()).sum();
        if waiting > 0 && waiting + content.len() > QUEUE_BYTES_MAX {
            return self.end(
                ticket,
                End::Refused("busy: too many files wait for this drone; try again"),
            );
        }
        let path = path.to_owned();
        self.act(ticket, &Message::FilePush { path, content }, begin, now);
    }

    fn act(&mut self, ticket: u64, message: &Message, begin: Instant, now: Instant) {
        if self.is_stopped() {
            let why = "an emergency stop is in force: release it first";
            return self.end(ticket, End::Refused(why));
        }
        if let Some(end) = self.why_not(begin, now) {
            return self.end(ticket, end);
        }
        self.queue.push_back(Queued {
            what: What::Act,
            ticket: Some(ticket),
            begin: Some(begin),
            frame: message.to_frame(),
        });
    }

    /// Asks it something.
    pub fn ask(&mut self, ticket: u64, name: &str, arguments: Arguments, until: Until, now: Instant) {
        let id = String::new();
        let name = name.to_owned();
        let message = Message::Request { name, id, arguments };
        self.request(message, Asked::Value(ticket), until, now);
    }

    /// Asks it for a file.
    pub fn ask_file(&mut self, ticket: u64, path: &str, until: Until, now: Instant) {
        let message = Message::file_request(path, String::new());
        self.request(message, Asked::File(ticket), until, now);
    }

    fn request(&mut self, message: Message, asked: Asked, until: Until, now: Instant) {
        let Some(ticket) = asked.ticket() else { return };
        if let Some(end) = self.why_not(until.begin.min(until.answer), now) {
            return self.end(ticket, end);
        }
        if self.requests.len() >= REQUESTS_MAX {
            return self.end(
                ticket,
                End::Refused("busy: too many questions wait for this drone"),
            );
        }
        let (number, frame) = self.requests.enter(message, asked, Some(until.answer));
        self.queue.push_back(Queued {
            what: What::Request(number),
            ticket: Some(ticket),
            begin: Some(until.begin),
            frame,
        });
    }

    fn why_not(&self, begin: Instant, now: Instant) -> Option<End> {
        if begin <= now {
            return Some(End::Expired);
        }
        if !self.is_here() && !self.rules.resume_queue {
            return Some(End::NoAnswer(
                "offline, and `resume_queue` is not set: nothing was sent",
            ));
        }
        (self.queue.len() >= QUEUE_MAX)
            .then_some(End::Refused("busy: too much waits for this drone; try again"))
    }

    /// Asks for a sign of life, now.
    pub fn probe(&mut self) {
        let asked = self.requests.values().any(|request| request.asked == Asked::Life);
        if self.is_here() && !asked {
            self.ask_own("id", Asked::Life);
        }
    }

    fn ask_own(&mut self, name: &str, asked: Asked) {
        let message = Message::Request {
            name: name.to_owned(),
            id: String::new(),
            arguments: Arguments::default(),
        };
        let (number, frame) = self.requests.enter(message, asked, None);
        self.queue.push_front(Queued {
            what: What::Request(number),
            ticket: OWN,
            begin: None,
            frame,
        });
    }

    /// Nobody waits for it any more: if it is not written yet, it never is, unless it is a stop that is in force. What is
    /// being written may go out whole over this connection, and over no other.
    pub fn cancel(&mut self, ticket: u64) {
        let mine = |queued: &Queued| queued.ticket == Some(ticket);
        let unwritten = self
            .queue
            .iter()
            .find(|queued| mine(queued))
            .map(|queued| queued.what);
        self.queue.retain(|queued| !mine(queued));
        match unwritten {
            Some(What::Request(number)) => drop(self.requests.remove(&number)),
            Some(What::Stop) => self.keep_stop(),
            Some(What::Act | What::Dropped) | None => {}
        }
        if let Some(in_hand) = self.in_hand.as_mut().filter(|queued| mine(queued)) {
            in_hand.ticket = None;
            if in_hand.what == What::Act {
                in_hand.what = What::Dropped;
            }
        }
        let mine = |request: &Request| request.asked.ticket() == Some(ticket);
        if !self.is_here() {
            // Its answer cannot come any more.
            self.requests.retain(|_, request| !mine(request));
        }
        for request in self.requests.values_mut().filter(|request| mine(request)) {
            request.asked = Asked::Cancelled;
        }
    }

    /// Ends everything that has not ended.
    pub fn close(&mut self, why: &'static str) {
        let queued = std::mem::take(&mut self.queue);
        for queued in self.in_hand.take().into_iter().chain(queued) {
            self.drop_queued(queued, End::NoAnswer(why));
        }
        let left: Vec<u32> = self.requests.keys().copied().collect();
        for number in left {
            self.end_request(number, || End::NoAnswer(why));
        }
        self.heard = None;
    }

    /// What is to be written now: nothing while the last frame is not [written](Self::written).
    pub fn next_frame(&mut self, now: Instant) -> Option<Frame> {
        if !self.is_here() || self.in_hand.is_some() {
            return None;
        }
        while let Some(queued) = take_first(&mut self.queue) {
            if queued.begin.is_some_and(|begin| now >= begin) {
                self.drop_late(queued);
                continue;
            }
            let frame = queued.frame.clone();
            self.in_hand = Some(queued);
            return Some(frame);
        }
        None
    }

    /// The frame in hand has been written whole.
    pub fn written(&mut self) {
        let Some(written) = self.in_hand.take() else {
            return;
        };
        match written.what {
            What::Act | What::Dropped | What::Stop => {
                if let Some(ticket) = written.ticket {
                    self.end(ticket, End::Sent);
                }
            }
            What::Request(number) => {
                if let Some(request) = self.requests.get_mut(&number) {
                    (request.written, request.ever) = (true, true);
                }
            }
        }
    }

    /// The frame in hand cannot be written at all: its names are too long for its header.
    pub fn unwritable(&mut self) {
        if let Some(queued) = self.in_hand.take() {
            self.drop_queued(queued, End::Refused("its names are too long for a frame"));
        }
    }

    /// Something of it has arrived, if not a whole frame yet.
    pub fn stirred(&mut self, now: Instant) {
        if let Some(heard) = &mut self.heard {
            *heard = now.max(*heard);
        }
    }

    /// Content is arriving. If it is a file's, that is waited for until then at least; what else the drone tells
    /// meanwhile, such as readings, puts nothing off.
    pub fn receiving(&mut self, header: &Header, until: Instant) {
        if header.message_type != MessageType::Response || header.content_type != ContentType::Binary {
            return;
        }
        for request in self.requests.values_mut() {
            if let (true, Asked::File(_), Some(at)) = (request.written, &request.asked, &mut request.until) {
                *at = until.max(*at);
            }
        }
    }

    /// Reads a frame of it. Only files may be as long as files are: JSON takes many times its length in memory, so more
    /// than [`CONTENT_BYTES_MAX`] of it is passed over unread.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        if !self.is_here() {
            return;
        }
        self.stirred(now);
        if frame.header.content_type == ContentType::Json && frame.content.len() > CONTENT_BYTES_MAX {
            let bytes = frame.content.len();
            let note = format!("{bytes} bytes of JSON; at most {CONTENT_BYTES_MAX} are read");
            return self.events.push_back(Event::PassedOver(note));
        }
        match Message::read(frame) {
            Ok(Message::Action { action, arguments }) if action == "telemetry" => {
                self.take_readings(arguments.kwargs);
            }
            Ok(Message::Response { name, id, value }) => self.take_answer(&name, &id, Ok(value)),
            Ok(Message::FileResponse { name, id, content }) => self.take_answer(&name, &id, Err(content)),
            Ok(Message::Action { action, .. }) => self.pass_over("action", &action),
            Ok(Message::Request { name, .. }) => self.pass_over("request", &name),
            Ok(Message::FilePush { path, .. }) => self.pass_over("file", &path),
            Err(error) => self.events.push_back(Event::PassedOver(error.to_string())),
        }
    }

    fn pass_over(&mut self, what: &str, name: &str) {
        let name: String = name.chars().take(80).collect();
        let note = format!("{what} {name:?} means nothing to a server");
        self.events.push_back(Event::PassedOver(note));
    }

    fn take_answer(&mut self, name: &str, id: &str, answer: Result<Value, Bytes>) {
        let number = Some(id).filter(|id| id.len() <= 10 && id.bytes().all(|b| b.is_ascii_digit()));
        let number: Option<u32> = number.and_then(|id| id.parse().ok());
        let asked = |number: &u32| {
            let request = self.requests.get(number);
            request.is_some_and(|request| request.written && request.name == name)
        };
        let Some(number) = number.filter(asked) else {
            return self.pass_over("an answer to nothing that is asked,", id);
        };
        let Some(request) = self.requests.remove(&number) else {
            return;
        };
        match (request.asked, answer) {
            (Asked::Value(ticket), Ok(value)) => self.end(ticket, End::Answer(value)),
            (Asked::File(ticket), Err(content)) => self.end(ticket, End::File(content)),
            (Asked::Value(ticket), Err(_)) => self.end(ticket, End::Unfit("it answered with a file")),
            (Asked::File(ticket), Ok(_)) => self.end(ticket, End::Unfit("it answered, but not with a file")),
            (Asked::CloverDir, Ok(value)) => self.clover_dir = CloverDir::of(value),
            (Asked::Life, Ok(value)) => {
                if let Some(id) = said_id(&value).filter(|id| *id != self.id) {
                    self.events.push_back(Event::OtherId(id));
                }
            }
            // Answered, if not with a path.
            (Asked::CloverDir, Err(_)) => self.clover_dir = CloverDir::Unknown,
            (Asked::Life, Err(_)) | (Asked::Cancelled, _) => {}
        }
    }

    fn take_readings(&mut self, kwargs: Map<String, Value>) {
        let left_out = self.readings.take(kwargs);
        self.events.push_back(Event::Telemetry);
        self.events.extend(left_out.map(Event::PassedOver));
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let begin = self.queue.iter().filter_map(|queued| queued.begin).min();
        let answer = self.requests.values().filter_map(|request| request.until).min();
        let quiet = self.heard.filter(|_| !self.too_quiet).map(|heard| {
            let asked = self.requests.values().any(|request| request.asked == Asked::Life);
            let wait = if asked {
                self.rules.idle
            } else {
                QUIET.min(self.rules.idle)
            };
            heard + wait
        });
        [begin, answer, quiet].into_iter().flatten().min()
    }

    /// Ends what has taken too long, and asks for a sign of life.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = |queued: &Queued| queued.begin.is_some_and(|begin| now >= begin);
        if self.queue.iter().any(late) {
            let (over, left): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.queue).into_iter().partition(late);
            self.queue = left;
            for queued in over {
                self.drop_late(queued);
            }
        }
        let unanswered: Vec<(u32, bool)> = self
            .requests
            .iter()
            .filter(|(_, request)| request.until.is_some_and(|until| now >= until))
            .map(|(number, request)| (*number, request.written))
            .collect();
        for (number, written) in unanswered {
            let why = match (written, self.is_here()) {
                (true, true) => "no answer: it may not know the question",
                (true, false) => "no answer before its connection was lost",
                (false, true) => "not asked in time: the drone takes nothing",
                (false, false) => "offline: not asked",
            };
            self.queue.retain(|queued| queued.what != What::Request(number));
            self.end_request(number, || End::NoAnswer(why));
        }
        let Some(heard) = self.heard else { return };
        if now >= heard + self.rules.idle {
            if !self.too_quiet {
                self.too_quiet = true;
                self.events.push_back(Event::TooQuiet);
            }
        } else if now >= heard + QUIET {
            self.probe();
        }
    }

    fn drop_queued(&mut self, queued: Queued, end: End) {
        match queued.what {
            What::Request(number) => self.end_request(number, || end),
            What::Act | What::Dropped | What::Stop => {
                if let Some(ticket) = queued.ticket {
                    self.end(ticket, end);
                }
            }
        }
    }

    fn end_request(&mut self, number: u32, end: impl FnOnce() -> End) {
        let request = self.requests.remove(&number);
        if let Some(ticket) = request.and_then(|request| request.asked.ticket()) {
            self.end(ticket, end());
        }
    }

    fn end(&mut self, ticket: u64, end: End) {
        self.events.push_back(Event::Ended(ticket, end));
    }
}
