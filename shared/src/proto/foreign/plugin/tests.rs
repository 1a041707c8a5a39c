//! Tests of the node's side; frames of the plug-in are made by hand, and time is an argument.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::proto::message::Arguments;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::{ContentType, Frame, Header, MessageType};

pub(super) fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary start time")]
    Instant::now()
}

fn frame_of(header: Header, content: &Value) -> Frame {
    let content = content.to_string();
    Frame {
        header: Header {
            content_length: content.len() as u64,
            ..header
        },
        content: content.into(),
    }
}

pub(super) fn message_frame(action: &str, kwargs: Value) -> Frame {
    let header = Header {
        action: Some(action.to_owned()),
        ..Header::default()
    };
    frame_of(header, &json!({ "args": [], "kwargs": kwargs }))
}

pub(super) fn response_frame(id: &str, content: &Value) -> Frame {
    let header = Header {
        message_type: MessageType::Response,
        requested_value: Some("x".to_owned()),
        request_id: Some(id.to_owned()),
        ..Header::default()
    };
    frame_of(header, content)
}

fn lamp() -> Value {
    json!({
        "name": "lamp",
        "actions": {
            "blink": { "timeout": 5, "args": { "times": { "type": "integer", "min": 1, "default": 3 } } },
            "fly": { "class": "flight", "while_stopped": false },
            "clever": { "answers": false },
        },
        "requests": ["uptime"],
        "telemetry": { "level": "%", "mode": "" },
    })
}

pub(super) fn call(number: u64, name: &str) -> Call {
    Call {
        number,
        name: name.to_owned(),
        arguments: Arguments::default(),
        deadline: None,
    }
}

fn events(protocol: &mut PluginProtocol) -> Vec<Event> {
    std::iter::from_fn(|| protocol.poll_event()).collect()
}

/// A connection on which the plug-in `lamp` has registered.
pub(super) fn registered(now: Instant) -> PluginProtocol {
    let mut protocol = PluginProtocol::new(now);
    protocol.handle_frame(&message_frame("register", lamp()), now);
    let events = events(&mut protocol);
    assert!(matches!(events.as_slice(), [Event::Register(_)]), "{events:?}");
    protocol.finish_registration(Ok(json!({ "node": "n1" })));
    let welcome = sent_frame(&mut protocol);
    assert_eq!(welcome.header.request_id.as_deref(), Some("0"));
    protocol
}

/// The frame to send; panics if it is not the only event.
fn sent_frame(protocol: &mut PluginProtocol) -> Frame {
    match events(protocol).as_slice() {
        [Event::Send(frame, _)] => frame.as_ref().clone(),
        other => panic!("expected one frame, got {other:?}"),
    }
}

pub(super) fn ended_calls(protocol: &mut PluginProtocol) -> Vec<(u64, Reply)> {
    let end = |event| match event {
        Event::CallEnded(number, reply) => Some((number, reply)),
        Event::Send(..) | Event::Register(_) | Event::Telemetry(_) | Event::Log(..) | Event::Ignored(_) => {
            None
        }
        Event::Close(_) => None,
    };
    events(protocol).into_iter().filter_map(end).collect()
}

/// Why the connection was closed; the program must have been sent the same reason.
fn close_reason(protocol: &mut PluginProtocol) -> String {
    let all = events(protocol);
    let Some(Event::Close(why)) = all.last() else {
        panic!("not closed: {all:?}")
    };
    let was_sent = all.iter().any(|event| match event {
        Event::Send(frame, None) => frame.json_value().expect("JSON")["error"] == **why,
        Event::Send(_, Some(_)) | Event::Register(_) | Event::CallEnded(..) => false,
        Event::Telemetry(_) | Event::Log(..) | Event::Ignored(_) | Event::Close(_) => false,
    });
    assert!(was_sent, "the reason was not sent: {all:?}");
    why.clone()
}

#[test]
fn registration_is_parsed_completely() {
    let lamp = lamp();
    let read = Registration::parse(lamp.as_object().expect("an object")).expect("a valid registration");
    assert_eq!(read.name, "lamp");
    let fly = &read.callables["fly"];
    assert!(fly.flight && !fly.idempotent && fly.answers);
    assert_eq!(fly.timeout, RESPONSE_TIMEOUT);
    assert!(!read.callables["clever"].answers);
    let uptime = &read.callables["uptime"];
    assert_eq!(uptime.kind, CallableKind::Request);
    assert!(uptime.idempotent && uptime.while_stopped);
    assert_eq!(read.fields["level"], "%");
}

