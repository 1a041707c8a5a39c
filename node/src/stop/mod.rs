//! The emergency stop at the node: receives orders from links and datagrams, latches, runs the owner's command, relays
//! orders, and reports to the stations.
//!
//! The way of a stop, with its four channels: `ground-station stop` → engine ([`Request::Stop`]) → session of the node
//! (emergency queue) ⇒ link ⇒ session of the station ([`Events::stops`]) → this task, where the stop is in force →
//! links (latch), which kill what runs.
//!
//! | part | where |
//! |---|---|
//! | order, signature, receiver and sender as pure state machines | `shared/src/proto/stop` |
//! | the station's side: rounds, reports, unconfirmed stops, the history | `ground-station`, `engine/stop` |
//! | this task: inputs, effects | `mod.rs` |
//! | the owner's command | `command.rs` |
//! | what is stored of stops, and its recovery | `records.rs`, `shared/src/net/journal/latch.rs` |
//!
//! | task | owns | ends |
//! |---|---|---|
//! | stop | the [`StopReceiver`], the links of stations | at shutdown |
//! | command | the owner's command, at most one | with the program, or at shutdown |
//! | relay | one order, for at most [`RELAY_DELAY_MS_MAX`] and one broadcast | when it is sent |
//!
//! Invariants: an order takes effect before this task waits for anything, the disk included; a station is told
//! `latched` only when the latch file has the stop; nothing but [`StopHandle::release`] ends a stop or a hold; a hold
//! runs no command and kills nothing.
//!
//! [`Request::Stop`]: ../../ground_station/index.html
//! [`Events::stops`]: swarm_shared::net::endpoint::Events::stops

mod command;
mod records;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::net::discovery::pings::{Broadcaster, Datagram};
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{PeerLink, StopReceived};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopCommandState, StopStatus};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::NodeAttributes;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{
    ActiveStop, Received, ReceivedVia, ReleaseError, StopId, StopMemory, StopReceiver, StopRejection,
    StopState,
};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::command::{RunningCommand, run_to_end};
pub use self::records::Restored;
use self::records::Write;
use crate::config::EmergencyStop;
use crate::journal::{Journal, PendingAppends};
use crate::status::Status;

/// Stops by datagram that wait; further ones are dropped, for their sender repeats them.
pub const DATAGRAMS_MAX: usize = 64;
/// Requests that wait for the task.
const REQUESTS_MAX: usize = 64;
/// Records that wait for the journal.
const APPENDS_MAX: usize = 64;
/// Longest delay before an order is relayed, in milliseconds: neighbours draw different ones, so that their broadcasts
/// do not collide.
pub const RELAY_DELAY_MS_MAX: u64 = 30;
/// How long after a failed write the stop is written again.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum StopRequest {
    AddStation(PeerLink),
    RemoveStation(PeerId),
    Release {
        number: u64,
        issuer: Option<PeerId>,
        reply: oneshot::Sender<Reply>,
    },
}

/// A handle of the emergency stop; clones share it.
#[derive(Clone, Debug)]
pub struct StopHandle {
    requests: mpsc::Sender<StopRequest>,
    state: watch::Receiver<StopState>,
}

/// What [`StopHandle::start`] needs.
#[derive(Debug)]
pub struct Setup {
    /// For this node's name, tags, id and fleet, by which orders are judged.
    pub endpoint: Endpoint,
    /// The command of `[emergency_stop]`; `None` if the owner gave none.
    pub config: Option<EmergencyStop>,
    /// Where a stop is latched.
    pub journal: Journal,
    /// What the disk held at the start.
    pub restored: Restored,
    /// Where orders are relayed; `None` if datagrams are off.
    pub relay: Option<Relay>,
    /// Orders from linked peers whose role permits a stop.
    pub links: mpsc::Receiver<StopReceived>,
    /// Orders by datagram, from any sender.
    pub datagrams: mpsc::Receiver<Datagram>,
    /// For `swarm-node status`.
    pub status: Status,
    /// Ends the task.
    pub shutdown: CancellationToken,
    /// Tracks the task and those that it starts.
    pub tasks: TaskTracker,
}

