//! A lenient JSON parser: nesting is bounded, text may be UTF-16, and numbers may be the bare words `NaN`, `Infinity`
//! and `-Infinity`, which Python writes and RFC 8259 forbids. Those are read as `null`.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Deepest nesting of arrays and objects that is parsed, in levels.
pub const JSON_DEPTH_MAX: usize = 32;

/// Encoding of JSON content. The header itself is always UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContentEncoding {
    /// `utf-8`, the only one that our programs write.
    #[default]
    Utf8,
    /// `utf-16`, which some other programs write.
    Utf16,
    /// Any other: the frame is valid, but its content cannot be parsed as JSON.
    Other(String),
}

impl ContentEncoding {
    pub(super) fn from_name(name: &str) -> Self {
        let actual = |known: [&str; 2]| known.iter().any(|k| name.eq_ignore_ascii_case(k));
        if actual(["utf-8", "utf8"]) {
            Self::Utf8
        } else if actual(["utf-16", "utf16"]) {
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

/// The content cannot be parsed as JSON. The link survives each of these faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Arrays or objects are nested too deeply; found before anything is built.
    #[error("JSON is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// The bytes are not valid text in the encoding that the frame names.
    #[error("content is not valid {0}")]
    NotText(&'static str),
    /// The frame names an encoding that is not supported.
    #[error("content-encoding {0:?} is not known; use utf-8")]
    UnknownEncoding(String),
}

/// Whether no array or object in `text` is nested deeper than [`JSON_DEPTH_MAX`]. Text that is not JSON may pass: the
/// parser rejects it.
pub fn has_safe_depth(text: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return false;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// Parses content in its encoding.
///
/// # Errors
/// [`JsonError`]: the fault in the content. The frame and its link are not affected.
pub fn parse(content: &[u8], encoding: &ContentEncoding) -> Result<Value, JsonError> {
    let text = to_text(content, encoding)?;
    if !has_safe_depth(text.as_bytes()) {
        return Err(JsonError::TooDeep);
    }
    match serde_json::from_str(&text) {
        Ok(value) => Ok(value),
        Err(strict) => match replace_non_finite(&text) {
            Some(replaced) => serde_json::from_str(&replaced).map_err(|e| JsonError::Syntax(e.to_string())),
            None => Err(JsonError::Syntax(strict.to_string())),
        },
    }
}

fn to_text<'a>(content: &'a [u8], encoding: &ContentEncoding) -> Result<Cow<'a, str>, JsonError> {
    match encoding {
        ContentEncoding::Utf8 => {
            let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
            std::str::from_utf8(text)
                .map(Cow::Borrowed)
                .map_err(|_utf8| JsonError::NotText("utf-8"))
        }
        ContentEncoding::Utf16 => decode_utf16_bytes(content)
            .map(Cow::Owned)
            .ok_or(JsonError::NotText("utf-16")),
        ContentEncoding::Other(name) => Err(JsonError::UnknownEncoding(name.clone())),
    }
}

/// UTF-16 with a byte order mark (RFC 2781); without one, little-endian, which Python writes on every Pi and PC.
fn decode_utf16_bytes(bytes: &[u8]) -> Option<String> {
    let (big, bytes) = match bytes {
        [0xfe, 0xff, rest @ ..] => (true, rest),
        [0xff, 0xfe, rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let units = pairs.iter().map(|pair| {
        if big {
            u16::from_be_bytes(*pair)
        } else {
            u16::from_le_bytes(*pair)
        }
    });
    char::decode_utf16(units).collect::<Result<String, _>>().ok()
}

/// The text with each bare `NaN`, `Infinity` and `-Infinity` outside strings replaced by `null`; `None` if there is
/// none.
fn replace_non_finite(text: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut replaced = String::with_capacity(text.len());
    let mut found = false;
    let mut in_string = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !in_string && let Some(name) = WORDS.iter().find(|name| rest.starts_with(**name)) {
            replaced.push_str("null");
            rest = &rest[name.len()..];
            found = true;
            continue;
        }
        let mut taken = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' if in_string => taken += rest[taken..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        replaced.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    found.then_some(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse_utf8(text: &str) -> Result<Value, JsonError> {
        parse(text.as_bytes(), &ContentEncoding::Utf8)
    }

    #[test]
    fn python_non_finite_numbers_become_null() {
        let value = parse_utf8(r#"{"a":[NaN,-Infinity,Infinity,1],"NaN":"Infinity \" NaN"}"#);
        assert_eq!(value, Ok(json!({"a":[null,null,null,1],"NaN":"Infinity \" NaN"})));
    }

    #[test]
    fn json_depth_is_checked_before_parsing() {
        let nest = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_utf8(&nest(JSON_DEPTH_MAX)).is_ok());
        assert_eq!(parse_utf8(&nest(JSON_DEPTH_MAX + 1)), Err(JsonError::TooDeep));
        assert!(parse_utf8(&format!("\"{}\"", "[".repeat(100))).is_ok());
    }

    #[test]
    fn utf16_json_of_both_byte_orders_parses() {
        let text = "{\"a\":\"№\"}";
        let little: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain(text.encode_utf16().flat_map(u16::to_le_bytes))
            .collect();
        let big: Vec<u8> = [0xfe, 0xff]
            .into_iter()
            .chain(text.encode_utf16().flat_map(u16::to_be_bytes))
            .collect();
        for bytes in [&little, &big, &little[2..].to_vec()] {
            assert_eq!(parse(bytes, &ContentEncoding::Utf16), Ok(json!({"a":"№"})));
        }
        assert_eq!(
            parse(&little[..5], &ContentEncoding::Utf16),
            Err(JsonError::NotText("utf-16"))
        );
    }

    #[test]
    fn each_json_fault_has_its_error() {
        assert_eq!(
            parse(&[0xff], &ContentEncoding::Utf8),
            Err(JsonError::NotText("utf-8"))
        );
        assert!(matches!(parse_utf8("{"), Err(JsonError::Syntax(_))));
        assert!(matches!(parse_utf8("[NaN"), Err(JsonError::Syntax(_))));
        let encoding = ContentEncoding::Other("koi8-r".to_owned());
        assert_eq!(
            parse(b"{}", &encoding),
            Err(JsonError::UnknownEncoding("koi8-r".to_owned()))
        );
    }
}