#[test]
fn invalid_registration_error_names_the_rule() {
    let many = |count: usize| -> Value { (0..count).map(|n| format!("a{n}")).collect() };
    for (kwargs, why) in [
        (json!({}), "by name"),
        (json!({"actions": ["a"]}), "needs a name"),
        (json!({"name": 1}), "name must be a text"),
        (json!({"name": "-x"}), "name: \"-x\" is not a name here"),
        (json!({"name": "x".repeat(65)}), "1 to 64 letters"),
        (
            json!({"name": "x", "acts": []}),
            "unknown key \"acts\"; known: name, actions",
        ),
        (
            json!({"name": "x", "actions": 3}),
            "actions must be an object by names",
        ),
        (json!({"name": "x", "actions": [1]}), "or a list of names"),
        (json!({"name": "x", "actions": ["a", "a"]}), "names \"a\" once"),
        (
            json!({"name": "x", "actions": ["a b"]}),
            "actions: \"a b\" is not a name",
        ),
        (
            json!({"name": "x", "actions": many(65)}),
            "65 are more than the 64 allowed",
        ),
        (
            json!({"name": "x", "telemetry": many(65)}),
            "65 are more than the 64 allowed",
        ),
        (
            json!({"name": "x", "actions": ["a"], "requests": ["a"]}),
            "both as an action and as a request",
        ),
        (
            json!({"name": "x", "actions": {"a": 1}}),
            "actions.a must be an object",
        ),
        (
            json!({"name": "x", "actions": {"a": {"time": 1}}}),
            "actions.a: unknown key \"time\"",
        ),
        (
            json!({"name": "x", "requests": {"a": {"class": "flight"}}}),
            "unknown key \"class\"",
        ),
        (
            json!({"name": "x", "actions": {"a": {"class": "fast"}}}),
            "\"ordinary\" or \"flight\"",
        ),
        (
            json!({"name": "x", "actions": {"a": {"timeout": 0}}}),
            "actions.a.timeout must be a number of seconds",
        ),
        (
            json!({"name": "x", "actions": {"a": {"timeout": 1e300}}}),
            "at most 3600",
        ),
        (
            json!({"name": "x", "actions": {"a": {"timeout": "5s"}}}),
            "a number of seconds",
        ),
        (
            json!({"name": "x", "actions": {"a": {"answers": 1}}}),
            "true or false",
        ),
        (
            json!({"name": "x", "actions": {"a": {"description": "x".repeat(257)}}}),
            "at most 256 bytes",
        ),
        (
            json!({"name": "x", "actions": {"a": {"args": {"b": {}}}}}),
            "of a \"type\"",
        ),
        (
            json!({"name": "x", "actions": {"a": {"args": {"b": {"type": "string", "min": 1}}}}}),
            "left out for type",
        ),
        (
            json!({"name": "x", "actions": {"a": {"args": {"b": {"type": "integer", "default": 0.5}}}}}),
            "an integer",
        ),
        (
            json!({"name": "x", "actions": {"a": {"args": {"b": {"type": "choice"}}}}}),
            "a list of texts",
        ),
        (
            json!({"name": "x", "telemetry": {"t": "far too long a unit"}}),
            "at most 16 bytes",
        ),
    ] {
        let now = start();
        let mut protocol = PluginProtocol::new(now);
        protocol.handle_frame(&message_frame("register", kwargs.clone()), now);
        let reason = close_reason(&mut protocol);
        assert!(reason.contains(why), "{kwargs}: {reason}");
    }
}

#[test]
fn program_must_register_first_and_in_time() {
    let now = start();
    let mut silent = PluginProtocol::new(now);
    assert_eq!(silent.poll_timeout(), Some(now + REGISTER_TIMEOUT));
    silent.handle_timeout(now + REGISTER_TIMEOUT - Duration::from_millis(1));
    assert!(!silent.is_closed());
    silent.handle_timeout(now + REGISTER_TIMEOUT);
    assert!(close_reason(&mut silent).contains("within 5s"));

    let mut unregistered = PluginProtocol::new(now);
    unregistered.handle_frame(&message_frame("telemetry", json!({"x": 1})), now);
    assert!(close_reason(&mut unregistered).contains("the first frame must be"));

    let mut twice = registered(now);
    twice.handle_frame(&message_frame("register", lamp()), now);
    assert!(close_reason(&mut twice).contains("registered already"));

    let mut refused = PluginProtocol::new(now);
    refused.handle_frame(&message_frame("register", lamp()), now);
    events(&mut refused);
    refused.finish_registration(Err("the name is taken".to_owned()));
    assert_eq!(close_reason(&mut refused), "the name is taken");
}

