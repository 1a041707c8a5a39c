//! What all emergency stops of this station share: the last number, the reports of nodes, unconfirmed stops.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{NO_NODES, next_number};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{broadcast, oneshot, watch};

use super::broadcast::{self as datagrams, NO_FLEET};
use super::unconfirmed::UnconfirmedStops;
use crate::engine::SharedContext;
use crate::engine::registry::Target;
use crate::store::deliveries::{Record, RecordTarget};
use crate::store::persisted::Persisted;
use crate::store::{Origin, meta};
use swarm_shared::api::{CommandKind, NodeRef};

/// Most events that wait for one stop. A stop that misses some repeats its order, and the nodes report again.
const STOP_EVENTS_MAX: usize = 4_096;
/// How long an order may wait for the socket of a link: it is repeated each second.
const LINK_SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// The state that stops share.
#[derive(Debug)]
pub(crate) struct StopCoordinator {
    /// The highest number so far.
    pub(crate) last_number: Persisted<u64>,
    events: broadcast::Sender<StopEvent>,
    /// The last report of each node that is stopped, since it linked.
    reports: Mutex<BTreeMap<PeerId, StopStatus>>,
    /// Interfaces and port for datagrams, unless these are off.
    pub(super) datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
    /// Number of deliveries that [`withdraw_early`] has withdrawn.
    early_withdrawal: Mutex<Option<oneshot::Receiver<usize>>>,
    /// Nodes that have not confirmed a stop.
    pub(crate) unconfirmed: UnconfirmedStops,
}

/// An event for running stops.
#[derive(Clone, Debug)]
pub(super) enum StopEvent {
    Connected(PeerId),
    Report(PeerId, Box<StopStatus>),
}

impl StopCoordinator {
    /// `last_number`: the highest number in the store. `datagrams`: interfaces and port for datagrams, unless these are off.
    pub(crate) fn new(
        last_number: u64,
        unconfirmed: UnconfirmedStops,
        datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
    ) -> Self {
        Self {
            last_number: Persisted::new(meta::STOP_NUMBER, last_number),
            events: broadcast::Sender::new(STOP_EVENTS_MAX),
            reports: Mutex::default(),
            datagrams,
            early_withdrawal: Mutex::default(),
            unconfirmed,
        }
    }

    /// Receives the report of a node.
    pub(crate) fn on_report(&self, id: PeerId, report: StopStatus) {
        self.unconfirmed.on_report(id, &report);
        let mut reports = self.reports.lock();
        if report.stopped {
            reports.insert(id, report.clone());
        } else {
            reports.remove(&id);
        }
        drop(reports);
        let _no_stop_runs = self.events.send(StopEvent::Report(id, Box::new(report)));
    }

    /// The last report of a node that is stopped.
    pub(super) fn latest_report(&self, id: PeerId) -> Option<StopStatus> {
        self.reports.lock().get(&id).cloned()
    }

    /// Subscribes a stop to its events.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<StopEvent> {
        self.events.subscribe()
    }

    /// Returns the result of [`withdraw_early`], once.
    pub(super) fn take_early_withdrawal(&self) -> Option<oneshot::Receiver<usize>> {
        self.early_withdrawal.lock().take()
    }

    /// The highest number so far.
    pub(super) fn last_number(&self) -> u64 {
        self.last_number.with(|number| *number)
    }

    /// Raises the last number to one that a node has received.
    pub(super) fn raise_number(&self, received: u64) {
        self.last_number
            .modify(|last| (*last < received).then(|| *last = received));
    }

    /// Allocates `count` numbers in a row. Returns the first.
    pub(super) fn allocate_numbers(&self, count: usize) -> u64 {
        let more = u64::try_from(count).unwrap_or(u64::MAX).saturating_sub(1);
        let now = clock::unix_time_ms();
        let first = self.last_number.modify(|last| {
            let first = next_number(*last, now);
            *last = first.saturating_add(more);
            Some(first)
        });
        first.unwrap_or(now)
    }
}

/// Withdraws deliveries at the start of an engine that is started for a stop of these targets. The stop counts them.
pub(crate) fn withdraw_early(shared: &SharedContext, targets: &[Target]) {
    let ids = targets.iter().map(|target| target.node.id).collect();
    let count = shared.deliveries.withdraw(ids, withdrawal_reason(None));
    *shared.stops.early_withdrawal.lock() = Some(count);
}

/// Error of deliveries that a stop withdraws. `number`: its number, if it has one already.
pub(super) fn withdrawal_reason(number: Option<u64>) -> String {
    let minutes = clock::unix_time_ms() / 60_000;
    let number = number.map_or(String::new(), |number| format!(" (number {number})"));
    format!(
        "withdrawn by the emergency stop of {:02}:{:02}Z{number}: give it again after the release",
        minutes / 60 % 24,
        minutes % 60,
    )
}

/// Tells a node that has linked the last number of this station; a running stop sends its order instead.
pub(crate) fn on_linked(shared: &SharedContext, link: &PeerLink) {
    let stops = &shared.stops;
    stops.reports.lock().remove(&link.id());
    stops.unconfirmed.on_link_changed(link.id(), true);
    // Read before the subscribers are counted: a stop that begins in between is not counted, and if the node received its
    // number here, it would take the order for a repeated one.
    let last_number = stops.last_number();
    let running_stops = stops.events.send(StopEvent::Connected(link.id())).unwrap_or(0);
    if last_number == 0 || running_stops > 0 {
        return;
    }
    let order = Selector::parse(NO_NODES)
        .map_err(|error| error.to_string())
        .and_then(|no_nodes| sign_order(shared, last_number, no_nodes));
    match order {
        Ok(bytes) => send_order(link, &bytes),
        Err(error) => tracing::debug!(peer = %link.id().short(), error, "Last stop number is not sent"),
    }
}

/// Signs an order with the key and the grant of this station.
///
/// # Errors
/// Text for the user.
pub(super) fn sign_order(shared: &SharedContext, number: u64, selector: Selector) -> Result<Bytes, String> {
    let membership = shared.endpoint.membership().borrow().clone();
    let membership = membership.ok_or(NO_FLEET)?;
    let key = &shared.endpoint.local().identity.key;
    datagrams::sign_order(key, &membership, number, selector)
}

/// Sends an order over a link. Never blocks.
pub(super) fn send_order(link: &PeerLink, order: &Bytes) {
    let result = EncodedFrame::new(&Frame::binary(Kind::Stop, order.clone()))
        .map_err(|error| error.to_string())
        .and_then(|frame| {
            let outgoing = Outgoing {
                frame,
                lane: Lane::Emergency,
                deadline: Some(clock::now() + LINK_SEND_TIMEOUT),
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = result {
        tracing::warn!(peer = %link.id().short(), error, "Stop order is not sent over the link");
    }
}

/// The entry of a stop or of a release in the history.
pub(super) fn history_record(
    kind: CommandKind,
    selector: &Selector,
    targets: &[NodeRef],
    ttl_ms: u64,
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
        ttl_ms,
        deliveries: deliveries.collect(),
    }
}
