//! The frame: `u16` big-endian length of the header, the header (a JSON object in UTF-8), the content.
//!
//! The format is clever-show's, so that its programs and ours interoperate; docs/protocol.md lists every key. A
//! length is checked against its cap before anything is allocated, and each fault has its own error. After a
//! [`WireError`] the position in the stream is lost: the link closes, and only that link.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

pub use crate::proto::json::ContentEncoding;
use crate::proto::json::{self, JSON_DEPTH_MAX};

pub mod encoded;
mod header_encoder;
mod header_parser;

/// Longest header, in bytes.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Longest content of any frame that is not a file chunk, in bytes.
pub const CONTENT_BYTES_MAX: usize = 1024 * 1024;
/// Longest content of a file chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest frame of a peer that has not authenticated yet, in bytes; a quarter of it for the header.
pub const PREAUTH_BYTES_MAX: usize = 16 * 1024;

/// Size of the length field in front of the header, in bytes.
pub(super) const LENGTH_BYTES: usize = 2;

/// Longest allowed parts of a frame, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest header, in bytes.
    pub header: usize,
    /// Longest content, in bytes.
    pub content: usize,
}

impl FrameLimits {
    /// Limits before a peer has authenticated.
    pub const PREAUTH: Self = Self {
        header: PREAUTH_BYTES_MAX,
        content: PREAUTH_BYTES_MAX,
    };
    /// Limits on a control connection.
    pub const CONTROL: Self = Self {
        header: HEADER_BYTES_MAX,
        content: CONTENT_BYTES_MAX,
    };
    /// Limits on a bulk connection.
    pub const BULK: Self = Self {
        header: HEADER_BYTES_MAX,
        content: CHUNK_BYTES_MAX,
    };
}

/// The bytes are not a valid frame. The stream cannot continue after any of these faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header is longer than allowed.
    #[error("header of {bytes} bytes is longer than the {max} allowed")]
    HeaderTooLong {
        /// Length that the frame announces.
        bytes: usize,
        /// Length that is allowed here.
        max: usize,
    },
    /// The content is longer than allowed.
    #[error("content of {bytes} bytes is longer than the {max} allowed")]
    ContentTooLong {
        /// Length that the header announces.
        bytes: u64,
        /// Length that is allowed here.
        max: usize,
    },
    /// The header is not UTF-8.
    #[error("header is not UTF-8")]
    HeaderNotUtf8,
    /// The header is nested too deeply.
    #[error("header is nested deeper than {JSON_DEPTH_MAX} levels")]
    HeaderTooDeep,
    /// The header is not a JSON object, or a key has a value of the wrong type.
    #[error("bad header: {0}")]
    BadHeader(String),
    /// A required key is missing.
    #[error("header has no {0:?}")]
    MissingKey(&'static str),
}

/// The sender's byte order. The key is required and has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// `little`
    #[default]
    Little,
    /// `big`
    Big,
    /// Any other value of a foreign program.
    #[serde(other)]
    Other,
}

/// Type of the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    /// JSON text in [`Header::content_encoding`].
    #[default]
    Json,
    /// Bytes; the encoding has no meaning.
    Binary,
}

/// The message types of clever-show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageType {
    /// Expects no response.
    #[default]
    Message,
    /// Expects a response.
    Request,
    /// Answers a request.
    Response,
}

/// Priority of a frame. The order is the order of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Before everything else.
    Emergency,
    /// Commands and replies.
    #[default]
    Control,
    /// Only the newest value is sent; it may be dropped, and is never repeated.
    Telemetry,
    /// File chunks, on a connection of their own.
    Bulk,
}

/// Meaning of a frame on our own links. Clever-show's frames have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The first frame in each direction: describes the sender.
    Hello,
    /// The last frame of a refused connection.
    Refused,
    /// The peer is accepted; states the resume point of the session.
    Welcome,
    /// Shows that the sender is alive.
    Heartbeat,
    /// An acknowledgement without another frame to carry it.
    Ack,
    /// An action to run.
    Command,
    /// The outcome of a command.
    Reply,
    /// The peers that the sender knows.
    Roster,
    /// Asks the receiver to dial a bulk connection, because the sender cannot reach it.
    OpenBulk,
    /// The revoked keys, signed by the fleet root.
    FleetState,
    /// A part of a file.
    Chunk,
    /// The end of a file, with its digest.
    ChunkEnd,
    /// A proof of an invitation code.
    Join,
    /// The grant for a peer that joined.
    Joined,
    /// Progress of a command at the node.
    Stage,
    /// An emergency stop: the content is the signed order, as in a datagram.
    Stop,
    /// The state of a node's emergency stop.
    Stopped,
    /// The actions of a node.
    Offer,
    /// A kind of a later version: acknowledged and ignored.
    #[serde(other)]
    Unknown,
}

