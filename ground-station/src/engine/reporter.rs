//! What becomes of a request, told to its caller and to the history.

use std::time::Instant;

use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::mpsc;

use super::SharedContext;
use crate::engine::delivery::history_writer::HistoryEntry;
use crate::engine::delivery::query::elapsed_ms;
use crate::store::DeliveryEnd;
use crate::store::deliveries::Record;
use swarm_shared::api::{Delivery, Event, NodeRef};

/// The caller reads no events any more.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct CallerGone;

/// The reports of one request; clones share it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Reporter {
    events: mpsc::Sender<Event>,
    history: Option<HistoryEntry>,
    /// Times of events count from then.
    started: Instant,
}

impl SharedContext {
    /// Begins the reports of a request of files, with its entry in the history. `goes_on`: whether a part of it goes on if the
    /// caller goes; then the caller is told the number of the entry.
    pub(in crate::engine) fn report(
        &self,
        events: mpsc::Sender<Event>,
        record: Record,
        started: Instant,
        goes_on: bool,
    ) -> Reporter {
        let abandoned = Reply::failed("given up before its end: whoever asked for it went away");
        let abandoned = move |_: &PeerId| abandoned.clone();
        let issued = goes_on.then(|| events.clone());
        let history = HistoryEntry::open(&self.tasks, self.store.clone(), record, abandoned, issued);
        Reporter {
            events,
            history: Some(history),
            started,
        }
    }
}

impl Reporter {
    /// The caller's channel.
    pub(in crate::engine) fn events(&self) -> &mpsc::Sender<Event> {
        &self.events
    }

    /// When the request was made.
    pub(in crate::engine) fn started(&self) -> Instant {
        self.started
    }

    /// Sends an event to the caller.
    pub(in crate::engine) async fn send(&self, event: Event) -> Result<(), CallerGone> {
        self.events.send(event).await.map_err(|_closed| CallerGone)
    }

    /// Reports how a delivery ended: the caller hears of it when it is stored. `part` tells several deliveries of one node
    /// apart.
    pub(in crate::engine) async fn end(
        &self,
        node: &NodeRef,
        part: u32,
        reply: Reply,
    ) -> Result<(), CallerGone> {
        if let Some(history) = &self.history {
            let end = DeliveryEnd {
                node: node.id,
                part,
                reply: reply.clone(),
            };
            history.store_end(end).await;
        }
        let delivery = Delivery::new(node.clone(), reply, elapsed_ms(self.started));
        self.send(Event::Delivery(delivery)).await
    }
}
