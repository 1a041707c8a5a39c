//! A command of the history is taken back: what of it has not been sent to its node never is.
//!
//! It asks the book of deliveries, and answers when the ends are stored. Without a running `serve` the book is opened
//! from the store with no links at all, so that nothing is sent while it is being taken back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::PeerId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::delivery_task::{self, Keeper, Taken};
use super::respond::say_all;
use super::{EngineError, history_writer};
use crate::control::lock::StateLock;
use crate::fleet::{
    Call, CommandKind, CommandView, Event, Failure, Fleet, PastDelivery, PastQuery, PastState, Request,
    offline_history,
};
use crate::store::{Store, StoreError, history};

const SENT: &str = "sent already; only a stop ends it";
const ENDING: &str = "its outcome is being stored";
const NOT_STORED: &str = "taken back, and not sent as long as the station runs; it cannot store that yet: look \
                          whether its disk is full, and repeat this";

/// What is asked.
pub(super) struct Asked {
    pub(super) number: u64,
    /// How long to wait until it is stored.
    pub(super) timeout: Duration,
    pub(super) who: String,
}

/// Takes back what has not been sent: `about` the command, and all its `past` deliveries as they stand then.
pub(super) async fn run(
    keeper: &Keeper,
    store: &Store,
    state_dir: &Path,
    asked: Asked,
    events: &mpsc::Sender<Event>,
) {
    say_all(events, said(keeper, store, state_dir, asked).await).await;
}

/// Takes back, and returns what there is to say of it.
async fn said(keeper: &Keeper, store: &Store, state_dir: &Path, asked: Asked) -> Vec<Event> {
    let done = async {
        let (command, id) = find(state_dir, asked.number).await?;
        take_back(keeper, store, state_dir, &asked, (&command, id)).await
    };
    match done.await {
        Ok(mut all) => {
            all.push(Event::End);
            all
        }
        Err(failed) => vec![failed],
    }
}

/// The command and its identity; or why there is nothing to take back.
async fn find(state_dir: &Path, number: u64) -> Result<(CommandView, CommandId), Event> {
    let found = history::ask(state_dir, move |connection| {
        let Some(command) = history::command(connection, number)? else {
            return Ok(Err(history::numbers(connection)?));
        };
        Ok(Ok((command, history::identity(connection, number)?)))
    });
    let (command, id) = match found.await {
        Err(error) => return Err(offline_history::failed(&error)),
        Ok(None) => return Err(offline_history::unknown(number, None)),
        Ok(Some(Err(range))) => return Err(offline_history::unknown(number, range)),
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
            Err(Event::failed(Failure::Usage, text))
        }
        // Only nodes of the fleet need one.
        (None, None) => {
            let text = format!(
                "command {number} went to drones of other programs, from which nothing is taken back: a stop \
                 (`ground-station stop SELECTOR`) withdraws what waits for them"
            );
            Err(Event::failed(Failure::Usage, text))
        }
    }
}

async fn take_back(
    keeper: &Keeper,
    store: &Store,
    state_dir: &Path,
    asked: &Asked,
    (command, id): (&CommandView, CommandId),
) -> Result<Vec<Event>, Event> {
    let Asked { number, timeout, who } = asked;
    let why = format!("cancelled by {who} before it was sent");
    let Some(taken) = keeper.take_back(id, why).await else {
        return Err(Event::failed(
            Failure::Stopped,
            "the station is shutting down; ask again",
        ));
    };
    let Taken {
        taken_back,
        sent,
        stored,
    } = taken;
    let is_stored = matches!(
        clock::timeout_at(clock::now() + *timeout, stored).await,
        Ok(Ok(()))
    );
    let parts = [
        (taken_back.len(), "taken back"),
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
    history_writer::note(store, who, "cancel", &detail, &outcome).await;
    let now = read(state_dir, *number)
        .await
        .map_err(|error| offline_history::failed(&error))?;
    let (command, mut deliveries) = now.ok_or_else(|| offline_history::unknown(*number, None))?;
    let taken_back = BTreeSet::from_iter(taken_back);
    for delivery in &mut deliveries {
        say_why_open(delivery, &taken_back, &sent, is_stored);
    }
    let mut all = vec![Event::note(outcome), Event::About(command)];
    all.extend(deliveries.into_iter().map(Event::Past));
    Ok(all)
}

fn say_why_open(
    delivery: &mut PastDelivery,
    taken_back: &BTreeSet<PeerId>,
    sent: &[PeerId],
    is_stored: bool,
) {
    if delivery.state != PastState::Open {
        return;
    }
    let why = if sent.contains(&delivery.id) {
        SENT
    } else if taken_back.contains(&delivery.id) && !is_stored {
        NOT_STORED
    } else {
        ENDING
    };
    delivery.error = Some(why.to_owned());
}

type Now = Option<(CommandView, Vec<PastDelivery>)>;

async fn read(state_dir: &Path, number: u64) -> Result<Now, StoreError> {
    let found = history::ask(state_dir, move |connection| {
        let Some(command) = history::command(connection, number)? else {
            return Ok(None);
        };
        let deliveries = history::deliveries(connection, number, &PastQuery::default())?;
        Ok(Some((command, deliveries)))
    });
    Ok(found.await?.flatten())
}

/// A fleet of which only a command can be taken back: it brings up no links.
pub fn without_links(lock: StateLock) -> Fleet {
    let (fleet, mut calls) = Fleet::local();
    tokio::spawn(async move {
        let state_dir = lock.state_dir().to_owned();
        while let Some(Call { request, events, who }) = calls.recv().await {
            let Request::Cancel { number, timeout_ms } = request else {
                let text = "without links a command can only be taken back";
                let _caller_gone = events.send(Event::failed(Failure::Usage, text)).await;
                continue;
            };
            let timeout = Duration::from_millis(timeout_ms);
            let asked = Asked { number, timeout, who };
            if let Err(error) = alone(&state_dir, asked, &events).await {
                let failed = Event::failed(Failure::Usage, error.to_string());
                let _caller_gone = events.send(failed).await;
            }
        }
    });
    fleet
}

/// The book alone, for as long as one request takes.
async fn alone(state_dir: &Path, asked: Asked, events: &mpsc::Sender<Event>) -> Result<(), EngineError> {
    if let Err(failed) = find(state_dir, asked.number).await {
        // Before anything is made in an empty directory.
        let _caller_gone = events.send(failed).await;
        return Ok(());
    }
    let dir: PathBuf = state_dir.to_owned();
    let key = tokio::task::spawn_blocking(move || identity::load_or_create(&dir, KeyFile::Identity));
    let key = key.await.map_err(|e| EngineError::Fleet(e.to_string()))??;
    let store = Store::open(state_dir).await?;
    let (keeper, words) = delivery_task::Task::channel();
    let next_id = Arc::new(AtomicU64::new(1));
    let book = delivery_task::Task::open(store.clone(), key.public().id(), next_id).await?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(book.run(words, stop.clone()));
    let all = said(&keeper, &store, state_dir, asked).await;
    stop.cancel();
    running.await.map_err(|e| EngineError::Fleet(e.to_string()))?;
    // Said last: the program ends when it has heard the end, and the last writes are in the file by then.
    if tokio::time::timeout(endpoint::SHUTDOWN_GRACE, store.close())
        .await
        .is_err()
    {
        tracing::warn!("the store outlived the request; nothing of it is lost");
    }
    say_all(events, all).await;
    Ok(())
}

#[cfg(test)]
mod tests;
