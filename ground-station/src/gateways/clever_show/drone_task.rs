//! One drone's task: it has the drone's seat among the guests, its conversation, and its connection if there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::clever_show::server::{Drone, Event, Until};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::{HEADER_BYTES_MAX, Limits};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, STALL_MAX, write_some};
use super::policy::{self, RELEASED, Rulebook, Sense, Times};
use crate::fleet::guests::{Answer, Order, Presence, Seat, Work};
use crate::gateways::House;

/// How long an older connection has for a sign of life when a newer one has the same id.
const RIVAL_WAIT: Duration = Duration::from_secs(3);
/// Silence after which a drone is shown as silent: it has been asked for a sign of life by then.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Most of a frame that a stop waits for: what has begun cannot be overtaken.
const STOP_WAITS_FOR: usize = 256 * 1024;
/// How long a stop that was given before a drone came waits to be written: as good as for ever.
const ON_ARRIVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a drone is away until it is forgotten, unless something waits for it.
const AWAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How a post ends whose seat was given away.
const SEAT_LOST: &str = "another drone needed its place at this station";
/// How often it is looked whether somebody has given up waiting, or its seat was given away.
const SWEEP: Duration = Duration::from_secs(1);

/// A connection that says that it is this drone.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) connection: Box<Connection>,
    /// `None` if it is taken; the connection if this post has a live one.
    pub(super) answer: oneshot::Sender<Option<Box<Connection>>>,
}

/// A newer connection, while it is seen whether the older one lives.
struct Rival {
    arrival: Arrival,
    since: Instant,
}

/// How many connected drones have one id.
#[derive(Clone, Debug, Default)]
pub(super) struct Namesakes(Arc<AtomicUsize>);

/// One of them, for as long as it is connected.
struct Here(Namesakes);

impl Namesakes {
    fn enter(&self) -> Here {
        self.0.fetch_add(1, Ordering::SeqCst);
        Here(self.clone())
    }

