//! What a program on the device may send to plugin.sock: nothing that it says makes a call end twice or never, leads
//! to more than its caps allow, or has a frame written that cannot be read.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::foreign::plugin::{
    ACTIONS_MAX, CALLS_MAX, Call, PluginProtocol, Event, FIELD_VALUE_BYTES_MAX, FIELDS_MAX, LIMITS, LIMITS_UNREGISTERED,
    REQUESTS_MAX, Registration, TEXT_BYTES_MAX, is_name,
};
use swarm_shared::proto::wire::FrameReader;

/// The node's side, as its task carries it out.
struct Node {
    conversation: PluginProtocol,
    registration: Option<Registration>,
    open: BTreeSet<u64>,
    handovers: Vec<u64>,
    begun: u64,
}

impl Node {
    fn carry_out(&mut self) {
        while let Some(event) = self.conversation.poll_event() {
            match event {
                Event::Send(frame, handover) => {
                    let mut bytes = BytesMut::new();
                    frame.encode(&mut bytes).expect("a frame of ours");
                    let read = FrameReader::new(LIMITS).next_frame(&mut bytes).expect("sound");
                    assert_eq!(read.as_ref(), Some(frame.as_ref()));
                    assert!(frame.value().expect("JSON").is_object());
                    self.handovers.extend(handover);
                }
                Event::Register(registration) => {
                    assert!(is_name(&registration.name));
                    assert!(registration.callables.len() <= ACTIONS_MAX + REQUESTS_MAX);
                    assert!(registration.fields.len() <= FIELDS_MAX);
                    self.registration = Some(registration);
                    self.conversation.finish_registration(Ok(json!({ "node": "n1" })));
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
                Event::Close(_) => assert!(self.conversation.is_closed() && self.open.is_empty()),
            }
        }
        assert!(self.conversation.pending_calls() <= CALLS_MAX);
        assert_eq!(self.conversation.pending_calls(), self.open.len());
    }

    /// Calls what is offered, in turn.
    fn call(&mut self, now: Instant) {
        let Some(registration) = &self.registration else { return };
        let entries: BTreeMap<_, _> = registration.callables.iter().collect();
        let count = u64::try_from(entries.len()).expect("few");
        if count == 0 || self.conversation.is_closed() {
            return;
        }
        let turn = usize::try_from(self.begun % count).expect("few");
        let name = entries.keys().nth(turn).expect("one of them").to_string();
        self.begun += 1;
        self.open.insert(self.begun);
        let call = Call {
            number: self.begun,
            name,
            arguments: Arguments::default(),
            deadline: Some(now + Duration::from_secs(1)),
        };
        self.conversation.start_call(call, now, 1_000);
        self.carry_out();
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    #[allow(clippy::disallowed_methods)]
    let mut now = Instant::now();
    let mut node = Node {
        conversation: PluginProtocol::new(now),
        registration: None,
        open: BTreeSet::new(),
        handovers: Vec::new(),
        begun: 0,
    };
    let mut reader = FrameReader::new(LIMITS_UNREGISTERED);
    let mut inbox = BytesMut::from(stream);
    loop {
        match reader.next_frame(&mut inbox) {
            Ok(Some(frame)) => node.conversation.handle_frame(&frame, now),
            Ok(None) => node.conversation.on_disconnected("it closed its connection"),
            Err(error) => node.conversation.close(&error.to_string()),
        }
        node.carry_out();
        if node.conversation.is_closed() {
            break;
        }
        reader.set_limits(LIMITS);
        node.call(now);
        node.call(now);
        if node.begun % 3 == 0 {
            for number in std::mem::take(&mut node.handovers) {
                node.conversation.on_written(number);
            }
        }
        node.conversation.cancel(u64::from(*step));
        node.carry_out();
        now += Duration::from_millis(u64::from(*step) * 8);
        node.conversation.handle_timeout(now);
        node.carry_out();
        assert!(node.conversation.poll_timeout().is_none_or(|due| due > now));
    }
    assert!(node.open.is_empty(), "every call has ended");
});
