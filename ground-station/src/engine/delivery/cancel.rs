//! A command of the history is taken back: what of it has not been sent to its node never is.
//!
//! It asks the book of deliveries, and answers when the ends are stored. Without a running `serve` the book is opened
//! from the store with no links at all, so that nothing is sent while it is being taken back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::net::{clock, endpoint};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::PeerId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::EngineError;
use crate::engine::delivery::handle::{Cancelled, DeliveryHandle};
use crate::engine::delivery::history_writer;
use crate::engine::observe::offline_history;
use crate::engine::reporter::with_last;
use crate::store::lock::StateLock;
use crate::store::{Store, StoreError, history};
use swarm_shared::api::{
    CommandKind, CommandView, Event, Failure, HistoryDelivery, HistoryQuery, HistoryRequest, HistoryState,
    Request,
};
use swarm_shared::client::{Fleet, RequestEnvelope};

const ALREADY_SENT: &str = "sent already; only a stop ends it";
const OUTCOME_NOT_YET_STORED: &str = "its outcome is being stored";
const CANCEL_NOT_STORED: &str = "taken back, and not sent as long as the station runs; it cannot store that yet: look \
                          whether its disk is full, and repeat this";

/// What is asked.
pub(in crate::engine) struct CancelRequest {
    pub(in crate::engine) number: u64,
    /// How long to wait until it is stored.
    pub(in crate::engine) timeout: Duration,
    pub(in crate::engine) user: String,
}

/// Takes back what has not been sent: `about` the command, and all its `past` deliveries as they stand then.
pub(in crate::engine) async fn run(
    deliveries: &DeliveryHandle,
    store: &Store,
    state_dir: &Path,
    request: CancelRequest,
    events: &mpsc::Sender<Event>,
) {
    send_events(
        events,
        cancel_and_report(deliveries, store, state_dir, request).await,
    )
    .await;
}

/// Takes back, and returns what there is to say of it.
async fn cancel_and_report(
    deliveries: &DeliveryHandle,
    store: &Store,
    state_dir: &Path,
    request: CancelRequest,
) -> Vec<Event> {
    let done = async {
        let (command, id) = find_command(state_dir, request.number).await?;
        cancel_unsent(deliveries, store, state_dir, &request, (&command, id)).await
    };
    with_last(done.await)
}

/// The command and its identity; or why there is nothing to take back.
async fn find_command(state_dir: &Path, number: u64) -> Result<(CommandView, CommandId), (Failure, String)> {
    let found = history::run_query(state_dir, move |connection| {
        let Some(command) = history::command(connection, number)? else {
            return Ok(Err(history::number_range(connection)?));
        };
        Ok(Ok((command, history::command_id(connection, number)?)))
    });
    let (command, id) = match found.await {
        Err(error) => return Err(offline_history::store_failure(error)),
        Ok(None) => return Err(offline_history::no_such_command(number, None)),
        Ok(Some(Err(range))) => return Err(offline_history::no_such_command(number, range)),
        Ok(Some(Ok(found))) => found,
    };
    let instead = match command.kind {
        CommandKind::Command => None,
        CommandKind::Send => Some(
            "Ctrl-C ends it where it runs; at drones of other programs it goes on, and only a stop ends it",
        ),
        CommandKind::Fetch => {
            Some("Ctrl-C ends it where it runs; at drones of other programs it goes on until its --timeout")
        }
        CommandKind::Stop => Some("`ground-station release SELECTOR` ends it"),
        CommandKind::Release => Some("`ground-station stop SELECTOR` stops again"),
    };
    match (instead, id) {
        (None, Some(id)) => Ok((command, id)),
        (Some(instead), _) => {
            let kind = command.kind;
            let text = format!("command {number} was a {kind}, which does not wait to be sent: {instead}");
            Err((Failure::Usage, text))
        }
        // An earlier version sent it to bridged devices alone.
        (None, None) => {
            let text = format!(
                "command {number} went to drones of other programs, from which nothing is taken back: a stop \
                 (`ground-station stop SELECTOR`) withdraws what waits for them"
            );
            Err((Failure::Usage, text))
        }
    }
}

