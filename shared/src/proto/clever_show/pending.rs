//! Questions to a drone that are queued, or wait for their answers.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::message::{Message, request_id};
use crate::proto::wire::Frame;

/// What an answer has to be, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Value(u64),
    File(u64),
    CloverDir,
    /// A sign of life.
    Life,
    /// Nobody's any more.
    Cancelled,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) name: String,
    pub(super) asked: Asked,
    pub(super) until: Option<Instant>,
    pub(super) frame: Frame,
    /// Whether it has been written on this connection.
    pub(super) written: bool,
    /// Whether it has ever been written.
    pub(super) ever: bool,
}

/// By number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<u32, Request>,
    last: u32,
}

impl Deref for Requests {
    type Target = BTreeMap<u32, Request>;

    fn deref(&self) -> &Self::Target {
        &self.open
    }
}

impl DerefMut for Requests {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.open
    }
}

impl Requests {
    /// Gives a question its number; the frame that asks it.
    pub(super) fn enter(
        &mut self,
        mut message: Message,
        asked: Asked,
        until: Option<Instant>,
    ) -> (u32, Frame) {
        let mut number = self.last.wrapping_add(1);
        while self.open.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.last = number;
        let mut asks = String::new();
        if let Message::Request { name, id, .. } = &mut message {
            *id = request_id(number);
            asks.clone_from(name);
        }
        let frame = message.to_frame();
        let request = Request {
            name: asks,
            asked,
            until,
            frame: frame.clone(),
            written: false,
            ever: false,
        };
        self.open.insert(number, request);
        (number, frame)
    }
}

impl Asked {
    pub(super) fn ticket(&self) -> Option<u64> {
        match self {
            Self::Value(ticket) | Self::File(ticket) => Some(*ticket),
            Self::CloverDir | Self::Life | Self::Cancelled => None,
        }
    }
}
