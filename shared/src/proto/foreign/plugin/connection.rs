//! Decides what each frame of a plug-in means, and when its time is up.
//!
//! | state | ends | next |
//! |---|---|---|
//! | unregistered | `register` is parsed | registering |
//! | unregistered | [`REGISTER_TIMEOUT`], or any other message | closed |
//! | registering | [`PluginProtocol::finish_registration`] | registered, or closed |
//! | registered | a second `register`; the driver calls [`PluginProtocol::close`] | closed |
//!
//! A call is open from [`PluginProtocol::start_call`] until its one [`Event::CallEnded`]: with the plug-in's
//! response, at its time-out, when it is cancelled, or when the connection ends. Responses to calls that are not open
//! are ignored.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{
    CALLS_MAX, Callable, CallableKind, FIELD_DEPTH_MAX, FIELD_VALUE_BYTES_MAX, LOG_LINE_INTERVAL,
    LOG_LINES_BURST, REGISTER, REGISTER_TIMEOUT, Registration, TEXT_BYTES_MAX, frames, truncate,
};
use crate::proto::message::Arguments;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::{ContentType, Frame, MessageType};

/// A call of an action or request.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Unique on this node; returned with the end of the call.
    pub number: u64,
    /// Name of the action or request.
    pub name: String,
    /// By position and by name.
    pub arguments: Arguments,
    /// It does not start at or after this time.
    pub deadline: Option<Instant>,
}

/// Severity of a plug-in's log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For debugging.
    Debug,
    /// Normal operation.
    Info,
    /// Something is wrong, and the plug-in goes on.
    Warning,
    /// Something has failed.
    Error,
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Write the frame. With a call's number: call [`PluginProtocol::on_written`] once it is written.
    Send(Box<Frame>, Option<u64>),
    /// Check whether the registration is possible, and call [`PluginProtocol::finish_registration`].
    Register(Registration),
    /// The call with this number has ended.
    CallEnded(u64, Reply),
    /// New values of telemetry fields.
    Telemetry(Vec<(String, Value)>),
    /// A line for the log.
    Log(LogLevel, String),
    /// A message was ignored; the text says why, for debugging.
    Ignored(String),
    /// Write the rest and close, for this reason; no event follows.
    Close(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unregistered,
    Registering,
    Registered,
    Closed,
}

#[derive(Debug)]
struct PendingCall {
    number: u64,
    name: String,
    timeout: Duration,
    respond_by: Instant,
    answers: bool,
}

/// The node's side of one plug-in's connection.
#[derive(Debug)]
pub struct PluginProtocol {
    state: State,
    connected_at: Instant,
    registration: Option<Registration>,
    pending: BTreeMap<u64, PendingCall>,
    last_id: u64,
    events: VecDeque<Event>,
    log_limit: LogRateLimit,
}

