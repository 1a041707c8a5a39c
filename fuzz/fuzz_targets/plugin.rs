//! Frames from a plug-in on plugin.sock. Every call ends exactly once, all caps hold, and every frame that the node
//! sends can be decoded.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use swarm_shared::proto::foreign::plugin::{
    ACTIONS_MAX, CALLS_MAX, Call, Event, FIELD_VALUE_BYTES_MAX, FIELDS_MAX, LIMITS, LIMITS_UNREGISTERED,
    PluginProtocol, REQUESTS_MAX, Registration, TEXT_BYTES_MAX, is_name,
};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::FrameReader;

/// The node's side of one plug-in connection.
struct Node {
    protocol: PluginProtocol,
    registration: Option<Registration>,
    open: BTreeSet<u64>,
    write_ids: Vec<u64>,
    started: u64,
}

impl Node {
    fn apply_effects(&mut self) {
        while let Some(event) = self.protocol.poll_event() {
            match event {
                Event::Send(frame, write_id) => {
                    let mut bytes = BytesMut::new();
                    frame.encode(&mut bytes).expect("our own frame");
                    let read = FrameReader::new(LIMITS).next_frame(&mut bytes).expect("valid");
                    assert_eq!(read.as_ref(), Some(frame.as_ref()));
                    assert!(frame.json_value().expect("JSON").is_object());
                    self.write_ids.extend(write_id);
                }
                Event::Register(registration) => {
                    assert!(is_name(&registration.name));
                    assert!(registration.callables.len() <= ACTIONS_MAX + REQUESTS_MAX);
                    assert!(registration.fields.len() <= FIELDS_MAX);
                    self.registration = Some(registration);
                    self.protocol.finish_registration(Ok(json!({ "node": "n1" })));
                }
                Event::CallEnded(number, _) => assert!(self.open.remove(&number), "ended once"),
                Event::Telemetry(fields) => {
                    let known = &self.registration.as_ref().expect("registered").fields;
                    for (name, value) in fields {
                        assert!(known.contains_key(&name));
                        assert!(value.to_string().len() <= FIELD_VALUE_BYTES_MAX);
                    }
                }
                Event::Log(_, text) => assert!(text.len() <= TEXT_BYTES_MAX),
                Event::Ignored(_) => {}
                Event::Close(_) => assert!(self.protocol.is_closed() && self.open.is_empty()),
            }
        }
        assert!(self.protocol.pending_calls() <= CALLS_MAX);
        assert_eq!(self.protocol.pending_calls(), self.open.len());
    }

    /// Calls the registered actions, one after the other.
    fn call(&mut self, now: Instant) {
        let Some(registration) = &self.registration else {
            return;
        };
        let callables: BTreeMap<_, _> = registration.callables.iter().collect();
        let count = u64::try_from(callables.len()).expect("a small number");
        if count == 0 || self.protocol.is_closed() {
            return;
        }
        let index = usize::try_from(self.started % count).expect("a small number");
        let name = callables.keys().nth(index).expect("within the count").to_string();
        self.started += 1;
        self.open.insert(self.started);
        let call = Call {
            number: self.started,
            name,
            arguments: Arguments::default(),
            deadline: Some(now + Duration::from_secs(1)),
        };
        self.protocol.start_call(call, now, 1_000);
        self.apply_effects();
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    #[allow(clippy::disallowed_methods)]
    let mut now = Instant::now();
    let mut node = Node {
        protocol: PluginProtocol::new(now),
        registration: None,
        open: BTreeSet::new(),
        write_ids: Vec::new(),
        started: 0,
    };
    let mut reader = FrameReader::new(LIMITS_UNREGISTERED);
    let mut inbox = BytesMut::from(stream);
    loop {
        match reader.next_frame(&mut inbox) {
            Ok(Some(frame)) => node.protocol.handle_frame(&frame, now),
            Ok(None) => node.protocol.on_disconnected("connection closed"),
            Err(error) => node.protocol.close(&error.to_string()),
        }
        node.apply_effects();
        if node.protocol.is_closed() {
            break;
        }
        reader.set_limits(LIMITS);
        node.call(now);
        node.call(now);
        if node.started % 3 == 0 {
            for number in std::mem::take(&mut node.write_ids) {
                node.protocol.on_written(number);
            }
        }
        node.protocol.cancel(u64::from(*step));
        node.apply_effects();
        now += Duration::from_millis(u64::from(*step) * 8);
        node.protocol.handle_timeout(now);
        node.apply_effects();
        assert!(node.protocol.poll_timeout().is_none_or(|due| due > now));
    }
    assert!(node.open.is_empty(), "every call ends");
});
