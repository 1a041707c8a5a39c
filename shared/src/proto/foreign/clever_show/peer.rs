//! One side of the messaging protocol, over successive connections.
//!
//! Messages are sent in the order of their creation. A request is
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
//! dropped without it. Only requests are ever sent twice. Responses that wait never outlive the connection; the caller
//! ensures that a response goes over the connection on which its request arrived.
//!
//! Without a connection, messages that its loss would drop are refused: a flight action would otherwise be sent at
//! any later time. A request waits for the next connection in any case, since its caller waits too.
//!
//! Invariants: the queue is bounded in messages and bytes, the open requests in number; every request ends in exactly
//! one event unless it is abandoned.

use std::collections::VecDeque;

use bytes::Bytes;

use super::FILE_TRANSFER;
use super::message::{BadMessage, Message, ResponseBody, file_arguments};
use super::send_queue::{FrameKind, QueuedFrame, Resend, SendQueue};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// Most messages that wait to be sent.
pub const QUEUE_MESSAGES_MAX: usize = 1_024;
/// Most bytes that wait to be sent: contents, names and ids.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most requests that wait for their response.
pub const PENDING_MAX: usize = 256;

/// What happens to messages when the connection is lost. The names are clever-show's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// Messages that wait are sent over the next connection.
    pub resume_queue: bool,
    /// Requests without a response are sent again over the next connection.
    pub resend_requests: bool,
}

/// What the peer sent, or how a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer asks for an action. There is no response.
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
    resume_queue: bool,
    connected: bool,
    sends: SendQueue<()>,
    events: VecDeque<Event>,
}

impl PeerState {
    /// Disconnected, with nothing queued. Request ids start at `first_id`; pass a random number, so that a peer does
    /// not see the same ids after each restart.
    pub fn new(reconnect: ReconnectPolicy, first_id: u16) -> Self {
        let ReconnectPolicy {
            resume_queue,
            resend_requests,
        } = reconnect;
        let resend = Resend {
            messages: resume_queue,
            unsent_requests: resume_queue || resend_requests,
            sent_requests: resend_requests,
        };
        Self {
            resume_queue,
            connected: false,
            sends: SendQueue::new(resend, first_id),
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
        self.sends.queue.len() + usize::from(self.sends.writing.is_some())
    }

    /// Requests without a response.
    pub fn open_requests(&self) -> usize {
        self.sends.requests().len()
    }

    /// Sends an action to the peer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_message(&mut self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        let action = action.to_owned();
        self.enqueue(FrameKind::Message, &Message::Action { action, arguments })
    }

    /// Sends an action to the peer, and drops an earlier one of the same name that was queued by this function: for
    /// readings.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_latest(&mut self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        let action = action.to_owned();
        self.enqueue(FrameKind::Latest, &Message::Action { action, arguments })
    }

    /// Pushes a file to the peer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_file(&mut self, dest_filepath: &str, bytes: Bytes) -> Result<(), SendError> {
        let (path, content) = (dest_filepath.to_owned(), bytes);
        self.enqueue(FrameKind::Message, &Message::FilePush { path, content })
    }

    /// Responds to an [`Event::Request`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn respond(&mut self, value: &str, id: &str, body: ResponseBody) -> Result<(), SendError> {
        let response = body.into_message(value.to_owned(), id.to_owned());
        self.enqueue(FrameKind::NoResend, &response)
    }

    /// Requests a value. Returns the request's number, which its event repeats.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn get_response(&mut self, requested_value: &str, arguments: Arguments) -> Result<u64, SendError> {
        if self.open_requests() >= PENDING_MAX {
            return Err(SendError::TooManyRequests);
        }
        if self.sends.queue.len() >= QUEUE_MESSAGES_MAX {
            return Err(SendError::QueueFull);
        }
        let request = (requested_value, arguments);
        let number = self.sends.add_request(request, (), None, None);
        if self.sends.queued_bytes() > QUEUE_BYTES_MAX {
            self.abandon(number);
            return Err(SendError::QueueFull);
        }
        Ok(number)
    }

    /// Requests a file; the response is [`ResponseBody::File`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn get_file(&mut self, client_filepath: &str) -> Result<u64, SendError> {
        self.get_response(FILE_TRANSFER, file_arguments(client_filepath))
    }

    /// Removes a request; it ends without an event.
    pub fn abandon(&mut self, number: u64) {
        self.sends.remove_request(number);
    }

    /// The next frame to write, from its first byte. [`Self::on_written`] must be called before the next one.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        self.sends.next_frame()
    }

    /// The frame that was taken last has been written as a whole.
    pub fn on_written(&mut self) {
        self.sends.on_written();
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
                self.on_response(name, id, ResponseBody::Value(value))
            }
            Ok(Message::FileResponse { name, id, content }) => {
                self.on_response(name, id, ResponseBody::File(content))
            }
        };
        self.events.push_back(event);
    }

    fn on_response(&mut self, value: String, id: String, body: ResponseBody) -> Event {
        match self.sends.take_answered(&value, &id) {
            Some((number, _request)) => Event::Response { number, body },
            None => Event::UnexpectedResponse { value, id },
        }
    }

    /// The connection is lost or closed; the module says what happens to open messages.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        for lost in self.sends.on_disconnected() {
            if let FrameKind::Request(number) = lost.kind {
                self.sends.remove_request(number);
                let error = RequestError::ConnectionLost;
                self.events.push_back(Event::RequestFailed { number, error });
            }
        }
    }

    /// Queues a message other than a request. Without a connection, refuses one that would not be kept for the next.
    fn enqueue(&mut self, kind: FrameKind, message: &Message) -> Result<(), SendError> {
        let outlives_connection = self.resume_queue && kind != FrameKind::NoResend;
        if !self.connected && !outlives_connection {
            return Err(SendError::NotConnected);
        }
        let new = QueuedFrame::new(kind, message.to_frame());
        let is_replaced = |queued: &QueuedFrame| {
            let is_same = queued.frame.header.action == new.frame.header.action;
            kind == FrameKind::Latest && queued.kind == FrameKind::Latest && is_same
        };
        let queue = &self.sends.queue;
        let old = queue.iter().position(is_replaced);
        let old_bytes = old
            .and_then(|index| queue.get(index))
            .map_or(0, QueuedFrame::bytes);
        let has_slot = old.is_some() || queue.len() < QUEUE_MESSAGES_MAX;
        if !has_slot || self.sends.queued_bytes() - old_bytes + new.bytes() > QUEUE_BYTES_MAX {
            return Err(SendError::QueueFull);
        }
        match old.and_then(|index| self.sends.queue.get_mut(index)) {
            Some(old) => *old = new,
            None => self.sends.queue.push_back(new),
        }
        Ok(())
    }
}