impl PluginProtocol {
    /// A program has just connected.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Unregistered,
            connected_at: now,
            registration: None,
            pending: BTreeMap::new(),
            last_id: 0,
            events: VecDeque::new(),
            log_limit: LogRateLimit::new(now),
        }
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Unregistered => Some(self.connected_at + REGISTER_TIMEOUT),
            State::Registering | State::Closed => None,
            State::Registered => self.pending.values().map(|open| open.respond_by).min(),
        }
    }

    /// Calls that wait for their response.
    pub fn pending_calls(&self) -> usize {
        self.pending.len()
    }

    /// Whether frames are ignored from now on.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Ends what has exceeded its time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Unregistered && now >= self.connected_at + REGISTER_TIMEOUT {
            return self.close(&format!("no {REGISTER} message came within {REGISTER_TIMEOUT:?}"));
        }
        let late: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, open)| now >= open.respond_by)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(open) = self.pending.remove(&id) else {
                continue;
            };
            let (name, timeout) = (self.name().to_owned(), open.timeout);
            let why = format!("the plug-in {name} did not answer within {timeout:?}");
            self.events
                .push_back(Event::CallEnded(open.number, Reply::failed(why)));
            self.send_cancel(id, &open.name);
        }
    }

    /// Completes the registration: with what the program is told, or with the reason for a refusal.
    pub fn finish_registration(&mut self, admitted: Result<Value, String>) {
        if self.state != State::Registering {
            return;
        }
        match admitted {
            Ok(welcome) => {
                self.state = State::Registered;
                self.send(frames::register_response(&welcome));
            }
            Err(why) => self.close(&why),
        }
    }

    /// Sends a call. `boot_ms` is the time since the machine booted, which the program can read too.
    pub fn start_call(&mut self, call: Call, now: Instant, boot_ms: u64) {
        let refused = |why: String| Event::CallEnded(call.number, Reply::refused(why));
        let entry = match (&self.registration, self.state) {
            (Some(registration), State::Registered) => registration.callables.get(&call.name).cloned(),
            (_, State::Unregistered | State::Registering | State::Registered | State::Closed) => None,
        };
        let Some(entry) = entry else {
            let why = format!("no plug-in offers {:?} any more", truncate(&call.name, 80));
            return self.events.push_back(refused(why));
        };
        if call.deadline.is_some_and(|deadline| now >= deadline) {
            let reply = Reply::ended(Outcome::Expired, "its time to live ran out before it could begin");
            return self.events.push_back(Event::CallEnded(call.number, reply));
        }
        if self.pending.len() >= CALLS_MAX {
            let name = self.name();
            let why = format!("busy: the plug-in {name} has {CALLS_MAX} calls to answer; try again");
            return self.events.push_back(refused(why));
        }
        let arguments = match entry.arguments.as_ref().map(|rules| rules.check(&call.arguments)) {
            None => call.arguments,
            Some(Ok(arguments)) => arguments,
            Some(Err(why)) => return self.events.push_back(refused(why)),
        };
        let by = now + entry.timeout;
        let begin_by = call.deadline.map_or(by, |deadline| deadline.min(by));
        let left = u64::try_from((begin_by - now).as_millis()).unwrap_or(u64::MAX);
        self.last_id += 1;
        let id = format!("{:04}", self.last_id);
        let frame = Self::call_frame(&entry, &call.name, &id, boot_ms.saturating_add(left), &arguments);
        let open = PendingCall {
            number: call.number,
            name: call.name,
            timeout: entry.timeout,
            respond_by: by,
            answers: entry.answers,
        };
        self.pending.insert(self.last_id, open);
        let handed_over = (!entry.answers).then_some(call.number);
        self.events.push_back(Event::Send(Box::new(frame), handed_over));
    }

    fn call_frame(entry: &Callable, name: &str, id: &str, until: u64, arguments: &Arguments) -> Frame {
        match entry.kind {
            CallableKind::Action => frames::action(name, id, until, arguments),
            CallableKind::Request => frames::request(name, id, until, arguments),
        }
    }

    /// The frame of a call without a response has been written as a whole.
    pub fn on_written(&mut self, number: u64) {
        let found = self
            .pending
            .iter()
            .find(|(_, open)| open.number == number && !open.answers);
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        self.pending.remove(&id);
        let told = format!("handed to the plug-in {}, which does not answer", self.name());
        self.events
            .push_back(Event::CallEnded(number, Reply::done(told.into())));
    }

    /// Cancels a call, and notifies the plug-in.
    pub fn cancel(&mut self, number: u64) {
        let found = self
            .pending
            .iter()
            .find(|(_, open)| open.number == number)
            .map(|(id, _)| *id);
        if let Some((id, open)) = found.and_then(|id| self.pending.remove(&id).map(|open| (id, open))) {
            self.events
                .push_back(Event::CallEnded(number, Reply::failed("it was cancelled")));
            self.send_cancel(id, &open.name);
        }
    }

    /// Closes the connection: the program is told why, and every open call ends.
    pub fn close(&mut self, why: &str) {
        if self.state != State::Closed {
            self.send(frames::register_error(why));
        }
        self.close_with("was closed", why);
    }

    /// The program has closed the connection, or it is broken.
    pub fn on_disconnected(&mut self, why: &str) {
        self.close_with("went away", why);
    }

    fn close_with(&mut self, how: &str, why: &str) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        let name = self.name().to_owned();
        for open in std::mem::take(&mut self.pending).into_values() {
            let reply = Reply::failed(format!("the plug-in {name} {how} while {} ran: {why}", open.name));
            self.events.push_back(Event::CallEnded(open.number, reply));
        }
        self.events.push_back(Event::Close(why.to_owned()));
    }

    /// Handles a frame of the program.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        match self.state {
            State::Closed => {}
            State::Registering => self.close("wait for the answer to register before saying more"),
            State::Unregistered => match parse_registration(frame) {
                Ok(registration) => {
                    self.registration = Some(registration.clone());
                    self.state = State::Registering;
                    self.events.push_back(Event::Register(registration));
                }
                Err(why) => self.close(&why),
            },
            State::Registered => match frame.header.message_type {
                MessageType::Response => self.on_response(frame),
                MessageType::Message => self.on_message(frame, now),
                MessageType::Request => self.on_request(frame),
            },
        }
    }

    fn on_response(&mut self, frame: &Frame) {
        let id = frame.header.request_id.as_deref().and_then(|id| id.parse().ok());
        let Some(open) = id.and_then(|id: u64| self.pending.remove(&id)) else {
            let id = frame.header.request_id.as_deref().unwrap_or_default();
            let note = format!(
                "an answer to nothing that is asked, request_id {:?}",
                truncate(id, 80)
            );
            return self.events.push_back(Event::Ignored(note));
        };
        self.events
            .push_back(Event::CallEnded(open.number, parse_response(frame)));
    }

    fn on_message(&mut self, frame: &Frame, now: Instant) {
        let action = frame.header.action.as_deref().unwrap_or_default();
        let content = match action {
            REGISTER => return self.close("it is registered already: to offer something else, connect anew"),
            "telemetry" | "log" => parse_arguments(frame),
            other => {
                let note = format!("a message that means nothing here: {:?}", truncate(other, 80));
                return self.events.push_back(Event::Ignored(note));
            }
        };
        match content {
            Err(why) => self.close(&format!("{action}: {why}")),
            Ok(arguments) if action == "log" => self.on_log(&arguments, now),
            Ok(arguments) => self.on_telemetry(arguments.kwargs),
        }
    }

    fn on_log(&mut self, arguments: &Arguments, now: Instant) {
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
        match self.log_limit.try_take(now) {
            Some(left_out) => {
                if left_out > 0 {
                    let note = format!("{left_out} lines were left out: it logs too much");
                    self.events.push_back(Event::Log(LogLevel::Warning, note));
                }
                let text = truncate(text, TEXT_BYTES_MAX).to_owned();
                self.events.push_back(Event::Log(level, text));
            }
            None => self
                .events
                .push_back(Event::Ignored("a line of too many".to_owned())),
        }
    }

    fn on_telemetry(&mut self, mut given: Map<String, Value>) {
        let Some(registration) = &self.registration else {
            return;
        };
        let known = &registration.fields;
        // Telemetry in the form of clever-show's own clients.
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
            self.events.push_back(Event::Telemetry(fields));
        }
        if let Some(name) = strange {
            let note = format!(
                "telemetry that is not registered, longer than {FIELD_VALUE_BYTES_MAX} bytes or nested too deeply: {:?}",
                truncate(&name, 80)
            );
            self.events.push_back(Event::Ignored(note));
        }
    }

    fn on_request(&mut self, frame: &Frame) {
        let content = frame.json_value().unwrap_or_default();
        let text = |key: &str| match content.get(key) {
            Some(Value::String(text)) => truncate(text, 80).to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => String::new(),
        };
        let why = "a node answers no questions of its plug-ins";
        self.send(frames::error_response(
            &text("requested_value"),
            &text("request_id"),
            why,
        ));
    }

    fn send(&mut self, frame: Frame) {
        self.events.push_back(Event::Send(Box::new(frame), None));
    }

    fn send_cancel(&mut self, id: u64, name: &str) {
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

fn parse_registration(frame: &Frame) -> Result<Registration, String> {
    let header = &frame.header;
    if header.message_type != MessageType::Message || header.action.as_deref() != Some(REGISTER) {
        return Err(format!(
            "the first frame must be a message whose action is {REGISTER:?}; docs/plugins.md shows one"
        ));
    }
    let arguments = parse_arguments(frame)?;
    if !arguments.args.is_empty() || arguments.kwargs.is_empty() {
        return Err(super::RegisterError::NoArguments.to_string());
    }
    Registration::parse(&arguments.kwargs).map_err(|error| error.to_string())
}

fn parse_arguments(frame: &Frame) -> Result<Arguments, String> {
    let value = frame.json_value().map_err(|error| error.to_string())?;
    serde_json::from_value(value).map_err(|error| {
        let error = error.to_string();
        format!(
            "its content must be {{\"args\": [], \"kwargs\": {{}}}}: {}",
            truncate(&error, TEXT_BYTES_MAX)
        )
    })
}

fn parse_response(frame: &Frame) -> Reply {
    let shape = "it must be {\"value\": …} or {\"error\": \"…\"}";
    if frame.header.content_type == ContentType::Binary {
        return Reply::failed(format!("its answer is bytes; {shape}"));
    }
    let content = match frame.json_value() {
        Ok(content) => content,
        Err(error) => return Reply::failed(format!("its answer is unreadable: {error}; {shape}")),
    };
    let Value::Object(mut content) = content else {
        return Reply::failed(format!("its answer is no object; {shape}"));
    };
    match (content.remove("error"), content.remove("value")) {
        (Some(Value::String(error)), _) => Reply::failed(truncate(&error, TEXT_BYTES_MAX)),
        (None | Some(Value::Null), Some(value)) => Reply::done(value),
        (None | Some(Value::Null), None) => Reply::failed(format!("its answer says nothing; {shape}")),
        (Some(error), _) => Reply::failed(truncate(&error.to_string(), TEXT_BYTES_MAX)),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
    }
}

/// Log lines that are available: [`LOG_LINES_BURST`], and one more every [`LOG_LINE_INTERVAL`].
#[derive(Debug)]
struct LogRateLimit {
    lines_left: u32,
    refilled_at: Instant,
    suppressed: u64,
}

impl LogRateLimit {
    fn new(now: Instant) -> Self {
        Self {
            lines_left: LOG_LINES_BURST,
            refilled_at: now,
            suppressed: 0,
        }
    }

    /// Takes one line, and returns how many were dropped before it; `None` if none is available.
    fn try_take(&mut self, now: Instant) -> Option<u64> {
        let passed =
            now.saturating_duration_since(self.refilled_at).as_millis() / LOG_LINE_INTERVAL.as_millis();
        let earned = u32::try_from(passed).unwrap_or(u32::MAX);
        if earned > 0 {
            self.lines_left = self.lines_left.saturating_add(earned).min(LOG_LINES_BURST);
            self.refilled_at = now;
        }
        if self.lines_left == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.lines_left -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}
