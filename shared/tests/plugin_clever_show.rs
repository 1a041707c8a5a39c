//! A program that uses clever-show's messaging module as a plug-in: the frames that the real module wrote
//! (`vectors/clever_show_frames.json`) mean what they should, and ours are such as it reads.

use std::time::Instant;

use bytes::BytesMut;
use serde_json::{Map, Value, json};
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::plugin::{Call, Event, LIMITS, PluginProtocol, message};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::{Frame, FrameReader};

/// A frame that the real module wrote: as parsed, and its header and content as JSON.
struct RecordedFrame {
    frame: Frame,
    header: Map<String, Value>,
    content: Value,
}

fn recorded(name: &str) -> RecordedFrame {
    let file: Value = serde_json::from_str(include_str!("vectors/clever_show_frames.json")).expect("JSON");
    let mut all = file.as_array().expect("a list").iter();
    let vector = all.find(|vector| vector["name"] == name).expect(name);
    let hex = vector["frame_hex"].as_str().expect("hexadecimal").as_bytes();
    let bytes = data_encoding::HEXLOWER.decode(hex).expect("hexadecimal");
    let frame = FrameReader::new(LIMITS).next_frame(&mut BytesMut::from(&bytes[..]));
    let header = vector["header"].as_object().expect("a header").clone();
    RecordedFrame {
        frame: frame.expect("sound").expect("whole"),
        header,
        content: vector["content"].clone(),
    }
}

/// The header and content of a frame of ours, as the module parses them.
fn header_and_content(frame: &Frame) -> (Map<String, Value>, Value) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).expect("fits");
    let end = 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let header = serde_json::from_slice(&bytes[2..end]).expect("an object");
    (header, serde_json::from_slice(&bytes[end..]).expect("JSON"))
}

fn events(conversation: &mut PluginProtocol) -> Vec<Event> {
    std::iter::from_fn(|| conversation.poll_event()).collect()
}

fn copter(now: Instant) -> PluginProtocol {
    let kwargs = json!({
        "name": "copter",
        "actions": { "led_fill": { "answers": false }, "notify_all": { "answers": false } },
        "requests": ["anim_id"],
        "telemetry": ["fcu_status", "battery", "current_position", "armed"],
    });
    let mut conversation = PluginProtocol::new(now);
    let kwargs = kwargs.as_object().expect("an object").clone();
    conversation.handle_frame(&message("register", kwargs), now);
    assert!(matches!(
        events(&mut conversation).as_slice(),
        [Event::Register(_)]
    ));
    conversation.finish_registration(Ok(json!({ "node": "n1" })));
    conversation
}

/// The only frame, which calls an action.
fn call(conversation: &mut PluginProtocol, number: u64, name: &str, kwargs: &Value, now: Instant) -> Frame {
    let arguments = Arguments {
        args: Vec::new(),
        kwargs: kwargs.as_object().cloned().unwrap_or_default(),
    };
    let call = Call {
        number,
        name: name.to_owned(),
        arguments,
        deadline: None,
    };
    conversation.start_call(call, now, 0);
    match events(conversation).as_slice() {
        [Event::Send(frame, _)] => frame.as_ref().clone(),
        other => panic!("one frame, not {other:?}"),
    }
}

#[test]
fn real_module_can_read_the_register_response() {
    let mut copter = copter(clock::now());
    let welcome = events(&mut copter);
    let [Event::Send(frame, None)] = welcome.as_slice() else {
        panic!("{welcome:?}")
    };
    let (header, content) = header_and_content(frame);
    let real = recorded("response, json value");
    // The module takes these three keys from each response, and fails without one.
    assert!(
        real.header.keys().all(|key| header.contains_key(key)),
        "{header:?}"
    );
    assert!(content.get("value").is_some());
}

#[test]
fn action_frame_equals_that_of_the_real_server() {
    let now = clock::now();
    let mut copter = copter(now);
    events(&mut copter);
    let real = recorded("action, keyword arguments");
    let frame = call(&mut copter, 1, "led_fill", &real.content["kwargs"], now);
    let (header, content) = header_and_content(&frame);
    assert_eq!(content, real.content);
    // Python writes a space after each colon.
    let same = real.header.into_iter().filter(|(key, _)| key != "content-length");
    for (key, value) in same {
        assert_eq!(header.get(&key), Some(&value), "{key}");
    }
}

#[test]
fn request_frame_equals_the_real_one_and_is_answered() {
    let now = clock::now();
    let mut copter = copter(now);
    events(&mut copter);
    // The module repeats the number as it was sent; these vectors answer 1 and 42.
    for number in 1..=42 {
        let frame = call(&mut copter, number, "anim_id", &json!({ "x": 1 }), now);
        let (vector, reply) = match number {
            1 => (recorded("response, null value"), Reply::done(Value::Null)),
            42 => {
                let asked = recorded("request");
                let (header, content) = header_and_content(&frame);
                assert_eq!(content["request_id"], asked.content["request_id"]);
                let keys = |value: &Value| -> Vec<String> {
                    value.as_object().expect("an object").keys().cloned().collect()
                };
                assert_eq!(keys(&content), keys(&asked.content));
                assert_eq!(header["message-type"], asked.header["message-type"]);
                (recorded("response, json value"), Reply::done(json!("clever-1")))
            }
            _ => {
                copter.cancel(number);
                events(&mut copter);
                continue;
            }
        };
        copter.handle_frame(&vector.frame, now);
        assert_eq!(events(&mut copter), [Event::CallEnded(number, reply)]);
    }
}

#[test]
fn real_telemetry_is_accepted_and_the_rest_ignored() {
    let now = clock::now();
    let mut copter = copter(now);
    events(&mut copter);
    for name in ["telemetry", "telemetry with NaN"] {
        copter.handle_frame(&recorded(name).frame, now);
        let told = events(&mut copter);
        let Some(Event::Telemetry(fields)) = told.first() else {
            panic!("{name}: {told:?}")
        };
        assert!(fields.iter().any(|(field, _)| field == "battery"), "{fields:?}");
        assert!(
            fields.iter().all(|(field, _)| field != "git_version"),
            "not registered"
        );
    }
    for noise in [
        "file push",
        "UDP announcement server_ip",
        "action, utf-16 content",
    ] {
        copter.handle_frame(&recorded(noise).frame, now);
        let told = events(&mut copter);
        assert!(
            matches!(told.as_slice(), [Event::Ignored(_)]),
            "{noise}: {told:?}"
        );
    }
    copter.handle_frame(
        &recorded("request, args null (sent by a real peer after a reconnect)").frame,
        now,
    );
    let told = events(&mut copter);
    assert!(matches!(told.as_slice(), [Event::Send(_, None)]), "{told:?}");
    assert!(!copter.is_closed());
}
