//! A simulated station: the product's book and store, and its side of the emergency stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use swarm_shared::proto::delivery::tracker::{
    Addressee, Book, Change, Effect, Issue, Order as Asked, Ticket,
};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Stopped;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{Latch, StopCall, StopOrder, Verdict, next_number};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use turmoil::net::UdpSocket;

use super::endpoint::{Door, Happened};
use super::ground_truth::{Invariant, Issued, Nature};
use super::node::RELEASE;
use super::plan::Order;
use super::world::{Died, Gauge, HostId, Moment, STOP_PORT, TICK, World};

/// The store's thread takes up to so many ticks for a write.
const WRITE_TICKS_MAX: u64 = 3;
/// How old a release's number may be, in percent of releases.
const STALE_PERCENT: u64 = 30;

/// The process of a station, from its start until it is killed.
pub(super) async fn process(world: Rc<World>, me: HostId) -> turmoil::Result {
    while !world.is_member(me) {
        // The second one is switched on when its time has come.
        tokio::time::sleep(TICK).await;
    }
    let mut station = Station::start(&world, me).await?;
    loop {
        if !world.is_paused(me) {
            match station.turn() {
                Ok(Ok(())) => {}
                Ok(Err(Died)) => return std::future::pending().await,
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// What waits for the store's thread.
enum Write {
    Book(Ticket, Vec<Change>),
    Number(u64),
}

/// A stop that is being given.
struct Call {
    call: StopCall,
    bytes: Vec<u8>,
    selector: Selector,
    order: Latch,
}

struct Station {
    world: Rc<World>,
    me: HostId,
    own: PeerId,
    door: Door,
    udp: UdpSocket,
    book: Book,
    epoch: u64,
    seq: u64,
    given: u64,
    writes: VecDeque<(u64, Write)>,
    calls: Vec<Call>,
    /// Of each node that this run of the station has stopped: the newest command before that.
    stopped_at: BTreeMap<PeerId, CommandId>,
    /// Commands that this run of the station has sent in time.
    went_out: BTreeSet<(PeerId, CommandId)>,
    /// The numbers of stops that each node has reported, the newest last.
    reported: BTreeMap<PeerId, Vec<u64>>,
}

impl Station {
    async fn start(world: &Rc<World>, me: HostId) -> Result<Self, Box<dyn std::error::Error>> {
        let instance = world.begin_run(me);
        let door = Door::open(world, me, instance).await?;
        let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
        udp.set_broadcast(true)?;
        let (epoch, open, given) = world.stores.borrow_mut().open(world, me)?;
        world.note(
            me,
            format_args!("starts in epoch {epoch} with {} open commands", open.len()),
        );
        Ok(Self {
            world: Rc::clone(world),
            me,
            own: world.hosts[me].id,
            door,
            udp,
            book: Book::restore(open),
            epoch,
            seq: 0,
            given,
            writes: VecDeque::new(),
            calls: Vec::new(),
            stopped_at: BTreeMap::new(),
            went_out: BTreeSet::new(),
            reported: BTreeMap::new(),
        })
    }

    fn turn(&mut self) -> std::io::Result<Result<(), Died>> {
        let world = Rc::clone(&self.world);
        let happened = self.door.turn(&world)?;
        Ok(self.go_on(happened))
    }

    fn go_on(&mut self, happened: Vec<(PeerId, Happened)>) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        for (peer, what) in happened {
            self.take(peer, what);
        }
        // Nobody tells a station by datagram; what comes is read and dropped.
        let mut bytes = [0; 2_048];
        while self.udp.try_recv_from(&mut bytes).is_ok() {}
        while let Some(order) = world.take_order(self.me) {
            self.obey(order);
        }
        self.write_store()?;
        let now = world.instant(self.me);
        self.book.handle_timeout(now);
        self.carry_out();
        self.call_again();
        for (peer, what) in self.door.write(&world)? {
            self.take(peer, what);
        }
        self.carry_out();
        let calls = self.calls.iter().filter(|call| !call.call.is_over()).count();
        let gauge = Gauge {
            open: self.door.open_links(),
            unended: self.book.open() + calls,
        };
        world.measure(self.me, gauge);
        Ok(())
    }

    fn take(&mut self, peer: PeerId, what: Happened) {
        let now = self.world.instant(self.me);
        match what {
            Happened::Up { resumed } => {
                let bytes: Vec<Vec<u8>> = self
                    .calls
                    .iter()
                    .filter(|call| call.call.up(&peer))
                    .map(|call| call.bytes.clone())
                    .collect();
                for bytes in bytes {
                    self.send_stop(&peer, bytes);
                }
                self.book.up(peer, resumed, now);
            }
            Happened::Down => self.book.down(peer),
            Happened::Frame(frame) => self.read(peer, &frame),
        }
    }

    fn read(&mut self, peer: PeerId, frame: &Frame) {
        let now = self.world.instant(self.me);
        let id = CommandId::of(self.own, &frame.header);
        match (frame.header.kind, id) {
            (Some(Kind::Stage), Some(id)) => {
                if let Ok(StageMessage { stage }) = frame.read() {
                    self.book.stage(peer, id, stage, now);
                }
            }
            (Some(Kind::Reply), Some(id)) => {
                if let Ok(reply) = frame.read::<Reply>() {
                    self.book.reply(peer, id, reply, now);
                }
            }
            (Some(Kind::Stopped), _) => {
                if let Ok(report) = frame.read::<Stopped>() {
                    self.take_report(peer, &report);
                }
            }
            _ => {}
        }
    }

    fn take_report(&mut self, peer: PeerId, report: &Stopped) {
        if report.stopped {
            let numbers = self.reported.entry(peer).or_default();
            if numbers.last() != Some(&report.number) {
                numbers.push(report.number);
            }
        }
        let mut count_on = None;
        let now = self.world.instant(self.me);
        for (at, call) in self.calls.iter_mut().enumerate() {
            match call.call.report(&peer, report, self.given, now) {
                Verdict::CountOn(seen) => count_on = Some((at, seen)),
                Verdict::Ended(reply) if reply.state == Outcome::Failed && report.stopped => {
                    // The operator is told that a restart would undo it.
                    self.world.unwatch(self.me, call.order, &peer);
                }
                Verdict::Nothing | Verdict::Stopped | Verdict::Ended(_) => {}
            }
        }
        if let Some((at, seen)) = count_on {
            let mut call = self.calls.remove(at);
            let number = self.next_number(seen);
            self.world
                .note(self.me, format_args!("gives its stop anew, as {number}"));
            if let Some((bytes, order)) = self.make(number, &call.selector) {
                call.call.give_anew(number, self.world.instant(self.me));
                self.world.watch_anew(self.me, call.order, order);
                (call.bytes, call.order) = (bytes, order);
                self.calls.push(call);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Issue {
                targets,
                life_ms,
                nature,
                work_ms,
                ..
            } => {
                let action = action_name(nature);
                let kwargs = json!({ "work": work_ms, "pad": "x".repeat(self.padding()) });
                self.issue(action, &kwargs, life_ms, nature, &targets);
            }
            Order::Stop { targets, .. } => self.stop(&targets),
            Order::Release { targets, .. } => self.release(&targets),
            Order::Presume | Order::Revoked | Order::Forge | Order::Replay => {}
        }
    }

    /// Commands of all sizes, so that links fill up.
    fn padding(&self) -> usize {
        let mut control = self.world.controls[self.me].borrow_mut();
        if control.rng.percent(20) {
            control.rng.index(3_000)
        } else {
            0
        }
    }

    fn issue(
        &mut self,
        action: String,
        kwargs: &serde_json::Value,
        life_ms: u64,
        nature: Nature,
        targets: &[HostId],
    ) {
        let world = Rc::clone(&self.world);
        self.seq += 1;
        let id = CommandId {
            issuer: self.own,
            epoch: self.epoch,
            seq: self.seq,
        };
        world.note(
            self.me,
            format_args!("issues {id}: {action} to {targets:?}, {life_ms} ms to live"),
        );
        let issued = Issued {
            by: self.me,
            at_ms: world.now_ms(),
            life_ms,
            nature,
            targets: targets.iter().copied().collect(),
            authorised: true,
            acknowledged: false,
            copied: false,
        };
        world.truth.borrow_mut().issued(id, issued);
        let addressee = |target: &HostId| Addressee {
            to: world.hosts[*target].id,
            name: world.hosts[*target].called.clone(),
            queue: !nature.flight,
            held: false,
            refused: None,
        };
        self.book.issue(Issue {
            order: Asked {
                id,
                action,
                arguments: json!({ "args": [], "kwargs": kwargs }).to_string(),
                lane: Lane::Control,
                life_ms,
            },
            selector: "some".to_owned(),
            deadline: world.instant(self.me) + Duration::from_millis(life_ms),
            targets: targets.iter().map(addressee).collect(),
        });
    }

    fn next_number(&mut self, at_least: u64) -> u64 {
        self.given = next_number(self.given.max(at_least), self.world.wall_ms(self.me));
        // The order does not wait for this.
        self.write_later(Write::Number(self.given));
        self.given
    }

    fn make(&self, number: u64, selector: &Selector) -> Option<(Vec<u8>, Latch)> {
        let host = &self.world.hosts[self.me];
        let fleet = &self.world.fleet;
        let fingerprint = fleet.membership(self.me).fingerprint();
        let order = StopOrder::new(&fingerprint, host.key.public(), number, selector.clone());
        let bytes = order.encode(&host.key, fleet.grant(self.me)).ok()?;
        let latch = Latch {
            issuer: host.id,
            number,
        };
        self.world.truth.borrow_mut().stops.insert(latch);
        Some((bytes, latch))
    }

    fn stop(&mut self, targets: &[HostId]) {
        let world = Rc::clone(&self.world);
        let names: Vec<&str> = targets
            .iter()
            .map(|host| world.hosts[*host].name.as_str())
            .collect();
        let Ok(selector) = Selector::parse(&names.join(",")) else {
            return;
        };
        let number = self.next_number(0);
        world.note(self.me, format_args!("orders stop {number} of {selector:?}"));
        let Some((bytes, order)) = self.make(number, &selector) else {
            return;
        };
        world.watch(self.me, order, targets, &self.door.open_links());
        let ids: Vec<PeerId> = targets.iter().map(|host| world.hosts[*host].id).collect();
        let newest = CommandId {
            issuer: self.own,
            epoch: self.epoch,
            seq: self.seq,
        };
        // As in the product, the book's wishes are carried out before it hears the next.
        self.carry_out();
        self.stopped_at.extend(ids.iter().map(|id| (*id, newest)));
        let now = world.instant(self.me);
        let withdrawn = self.book.withdraw(&ids, "withdrawn by a stop", now);
        world.note(self.me, format_args!("withdraws {withdrawn} deliveries"));
        self.calls.push(Call {
            call: StopCall::new(number, ids, now),
            bytes,
            selector,
            order,
        });
    }

    /// Releases what each node has reported to be under; now and then by a number of yesterday.
    fn release(&mut self, targets: &[HostId]) {
        let world = Rc::clone(&self.world);
        let mut by_number: BTreeMap<u64, Vec<HostId>> = BTreeMap::new();
        for target in targets {
            let stale = world.controls[self.me].borrow_mut().rng.percent(STALE_PERCENT);
            let numbers = self.reported.get(&world.hosts[*target].id);
            let number = numbers.and_then(|numbers| {
                let back = if stale { 1 } else { 0 };
                numbers.iter().rev().nth(back).copied()
            });
            by_number.entry(number.unwrap_or(1)).or_default().push(*target);
        }
        let nature = Nature {
            idempotent: false,
            while_stopped: true,
            flight: false,
        };
        for (number, targets) in by_number {
            let kwargs = json!({ "number": number });
            self.issue(RELEASE.to_owned(), &kwargs, 5_000, nature, &targets);
        }
    }

    fn send_stop(&mut self, to: &PeerId, bytes: Vec<u8>) {
        if let Ok(parcel) = Parcel::new(&Frame::binary(Kind::Stop, bytes.into())) {
            self.door.send(to, parcel, Lane::Emergency, None);
        }
    }

    /// Gives the stops again that are due.
    fn call_again(&mut self) {
        let now = self.world.instant(self.me);
        let mut calls = std::mem::take(&mut self.calls);
        for call in &mut calls {
            while let Some(round) = call.call.handle_timeout(now) {
                let everybody = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
                self.world.broadcast(&self.udp, &call.bytes, everybody);
                if round.links {
                    for to in round.to {
                        self.send_stop(&to, call.bytes.clone());
                    }
                }
            }
        }
        calls.retain(|call| !call.call.is_over() || call.call.poll_timeout().is_some());
        self.calls = calls;
    }

    fn write_later(&mut self, write: Write) {
        let mut control = self.world.controls[self.me].borrow_mut();
        let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
        let due = self.world.now_ms() + tick * control.rng.between(0, WRITE_TICKS_MAX);
        self.writes.push_back((due, write));
    }

    /// What the store's thread does: in order, each in a transaction of its own.
    fn write_store(&mut self) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        while self.writes.front().is_some_and(|(due, _)| *due <= world.now_ms()) {
            let Some((_, write)) = self.writes.pop_front() else {
                break;
            };
            world.pass(self.me, Moment::BeforeJournal)?;
            match write {
                Write::Number(number) => {
                    let kept = world.stores.borrow_mut().keep_number(self.me, number);
                    self.expect(kept);
                }
                Write::Book(ticket, changes) => {
                    let now = world.instant(self.me);
                    if let Some(why) = world.store_trouble(self.me) {
                        self.book.store_failed(ticket, why, now);
                        continue;
                    }
                    let kept = world.stores.borrow_mut().keep(&world, self.me, &changes);
                    self.expect(kept);
                    world.pass(self.me, Moment::AfterJournal)?;
                    self.note_stored(&changes);
                    self.book.stored(ticket, now);
                }
            }
        }
        Ok(())
    }

    fn note_stored(&self, changes: &[Change]) {
        for change in changes {
            if let Change::Issued(issued) = change {
                self.world.truth.borrow_mut().acknowledged(issued.order.id);
            }
        }
    }

    fn expect(&self, kept: Result<(), ground_station::store::StoreError>) {
        if let Err(error) = kept {
            self.world
                .truth
                .borrow_mut()
                .break_promise(Invariant::Progress, format!("the store fails: {error}"));
        }
    }

    fn carry_out(&mut self) {
        let world = Rc::clone(&self.world);
        loop {
            let effects = self.book.take_effects();
            if effects.is_empty() {
                return;
            }
            // Once one did not go out, none behind it may overtake it.
            let mut stuck: Vec<PeerId> = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Store { ticket, changes } => self.write_later(Write::Book(ticket, changes)),
                    Effect::Send {
                        to,
                        id,
                        parcel,
                        lane,
                        deadline,
                    } => {
                        if stuck.contains(&to) || !self.door.send(&to, parcel, lane, deadline) {
                            stuck.push(to);
                            self.book.not_sent(to, id, world.instant(self.me));
                        } else if deadline.is_some() {
                            self.check_sent(to, id);
                        }
                    }
                    Effect::Stage { .. } => {}
                    Effect::Ended { to, id, reply } => {
                        world.note(self.me, format_args!("{id} ended: {}", reply.state));
                        world.ended(self.me, id, to, reply.state);
                    }
                    Effect::NotIssued { id, why } => {
                        world.note(self.me, format_args!("{id} is not issued: {why}"));
                    }
                }
            }
        }
    }
}

impl Station {
    /// A command has gone out that may run.
    fn check_sent(&mut self, to: PeerId, id: CommandId) {
        let before_stop = self.stopped_at.get(&to).is_some_and(|newest| id <= *newest);
        if self.went_out.insert((to, id)) && before_stop {
            let what = format!("{id} was sent to {} after its stop", to.short());
            self.world
                .truth
                .borrow_mut()
                .break_promise(Invariant::WithdrawnIsNotSent, what);
        }
    }
}

/// What an action is called that is like this: the node reads it from the name.
pub(super) fn action_name(nature: Nature) -> String {
    let mut name = "do-".to_owned();
    for (is, letter) in [
        (nature.idempotent, 'i'),
        (nature.while_stopped, 's'),
        (nature.flight, 'f'),
    ] {
        if is {
            name.push(letter);
        }
    }
    name
}