/// Where orders are relayed.
#[derive(Clone, Debug)]
pub struct Relay {
    /// The interfaces of this device that are up.
    pub interfaces: watch::Receiver<Interfaces>,
    /// The UDP port of notifier pings.
    pub port: u16,
}

impl StopHandle {
    /// Starts the task. A stop that the journal has latched is in force at once, and its command runs again if it had
    /// not ended.
    pub fn start(setup: Setup) -> Self {
        let Setup {
            endpoint,
            config,
            journal,
            restored,
            relay,
            links,
            datagrams,
            status,
            shutdown,
            tasks,
        } = setup;
        let has_command = config.is_some();
        let receiver = StopReceiver::restored(has_command, &restored.memory, clock::now());
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let (state, state_rx) = watch::channel(receiver.state());
        status.update(|facts| facts.stop_record_problem = restored.damage);
        let (ended, command_ended) = mpsc::channel(1);
        let task = Task {
            endpoint,
            config: config.map(Arc::new),
            receiver,
            state,
            releasing: None,
            unwritten: false,
            stations: BTreeMap::new(),
            appends: PendingAppends::new(journal, APPENDS_MAX),
            ended,
            running: None,
            relay,
            status,
            shutdown,
            tasks: tasks.clone(),
        };
        tasks.spawn(task.run(Inputs {
            links,
            datagrams,
            requests: request_queue,
            command_ended,
        }));
        Self {
            requests,
            state: state_rx,
        }
    }

    /// A handle without a task, for tests that give no stop.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self {
            requests: mpsc::channel(1).0,
            state: watch::channel(StopState::Free).1,
        }
    }

    /// Whether actions may start; the receiver is notified of each stop and release.
    pub fn state(&self) -> watch::Receiver<StopState> {
        self.state.clone()
    }

    /// A station is linked: it gets a report now, and every report from now on.
    pub async fn add_station(&self, link: PeerLink) {
        self.requests.send(StopRequest::AddStation(link)).await.ok();
    }

    /// The link of a station is closed.
    pub async fn remove_station(&self, id: PeerId) {
        self.requests.send(StopRequest::RemoveStation(id)).await.ok();
    }

    /// The action `release`. Its arguments are `number=`, that of the stop in force, and optionally `issuer=`, the id of
    /// the station that gave it.
    pub async fn release(&self, arguments: Arguments) -> Reply {
        let kwargs = &arguments.kwargs;
        let number = kwargs.get("number").and_then(serde_json::Value::as_u64);
        let issuer = match kwargs.get("issuer") {
            None => Some(None),
            Some(value) => serde_json::from_value(value.clone()).ok().map(Some),
        };
        let (Some(number), Some(issuer), true) = (number, issuer, arguments.args.is_empty()) else {
            return Reply::refused(
                "release needs number=, the number of the stop in force; use `ground-station release`",
            );
        };
        let (reply, answered) = oneshot::channel();
        let request = StopRequest::Release {
            number,
            issuer,
            reply,
        };
        self.requests.send(request).await.ok();
        answered
            .await
            .unwrap_or_else(|_gone| Reply::failed("the node is shutting down"))
    }
}

struct Inputs {
    links: mpsc::Receiver<StopReceived>,
    datagrams: mpsc::Receiver<Datagram>,
    requests: mpsc::Receiver<StopRequest>,
    command_ended: mpsc::Receiver<Result<(), String>>,
}

