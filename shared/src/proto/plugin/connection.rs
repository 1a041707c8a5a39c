//! What each frame of a plug-in means, and when its time is up.
//!
//! | state | ends | into |
//! |---|---|---|
//! | greeting | `register` is read | asked |
//! | greeting | [`REGISTER_WAIT`], or anything else is said | closed |
//! | asked | [`Conversation::admit`] | registered, or closed |
//! | registered | a second `register`; the driver says [`Conversation::close`] | closed |
//!
//! A call is open from [`Conversation::begin`] until its one [`Event::Ended`]: with the plug-in's answer, after its
//! time, when it is called off, or when the conversation is closed. What comes for a call that is not open is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{
    CALLS_MAX, Entry, EntryKind, FIELD_DEPTH_MAX, FIELD_VALUE_BYTES_MAX, LOG_LINE_EVERY, LOG_LINES_MAX,
    REGISTER, REGISTER_WAIT, Registration, TEXT_BYTES_MAX, cut, frames,
};
use crate::proto::message::Arguments;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::{ContentType, Frame, MessageType};

/// Something for the plug-in to do or to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Unique on this node; given back with the end.
    pub number: u64,
    /// The action or request.
    pub name: String,
    /// With what.
    pub arguments: Arguments,
    /// When it must not begin any more.
    pub deadline: Option<Instant>,
}

/// How much a line of a plug-in matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For whoever looks for a fault.
    Debug,
    /// Of interest.
    Info,
    /// Something is wrong.
    Warning,
    /// Something has failed.
    Error,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Write this. With a call's number: tell [`Conversation::handed_over`] when it is written.
    Send(Box<Frame>, Option<u64>),
    /// Find out whether it may be, and tell [`Conversation::admit`].
    Register(Registration),
    /// The call with this number has ended.
    Ended(u64, Reply),
    /// New values of telemetry fields.
    Fields(Vec<(String, Value)>),
    /// A line for the log.
    Log(LogLevel, String),
    /// Something was passed over, for whoever looks for a fault.
    PassedOver(String),
    /// Write what is left and close; nothing follows.
    Close(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Asked,
    Registered,
    Closed,
}

#[derive(Debug)]
struct Open {
    number: u64,
    name: String,
    timeout: Duration,
    by: Instant,
    answers: bool,
}

/// A program's side of the socket. See the module.
#[derive(Debug)]
pub struct Conversation {
    state: State,
    began: Instant,
    registration: Option<Registration>,
    open: BTreeMap<u64, Open>,
    last_id: u64,
    events: VecDeque<Event>,
    lines: Lines,
}

