//! Requests to a drone that are queued, or wait for their response.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::message::{Message, request_id};
use crate::proto::wire::Frame;

/// What a response must be, and the ticket that it completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExpectedResponse {
    Value(u64),
    File(u64),
    CloverDir,
    /// The id, as a sign of life.
    Probe,
    /// Anything: the ticket was cancelled.
    Cancelled,
}

#[derive(Clone, Debug)]
pub(super) struct PendingRequest {
    pub(super) name: String,
    pub(super) expects: ExpectedResponse,
    pub(super) respond_by: Option<Instant>,
    pub(super) frame: Frame,
    /// Whether it has been written over the present connection.
    pub(super) is_written: bool,
    /// Whether it has been written over any connection.
    pub(super) was_ever_written: bool,
}

/// Open requests by number.
#[derive(Debug, Default)]
pub(super) struct PendingRequests {
    by_number: BTreeMap<u32, PendingRequest>,
    last_number: u32,
}

impl Deref for PendingRequests {
    type Target = BTreeMap<u32, PendingRequest>;

    fn deref(&self) -> &Self::Target {
        &self.by_number
    }
}

impl DerefMut for PendingRequests {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.by_number
    }
}

impl PendingRequests {
    /// Numbers a request; returns its frame too.
    pub(super) fn register(
        &mut self,
        mut message: Message,
        expects: ExpectedResponse,
        respond_by: Option<Instant>,
    ) -> (u32, Frame) {
        let mut number = self.last_number.wrapping_add(1);
        while self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.last_number = number;
        let mut requested = String::new();
        if let Message::Request { name, id, .. } = &mut message {
            *id = request_id(number);
            requested.clone_from(name);
        }
        let frame = message.to_frame();
        let request = PendingRequest {
            name: requested,
            expects,
            respond_by,
            frame: frame.clone(),
            is_written: false,
            was_ever_written: false,
        };
        self.by_number.insert(number, request);
        (number, frame)
    }
}

impl ExpectedResponse {
    pub(super) fn ticket(&self) -> Option<u64> {
        match self {
            Self::Value(ticket) | Self::File(ticket) => Some(*ticket),
            Self::CloverDir | Self::Probe | Self::Cancelled => None,
        }
    }
}