struct Task {
    endpoint: Endpoint,
    config: Option<Arc<EmergencyStop>>,
    receiver: StopReceiver,
    state: watch::Sender<StopState>,
    /// The stop whose release is being written.
    releasing: Option<StopId>,
    /// The last write has failed, so that the disk does not have the present state.
    unwritten: bool,
    stations: BTreeMap<PeerId, PeerLink>,
    appends: PendingAppends<Write>,
    ended: mpsc::Sender<Result<(), String>>,
    running: Option<RunningCommand>,
    relay: Option<Relay>,
    status: Status,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Task {
    async fn run(mut self, mut inputs: Inputs) {
        self.write(Write::Restored);
        if let Some(present) = self.receiver.active_stop()
            && present.held
        {
            tracing::error!(
                "HELD: the record of stops cannot be read; actions are refused until `ground-station release`"
            );
        } else if let Some(present) = self.receiver.active_stop() {
            tracing::warn!(
                issuer = present.id.issuer.short(),
                number = present.id.number,
                "STOPPED: a stop from before this start is in force; actions are refused until `ground-station release`"
            );
            if present.command == StopCommandState::Running {
                self.run_command();
            }
        }
        self.update_status();
        let shutdown = self.shutdown.clone();
        loop {
            let unlatched = |present: &ActiveStop| present.latch_error.is_some();
            let retry = self.unwritten || self.receiver.active_stop().is_some_and(unlatched);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(stop) = inputs.links.recv() => self.on_order(&stop.order, Some(stop.peer)),
                Some(datagram) = inputs.datagrams.recv() => self.on_order(&datagram.bytes, None),
                Some(request) = inputs.requests.recv() => self.on_request(request),
                (write, result) = self.appends.next() => {
                    self.on_written(write, result.map_err(|fault| fault.to_string()));
                }
                Some(result) = inputs.command_ended.recv() => self.on_command_ended(result),
                () = tokio::time::sleep(WRITE_RETRY_INTERVAL), if retry => self.retry_write(),
            }
        }
    }

    fn on_order(&mut self, bytes: &[u8], from: Option<PeerId>) {
        let via = if from.is_some() {
            ReceivedVia::Link
        } else {
            ReceivedVia::Datagram
        };
        let membership = self.endpoint.membership().borrow().clone();
        let profile = self.endpoint.profile().borrow().clone();
        let id = self.endpoint.id();
        let me = NodeAttributes {
            name: &profile.name,
            id: &id,
            tags: &profile.tags,
        };
        match self
            .receiver
            .receive(bytes, via, membership.as_deref(), &me, clock::now())
        {
            Ok(Received::New(order)) => {
                // What stops comes first, then everything else.
                self.state.send_replace(self.receiver.state());
                self.run_command();
                self.write(Write::Stopped(order));
                self.report_to_all();
                self.relay_order(bytes);
                tracing::warn!(
                    issuer = order.issuer.short(),
                    number = order.number,
                    "EMERGENCY STOP: actions are refused until `ground-station release`"
                );
                self.update_status();
            }
            Ok(Received::Duplicate(order) | Received::Stale(order)) => self.report_to(from, order, None),
            Ok(Received::OtherTargets { id: order, forward }) => {
                if forward {
                    self.relay_order(bytes);
                }
                let reason = format!(
                    "the stop's selector does not match this node, which is called {}",
                    profile.name
                );
                self.report_to(from, order, Some(reason));
            }
            Ok(Received::NumberRaised(order)) => self.write(Write::NumberSeen(order)),
            Ok(Received::Ignored) => {}
            Err(
                fault @ (StopRejection::Malformed(_) | StopRejection::NoFleet | StopRejection::OtherFleet),
            ) => {
                tracing::debug!(%fault, "Stop rejected");
            }
            Err(fault) => tracing::warn!(%fault, "STOP REJECTED"),
        }
    }

    fn report_to(&self, to: Option<PeerId>, order: StopId, not_selected: Option<String>) {
        let Some(link) = to.and_then(|to| self.stations.get(&to)) else {
            return;
        };
        let mut report = self.receiver.status(&link.id(), Some(order), clock::now());
        if not_selected.is_some() {
            (report.issuer, report.number) = (order.issuer, order.number);
            (report.not_selected, report.error) = (true, not_selected);
        }
        send_report(link, &report);
    }

