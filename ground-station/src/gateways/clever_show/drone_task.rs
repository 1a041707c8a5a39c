//! One drone's task: it has the drone's device among the devices, its conversation, and its connection if there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::foreign::clever_show::server::{Deadlines, Drone, Event};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{FrameLimits, HEADER_BYTES_MAX};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, STALL_TIMEOUT, write_some};
use super::policy::{self, CommandPolicy, CommandTimes, RELEASED_TEXT, ReplyKind};
use crate::engine::transport::bridge::{
    DeviceCommand, DeviceGuard, DeviceOperation, DevicePresence, DeviceReply,
};
use crate::gateways::GatewayContext;

/// How long an older connection has for a sign of life when a newer one has the same id.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence after which a drone is shown as silent: it has been asked for a sign of life by then.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Most of a frame that a stop waits for: what has begun cannot be overtaken.
const STOP_WRITE_BYTES_MAX: usize = 256 * 1024;
/// How long a stop that was given before a drone came waits to be written: as good as for ever.
const ARRIVAL_STOP_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a drone is away until it is forgotten, unless something waits for it.
const AWAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How a drone_task ends whose device was given away.
const SEAT_LOST: &str = "another drone needed its place at this station";
/// How often the task checks whether a caller has given up, or the device has been replaced.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that says that it is this drone.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) connection: Box<Connection>,
    /// `None` if it is taken; the connection if this drone_task has a live one.
    pub(super) answer: oneshot::Sender<Option<Box<Connection>>>,
}

/// A newer connection, while it is seen whether the older one lives.
struct PendingTakeover {
    arrival: Arrival,
    since: Instant,
}

/// How many connected drones have one id.
#[derive(Clone, Debug, Default)]
pub(super) struct DuplicateIds(Arc<AtomicUsize>);

/// One of them, for as long as it is connected.
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

/// Whether a drone that is away needs no place any more.
fn is_expired(away: Option<Instant>, kept: bool, now: Instant) -> bool {
    !kept && away.is_some_and(|since| now >= since + AWAY_MAX)
}

/// See the module.
pub(super) struct DroneTask {
    drone: Drone,
    device: DeviceGuard,
    policy: CommandPolicy,
    /// How many drones with its id are connected, and its own part of that.
    duplicates: DuplicateIds,
    duplicate_guard: Option<DuplicateGuard>,
    /// Since when it is away, and whether it has left for good.
    away_since: Option<Instant>,
    superseded: bool,
    arrivals: mpsc::Receiver<Arrival>,
    shutdown: CancellationToken,
    connection: Option<Box<Connection>>,
    pending_takeover: Option<PendingTakeover>,
    pending_replies: BTreeMap<u64, (ReplyKind, oneshot::Sender<DeviceReply>)>,
    last_ticket: u64,
    /// A stop that no caller waits for: it was given before the drone connected.
    arrival_stop: Option<u64>,
    /// Whether it was seen that its stop is over, before anybody said so.
    stop_ended: bool,
    /// Whether a stop was in force when it was last looked.
    stop_in_force: bool,
    last_presence: DevicePresence,
}

