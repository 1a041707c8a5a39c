//! Carries out what the book of deliveries decides: one task owns the book, writes its changes to the store and hands
//! its commands to the links.
//!
//! While one write is under way, further changes gather; they become one transaction. What a verb is told has been
//! stored before. Deliveries go on whether or not a verb still waits for them, and after a restart.
//!
//! A stop's withdrawal is put where the book looks before it does anything else, and wakes it later: the stop itself is
//! sent in between, and nothing that waits is sent after the stop was ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::EVENTS_MAX;
use swarm_shared::net::peer::{PeerEvent, PeerInfo};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::delivery::tracker::{
    CancelResult, Change, DeliveryTarget, DeliveryTracker, Effect, EncodedCommand, IssueRequest,
    StoredCommand, WriteId,
};
use swarm_shared::proto::delivery::{CommandId, Stage, StageMessage};
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::engine::transport::bridge::{self, BridgedTransport, DeviceReply};
use crate::engine::transport::{DeviceTransport, OutgoingDelivery, ReplyPath, TransportError};
use crate::store::deliveries::Origin;
use crate::store::{Store, StoreError};

/// Words that wait for the book.
const COMMAND_QUEUE_MAX: usize = 1_024;
/// Most changes that become one transaction.
const CHANGES_PER_WRITE_MAX: usize = 4_096;
/// How long the last writes may take when the station stops.
const FINAL_WRITES_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each reply of a bridged device is waited for then.
const LAST_REPLY_TIMEOUT: Duration = Duration::from_millis(100);
/// What one target may be told of: its stages and its end.
const UPDATES_PER_TARGET_MAX: usize = 5;

/// A command to be issued, and who wants to know of it.
pub(in crate::engine) struct NewCommand {
    pub(in crate::engine) action: String,
    pub(in crate::engine) arguments: String,
    pub(in crate::engine) lane: Lane,
    pub(in crate::engine) ttl: Duration,
    /// When it was asked for: its time to live counts from then.
    pub(in crate::engine) requested_at: Instant,
    pub(in crate::engine) selector: String,
    pub(in crate::engine) targets: Vec<DeliveryTarget>,
    /// The targets that have no link: how their deliveries go out.
    pub(in crate::engine) bridged: Vec<(PeerId, BridgedTransport)>,
    /// How long a bridged device may take to reply, from when its delivery is sent.
    pub(in crate::engine) reply_timeout: Duration,
    pub(in crate::engine) origin: Origin,
}

/// What the issuer of a command is told.
#[derive(Debug)]
pub(in crate::engine) enum DeliveryUpdate {
    /// It is stored, as this command of the history.
    Issued { id: CommandId, number: u64 },
    /// It was not issued to anybody.
    NotIssued(String),
    /// A node has acknowledged a stage.
    Stage { to: PeerId, stage: Stage },
    /// A delivery has ended, and that is stored.
    Ended { to: PeerId, reply: Reply },
}

/// Word for the book.
pub(in crate::engine) enum DeliveryCommand {
    Issue(Box<NewCommand>, mpsc::Sender<DeliveryUpdate>),
    ReleaseBatch {
        id: CommandId,
        targets: Vec<PeerId>,
        ttl: Duration,
    },
    Withhold {
        id: CommandId,
        reason: String,
    },
    Cancel {
        id: CommandId,
        reason: String,
        reply: oneshot::Sender<Cancelled>,
    },
    /// There is a withdrawal.
    ApplyWithdrawals,
    Revoked(PeerId),
}

/// What waits for these nodes is not to be sent.
#[derive(Debug)]
struct Withdrawal {
    targets: Vec<PeerId>,
    reason: String,
    ordered_at: Instant,
    /// Is told how many deliveries that were.
    reply: oneshot::Sender<usize>,
}

type Withdrawals = Arc<Mutex<Vec<Withdrawal>>>;

/// What came of taking a command back.
pub(in crate::engine) struct Cancelled {
    /// These will not be sent.
    pub(in crate::engine) cancelled: Vec<PeerId>,
    /// These may have it.
    pub(in crate::engine) sent: Vec<PeerId>,
    /// Said when the ends of those that were taken back are stored.
    pub(in crate::engine) stored: oneshot::Receiver<()>,
}

/// A handle on the book.
#[derive(Clone, Debug)]
pub(in crate::engine) struct DeliveryHandle {
    commands: mpsc::Sender<DeliveryCommand>,
    link_events: mpsc::Sender<PeerEvent>,
    withdrawals: Withdrawals,
}

/// What the handles say.
#[derive(Debug)]
pub(in crate::engine) struct DeliveryInbox {
    commands: mpsc::Receiver<DeliveryCommand>,
    link_events: mpsc::Receiver<PeerEvent>,
    withdrawals: Withdrawals,
}

