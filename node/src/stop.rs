//! The emergency stop at work: hears orders from links and datagrams, latches, runs the owner's command, passes orders
//! on, and tells the stations.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | stop | the [`StopDesk`], the links of stations | at shutdown |
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
use swarm_shared::net::discovery::pings::{Datagram, Shouter};
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{PeerLink, StopHeard};
use swarm_shared::net::random;
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopCommand, Stopped};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::Target;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{Carrier, Heard, Latch, NotReleased, Present, StopDesk, StopFault};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::scribe::{Write, Written, restored, scribe};
use crate::config::EmergencyStop;
use crate::journal::Journal;
use crate::process::{self, End, Stderr};
use crate::status::Status;

/// Stops by datagram that wait; beyond this they are dropped, for they come again.
pub const DATAGRAMS_MAX: usize = 64;
/// Questions that wait.
const ASKS_MAX: usize = 64;
/// Records that wait for the journal.
const WRITES_MAX: usize = 64;
/// Longest delay before an order is passed on, so that neighbours do not all shout at once, in milliseconds.
pub const RELAY_DELAY_MS_MAX: u64 = 30;
/// How long after a failure a stop that is not written down is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Ask {
    Up(PeerLink),
    Down(PeerId),
    Release {
        number: u64,
        issuer: Option<PeerId>,
        answer: oneshot::Sender<Reply>,
    },
}

/// A handle on the emergency stop; clones share it.
#[derive(Clone, Debug)]
pub struct Stopping {
    asks: mpsc::Sender<Ask>,
    in_force: watch::Receiver<Option<Latch>>,
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
    pub ledger: Ledger,
    /// Where to pass orders on; `None` where datagrams are off.
    pub relay: Option<Relay>,
    /// Orders from links.
    pub links: mpsc::Receiver<StopHeard>,
    /// Orders from anywhere.
    pub datagrams: mpsc::Receiver<Datagram>,
    /// What is shown on this device.
    pub status: Status,
    /// Ends it.
    pub stop: CancellationToken,
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

impl Stopping {
    /// Starts it; what the journal has latched is in force at once, and its command runs again if it had not ended.
    pub fn start(setup: Setup) -> Self {
        let Setup {
            endpoint,
            config,
            journal,
            ledger,
            relay,
            links,
            datagrams,
            status,
            stop,
            tasks,
        } = setup;
        let has_command = config.is_some();
        let desk = restored(&ledger, has_command);
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (in_force, seen) = watch::channel(desk.present().map(|present| present.order));
        let (writes, to_write) = mpsc::channel(WRITES_MAX);
        let (wrote, written) = mpsc::channel(WRITES_MAX);
        let (ended, command_ended) = mpsc::channel(1);
        tasks.spawn(scribe(journal, to_write, wrote));
        let task = Task {
            endpoint,
            config: config.map(Arc::new),
            desk,
            in_force,
            stations: BTreeMap::new(),
            writes,
            ended,
            running: None,
            relay,
            status,
            stop,
            tasks: tasks.clone(),
        };
        tasks.spawn(task.run(Inputs {
            links,
            datagrams,
            asked,
            written,
            command_ended,
        }));
        Self { asks, in_force: seen }
    }

    /// Of nothing: for tests of what does not stop.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            asks: mpsc::channel(1).0,
            in_force: watch::channel(None).1,
        }
    }

    /// The stop in force, and news of it.
    pub fn in_force(&self) -> watch::Receiver<Option<Latch>> {
        self.in_force.clone()
    }

    /// A station is linked: it is told if this node is stopped.
    pub async fn up(&self, link: PeerLink) {
        let _shutting_down = self.asks.send(Ask::Up(link)).await;
    }

    /// A peer's link is gone.
    pub async fn down(&self, id: PeerId) {
        let _shutting_down = self.asks.send(Ask::Down(id)).await;
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
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Release {
            number,
            issuer,
            answer,
        };
        let _shutting_down = self.asks.send(ask).await;
        answered
            .await
            .unwrap_or_else(|_gone| Reply::failed("the node is shutting down"))
    }
}

struct Inputs {
    links: mpsc::Receiver<StopHeard>,
    datagrams: mpsc::Receiver<Datagram>,
    asked: mpsc::Receiver<Ask>,
    written: mpsc::Receiver<Written>,
    command_ended: mpsc::Receiver<Result<(), String>>,
}

