//! Puts into the history what is no command of the tracker: files, stops and releases, with the outcome of each delivery; and
//! administration into the audit. A failing store is logged and delays no request. An outcome that the disk refuses is kept
//! in memory and tried again each second.

use std::collections::BTreeSet;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::RetentionPolicy;
use crate::store::audit::AuditEntry;
use crate::store::deliveries::Record;
use crate::store::{DeliveryEnd, Store, StoreError};
use crate::text::pluralize;
use swarm_shared::api::{AdminRequest, Event, FleetRequest, Request, UserRequest};
use swarm_shared::client::EVENTS_MAX;

/// Interval of looking for entries that are too old.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Pause between two deletions, so that waiting writes come first.
const PRUNE_SLICE_PAUSE: Duration = Duration::from_millis(20);
/// Pause before an outcome that the disk refused is stored again.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of looking for a shutdown in that pause.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An entry of the history that is not a command of the tracker: takes the ends of its deliveries. With the last clone the
/// entry is complete: deliveries without an end get the one that was given for them.
#[derive(Clone, Debug)]
pub(in crate::engine) struct HistoryEntry(mpsc::Sender<StoreEnd>);

/// An end, and what is dropped when it is stored.
type StoreEnd = (DeliveryEnd, oneshot::Sender<()>);

impl HistoryEntry {
    /// Stores `record`, in the background, and ends as they come. `abandoned` says how deliveries end that have no other
    /// end. The number of the entry is sent to `issued`, if there is room.
    pub(in crate::engine) fn open(
        tasks: &TaskTracker,
        store: Store,
        record: Record,
        abandoned: impl Fn(&PeerId) -> Reply + Send + 'static,
        issued: Option<mpsc::Sender<Event>>,
    ) -> Self {
        let open = record.deliveries.iter();
        let open: BTreeSet<(PeerId, u32)> = open.map(|to| (to.node.id, to.part)).collect();
        // Each delivery ends once: there is always room.
        let (ends, inbox) = mpsc::channel(open.len().max(1));
        let writing = write_entry(tasks.clone(), store, record, (open, inbox), (abandoned, issued));
        tasks.spawn(writing);
        Self(ends)
    }

    /// Adds the end of a delivery, and waits for nothing.
    pub(in crate::engine) fn add_end(&self, end: DeliveryEnd) {
        // The receiver ends with the station only.
        self.0.try_send((end, oneshot::channel().0)).ok();
    }

    /// Adds the end of a delivery. Returns when it is stored, or the disk has refused it; then it is stored later.
    pub(in crate::engine) async fn store_end(&self, end: DeliveryEnd) {
        let (stored, when_stored) = oneshot::channel();
        if self.0.send((end, stored)).await.is_ok() {
            // Dropped by the writer when it is done.
            when_stored.await.ok();
        }
    }
}

async fn write_entry(
    tasks: TaskTracker,
    store: Store,
    record: Record,
    (mut open, mut inbox): (BTreeSet<(PeerId, u32)>, mpsc::Receiver<StoreEnd>),
    (abandoned, issued): (
        impl Fn(&PeerId) -> Reply + Send + 'static,
        Option<mpsc::Sender<Event>>,
    ),
) {
    let (action, history_number) = (record.action.clone(), record.origin.history_number.clone());
    let number = match store.record(record).await {
        Ok(number) => history_number.get_or_set(number),
        Err(error) => return tracing::error!(%error, action, "Request is not in the history"),
    };
    if let Some(issued) = issued {
        issued.try_send(Event::Issued { number }).ok();
    }
    let mut batch = Vec::new();
    while inbox.recv_many(&mut batch, EVENTS_MAX).await > 0 {
        let (ends, _stored): (Vec<DeliveryEnd>, Vec<oneshot::Sender<()>>) = batch.drain(..).unzip();
        for end in &ends {
            open.remove(&(end.node, end.part));
        }
        store_ends(&tasks, &store, number, ends).await;
    }
    let left = open.into_iter().map(|(node, part)| DeliveryEnd {
        node,
        part,
        reply: abandoned(&node),
    });
    store_ends(&tasks, &store, number, left.collect()).await;
}

/// Stores ends. Returns also if the disk refuses them: they are tried again in the background.
async fn store_ends(tasks: &TaskTracker, store: &Store, number: u64, ends: Vec<DeliveryEnd>) {
    if ends.is_empty() {
        return;
    }
    let Err(error) = store.record_delivery_ends(number, ends.clone()).await else {
        return;
    };
    if is_permanent(&error) {
        tracing::error!(%error, number, "Outcomes are not in the history");
        return;
    }
    tracing::error!(%error, number, "Outcomes are not in the history yet; they are stored again each second");
    tasks.spawn(retry_until_stored(tasks.clone(), store.clone(), number, ends));
}

