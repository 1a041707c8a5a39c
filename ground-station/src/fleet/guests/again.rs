//! A command of the history again, where it went to guests.
//!
//! What went to guests is an entry of its own in the history, so it is repeated here and the engine is not asked. What
//! went to own nodes is repeated by the engine.
//!
//! Reading the history may take a disk's time. What is repeated counts from when it was asked for all the same: a stop
//! that comes meanwhile withdraws it, and it ages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::selector::{NodeAttributes, Selector};

use super::Meant;
use super::desk::Counter;
use super::merge::Gone;
use crate::fleet::engine::retry::{RetryError, RetryPlan, plan};
use crate::fleet::{Event, Failure, HistoryRequest, NodesRequest, Request, RequestEnvelope};
use crate::store::{Origin, history};
use crate::text::fold;

impl Counter {
    /// `known` are all guests as they were when it was asked for.
    pub(super) async fn again(
        &self,
        (known, asked_at): (Vec<Meant>, Instant),
        call: RequestEnvelope,
    ) -> Result<(), Gone> {
        let Request::History(HistoryRequest::Retry {
            number,
            ttl_ms,
            timeout_ms,
        }) = call.request
        else {
            return Ok(());
        };
        let state_dir = self.store.path().parent().unwrap_or(self.store.path()).to_owned();
        let planned = plan(&state_dir, number, ttl_ms, timeout_ms).await;
        let RetryPlan { request, shown, note } = match planned {
            Ok(plan) => plan,
            Err(RetryError(failure, message)) => {
                let failed = Event::failed(failure, message);
                return call.events.send(failed).await.map_err(|_gone| Gone);
            }
        };
        let Some(selector) = request.selector() else {
            self.engine.forward(call).await;
            return Ok(());
        };
        let here = self.guests.meant(selector);
        let here: BTreeSet<PeerId> = here.iter().map(|guest| guest.node.id).collect();
        let is_meant = |guest: &Meant| here.contains(&guest.node.id);
        let meant: Vec<Meant> = known.into_iter().filter(is_meant).collect();
        if meant.is_empty() {
            if self.knows_own(selector).await {
                self.engine.forward(call).await;
                return Ok(());
            }
            let text = format!(
                "nothing of command {number} is repeated: {shown} is not known here now; drones of other programs \
                 are known once they have connected"
            );
            let failed = Event::failed(Failure::NoMatch, text);
            return call.events.send(failed).await.map_err(|_gone| Gone);
        }
        if let Some(note) = note {
            let note = Event::note(note);
            call.events.send(note).await.map_err(|_gone| Gone)?;
        }
        if let Some(note) = absent(&state_dir, number, selector, &meant).await {
            let note = Event::note(note);
            call.events.send(note).await.map_err(|_gone| Gone)?;
        }
        let origin = Origin {
            retry_of: Some(number),
            shown_selector: Some(shown),
            ..Origin::command_by(call.user.clone())
        };
        self.answer(
            (meant, asked_at),
            RequestEnvelope { request, ..call },
            Some(origin),
        )
        .await
    }

    /// Whether the engine knows any of these.
    async fn knows_own(&self, selector: &Selector) -> bool {
        let selector = selector.clone();
        let mut events = self.engine.perform(NodesRequest::Targets { selector }).await;
        while let Some(event) = events.recv().await {
            if let Event::Targets { targets } = event {
                return !targets.is_empty();
            }
        }
        false
    }
}

/// What to tell whoever repeats a command for some who are not known now. Its terms are ids; people read names.
async fn absent(state_dir: &Path, number: u64, selector: &Selector, meant: &[Meant]) -> Option<String> {
    let no_tags = BTreeMap::new();
    let is = |term: &Selector, name, id| {
        term.matches(&NodeAttributes {
            name,
            id,
            tags: &no_tags,
        })
    };
    let is_here = |term: &Selector| {
        meant
            .iter()
            .any(|guest| is(term, &guest.node.node, &guest.node.id))
    };
    let terms: Vec<Selector> = selector.terms().filter(|term| !is_here(term)).collect();
    if terms.is_empty() {
        return None;
    }
    let family = history::run_query(state_dir, move |connection| {
        history::deliveries_with_retries(connection, number)
    })
    .await;
    let past = family.unwrap_or_else(|error| {
        tracing::warn!(%error, number, "drones that a command is not repeated at are told by their ids");
        None
    });
    let past = past.unwrap_or_default();
    let names: BTreeSet<_> = past
        .iter()
        .filter(|past| terms.iter().any(|term| is(term, &past.node, &past.id)))
        .map(|past| &past.node)
        .collect();
    let who = if names.is_empty() {
        let terms: Vec<&str> = terms.iter().map(Selector::as_str).collect();
        terms.join(", ")
    } else {
        fold(names)
    };
    Some(format!(
        "no node matches {who}, so nothing is repeated there; drones of other programs are known once they have \
         connected"
    ))
}
