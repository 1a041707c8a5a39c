//! The task of the tracker: it stores the changes that the tracker decides, hands its commands to the transports, and
//! reports updates to the issuers.
//!
//! Changes gather during a write and become one transaction. An update is reported only after its change is stored.
//! Deliveries continue whether or not a request still waits for them, and after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerEvent, PeerInfo};
use swarm_shared::proto::delivery::tracker::{
    CancelResult, Change, DeliveryTracker, Effect, EncodedCommand, IssueRequest, StoredCommand, WriteId,
};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{Frame, Kind};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handle::{Cancelled, DeliveryCommand, DeliveryInbox, DeliveryUpdate, NewCommand, Withdrawal};
use crate::duration::to_ms;
use crate::engine::transport::bridge::{self, BridgedTransport, DeviceReply};
use crate::engine::transport::{DeviceTransport, OutgoingDelivery, ReplyPath, TransportError};
use crate::store::deliveries::Origin;
use crate::store::recovery::STATION_STOPPED;
use crate::store::{Store, StoreError};

/// Most changes in one transaction.
const CHANGES_PER_WRITE_MAX: usize = 4_096;
/// How long the last writes may take at shutdown.
const FINAL_WRITES_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for each reply of a bridged device at shutdown.
const LAST_REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// Why the task woke up.
enum Wakeup {
    Written(Result<Vec<u64>, StoreError>),
    Command(DeliveryCommand),
    Link(PeerEvent),
    DeviceReply(DeviceReplied),
    Timeout,
}

/// The end of a delivery to a bridged device.
struct DeviceReplied {
    from: PeerId,
    id: CommandId,
    reply: Reply,
}

/// A write in progress. Returns the numbers in the history of the commands that it issues.
type PendingWrite = Pin<Box<dyn Future<Output = Result<Vec<u64>, StoreError>> + Send>>;

/// State of the task.
pub(crate) struct DeliveryTask {
    tracker: DeliveryTracker,
    store: Store,
    issuer: PeerId,
    next_id: Arc<AtomicU64>,
    transports: BTreeMap<PeerId, Box<dyn DeviceTransport>>,
    /// The bridged ones among the transports. They stay as long as their gateway is open.
    bridged: BTreeMap<PeerId, BridgedTransport>,
    /// Outstanding replies of bridged devices.
    device_replies: JoinSet<DeviceReplied>,
    observers: BTreeMap<CommandId, CommandObserver>,
    pending_cancels: Vec<PendingCancel>,
    /// Time of the last stop of each node, and the error of commands that were requested before it.
    last_stops: BTreeMap<PeerId, (Instant, String)>,
    pending_changes: Vec<(WriteId, Vec<Change>)>,
    /// Writes of the tracker in the current transaction, and the commands that it issues.
    in_flight: (Vec<WriteId>, Vec<CommandId>),
    pending_write: Option<PendingWrite>,
}

/// The issuer of a command.
struct CommandObserver {
    updates: mpsc::Sender<DeliveryUpdate>,
    origin: Option<Origin>,
    reply_timeout: Duration,
    /// Deliveries that have not ended.
    open: usize,
}

/// Cancelled deliveries of a command whose outcomes are not stored yet.
struct PendingCancel {
    id: CommandId,
    open: BTreeSet<PeerId>,
    stored: oneshot::Sender<()>,
}

impl DeliveryTask {
    /// Reads open deliveries from the store. Those to bridged devices, which are no members (`is_member`), cannot continue:
    /// such a device remembers no identities of commands.
    pub(crate) async fn open(
        store: Store,
        issuer: PeerId,
        next_id: Arc<AtomicU64>,
        is_member: impl Fn(PeerId) -> bool,
    ) -> Result<Self, StoreError> {
        let open = store.recover(issuer).await?;
        if !open.is_empty() {
            let deliveries: usize = open.iter().map(|command| command.deliveries.len()).sum();
            tracing::info!(commands = open.len(), deliveries, "Open deliveries continue");
        }
        let mut tracker = DeliveryTracker::restore(open);
        for peer in tracker.open_peers().into_iter().filter(|peer| !is_member(*peer)) {
            let sent = Reply::ended(Outcome::Unknown, STATION_STOPPED);
            let unsent = Reply::refused("not sent: the station stopped before it could be");
            tracker.end_all(peer, Some(&sent), &unsent);
        }
        Ok(Self {
            tracker,
            store,
            issuer,
            next_id,
            transports: BTreeMap::new(),
            bridged: BTreeMap::new(),
            device_replies: JoinSet::new(),
            observers: BTreeMap::new(),
            pending_cancels: Vec::new(),
            last_stops: BTreeMap::new(),
            pending_changes: Vec::new(),
            in_flight: (Vec::new(), Vec::new()),
            pending_write: None,
        })
    }

