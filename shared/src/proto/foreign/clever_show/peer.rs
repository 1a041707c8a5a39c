//! One side of the messaging protocol, over successive connections.
//!
//! Messages wait in a queue in the order of their creation. A request is
//!
//! | state | until | then |
//! |---|---|---|
//! | queued | it is taken for writing | sent |
//! | sent | its response arrives, with the same id and value | [`Event::Response`] |
//! | sent | the connection is lost | with [`ReconnectPolicy::resend_requests`] queued again, before all else; else [`Event::RequestFailed`] |
//! | queued | the connection is lost | with either option of [`ReconnectPolicy`] it stays; else [`Event::RequestFailed`] |
//! | any | [`PeerState::abandon`] | removed; a later response is ignored |
//!
//! Other messages that still wait when the connection is lost stay with [`ReconnectPolicy::resume_queue`], and are
//! dropped without it. A message that was being written counts as waiting, because the peer has not read it as a
//! whole; one that had been written is gone. Only requests are ever sent twice. Responses that wait never outlive the
//! connection; the caller ensures that a response goes over the connection on which its request arrived.
//!
//! Without a connection, messages that its loss would drop are refused: a flight action would otherwise be sent at
//! any later time. A request waits for the next connection in any case, since its caller waits too.
//!
//! Invariants: the queue is bounded in messages and bytes, the open requests in number; every request ends in exactly
//! one event unless it is abandoned.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::Value;

use super::message::{BadMessage, Message, request_id};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// Most messages that wait to be sent.
pub const QUEUE_MESSAGES_MAX: usize = 1_024;
/// Most bytes that wait to be sent: contents, names and ids.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most requests that wait for their response.
pub const PENDING_MAX: usize = 256;
/// Number of request ids: four digits, as in the real program.
const REQUEST_ID_COUNT: u32 = 10_000;

/// What happens to messages when the connection is lost. The names are clever-show's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// Messages that wait are sent over the next connection.
    pub resume_queue: bool,
    /// Requests without a response are sent again over the next connection.
    pub resend_requests: bool,
}

/// The content of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseBody {
    /// Any JSON value.
    Value(Value),
    /// The bytes of a file.
    File(Bytes),
}

impl ResponseBody {
    /// The response message with this content.
    pub fn into_message(self, name: String, id: String) -> Message {
        match self {
            Self::Value(value) => Message::Response { name, id, value },
            Self::File(content) => Message::FileResponse { name, id, content },
        }
    }
}

/// What the peer sent, or how a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer asks for an action; there is no response.
    Action {
        /// Name of the action.
        action: String,
        /// By position and by name.
        arguments: Arguments,
    },
    /// The peer pushed a file.
    File {
        /// Path that the peer gave.
        filepath: String,
        /// The whole content.
        bytes: Bytes,
    },
    /// The peer asks for a value; see [`PeerState::respond`].
    Request {
        /// Name of the value.
        value: String,
        /// Id that the response repeats.
        id: String,
        /// By position and by name.
        arguments: Arguments,
    },
    /// A request has its response.
    Response {
        /// Number from [`PeerState::get_response`] or [`PeerState::get_file`].
        number: u64,
        /// A value or a file, whatever was requested.
        body: ResponseBody,
    },
    /// A request ended without a response.
    RequestFailed {
        /// Number from [`PeerState::get_response`] or [`PeerState::get_file`].
        number: u64,
        /// Only [`RequestError::ConnectionLost`] comes from here.
        error: RequestError,
    },
    /// A frame that is not a message.
    InvalidMessage(BadMessage),
    /// A message was skipped, because it is longer than allowed.
    TooLong {
        /// Length of its content.
        bytes: u64,
        /// The configured limit.
        max: usize,
    },
    /// A response that matches no open request.
    UnexpectedResponse {
        /// Name of the value in it.
        value: String,
        /// Request id in it.
        id: String,
    },
}

/// Why a request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request is not sent again.
    #[error("the connection was lost before the response came")]
    ConnectionLost,
    /// The caller's time-out. The real program answers neither unknown nor failing requests.
    #[error("no response came in time")]
    TimedOut,
    /// The request was never sent.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// The response is a file instead of a value, or the reverse.
    #[error("the response is of another kind: a file for a value, or a value for a file")]
    WrongKind,
    /// The state was dropped.
    #[error("the connection manager was dropped")]
    Closed,
}

