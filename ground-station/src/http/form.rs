//! Forms: `key=value&…` in a URL's query or a body.

use std::collections::BTreeMap;

/// Fields that are read; further ones are ignored.
const FIELDS_MAX: usize = 256;

/// The fields of a form. If a key occurs twice, its last value counts. Invalid UTF-8 becomes `�`.
pub(crate) fn fields(text: &str) -> BTreeMap<String, String> {
    let pairs = form_urlencoded::parse(text.as_bytes()).take(FIELDS_MAX);
    pairs
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_fields_are_decoded_within_a_bound() {
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