#[test]
fn action_frame_is_clever_shows_and_its_response_ends_it() {
    let now = start();
    let mut lamp = registered(now);
    let arguments = serde_json::from_value(json!({"kwargs": {"times": 7}})).expect("arguments");
    lamp.start_call(
        Call {
            arguments,
            ..call(1, "blink")
        },
        now,
        1_000,
    );
    let frame = sent_frame(&mut lamp);
    assert_eq!(frame.header.message_type, MessageType::Message);
    assert_eq!(frame.header.action.as_deref(), Some("blink"));
    assert_eq!(
        frame.json_value().expect("JSON"),
        json!({"args": [], "kwargs": {"times": 7}})
    );
    assert_eq!(frame.header.until, Some(6_000), "time since boot, in ms");
    let id = frame.header.request_id.expect("a number");
    assert_eq!(id, "0001");

    lamp.start_call(call(2, "uptime"), now, 0);
    let request = sent_frame(&mut lamp);
    assert_eq!(request.header.message_type, MessageType::Request);
    let content = request.json_value().expect("JSON");
    assert_eq!(
        content,
        json!({"requested_value": "uptime", "request_id": "0002", "args": [], "kwargs": {}})
    );

    // Responses may arrive in another order.
    lamp.handle_frame(&response_frame("0002", &json!({"value": 7.5})), now);
    assert_eq!(ended_calls(&mut lamp), [(2, Reply::done(json!(7.5)))]);
    lamp.handle_frame(
        &response_frame(&id, &json!({"value": null, "error": "no bulb"})),
        now,
    );
    assert_eq!(ended_calls(&mut lamp), [(1, Reply::failed("no bulb"))]);
    // A second response matches no call.
    lamp.handle_frame(&response_frame(&id, &json!({"value": 1})), now);
    assert!(ended_calls(&mut lamp).is_empty() && !lamp.is_closed());
}

#[test]
fn any_response_ends_the_call() {
    let now = start();
    let binary = Frame {
        header: Header {
            content_type: ContentType::Binary,
            ..response_frame("1", &json!({})).header
        },
        ..response_frame("1", &json!({}))
    };
    let mut truncated = response_frame("1", &json!({"value": 1}));
    truncated.content = truncated.content.slice(..4);
    for (answer, expected) in [
        (response_frame("1", &json!({})), "is empty"),
        (response_frame("1", &json!([1])), "is no object"),
        (
            response_frame("1", &json!({"error": {"code": 7}})),
            "{\"code\":7}",
        ),
        (binary, "is bytes"),
        (truncated, "unreadable"),
    ] {
        let mut lamp = registered(now);
        lamp.start_call(call(9, "blink"), now, 0);
        events(&mut lamp);
        lamp.handle_frame(&answer, now);
        let ends = ended_calls(&mut lamp);
        let [(9, reply)] = ends.as_slice() else {
            panic!("one end: {ends:?}")
        };
        assert_eq!(reply.state, Outcome::Failed);
        assert!(
            reply
                .error
                .as_deref()
                .is_some_and(|error| error.contains(expected)),
            "{reply:?}"
        );
    }
}

#[test]
fn hanging_call_times_out_and_its_late_response_is_ignored() {
    let now = start();
    let mut lamp = registered(now);
    lamp.start_call(call(1, "blink"), now, 0);
    events(&mut lamp);
    assert_eq!(lamp.poll_timeout(), Some(now + RESPONSE_TIMEOUT));
    lamp.handle_timeout(now + RESPONSE_TIMEOUT - Duration::from_millis(1));
    assert!(events(&mut lamp).is_empty());
    lamp.handle_timeout(now + RESPONSE_TIMEOUT);
    let reported = events(&mut lamp);
    let [Event::CallEnded(1, reply), Event::Send(cancel, None)] = reported.as_slice() else {
        panic!("{reported:?}")
    };
    assert_eq!(reply, &Reply::failed("the plug-in lamp did not answer within 5s"));
    assert_eq!(cancel.header.action.as_deref(), Some("cancel"));
    assert_eq!(
        cancel.json_value().expect("JSON")["kwargs"],
        json!({"request_id": "0001", "action": "blink"})
    );
    lamp.handle_frame(
        &response_frame("0001", &json!({"value": "at last"})),
        now + RESPONSE_TIMEOUT,
    );
    assert!(matches!(events(&mut lamp).as_slice(), [Event::Ignored(_)]));
    assert_eq!(lamp.poll_timeout(), None);
}

