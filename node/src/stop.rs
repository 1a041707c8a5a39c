//! The emergency stop at work: hears orders from links and datagrams, latches, runs the owner's command, passes orders
//! on, and tells the stations.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | stop | the [`StopReceiver`], the links of stations | at shutdown |
//! | scribe | nothing: hands records to the journal, in order | with the stop task |
//! | command | the owner's command, at most one | with the program, or at shutdown |
//! | relay | one order, for at most [`RELAY_DELAY_MS_MAX`] and a round | when it is out |
//!
//! Invariants: an order takes effect before anything is waited for, the journal included; a station is told `latched`
//! only once the journal has it; nothing but [`Stopping::release`] ends a stop.

mod scribe;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::net::discovery::pings::{Broadcaster, Datagram};
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{PeerLink, StopReceived};
use swarm_shared::net::random;
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

use self::scribe::{Write, Written, restored, scribe};
use crate::config::EmergencyStop;
use crate::journal::Journal;
use crate::process::{self, EndReason, Stderr};
use crate::status::Status;

/// Stops by datagram that wait; beyond this they are dropped, for they come again.
pub const DATAGRAMS_MAX: usize = 64;
/// Questions that wait.
const REQUESTS_MAX: usize = 64;
/// Records that wait for the journal.
const WRITES_MAX: usize = 64;
/// Longest delay before an order is passed on, so that neighbours do not all shout at once, in milliseconds.
pub const RELAY_DELAY_MS_MAX: u64 = 30;
/// How long after a failure a stop that is not written down is tried again.
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

/// A handle on the emergency stop; clones share it.
#[derive(Clone, Debug)]
pub struct StopHandle {
    requests: mpsc::Sender<StopRequest>,
    latch: watch::Receiver<Option<StopId>>,
}

/// What the stop works with.
#[derive(Debug)]
pub struct Setup {
    /// The links.
    pub endpoint: Endpoint,
    /// The owner's command.
    pub config: Option<EmergencyStop>,
    /// Where a stop is latched.
    pub journal: Journal,
    /// What was latched.
    pub dedup: DedupTable,
    /// Where to pass orders on; `None` where datagrams are off.
    pub relay: Option<Relay>,
    /// Orders from links.
    pub links: mpsc::Receiver<StopReceived>,
    /// Orders from anywhere.
    pub datagrams: mpsc::Receiver<Datagram>,
    /// What is shown on this device.
    pub status: Status,
    /// Ends it.
    pub shutdown: CancellationToken,
    /// What is waited for at shutdown.
    pub tasks: TaskTracker,
}

/// Where orders are passed on.
#[derive(Clone, Debug)]
pub struct Relay {
    /// The interfaces of this device.
    pub interfaces: watch::Receiver<Interfaces>,
    /// The port for pings.
    pub port: u16,
}

impl StopHandle {
    /// Starts it; what the journal has latched is in force at once, and its command runs again if it had not ended.
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
        let receiver = restored(&dedup, has_command);
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let (latch, latch_rx) = watch::channel(receiver.active_stop().map(|present| present.id));
        let (writes, to_write) = mpsc::channel(WRITES_MAX);
        let (wrote, written) = mpsc::channel(WRITES_MAX);
        let (ended, command_ended) = mpsc::channel(1);
        tasks.spawn(scribe(journal, to_write, wrote));
        let task = Task {
            endpoint,
            config: config.map(Arc::new),
            receiver,
            latch,
            stations: BTreeMap::new(),
            writes,
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
            written,
            command_ended,
        }));
        Self {
            requests,
            latch: latch_rx,
        }
    }

    /// Of nothing: for tests of what does not stop.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self {
            requests: mpsc::channel(1).0,
            latch: watch::channel(None).1,
        }
    }

    /// The stop in force, and news of it.
    pub fn latch(&self) -> watch::Receiver<Option<StopId>> {
        self.latch.clone()
    }

    /// A station is linked: it is told if this node is stopped.
    pub async fn add_station(&self, link: PeerLink) {
        let _shutting_down = self.requests.send(StopRequest::AddStation(link)).await;
    }

    /// A peer's link is gone.
    pub async fn remove_station(&self, id: PeerId) {
        let _shutting_down = self.requests.send(StopRequest::RemoveStation(id)).await;
    }

    /// The action `release`: `number=` is that of the stop in force, `issuer=` who gave it.
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
        let _shutting_down = self.requests.send(request).await;
        answered
            .await
            .unwrap_or_else(|_gone| Reply::failed("the node is shutting down"))
    }
}

