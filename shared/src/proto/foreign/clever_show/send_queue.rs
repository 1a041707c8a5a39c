//! Frames that wait to be written to a peer, and requests that wait for their response, over successive connections.
//!
//! | a frame is | until | then |
//! |---|---|---|
//! | queued | [`SendQueue::next_frame`] takes it: a stop first, else the oldest | being written |
//! | being written | [`SendQueue::on_written`] | removed; a request waits for its response |
//! | queued, being written, or a request without a response | [`SendQueue::on_disconnected`] | queued for the next connection, or ended, as [`Resend`] says |
//!
//! A frame that was being written when the connection was lost is sent again as a whole, because the peer does not act
//! on a part. Invariants: open requests have different ids; an open request is queued at most once, and one that has
//! ended is never started.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::message::{Message, REQUEST_ID_COUNT, request_id};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// Which frames are sent over the next connection. A request counts as sent once it has been written over any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resend {
    pub(super) messages: bool,
    pub(super) unsent_requests: bool,
    pub(super) sent_requests: bool,
}

/// How a queued frame is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// An action or a file.
    Message,
    /// An action that a later one of the same name replaces.
    Latest,
    /// Sent over the present connection or never: a response, or an action that was being written when an emergency
    /// stop or a cancellation arrived.
    NoResend,
    /// The emergency stop. It is queued again only while a caller waits for it; its owner repeats it otherwise.
    Stop,
    /// A request, with its number.
    Request(u64),
}

#[derive(Clone, Debug)]
pub(super) struct QueuedFrame {
    pub(super) kind: FrameKind,
    /// Ticket of the caller that waits until the frame is written; requests have theirs in [`Request::purpose`].
    pub(super) ticket: Option<u64>,
    /// Not started at or after this time; `None` for frames without a deadline.
    pub(super) start_by: Option<Instant>,
    pub(super) frame: Frame,
}

impl QueuedFrame {
    /// Without ticket and deadline.
    pub(super) fn new(kind: FrameKind, frame: Frame) -> Self {
        Self {
            kind,
            ticket: None,
            start_by: None,
            frame,
        }
    }

    /// An action or file is not sent over another connection.
    pub(super) fn forbid_resend(&mut self) {
        if self.kind == FrameKind::Message {
            self.kind = FrameKind::NoResend;
        }
    }

    /// Length of the content, and of the texts in the header that a caller or the peer chooses.
    pub(super) fn bytes(&self) -> usize {
        let header = &self.frame.header;
        let texts = [
            &header.action,
            &header.filepath,
            &header.requested_value,
            &header.request_id,
        ];
        let texts = texts.into_iter().flatten().map(String::len);
        self.frame.content.len() + texts.sum::<usize>()
    }
}

/// A request without a response.
#[derive(Debug)]
pub(super) struct Request<P> {
    /// What the response is for.
    pub(super) purpose: P,
    pub(super) respond_by: Option<Instant>,
    /// Whether it has been written as a whole, over any connection.
    pub(super) was_written: bool,
    name: String,
    frame: Frame,
}

/// The module describes it. `P` is the purpose of a request.
#[derive(Debug)]
pub(super) struct SendQueue<P> {
    resend: Resend,
    pub(super) queue: VecDeque<QueuedFrame>,
    pub(super) writing: Option<QueuedFrame>,
    /// By number: the oldest first.
    requests: BTreeMap<u64, Request<P>>,
    next_number: u64,
}

impl<P> SendQueue<P> {
    /// An empty queue, whose first request has the id `first_id`.
    pub(super) fn new(resend: Resend, first_id: u16) -> Self {
        Self {
            resend,
            queue: VecDeque::new(),
            writing: None,
            requests: BTreeMap::new(),
            next_number: u64::from(first_id) % REQUEST_ID_COUNT,
        }
    }

    /// All open requests, the oldest first.
    pub(super) fn requests(&self) -> impl ExactSizeIterator<Item = &Request<P>> {
        self.requests.values()
    }

    pub(super) fn requests_mut(&mut self) -> impl Iterator<Item = &mut Request<P>> {
        self.requests.values_mut()
    }

    /// An open request by its number.
    pub(super) fn request(&self, number: u64) -> Option<&Request<P>> {
        self.requests.get(&number)
    }