/// Tries until they are stored; at shutdown once more.
async fn retry_until_stored(tasks: TaskTracker, store: Store, number: u64, ends: Vec<DeliveryEnd>) {
    loop {
        let again = clock::now() + STORE_RETRY_INTERVAL;
        while clock::now() < again && !tasks.is_closed() {
            tokio::time::sleep(SHUTDOWN_POLL_INTERVAL).await;
        }
        let is_over = tasks.is_closed();
        match store.record_delivery_ends(number, ends.clone()).await {
            Ok(()) => return tracing::info!(number, "Outcomes are in the history now"),
            Err(error) if is_over || is_permanent(&error) => {
                return tracing::error!(%error, number, "Outcomes are not in the history");
            }
            Err(error) => tracing::debug!(%error, number, "Outcomes are still not in the history"),
        }
    }
}

/// Whether a later try cannot succeed, such as for a command that the history has dropped.
fn is_permanent(error: &StoreError) -> bool {
    matches!(error, StoreError::BadRow { .. } | StoreError::Closed)
}

/// The audit entry of a request: its action and its subject. `None` if it is recorded elsewhere or changes nothing.
pub(in crate::engine) fn audit_entry(request: &Request) -> Option<(String, String)> {
    let entry = |what: &str, detail: String| Some((what.to_owned(), detail));
    match request {
        Request::Fleet(request) => match request {
            FleetRequest::Init => entry("init", "a new fleet".to_owned()),
            FleetRequest::Invite { role, uses, .. } => {
                entry("invite", format!("as {role}, for {}", pluralize(uses, "use")))
            }
            // The code is a secret.
            FleetRequest::Join { .. } => entry("join", "another station's fleet".to_owned()),
            FleetRequest::Accept { node } => entry("accept", node.clone()),
            FleetRequest::Revoke { node } => entry("revoke", node.clone()),
            FleetRequest::Pending | FleetRequest::Members | _ => None,
        },
        Request::Admin(AdminRequest::Users(request)) => match request {
            UserRequest::Add { name, .. } => entry("gateway user add", name.clone()),
            UserRequest::Remove { name } => entry("gateway user remove", name.clone()),
            UserRequest::MakeToken { name, days, label } => {
                let label = match label.as_str() {
                    "" => String::new(),
                    label => format!(": {label}"),
                };
                let days = pluralize(days, "day");
                entry("gateway token", format!("for {name}, {days}{label}"))
            }
            UserRequest::Revoke { number } => entry("gateway token revoke", number.to_string()),
            UserRequest::List | UserRequest::Tokens | _ => None,
        },
        Request::Admin(AdminRequest::SendToPeers {
            gateway,
            peer,
            message,
        }) => {
            let peer = peer.as_deref().unwrap_or("all peers");
            let padding = message.bytes().rev().take_while(|byte| *byte == b'=').count();
            let bytes = (message.len() / 4 * 3).saturating_sub(padding);
            let bytes = pluralize(bytes, "byte");
            entry(&format!("{gateway}.send"), format!("{bytes} to {peer}"))
        }
        Request::Admin(_) | Request::Nodes(_) | Request::Act(_) | Request::History(_) | _ => None,
    }
}

/// Writes an entry of the audit.
pub(in crate::engine) async fn write_audit_entry(
    store: &Store,
    who: &str,
    what: &str,
    detail: &str,
    outcome: &str,
) {
    let entry = AuditEntry {
        at_ms: clock::unix_time_ms(),
        user: who.to_owned(),
        action: what.to_owned(),
        detail: detail.to_owned(),
        outcome: outcome.to_owned(),
    };
    if let Err(error) = store.audit(entry).await {
        tracing::error!(%error, who, what, "Action is not in the audit");
    }
}

/// Deletes entries of the history that exceed its bounds, until shutdown.
pub(in crate::engine) async fn prune(store: Store, keep: RetentionPolicy, shutdown: CancellationToken) {
    let mut pause = Duration::ZERO;
    while shutdown
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        pause = match store.prune(keep, clock::unix_time_ms()).await {
            Ok(true) => PRUNE_SLICE_PAUSE,
            Ok(false) => PRUNE_INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "Old entries of the history are not deleted");
                PRUNE_INTERVAL
            }
        };
    }
}

#[cfg(test)]
mod tests;
