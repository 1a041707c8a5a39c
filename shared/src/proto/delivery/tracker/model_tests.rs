//! Random sequences of events, against simple models of the store and the nodes: in any order of events the
//! invariants of the module hold, and in the end every delivery has ended once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::tests::{command, node, target};
use super::*;
use crate::net::clock;

const NODES: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    Issue {
        targets: u8,
        deferred: u8,
        queue: bool,
        ttl_ms: u64,
    },
    /// The oldest write completes.
    Write,
    /// The oldest write fails; it may be on the disk all the same.
    WriteFails {
        applied: bool,
    },
    Up {
        node: u8,
        resumed: bool,
    },
    Down {
        node: u8,
    },
    /// The link has no room until this comes again.
    Block {
        node: u8,
    },
    /// The node continues with the oldest command that it has not finished.
    Advance {
        node: u8,
    },
    /// The node repeats its last answer.
    Repeat {
        node: u8,
    },
    /// The node drops the commands that it has received and not started.
    NodeRestart {
        node: u8,
    },
    Wait {
        ms: u64,
    },
    /// The station is killed; this many of the writes in progress are durable.
    Crash {
        applied: usize,
    },
    StartBatch {
        ttl_ms: u64,
    },
    CancelDeferred,
    /// An emergency stop of these nodes.
    Stop {
        targets: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let any_node = 0..NODES;
    prop_oneof![
        4 => (1..8u8, prop_oneof![3 => Just(0u8), 1 => 0..8u8], prop::bool::weighted(0.8), 0..3_000u64).prop_map(
            |(targets, deferred, queue, ttl_ms)| Step::Issue { targets, deferred, queue, ttl_ms }
        ),
        8 => Just(Step::Write),
        1 => any::<bool>().prop_map(|applied| Step::WriteFails { applied }),
        3 => (any_node.clone(), any::<bool>()).prop_map(|(node, resumed)| Step::Up { node, resumed }),
        2 => any_node.clone().prop_map(|node| Step::Down { node }),
        1 => any_node.clone().prop_map(|node| Step::Block { node }),
        6 => any_node.clone().prop_map(|node| Step::Advance { node }),
        1 => any_node.clone().prop_map(|node| Step::Repeat { node }),
        1 => any_node.prop_map(|node| Step::NodeRestart { node }),
        3 => prop_oneof![0..500u64, 0..60_000u64].prop_map(|ms| Step::Wait { ms }),
        1 => (0..4usize).prop_map(|applied| Step::Crash { applied }),
        1 => (0..3_000u64).prop_map(|ttl_ms| Step::StartBatch { ttl_ms }),
        1 => Just(Step::CancelDeferred),
        1 => (1..8u8).prop_map(|targets| Step::Stop { targets }),
    ]
}

#[derive(Clone, Debug)]
struct Row {
    state: StoredState,
    deadline: Instant,
    stage: Option<Stage>,
    ended: Option<Reply>,
}

#[derive(Debug, Default)]
struct Store {
    commands: BTreeMap<CommandId, StoredCommand>,
    rows: BTreeMap<(CommandId, PeerId), Row>,
}

impl Store {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Issued(issued) => {
                    let id = issued.command.id;
                    self.commands.insert(id, issued.command.clone());
                    for to in &issued.deliveries {
                        let row = Row {
                            state: to.state,
                            deadline: to.deadline,
                            stage: None,
                            ended: None,
                        };
                        let before = self.rows.insert((id, to.to), row);
                        assert!(before.is_none(), "issued twice");
                    }
                }
                Change::StateChanged {
                    id,
                    to,
                    state: standing,
                    deadline,
                } => {
                    let row = self.rows.get_mut(&(*id, *to)).expect("issued before");
                    (row.state, row.deadline) = (*standing, *deadline);
                }
                Change::Stage { id, to, stage, .. } => {
                    let row = self.rows.get_mut(&(*id, *to)).expect("issued before");
                    assert!(row.stage < Some(*stage), "stages rise");
                    row.stage = Some(*stage);
                }
                Change::Ended { id, to, reply } => {
                    // A delivery that was never stored cannot end.
                    if let Some(row) = self.rows.get_mut(&(*id, *to)) {
                        row.ended.get_or_insert(reply.clone());
                    }
                }
            }
        }
    }

    fn open(&self) -> Vec<OpenCommand> {
        let mut open: BTreeMap<CommandId, OpenCommand> = BTreeMap::new();
        for ((id, to), row) in self.rows.iter().filter(|(_, row)| row.ended.is_none()) {
            let command = open.entry(*id).or_insert_with(|| OpenCommand {
                command: self.commands[id].clone(),
                deliveries: Vec::new(),
            });
            command.deliveries.push(OpenDelivery {
                to: *to,
                state: row.state,
                deadline: row.deadline,
                stage: row.stage,
            });
        }
        open.into_values().collect()
    }
}

