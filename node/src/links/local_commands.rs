//! What programs of other systems ask for through a door of this node: into the same dispatch as every command, with
//! the same gate, emergency stop, limits and journal.
//!
//! An errand has no identity of its own: whoever sent it twice meant it twice, as far as anybody can tell. The node
//! gives each one of its own, so that it is journaled like any other and never runs again after a crash. It has
//! [`ERRAND_LIFE`] to start, a flight action two seconds, from its arrival.

use std::time::{Duration, Instant};

use swarm_shared::net::{clock, random};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::{CommandId, FLIGHT_TTL_MS_MAX, next_epoch};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::trust::gate::{ActionClass, Permission, classify, permit};
use tokio::sync::{mpsc, oneshot};

use super::CommandContext;
use super::commands::RELEASE;
use super::executor_driver::ExecutorDriver;
use super::files::FILE_TRANSFER;
use crate::actions::{Actions, Command};

/// Errands that wait to be taken.
const LOCAL_COMMANDS_MAX: usize = 64;
/// How long an errand may wait for its start.
pub const LOCAL_COMMAND_TTL: Duration = Duration::from_secs(30);

/// What a door wants done.
#[derive(Debug)]
pub(super) struct LocalCommand {
    role: Role,
    action: String,
    arguments: Arguments,
    ttl: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Reply>,
}

/// Where gateways hand in what they want done. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalCommands {
    sender: mpsc::Sender<LocalCommand>,
    actions: Actions,
}

impl LocalCommands {
    pub(super) fn new(actions: Actions) -> (Self, mpsc::Receiver<LocalCommand>) {
        let (sender, queue) = mpsc::channel(LOCAL_COMMANDS_MAX);
        (Self { sender, actions }, queue)
    }

    /// Hands something in, in the name of somebody of this role, that has reached the node at `since` or later. If it
    /// `flies`, it lives as short as an action of flight, whatever its class. Errands are taken in the order of these
    /// calls. Its end comes from the receiver, once; none comes if the node shuts down.
    pub async fn submit(
        &self,
        role: Role,
        action: String,
        arguments: Arguments,
        since: Instant,
        is_flight: bool,
    ) -> oneshot::Receiver<Reply> {
        let ttl = if is_flight || self.actions.properties(&action).flight {
            Duration::from_millis(FLIGHT_TTL_MS_MAX)
        } else {
            LOCAL_COMMAND_TTL
        };
        let (reply, end) = oneshot::channel();
        let command = LocalCommand {
            role,
            action,
            arguments,
            ttl,
            deadline: since + ttl,
            reply,
        };
        // If nobody takes them any more, the receiver tells.
        let _shutting_down = self.sender.send(command).await;
        end
    }
}

/// The identities of errands.
#[derive(Debug)]
pub(super) struct CommandIds {
    last: CommandId,
}

impl CommandIds {
    /// Of this node, after all that it has given before.
    pub(super) fn new(node: PeerId, dedup: &DedupTable) -> Self {
        let random = u16::try_from(random::jitter() & 0xffff).unwrap_or_default();
        let epoch = next_epoch(dedup.highest_epoch(node), clock::unix_time_ms(), random);
        let last = CommandId {
            issuer: node,
            epoch,
            seq: 0,
        };
        Self { last }
    }

    fn next(&mut self) -> CommandId {
        self.last.seq += 1;
        self.last
    }
}

/// Takes an errand, if its role may ask for it.
pub(super) fn on_local_command(
    driver: &mut ExecutorDriver,
    context: &CommandContext,
    command_ids: &mut CommandIds,
    request: LocalCommand,
) {
    let LocalCommand {
        role,
        action,
        arguments,
        ttl,
        deadline,
        reply,
    } = request;
    let class = classify(&action, &arguments);
    let refusal = match permit(role, &Permission::Command(class)) {
        Err(refused) => Some(refused.reason),
        // A stop is released by its own number and by the fleet; a file has its own way.
        Ok(()) if [FILE_TRANSFER, RELEASE].contains(&action.as_str()) => {
            Some(format!("{action} does not go through a door this way"))
        }
        Ok(()) => None,
    };
    if let Some(refusal) = refusal {
        // The door may have closed meanwhile.
        let _gone = reply.send(Reply::refused(refusal));
        return;
    }
    let command = Command {
        id: command_ids.next(),
        role,
        action,
        arguments,
        deadline: Some(deadline),
        cancel: context.shutdown.child_token(),
    };
    match class {
        ActionClass::Read => context.run_local_in_background(command, reply),
        ActionClass::Modify | ActionClass::Execute => {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            driver.on_local_command(command, ttl_ms, reply, context);
        }
    }
}