#[test]
fn disconnect_fails_pending_calls() {
    let now = start();
    let mut lamp = registered(now);
    lamp.start_call(call(1, "blink"), now, 0);
    lamp.start_call(call(2, "uptime"), now, 0);
    events(&mut lamp);
    lamp.on_disconnected("it closed its connection");
    let why = "the plug-in lamp went away while blink ran: it closed its connection";
    let ends = ended_calls(&mut lamp);
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0], (1, Reply::failed(why)));
    lamp.start_call(call(3, "blink"), now, 0);
    assert_eq!(ended_calls(&mut lamp)[0].1.state, Outcome::Refused);
}

#[test]
fn invalid_late_or_excess_calls_do_not_start() {
    let now = start();
    let mut lamp = registered(now);
    let late = Call {
        deadline: Some(now),
        ..call(1, "fly")
    };
    lamp.start_call(late, now, 0);
    let ends = ended_calls(&mut lamp);
    assert_eq!(ends[0].1.state, Outcome::Expired, "{ends:?}");
    // A deadline before the time-out is sent to the program.
    let near = Call {
        deadline: Some(now + Duration::from_millis(300)),
        ..call(2, "fly")
    };
    lamp.start_call(near, now, 10_000);
    assert_eq!(sent_frame(&mut lamp).header.until, Some(10_300));
    let arguments = serde_json::from_value(json!({"kwargs": {"times": 0}})).expect("arguments");
    lamp.start_call(
        Call {
            arguments,
            ..call(3, "blink")
        },
        now,
        0,
    );
    let ends = ended_calls(&mut lamp);
    let refused = Reply::refused("argument times must be an integer of at least 1, not 0");
    assert_eq!(ends, [(3, refused)]);
    for number in 4..4 + CALLS_MAX as u64 {
        lamp.start_call(call(number, "blink"), now, 0);
    }
    let ends = ended_calls(&mut lamp);
    assert_eq!(ends.len(), 1, "one call was open before");
    assert!(
        ends[0]
            .1
            .error
            .as_deref()
            .is_some_and(|error| error.starts_with("busy: "))
    );
}

#[test]
fn call_without_response_is_done_once_written() {
    let now = start();
    let mut lamp = registered(now);
    lamp.start_call(call(1, "clever"), now, 0);
    let sends = events(&mut lamp);
    assert!(matches!(sends.as_slice(), [Event::Send(_, Some(1))]), "{sends:?}");
    lamp.on_written(1);
    let ends = ended_calls(&mut lamp);
    assert_eq!(ends[0].1.state, Outcome::Done);
    assert_eq!(lamp.pending_calls(), 0);
    // A call that is not written in time fails.
    lamp.start_call(call(2, "clever"), now, 0);
    events(&mut lamp);
    lamp.handle_timeout(now + RESPONSE_TIMEOUT);
    assert_eq!(ended_calls(&mut lamp)[0].1.state, Outcome::Failed);
    lamp.on_written(2);
    assert!(ended_calls(&mut lamp).is_empty());
}

#[test]
fn cancelled_call_sends_cancel_to_the_plugin() {
    let now = start();
    let mut lamp = registered(now);
    lamp.start_call(call(1, "blink"), now, 0);
    events(&mut lamp);
    lamp.cancel(1);
    let reported = events(&mut lamp);
    assert!(
        matches!(
            reported.as_slice(),
            [Event::CallEnded(1, _), Event::Send(_, None)]
        ),
        "{reported:?}"
    );
    lamp.cancel(1);
    assert!(events(&mut lamp).is_empty());
}

#[test]
fn only_registered_and_small_telemetry_is_accepted() {
    let now = start();
    let mut lamp = registered(now);
    lamp.handle_frame(&message_frame("telemetry", json!({"level": 80, "nope": 1})), now);
    let reported = events(&mut lamp);
    let [Event::Telemetry(fields), Event::Ignored(note)] = reported.as_slice() else {
        panic!("{reported:?}")
    };
    assert_eq!(fields, &[("level".to_owned(), json!(80))]);
    assert!(note.contains("\"nope\""));
    // The form of clever-show's clients.
    lamp.handle_frame(&message_frame("telemetry", json!({"value": {"mode": "on"}})), now);
    assert_eq!(
        events(&mut lamp),
        [Event::Telemetry(vec![("mode".to_owned(), json!("on"))])]
    );
    let deep: Value = serde_json::from_str(&("[".repeat(9) + &"]".repeat(9))).expect("JSON");
    for large in [json!("x".repeat(FIELD_VALUE_BYTES_MAX)), deep] {
        lamp.handle_frame(&message_frame("telemetry", json!({"level": large})), now);
        assert!(matches!(events(&mut lamp).as_slice(), [Event::Ignored(_)]));
    }
}

