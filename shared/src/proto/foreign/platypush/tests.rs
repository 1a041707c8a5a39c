use proptest::prelude::*;

use super::*;
use crate::proto::json::JSON_DEPTH_MAX;

const MADE_UP: [u8; ID_BYTES] = [0xab; ID_BYTES];
/// What is documented: `echo '…' | nc localhost 1234`.
const DOCUMENTED: &str = r#"{"type": "request", "action": "shell.exec", "args": {"cmd": "ls /"}}"#;

fn parse(text: &str) -> Result<Request, BadMessage> {
    Request::parse(text.as_bytes(), MADE_UP)
}

#[test]
fn documented_request_is_parsed() {
    let request = parse(DOCUMENTED).expect("a request");
    let expected = Request {
        target: None,
        action: "shell.exec".to_owned(),
        args: json!({"cmd": "ls /"}),
        origin: None,
        id: "ab".repeat(16),
        token: None,
        timestamp: None,
    };
    assert_eq!(request, expected);
}

#[test]
fn every_field_of_a_request_is_read_and_written() {
    let text = r#"{"type":"request","target":"drone-*","action":"led","args":["red",3],"origin":"desk",
        "id":"0123456789abcdef0123456789abcdef","token":"sesame","_timestamp":1700000000.25,"_more":[]}"#;
    let request = parse(text).expect("a request");
    assert_eq!(request.target.as_deref(), Some("drone-*"));
    assert_eq!(request.origin.as_deref(), Some("desk"));
    assert_eq!(request.token.as_deref(), Some("sesame"));
    assert_eq!(request.id, "0123456789abcdef0123456789abcdef");
    assert_eq!(request.timestamp, Some(1_700_000_000.25));
    assert_eq!(request.args, json!(["red", 3]));
    assert_eq!(
        Request::from_value(request.to_value(), MADE_UP),
        Ok(request.clone())
    );
    let by_name = parse(r#"{"name":"led","args":null}"#).expect("name is action");
    assert_eq!((by_name.action.as_str(), by_name.args), ("led", Value::Null));
}

#[test]
fn arguments_come_in_four_forms() {
    let given = |args: Value| {
        let Arguments { args, kwargs } = arguments(args);
        (Value::Array(args), Value::Object(kwargs))
    };
    assert_eq!(given(json!({"a": 1})), (json!([]), json!({"a": 1})));
    assert_eq!(given(json!([1, "b"])), (json!([1, "b"]), json!({})));
    assert_eq!(given(json!("x")), (json!(["x"]), json!({})));
    assert_eq!(given(Value::Null), (json!([]), json!({})));
}

