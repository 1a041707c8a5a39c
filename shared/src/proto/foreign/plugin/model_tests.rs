//! Property tests: any registration, and any sequence of events of a plug-in and its callers.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{call, ended_calls, message_frame, registered, response_frame, start};
use super::*;
use crate::proto::message::Arguments;
use crate::proto::wire::FrameReader;

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![
            "[a-z]{1,3}",
            prop::sample::select(vec!["type", "args", "min", "timeout", "class"]).prop_map(str::to_owned)
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn registration() -> impl Strategy<Value = Value> {
    let part = prop_oneof![
        3 => prop::collection::btree_map("[a-z]{1,3}", json_value(), 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        1 => json_value(),
    ];
    (part.clone(), part.clone(), part).prop_map(|(actions, requests, telemetry)| {
        json!({"name": "p", "actions": actions, "requests": requests, "telemetry": telemetry})
    })
}

#[derive(Clone, Debug)]
enum Step {
    Start(&'static str),
    Respond(u64, Value),
    Message(&'static str, Value),
    Wait(u64),
    Cancel(u64),
    Written(u64),
    Disconnect,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::sample::select(vec!["blink", "fly", "clever", "uptime", "gone"]).prop_map(Step::Start),
        6 => (1..40_u64, json_value()).prop_map(|(id, value)| Step::Respond(id, value)),
        3 => (prop::sample::select(vec!["telemetry", "log", "noise"]), json_value())
            .prop_map(|(action, value)| Step::Message(action, value)),
        3 => (0..4_000_u64).prop_map(Step::Wait),
        2 => (1..40_u64).prop_map(Step::Cancel),
        2 => (1..40_u64).prop_map(Step::Written),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #[test]
    fn any_registration_is_bounded_or_refused(kwargs in registration()) {
        if let Ok(read) = Registration::parse(kwargs.as_object().expect("an object")) {
            prop_assert!(read.callables.len() <= ACTIONS_MAX + REQUESTS_MAX && read.fields.len() <= FIELDS_MAX);
            for (name, entry) in &read.callables {
                prop_assert!(is_name(name));
                prop_assert!(!entry.timeout.is_zero() && entry.timeout <= RESPONSE_TIMEOUT_MAX);
                prop_assert!(entry.answers || entry.kind == CallableKind::Action);
            }
        }
    }

    /// For any sequence of events every call ends exactly once, and none stays open beyond its time-out.
    #[test]
    fn every_call_ends_once(steps in prop::collection::vec(step(), 0..60)) {
        let mut now = start();
        let mut lamp = registered(now);
        let (mut started, mut ends) = (0_u64, Vec::new());
        for step in steps {
            match step {
                Step::Start(name) => {
                    started += 1;
                    lamp.start_call(call(started, name), now, 0);
                }
                Step::Respond(id, value) => lamp.handle_frame(&response_frame(&format!("{id:04}"), &json!({"value": value})), now),
                Step::Message(action, value) => lamp.handle_frame(&message_frame(action, value), now),
                Step::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    lamp.handle_timeout(now);
                    prop_assert!(lamp.poll_timeout().is_none_or(|due| due > now));
                }
                Step::Cancel(number) => lamp.cancel(number),
                Step::Written(number) => lamp.on_written(number),
                Step::Disconnect => lamp.on_disconnected("it is gone"),
                Step::Close => lamp.close("enough"),
            }
            prop_assert!(lamp.pending_calls() <= CALLS_MAX);
            ends.extend(ended_calls(&mut lamp).into_iter().map(|(number, _)| number));
        }
        lamp.on_disconnected("the end");
        ends.extend(ended_calls(&mut lamp).into_iter().map(|(number, _)| number));
        ends.sort_unstable();
        prop_assert_eq!(ends, (1..=started).collect::<Vec<_>>());
    }

    /// The reader of clever-show's frames decodes frames to a plug-in.
    #[test]
    fn plugin_frames_decode_as_written(name in "[a-z]{1,9}", kwargs in json_value()) {
        let kwargs = kwargs.as_object().cloned().unwrap_or_default();
        let arguments = Arguments { args: vec![json!(1)], kwargs: kwargs.clone() };
        for frame in [
            frames::action(&name, "0001", 7, &arguments),
            frames::request(&name, "0001", 7, &arguments),
            message(&name, kwargs),
            register_response(&json!({"x": 1})),
            register_error("why not"),
        ] {
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes).expect("fits");
            let read = FrameReader::new(LIMITS).next_frame(&mut bytes).expect("valid").expect("complete");
            prop_assert_eq!(read, frame);
        }
    }
}