struct Inputs {
    links: mpsc::Receiver<StopReceived>,
    datagrams: mpsc::Receiver<Datagram>,
    requests: mpsc::Receiver<StopRequest>,
    written: mpsc::Receiver<Written>,
    command_ended: mpsc::Receiver<Result<(), String>>,
}

struct Task {
    endpoint: Endpoint,
    config: Option<Arc<EmergencyStop>>,
    receiver: StopReceiver,
    latch: watch::Sender<Option<StopId>>,
    stations: BTreeMap<PeerId, PeerLink>,
    writes: mpsc::Sender<Write>,
    ended: mpsc::Sender<Result<(), String>>,
    running: Option<RunningCommand>,
    relay: Option<Relay>,
    status: Status,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The owner's command at work.
struct RunningCommand {
    /// Ends it.
    cancel: CancellationToken,
    /// The stop that it serves has been released.
    released: bool,
    /// A stop came after that release: it has to run once more.
    restart: bool,
}

impl Task {
    async fn run(mut self, mut inputs: Inputs) {
        if let Some(present) = self.receiver.active_stop() {
            tracing::warn!(
                issuer = present.id.issuer.short(),
                number = present.id.number,
                "STOPPED since before this start: actions are refused until `ground-station release`"
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
                Some(heard) = inputs.links.recv() => self.on_order(&heard.order, Some(heard.peer)),
                Some(datagram) = inputs.datagrams.recv() => self.on_order(&datagram.bytes, None),
                Some(ask) = inputs.requests.recv() => self.on_request(ask),
                Some((write, how)) = inputs.written.recv() => self.on_written(write, how),
                Some(how) = inputs.command_ended.recv() => self.on_command_ended(how),
                () = tokio::time::sleep(WRITE_RETRY_INTERVAL), if retry => self.retry_write(),
            }
        }
    }

