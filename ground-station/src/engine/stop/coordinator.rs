//! The emergency stop, from the station: sent first, written down later, until all have answered. Its end is in
//! [`crate::engine::stop::release`].
//!
//! What goes out when is [`StopSender`]'s to say. An order goes over the link of every target that has one, and as a
//! datagram on every interface and to where each target was seen last, because a link may be down, jammed or not there
//! yet.
//!
//! What waits in the book for the targets is withdrawn with it: a stop may be given up before an absent node is back, and
//! nothing that was asked before is to run there then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::net::discovery::pings::Broadcaster;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{
    IDS_PER_SELECTOR, NO_NODES, ReportResult, SendRound, StopSender, next_number, split_selector,
};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::broadcast::{self as datagrams, NO_FLEET};
use crate::duration::to_ms;
use crate::engine::SharedContext;
use crate::engine::delivery::history_writer;
use crate::engine::delivery::task::DeliveryCommand;
use crate::engine::registry::{NodeDevice, Target};
use crate::engine::reporter::Reporter;
use crate::engine::stop::unconfirmed::UnconfirmedStops;
use crate::engine::transport::bridge::{self, BridgedTransport, DeviceOperation, DeviceReply};
use crate::engine::transport::{DeviceTransport as _, TransportError};
use crate::store::Origin;
use crate::store::deliveries::{Record, RecordTarget};
use swarm_shared::api::{CommandKind, Event, Failure, NodeRef};

/// News that wait for one stop; one that falls behind asks again every second anyway.
const STOP_EVENTS_MAX: usize = 4_096;
/// How long a stop over a link may wait for its socket: it is sent again every second.
const LINK_SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a bridged device is told again to stop while the caller waits: it cannot confirm.
const DEVICE_STOP_INTERVAL: Duration = Duration::from_secs(1);
/// How long after the time-out the gateway of a bridged device may take to say why it has not told the device.
const GATEWAY_GRACE: Duration = Duration::from_millis(500);
/// How long the stop of a bridged device may wait to be sent if the request has no time-out.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);

/// What stops share.
#[derive(Debug)]
pub(in crate::engine) struct StopCoordinator {
    /// The highest number given so far.
    last_number: AtomicU64,
    events: broadcast::Sender<StopEvent>,
    /// The newest report of each node that is stopped, and linked since.
    reports: Mutex<BTreeMap<PeerId, StopStatus>>,
    datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
    /// How many deliveries were withdrawn before the stop could be asked for.
    early_withdrawal: Mutex<Option<oneshot::Receiver<usize>>>,
    /// Who has not said that it is stopped.
    pub(in crate::engine) unconfirmed: UnconfirmedStops,
}

#[derive(Clone, Debug)]
enum StopEvent {
    Connected(PeerId),
    Report(PeerId, Box<StopStatus>),
}

impl StopCoordinator {
    /// `given`: the highest number that the store remembers. `datagrams`: where they go out, unless they are off.
    pub(in crate::engine) fn new(
        last_number: u64,
        unconfirmed: UnconfirmedStops,
        datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
    ) -> Self {
        Self {
            last_number: AtomicU64::new(last_number),
            events: broadcast::Sender::new(STOP_EVENTS_MAX),
            reports: Mutex::default(),
            datagrams,
            early_withdrawal: Mutex::default(),
            unconfirmed,
        }
    }

    /// A node says how its stop stands.
    pub(in crate::engine) fn on_report(&self, id: PeerId, report: StopStatus) {
        let mut reports = self.reports.lock();
        if report.stopped {
            // From now on it refuses by itself.
            self.unconfirmed.clear(id);
            reports.insert(id, report.clone());
        } else {
            reports.remove(&id);
        }
        drop(reports);
        // Nobody listens while nothing is being stopped.
        let _listeners = self.events.send(StopEvent::Report(id, Box::new(report)));
    }

    pub(in crate::engine) fn latest_report(&self, id: PeerId) -> Option<StopStatus> {
        let reports = self.reports.lock();
        reports.get(&id).cloned()
    }

