//! Plug-ins: local programs that add actions, requests and readings to a node, over a Unix socket.
//!
//! The frames are clever-show's, so that a program with its messaging module becomes a plug-in by sending one more
//! message; docs/plugins.md describes the protocol. A node sends an action as clever-show's server does, and a
//! request as well; it matches the response by `request_id`. [`Registration`] is what a program offers, and
//! [`PluginProtocol`] decides what each of its frames means.
//!
//! Invariants: every call ends once, with an outcome, whatever the program does; everything that a program sends is
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
/// Deepest nesting of a telemetry field's value, in levels: it is sent inside other objects.
pub const FIELD_DEPTH_MAX: usize = 8;
/// Longest line of a plug-in for the node's log, and longest reason for a failure, in bytes; longer ones are
/// truncated.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest string that an argument may hold, in bytes.
pub const ARGUMENT_BYTES_MAX: usize = 4096;
/// Most calls of one plug-in that wait for their response; one more is refused as busy.
pub const CALLS_MAX: usize = 32;
/// Lines that a plug-in may log at once; each is available again after [`LOG_LINE_INTERVAL`].
pub const LOG_LINES_BURST: u32 = 50;
/// Interval after which one more line may be logged.
pub const LOG_LINE_INTERVAL: Duration = Duration::from_millis(100);
/// Time for the `register` message after connecting.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a response, unless the registration says otherwise.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest response time-out that a plug-in may register.
pub const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Frame limits before registration.
pub const LIMITS_UNREGISTERED: FrameLimits = FrameLimits {
    header: HEADER_BYTES_MAX,
    content: 256 * 1024,
};
/// Frame limits after registration.
pub const LIMITS: FrameLimits = FrameLimits {
    header: HEADER_BYTES_MAX,
    content: CONTENT_BYTES_MAX,
};

/// Whether `text` is a name: 1 to [`NAME_BYTES_MAX`] letters, digits, `_` and `-`, starting with a letter or digit.
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['_', '-'])
}

/// The start of `text`, at most `bytes` long, cut between characters.
pub fn truncate(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
