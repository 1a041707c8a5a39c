//! A command on many nodes, by deliveries of the tracker: all at once or in batches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::delivery::tracker::DeliveryTarget;
use swarm_shared::proto::delivery::{CommandId, FLIGHT_TTL_MS_MAX};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, WireError};
use tokio::sync::mpsc;

use crate::engine::SharedContext;
use crate::engine::delivery::handle::{DeliveryCommand, DeliveryHandle, DeliveryUpdate, NewCommand};
use crate::engine::delivery::query::{self, Command};
use crate::engine::observe::action_catalogs;
use crate::engine::registry::Target;
use crate::engine::reporter::{CallerGone, Reporter};
use crate::store::HistoryNumber;
use crate::store::deliveries::Origin;
use swarm_shared::api::Event;

/// A command, and its origin.
pub(in crate::engine) struct DurableCommand {
    pub(in crate::engine) command: Command,
    pub(in crate::engine) selector: String,
    pub(in crate::engine) origin: Origin,
}

/// Issues the command and reports how each delivery ended, until all have ended or the time-out has passed. Deliveries that
/// are open then go on, and the history shows how they end.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    durable: DurableCommand,
    reporter: Reporter,
) {
    let started = reporter.started();
    let DurableCommand {
        command,
        selector,
        origin,
    } = durable;
    let arguments = match serde_json::to_string(&command.arguments) {
        Ok(arguments) if arguments.len() <= CONTENT_BYTES_MAX => arguments,
        Ok(arguments) => {
            let (bytes, max) = (arguments.len() as u64, CONTENT_BYTES_MAX);
            return query::send_encode_failure(&reporter, &WireError::ContentTooLong { bytes, max }).await;
        }
        Err(error) => {
            return query::send_encode_failure(&reporter, &WireError::BadHeader(error.to_string())).await;
        }
    };
    // The gateways of bridged devices know which actions are flight actions.
    let nodes = || {
        let nodes = targets.iter();
        nodes.filter_map(|target| Some((target.node.id, target.own_node()?)))
    };
    let catalog_wait = command.ttl.min(command.timeout) / 2;
    tokio::select! {
        biased;
        () = reporter.caller().closed() => return,
        () = action_catalogs::wait_for_catalogs(nodes().map(|(_, node)| &node.action_catalog), &command.action, shared.started, started + catalog_wait) => {}
    }
    let flight = nodes().filter(|(_, node)| node.action_catalog.borrow().is_flight_action(&command.action));
    let ids = nodes().map(|(id, _)| id).collect();
    shared.stops.unconfirmed.wait_for_reports(&ids).await;
    let mut flight: BTreeSet<PeerId> = flight.map(|(id, _)| id).collect();
    if !flight.is_empty() {
        // A flight action of some nodes is not queued for those that have not offered their actions.
        let unknown = nodes().filter(|(_, node)| node.action_catalog.borrow().is_unknown());
        flight.extend(unknown.map(|(id, _)| id));
    }
    let flight_max = Duration::from_millis(FLIGHT_TTL_MS_MAX);
    let ttl = if flight.is_empty() {
        command.ttl
    } else {
        command.ttl.min(flight_max)
    };
    if command.ttl_given && ttl < command.ttl {
        let text = format!("flight action: time to live is {} s", flight_max.as_secs());
        if reporter.send(Event::note(text)).await.is_err() {
            return;
        }
    }
    let size = command
        .batch
        .map_or(targets.len(), |batch| batch.size.node_count(targets.len()));
    let addressees = targets.iter().enumerate().map(|(place, target)| DeliveryTarget {
        to: target.node.id,
        name: target.node.node.clone(),
        may_queue: !flight.contains(&target.node.id),
        deferred: place >= size,
        refusal_reason: refusal_reason(&shared, target, &command.action),
    });
    let history_number = origin.history_number.clone();
    let new = NewCommand {
        action: command.action.clone(),
        arguments,
        lane: command.lane,
        ttl,
        requested_at: started,
        selector,
        targets: addressees.collect(),
        bridged: targets
            .iter()
            .filter_map(|target| Some((target.node.id, target.bridged()?.clone())))
            .collect(),
        reply_timeout: command.timeout,
        origin,
    };
    let targets_event = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    if reporter.send(targets_event).await.is_err() {
        return;
    }
    let updates = shared.deliveries.issue(new).await;
    let mut run = Run {
        command: &command,
        deliveries: &shared.deliveries,
        updates,
        reporter: &reporter,
        open: targets
            .iter()
            .map(|target| (target.node.id, target.clone()))
            .collect(),
        history_number,
        issued: None,
        all_done: true,
    };
    if run.run_batches(&targets, size, ttl).await.is_ok() {
        return;
    }
    // Later batches are not released any more.
    while run.issued.is_none()
        && let Some(update) = run.updates.recv().await
    {
        if let DeliveryUpdate::Issued { id, number } = update {
            run.issued = Some((id, number));
        }
    }
    if let Some((id, _)) = run.issued {
        let reason = "not sent: the client disconnected".to_owned();
        shared
            .deliveries
            .send(DeliveryCommand::Withhold { id, reason })
            .await;
    }
}