#[derive(Debug, Default)]
struct SimulatedNode {
    connected: bool,
    blocked: bool,
    /// Received and not started.
    waiting: VecDeque<CommandId>,
    running: BTreeSet<CommandId>,
    ended: BTreeMap<CommandId, Reply>,
    /// Replies that were not sent over the current link.
    unsent_replies: VecDeque<(CommandId, Reply)>,
}

struct Model {
    now: Instant,
    seq: u64,
    tracker: DeliveryTracker,
    store: Store,
    writes: VecDeque<(WriteId, Vec<Change>)>,
    devices: BTreeMap<PeerId, SimulatedNode>,
    /// The outcomes that were reported to the issuers.
    reported: BTreeMap<(CommandId, PeerId), Reply>,
    not_issued: BTreeSet<CommandId>,
    /// First sent before the deadline.
    sent_in_time: BTreeSet<(PeerId, CommandId)>,
    /// Issued to be sent at once, in the order of issue.
    sent_in_order: BTreeSet<(CommandId, PeerId)>,
    never_sent: BTreeSet<(CommandId, PeerId)>,
    issued: BTreeSet<(CommandId, PeerId)>,
    /// Not sent when its node was stopped; or sent, and its node was stopped while it was offline.
    withdrawn: BTreeSet<(CommandId, PeerId)>,
    write_failed: bool,
    /// Issued before a stop of its target.
    before_stop: BTreeSet<(CommandId, PeerId)>,
    /// Issued before the last crash: its issuer does not wait for its end any more.
    issued_before_crash: BTreeSet<CommandId>,
    /// The write is durable although it was reported as failed, and the station was killed before it could write the
    /// outcome that it then reported: the only case in which a refused command is sent.
    in_doubt: BTreeSet<CommandId>,
}

