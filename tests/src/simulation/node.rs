//! A simulated node: the product's desks and journal behind simulated sockets, disk and clock.
//!
//! What it decides itself is no more than a driver may: in which order sockets are looked at, and how long an action
//! takes.

mod journal_writes;
mod links;
mod stops;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use swarm_shared::proto::delivery::executor::{
    Desk, ENDING_MAX, Effect, Incoming, OPEN_MAX, RUNNING_MAX, Ticket, Traits,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::stop::{Carrier, Latch, StopDesk};
use swarm_shared::proto::trust::gate::{Wish, classify, permit};
use swarm_shared::proto::wire::{Frame, Header, Kind, Lane, MessageType};
use turmoil::net::UdpSocket;

use self::stops::restore_stop;
use super::disk::Journal;
use super::ground_truth::Invariant;
use super::link::{Dialing, Greeting, Peer};
use super::world::{Died, Gauge, HostId, STOP_PORT, TICK, World};

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

    fn take(
        &mut self,
        from: PeerId,
        host: HostId,
        frame: Frame,
        deadline: Option<Instant>,
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
        // Nothing here ends a flight.
        if self.running.len() > RUNNING_MAX - ENDING_MAX || self.orders.len() > OPEN_MAX {
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
        ends_flight: false,
    }
}