/// The keys of a header. A key that a frame does not use is omitted; unknown keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// The sender's byte order; required, without effect.
    pub byteorder: ByteOrder,
    /// Type of the content.
    pub content_type: ContentType,
    /// The encoding of JSON content.
    pub content_encoding: ContentEncoding,
    /// Length of the content, in bytes.
    pub content_length: u64,
    /// Whether a response is expected.
    pub message_type: MessageType,
    /// The action that a command names; also clever-show's `action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Clever-show: the path to which a pushed file is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filepath: Option<String>,
    /// Clever-show: the value that a response answers.
    #[serde(rename = "requested_value", skip_serializing_if = "Option::is_none")]
    pub requested_value: Option<String>,
    /// Clever-show: the digits that match a response with its request.
    #[serde(rename = "request_id", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Meaning of the frame on our own links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Priority; absent on frames of other programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// Number of the command, unique for its issuer within [`Header::epoch`]; replies and chunks repeat it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The issuer's persisted epoch: with its key and `id`, the command's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Offset of a chunk in its file, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Time to live with which the command was issued, in milliseconds: its largest age, wherever it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub life: Option<u64>,
    /// Sequence number in the session, from 1; a frame without one is not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The sender has read all frames up to this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<u64>,
    /// Remaining time to live when the frame was sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// The deadline on the receiver's clock, in milliseconds, computed from its [`Header::stamp`]s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// The sender's clock when the frame was sent, in milliseconds since its session began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stamp: Option<u64>,
}

/// A header as parsed, with every key optional, so that the error can name the one that is missing.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawHeader {
    byteorder: Option<ByteOrder>,
    content_type: Option<ContentType>,
    content_encoding: Option<ContentEncoding>,
    content_length: Option<u64>,
    message_type: Option<MessageType>,
    action: Option<String>,
    filepath: Option<String>,
    #[serde(rename = "requested_value")]
    requested_value: Option<String>,
    #[serde(rename = "request_id", default, deserialize_with = "text_or_number")]
    request_id: Option<String>,
    kind: Option<Kind>,
    lane: Option<Lane>,
    id: Option<u64>,
    epoch: Option<u64>,
    offset: Option<u64>,
    life: Option<u64>,
    seq: Option<u64>,
    ack: Option<u64>,
    ttl: Option<u64>,
    until: Option<u64>,
    stamp: Option<u64>,
}

/// Some programs write `request_id` as a number.
fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum TextOrNumber {
        Text(String),
        Number(u64),
    }
    Ok(
        match Option::<TextOrNumber>::deserialize(from).map_err(D::Error::custom)? {
            None => None,
            Some(TextOrNumber::Text(text)) => Some(text),
            Some(TextOrNumber::Number(number)) => Some(number.to_string()),
        },
    )
}

impl Header {
    /// The header's bytes, with room for what a session appends.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, WireError> {
        if let Some(text) = header_encoder::encode_header(self) {
            return Ok(text);
        }
        serde_json::to_vec(self).map_err(|e| WireError::BadHeader(e.to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let text = std::str::from_utf8(bytes).map_err(|_utf8| WireError::HeaderNotUtf8)?;
        let raw = match header_parser::parse_header(text) {
            Some(raw) => raw,
            None if !json::has_safe_depth(bytes) => return Err(WireError::HeaderTooDeep),
            None => serde_json::from_str(text).map_err(|e| WireError::BadHeader(e.to_string()))?,
        };
        Ok(Self {
            byteorder: raw.byteorder.ok_or(WireError::MissingKey("byteorder"))?,
            content_type: raw.content_type.ok_or(WireError::MissingKey("content-type"))?,
            content_encoding: raw
                .content_encoding
                .ok_or(WireError::MissingKey("content-encoding"))?,
            content_length: raw
                .content_length
                .ok_or(WireError::MissingKey("content-length"))?,
            message_type: raw.message_type.ok_or(WireError::MissingKey("message-type"))?,
            action: raw.action,
            filepath: raw.filepath,
            requested_value: raw.requested_value,
            request_id: raw.request_id,
            kind: raw.kind,
            lane: raw.lane,
            id: raw.id,
            epoch: raw.epoch,
            offset: raw.offset,
            seq: raw.seq,
            ack: raw.ack,
            life: raw.life,
            ttl: raw.ttl,
            until: raw.until,
            stamp: raw.stamp,
        })
    }
}

/// One frame. A clone shares the content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Type and meaning of the content.
    pub header: Header,
    /// Exactly [`Header::content_length`] bytes.
    pub content: Bytes,
}

impl Frame {
    /// A frame of one of our own links with JSON content.
    ///
    /// # Panics
    /// Never for types that are plain data: serialising them to JSON cannot fail.
    pub fn json<T: Serialize + ?Sized>(kind: Kind, content: &T) -> Self {
        let content =
            serde_json::to_vec(content).unwrap_or_else(|e| unreachable!("plain data serialises: {e}"));
        let header = Header {
            kind: Some(kind),
            content_length: content.len() as u64,
            ..Header::default()
        };
        Self {
            header,
            content: content.into(),
        }
    }

