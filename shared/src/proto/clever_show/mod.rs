//! What clever-show's programs say to one another, in the frame that is ours too ([`wire`](super::wire)).
//!
//! [`Message`] is what one frame means, [`Announcement`] the datagram by which a server makes itself known.

mod announcement;
mod messages;
#[cfg(test)]
mod tests;

pub use announcement::{ANNOUNCEMENT_BYTES_MAX, ANNOUNCEMENT_PORT, Announcement, BadAnnouncement, SERVER_IP};
pub use messages::{Answer, BadMessage, FILE_TRANSFER, Message, NAME_BYTES_MAX};

/// The server's usual TCP port.
pub const SERVER_PORT: u16 = 25_000;
