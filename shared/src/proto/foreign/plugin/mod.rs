//! Plug-ins: local programs that add actions, questions and readings to a node, over a Unix socket.
//!
//! The frames are clever-show's, so that a program that uses its messaging module becomes a plug-in by sending one
//! more message; docs/plugins.md is the prose. A node sends an action as clever-show's server does, and a question as
//! a request; it pairs the answer by `request_id`. [`Registration`] is what a program says that it can do,
//! [`PluginProtocol`] decides what each of its frames means.
//!
//! Invariants: every call ends once, with an outcome, whatever the program does; everything that a program says is
//! bounded by a constant of this module before it is kept.

mod arguments;
mod connection;
mod frames;
#[cfg(test)]
mod model_tests;
mod registration;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use arguments::{ArgumentKind, ArgumentSpec, ArgumentSpecs};
pub use connection::{Call, Event, LogLevel, PluginProtocol};
pub use frames::{REGISTER, message, register_error, register_response};
pub use registration::{Callable, CallableKind, RegisterError, Registration};

use crate::proto::wire::{CONTENT_BYTES_MAX, FrameLimits, HEADER_BYTES_MAX};

/// Most plug-ins of one node.
pub const PLUGINS_MAX: usize = 16;
/// Most actions of one plug-in.
pub const ACTIONS_MAX: usize = 64;
/// Most requests of one plug-in.
pub const REQUESTS_MAX: usize = 64;
/// Most telemetry fields of one plug-in.
pub const FIELDS_MAX: usize = 64;
/// Most arguments of one action that has rules for them.
pub const ARGUMENTS_MAX: usize = 32;
/// Most choices of one argument.
pub const CHOICES_MAX: usize = 64;
/// Longest name of a plug-in, an action, a request, a field or an argument, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest description of an action, and longest choice of an argument, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 256;
/// Longest unit of a telemetry field, in bytes.
pub const UNIT_BYTES_MAX: usize = 16;
/// Longest value of a telemetry field as JSON, in bytes: all fields of all plug-ins fit one frame.
pub const FIELD_VALUE_BYTES_MAX: usize = 512;
/// Deepest nesting of a telemetry field's value, in levels: it is told inside other objects.
pub const FIELD_DEPTH_MAX: usize = 8;
/// Longest line of a plug-in for the node's log, and longest reason for a failure, in bytes; the rest is cut off.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest string that an argument may hold, in bytes.
pub const ARGUMENT_BYTES_MAX: usize = 4096;
/// Most calls of one plug-in that may wait for their answers; one more is refused as busy.
pub const CALLS_MAX: usize = 32;
/// Lines that a plug-in may log at once, and how long one takes to come back.
pub const LOG_LINES_BURST: u32 = 50;
/// See [`LOG_LINES_BURST`].
pub const LOG_LINE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a program has for its `register` message.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a plug-in has for its answer unless it says otherwise.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a plug-in may ask for.
pub const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Before a program has registered.
pub const LIMITS_UNREGISTERED: FrameLimits = FrameLimits {
    header: HEADER_BYTES_MAX,
    content: 256 * 1024,
};
/// Of a plug-in.
pub const LIMITS: FrameLimits = FrameLimits {
    header: HEADER_BYTES_MAX,
    content: CONTENT_BYTES_MAX,
};

/// What a name has to be: 1 to [`NAME_BYTES_MAX`] letters, digits, `_` and `-`, beginning with a letter or digit.
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['_', '-'])
}

/// At most so many bytes of a text, cut between characters.
pub fn truncate(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
