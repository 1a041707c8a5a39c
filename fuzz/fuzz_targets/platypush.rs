//! What a program may send to a Platypush door: however it arrives, it is cut into the same messages, none longer than
//! allowed, and what reads as a request reads as the same request when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::foreign::platypush::{ACTION_BYTES_MAX, FramingError, ID_BYTES, Request, Response, MessageReader, arguments};

const MADE_UP: [u8; ID_BYTES] = [0xab; ID_BYTES];

fn split(stream: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let mut splitter = MessageReader::new(max);
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        splitter.feed(piece);
        loop {
            match splitter.next_message() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(cut) => return (found, Some(cut)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let [piece, max, stream @ ..] = data else { return };
    let max = usize::from(*max) * 16 + 1;
    let (messages, cut) = split(stream, usize::from(*piece) + 1, max);
    assert_eq!((&messages, cut), (&split(stream, 4096, max).0, split(stream, 4096, max).1));
    for message in messages {
        assert!(message.len() <= max);
        let request = match Request::parse(&message, MADE_UP) {
            Ok(request) => request,
            Err(bad) => {
                assert!(!bad.id.is_empty() && !bad.to_string().is_empty());
                continue;
            }
        };
        assert!(!request.action.is_empty() && request.action.len() <= ACTION_BYTES_MAX);
        assert_eq!(Request::from_value(request.to_value(), MADE_UP).as_ref(), Ok(&request));
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
