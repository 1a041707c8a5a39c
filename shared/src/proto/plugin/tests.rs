//! A plug-in's side is played here, frame by frame; time is moved by hand.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::proto::message::Arguments;
use crate::proto::outcome::{Outcome, Reply};
use crate::proto::wire::{ContentType, Frame, Header, MessageType};

pub(super) fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning")]
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

pub(super) fn says(action: &str, kwargs: Value) -> Frame {
    let header = Header {
        action: Some(action.to_owned()),
        ..Header::default()
    };
    frame_of(header, &json!({ "args": [], "kwargs": kwargs }))
}

pub(super) fn answers(id: &str, content: &Value) -> Frame {
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

fn events(conversation: &mut Conversation) -> Vec<Event> {
    std::iter::from_fn(|| conversation.poll_event()).collect()
}

/// With the lamp, registered.
pub(super) fn registered(now: Instant) -> Conversation {
    let mut conversation = Conversation::new(now);
    conversation.handle_frame(&says("register", lamp()), now);
    let asked = events(&mut conversation);
    assert!(matches!(asked.as_slice(), [Event::Register(_)]), "{asked:?}");
    conversation.admit(Ok(json!({ "node": "n1" })));
    let welcome = sent(&mut conversation);
    assert_eq!(welcome.header.request_id.as_deref(), Some("0"));
    conversation
}

/// The one frame that is sent now.
fn sent(conversation: &mut Conversation) -> Frame {
    match events(conversation).as_slice() {
        [Event::Send(frame, _)] => frame.as_ref().clone(),
        other => panic!("one frame, not {other:?}"),
    }
}

pub(super) fn ended(conversation: &mut Conversation) -> Vec<(u64, Reply)> {
    let end = |event| match event {
        Event::Ended(number, reply) => Some((number, reply)),
        Event::Send(..) | Event::Register(_) | Event::Fields(_) | Event::Log(..) | Event::PassedOver(_) => {
            None
        }
        Event::Close(_) => None,
    };
    events(conversation).into_iter().filter_map(end).collect()
}

/// How a closed conversation told it.
fn closed(conversation: &mut Conversation) -> String {
    let all = events(conversation);
    let Some(Event::Close(why)) = all.last() else {
        panic!("not closed: {all:?}")
    };
    let told = all.iter().any(|event| match event {
        Event::Send(frame, None) => frame.value().expect("JSON")["error"] == **why,
        Event::Send(_, Some(_)) | Event::Register(_) | Event::Ended(..) => false,
        Event::Fields(_) | Event::Log(..) | Event::PassedOver(_) | Event::Close(_) => false,
    });
    assert!(told, "told once why: {all:?}");
    why.clone()
}

#[test]
fn a_registration_is_read_whole() {
    let lamp = lamp();
    let read = Registration::read(lamp.as_object().expect("an object")).expect("right");
    assert_eq!(read.name, "lamp");
    let fly = &read.entries["fly"];
    assert!(fly.flight && !fly.idempotent && fly.answers);
    assert_eq!(fly.timeout, ANSWER_WAIT);
    assert!(!read.entries["clever"].answers);
    let uptime = &read.entries["uptime"];
    assert_eq!(uptime.kind, EntryKind::Request);
    assert!(uptime.idempotent && uptime.while_stopped);
    assert_eq!(read.fields["level"], "%");
}

#[test]
fn a_wrong_registration_says_what_to_write_instead() {
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
        let mut conversation = Conversation::new(now);
        conversation.handle_frame(&says("register", kwargs.clone()), now);
        let told = closed(&mut conversation);
        assert!(told.contains(why), "{kwargs}: {told}");
    }
}

#[test]
fn a_program_registers_in_time_and_first_of_all() {
    let now = start();
    let mut silent = Conversation::new(now);
    assert_eq!(silent.poll_timeout(), Some(now + REGISTER_WAIT));
    silent.handle_timeout(now + REGISTER_WAIT - Duration::from_millis(1));
    assert!(!silent.is_closed());
    silent.handle_timeout(now + REGISTER_WAIT);
    assert!(closed(&mut silent).contains("within 5s"));

    let mut hasty = Conversation::new(now);
    hasty.handle_frame(&says("telemetry", json!({"x": 1})), now);
    assert!(closed(&mut hasty).contains("the first frame must be"));

    let mut twice = registered(now);
    twice.handle_frame(&says("register", lamp()), now);
    assert!(closed(&mut twice).contains("registered already"));

    let mut unwanted = Conversation::new(now);
    unwanted.handle_frame(&says("register", lamp()), now);
    events(&mut unwanted);
    unwanted.admit(Err("the name is taken".to_owned()));
    assert_eq!(closed(&mut unwanted), "the name is taken");
}

