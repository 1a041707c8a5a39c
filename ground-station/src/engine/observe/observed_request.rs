//! The events of a request on their way to the subscribers.
//!
//! A request is known by its number in the history, which comes with the disk; nothing else waits for that, so the first
//! events of a request that will have one are held back for a moment.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;

use crate::store::deliveries::truncate_reply;
use crate::store::{HistoryNumber, Origin};
use swarm_shared::api::{ActRequest, CommandKind, Delivery, Event, Failure, Request};

/// Events that wait for the slowest subscriber; further ones push out the oldest.
pub(super) const EVENT_BUFFER_MAX: usize = 1_024;
/// How long the first events of a request wait for its number, which a slow disk may delay.
pub(super) const NUMBER_TIMEOUT: Duration = Duration::from_secs(1);

/// Where events of requests go to all subscribers. It exists since the first subscriber came; clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct RequestBroadcast(Arc<OnceLock<broadcast::Sender<Event>>>);

impl RequestBroadcast {
    pub(in crate::engine) fn subscribe(&self) -> broadcast::Receiver<Event> {
        let sender = self.0.get_or_init(|| broadcast::Sender::new(EVENT_BUFFER_MAX));
        sender.subscribe()
    }

    /// The request, if there are subscribers and they are told of it.
    pub(in crate::engine) fn observe(
        &self,
        tasks: &TaskTracker,
        request: &Request,
        origin: &Origin,
    ) -> Option<Arc<ObservedRequest>> {
        let sender = self.0.get().filter(|sender| sender.receiver_count() > 0)?;
        let (kind, action) = observed_action(request)?;
        Some(Arc::new(ObservedRequest {
            kind,
            action: action.to_owned(),
            user: origin.user.clone(),
            number: origin.history_number.clone(),
            tasks: tasks.clone(),
            broadcast: sender.clone(),
            state: Mutex::new(State {
                awaits_number: has_history_number(request),
                has_ended: false,
                held: Vec::new(),
            }),
        }))
    }
}

/// A request that subscribers are told of.
#[derive(Debug)]
pub(in crate::engine) struct ObservedRequest {
    kind: CommandKind,
    action: String,
    user: String,
    number: HistoryNumber,
    tasks: TaskTracker,
    broadcast: broadcast::Sender<Event>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    awaits_number: bool,
    has_ended: bool,
    held: Vec<Event>,
}

impl ObservedRequest {
    /// Sends an event behind those before it, or holds it back until the number is known. The last is never held back.
    pub(in crate::engine) fn push(self: &Arc<Self>, event: &Event) {
        let Some(event) = observed_event(event) else {
            return;
        };
        let mut state = self.state.lock();
        state.has_ended |= event.is_last();
        state.held.push(event);
        let is_held = state.awaits_number
            && !state.has_ended
            && self.number.get().is_none()
            && state.held.len() < EVENT_BUFFER_MAX;
        if !is_held {
            self.send_held(&mut state);
        } else if state.held.len() == 1 {
            let (this, until) = (Arc::clone(self), clock::now() + NUMBER_TIMEOUT);
            self.tasks.spawn(async move {
                let _known_or_late = clock::timeout_at(until, this.number.wait()).await;
                this.send_held(&mut this.state.lock());
            });
        }
    }

    /// Ends the request, unless it has ended.
    pub(in crate::engine) fn end(self: &Arc<Self>, reason: &str) {
        let has_ended = self.state.lock().has_ended;
        if !has_ended {
            self.push(&Event::failed(Failure::ShutDown, reason));
        }
    }

    fn send_held(&self, state: &mut State) {
        state.awaits_number = false;
        for event in state.held.drain(..) {
            let observed = Event::Observed {
                kind: self.kind,
                what: self.action.clone(),
                who: self.user.clone(),
                number: self.number.get(),
                event: Box::new(event),
            };
            // The subscribers may have gone meanwhile.
            self.broadcast.send(observed).ok();
        }
    }
}

/// The kind and the action of a request that subscribers are told of; `None` for what ends as soon as it is answered.
fn observed_action(request: &Request) -> Option<(CommandKind, &str)> {
    if let Request::Act(ActRequest::Command { action, .. }) = request {
        return Some((CommandKind::Command, action));
    }
    let kind = request.history_kind()?;
    Some((kind, kind.as_str()))
}

/// Whether it gets a number in the history, of what subscribers are told of.
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