    fn last_number(&self) -> u64 {
        self.last_number.load(Ordering::SeqCst)
    }

    /// As many numbers as there are orders; the first of them.
    fn allocate_numbers(&self, count: usize) -> u64 {
        let more = u64::try_from(count).unwrap_or(u64::MAX).saturating_sub(1);
        let now = clock::unix_time_ms();
        let mut first = 0;
        let take = |given| {
            first = next_number(given, now);
            Some(first.saturating_add(more))
        };
        let _always = self
            .last_number
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        first
    }
}

/// For an engine that has been started for a stop of these: see [`Stopper::withdraw`], which counts them too.
pub(in crate::engine) fn withdraw_early(shared: &SharedContext, targets: &[Target]) {
    let ids = targets.iter().map(|target| target.node.id).collect();
    let count = shared.deliveries.withdraw(ids, withdrawal_reason(None));
    let mut early = shared.stops.early_withdrawal.lock();
    *early = Some(count);
}

fn withdrawal_reason(number: Option<u64>) -> String {
    let minutes = clock::unix_time_ms() / 60_000;
    let number = number.map_or(String::new(), |number| format!(" (number {number})"));
    format!(
        "withdrawn by the emergency stop of {:02}:{:02}Z{number}: give it again after the release",
        minutes / 60 % 24,
        minutes % 60,
    )
}

/// A node is linked: it may not know yet how far this station has counted, and whatever stop is being given goes to it.
pub(in crate::engine) fn on_linked(shared: &SharedContext, link: &PeerLink) {
    let stops = &shared.stops;
    stops.reports.lock().remove(&link.id());
    // Before it is looked who listens: a stop that begins in between listens too late to be counted, and with its number
    // the node would take the order for one that it has heard.
    let last_number = stops.last_number();
    let listeners = stops.events.send(StopEvent::Connected(link.id())).unwrap_or(0);
    // While a stop is being given, the order itself says so.
    if last_number == 0 || listeners > 0 {
        return;
    }
    let order = Selector::parse(NO_NODES)
        .map_err(|error| error.to_string())
        .and_then(|nobody| sign_order(shared, last_number, nobody));
    match order {
        Ok(bytes) => send_order(link, &bytes),
        Err(error) => tracing::debug!(error, "it is not told how far this station has counted"),
    }
}

/// An order, signed.
fn sign_order(shared: &SharedContext, number: u64, selector: Selector) -> Result<Bytes, String> {
    let membership = shared.endpoint.membership().borrow().clone();
    let membership = membership.ok_or(NO_FLEET)?;
    let key = &shared.endpoint.local().identity.key;
    datagrams::sign_order(key, &membership, number, selector)
}

