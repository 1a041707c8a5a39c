//! `server_ip`: the datagram by which a server makes itself known. Anybody can send one, so it proves nothing: it can
//! make a program dial, never trust.

use bytes::BytesMut;
use serde_json::{Map, Value};

use super::messages::{BadMessage, Message};
use crate::proto::wire::{FrameReader, Limits, WireError};

/// The action that it names.
pub const SERVER_IP: &str = "server_ip";
/// The UDP port that drones listen on.
pub const ANNOUNCEMENT_PORT: u16 = 8181;
/// Longest announcement, in bytes; a drone reads no more of a datagram.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 1_024;
/// Longest text of each of its values, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// Where a server says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its address as text.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Four digits that it chose at its start.
    pub id: String,
    /// When it started, in seconds since 1970, as text.
    pub start_time: String,
}

/// Why a datagram is no announcement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnouncement {
    /// Longer than a drone reads.
    #[error("{0} bytes are more than the {ANNOUNCEMENT_BYTES_MAX} that a drone reads")]
    TooLong(usize),
    /// It is no frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The frame means nothing.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// It is not one whole frame.
    #[error("it is not one whole frame")]
    NotOneFrame,
    /// It says something else.
    #[error("it is not {SERVER_IP} with a sound host and port")]
    Other,
}

impl Announcement {
    /// Reads a datagram.
    ///
    /// # Errors
    /// [`BadAnnouncement`]; drop it.
    pub fn read(datagram: &[u8]) -> Result<Self, BadAnnouncement> {
        if datagram.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(BadAnnouncement::TooLong(datagram.len()));
        }
        let mut bytes = BytesMut::from(datagram);
        let limits = Limits {
            header: ANNOUNCEMENT_BYTES_MAX,
            content: ANNOUNCEMENT_BYTES_MAX,
        };
        let frame = FrameReader::new(limits).next_frame(&mut bytes)?;
        let frame = frame
            .filter(|_| bytes.is_empty())
            .ok_or(BadAnnouncement::NotOneFrame)?;
        let Message::Action { action, arguments } = Message::read(&frame)? else {
            return Err(BadAnnouncement::Other);
        };
        let text = |key: &str| match arguments.kwargs.get(key) {
            Some(Value::String(text)) if text.len() <= TEXT_BYTES_MAX => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let (host, port) = (text("host"), text("port").parse().unwrap_or_default());
        if action != SERVER_IP || host.is_empty() || port == 0 {
            return Err(BadAnnouncement::Other);
        }
        Ok(Self {
            host,
            port,
            id: text("id"),
            start_time: text("start_time"),
        })
    }

    /// The datagram.
    ///
    /// # Errors
    /// [`BadAnnouncement::TooLong`] if its texts are too long for a drone to read.
    pub fn to_datagram(&self) -> Result<Vec<u8>, BadAnnouncement> {
        let texts = [
            ("host", self.host.clone()),
            ("port", self.port.to_string()),
            ("id", self.id.clone()),
            ("start_time", self.start_time.clone()),
        ];
        let kwargs = texts.map(|(key, text)| (key.to_owned(), Value::String(text)));
        let mut bytes = BytesMut::new();
        Message::action(SERVER_IP, Map::from_iter(kwargs))
            .to_frame()
            .encode(&mut bytes)?;
        if bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(BadAnnouncement::TooLong(bytes.len()));
        }
        Ok(bytes.to_vec())
    }
}
