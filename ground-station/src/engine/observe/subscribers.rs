//! Whoever follows everything: words of the requests of others, and readings of the nodes as they change.
//!
//! Words pass a ring that forgets the oldest: a follower that is slow loses words and is told how many, and never holds
//! up a request. Readings are merged until there is room, so a slow follower gets the newest of each. While nobody
//! follows, nothing is passed, asked or kept.
//!
//! A request is known by its number in the history, which comes with the disk; nothing else waits for that, so the first
//! words of what will have one are held back for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use swarm_shared::net::clock;
use swarm_shared::net::peer::RequestResult;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::SharedContext;
use crate::engine::delivery::query;
use crate::engine::registry::{Device, NodeDevice, Target};
use crate::store::deliveries::truncate_reply;
use crate::store::{HistoryNumber, Origin};
use swarm_shared::api::{ActRequest, CommandKind, Delivery, Event, Failure, NodeRef, Request};
use swarm_shared::client::EVENTS_MAX;

/// Words that wait for the slowest follower; further ones push out the oldest.
const EVENT_BUFFER_MAX: usize = 1_024;
/// How long the first words of a request wait for its number, which a slow disk may keep.
const NUMBER_TIMEOUT: Duration = Duration::from_secs(1);
/// How often online nodes are asked for their readings.
const TELEMETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long they may take to say.
const TELEMETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer with a node's readings, in bytes; a longer one is passed over.
const TELEMETRY_BYTES_MAX: usize = 64 * 1024;

/// Readings by name.
pub(in crate::engine) type Readings = Map<String, Value>;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::engine) struct Subscribers {
    /// There since the first follower came.
    broadcast: Option<broadcast::Sender<Event>>,
    telemetry_subscribers: Vec<TelemetrySubscriber>,
    /// What each node said last.
    last_readings: BTreeMap<PeerId, (NodeRef, Readings)>,
    /// Nodes that have not answered yet.
    queried: BTreeSet<PeerId>,
    /// When nodes were asked last.
    queried_at: Option<Instant>,
}

/// A follower that wants readings.
#[derive(Debug)]
struct TelemetrySubscriber {
    events: mpsc::Sender<Event>,
    /// What found no room yet.
    pending: BTreeMap<PeerId, (NodeRef, Readings)>,
}

/// What a node said of its readings, if anything.
#[derive(Debug)]
pub(in crate::engine) struct TelemetryReply {
    node: NodeRef,
    values: Option<Readings>,
}

impl Subscribers {
    /// Lets one follow from now on. Nodes and their changes are the watchers' to tell.
    pub(in crate::engine) fn subscribe(
        &mut self,
        telemetry: bool,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
        events: mpsc::Sender<Event>,
    ) {
        let broadcast = self
            .broadcast
            .get_or_insert_with(|| broadcast::Sender::new(EVENT_BUFFER_MAX));
        let (observed, shutdown) = (broadcast.subscribe(), shutdown.clone());
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

    /// Where the events of a request go instead, to be passed on to followers too; the same place if there are none.
    pub(in crate::engine) fn tap(
        &self,
        tasks: &TaskTracker,
        request: &Request,
        origin: &Origin,
        events: mpsc::Sender<Event>,
    ) -> mpsc::Sender<Event> {
        let Some(tap) = self.new_tap(request, origin) else {
            return events;
        };
        let (to, from) = mpsc::channel(EVENTS_MAX);
        let cut_off = Event::failed(Failure::ShutDown, "cut off: the station is shutting down");
        tasks.spawn(forward_tapped(tap, from, events, cut_off));
        to
    }

    /// `None`: there is nobody to tell, or nothing.
    fn new_tap(&self, request: &Request, origin: &Origin) -> Option<RequestTap> {
        let broadcast = self.broadcast.clone().filter(|told| told.receiver_count() > 0)?;
        let (kind, action) = observed_action(request)?;
        Some(RequestTap {
            kind,
            action: action.to_owned(),
            user: origin.user.clone(),
            number: origin.history_number.clone(),
            awaits_number: has_history_number(request),
            buffered: Vec::new(),
            buffered_since: clock::now(),
            broadcast,
        })
    }

    /// Whether anybody wants readings.
    pub(in crate::engine) fn wants_telemetry(&self) -> bool {
        !self.telemetry_subscribers.is_empty()
    }

    /// When nodes are to be asked next.
    pub(in crate::engine) fn next_query_at(&self) -> Instant {
        self.queried_at
            .map_or_else(clock::now, |asked| asked + TELEMETRY_INTERVAL)
    }

    /// Asks those that are online and owe no answer.
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
                // If the engine has gone, so has everybody who follows.
                let _stopping = readings.send(TelemetryReply { node, values }).await;
            });
        }
    }

    /// A node has answered, or will not.
    pub(in crate::engine) fn on_reply(&mut self, reply: TelemetryReply) {
        let TelemetryReply { node, values } = reply;
        self.queried.remove(&node.id);
        if let Some(values) = values {
            self.on_readings(&node, values);
        }
    }

    /// Tells what is new in the readings of a node or bridged device.
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

    /// Tells what found no room before, and forgets who has gone.
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

