//! Forms: `key=value&…` in a URL or a body.

use std::collections::BTreeMap;

/// Most fields that are read; further ones are passed over.
const FIELDS_MAX: usize = 256;

/// The fields of a form. Of a key that comes twice the last counts.
pub(super) fn fields(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(FIELDS_MAX);
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Puts back what `%41` and `+` stand for; what is no text then, becomes `�`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, taken) = match (first, after) {
            (b'+', _) => (b' ', after),
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high * 16 + low, after),
                _ => (b'%', &rest[1..]),
            },
            _ => (*first, after),
        };
        bytes.push(byte);
        rest = taken;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read() {
        let read = fields("a=1&b=x%20y+z&c&&d=%C3%A4&e=%zz%4&a=2&f=a=b&g=%FF");
        let wanted = [
            ("a", "2"),
            ("b", "x y z"),
            ("c", ""),
            ("d", "ä"),
            ("e", "%zz%4"),
            ("f", "a=b"),
            ("g", "\u{fffd}"),
        ];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(read, BTreeMap::from(wanted));
        assert_eq!(fields(&"a&".repeat(10)).len(), 1);
        let many: Vec<String> = (0..1000).map(|n| format!("k{n}=1")).collect();
        assert_eq!(fields(&many.join("&")).len(), FIELDS_MAX);
    }
}
