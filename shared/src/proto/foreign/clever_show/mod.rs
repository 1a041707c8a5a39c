//! The protocol between clever-show's server and its drones, on the frame of [`crate::proto::wire`]. We implement
//! both sides: a station is a server, a node is a drone.
//!
//! | module | content |
//! |---|---|
//! | [`message`] | messages to frames and back |
//! | [`announcement`] | the datagram by which a server announces its address |
//! | [`peer`] | one side of the messaging protocol, over successive connections |
//! | [`server`] | the server's side of one drone: its send queue, requests and emergency stop |
//!
//! Invariants: `null` is never written as the whole content, because the real programs never finish reading it; no
//! message of a peer ends more than its own connection.

use crate::proto::wire;

pub mod announcement;
mod identify;
pub mod message;
pub mod peer;
#[cfg(test)]
mod peer_tests;
mod pending;
mod readings;
mod send_queue;
pub mod server;
mod types;

pub use announcement::{Announcement, BadAnnouncement};
pub use message::{
    BadMessage, JSON_MEMORY_BYTES_MAX, Message, NAME_BYTES_MAX, REQUEST_ID_BYTES_MAX, memory_bytes,
    request_id,
};
pub use peer::{
    Event, PENDING_MAX, PeerState, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, ReconnectPolicy, RequestError,
    ResponseBody, SendError,
};

/// Where the server listens.
pub const SERVER_PORT: u16 = 25_000;
/// Where drones listen for announcements.
pub const ANNOUNCEMENT_PORT: u16 = 8_181;
/// Longest announcement, in bytes: drones read no more.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 1_024;
/// The action and the question that carry files.
pub const FILE_TRANSFER: &str = "filetransfer";
/// The actions by which a server moves a drone, or stops it, as its own client calls them: late, they are worse than not
/// at all.
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
/// Longest id of a drone that is taken for one, in bytes. Its own rule is 63; host names may be longer.
pub const ID_BYTES_MAX: usize = 253;

/// Frames of a peer that has not said who it is, and of one that has.
pub const LIMITS_UNIDENTIFIED: wire::FrameLimits = wire::FrameLimits::PREAUTH;