impl Conversation {
    /// With a program that has just connected.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Greeting,
            began: now,
            registration: None,
            open: BTreeMap::new(),
            last_id: 0,
            events: VecDeque::new(),
            lines: Lines::new(now),
        }
    }

    /// What is to be done next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Greeting => Some(self.began + REGISTER_WAIT),
            State::Asked | State::Closed => None,
            State::Registered => self.open.values().map(|open| open.by).min(),
        }
    }

    /// How many calls wait for their answers.
    pub fn open_calls(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is read any more.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Ends what has taken too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Greeting && now >= self.began + REGISTER_WAIT {
            return self.close(&format!("no {REGISTER} message came within {REGISTER_WAIT:?}"));
        }
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| now >= open.by)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(open) = self.open.remove(&id) else {
                continue;
            };
            let (name, timeout) = (self.name().to_owned(), open.timeout);
            let why = format!("the plug-in {name} did not answer within {timeout:?}");
            self.events
                .push_back(Event::Ended(open.number, Reply::failed(why)));
            self.tell_cancelled(id, &open.name);
        }
    }

    /// Whether the program may be what it registered as, or why not.
    pub fn admit(&mut self, admitted: Result<Value, String>) {
        if self.state != State::Asked {
            return;
        }
        match admitted {
            Ok(welcome) => {
                self.state = State::Registered;
                self.send(frames::answer(&welcome));
            }
            Err(why) => self.close(&why),
        }
    }

    /// Passes a call on. `boot_ms` is the machine's own clock since it booted, which the program can read too.
    pub fn begin(&mut self, call: Call, now: Instant, boot_ms: u64) {
        let refused = |why: String| Event::Ended(call.number, Reply::refused(why));
        let entry = match (&self.registration, self.state) {
            (Some(registration), State::Registered) => registration.entries.get(&call.name).cloned(),
            (_, State::Greeting | State::Asked | State::Registered | State::Closed) => None,
        };
        let Some(entry) = entry else {
            let why = format!("no plug-in offers {:?} any more", cut(&call.name, 80));
            return self.events.push_back(refused(why));
        };
        if call.deadline.is_some_and(|deadline| now >= deadline) {
            let reply = Reply::ended(Outcome::Expired, "its time to live ran out before it could begin");
            return self.events.push_back(Event::Ended(call.number, reply));
        }
        if self.open.len() >= CALLS_MAX {
            let name = self.name();
            let why = format!("busy: the plug-in {name} has {CALLS_MAX} calls to answer; try again");
            return self.events.push_back(refused(why));
        }
        let arguments = match entry.args.as_ref().map(|rules| rules.check(&call.arguments)) {
            None => call.arguments,
            Some(Ok(arguments)) => arguments,
            Some(Err(why)) => return self.events.push_back(refused(why)),
        };
        let by = now + entry.timeout;
        let begin_by = call.deadline.map_or(by, |deadline| deadline.min(by));
        let left = u64::try_from((begin_by - now).as_millis()).unwrap_or(u64::MAX);
        self.last_id += 1;
        let id = format!("{:04}", self.last_id);
        let frame = Self::frame(&entry, &call.name, &id, boot_ms.saturating_add(left), &arguments);
        let open = Open {
            number: call.number,
            name: call.name,
            timeout: entry.timeout,
            by,
            answers: entry.answers,
        };
        self.open.insert(self.last_id, open);
        let handed_over = (!entry.answers).then_some(call.number);
        self.events.push_back(Event::Send(Box::new(frame), handed_over));
    }

    fn frame(entry: &Entry, name: &str, id: &str, until: u64, arguments: &Arguments) -> Frame {
        match entry.kind {
            EntryKind::Action => frames::action(name, id, until, arguments),
            EntryKind::Request => frames::request(name, id, until, arguments),
        }
    }

    /// The frame of a call that is not answered has been written whole.
    pub fn handed_over(&mut self, number: u64) {
        let found = self
            .open
            .iter()
            .find(|(_, open)| open.number == number && !open.answers);
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        self.open.remove(&id);
        let told = format!("handed to the plug-in {}, which does not answer", self.name());
        self.events
            .push_back(Event::Ended(number, Reply::done(told.into())));
    }

    /// Nobody waits for this call any more. The plug-in is told.
    pub fn cancel(&mut self, number: u64) {
        let found = self
            .open
            .iter()
            .find(|(_, open)| open.number == number)
            .map(|(id, _)| *id);
        if let Some((id, open)) = found.and_then(|id| self.open.remove(&id).map(|open| (id, open))) {
            self.events
                .push_back(Event::Ended(number, Reply::failed("it was called off")));
            self.tell_cancelled(id, &open.name);
        }
    }

    /// Ends it from this side: the program is told why, and every open call ends.
    pub fn close(&mut self, why: &str) {
        if self.state != State::Closed {
            self.send(frames::no_answer(why));
        }
        self.end("was closed", why);
    }

    /// The program has closed its side, or its connection is broken.
    pub fn lost(&mut self, why: &str) {
        self.end("went away", why);
    }

    fn end(&mut self, how: &str, why: &str) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        let name = self.name().to_owned();
        for open in std::mem::take(&mut self.open).into_values() {
            let reply = Reply::failed(format!("the plug-in {name} {how} while {} ran: {why}", open.name));
            self.events.push_back(Event::Ended(open.number, reply));
        }
        self.events.push_back(Event::Close(why.to_owned()));
    }

    /// Reads a frame of the program.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        match self.state {
            State::Closed => {}
            State::Asked => self.close("wait for the answer to register before saying more"),
            State::Greeting => match read_register(frame) {
                Ok(registration) => {
                    self.registration = Some(registration.clone());
                    self.state = State::Asked;
                    self.events.push_back(Event::Register(registration));
                }
                Err(why) => self.close(&why),
            },
            State::Registered => match frame.header.message_type {
                MessageType::Response => self.take_answer(frame),
                MessageType::Message => self.take_message(frame, now),
                MessageType::Request => self.take_request(frame),
            },
        }
    }

    fn take_answer(&mut self, frame: &Frame) {
        let id = frame.header.request_id.as_deref().and_then(|id| id.parse().ok());
        let Some(open) = id.and_then(|id: u64| self.open.remove(&id)) else {
            let id = frame.header.request_id.as_deref().unwrap_or_default();
            let note = format!("an answer to nothing that is asked, request_id {:?}", cut(id, 80));
            return self.events.push_back(Event::PassedOver(note));
        };
        self.events
            .push_back(Event::Ended(open.number, read_answer(frame)));
    }

    fn take_message(&mut self, frame: &Frame, now: Instant) {
        let action = frame.header.action.as_deref().unwrap_or_default();
        let content = match action {
            REGISTER => return self.close("it is registered already: to offer something else, connect anew"),
            "telemetry" | "log" => read_arguments(frame),
            other => {
                let note = format!("a message that means nothing here: {:?}", cut(other, 80));
                return self.events.push_back(Event::PassedOver(note));
            }
        };
        match content {
            Err(why) => self.close(&format!("{action}: {why}")),
            Ok(arguments) if action == "log" => self.take_line(&arguments, now),
            Ok(arguments) => self.take_fields(arguments.kwargs),
        }
    }

    fn take_line(&mut self, arguments: &Arguments, now: Instant) {
        let text = arguments.kwargs.get("text").or(arguments.args.first());
        let Some(text) = text.and_then(Value::as_str) else {
            return self.close(
                "log needs a text: {\"args\": [], \"kwargs\": {\"text\": \"…\", \"level\": \"info\"}}",
            );
        };
        let level = match arguments.kwargs.get("level").and_then(Value::as_str) {
            Some("debug") => LogLevel::Debug,
            Some("warning" | "warn") => LogLevel::Warning,
            Some("error") => LogLevel::Error,
            Some(_) | None => LogLevel::Info,
        };
        match self.lines.take(now) {
            Some(left_out) => {
                if left_out > 0 {
                    let note = format!("{left_out} lines were left out: it logs too much");
                    self.events.push_back(Event::Log(LogLevel::Warning, note));
                }
                let text = cut(text, TEXT_BYTES_MAX).to_owned();
                self.events.push_back(Event::Log(level, text));
            }
            None => self
                .events
                .push_back(Event::PassedOver("a line of too many".to_owned())),
        }
    }

    fn take_fields(&mut self, mut given: Map<String, Value>) {
        let Some(registration) = &self.registration else {
            return;
        };
        let known = &registration.fields;
        // As clever-show's own clients tell it.
        if given.len() == 1
            && !known.contains_key("value")
            && let Some(Value::Object(fields)) = given.get_mut("value")
        {
            given = std::mem::take(fields);
        }
        let (mut fields, mut strange) = (Vec::new(), None);
        for (name, value) in given {
            let fits = known.contains_key(&name)
                && depth(&value) <= FIELD_DEPTH_MAX
                && value.to_string().len() <= FIELD_VALUE_BYTES_MAX;
            if fits {
                fields.push((name, value));
            } else {
                strange = Some(name);
            }
        }
        if !fields.is_empty() {
            self.events.push_back(Event::Fields(fields));
        }
        if let Some(name) = strange {
            let note = format!(
                "telemetry that is not registered, longer than {FIELD_VALUE_BYTES_MAX} bytes or nested too deeply: {:?}",
                cut(&name, 80)
            );
            self.events.push_back(Event::PassedOver(note));
        }
    }

    fn take_request(&mut self, frame: &Frame) {
        let content = frame.value().unwrap_or_default();
        let text = |key: &str| match content.get(key) {
            Some(Value::String(text)) => cut(text, 80).to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => String::new(),
        };
        let why = "a node answers no questions of its plug-ins";
        self.send(frames::no_answer_to(
            &text("requested_value"),
            &text("request_id"),
            why,
        ));
    }

    fn send(&mut self, frame: Frame) {
        self.events.push_back(Event::Send(Box::new(frame), None));
    }

    fn tell_cancelled(&mut self, id: u64, name: &str) {
        let mut kwargs = Map::new();
        kwargs.insert("request_id".to_owned(), format!("{id:04}").into());
        kwargs.insert("action".to_owned(), name.into());
        self.send(frames::message("cancel", kwargs));
    }

    fn name(&self) -> &str {
        self.registration
            .as_ref()
            .map_or("?", |registration| &registration.name)
    }
}

