//! Fast path for writing a header; the general way took a tenth of the processor time of a busy node.
//!
//! It writes what our programs put into a header: plain texts and whole numbers. At a text that needs escapes it
//! returns `None`, and serde writes the header. Invariant: its output equals serde's.

use bytes::BufMut;

use super::{ByteOrder, ContentEncoding, ContentType, Header, Kind, Lane, MessageType};

/// Typical size of a header, in bytes, so that most headers take one allocation.
const HEADER_BYTES_TYPICAL: usize = 256;
/// Digits of the longest `u64`.
const DIGITS_MAX: usize = 20;

/// Writes a header; `None` if serde has to write it.
pub(super) fn encode_header(header: &Header) -> Option<Vec<u8>> {
    let mut to = Vec::with_capacity(HEADER_BYTES_TYPICAL);
    append_text(&mut to, b"{\"byteorder\":\"", byte_order(header.byteorder)?)?;
    append_text(
        &mut to,
        b",\"content-type\":\"",
        content_type(header.content_type),
    )?;
    append_text(
        &mut to,
        b",\"content-encoding\":\"",
        content_encoding(&header.content_encoding),
    )?;
    append_number(&mut to, b",\"content-length\":", Some(header.content_length));
    append_text(
        &mut to,
        b",\"message-type\":\"",
        message_type(header.message_type),
    )?;
    let texts: [(&[u8], Option<&str>); 6] = [
        (b",\"action\":\"", header.action.as_deref()),
        (b",\"filepath\":\"", header.filepath.as_deref()),
        (b",\"requested_value\":\"", header.requested_value.as_deref()),
        (b",\"request_id\":\"", header.request_id.as_deref()),
        (b",\"kind\":\"", header.kind.map(kind)),
        (b",\"lane\":\"", header.lane.map(lane)),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            append_text(&mut to, key, value)?;
        }
    }
    append_number(&mut to, b",\"id\":", header.id);
    append_number(&mut to, b",\"epoch\":", header.epoch);
    append_number(&mut to, b",\"offset\":", header.offset);
    append_number(&mut to, b",\"life\":", header.life);
    append_number(&mut to, b",\"seq\":", header.seq);
    append_number(&mut to, b",\"ack\":", header.ack);
    append_number(&mut to, b",\"ttl\":", header.ttl);
    append_number(&mut to, b",\"until\":", header.until);
    append_number(&mut to, b",\"stamp\":", header.stamp);
    to.push(b'}');
    Some(to)
}

/// Appends a key, up to its opening quote, and its text; `None` if the text needs escapes.
fn append_text(to: &mut Vec<u8>, key: &[u8], value: &str) -> Option<()> {
    let needs_escape = value.bytes().fold(false, |needs_escape, byte| {
        needs_escape | (byte == b'\\') | (byte == b'"') | (byte < b' ')
    });
    if needs_escape {
        return None;
    }
    to.extend_from_slice(key);
    to.extend_from_slice(value.as_bytes());
    to.push(b'"');
    Some(())
}

/// Appends a key and its number, if there is one. By hand, because `write!` takes longer than the rest of the frame.
pub(in crate::proto) fn append_number(to: &mut impl BufMut, key: &[u8], value: Option<u64>) {
    let Some(mut rest) = value else {
        return;
    };
    let mut digits = [b'0'; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        start = at;
        if rest == 0 {
            break;
        }
    }
    to.put_slice(key);
    to.put_slice(&digits[start..]);
}

fn byte_order(order: ByteOrder) -> Option<&'static str> {
    match order {
        ByteOrder::Little => Some("little"),
        ByteOrder::Big => Some("big"),
        ByteOrder::Other => None,
    }
}

fn content_type(kind: ContentType) -> &'static str {
    match kind {
        ContentType::Json => "json",
        ContentType::Binary => "binary",
    }
}

fn content_encoding(encoding: &ContentEncoding) -> &str {
    match encoding {
        ContentEncoding::Utf8 => "utf-8",
        ContentEncoding::Utf16 => "utf-16",
        ContentEncoding::Other(name) => name,
    }
}

