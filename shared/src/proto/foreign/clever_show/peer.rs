//! One side of a conversation, over as many connections as it takes.
//!
//! What waits to be sent is a queue in the order of its making. A request is
//!
//! | state | until | then |
//! |---|---|---|
//! | queued | it is taken for writing | sent |
//! | sent | its response comes, with the same id and value | [`Event::Answered`] |
//! | sent | the connection is lost | with [`Manners::resend_requests`] queued again, before all else; else [`Event::Unanswered`] |
//! | queued | the connection is lost | with either of [`Manners`] it stays; else [`Event::Unanswered`] |
//! | any | [`PeerState::give_up`] | forgotten; a response that comes later is passed over |
//!
//! Other messages that still wait when the connection is lost stay with [`Manners::resume_queue`], and are dropped
//! without it. One that was being written then was not read as a whole by the peer, and counts as waiting; one that
//! had been written is gone, read or not: nothing but a request is ever sent twice. Responses that wait never outlive the
//! connection; that they go over the one on which their request came is for the caller to see.
//!
//! While there is no connection, what would be dropped at its loss is refused: a flight action said then would come at
//! any time later. A request alone waits for the next connection in any case, for whoever asked waits with it.
//!
//! Invariants: the queue is bounded in messages and bytes, the open requests in number; every request ends in exactly
//! one event unless it is given up.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::Value;

use super::message::{BadMessage, Message, request_id};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// Most messages that wait to be sent.
pub const QUEUE_MESSAGES_MAX: usize = 1_024;
/// Most bytes that wait to be sent: content, names and ids.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most requests that wait for their response.
pub const PENDING_MAX: usize = 256;
/// Request ids are four digits, as those of the real program.
const REQUEST_ID_COUNT: u32 = 10_000;

/// What becomes of what is open when the connection is lost. The names are clever-show's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// What waits to be sent goes over the next connection.
    pub resume_queue: bool,
    /// Requests without a response are asked again over the next connection.
    pub resend_requests: bool,
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseBody {
    /// JSON.
    Value(Value),
    /// A file's bytes.
    File(Bytes),
}

impl ResponseBody {
    /// The response that brings it.
    pub fn into_message(self, name: String, id: String) -> Message {
        match self {
            Self::Value(value) => Message::Response { name, id, value },
            Self::File(content) => Message::FileResponse { name, id, content },
        }
    }
}

/// What the peer said, and what became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Do this.
    Action {
        /// What.
        action: String,
        /// With what.
        arguments: Arguments,
    },
    /// Keep this file.
    File {
        /// Where.
        filepath: String,
        /// What is in it.
        bytes: Bytes,
    },
    /// Tell me this; see [`PeerState::respond`].
    Request {
        /// What.
        value: String,
        /// To be repeated.
        id: String,
        /// With what.
        arguments: Arguments,
    },
    /// A request of ours has its response.
    Response {
        /// As [`PeerState::get_response`] numbered it.
        number: u64,
        /// The response.
        body: ResponseBody,
    },
    /// A request of ours gets none.
    RequestFailed {
        /// As [`PeerState::get_response`] numbered it.
        number: u64,
        /// Why.
        error: RequestError,
    },
    /// A frame that means nothing.
    InvalidMessage(BadMessage),
    /// A message was passed over unread, because it is longer than allowed.
    TooLong {
        /// What it announced.
        bytes: u64,
        /// What is allowed.
        max: usize,
    },
    /// A response to nothing that is open.
    UnexpectedResponse {
        /// What it answers.
        value: String,
        /// With which id.
        id: String,
    },
}

/// Why a request gets no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is not asked again.
    #[error("the connection was lost before the response came")]
    ConnectionLost,
    /// Whoever asked waits no longer. The real program answers no unknown and no failing request.
    #[error("no response came in time")]
    TimedOut,
    /// It could not be asked.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// A file came where a value was asked for, or the reverse.
    #[error("the response is of another kind: a file for a value, or a value for a file")]
    WrongKind,
    /// There is no conversation any more.
    #[error("the conversation has ended")]
    Closed,
}

