//! A command of the history again: what it was, to the nodes where it was not done.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;

use crate::engine::files::fetch::FetchArguments;
use crate::store::{StoreError, history};
use crate::text::fold;
use swarm_shared::api::{
    ActRequest, CommandKind, CommandView, Failure, HistoryDelivery, HistoryState, Request,
};

/// Digits of an id in the selector of a repetition: enough that no two nodes share them, and that thousands fit.
const ID_PREFIX_DIGITS: usize = 16;

/// The request that repeats the command, and a note for the caller.
pub(in crate::engine) struct RetryPlan {
    pub(in crate::engine) request: Request,
    /// The nodes, as people read it.
    pub(in crate::engine) shown: String,
    pub(in crate::engine) note: Option<String>,
    /// The names of the nodes by the terms of the request's selector.
    pub(in crate::engine) terms: BTreeMap<String, NodeName>,
}

/// Why nothing is repeated: for programs, and for people.
#[derive(Debug)]
pub(in crate::engine) struct RetryError(pub(in crate::engine) Failure, pub(in crate::engine) String);

/// Finds out what there is to do.
pub(in crate::engine) async fn plan(
    state_dir: &Path,
    number: u64,
    ttl_ms: Option<u64>,
    timeout_ms: u64,
) -> Result<RetryPlan, RetryError> {
    let found = history::run_query(state_dir, move |connection| {
        let Some(command) = history::command(connection, number)? else {
            return Ok(None);
        };
        Ok(Some((
            command,
            history::deliveries_with_retries(connection, number)?,
        )))
    });
    let failed = |error: StoreError| RetryError(Failure::Failed, error.to_string());
    let Some((command, family)) = found.await.map_err(failed)?.flatten() else {
        let text = format!("there is no command {number}; see `ground-station history`");
        return Err(RetryError(Failure::NoMatch, text));
    };
    let Remaining { nodes, open } = remaining(&family);
    if nodes.is_empty() {
        let why = match history_hint(&open) {
            None => "it is done everywhere".to_owned(),
            Some(at) => format!(
                "it is done, or open still, everywhere ({} open): {at}",
                open.len()
            ),
        };
        return Err(RetryError(
            Failure::NoMatch,
            format!("nothing of command {number} is to be repeated: {why}"),
        ));
    }
    let terms = nodes.iter();
    let terms = terms.map(|(id, delivery)| (format!("id:{}", id_prefix(*id)), delivery.node.clone()));
    let terms: BTreeMap<String, NodeName> = terms.collect();
    let list: Vec<&str> = terms.keys().map(String::as_str).collect();
    let selector = Selector::parse(&list.join(","))
        .map_err(|error| RetryError(Failure::Usage, format!("too many nodes at once: {error}")))?;
    let shown = fold(nodes.values().map(|delivery| &delivery.node));
    let request = retry_request(&command, selector, ttl_ms, timeout_ms)?;
    let note = history_hint(&open).map(|at| match open.len() {
        1 => format!("1 delivery is open still, and not repeated: {at}"),
        count => format!("{count} deliveries are open still, and not repeated: {at}"),
    });
    Ok(RetryPlan {
        request: request.into(),
        shown,
        note,
        terms,
    })
}

/// Where to look at deliveries that are open: the command itself, or what has repeated it since.
fn history_hint(open: &BTreeMap<PeerId, u64>) -> Option<String> {
    let numbers: BTreeSet<&u64> = open.values().collect();
    let places = numbers
        .iter()
        .map(|number| format!("`ground-station history {number}`"));
    let places = places.collect::<Vec<_>>().join(" and ");
    (!open.is_empty()).then(|| format!("see {places}"))
}

fn id_prefix(id: PeerId) -> String {
    swarm_shared::proto::hex::encode(&id.0)
        .chars()
        .take(ID_PREFIX_DIGITS)
        .collect()
}

/// What is left to do of a command.
struct Remaining<'a> {
    /// Where it ended, and not in `done`, even if it was repeated.
    nodes: BTreeMap<PeerId, &'a HistoryDelivery>,
    /// Nodes whose delivery may still come to an end by itself, and of which command that is.
    open: BTreeMap<PeerId, u64>,
}

/// Of each node's deliveries, one for each file, all have to be done, in the command or in one that repeats it.
fn remaining(family: &[HistoryDelivery]) -> Remaining<'_> {
    let mut last: BTreeMap<(PeerId, Option<&str>), &HistoryDelivery> = BTreeMap::new();
    let mut done = BTreeSet::new();
    for delivery in family {
        let part = (delivery.id, delivery.about.as_deref());
        last.insert(part, delivery);
        if delivery.state == HistoryState::Ended(Outcome::Done) {
            done.insert(part);
        }
    }
    last.retain(|part, _| !done.contains(part));
    let open: BTreeMap<PeerId, u64> = last
        .values()
        .filter(|delivery| delivery.state == HistoryState::Open)
        .map(|delivery| (delivery.id, delivery.command))
        .collect();
    let nodes = last
        .into_iter()
        .filter(|((id, _), _)| !open.contains_key(id))
        .map(|((id, _), delivery)| (id, delivery))
        .collect();
    Remaining { nodes, open }
}

