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

use super::CommandContext;
use super::executor_driver::ExecutorDriver;
use super::files::{FILE_TRANSFER, send_file};
use super::replies::{parse_arguments, send_reply, try_send_reply};
use crate::actions::Command;

/// The action that ends an emergency stop.
pub(super) const RELEASE: &str = "release";
/// Commands that read, or move a file, and may be at work at once; one more is refused as busy.
pub(super) const COMMANDS_MAX: usize = 256;
/// Replies that may wait for room at once.
pub(super) const REPLIES_MAX: usize = 512;

/// Takes a command that the gate has let in: what reads or moves a file goes its own way, what acts goes to the desk.
pub(super) fn on_command(
    driver: &mut ExecutorDriver,
    context: &CommandContext,
    peer: &PeerInfo,
    link: &PeerLink,
    frame: Frame,
    deadline: Option<Instant>,
) {
    let arguments = match parse_arguments(&frame) {
        Ok(arguments) => arguments,
        Err(reply) => return context.reply_in_background(link, frame.header, reply),
    };
    let Frame { header, content } = frame;
    let identity = CommandId::from_header(peer.id, &header);
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
        cancel: context.shutdown.child_token(),
    };
    match class {
        ActionClass::Read => context.run_in_background(link, header, command),
        // A release is written down by itself, and a repeat of it finds nothing to release.
        ActionClass::Modify if [FILE_TRANSFER, RELEASE].contains(&command.action.as_str()) => {
            context.run_in_background(link, header, command);
        }
        ActionClass::Modify | ActionClass::Execute if identity.is_none() => {
            let reply = Reply::refused("what acts needs an identity: send `id` and `epoch`");
            context.reply_in_background(link, header, reply);
        }
        ActionClass::Modify | ActionClass::Execute => {
            driver.on_command(command, link, &header, &content, context);
        }
    }
}

impl CommandContext {
    /// Runs a command that harms nobody by running twice; its reply goes back over `link`.
    fn run_in_background(&self, link: &PeerLink, header: Header, command: Command) {
        let Ok(slot) = Arc::clone(&self.command_slots).try_acquire_owned() else {
            return try_send_reply(
                link,
                &header,
                &Reply::refused("busy: too many commands at once; try again"),
            );
        };
        let (context, link) = (self.clone(), link.clone());
        self.tasks.spawn(async move {
            let reply = if command.action == FILE_TRANSFER {
                send_file(&context.endpoint, &context.transfers, &command).await
            } else if command.action == RELEASE {
                match command.deadline {
                    Some(deadline) if clock::now() >= deadline => {
                        Reply::ended(Outcome::Expired, "its time to live ran out before it could begin")
                    }
                    Some(_) | None => context.stop_handle.release(command.arguments).await,
                }
            } else {
                context.actions.run(command).await
            };
            send_reply(&link, &header, &reply).await;
            drop(slot);
        });
    }

    /// The same, for a door of this node. What ends with the connection of whoever asked goes on all the same.
    pub(super) fn run_local_in_background(&self, command: Command, reply: oneshot::Sender<Reply>) {
        let Ok(slot) = Arc::clone(&self.command_slots).try_acquire_owned() else {
            let _gone = reply.send(Reply::refused("busy: too many commands at once; try again"));
            return;
        };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            let _gone = reply.send(actions.run(command).await);
            drop(slot);
        });
    }

    /// Answers without keeping its caller waiting. If too many wait for room already, the answer is lost: whoever
    /// needs it asks again.
    pub(super) fn reply_in_background(&self, link: &PeerLink, command: Header, reply: Reply) {
        let Ok(slot) = Arc::clone(&self.reply_slots).try_acquire_owned() else {
            return try_send_reply(link, &command, &reply);
        };
        let link = link.clone();
        self.tasks.spawn(async move {
            send_reply(&link, &command, &reply).await;
            drop(slot);
        });
    }
}
