//! The datagram by which a server announces its address: one frame, the action `server_ip`, and four texts.
//!
//! The datagram is not signed: any program on the network can send it.

use bytes::BytesMut;
use serde_json::Value;

use super::message::Message;
use super::{ANNOUNCEMENT_BYTES_MAX, BadMessage};
use crate::proto::message::Arguments;
use crate::proto::wire::{FrameLimits, FrameReader, LENGTH_BYTES, WireError};

/// The action of the datagram.
const SERVER_IP: &str = "server_ip";
/// Longest text of an announcement that is accepted, in bytes.
const TEXT_BYTES_MAX: usize = 253;

/// The content of an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its IP address, or its host name.
    pub host: String,
    /// The TCP port on which it accepts drones.
    pub port: u16,
    /// Four digits that differ between runs of a server.
    pub id: String,
    /// Time of its start: seconds since 1970, as text.
    pub start_time: String,
}

/// Why a datagram is not an announcement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnouncement {
    /// Longer than drones read.
    #[error("{0} bytes are more than the {ANNOUNCEMENT_BYTES_MAX} of an announcement")]
    TooLong(usize),
    /// The bytes are not a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It ends within the frame, or bytes follow the frame.
    #[error("not one whole frame")]
    NotOneFrame,
    /// The frame is not a message.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// Its action is another.
    #[error("not a {SERVER_IP}")]
    OtherAction,
    /// One of the four texts is missing, empty, too long, or not a text.
    #[error("no valid {0:?}")]
    MissingField(&'static str),
}

impl Announcement {
    /// The datagram's bytes.
    ///
    /// # Errors
    /// [`BadAnnouncement::TooLong`]; texts of a server are short.
    pub fn to_datagram(&self) -> Result<Vec<u8>, BadAnnouncement> {
        let mut arguments = Arguments::default();
        let texts = [
            ("host", self.host.clone()),
            ("port", self.port.to_string()),
            ("id", self.id.clone()),
            ("start_time", self.start_time.clone()),
        ];
        for (key, text) in texts {
            arguments.kwargs.insert(key.to_owned(), text.into());
        }
        let message = Message::Action {
            action: SERVER_IP.to_owned(),
            arguments,
        };
        let mut bytes = BytesMut::new();
        message.to_frame().encode(&mut bytes)?;
        if bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(BadAnnouncement::TooLong(bytes.len()));
        }
        Ok(bytes.to_vec())
    }

    /// Decodes a datagram.
    ///
    /// # Errors
    /// [`BadAnnouncement`].
    pub fn parse(datagram: &[u8]) -> Result<Self, BadAnnouncement> {
        if datagram.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(BadAnnouncement::TooLong(datagram.len()));
        }
        let limits = FrameLimits {
            header: ANNOUNCEMENT_BYTES_MAX - LENGTH_BYTES,
            content: ANNOUNCEMENT_BYTES_MAX,
        };
        let mut bytes = BytesMut::from(datagram);
        let frame = FrameReader::new(limits).next_frame(&mut bytes)?;
        let frame = frame.filter(|_| bytes.is_empty());
        let message = Message::from_frame(&frame.ok_or(BadAnnouncement::NotOneFrame)?)?;
        let Message::Action {
            action,
            mut arguments,
        } = message
        else {
            return Err(BadAnnouncement::OtherAction);
        };
        if action != SERVER_IP {
            return Err(BadAnnouncement::OtherAction);
        }
        let mut text = |key: &'static str| {
            let text = match arguments.kwargs.remove(key) {
                Some(Value::String(text)) => text,
                // The real program writes texts only; a number has one meaning, so it is accepted.
                Some(Value::Number(number)) => number.to_string(),
                None | Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                    return Err(BadAnnouncement::MissingField(key));
                }
            };
            Some(text)
                .filter(|text| (1..=TEXT_BYTES_MAX).contains(&text.len()))
                .ok_or(BadAnnouncement::MissingField(key))
        };
        let host = text("host")?;
        let port = text("port")?.parse().ok().filter(|port| *port > 0);
        Ok(Self {
            host,
            port: port.ok_or(BadAnnouncement::MissingField("port"))?,
            id: text("id")?,
            start_time: text("start_time")?,
        })
    }
}
