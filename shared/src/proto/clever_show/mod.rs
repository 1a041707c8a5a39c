//! What clever-show's programs say to one another, in the frame that is ours too ([`wire`](super::wire)).
//!
//! [`Message`] is what one frame means, [`Announcement`] the datagram by which a server makes itself known, [`Dialogue`]
//! one side of a conversation: what waits to be sent, what waits for an answer, and what becomes of both when the
//! connection is lost.

mod announcement;
mod dialogue;
#[cfg(test)]
mod dialogue_tests;
mod messages;
mod pace;
#[cfg(test)]
mod tests;

pub use announcement::{ANNOUNCEMENT_BYTES_MAX, ANNOUNCEMENT_PORT, Announcement, BadAnnouncement, SERVER_IP};
pub use dialogue::{
    Dialogue, Event, Manners, PENDING_MAX, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, Rejected, Unanswered,
};
pub use messages::{Answer, BadMessage, FILE_TRANSFER, Message, NAME_BYTES_MAX};
pub use pace::Pace;

/// The server's usual TCP port.
pub const SERVER_PORT: u16 = 25_000;