#[test]
fn parse_error_carries_id_and_origin_of_the_request() {
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    for (text, says) in [
        ("{'type': 'request'}", "not JSON"),
        ("[1]", "a message is a JSON object"),
        (
            r#"{"type":"event","id":"7"}"#,
            r#"only messages of type "request" are answered here, not "event""#,
        ),
        (r#"{"type":"request","id":"7"}"#, "names no action"),
        (
            r#"{"action":7,"id":"7"}"#,
            "action has to be a text of 1 to 128 bytes",
        ),
        (r#"{"action":"x","id":"7","token":[]}"#, "token has to be a text"),
        (
            r#"{"action":"land","id":"7","target":""}"#,
            "target has to be a text of 1 to",
        ),
        (
            r#"{"action":"land","id":"7","targt":"drone-1"}"#,
            "no request has the field \"targt\"",
        ),
        (
            r#"{"action":"x","id":"7","origin":{}}"#,
            "origin has to be a text",
        ),
        (deep.as_str(), "nested deeper than 32 levels"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.to_string().contains(says), "{text}: {error}");
        let id = if text.contains(r#""id":"7""#) {
            "7".to_owned()
        } else {
            "ab".repeat(16)
        };
        assert_eq!(error.id, id, "{text}");
    }
    let error = parse(r#"{"id": 7, "origin": "desk"}"#).expect_err("no text");
    assert_eq!(error.origin.as_deref(), Some("desk"));
    assert!(error.to_string().contains("id has to be"), "{error}");
    let long = format!(r#"{{"action": "{}"}}"#, "x".repeat(ACTION_BYTES_MAX + 1));
    parse(&long).expect_err("too long a name");
}

#[test]
fn a_response_and_an_event_are_as_documented() {
    let response = Response {
        id: "7".to_owned(),
        target: Some("desk".to_owned()),
        origin: "field".to_owned(),
        output: json!("bin\n"),
        errors: Vec::new(),
    };
    let message = response.to_value(1_700_000_000_250);
    let expected = json!({
        "id": "7", "type": "response", "target": "desk", "origin": "field", "_timestamp": 1_700_000_000.25,
        "response": {"output": "bin\n", "errors": []},
    });
    assert_eq!(message, expected);
    assert_eq!(Response::from_value(&message), Ok(response));
    for bad in [
        json!({}),
        json!({"type": "response", "id": "7"}),
        json!({"type": "request", "id": "7", "response": {"output": 1, "errors": []}}),
        json!({"type": "response", "id": "7", "response": {"output": 1, "errors": [1]}}),
    ] {
        assert_eq!(Response::from_value(&bad), Err(NotAResponse), "{bad}");
    }
    let event = Event {
        id: id_from_random(MADE_UP),
        origin: "field".to_owned(),
        kind: "node.offline".to_owned(),
        fields: json!({"node": "n1", "type": "x"})
            .as_object()
            .expect("fields")
            .clone(),
    };
    let expected = json!({
        "id": "ab".repeat(16), "type": "event", "target": "field", "origin": "field", "_timestamp": 0.5,
        "args": {"type": "node.offline", "node": "n1"},
    });
    assert_eq!(event.to_value(500), expected);
}

/// All that a stream gives, when it arrives in pieces of these sizes, one after the other.
fn split(stream: &[u8], pieces: &[usize], max: usize) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let mut splitter = MessageReader::new(max);
    let mut found = Vec::new();
    let mut rest = stream;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(1, |size| *size).clamp(1, rest.len());
        let (piece, left) = rest.split_at(size);
        splitter.feed(piece);
        rest = left;
        loop {
            match splitter.next_message() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(cut) => {
                    assert_eq!(splitter.next_message(), Err(cut), "the same again");
                    return (found, Some(cut));
                }
            }
        }
    }
    (found, None)
}

#[test]
fn adjacent_messages_are_separated() {
    let braces = r#"{"a":"}{\"}","b":{"c":[1,"]"]}}"#;
    let stream = format!("{DOCUMENTED}\n{DOCUMENTED}{braces}  [1]{DOCUMENTED}");
    let wanted = [DOCUMENTED, DOCUMENTED, braces, "[1]", DOCUMENTED].map(|text| text.as_bytes().to_vec());
    for pieces in [&[1][..], &[7], &[4096], &[3, 1, 100]] {
        assert_eq!(split(stream.as_bytes(), pieces, 100), (wanted.to_vec(), None));
    }
}

#[test]
fn framing_errors_name_their_cause() {
    let cut = |text: &str, max| split(text.as_bytes(), &[4096], max);
    assert_eq!(cut("hello", 100), (Vec::new(), Some(FramingError::NotAnObject)));
    assert_eq!(
        cut("{}x", 100),
        (vec![b"{}".to_vec()], Some(FramingError::NotAnObject))
    );
    let exactly = format!(r#"{{"a":"{}"}}"#, "x".repeat(92));
    assert_eq!(cut(&exactly, 100), (vec![exactly.clone().into_bytes()], None));
    assert_eq!(cut(&exactly, 99), (Vec::new(), Some(FramingError::TooLong(99))));
    assert_eq!(cut(&"[".repeat(JSON_DEPTH_MAX), 100), (Vec::new(), None));
    assert_eq!(
        cut(&"[".repeat(JSON_DEPTH_MAX + 1), 100),
        (Vec::new(), Some(FramingError::TooDeep))
    );
    assert_eq!(
        cut("{\"a\": \"b}\n", 100),
        (Vec::new(), Some(FramingError::UnterminatedString))
    );
}

#[test]
fn partial_message_is_detected() {
    let mut splitter = MessageReader::new(100);
    assert!(!splitter.has_partial_message());
    splitter.feed(b" \n");
    assert!(!splitter.has_partial_message());
    splitter.feed(b"{");
    assert!(splitter.has_partial_message());
    assert_eq!(splitter.next_message(), Ok(None));
    splitter.feed(b"}\r\n");
    assert_eq!(splitter.next_message(), Ok(Some(b"{}".to_vec())));
    assert!(!splitter.has_partial_message());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn written_requests_are_split_and_parsed_back(
        requests in prop::collection::vec(
            ("[a-z.]{1,20}", json_value(), proptest::option::of("[a-z*]{1,9}"), "[0-9a-f]{32}"), 1..5),
        pieces in prop::collection::vec(1_usize..200, 1..8),
        gap in "[ \t\r\n]{0,3}",
    ) {
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|(action, args, target, id)| Request {
                target, action, args, id, origin: None, token: None, timestamp: None,
            })
            .collect();
        let stream: String = requests.iter().map(|r| format!("{}{gap}", r.to_value())).collect();
        let (found, cut) = split(stream.as_bytes(), &pieces, stream.len());
        prop_assert_eq!(cut, None);
        let read: Result<Vec<_>, _> = found.iter().map(|m| Request::parse(m, MADE_UP)).collect();
        prop_assert_eq!(read, Ok(requests));
    }

    #[test]
    fn noise_is_split_the_same_in_any_pieces(
        noise in prop::collection::vec(prop_oneof![
            4 => prop::sample::select(b"{}[]\"\\ a,:\n".to_vec()), 1 => any::<u8>()], 0..200),
        pieces in prop::collection::vec(1_usize..50, 1..8),
        max in 1_usize..64,
    ) {
        let whole = split(&noise, &[noise.len().max(1)], max);
        prop_assert_eq!(&split(&noise, &pieces, max), &whole);
        for message in whole.0 {
            prop_assert!(message.len() <= max);
            // Whatever it is, reading it ends in a word.
            if let Ok(request) = Request::parse(&message, MADE_UP) {
                prop_assert!(!request.action.is_empty());
            }
        }
    }

    #[test]
    fn any_response_reads_back(output in json_value(), errors in prop::collection::vec(any::<String>(), 0..4)) {
        let response = Response {
            id: "7".to_owned(), target: None, origin: "field".to_owned(), output, errors,
        };
        prop_assert_eq!(Response::from_value(&response.to_value(7)), Ok(response));
    }
}
