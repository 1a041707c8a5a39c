//! The first request of each connection: the drone's id.

use serde_json::Value;

use super::ID_BYTES_MAX;
use super::message::{Message, request_id};
use crate::proto::message::Arguments;
use crate::proto::wire::Frame;

/// The id in a response to `id`: a text of 1 to [`ID_BYTES_MAX`] bytes, or a number.
pub fn parse_id(value: &Value) -> Option<String> {
    let id = match value {
        Value::String(id) => id.trim().to_owned(),
        Value::Number(id) => id.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (!id.is_empty() && id.len() <= ID_BYTES_MAX).then_some(id)
}

/// The request for the id.
pub fn id_request() -> Frame {
    let message = Message::Request {
        name: "id".to_owned(),
        id: request_id(0),
        arguments: Arguments::default(),
    };
    message.to_frame()
}

/// The id, if the frame is the response to [`id_request`].
pub fn parse_id_response(frame: &Frame) -> Option<Result<String, BadId>> {
    match Message::from_frame(frame) {
        Ok(Message::Response { name, id, value }) if name == "id" && id.parse() == Ok(0_u32) => {
            Some(parse_id(&value).ok_or(BadId))
        }
        Ok(_) | Err(_) => None,
    }
}

/// A response to `id` without a valid id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its id is not a text of 1 to {ID_BYTES_MAX} bytes")]
pub struct BadId;
