//! Devices of other programs, which a gateway bridges: they are shown and commanded beside the fleet's own nodes.
//!
//! A gateway [registers](BridgedDevices::register) each device, publishes through the [`DeviceGuard`] how the device is,
//! and carries out the [`DeviceCommand`]s that come for it.
//!
//! Invariants: a device stays registered until its gateway drops the guard, connected or not; only if the registry is full,
//! the device that has been away longest is forgotten, of those for which nothing waits. Whether a device is stopped is
//! remembered apart from it ([`DeviceGuard::stopped`]). Every command ends, at the latest when its gateway drops it.
//! Nothing here knows a gateway's protocol. The table is locked for a look-up and never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};
use swarm_shared::net::clock;
use swarm_shared::net::peer::{CompletedRequest, RequestResult};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use tokio::sync::{mpsc, oneshot, watch};

use super::{DeviceProperties, DeviceTransport, OutgoingDelivery, Query, ReplyPath, TransportError};
use crate::duration::to_ms;
use crate::engine::stop::latches::StopLatches;
use swarm_shared::api::{NodeRef, NodeState, NodeView, Warning};

/// Most devices that are registered at once.
pub const DEVICES_MAX: usize = 1_024;
/// Most commands that wait for the gateway of one device.
pub const DEVICE_COMMANDS_MAX: usize = 256;
/// Most stops that wait for the gateway of one device; they go before its commands.
const DEVICE_STOPS_MAX: usize = 16;
/// [`NodeView::stop_unconfirmed`] of a stopped device: such stops have no numbers.
const STOP_NUMBER: u64 = 1;

/// What does not change while a device is registered.
#[derive(Clone, Debug)]
pub struct DeviceProfile {
    /// Name and id; the id is unique among devices and nodes.
    pub node: NodeRef,
    /// Tags, for selectors.
    pub tags: BTreeMap<String, String>,
    /// The program that the device runs.
    pub software: Option<String>,
    /// Actions that only read there, beside those that only read on every node.
    pub reads: Arc<BTreeSet<String>>,
    /// Longest file that the device can be sent, in bytes.
    pub file_bytes_max: u64,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DevicePresence {
    /// Whether it is connected.
    pub online: bool,
    /// Whether it is connected and late to answer.
    pub silent: bool,
    /// When it was heard last; `None` if it never was.
    pub heard: Option<Instant>,
    /// Whether something waits for it: then it is not forgotten, however long it is away.
    pub kept: bool,
    /// Its address, or its last one.
    pub address: Option<SocketAddr>,
    /// Its newest readings, by name.
    pub telemetry: BTreeMap<String, Value>,
}

/// What a device is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceOperation {
    /// Run an action, or answer a question.
    Command {
        /// Name of the action.
        action: String,
        /// Its arguments.
        arguments: Arguments,
    },
    /// Take this file.
    Push {
        /// ROOT/RELATIVE, as for every node.
        path: String,
        /// The whole file.
        content: Bytes,
    },
    /// Send this file: answered with [`DeviceReply::File`].
    Fetch {
        /// ROOT/RELATIVE.
        path: String,
    },
    /// Emergency stop.
    Stop,
    /// End of an emergency stop.
    Release,
}

/// An operation, with its deadlines and the way of its reply.
#[derive(Debug)]
pub struct DeviceCommand {
    /// What the device is to do.
    pub operation: DeviceOperation,
    /// When it was requested. What must not run late counts from then, however long a disk took in between.
    pub issued: Instant,
    /// It must not start after this.
    pub start_by: Instant,
    /// No reply is waited for after this.
    pub respond_by: Instant,
    /// Takes the reply. Closed when no reply is wanted any more.
    pub reply: oneshot::Sender<DeviceReply>,
}

/// How a command ended.
#[derive(Debug)]
pub enum DeviceReply {
    /// With this outcome.
    Reply(Reply),
    /// With the file that was asked for.
    File(Bytes),
}

impl DeviceReply {
    /// The reply, where no file was asked for.
    pub(in crate::engine) fn without_file(reply: Result<Self, oneshot::error::RecvError>) -> Reply {
        match reply {
            Ok(Self::Reply(reply)) => reply,
            Ok(Self::File(_)) => Reply::failed("the device answered with a file that was not asked for"),
            Err(_dropped) => Reply::ended(Outcome::Unknown, "this station stopped midway"),
        }
    }
}

