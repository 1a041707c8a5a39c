//! Commands on the control connection, and the replies to them.

use std::sync::Arc;
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerInfo, PeerLink};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use swarm_shared::proto::wire::{Frame, Header};
use tokio::sync::oneshot;

use super::Work;
use super::executor_driver::Acts;
use super::files::{FILE_TRANSFER, send_file};
use super::replies::{answer, answer_in_turn, arguments};
use crate::actions::Command;

/// The action that ends an emergency stop.
pub(super) const RELEASE: &str = "release";
/// Commands that read, or move a file, and may be at work at once; one more is refused as busy.
pub(super) const COMMANDS_MAX: usize = 256;
/// Replies that may wait for room at once.
pub(super) const ANSWERS_MAX: usize = 512;

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