/// Dropping the inbox also ends the wait for the number of withdrawn deliveries: no task would report it.
impl Drop for DeliveryInbox {
    fn drop(&mut self) {
        // First: a later withdrawal then learns from `send` that the task has ended.
        self.commands.close();
        drop_withdrawals(&self.withdrawals);
    }
}

fn drop_withdrawals(withdrawals: &Withdrawals) {
    withdrawals.lock().clear();
}

impl DeliveryHandle {
    /// From now on nothing that waits for these nodes is sent. The book sees to it with the next word that it hears,
    /// such as `DeliveryCommand::ApplyWithdrawals`; the number of withdrawn deliveries comes back. It does not wait and wakes no task.
    pub(in crate::engine) fn withdraw(
        &self,
        targets: Vec<PeerId>,
        reason: String,
    ) -> oneshot::Receiver<usize> {
        let (reply, count) = oneshot::channel();
        let ordered_at = clock::now();
        let withdrawal = Withdrawal {
            targets,
            reason,
            ordered_at,
            reply,
        };
        let mut all = self.withdrawals.lock();
        all.push(withdrawal);
        count
    }

    /// Where the links put their stages and replies, and that they come and go.
    pub(in crate::engine) fn link_events(&self) -> mpsc::Sender<PeerEvent> {
        self.link_events.clone()
    }

    /// Says something to the book.
    pub(in crate::engine) async fn send(&self, command: DeliveryCommand) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the book of deliveries is closed: the station stops");
            drop_withdrawals(&self.withdrawals);
        }
    }

    /// Issues a command; what becomes of it comes back.
    pub(in crate::engine) async fn issue(&self, command: NewCommand) -> mpsc::Receiver<DeliveryUpdate> {
        let (updates, updates_out) = mpsc::channel(command.targets.len() * UPDATES_PER_TARGET_MAX + 1);
        self.send(DeliveryCommand::Issue(Box::new(command), updates))
            .await;
        updates_out
    }

    /// Takes back what has not been sent of a command; `None` if the station stops.
    pub(in crate::engine) async fn cancel(&self, id: CommandId, reason: String) -> Option<Cancelled> {
        let (reply, answer) = oneshot::channel();
        self.send(DeliveryCommand::Cancel { id, reason, reply }).await;
        answer.await.ok()
    }
}

/// What comes next.
enum Wakeup {
    Written(Result<Vec<u64>, StoreError>),
    Command(DeliveryCommand),
    Link(PeerEvent),
    DeviceReply(DeviceReplied),
    Timeout,
}

/// How a delivery of a bridged device ended.
struct DeviceReplied {
    from: PeerId,
    id: CommandId,
    reply: Reply,
}

/// A write under way: what it is about, and its end.
type PendingWrite = Pin<Box<dyn Future<Output = Result<Vec<u64>, StoreError>> + Send>>;

/// See the module.
pub(in crate::engine) struct DeliveryTask {
    tracker: DeliveryTracker,
    store: Store,
    issuer: PeerId,
    next_id: Arc<std::sync::atomic::AtomicU64>,
    transports: BTreeMap<PeerId, Box<dyn DeviceTransport>>,
    /// The bridged ones among them: they stay as long as their gateway is open.
    bridged: BTreeMap<PeerId, BridgedTransport>,
    /// Replies of bridged devices that are still to come.
    device_replies: JoinSet<DeviceReplied>,
    observers: BTreeMap<CommandId, CommandObserver>,
    pending_cancels: Vec<PendingCancel>,
    /// When each node was stopped last, and what to say of that.
    last_stops: BTreeMap<PeerId, (Instant, String)>,
    pending_changes: Vec<(WriteId, Vec<Change>)>,
    /// The tickets of the write under way, and the commands that it begins.
    in_flight: (Vec<WriteId>, Vec<CommandId>),
    pending_write: Option<PendingWrite>,
}

struct CommandObserver {
    updates: mpsc::Sender<DeliveryUpdate>,
    origin: Option<Origin>,
    reply_timeout: Duration,
    open: usize,
}

/// What has been taken back, and whose end is not stored yet.
struct PendingCancel {
    id: CommandId,
    open: BTreeSet<PeerId>,
    stored: oneshot::Sender<()>,
}

