//! Questions about the past need no links: they are answered from the store's file, by the engine or by whoever finds
//! no engine running.

use std::path::{Path, PathBuf};

use swarm_shared::net::clock;
use tokio::sync::mpsc;

use crate::store::{StoreError, history};
use swarm_shared::api::{Event, Failure, HistoryQuery, HistoryRequest, Request};
use swarm_shared::client::{Fleet, RequestEnvelope};

/// A fleet of which only the past can be asked, from the file in a state directory.
pub fn open(state_dir: PathBuf) -> Fleet {
    let (fleet, mut requests) = Fleet::local();
    tokio::spawn(async move {
        while let Some(RequestEnvelope { request, events, .. }) = requests.recv().await {
            if let Request::History(HistoryRequest::Commands { query }) = request {
                respond_history(&state_dir, query, events).await;
            } else if let Request::History(HistoryRequest::Audit { query }) = request {
                respond_audit(&state_dir, query, events).await;
            } else {
                let text = "without links only the past can be asked";
                send_events(&events, vec![Event::failed(Failure::Usage, text)]).await;
            }
        }
    });
    fleet
}

/// Answers what was sent and how it ended.
pub(in crate::engine) async fn respond_history(
    state_dir: &Path,
    query: HistoryQuery,
    events: mpsc::Sender<Event>,
) {
    let now_ms = clock::unix_time_ms();
    let number = query.number;
    let found = history::run_query(state_dir, move |connection| {
        let Some(number) = query.number else {
            let all = history::commands(connection, &with_limit_plus_one(&query), now_ms)?;
            return Ok(Ok(truncate_to_limit(query.limit, all, Event::Command)));
        };
        let Some(command) = history::command(connection, number)? else {
            return Ok(Err(history::number_range(connection)?));
        };
        let deliveries = history::deliveries(connection, number, &query)?;
        let mut all = vec![Event::CommandDetails(command)];
        all.extend(deliveries.into_iter().map(Event::HistoryDelivery));
        Ok(Ok(all))
    });
    let all = match (found.await, number) {
        (Ok(Some(Ok(all))), _) => with_end(all),
        (Ok(None), None) => with_end(Vec::new()),
        (Ok(Some(Err(range))), _) => vec![no_such_command(number.unwrap_or_default(), range)],
        (Ok(None), Some(number)) => vec![no_such_command(number, None)],
        (Err(error), _) => vec![store_failure(&error)],
    };
    send_events(&events, all).await;
}

/// Answers who did what.
pub(in crate::engine) async fn respond_audit(
    state_dir: &Path,
    query: HistoryQuery,
    events: mpsc::Sender<Event>,
) {
    let now_ms = clock::unix_time_ms();
    let limit = query.limit;
    let found = history::run_query(state_dir, move |connection| {
        history::audit_trail(connection, &with_limit_plus_one(&query), now_ms)
    });
    let all = match found.await {
        Ok(entries) => with_end(truncate_to_limit(
            limit,
            entries.unwrap_or_default(),
            Event::Audit,
        )),
        Err(error) => vec![store_failure(&error)],
    };
    send_events(&events, all).await;
}

/// The same for one more than is wanted: whether there are more is known only so.
fn with_limit_plus_one(query: &HistoryQuery) -> HistoryQuery {
    HistoryQuery {
        limit: query.limit.saturating_add(1),
        ..query.clone()
    }
}

/// What is wanted of what was found; and that there is more, if there is.
fn truncate_to_limit<T>(limit: u32, mut found: Vec<T>, event: impl Fn(T) -> Event) -> Vec<Event> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let note = (found.len() > most).then(|| {
        let more = limit.saturating_mul(10).min(history::ROWS_MAX);
        Event::note(format!(
            "these are the newest {limit}, and there are more: see them with `--limit {more}`"
        ))
    });
    found.truncate(most);
    found.into_iter().map(event).chain(note).collect()
}

/// There is no such command.
pub(in crate::engine) fn no_such_command(number: u64, range: Option<(u64, u64)>) -> Event {
    let known = match range {
        None => "nothing was sent from here yet".to_owned(),
        Some((first, last)) if first == last => format!("the only one is {first}"),
        Some((first, last)) => format!("kept are {first} to {last}; see `ground-station history`"),
    };
    Event::failed(Failure::NoMatch, format!("there is no command {number}: {known}"))
}

/// The store cannot say.
pub(in crate::engine) fn store_failure(error: &StoreError) -> Event {
    Event::failed(Failure::Failed, error.to_string())
}

fn with_end(mut all: Vec<Event>) -> Vec<Event> {
    all.push(Event::End);
    all
}

async fn send_events(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            // No caller waits for the reply.
            return;
        }
    }
}
