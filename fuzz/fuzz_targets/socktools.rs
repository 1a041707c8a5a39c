//! A byte stream to the socktools gateway. Messages do not depend on how the stream is split, are at most as long as
//! allowed, and round-trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::foreign::socktools::{MessageReader, TooLong, encode};

fn read(stream: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<TooLong>) {
    let mut reader = MessageReader::new(max);
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        reader.feed(piece);
        loop {
            match reader.next_message() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let [piece, max, stream @ ..] = data else { return };
    let max = usize::from(*max);
    let (messages, fault) = read(stream, usize::from(*piece) + 1, max);
    assert_eq!(
        (&messages, fault),
        (&read(stream, 4096, max).0, read(stream, 4096, max).1)
    );
    let written: Vec<u8> = messages
        .iter()
        .flat_map(|message| encode(message).expect("short"))
        .collect();
    assert!(
        stream.starts_with(&written),
        "messages are exactly the bytes that came"
    );
    assert!(messages.iter().all(|message| message.len() <= max));
    if let Some(TooLong { length, .. }) = fault {
        assert!(length > max);
    }
});