struct Task {
    endpoint: Endpoint,
    config: Option<Arc<EmergencyStop>>,
    desk: StopDesk,
    in_force: watch::Sender<Option<Latch>>,
    stations: BTreeMap<PeerId, PeerLink>,
    writes: mpsc::Sender<Write>,
    ended: mpsc::Sender<Result<(), String>>,
    running: Option<Running>,
    relay: Option<Relay>,
    status: Status,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The owner's command at work.
struct Running {
    /// Ends it.
    end: CancellationToken,
    /// The stop that it serves has been released.
    released: bool,
    /// A stop came after that release: it has to run once more.
    again: bool,
}

impl Task {
    async fn run(mut self, mut inputs: Inputs) {
        if let Some(present) = self.desk.present() {
            tracing::warn!(
                issuer = present.order.issuer.short(),
                number = present.order.number,
                "STOPPED since before this start: actions are refused until `ground-station release`"
            );
            if present.command == StopCommand::Running {
                self.run_command();
            }
        }
        self.show();
        let stop = self.stop.clone();
        loop {
            let again = self
                .desk
                .present()
                .is_some_and(|present| present.unlatched_why.is_some());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(heard) = inputs.links.recv() => self.hear(&heard.order, Some(heard.peer)),
                Some(datagram) = inputs.datagrams.recv() => self.hear(&datagram.bytes, None),
                Some(ask) = inputs.asked.recv() => self.take_ask(ask),
                Some((write, how)) = inputs.written.recv() => self.take_written(write, how),
                Some(how) = inputs.command_ended.recv() => self.command_ended(how),
                () = tokio::time::sleep(WRITE_AGAIN), if again => self.write_again(),
            }
        }
    }

    fn hear(&mut self, bytes: &[u8], from: Option<PeerId>) {
        let carrier = if from.is_some() {
            Carrier::Link
        } else {
            Carrier::Datagram
        };
        let membership = self.endpoint.membership().borrow().clone();
        let profile = self.endpoint.profile().borrow().clone();
        let id = self.endpoint.id();
        let me = Target {
            name: &profile.name,
            id: &id,
            tags: &profile.tags,
        };
        match self
            .desk
            .hear(bytes, carrier, membership.as_deref(), &me, clock::now())
        {
            Ok(Heard::New(order)) => {
                // First what stops, then all else.
                self.in_force.send_replace(Some(order));
                self.run_command();
                self.write(Write::Stopped(order));
                self.tell_all();
                self.pass_on(bytes);
                tracing::warn!(
                    issuer = order.issuer.short(),
                    number = order.number,
                    "EMERGENCY STOP: actions are refused until `ground-station release`"
                );
                self.show();
            }
            Ok(Heard::Same(order) | Heard::Old(order)) => self.answer(from, order, None),
            Ok(Heard::Others { order, pass_on }) => {
                if pass_on {
                    self.pass_on(bytes);
                }
                let why = format!(
                    "the stop's selector does not mean this node, which is called {}",
                    profile.name
                );
                self.answer(from, order, Some(why));
            }
            Ok(Heard::Counted(order)) => self.write(Write::Counted(order)),
            Ok(Heard::Nothing) => {}
            Err(fault @ (StopFault::Bad(_) | StopFault::NoFleet | StopFault::OtherFleet)) => {
                tracing::debug!(%fault, "stop not heeded");
            }
            Err(fault) => tracing::warn!(%fault, "STOP NOT HEEDED"),
        }
    }

    fn answer(&self, to: Option<PeerId>, order: Latch, not_meant: Option<String>) {
        let Some(link) = to.and_then(|to| self.stations.get(&to)) else {
            return;
        };
        let mut report = self.desk.report(&link.id(), Some(order), clock::now());
        if not_meant.is_some() {
            (report.issuer, report.number) = (order.issuer, order.number);
            (report.not_meant, report.error) = (true, not_meant);
        }
        tell(link, &report);
    }

    fn tell_all(&self) {
        for link in self.stations.values() {
            tell(link, &self.desk.report(&link.id(), None, clock::now()));
        }
    }

    fn write(&mut self, write: Write) {
        if let Err(error) = self.writes.try_send(write) {
            let why = "too much waits for the journal";
            match error.into_inner() {
                Write::Stopped(order) => drop(self.desk.not_written(order, why)),
                Write::Released(_, answer) => {
                    let _gone = answer.send(Reply::failed(format!("not released: {why}; try again")));
                }
                Write::Ended(..) | Write::Counted(_) | Write::StaysReleased(_) => {
                    tracing::warn!(why, "not written down");
                }
            }
        }
    }

    fn write_again(&mut self) {
        if let Some(present) = self.desk.present() {
            let order = present.order;
            self.write(Write::Stopped(order));
        }
    }