impl DeliveryTask {
    /// Reads what is open from the store. Deliveries to devices that are no members (`is_member`) cannot go on: such
    /// devices know no identities of commands.
    pub(in crate::engine) async fn open(
        store: Store,
        issuer: PeerId,
        next_id: Arc<std::sync::atomic::AtomicU64>,
        is_member: impl Fn(PeerId) -> bool,
    ) -> Result<Self, StoreError> {
        let open = store.recover(issuer).await?;
        if !open.is_empty() {
            let deliveries: usize = open.iter().map(|command| command.deliveries.len()).sum();
            tracing::info!(commands = open.len(), deliveries, "going on with what is open");
        }
        let mut tracker = DeliveryTracker::restore(open);
        for peer in tracker.open_peers().into_iter().filter(|peer| !is_member(*peer)) {
            let sent = Reply::ended(
                Outcome::Unknown,
                "the station stopped midway: it may have happened, or not; look before you repeat it",
            );
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

    /// The handle, and what it says.
    pub(in crate::engine) fn channel() -> (DeliveryHandle, DeliveryInbox) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE_MAX);
        let (link_sender, link_events) = mpsc::channel(EVENTS_MAX);
        let withdrawals = Withdrawals::default();
        let handle = DeliveryHandle {
            commands,
            link_events: link_sender,
            withdrawals: Arc::clone(&withdrawals),
        };
        let inbox = DeliveryInbox {
            commands: receiver,
            link_events,
            withdrawals,
        };
        (handle, inbox)
    }