    /// A frame of one of our own links with binary content, which may be empty.
    pub fn binary(kind: Kind, content: Bytes) -> Self {
        let header = Header {
            kind: Some(kind),
            content_type: ContentType::Binary,
            content_length: content.len() as u64,
            ..Header::default()
        };
        Self { header, content }
    }

    /// Reads JSON content leniently (see [`json`]).
    ///
    /// # Errors
    /// [`json::JsonError`]; the link survives.
    pub fn json_value(&self) -> Result<serde_json::Value, json::JsonError> {
        json::parse(&self.content, &self.header.content_encoding)
    }

    /// Parses JSON content of our own programs into its type, strictly.
    ///
    /// # Errors
    /// [`json::JsonError`]; the link survives.
    pub fn parse_content<'a, T: Deserialize<'a>>(&'a self) -> Result<T, json::JsonError> {
        if !json::has_safe_depth(&self.content) {
            return Err(json::JsonError::TooDeep);
        }
        serde_json::from_slice(&self.content).map_err(|e| json::JsonError::Syntax(e.to_string()))
    }

    /// Appends the frame's bytes.
    ///
    /// # Errors
    /// [`WireError::HeaderTooLong`] if the header does not fit its cap, [`WireError::BadHeader`] if its content
    /// length is not the content's. Nothing is appended then.
    pub fn encode(&self, to: &mut BytesMut) -> Result<(), WireError> {
        self.check_length()?;
        self.encode_header_to(to)?;
        to.put_slice(&self.content);
        Ok(())
    }

    /// A header with a wrong length would shift every later frame of the stream.
    pub(super) fn check_length(&self) -> Result<(), WireError> {
        let (announced, actual) = (self.header.content_length, self.content.len());
        if announced == actual as u64 {
            return Ok(());
        }
        Err(WireError::BadHeader(format!(
            "content-length is {announced} for {actual} bytes"
        )))
    }

    /// Appends the frame's bytes up to its content, for writers that send the content without copying it.
    ///
    /// # Errors
    /// [`WireError::HeaderTooLong`] if the header does not fit its cap; nothing is appended then.
    pub fn encode_header_to(&self, to: &mut BytesMut) -> Result<(), WireError> {
        let start = to.len();
        to.put_u16(0);
        let header = self.header.to_json()?;
        to.put_slice(&header);
        let bytes = to.len() - start - LENGTH_BYTES;
        match u16::try_from(bytes) {
            Ok(length) if bytes <= HEADER_BYTES_MAX => {
                to[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
                Ok(())
            }
            _ => {
                to.truncate(start);
                Err(WireError::HeaderTooLong {
                    bytes,
                    max: HEADER_BYTES_MAX,
                })
            }
        }
    }
}

/// Splits a stream into frames. Keeps a parsed header until its content has arrived.
#[derive(Debug)]
pub struct FrameReader {
    limits: FrameLimits,
    header: Option<Header>,
    missing_bytes: usize,
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            header: None,
            missing_bytes: LENGTH_BYTES,
        }
    }

    /// Changes the limits, from the next header on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Whether the stream may end here: no header without its content has been read. The caller checks that the
    /// buffer is empty.
    pub fn is_between_frames(&self) -> bool {
        self.header.is_none()
    }

    /// The header whose content is incomplete.
    pub fn pending_header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Bytes that the next frame is known to need still, after [`Self::next_frame`] returned none: never more than
    /// the limits allow.
    pub fn missing_bytes(&self) -> usize {
        self.missing_bytes
    }

    /// Removes the next complete frame from `from`; `None` until all of it is there.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot continue.
    pub fn next_frame(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        // A header whose content has arrived already is not stored: moving it costs as much as parsing a number.
        let header = match self.header.take() {
            Some(header) => header,
            None => match self.read_header(from)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let bytes = usize::try_from(header.content_length).unwrap_or(usize::MAX);
        if from.len() < bytes {
            self.missing_bytes = bytes - from.len();
            self.header = Some(header);
            return Ok(None);
        }
        let content = from.split_to(bytes).freeze();
        Ok(Some(Frame { header, content }))
    }

    fn read_header(&mut self, from: &mut BytesMut) -> Result<Option<Header>, WireError> {
        let Some(length) = from.first_chunk::<LENGTH_BYTES>() else {
            self.missing_bytes = LENGTH_BYTES - from.len();
            return Ok(None);
        };
        let bytes = usize::from(u16::from_be_bytes(*length));
        if bytes > self.limits.header {
            return Err(WireError::HeaderTooLong {
                bytes,
                max: self.limits.header,
            });
        }
        let whole = LENGTH_BYTES + bytes;
        if from.len() < whole {
            self.missing_bytes = whole - from.len();
            return Ok(None);
        }
        let header = Header::parse(&from[LENGTH_BYTES..whole])?;
        let max = self.limits.content;
        if header.content_length > max as u64 {
            return Err(WireError::ContentTooLong {
                bytes: header.content_length,
                max,
            });
        }
        from.advance(whole);
        Ok(Some(header))
    }
}
