//! Subscribers to everything: the events of other clients' requests, and readings of the nodes as they change.
//!
//! Events pass a ring that drops the oldest: a slow subscriber loses events and is told how many, and delays no request.
//! Readings are merged until there is room, so a slow subscriber gets the newest of each. Without subscribers nothing is
//! sent, asked or kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use swarm_shared::net::clock;
use swarm_shared::net::peer::RequestResult;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::observed_request::RequestBroadcast;
use crate::engine::SharedContext;
use crate::engine::delivery::query;
use crate::engine::registry::{Device, NodeDevice, Target};
use swarm_shared::api::{Event, NodeRef};

/// Interval between two queries for readings.
const TELEMETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long a node may take to answer.
const TELEMETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer with a node's readings, in bytes; a longer one is ignored.
const TELEMETRY_BYTES_MAX: usize = 64 * 1024;

/// Readings by name.
pub(in crate::engine) type Readings = Map<String, Value>;

/// All subscribers.
#[derive(Debug, Default)]
pub(in crate::engine) struct Subscribers {
    broadcast: RequestBroadcast,
    telemetry_subscribers: Vec<TelemetrySubscriber>,
    /// The last readings of each node.
    last_readings: BTreeMap<PeerId, (NodeRef, Readings)>,
    /// Nodes that have a query open.
    queried: BTreeSet<PeerId>,
    /// When the last query was sent.
    queried_at: Option<Instant>,
}

/// A subscriber that wants readings.
#[derive(Debug)]
struct TelemetrySubscriber {
    events: mpsc::Sender<Event>,
    /// Readings that found no room yet.
    pending: BTreeMap<PeerId, (NodeRef, Readings)>,
}

/// The answer of a node to a query for its readings.
#[derive(Debug)]
pub(in crate::engine) struct TelemetryReply {
    node: NodeRef,
    values: Option<Readings>,
}

impl Subscribers {
    /// Without subscribers yet; the events of requests come over `broadcast`.
    pub(in crate::engine) fn new(broadcast: RequestBroadcast) -> Self {
        Self {
            broadcast,
            ..Self::default()
        }
    }

    /// Adds a subscriber. The caller adds it to the watchers too, which send nodes and their changes.
    pub(in crate::engine) fn subscribe(
        &mut self,
        telemetry: bool,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
        events: mpsc::Sender<Event>,
    ) {
        let (observed, shutdown) = (self.broadcast.subscribe(), shutdown.clone());
        tasks.spawn({
            let events = events.clone();
            async move {
                shutdown
                    .run_until_cancelled(forward_observed(observed, events))
                    .await;
            }
        });
        if telemetry {
            let mut reader = TelemetrySubscriber {
                events,
                pending: self.last_readings.clone(),
            };
            reader.flush();
            self.telemetry_subscribers.push(reader);
        }
    }

    /// Whether a subscriber wants readings.
    pub(in crate::engine) fn wants_telemetry(&self) -> bool {
        !self.telemetry_subscribers.is_empty()
    }

    /// When the next query is due.
    pub(in crate::engine) fn next_query_at(&self) -> Instant {
        self.queried_at
            .map_or_else(clock::now, |asked| asked + TELEMETRY_INTERVAL)
    }

    /// Queries the nodes that are online and have no query open.
    pub(in crate::engine) fn query_telemetry(
        &mut self,
        shared: &SharedContext,
        tasks: &TaskTracker,
        targets: Vec<Target>,
        readings: &mpsc::Sender<TelemetryReply>,
    ) {
        self.queried_at = Some(clock::now());
        self.flush();
        if !self.wants_telemetry() {
            return;
        }
        let ids: BTreeSet<PeerId> = targets.iter().map(|target| target.node.id).collect();
        self.last_readings.retain(|id, _| ids.contains(id));
        for Target { node, device, .. } in targets {
            let Device::Node(NodeDevice { link, online, .. }) = device else {
                continue;
            };
            if !*online.borrow() || !self.queried.insert(node.id) {
                continue;
            }
            let (shared, readings) = (shared.clone(), readings.clone());
            tasks.spawn(async move {
                let ended = query::query_node(&shared, &link, "telemetry", TELEMETRY_TIMEOUT).await;
                let values = ended.and_then(|ended| parse_readings(&node, ended));
                // The engine ends after its subscribers.
                readings.send(TelemetryReply { node, values }).await.ok();
            });
        }
    }

    /// A query has ended, with an answer or without.
    pub(in crate::engine) fn on_reply(&mut self, reply: TelemetryReply) {
        let TelemetryReply { node, values } = reply;
        self.queried.remove(&node.id);
        if let Some(values) = values {
            self.on_readings(&node, values);
        }
    }

    /// Sends the changed readings of a node or bridged device.
    pub(in crate::engine) fn on_readings(&mut self, node: &NodeRef, values: Readings) {
        let (_, before) = self
            .last_readings
            .entry(node.id)
            .or_insert_with(|| (node.clone(), Readings::new()));
        let new = changed_readings(before, &values);
        *before = values;
        if new.is_empty() {
            return;
        }
        for reader in &mut self.telemetry_subscribers {
            let (_, pending) = reader
                .pending
                .entry(node.id)
                .or_insert_with(|| (node.clone(), Readings::new()));
            pending.extend(new.clone());
            reader.flush();
        }
    }

    /// Sends what found no room before, and drops subscribers that have gone.
    pub(in crate::engine) fn flush(&mut self) {
        self.telemetry_subscribers
            .retain(|reader| !reader.events.is_closed());
        self.telemetry_subscribers
            .iter_mut()
            .for_each(TelemetrySubscriber::flush);
        if self.telemetry_subscribers.is_empty() {
            self.last_readings.clear();
        }
    }
}

impl TelemetrySubscriber {
    fn flush(&mut self) {
        while let Some(entry) = self.pending.first_entry() {
            let Ok(place) = self.events.try_reserve() else {
                return;
            };
            let (node, values) = entry.remove();
            place.send(Event::Telemetry { node, values });
        }
    }
}

/// The changed readings; null for one that is gone.
fn changed_readings(before: &Readings, now: &Readings) -> Readings {
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let new = now
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value));
    let new = new.map(|(name, value)| (name.clone(), value.clone()));
    gone.chain(new).collect()
}

/// The readings in a node's answer, if there are any.
fn parse_readings(node: &NodeRef, ended: RequestResult) -> Option<Readings> {
    if let RequestResult::Reply(content) = &ended
        && content.len() > TELEMETRY_BYTES_MAX
    {
        let bytes = content.len();
        tracing::warn!(peer = %node.node, bytes, max = TELEMETRY_BYTES_MAX, "Readings are too long and were ignored");
        return None;
    }
    match query::to_reply(ended) {
        Reply {
            value: Some(Value::Object(values)),
            ..
        } => Some(values),
        other => {
            tracing::debug!(peer = %node.node, state = %other.state, error = ?other.error, "Node sent no readings");
            None
        }
    }
}

/// Sends events of requests to one subscriber, and how many were dropped, until it disconnects.
async fn forward_observed(mut observed: broadcast::Receiver<Event>, events: mpsc::Sender<Event>) {
    loop {
        let event = tokio::select! {
            biased;
            () = events.closed() => return,
            heard = observed.recv() => match heard {
                Ok(word) => word,
                Err(RecvError::Lagged(count)) => Event::Lagged { count },
                Err(RecvError::Closed) => return,
            },
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
