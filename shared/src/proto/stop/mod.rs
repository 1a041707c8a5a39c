//! The emergency stop: an order that any peer may forward and only an operator can issue. Both sides as pure
//! state machines; the tasks around them are `node/src/stop` and, at the station, the engine's `stop`.
//!
//! | part | content |
//! |---|---|
//! | [`StopOrder`] | the order and its signed datagram; the same bytes are the content of a `stop` frame |
//! | [`StopReceiver`] | the node's side: which orders take effect, which stop is in force, how it is released |
//! | [`StopMemory`] | what a node keeps of stops over restarts |
//! | [`StopSender`] | the station's side: when to send to which targets, and which have answered |
//!
//! Invariants:
//! * an order is valid only with its issuer's signature over every byte before it, and with the fleet root's grant
//!   for that issuer as operator or admin; a peer that forwards it can change neither its content nor its targets;
//! * the numbers of one issuer only rise, and a node executes each at most once: a repeated order has no effect;
//! * a stop ends by a release that names its number, and by nothing else: neither by a restart nor by an old release.

mod memory;
mod order;
mod receiver;
mod sender;

pub use memory::{
    COMMAND_ERROR_BYTES_MAX, ISSUERS_MAX, IssuerNumbers, LATCH_FILE_BYTES, LatchDamage, StopMemory,
    StoredStop,
};
pub use order::{
    BadStop, IDS_PER_SELECTOR, NO_NODES, STOP_BYTES_MAX, STOP_NUMBER_REPORTED_MAX, STOP_SELECTOR_BYTES_MAX,
    StopDatagram, StopEncodeError, StopOrder, is_stop_datagram, next_number, split_selector,
};
pub use receiver::{
    ActiveStop, FORWARDED_MAX, Received, ReceivedVia, ReleaseError, StopId, StopReceiver, StopRejection,
    StopState,
};
pub use sender::{BURST_MS, REPEAT_INTERVAL, ReportResult, SendRound, StopSender};
