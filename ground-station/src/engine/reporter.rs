//! Tells what becomes of a request: its caller, the subscribers, the history and the audit, in one place.
//!
//! The request's tasks own a [`Reporter`]; with its last clone the request is over. Subscribers and the audit are then told
//! that it was cut off, unless [`Event::End`] or [`Event::Failed`] was sent. The audit is written before the caller is sent
//! that last event.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::delivery::history_writer::{HistoryEntry, write_audit_entry};
use super::observe::observed_request::ObservedRequest;
use crate::store::deliveries::Record;
use crate::store::{DeliveryEnd, Store};
use crate::text::pluralize;
use swarm_shared::api::{Delivery, Event, Failure, NodeRef, round_to_microsecond};

/// How a request ends in the audit, and for subscribers, if its client disconnects.
const CUT_OFF_BY_CALLER: &str = "cut off: the client disconnected";
/// How it ends for them if the station shuts down.
const CUT_OFF_BY_SHUTDOWN: &str = "cut off: the station is shutting down";

/// The caller reads no events any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallerGone;

/// The reports of one request; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Reporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    caller: mpsc::Sender<Event>,
    started: Instant,
    tasks: TaskTracker,
    store: Store,
    observed: Option<Arc<ObservedRequest>>,
    audited: Option<AuditedRequest>,
    history: OnceLock<HistoryEntry>,
}

/// A request that has an entry in the audit.
#[derive(Debug)]
pub(super) struct AuditedRequest {
    user: String,
    action: String,
    subject: String,
    outcome: OnceLock<String>,
    /// Peers of a gateway that it was for, and those that it did not reach.
    peers: AtomicU64,
    unreached: AtomicU64,
}

impl AuditedRequest {
    /// A request of `user`; `entry` is its action and its subject.
    pub(super) fn new(user: String, (action, subject): (String, String)) -> Self {
        Self {
            user,
            action,
            subject,
            outcome: OnceLock::new(),
            peers: AtomicU64::new(0),
            unreached: AtomicU64::new(0),
        }
    }

    /// Takes an event into account; whether its outcome is known now.
    fn on_event(&self, event: &Event) -> bool {
        if let Event::Peer(peer) = event {
            self.peers.fetch_add(1, Ordering::Relaxed);
            self.unreached
                .fetch_add(u64::from(peer.error.is_some()), Ordering::Relaxed);
        }
        let outcome = if let Event::Failed { message, .. } = event {
            message.clone()
        } else if *event == Event::End {
            let (peers, unreached) = (&self.peers, &self.unreached);
            match (peers.load(Ordering::Relaxed), unreached.load(Ordering::Relaxed)) {
                (0, _) => "done".to_owned(),
                (peers, 0) => format!("done, {}", pluralize(peers, "peer")),
                (peers, unreached) => format!("{unreached} of {} not reached", pluralize(peers, "peer")),
            }
        } else {
            return false;
        };
        self.outcome.set(outcome).is_ok()
    }

    async fn write(&self, store: &Store) {
        let outcome = self.outcome.get().map_or(CUT_OFF_BY_CALLER, String::as_str);
        write_audit_entry(store, &self.user, &self.action, &self.subject, outcome).await;
    }
}

impl Reporter {
    /// Begins the reports of a request that was made at `started`.
    pub(super) fn new(
        (tasks, store): (&TaskTracker, &Store),
        caller: mpsc::Sender<Event>,
        started: Instant,
        observed: Option<Arc<ObservedRequest>>,
        audited: Option<AuditedRequest>,
    ) -> Self {
        Self(Arc::new(Inner {
            caller,
            started,
            tasks: tasks.clone(),
            store: store.clone(),
            observed,
            audited,
            history: OnceLock::new(),
        }))
    }

    /// Opens the request's entry in the history. `abandoned` says how deliveries end that have no other end.
    /// `tells_number`: whether the caller is sent the entry's number, because a part of the request goes on without it.
    pub(super) fn open_history(
        &self,
        record: Record,
        abandoned: impl Fn(&PeerId) -> Reply + Send + 'static,
        tells_number: bool,
    ) {
        let Inner {
            tasks,
            store,
            caller,
            history,
            ..
        } = &*self.0;
        let issued = tells_number.then(|| caller.clone());
        let entry = HistoryEntry::open(tasks, store.clone(), record, abandoned, issued);
        // A request has one entry.
        history.set(entry).ok();
    }