    fn are_here(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a drone that is away needs no place any more.
fn is_forgotten(away: Option<Instant>, kept: bool, now: Instant) -> bool {
    !kept && away.is_some_and(|since| now >= since + AWAY_MAX)
}

/// See the module.
pub(super) struct Post {
    drone: Drone,
    seat: Seat,
    rulebook: Rulebook,
    /// How many drones with its id are connected, and its own part of that.
    namesakes: Namesakes,
    here: Option<Here>,
    /// Since when it is away, and whether it has left for good.
    away: Option<Instant>,
    left: bool,
    arrivals: mpsc::Receiver<Arrival>,
    stop: CancellationToken,
    connection: Option<Box<Connection>>,
    rival: Option<Rival>,
    waiting: BTreeMap<u64, (Sense, oneshot::Sender<Answer>)>,
    last_ticket: u64,
    /// A stop that nobody at this station waits for: it was given before the drone came.
    stop_on_arrival: Option<u64>,
    /// Whether it was seen that its stop is over, before anybody said so.
    lifted: bool,
    /// Whether a stop was in force when it was last looked.
    stands: bool,
    shown: Presence,
}

/// What has happened.
enum Input {
    Stop,
    Order(Option<Order>),
    Arrival(Option<Arrival>),
    Turn,
    Wrote(std::io::Result<()>),
    Read(std::io::Result<usize>),
    Time,
}

impl Post {
    pub(super) fn new(
        drone: Drone,
        seat: Seat,
        rulebook: Rulebook,
        namesakes: Namesakes,
        arrivals: mpsc::Receiver<Arrival>,
        house: &House,
    ) -> Self {
        Self {
            drone,
            seat,
            rulebook,
            namesakes,
            here: None,
            away: Some(clock::now()),
            left: false,
            arrivals,
            stop: house.stop.clone(),
            connection: None,
            rival: None,
            waiting: BTreeMap::new(),
            last_ticket: 0,
            stop_on_arrival: None,
            lifted: false,
            stands: false,
            shown: Presence::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let why = loop {
            let now = clock::now();
            self.take_frame(now);
            self.drone.handle_timeout(now);
            self.sweep();
            self.see_whether_released();
            self.tell_events();
            self.judge(now);
            self.next_to_write(now);
            self.show(now);
            if self.seat.is_lost() {
                // Nobody who gives orders finds it any more, though it may have come back just then: it comes again.
                self.lose(SEAT_LOST);
                break SEAT_LOST;
            }
            if self.left {
                break "it left, and another drone has its id";
            }
            if is_forgotten(self.away, self.shown.kept, now) {
                break "it has been away for a day";
            }
            match self.next_input().await {
                Input::Order(Some(order)) => self.take_order(order),
                Input::Arrival(Some(arrival)) => self.take_arrival(arrival),
                Input::Stop | Input::Arrival(None) => break "this station stopped before it was done",
                Input::Order(None) => break SEAT_LOST,
                Input::Turn => {
                    if let Some(connection) = &mut self.connection {
                        connection.turn = true;
                    }
                }
                Input::Wrote(Ok(())) => self.wrote(clock::now()),
                Input::Read(Ok(bytes)) if bytes > 0 => self.read(clock::now()),
                Input::Wrote(Err(error)) | Input::Read(Err(error)) => self.lose(&error.to_string()),
                Input::Read(Ok(_none)) => self.lose("the drone has closed it"),
                Input::Time => {
                    let now = clock::now();
                    let awaits_file = self.drone.awaits_file();
                    let stuck = self.connection.as_ref();
                    if let Some(why) = stuck.and_then(|connection| connection.is_stuck(awaits_file, now)) {
                        self.lose(why);
                    }
                }
            }
        };
        self.drone.close(why);
        self.tell_events();
        // What was on its way.
        for queue in [&mut self.seat.stops, &mut self.seat.orders] {
            queue.close();
            while let Ok(order) = queue.try_recv() {
                let untold = Reply::ended(Outcome::NoAnswer, why);
                let _nobody_waits = order.reply.send(Answer::Reply(untold));
            }
        }
    }

    async fn next_input(&mut self) -> Input {
        let now = clock::now();
        let rival = self.rival.as_ref().map(|rival| rival.since + RIVAL_WAIT);
        let due = [self.drone.poll_timeout(), rival, Some(now + SWEEP)];
        let mut due = due.into_iter().flatten().min().unwrap_or(now);
        let Some(connection) = &mut self.connection else {
            return tokio::select! {
                biased;
                () = self.stop.cancelled() => Input::Stop,
                Some(stop) = self.seat.stops.recv() => Input::Order(Some(stop)),
                arrival = self.arrivals.recv() => Input::Arrival(arrival),
                order = self.seat.orders.recv() => Input::Order(order),
                () = clock::sleep_until(due) => Input::Time,
            };
        };
        let stuck = [
            connection.write_due(),
            connection.read_due(self.drone.awaits_file()),
        ];
        due = stuck.into_iter().flatten().fold(due, Instant::min);
        let (turn, writes) = (connection.turn, !connection.is_written());
        let Connection {
            from,
            to,
            entrance,
            reader,
            inbox,
            head,
            content,
            ..
        } = connection.as_mut();
        inbox.reserve(reader.lacking().max(1));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Input::Stop,
            Some(stop) = self.seat.stops.recv() => Input::Order(Some(stop)),
            wrote = write_some(to, head, content), if writes => Input::Wrote(wrote),
            arrival = self.arrivals.recv(), if rival.is_none() => Input::Arrival(arrival),
            () = entrance.turn(), if !turn => Input::Turn,
            read = from.read_buf(inbox), if turn => Input::Read(read),
            order = self.seat.orders.recv() => Input::Order(order),
            () = clock::sleep_until(due) => Input::Time,
        }
    }

    /// Reads a frame, if one is there whole and has its turn.
    fn take_frame(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut content = self.rulebook.message_bytes;
        if self.drone.awaits_file() {
            content = content.max(usize::try_from(self.rulebook.file_bytes).unwrap_or(usize::MAX));
        }
        connection.reader.set_limits(Limits {
            header: HEADER_BYTES_MAX.min(self.rulebook.message_bytes),
            content,
        });
        if !connection.turn {
            return;
        }
        match connection.reader.next_frame(&mut connection.inbox) {
            Ok(Some(frame)) => {
                connection.turn = false;
                connection.began = (!connection.inbox.is_empty()).then_some(now);
                self.drone.handle_frame(&frame, now);
            }
            Ok(None) => {
                let within = !connection.inbox.is_empty() || !connection.reader.is_between_frames();
                let began = connection.began.unwrap_or(now);
                connection.began = within.then_some(began);
            }
            Err(error) => self.lose(&error.to_string()),
        }
    }

    fn next_to_write(&mut self, now: Instant) {
        while let Some(connection) = &mut self.connection
            && connection.is_written()
            && let Some(frame) = self.drone.next_frame(now)
        {
            match frame.encode_head(&mut connection.head) {
                Ok(()) => {
                    connection.content = frame.content;
                    connection.wrote = now;
                }
                Err(error) => {
                    tracing::debug!(id = self.drone.id(), %error, "not a frame that can be written");
                    self.drone.unwritable();
                }
            }
        }
        self.tell_events();
    }

    fn wrote(&mut self, now: Instant) {
        if let Some(connection) = &mut self.connection {
            connection.wrote = now;
            if connection.is_written() {
                self.drone.written();
            }
        }
    }

    fn read(&mut self, now: Instant) {
        if let Some(connection) = &mut self.connection {
            connection.read = now;
            self.drone.stirred(now);
            if let Some(header) = connection.reader.awaited() {
                self.drone.receiving(header, now + STALL_MAX);
            }
        }
    }

    fn lose(&mut self, why: &str) {
        if let Some(connection) = self.connection.take() {
            let addr = connection.entrance.addr;
            tracing::info!(%addr, id = self.drone.id(), why, "a clever-show drone is gone");
            let now = clock::now();
            self.drone.disconnected(now);
            self.away = Some(now);
            // Nobody can tell any more which of them comes back.
            self.here = None;
            self.left = self.namesakes.are_here();
        }
    }

    fn take_order(&mut self, order: Order) {
        let Order {
            work,
            issued,
            begin,
            answer,
            reply,
        } = order;
        self.see_whether_released();
        if let Err(ended) = self.heed(&work) {
            return drop(reply.send(Answer::Reply(ended)));
        }
        match work {
            Work::Release if self.lifted => {
                self.lifted = false;
                return drop(reply.send(Answer::Reply(Reply::done(RELEASED.into()))));
            }
            Work::Stop => self.lifted = false,
            Work::Release | Work::Command { .. } | Work::Push { .. } | Work::Fetch { .. } => {}
        }
        let ticket = self.ticket();
        let times = Times {
            issued,
            until: Until { begin, answer },
            now: clock::now(),
        };
        match self.rulebook.give(&mut self.drone, ticket, work, times) {
            Ok(sense) => {
                self.waiting.insert(ticket, (sense, reply));
                let left = self
                    .connection
                    .as_ref()
                    .map(|connection| connection.content.len());
                if sense == Sense::Stop && left.is_some_and(|left| left > STOP_WAITS_FOR) {
                    self.lose("a stop does not wait for the file that is being sent");
                }
            }
            Err(ended) => drop(reply.send(Answer::Reply(ended))),
        }
    }

    fn ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Stops and releases may come in another order than they were given; the station knows what is in force.
    fn heed(&mut self, work: &Work) -> Result<(), Reply> {
        let stopped = self.seat.stopped().is_some();
        match work {
            Work::Stop if !stopped => Err(Reply::refused(
                "released meanwhile: it was not told to stop again",
            )),
            Work::Release if stopped => Err(Reply::refused(
                "it was stopped again meanwhile; release it once more",
            )),
            Work::Release => {
                self.withdraw_stops();
                Ok(())
            }
            // Also where there was no word to stop it with.
            Work::Command { .. } | Work::Push { .. } if stopped && self.rulebook.acts(work) => {
                Err(Reply::refused("an emergency stop is in force: release it first"))
            }
            Work::Stop | Work::Command { .. } | Work::Push { .. } | Work::Fetch { .. } => Ok(()),
        }
    }

    /// Whoever released it may not have known that it is here, or may have gone before he could tell.
    fn see_whether_released(&mut self) {
        let stands = self.seat.stopped().is_some();
        if !stands && (self.stands || self.drone.is_stopped()) {
            self.withdraw_stops();
            self.drone.release();
            self.lifted = true;
        }
        self.stands = stands;
    }

    /// What still waits to be told to a drone that is away: released, it is not to be stopped when it is back.
    fn withdraw_stops(&mut self) {
        let stops = self
            .waiting
            .iter()
            .filter(|(_, (sense, _))| *sense == Sense::Stop);
        let stops: Vec<u64> = stops.map(|(ticket, _)| *ticket).collect();
        for ticket in stops.iter().copied().chain(self.stop_on_arrival.take()) {
            self.drone.cancel(ticket);
            if let Some((_, reply)) = self.waiting.remove(&ticket) {
                let why = "released before it could be told to stop";
                let _nobody_waits = reply.send(Answer::Reply(Reply::refused(why)));
            }
        }
    }

    /// A stop that is in force holds for a drone that comes, whether this station knew it before or not.
    fn stop_on_arrival(&mut self, now: Instant) {
        let Some(selector) = self.seat.stopped().filter(|_| !self.drone.is_stopped()) else {
            return;
        };
        let ticket = self.ticket();
        let until = now + ON_ARRIVAL_MAX;
        let times = Times {
            issued: now,
            until: Until {
                begin: until,
                answer: until,
            },
            now,
        };
        let given = self.rulebook.give(&mut self.drone, ticket, Work::Stop, times);
        let id = self.drone.id();
        match given {
            Ok(_sense) => {
                tracing::warn!(id, stop = %selector, "a stop is in force for a drone that has come: it is told so");
                self.stop_on_arrival = Some(ticket);
            }
            Err(why) => {
                tracing::warn!(id, stop = %selector, ?why, "a stop is in force, and the drone is not told");
            }
        }
    }

    /// Forgets what nobody waits for any more. A stop that is in force is told all the same.
    fn sweep(&mut self) {
        let drone = &mut self.drone;
        self.waiting.retain(|ticket, (_, reply)| {
            let wanted = !reply.is_closed();
            if !wanted {
                drone.cancel(*ticket);
            }
            wanted
        });
    }

    fn tell_events(&mut self) {
        while let Some(event) = self.drone.poll_event() {
            match event {
                Event::Ended(ticket, end) => {
                    if let Some((sense, reply)) = self.waiting.remove(&ticket) {
                        let _nobody_waits = reply.send(policy::answer(end, sense));
                    }
                }
                Event::Telemetry => {}
                Event::OtherId(other) => self.lose(&format!("it calls itself {other:?} now")),
                Event::TooQuiet => self.lose("nothing was heard of it"),
                Event::PassedOver(note) => tracing::debug!(id = self.drone.id(), note, "passed over"),
            }
        }
    }

    fn take_arrival(&mut self, arrival: Arrival) {
        let now = clock::now();
        if self.connection.is_none() {
            return self.attach(arrival, now);
        }
        self.drone.probe();
        self.rival = Some(Rival { arrival, since: now });
    }

    fn attach(&mut self, arrival: Arrival, now: Instant) {
        let Arrival { connection, answer } = arrival;
        if answer.send(None).is_ok() {
            self.connection = Some(connection);
            (self.here, self.away, self.left) = (Some(self.namesakes.enter()), None, false);
            self.drone.connected(now);
            self.stop_on_arrival(now);
        }
    }

    /// Whether the older or the newer connection is the drone's.
    fn judge(&mut self, now: Instant) {
        let Some(Rival { arrival, since }) = self.rival.take() else {
            return;
        };
        if self.connection.is_none() {
            self.attach(arrival, now);
        } else if self.drone.heard().is_some_and(|heard| heard > since) {
            let Arrival { connection, answer } = arrival;
            let addr = connection.entrance.addr;
            tracing::warn!(id = self.drone.id(), %addr, "two drones have one id: give one of them another");
            let _gone = answer.send(Some(connection));
        } else if now >= since + RIVAL_WAIT {
            self.lose("a newer connection has its id, and it gives no sign of life");
            self.attach(arrival, now);
        } else {
            self.rival = Some(Rival { arrival, since });
        }
    }

    /// Tells the fleet how it is.
    fn show(&mut self, now: Instant) {
        let heard = self.drone.heard();
        let address = self
            .connection
            .as_ref()
            .map(|connection| connection.entrance.addr);
        let presence = Presence {
            online: heard.is_some(),
            silent: heard.is_some_and(|heard| now >= heard + SILENT_AFTER),
            heard: heard.or(self.shown.heard),
            kept: !self.waiting.is_empty(),
            address: address.or(self.shown.address),
            warnings: Vec::new(),
            telemetry: self.drone.readings().clone(),
        };
        if presence != self.shown {
            self.shown = presence.clone();
            self.seat.tell(presence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_away_for_a_day_is_forgotten_unless_something_waits_for_it() {
        let now = clock::now();
        let later = now + AWAY_MAX;
        assert!(is_forgotten(Some(now), false, later));
        assert!(!is_forgotten(Some(now), true, later));
        assert!(!is_forgotten(Some(now + SWEEP), false, later));
        assert!(!is_forgotten(None, false, later));
    }
}