    /// Bytes of all queued frames.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.iter().map(QueuedFrame::bytes).sum()
    }

    /// Opens a request and queues it, to be started before `start_by`. Returns its number.
    pub(super) fn add_request(
        &mut self,
        (name, arguments): (&str, Arguments),
        purpose: P,
        start_by: Option<Instant>,
        respond_by: Option<Instant>,
    ) -> u64 {
        let number = self.next_free_number();
        let message = Message::Request {
            name: name.to_owned(),
            id: request_id(number),
            arguments,
        };
        let frame = message.to_frame();
        let request = Request {
            purpose,
            respond_by,
            was_written: false,
            name: name.to_owned(),
            frame: frame.clone(),
        };
        self.requests.insert(number, request);
        self.queue.push_back(QueuedFrame {
            start_by,
            ..QueuedFrame::new(FrameKind::Request(number), frame)
        });
        number
    }

    /// The id of a request that ended while it was being written is not free: its response may still arrive.
    fn next_free_number(&mut self) -> u64 {
        let writing = self.writing.as_ref().and_then(|half| match half.kind {
            FrameKind::Request(number) => Some(number),
            FrameKind::Message | FrameKind::Latest | FrameKind::NoResend | FrameKind::Stop => None,
        });
        // The loop ends, because there are far more ids than open requests.
        loop {
            let number = self.next_number;
            self.next_number += 1;
            let mut in_use = self.requests.keys().copied().chain(writing);
            if !in_use.any(|open| open % REQUEST_ID_COUNT == number % REQUEST_ID_COUNT) {
                return number;
            }
        }
    }

    /// Ends the request that a response belongs to, with the same name and id; `None` if no such request was written.
    /// Peers may write the id with another number of leading zeros.
    pub(super) fn take_answered(&mut self, name: &str, id: &str) -> Option<(u64, Request<P>)> {
        let id = Some(id).filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()))?;
        let id: u64 = id.parse().ok()?;
        let answered = self.requests.iter().find(|(number, request)| {
            *number % REQUEST_ID_COUNT == id && request.was_written && request.name == name
        });
        let number = *answered?.0;
        Some((number, self.remove_request(number)?))
    }

    /// Ends a request. If it is queued, it is not sent.
    pub(super) fn remove_request(&mut self, number: u64) -> Option<Request<P>> {
        self.queue
            .retain(|queued| queued.kind != FrameKind::Request(number));
        self.requests.remove(&number)
    }

    /// Ends the requests that `is_over` selects, the oldest first.
    pub(super) fn remove_requests(&mut self, is_over: impl Fn(&Request<P>) -> bool) -> Vec<Request<P>> {
        let over = self.requests.iter().filter(|(_, request)| is_over(request));
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        let removed = over.into_iter().filter_map(|number| self.remove_request(number));
        removed.collect()
    }

    /// Removes the queued frames that `is_over` selects, the oldest first. Their requests stay open.
    pub(super) fn take_queued(&mut self, is_over: impl Fn(&QueuedFrame) -> bool) -> Vec<QueuedFrame> {
        let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue).into_iter().partition(is_over);
        self.queue = left.into();
        taken
    }

    /// The next frame to write, from its first byte; `None` while one is being written.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        if self.writing.is_some() {
            return None;
        }
        let stop = self
            .queue
            .iter()
            .position(|queued| queued.kind == FrameKind::Stop);
        self.writing = self.queue.remove(stop.unwrap_or(0));
        self.writing.as_ref().map(|queued| queued.frame.clone())
    }

    /// The frame that was taken last has been written as a whole. Returns it.
    pub(super) fn on_written(&mut self) -> Option<QueuedFrame> {
        let written = self.writing.take()?;
        if let FrameKind::Request(number) = written.kind
            && let Some(request) = self.requests.get_mut(&number)
        {
            request.was_written = true;
        }
        Some(written)
    }

    /// The connection is lost. Returns the frames that are not sent over the next one. Their requests stay open until
    /// the caller removes them.
    pub(super) fn on_disconnected(&mut self) -> Vec<QueuedFrame> {
        let mut waiting = std::mem::take(&mut self.queue);
        // A request may have ended while it was being written.
        if let Some(half) = self.writing.take().filter(|half| self.is_open(half.kind)) {
            waiting.push_front(half);
        }
        for (number, request) in self.requests.iter().rev() {
            let kind = FrameKind::Request(*number);
            if !waiting.iter().any(|queued| queued.kind == kind) {
                // It has no deadline any more, because it was started in time.
                waiting.push_front(QueuedFrame::new(kind, request.frame.clone()));
            }
        }
        let (kept, ended): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|queued| self.is_resent(queued));
        self.queue = kept.into();
        ended
    }

    fn is_open(&self, kind: FrameKind) -> bool {
        match kind {
            FrameKind::Request(number) => self.requests.contains_key(&number),
            FrameKind::Message | FrameKind::Latest | FrameKind::NoResend | FrameKind::Stop => true,
        }
    }

    fn is_resent(&self, queued: &QueuedFrame) -> bool {
        match queued.kind {
            FrameKind::Message | FrameKind::Latest => self.resend.messages,
            FrameKind::NoResend => false,
            FrameKind::Stop => queued.ticket.is_some(),
            FrameKind::Request(number) => self.request(number).is_some_and(|request| {
                if request.was_written {
                    self.resend.sent_requests
                } else {
                    self.resend.unsent_requests
                }
            }),
        }
    }

    /// The earliest deadline of a queued frame or of a response.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let starts = self.queue.iter().filter_map(|queued| queued.start_by);
        let responses = self.requests.values().filter_map(|request| request.respond_by);
        starts.chain(responses).min()
    }
}
