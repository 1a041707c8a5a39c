//! One stop, from its order to the last report.
//!
//! [`StopSender`] decides what is sent when. An order goes over the link of every target that has one, and as a datagram on
//! every interface and to the last address of each target, because a link may be down, blocked or not up yet.
//!
//! The stop also withdraws the deliveries that wait for its targets: it may have been released before an absent node
//! returns, and no earlier command may run there then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::net::discovery::pings::Broadcaster;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{IDS_PER_SELECTOR, ReportResult, SendRound, StopSender, split_selector};
use tokio::sync::broadcast;

use super::coordinator::{StopEvent, history_record, send_order, sign_order, withdrawal_reason};
use super::devices::DeviceStops;
use crate::duration::to_ms;
use crate::engine::SharedContext;
use crate::engine::delivery::handle::DeliveryCommand;
use crate::engine::delivery::history_writer::write_audit_entry;
use crate::engine::registry::NodeDevice;
use crate::engine::reporter::Reporter;
use crate::store::Origin;
use crate::store::deliveries::Record;
use swarm_shared::api::{CommandKind, Event, Failure, NodeRef};

/// How long after the time-out a gateway may still report how the stop of its device ended.
const GATEWAY_GRACE: Duration = Duration::from_millis(500);
/// Error of a device whose gateway has not reported in time.
const DEVICE_NOT_TOLD: &str = "not told yet: it is told when it is back";

/// A stop to be run.
#[derive(Debug)]
pub(crate) struct StopRequest {
    pub(crate) selector: Selector,
    /// Error text if nothing matches.
    pub(crate) no_match_text: String,
    /// Notes for the caller.
    pub(crate) notes: Vec<String>,
    pub(crate) timeout: Option<Duration>,
    /// Whether the stop is latched for bridged devices that register later.
    pub(crate) latched: bool,
    pub(crate) devices: DeviceStops,
    pub(crate) origin: Origin,
}

/// A node that is stopped.
struct NodeTarget {
    node: NodeRef,
    device: NodeDevice,
    /// Index of the order that matches it.
    order: usize,
}

struct StopRun {
    shared: SharedContext,
    targets: BTreeMap<PeerId, NodeTarget>,
    selectors: Vec<Selector>,
    /// The signed order of each selector.
    orders: Vec<Bytes>,
    /// The number of the first order.
    first_number: u64,
    sender: StopSender,
    broadcaster: Broadcaster,
    reporter: Reporter,
    /// When each node acknowledged, in milliseconds since the start.
    acknowledged: BTreeMap<PeerId, f64>,
    /// Bridged devices whose stop has not ended.
    open_devices: BTreeMap<PeerId, NodeRef>,
}

