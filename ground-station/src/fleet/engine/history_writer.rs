//! Notes in the store what passes by on its way to whoever asked: transfers of files, stops and releases with each of
//! their ends, and who did what to the fleet. A store that fails is told in the log; it never holds up what is asked.
//! An end that the disk refuses is kept in memory, and stored as soon as the disk takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::RetentionPolicy;
use crate::fleet::{AdminRequest, Delivery, EVENTS_MAX, Event, FleetRequest, Request, UserRequest};
use crate::store::audit::AuditEntry;
use crate::store::deliveries::Record;
use crate::store::{DeliveryEnd, Store, StoreError};
use crate::view::pluralize;

/// How often it is looked whether something is too old to keep.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two slices, so that whoever has something to store comes first.
const PRUNE_SLICE_PAUSE: Duration = Duration::from_millis(20);
/// How long until an end that the disk refused is tried again.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked meanwhile whether the station stops.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Where a transfer's events go instead, to be noted and passed on.
pub(in crate::fleet) fn record_stream(
    tasks: &TaskTracker,
    store: Store,
    record: Record,
    events: mpsc::Sender<Event>,
) -> mpsc::Sender<Event> {
    let (to, from) = mpsc::channel(EVENTS_MAX);
    tasks.spawn(forward_and_record(tasks.clone(), store, record, from, events));
    to
}

async fn forward_and_record(
    tasks: TaskTracker,
    store: Store,
    record: Record,
    mut from: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
) {
    let mut open: BTreeMap<PeerId, Vec<u32>> = BTreeMap::new();
    for delivery in record.deliveries.iter().rev() {
        open.entry(delivery.node.id).or_default().push(delivery.part);
    }
    let history_number = record.origin.history_number.clone();
    let mut batch = Vec::new();
    let mut recording = pin!(store.record(record));
    let recorded = loop {
        tokio::select! {
            biased;
            recorded = &mut recording => break recorded,
            // Whose outcomes are to come is told at once: whoever asked has to know it should this process be killed
            // before a slow disk answers. An end is told when it is noted.
            Some(event) = from.recv(), if batch.is_empty() => {
                if matches!(event, Event::Delivery(_) | Event::End | Event::Failed { .. }) {
                    batch.push(event);
                } else {
                    let _caller_gone = events.send(event).await;
                }
            }
        }
    };
    let number = match recorded {
        Ok(number) => Some(history_number.get_or_set(number)),
        Err(error) => {
            tracing::error!(%error, "a transfer is not in the history");
            None
        }
    };
    loop {
        if batch.is_empty() {
            let taken = tokio::select! {
                biased;
                () = events.closed() => break,
                taken = from.recv_many(&mut batch, EVENTS_MAX) => taken,
            };
            if taken == 0 {
                break;
            }
        }
        let ends = batch
            .iter()
            .filter_map(|event| end_from_event(event, &mut open))
            .collect();
        store_ends(&tasks, &store, number, ends).await;
        for event in batch.drain(..) {
            if events.send(event).await.is_err() {
                break;
            }
        }
    }
    let abandoned = Reply::failed("given up before its end: whoever asked for it went away");
    let ends = open.into_iter().flat_map(|(node, parts)| {
        let reply = abandoned.clone();
        parts.into_iter().map(move |part| DeliveryEnd {
            node,
            part,
            reply: reply.clone(),
        })
    });
    store_ends(&tasks, &store, number, ends.collect()).await;
}

/// Notes something that waits for no disk, a stop. See [`ends_of`].
pub(in crate::fleet) fn record_in_background(
    tasks: &TaskTracker,
    store: Store,
    record: Record,
    abandoned: Reply,
) -> mpsc::Sender<DeliveryEnd> {
    let nodes = record.deliveries.iter().map(|to| to.node.id).collect();
    let (what, history_number) = (record.action.clone(), record.origin.history_number.clone());
    let recording = {
        let store = store.clone();
        async move {
            store
                .record(record)
                .await
                .map(|number| history_number.get_or_set(number))
        }
    };
    record_ends_in_background(tasks, store, (what, nodes), recording, abandoned)
}

