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
    CALLS_MAX, CallableKind, FIELD_DEPTH_MAX, FIELD_VALUE_BYTES_MAX, LOG_LINE_INTERVAL, LOG_LINES_BURST,
    REGISTER, REGISTER_TIMEOUT, Registration, TEXT_BYTES_MAX, frames, truncate,
};
use crate::proto::message::Arguments;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::rate::{Throttle, TokenBucket};
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
    log_throttle: Throttle,
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
            log_throttle: Throttle::new(TokenBucket::every(LOG_LINE_INTERVAL, LOG_LINES_BURST)),
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
        while let Some((id, late)) = self.take_call(|open| now >= open.respond_by) {
            let why = format!(
                "the plug-in {} did not answer within {:?}",
                self.name(),
                late.timeout
            );
            self.end_call(late.number, Reply::failed(why));
            self.send_cancel(id, &late.name);
        }
    }

    /// Completes the registration: with the value of the response to the program, or with the reason for a refusal.
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
        let number = call.number;
        if let Err(reply) = self.try_start_call(call, now, boot_ms) {
            self.end_call(number, reply);
        }
    }

    fn try_start_call(&mut self, call: Call, now: Instant, boot_ms: u64) -> Result<(), Reply> {
        let registration = self.registration.as_ref();
        let registration = registration.filter(|_| self.state == State::Registered);
        let callable = registration.and_then(|registration| registration.callables.get(&call.name));
        let Some(callable) = callable else {
            let name = truncate(&call.name, 80);
            return Err(Reply::refused(format!("no plug-in offers {name:?} any more")));
        };
        if call.deadline.is_some_and(|deadline| now >= deadline) {
            let why = "its time to live ran out before it could begin";
            return Err(Reply::ended(Outcome::Expired, why));
        }
        if self.pending.len() >= CALLS_MAX {
            let name = self.name();
            let why = format!("busy: the plug-in {name} has {CALLS_MAX} calls to answer; try again");
            return Err(Reply::refused(why));
        }
        let arguments = match &callable.arguments {
            None => call.arguments,
            Some(specs) => specs.check(&call.arguments).map_err(Reply::refused)?,
        };
        let respond_by = now + callable.timeout;
        let start_by = call
            .deadline
            .map_or(respond_by, |deadline| deadline.min(respond_by));
        let left = u64::try_from((start_by - now).as_millis()).unwrap_or(u64::MAX);
        let until = boot_ms.saturating_add(left);
        self.last_id += 1;
        let id = request_id(self.last_id);
        let frame = match callable.kind {
            CallableKind::Action => frames::action(&call.name, &id, until, &arguments),
            CallableKind::Request => frames::request(&call.name, &id, until, &arguments),
        };
        let answers = callable.answers;
        let open = PendingCall {
            number: call.number,
            name: call.name,
            timeout: callable.timeout,
            respond_by,
            answers,
        };
        self.pending.insert(self.last_id, open);
        let ends_when_written = (!answers).then_some(call.number);
        self.events
            .push_back(Event::Send(Box::new(frame), ends_when_written));
        Ok(())
    }

    /// The frame of a call without a response has been written as a whole.
    pub fn on_written(&mut self, number: u64) {
        let written = self.take_call(|open| open.number == number && !open.answers);
        if written.is_some() {
            let value = format!("handed to the plug-in {}, which does not answer", self.name());
            self.end_call(number, Reply::done(value.into()));
        }
    }

    /// Cancels a call, and notifies the plug-in.
    pub fn cancel(&mut self, number: u64) {
        if let Some((id, open)) = self.take_call(|open| open.number == number) {
            self.end_call(number, Reply::failed("it was cancelled"));
            self.send_cancel(id, &open.name);
        }
    }

    /// Closes the connection: sends the reason to the program and ends every open call.
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
            let why = format!("the plug-in {name} {how} while {} ran: {why}", open.name);
            self.end_call(open.number, Reply::failed(why));
        }
        self.events.push_back(Event::Close(why.to_owned()));
    }

    /// Handles a frame of the program.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        match self.state {
            State::Closed => {}
            State::Registering => self.close("wait for the response to register before the next message"),
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
        let id = frame.header.request_id.as_deref().unwrap_or_default();
        let open = id.parse().ok().and_then(|id: u64| self.pending.remove(&id));
        match open {
            Some(open) => self.end_call(open.number, parse_response(frame)),
            None => self.ignore(format!(
                "a response without an open call, request_id {:?}",
                truncate(id, 80)
            )),
        }
    }

    fn on_message(&mut self, frame: &Frame, now: Instant) {
        let action = frame.header.action.as_deref().unwrap_or_default();
        let content = match action {
            REGISTER => {
                return self.close("it is registered already: to offer something else, connect again");
            }
            "telemetry" | "log" => parse_arguments(frame),
            other => {
                let action = truncate(other, 80);
                return self.ignore(format!("a message of unknown action {action:?}"));
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
        let Some(lines) = self.log_throttle.count(now) else {
            return self.ignore("a log line above the rate limit".to_owned());
        };
        let left_out = lines - 1;
        if left_out > 0 {
            let note = format!("{left_out} lines were dropped: it logs too much");
            self.events.push_back(Event::Log(LogLevel::Warning, note));
        }
        let text = truncate(text, TEXT_BYTES_MAX).to_owned();
        self.events.push_back(Event::Log(level, text));
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
        let (mut fields, mut invalid) = (Vec::new(), None);
        for (name, value) in given {
            let fits = known.contains_key(&name)
                && depth(&value) <= FIELD_DEPTH_MAX
                && value.to_string().len() <= FIELD_VALUE_BYTES_MAX;
            if fits {
                fields.push((name, value));
            } else {
                invalid = Some(name);
            }
        }
        if !fields.is_empty() {
            self.events.push_back(Event::Telemetry(fields));
        }
        if let Some(name) = invalid {
            self.ignore(format!(
                "telemetry that is not registered, longer than {FIELD_VALUE_BYTES_MAX} bytes or nested too deeply: {:?}",
                truncate(&name, 80)
            ));
        }
    }

    fn on_request(&mut self, frame: &Frame) {
        let content = frame.json_value().unwrap_or_default();
        let text = |key: &str| match content.get(key) {
            Some(Value::String(text)) => truncate(text, 80).to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => String::new(),
        };
        let (name, id) = (text("requested_value"), text("request_id"));
        let why = "a node answers no requests of its plug-ins";
        self.send(frames::error_response(&name, &id, why));
    }

    fn send(&mut self, frame: Frame) {
        self.events.push_back(Event::Send(Box::new(frame), None));
    }

    fn end_call(&mut self, number: u64, reply: Reply) {
        self.events.push_back(Event::CallEnded(number, reply));
    }

    fn ignore(&mut self, note: String) {
        self.events.push_back(Event::Ignored(note));
    }

    /// Removes an open call by its number; returns it with its request id.
    fn take_call(&mut self, is_meant: impl Fn(&PendingCall) -> bool) -> Option<(u64, PendingCall)> {
        let id = self.pending.iter().find(|(_, open)| is_meant(open));
        let id = *id?.0;
        Some((id, self.pending.remove(&id)?))
    }

    fn send_cancel(&mut self, id: u64, name: &str) {
        let mut kwargs = Map::new();
        kwargs.insert("request_id".to_owned(), request_id(id).into());
        kwargs.insert("action".to_owned(), name.into());
        self.send(frames::message("cancel", kwargs));
    }

    fn name(&self) -> &str {
        self.registration
            .as_ref()
            .map_or("?", |registration| &registration.name)
    }
}

/// The id of a call on the wire: at least four digits, as in clever-show, and never used twice.
fn request_id(number: u64) -> String {
    format!("{number:04}")
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
        (None | Some(Value::Null), None) => Reply::failed(format!("its answer is empty; {shape}")),
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
