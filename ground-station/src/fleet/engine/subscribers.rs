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
use swarm_shared::net::peer::Ended;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::registry::Target;
use super::{Shared, query};
use crate::fleet::event::ASKER_WENT;
use crate::fleet::{CommandKind, Delivery, EVENTS_MAX, Event, Failure, NodeRef, Request};
use crate::store::deliveries::capped;
use crate::store::{Number, Origin};

/// Words that wait for the slowest follower; further ones push out the oldest.
const TOLD_MAX: usize = 1_024;
/// How long the first words of a request wait for its number, which a slow disk may keep.
const NUMBER_MAX: Duration = Duration::from_secs(1);
/// How often online nodes are asked for their readings.
const TELEMETRY_EVERY: Duration = Duration::from_secs(2);
/// How long they may take to say.
const TELEMETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer with a node's readings, in bytes; a longer one is passed over.
const TELEMETRY_BYTES_MAX: usize = 64 * 1024;

/// Readings by name.
type Readings = Map<String, Value>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Followers {
    /// There since the first follower came.
    told: Option<broadcast::Sender<Event>>,
    readers: Vec<Reader>,
    /// What each node said last.
    known: BTreeMap<PeerId, (NodeRef, Readings)>,
    /// Nodes that have not answered yet.
    asked: BTreeSet<PeerId>,
    /// When nodes were asked last.
    asked_at: Option<Instant>,
}

/// A follower that wants readings.
#[derive(Debug)]
struct Reader {
    events: mpsc::Sender<Event>,
    /// What found no room yet.
    pending: BTreeMap<PeerId, (NodeRef, Readings)>,
}

/// What a node said of its readings, if anything.
#[derive(Debug)]
pub(super) struct Reading {
    node: NodeRef,
    values: Option<Readings>,
}

impl Followers {
    /// Lets one follow from now on. Nodes and their changes are the watchers' to tell.
    pub(super) fn add(
        &mut self,
        telemetry: bool,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        events: mpsc::Sender<Event>,
    ) {
        let told = self.told.get_or_insert_with(|| broadcast::Sender::new(TOLD_MAX));
        let (told, stop) = (told.subscribe(), stop.clone());
        tasks.spawn({
            let events = events.clone();
            async move {
                stop.run_until_cancelled(pass_on(told, events)).await;
            }
        });
        if telemetry {
            let mut reader = Reader {
                events,
                pending: self.known.clone(),
            };
            reader.catch_up();
            self.readers.push(reader);
        }
    }

    /// Where the events of a request go instead, to be passed on to followers too; the same place if there are none.
    pub(super) fn overhear(
        &self,
        tasks: &TaskTracker,
        request: &Request,
        origin: &Origin,
        events: mpsc::Sender<Event>,
    ) -> mpsc::Sender<Event> {
        let Some(words) = self.words(request, origin) else {
            return events;
        };
        let (to, from) = mpsc::channel(EVENTS_MAX);
        let cut_off = Event::failed(Failure::Stopped, "cut off: the station is shutting down");
        tasks.spawn(listen_in(words, from, events, cut_off));
        to
    }

    /// `None`: there is nobody to tell, or nothing.
    fn words(&self, request: &Request, origin: &Origin) -> Option<Words> {
        let told = self.told.clone().filter(|told| told.receiver_count() > 0)?;
        let (kind, what) = subject(request)?;
        Some(Words {
            kind,
            what: what.to_owned(),
            who: origin.who.clone(),
            number: origin.number.clone(),
            wait: has_number(request),
            held: Vec::new(),
            held_since: clock::now(),
            told,
        })
    }

    /// Whether anybody wants readings.
    pub(super) fn wants_telemetry(&self) -> bool {
        !self.readers.is_empty()
    }

    /// When nodes are to be asked next.
    pub(super) fn asks_at(&self) -> Instant {
        self.asked_at
            .map_or_else(clock::now, |asked| asked + TELEMETRY_EVERY)
    }

