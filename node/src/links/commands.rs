//! Commands on the control connection: which of them the executor gets, and which run at once.

use std::sync::Arc;
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerInfo, PeerLink};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::gate::ActionClass;
use swarm_shared::proto::wire::{Frame, Header};
use tokio::sync::oneshot;

use super::CommandContext;
use super::executor_driver::ExecutorDriver;
use super::files::{FILE_TRANSFER, send_file};
use super::replies::{log_lost_reply, parse_arguments, send_reply, send_when_room, try_send_reply};
use crate::actions::Command;

/// The action that ends an emergency stop.
pub(super) const RELEASE: &str = "release";
/// Commands outside the executor that may run at once; one more is refused as busy.
pub(super) const COMMANDS_MAX: usize = 256;
/// Replies that may wait for room at once.
pub(super) const REPLIES_MAX: usize = 512;
const BUSY: &str = "busy: too many commands at once; try again";

/// A command as its link delivers it.
pub(super) struct ReceivedCommand {
    pub(super) frame: Frame,
    /// `None` if the gate could not read the arguments.
    pub(super) class: Option<ActionClass>,
    pub(super) deadline: Option<Instant>,
}

/// Dispatches a command that the gate has permitted: reads, file transfers and releases run in a task of their own,
/// everything else goes to the executor.
pub(super) fn on_command(
    driver: &mut ExecutorDriver,
    context: &CommandContext,
    peer: &PeerInfo,
    link: &PeerLink,
    received: ReceivedCommand,
) {
    let ReceivedCommand {
        frame,
        class,
        deadline,
    } = received;
    let arguments = match parse_arguments(&frame) {
        Ok(arguments) => arguments,
        Err(reply) => return context.reply_in_background(link, &frame.header, &reply),
    };
    let Frame { header, content } = frame;
    let identity = CommandId::from_header(peer.id, &header);
    let command = Command {
        // A command that only reads needs no identity.
        id: identity.unwrap_or(CommandId {
            issuer: peer.id,
            epoch: header.epoch.unwrap_or_default(),
            seq: header.id.unwrap_or_default(),
        }),
        role: peer.role,
        action: header.action.clone().unwrap_or_default(),
        arguments,
        deadline,
        cancel: context.shutdown.child_token(),
    };
    match class.unwrap_or(ActionClass::Execute) {
        ActionClass::Read => context.run_in_background(link, header, command),
        // A release is journaled by the stop, and a repeat of it finds nothing to release.
        ActionClass::Modify if [FILE_TRANSFER, RELEASE].contains(&command.action.as_str()) => {
            context.run_in_background(link, header, command);
        }
        ActionClass::Modify | ActionClass::Execute if identity.is_none() => {
            let reply = Reply::refused("a command that acts needs an identity: send `id` and `epoch`");
            context.reply_in_background(link, &header, &reply);
        }
        ActionClass::Modify | ActionClass::Execute => {
            driver.on_command(command, link, &header, &content, context);
        }
    }
}

impl CommandContext {
    /// Runs a command that may safely run twice; its reply goes back over `link`.
    fn run_in_background(&self, link: &PeerLink, header: Header, command: Command) {
        let Ok(slot) = Arc::clone(&self.command_slots).try_acquire_owned() else {
            if try_send_reply(link, &header, &Reply::refused(BUSY)).is_err() {
                log_lost_reply(link, &header, BUSY);
            }
            return;
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

    /// [`Self::run_in_background`] for a gateway of this node. The command goes on if the gateway's connection ends.
    pub(super) fn run_local_in_background(&self, command: Command, reply: oneshot::Sender<Reply>) {
        let Ok(slot) = Arc::clone(&self.command_slots).try_acquire_owned() else {
            reply.send(Reply::refused(BUSY)).ok();
            return;
        };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            reply.send(actions.run(command).await).ok();
            drop(slot);
        });
    }

    /// Sends a reply without blocking the caller. If [`REPLIES_MAX`] replies wait for room already, this one is lost:
    /// the station asks again.
    pub(super) fn reply_in_background(&self, link: &PeerLink, command: &Header, reply: &Reply) {
        let Err(outgoing) = try_send_reply(link, command, reply) else {
            return;
        };
        let Ok(slot) = Arc::clone(&self.reply_slots).try_acquire_owned() else {
            return log_lost_reply(link, command, "busy: too many replies wait for room");
        };
        let (link, command) = (link.clone(), command.clone());
        self.tasks.spawn(async move {
            send_when_room(&link, &command, outgoing).await;
            drop(slot);
        });
    }
}
