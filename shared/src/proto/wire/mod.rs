//! The frame: `u16` big-endian length of the header, the header (a JSON object in UTF-8), the content.
//!
//! It is the frame of clever-show, so that its programs and ours can talk; docs/protocol.md lists every key.
//! A length is checked against its cap before anything is allocated for it, and each fault has its own error.
//! After a [`WireError`] the position in the stream is lost: the link closes, and only that link.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
/// Longest frame of a peer that has not proved yet who it is, in bytes: a quarter for its header.
pub const PREAUTH_BYTES_MAX: usize = 16 * 1024;

/// Length of the header's length.
pub(super) const LENGTH_BYTES: usize = 2;

/// How long the parts of a frame may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest header.
    pub header: usize,
    /// Longest content.
    pub content: usize,
}

impl FrameLimits {
    /// Before a peer has proved who it is.
    pub const PREAUTH: Self = Self {
        header: PREAUTH_BYTES_MAX,
        content: PREAUTH_BYTES_MAX,
    };
    /// On a control connection.
    pub const CONTROL: Self = Self {
        header: HEADER_BYTES_MAX,
        content: CONTENT_BYTES_MAX,
    };
    /// On a bulk connection.
    pub const BULK: Self = Self {
        header: HEADER_BYTES_MAX,
        content: CHUNK_BYTES_MAX,
    };
}

/// Why bytes are not a frame. The stream cannot go on after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header is longer than allowed.
    #[error("header of {bytes} bytes is longer than the {max} allowed")]
    HeaderTooLong {
        /// What the frame announces.
        bytes: usize,
        /// What is allowed here.
        max: usize,
    },
    /// The content is longer than allowed.
    #[error("content of {bytes} bytes is longer than the {max} allowed")]
    ContentTooLong {
        /// What the header announces.
        bytes: u64,
        /// What is allowed here.
        max: usize,
    },
    /// The header is not UTF-8.
    #[error("header is not UTF-8")]
    HeaderNotUtf8,
    /// The header is nested too deeply.
    #[error("header is nested deeper than {JSON_DEPTH_MAX} levels")]
    HeaderTooDeep,
    /// The header is not a JSON object, or a key holds what it may not hold.
    #[error("bad header: {0}")]
    BadHeader(String),
    /// A required key is not there.
    #[error("header has no {0:?}")]
    MissingKey(&'static str),
}

/// The sender's processor order. It is required and decides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// `little`
    #[default]
    Little,
    /// `big`
    Big,
    /// Anything else that a foreign program wrote.
    #[serde(other)]
    Other,
}

/// What the content is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    /// JSON text in [`Header::content_encoding`].
    #[default]
    Json,
    /// Bytes; the encoding means nothing.
    Binary,
}

/// The encoding of JSON content. The header itself is always UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContentEncoding {
    /// `utf-8`, which is all that we write.
    #[default]
    Utf8,
    /// `utf-16`, which is seen in the field.
    Utf16,
    /// Another: the frame is sound, but its content cannot be read as JSON.
    Other(String),
}

impl ContentEncoding {
    fn from_name(name: &str) -> Self {
        let is = |known: [&str; 2]| known.iter().any(|k| name.eq_ignore_ascii_case(k));
        if is(["utf-8", "utf8"]) {
            Self::Utf8
        } else if is(["utf-16", "utf16"]) {
            Self::Utf16
        } else {
            Self::Other(name.to_owned())
        }
    }
}

impl Serialize for ContentEncoding {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            Self::Utf8 => "utf-8",
            Self::Utf16 => "utf-16",
            Self::Other(name) => name,
        })
    }
}

impl<'de> Deserialize<'de> for ContentEncoding {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = ContentEncoding;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of an encoding")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<ContentEncoding, E> {
                Ok(ContentEncoding::from_name(name))
            }
        }
        from.deserialize_str(Name)
    }
}

/// Clever-show's three kinds of message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageType {
    /// Needs no answer.
    #[default]
    Message,
    /// Wants a response.
    Request,
    /// Answers a request.
    Response,
}

/// How urgent a frame is. The order is the order of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Jumps everything.
    Emergency,
    /// Commands and replies.
    #[default]
    Control,
    /// Only the newest value counts; may be dropped, never repeated.
    Telemetry,
    /// Files, on a connection of their own.
    Bulk,
}

