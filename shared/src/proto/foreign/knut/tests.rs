use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Everything in `bytes`, which come in pieces of this length.
fn decode_all(max: usize, bytes: &[u8], piece: usize) -> Vec<Item> {
    let mut decoder = Decoder::new(max);
    let mut items = Vec::new();
    for mut piece in bytes.chunks(piece.max(1)) {
        while let Some(item) = decoder.decode_next(&mut piece) {
            items.push(item);
        }
        assert!(decoder.partial.len() <= max);
    }
    items
}

fn message(api: i64, id: i64, msg: Value) -> Item {
    Item::Message(Message { api, id, msg })
}

/// What the documentation of the real server prints, byte for byte.
const ASKED: &[u8] = b"{\"apiId\": 1, \"msgId\": 2, \"msg\": {}}\0";
const ANSWERED: &[u8] =
    b"{\"apiId\": 1, \"msgId\": 258, \"msg\": {\"dummy\": {\"location\": \"Somewhere\", \"unit\": \
    \"\\u00b0C\", \"condition\": \"\\uf002\", \"temperature\": 10.2}}}\0";

#[test]
fn documented_messages_are_parsed_and_encoded() {
    let asked = message(1, 2, json!({}));
    let body = json!({"location": "Somewhere", "unit": "°C", "condition": "\u{f002}", "temperature": 10.2});
    let answered = message(1, 0x0102, json!({ "dummy": body }));
    for piece in [1, 7, 4096] {
        assert_eq!(decode_all(4096, ASKED, piece), std::slice::from_ref(&asked));
        assert_eq!(decode_all(4096, ANSWERED, piece), std::slice::from_ref(&answered));
    }
    // As we write it: another order of fields, the same message.
    let Item::Message(answered) = answered else {
        unreachable!()
    };
    let written = answered.encode();
    assert_eq!(written.iter().filter(|byte| **byte == TERMINATOR).count(), 1);
    assert_eq!(decode_all(4096, &written, 4096), [Item::Message(answered)]);
    assert_eq!(
        Message {
            api: 1,
            id: 2,
            msg: json!({})
        }
        .encode(),
        b"{\"apiId\":1,\"msgId\":2,\"msg\":{}}\0"
    );
}

#[test]
fn lone_nul_is_a_heartbeat_and_white_space_is_ignored() {
    let bytes = b"\0\0 \n\0\n{\"apiId\":1,\"msgId\":1,\"msg\":null} \n\0\n";
    for piece in [1, 3, 64] {
        let items = decode_all(64, bytes, piece);
        let beat = || Item::Heartbeat;
        assert_eq!(items, [beat(), beat(), beat(), message(1, 1, Value::Null)]);
    }
    let mut decoder = Decoder::new(64);
    assert_eq!(decoder.decode_next(&mut &b"\n \r\n"[..]), None);
    assert!(!decoder.has_partial_message(), "nothing has begun");
    assert_eq!(decoder.decode_next(&mut &b"{"[..]), None);
    assert!(decoder.has_partial_message());
}

#[test]
fn invalid_message_ends_at_its_nul() {
    let good = b"{\"apiId\":1,\"msgId\":1,\"msg\":[]}\0";
    for bad in [
        &b"nonsense"[..],
        b"{\"apiId\":1,\"msgId\":1}",
        b"{\"apiId\":\"1\",\"msgId\":1,\"msg\":{}}",
        b"{\"apiId\":1.5,\"msgId\":1,\"msg\":{}}",
        b"{\"apiId\":1,\"msgId\":99999999999999999999,\"msg\":{}}",
        b"[1,2,3]",
        b"7",
        b"\xff\xfe",
        &[b'['; 60],
        b"{\"apiId\":1,\"msgId\":1,\"msg\":{}} {}",
    ] {
        let bytes = [bad, b"\0", good].concat();
        let items = decode_all(64, &bytes, 5);
        assert!(
            matches!(items[..], [Item::Invalid(_), Item::Message(_)]),
            "{items:?}"
        );
    }
}

#[test]
fn oversized_message_is_reported_once_and_skipped() {
    let long = [&[b'x'; 1000][..], ASKED].concat();
    let bytes = [&long[..], ASKED, b"\0"].concat();
    for piece in [1, 10, 100, 5000] {
        let items = decode_all(40, &bytes, piece);
        assert_eq!(items.len(), 3, "{items:?}");
        assert_eq!(items[0], Item::Invalid(BadMessage::TooLong(40)));
        assert_eq!(items[1], message(1, 2, json!({})));
        assert_eq!(items[2], Item::Heartbeat);
    }
    // Exactly as long as it may be.
    assert_eq!(decode_all(ASKED.len() - 1, ASKED, 3).len(), 1);
    let items = decode_all(ASKED.len() - 2, ASKED, 3);
    assert!(
        matches!(items[..], [Item::Invalid(BadMessage::TooLong(_))]),
        "{items:?}"
    );
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // NaN and infinities are null.
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}|\0|\u{f002}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\0]{1,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn encoded_messages_decode_in_any_pieces(
        messages in prop::collection::vec((any::<i64>(), any::<i64>(), value()), 0..6),
        piece in 1..200_usize,
    ) {
        let messages: Vec<Message> = messages.into_iter().map(|(api, id, msg)| Message { api, id, msg }).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        let wanted: Vec<Item> = messages.into_iter().map(Item::Message).collect();
        prop_assert_eq!(decode_all(usize::MAX, &bytes, piece), wanted);
    }

    #[test]
    fn any_bytes_decode_the_same_in_any_pieces(
        bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(0), 1 => Just(b' ')], 0..400),
        piece in 1..50_usize,
        max in 1..100_usize,
    ) {
        let whole = decode_all(max, &bytes, 400);
        prop_assert_eq!(&decode_all(max, &bytes, piece), &whole);
        let nuls = bytes.iter().filter(|byte| **byte == TERMINATOR).count();
        prop_assert!(whole.len() <= nuls + 1, "one for each NUL, and one that is too long and goes on");
    }
}
