//! The protocol between clever-show's server and its drones, on the frame of [`crate::proto::wire`]. We implement
//! both sides: a station is a server, a node is a drone.
//!
//! | module | content |
//! |---|---|
//! | [`message`] | messages to frames and back |
//! | [`announcement`] | the datagram by which a server announces its address |
//! | `send_queue` | queued frames and open requests over successive connections, for both of the following |
//! | [`peer`] | one side of the messaging protocol |
//! | [`server`] | the server's side of one drone, with deadlines, readings and the emergency stop |
//!
//! Invariants: `null` is never written as the whole content, because the real programs never finish reading it; an
//! invalid message of a peer ends at most its own connection.

use crate::proto::wire;

pub mod announcement;
mod identify;
pub mod message;
pub mod peer;
#[cfg(test)]
mod peer_tests;
mod readings;
mod send_queue;
pub mod server;
mod types;

pub use announcement::{Announcement, BadAnnouncement};
pub use message::{
    BadMessage, JSON_MEMORY_BYTES_MAX, Message, NAME_BYTES_MAX, REQUEST_ID_BYTES_MAX, ResponseBody,
    memory_bytes, request_id,
};
pub use peer::{
    Event, PENDING_MAX, PeerState, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, ReconnectPolicy, RequestError,
    SendError,
};

/// Where the server listens.
pub const SERVER_PORT: u16 = 25_000;
/// Where drones listen for announcements.
pub const ANNOUNCEMENT_PORT: u16 = 8_181;
/// Longest announcement, in bytes: drones read no more.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 1_024;
/// Name of the action that pushes a file and of the request that fetches one.
pub const FILE_TRANSFER: &str = "filetransfer";
/// The actions by which clever-show's server moves or stops a drone. They must not be carried out late.
pub const FLIGHT_ACTIONS: [&str; 10] = [
    "start",
    "pause",
    "resume",
    "stop",
    "land",
    "emergency_land",
    "disarm",
    "takeoff",
    "takeoff_z",
    "flip",
];
/// Longest id of a drone that is accepted, in bytes. Clever-show allows 63; host names may be longer.
pub const ID_BYTES_MAX: usize = 253;

/// Frame limits until the peer has reported its id.
pub const LIMITS_UNIDENTIFIED: wire::FrameLimits = wire::FrameLimits::PREAUTH;