fn read_register(frame: &Frame) -> Result<Registration, String> {
    let header = &frame.header;
    if header.message_type != MessageType::Message || header.action.as_deref() != Some(REGISTER) {
        return Err(format!(
            "the first frame must be a message whose action is {REGISTER:?}; docs/plugins.md shows one"
        ));
    }
    let arguments = read_arguments(frame)?;
    if !arguments.args.is_empty() || arguments.kwargs.is_empty() {
        return Err(super::RegisterError::NoArguments.to_string());
    }
    Registration::read(&arguments.kwargs).map_err(|error| error.to_string())
}

fn read_arguments(frame: &Frame) -> Result<Arguments, String> {
    let value = frame.value().map_err(|error| error.to_string())?;
    serde_json::from_value(value).map_err(|error| {
        let error = error.to_string();
        format!(
            "its content must be {{\"args\": [], \"kwargs\": {{}}}}: {}",
            cut(&error, TEXT_BYTES_MAX)
        )
    })
}

fn read_answer(frame: &Frame) -> Reply {
    let shape = "it must be {\"value\": …} or {\"error\": \"…\"}";
    if frame.header.content_type == ContentType::Binary {
        return Reply::failed(format!("its answer is bytes; {shape}"));
    }
    let content = match frame.value() {
        Ok(content) => content,
        Err(error) => return Reply::failed(format!("its answer is unreadable: {error}; {shape}")),
    };
    let Value::Object(mut content) = content else {
        return Reply::failed(format!("its answer is no object; {shape}"));
    };
    match (content.remove("error"), content.remove("value")) {
        (Some(Value::String(error)), _) => Reply::failed(cut(&error, TEXT_BYTES_MAX)),
        (None | Some(Value::Null), Some(value)) => Reply::done(value),
        (None | Some(Value::Null), None) => Reply::failed(format!("its answer says nothing; {shape}")),
        (Some(error), _) => Reply::failed(cut(&error.to_string(), TEXT_BYTES_MAX)),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
    }
}

/// Lines that may still be logged: some at once, and one more every [`LOG_LINE_EVERY`].
#[derive(Debug)]
struct Lines {
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self {
            left: LOG_LINES_MAX,
            since: now,
            left_out: 0,
        }
    }

    /// Takes one, and says how many were left out before it; `None` if there is none to take.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_millis() / LOG_LINE_EVERY.as_millis();
        let earned = u32::try_from(passed).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(LOG_LINES_MAX);
            self.since = now;
        }
        if self.left == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}
