//! Whoever watches, or follows: how guests are, and what becomes of their orders.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::selector::Selector;
use tokio::sync::{broadcast, mpsc};

use super::desk::Counter;
use super::merge::Gone;
use super::names::Shown;
use crate::fleet::engine::subscribers::CALLER_GONE;
use crate::fleet::{
    CommandKind, EVENTS_MAX, Event, Failure, NodeRef, NodeState, NodeView, NodesRequest, Request,
    RequestEnvelope, Warning,
};

/// Shortest time between two looks at what has changed, for whoever watches.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
/// Words that wait for the slowest follower; further ones push out the oldest.
pub(super) const TOLD_MAX: usize = 1_024;

/// Whose words followers hear.
pub(super) struct Subject {
    pub(super) kind: CommandKind,
    pub(super) what: String,
    pub(super) who: String,
    pub(super) number: Option<u64>,
}

impl Subject {
    fn word(&self, event: Event) -> Event {
        Event::Observed {
            kind: self.kind,
            what: self.what.clone(),
            who: self.who.clone(),
            number: self.number,
            event: Box::new(event),
        }
    }
}

impl Counter {
    /// Lets followers hear what becomes of guests' orders; costs nothing while nobody follows.
    pub(super) fn overhear(
        &self,
        subject: Subject,
        targets: Vec<NodeRef>,
        mut from: mpsc::Receiver<Event>,
    ) -> mpsc::Receiver<Event> {
        if self.told.receiver_count() == 0 {
            return from;
        }
        let told = self.told.clone();
        let (to, passed) = mpsc::channel(EVENTS_MAX);
        let _nobody = told.send(subject.word(Event::Targets { targets }));
        self.tasks.spawn(async move {
            let say = |event: Event| {
                // Each of their words has the number already.
                if !matches!(event, Event::Issued { .. }) {
                    let _nobody = told.send(subject.word(event));
                }
            };
            loop {
                let event = tokio::select! {
                    biased;
                    () = to.closed() => break,
                    event = from.recv() => event,
                };
                let Some(event) = event else {
                    return say(Event::End);
                };
                say(event.clone());
                if to.send(event).await.is_err() {
                    break;
                }
            }
            // Whoever gives the orders sees by this that whoever asked has gone: later batches are not sent.
            from.close();
            while let Some(event) = from.recv().await {
                say(event);
            }
            say(Event::failed(Failure::ShutDown, CALLER_GONE));
        });
        passed
    }

    /// Every node, and each change, until whoever asked goes.
    pub(super) async fn watch(&self, call: RequestEnvelope) -> Result<(), Gone> {
        let RequestEnvelope {
            request,
            events,
            user: who,
        } = call;
        let (selector, telemetry) = if let Request::Nodes(NodesRequest::Watch { selector }) = &request {
            (selector.clone(), false)
        } else if let Request::Nodes(NodesRequest::Follow { telemetry }) = &request {
            (Selector::all(), *telemetry)
        } else {
            return Ok(());
        };
        let mut words =
            matches!(request, Request::Nodes(NodesRequest::Follow { .. })).then(|| self.told.subscribe());
        let mut changes = self.guests.changes();
        let mut own = self.engine.perform_as(request, who).await;
        let mut shown: BTreeMap<PeerId, NodeView> = BTreeMap::new();
        let mut own_shown = Shown::default();
        loop {
            for view in own_shown.changed(&self.guests) {
                events.send(Event::Node(view)).await.map_err(|_gone| Gone)?;
            }
            let views = self.guests.views(&selector);
            let gone = shown.keys().filter(|id| views.iter().all(|view| view.id != **id));
            let gone: Vec<PeerId> = gone.copied().collect();
            for id in gone {
                if let Some(last) = shown.remove(&id) {
                    events.send(Event::Node(left(last))).await.map_err(|_gone| Gone)?;
                }
            }
            for view in views {
                let same = shown.get(&view.id).is_some_and(|old| {
                    let old = NodeView {
                        last_heard_ms: view.last_heard_ms,
                        ..old.clone()
                    };
                    old == view
                });
                if !same {
                    let before = shown.insert(view.id, view.clone());
                    let readings = telemetry.then(|| new_readings(before.as_ref(), &view)).flatten();
                    for event in std::iter::once(Event::Node(view)).chain(readings) {
                        events.send(event).await.map_err(|_gone| Gone)?;
                    }
                }
            }
            let pause = tokio::time::sleep(WATCH_PAUSE);
            tokio::pin!(pause);
            let mut changed = false;
            while !(changed && pause.is_elapsed()) {
                tokio::select! {
                    biased;
                    () = events.closed() => return Err(Gone),
                    event = own.recv() => match event {
                        Some(mut event) => {
                            if let Event::Node(view) = &mut event {
                                own_shown.take(view, &self.guests);
                            }
                            let is_last = matches!(event, Event::End | Event::Failed { .. });
                            events.send(event).await.map_err(|_gone| Gone)?;
                            if is_last {
                                return Ok(());
                            }
                        }
                        None => return Ok(()),
                    },
                    word = hear(&mut words), if words.is_some() => {
                        events.send(word).await.map_err(|_gone| Gone)?;
                    }
                    () = &mut pause, if !pause.is_elapsed() => {}
                    // The book outlives this.
                    _still_there = changes.changed(), if !changed => changed = true,
                }
            }
        }
    }
}

/// What becomes of guests' orders, for a follower; how much it has missed, if it is slow.
async fn hear(words: &mut Option<broadcast::Receiver<Event>>) -> Event {
    match words {
        Some(words) => match words.recv().await {
            Ok(word) => word,
            Err(broadcast::error::RecvError::Lagged(count)) => Event::Lagged { count },
            // The counter has a sender as long as anybody is answered.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// The last that is told of a guest that has lost its seat.
fn left(mut view: NodeView) -> NodeView {
    view.state = NodeState::Offline;
    view.warnings.push(Warning::DeviceLeft);
    view
}

/// What has changed of a guest's readings, if anything; null for what is there no longer.
fn new_readings(before: Option<&NodeView>, now: &NodeView) -> Option<Event> {
    let before = before.map(|view| &view.telemetry);
    let known = |name: &String| before.and_then(|before| before.get(name));
    let new = now
        .telemetry
        .iter()
        .filter(|(name, value)| known(name) != Some(value));
    let new = new.map(|(name, value)| (name.clone(), value.clone()));
    let gone = before
        .into_iter()
        .flat_map(|before| before.keys())
        .filter(|name| !now.telemetry.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let values: Map<String, Value> = gone.chain(new).collect();
    let node = NodeRef {
        node: now.node.clone(),
        id: now.id,
    };
    (!values.is_empty()).then_some(Event::Telemetry { node, values })
}
