//! The registry of bridged devices, which belong to other programs and are shown and commanded beside the nodes.
//!
//! A gateway [registers](BridgedDevices::register) each device, publishes its state through the [`DeviceGuard`], and carries
//! out the [`DeviceCommand`]s that it takes from it.
//!
//! Invariants: a device stays registered until its gateway drops the guard, connected or not. If the registry is full, the
//! idle device that has been away longest is removed. Stops are stored apart from the registration
//! ([`DeviceGuard::stopped`]). Every command ends, at the latest when its gateway drops it. Nothing here knows the protocol
//! of a gateway. The table is not locked across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use serde_json::{Map, Value};
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use tokio::sync::{mpsc, watch};

use super::DeviceProperties;
use crate::duration::to_ms;
use crate::engine::stop::latches::StopLatches;
use swarm_shared::api::{NodeRef, NodeState, NodeView, Warning};

mod transport;

pub(in crate::engine) use transport::{BridgedTransport, await_reply, gateway_closed, not_taken};
pub use transport::{DeviceCommand, DeviceOperation, DeviceReply};

/// Most devices that are registered at once.
pub const DEVICES_MAX: usize = 1_024;
/// Most commands in the queue of one device.
pub const DEVICE_COMMANDS_MAX: usize = 256;
/// Most stops in the queue of one device, which its gateway takes first.
const DEVICE_STOPS_MAX: usize = 16;
/// [`NodeView::stop_unconfirmed`] of a stopped device, whose stops have no numbers.
const STOP_NUMBER: u64 = 1;

/// Properties that do not change while a device is registered.
#[derive(Clone, Debug)]
pub struct DeviceProfile {
    /// Name and id. The id is unique among devices and nodes.
    pub node: NodeRef,
    /// Tags, for selectors.
    pub tags: BTreeMap<String, String>,
    /// Program that the device runs.
    pub software: Option<String>,
    /// Actions that only read on this device, beside those that only read on every node.
    pub reads: Arc<BTreeSet<String>>,
    /// Longest file that the device can be sent, in bytes.
    pub file_bytes_max: u64,
}

/// State of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DevicePresence {
    /// Whether it is connected.
    pub online: bool,
    /// Whether it is connected and answers late.
    pub silent: bool,
    /// When it was last heard; `None` if never.
    pub heard: Option<Instant>,
    /// Whether operations wait for it: then it is never removed.
    pub kept: bool,
    /// Its address, or its last one.
    pub address: Option<SocketAddr>,
    /// Its newest readings, by name.
    pub telemetry: BTreeMap<String, Value>,
}

/// Why a device is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The registry is full.
    #[error(
        "{DEVICES_MAX} devices are registered, and none can be removed: each is connected, or has waiting commands"
    )]
    Full,
    /// The id is registered already.
    #[error("a device with this id is registered already")]
    Taken,
}

#[derive(Debug)]
struct BridgedDevice {
    /// The same as in its guard.
    registration: Arc<()>,
    profile: DeviceProfile,
    presence: DevicePresence,
    transport: BridgedTransport,
    stopped_at: watch::Sender<Option<Instant>>,
}

