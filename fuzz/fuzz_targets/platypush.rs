//! A byte stream to the Platypush TCP gateway. Messages do not depend on how the stream is split, are at most as long as
//! allowed, and a parsed request round-trips.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::foreign::platypush::{
    ACTION_BYTES_MAX, FramingError, ID_BYTES, MessageReader, Request, Response, arguments,
};

const GENERATED_ID: [u8; ID_BYTES] = [0xab; ID_BYTES];

fn split(stream: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<FramingError>) {
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
    let max = usize::from(*max) * 16 + 1;
    let (messages, error) = split(stream, usize::from(*piece) + 1, max);
    assert_eq!(
        (&messages, error),
        (&split(stream, 4096, max).0, split(stream, 4096, max).1)
    );
    for message in messages {
        assert!(message.len() <= max);
        let request = match Request::parse(&message, GENERATED_ID) {
            Ok(request) => request,
            Err(bad) => {
                assert!(!bad.id.is_empty() && !bad.to_string().is_empty());
                continue;
            }
        };
        assert!(!request.action.is_empty() && request.action.len() <= ACTION_BYTES_MAX);
        assert_eq!(
            Request::from_value(request.to_value(), GENERATED_ID).as_ref(),
            Ok(&request)
        );
        let response = Response {
            id: request.id,
            target: request.origin,
            origin: "field".to_owned(),
            output: request.args.clone(),
            errors: vec![request.action],
        };
        assert_eq!(Response::from_value(&response.to_value(7)), Ok(response));
        let arguments = arguments(request.args);
        assert!(arguments.args.is_empty() || arguments.kwargs.is_empty());
    }
});
