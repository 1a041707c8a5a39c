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
//! | records of a stop in the journal, and their recovery | `journal.rs` |
//!
//! | task | owns | ends |
//! |---|---|---|
//! | stop | the [`StopReceiver`], the links of stations | at shutdown |
//! | command | the owner's command, at most one | with the program, or at shutdown |
//! | relay | one order, for at most [`RELAY_DELAY_MS_MAX`] and one broadcast | when it is sent |
//!
//! Invariants: an order takes effect before this task waits for anything, the journal included; a station is told
//! `latched` only when the journal has the stop; nothing but [`StopHandle::release`] ends a stop.
//!
//! [`Request::Stop`]: ../../ground_station/index.html
//! [`Events::stops`]: swarm_shared::net::endpoint::Events::stops

mod journal;
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
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopCommandState, StopStatus};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::NodeAttributes;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{
    ActiveStop, Received, ReceivedVia, ReleaseError, StopId, StopReceiver, StopRejection,
};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::journal::{Write, restored_receiver};
use crate::config::EmergencyStop;
use crate::journal::{Journal, PendingAppends};
use crate::process::{self, EndReason, Stderr};
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
    latch: watch::Receiver<Option<StopId>>,
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
    /// What the journal held at the start.
    pub dedup: DedupTable,
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
            dedup,
            relay,
            links,
            datagrams,
            status,
            shutdown,
            tasks,
        } = setup;
        let has_command = config.is_some();
        let receiver = restored_receiver(&dedup, has_command);
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let (latch, latch_rx) = watch::channel(receiver.active_stop().map(|stop| stop.id));
        let (ended, command_ended) = mpsc::channel(1);
        let task = Task {
            endpoint,
            config: config.map(Arc::new),
            receiver,
            latch,
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
            latch: latch_rx,
        }
    }

    /// A handle without a task, for tests that give no stop.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self {
            requests: mpsc::channel(1).0,
            latch: watch::channel(None).1,
        }
    }

    /// The stop in force; the receiver is notified of each stop and release.
    pub fn latch(&self) -> watch::Receiver<Option<StopId>> {
        self.latch.clone()
    }

    /// A station is linked: it gets a report if this node is stopped, and every report from now on.
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
    latch: watch::Sender<Option<StopId>>,
    stations: BTreeMap<PeerId, PeerLink>,
    appends: PendingAppends<Write>,
    ended: mpsc::Sender<Result<(), String>>,
    running: Option<RunningCommand>,
    relay: Option<Relay>,
    status: Status,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The owner's command while it runs.
struct RunningCommand {
    cancel: CancellationToken,
    /// The stop that it was started for has been released.
    released: bool,
    /// A new stop came after that release: the command runs once more when it has ended.
    restart: bool,
}

impl Task {
    async fn run(mut self, mut inputs: Inputs) {
        if let Some(present) = self.receiver.active_stop() {
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
            let retry = self
                .receiver
                .active_stop()
                .is_some_and(|present| present.latch_error.is_some());
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
                self.latch.send_replace(Some(order));
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
        if let Err((write, fault)) = self.appends.push(vec![write.record()], write) {
            self.on_written(write, Err(fault.to_string()));
        }
    }

    fn retry_write(&mut self) {
        if let Some(stop) = self.receiver.active_stop() {
            let order = stop.id;
            self.write(Write::Stopped(order));
        }
    }

    fn on_written(&mut self, write: Write, result: Result<(), String>) {
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
                // A stop that is in memory only can end without the disk.
                if self.receiver.active_stop().is_some_and(|stop| !stop.latched) {
                    self.apply_release(order, reply);
                } else {
                    let error = format!("still stopped: the release cannot be written: {reason}");
                    reply.send(Reply::failed(error)).ok();
                }
            }
            (Write::CommandEnded(..) | Write::NumberSeen(_) | Write::ReleasedAgain(_), Ok(())) => {}
            (Write::CommandEnded(..) | Write::NumberSeen(_) | Write::ReleasedAgain(_), Err(reason)) => {
                tracing::warn!(reason, "Record of a stop not written");
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
                if self.receiver.active_stop().is_some() {
                    send_report(&link, &self.receiver.status(&link.id(), None, clock::now()));
                }
                self.stations.insert(link.id(), link);
            }
            StopRequest::RemoveStation(id) => drop(self.stations.remove(&id)),
            StopRequest::Release {
                number,
                issuer,
                reply,
            } => match self.receiver.check_release(number, issuer.as_ref()) {
                Ok(order) => self.write(Write::Released(order, reply)),
                Err(error) => {
                    reply.send(release_refusal(&error)).ok();
                }
            },
        }
    }

    fn apply_release(&mut self, order: StopId, reply_to: oneshot::Sender<Reply>) {
        let reply = match self.receiver.release(order) {
            Ok(()) => {
                self.latch.send_replace(None);
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
            let timeout = config.timeout;
            let ran = process::run(config.command.as_slice(), Stderr::Merged, timeout, &cancel).await;
            let result = match ran {
                Err(error) => Err(error.to_string()),
                // The next start runs it again.
                Ok(finished) if finished.reason == EndReason::Cancelled && shutdown.is_cancelled() => return,
                Ok(finished) => match (finished.reason, finished.exit_code) {
                    (EndReason::TimedOut, _) => Err(format!("ran longer than {timeout:?} and was killed")),
                    (EndReason::Exited | EndReason::Cancelled, 0) => Ok(()),
                    (EndReason::Exited | EndReason::Cancelled, exit) => {
                        let last = finished.output.trim_end().lines().last().unwrap_or_default();
                        Err(format!("exit status {exit}: {last}"))
                    }
                },
            };
            ended.send(result).await.ok();
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
        let text = self.receiver.active_stop().map(describe);
        self.status.update(|facts| facts.stopped = text);
    }
}

fn describe(present: &ActiveStop) -> String {
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