impl BridgedDevice {
    /// Whether it was connected once, is not connected now, and has no waiting operations.
    fn is_removable(&self) -> bool {
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

/// All bridged devices, and the stops in force for them. Clones share the registry.
#[derive(Clone, Debug, Default)]
pub struct BridgedDevices(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Table>,
    /// Counts changes that watchers are notified of.
    changed: watch::Sender<u64>,
    latches: StopLatches,
}

#[derive(Debug, Default)]
struct Table {
    devices: BTreeMap<PeerId, BridgedDevice>,
    /// Removed devices, until they return, for watchers that have seen them; at most [`DEVICES_MAX`].
    departed: BTreeMap<PeerId, DeviceProfile>,
    /// Devices of which watchers have not been notified yet.
    changed: BTreeSet<PeerId>,
}

impl Table {
    /// The devices that the selector matches.
    fn matching(&self, selector: &Selector) -> impl Iterator<Item = &BridgedDevice> {
        let devices = self.devices.values();
        devices.filter(|device| selector.matches(&device.profile.attributes()))
    }

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

/// A registered device. Dropping the guard removes it. After the registration [is lost](Self::is_lost) the guard gets no
/// new commands; earlier ones may still arrive.
#[derive(Debug)]
pub struct DeviceGuard {
    devices: BridgedDevices,
    profile: DeviceProfile,
    registration: Arc<()>,
    /// Commands to the device.
    pub commands: mpsc::Receiver<DeviceCommand>,
    /// Stops of the device, to be taken first.
    pub stops: mpsc::Receiver<DeviceCommand>,
}

impl DeviceGuard {
    /// Selector of the stop in force for the device, also if it was issued before the device connected.
    pub fn stopped(&self) -> Option<Selector> {
        self.devices.latches().stopped(&self.profile.attributes())
    }

    /// Whether the device was removed to make room for another.
    pub fn is_lost(&self) -> bool {
        !self.is_registered(self.devices.table().devices.get(&self.profile.node.id))
    }

    fn is_registered(&self, device: Option<&BridgedDevice>) -> bool {
        device.is_some_and(|device| Arc::ptr_eq(&device.registration, &self.registration))
    }

    /// Publishes the state of the device.
    pub fn publish(&self, presence: DevicePresence) {
        let id = self.profile.node.id;
        let mut table = self.devices.table();
        if !self.is_registered(table.devices.get(&id)) {
            return;
        }
        let Some(device) = table.devices.get_mut(&id) else {
            return;
        };
        // A later `heard` alone is no change for watchers.
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
        // Commands that the gateway has not taken were not sent.
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
            let removable = table.devices.iter().filter(|(_, device)| device.is_removable());
            let longest_away = removable.min_by_key(|(_, device)| device.presence.heard);
            let id = *longest_away.ok_or(RegisterError::Full)?.0;
            table.remove(id);
        }
        let registration = Arc::new(());
        let stopped_at = watch::Sender::default();
        table.insert(BridgedDevice {
            registration: Arc::clone(&registration),
            profile: profile.clone(),
            presence: DevicePresence::default(),
            transport: BridgedTransport {
                id,
                properties: DeviceProperties {
                    durable_identity: false,
                    confirms_stop: false,
                    reads: Arc::clone(&profile.reads),
                    file_bytes_max: Some(profile.file_bytes_max),
                },
                commands,
                stops,
                stopped_at: stopped_at.subscribe(),
            },
            stopped_at,
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

    /// Latches a stop for `selector`, also for devices that register later. No operation that was requested before starts
    /// from now on. Returns the latched selector: `all` if the limit of latches is exceeded.
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
        self.table().matching(selector).next().is_some()
    }

    /// The devices that the selector matches, in no particular order.
    pub(in crate::engine) fn targets(&self, selector: &Selector) -> Vec<(NodeRef, BridgedTransport)> {
        let table = self.table();
        let targets = table.matching(selector);
        targets
            .map(|device| (device.profile.node.clone(), device.transport.clone()))
            .collect()
    }

    /// The names of all devices.
    pub(in crate::engine) fn names(&self) -> Vec<NodeName> {
        let table = self.table();
        let devices = table.devices.values();
        devices.map(|device| device.profile.node.node.clone()).collect()
    }

    /// The ids of the devices with this name.
    pub(in crate::engine) fn named(&self, name: &NodeName) -> Vec<PeerId> {
        let table = self.table();
        let devices = table.devices.iter();
        let named = devices.filter(|(_, device)| device.profile.node.node == *name);
        named.map(|(id, _)| *id).collect()
    }

    /// The last readings of a device; `None` if it is not registered.
    pub(in crate::engine) fn readings(&self, id: PeerId) -> Option<(NodeRef, Map<String, Value>)> {
        let table = self.table();
        let device = table.devices.get(&id)?;
        let values = device.presence.telemetry.clone().into_iter().collect();
        Some((device.profile.node.clone(), values))
    }

    /// The views of the devices that the selector matches, without warnings of shared names.
    pub(in crate::engine) fn views(&self, selector: &Selector) -> Vec<NodeView> {
        let (now, table) = (clock::now(), self.table());
        let matching = table.matching(selector);
        matching
            .map(|device| self.view_of(&device.profile, &device.presence, now))
            .collect()
    }

    /// The view of one device, if the selector matches it; also of one that was removed.
    pub(in crate::engine) fn view(&self, id: PeerId, selector: &Selector) -> Option<NodeView> {
        let (now, table) = (clock::now(), self.table());
        let view = match table.devices.get(&id) {
            Some(device) => self.view_of(&device.profile, &device.presence, now),
            None => {
                let mut view = self.view_of(table.departed.get(&id)?, &DevicePresence::default(), now);
                view.warnings.push(Warning::DeviceLeft);
                view
            }
        };
        let attributes = NodeAttributes {
            name: &view.node,
            id: &view.id,
            tags: &view.tags,
        };
        selector.matches(&attributes).then_some(view)
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

/// The id of a device, from the name of its system and its id there. It is not the id of any key.
pub fn device_id(system: &str, id: &str) -> PeerId {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{system}:{id}").as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    PeerId(bytes)
}

/// The node name of a device, from its id in its system.
pub fn device_name(id: &str) -> NodeName {
    NodeName::from_host(id)
}

#[cfg(test)]
impl BridgedDevices {
    /// Sends an operation to a device, as the engine does.
    pub(crate) async fn send(
        &self,
        name: &str,
        operation: DeviceOperation,
    ) -> tokio::sync::oneshot::Receiver<DeviceReply> {
        self.send_issued(name, operation, clock::now()).await
    }

    /// Sends an operation that was requested at `issued`.
    pub(crate) async fn send_issued(
        &self,
        name: &str,
        operation: DeviceOperation,
        issued: Instant,
    ) -> tokio::sync::oneshot::Receiver<DeviceReply> {
        let selector = Selector::parse(name).expect("a name");
        let (_, device) = self.targets(&selector).pop().expect("a device");
        if operation == DeviceOperation::Stop {
            self.latches().stop(selector);
        }
        let until = clock::now() + std::time::Duration::from_secs(60);
        loop {
            match device.try_send(operation.clone(), issued, until, until) {
                Err(super::TransportError::Full) => tokio::task::yield_now().await,
                sent => return sent.expect("its gateway is open"),
            }
        }
    }

    /// Whether a device of this name is registered.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.any_matches(&Selector::parse(name).expect("a name"))
    }

    /// Holds what a request to a device holds until its end.
    pub(crate) fn hold(&self, name: &str) -> impl Send + use<> {
        self.targets(&Selector::parse(name).expect("a name"))
    }

    /// Latches a stop, or releases it, without sending it to devices.
    pub(crate) fn latch(&self, selector: &str, stop: bool) {
        let (selector, latches) = (Selector::parse(selector).expect("a selector"), self.latches());
        if stop {
            latches.stop(selector);
        } else {
            latches.release(&selector, latches.stop_count()).expect("fits");
        }
    }
}

#[cfg(test)]
mod tests;
