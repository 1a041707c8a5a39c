//! Commands from the gateways of this node. They pass the same permission check, emergency stop, limits and journal as
//! every command of a station.
//!
//! A foreign protocol gives its commands no identity, so each one that arrives is a new command. The node numbers them
//! itself: they are journaled like any other, and never run again after a crash. A command may start for
//! [`LOCAL_COMMAND_TTL`] after its arrival, a flight action for two seconds.

use std::time::{Duration, Instant};

use swarm_shared::net::{clock, random};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::executor::{ActionProperties, AfterFile};
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
use crate::actions::Command;

/// Local commands that wait to be taken.
const LOCAL_COMMANDS_MAX: usize = 64;
/// How long a local command other than a flight action may wait for its start.
pub const LOCAL_COMMAND_TTL: Duration = Duration::from_secs(30);

/// What a gateway asks for.
#[derive(Debug)]
pub struct LocalRequest {
    /// The role that the owner has given to the gateway.
    pub role: Role,
    /// Name of the action.
    pub action: String,
    /// Its arguments.
    pub arguments: Arguments,
    /// When the request reached the node, at the earliest: the time to live counts from then.
    pub arrived_at: Instant,
    /// Handle it as a flight action, whatever its class.
    pub is_flight: bool,
    /// It starts after this file of the gateway's has ended.
    pub after_file: Option<u64>,
}

/// What the links task receives from gateways.
#[derive(Debug)]
pub(super) enum LocalCommand {
    Run(LocalRequest, oneshot::Sender<Reply>),
    FileEnded {
        file: u64,
        failed: Option<(Instant, String)>,
    },
    CancelWaitingFlights,
}

/// Where gateways submit their commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalCommands {
    sender: mpsc::Sender<LocalCommand>,
}

impl LocalCommands {
    pub(super) fn new() -> (Self, mpsc::Receiver<LocalCommand>) {
        let (sender, queue) = mpsc::channel(LOCAL_COMMANDS_MAX);
        (Self { sender }, queue)
    }

    /// Submits a command; commands are accepted in the order of these calls. The receiver gets the outcome, or closes
    /// when the node shuts down.
    pub async fn submit(&self, request: LocalRequest) -> oneshot::Receiver<Reply> {
        let (reply, outcome) = oneshot::channel();
        // At shutdown the receiver of the outcome reports it.
        let _shutting_down = self.sender.send(LocalCommand::Run(request, reply)).await;
        outcome
    }

    /// Reports that a file has ended which commands were submitted to start after. With `failed`, flight actions that
    /// arrived by that time are refused for that reason.
    pub async fn file_ended(&self, file: u64, failed: Option<(Instant, String)>) {
        let _shutting_down = self.sender.send(LocalCommand::FileEnded { file, failed }).await;
    }

    /// Refuses the flight actions that wait for their start, as an accepted landing action does.
    pub async fn cancel_waiting_flights(&self) {
        let _shutting_down = self.sender.send(LocalCommand::CancelWaitingFlights).await;
    }
}

/// Gives local commands their identities.
#[derive(Debug)]
pub(super) struct CommandIds {
    last: CommandId,
}

impl CommandIds {
    /// Starts an epoch above all that this node has used.
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

/// Accepts a local command if its role permits it.
pub(super) fn on_local_command(
    driver: &mut ExecutorDriver,
    context: &CommandContext,
    command_ids: &mut CommandIds,
    command: LocalCommand,
) {
    let (request, reply) = match command {
        LocalCommand::Run(request, reply) => (request, reply),
        LocalCommand::CancelWaitingFlights => return driver.cancel_waiting_flights(context),
        LocalCommand::FileEnded { file, failed } => {
            let failed = failed.as_ref().map(|(at, why)| (*at, why.as_str()));
            return driver.on_file_ended(file, failed, context);
        }
    };
    let LocalRequest {
        role,
        action,
        arguments,
        arrived_at,
        is_flight,
        after_file,
    } = request;
    let class = classify(&action, &arguments);
    let refusal = match permit(role, &Permission::Command(class)) {
        Err(refused) => Some(refused.reason),
        // A release needs the number of its stop, and a file transfer has a way of its own.
        Ok(()) if [FILE_TRANSFER, RELEASE].contains(&action.as_str()) => {
            Some(format!("a gateway cannot run {action}"))
        }
        Ok(()) => None,
    };
    if let Some(refusal) = refusal {
        // The gateway may have closed in the meantime.
        let _gone = reply.send(Reply::refused(refusal));
        return;
    }
    let properties = context.actions.properties(&action);
    let properties = ActionProperties {
        flight: properties.flight || is_flight,
        ..properties
    };
    let ttl = if properties.flight {
        Duration::from_millis(FLIGHT_TTL_MS_MAX)
    } else {
        LOCAL_COMMAND_TTL
    };
    let command = Command {
        id: command_ids.next(),
        role,
        action,
        arguments,
        deadline: Some(arrived_at + ttl),
        cancel: context.shutdown.child_token(),
    };
    match class {
        ActionClass::Read => context.run_local_in_background(command, reply),
        ActionClass::Modify | ActionClass::Execute => {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            let after = after_file.map(|file| AfterFile { file, arrived_at });
            driver.on_local_command(command, properties, ttl_ms, after, reply, context);
        }
    }
}