    /// Asks those that are online and owe no answer.
    pub(super) fn ask(
        &mut self,
        shared: &Shared,
        tasks: &TaskTracker,
        targets: Vec<Target>,
        readings: &mpsc::Sender<Reading>,
    ) {
        self.asked_at = Some(clock::now());
        self.catch_up();
        if !self.wants_telemetry() {
            return;
        }
        let ids: BTreeSet<PeerId> = targets.iter().map(|target| target.node.id).collect();
        self.known.retain(|id, _| ids.contains(id));
        for Target { node, link, .. } in targets.into_iter().filter(|target| *target.online.borrow()) {
            if !self.asked.insert(node.id) {
                continue;
            }
            let (shared, readings) = (shared.clone(), readings.clone());
            tasks.spawn(async move {
                let ended = query::ask(&shared, &link, "telemetry", TELEMETRY_TIMEOUT).await;
                let values = ended.and_then(|ended| values(&node, ended));
                // If the engine has gone, so has everybody who follows.
                let _stopping = readings.send(Reading { node, values }).await;
            });
        }
    }

    /// A node has answered, or will not.
    pub(super) fn take(&mut self, reading: Reading) {
        let Reading { node, values } = reading;
        self.asked.remove(&node.id);
        let Some(values) = values else { return };
        let (_, before) = self
            .known
            .entry(node.id)
            .or_insert_with(|| (node.clone(), Readings::new()));
        let new = changes(before, &values);
        *before = values;
        if new.is_empty() {
            return;
        }
        for reader in &mut self.readers {
            let (_, pending) = reader
                .pending
                .entry(node.id)
                .or_insert_with(|| (node.clone(), Readings::new()));
            pending.extend(new.clone());
            reader.catch_up();
        }
    }

    /// Tells what found no room before, and forgets who has gone.
    pub(super) fn catch_up(&mut self) {
        self.readers.retain(|reader| !reader.events.is_closed());
        self.readers.iter_mut().for_each(Reader::catch_up);
        if self.readers.is_empty() {
            self.known.clear();
        }
    }
}

impl Reader {
    fn catch_up(&mut self) {
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
fn changes(before: &Readings, now: &Readings) -> Readings {
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let new = now
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value));
    let new = new.map(|(name, value)| (name.clone(), value.clone()));
    gone.chain(new).collect()
}