/// Why a message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer reads too slowly, or is disconnected.
    #[error("the send queue is full: {QUEUE_MESSAGES_MAX} messages or {QUEUE_BYTES_MAX} bytes")]
    QueueFull,
    /// The message would be sent at an unknown later time.
    #[error("not connected, and `resume_queue` does not keep it: nothing was sent")]
    NotConnected,
    /// The request of this response arrived on another connection.
    #[error("not answered: the connection of the request is lost")]
    OtherConnection,
    /// The peer does not answer.
    #[error("too many requests are open: {PENDING_MAX}")]
    TooManyRequests,
}

/// The queue, the open requests and the events of one peer.
#[derive(Debug)]
pub struct PeerState {
    reconnect: ReconnectPolicy,
    connected: bool,
    queue: VecDeque<QueuedMessage>,
    /// Bytes of all queued messages.
    queued_bytes: usize,
    /// Taken for writing, and not written yet.
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
    /// A later message of the same action replaces this one.
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

    /// The request id, if this is a request.
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

/// Approximate length on the wire, in bytes.
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
    /// Disconnected, with nothing queued. Request ids start at `first_id`; pass a random number, so that a peer does
    /// not see the same ids after each restart.
    pub fn new(reconnect: ReconnectPolicy, first_id: u16) -> Self {
        Self {
            reconnect,
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

    /// The oldest event that was not taken yet.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A connection was made: queued messages are sent over it.
    pub fn on_connected(&mut self) {
        self.connected = true;
    }

    /// Messages that wait or are being written.
    pub fn queued_messages(&self) -> usize {
        self.queue.len() + usize::from(self.writing.is_some())
    }

    /// Requests without a response.
    pub fn open_requests(&self) -> usize {
        self.pending.len()
    }

    /// Sends an action to the peer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_message(&mut self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        let action = action.to_owned();
        self.enqueue(QueuedMessage::new(Message::Action { action, arguments }, false))
    }

    /// Sends an action to the peer, and drops an earlier one of the same name that was queued by this function: for
    /// readings.
    ///
    /// # Errors
    /// See [`SendError`].
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

    /// Pushes a file to the peer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_file(&mut self, dest_filepath: &str, bytes: Bytes) -> Result<(), SendError> {
        let (path, content) = (dest_filepath.to_owned(), bytes);
        self.enqueue(QueuedMessage::new(Message::FilePush { path, content }, false))
    }

    /// Answers an [`Event::Request`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn respond(&mut self, value: &str, id: &str, answer: ResponseBody) -> Result<(), SendError> {
        let (value, id) = (value.to_owned(), id.to_owned());
        self.enqueue(QueuedMessage::new(answer.into_message(value, id), false))
    }

    /// Requests a value. Returns the request's number, which its event repeats.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn get_response(&mut self, requested_value: &str, arguments: Arguments) -> Result<u64, SendError> {
        self.send_request(|id| Message::Request {
            name: requested_value.to_owned(),
            id,
            arguments,
        })
    }

    /// Requests a file; the response is [`ResponseBody::File`].
    ///
    /// # Errors
    /// See [`SendError`].
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

    /// Removes a request; it ends without an event.
    pub fn abandon(&mut self, number: u64) {
        let id = self.pending.iter().find(|(_, pending)| pending.number == number);
        let Some(id) = id.map(|(id, _)| id.clone()) else {
            return;
        };
        self.pending.remove(&id);
        self.retain_queued(|item| item.request_id() != Some(&id));
    }

    /// The next frame to write, from its first byte. [`Self::on_written`] must be called before the next one.
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

    /// The frame that was taken last has been written as a whole.
    pub fn on_written(&mut self) {
        let Some(item) = self.writing.take() else { return };
        if let Some(pending) = item.request_id().and_then(|id| self.pending.get_mut(id)) {
            pending.sent = true;
        }
    }

    /// A frame has arrived.
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

    /// The connection is lost or closed; the module says what happens to open messages.
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
                let error = RequestError::ConnectionLost;
                self.events.push_back(Event::RequestFailed { number, error });
            }
        }
    }

    /// Moves requests that were sent back to the front of the queue, oldest first.
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
                // The response answers a request that waits to be sent again: it need not be sent.
                self.retain_queued(|item| item.request_id() != Some(&id));
                Event::Response { number, body: answer }
            }
            None => Event::UnexpectedResponse { value, id },
        }
    }

    /// Without a connection, refuses what would not be kept for the next one.
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
            // The id of a request that ended while it was being written is not free yet.
            let writing = self.writing.as_ref().and_then(QueuedMessage::request_id) == Some(id.as_str());
            // The loop ends, because there are far more ids than open requests.
            if !writing && !self.pending.contains_key(&id) {
                return id;
            }
        }
    }
}