    /// Runs until shutdown, and then completes the writes.
    pub(crate) async fn run(mut self, mut inbox: DeliveryInbox, shutdown: CancellationToken) {
        loop {
            self.apply_effects();
            let due = self.tracker.poll_timeout();
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                done = wait_written(&mut self.pending_write) => Wakeup::Written(done),
                Some(command) = inbox.commands.recv() => Wakeup::Command(command),
                Some(event) = inbox.link_events.recv() => Wakeup::Link(event),
                Some(replied) = self.device_replies.join_next() => match replied {
                Ok(replied) => Wakeup::DeviceReply(replied),
                // It is never cancelled and does not panic.
                Err(_) => continue,
                },
                () = wait_until(due) => Wakeup::Timeout,
            };
            self.apply_withdrawals(inbox.take_withdrawals());
            match next {
                Wakeup::Written(done) => self.on_written(done),
                Wakeup::Command(command) => self.on_command(command),
                Wakeup::Link(event) => self.on_link_event(event),
                Wakeup::DeviceReply(replied) => self.on_device_reply(replied),
                Wakeup::Timeout => self.tracker.handle_timeout(clock::now()),
            }
        }
        self.apply_withdrawals(inbox.take_withdrawals());
        let last = async {
            // The gateways are closed: their last replies have arrived, or arrive at once.
            while let Ok(Some(replied)) = timeout(LAST_REPLY_TIMEOUT, self.device_replies.join_next()).await {
                if let Ok(replied) = replied {
                    self.on_device_reply(replied);
                }
            }
            self.apply_effects();
            while self.pending_write.is_some() {
                let done = wait_written(&mut self.pending_write).await;
                self.apply_withdrawals(inbox.take_withdrawals());
                self.on_written(done);
                self.apply_effects();
            }
        };
        if timeout(FINAL_WRITES_TIMEOUT, last).await.is_err() {
            tracing::warn!("Last changes of deliveries are not stored; the next start queries the nodes");
        }
    }

    fn apply_withdrawals(&mut self, ordered: Vec<Withdrawal>) {
        for Withdrawal {
            targets,
            reason,
            ordered_at,
            reply,
        } in ordered
        {
            let count = self.tracker.withdraw(&targets, &reason, clock::now());
            let stopped = targets
                .into_iter()
                .map(|target| (target, (ordered_at, reason.clone())));
            self.last_stops.extend(stopped);
            if count > 0 {
                tracing::info!(count, reason, "Deliveries withdrawn");
            }
            let _caller_gone = reply.send(count);
        }
    }

    fn on_command(&mut self, command: DeliveryCommand) {
        let now = clock::now();
        match command {
            DeliveryCommand::Issue(command, updates) => self.issue(*command, updates),
            DeliveryCommand::ReleaseBatch { id, targets, ttl } => {
                self.tracker.start_batch(id, &targets, now + ttl, now);
            }
            DeliveryCommand::Withhold { id, reason } => self.tracker.cancel_deferred(id, &reason),
            DeliveryCommand::Cancel { id, reason, reply } => self.cancel(id, &reason, reply, now),
            // Done already, before every command.
            DeliveryCommand::ApplyWithdrawals => {}
            DeliveryCommand::Revoked(id) => {
                self.transports.remove(&id);
                self.tracker.on_revoked(id, now);
            }
        }
    }

    fn on_link_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Connected { peer, link, resumed } if peer.kind == PeerKind::Node => {
                self.transports.insert(peer.id, Box::new(link));
                self.tracker.on_connected(peer.id, resumed, clock::now());
            }
            PeerEvent::Disconnected { id, .. } => {
                self.transports.remove(&id);
                self.tracker.on_disconnected(id);
            }
            PeerEvent::Frame { peer, frame, .. } => self.on_frame(&peer, &frame),
            PeerEvent::Connected { .. }
            | PeerEvent::Silent(_)
            | PeerEvent::Responsive(_)
            | PeerEvent::BulkOpened { .. } => {}
        }
    }

    fn on_frame(&mut self, peer: &PeerInfo, frame: &Frame) {
        let (from, now) = (peer.id, clock::now());
        let Some(id) = CommandId::from_header(self.issuer, &frame.header) else {
            return tracing::debug!(peer = %peer.name, kind = ?frame.header.kind, "Frame without a command's identity ignored");
        };
        let handled = if frame.header.kind == Some(Kind::Stage) {
            frame
                .parse_content::<StageMessage>()
                .map(|message| self.tracker.on_stage(from, id, message.stage, now))
        } else {
            frame
                .parse_content::<Reply>()
                .map(|reply| self.tracker.on_reply(from, id, reply, now))
        };
        if let Err(error) = handled {
            tracing::warn!(peer = %peer.name, %id, %error, "Frame of a delivery is unreadable");
        }
    }

    fn issue(&mut self, command: NewCommand, updates: mpsc::Sender<DeliveryUpdate>) {
        // Allocated here, so that numbers follow the order of issue.
        let seq = self.next_id.fetch_add(1, Ordering::Relaxed);
        let id = CommandId {
            issuer: self.issuer,
            epoch: self.store.epoch(),
            seq,
        };
        self.add_bridged(command.bridged);
        let observer = CommandObserver {
            updates,
            reply_timeout: command.reply_timeout,
            origin: Some(command.origin),
            open: command.targets.len(),
        };
        self.observers.insert(id, observer);
        // A command that was requested before a stop may arrive here after it.
        let stopped = command.targets.iter().filter_map(|target| {
            let (at, why) = self.last_stops.get(&target.to)?;
            (*at >= command.requested_at).then(|| (target.to, why.clone()))
        });
        let stopped: Vec<(PeerId, String)> = stopped.collect();
        self.tracker.issue(IssueRequest {
            command: StoredCommand {
                id,
                action: command.action,
                arguments: command.arguments,
                lane: command.lane,
                ttl_ms: to_ms(command.ttl),
            },
            selector: command.selector,
            deadline: command.requested_at + command.ttl,
            targets: command.targets,
        });
        for (node, why) in stopped {
            self.tracker
                .cancel(|which, to| *which == id && *to == node, &why, clock::now());
        }
    }

    /// Adds the transports of bridged devices. A device that has registered again since its last command has lost its
    /// queue.
    fn add_bridged(&mut self, devices: Vec<(PeerId, BridgedTransport)>) {
        let now = clock::now();
        let closed = self.bridged.extract_if(.., |_, device| device.is_closed());
        for (id, _) in closed.collect::<Vec<_>>() {
            self.on_bridged_closed(id);
        }
        for (id, device) in devices {
            if self.bridged.get(&id).is_some_and(|known| known.is_same(&device)) {
                continue;
            }
            if self.bridged.insert(id, device.clone()).is_some() {
                self.on_bridged_closed(id);
            }
            self.transports.insert(id, Box::new(device));
            // As if its session resumed: nothing is sent again.
            self.tracker.on_connected(id, true, now);
        }
    }

    /// Ends the deliveries that were not sent to the device. Its gateway replies to the others.
    fn on_bridged_closed(&mut self, id: PeerId) {
        self.transports.remove(&id);
        self.tracker.on_disconnected(id);
        self.tracker.end_all(id, None, &bridge::gateway_closed());
    }

    fn on_device_reply(&mut self, DeviceReplied { from, id, reply }: DeviceReplied) {
        self.tracker.on_reply(from, id, reply, clock::now());
    }

    /// Hands a delivery to its transport. Returns whether there was room.
    fn deliver(
        &mut self,
        to: PeerId,
        id: CommandId,
        command: &EncodedCommand,
        deadline: Option<Instant>,
    ) -> bool {
        let Some(transport) = self.transports.get(&to) else {
            return false;
        };
        if deadline.is_none() && !transport.properties().durable_identity {
            // No status query: its gateway replies without one.
            return true;
        }
        let reply_timeout = self.observers.get(&id).map(|observer| observer.reply_timeout);
        let delivery = OutgoingDelivery {
            command,
            deadline,
            respond_by: clock::now() + reply_timeout.unwrap_or_default(),
        };
        match transport.try_deliver(&delivery) {
            Ok(ReplyPath::Frames) => true,
            Ok(ReplyPath::Channel(replied)) => {
                self.device_replies.spawn(async move {
                    let reply = DeviceReply::without_file(replied.await);
                    DeviceReplied { from: to, id, reply }
                });
                true
            }
            Err(TransportError::Full) => false,
            Err(TransportError::Closed) => {
                self.tracker.on_send_failed(to, id, clock::now());
                self.bridged.remove(&to);
                self.on_bridged_closed(to);
                true
            }
        }
    }

    fn cancel(&mut self, id: CommandId, reason: &str, reply: oneshot::Sender<Cancelled>, now: Instant) {
        let CancelResult {
            cancelled,
            already_sent,
        } = self.tracker.cancel(|which, _| *which == id, reason, now);
        let nodes =
            |all: Vec<(PeerId, CommandId)>| -> Vec<PeerId> { all.into_iter().map(|(to, _)| to).collect() };
        let (cancelled, sent) = (nodes(cancelled), nodes(already_sent));
        let (stored, when_stored) = oneshot::channel();
        self.pending_cancels.push(PendingCancel {
            id,
            open: cancelled.iter().copied().collect(),
            stored,
        });
        let _caller_gone = reply.send(Cancelled {
            cancelled,
            sent,
            stored: when_stored,
        });
        self.notify_cancelled();
    }

    /// Updates the open deliveries of the cancels of a command.
    fn end_cancels(&mut self, id: CommandId, end: impl Fn(&mut BTreeSet<PeerId>)) {
        for cancel in self.pending_cancels.iter_mut().filter(|cancel| cancel.id == id) {
            end(&mut cancel.open);
        }
        self.notify_cancelled();
    }

    /// Notifies the callers of cancels whose outcomes are all stored.
    fn notify_cancelled(&mut self) {
        let (open, stored): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending_cancels)
            .into_iter()
            .partition(|one| !one.open.is_empty() && !one.stored.is_closed());
        self.pending_cancels = open;
        for one in stored {
            let _caller_gone = one.stored.send(());
        }
    }

    fn apply_effects(&mut self) {
        loop {
            let effects = self.tracker.take_effects();
            if effects.is_empty() {
                break;
            }
            // After one delivery finds no room, later ones to the same node wait behind it.
            let mut full = BTreeSet::new();
            for effect in effects {
                match effect {
                    Effect::Store { write_id, changes } => self.pending_changes.push((write_id, changes)),
                    Effect::Send {
                        to,
                        id,
                        command,
                        deadline,
                    } => {
                        if full.contains(&to) || !self.deliver(to, id, &command, deadline) {
                            full.insert(to);
                            self.tracker.on_send_failed(to, id, clock::now());
                        }
                    }
                    Effect::Stage { to, id, stage } => self.notify(id, DeliveryUpdate::Stage { to, stage }),
                    Effect::Ended { to, id, reply } => {
                        self.end_cancels(id, |open| {
                            open.remove(&to);
                        });
                        self.notify(id, DeliveryUpdate::Ended { to, reply });
                        if let Some(observer) = self.observers.get_mut(&id) {
                            observer.open = observer.open.saturating_sub(1);
                            if observer.open == 0 {
                                self.observers.remove(&id);
                            }
                        }
                    }
                    Effect::NotIssued { id, reason } => {
                        self.end_cancels(id, BTreeSet::clear);
                        self.notify(id, DeliveryUpdate::NotIssued(reason));
                        self.observers.remove(&id);
                    }
                }
            }
        }
        self.begin_write();
    }

    /// Reports an update. The channel has room for all updates of a command, so it only fails if the issuer is gone.
    fn notify(&self, id: CommandId, update: DeliveryUpdate) {
        if let Some(observer) = self.observers.get(&id) {
            let _issuer_gone = observer.updates.try_send(update);
        }
    }

    fn begin_write(&mut self) {
        if self.pending_write.is_some() || self.pending_changes.is_empty() {
            return;
        }
        let (mut write_ids, mut all) = (Vec::new(), Vec::new());
        let mut waiting = std::mem::take(&mut self.pending_changes).into_iter();
        for (write_id, mut changes) in waiting.by_ref() {
            write_ids.push(write_id);
            all.append(&mut changes);
            if all.len() >= CHANGES_PER_WRITE_MAX {
                break;
            }
        }
        self.pending_changes = waiting.collect();
        let (mut begun, mut origins) = (Vec::new(), BTreeMap::new());
        for change in &all {
            if let Change::Issued(issued) = change {
                let id = issued.command.id;
                begun.push(id);
                let origin = self
                    .observers
                    .get_mut(&id)
                    .and_then(|observer| observer.origin.take());
                origins.extend(origin.map(|origin| (id, origin)));
            }
        }
        self.in_flight = (write_ids, begun);
        let store = self.store.clone();
        self.pending_write = Some(Box::pin(async move { store.apply(all, origins).await }));
    }

    fn on_written(&mut self, done: Result<Vec<u64>, StoreError>) {
        self.pending_write = None;
        let now = clock::now();
        let (write_ids, begun) = std::mem::take(&mut self.in_flight);
        match done {
            Ok(numbers) => {
                for (id, number) in begun.into_iter().zip(numbers) {
                    self.notify(id, DeliveryUpdate::Issued { id, number });
                }
                for write_id in write_ids {
                    self.tracker.on_stored(write_id, now);
                }
            }
            Err(error) => {
                tracing::error!(%error, "Deliveries are not stored");
                for write_id in write_ids {
                    self.tracker.on_store_failed(write_id, &error.to_string(), now);
                }
            }
        }
    }
}

async fn wait_written(writing: &mut Option<PendingWrite>) -> Result<Vec<u64>, StoreError> {
    match writing {
        Some(writing) => writing.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => clock::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