/// Ends of something that is on its way to the disk, which may take its time: they are handed over here, where there is
/// room for each node's, and go their way to whoever asked by themselves. What has not ended when the sender goes is noted
/// as `given_up`.
pub(in crate::fleet) fn record_ends_in_background(
    tasks: &TaskTracker,
    store: Store,
    (what, nodes): (String, BTreeSet<PeerId>),
    recording: impl Future<Output = Result<u64, StoreError>> + Send + 'static,
    abandoned: Reply,
) -> mpsc::Sender<DeliveryEnd> {
    let (to, mut from) = mpsc::channel(nodes.len().max(1));
    let again = tasks.clone();
    tasks.spawn(async move {
        let mut open = nodes;
        let number = match recording.await {
            Ok(number) => Some(number),
            Err(error) => return tracing::error!(%error, what, "not in the history"),
        };
        let mut batch: Vec<DeliveryEnd> = Vec::new();
        while from.recv_many(&mut batch, EVENTS_MAX).await > 0 {
            for end in &batch {
                open.remove(&end.node);
            }
            store_ends(&again, &store, number, std::mem::take(&mut batch)).await;
        }
        let left = open.into_iter().map(|node| DeliveryEnd {
            node,
            part: 0,
            reply: abandoned.clone(),
        });
        store_ends(&again, &store, number, left.collect()).await;
    });
    to
}

/// The end that an event tells of. A node's files end in their order.
fn end_from_event(event: &Event, open: &mut BTreeMap<PeerId, Vec<u32>>) -> Option<DeliveryEnd> {
    let Event::Delivery(delivery) = event else {
        return None;
    };
    let Delivery {
        node: _,
        id,
        state,
        value,
        output,
        exit,
        error,
        ms: _,
    } = delivery.clone();
    let part = open.get_mut(&id)?.pop()?;
    let reply = Reply {
        state,
        value,
        output,
        exit,
        error,
    };
    Some(DeliveryEnd {
        node: id,
        part,
        reply,
    })
}

/// Keeps ends. Whoever waits for them is not kept waiting by a disk that refuses them: they are tried again.
pub(in crate::fleet) async fn store_ends(
    tasks: &TaskTracker,
    store: &Store,
    number: Option<u64>,
    ends: Vec<DeliveryEnd>,
) {
    let Some(number) = number.filter(|_| !ends.is_empty()) else {
        return;
    };
    let Err(error) = store.record_delivery_ends(number, ends.clone()).await else {
        return;
    };
    if is_permanent(&error) {
        tracing::error!(%error, number, "ends are not in the history");
        return;
    }
    tracing::error!(%error, number, "ends are not in the history yet: tried again each second");
    tasks.spawn(retry_until_stored(tasks.clone(), store.clone(), number, ends));
}

/// Until they are stored, or the station stops: then once more.
async fn retry_until_stored(tasks: TaskTracker, store: Store, number: u64, ends: Vec<DeliveryEnd>) {
    loop {
        let again = clock::now() + STORE_RETRY_INTERVAL;
        while clock::now() < again && !tasks.is_closed() {
            tokio::time::sleep(SHUTDOWN_POLL_INTERVAL).await;
        }
        let is_over = tasks.is_closed();
        match store.record_delivery_ends(number, ends.clone()).await {
            Ok(()) => return tracing::info!(number, "ends are in the history now"),
            Err(error) if is_over || is_permanent(&error) => {
                return tracing::error!(%error, number, "ends are not in the history");
            }
            Err(error) => tracing::debug!(%error, number, "ends are still not in the history"),
        }
    }
}

/// Whether no later try can end otherwise, such as for a command that the history has forgotten.
fn is_permanent(error: &StoreError) -> bool {
    matches!(error, StoreError::BadRow { .. } | StoreError::Closed)
}