    fn take_written(&mut self, write: Write, how: Result<(), String>) {
        match (write, how) {
            (Write::Stopped(order), Ok(())) => {
                if self.desk.written(order) {
                    self.write_end_again(order);
                    self.tell_all();
                } else if self.desk.present().is_none() {
                    // Written once more behind its release: a restart would bring it back.
                    self.write(Write::StaysReleased(order));
                }
            }
            (Write::Stopped(order), Err(why)) => {
                let known = self
                    .desk
                    .present()
                    .is_some_and(|present| present.unlatched_why.is_some());
                if self.desk.not_written(order, &why) && !known {
                    tracing::error!(why, "STOPPED IN MEMORY ONLY: a restart would undo the stop");
                    self.tell_all();
                }
            }
            (Write::Released(order, answer), Ok(())) => self.release(order, answer),
            (Write::Released(order, answer), Err(why)) => {
                // One that is in memory only needs no disk to end.
                if self.desk.present().is_some_and(|present| !present.latched) {
                    self.release(order, answer);
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
        self.show();
    }

    /// How the command ended counts only behind the stop itself.
    fn write_end_again(&mut self, order: Latch) {
        let ended = self
            .desk
            .present()
            .map(|present| (present.command, present.command_error.clone()));
        if let Some((StopCommand::Done | StopCommand::Failed, error)) = ended {
            self.write(Write::Ended(order, error));
        }
    }

    fn take_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Up(link) => {
                if self.desk.present().is_some() {
                    tell(&link, &self.desk.report(&link.id(), None, clock::now()));
                }
                self.stations.insert(link.id(), link);
            }
            Ask::Down(id) => drop(self.stations.remove(&id)),
            Ask::Release {
                number,
                issuer,
                answer,
            } => match self.desk.may_release(number, issuer.as_ref()) {
                Ok(order) => self.write(Write::Released(order, answer)),
                Err(why) => {
                    let _gone = answer.send(not_released(&why));
                }
            },
        }
    }

    fn release(&mut self, order: Latch, answer: oneshot::Sender<Reply>) {
        let reply = match self.desk.release(order) {
            Ok(()) => {
                self.in_force.send_replace(None);
                if let Some(running) = &mut self.running {
                    (running.released, running.again) = (true, false);
                }
                tracing::warn!(number = order.number, "released: actions run again");
                self.tell_all();
                Reply::done("released".into())
            }
            Err(why) => not_released(&why),
        };
        let _gone = answer.send(reply);
    }

    fn command_ended(&mut self, how: Result<(), String>) {
        if self.running.take().is_some_and(|running| running.again) {
            return self.run_command();
        }
        if let Err(why) = &how {
            tracing::error!(why, "the emergency_stop command FAILED");
        }
        let error = how.clone().err();
        if let Some(order) = self.desk.command_ended(how) {
            self.write(Write::Ended(order, error));
            self.tell_all();
            self.show();
        }
    }

    fn run_command(&mut self) {
        if let Some(running) = &mut self.running {
            // What it did for a stop that was released since may have been undone since.
            if running.released {
                running.again = true;
                running.end.cancel();
            }
            return;
        }
        let Some(config) = self.config.clone() else { return };
        let end = self.stop.child_token();
        self.running = Some(Running {
            end: end.clone(),
            released: false,
            again: false,
        });
        let (stop, ended) = (self.stop.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            let timeout = config.timeout;
            let ran = process::run(config.command.as_slice(), Stderr::Merged, timeout, &end).await;
            let how = match ran {
                Err(error) => Err(error.to_string()),
                // It is run again at the next start.
                Ok(finished) if finished.end == End::Stopped && stop.is_cancelled() => return,
                Ok(finished) => match (finished.end, finished.exit) {
                    (End::TimedOut, _) => Err(format!("ran longer than {timeout:?} and was killed")),
                    (End::Exited | End::Stopped, 0) => Ok(()),
                    (End::Exited | End::Stopped, exit) => {
                        let last = finished.output.trim_end().lines().last().unwrap_or_default();
                        Err(format!("exit status {exit}: {last}"))
                    }
                },
            };
            let _shutting_down = ended.send(how).await;
        });
    }

    /// Says the order once more on every interface, for whoever hears this node and not the station.
    fn pass_on(&self, bytes: &[u8]) {
        let Some(relay) = self.relay.clone() else { return };
        let (bytes, stop) = (bytes.to_vec(), self.stop.clone());
        self.tasks.spawn(async move {
            let drawn = random::bytes::<8>().map_or(0, u64::from_be_bytes);
            let delay = Duration::from_millis(drawn % (RELAY_DELAY_MS_MAX + 1));
            let shout = async {
                tokio::time::sleep(delay).await;
                let present = relay.interfaces.borrow().clone();
                Shouter::default().shout(&present, relay.port, &bytes, &[]).await;
            };
            let _shutting_down = stop.run_until_cancelled(shout).await;
        });
    }

    fn show(&self) {
        let text = self.desk.present().map(describe);
        self.status.update(|facts| facts.stopped = text);
    }
}

fn describe(present: &Present) -> String {
    let mut text = format!(
        "by station {}, number {}",
        present.order.issuer.short(),
        present.order.number
    );
    if let Some(error) = present.error() {
        text = format!("{text}; {error}");
    }
    text
}

fn not_released(why: &NotReleased) -> Reply {
    match why {
        NotReleased::NotStopped => Reply::done("was not stopped".into()),
        NotReleased::OtherStop { .. } => Reply::refused(why.to_string()),
    }
}

fn tell(link: &PeerLink, report: &Stopped) {
    let sent = Parcel::new(&Frame::json(Kind::Stopped, report))
        .map_err(|error| error.to_string())
        .and_then(|parcel| {
            let outgoing = Outgoing {
                parcel,
                lane: Lane::Emergency,
                deadline: None,
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "it is not told how the stop stands");
    }
}
