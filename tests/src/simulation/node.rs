//! A simulated node: the product's desks and journal behind simulated sockets, disk and clock.
//!
//! What it decides itself is no more than a driver may: in which order sockets are looked at, and how long an action
//! takes.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use swarm_shared::proto::delivery::desk::{Desk, Effect, Incoming, OPEN_MAX, RUNNING_MAX, Ticket, Traits};
use swarm_shared::proto::delivery::ledger::Ledger;
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::message::{Arguments, StopCommand};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::parcel::Parcel;
use swarm_shared::proto::selector::Target;
use swarm_shared::proto::session::Event;
use swarm_shared::proto::stop::{Carrier, Heard, Latch, Present, StopDesk};
use swarm_shared::proto::trust::gate::{Wish, classify, permit};
use swarm_shared::proto::wire::{Frame, Header, Kind, Lane, MessageType};
use turmoil::net::{TcpStream, UdpSocket};

use super::disk::{Journal, Written};
use super::link::{Dialing, Greeting, Peer, look};
use super::truth::Invariant;
use super::world::{Died, Gauge, HostId, Meddling, Moment, STATION_PORT, STOP_PORT, TICK, World};

/// How long after a failed dial the next one comes, in milliseconds: at most; an announcement of the station's comes
/// that often.
const REDIAL_MS: u64 = 1_000;
/// How long a dial may take, in milliseconds.
const DIAL_MS_MAX: u64 = 3_000;
/// A journal's thread takes up to so many ticks for a write.
const WRITE_TICKS_MAX: u64 = 3;
/// Longest datagram.
const DATAGRAM_BYTES: usize = 2_048;

/// The process of a node, from its start until it is killed.
pub(super) async fn process(world: Rc<World>, me: HostId) -> turmoil::Result {
    let mut node = match Node::start(&world, me).await? {
        Ok(node) => node,
        Err(Died) => return std::future::pending().await,
    };
    loop {
        if !world.is_paused(me) && node.turn().is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(TICK).await;
    }
}

struct Dial {
    dialing: Option<(Dialing, u64)>,
    next_ms: u64,
}

/// What waits for the journal's thread.
enum Wait {
    Desk(Ticket),
    Stop(Latch),
    /// A release, ordered by this command, which names this number.
    Release(Latch, CommandId, u64),
    Note,
}

struct Work {
    action: String,
    ends_ms: u64,
    arguments: Arguments,
}

struct Node {
    world: Rc<World>,
    me: HostId,
    instance: Instance,
    udp: UdpSocket,
    dials: BTreeMap<HostId, Dial>,
    greetings: Vec<Greeting>,
    peers: BTreeMap<PeerId, Peer>,
    desk: Desk,
    stop: StopDesk,
    journal: Journal,
    writes: VecDeque<(u64, Vec<Record>, Wait)>,
    /// What the commands at hand are to do.
    orders: BTreeMap<CommandId, (String, Arguments)>,
    running: BTreeMap<CommandId, Work>,
    moves: u16,
}

impl Node {
    async fn start(world: &Rc<World>, me: HostId) -> std::io::Result<Result<Self, Died>> {
        let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
        udp.set_broadcast(true)?;
        let now = world.instant(me);
        let instance = world.begin_run(me);
        let (journal, ledger) = match Journal::open(world, me) {
            Ok(opened) => opened,
            Err(Died) => return Ok(Err(Died)),
        };
        let stop = restore_stop(&ledger, now);
        let present = stop.present().map(|present| present.order);
        world.note(
            me,
            format_args!("starts; stop in force: {:?}", present.map(|p| p.number)),
        );
        world.truth.borrow_mut().restored(me, present);
        let mut desk = Desk::new(ledger);
        if present.is_some() {
            desk.stopped(now);
        }
        let moves = world.controls[me].borrow().moves;
        Ok(Ok(Self {
            world: Rc::clone(world),
            me,
            instance,
            udp,
            dials: BTreeMap::new(),
            greetings: Vec::new(),
            peers: BTreeMap::new(),
            desk,
            stop,
            journal,
            writes: VecDeque::new(),
            orders: BTreeMap::new(),
            running: BTreeMap::new(),
            moves,
        }))
    }

