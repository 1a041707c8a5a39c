//! Questions to a drone that are queued, or wait for their answers.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::message::{Message, request_id};
use crate::proto::wire::Frame;

/// What an answer has to be, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExpectedResponse {
    Value(u64),
    File(u64),
    CloverDir,
    /// A sign of life.
    Probe,
    /// Nobody's any more.
    Cancelled,
}

#[derive(Clone, Debug)]
pub(super) struct PendingRequest {
    pub(super) name: String,
    pub(super) expects: ExpectedResponse,
    pub(super) respond_by: Option<Instant>,
    pub(super) frame: Frame,
    /// Whether it has been written on this connection.
    pub(super) is_written: bool,
    /// Whether it has ever been written.
    pub(super) was_ever_written: bool,
}

/// By number.
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
    /// Gives a question its number; the frame that asks it.
    pub(super) fn register(
        &mut self,
        mut message: Message,
        asked: ExpectedResponse,
        until: Option<Instant>,
    ) -> (u32, Frame) {
        let mut number = self.last_number.wrapping_add(1);
        while self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.last_number = number;
        let mut asks = String::new();
        if let Message::Request { name, id, .. } = &mut message {
            *id = request_id(number);
            asks.clone_from(name);
        }
        let frame = message.to_frame();
        let request = PendingRequest {
            name: asks,
            expects: asked,
            respond_by: until,
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
