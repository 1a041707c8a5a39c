//! The task of one drone. It owns the registration as a device, the protocol state, and the connection while there is one.
//!
//! | event | handling |
//! |---|---|
//! | command for the device | checked against the stop that is in force, given to the protocol; the reply follows its end |
//! | stop that is in force when the drone connects | sent at once, without a waiting caller |
//! | release | stops that wait to be sent are withdrawn |
//! | second connection with the same id | the first has [`TAKEOVER_TIMEOUT`] to show that it is alive; then it is replaced |
//! | lost connection | the task goes on, so that the drone finds its state when it reconnects |

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::foreign::clever_show::server::{Deadlines, Drone, Event};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{FrameLimits, HEADER_BYTES_MAX};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, STALL_TIMEOUT, Step};
use super::policy::{self, CommandPolicy, CommandTimes, RELEASED_TEXT, ReplyKind};
use crate::engine::transport::bridge::{
    DeviceCommand, DeviceGuard, DeviceOperation, DevicePresence, DeviceReply,
};
use crate::gateways::GatewayContext;

/// How long the older of two connections with one id has to show that it is alive.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence after which a drone is shown as silent. The protocol has sent it a probe by then.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Most unwritten bytes of a file that a stop waits for. With more, the connection is closed: a frame that has begun cannot
/// be interrupted.
const STOP_WRITE_BYTES_MAX: usize = 256 * 1024;
/// How long a stop from before the connection may wait to be written; in effect unlimited.
const ARRIVAL_STOP_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// A drone that is away for this time is forgotten, unless a caller waits for it.
const AWAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The end of a task whose device lost its registration.
const REGISTRATION_LOST: &str = "another drone needed its place at this station";
/// Interval of checks for callers that have gone, and for a lost registration.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that has identified itself as this drone.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) connection: Box<Connection>,
    /// `None` if the task takes the connection; the connection if the task has a live one.
    pub(super) answer: oneshot::Sender<Option<Box<Connection>>>,
}

/// A newer connection that waits for [`TAKEOVER_TIMEOUT`].
struct PendingTakeover {
    arrival: Arrival,
    since: Instant,
}

/// The number of connected drones with one id; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct DuplicateIds(Arc<AtomicUsize>);

/// Counts one drone until it is dropped.
struct DuplicateGuard(DuplicateIds);

impl DuplicateIds {
    fn register(&self) -> DuplicateGuard {
        self.0.fetch_add(1, Ordering::SeqCst);
        DuplicateGuard(self.clone())
    }