/// What a frame on one of our own links means. Clever-show's frames have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Who I am: the first frame each way.
    Hello,
    /// You may not: the last frame of a connection.
    Refused,
    /// You may; and how far I had read in our session.
    Welcome,
    /// I am alive.
    Heartbeat,
    /// How far I have read, when nothing else is to be said.
    Ack,
    /// Do this.
    Command,
    /// It ended so.
    Reply,
    /// Whom I know.
    Roster,
    /// Please dial me once more, for files: I cannot reach you.
    OpenBulk,
    /// Who is revoked, signed by the fleet root.
    FleetState,
    /// A part of a file.
    Chunk,
    /// The end of a file, with its digest.
    ChunkEnd,
    /// I hold an invitation.
    Join,
    /// Here is your grant.
    Joined,
    /// Your command has come this far.
    Stage,
    /// Emergency stop: its content is the signed order, as in a datagram.
    Stop,
    /// How my emergency stop stands.
    Stopped,
    /// What I can do.
    Offer,
    /// From a later version: counted and passed over.
    #[serde(other)]
    Unknown,
}

/// The header's keys. What a frame does not use is left out; keys that are not known are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// Required; decides nothing.
    pub byteorder: ByteOrder,
    /// What the content is.
    pub content_type: ContentType,
    /// The encoding of JSON content.
    pub content_encoding: ContentEncoding,
    /// Length of the content, in bytes.
    pub content_length: u64,
    /// Message, request or response.
    pub message_type: MessageType,
    /// The action that a command names; also clever-show's `action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Clever-show: what a file push is to be written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filepath: Option<String>,
    /// Clever-show: what a response answers.
    #[serde(rename = "requested_value", skip_serializing_if = "Option::is_none")]
    pub requested_value: Option<String>,
    /// Clever-show: the digits that pair a response with its request.
    #[serde(rename = "request_id", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What the frame means on our own links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// How urgent it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// The command's number, unique for its issuer within [`Header::epoch`]; a reply and a chunk repeat it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The issuer's persisted epoch: with its key and `id`, the command's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Where a chunk belongs in its file, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The time to live that a command was issued with, in milliseconds: how old it may ever get, wherever it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub life: Option<u64>,
    /// The frame's number in its session, from 1; frames without one are not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// All frames up to this number have been read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<u64>,
    /// Time to live left when the frame was sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// When the time to live ends on the receiver's clock, in milliseconds, reckoned from its [`Header::stamp`]s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// The sender's clock when the frame was sent, in milliseconds since its session began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stamp: Option<u64>,
}

/// As read, with every key optional, so that the error can name the one that is missing.
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

/// Some peers write `request_id` as a number.
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
    /// The header's bytes. They have room for what a session appends.
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

/// One frame. Its content is shared, not copied, when it is cloned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// What the content is and means.
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

    /// A frame of one of our own links with bytes for content; an empty one has no content at all.
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

    /// Reads JSON content of our own programs into its type, strictly.
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
    /// [`WireError::HeaderTooLong`] if the header does not fit its cap, [`WireError::BadHeader`] if it tells another
    /// length than the content has. Nothing is appended then.
    pub fn encode(&self, to: &mut BytesMut) -> Result<(), WireError> {
        self.check_length()?;
        self.encode_header_to(to)?;
        to.put_slice(&self.content);
        Ok(())
    }

    /// A header that told another length would shift every later frame of the stream.
    pub(super) fn check_length(&self) -> Result<(), WireError> {
        let (told, is) = (self.header.content_length, self.content.len());
        if told == is as u64 {
            return Ok(());
        }
        Err(WireError::BadHeader(format!(
            "content-length is {told} for {is} bytes"
        )))
    }

    /// Appends the frame's bytes up to its content, for writers that send the content from where it lies.
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

/// Takes frames off the front of a stream. Remembers a header that it has read while its content is on the way.
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

    /// Changes the caps, from the next header on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Whether the stream may end here: no header without its content has been taken. Bytes that still wait in the
    /// buffer are for the caller to see.
    pub fn is_between_frames(&self) -> bool {
        self.header.is_none()
    }

    /// The header whose content is on the way.
    pub fn pending_header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How many bytes more the next frame is known to need, after [`Self::next_frame`] found none: never more
    /// than the caps allow.
    pub fn missing_bytes(&self) -> usize {
        self.missing_bytes
    }

    /// Takes the next whole frame from `from`; `None` until all of it is there.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot go on.
    pub fn next_frame(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        // A header whose content is there already is never put down: moving it costs as much as reading a number.
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