/// Why a device is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The registry is full.
    #[error(
        "{DEVICES_MAX} devices are registered, and none can be forgotten: each is connected, or something waits for it"
    )]
    Full,
    /// The id is registered already.
    #[error("a device with this id is registered already")]
    Taken,
}

/// The way to one device: the queues of its gateway.
#[derive(Clone, Debug)]
pub(in crate::engine) struct BridgedTransport {
    id: PeerId,
    properties: DeviceProperties,
    commands: mpsc::Sender<DeviceCommand>,
    stops: mpsc::Sender<DeviceCommand>,
    /// When the device was stopped last.
    stopped_at: watch::Receiver<Option<Instant>>,
}

impl BridgedTransport {
    /// Hands over an operation; the reply comes back.
    pub(in crate::engine) fn try_send(
        &self,
        operation: DeviceOperation,
        issued: Instant,
        start_by: Instant,
        respond_by: Instant,
    ) -> Result<oneshot::Receiver<DeviceReply>, TransportError> {
        let (reply, replied) = oneshot::channel();
        let queue = match operation {
            DeviceOperation::Stop => &self.stops,
            DeviceOperation::Command { .. }
            | DeviceOperation::Push { .. }
            | DeviceOperation::Fetch { .. }
            | DeviceOperation::Release => &self.commands,
        };
        let command = DeviceCommand {
            operation,
            issued,
            start_by,
            respond_by,
            reply,
        };
        queue.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransportError::Full,
            mpsc::error::TrySendError::Closed(_) => TransportError::Closed,
        })?;
        Ok(replied)
    }

    /// Whether the device was stopped at this moment or later, released or not.
    pub(in crate::engine) fn was_stopped_since(&self, moment: Instant) -> bool {
        self.stopped_at.borrow().is_some_and(|at| at >= moment)
    }

    /// Returns when [`Self::was_stopped_since`] becomes true.
    pub(in crate::engine) async fn wait_stopped_since(&self, moment: Instant) {
        let mut stopped = self.stopped_at.clone();
        let is_since = |at: &Option<Instant>| at.is_some_and(|at| at >= moment);
        let is_forgotten = stopped.wait_for(is_since).await.is_err();
        if is_forgotten {
            // The device is forgotten: no stop reaches it.
            std::future::pending::<()>().await;
        }
    }

    /// Whether nothing reaches the device this way any more.
    pub(in crate::engine) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Whether both are the way to the same registration of a device.
    pub(in crate::engine) fn is_same(&self, other: &Self) -> bool {
        self.commands.same_channel(&other.commands)
    }
}

impl DeviceTransport for BridgedTransport {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn try_deliver(&self, delivery: &OutgoingDelivery<'_>) -> Result<ReplyPath, TransportError> {
        let command = delivery.command.command();
        let start_by = delivery.deadline.unwrap_or(delivery.respond_by);
        let operation = DeviceOperation::Command {
            action: command.action.clone(),
            // It was made of arguments, so it reads as such.
            arguments: serde_json::from_str(&command.arguments).unwrap_or_default(),
        };
        let ttl = Duration::from_millis(command.ttl_ms);
        let issued = start_by.checked_sub(ttl).unwrap_or(start_by);
        self.try_send(operation, issued, start_by, delivery.respond_by)
            .map(ReplyPath::Channel)
    }

    fn try_query(&self, query: &Query<'_>, replies: &mpsc::Sender<CompletedRequest>) -> Result<(), String> {
        let operation = DeviceOperation::Command {
            action: query.action.to_owned(),
            arguments: query.arguments.clone(),
        };
        let replied = self
            .try_send(operation, query.requested_at, query.start_by, query.respond_by)
            .map_err(|error| not_taken(error).error.unwrap_or_default())?;
        let (peer, id, replies) = (self.id, query.id, replies.clone());
        tokio::spawn(async move {
            let reply = tokio::select! {
                biased;
                // The gateway then drops the question.
                () = replies.closed() => return,
                reply = replied => DeviceReply::without_file(reply),
            };
            let content = serde_json::to_vec(&reply).unwrap_or_default();
            let result = RequestResult::Reply(content.into());
            replies.send(CompletedRequest { peer, id, result }).await.ok();
        });
        Ok(())
    }
}

/// How what a gateway did not take ends.
pub(in crate::engine) fn not_taken(error: TransportError) -> Reply {
    match error {
        TransportError::Full => Reply::refused("busy: too many commands wait for this device; try again"),
        TransportError::Closed => gateway_closed(),
    }
}

/// How what never left the queue of a gateway ends.
pub(in crate::engine) fn gateway_closed() -> Reply {
    Reply::ended(Outcome::NoAnswer, "its gateway is closed: nothing was sent")
}