    fn report_to_all(&self) {
        for link in self.stations.values() {
            send_report(link, &self.receiver.status(&link.id(), None, clock::now()));
        }
    }

    fn write(&mut self, write: Write) {
        let records = write.record().into_iter().collect();
        let stops = Some(self.memory());
        if let Err((write, fault)) = self.appends.push_with_stops(records, stops, write) {
            self.on_written(write, Err(fault.to_string()));
        }
    }

    /// What a restart is to find: without the stop whose release is being written.
    fn memory(&self) -> StopMemory {
        let Some(order) = self.releasing else {
            return self.receiver.memory();
        };
        let mut released = self.receiver.clone();
        // Another stop may have replaced it.
        released.release(order).ok();
        released.memory()
    }

    fn retry_write(&mut self) {
        let stop = self.receiver.active_stop().filter(|stop| !stop.held);
        let write = stop.map_or(Write::Restored, |stop| Write::Stopped(stop.id));
        self.write(write);
    }

    fn on_written(&mut self, write: Write, result: Result<(), String>) {
        let was_unwritten = std::mem::replace(&mut self.unwritten, result.is_err());
        if was_unwritten || self.unwritten {
            let problem = result.as_ref().err();
            let problem = problem.map(|reason| format!("stops cannot be stored: {reason}"));
            self.status.update(|facts| facts.stop_record_problem = problem);
        }
        match (write, result) {
            (Write::Stopped(order), Ok(())) => {
                if self.receiver.on_written(order) {
                    self.rewrite_command_end(order);
                    self.report_to_all();
                } else if self.receiver.active_stop().is_none() {
                    // This record follows the one of its release: a restart would bring the stop back.
                    self.write(Write::ReleasedAgain(order));
                }
            }
            (Write::Stopped(order), Err(reason)) => {
                let known = self
                    .receiver
                    .active_stop()
                    .is_some_and(|stop| stop.latch_error.is_some());
                if self.receiver.on_write_failed(order, &reason) && !known {
                    tracing::error!(reason, "STOPPED IN MEMORY ONLY: a restart would undo the stop");
                    self.report_to_all();
                }
            }
            (Write::Released(order, reply), Ok(())) => self.apply_release(order, reply),
            (Write::Released(order, reply), Err(reason)) => {
                self.releasing = None;
                // A stop that is in memory only can end without the disk.
                if self.receiver.active_stop().is_some_and(|stop| !stop.latched) {
                    self.apply_release(order, reply);
                } else {
                    let error = format!("still stopped: the release cannot be written: {reason}");
                    reply.send(Reply::failed(error)).ok();
                    // It is tried again: a write behind the failed one may have taken the release for granted.
                }
            }
            (
                Write::Restored | Write::CommandEnded(..) | Write::NumberSeen(_) | Write::ReleasedAgain(_),
                Ok(()),
            ) => {}
            (
                Write::Restored | Write::CommandEnded(..) | Write::NumberSeen(_) | Write::ReleasedAgain(_),
                Err(reason),
            ) => {
                if !was_unwritten {
                    tracing::warn!(reason, "Record of stops not written");
                }
            }
        }
        self.update_status();
    }

    /// Writes the command's end behind the record of its stop: recovery ignores an end that comes first.
    fn rewrite_command_end(&mut self, order: StopId) {
        let ended = self
            .receiver
            .active_stop()
            .map(|present| (present.command, present.command_error.clone()));
        if let Some((StopCommandState::Done | StopCommandState::Failed, error)) = ended {
            self.write(Write::CommandEnded(order, error));
        }
    }