#[test]
fn an_action_is_what_clever_show_sends_and_its_answer_ends_it() {
    let now = start();
    let mut lamp = registered(now);
    let arguments = serde_json::from_value(json!({"kwargs": {"times": 7}})).expect("arguments");
    lamp.begin(
        Call {
            arguments,
            ..call(1, "blink")
        },
        now,
        1_000,
    );
    let frame = sent(&mut lamp);
    assert_eq!(frame.header.message_type, MessageType::Message);
    assert_eq!(frame.header.action.as_deref(), Some("blink"));
    assert_eq!(
        frame.value().expect("JSON"),
        json!({"args": [], "kwargs": {"times": 7}})
    );
    assert_eq!(
        frame.header.until,
        Some(6_000),
        "the machine's clock, for the program to compare"
    );
    let id = frame.header.request_id.expect("a number");
    assert_eq!(id, "0001");

    lamp.begin(call(2, "uptime"), now, 0);
    let question = sent(&mut lamp);
    assert_eq!(question.header.message_type, MessageType::Request);
    let content = question.value().expect("JSON");
    assert_eq!(
        content,
        json!({"requested_value": "uptime", "request_id": "0002", "args": [], "kwargs": {}})
    );

    // In any order, each to its own.
    lamp.handle_frame(&answers("0002", &json!({"value": 7.5})), now);
    assert_eq!(ended(&mut lamp), [(2, Reply::done(json!(7.5)))]);
    lamp.handle_frame(&answers(&id, &json!({"value": null, "error": "no bulb"})), now);
    assert_eq!(ended(&mut lamp), [(1, Reply::failed("no bulb"))]);
    // A second answer is nobody's.
    lamp.handle_frame(&answers(&id, &json!({"value": 1})), now);
    assert!(ended(&mut lamp).is_empty() && !lamp.is_closed());
}

#[test]
fn whatever_the_answer_is_the_call_ends() {
    let now = start();
    let binary = Frame {
        header: Header {
            content_type: ContentType::Binary,
            ..answers("1", &json!({})).header
        },
        ..answers("1", &json!({}))
    };
    let mut torn = answers("1", &json!({"value": 1}));
    torn.content = torn.content.slice(..4);
    for (answer, says) in [
        (answers("1", &json!({})), "says nothing"),
        (answers("1", &json!([1])), "is no object"),
        (answers("1", &json!({"error": {"code": 7}})), "{\"code\":7}"),
        (binary, "is bytes"),
        (torn, "unreadable"),
    ] {
        let mut lamp = registered(now);
        lamp.begin(call(9, "blink"), now, 0);
        events(&mut lamp);
        lamp.handle_frame(&answer, now);
        let ends = ended(&mut lamp);
        let [(9, reply)] = ends.as_slice() else {
            panic!("one end: {ends:?}")
        };
        assert_eq!(reply.state, Outcome::Failed);
        assert!(
            reply.error.as_deref().is_some_and(|error| error.contains(says)),
            "{reply:?}"
        );
    }
}

#[test]
fn one_that_hangs_is_timed_out_and_its_late_answer_dropped() {
    let now = start();
    let mut lamp = registered(now);
    lamp.begin(call(1, "blink"), now, 0);
    events(&mut lamp);
    assert_eq!(lamp.poll_timeout(), Some(now + ANSWER_WAIT));
    lamp.handle_timeout(now + ANSWER_WAIT - Duration::from_millis(1));
    assert!(events(&mut lamp).is_empty());
    lamp.handle_timeout(now + ANSWER_WAIT);
    let told = events(&mut lamp);
    let [Event::Ended(1, reply), Event::Send(cancel, None)] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(reply, &Reply::failed("the plug-in lamp did not answer within 5s"));
    assert_eq!(cancel.header.action.as_deref(), Some("cancel"));
    assert_eq!(
        cancel.value().expect("JSON")["kwargs"],
        json!({"request_id": "0001", "action": "blink"})
    );
    lamp.handle_frame(&answers("0001", &json!({"value": "at last"})), now + ANSWER_WAIT);
    assert!(matches!(events(&mut lamp).as_slice(), [Event::PassedOver(_)]));
    assert_eq!(lamp.poll_timeout(), None);
}