/// What the audit says of a request: what, and of whom. `None` for what is noted elsewhere, or changes nothing.
pub(super) fn audit_entry(request: &Request) -> Option<(String, String)> {
    let entry = |what: &str, detail: String| Some((what.to_owned(), detail));
    match request {
        Request::Fleet(FleetRequest::Init) => entry("init", "a new fleet".to_owned()),
        Request::Fleet(FleetRequest::Invite { role, uses, .. }) => {
            let role = super::authority::role_name(*role);
            entry("invite", format!("as {role}, for {}", pluralize(uses, "use")))
        }
        // The code is a secret.
        Request::Fleet(FleetRequest::Join { .. }) => entry("join", "another station's fleet".to_owned()),
        Request::Fleet(FleetRequest::Accept { node }) => entry("accept", node.clone()),
        Request::Fleet(FleetRequest::Revoke { node }) => entry("revoke", node.clone()),
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
            UserRequest::List | UserRequest::Tokens => None,
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
        Request::Fleet(FleetRequest::Pending | FleetRequest::Members)
        | Request::Admin(AdminRequest::Peers { .. })
        | Request::Nodes(_)
        | Request::Act(_)
        | Request::History(_) => None,
    }
}

/// Where the events of an audited request go instead, to be passed on; its end is noted before it is told.
pub(super) fn audit_stream(
    tasks: &TaskTracker,
    store: Store,
    who: String,
    (what, detail): (String, String),
    events: mpsc::Sender<Event>,
) -> mpsc::Sender<Event> {
    let (to, mut from) = mpsc::channel(EVENTS_MAX);
    tasks.spawn(async move {
        let (mut peers, mut unreached) = (0, 0);
        loop {
            let event = tokio::select! {
                biased;
                () = events.closed() => break,
                event = from.recv() => event,
            };
            let Some(event) = event else { break };
            if let Event::Peer(peer) = &event {
                peers += 1;
                unreached += u64::from(peer.error.is_some());
            }
            let outcome = match &event {
                Event::End if unreached > 0 => {
                    Some(format!("{unreached} of {} not reached", pluralize(peers, "peer")))
                }
                Event::End if peers > 0 => Some(format!("done, {}", pluralize(peers, "peer"))),
                Event::End => Some("done".to_owned()),
                Event::Failed { message, .. } => Some(message.clone()),
                Event::Targets { .. }
                | Event::Progress { .. }
                | Event::Stage { .. }
                | Event::Acknowledged { .. }
                | Event::Delivery(_)
                | Event::Node(_)
                | Event::Note { .. }
                | Event::Issued { .. }
                | Event::Membership(_)
                | Event::Invitation(_)
                | Event::Member(_)
                | Event::Pending(_)
                | Event::Command(_)
                | Event::CommandDetails(_)
                | Event::HistoryDelivery(_)
                | Event::Audit(_)
                | Event::User(_)
                | Event::Token(_)
                | Event::Observed { .. }
                | Event::Telemetry { .. }
                | Event::Peer(_)
                | Event::Lagged { .. } => None,
            };
            if let Some(outcome) = outcome {
                write_audit_entry(&store, &who, &what, &detail, &outcome).await;
                let _caller_gone = events.send(event).await;
                return;
            }
            if events.send(event).await.is_err() {
                break;
            }
        }
        write_audit_entry(&store, &who, &what, &detail, "cut off: whoever asked went away").await;
    });
    to
}

/// Notes who did what.
pub(in crate::fleet) async fn write_audit_entry(
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
        tracing::error!(%error, who, what, "not in the audit");
    }
}

/// Keeps the history within its bounds until `stop`.
pub(super) async fn prune(store: Store, keep: RetentionPolicy, shutdown: CancellationToken) {
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
                tracing::warn!(%error, "what is too old is not removed");
                PRUNE_INTERVAL
            }
        };
    }
}

#[cfg(test)]
mod tests;
