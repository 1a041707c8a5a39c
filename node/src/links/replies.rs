//! What a command asks, read; and its answer, on its way back.

use std::time::Duration;

use serde_json::from_value;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Header, WireError};

/// How long a reply waits for room.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn parse_arguments(frame: &Frame) -> Result<Arguments, Reply> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Reply::refused(format!(
            "the arguments are unreadable: {error}; send {{\"args\": [], \"kwargs\": {{}}}}"
        ))
    };
    let value = frame.json_value().map_err(|error| unreadable(&error))?;
    from_value(value).map_err(|error| unreadable(&error))
}

/// Answers, waiting for room: behind a file that is on its way there may be none just now.
pub(super) async fn send_reply(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = match encode_reply(command, reply) {
        Ok(outgoing) => match tokio::time::timeout(REPLY_TIMEOUT, link.send(outgoing)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no room for it within {REPLY_TIMEOUT:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    log_lost_reply(link, command, sent);
}

/// Answers if there is room at once: where so much comes in that answers must not pile up.
pub(super) fn try_send_reply(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = encode_reply(command, reply)
        .map_err(|error| error.to_string())
        .and_then(|outgoing| link.try_send(outgoing).map_err(|error| error.to_string()));
    log_lost_reply(link, command, sent);
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

fn log_lost_reply(link: &PeerLink, command: &Header, sent: Result<(), String>) {
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), id = command.id, error, "a reply is lost");
    }
}