#[derive(Debug)]
struct BridgedDevice {
    /// The same as its guard's.
    registration: Arc<()>,
    profile: DeviceProfile,
    presence: DevicePresence,
    commands: mpsc::Sender<DeviceCommand>,
    stops: mpsc::Sender<DeviceCommand>,
    stopped_at: watch::Sender<Option<Instant>>,
}

impl BridgedDevice {
    /// Whether it was connected once, is not now, and nothing waits for it.
    fn is_forgettable(&self) -> bool {
        let presence = &self.presence;
        presence.heard.is_some() && !presence.online && !presence.kept
    }
}

impl DeviceProfile {
    fn attributes(&self) -> NodeAttributes<'_> {
        NodeAttributes {
            name: &self.node.node,
            id: &self.node.id,
            tags: &self.tags,
        }
    }
}

/// All devices behind gateways, and the stops that are in force for them. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct BridgedDevices(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Table>,
    /// Counts changes that watchers are told of.
    changed: watch::Sender<u64>,
    latches: StopLatches,
}

#[derive(Debug, Default)]
struct Table {
    devices: BTreeMap<PeerId, BridgedDevice>,
    /// Those that have been forgotten, until they are back, for watchers that have seen them; at most [`DEVICES_MAX`].
    departed: BTreeMap<PeerId, DeviceProfile>,
    /// Those of which watchers have not been told yet.
    changed: BTreeSet<PeerId>,
}

impl Table {
    fn insert(&mut self, device: BridgedDevice) {
        let id = device.profile.node.id;
        self.departed.remove(&id);
        self.changed.insert(id);
        self.devices.insert(id, device);
    }

    fn remove(&mut self, id: PeerId) {
        let Some(device) = self.devices.remove(&id) else {
            return;
        };
        self.changed.insert(id);
        self.departed.insert(id, device.profile);
        if self.departed.len() > DEVICES_MAX {
            self.departed.pop_first();
        }
    }
}

/// A registered device. Dropping the guard makes the station forget the device. Once the registration
/// [is lost](Self::is_lost) the guard is of no use: no new command finds the device, though earlier ones may still come.
#[derive(Debug)]
pub struct DeviceGuard {
    devices: BridgedDevices,
    profile: DeviceProfile,
    registration: Arc<()>,
    /// What the device is to do.
    pub commands: mpsc::Receiver<DeviceCommand>,
    /// Stops: to be taken first.
    pub stops: mpsc::Receiver<DeviceCommand>,
}

impl DeviceGuard {
    /// The selector of the stop that is in force for the device, also if it was given before the device connected.
    pub fn stopped(&self) -> Option<Selector> {
        self.devices.latches().stopped(&self.profile.attributes())
    }

    /// Whether the device is forgotten already: another one needed its place.
    pub fn is_lost(&self) -> bool {
        !self.is_registered(self.devices.table().devices.get(&self.profile.node.id))
    }

    fn is_registered(&self, device: Option<&BridgedDevice>) -> bool {
        device.is_some_and(|device| Arc::ptr_eq(&device.registration, &self.registration))
    }

    /// Publishes how the device is.
    pub fn publish(&self, presence: DevicePresence) {
        let id = self.profile.node.id;
        let mut table = self.devices.table();
        if !self.is_registered(table.devices.get(&id)) {
            return;
        }
        let Some(device) = table.devices.get_mut(&id) else {
            return;
        };
        // Watchers are not told that it was heard again.
        let changed = device.presence
            != DevicePresence {
                heard: device.presence.heard,
                ..presence.clone()
            };
        device.presence = presence;
        if changed {
            table.changed.insert(id);
            drop(table);
            self.devices.notify();
        }
    }
}

impl Drop for DeviceGuard {
    fn drop(&mut self) {
        // What the gateway has not taken was not sent.
        for queue in [&mut self.commands, &mut self.stops] {
            queue.close();
            while let Ok(command) = queue.try_recv() {
                command.reply.send(DeviceReply::Reply(gateway_closed())).ok();
            }
        }
        let id = self.profile.node.id;
        let mut table = self.devices.table();
        if !self.is_registered(table.devices.get(&id)) {
            return;
        }
        table.remove(id);
        drop(table);
        self.devices.notify();
    }
}

impl BridgedDevices {
    pub(in crate::engine) fn new(latches: StopLatches) -> Self {
        Self(Arc::new(Inner {
            latches,
            ..Inner::default()
        }))
    }

