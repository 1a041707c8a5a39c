//! Questions about the past need no links: they are answered from the store's file, by the engine or by whoever finds
//! no engine running.

use std::path::{Path, PathBuf};

use swarm_shared::net::clock;
use tokio::sync::mpsc;

use super::{Call, Event, Failure, Fleet, PastQuery, Request};
use crate::store::{StoreError, history};

/// A fleet of which only the past can be asked, from the file in a state directory.
pub fn open(state_dir: PathBuf) -> Fleet {
    let (fleet, mut calls) = Fleet::local();
    tokio::spawn(async move {
        while let Some(Call { request, events, .. }) = calls.recv().await {
            if let Request::History { query } = request {
                answer(&state_dir, query, events).await;
            } else if let Request::Audit { query } = request {
                answer_audit(&state_dir, query, events).await;
            } else {
                let text = "without links only the past can be asked";
                say(&events, vec![Event::failed(Failure::Usage, text)]).await;
            }
        }
    });
    fleet
}

/// Answers what was sent and how it ended.
pub(super) async fn answer(state_dir: &Path, query: PastQuery, events: mpsc::Sender<Event>) {
    let now_ms = clock::unix_time_ms();
    let number = query.number;
    let found = history::ask(state_dir, move |connection| {
        let Some(number) = query.number else {
            let all = history::commands(connection, &one_more(&query), now_ms)?;
            return Ok(Ok(at_most(query.limit, all, Event::Command)));
        };
        let Some(command) = history::command(connection, number)? else {
            return Ok(Err(history::numbers(connection)?));
        };
        let deliveries = history::deliveries(connection, number, &query)?;
        let mut all = vec![Event::About(command)];
        all.extend(deliveries.into_iter().map(Event::Past));
        Ok(Ok(all))
    });
    let all = match (found.await, number) {
        (Ok(Some(Ok(all))), _) => whole(all),
        (Ok(None), None) => whole(Vec::new()),
        (Ok(Some(Err(range))), _) => vec![unknown(number.unwrap_or_default(), range)],
        (Ok(None), Some(number)) => vec![unknown(number, None)],
        (Err(error), _) => vec![failed(&error)],
    };
    say(&events, all).await;
}

/// Answers who did what.
pub(super) async fn answer_audit(state_dir: &Path, query: PastQuery, events: mpsc::Sender<Event>) {
    let now_ms = clock::unix_time_ms();
    let limit = query.limit;
    let found = history::ask(state_dir, move |connection| {
        history::audit_trail(connection, &one_more(&query), now_ms)
    });
    let all = match found.await {
        Ok(entries) => whole(at_most(limit, entries.unwrap_or_default(), Event::Audit)),
        Err(error) => vec![failed(&error)],
    };
    say(&events, all).await;
}

/// The same for one more than is wanted: whether there are more is known only so.
fn one_more(query: &PastQuery) -> PastQuery {
    PastQuery {
        limit: query.limit.saturating_add(1),
        ..query.clone()
    }
}

/// What is wanted of what was found; and that there is more, if there is.
fn at_most<T>(limit: u32, mut found: Vec<T>, event: impl Fn(T) -> Event) -> Vec<Event> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let note = (found.len() > most).then(|| {
        let more = limit.saturating_mul(10).min(history::LIMIT_MAX);
        Event::note(format!(
            "these are the newest {limit}, and there are more: see them with `--limit {more}`"
        ))
    });
    found.truncate(most);
    found.into_iter().map(event).chain(note).collect()
}

/// There is no such command.
pub(super) fn unknown(number: u64, range: Option<(u64, u64)>) -> Event {
    let known = match range {
        None => "nothing was sent from here yet".to_owned(),
        Some((first, last)) if first == last => format!("the only one is {first}"),
        Some((first, last)) => format!("kept are {first} to {last}; see `ground-station history`"),
    };
    Event::failed(
        Failure::NobodyMatched,
        format!("there is no command {number}: {known}"),
    )
}

/// The store cannot say.
pub(super) fn failed(error: &StoreError) -> Event {
    Event::failed(Failure::Failed, error.to_string())
}

fn whole(mut all: Vec<Event>) -> Vec<Event> {
    all.push(Event::End);
    all
}

async fn say(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            // Nobody wants to know.
            return;
        }
    }
}
