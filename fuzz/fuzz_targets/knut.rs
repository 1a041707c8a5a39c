//! A byte stream from a Knut client. Messages do not depend on how the stream is split, stay within the bound, and
//! round-trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::foreign::knut::{Decoder, Item, Message};

fn decode_all(max: usize, pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Item> {
    let mut decoder = Decoder::new(max);
    let mut items = Vec::new();
    for piece in pieces {
        let mut bytes = &piece[..];
        while let Some(item) = decoder.decode_next(&mut bytes) {
            items.push(item);
        }
        assert!(bytes.is_empty());
    }
    items
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let max = usize::from(first).max(1) * 4;
    let whole = decode_all(max, std::iter::once(bytes.to_vec()));
    let split = decode_all(max, bytes.chunks(3).map(<[u8]>::to_vec));
    assert_eq!(whole, split);
    for item in whole {
        if let Item::Message(message) = item {
            let written = message.encode();
            let (end, text) = written.split_last().expect("a NUL");
            assert_eq!((*end, text.contains(&0)), (0, false));
            assert_eq!(Message::parse(text).as_ref(), Ok(&message));
        }
    }
});
