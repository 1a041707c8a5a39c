//! The handle to the task of the tracker: commands to it, and what it reports.
//!
//! A withdrawal by an emergency stop does not go through the queue. It is put into a list that the task applies before it
//! handles anything else, and the task is woken later: the stop itself is sent in between, and nothing that waits is sent
//! after the stop was ordered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::EVENTS_MAX;
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::delivery::tracker::DeliveryTarget;
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;
use tokio::sync::{mpsc, oneshot};

use crate::engine::transport::bridge::BridgedTransport;
use crate::store::deliveries::Origin;

/// Most commands that wait for the task.
const COMMAND_QUEUE_MAX: usize = 1_024;
/// Most updates about one target: its stages and its end.
const UPDATES_PER_TARGET_MAX: usize = 5;

/// A command to be issued.
pub(crate) struct NewCommand {
    pub(crate) action: String,
    /// Arguments in JSON.
    pub(crate) arguments: String,
    pub(crate) lane: Lane,
    /// Time to live, counted from `requested_at`.
    pub(crate) ttl: Duration,
    pub(crate) requested_at: Instant,
    pub(crate) selector: String,
    pub(crate) targets: Vec<DeliveryTarget>,
    /// The transports of the targets that are bridged devices.
    pub(crate) bridged: Vec<(PeerId, BridgedTransport)>,
    /// How long a bridged device may take to reply, counted from when its delivery is sent.
    pub(crate) reply_timeout: Duration,
    pub(crate) origin: Origin,
}

/// A report to the issuer of a command.
#[derive(Debug)]
pub(crate) enum DeliveryUpdate {
    /// The command is stored under this number of the history.
    Issued { id: CommandId, number: u64 },
    /// The command was not issued, for this reason.
    NotIssued(String),
    /// A node has acknowledged a stage.
    Stage { to: PeerId, stage: Stage },
    /// A delivery has ended, and its outcome is stored.
    Ended { to: PeerId, reply: Reply },
}

/// A command to the task.
pub(crate) enum DeliveryCommand {
    /// Issues a command, and reports on the channel.
    Issue(Box<NewCommand>, mpsc::Sender<DeliveryUpdate>),
    /// Starts a later batch of a command.
    ReleaseBatch {
        id: CommandId,
        targets: Vec<PeerId>,
        ttl: Duration,
    },
    /// Cancels the later batches of a command.
    Withhold { id: CommandId, reason: String },
    /// Cancels all deliveries of a command that have not been sent.
    Cancel {
        id: CommandId,
        reason: String,
        reply: oneshot::Sender<Cancelled>,
    },
    /// Wakes the task, so that it applies withdrawals.
    ApplyWithdrawals,
    /// The key of a node is revoked.
    Revoked(PeerId),
}

/// Deliveries to these nodes that have not been sent are to end.
#[derive(Debug)]
pub(super) struct Withdrawal {
    pub(super) targets: Vec<PeerId>,
    pub(super) reason: String,
    pub(super) ordered_at: Instant,
    /// Takes the number of withdrawn deliveries.
    pub(super) reply: oneshot::Sender<usize>,
}

type Withdrawals = Arc<Mutex<Vec<Withdrawal>>>;

/// The result of a cancel.
pub(crate) struct Cancelled {
    /// Nodes whose delivery will not be sent.
    pub(crate) cancelled: Vec<PeerId>,
    /// Nodes that may have received the command.
    pub(crate) sent: Vec<PeerId>,
    /// Fires when the outcomes of the cancelled deliveries are stored.
    pub(crate) stored: oneshot::Receiver<()>,
}

/// A handle to the task; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryHandle {
    commands: mpsc::Sender<DeliveryCommand>,
    link_events: mpsc::Sender<PeerEvent>,
    withdrawals: Withdrawals,
}

/// The task's end of the handles.
#[derive(Debug)]
pub(crate) struct DeliveryInbox {
    pub(super) commands: mpsc::Receiver<DeliveryCommand>,
    pub(super) link_events: mpsc::Receiver<PeerEvent>,
    withdrawals: Withdrawals,
}

/// Makes a handle and its inbox.
pub(crate) fn channel() -> (DeliveryHandle, DeliveryInbox) {
    let (commands, command_inbox) = mpsc::channel(COMMAND_QUEUE_MAX);
    let (link_events, link_event_inbox) = mpsc::channel(EVENTS_MAX);
    let withdrawals = Withdrawals::default();
    let handle = DeliveryHandle {
        commands,
        link_events,
        withdrawals: Arc::clone(&withdrawals),
    };
    let inbox = DeliveryInbox {
        commands: command_inbox,
        link_events: link_event_inbox,
        withdrawals,
    };
    (handle, inbox)
}

impl DeliveryInbox {
    /// The withdrawals since the last call.
    pub(super) fn take_withdrawals(&self) -> Vec<Withdrawal> {
        std::mem::take(&mut *self.withdrawals.lock())
    }
}

/// Dropping the inbox also ends the wait for the number of withdrawn deliveries: no task would report it.
impl Drop for DeliveryInbox {
    fn drop(&mut self) {
        // First: a later withdrawal then learns from `send` that the task has ended.
        self.commands.close();
        self.take_withdrawals();
    }
}

impl DeliveryHandle {
    /// Withdraws all deliveries to these nodes that have not been sent: from now on none of them is sent. Never blocks and
    /// wakes no task; [`DeliveryCommand::ApplyWithdrawals`] does. Returns the number of withdrawn deliveries.
    pub(crate) fn withdraw(&self, targets: Vec<PeerId>, reason: String) -> oneshot::Receiver<usize> {
        let (reply, count) = oneshot::channel();
        let ordered_at = clock::now();
        self.withdrawals.lock().push(Withdrawal {
            targets,
            reason,
            ordered_at,
            reply,
        });
        count
    }

    /// The channel on which links report stages, replies and their state.
    pub(crate) fn link_events(&self) -> mpsc::Sender<PeerEvent> {
        self.link_events.clone()
    }

    /// Sends a command to the task.
    pub(crate) async fn send(&self, command: DeliveryCommand) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("Command to the tracker dropped: the station is shutting down");
            self.withdrawals.lock().clear();
        }
    }

    /// Issues a command. Returns the channel of its updates, which has room for all of them.
    pub(crate) async fn issue(&self, command: NewCommand) -> mpsc::Receiver<DeliveryUpdate> {
        let (updates, update_inbox) = mpsc::channel(command.targets.len() * UPDATES_PER_TARGET_MAX + 1);
        self.send(DeliveryCommand::Issue(Box::new(command), updates))
            .await;
        update_inbox
    }

    /// Cancels what has not been sent of a command; `None` if the station is shutting down.
    pub(crate) async fn cancel(&self, id: CommandId, reason: String) -> Option<Cancelled> {
        let (reply, answer) = oneshot::channel();
        self.send(DeliveryCommand::Cancel { id, reason, reply }).await;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A stop waits for the count, and would not end.
    #[tokio::test]
    async fn withdrawal_count_is_dropped_when_the_task_has_ended() {
        let (handle, inbox) = channel();
        let before = handle.withdraw(Vec::new(), "a stop".to_owned());
        handle.send(DeliveryCommand::ApplyWithdrawals).await;
        // As the task does at its end.
        drop(inbox);
        let after = handle.withdraw(Vec::new(), "another stop".to_owned());
        handle.send(DeliveryCommand::ApplyWithdrawals).await;
        for count in [before, after] {
            let result = clock::timeout_at(clock::now() + TIMEOUT, count).await;
            assert!(result.expect("the wait ends").is_err(), "no number is reported");
        }
    }
}