    fn any_connected(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for DuplicateGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a drone that is away is forgotten. `kept`: a caller waits for it.
fn is_expired(away_since: Option<Instant>, kept: bool, now: Instant) -> bool {
    !kept && away_since.is_some_and(|since| now >= since + AWAY_MAX)
}

/// The state of one drone's task.
pub(super) struct DroneTask {
    drone: Drone,
    device: DeviceGuard,
    policy: CommandPolicy,
    duplicates: DuplicateIds,
    /// Set while connected.
    duplicate_guard: Option<DuplicateGuard>,
    /// Since when the drone is disconnected.
    away_since: Option<Instant>,
    /// Whether another drone with this id was connected when this one disconnected: a drone that comes back takes either
    /// task, so this one is not needed.
    superseded: bool,
    arrivals: mpsc::Receiver<Arrival>,
    shutdown: CancellationToken,
    connection: Option<Box<Connection>>,
    pending_takeover: Option<PendingTakeover>,
    /// Callers by ticket.
    pending_replies: BTreeMap<u64, (ReplyKind, oneshot::Sender<DeviceReply>)>,
    last_ticket: u64,
    /// The ticket of a stop without a caller: it was in force when the drone connected.
    arrival_stop: Option<u64>,
    /// Whether the station ended the stop before its release arrived here as a command.
    stop_ended: bool,
    /// Whether a stop was in force at the last check.
    stop_in_force: bool,
    last_presence: DevicePresence,
}

/// What the task reacts to.
enum Input {
    Shutdown,
    Command(Option<DeviceCommand>),
    Arrival(Option<Arrival>),
    Connection(io::Result<Step>),
    Timeout,
}

impl DroneTask {
    pub(super) fn new(
        drone: Drone,
        device: DeviceGuard,
        policy: CommandPolicy,
        duplicates: DuplicateIds,
        arrivals: mpsc::Receiver<Arrival>,
        context: &GatewayContext,
    ) -> Self {
        Self {
            drone,
            device,
            policy,
            duplicates,
            duplicate_guard: None,
            away_since: Some(clock::now()),
            superseded: false,
            arrivals,
            shutdown: context.shutdown.clone(),
            connection: None,
            pending_takeover: None,
            pending_replies: BTreeMap::new(),
            last_ticket: 0,
            arrival_stop: None,
            stop_ended: false,
            stop_in_force: false,
            last_presence: DevicePresence::default(),
        }
    }

    /// Runs until shutdown, or until the drone is forgotten; then answers all callers.
    pub(super) async fn run(mut self) {
        let why = loop {
            let now = clock::now();
            self.receive_frame(now);
            self.drone.handle_timeout(now);
            self.drop_abandoned();
            self.check_released();
            self.handle_drone_events();
            self.resolve_takeover(now);
            self.queue_next_frame(now);
            self.publish_presence(now);
            if let Some(why) = self.end_reason(now) {
                break why;
            }
            match self.next_input().await {
                Input::Command(Some(command)) => self.on_command(command),
                Input::Arrival(Some(arrival)) => self.on_arrival(arrival),
                Input::Connection(Ok(step)) => self.on_step(step),
                Input::Connection(Err(error)) => self.disconnect(&error.to_string()),
                Input::Timeout => self.close_if_stalled(),
                Input::Shutdown | Input::Arrival(None) => break "this station shut down before it was done",
                Input::Command(None) => break REGISTRATION_LOST,
            }
        };
        self.drone.close(why);
        self.handle_drone_events();
        for queue in [&mut self.device.stops, &mut self.device.commands] {
            queue.close();
            while let Ok(command) = queue.try_recv() {
                let not_sent = Reply::ended(Outcome::NoAnswer, why);
                let _caller_gone = command.reply.send(DeviceReply::Reply(not_sent));
            }
        }
    }

    /// Why the task ends now, if it does.
    fn end_reason(&mut self, now: Instant) -> Option<&'static str> {
        if self.device.is_lost() {
            // Commands do not find this device any more. The drone reconnects, and is registered again.
            self.disconnect(REGISTRATION_LOST);
            return Some(REGISTRATION_LOST);
        }
        if self.superseded {
            return Some("it disconnected while another drone has its id");
        }
        is_expired(self.away_since, self.last_presence.kept, now).then_some("it has been away for a day")
    }

    /// Waits for the next input. Stops come before all else; an arrival before the present connection, so that a drone that
    /// sends without pause cannot hold its id.
    async fn next_input(&mut self) -> Input {
        let now = clock::now();
        let takeover = self.pending_takeover.as_ref();
        let takeover = takeover.map(|pending| pending.since + TAKEOVER_TIMEOUT);
        let is_awaiting_file = self.drone.is_awaiting_file();
        let connection = self.connection.as_deref_mut();
        let stalled = connection
            .as_ref()
            .and_then(|connection| connection.deadline(is_awaiting_file));
        let due = [self.drone.poll_timeout(), takeover, stalled];
        let due = due.into_iter().flatten().fold(now + SWEEP_INTERVAL, Instant::min);
        let step = async {
            match connection {
                Some(connection) => connection.next_step().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Input::Shutdown,
            Some(stop) = self.device.stops.recv() => Input::Command(Some(stop)),
            arrival = self.arrivals.recv(), if takeover.is_none() => Input::Arrival(arrival),
            step = step => Input::Connection(step),
            command = self.device.commands.recv() => Input::Command(command),
            () = clock::sleep_until(due) => Input::Timeout,
        }
    }

    fn on_step(&mut self, step: Step) {
        let Some(connection) = &self.connection else {
            return;
        };
        match step {
            Step::MayRead => {}
            Step::Wrote if connection.is_written() => self.drone.on_written(),
            Step::Wrote => {}
            Step::Received => {
                let now = clock::now();
                self.drone.on_bytes_received(now);
                if let Some(header) = connection.pending_header() {
                    self.drone.extend_file_deadline(header, now + STALL_TIMEOUT);
                }
            }
        }
    }

    fn close_if_stalled(&mut self) {
        let is_awaiting_file = self.drone.is_awaiting_file();
        let connection = self.connection.as_ref();
        if let Some(why) = connection.and_then(|open| open.stall_reason(is_awaiting_file, clock::now())) {
            self.disconnect(why);
        }
    }

    /// Handles the next frame, if it has arrived as a whole.
    fn receive_frame(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut content = self.policy.message_bytes;
        if self.drone.is_awaiting_file() {
            content = content.max(usize::try_from(self.policy.file_bytes).unwrap_or(usize::MAX));
        }
        let limits = FrameLimits {
            header: HEADER_BYTES_MAX.min(self.policy.message_bytes),
            content,
        };
        match connection.take_frame(limits, now) {
            Ok(Some(frame)) => self.drone.handle_frame(&frame, now),
            Ok(None) => {}
            Err(error) => self.disconnect(&error.to_string()),
        }
    }

    /// Begins to write the next frame, if the connection is free for it.
    fn queue_next_frame(&mut self, now: Instant) {
        while let Some(connection) = &mut self.connection
            && connection.is_written()
            && let Some(frame) = self.drone.next_frame(now)
        {
            if let Err(error) = connection.begin_frame(frame, now) {
                tracing::debug!(id = self.drone.id(), %error, "Frame not encoded");
                self.drone.on_unwritable();
            }
        }
        self.handle_drone_events();
    }

    fn disconnect(&mut self, why: &str) {
        if let Some(connection) = self.connection.take() {
            let addr = connection.permit.addr;
            tracing::info!(%addr, id = self.drone.id(), why, "Drone disconnected");
            let now = clock::now();
            self.drone.on_disconnected(now);
            self.away_since = Some(now);
            self.duplicate_guard = None;
            self.superseded = self.duplicates.any_connected();
        }
    }

    fn on_command(&mut self, command: DeviceCommand) {
        let DeviceCommand {
            operation,
            issued,
            start_by,
            respond_by,
            reply,
        } = command;
        self.check_released();
        let ticket = self.next_ticket();
        let times = CommandTimes {
            issued,
            until: Deadlines { start_by, respond_by },
            now: clock::now(),
        };
        let sent = match self.check_stop_state(&operation) {
            Ok(()) => self.policy.send(&mut self.drone, ticket, operation, times),
            Err(ended) => Err(ended),
        };
        let kind = match sent {
            Ok(kind) => kind,
            Err(ended) => return drop(reply.send(DeviceReply::Reply(ended))),
        };
        self.pending_replies.insert(ticket, (kind, reply));
        let unwritten = self
            .connection
            .as_ref()
            .map_or(0, |connection| connection.unwritten_bytes());
        if kind == ReplyKind::Stop && unwritten > STOP_WRITE_BYTES_MAX {
            self.disconnect("a stop does not wait for the file that is being sent");
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Checks an operation against the stop that is in force at the station, since stops and releases may arrive in another
    /// order than they were given in. `Err` is the reply to an operation that ends here.
    fn check_stop_state(&mut self, operation: &DeviceOperation) -> Result<(), Reply> {
        let stopped = self.device.stopped().is_some();
        match operation {
            DeviceOperation::Stop if !stopped => Err(Reply::refused(
                "released meanwhile: it was not told to stop again",
            )),
            DeviceOperation::Stop => {
                self.stop_ended = false;
                Ok(())
            }
            DeviceOperation::Release if stopped => Err(Reply::refused(
                "it was stopped again meanwhile; release it once more",
            )),
            DeviceOperation::Release => {
                self.withdraw_stops();
                if std::mem::take(&mut self.stop_ended) {
                    return Err(Reply::done(RELEASED_TEXT.into()));
                }
                Ok(())
            }
            // Also if there was no `stop_action` to send.
            DeviceOperation::Command { .. } | DeviceOperation::Push { .. }
                if stopped && self.policy.has_side_effects(operation) =>
            {
                Err(Reply::refused("an emergency stop is in force: release it first"))
            }
            DeviceOperation::Command { .. }
            | DeviceOperation::Push { .. }
            | DeviceOperation::Fetch { .. } => Ok(()),
        }
    }

    /// Ends the drone's stop if the station has released it. The release need not arrive as a command: its selector may have
    /// been evaluated before the drone connected, or its caller may have gone.
    fn check_released(&mut self) {
        let in_force = self.device.stopped().is_some();
        if !in_force && (self.stop_in_force || self.drone.is_stopped()) {
            self.withdraw_stops();
            self.drone.release();
            self.stop_ended = true;
        }
        self.stop_in_force = in_force;
    }

    /// Withdraws stops that wait to be sent: a released drone must not be stopped when it reconnects.
    fn withdraw_stops(&mut self) {
        let stops = self
            .pending_replies
            .iter()
            .filter(|(_, (kind, _))| *kind == ReplyKind::Stop);
        let stops: Vec<u64> = stops.map(|(ticket, _)| *ticket).collect();
        for ticket in stops.into_iter().chain(self.arrival_stop.take()) {
            self.drone.cancel(ticket);
            if let Some((_, reply)) = self.pending_replies.remove(&ticket) {
                let why = "released before it could be told to stop";
                let _caller_gone = reply.send(DeviceReply::Reply(Reply::refused(why)));
            }
        }
    }

    /// Sends the stop that is in force, if any, to a drone that has just connected.
    fn send_stop_on_arrival(&mut self, now: Instant) {
        let Some(selector) = self.device.stopped().filter(|_| !self.drone.is_stopped()) else {
            return;
        };
        let ticket = self.next_ticket();
        let until = now + ARRIVAL_STOP_TTL;
        let times = CommandTimes {
            issued: now,
            until: Deadlines {
                start_by: until,
                respond_by: until,
            },
            now,
        };
        let operation = DeviceOperation::Stop;
        let sent = self.policy.send(&mut self.drone, ticket, operation, times);
        let id = self.drone.id();
        match sent {
            Ok(_kind) => {
                tracing::warn!(id, %selector, "Emergency stop sent to a drone that has connected");
                self.arrival_stop = Some(ticket);
            }
            Err(why) => {
                tracing::warn!(id, %selector, ?why, "Emergency stop not sent to a drone that has connected");
            }
        }
    }

    /// Drops commands whose callers have gone. A stop that is in force is sent all the same.
    fn drop_abandoned(&mut self) {
        let drone = &mut self.drone;
        self.pending_replies.retain(|ticket, (_, reply)| {
            let wanted = !reply.is_closed();
            if !wanted {
                drone.cancel(*ticket);
            }
            wanted
        });
    }

    fn handle_drone_events(&mut self) {
        while let Some(event) = self.drone.poll_event() {
            match event {
                Event::Completed(ticket, end) => {
                    if let Some((kind, reply)) = self.pending_replies.remove(&ticket) {
                        let _caller_gone = reply.send(policy::to_reply(end, kind));
                    }
                }
                Event::Telemetry => {}
                Event::IdChanged(id) => self.disconnect(&format!("the drone reports another id: {id:?}")),
                Event::IdleTimeout => self.disconnect("the drone was silent for `idle`"),
                Event::Ignored(reason) => {
                    tracing::debug!(id = self.drone.id(), reason, "Frame of a drone ignored");
                }
            }
        }
    }

    fn on_arrival(&mut self, arrival: Arrival) {
        let now = clock::now();
        if self.connection.is_none() {
            return self.attach(arrival, now);
        }
        self.drone.probe();
        self.pending_takeover = Some(PendingTakeover { arrival, since: now });
    }

    fn attach(&mut self, arrival: Arrival, now: Instant) {
        let Arrival { connection, answer } = arrival;
        if answer.send(None).is_ok() {
            self.connection = Some(connection);
            self.duplicate_guard = Some(self.duplicates.register());
            (self.away_since, self.superseded) = (None, false);
            self.drone.on_connected(now);
            self.send_stop_on_arrival(now);
        }
    }

    /// Decides which of two connections is the drone's: the older one if it has been heard since, else the newer one.
    fn resolve_takeover(&mut self, now: Instant) {
        let Some(PendingTakeover { arrival, since }) = self.pending_takeover.take() else {
            return;
        };
        if self.connection.is_none() {
            self.attach(arrival, now);
        } else if self.drone.last_heard().is_some_and(|heard| heard > since) {
            let Arrival { connection, answer } = arrival;
            let addr = connection.permit.addr;
            tracing::warn!(id = self.drone.id(), %addr, "Two drones have one id: change the id of one of them");
            let _connection_gone = answer.send(Some(connection));
        } else if now >= since + TAKEOVER_TIMEOUT {
            self.disconnect("a newer connection has its id, and this one shows no sign of life");
            self.attach(arrival, now);
        } else {
            self.pending_takeover = Some(PendingTakeover { arrival, since });
        }
    }

    /// Publishes the state of the device, if it has changed.
    fn publish_presence(&mut self, now: Instant) {
        let heard = self.drone.last_heard();
        let address = self.connection.as_ref().map(|connection| connection.permit.addr);
        let presence = DevicePresence {
            online: heard.is_some(),
            silent: heard.is_some_and(|heard| now >= heard + SILENT_AFTER),
            heard: heard.or(self.last_presence.heard),
            kept: !self.pending_replies.is_empty(),
            address: address.or(self.last_presence.address),
            telemetry: self.drone.readings().clone(),
        };
        if presence != self.last_presence {
            self.last_presence = presence.clone();
            self.device.publish(presence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_drone_expires_after_a_day_unless_work_is_pending() {
        let now = clock::now();
        let later = now + AWAY_MAX;
        assert!(is_expired(Some(now), false, later));
        assert!(!is_expired(Some(now), true, later));
        assert!(!is_expired(Some(now + SWEEP_INTERVAL), false, later));
        assert!(!is_expired(None, false, later));
    }
}