/// Stops the nodes, also unknown ones that match the selector and that only a datagram reaches, and reports how the stops
/// of nodes and devices end.
pub(crate) async fn run(
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
        devices,
        origin,
    } = request;
    // Before anything is sent, so that no report is missed.
    let mut stop_events = shared.stops.subscribe();
    let latched_note = if latched {
        "; a drone that comes and is meant is stopped"
    } else {
        ""
    };
    let user = origin.user.clone();
    let open_devices = devices.nodes();
    let named = nodes.iter().map(|(node, _)| node);
    let targets: Vec<NodeRef> = named.chain(open_devices.values()).cloned().collect();
    let only_devices = nodes.is_empty() && !open_devices.is_empty();
    let ttl_ms = timeout.map_or(0, to_ms);
    let record = history_record(CommandKind::Stop, &selector, &targets, ttl_ms, origin);
    let mut stop = StopRun::new(shared, nodes, open_devices, reporter.clone());
    // A station without a fleet can stop bridged devices.
    if let Err(error) = stop.issue(&selector)
        && !only_devices
    {
        // Devices have been sent the stop all the same, and are sent it again when they return.
        stop.apply_withdrawals().await;
        write_audit_entry(&stop.shared.store, &user, "stop", selector.as_str(), &error).await;
        let failed = Event::failed(Failure::Failed, format!("{error}{latched_note}"));
        let _caller_gone = reporter.send(failed).await;
        return;
    }
    // Before the withdrawal: a command that is requested after it finds the stop here, however long the datagrams take.
    let stops = &stop.shared.stops;
    let ids = stop.targets.keys().copied();
    stops.unconfirmed.insert(ids, stop.first_number);
    let withdrawn = stop.withdraw();
    // Devices are sent the stop again until these tasks are dropped, with the request.
    let (_device_tasks, mut device_ends, devices_withdrawn) = devices.spawn();
    let mut withdrawn = pin!(async { withdrawn.await + devices_withdrawn.await.unwrap_or(0) });
    stop.send_due().await;
    stop.apply_withdrawals().await;
    // Events wait here: a caller that does not read them must not delay orders.
    let mut unsent_events = VecDeque::new();
    let has_no_targets = targets.is_empty();
    if has_no_targets {
        stop.audit_unmatched(user, selector.as_str());
    } else {
        stop.record_history(record);
        unsent_events.extend(notes.into_iter().map(Event::note));
        unsent_events.push_back(Event::Targets { targets });
    }
    let deadline = timeout.map(|timeout| started + timeout);
    let mut withdrawals_counted = false;
    while !(withdrawals_counted && stop.is_finished()) {
        let next = stop.sender.poll_timeout();
        let grace = if stop.open_devices.is_empty() {
            Duration::ZERO
        } else {
            GATEWAY_GRACE
        };
        let event = tokio::select! {
            biased;
            () = reporter.caller().closed() => return,
            Ok(place) = reporter.caller().reserve(), if !unsent_events.is_empty() => {
                if let Some(event) = unsent_events.pop_front() {
                    reporter.observe(&event);
                    place.send(event);
                }
                None
            }
            received = stop_events.recv() => match received {
                Ok(event) => stop.on_stop_event(event),
                Err(broadcast::error::RecvError::Lagged(_)) => None,
                Err(broadcast::error::RecvError::Closed) => break,
            },
            Some((node, reply)) = device_ends.recv() => {
                stop.open_devices.remove(&node.id);
                Some(stop.end_delivery(node, reply))
            }
            count = &mut withdrawn, if !withdrawals_counted => {
                withdrawals_counted = true;
                withdrawn_note(count)
            }
            () = clock::sleep_until(next.unwrap_or(started)), if next.is_some() => None,
            () = clock::sleep_until(deadline.unwrap_or(started) + grace), if deadline.is_some() => break,
        };
        unsent_events.extend(event);
        stop.send_due().await;
    }
    if has_no_targets {
        let message = format!("{no_match_text}; the stop went out by datagram all the same{latched_note}");
        let _caller_gone = reporter.send(Event::failed(Failure::NoMatch, message)).await;
        return;
    }
    let unfinished = stop.end_unfinished();
    for event in unsent_events.into_iter().chain(unfinished).chain([Event::End]) {
        if reporter.send(event).await.is_err() {
            return;
        }
    }
}

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

impl StopRun {
    fn new(
        shared: SharedContext,
        nodes: Vec<(NodeRef, NodeDevice)>,
        open_devices: BTreeMap<PeerId, NodeRef>,
        reporter: Reporter,
    ) -> Self {
        let ids = nodes.iter().map(|(node, _)| node.id);
        Self {
            sender: StopSender::new(0, ids, reporter.started()),
            targets: nodes
                .into_iter()
                .map(|(node, device)| {
                    (
                        node.id,
                        NodeTarget {
                            node,
                            device,
                            order: 0,
                        },
                    )
                })
                .collect(),
            shared,
            selectors: Vec::new(),
            orders: Vec::new(),
            first_number: 0,
            broadcaster: Broadcaster::default(),
            reporter,
            acknowledged: BTreeMap::new(),
            open_devices,
        }
    }

    /// Signs the orders. A selector that is too long for one is split into selectors by id.
    fn issue(&mut self, selector: &Selector) -> Result<(), String> {
        let ids: Vec<PeerId> = self.targets.keys().copied().collect();
        self.selectors = split_selector(selector, &ids).map_err(|error| error.to_string())?;
        if self.selectors.len() > 1 {
            for (index, target) in self.targets.values_mut().enumerate() {
                target.order = index / IDS_PER_SELECTOR;
            }
        }
        self.sign_orders()
    }

    /// Signs the orders with new numbers.
    fn sign_orders(&mut self) -> Result<(), String> {
        let first = self.shared.stops.allocate_numbers(self.selectors.len());
        let numbered = (first..).zip(&self.selectors);
        let orders = numbered.map(|(number, selector)| sign_order(&self.shared, number, selector.clone()));
        self.orders = orders.collect::<Result<_, _>>()?;
        self.first_number = first;
        self.sender.reissue(first, clock::now());
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.sender.is_finished() && self.sender.poll_timeout().is_none() && self.open_devices.is_empty()
    }

    /// Withdraws the deliveries that wait for the nodes. Returns their number, with those of an early withdrawal.
    fn withdraw(&self) -> impl Future<Output = usize> + use<> {
        let stops = &self.shared.stops;
        let early = stops.take_early_withdrawal();
        let targets = self.targets.keys().copied().collect();
        let reason = withdrawal_reason(Some(stops.last_number()));
        let now = self.shared.deliveries.withdraw(targets, reason);
        async move {
            let mut count = 0;
            for withdrawal in early.into_iter().chain([now]) {
                // A tracker that has ended reports no number.
                count += withdrawal.await.unwrap_or(0);
            }
            count
        }
    }