    fn turn(&mut self) -> Result<(), Died> {
        self.connect();
        self.listen()?;
        self.read()?;
        self.finish();
        self.write_journal()?;
        self.desk.handle_timeout(self.world.instant(self.me));
        self.carry_out()?;
        let world = Rc::clone(&self.world);
        for peer in self.peers.values_mut() {
            peer.write(&world, self.me)?;
        }
        self.measure();
        Ok(())
    }

    /// Dials every station that is there and not linked; takes in who has said hello.
    fn connect(&mut self) {
        let world = Rc::clone(&self.world);
        let now = world.now_ms();
        let moves = world.controls[self.me].borrow().moves;
        if moves != self.moves {
            self.moves = moves;
            self.dials.clear();
            self.greetings.clear();
        }
        for station in world.members() {
            let id = world.hosts[station].id;
            let linked = self.peers.get(&id).is_some_and(Peer::is_linked);
            let greeting = self.greetings.iter().any(|greeting| greeting.host == station);
            let dial = self.dials.entry(station).or_insert(Dial {
                dialing: None,
                next_ms: now,
            });
            if let Some((dialing, since)) = &mut dial.dialing {
                match look(dialing.as_mut()) {
                    Some(Ok(stream)) => {
                        dial.dialing = None;
                        if let Ok(greeting) = Greeting::new(stream, station, self.instance, now) {
                            self.greetings.push(greeting);
                        }
                    }
                    Some(Err(_)) => dial.dialing = None,
                    None if now > *since + DIAL_MS_MAX => dial.dialing = None,
                    None => {}
                }
            } else if !linked && !greeting && now >= dial.next_ms {
                let jitter = world.controls[self.me].borrow_mut().rng.between(200, REDIAL_MS);
                dial.next_ms = now + jitter;
                let address = world.address(station, STATION_PORT);
                dial.dialing = address.map(|address| {
                    let dialing: Dialing = Box::pin(TcpStream::connect(address));
                    (dialing, now)
                });
            }
        }
        let mut kept = Vec::new();
        for mut greeting in std::mem::take(&mut self.greetings) {
            match greeting.turn(now) {
                Ok(Some(instance)) => self.link(greeting, instance),
                Ok(None) => kept.push(greeting),
                Err(_) => {}
            }
        }
        self.greetings = kept;
    }

