//! What can be asked of a fleet and what comes back, as plain data: serde and the types of [`proto`](crate::proto),
//! nothing else.
//!
//! A [`Request`] goes to a station; a stream of [`Event`]s comes back, and its last one is [`Event::End`] or
//! [`Event::Failed`]. Both are serialisable, since a program can ask a running station over its control socket.
//!
//! Invariants of a stream:
//! * every entry of [`Event::Targets`] gets exactly one [`Event::Delivery`], unless the stream ends in `failed`;
//! * a stream that stops without `end` or `failed` was cut off;
//! * programs compare codes ([`Failure`], [`Warning`], [`Outcome`](crate::proto::outcome::Outcome)), never texts.

mod delivery;
mod event;
mod gateway;
mod history;
mod membership;
mod node;
mod request;
mod warning;

pub use delivery::{Delivery, round_to_microsecond};
pub use event::{Event, Failure};
pub use gateway::{
    PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, PEER_WRITE_TIMEOUT, Password, PeerView, TokenView, UserView,
};
pub use history::{AuditView, CommandKind, CommandView, HistoryDelivery, HistoryQuery, HistoryState};
pub use membership::{InvitationView, MemberView, MembershipView, PendingView};
pub use node::{Check, NodeRef, NodeState, NodeView, StopView};
pub use request::{
    ActRequest, AdminRequest, Batch, BatchSize, FileToSend, FilesToSend, FleetRequest, HistoryRequest,
    NodesRequest, Request, UserRequest,
};
pub use warning::Warning;