/// Why something is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer takes no more, or is away.
    #[error("too much waits to be sent: {QUEUE_MESSAGES_MAX} messages or {QUEUE_BYTES_MAX} bytes")]
    QueueFull,
    /// It would go out whenever there is a connection again.
    #[error("not connected, and `resume_queue` does not keep it: nothing was sent")]
    NotConnected,
    /// Its request came on another connection.
    #[error("not answered: the connection that it was asked on is gone")]
    OtherConnection,
    /// The peer answers nothing.
    #[error("too many requests are open: {PENDING_MAX}")]
    TooManyRequests,
}

/// See the module.
#[derive(Debug)]
pub struct PeerState {
    reconnect: ReconnectPolicy,
    connected: bool,
    queue: VecDeque<QueuedMessage>,
    /// Of all that waits.
    queued_bytes: usize,
    /// Taken for writing and not written yet.
    writing: Option<QueuedMessage>,
    pending: BTreeMap<String, PendingRequest>,
    last_number: u64,
    next_id: u32,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct QueuedMessage {
    message: Message,
    bytes: usize,
    /// A later one of the same action takes its place.
    newest_only: bool,
}

#[derive(Debug)]
struct PendingRequest {
    number: u64,
    message: Message,
    sent: bool,
}

impl QueuedMessage {
    fn new(message: Message, newest_only: bool) -> Self {
        let bytes = wire_bytes(&message);
        Self {
            message,
            bytes,
            newest_only,
        }
    }

    /// The id, if it is a request of ours.
    fn request_id(&self) -> Option<&str> {
        match &self.message {
            Message::Request { id, .. } => Some(id),
            Message::Action { .. }
            | Message::FilePush { .. }
            | Message::Response { .. }
            | Message::FileResponse { .. } => None,
        }
    }

    fn is_response(&self) -> bool {
        matches!(
            self.message,
            Message::Response { .. } | Message::FileResponse { .. }
        )
    }
}

/// Roughly its length on the wire, in bytes.
fn wire_bytes(message: &Message) -> usize {
    let json = |value: &Value| value.to_string().len();
    let arguments = |arguments: &Arguments| {
        let args: usize = arguments.args.iter().map(json).sum();
        let kwargs = arguments
            .kwargs
            .iter()
            .map(|(key, value)| key.len() + json(value));
        args + kwargs.sum::<usize>()
    };
    match message {
        Message::Action {
            action,
            arguments: given,
        } => action.len() + arguments(given),
        Message::FilePush { path, content } => path.len() + content.len(),
        Message::Request {
            name,
            id,
            arguments: given,
        } => name.len() + id.len() + arguments(given),
        Message::Response { name, id, value } => name.len() + id.len() + json(value),
        Message::FileResponse { name, id, content } => name.len() + id.len() + content.len(),
    }
}

impl PeerState {
    /// Nothing said yet. `first_id` is where request ids begin; take a random one, so that a peer does not meet the
    /// same ones after each start.
    pub fn new(manners: ReconnectPolicy, first_id: u16) -> Self {
        Self {
            reconnect: manners,
            connected: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            writing: None,
            pending: BTreeMap::new(),
            last_number: 0,
            next_id: u32::from(first_id) % REQUEST_ID_COUNT,
            events: VecDeque::new(),
        }
    }

    /// What has happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// There is a connection; what waits goes over it.
    pub fn on_connected(&mut self) {
        self.connected = true;
    }

    /// How many messages wait to be sent.
    pub fn queued_messages(&self) -> usize {
        self.queue.len() + usize::from(self.writing.is_some())
    }

    /// How many requests are open.
    pub fn open_requests(&self) -> usize {
        self.pending.len()
    }

    /// Has the peer do something.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn send_message(&mut self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        let action = action.to_owned();
        self.enqueue(QueuedMessage::new(Message::Action { action, arguments }, false))
    }