/// Why the command is not sent to a node that may not be stopped although it should; `None` if it is sent: the action may
/// run while stopped, or there is no such stop.
fn refusal_reason(shared: &SharedContext, target: &Target, action: &str) -> Option<String> {
    let reason = shared.stops.unconfirmed.refusal(target.node.id)?;
    let runs = target
        .own_node()?
        .action_catalog
        .borrow()
        .can_run_while_stopped(action);
    (!runs).then_some(reason)
}

/// The outcome for the caller of a delivery that goes on after the time-out.
fn no_answer(target: &Target, waited: Duration, ttl: Duration) -> Reply {
    let ttl = ttl.as_secs_f64();
    let Some(node) = target.own_node() else {
        let waited = waited.as_secs_f64();
        let error = format!("no reply within {waited} s; it may still go out: see `ground-station history`");
        return Reply::ended(Outcome::NoAnswer, error);
    };
    let error = if *node.online.borrow() {
        query::no_answer_text(waited)
    } else {
        let waited = match waited.as_secs_f64() {
            0.0 => "offline".to_owned(),
            waited => format!("offline for the {waited} s that were waited"),
        };
        format!(
            "{waited}; it runs if the node links to `serve`, or to the next verb, within {ttl} s of being asked"
        )
    };
    Reply::ended(Outcome::NoAnswer, error)
}

/// The outcome for the caller of a delivery that is not stored yet, and so not sent yet.
fn not_stored(waited: Duration) -> Reply {
    let error = match waited.as_secs_f64() {
        0.0 => {
            "not waited for, and not stored yet: see `ground-station history` before you repeat it".to_owned()
        }
        waited => format!(
            "not sent yet: the station could not store it within {waited} s; look whether its disk is full, and at \
             `ground-station history` before you repeat it"
        ),
    };
    Reply::ended(Outcome::NoAnswer, error)
}

struct Run<'a> {
    command: &'a Command,
    deliveries: &'a DeliveryHandle,
    updates: mpsc::Receiver<DeliveryUpdate>,
    reporter: &'a Reporter,
    /// Targets whose outcome has not been reported.
    open: BTreeMap<PeerId, Target>,
    /// Its number in the history, shared with the subscribers.
    history_number: HistoryNumber,
    issued: Option<(CommandId, u64)>,
    /// Whether every outcome so far is `done`.
    all_done: bool,
}

