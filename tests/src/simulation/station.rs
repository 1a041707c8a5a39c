//! A simulated station: the product's tracker and store, and its side of the emergency stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use swarm_shared::proto::delivery::tracker::{
    Change, DeliveryTarget, DeliveryTracker, Effect, IssueRequest, StoredCommand as Asked, WriteId,
};
use swarm_shared::proto::delivery::{CommandId, StageMessage};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{ReportResult, StopId, StopOrder, StopSender, next_number};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use turmoil::net::UdpSocket;

use super::endpoint::{LinkEvent, SimEndpoint};
use super::ground_truth::{Invariant, IssuedCommand, SimActionProperties};
use super::node::RELEASE;
use super::plan::PlannedRequest;
use super::world::{HostId, HostStats, KillPoint, Killed, STOP_PORT, TICK, World};

/// Longest time of a store write, in ticks.
const WRITE_TICKS_MAX: u64 = 3;
/// Share of releases with an outdated number, in percent.
const STALE_PERCENT: u64 = 30;

/// The process of a station, from its start until it is killed.
pub(super) async fn process(world: Rc<World>, own_host: HostId) -> turmoil::Result {
    while !world.is_member(own_host) {
        // The second station starts later.
        tokio::time::sleep(TICK).await;
    }
    let mut station = Station::start(&world, own_host).await?;
    loop {
        if !world.is_paused(own_host) {
            match station.tick() {
                Ok(Ok(())) => {}
                Ok(Err(Killed)) => return std::future::pending().await,
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// A write that waits for the store's thread.
enum PendingWrite {
    Deliveries(WriteId, Vec<Change>),
    StopNumber(u64),
}

/// A stop in progress.
struct ActiveStop {
    sender: StopSender,
    bytes: Vec<u8>,
    selector: Selector,
    latch: StopId,
}

struct Station {
    world: Rc<World>,
    own_host: HostId,
    own_id: PeerId,
    endpoint: SimEndpoint,
    udp: UdpSocket,
    tracker: DeliveryTracker,
    epoch: u64,
    seq: u64,
    last_stop_number: u64,
    pending_writes: VecDeque<(u64, PendingWrite)>,
    active_stops: Vec<ActiveStop>,
    /// For each node that this run of the station has stopped: the newest command before that.
    newest_before_stop: BTreeMap<PeerId, CommandId>,
    /// Commands that this run of the station has sent before their deadline.
    sent_in_time: BTreeSet<(PeerId, CommandId)>,
    /// The stop numbers that each node has reported, the newest last.
    reported_stops: BTreeMap<PeerId, Vec<u64>>,
}

impl Station {
    async fn start(world: &Rc<World>, own_host: HostId) -> Result<Self, Box<dyn std::error::Error>> {
        let instance = world.start_process(own_host);
        let endpoint = SimEndpoint::open(world, own_host, instance).await?;
        let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
        udp.set_broadcast(true)?;
        let (epoch, open, given) = world.stores.borrow_mut().open(world, own_host)?;
        world.log(
            own_host,
            format_args!("starts in epoch {epoch} with {} open commands", open.len()),
        );
        Ok(Self {
            world: Rc::clone(world),
            own_host,
            own_id: world.hosts[own_host].id,
            endpoint,
            udp,
            tracker: DeliveryTracker::restore(open),
            epoch,
            seq: 0,
            last_stop_number: given,
            pending_writes: VecDeque::new(),
            active_stops: Vec::new(),
            newest_before_stop: BTreeMap::new(),
            sent_in_time: BTreeSet::new(),
            reported_stops: BTreeMap::new(),
        })
    }

    fn tick(&mut self) -> std::io::Result<Result<(), Killed>> {
        let world = Rc::clone(&self.world);
        let happened = self.endpoint.poll_events(&world)?;
        Ok(self.process_events(happened))
    }

    fn process_events(&mut self, happened: Vec<(PeerId, LinkEvent)>) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        for (peer, what) in happened {
            self.on_link_event(peer, what);
        }
        // A station gets no datagrams; any that come are dropped.
        let mut bytes = [0; 2_048];
        while self.udp.try_recv_from(&mut bytes).is_ok() {}
        while let Some(order) = world.take_request(self.own_host) {
            self.perform_request(order);
        }
        self.perform_store_writes()?;
        let now = world.monotonic_now(self.own_host);
        self.tracker.handle_timeout(now);
        self.apply_effects();
        self.resend_stops();
        for (peer, what) in self.endpoint.write(&world)? {
            self.on_link_event(peer, what);
        }
        self.apply_effects();
        let calls = self
            .active_stops
            .iter()
            .filter(|call| !call.sender.is_finished())
            .count();
        let gauge = HostStats {
            open_links: self.endpoint.open_links(),
            open_deliveries: self.tracker.open_deliveries() + calls,
        };
        world.set_stats(self.own_host, gauge);
        Ok(())
    }

    fn on_link_event(&mut self, peer: PeerId, what: LinkEvent) {
        let now = self.world.monotonic_now(self.own_host);
        match what {
            LinkEvent::Up { resumed } => {
                let bytes: Vec<Vec<u8>> = self
                    .active_stops
                    .iter()
                    .filter(|call| call.sender.should_send_to(&peer))
                    .map(|call| call.bytes.clone())
                    .collect();
                for bytes in bytes {
                    self.send_stop(&peer, bytes);
                }
                self.tracker.on_connected(peer, resumed, now);
            }
            LinkEvent::Down => self.tracker.on_disconnected(peer),
            LinkEvent::Frame(frame) => self.on_frame(peer, &frame),
        }
    }

    fn on_frame(&mut self, peer: PeerId, frame: &Frame) {
        let now = self.world.monotonic_now(self.own_host);
        let id = CommandId::from_header(self.own_id, &frame.header);
        match (frame.header.kind, id) {
            (Some(Kind::Stage), Some(id)) => {
                if let Ok(StageMessage { stage }) = frame.parse_content() {
                    self.tracker.on_stage(peer, id, stage, now);
                }
            }
            (Some(Kind::Reply), Some(id)) => {
                if let Ok(reply) = frame.parse_content::<Reply>() {
                    self.tracker.on_reply(peer, id, reply, now);
                }
            }
            (Some(Kind::Stopped), _) => {
                if let Ok(report) = frame.parse_content::<StopStatus>() {
                    self.on_stop_report(peer, &report);
                }
            }
            _ => {}
        }
    }

    fn on_stop_report(&mut self, peer: PeerId, report: &StopStatus) {
        if report.stopped {
            let numbers = self.reported_stops.entry(peer).or_default();
            if numbers.last() != Some(&report.number) {
                numbers.push(report.number);
            }
        }
        let mut count_on = None;
        let now = self.world.monotonic_now(self.own_host);
        for (at, call) in self.active_stops.iter_mut().enumerate() {
            match call.sender.on_report(&peer, report, self.last_stop_number, now) {
                ReportResult::RaiseNumber(seen) => count_on = Some((at, seen)),
                ReportResult::Ended(reply) if reply.state == Outcome::Failed && report.stopped => {
                    // The operator is warned that a restart would undo the stop.
                    self.world.forget_expected_stop(self.own_host, call.latch, &peer);
                }
                ReportResult::Unchanged | ReportResult::Stopped | ReportResult::Ended(_) => {}
            }
        }
        if let Some((at, seen)) = count_on {
            let mut call = self.active_stops.remove(at);
            let number = self.next_stop_number(seen);
            self.world
                .log(self.own_host, format_args!("gives its stop anew, as {number}"));
            if let Some((bytes, order)) = self.encode_stop(number, &call.selector) {
                call.sender
                    .reissue(number, self.world.monotonic_now(self.own_host));
                self.world
                    .renumber_expected_stop(self.own_host, call.latch, order);
                (call.bytes, call.latch) = (bytes, order);
                self.active_stops.push(call);
            }
        }
    }

    fn perform_request(&mut self, order: PlannedRequest) {
        match order {
            PlannedRequest::Issue {
                targets,
                ttl_ms: life_ms,
                properties: nature,
                run_ms: work_ms,
                ..
            } => {
                let action = action_name(nature);
                let kwargs = json!({ "work": work_ms, "pad": "x".repeat(self.random_padding_len()) });
                self.issue(action, &kwargs, life_ms, nature, &targets);
            }
            PlannedRequest::Stop { targets, .. } => self.stop(&targets),
            PlannedRequest::Release { targets, .. } => self.release(&targets),
            PlannedRequest::SendUnauthorised
            | PlannedRequest::SendRevokedStop
            | PlannedRequest::SendForgedStop
            | PlannedRequest::ReplayDatagram => {}
        }
    }

    /// Commands of all sizes, so that links fill up.
    fn random_padding_len(&self) -> usize {
        let mut control = self.world.controls[self.own_host].borrow_mut();
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
        properties: SimActionProperties,
        targets: &[HostId],
    ) {
        let world = Rc::clone(&self.world);
        self.seq += 1;
        let id = CommandId {
            issuer: self.own_id,
            epoch: self.epoch,
            seq: self.seq,
        };
        world.log(
            self.own_host,
            format_args!("issues {id}: {action} to {targets:?}, {life_ms} ms to live"),
        );
        let issued = IssuedCommand {
            issuer: self.own_host,
            issued_ms: world.now_ms(),
            ttl_ms: life_ms,
            properties,
            targets: targets.iter().copied().collect(),
            authorised: true,
            acknowledged: false,
            in_copied_store: false,
        };
        world.truth.borrow_mut().record_issued(id, issued);
        let addressee = |target: &HostId| DeliveryTarget {
            to: world.hosts[*target].id,
            name: world.hosts[*target].node_name.clone(),
            may_queue: !properties.flight,
            deferred: false,
            refusal_reason: None,
        };
        self.tracker.issue(IssueRequest {
            command: Asked {
                id,
                action,
                arguments: json!({ "args": [], "kwargs": kwargs }).to_string(),
                lane: Lane::Control,
                ttl_ms: life_ms,
            },
            selector: "some".to_owned(),
            deadline: world.monotonic_now(self.own_host) + Duration::from_millis(life_ms),
            targets: targets.iter().map(addressee).collect(),
        });
    }

    fn next_stop_number(&mut self, at_least: u64) -> u64 {
        self.last_stop_number = next_number(
            self.last_stop_number.max(at_least),
            self.world.wall_clock_ms(self.own_host),
        );
        // The order does not wait for this write.
        self.enqueue_write(PendingWrite::StopNumber(self.last_stop_number));
        self.last_stop_number
    }

    fn encode_stop(&self, number: u64, selector: &Selector) -> Option<(Vec<u8>, StopId)> {
        let host = &self.world.hosts[self.own_host];
        let fleet = &self.world.fleet;
        let fingerprint = fleet.membership(self.own_host).fingerprint();
        let order = StopOrder::new(&fingerprint, host.key.public(), number, selector.clone());
        let bytes = order.encode(&host.key, fleet.grant(self.own_host)).ok()?;
        let latch = StopId {
            issuer: host.id,
            number,
        };
        self.world.truth.borrow_mut().issued_stops.insert(latch);
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
        let number = self.next_stop_number(0);
        world.log(
            self.own_host,
            format_args!("orders stop {number} of {selector:?}"),
        );
        let Some((bytes, order)) = self.encode_stop(number, &selector) else {
            return;
        };
        world.expect_stop(self.own_host, order, targets, &self.endpoint.open_links());
        let ids: Vec<PeerId> = targets.iter().map(|host| world.hosts[*host].id).collect();
        let newest = CommandId {
            issuer: self.own_id,
            epoch: self.epoch,
            seq: self.seq,
        };
        // As in the product, the tracker's effects are carried out before its next input.
        self.apply_effects();
        self.newest_before_stop.extend(ids.iter().map(|id| (*id, newest)));
        let now = world.monotonic_now(self.own_host);
        let withdrawn = self.tracker.withdraw(&ids, "withdrawn by a stop", now);
        world.log(self.own_host, format_args!("withdraws {withdrawn} deliveries"));
        self.active_stops.push(ActiveStop {
            sender: StopSender::new(number, ids, now),
            bytes,
            selector,
            latch: order,
        });
    }

    /// Releases the stop that each node has reported; sometimes with an outdated number.
    fn release(&mut self, targets: &[HostId]) {
        let world = Rc::clone(&self.world);
        let mut by_number: BTreeMap<u64, Vec<HostId>> = BTreeMap::new();
        for target in targets {
            let stale = world.controls[self.own_host]
                .borrow_mut()
                .rng
                .percent(STALE_PERCENT);
            let numbers = self.reported_stops.get(&world.hosts[*target].id);
            let number = numbers.and_then(|numbers| {
                let back = if stale { 1 } else { 0 };
                numbers.iter().rev().nth(back).copied()
            });
            by_number.entry(number.unwrap_or(1)).or_default().push(*target);
        }
        let nature = SimActionProperties {
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
        if let Ok(frame) = EncodedFrame::new(&Frame::binary(Kind::Stop, bytes.into())) {
            self.endpoint.send(to, frame, Lane::Emergency, None);
        }
    }

    /// Resends the stops that are due.
    fn resend_stops(&mut self) {
        let now = self.world.monotonic_now(self.own_host);
        let mut calls = std::mem::take(&mut self.active_stops);
        for call in &mut calls {
            while let Some(round) = call.sender.handle_timeout(now) {
                let broadcast_addr = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
                self.world.broadcast(&self.udp, &call.bytes, broadcast_addr);
                if round.over_links {
                    for to in round.targets {
                        self.send_stop(&to, call.bytes.clone());
                    }
                }
            }
        }
        calls.retain(|call| !call.sender.is_finished() || call.sender.poll_timeout().is_some());
        self.active_stops = calls;
    }

    fn enqueue_write(&mut self, write: PendingWrite) {
        let mut control = self.world.controls[self.own_host].borrow_mut();
        let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
        let due = self.world.now_ms() + tick * control.rng.between(0, WRITE_TICKS_MAX);
        self.pending_writes.push_back((due, write));
    }

    /// The store writes that are due: in order, each in its own transaction.
    fn perform_store_writes(&mut self) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        while self
            .pending_writes
            .front()
            .is_some_and(|(due, _)| *due <= world.now_ms())
        {
            let Some((_, write)) = self.pending_writes.pop_front() else {
                break;
            };
            world.reach_kill_point(self.own_host, KillPoint::BeforeJournal)?;
            match write {
                PendingWrite::StopNumber(number) => {
                    let kept = world.stores.borrow_mut().store_stop_number(self.own_host, number);
                    self.check_stored(kept);
                }
                PendingWrite::Deliveries(ticket, changes) => {
                    let now = world.monotonic_now(self.own_host);
                    if let Some(why) = world.store_fault(self.own_host) {
                        self.tracker.on_store_failed(ticket, why, now);
                        continue;
                    }
                    let kept = world
                        .stores
                        .borrow_mut()
                        .store_changes(&world, self.own_host, &changes);
                    self.check_stored(kept);
                    world.reach_kill_point(self.own_host, KillPoint::AfterJournal)?;
                    self.record_stored(&changes);
                    self.tracker.on_stored(ticket, now);
                }
            }
        }
        Ok(())
    }

    fn record_stored(&self, changes: &[Change]) {
        for change in changes {
            if let Change::Issued(issued) = change {
                self.world
                    .truth
                    .borrow_mut()
                    .record_acknowledged(issued.command.id);
            }
        }
    }

    fn check_stored(&self, kept: Result<(), ground_station::store::StoreError>) {
        if let Err(error) = kept {
            self.world
                .truth
                .borrow_mut()
                .report_violation(Invariant::Progress, format!("the store fails: {error}"));
        }
    }

    fn apply_effects(&mut self) {
        let world = Rc::clone(&self.world);
        loop {
            let effects = self.tracker.take_effects();
            if effects.is_empty() {
                return;
            }
            // After a failed send, later frames to the same node must not overtake it.
            let mut stuck: Vec<PeerId> = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Store {
                        write_id: ticket,
                        changes,
                    } => self.enqueue_write(PendingWrite::Deliveries(ticket, changes)),
                    Effect::Send {
                        to,
                        id,
                        command,
                        deadline,
                    } => {
                        let lane = command.command().lane;
                        let frame = match deadline {
                            Some(_) => command.frame(),
                            None => command.status_query(),
                        };
                        if stuck.contains(&to) || !self.endpoint.send(&to, frame, lane, deadline) {
                            stuck.push(to);
                            self.tracker
                                .on_send_failed(to, id, world.monotonic_now(self.own_host));
                        } else if deadline.is_some() {
                            self.check_sent(to, id);
                        }
                    }
                    Effect::Stage { .. } => {}
                    Effect::Ended { to, id, reply } => {
                        world.log(self.own_host, format_args!("{id} ended: {}", reply.state));
                        world.record_outcome(self.own_host, id, to, reply.state);
                    }
                    Effect::NotIssued { id, reason: why } => {
                        world.log(self.own_host, format_args!("{id} is not issued: {why}"));
                    }
                }
            }
        }
    }
}

impl Station {
    /// Checks a command that was sent for execution.
    fn check_sent(&mut self, to: PeerId, id: CommandId) {
        let before_stop = self
            .newest_before_stop
            .get(&to)
            .is_some_and(|newest| id <= *newest);
        if self.sent_in_time.insert((to, id)) && before_stop {
            let what = format!("{id} was sent to {} after its stop", to.short());
            self.world
                .truth
                .borrow_mut()
                .report_violation(Invariant::WithdrawnIsNotSent, what);
        }
    }
}

/// The name of an action with these properties, from which the node reads them.
pub(super) fn action_name(properties: SimActionProperties) -> String {
    let mut name = "do-".to_owned();
    for (is, letter) in [
        (properties.idempotent, 'i'),
        (properties.while_stopped, 's'),
        (properties.flight, 'f'),
    ] {
        if is {
            name.push(letter);
        }
    }
    name
}
