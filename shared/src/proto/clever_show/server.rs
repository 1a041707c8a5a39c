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
//! An emergency stop drops every action and file that is queued, goes before everything else, goes again at each new
//! connection, and refuses further actions and files, until [`Drone::release`].
//!
//! Invariants: every ticket gets exactly one [`Event::Ended`], unless it is [cancelled](Drone::cancel); nothing is begun
//! after its deadline.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::message::{Message, request_id};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// Most frames of one drone that wait to be written.
pub const QUEUE_MAX: usize = 256;
/// Most bytes of files that wait to be written; one file may be longer, alone.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most requests of one drone that wait for their answers.
pub const REQUESTS_MAX: usize = 256;
/// Silence after which a drone is asked for a sign of life.
pub const QUIET: Duration = Duration::from_secs(5);
/// Most readings of one drone.
pub const READINGS_MAX: usize = 64;
/// Longest reading, in bytes of JSON.
pub const READING_BYTES_MAX: usize = 512;

/// What a lost connection means, and a long silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Messages that are queued when a connection is lost, or while there is none, are sent at the next one.
    pub resume_queue: bool,
    /// Requests without an answer are asked again at the next connection.
    pub resend_requests: bool,
    /// The longest silence.
    pub idle: Duration,
}

/// Until when something may begin, and be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    /// It is not begun after this.
    pub begin: Instant,
    /// An answer is not waited for after this.
    pub answer: Instant,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Written whole. That is all that can be known.
    Sent,
    /// Answered.
    Answer(Value),
    /// Answered with a file.
    File(Bytes),
    /// The answer is not of the kind that was asked for.
    Unfit(&'static str),
    /// It could not begin in time.
    Expired,
    /// No answer, and why.
    NoAnswer(&'static str),
    /// Not tried, and why.
    Refused(&'static str),
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What the ticket is about has ended.
    Ended(u64, End),
    /// New readings; also in [`Drone::readings`].
    Telemetry,
    /// It says that it is called otherwise now: close the connection, so that it comes in anew.
    OtherId(String),
    /// Nothing was heard for too long: close the connection.
    TooQuiet,
    /// Something was passed over, for whoever looks for a fault.
    PassedOver(String),
}

/// What a queued frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// An action or a file.
    Act,
    /// The emergency stop.
    Stop,
    /// A request, with its number.
    Request(u32),
}

#[derive(Clone, Debug)]
struct Queued {
    what: What,
    ticket: Option<u64>,
    /// Not begun after this, if anything asks for it.
    begin: Option<Instant>,
    frame: Frame,
}

/// What an answer has to be, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Value(u64),
    File(u64),
    CloverDir,
    /// A sign of life.
    Life,
    /// Nobody's any more.
    Cancelled,
}