impl Run<'_> {
    async fn run_batches(
        &mut self,
        targets: &[Target],
        size: usize,
        ttl: Duration,
    ) -> Result<(), CallerGone> {
        let mut failed = false;
        for (place, batch) in targets.chunks(size).enumerate() {
            let batch: Vec<PeerId> = batch.iter().map(|target| target.node.id).collect();
            if place > 0 {
                let wait = self.command.batch.map_or(0, |batch| batch.wait_ms);
                let until = clock::now() + Duration::from_millis(wait);
                if !self.forward_updates(&BTreeSet::new(), until).await? {
                    return Ok(());
                }
                let Some((id, _)) = self.issued else { break };
                let targets = batch.clone();
                self.deliveries
                    .send(DeliveryCommand::ReleaseBatch { id, targets, ttl })
                    .await;
            }
            let batch: BTreeSet<PeerId> = batch.into_iter().collect();
            let asked = if place > 0 {
                clock::now()
            } else {
                self.reporter.started()
            };
            let give_up = asked + self.command.timeout;
            if !self.forward_updates(&batch, give_up).await? {
                return Ok(());
            }
            if self.issued.is_none() {
                // The later batches are not released either, once it is stored.
                for (_, target) in std::mem::take(&mut self.open) {
                    self.send_delivery(target, not_stored(self.command.timeout))
                        .await?;
                }
                self.reporter.send(Event::End).await?;
                return Err(CallerGone);
            }
            for id in &batch {
                if let Some(target) = self.open.remove(id) {
                    let reply = no_answer(&target, self.command.timeout, ttl);
                    self.send_delivery(target, reply).await?;
                }
            }
            let keeps_going = self.command.batch.is_some_and(|batch| batch.keep_going);
            if !self.all_done && !keeps_going && !self.open.is_empty() {
                failed = true;
                break;
            }
        }
        if let (true, Some((id, _))) = (failed, self.issued) {
            let reason = "not sent: an earlier batch failed".to_owned();
            self.deliveries
                .send(DeliveryCommand::Withhold { id, reason })
                .await;
            let rest: BTreeSet<PeerId> = self.open.keys().copied().collect();
            let give_up = clock::now() + self.command.timeout;
            self.forward_updates(&rest, give_up).await?;
            for (_, target) in std::mem::take(&mut self.open) {
                let reply = Reply::refused("not sent: an earlier batch failed");
                self.send_delivery(target, reply).await?;
            }
        }
        if let (false, Some((_, number))) = (self.all_done, self.issued) {
            let text = format!("see `ground-station history {number}`");
            self.reporter.send(Event::note(text)).await?;
        }
        self.reporter.send(Event::End).await
    }

    /// Reports updates until all of `batch` have ended, or until `until`. False if the command was not issued: then the last
    /// event has been sent.
    async fn forward_updates(
        &mut self,
        batch: &BTreeSet<PeerId>,
        until: Instant,
    ) -> Result<bool, CallerGone> {
        let waits_only = batch.is_empty();
        while waits_only || batch.iter().any(|id| self.open.contains_key(id)) {
            let update = tokio::select! {
                biased;
                () = self.reporter.caller().closed() => return Err(CallerGone),
                update = clock::timeout_at(until, self.updates.recv()) => update,
            };
            let update = match update {
                Ok(Some(update)) => update,
                Ok(None) if waits_only => {
                    clock::sleep_until(until).await;
                    break;
                }
                Ok(None) | Err(_) => break,
            };
            match update {
                DeliveryUpdate::Issued { id, number } => {
                    let number = self.history_number.get_or_set(number);
                    self.issued = Some((id, number));
                    self.reporter.send(Event::Issued { number }).await?;
                }
                DeliveryUpdate::NotIssued(why) => {
                    for (_, target) in std::mem::take(&mut self.open) {
                        let reply = Reply::refused(format!("nothing was sent: {why}"));
                        self.send_delivery(target, reply).await?;
                    }
                    self.reporter.send(Event::End).await?;
                    return Ok(false);
                }
                DeliveryUpdate::Stage { to, stage } => {
                    if let Some(target) = self.open.get(&to) {
                        let node = target.node.clone();
                        let ms = self.reporter.elapsed_ms();
                        self.reporter.send(Event::Stage { node, stage, ms }).await?;
                    }
                }
                DeliveryUpdate::Ended { to, reply } => {
                    if let Some(target) = self.open.remove(&to) {
                        self.send_delivery(target, reply).await?;
                    }
                }
            }
        }
        Ok(true)
    }

    async fn send_delivery(&mut self, target: Target, reply: Reply) -> Result<(), CallerGone> {
        self.all_done &= reply.state == Outcome::Done;
        self.reporter
            .send(self.reporter.delivery(target.node, reply))
            .await
    }
}

#[cfg(test)]
mod tests;