    pub(in crate::engine) fn latches(&self) -> &StopLatches {
        &self.0.latches
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock()
    }

    fn notify(&self) {
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Registers a device.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(&self, profile: DeviceProfile) -> Result<DeviceGuard, RegisterError> {
        let id = profile.node.id;
        let (commands, commands_in) = mpsc::channel(DEVICE_COMMANDS_MAX);
        let (stops, stops_in) = mpsc::channel(DEVICE_STOPS_MAX);
        let mut table = self.table();
        if table.devices.contains_key(&id) {
            return Err(RegisterError::Taken);
        }
        if table.devices.len() >= DEVICES_MAX {
            let forgettable = table.devices.iter().filter(|(_, device)| device.is_forgettable());
            let longest = forgettable.min_by_key(|(_, device)| device.presence.heard);
            let longest = *longest.ok_or(RegisterError::Full)?.0;
            table.remove(longest);
        }
        let registration = Arc::new(());
        table.insert(BridgedDevice {
            registration: Arc::clone(&registration),
            profile: profile.clone(),
            presence: DevicePresence::default(),
            commands,
            stops,
            stopped_at: watch::Sender::default(),
        });
        drop(table);
        self.notify();
        Ok(DeviceGuard {
            devices: self.clone(),
            profile,
            registration,
            commands: commands_in,
            stops: stops_in,
        })
    }

    /// How many devices are registered.
    pub fn len(&self) -> usize {
        self.table().devices.len()
    }

    /// Whether no device is registered.
    pub fn is_empty(&self) -> bool {
        self.table().devices.is_empty()
    }

    /// Latches a stop for `selector`; it also applies to devices that register later. Nothing that was requested before is
    /// started from now on. Returns the latched selector: `all` if there are too many latches to add one.
    pub(in crate::engine) fn stop(&self, selector: &Selector) -> Selector {
        let stopped = self.latches().stop(selector.clone());
        let now = clock::now();
        let mut table = self.table();
        let Table { devices, changed, .. } = &mut *table;
        for (id, device) in devices {
            if stopped.matches(&device.profile.attributes()) {
                device.stopped_at.send_replace(Some(now));
                changed.insert(*id);
            }
        }
        drop(table);
        self.notify();
        stopped
    }

    /// Marks every device as changed: a release may concern each.
    pub(in crate::engine) fn mark_all_changed(&self) {
        let mut table = self.table();
        let Table { devices, changed, .. } = &mut *table;
        changed.extend(devices.keys());
        drop(table);
        self.notify();
    }

    /// Counts changes, for tasks that wait for the next one.
    pub(in crate::engine) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The devices that have changed since the last call.
    pub(in crate::engine) fn take_changed(&self) -> BTreeSet<PeerId> {
        std::mem::take(&mut self.table().changed)
    }

    /// Whether the selector matches a device.
    pub(in crate::engine) fn any_matches(&self, selector: &Selector) -> bool {
        let table = self.table();
        let mut devices = table.devices.values();
        devices.any(|device| selector.matches(&device.profile.attributes()))
    }

    /// The devices that the selector matches, in no particular order.
    pub(in crate::engine) fn targets(&self, selector: &Selector) -> Vec<(NodeRef, BridgedTransport)> {
        let table = self.table();
        let matched = table.devices.values();
        let matched = matched.filter(|device| selector.matches(&device.profile.attributes()));
        matched
            .map(|device| {
                let transport = BridgedTransport {
                    id: device.profile.node.id,
                    properties: DeviceProperties {
                        durable_identity: false,
                        confirms_stop: false,
                        reads: Arc::clone(&device.profile.reads),
                        file_bytes_max: Some(device.profile.file_bytes_max),
                    },
                    commands: device.commands.clone(),
                    stops: device.stops.clone(),
                    stopped_at: device.stopped_at.subscribe(),
                };
                (device.profile.node.clone(), transport)
            })
            .collect()
    }

    /// The name of every device.
    pub(in crate::engine) fn names(&self) -> Vec<NodeName> {
        let table = self.table();
        let devices = table.devices.values();
        devices.map(|device| device.profile.node.node.clone()).collect()
    }

    /// The ids of the devices of this name.
    pub(in crate::engine) fn named(&self, name: &NodeName) -> Vec<PeerId> {
        let table = self.table();
        let nodes = table.devices.values().map(|device| &device.profile.node);
        nodes
            .filter(|node| node.node == *name)
            .map(|node| node.id)
            .collect()
    }

    /// The newest readings of a device; `None` if it is not registered.
    pub(in crate::engine) fn readings(&self, id: PeerId) -> Option<(NodeRef, Map<String, Value>)> {
        let table = self.table();
        let device = table.devices.get(&id)?;
        let values = device.presence.telemetry.clone().into_iter().collect();
        Some((device.profile.node.clone(), values))
    }

    /// The devices that the selector matches, without warnings of their names.
    pub(in crate::engine) fn views(&self, selector: &Selector) -> Vec<NodeView> {
        let now = clock::now();
        let table = self.table();
        let matched = table.devices.values();
        let matched = matched.filter(|device| selector.matches(&device.profile.attributes()));
        matched
            .map(|device| self.view_of(&device.profile, &device.presence, now))
            .collect()
    }

    /// One device, if the selector matches it; also one that has left.
    pub(in crate::engine) fn view(&self, id: PeerId, selector: &Selector) -> Option<NodeView> {
        let now = clock::now();
        let table = self.table();
        if let Some(device) = table.devices.get(&id) {
            let matches = selector.matches(&device.profile.attributes());
            return matches.then(|| self.view_of(&device.profile, &device.presence, now));
        }
        let profile = table.departed.get(&id)?;
        selector.matches(&profile.attributes()).then(|| {
            let mut view = self.view_of(profile, &DevicePresence::default(), now);
            view.warnings.push(Warning::DeviceLeft);
            view
        })
    }

    fn view_of(&self, profile: &DeviceProfile, presence: &DevicePresence, now: Instant) -> NodeView {
        let state = match (presence.online, presence.silent) {
            (true, false) => NodeState::Online,
            (true, true) => NodeState::Silent,
            (false, _) => NodeState::Offline,
        };
        let stopped = self.latches().stopped(&profile.attributes()).is_some();
        let last_heard = presence
            .heard
            .map(|heard| to_ms(now.saturating_duration_since(heard)));
        NodeView {
            node: profile.node.node.clone(),
            id: profile.node.id,
            state,
            kind: PeerKind::Node,
            address: presence.address,
            last_heard_ms: last_heard,
            tags: profile.tags.clone(),
            software: profile.software.clone(),
            warnings: stopped
                .then_some(Warning::DeviceStopUnconfirmed)
                .into_iter()
                .collect(),
            stopped: None,
            stop_unconfirmed: stopped.then_some(STOP_NUMBER),
            checks: Vec::new(),
            telemetry: presence.telemetry.clone(),
        }
    }
}

/// The id of a device, from its system's name and the id that it has there. No key has this id.
pub fn device_id(system: &str, id: &str) -> PeerId {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{system}:{id}").as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    PeerId(bytes)
}

/// The node name nearest to the id that a device has in its system.
pub fn device_name(id: &str) -> NodeName {
    NodeName::from_host(id)
}

#[cfg(test)]
impl BridgedDevices {
    /// Sends a device an operation, as the engine does.
    pub(crate) async fn send(
        &self,
        name: &str,
        operation: DeviceOperation,
    ) -> oneshot::Receiver<DeviceReply> {
        self.send_issued(name, operation, clock::now()).await
    }