/// The readings in a node's answer.
fn values(node: &NodeRef, ended: Ended) -> Option<Readings> {
    if let Ended::Reply(content) = &ended
        && content.len() > TELEMETRY_BYTES_MAX
    {
        let bytes = content.len();
        tracing::warn!(peer = %node.node, bytes, max = TELEMETRY_BYTES_MAX, "readings that are too long to follow");
        return None;
    }
    match query::reply(ended) {
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

/// What followers are told of a request: `None` for what is over as soon as it is answered.
fn subject(request: &Request) -> Option<(CommandKind, &str)> {
    let kind = match request {
        Request::Command { action, .. } => return Some((CommandKind::Command, action)),
        Request::Stop { .. } => CommandKind::Stop,
        Request::Release { .. } => CommandKind::Release,
        Request::SendFiles { .. } => CommandKind::Send,
        Request::Fetch { .. } => CommandKind::Fetch,
        Request::Nodes { .. }
        | Request::Watch { .. }
        | Request::Follow { .. }
        | Request::Targets { .. }
        | Request::Init
        | Request::Invite { .. }
        | Request::Join { .. }
        | Request::Pending
        | Request::Accept { .. }
        | Request::Revoke { .. }
        | Request::Members
        | Request::History { .. }
        | Request::Audit { .. }
        | Request::Peers { .. }
        | Request::Tell { .. }
        | Request::Retry { .. }
        | Request::Cancel { .. }
        | Request::Users { .. } => return None,
    };
    Some((kind, kind.as_str()))
}

/// Whether it gets a number in the history, of what followers are told of.
fn has_number(request: &Request) -> bool {
    if let Request::Command {
        action,
        arguments,
        batch: None,
        ..
    } = request
    {
        return classify(action, arguments) != ActionClass::Read;
    }
    true
}

/// Words of one request, on their way to the followers.
struct Words {
    kind: CommandKind,
    what: String,
    who: String,
    number: Number,
    /// Whether its number is waited for.
    wait: bool,
    held: Vec<Event>,
    /// When the first of them came.
    held_since: Instant,
    told: broadcast::Sender<Event>,
}

impl Words {
    /// Tells it, behind those before it, or holds it back until the number is known. The last is never held back.
    fn say(&mut self, event: Event) {
        if self.held.is_empty() {
            self.held_since = clock::now();
        }
        self.wait &= !matches!(event, Event::End | Event::Failed { .. })
            && self.number.get().is_none()
            && self.held.len() < TOLD_MAX;
        self.held.push(event);
        if !self.wait {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.wait = false;
        for event in std::mem::take(&mut self.held) {
            let word = Event::Told {
                kind: self.kind,
                what: self.what.clone(),
                who: self.who.clone(),
                number: self.number.get(),
                event: Box::new(event),
            };
            // Followers may have gone meanwhile.
            let _nobody = self.told.send(word);
        }
    }

    /// Returns when what is held back has waited enough.
    async fn due(&self) {
        let _either = clock::timeout_at(self.held_since + NUMBER_MAX, self.number.known()).await;
    }
}

/// Passes events on to whoever asked, and to the followers, who are told `end` if nothing else ended them.
async fn listen_in(
    mut words: Words,
    mut from: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    end: Event,
) {
    loop {
        let event = tokio::select! {
            biased;
            () = events.closed() => break,
            () = words.due(), if !words.held.is_empty() => {
                words.tell();
                continue;
            }
            event = from.recv() => event,
        };
        let Some(event) = event else {
            words.say(end);
            return;
        };
        if let Some(word) = told_of(&event) {
            words.say(word);
        }
        let last = matches!(event, Event::End | Event::Failed { .. });
        if events.send(event).await.is_err() && !last {
            break;
        }
        if last {
            return;
        }
    }
    words.say(Event::failed(Failure::Stopped, ASKER_WENT));
}

/// What followers are told of an event.
fn told_of(event: &Event) -> Option<Event> {
    match event {
        Event::Targets { .. }
        | Event::Progress { .. }
        | Event::Stage { .. }
        | Event::Acknowledged { .. }
        | Event::Failed { .. }
        | Event::End => Some(event.clone()),
        Event::Delivery(delivery) => {
            let reply = capped(&Reply {
                state: delivery.state,
                value: delivery.value.clone(),
                output: delivery.output.clone(),
                exit: delivery.exit,
                error: delivery.error.clone(),
            });
            let node = NodeRef {
                node: delivery.node.clone(),
                id: delivery.id,
            };
            Some(Event::Delivery(Delivery::new(node, reply, delivery.ms)))
        }
        Event::Node(_)
        | Event::Note { .. }
        | Event::Issued { .. }
        | Event::Membership(_)
        | Event::Invitation(_)
        | Event::Member(_)
        | Event::Pending(_)
        | Event::Command(_)
        | Event::About(_)
        | Event::Past(_)
        | Event::Audit(_)
        | Event::User(_)
        | Event::Token(_)
        | Event::Peer(_)
        | Event::Told { .. }
        | Event::Telemetry { .. }
        | Event::Missed { .. } => None,
    }
}

/// Passes words on to one follower, and how many were pushed out, until it goes.
async fn pass_on(mut told: broadcast::Receiver<Event>, events: mpsc::Sender<Event>) {
    loop {
        let event = tokio::select! {
            biased;
            () = events.closed() => return,
            heard = told.recv() => match heard {
                Ok(word) => word,
                Err(RecvError::Lagged(count)) => Event::Missed { count },
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