#[derive(Clone, Debug)]
struct Request {
    name: String,
    asked: Asked,
    until: Option<Instant>,
    frame: Frame,
    /// Whether it has been written on this connection.
    written: bool,
    /// Whether it has ever been written.
    ever: bool,
}

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
    requests: BTreeMap<u32, Request>,
    last_number: u32,
    clover_dir: Option<Value>,
    readings: BTreeMap<String, Value>,
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
            requests: BTreeMap::new(),
            last_number: 0,
            clover_dir: None,
            readings: BTreeMap::new(),
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

    /// Where it keeps its programs, once it has said so.
    pub fn clover_dir(&self) -> Option<&str> {
        self.clover_dir.as_ref().and_then(Value::as_str)
    }

    /// What it last told of itself.
    pub fn readings(&self) -> &BTreeMap<String, Value> {
        &self.readings
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
        let again: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| request.written)
            .map(|(number, _)| *number)
            .collect();
        for number in again.into_iter().rev() {
            let Some(request) = self.requests.get_mut(&number) else {
                continue;
            };
            request.written = false;
            let ticket = request.asked.ticket();
            let frame = request.frame.clone();
            self.queue.push_front(Queued {
                what: What::Request(number),
                ticket,
                // It began in time.
                begin: None,
                frame,
            });
        }
        let asks_dir = |request: &Request| request.asked == Asked::CloverDir;
        if self.clover_dir.is_none() && !self.requests.values().any(asks_dir) {
            self.ask_own("clover_dir", Asked::CloverDir);
        }
        if let Some(stop) = &self.stopped
            && !self.queue.iter().any(|queued| queued.what == What::Stop)
        {
            let frame = stop.to_frame();
            self.push_stop(OWN, None, frame);
        }
    }

    /// Its connection is gone.
    pub fn disconnected(&mut self, now: Instant) {
        if self.heard.take().is_none() {
            return;
        }
        if let Some(half) = self.in_hand.take() {
            self.queue.push_front(half);
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
                    What::Act => false,
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
        let number = self.enter(message, asked, Some(until.answer));
        let Some(request) = self.requests.get(&number) else {
            return;
        };
        let frame = request.frame.clone();
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
        let number = self.enter(message, asked, None);
        if let Some(request) = self.requests.get(&number) {
            let frame = request.frame.clone();
            self.queue.push_front(Queued {
                what: What::Request(number),
                ticket: OWN,
                begin: None,
                frame,
            });
        }
    }

    /// Gives a request its number.
    fn enter(&mut self, mut message: Message, asked: Asked, until: Option<Instant>) -> u32 {
        let mut number = self.last_number;
        loop {
            number = number.wrapping_add(1);
            if !self.requests.contains_key(&number) {
                break;
            }
        }
        self.last_number = number;
        let name = match &mut message {
            Message::Request { name, id, .. } => {
                *id = request_id(number);
                name.clone()
            }
            Message::Action { .. }
            | Message::FilePush { .. }
            | Message::Response { .. }
            | Message::FileResponse { .. } => String::new(),
        };
        let request = Request {
            name,
            asked,
            until,
            frame: message.to_frame(),
            written: false,
            ever: false,
        };
        self.requests.insert(number, request);
        number
    }

    /// Stops it, or tells it once more. Ended as [`End::Sent`] when that is written; while it is away, that waits.
    pub fn stop(&mut self, ticket: u64, action: &str, begin: Instant) {
        let arguments = Arguments::default();
        let action = action.to_owned();
        let message = Message::Action { action, arguments };
        let frame = message.to_frame();
        self.stopped = Some(message);
        for queued in std::mem::take(&mut self.queue) {
            match queued.what {
                What::Act => self.drop_queued(queued, End::Refused("dropped by an emergency stop")),
                What::Stop if queued.ticket.is_none() => {}
                What::Stop | What::Request(_) => self.queue.push_back(queued),
            }
        }
        self.push_stop(Some(ticket), Some(begin), frame);
    }

    fn push_stop(&mut self, ticket: Option<u64>, begin: Option<Instant>, frame: Frame) {
        self.queue.push_front(Queued {
            what: What::Stop,
            ticket,
            begin,
            frame,
        });
    }

    /// Ends an emergency stop. Whether there was one.
    pub fn release(&mut self) -> bool {
        self.queue
            .retain(|queued| queued.what != What::Stop || queued.ticket.is_some());
        self.stopped.take().is_some()
    }

    /// Nobody waits for it any more: if it is not written yet, it never is.
    pub fn cancel(&mut self, ticket: u64) {
        let mine = |queued: &Queued| queued.ticket == Some(ticket);
        let unwritten = self
            .queue
            .iter()
            .find(|queued| mine(queued))
            .map(|queued| queued.what);
        self.queue.retain(|queued| !mine(queued));
        if let Some(What::Request(number)) = unwritten {
            self.requests.remove(&number);
        }
        if let Some(in_hand) = self.in_hand.as_mut().filter(|queued| mine(queued)) {
            in_hand.ticket = None;
        }
        for request in self.requests.values_mut() {
            if request.asked.ticket() == Some(ticket) {
                request.asked = Asked::Cancelled;
            }
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
        while let Some(queued) = self.queue.pop_front() {
            if queued.begin.is_some_and(|begin| now >= begin) {
                self.drop_queued(queued, End::Expired);
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
            What::Act | What::Stop => {
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

    /// A frame is arriving: a file that is asked for may be in it, and is waited for until then at least.
    pub fn receiving(&mut self, until: Instant) {
        for request in self.requests.values_mut() {
            if let (true, Asked::File(_), Some(at)) = (request.written, &request.asked, &mut request.until) {
                *at = until.max(*at);
            }
        }
    }

    /// Reads a frame of it.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        if !self.is_here() {
            return;
        }
        self.stirred(now);
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
            (Asked::CloverDir, Ok(value)) => self.clover_dir = Some(value),
            (Asked::Life, Ok(value)) => {
                if let Some(id) = said_id(&value).filter(|id| *id != self.id) {
                    self.events.push_back(Event::OtherId(id));
                }
            }
            (Asked::CloverDir | Asked::Life, Err(_)) | (Asked::Cancelled, _) => {}
        }
    }

    /// `value` holds an object of readings; some programs leave it out.
    fn take_readings(&mut self, mut kwargs: Map<String, Value>) {
        let readings = match kwargs.remove("value") {
            Some(Value::Object(readings)) => readings,
            Some(value) => {
                kwargs.insert("value".to_owned(), value);
                kwargs
            }
            None => kwargs,
        };
        let mut left_out = 0;
        for (name, value) in readings {
            let known = self.readings.contains_key(&name);
            let room = known || self.readings.len() < READINGS_MAX;
            if room && name.len() <= READING_BYTES_MAX && value.to_string().len() <= READING_BYTES_MAX {
                self.readings.insert(name, value);
            } else {
                left_out += 1;
            }
        }
        self.events.push_back(Event::Telemetry);
        if left_out > 0 {
            let note = format!(
                "{left_out} readings beyond {READINGS_MAX}, or longer than {READING_BYTES_MAX} bytes"
            );
            self.events.push_back(Event::PassedOver(note));
        }
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
                self.drop_queued(queued, End::Expired);
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
            What::Act | What::Stop => {
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

impl Asked {
    fn ticket(&self) -> Option<u64> {
        match self {
            Self::Value(ticket) | Self::File(ticket) => Some(*ticket),
            Self::CloverDir | Self::Life | Self::Cancelled => None,
        }
    }
}

/// The id in an answer to `id`: a text of sensible length, or a number.
pub fn said_id(value: &Value) -> Option<String> {
    let id = match value {
        Value::String(id) => id.trim().to_owned(),
        Value::Number(id) => id.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (!id.is_empty() && id.len() <= super::ID_BYTES_MAX).then_some(id)
}

/// The first question of a connection: who are you?
pub fn ask_id() -> Frame {
    let message = Message::Request {
        name: "id".to_owned(),
        id: request_id(0),
        arguments: Arguments::default(),
    };
    message.to_frame()
}

/// The id, if a frame answers [`ask_id`].
pub fn answers_id(frame: &Frame) -> Option<Result<String, BadId>> {
    match Message::read(frame) {
        Ok(Message::Response { name, id, value }) if name == "id" && id.parse() == Ok(0_u32) => {
            Some(said_id(&value).ok_or(BadId))
        }
        Ok(_) | Err(_) => None,
    }
}

/// An answer to `id` that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its id is no text of 1 to 253 bytes")]
pub struct BadId;