async fn cancel_unsent(
    deliveries: &DeliveryHandle,
    store: &Store,
    state_dir: &Path,
    request: &CancelRequest,
    (command, id): (&CommandView, CommandId),
) -> Result<Vec<Event>, (Failure, String)> {
    let CancelRequest {
        number,
        timeout,
        user,
    } = request;
    let reason = format!("cancelled by {user} before it was sent");
    let Some(taken) = deliveries.cancel(id, reason).await else {
        let text = "the station is shutting down; ask again".to_owned();
        return Err((Failure::ShutDown, text));
    };
    let Cancelled {
        cancelled,
        sent,
        stored,
    } = taken;
    let is_stored = matches!(
        clock::timeout_at(clock::now() + *timeout, stored).await,
        Ok(Ok(()))
    );
    let parts = [
        (cancelled.len(), "taken back"),
        (sent.len(), "sent already: only a stop ends that"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, what)| format!("{count} {what}")).collect();
    let outcome = if parts.is_empty() {
        "nothing was open".to_owned()
    } else {
        parts.join("; ")
    };
    let detail = format!("command {number}: {} to {}", command.action, command.selector);
    history_writer::write_audit_entry(store, user, "cancel", &detail, &outcome).await;
    let now = read_command(state_dir, *number)
        .await
        .map_err(offline_history::store_failure)?;
    let (command, mut deliveries) = now.ok_or_else(|| offline_history::no_such_command(*number, None))?;
    let cancelled_ids = BTreeSet::from_iter(cancelled);
    for delivery in &mut deliveries {
        set_open_reason(delivery, &cancelled_ids, &sent, is_stored);
    }
    let mut all = vec![Event::note(outcome), Event::CommandDetails(command)];
    all.extend(deliveries.into_iter().map(Event::HistoryDelivery));
    Ok(all)
}

fn set_open_reason(
    delivery: &mut HistoryDelivery,
    cancelled: &BTreeSet<PeerId>,
    sent: &[PeerId],
    is_stored: bool,
) {
    if delivery.state != HistoryState::Open {
        return;
    }
    let why = if sent.contains(&delivery.id) {
        ALREADY_SENT
    } else if cancelled.contains(&delivery.id) && !is_stored {
        CANCEL_NOT_STORED
    } else {
        OUTCOME_NOT_YET_STORED
    };
    delivery.error = Some(why.to_owned());
}

type CommandWithDeliveries = Option<(CommandView, Vec<HistoryDelivery>)>;

async fn read_command(state_dir: &Path, number: u64) -> Result<CommandWithDeliveries, StoreError> {
    let found = history::run_query(state_dir, move |connection| {
        let Some(command) = history::command(connection, number)? else {
            return Ok(None);
        };
        let deliveries = history::deliveries(connection, number, &HistoryQuery::default())?;
        Ok(Some((command, deliveries)))
    });
    Ok(found.await?.flatten())
}

/// A fleet of which only a command can be taken back: it brings up no links.
pub fn cancel_only_fleet(lock: StateLock) -> Fleet {
    let (fleet, mut requests) = Fleet::local();
    tokio::spawn(async move {
        let state_dir = lock.state_dir().to_owned();
        while let Some(RequestEnvelope {
            request,
            events,
            user,
        }) = requests.recv().await
        {
            let Request::History(HistoryRequest::Cancel { number, timeout_ms }) = request else {
                let text = "without links a command can only be taken back";
                let _caller_gone = events.send(Event::failed(Failure::Usage, text)).await;
                continue;
            };
            let timeout = Duration::from_millis(timeout_ms);
            let cancel_request = CancelRequest {
                number,
                timeout,
                user,
            };
            if let Err(error) = cancel_offline(&state_dir, cancel_request, &events).await {
                let failed = Event::failed(Failure::Usage, error.to_string());
                let _caller_gone = events.send(failed).await;
            }
        }
    });
    fleet
}

/// The book alone, for as long as one request takes.
async fn cancel_offline(
    state_dir: &Path,
    request: CancelRequest,
    events: &mpsc::Sender<Event>,
) -> Result<(), EngineError> {
    if let Err((failure, message)) = find_command(state_dir, request.number).await {
        // Before anything is made in an empty directory.
        let _caller_gone = events.send(Event::failed(failure, message)).await;
        return Ok(());
    }
    let dir: PathBuf = state_dir.to_owned();
    let key = tokio::task::spawn_blocking(move || identity::load_or_create(&dir, KeyFile::Identity));
    let key = key.await.map_err(|e| EngineError::Fleet(e.to_string()))??;
    let store = Store::open(state_dir).await?;
    let (deliveries, inbox) = super::handle::channel();
    let next_id = Arc::new(AtomicU64::new(1));
    let delivery_task =
        super::task::DeliveryTask::open(store.clone(), key.public().id(), next_id, |_| true).await?;
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(delivery_task.run(inbox, shutdown.clone()));
    let all = cancel_and_report(&deliveries, &store, state_dir, request).await;
    shutdown.cancel();
    running.await.map_err(|e| EngineError::Fleet(e.to_string()))?;
    // Said last: the program ends when it has heard the end, and the last writes are in the file by then.
    if tokio::time::timeout(endpoint::SHUTDOWN_TIMEOUT, store.close())
        .await
        .is_err()
    {
        tracing::warn!("the store outlived the request; nothing of it is lost");
    }
    send_events(events, all).await;
    Ok(())
}

/// Sends events until the caller is gone.
async fn send_events(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
