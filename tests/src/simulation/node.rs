//! A simulated node: the product's executor, stop receiver and journal on simulated sockets, disk and clock.
//!
//! It decides only what a driver may: in which order sockets are polled, and how long an action takes.

mod journal_writes;
mod links;
mod stops;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use swarm_shared::proto::delivery::executor::{
    ActionProperties, CommandSource, Effect, Executor, IN_FLIGHT_MAX, IncomingCommand, LANDING_MAX,
    RUNNING_MAX, WriteId,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::stop::{ReceivedVia, StopId, StopReceiver};
use swarm_shared::proto::trust::gate::{Permission, classify, permit};
use swarm_shared::proto::wire::{Frame, Header, Kind, Lane, MessageType};
use turmoil::net::UdpSocket;

use self::stops::restore_stop;
use super::disk::SimJournal;
use super::ground_truth::Invariant;
use super::link::{DialFuture, Handshake, Peer};
use super::world::{HostId, HostStats, Killed, STOP_PORT, TICK, World};

/// The process of a node, from its start until it is killed.
pub(super) async fn process(world: Rc<World>, own_host: HostId) -> turmoil::Result {
    let mut node = match Node::start(&world, own_host).await? {
        Ok(node) => node,
        Err(Killed) => return std::future::pending().await,
    };
    loop {
        if !world.is_paused(own_host) && node.tick().is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(TICK).await;
    }
}

struct DialState {
    attempt: Option<(DialFuture, u64)>,
    next_ms: u64,
}

/// The purpose of a write that waits for the journal's thread.
enum WritePurpose {
    Executor(WriteId),
    Stop(StopId),
    /// A release, ordered by this command, which names this number.
    Release(StopId, CommandId, u64),
    Unawaited,
}

struct RunningAction {
    action: String,
    ends_ms: u64,
    arguments: Arguments,
}

struct Node {
    world: Rc<World>,
    own_host: HostId,
    instance: Instance,
    udp: UdpSocket,
    dials: BTreeMap<HostId, DialState>,
    handshakes: Vec<Handshake>,
    peers: BTreeMap<PeerId, Peer>,
    executor: Executor,
    stop_receiver: StopReceiver,
    journal: SimJournal,
    pending_writes: VecDeque<(u64, Vec<Record>, WritePurpose)>,
    /// Actions and arguments of the commands in flight.
    pending_commands: BTreeMap<CommandId, (String, Arguments)>,
    running: BTreeMap<CommandId, RunningAction>,
    address_changes: u16,
}

impl Node {
    async fn start(world: &Rc<World>, own_host: HostId) -> std::io::Result<Result<Self, Killed>> {
        let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
        udp.set_broadcast(true)?;
        let now = world.monotonic_now(own_host);
        let instance = world.start_process(own_host);
        let (journal, dedup) = match SimJournal::open(world, own_host) {
            Ok(opened) => opened,
            Err(Killed) => return Ok(Err(Killed)),
        };
        let stop = restore_stop(&dedup, now);
        let present = stop.active_stop().map(|present| present.id);
        world.log(
            own_host,
            format_args!("starts; stop in force: {:?}", present.map(|p| p.number)),
        );
        world.truth.borrow_mut().record_restart(own_host, present);
        let mut executor = Executor::new(dedup);
        if present.is_some() {
            executor.on_stop(now);
        }
        let moves = world.controls[own_host].borrow().address_changes;
        Ok(Ok(Self {
            world: Rc::clone(world),
            own_host,
            instance,
            udp,
            dials: BTreeMap::new(),
            handshakes: Vec::new(),
            peers: BTreeMap::new(),
            executor,
            stop_receiver: stop,
            journal,
            pending_writes: VecDeque::new(),
            pending_commands: BTreeMap::new(),
            running: BTreeMap::new(),
            address_changes: moves,
        }))
    }

    fn tick(&mut self) -> Result<(), Killed> {
        self.connect();
        self.receive_datagrams()?;
        self.receive_frames()?;
        self.finish_actions();
        self.perform_journal_writes()?;
        self.executor
            .handle_timeout(self.world.monotonic_now(self.own_host));
        self.apply_effects()?;
        let world = Rc::clone(&self.world);
        for peer in self.peers.values_mut() {
            peer.write(&world, self.own_host)?;
        }
        self.update_stats();
        Ok(())
    }