/// What is new; null for what is there no longer.
fn changed_readings(before: &Readings, now: &Readings) -> Readings {
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let new = now
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value));
    let new = new.map(|(name, value)| (name.clone(), value.clone()));
    gone.chain(new).collect()
}

/// The readings in a node's answer.
fn parse_readings(node: &NodeRef, ended: RequestResult) -> Option<Readings> {
    if let RequestResult::Reply(content) = &ended
        && content.len() > TELEMETRY_BYTES_MAX
    {
        let bytes = content.len();
        tracing::warn!(peer = %node.node, bytes, max = TELEMETRY_BYTES_MAX, "readings that are too long to follow");
        return None;
    }
    match query::to_reply(ended) {
        Reply {
            value: Some(Value::Object(values)),
            ..
        } => Some(values),
        other => {
            tracing::debug!(peer = %node.node, state = %other.state, error = ?other.error, "no readings");
            None
        }
    }
}

/// How a request ends for followers if its client disconnects.
pub(in crate::engine) const CALLER_GONE: &str = "cut off: whoever asked went away";

/// What followers are told of a request: `None` for what is over as soon as it is answered.
fn observed_action(request: &Request) -> Option<(CommandKind, &str)> {
    if let Request::Act(ActRequest::Command { action, .. }) = request {
        return Some((CommandKind::Command, action));
    }
    let kind = request.history_kind()?;
    Some((kind, kind.as_str()))
}

/// Whether it gets a number in the history, of what followers are told of.
fn has_history_number(request: &Request) -> bool {
    if let Request::Act(ActRequest::Command {
        action,
        arguments,
        batch: None,
        ..
    }) = request
    {
        return classify(action, arguments) != ActionClass::Read;
    }
    true
}

/// Words of one request, on their way to the followers.
struct RequestTap {
    kind: CommandKind,
    action: String,
    user: String,
    number: HistoryNumber,
    /// Whether its number is waited for.
    awaits_number: bool,
    buffered: Vec<Event>,
    /// When the first of them came.
    buffered_since: Instant,
    broadcast: broadcast::Sender<Event>,
}

impl RequestTap {
    /// Tells it, behind those before it, or holds it back until the number is known. The last is never held back.
    fn push(&mut self, event: Event) {
        if self.buffered.is_empty() {
            self.buffered_since = clock::now();
        }
        self.awaits_number &= !matches!(event, Event::End | Event::Failed { .. })
            && self.number.get().is_none()
            && self.buffered.len() < EVENT_BUFFER_MAX;
        self.buffered.push(event);
        if !self.awaits_number {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.awaits_number = false;
        for event in std::mem::take(&mut self.buffered) {
            let observed = Event::Observed {
                kind: self.kind,
                what: self.action.clone(),
                who: self.user.clone(),
                number: self.number.get(),
                event: Box::new(event),
            };
            // Followers may have gone meanwhile.
            let _nobody = self.broadcast.send(observed);
        }
    }

    /// Returns when what is held back has waited enough.
    async fn wait_flush_due(&self) {
        let _either = clock::timeout_at(self.buffered_since + NUMBER_TIMEOUT, self.number.wait()).await;
    }
}

/// Passes events on to whoever asked, and to the followers, who are told `end` if nothing else ended them.
async fn forward_tapped(
    mut tap: RequestTap,
    mut from: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    end: Event,
) {
    loop {
        let event = tokio::select! {
            biased;
            () = events.closed() => break,
            () = tap.wait_flush_due(), if !tap.buffered.is_empty() => {
                tap.flush();
                continue;
            }
            event = from.recv() => event,
        };
        let Some(event) = event else {
            tap.push(end);
            return;
        };
        if let Some(word) = observed_event(&event) {
            tap.push(word);
        }
        let last = matches!(event, Event::End | Event::Failed { .. });
        if events.send(event).await.is_err() && !last {
            break;
        }
        if last {
            return;
        }
    }
    tap.push(Event::failed(Failure::ShutDown, CALLER_GONE));
}

/// What subscribers are told of an event.
fn observed_event(event: &Event) -> Option<Event> {
    let Event::Delivery(delivery) = event else {
        return event.is_observable().then(|| event.clone());
    };
    let reply = truncate_reply(&Reply {
        state: delivery.state,
        value: delivery.value.clone(),
        output: delivery.output.clone(),
        exit: delivery.exit,
        error: delivery.error.clone(),
    });
    Some(Event::Delivery(Delivery::new(
        delivery.target(),
        reply,
        delivery.ms,
    )))
}

/// Passes words on to one follower, and how many were pushed out, until it goes.
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
