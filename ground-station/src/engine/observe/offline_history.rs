//! The history and the audit, read from the store's file: by the engine, or by a verb without an engine.

use std::path::{Path, PathBuf};

use swarm_shared::net::clock;

use crate::engine::reporter::with_last;
use crate::store::{StoreError, history};
use swarm_shared::api::{Event, Failure, HistoryQuery, HistoryRequest, Request};
use swarm_shared::client::{Fleet, RequestEnvelope};

/// The events of an answer without the last one, or why there is no answer.
type Answer = Result<Vec<Event>, (Failure, String)>;

/// A fleet that answers requests for the history and the audit only, from the file in a state directory.
pub fn open(state_dir: PathBuf) -> Fleet {
    let (fleet, mut requests) = Fleet::local();
    tokio::spawn(async move {
        while let Some(RequestEnvelope { request, events, .. }) = requests.recv().await {
            let answer = if let Request::History(HistoryRequest::Commands { query }) = request {
                commands(&state_dir, query).await
            } else if let Request::History(HistoryRequest::Audit { query }) = request {
                audit(&state_dir, query).await
            } else {
                let text = "without links only the history can be asked for".to_owned();
                Err((Failure::Usage, text))
            };
            for event in with_last(answer) {
                if events.send(event).await.is_err() {
                    break;
                }
            }
        }
    });
    fleet
}

/// The commands that a query matches; with a number, the command and its deliveries.
pub(in crate::engine) async fn commands(state_dir: &Path, query: HistoryQuery) -> Answer {
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
    match (found.await.map_err(store_failure)?, number) {
        (Some(Ok(all)), _) => Ok(all),
        (None, None) => Ok(Vec::new()),
        (Some(Err(range)), _) => Err(no_such_command(number.unwrap_or_default(), range)),
        (None, Some(number)) => Err(no_such_command(number, None)),
    }
}

/// The entries of the audit that a query matches.
pub(in crate::engine) async fn audit(state_dir: &Path, query: HistoryQuery) -> Answer {
    let now_ms = clock::unix_time_ms();
    let limit = query.limit;
    let found = history::run_query(state_dir, move |connection| {
        history::audit_trail(connection, &with_limit_plus_one(&query), now_ms)
    });
    let entries = found.await.map_err(store_failure)?.unwrap_or_default();
    Ok(truncate_to_limit(limit, entries, Event::Audit))
}

/// The query for one row more than is wanted, which shows whether there are more.
fn with_limit_plus_one(query: &HistoryQuery) -> HistoryQuery {
    HistoryQuery {
        limit: query.limit.saturating_add(1),
        ..query.clone()
    }
}

/// At most `limit` of the rows as events, and a note if there are more.
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

/// How a request fails for a command that the history does not have.
pub(in crate::engine) fn no_such_command(number: u64, range: Option<(u64, u64)>) -> (Failure, String) {
    let known = match range {
        None => "nothing was sent from here yet".to_owned(),
        Some((first, last)) if first == last => format!("the only one is {first}"),
        Some((first, last)) => format!("kept are {first} to {last}; see `ground-station history`"),
    };
    (Failure::NoMatch, format!("there is no command {number}: {known}"))
}

/// How a request fails if the store cannot be read.
pub(in crate::engine) fn store_failure(error: StoreError) -> (Failure, String) {
    (Failure::Failed, error.to_string())
}