    /// The same, requested at `issued`.
    pub(crate) async fn send_issued(
        &self,
        name: &str,
        operation: DeviceOperation,
        issued: Instant,
    ) -> oneshot::Receiver<DeviceReply> {
        let selector = Selector::parse(name).expect("a name");
        let (_, device) = self.targets(&selector).pop().expect("a device");
        if operation == DeviceOperation::Stop {
            self.latches().stop(selector);
        }
        let until = clock::now() + Duration::from_secs(60);
        loop {
            match device.try_send(operation.clone(), issued, until, until) {
                Err(TransportError::Full) => tokio::task::yield_now().await,
                sent => return sent.expect("its gateway is open"),
            }
        }
    }

    /// Whether a device of this name is registered.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.any_matches(&Selector::parse(name).expect("a name"))
    }

    /// Holds what a request to a device holds until it has ended.
    pub(crate) fn hold(&self, name: &str) -> impl Send + use<> {
        self.targets(&Selector::parse(name).expect("a name"))
    }

    /// Latches a stop, or releases it, and tells no device.
    pub(crate) fn latch(&self, selector: &str, stop: bool) {
        let (selector, latches) = (Selector::parse(selector).expect("a selector"), self.latches());
        if stop {
            latches.stop(selector);
        } else {
            latches.release(&selector, latches.version()).expect("fits");
        }
    }
}

#[cfg(test)]
mod tests;