fn retry_request(
    command: &CommandView,
    selector: Selector,
    ttl_given_ms: Option<u64>,
    timeout_ms: u64,
) -> Result<ActRequest, RetryError> {
    let number = command.command;
    let ttl_ms = ttl_given_ms.unwrap_or(command.ttl_ms);
    let unreadable = |error: serde_json::Error| {
        let text = format!("command {number} cannot be repeated: what it was is not readable ({error})");
        RetryError(Failure::Failed, text)
    };
    Ok(match command.kind {
        CommandKind::Command => ActRequest::Command {
            selector,
            action: command.action.clone(),
            arguments: serde_json::from_value::<Arguments>(command.arguments.clone()).map_err(unreadable)?,
            lane: Lane::Control,
            ttl_ms,
            ttl_given: ttl_given_ms.is_some(),
            timeout_ms,
            batch: None,
        },
        CommandKind::Send => ActRequest::SendFiles {
            selector,
            files: serde_json::from_value(command.arguments.clone()).map_err(unreadable)?,
            ttl_ms,
            timeout_ms,
        },
        CommandKind::Fetch => {
            let FetchArguments { path, dir } =
                serde_json::from_value(command.arguments.clone()).map_err(unreadable)?;
            ActRequest::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            }
        }
        CommandKind::Stop | CommandKind::Release => {
            let text = format!(
                "command {number} was a {0}: type `ground-station {0}` again",
                command.kind
            );
            return Err(RetryError(Failure::Usage, text));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use super::*;

    fn past(command: u64, node: u8, about: Option<&str>, state: HistoryState) -> HistoryDelivery {
        HistoryDelivery {
            node: NodeName::parse(&format!("drone-{node}")).expect("a name"),
            id: PeerId([node; 32]),
            state,
            value: None,
            output: None,
            exit: None,
            error: None,
            ms: None,
            command,
            about: about.map(str::to_owned),
            stages: Map::new(),
        }
    }

    const DONE: HistoryState = HistoryState::Ended(Outcome::Done);
    const FAILED: HistoryState = HistoryState::Ended(Outcome::Failed);

    fn nodes(family: &[HistoryDelivery]) -> (Vec<u8>, usize) {
        let Remaining { nodes, open } = remaining(family);
        (nodes.keys().map(|id| id.0[0]).collect(), open.len())
    }

    #[test]
    fn retry_skips_done_and_open_deliveries() {
        let family = [
            past(1, 1, None, DONE),
            past(1, 2, None, FAILED),
            past(1, 3, None, HistoryState::Open),
            past(1, 4, None, HistoryState::Ended(Outcome::NoAnswer)),
        ];
        assert_eq!(nodes(&family), (vec![2, 4], 1));
    }

    #[test]
    fn retry_skips_deliveries_done_by_an_earlier_retry() {
        let mut family = vec![past(1, 1, None, FAILED), past(1, 2, None, FAILED)];
        family.extend([past(2, 1, None, DONE), past(2, 2, None, FAILED)]);
        assert_eq!(nodes(&family), (vec![2], 0));
        family.push(past(3, 2, None, HistoryState::Open));
        assert_eq!(nodes(&family), (vec![], 1));
    }

    #[test]
    fn retry_hint_names_commands_with_open_deliveries() {
        let family = [
            past(1, 1, None, FAILED),
            past(1, 2, None, HistoryState::Open),
            past(3, 1, None, HistoryState::Open),
        ];
        let one = remaining(&family[1..2]);
        assert_eq!(
            history_hint(&one.open).as_deref(),
            Some("see `ground-station history 1`")
        );
        let both = remaining(&family);
        assert_eq!(
            history_hint(&both.open).as_deref(),
            Some("see `ground-station history 1` and `ground-station history 3`")
        );
        assert_eq!(history_hint(&remaining(&[past(1, 1, None, DONE)]).open), None);
    }

    #[test]
    fn retry_repeats_nodes_with_any_file_not_done() {
        let family = [
            past(1, 1, Some("a"), DONE),
            past(1, 1, Some("b"), FAILED),
            past(1, 2, Some("a"), DONE),
        ];
        assert_eq!(nodes(&family), (vec![1], 0));
    }
}