fn send_order(link: &PeerLink, order: &Bytes) {
    let result = EncodedFrame::new(&Frame::binary(Kind::Stop, order.clone()))
        .map_err(|error| error.to_string())
        .and_then(|parcel| {
            let outgoing = Outgoing {
                frame: parcel,
                lane: Lane::Emergency,
                deadline: Some(clock::now() + LINK_SEND_TIMEOUT),
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = result {
        tracing::warn!(peer = %link.id().short(), error, "a stop is not sent over its link");
    }
}

/// What to say of deliveries that are withdrawn.
fn withdrawn_note(count: usize) -> Option<Event> {
    let text = match count {
        0 => return None,
        1 => {
            "1 delivery that waited for these nodes is withdrawn: give it again after the release".to_owned()
        }
        count => {
            format!(
                "{count} deliveries that waited for these nodes are withdrawn: give them again after the release"
            )
        }
    };
    Some(Event::note(text))
}

/// The stops of bridged devices, which have been sent to their gateways.
#[derive(Debug)]
pub(in crate::engine) struct DeviceStops {
    devices: Vec<StoppedDevice>,
    /// How many of their deliveries are withdrawn.
    withdrawn: oneshot::Receiver<usize>,
}

#[derive(Debug)]
struct StoppedDevice {
    node: NodeRef,
    transport: BridgedTransport,
    sent: Result<oneshot::Receiver<DeviceReply>, TransportError>,
}

/// Sends a stop to the gateways of these devices, and withdraws what waits for them. Never blocks.
pub(in crate::engine) fn stop_devices(
    shared: &SharedContext,
    devices: Vec<(NodeRef, BridgedTransport)>,
    timeout: Option<Duration>,
) -> DeviceStops {
    let now = clock::now();
    let until = now + timeout.unwrap_or(UNLIMITED);
    let ids = devices.iter().map(|(node, _)| node.id).collect();
    let withdrawn = shared.deliveries.withdraw(ids, withdrawal_reason(None));
    let devices = devices.into_iter().map(|(node, transport)| StoppedDevice {
        sent: transport.try_send(DeviceOperation::Stop, now, until, until),
        node,
        transport,
    });
    DeviceStops {
        devices: devices.collect(),
        withdrawn,
    }
}

impl StoppedDevice {
    /// Reports how the stop ended, and then sends it again and again: until it is dropped.
    async fn run(self, ends: mpsc::Sender<(NodeRef, Reply)>) {
        let mut reply = match self.sent {
            Ok(replied) => DeviceReply::without_file(replied.await),
            Err(error) => bridge::not_taken(error),
        };
        let is_sent = reply.state == Outcome::Done;
        if is_sent && !self.transport.properties().confirms_stop {
            reply = Reply::ended(Outcome::Unknown, "sent; this drone cannot confirm a stop");
        }
        ends.send((self.node, reply)).await.ok();
        drop(ends);
        if !is_sent {
            return;
        }
        loop {
            tokio::time::sleep(DEVICE_STOP_INTERVAL).await;
            let now = clock::now();
            let until = now + DEVICE_STOP_INTERVAL;
            if let Ok(replied) = self.transport.try_send(DeviceOperation::Stop, now, until, until) {
                replied.await.ok();
            }
        }
    }
}

/// How the stop of a device ends of whose gateway nothing was heard.
const DEVICE_NOT_TOLD: &str = "not told yet: it is told when it is back";

struct StopRun {
    shared: SharedContext,
    targets: BTreeMap<PeerId, (usize, NodeRef, NodeDevice)>,
    selectors: Vec<Selector>,
    orders: Vec<Bytes>,
    sender: StopSender,
    broadcaster: Broadcaster,
    reporter: Reporter,
    acknowledged: BTreeMap<PeerId, f64>,
    /// Bridged devices whose stop has not ended.
    open_devices: BTreeMap<PeerId, NodeRef>,
}

/// What is asked of [`run`].
#[derive(Debug)]
pub(in crate::engine) struct StopRequest {
    pub(in crate::engine) selector: Selector,
    /// Error text if nothing matches.
    pub(in crate::engine) no_match_text: String,
    /// Notes for the caller.
    pub(in crate::engine) notes: Vec<String>,
    pub(in crate::engine) timeout: Option<Duration>,
    /// Whether the stop is latched for bridged devices that register later.
    pub(in crate::engine) latched: bool,
    pub(in crate::engine) devices: DeviceStops,
    pub(in crate::engine) origin: Origin,
}

/// What the history keeps of a stop, or of a release.
pub(in crate::engine) fn history_record(
    kind: CommandKind,
    selector: &Selector,
    targets: &[NodeRef],
    life_ms: u64,
    origin: Origin,
) -> Record {
    let deliveries = targets.iter().map(|node| RecordTarget {
        node: node.clone(),
        part: 0,
        about: None,
    });
    Record {
        origin: Origin { kind, ..origin },
        action: kind.as_str().to_owned(),
        arguments: "null".to_owned(),
        lane: Lane::Emergency,
        selector: selector.as_str().to_owned(),
        ttl_ms: life_ms,
        deliveries: deliveries.collect(),
    }
}

/// Stops the nodes, also those that match the selector and only a datagram reaches, and reports how the stops of the
/// devices end.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    nodes: Vec<(NodeRef, NodeDevice)>,
    request: StopRequest,
    reporter: Reporter,
) {
    let started = reporter.started();
    let StopRequest {
        selector,
        no_match_text,
        notes,
        timeout,
        latched,
        devices: DeviceStops {
            devices,
            withdrawn: devices_withdrawn,
        },
        origin,
    } = request;
    // Before anything is sent, so that no answer is missed.
    let mut stop_events = shared.stops.events.subscribe();
    let ids: Vec<PeerId> = nodes.iter().map(|(node, _)| node.id).collect();
    let latched_note = if latched {
        "; a drone that comes and is meant is stopped"
    } else {
        ""
    };
    let user = origin.user.clone();
    let life_ms = timeout.map_or(0, to_ms);
    let named = nodes.iter().map(|(node, _)| node);
    let targets: Vec<NodeRef> = named
        .chain(devices.iter().map(|device| &device.node))
        .cloned()
        .collect();
    let record = history_record(CommandKind::Stop, &selector, &targets, life_ms, origin);
    let selectors = split_selector(&selector, &ids).map_err(|error| error.to_string());
    let several = selectors.as_ref().is_ok_and(|selectors| selectors.len() > 1);
    let place = |at: usize| if several { at / IDS_PER_SELECTOR } else { 0 };
    let (no_nodes, no_targets) = (nodes.is_empty(), targets.is_empty());
    let mut stop_run = StopRun {
        sender: StopSender::new(0, ids, started),
        targets: nodes
            .into_iter()
            .enumerate()
            .map(|(at, (node, device))| (node.id, (place(at), node, device)))
            .collect(),
        shared,
        selectors: Vec::new(),
        orders: Vec::new(),
        broadcaster: Broadcaster::default(),
        reporter: reporter.clone(),
        acknowledged: BTreeMap::new(),
        open_devices: devices
            .iter()
            .map(|device| (device.node.id, device.node.clone()))
            .collect(),
    };
    let issued = selectors.and_then(|selectors| {
        stop_run.selectors = selectors;
        stop_run.issue_orders()
    });
    // A station without a fleet can stop bridged devices.
    let only_devices = no_nodes && !no_targets;
    if let Err(error) = issued
        && !only_devices
    {
        // Devices have been sent the stop all the same; they are told again when they are back.
        stop_run
            .shared
            .deliveries
            .send(DeliveryCommand::ApplyWithdrawals)
            .await;
        let store = &stop_run.shared.store;
        history_writer::write_audit_entry(store, &user, "stop", selector.as_str(), &error).await;
        let failed = Event::failed(Failure::Failed, format!("{error}{latched_note}"));
        reporter.send(failed).await.ok();
        return;
    }
    // Before what waits is withdrawn: what is asked for later than that finds it here, however long the datagrams take.
    let stops = &stop_run.shared.stops;
    stops
        .unconfirmed
        .insert(stop_run.targets.keys().copied(), stops.last_number());
    let withdrawn = stop_run.withdraw();
    let mut withdrawn = pin!(async { withdrawn.await + devices_withdrawn.await.unwrap_or(0) });
    stop_run.send_due().await;
    stop_run
        .shared
        .deliveries
        .send(DeliveryCommand::ApplyWithdrawals)
        .await;
    stop_run.persist_number();
    // A caller that does not read its events does not hold up what is sent.
    let mut unsent_events = VecDeque::new();
    if no_targets {
        stop_run.audit_unmatched(user, selector.as_str());
    } else {
        stop_run.record_history(record);
        unsent_events.extend(notes.into_iter().map(Event::note));
        unsent_events.push_back(Event::Targets { targets });
    }
    let (device_ends, mut device_ended) = mpsc::channel(devices.len().max(1));
    // Dropped with the request: then devices are not told again.
    let mut device_stops = JoinSet::new();
    for device in devices {
        device_stops.spawn(device.run(device_ends.clone()));
    }
    let deadline = timeout.map(|timeout| started + timeout);
    let mut withdrawals_counted = false;
    while !(withdrawals_counted
        && stop_run.sender.is_finished()
        && stop_run.sender.poll_timeout().is_none()
        && stop_run.open_devices.is_empty())
    {
        let next = stop_run.sender.poll_timeout();
        let grace = if stop_run.open_devices.is_empty() {
            Duration::ZERO
        } else {
            GATEWAY_GRACE
        };
        let told = tokio::select! {
            biased;
            () = reporter.caller().closed() => return,
            Ok(place) = reporter.caller().reserve(), if !unsent_events.is_empty() => {
                if let Some(event) = unsent_events.pop_front() {
                    reporter.observe(&event);
                    place.send(event);
                }
                None
            }
            heard = stop_events.recv() => match heard {
                Ok(heard) => stop_run.on_stop_event(heard),
                Err(broadcast::error::RecvError::Lagged(_)) => None,
                Err(broadcast::error::RecvError::Closed) => break,
            },
            Some((node, reply)) = device_ended.recv() => {
                stop_run.open_devices.remove(&node.id);
                Some(stop_run.end_delivery(node, reply))
            }
            count = &mut withdrawn, if !withdrawals_counted => {
                withdrawals_counted = true;
                withdrawn_note(count)
            }
            () = clock::sleep_until(next.unwrap_or(started)), if next.is_some() => None,
            () = clock::sleep_until(deadline.unwrap_or(started) + grace), if deadline.is_some() => break,
        };
        unsent_events.extend(told);
        stop_run.send_due().await;
    }
    if no_targets {
        let message = format!("{no_match_text}; the stop went out by datagram all the same{latched_note}");
        reporter.send(Event::failed(Failure::NoMatch, message)).await.ok();
        return;
    }
    let unfinished = stop_run.end_unfinished();
    for event in unsent_events.into_iter().chain(unfinished) {
        if reporter.send(event).await.is_err() {
            return;
        }
    }
    reporter.send(Event::End).await.ok();
}

impl StopRun {
    /// Gives the orders, with new numbers.
    fn issue_orders(&mut self) -> Result<(), String> {
        let first = self.shared.stops.allocate_numbers(self.selectors.len());
        let numbered = (first..).zip(&self.selectors);
        let orders = numbered.map(|(number, selector)| sign_order(&self.shared, number, selector.clone()));
        self.orders = orders.collect::<Result<_, _>>()?;
        self.sender.reissue(first, clock::now());
        Ok(())
    }

    /// Nothing that waits for the targets is sent from now on; how many deliveries that ends comes back.
    fn withdraw(&self) -> impl Future<Output = usize> + use<> {
        let stops = &self.shared.stops;
        let early = stops.early_withdrawal.lock().take();
        let targets = self.targets.keys().copied().collect();
        let why = withdrawal_reason(Some(stops.last_number()));
        let now = self.shared.deliveries.withdraw(targets, why);
        async move {
            let early = match early {
                // No count comes of a book that has ended.
                Some(early) => early.await.unwrap_or(0),
                None => 0,
            };
            early + now.await.unwrap_or(0)
        }
    }

    fn persist_number(&self) {
        let (store, number) = (self.shared.store.clone(), self.shared.stops.last_number());
        self.shared.tasks.spawn(async move {
            if let Err(error) = store.save_stop_number(number).await {
                tracing::error!(%error, "the number of the stop is not stored");
            }
        });
    }

    fn record_history(&self, record: Record) {
        let devices: BTreeSet<PeerId> = self.open_devices.keys().copied().collect();
        let abandoned = move |id: &PeerId| {
            let error = if devices.contains(id) {
                DEVICE_NOT_TOLD
            } else {
                "NO ANSWER when whoever asked gave up; the stop has gone out to it"
            };
            Reply::ended(Outcome::NoAnswer, error)
        };
        self.reporter.open_history(record, abandoned, false);
    }

    /// A stop by datagram only, of nodes that this station does not know, has no deliveries.
    fn audit_unmatched(&self, user: String, selector: &str) {
        let (store, selector) = (self.shared.store.clone(), selector.to_owned());
        self.shared.tasks.spawn(async move {
            history_writer::write_audit_entry(
                &store,
                &user,
                "stop",
                &selector,
                "sent by datagram; no node matches",
            )
            .await;
        });
    }

    /// Sends what is due.
    async fn send_due(&mut self) {
        while let Some(SendRound {
            targets: to,
            over_links: links,
        }) = self.sender.handle_timeout(clock::now())
        {
            if links {
                to.iter().for_each(|id| self.send_to(id));
            }
            let Some((interfaces, port)) = &self.shared.stops.datagrams else {
                continue;
            };
            let present = interfaces.borrow().clone();
            for (place, order) in self.orders.iter().enumerate() {
                let meant = to.iter().filter_map(|id| self.targets.get(id));
                let meant = meant.filter(|(of, ..)| *of == place);
                let also: Vec<SocketAddr> = meant
                    .filter_map(|(.., target)| Some(SocketAddr::new(target.address?.ip(), *port)))
                    .collect();
                self.broadcaster.broadcast(&present, *port, order, &also).await;
            }
        }
    }

    fn send_to(&self, id: &PeerId) {
        if let Some((place, _, target)) = self.targets.get(id)
            && *target.online.borrow()
            && let Some(order) = self.orders.get(*place)
        {
            send_order(&target.link, order);
        }
    }

    fn on_stop_event(&mut self, event: StopEvent) -> Option<Event> {
        let (id, report) = match event {
            StopEvent::Connected(id) => {
                if self.sender.should_send_to(&id) {
                    self.send_to(&id);
                }
                return None;
            }
            StopEvent::Report(id, report) => (id, report),
        };
        let given = self.shared.stops.last_number();
        let node = self.targets.get(&id)?.1.clone();
        match self.sender.on_report(&id, &report, given, clock::now()) {
            ReportResult::Unchanged => None,
            ReportResult::Stopped => {
                self.shared.stops.unconfirmed.clear(id);
                let ms = self.reporter.elapsed_ms();
                self.acknowledged.insert(id, ms);
                Some(Event::Acknowledged { node, ms })
            }
            ReportResult::Ended(reply) => {
                self.shared.stops.unconfirmed.clear(id);
                Some(self.end_delivery(node, reply))
            }
            ReportResult::RaiseNumber(seen) => {
                self.shared.stops.last_number.fetch_max(seen, Ordering::SeqCst);
                match self.issue_orders() {
                    Ok(()) => self.persist_number(),
                    Err(error) => tracing::error!(error, "the stop cannot be given anew"),
                }
                let text = format!(
                    "{} has heard a later stop of this station than this station knows: the stop is given anew",
                    node.node
                );
                Some(Event::note(text))
            }
        }
    }

    fn end_delivery(&self, node: NodeRef, mut reply: Reply) -> Event {
        if let Some(Value::Object(fields)) = &mut reply.value {
            let ms = self.reporter.elapsed_ms();
            let acknowledged = self.acknowledged.get(&node.id).copied().unwrap_or(ms);
            fields.insert("acknowledged_ms".to_owned(), json!(acknowledged));
        }
        self.reporter.record_end(node, reply)
    }

    /// Those who have not said all when time is up.
    fn end_unfinished(&self) -> Vec<Event> {
        let end = |node: &NodeRef, error: &str| {
            self.end_delivery(node.clone(), Reply::ended(Outcome::NoAnswer, error))
        };
        let node = |id: PeerId| self.targets.get(&id).map(|(_, node, _)| node);
        let missing = self.sender.unanswered().filter_map(&node);
        let missing = missing.map(|node| {
            end(
                node,
                "NO ANSWER: it is not known to be stopped; the stop has gone out to it",
            )
        });
        let at_work = self.sender.running().filter_map(&node);
        let at_work =
            at_work.map(|node| end(node, "stopped; its own command, or its journal, is still at work"));
        let devices = self.open_devices.values();
        let devices = devices.map(|node| end(node, DEVICE_NOT_TOLD));
        missing.chain(at_work).chain(devices).collect()
    }
}

#[cfg(test)]
mod tests;