#[test]
fn log_lines_are_rate_limited() {
    let now = start();
    let mut lamp = registered(now);
    lamp.handle_frame(
        &message_frame("log", json!({"text": "bulb is old", "level": "warning"})),
        now,
    );
    assert_eq!(
        events(&mut lamp),
        [Event::Log(LogLevel::Warning, "bulb is old".to_owned())]
    );
    let long = message_frame("log", json!({"text": "é".repeat(TEXT_BYTES_MAX)}));
    for _ in 0..200 {
        lamp.handle_frame(&long, now);
    }
    let lines: Vec<Event> = events(&mut lamp);
    let logged = lines
        .iter()
        .filter(|event| matches!(event, Event::Log(..)))
        .count();
    assert_eq!(logged, LOG_LINES_BURST as usize - 1);
    assert!(matches!(&lines[0], Event::Log(LogLevel::Info, text) if text.len() == TEXT_BYTES_MAX));
    lamp.handle_frame(&long, now + LOG_LINE_INTERVAL);
    assert!(
        matches!(&events(&mut lamp)[0], Event::Log(LogLevel::Warning, text) if text.starts_with("151 lines")),
        "the number of dropped lines is logged"
    );
    lamp.handle_frame(&message_frame("log", json!({})), now);
    assert!(close_reason(&mut lamp).contains("log needs a text"));
}

#[test]
fn plugin_requests_get_an_error_and_noise_is_ignored() {
    let now = start();
    let mut lamp = registered(now);
    let header = Header {
        message_type: MessageType::Request,
        ..Header::default()
    };
    let content = json!({"requested_value": "id", "request_id": "0042", "args": null, "kwargs": {}});
    lamp.handle_frame(&frame_of(header, &content), now);
    let answer = sent_frame(&mut lamp);
    assert_eq!(answer.header.request_id.as_deref(), Some("0042"));
    assert_eq!(answer.header.requested_value.as_deref(), Some("id"));
    let content = answer.json_value().expect("JSON");
    assert!(content["value"].is_null() && content["error"].is_string());
    lamp.handle_frame(&message_frame("unknown", json!({})), now);
    assert!(matches!(events(&mut lamp).as_slice(), [Event::Ignored(_)]));
}

#[test]
fn telemetry_of_all_plugins_fits_one_frame() {
    let field = json!({"value": "x".repeat(FIELD_VALUE_BYTES_MAX - 2), "unit": "u".repeat(UNIT_BYTES_MAX), "age_s": 1e-300});
    let name = |n: usize| format!("{n:064}");
    let fields: serde_json::Map<String, Value> = (0..FIELDS_MAX).map(|n| (name(n), field.clone())).collect();
    let all: serde_json::Map<String, Value> = (0..PLUGINS_MAX).map(|n| (name(n), json!(fields))).collect();
    let bytes = Value::Object(all).to_string().len();
    assert!(bytes < CONTENT_BYTES_MAX * 3 / 4, "{bytes}");
}

#[test]
fn argument_specs_check_every_kind() {
    let rules = json!({
        "text": {"type": "string", "default": "t"},
        "count": {"type": "integer", "min": -1, "max": 1, "default": 0},
        "ratio": {"type": "number", "max": 0.5, "default": 0},
        "on": {"type": "boolean", "default": false},
        "side": {"type": "choice", "choices": ["left", "7"], "default": "left"},
    });
    let rules = ArgumentSpecs::parse("args", &rules).expect("rules");
    let check = |kwargs: Value| {
        let arguments = serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments");
        rules
            .check(&arguments)
            .map(|checked| Value::Object(checked.kwargs))
    };
    let defaults = json!({"text": "t", "count": 0, "ratio": 0, "on": false, "side": "left"});
    assert_eq!(check(json!({})), Ok(defaults));
    // The types that a command line gives.
    assert_eq!(
        check(json!({"side": 7, "text": true})).expect("plain texts")["side"],
        "7"
    );
    for (kwargs, expected) in [
        (json!({"text": [1]}), "argument text must be a string"),
        (
            json!({"text": 1.5}),
            "not the number 1.5: put it in quotation marks to send it as text, as in text='\"1.5\"'",
        ),
        (json!({"side": 1.5}), "one of: left, 7, not 1.5"),
        (json!({"count": 2}), "an integer from -1 to 1, not 2"),
        (json!({"ratio": 0.6}), "a number of at most 0.5"),
        (json!({"on": "yes"}), "true or false"),
        (json!({"side": "up"}), "one of: left, 7"),
        (json!({"up": 1}), "unknown argument \"up\"; it takes: count, on"),
    ] {
        let error = check(kwargs).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}