    fn link(&mut self, greeting: Greeting, instance: Instance) {
        let id = self.world.hosts[greeting.host].id;
        let now = self.world.instant(self.me);
        let peer = match self.peers.entry(id) {
            std::collections::btree_map::Entry::Occupied(peer) => peer.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let Ok(peer) = Peer::new(greeting.host, self.instance, now) else {
                    return;
                };
                vacant.insert(peer)
            }
        };
        // Another process with the same key is linked: the second has to wait, as at the endpoint.
        if peer.is_linked() {
            return;
        }
        peer.attach(&self.world, self.me, greeting, instance);
    }

    /// Reads datagrams.
    fn listen(&mut self) -> Result<(), Died> {
        let mut bytes = [0; DATAGRAM_BYTES];
        while let Ok((length, from)) = self.udp.try_recv_from(&mut bytes) {
            let own = self.world.at(from.ip()) == Some(self.me);
            if own || self.world.is_datagram_lost(self.me) {
                continue;
            }
            let times = match self.world.meddle(self.me) {
                Some(Meddling::Drop) => 0,
                Some(Meddling::Duplicate) => 2,
                Some(Meddling::Reorder) | None => 1,
            };
            for _ in 0..times {
                self.hear(&bytes[..length], Carrier::Datagram, None)?;
            }
        }
        Ok(())
    }

    /// Hears a stop, from `peer` if it came over its link.
    fn hear(&mut self, bytes: &[u8], carrier: Carrier, peer: Option<PeerId>) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        let now = world.instant(self.me);
        let host = &world.hosts[self.me];
        let tags = BTreeMap::new();
        let target = Target {
            name: &host.called,
            id: &host.id,
            tags: &tags,
        };
        let membership = world.fleet.membership(self.me);
        let heard = match self.stop.hear(bytes, carrier, Some(membership), &target, now) {
            Ok(heard) => heard,
            Err(fault) => {
                world.note(self.me, format_args!("heeds no stop: {fault}"));
                return Ok(());
            }
        };
        if heard != Heard::Nothing {
            world.note(self.me, format_args!("hears over a {carrier:?}: {heard:?}"));
        }
        match heard {
            Heard::New(order) => {
                world.heard_stop(self.me, order);
                self.desk.stopped(now);
                let record = Record::Stopped {
                    issuer: order.issuer,
                    number: order.number,
                };
                self.write(vec![record], Wait::Stop(order));
                self.pass_on(bytes);
                self.report(None, Some(order));
            }
            Heard::Same(order) | Heard::Old(order) => self.report(peer, Some(order)),
            Heard::Others { order, pass_on } => {
                if pass_on {
                    self.pass_on(bytes);
                }
                if let Some(to) = peer {
                    let mut report = self.stop.report(&to, Some(order), now);
                    (report.issuer, report.number, report.not_meant) = (order.issuer, order.number, true);
                    self.send_report(to, &report);
                }
            }
            Heard::Counted(order) => {
                let record = Record::StopSeen {
                    issuer: order.issuer,
                    number: order.number,
                };
                self.write(vec![record], Wait::Note);
            }
            Heard::Nothing => {}
        }
        Ok(())
    }

    /// What was heard is broadcast once more, for whoever did not hear it.
    fn pass_on(&self, bytes: &[u8]) {
        let everybody = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
        self.world.broadcast(&self.udp, bytes, everybody);
    }

    /// Tells one station, or all, how the stop stands.
    fn report(&mut self, to: Option<PeerId>, about: Option<Latch>) {
        let now = self.world.instant(self.me);
        let all: Vec<PeerId> = match to {
            Some(to) => vec![to],
            None => self.peers.keys().copied().collect(),
        };
        for to in all {
            let report = self.stop.report(&to, about, now);
            self.send_report(to, &report);
        }
        if let Some(present) = self.stop.present()
            && present.latched
        {
            let order = present.order;
            self.world.truth.borrow_mut().promised_stop(self.me, order);
        }
    }

    fn send_report(&mut self, to: PeerId, report: &swarm_shared::proto::message::Stopped) {
        self.send(to, &Frame::json(Kind::Stopped, report), Lane::Emergency);
    }

    fn send(&mut self, to: PeerId, frame: &Frame, lane: Lane) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        if let Ok(parcel) = Parcel::new(frame) {
            let taken = peer.send(parcel, lane, None);
            if !taken {
                self.world
                    .note(self.me, format_args!("{:?} found no room", frame.header.kind));
            }
        }
    }

    fn read(&mut self) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let host = peer.host;
            for event in peer.read(&world, self.me) {
                match event {
                    Event::Frame { frame, deadline } => self.take(id, host, *frame, deadline)?,
                    Event::Opened { resumed } => {
                        let name = &world.hosts[host].name;
                        world.note(self.me, format_args!("is linked with {name}, resumed: {resumed}"));
                        if self.stop.present().is_some() {
                            self.report(Some(id), None);
                        }
                    }
                    Event::Settled(..) | Event::Silent | Event::Heard => {}
                }
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        from: PeerId,
        host: HostId,
        frame: Frame,
        deadline: Option<std::time::Instant>,
    ) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        let role = world.hosts[host].role;
        match frame.header.kind {
            Some(Kind::Stop) if permit(role, &Wish::Frame(Kind::Stop)).is_ok() => {
                self.hear(&frame.content, Carrier::Link, Some(from))?;
            }
            Some(Kind::Command) => {
                let action = frame.header.action.clone().unwrap_or_default();
                let arguments: Arguments = frame.read().unwrap_or_default();
                if let Err(refused) = permit(role, &Wish::Command(classify(&action, &arguments))) {
                    let reply = Reply::refused(refused.reason);
                    self.send(from, &reply.to_frame(&frame.header), Lane::Control);
                    return Ok(());
                }
                let Some(id) = CommandId::of(from, &frame.header) else {
                    return Ok(());
                };
                let incoming = Incoming {
                    id,
                    digest: digest(&action, &frame.content),
                    deadline,
                    life_ms: frame.header.life,
                    traits: traits(&action),
                };
                if self.desk.command(incoming, world.instant(self.me)) {
                    self.orders.insert(id, (action, arguments));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends what has run long enough.
    fn finish(&mut self) {
        let now_ms = self.world.now_ms();
        let now = self.world.instant(self.me);
        let done: Vec<CommandId> = self
            .running
            .iter()
            .filter(|(_, work)| work.ends_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            let Some(work) = self.running.remove(&id) else {
                continue;
            };
            if work.action == RELEASE {
                self.release(id, &work.arguments);
            } else {
                self.desk.finished(id, Reply::done(serde_json::json!("ran")), now);
            }
        }
    }

    /// Carries a release out: written down first, then in force.
    fn release(&mut self, id: CommandId, arguments: &Arguments) {
        let now = self.world.instant(self.me);
        let number = arguments.kwargs.get("number").and_then(serde_json::Value::as_u64);
        let number = number.unwrap_or_default();
        match self.stop.may_release(number, None) {
            Ok(order) => {
                self.world.truth.borrow_mut().releasing(self.me, order);
                let record = Record::Released { number: order.number };
                self.write(vec![record], Wait::Release(order, id, number));
            }
            Err(refused) => self.desk.finished(id, Reply::failed(refused.to_string()), now),
        }
    }

    fn write(&mut self, records: Vec<Record>, wait: Wait) {
        let ticks = self.world.controls[self.me]
            .borrow_mut()
            .rng
            .between(0, WRITE_TICKS_MAX);
        let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
        let due = self.world.now_ms() + ticks * tick;
        self.writes.push_back((due, records, wait));
    }

    /// What the journal's thread does: in order, and each write synced before it is answered.
    fn write_journal(&mut self) -> Result<(), Died> {
        while self
            .writes
            .front()
            .is_some_and(|(due, _, _)| *due <= self.world.now_ms())
        {
            let Some((_, records, wait)) = self.writes.pop_front() else {
                break;
            };
            self.world.pass(self.me, Moment::BeforeJournal)?;
            let written = self.journal.append(&records)?;
            self.world.pass(self.me, Moment::AfterJournal)?;
            let now = self.world.instant(self.me);
            if let Written::No(why) = &written {
                self.world.note(self.me, format_args!("cannot write: {why}"));
            }
            match (wait, written) {
                (Wait::Desk(ticket), Written::Yes) => self.desk.written(ticket, now),
                (Wait::Desk(ticket), Written::No(why)) => self.desk.not_written(ticket, &why, now),
                (Wait::Stop(order), Written::Yes) => {
                    self.world.truth.borrow_mut().wrote_stop(self.me, order);
                    if self.stop.written(order) {
                        self.report(None, Some(order));
                    }
                }
                (Wait::Stop(order), Written::No(why)) => {
                    if self.stop.not_written(order, &why) {
                        self.report(None, Some(order));
                    }
                    // It is tried again until it is on the disk.
                    let record = Record::Stopped {
                        issuer: order.issuer,
                        number: order.number,
                    };
                    let due = self.world.now_ms() + 500;
                    self.writes.push_back((due, vec![record], Wait::Stop(order)));
                }
                (Wait::Release(order, id, named), Written::Yes) => {
                    let reply = match self.stop.release(order) {
                        Ok(()) => {
                            self.world
                                .note(self.me, format_args!("released from stop {}", order.number));
                            self.world.truth.borrow_mut().released(self.me, named);
                            self.desk.released();
                            Reply::done(serde_json::json!("released"))
                        }
                        Err(refused) => Reply::failed(refused.to_string()),
                    };
                    self.desk.finished(id, reply, now);
                    self.report(None, None);
                }
                (Wait::Release(_, id, _), Written::No(why)) => {
                    self.desk.finished(id, Reply::failed(why), now);
                }
                (Wait::Note, Written::Yes | Written::No(_)) => {}
            }
        }
        Ok(())
    }

    /// Does what the desk wants done.
    fn carry_out(&mut self) -> Result<(), Died> {
        loop {
            let effects = self.desk.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.effect(effect)?;
            }
        }
        let desk = &self.desk;
        self.orders.retain(|id, _| desk.holds(*id));
        Ok(())
    }

    fn effect(&mut self, effect: Effect) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        let now = world.now_ms();
        match effect {
            Effect::Write { ticket, records } => self.write(records, Wait::Desk(ticket)),
            Effect::Stage { id, stage } => {
                self.send(id.issuer, &StageMessage { stage }.to_frame(id), Lane::Control);
            }
            Effect::Run { id } => {
                let (action, arguments) = self.orders.get(&id).cloned().unwrap_or_default();
                world.note(self.me, format_args!("runs {action} of {id}"));
                world.executed(self.me, id);
                let work = arguments.kwargs.get("work").and_then(serde_json::Value::as_u64);
                self.running.insert(
                    id,
                    Work {
                        action,
                        ends_ms: now + work.unwrap_or(0),
                        arguments,
                    },
                );
            }
            Effect::Kill { id } => {
                if self.running.remove(&id).is_some() {
                    let reply = Reply::ended(Outcome::Failed, "killed");
                    self.desk.finished(id, reply, world.instant(self.me));
                }
            }
            Effect::Answer { id, reply } => {
                world.note(self.me, format_args!("answers {id}: {}", reply.state));
                let header = Header {
                    id: Some(id.seq),
                    epoch: Some(id.epoch),
                    message_type: MessageType::Request,
                    ..Header::default()
                };
                self.send(id.issuer, &reply.to_frame(&header), Lane::Control);
            }
        }
        Ok(())
    }

    fn measure(&self) {
        let open = self
            .peers
            .values()
            .filter(|peer| peer.session.is_open())
            .map(|peer| peer.host);
        let gauge = Gauge {
            open: open.collect(),
            unended: 0,
        };
        self.world.measure(self.me, gauge);
        if self.running.len() > RUNNING_MAX || self.orders.len() > OPEN_MAX {
            let what = format!("{} things run and {} wait", self.running.len(), self.orders.len());
            self.world
                .truth
                .borrow_mut()
                .break_promise(Invariant::MemoryBounded, what);
        }
    }
}

/// What a release is called.
pub(super) const RELEASE: &str = "release";

/// What an action is like is in its name here; a real node's owner says it in its configuration.
fn traits(action: &str) -> Traits {
    Traits {
        idempotent: action.contains('i') && action != RELEASE,
        while_stopped: action.contains('s') || action == RELEASE,
        flight: action.contains('f'),
    }
}

fn restore_stop(ledger: &Ledger, now: std::time::Instant) -> StopDesk {
    let mut seen = Vec::new();
    for record in ledger.records() {
        if let Record::StopSeen { issuer, number } = record {
            seen.push(Latch { issuer, number });
        }
    }
    let present = ledger.latch().map(|latch| Present {
        order: Latch {
            issuer: latch.issuer,
            number: latch.number,
        },
        since: now,
        before_ms: 0,
        latched: true,
        unlatched_why: None,
        command: StopCommand::None,
        command_error: None,
    });
    StopDesk::new(false, seen, present)
}