#[test]
fn one_that_dies_fails_what_it_was_doing() {
    let now = start();
    let mut lamp = registered(now);
    lamp.begin(call(1, "blink"), now, 0);
    lamp.begin(call(2, "uptime"), now, 0);
    events(&mut lamp);
    lamp.lost("it closed its connection");
    let why = "the plug-in lamp went away while blink ran: it closed its connection";
    let ends = ended(&mut lamp);
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0], (1, Reply::failed(why)));
    lamp.begin(call(3, "blink"), now, 0);
    assert_eq!(ended(&mut lamp)[0].1.state, Outcome::Refused);
}

#[test]
fn what_may_not_begin_does_not() {
    let now = start();
    let mut lamp = registered(now);
    let late = Call {
        deadline: Some(now),
        ..call(1, "fly")
    };
    lamp.begin(late, now, 0);
    let ends = ended(&mut lamp);
    assert_eq!(ends[0].1.state, Outcome::Expired, "{ends:?}");
    // What is near its end says so to the program.
    let near = Call {
        deadline: Some(now + Duration::from_millis(300)),
        ..call(2, "fly")
    };
    lamp.begin(near, now, 10_000);
    assert_eq!(sent(&mut lamp).header.until, Some(10_300));
    let arguments = serde_json::from_value(json!({"kwargs": {"times": 0}})).expect("arguments");
    lamp.begin(
        Call {
            arguments,
            ..call(3, "blink")
        },
        now,
        0,
    );
    let ends = ended(&mut lamp);
    let refused = Reply::refused("argument times must be an integer of at least 1, not 0");
    assert_eq!(ends, [(3, refused)]);
    for number in 4..4 + CALLS_MAX as u64 {
        lamp.begin(call(number, "blink"), now, 0);
    }
    let ends = ended(&mut lamp);
    assert_eq!(ends.len(), 1, "one is open already");
    assert!(
        ends[0]
            .1
            .error
            .as_deref()
            .is_some_and(|error| error.starts_with("busy: "))
    );
}

#[test]
fn one_that_never_answers_is_done_when_it_is_handed_over() {
    let now = start();
    let mut lamp = registered(now);
    lamp.begin(call(1, "clever"), now, 0);
    let sends = events(&mut lamp);
    assert!(matches!(sends.as_slice(), [Event::Send(_, Some(1))]), "{sends:?}");
    lamp.handed_over(1);
    let ends = ended(&mut lamp);
    assert_eq!(ends[0].1.state, Outcome::Done);
    assert_eq!(lamp.open_calls(), 0);
    // It could not be written in time.
    lamp.begin(call(2, "clever"), now, 0);
    events(&mut lamp);
    lamp.handle_timeout(now + ANSWER_WAIT);
    assert_eq!(ended(&mut lamp)[0].1.state, Outcome::Failed);
    lamp.handed_over(2);
    assert!(ended(&mut lamp).is_empty());
}

#[test]
fn what_nobody_waits_for_any_more_is_called_off() {
    let now = start();
    let mut lamp = registered(now);
    lamp.begin(call(1, "blink"), now, 0);
    events(&mut lamp);
    lamp.cancel(1);
    let told = events(&mut lamp);
    assert!(
        matches!(told.as_slice(), [Event::Ended(1, _), Event::Send(_, None)]),
        "{told:?}"
    );
    lamp.cancel(1);
    assert!(events(&mut lamp).is_empty());
}

#[test]
fn only_registered_and_small_readings_are_taken() {
    let now = start();
    let mut lamp = registered(now);
    lamp.handle_frame(&says("telemetry", json!({"level": 80, "nope": 1})), now);
    let told = events(&mut lamp);
    let [Event::Fields(fields), Event::PassedOver(note)] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(fields, &[("level".to_owned(), json!(80))]);
    assert!(note.contains("\"nope\""));
    // As clever-show's clients tell it.
    lamp.handle_frame(&says("telemetry", json!({"value": {"mode": "on"}})), now);
    assert_eq!(
        events(&mut lamp),
        [Event::Fields(vec![("mode".to_owned(), json!("on"))])]
    );
    let deep: Value = serde_json::from_str(&("[".repeat(9) + &"]".repeat(9))).expect("JSON");
    for large in [json!("x".repeat(FIELD_VALUE_BYTES_MAX)), deep] {
        lamp.handle_frame(&says("telemetry", json!({"level": large})), now);
        assert!(matches!(events(&mut lamp).as_slice(), [Event::PassedOver(_)]));
    }
}

