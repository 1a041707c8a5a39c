//! The emergency stop: an order that anybody may carry and only an operator can give.
//!
//! | part | what |
//! |---|---|
//! | [`StopOrder`] | the order and its signed datagram; the same bytes are the content of a `stop` frame |
//! | [`StopReceiver`] | the node's side: what is heard, what is in force, what it takes to release it |
//! | [`StopSender`] | the station's side: whom to send to and when, who has answered |
//!
//! Invariants:
//! * an order counts only with its issuer's signature over every byte before it, and with the fleet root's grant for
//!   that issuer as operator or admin; whoever carries it can change nothing, and cannot address it anew;
//! * the numbers of one issuer only rise, and a node heeds each at most once: an order that is heard again does nothing;
//! * a stop ends by a release that names its number, and by nothing else: neither a restart nor an old release.

mod order;
mod receiver;
mod sender;

pub use order::{
    BadStop, IDS_PER_SELECTOR, NO_NODES, STOP_BYTES_MAX, STOP_NUMBER_REPORTED_MAX, STOP_SELECTOR_BYTES_MAX,
    StopDatagram, StopEncodeError, StopOrder, is_stop_datagram, next_number, split_selector,
};
pub use receiver::{
    ActiveStop, FORWARDED_MAX, ISSUERS_MAX, Received, ReceivedVia, ReleaseError, StopId, StopReceiver,
    StopRejection,
};
pub use sender::{BURST_MS, REPEAT_INTERVAL, ReportResult, SendRound, StopSender};
