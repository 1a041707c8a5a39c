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

use crate::fleet::{Delivery, EVENTS_MAX, Event, Request, UserAsk};
use crate::store::audit::Entry;
use crate::store::deliveries::Record;
use crate::store::retention::Keep;
use crate::store::{PartEnd, Store, StoreError};
use crate::view::count;

/// How often it is looked whether something is too old to keep.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two slices, so that whoever has something to store comes first.
const SLICE_PAUSE: Duration = Duration::from_millis(20);
/// How long until an end that the disk refused is tried again.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked meanwhile whether the station stops.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a transfer's events go instead, to be noted and passed on.
pub(in crate::fleet) fn transfer(
    tasks: &TaskTracker,
    store: Store,
    record: Record,
    events: mpsc::Sender<Event>,
) -> mpsc::Sender<Event> {
    let (to, from) = mpsc::channel(EVENTS_MAX);
    tasks.spawn(pass_transfer(tasks.clone(), store, record, from, events));
    to
}

async fn pass_transfer(
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
    let known = record.origin.number.clone();
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
        Ok(number) => Some(known.settle(number)),
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
        let ends = batch.iter().filter_map(|event| end(event, &mut open)).collect();
        keep(&tasks, &store, number, ends).await;
        for event in batch.drain(..) {
            if events.send(event).await.is_err() {
                break;
            }
        }
    }
    let given_up = Reply::failed("given up before its end: whoever asked for it went away");
    let ends = open.into_iter().flat_map(|(node, parts)| {
        let reply = given_up.clone();
        parts.into_iter().map(move |part| PartEnd {
            node,
            part,
            reply: reply.clone(),
        })
    });
    keep(&tasks, &store, number, ends.collect()).await;
}

/// Notes something that waits for no disk, a stop. See [`ends_of`].
pub(in crate::fleet) fn beside(
    tasks: &TaskTracker,
    store: Store,
    record: Record,
    given_up: Reply,
) -> mpsc::Sender<PartEnd> {
    let nodes = record.deliveries.iter().map(|to| to.node.id).collect();
    let (what, known) = (record.action.clone(), record.origin.number.clone());
    let recording = {
        let store = store.clone();
        async move { store.record(record).await.map(|number| known.settle(number)) }
    };
    ends_of(tasks, store, (what, nodes), recording, given_up)
}

/// Ends of something that is on its way to the disk, which may take its time: they are handed over here, where there is
/// room for each node's, and go their way to whoever asked by themselves. What has not ended when the sender goes is noted
/// as `given_up`.
pub(in crate::fleet) fn ends_of(
    tasks: &TaskTracker,
    store: Store,
    (what, nodes): (String, BTreeSet<PeerId>),
    recording: impl Future<Output = Result<u64, StoreError>> + Send + 'static,
    given_up: Reply,
) -> mpsc::Sender<PartEnd> {
    let (to, mut from) = mpsc::channel(nodes.len().max(1));
    let again = tasks.clone();
    tasks.spawn(async move {
        let mut open = nodes;
        let number = match recording.await {
            Ok(number) => Some(number),
            Err(error) => return tracing::error!(%error, what, "not in the history"),
        };
        let mut batch: Vec<PartEnd> = Vec::new();
        while from.recv_many(&mut batch, EVENTS_MAX).await > 0 {
            for end in &batch {
                open.remove(&end.node);
            }
            keep(&again, &store, number, std::mem::take(&mut batch)).await;
        }
        let left = open.into_iter().map(|node| PartEnd {
            node,
            part: 0,
            reply: given_up.clone(),
        });
        keep(&again, &store, number, left.collect()).await;
    });
    to
}

/// The end that an event tells of. A node's files end in their order.
fn end(event: &Event, open: &mut BTreeMap<PeerId, Vec<u32>>) -> Option<PartEnd> {
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
    Some(PartEnd {
        node: id,
        part,
        reply,
    })
}

/// Keeps ends. Whoever waits for them is not kept waiting by a disk that refuses them: they are tried again.
pub(in crate::fleet) async fn keep(
    tasks: &TaskTracker,
    store: &Store,
    number: Option<u64>,
    ends: Vec<PartEnd>,
) {
    let Some(number) = number.filter(|_| !ends.is_empty()) else {
        return;
    };
    let Err(error) = store.record_ends(number, ends.clone()).await else {
        return;
    };
    if is_final(&error) {
        tracing::error!(%error, number, "ends are not in the history");
        return;
    }
    tracing::error!(%error, number, "ends are not in the history yet: tried again each second");
    tasks.spawn(keep_trying(tasks.clone(), store.clone(), number, ends));
}