    /// Runs until `stop`; what waits to be written then is written.
    pub(in crate::engine) async fn run(mut self, mut inbox: DeliveryInbox, shutdown: CancellationToken) {
        loop {
            self.apply_effects();
            let due = self.tracker.poll_timeout();
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                done = wait_written(&mut self.pending_write) => Wakeup::Written(done),
                Some(word) = inbox.commands.recv() => Wakeup::Command(word),
                Some(event) = inbox.link_events.recv() => Wakeup::Link(event),
                Some(replied) = self.device_replies.join_next() => match replied {
                Ok(replied) => Wakeup::DeviceReply(replied),
                // It is not cancelled, and does not panic.
                Err(_) => continue,
                },
                () = wait_until(due) => Wakeup::Timeout,
            };
            self.apply_withdrawals(&inbox.withdrawals);
            match next {
                Wakeup::Written(done) => self.on_written(done),
                Wakeup::Command(word) => self.on_command(word),
                Wakeup::Link(event) => self.on_link_event(event),
                Wakeup::DeviceReply(replied) => self.on_device_reply(replied),
                Wakeup::Timeout => self.tracker.handle_timeout(clock::now()),
            }
        }
        self.apply_withdrawals(&inbox.withdrawals);
        let last = async {
            // The gateways are closed: what they have replied is there, or will be at once.
            while let Ok(Some(replied)) = timeout(LAST_REPLY_TIMEOUT, self.device_replies.join_next()).await {
                if let Ok(replied) = replied {
                    self.on_device_reply(replied);
                }
            }
            self.apply_effects();
            while self.pending_write.is_some() {
                let done = wait_written(&mut self.pending_write).await;
                self.apply_withdrawals(&inbox.withdrawals);
                self.on_written(done);
                self.apply_effects();
            }
        };
        if tokio::time::timeout(FINAL_WRITES_TIMEOUT, last).await.is_err() {
            tracing::warn!(
                "the last changes of deliveries are not stored; the next start asks the nodes again"
            );
        }
    }

    fn apply_withdrawals(&mut self, ordered: &Withdrawals) {
        let ordered = std::mem::take(&mut *ordered.lock());
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
                tracing::info!(count, reason, "withdrawn");
            }
            let _nobody_waits = reply.send(count);
        }
    }

    fn on_command(&mut self, command: DeliveryCommand) {
        let now = clock::now();
        match command {
            DeliveryCommand::Issue(command, told) => self.issue(*command, told),
            DeliveryCommand::ReleaseBatch { id, targets, ttl } => {
                self.tracker.start_batch(id, &targets, now + ttl, now);
            }
            DeliveryCommand::Withhold { id, reason } => self.tracker.cancel_deferred(id, &reason),
            DeliveryCommand::Cancel { id, reason, reply } => self.cancel(id, &reason, reply, now),
            // Before every word.
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
        // Numbered here, so that the order of issue is that of the numbers.
        let seq = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = CommandId {
            issuer: self.issuer,
            epoch: self.store.epoch(),
            seq,
        };
        self.add_bridged(command.bridged);
        let listener = CommandObserver {
            updates,
            reply_timeout: command.reply_timeout,
            origin: Some(command.origin),
            open: command.targets.len(),
        };
        self.observers.insert(id, listener);
        // It may have been asked for before a stop, and have waited since.
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
                ttl_ms: u64::try_from(command.ttl.as_millis()).unwrap_or(u64::MAX),
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

    /// Takes in bridged devices that commands go to. One that has registered again since its last command has lost what waited
    /// for it.
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
            // Nothing is sent to it again.
            self.tracker.on_connected(id, true, now);
        }
    }

    /// What was not sent to a device ends; what was sent, its gateway answers.
    fn on_bridged_closed(&mut self, id: PeerId) {
        self.transports.remove(&id);
        self.tracker.on_disconnected(id);
        self.tracker.end_all(id, None, &bridge::gateway_closed());
    }

    fn on_device_reply(&mut self, replied: DeviceReplied) {
        let DeviceReplied { from, id, reply } = replied;
        self.tracker.on_reply(from, id, reply, clock::now());
    }

    /// Hands a delivery over to its transport; whether it took it.
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
            // The device cannot be asked: its gateway replies by itself.
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
            cancelled: taken_back,
            already_sent: sent,
        } = self.tracker.cancel(|which, _| *which == id, reason, now);
        let nodes = |all: Vec<(PeerId, CommandId)>| all.into_iter().map(|(to, _)| to).collect();
        let (cancelled, sent): (Vec<PeerId>, Vec<PeerId>) = (nodes(taken_back), nodes(sent));
        let (stored, when_stored) = oneshot::channel();
        self.pending_cancels.push(PendingCancel {
            id,
            open: cancelled.iter().copied().collect(),
            stored,
        });
        let _gone = reply.send(Cancelled {
            cancelled,
            sent,
            stored: when_stored,
        });
        self.notify_cancelled();
    }

    /// Notifies each caller of a cancel once all of its outcomes are stored.
    fn notify_cancelled(&mut self) {
        let (open, stored): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending_cancels)
            .into_iter()
            .partition(|one| !one.open.is_empty() && !one.stored.is_closed());
        self.pending_cancels = open;
        for one in stored {
            let _gone = one.stored.send(());
        }
    }

    fn apply_effects(&mut self) {
        loop {
            let effects = self.tracker.take_effects();
            if effects.is_empty() {
                break;
            }
            // Nothing overtakes what found no room.
            let mut full = BTreeSet::new();
            for effect in effects {
                match effect {
                    Effect::Store {
                        write_id: ticket,
                        changes,
                    } => self.pending_changes.push((ticket, changes)),
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
                        for one in self.pending_cancels.iter_mut().filter(|one| one.id == id) {
                            one.open.remove(&to);
                        }
                        self.notify_cancelled();
                        self.notify(id, DeliveryUpdate::Ended { to, reply });
                        if let Some(listener) = self.observers.get_mut(&id) {
                            listener.open = listener.open.saturating_sub(1);
                            if listener.open == 0 {
                                self.observers.remove(&id);
                            }
                        }
                    }
                    Effect::NotIssued { id, reason: why } => {
                        // It was not to be taken back: it never was.
                        for one in self.pending_cancels.iter_mut().filter(|one| one.id == id) {
                            one.open.clear();
                        }
                        self.notify_cancelled();
                        self.notify(id, DeliveryUpdate::NotIssued(why));
                        self.observers.remove(&id);
                    }
                }
            }
        }
        self.begin_write();
    }

    /// The channel has room for all that a command can ever be told; a caller that has disconnected is not told.
    fn notify(&self, id: CommandId, update: DeliveryUpdate) {
        if let Some(listener) = self.observers.get(&id) {
            let _gone = listener.updates.try_send(update);
        }
    }

    fn begin_write(&mut self) {
        if self.pending_write.is_some() || self.pending_changes.is_empty() {
            return;
        }
        let (mut tickets, mut all) = (Vec::new(), Vec::new());
        let mut waiting = std::mem::take(&mut self.pending_changes).into_iter();
        for (ticket, mut changes) in waiting.by_ref() {
            tickets.push(ticket);
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
                    .and_then(|listener| listener.origin.take());
                origins.extend(origin.map(|origin| (id, origin)));
            }
        }
        self.in_flight = (tickets, begun);
        let store = self.store.clone();
        self.pending_write = Some(Box::pin(async move { store.apply(all, origins).await }));
    }

    fn on_written(&mut self, done: Result<Vec<u64>, StoreError>) {
        self.pending_write = None;
        let now = clock::now();
        let (tickets, begun) = std::mem::take(&mut self.in_flight);
        match done {
            Ok(numbers) => {
                for (id, number) in begun.into_iter().zip(numbers) {
                    self.notify(id, DeliveryUpdate::Issued { id, number });
                }
                for ticket in tickets {
                    self.tracker.on_stored(ticket, now);
                }
            }
            Err(error) => {
                tracing::error!(%error, "deliveries are not stored");
                for ticket in tickets {
                    self.tracker.on_store_failed(ticket, &error.to_string(), now);
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

#[cfg(test)]
mod tests;