    async fn apply_withdrawals(&self) {
        let deliveries = &self.shared.deliveries;
        deliveries.send(DeliveryCommand::ApplyWithdrawals).await;
    }

    fn record_history(&self, record: Record) {
        let devices: BTreeSet<PeerId> = self.open_devices.keys().copied().collect();
        let abandoned = move |id: &PeerId| {
            let error = if devices.contains(id) {
                DEVICE_NOT_TOLD
            } else {
                "NO ANSWER when the caller disconnected; the stop was sent to it"
            };
            Reply::ended(Outcome::NoAnswer, error)
        };
        self.reporter.open_history(record, abandoned, false);
    }

    /// A stop that matches no known node and goes by datagram only has no deliveries, so only the audit records it.
    fn audit_unmatched(&self, user: String, selector: &str) {
        let (store, selector) = (self.shared.store.clone(), selector.to_owned());
        self.shared.tasks.spawn(async move {
            let outcome = "sent by datagram; no node matches";
            write_audit_entry(&store, &user, "stop", &selector, outcome).await;
        });
    }

    /// Sends the orders that are due.
    async fn send_due(&mut self) {
        while let Some(SendRound { targets, over_links }) = self.sender.handle_timeout(clock::now()) {
            if over_links {
                targets.iter().for_each(|id| self.send_to(id));
            }
            let Some((interfaces, port)) = &self.shared.stops.datagrams else {
                continue;
            };
            let present = interfaces.borrow().clone();
            for (index, order) in self.orders.iter().enumerate() {
                let matching = targets.iter().filter_map(|id| self.targets.get(id));
                let matching = matching.filter(|target| target.order == index);
                let addresses: Vec<SocketAddr> = matching
                    .filter_map(|target| Some(SocketAddr::new(target.device.address?.ip(), *port)))
                    .collect();
                self.broadcaster
                    .broadcast(&present, *port, order, &addresses)
                    .await;
            }
        }
    }

    fn send_to(&self, id: &PeerId) {
        if let Some(target) = self.targets.get(id)
            && *target.device.online.borrow()
            && let Some(order) = self.orders.get(target.order)
        {
            send_order(&target.device.link, order);
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
        let last_number = self.shared.stops.last_number();
        let node = self.targets.get(&id)?.node.clone();
        match self.sender.on_report(&id, &report, last_number, clock::now()) {
            ReportResult::Unchanged => None,
            ReportResult::Stopped => {
                let ms = self.reporter.elapsed_ms();
                self.acknowledged.insert(id, ms);
                Some(Event::Acknowledged { node, ms })
            }
            ReportResult::Ended(reply) => {
                if report.not_selected {
                    self.shared.stops.unconfirmed.clear(id);
                }
                Some(self.end_delivery(node, reply))
            }
            ReportResult::RaiseNumber(received) => {
                self.shared.stops.raise_number(received);
                if let Err(error) = self.sign_orders() {
                    tracing::error!(error, "Stop cannot be signed again");
                }
                let text = format!(
                    "{} has received a later stop of this station than this station knows: the stop is issued again",
                    node.node
                );
                Some(Event::note(text))
            }
        }
    }

    /// Stores the end of a delivery, and returns it as an event.
    fn end_delivery(&self, node: NodeRef, mut reply: Reply) -> Event {
        if let Some(Value::Object(fields)) = &mut reply.value {
            let ms = self.reporter.elapsed_ms();
            let acknowledged = self.acknowledged.get(&node.id).copied().unwrap_or(ms);
            fields.insert("acknowledged_ms".to_owned(), json!(acknowledged));
        }
        self.reporter.record_end(node, reply)
    }

    /// Ends the deliveries that are open at the time-out.
    fn end_unfinished(&self) -> Vec<Event> {
        let node = |id: PeerId| self.targets.get(&id).map(|target| &target.node);
        let silent = "NO ANSWER: it is not known to be stopped; the stop has gone out to it";
        let running = "stopped; its own command, or its journal, is still at work";
        let open = (self
            .sender
            .unanswered()
            .filter_map(node)
            .map(|node| (node, silent)))
        .chain(self.sender.running().filter_map(node).map(|node| (node, running)))
        .chain(self.open_devices.values().map(|node| (node, DEVICE_NOT_TOLD)));
        open.map(|(node, error)| self.end_delivery(node.clone(), Reply::ended(Outcome::NoAnswer, error)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