    fn on_frame(
        &mut self,
        from: PeerId,
        host: HostId,
        frame: Frame,
        deadline: Option<Instant>,
    ) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        let role = world.hosts[host].role;
        match frame.header.kind {
            Some(Kind::Stop) if permit(role, &Permission::Frame(Kind::Stop)).is_ok() => {
                self.on_stop(&frame.content, ReceivedVia::Link, Some(from))?;
            }
            Some(Kind::Command) => {
                let action = frame.header.action.clone().unwrap_or_default();
                let arguments: Arguments = frame.parse_content().unwrap_or_default();
                if let Err(refused) = permit(role, &Permission::Command(classify(&action, &arguments))) {
                    let reply = Reply::refused(refused.reason);
                    self.send(from, &reply.to_frame(&frame.header), Lane::Control);
                    return Ok(());
                }
                let Some(id) = CommandId::from_header(from, &frame.header) else {
                    return Ok(());
                };
                let incoming = IncomingCommand {
                    id,
                    digest: digest(&action, &frame.content),
                    deadline,
                    ttl_ms: frame.header.life,
                    properties: action_properties(&action),
                    source: CommandSource::Peer,
                    after: None,
                };
                if self
                    .executor
                    .on_command(incoming, world.monotonic_now(self.own_host))
                {
                    self.pending_commands.insert(id, (action, arguments));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the actions that have run long enough.
    fn finish_actions(&mut self) {
        let now_ms = self.world.now_ms();
        let now = self.world.monotonic_now(self.own_host);
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
                self.release_stop(id, &work.arguments);
            } else {
                self.executor
                    .on_finished(id, Reply::done(serde_json::json!("ran")), now);
            }
        }
    }

    /// Carries out the executor's effects.
    fn apply_effects(&mut self) -> Result<(), Killed> {
        loop {
            let effects = self.executor.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.apply_effect(effect)?;
            }
        }
        let executor = &self.executor;
        self.pending_commands.retain(|id, _| executor.contains(*id));
        Ok(())
    }

    fn apply_effect(&mut self, effect: Effect) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        let now = world.now_ms();
        match effect {
            Effect::Write {
                write_id: ticket,
                records,
            } => self.enqueue_write(records, WritePurpose::Executor(ticket)),
            Effect::Stage { id, stage } => {
                self.send(id.issuer, &StageMessage { stage }.to_frame(id), Lane::Control);
            }
            Effect::Run { id } => {
                let (action, arguments) = self.pending_commands.get(&id).cloned().unwrap_or_default();
                world.log(self.own_host, format_args!("runs {action} of {id}"));
                world.record_execution(self.own_host, id);
                let work = arguments.kwargs.get("work").and_then(serde_json::Value::as_u64);
                self.running.insert(
                    id,
                    RunningAction {
                        action,
                        ends_ms: now + work.unwrap_or(0),
                        arguments,
                    },
                );
            }
            Effect::Kill { id } => {
                if self.running.remove(&id).is_some() {
                    let reply = Reply::ended(Outcome::Failed, "killed");
                    self.executor
                        .on_finished(id, reply, world.monotonic_now(self.own_host));
                }
            }
            Effect::Reply { id, reply } => {
                world.log(self.own_host, format_args!("answers {id}: {}", reply.state));
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

    fn update_stats(&self) {
        let open = self
            .peers
            .values()
            .filter(|peer| peer.session.is_open())
            .map(|peer| peer.host);
        let gauge = HostStats {
            open_links: open.collect(),
            open_deliveries: 0,
        };
        self.world.set_stats(self.own_host, gauge);
        // No action here is a landing action.
        if self.running.len() > RUNNING_MAX - LANDING_MAX || self.pending_commands.len() > IN_FLIGHT_MAX {
            let what = format!(
                "{} things run and {} wait",
                self.running.len(),
                self.pending_commands.len()
            );
            self.world
                .truth
                .borrow_mut()
                .report_violation(Invariant::MemoryBounded, what);
        }
    }
}

/// Name of the release action.
pub(super) const RELEASE: &str = "release";

/// The properties of an action, which its name encodes; on a real node they are in its configuration.
fn action_properties(action: &str) -> ActionProperties {
    ActionProperties {
        idempotent: action.contains('i') && action != RELEASE,
        while_stopped: action.contains('s') || action == RELEASE,
        flight: action.contains('f'),
        ends_flight: false,
    }
}