    /// The same, in place of an earlier one of this action that still waits: for readings.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn send_latest(&mut self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        let item = QueuedMessage::new(
            Message::Action {
                action: action.to_owned(),
                arguments,
            },
            true,
        );
        self.check_can_queue(&item)?;
        let same = |waiting: &&mut QueuedMessage| {
            let named = matches!(&waiting.message, Message::Action { action: other, .. } if other == action);
            waiting.newest_only && named
        };
        let Some(old) = self.queue.iter_mut().find(same) else {
            return self.enqueue(item);
        };
        if self.queued_bytes - old.bytes + item.bytes > QUEUE_BYTES_MAX {
            return Err(SendError::QueueFull);
        }
        self.queued_bytes = self.queued_bytes - old.bytes + item.bytes;
        *old = item;
        Ok(())
    }

    /// Gives the peer a file.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn send_file(&mut self, dest_filepath: &str, bytes: Bytes) -> Result<(), SendError> {
        let (path, content) = (dest_filepath.to_owned(), bytes);
        self.enqueue(QueuedMessage::new(Message::FilePush { path, content }, false))
    }

    /// Answers what [`Event::Asked`].
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn respond(&mut self, value: &str, id: &str, answer: ResponseBody) -> Result<(), SendError> {
        let (value, id) = (value.to_owned(), id.to_owned());
        self.enqueue(QueuedMessage::new(answer.into_message(value, id), false))
    }

    /// Asks the peer. Returns the number that its end will name.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn get_response(&mut self, requested_value: &str, arguments: Arguments) -> Result<u64, SendError> {
        self.send_request(|id| Message::Request {
            name: requested_value.to_owned(),
            id,
            arguments,
        })
    }

    /// Asks the peer for a file; the answer is [`Answer::File`].
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn get_file(&mut self, client_filepath: &str) -> Result<u64, SendError> {
        self.send_request(|id| Message::file_request(client_filepath, id))
    }

    fn send_request(&mut self, message: impl FnOnce(String) -> Message) -> Result<u64, SendError> {
        if self.pending.len() >= PENDING_MAX {
            return Err(SendError::TooManyRequests);
        }
        let id = self.next_free_id();
        let message = message(id.clone());
        self.enqueue(QueuedMessage::new(message.clone(), false))?;
        self.last_number += 1;
        let number = self.last_number;
        let pending = PendingRequest {
            number,
            message,
            sent: false,
        };
        self.pending.insert(id, pending);
        Ok(number)
    }

    /// Nobody waits for this request any more; it ends without an event.
    pub fn abandon(&mut self, number: u64) {
        let id = self.pending.iter().find(|(_, pending)| pending.number == number);
        let Some(id) = id.map(|(id, _)| id.clone()) else {
            return;
        };
        self.pending.remove(&id);
        self.retain_queued(|item| item.request_id() != Some(&id));
    }

    /// The next frame to write, whole, and from its first byte. Call [`Self::written`] before the next.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if self.writing.is_some() {
            return None;
        }
        let item = self.queue.pop_front()?;
        self.queued_bytes -= item.bytes;
        let frame = item.message.to_frame();
        self.writing = Some(item);
        Some(frame)
    }

    /// The frame that was taken last has been written.
    pub fn on_written(&mut self) {
        let Some(item) = self.writing.take() else { return };
        if let Some(pending) = item.request_id().and_then(|id| self.pending.get_mut(id)) {
            pending.sent = true;
        }
    }

    /// A frame has come.
    pub fn handle_frame(&mut self, frame: &Frame) {
        let event = match Message::from_frame(frame) {
            Err(bad) => Event::InvalidMessage(bad),
            Ok(Message::Action { action, arguments }) => Event::Action { action, arguments },
            Ok(Message::FilePush { path, content }) => Event::File {
                filepath: path,
                bytes: content,
            },
            Ok(Message::Request { name, id, arguments }) => Event::Request {
                value: name,
                id,
                arguments,
            },
            Ok(Message::Response { name, id, value }) => {
                self.match_response(name, id, ResponseBody::Value(value))
            }
            Ok(Message::FileResponse { name, id, content }) => {
                self.match_response(name, id, ResponseBody::File(content))
            }
        };
        self.events.push_back(event);
    }

    /// The connection is lost, or was closed. See the module for what becomes of what is open.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        let wanted = |item: &QueuedMessage| item.request_id().is_none_or(|id| self.pending.contains_key(id));
        // A request may have ended while it was being written.
        if let Some(item) = self.writing.take().filter(wanted) {
            self.queued_bytes += item.bytes;
            self.queue.push_front(item);
        }
        let ReconnectPolicy {
            resume_queue,
            resend_requests,
        } = self.reconnect;
        self.retain_queued(|item| match item.request_id() {
            Some(_) => resume_queue || resend_requests,
            None => resume_queue && !item.is_response(),
        });
        if resend_requests {
            self.requeue_sent_requests();
        }
        let queued: Vec<&str> = self.queue.iter().filter_map(QueuedMessage::request_id).collect();
        let ended: Vec<String> = self
            .pending
            .keys()
            .filter(|id| !queued.contains(&id.as_str()))
            .cloned()
            .collect();
        for id in ended {
            if let Some(PendingRequest { number, .. }) = self.pending.remove(&id) {
                let why = RequestError::ConnectionLost;
                self.events.push_back(Event::RequestFailed { number, error: why });
            }
        }
    }

    /// What was sent and is open goes to the front, oldest first.
    fn requeue_sent_requests(&mut self) {
        let mut sent: Vec<&mut PendingRequest> =
            self.pending.values_mut().filter(|pending| pending.sent).collect();
        sent.sort_by_key(|pending| pending.number);
        for pending in sent.into_iter().rev() {
            pending.sent = false;
            let item = QueuedMessage::new(pending.message.clone(), false);
            self.queued_bytes += item.bytes;
            self.queue.push_front(item);
        }
    }

    fn match_response(&mut self, value: String, id: String, answer: ResponseBody) -> Event {
        let asked = self.pending.get(&id).is_some_and(
            |pending| matches!(&pending.message, Message::Request { name: asked, .. } if *asked == value),
        );
        match asked.then(|| self.pending.remove(&id)).flatten() {
            Some(PendingRequest { number, .. }) => {
                // A peer may answer what is queued again: then it need not be asked.
                self.retain_queued(|item| item.request_id() != Some(&id));
                Event::Response { number, body: answer }
            }
            None => Event::UnexpectedResponse { value, id },
        }
    }

    /// Whether it may wait for a connection, if it has to.
    fn check_can_queue(&self, item: &QueuedMessage) -> Result<(), SendError> {
        let kept = self.reconnect.resume_queue && !item.is_response();
        if self.connected || kept || item.request_id().is_some() {
            return Ok(());
        }
        Err(SendError::NotConnected)
    }

    fn enqueue(&mut self, item: QueuedMessage) -> Result<(), SendError> {
        self.check_can_queue(&item)?;
        if self.queue.len() >= QUEUE_MESSAGES_MAX || self.queued_bytes + item.bytes > QUEUE_BYTES_MAX {
            return Err(SendError::QueueFull);
        }
        self.queued_bytes += item.bytes;
        self.queue.push_back(item);
        Ok(())
    }

    fn retain_queued(&mut self, wanted: impl Fn(&QueuedMessage) -> bool) {
        self.queue.retain(wanted);
        self.queued_bytes = self.queue.iter().map(|item| item.bytes).sum();
    }

    fn next_free_id(&mut self) -> String {
        loop {
            let id = request_id(self.next_id);
            self.next_id = (self.next_id + 1) % REQUEST_ID_COUNT;
            // That of a request that ended while it is being written is not free yet.
            let writing = self.writing.as_ref().and_then(QueuedMessage::request_id) == Some(id.as_str());
            // There are far more ids than open requests.
            if !writing && !self.pending.contains_key(&id) {
                return id;
            }
        }
    }
}