fn message_type(kind: MessageType) -> &'static str {
    match kind {
        MessageType::Message => "message",
        MessageType::Request => "request",
        MessageType::Response => "response",
    }
}

fn lane(lane: Lane) -> &'static str {
    match lane {
        Lane::Emergency => "emergency",
        Lane::Control => "control",
        Lane::Telemetry => "telemetry",
        Lane::Bulk => "bulk",
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Hello => "hello",
        Kind::Refused => "refused",
        Kind::Welcome => "welcome",
        Kind::Heartbeat => "heartbeat",
        Kind::Ack => "ack",
        Kind::Command => "command",
        Kind::Reply => "reply",
        Kind::Roster => "roster",
        Kind::OpenBulk => "open-bulk",
        Kind::FleetState => "fleet-state",
        Kind::Chunk => "chunk",
        Kind::ChunkEnd => "chunk-end",
        Kind::Join => "join",
        Kind::Joined => "joined",
        Kind::Stage => "stage",
        Kind::Stop => "stop",
        Kind::Stopped => "stopped",
        Kind::Offer => "offer",
        Kind::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option::of;
    use proptest::prelude::*;

    fn assert_matches_serde(quick: &Header) {
        let general = serde_json::to_string(quick).expect("plain data");
        let text = encode_header(quick).map(|text| String::from_utf8(text).expect("UTF-8"));
        let needs_escape = general.contains('\\') || quick.byteorder == ByteOrder::Other;
        assert_eq!(text, (!needs_escape).then_some(general), "{quick:?}");
    }

    #[test]
    fn header_encoder_writes_every_value_as_serde_does() {
        use ByteOrder::{Big, Little, Other};
        for byteorder in [Little, Big, Other] {
            assert_matches_serde(&Header {
                byteorder,
                ..Header::default()
            });
        }
        for content_type in [ContentType::Json, ContentType::Binary] {
            assert_matches_serde(&Header {
                content_type,
                ..Header::default()
            });
        }
        use ContentEncoding::{Utf8, Utf16};
        for content_encoding in [Utf8, Utf16, ContentEncoding::Other("koi8-r".to_owned())] {
            assert_matches_serde(&Header {
                content_encoding,
                ..Header::default()
            });
        }
        for message_type in [MessageType::Message, MessageType::Request, MessageType::Response] {
            assert_matches_serde(&Header {
                message_type,
                ..Header::default()
            });
        }
        for lane in [Lane::Emergency, Lane::Control, Lane::Telemetry, Lane::Bulk] {
            assert_matches_serde(&Header {
                lane: Some(lane),
                ..Header::default()
            });
        }
        for kind in [
            Kind::Hello,
            Kind::Refused,
            Kind::Welcome,
            Kind::Heartbeat,
            Kind::Ack,
            Kind::Command,
            Kind::Reply,
            Kind::Roster,
            Kind::OpenBulk,
            Kind::FleetState,
            Kind::Chunk,
            Kind::ChunkEnd,
            Kind::Join,
            Kind::Joined,
            Kind::Stage,
            Kind::Stop,
            Kind::Stopped,
            Kind::Offer,
            Kind::Unknown,
        ] {
            assert_matches_serde(&Header {
                kind: Some(kind),
                ..Header::default()
            });
        }
    }

    proptest! {
        #[test]
        fn header_encoder_output_equals_serde_output(
            texts in [of(any::<String>()), of(any::<String>()), of(".{0,4}"), of("[a-z\\\\\"\u{7f}\u{1f}é]{0,3}")],
            numbers in proptest::array::uniform6(of(prop_oneof![any::<u64>(), 0..2000_u64])),
            content_length in any::<u64>(),
        ) {
            let [action, filepath, requested_value, request_id] = texts;
            let [id, epoch, offset, seq, ack, ttl] = numbers;
            assert_matches_serde(&Header {
                content_length, action, filepath, requested_value, request_id, id, epoch, offset, seq, ack, ttl,
                ..Header::default()
            });
        }
    }
}
