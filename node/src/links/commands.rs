//! Commands on the control connection, and the replies to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::from_value;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerInfo, PeerLink};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::parcel::Parcel;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Header, WireError};
use tokio::sync::oneshot;

use super::Work;
use super::acts::Acts;
use super::files::{FILE_TRANSFER, send_file};
use crate::actions::Command;

/// The action that ends an emergency stop.
pub(super) const RELEASE: &str = "release";
/// Commands that read, or move a file, and may be at work at once; one more is refused as busy.
pub(super) const COMMANDS_MAX: usize = 256;
/// Replies that may wait for room at once.
pub(super) const ANSWERS_MAX: usize = 512;
/// How long a reply waits for room.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Takes a command that the gate has let in: what reads or moves a file goes its own way, what acts goes to the desk.
pub(super) fn take_command(
    acts: &mut Acts,
    work: &Work,
    peer: &PeerInfo,
    link: &PeerLink,
    frame: Frame,
    deadline: Option<Instant>,
) {
    let arguments = match arguments(&frame) {
        Ok(arguments) => arguments,
        Err(reply) => return work.answer_soon(link, frame.header, reply),
    };
    let Frame { header, content } = frame;
    let identity = CommandId::of(peer.id, &header);
    let action = header.action.clone().unwrap_or_default();
    let class = classify(&action, &arguments);
    let command = Command {
        // What only reads may do without.
        id: identity.unwrap_or(CommandId {
            issuer: peer.id,
            epoch: header.epoch.unwrap_or_default(),
            seq: header.id.unwrap_or_default(),
        }),
        role: peer.role,
        action,
        arguments,
        deadline,
        stop: work.stop.child_token(),
    };
    match class {
        ActionClass::Read => work.run_aside(link, header, command),
        // A release is written down by itself, and a repeat of it finds nothing to release.
        ActionClass::Act if [FILE_TRANSFER, RELEASE].contains(&command.action.as_str()) => {
            work.run_aside(link, header, command);
        }
        ActionClass::Act | ActionClass::Execute if identity.is_none() => {
            let reply = Reply::refused("what acts needs an identity: send `id` and `epoch`");
            work.answer_soon(link, header, reply);
        }
        ActionClass::Act | ActionClass::Execute => acts.command(command, link, &header, &content, work),
    }
}

impl Work {
    /// Runs a command that harms nobody by running twice; its reply goes back over `link`.
    fn run_aside(&self, link: &PeerLink, header: Header, command: Command) {
        let Ok(turn) = Arc::clone(&self.commands).try_acquire_owned() else {
            return answer(
                link,
                &header,
                &Reply::refused("busy: too many commands at once; try again"),
            );
        };
        let (work, link) = (self.clone(), link.clone());
        self.tasks.spawn(async move {
            let reply = if command.action == FILE_TRANSFER {
                send_file(&work.endpoint, &work.transfers, &command).await
            } else if command.action == RELEASE {
                match command.deadline {
                    Some(deadline) if clock::now() >= deadline => {
                        Reply::ended(Outcome::Expired, "its time to live ran out before it could begin")
                    }
                    Some(_) | None => work.stopping.release(command.arguments).await,
                }
            } else {
                work.actions.run(command).await
            };
            answer_in_turn(&link, &header, &reply).await;
            drop(turn);
        });
    }

    /// The same, for a door of this node. What ends with the connection of whoever asked goes on all the same.
    pub(super) fn errand_aside(&self, command: Command, reply: oneshot::Sender<Reply>) {
        let Ok(turn) = Arc::clone(&self.commands).try_acquire_owned() else {
            let _gone = reply.send(Reply::refused("busy: too many commands at once; try again"));
            return;
        };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            let _gone = reply.send(actions.run(command).await);
            drop(turn);
        });
    }

    /// Answers without keeping its caller waiting. If too many wait for room already, the answer is lost: whoever
    /// needs it asks again.
    pub(super) fn answer_soon(&self, link: &PeerLink, command: Header, reply: Reply) {
        let Ok(turn) = Arc::clone(&self.answers).try_acquire_owned() else {
            return answer(link, &command, &reply);
        };
        let link = link.clone();
        self.tasks.spawn(async move {
            answer_in_turn(&link, &command, &reply).await;
            drop(turn);
        });
    }
}

pub(super) fn arguments(frame: &Frame) -> Result<Arguments, Reply> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Reply::refused(format!(
            "the arguments are unreadable: {error}; send {{\"args\": [], \"kwargs\": {{}}}}"
        ))
    };
    let value = frame.value().map_err(|error| unreadable(&error))?;
    from_value(value).map_err(|error| unreadable(&error))
}

/// Answers, waiting for room: behind a file that is on its way there may be none just now.
pub(super) async fn answer_in_turn(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = match outgoing_reply(command, reply) {
        Ok(outgoing) => match tokio::time::timeout(ANSWER_PATIENCE, link.send(outgoing)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no room for it within {ANSWER_PATIENCE:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    tell_lost(link, command, sent);
}

/// Answers if there is room at once: where so much comes in that answers must not pile up.
fn answer(link: &PeerLink, command: &Header, reply: &Reply) {
    let sent = outgoing_reply(command, reply)
        .map_err(|error| error.to_string())
        .and_then(|outgoing| link.try_send(outgoing).map_err(|error| error.to_string()));
    tell_lost(link, command, sent);
}

fn outgoing_reply(command: &Header, reply: &Reply) -> Result<Outgoing, WireError> {
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
        parcel: Parcel::new(&frame)?,
        lane: command.lane.unwrap_or_default(),
        deadline: None,
    })
}

fn tell_lost(link: &PeerLink, command: &Header, sent: Result<(), String>) {
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), id = command.id, error, "a reply is lost");
    }
}