#[test]
fn a_log_is_taken_line_by_line_and_not_too_many() {
    let now = start();
    let mut lamp = registered(now);
    lamp.handle_frame(
        &says("log", json!({"text": "bulb is old", "level": "warning"})),
        now,
    );
    assert_eq!(
        events(&mut lamp),
        [Event::Log(LogLevel::Warning, "bulb is old".to_owned())]
    );
    let long = says("log", json!({"text": "é".repeat(TEXT_BYTES_MAX)}));
    for _ in 0..200 {
        lamp.handle_frame(&long, now);
    }
    let lines: Vec<Event> = events(&mut lamp);
    let logged = lines
        .iter()
        .filter(|event| matches!(event, Event::Log(..)))
        .count();
    assert_eq!(logged, LOG_LINES_MAX as usize - 1);
    assert!(matches!(&lines[0], Event::Log(LogLevel::Info, text) if text.len() == TEXT_BYTES_MAX));
    lamp.handle_frame(&long, now + LOG_LINE_EVERY);
    assert!(
        matches!(&events(&mut lamp)[0], Event::Log(LogLevel::Warning, text) if text.starts_with("151 lines")),
        "what was left out is said"
    );
    lamp.handle_frame(&says("log", json!({})), now);
    assert!(closed(&mut lamp).contains("log needs a text"));
}

#[test]
fn a_question_of_the_plug_in_is_answered_with_an_error_and_noise_is_passed_over() {
    let now = start();
    let mut lamp = registered(now);
    let header = Header {
        message_type: MessageType::Request,
        ..Header::default()
    };
    let content = json!({"requested_value": "id", "request_id": "0042", "args": null, "kwargs": {}});
    lamp.handle_frame(&frame_of(header, &content), now);
    let answer = sent(&mut lamp);
    assert_eq!(answer.header.request_id.as_deref(), Some("0042"));
    assert_eq!(answer.header.requested_value.as_deref(), Some("id"));
    let content = answer.value().expect("JSON");
    assert!(content["value"].is_null() && content["error"].is_string());
    lamp.handle_frame(&says("unheard_of", json!({})), now);
    assert!(matches!(events(&mut lamp).as_slice(), [Event::PassedOver(_)]));
}

#[test]
fn the_readings_of_all_plug_ins_fit_one_frame() {
    let field = json!({"value": "x".repeat(FIELD_VALUE_BYTES_MAX - 2), "unit": "u".repeat(UNIT_BYTES_MAX), "age_s": 1e-300});
    let name = |n: usize| format!("{n:064}");
    let fields: serde_json::Map<String, Value> = (0..FIELDS_MAX).map(|n| (name(n), field.clone())).collect();
    let all: serde_json::Map<String, Value> = (0..PLUGINS_MAX).map(|n| (name(n), json!(fields))).collect();
    let bytes = Value::Object(all).to_string().len();
    assert!(bytes < CONTENT_BYTES_MAX * 3 / 4, "{bytes}");
}

#[test]
fn rules_check_every_kind() {
    let rules = json!({
        "text": {"type": "string", "default": "t"},
        "count": {"type": "integer", "min": -1, "max": 1, "default": 0},
        "ratio": {"type": "number", "max": 0.5, "default": 0},
        "on": {"type": "boolean", "default": false},
        "side": {"type": "choice", "choices": ["left", "7"], "default": "left"},
    });
    let rules = Rules::read("args", &rules).expect("rules");
    let check = |kwargs: Value| {
        let arguments = serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments");
        rules
            .check(&arguments)
            .map(|checked| Value::Object(checked.kwargs))
    };
    let defaults = json!({"text": "t", "count": 0, "ratio": 0, "on": false, "side": "left"});
    assert_eq!(check(json!({})), Ok(defaults));
    // As a command line writes it.
    assert_eq!(
        check(json!({"side": 7, "text": true})).expect("plain texts")["side"],
        "7"
    );
    for (kwargs, says) in [
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
        let error = check(kwargs).expect_err(says);
        assert!(error.contains(says), "{error}");
    }
}