    fn on_request(&mut self, request: StopRequest) {
        match request {
            StopRequest::AddStation(link) => {
                send_report(&link, &self.receiver.status(&link.id(), None, clock::now()));
                self.stations.insert(link.id(), link);
            }
            StopRequest::RemoveStation(id) => drop(self.stations.remove(&id)),
            StopRequest::Release {
                number,
                issuer,
                reply,
            } => match self.receiver.check_release(number, issuer.as_ref()) {
                Ok(order) => {
                    self.releasing = Some(order);
                    self.write(Write::Released(order, reply));
                }
                Err(error) => {
                    reply.send(release_refusal(&error)).ok();
                }
            },
        }
    }

    fn apply_release(&mut self, order: StopId, reply_to: oneshot::Sender<Reply>) {
        self.releasing = None;
        let reply = match self.receiver.release(order) {
            Ok(()) => {
                self.state.send_replace(self.receiver.state());
                if let Some(running) = &mut self.running {
                    (running.released, running.restart) = (true, false);
                }
                tracing::warn!(number = order.number, "Stop released: actions run again");
                self.report_to_all();
                Reply::done("released".into())
            }
            Err(error) => release_refusal(&error),
        };
        reply_to.send(reply).ok();
    }

    fn on_command_ended(&mut self, result: Result<(), String>) {
        if self.running.take().is_some_and(|running| running.restart) {
            return self.run_command();
        }
        if let Err(reason) = &result {
            tracing::error!(reason, "Emergency stop's command FAILED");
        }
        let error = result.clone().err();
        if let Some(order) = self.receiver.on_command_ended(result) {
            self.write(Write::CommandEnded(order, error));
            self.report_to_all();
            self.update_status();
        }
    }

    fn run_command(&mut self) {
        if let Some(running) = &mut self.running {
            // The release may have undone what the command did for the stop before.
            if running.released {
                running.restart = true;
                running.cancel.cancel();
            }
            return;
        }
        let Some(config) = self.config.clone() else { return };
        let cancel = self.shutdown.child_token();
        self.running = Some(RunningCommand {
            cancel: cancel.clone(),
            released: false,
            restart: false,
        });
        let (shutdown, ended) = (self.shutdown.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            if let Some(result) = run_to_end(&config, &cancel, &shutdown).await {
                ended.send(result).await.ok();
            }
        });
    }

    /// Broadcasts the order on every interface, for nodes that the station does not reach.
    fn relay_order(&self, bytes: &[u8]) {
        let Some(relay) = self.relay.clone() else { return };
        let (bytes, shutdown) = (bytes.to_vec(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let drawn = random::bytes::<8>().map_or(0, u64::from_be_bytes);
            let delay = Duration::from_millis(drawn % (RELAY_DELAY_MS_MAX + 1));
            let relaying = async {
                tokio::time::sleep(delay).await;
                let present = relay.interfaces.borrow().clone();
                Broadcaster::default()
                    .broadcast(&present, relay.port, &bytes, &[])
                    .await;
            };
            shutdown.run_until_cancelled(relaying).await;
        });
    }

    fn update_status(&self) {
        let held = self.receiver.state() == StopState::Held;
        let text = self.receiver.active_stop().map(describe);
        self.status
            .update(|facts| (facts.stopped, facts.held) = (text, held));
    }
}

fn describe(present: &ActiveStop) -> String {
    if present.held {
        return present.error().unwrap_or_default();
    }
    let mut text = format!(
        "by station {}, number {}",
        present.id.issuer.short(),
        present.id.number
    );
    if let Some(error) = present.error() {
        text = format!("{text}; {error}");
    }
    text
}

fn release_refusal(error: &ReleaseError) -> Reply {
    match error {
        ReleaseError::NotStopped => Reply::done("was not stopped".into()),
        ReleaseError::OtherStop { .. } => Reply::refused(error.to_string()),
    }
}

fn send_report(link: &PeerLink, report: &StopStatus) {
    let sent = EncodedFrame::new(&Frame::json(Kind::Stopped, report))
        .map_err(|error| error.to_string())
        .and_then(|frame| {
            let outgoing = Outgoing {
                frame,
                lane: Lane::Emergency,
                deadline: None,
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "Report of a stop not sent");
    }
}