    /// The caller's channel.
    pub(super) fn caller(&self) -> &mpsc::Sender<Event> {
        &self.0.caller
    }

    /// When the request was made.
    pub(super) fn started(&self) -> Instant {
        self.0.started
    }

    /// Time since the request was made, in milliseconds.
    pub(super) fn elapsed_ms(&self) -> f64 {
        round_to_microsecond(clock::since(self.0.started).as_secs_f64() * 1_000.0)
    }

    /// Sends an event.
    pub(super) async fn send(&self, event: Event) -> Result<(), CallerGone> {
        let Inner {
            caller,
            store,
            audited,
            ..
        } = &*self.0;
        self.observe(&event);
        if let Some(audited) = audited
            && audited.on_event(&event)
        {
            audited.write(store).await;
        }
        caller.send(event).await.map_err(|_closed| CallerGone)
    }

    /// Sends an event of a request that is not audited, if there is room for it.
    pub(super) fn try_send(&self, event: Event) {
        self.observe(&event);
        self.0.caller.try_send(event).ok();
    }

    /// Shows an event to the subscribers; the caller is sent it by other means.
    pub(super) fn observe(&self, event: &Event) {
        if let Some(observed) = &self.0.observed {
            observed.push(event);
        }
    }

    /// Sends events and the last one, until the caller is gone.
    pub(super) async fn finish(&self, answer: Result<Vec<Event>, (Failure, String)>) {
        for event in with_last(answer) {
            if self.send(event).await.is_err() {
                return;
            }
        }
    }

    /// The same in a task of its own.
    pub(super) fn spawn_finish(self, answer: Result<Vec<Event>, (Failure, String)>) {
        let tasks = self.0.tasks.clone();
        tasks.spawn(async move { self.finish(answer).await });
    }

    /// The event that a delivery has ended; it has no history.
    pub(super) fn delivery(&self, node: NodeRef, reply: Reply) -> Event {
        Event::Delivery(Delivery::new(node, reply, self.elapsed_ms()))
    }

    /// Puts the end of a delivery into the history without waiting for the disk; returns the event to send.
    pub(super) fn record_end(&self, node: NodeRef, reply: Reply) -> Event {
        if let Some(history) = self.0.history.get() {
            history.add_end(DeliveryEnd {
                node: node.id,
                part: 0,
                reply: reply.clone(),
            });
        }
        self.delivery(node, reply)
    }

    /// Reports how a delivery ended: the caller hears of it when it is stored. `part` tells several deliveries of one node
    /// apart.
    pub(super) async fn end(&self, node: &NodeRef, part: u32, reply: Reply) -> Result<(), CallerGone> {
        if let Some(history) = self.0.history.get() {
            let end = DeliveryEnd {
                node: node.id,
                part,
                reply: reply.clone(),
            };
            history.store_end(end).await;
        }
        self.send(self.delivery(node.clone(), reply)).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(observed) = &self.observed {
            let reason = if self.caller.is_closed() {
                CUT_OFF_BY_CALLER
            } else {
                CUT_OFF_BY_SHUTDOWN
            };
            observed.end(reason);
        }
        if let Some(audited) = self.audited.take()
            && audited.outcome.get().is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let store = self.store.clone();
            let writing = self
                .tasks
                .track_future(async move { audited.write(&store).await });
            runtime.spawn(writing);
        }
    }
}

/// The events of an answer, with the last one.
pub(super) fn with_last(answer: Result<Vec<Event>, (Failure, String)>) -> Vec<Event> {
    match answer {
        Ok(mut events) => {
            events.push(Event::End);
            events
        }
        Err((failure, message)) => vec![Event::failed(failure, message)],
    }
}

/// How deliveries end in the history if their request is given up.
pub(super) fn given_up(_node: &PeerId) -> Reply {
    Reply::failed("given up before its end: the client disconnected")
}

#[cfg(test)]
impl Reporter {
    /// Of a request made now that neither subscribers nor the audit are told of.
    pub(super) fn for_test(shared: &super::SharedContext, caller: mpsc::Sender<Event>) -> Self {
        let started = swarm_shared::net::clock::now();
        Self::new((&shared.tasks, &shared.store), caller, started, None, None)
    }
}

#[cfg(test)]
mod tests;