/// Until they are stored, or the station stops: then once more.
async fn keep_trying(tasks: TaskTracker, store: Store, number: u64, ends: Vec<PartEnd>) {
    loop {
        let again = clock::now() + KEEP_EVERY;
        while clock::now() < again && !tasks.is_closed() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let is_over = tasks.is_closed();
        match store.record_ends(number, ends.clone()).await {
            Ok(()) => return tracing::info!(number, "ends are in the history now"),
            Err(error) if is_over || is_final(&error) => {
                return tracing::error!(%error, number, "ends are not in the history");
            }
            Err(error) => tracing::debug!(%error, number, "ends are still not in the history"),
        }
    }
}

/// Whether no later try can end otherwise, such as for a command that the history has forgotten.
fn is_final(error: &StoreError) -> bool {
    matches!(error, StoreError::BadRow { .. } | StoreError::Stopped)
}

/// What the audit says of a request: what, and of whom. `None` for what is noted elsewhere, or changes nothing.
pub(super) fn audited(request: &Request) -> Option<(String, String)> {
    let note = |what: &str, detail: String| Some((what.to_owned(), detail));
    match request {
        Request::Init => note("init", "a new fleet".to_owned()),
        Request::Invite { role, uses, .. } => {
            let role = super::authority::role_name(*role);
            note("invite", format!("as {role}, for {}", count(uses, "use")))
        }
        // The code is a secret.
        Request::Join { .. } => note("join", "another station's fleet".to_owned()),
        Request::Accept { node } => note("accept", node.clone()),
        Request::Revoke { node } => note("revoke", node.clone()),
        Request::Users { ask } => match ask {
            UserAsk::Add { name, .. } => note("door user add", name.clone()),
            UserAsk::Remove { name } => note("door user remove", name.clone()),
            UserAsk::MakeToken { name, days, label } => {
                let label = match label.as_str() {
                    "" => String::new(),
                    label => format!(": {label}"),
                };
                let days = count(days, "day");
                note("door token", format!("for {name}, {days}{label}"))
            }
            UserAsk::Revoke { number } => note("door token revoke", number.to_string()),
            UserAsk::List | UserAsk::Tokens => None,
        },
        Request::Tell { door, peer, message } => {
            let peer = peer.as_deref().unwrap_or("all peers");
            let padding = message.bytes().rev().take_while(|byte| *byte == b'=').count();
            let bytes = (message.len() / 4 * 3).saturating_sub(padding);
            let bytes = count(bytes, "byte");
            note(&format!("{door}.send"), format!("{bytes} to {peer}"))
        }
        Request::Nodes { .. }
        | Request::Watch { .. }
        | Request::Follow { .. }
        | Request::Targets { .. }
        | Request::Command { .. }
        | Request::SendFiles { .. }
        | Request::Fetch { .. }
        | Request::Stop { .. }
        | Request::Release { .. }
        | Request::Pending
        | Request::Members
        | Request::History { .. }
        | Request::Audit { .. }
        | Request::Peers { .. }
        | Request::Retry { .. }
        | Request::Cancel { .. } => None,
    }
}

/// Where the events of an audited request go instead, to be passed on; its end is noted before it is told.
pub(super) fn audit(
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
                    Some(format!("{unreached} of {} not reached", count(peers, "peer")))
                }
                Event::End if peers > 0 => Some(format!("done, {}", count(peers, "peer"))),
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
                | Event::About(_)
                | Event::Past(_)
                | Event::Audit(_)
                | Event::User(_)
                | Event::Token(_)
                | Event::Told { .. }
                | Event::Telemetry { .. }
                | Event::Peer(_)
                | Event::Missed { .. } => None,
            };
            if let Some(outcome) = outcome {
                note(&store, &who, &what, &detail, &outcome).await;
                let _caller_gone = events.send(event).await;
                return;
            }
            if events.send(event).await.is_err() {
                break;
            }
        }
        note(&store, &who, &what, &detail, "cut off: whoever asked went away").await;
    });
    to
}

/// Notes who did what.
pub(in crate::fleet) async fn note(store: &Store, who: &str, what: &str, detail: &str, outcome: &str) {
    let entry = Entry {
        at_ms: clock::unix_time_ms(),
        who: who.to_owned(),
        what: what.to_owned(),
        detail: detail.to_owned(),
        outcome: outcome.to_owned(),
    };
    if let Err(error) = store.audit(entry).await {
        tracing::error!(%error, who, what, "not in the audit");
    }
}

/// Keeps the history within its bounds until `stop`.
pub(super) async fn prune(store: Store, keep: Keep, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    while stop
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        pause = match store.prune(keep, clock::unix_time_ms()).await {
            Ok(true) => SLICE_PAUSE,
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
