//! The arguments of a command, parsed; and its reply, sent back.

use std::time::Duration;

use serde_json::from_value;
use swarm_shared::net::peer::{LinkError, PeerLink};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Header, WireError};

/// How long a reply waits for room in its session.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// The arguments in a command's content.
///
/// # Errors
/// The reply that refuses the command.
pub(super) fn parse_arguments(frame: &Frame) -> Result<Arguments, Reply> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Reply::refused(format!(
            "the arguments are unreadable: {error}; send {{\"args\": [], \"kwargs\": {{}}}}"
        ))
    };
    let value = frame.json_value().map_err(|error| unreadable(&error))?;
    from_value(value).map_err(|error| unreadable(&error))
}

/// Sends a reply, waiting up to [`REPLY_TIMEOUT`] for room: a file on its way may fill the session.
pub(super) async fn send_reply(link: &PeerLink, command: &Header, reply: &Reply) {
    match encode_reply(command, reply) {
        Ok(outgoing) => send_when_room(link, command, outgoing).await,
        Err(error) => log_lost_reply(link, command, &error.to_string()),
    }
}

/// Sends a reply if its session has room at once.
///
/// # Errors
/// The encoded reply, if the session has no room. Any other failure is logged.
pub(super) fn try_send_reply(link: &PeerLink, command: &Header, reply: &Reply) -> Result<(), Outgoing> {
    let outgoing = match encode_reply(command, reply) {
        Ok(outgoing) => outgoing,
        Err(error) => {
            log_lost_reply(link, command, &error.to_string());
            return Ok(());
        }
    };
    match link.try_send(outgoing.clone()) {
        Err(LinkError::Busy) => return Err(outgoing),
        Err(error @ LinkError::Closed) => log_lost_reply(link, command, &error.to_string()),
        Ok(()) => {}
    }
    Ok(())
}

/// Waits up to [`REPLY_TIMEOUT`] for room for an encoded reply.
pub(super) async fn send_when_room(link: &PeerLink, command: &Header, outgoing: Outgoing) {
    match tokio::time::timeout(REPLY_TIMEOUT, link.send(outgoing)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log_lost_reply(link, command, &error.to_string()),
        Err(_elapsed) => log_lost_reply(link, command, &format!("no room for it within {REPLY_TIMEOUT:?}")),
    }
}

fn encode_reply(command: &Header, reply: &Reply) -> Result<Outgoing, WireError> {
    let mut frame = reply.to_frame(command);
    if frame.content.len() > CONTENT_BYTES_MAX {
        let short = format!(
            "it ended {}, but its reply of {} bytes fits no frame",
            reply.state,
            frame.content.len()
        );
        frame = Reply::ended(reply.state, short).to_frame(command);
    }
    Ok(Outgoing {
        frame: EncodedFrame::new(&frame)?,
        lane: command.lane.unwrap_or_default(),
        deadline: None,
    })
}

/// The station asks again for the reply of a command that acts.
pub(super) fn log_lost_reply(link: &PeerLink, command: &Header, error: &str) {
    tracing::warn!(peer = %link.id().short(), id = command.id, error, "Reply not sent");
}