impl Model {
    fn new() -> Self {
        let devices = (0..NODES).map(|n| (node(n), SimulatedNode::default()));
        Self {
            now: clock::now() + Duration::from_secs(3_600),
            seq: 0,
            tracker: DeliveryTracker::default(),
            store: Store::default(),
            writes: VecDeque::new(),
            devices: devices.collect(),
            reported: BTreeMap::new(),
            not_issued: BTreeSet::new(),
            sent_in_time: BTreeSet::new(),
            sent_in_order: BTreeSet::new(),
            never_sent: BTreeSet::new(),
            issued: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            write_failed: false,
            before_stop: BTreeSet::new(),
            issued_before_crash: BTreeSet::new(),
            in_doubt: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Issue {
                targets,
                deferred: held,
                queue,
                ttl_ms,
            } => self.issue(targets, held, queue, ttl_ms),
            Step::Write => {
                if let Some((write_id, changes)) = self.writes.pop_front() {
                    self.store.apply(&changes);
                    self.tracker.on_stored(write_id, now);
                }
            }
            Step::WriteFails { applied } => {
                if let Some((write_id, changes)) = self.writes.pop_front() {
                    self.write_failed = true;
                    // Later writes refer to it, so that only the last can be in doubt.
                    if applied && self.writes.is_empty() && !repeats_stored_stage(&self.store, &changes) {
                        self.store.apply(&changes);
                    }
                    self.tracker.on_store_failed(write_id, "no space", now);
                }
            }
            Step::Up { node: n, resumed } => {
                let device = self.devices.get_mut(&node(n)).expect("a device");
                device.connected = true;
                device.unsent_replies = device.ended.clone().into_iter().collect();
                self.tracker.on_connected(node(n), resumed, now);
            }
            Step::Down { node: n } => {
                self.devices.get_mut(&node(n)).expect("a device").connected = false;
                self.tracker.on_disconnected(node(n));
            }
            Step::Block { node: n } => self.devices.get_mut(&node(n)).expect("a device").blocked ^= true,
            Step::Advance { node: n } => self.advance_node(node(n)),
            Step::Repeat { node: n } => {
                let device = self.devices.get_mut(&node(n)).expect("a device");
                if let (true, Some((id, _))) = (device.connected, device.ended.pop_last()) {
                    // Another outcome than before: only the first counts.
                    let other = Reply::failed("said again");
                    device.ended.insert(id, other.clone());
                    self.tracker.on_reply(node(n), id, other, now);
                }
            }
            Step::NodeRestart { node: n } => {
                let device = self.devices.get_mut(&node(n)).expect("a device");
                device.connected = false;
                device.waiting.clear();
                for id in std::mem::take(&mut device.running) {
                    device
                        .ended
                        .insert(id, Reply::ended(Outcome::Unknown, "restarted"));
                }
                self.tracker.on_disconnected(node(n));
            }
            Step::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.tracker.handle_timeout(self.now);
            }
            Step::Crash { applied } => {
                let writes = std::mem::take(&mut self.writes);
                for (_, changes) in writes.into_iter().take(applied) {
                    self.store.apply(&changes);
                }
                let ids = self.issued.iter().map(|(id, _)| *id);
                self.issued_before_crash = ids.collect();
                let open = self.store.rows.iter().filter(|(_, row)| row.ended.is_none());
                let open = open.map(|((id, _), _)| *id);
                self.in_doubt
                    .extend(open.filter(|id| self.not_issued.contains(id)));
                // The part of a stop that is not stored is lost; that is a violation only where its write has not
                // failed.
                let stop = std::mem::take(&mut self.withdrawn).into_iter();
                let (kept, lost): (BTreeSet<_>, BTreeSet<_>) = stop.partition(|(id, to)| {
                    let row = self.store.rows.get(&(*id, *to));
                    row.is_some_and(|row| row.ended.is_some() || row.deadline <= now)
                });
                self.withdrawn = kept;
                if self.write_failed {
                    self.sent_in_order = self.sent_in_order.difference(&lost).copied().collect();
                }
                self.tracker = DeliveryTracker::restore(self.store.open());
                for device in self.devices.values_mut() {
                    device.connected = false;
                }
                self.tracker.handle_timeout(now);
            }
            Step::StartBatch { ttl_ms } => {
                let id = CommandId {
                    seq: self.seq,
                    ..command(1).id
                };
                let all: Vec<PeerId> = self.devices.keys().copied().collect();
                self.tracker
                    .start_batch(id, &all, now + Duration::from_millis(ttl_ms), now);
            }
            Step::CancelDeferred => {
                let id = CommandId {
                    seq: self.seq,
                    ..command(1).id
                };
                self.tracker.cancel_deferred(id, "an earlier batch failed");
            }
            Step::Stop { targets } => self.stop(targets),
        }
        self.apply_effects();
    }

    fn issue(&mut self, targets: u8, held: u8, queue: bool, ttl_ms: u64) {
        self.seq += 1;
        let order = command(self.seq);
        let id = order.id;
        let targets = (0..NODES).filter(|n| targets & (1 << n) != 0);
        let targets: Vec<DeliveryTarget> = targets
            .map(|n| DeliveryTarget {
                deferred: held & (1 << n) != 0,
                may_queue: queue,
                ..target(n)
            })
            .collect();
        for target in &targets {
            self.issued.insert((id, target.to));
            if !target.deferred {
                self.sent_in_order.insert((id, target.to));
                if !queue && !self.devices[&target.to].connected {
                    self.never_sent.insert((id, target.to));
                }
            }
        }
        self.tracker.issue(IssueRequest {
            command: order,
            selector: "all".to_owned(),
            deadline: self.now + Duration::from_millis(ttl_ms),
            targets,
        });
    }

    fn stop(&mut self, targets: u8) {
        let targets = (0..NODES).filter(|n| targets & (1 << n) != 0).map(node);
        let targets: Vec<PeerId> = targets.collect();
        for (id, to) in self.issued.iter().filter(|(_, to)| targets.contains(to)) {
            self.before_stop.insert((*id, *to));
            let absent = !self.devices[to].connected;
            if absent || !self.sent_in_time.contains(&(*to, *id)) {
                self.withdrawn.insert((*id, *to));
            }
        }
        self.tracker.withdraw(&targets, "a stop", self.now);
    }

    fn advance_node(&mut self, to: PeerId) {
        let now = self.now;
        let device = self.devices.get_mut(&to).expect("a device");
        if !device.connected {
            return;
        }
        if let Some((id, reply)) = device.unsent_replies.pop_front() {
            self.tracker.on_reply(to, id, reply, now);
        } else if let Some(id) = device.running.pop_first() {
            let reply = Reply::done(serde_json::Value::Null);
            device.ended.insert(id, reply.clone());
            self.tracker.on_reply(to, id, reply, now);
        } else if let Some(id) = device.waiting.pop_front() {
            device.running.insert(id);
            self.tracker.on_stage(to, id, Stage::Started, now);
        }
    }

    fn apply_effects(&mut self) {
        loop {
            let effects = self.tracker.take_effects();
            if effects.is_empty() {
                break;
            }
            let mut full = BTreeSet::new();
            for effect in effects {
                match effect {
                    Effect::Store { write_id, changes } => self.writes.push_back((write_id, changes)),
                    Effect::Send { to, id, deadline, .. } => {
                        if full.contains(&to) || self.devices[&to].blocked {
                            full.insert(to);
                            self.tracker.on_send_failed(to, id, self.now);
                        } else {
                            self.send(to, id, deadline);
                        }
                    }
                    Effect::Stage { .. } => {}
                    Effect::Ended { to, id, reply } => {
                        let row = &self.store.rows[&(id, to)];
                        assert_eq!(row.ended.as_ref(), Some(&reply), "stored before it is told");
                        assert!(self.reported.insert((id, to), reply).is_none(), "ended twice");
                    }
                    Effect::NotIssued { id, .. } => {
                        assert!(self.not_issued.insert(id));
                    }
                }
            }
        }
    }

    fn send(&mut self, to: PeerId, id: CommandId, deadline: Option<Instant>) {
        let row = self.store.rows.get(&(id, to)).expect("stored before it is sent");
        assert_eq!(row.state, StoredState::Sent, "marked before it is sent");
        assert_eq!(row.ended, None, "not after its end");
        assert!(self.devices[&to].connected, "only over a link");
        assert!(!self.never_sent.contains(&(id, to)), "it may not wait");
        let device = self.devices.get_mut(&to).expect("a device");
        match deadline {
            Some(deadline) => {
                assert!(self.now < deadline, "sent too late");
                assert!(
                    !self.withdrawn.contains(&(id, to)) || self.in_doubt.contains(&id),
                    "withdrawn by a stop"
                );
                if self.sent_in_time.insert((to, id))
                    && self.sent_in_order.contains(&(id, to))
                    && !self.in_doubt.contains(&id)
                {
                    let before = self
                        .sent_in_time
                        .range((to, id)..)
                        .find(|(peer, other)| *peer == to && *other > id);
                    let before = before.filter(|(_, other)| self.sent_in_order.contains(&(*other, to)));
                    assert_eq!(before, None, "out of order");
                }
            }
            None => assert!(
                row.deadline <= self.now || self.before_stop.contains(&(id, to)),
                "asked before its time: a question runs nothing"
            ),
        }
        let known = device.waiting.contains(&id) || device.running.contains(&id);
        if let Some(reply) = device.ended.get(&id) {
            device.unsent_replies.push_back((id, reply.clone()));
        } else if !known && deadline.is_some() {
            device.waiting.push_back(id);
            self.tracker.on_stage(to, id, Stage::Received, self.now);
        } else if !known {
            let reply = Reply::ended(Outcome::Expired, "too late");
            device.ended.insert(id, reply.clone());
            device.unsent_replies.push_back((id, reply));
        }
    }

    /// From here on there are no faults, and everything ends.
    fn run_to_end(&mut self) {
        for device in self.devices.values_mut() {
            device.blocked = false;
        }
        for n in 0..NODES {
            self.step(Step::Up {
                node: n,
                resumed: false,
            });
        }
        for _ in 0..200 {
            while !self.writes.is_empty() {
                self.step(Step::Write);
            }
            for n in 0..NODES {
                for _ in 0..4 {
                    self.step(Step::Advance { node: n });
                }
            }
            self.step(Step::CancelDeferred);
            self.step(Step::Wait { ms: 1_000 });
            if self.tracker.open_deliveries() == 0 && self.writes.is_empty() {
                return;
            }
        }
    }

    fn check_ends(&self) {
        for ((id, to), row) in &self.store.rows {
            assert!(row.ended.is_some(), "{id} of {to:?} is open: {row:?}");
        }
        for (id, to) in &self.issued {
            let reported = self.reported.contains_key(&(*id, *to));
            let refused = self.not_issued.contains(id);
            assert!(
                !(reported && refused && !self.in_doubt.contains(id)),
                "ended, and never issued"
            );
            assert!(
                reported || refused || self.issued_before_crash.contains(id),
                "{id} of {to:?} vanished"
            );
        }
        assert_eq!(self.tracker.open_deliveries(), 0);
        assert!(self.tracker.commands.is_empty() && self.tracker.timers.is_empty());
        assert!(self.tracker.writes.is_empty() && self.tracker.unsaved_stages.is_empty());
    }
}

/// Whether a write repeats one that is durable although it was reported as failed.
fn repeats_stored_stage(store: &Store, changes: &[Change]) -> bool {
    changes.iter().any(|change| match change {
        Change::Stage { id, to, stage, .. } => store
            .rows
            .get(&(*id, *to))
            .is_none_or(|row| row.stage >= Some(*stage)),
        Change::Issued(_) | Change::StateChanged { .. } | Change::Ended { .. } => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn every_delivery_ends_exactly_once(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = Model::new();
        for step in steps {
            // The issuer of batches ends them: here before the next command.
            if matches!(step, Step::Issue { .. }) {
                world.step(Step::CancelDeferred);
            }
            world.step(step);
        }
        world.run_to_end();
        world.check_ends();
    }
}