    fn on_order(&mut self, bytes: &[u8], from: Option<PeerId>) {
        let carrier = if from.is_some() {
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
            .receive(bytes, carrier, membership.as_deref(), &me, clock::now())
        {
            Ok(Received::New(order)) => {
                // First what stops, then all else.
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
            Ok(Received::OtherTargets {
                id: order,
                forward: pass_on,
            }) => {
                if pass_on {
                    self.relay_order(bytes);
                }
                let why = format!(
                    "the stop's selector does not mean this node, which is called {}",
                    profile.name
                );
                self.report_to(from, order, Some(why));
            }
            Ok(Received::NumberRaised(order)) => self.write(Write::Counted(order)),
            Ok(Received::Ignored) => {}
            Err(
                fault @ (StopRejection::Malformed(_) | StopRejection::NoFleet | StopRejection::OtherFleet),
            ) => {
                tracing::debug!(%fault, "stop not heeded");
            }
            Err(fault) => tracing::warn!(%fault, "STOP NOT HEEDED"),
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
        if let Err(error) = self.writes.try_send(write) {
            let why = "too much waits for the journal";
            match error.into_inner() {
                Write::Stopped(order) => drop(self.receiver.on_write_failed(order, why)),
                Write::Released(_, answer) => {
                    let _gone = answer.send(Reply::failed(format!("not released: {why}; try again")));
                }
                Write::Ended(..) | Write::Counted(_) | Write::StaysReleased(_) => {
                    tracing::warn!(why, "not written down");
                }
            }
        }
    }

    fn retry_write(&mut self) {
        if let Some(present) = self.receiver.active_stop() {
            let order = present.id;
            self.write(Write::Stopped(order));
        }
    }

    fn on_written(&mut self, write: Write, how: Result<(), String>) {
        match (write, how) {
            (Write::Stopped(order), Ok(())) => {
                if self.receiver.on_written(order) {
                    self.rewrite_command_end(order);
                    self.report_to_all();
                } else if self.receiver.active_stop().is_none() {
                    // Written once more behind its release: a restart would bring it back.
                    self.write(Write::StaysReleased(order));
                }
            }
            (Write::Stopped(order), Err(why)) => {
                let known = self
                    .receiver
                    .active_stop()
                    .is_some_and(|present| present.latch_error.is_some());
                if self.receiver.on_write_failed(order, &why) && !known {
                    tracing::error!(why, "STOPPED IN MEMORY ONLY: a restart would undo the stop");
                    self.report_to_all();
                }
            }
            (Write::Released(order, answer), Ok(())) => self.apply_release(order, answer),
            (Write::Released(order, answer), Err(why)) => {
                // One that is in memory only needs no disk to end.
                if self
                    .receiver
                    .active_stop()
                    .is_some_and(|present| !present.latched)
                {
                    self.apply_release(order, answer);
                } else {
                    let error = format!("still stopped: the release cannot be written down: {why}");
                    let _gone = answer.send(Reply::failed(error));
                }
            }
            (Write::Ended(..) | Write::Counted(_) | Write::StaysReleased(_), Ok(())) => {}
            (Write::Ended(..) | Write::Counted(_) | Write::StaysReleased(_), Err(why)) => {
                tracing::warn!(why, "not written down");
            }
        }
        self.update_status();
    }

    /// How the command ended counts only behind the stop itself.
    fn rewrite_command_end(&mut self, order: StopId) {
        let ended = self
            .receiver
            .active_stop()
            .map(|present| (present.command, present.command_error.clone()));
        if let Some((StopCommandState::Done | StopCommandState::Failed, error)) = ended {
            self.write(Write::Ended(order, error));
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
                reply: answer,
            } => match self.receiver.check_release(number, issuer.as_ref()) {
                Ok(order) => self.write(Write::Released(order, answer)),
                Err(why) => {
                    let _gone = answer.send(release_refusal(&why));
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
                tracing::warn!(number = order.number, "released: actions run again");
                self.report_to_all();
                Reply::done("released".into())
            }
            Err(why) => release_refusal(&why),
        };
        let _gone = reply_to.send(reply);
    }

    fn on_command_ended(&mut self, how: Result<(), String>) {
        if self.running.take().is_some_and(|running| running.restart) {
            return self.run_command();
        }
        if let Err(why) = &how {
            tracing::error!(why, "the emergency_stop command FAILED");
        }
        let error = how.clone().err();
        if let Some(order) = self.receiver.on_command_ended(how) {
            self.write(Write::Ended(order, error));
            self.report_to_all();
            self.update_status();
        }
    }

    fn run_command(&mut self) {
        if let Some(running) = &mut self.running {
            // What it did for a stop that was released since may have been undone since.
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
            let how = match ran {
                Err(error) => Err(error.to_string()),
                // It is run again at the next start.
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
            let _shutting_down = ended.send(how).await;
        });
    }

    /// Says the order once more on every interface, for whoever hears this node and not the station.
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
            let _shutting_down = shutdown.run_until_cancelled(relaying).await;
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

fn release_refusal(why: &ReleaseError) -> Reply {
    match why {
        ReleaseError::NotStopped => Reply::done("was not stopped".into()),
        ReleaseError::OtherStop { .. } => Reply::refused(why.to_string()),
    }
}

fn send_report(link: &PeerLink, report: &StopStatus) {
    let sent = EncodedFrame::new(&Frame::json(Kind::Stopped, report))
        .map_err(|error| error.to_string())
        .and_then(|parcel| {
            let outgoing = Outgoing {
                frame: parcel,
                lane: Lane::Emergency,
                deadline: None,
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "it is not told how the stop stands");
    }
}