/// What has happened.
enum Input {
    Shutdown,
    Command(Option<DeviceCommand>),
    Arrival(Option<Arrival>),
    MayRead,
    Wrote(std::io::Result<()>),
    Read(std::io::Result<usize>),
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
            if self.device.is_lost() {
                // Nobody who gives orders finds it any more, though it may have come back just then: it comes again.
                self.disconnect(SEAT_LOST);
                break SEAT_LOST;
            }
            if self.superseded {
                break "it left, and another drone has its id";
            }
            if is_expired(self.away_since, self.last_presence.kept, now) {
                break "it has been away for a day";
            }
            match self.next_input().await {
                Input::Command(Some(command)) => self.on_command(command),
                Input::Arrival(Some(arrival)) => self.on_arrival(arrival),
                Input::Shutdown | Input::Arrival(None) => break "this station stopped before it was done",
                Input::Command(None) => break SEAT_LOST,
                Input::MayRead => {
                    if let Some(connection) = &mut self.connection {
                        connection.may_read = true;
                    }
                }
                Input::Wrote(Ok(())) => self.on_written(clock::now()),
                Input::Read(Ok(bytes)) if bytes > 0 => self.on_read(clock::now()),
                Input::Wrote(Err(error)) | Input::Read(Err(error)) => self.disconnect(&error.to_string()),
                Input::Read(Ok(_none)) => self.disconnect("the drone has closed it"),
                Input::Timeout => {
                    let now = clock::now();
                    let is_awaiting_file = self.drone.is_awaiting_file();
                    let stuck = self.connection.as_ref();
                    if let Some(why) =
                        stuck.and_then(|connection| connection.stall_reason(is_awaiting_file, now))
                    {
                        self.disconnect(why);
                    }
                }
            }
        };
        self.drone.close(why);
        self.handle_drone_events();
        // What was on its way.
        for queue in [&mut self.device.stops, &mut self.device.commands] {
            queue.close();
            while let Ok(command) = queue.try_recv() {
                let untold = Reply::ended(Outcome::NoAnswer, why);
                let _nobody_waits = command.reply.send(DeviceReply::Reply(untold));
            }
        }
    }

    async fn next_input(&mut self) -> Input {
        let now = clock::now();
        let rival = self
            .pending_takeover
            .as_ref()
            .map(|rival| rival.since + TAKEOVER_TIMEOUT);
        let due = [self.drone.poll_timeout(), rival, Some(now + SWEEP_INTERVAL)];
        let mut due = due.into_iter().flatten().min().unwrap_or(now);
        let Some(connection) = &mut self.connection else {
            return tokio::select! {
                biased;
                () = self.shutdown.cancelled() => Input::Shutdown,
                Some(stop) = self.device.stops.recv() => Input::Command(Some(stop)),
                arrival = self.arrivals.recv() => Input::Arrival(arrival),
                command = self.device.commands.recv() => Input::Command(command),
                () = clock::sleep_until(due) => Input::Timeout,
            };
        };
        let stuck = [
            connection.write_deadline(),
            connection.read_deadline(self.drone.is_awaiting_file()),
        ];
        due = stuck.into_iter().flatten().fold(due, Instant::min);
        let (turn, writes) = (connection.may_read, !connection.is_written());
        let Connection {
            from,
            to,
            permit,
            reader,
            inbox,
            head,
            content,
            ..
        } = connection.as_mut();
        inbox.reserve(reader.missing_bytes().max(1));
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Input::Shutdown,
            Some(stop) = self.device.stops.recv() => Input::Command(Some(stop)),
            wrote = write_some(to, head, content), if writes => Input::Wrote(wrote),
            arrival = self.arrivals.recv(), if rival.is_none() => Input::Arrival(arrival),
            () = permit.throttle(), if !turn => Input::MayRead,
            read = from.read_buf(inbox), if turn => Input::Read(read),
            command = self.device.commands.recv() => Input::Command(command),
            () = clock::sleep_until(due) => Input::Timeout,
        }
    }

    /// Reads a frame, if one is there whole and has its turn.
    fn receive_frame(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut content = self.policy.message_bytes;
        if self.drone.is_awaiting_file() {
            content = content.max(usize::try_from(self.policy.file_bytes).unwrap_or(usize::MAX));
        }
        connection.reader.set_limits(FrameLimits {
            header: HEADER_BYTES_MAX.min(self.policy.message_bytes),
            content,
        });
        if !connection.may_read {
            return;
        }
        match connection.reader.next_frame(&mut connection.inbox) {
            Ok(Some(frame)) => {
                connection.may_read = false;
                connection.frame_began = (!connection.inbox.is_empty()).then_some(now);
                self.drone.handle_frame(&frame, now);
            }
            Ok(None) => {
                let within = !connection.inbox.is_empty() || !connection.reader.is_between_frames();
                let began = connection.frame_began.unwrap_or(now);
                connection.frame_began = within.then_some(began);
            }
            Err(error) => self.disconnect(&error.to_string()),
        }
    }

    fn queue_next_frame(&mut self, now: Instant) {
        while let Some(connection) = &mut self.connection
            && connection.is_written()
            && let Some(frame) = self.drone.next_frame(now)
        {
            match frame.encode_header_to(&mut connection.head) {
                Ok(()) => {
                    connection.content = frame.content;
                    connection.last_written = now;
                }
                Err(error) => {
                    tracing::debug!(id = self.drone.id(), %error, "not a frame that can be written");
                    self.drone.on_unwritable();
                }
            }
        }
        self.handle_drone_events();
    }

    fn on_written(&mut self, now: Instant) {
        if let Some(connection) = &mut self.connection {
            connection.last_written = now;
            if connection.is_written() {
                self.drone.on_written();
            }
        }
    }

    fn on_read(&mut self, now: Instant) {
        if let Some(connection) = &mut self.connection {
            connection.last_read = now;
            self.drone.on_bytes_received(now);
            if let Some(header) = connection.reader.pending_header() {
                self.drone.extend_file_deadline(header, now + STALL_TIMEOUT);
            }
        }
    }

    fn disconnect(&mut self, why: &str) {
        if let Some(connection) = self.connection.take() {
            let addr = connection.permit.addr;
            tracing::info!(%addr, id = self.drone.id(), why, "a clever-show drone is gone");
            let now = clock::now();
            self.drone.on_disconnected(now);
            self.away_since = Some(now);
            // Which of them comes back is not known.
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
        if let Err(ended) = self.check_stop_state(&operation) {
            return drop(reply.send(DeviceReply::Reply(ended)));
        }
        match operation {
            DeviceOperation::Release if self.stop_ended => {
                self.stop_ended = false;
                return drop(reply.send(DeviceReply::Reply(Reply::done(RELEASED_TEXT.into()))));
            }
            DeviceOperation::Stop => self.stop_ended = false,
            DeviceOperation::Release
            | DeviceOperation::Command { .. }
            | DeviceOperation::Push { .. }
            | DeviceOperation::Fetch { .. } => {}
        }
        let ticket = self.next_ticket();
        let times = CommandTimes {
            issued,
            until: Deadlines { start_by, respond_by },
            now: clock::now(),
        };
        match self.policy.send(&mut self.drone, ticket, operation, times) {
            Ok(sense) => {
                self.pending_replies.insert(ticket, (sense, reply));
                let left = self
                    .connection
                    .as_ref()
                    .map(|connection| connection.content.len());
                if sense == ReplyKind::Stop && left.is_some_and(|left| left > STOP_WRITE_BYTES_MAX) {
                    self.disconnect("a stop does not wait for the file that is being sent");
                }
            }
            Err(ended) => drop(reply.send(DeviceReply::Reply(ended))),
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Stops and releases may come in another order than they were given; the station knows what is in force.
    fn check_stop_state(&mut self, operation: &DeviceOperation) -> Result<(), Reply> {
        let stopped = self.device.stopped().is_some();
        match operation {
            DeviceOperation::Stop if !stopped => Err(Reply::refused(
                "released meanwhile: it was not told to stop again",
            )),
            DeviceOperation::Release if stopped => Err(Reply::refused(
                "it was stopped again meanwhile; release it once more",
            )),
            DeviceOperation::Release => {
                self.withdraw_stops();
                Ok(())
            }
            // Also where there was no word to stop it with.
            DeviceOperation::Command { .. } | DeviceOperation::Push { .. }
                if stopped && self.policy.has_side_effects(operation) =>
            {
                Err(Reply::refused("an emergency stop is in force: release it first"))
            }
            DeviceOperation::Stop
            | DeviceOperation::Command { .. }
            | DeviceOperation::Push { .. }
            | DeviceOperation::Fetch { .. } => Ok(()),
        }
    }

    /// Whoever released it may not have known that it is here, or may have gone before he could tell.
    fn check_released(&mut self) {
        let stands = self.device.stopped().is_some();
        if !stands && (self.stop_in_force || self.drone.is_stopped()) {
            self.withdraw_stops();
            self.drone.release();
            self.stop_ended = true;
        }
        self.stop_in_force = stands;
    }

    /// What still waits to be told to a drone that is away: released, it is not to be stopped when it is back.
    fn withdraw_stops(&mut self) {
        let stops = self
            .pending_replies
            .iter()
            .filter(|(_, (sense, _))| *sense == ReplyKind::Stop);
        let stops: Vec<u64> = stops.map(|(ticket, _)| *ticket).collect();
        for ticket in stops.iter().copied().chain(self.arrival_stop.take()) {
            self.drone.cancel(ticket);
            if let Some((_, reply)) = self.pending_replies.remove(&ticket) {
                let why = "released before it could be told to stop";
                let _nobody_waits = reply.send(DeviceReply::Reply(Reply::refused(why)));
            }
        }
    }

    /// A stop that is in force holds for a drone that comes, whether this station knew it before or not.
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
        let given = self
            .policy
            .send(&mut self.drone, ticket, DeviceOperation::Stop, times);
        let id = self.drone.id();
        match given {
            Ok(_sense) => {
                tracing::warn!(id, stop = %selector, "a stop is in force for a drone that has come: it is told so");
                self.arrival_stop = Some(ticket);
            }
            Err(why) => {
                tracing::warn!(id, stop = %selector, ?why, "a stop is in force, and the drone is not told");
            }
        }
    }

    /// Drops commands that no caller waits for. A stop that is in force is sent all the same.
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
                    if let Some((sense, reply)) = self.pending_replies.remove(&ticket) {
                        let _nobody_waits = reply.send(policy::to_answer(end, sense));
                    }
                }
                Event::Telemetry => {}
                Event::IdChanged(other) => self.disconnect(&format!("it calls itself {other:?} now")),
                Event::IdleTimeout => self.disconnect("nothing was heard of it"),
                Event::Ignored(note) => tracing::debug!(id = self.drone.id(), note, "passed over"),
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
            (self.duplicate_guard, self.away_since, self.superseded) =
                (Some(self.duplicates.register()), None, false);
            self.drone.on_connected(now);
            self.send_stop_on_arrival(now);
        }
    }

    /// Whether the older or the newer connection is the drone's.
    fn resolve_takeover(&mut self, now: Instant) {
        let Some(PendingTakeover { arrival, since }) = self.pending_takeover.take() else {
            return;
        };
        if self.connection.is_none() {
            self.attach(arrival, now);
        } else if self.drone.last_heard().is_some_and(|heard| heard > since) {
            let Arrival { connection, answer } = arrival;
            let addr = connection.permit.addr;
            tracing::warn!(id = self.drone.id(), %addr, "two drones have one id: give one of them another");
            let _gone = answer.send(Some(connection));
        } else if now >= since + TAKEOVER_TIMEOUT {
            self.disconnect("a newer connection has its id, and it gives no sign of life");
            self.attach(arrival, now);
        } else {
            self.pending_takeover = Some(PendingTakeover { arrival, since });
        }
    }

    /// Tells the fleet how it is.
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
