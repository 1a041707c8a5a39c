//! Frames to a plug-in, as clever-show's server would send them.

use serde_json::{Map, Value, json};

use crate::proto::foreign::clever_show::message::{json_frame, response_header};
use crate::proto::message::Arguments;
use crate::proto::wire::{Frame, Header, MessageType};

/// The action by which a program registers; the node's response names it too.
pub const REGISTER: &str = "register";
/// The `request_id` of the response to `register`, which has none of its own.
const REGISTER_ID: &str = "0";

/// A message: an action for the plug-in.
pub fn message(action: &str, kwargs: Map<String, Value>) -> Frame {
    let header = Header {
        action: Some(action.to_owned()),
        ..Header::default()
    };
    json_frame(header, &json!({ "args": [], "kwargs": kwargs }))
}

/// An action with a response: clever-show's message, with the call's number in its header.
pub(super) fn action(name: &str, id: &str, until: u64, arguments: &Arguments) -> Frame {
    let header = Header {
        action: Some(name.to_owned()),
        request_id: Some(id.to_owned()),
        until: Some(until),
        ..Header::default()
    };
    json_frame(header, &json!(arguments))
}

/// A request for a value.
pub(super) fn request(name: &str, id: &str, until: u64, arguments: &Arguments) -> Frame {
    let header = Header {
        message_type: MessageType::Request,
        until: Some(until),
        ..Header::default()
    };
    let Arguments { args, kwargs } = arguments;
    let content = json!({ "requested_value": name, "request_id": id, "args": args, "kwargs": kwargs });
    json_frame(header, &content)
}

fn response(name: &str, id: &str, content: &Value) -> Frame {
    json_frame(response_header(name, id), content)
}

/// The response to `register`: the program is a plug-in now.
pub fn register_response(value: &Value) -> Frame {
    response(REGISTER, REGISTER_ID, &json!({ "value": value }))
}

/// Why a registration is refused, or a plug-in is disconnected. `value` is there because clever-show's module reads
/// it from every response.
pub fn register_error(error: &str) -> Frame {
    error_response(REGISTER, REGISTER_ID, error)
}

/// The response to a request of the plug-in.
pub(super) fn error_response(name: &str, id: &str, error: &str) -> Frame {
    response(name, id, &json!({ "value": null, "error": error }))
}
