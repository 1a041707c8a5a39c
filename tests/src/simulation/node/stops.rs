//! The emergency stop at a simulated node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopCommandState, StopStatus};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::NodeAttributes;
use swarm_shared::proto::stop::{ActiveStop, Received, ReceivedVia, StopId, StopReceiver};
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::super::world::{Killed, STOP_PORT};
use super::{Node, WritePurpose};

impl Node {
    /// Handles a stop order, from `peer` if it came over its link.
    pub(super) fn on_stop(
        &mut self,
        bytes: &[u8],
        carrier: ReceivedVia,
        peer: Option<PeerId>,
    ) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        let now = world.monotonic_now(self.own_host);
        let host = &world.hosts[self.own_host];
        let tags = BTreeMap::new();
        let target = NodeAttributes {
            name: &host.node_name,
            id: &host.id,
            tags: &tags,
        };
        let membership = world.fleet.membership(self.own_host);
        let heard = match self
            .stop_receiver
            .receive(bytes, carrier, Some(membership), &target, now)
        {
            Ok(heard) => heard,
            Err(fault) => {
                world.log(self.own_host, format_args!("rejects a stop: {fault}"));
                return Ok(());
            }
        };
        if heard != Received::Ignored {
            world.log(self.own_host, format_args!("hears over a {carrier:?}: {heard:?}"));
        }
        match heard {
            Received::New(order) => {
                world.record_stop_received(self.own_host, order);
                self.executor.on_stop(now);
                let record = Record::Stopped {
                    issuer: order.issuer,
                    number: order.number,
                };
                self.enqueue_write(vec![record], WritePurpose::Stop(order));
                self.relay_stop(bytes);
                self.send_stop_reports(None, Some(order));
            }
            Received::Duplicate(order) | Received::Stale(order) => self.send_stop_reports(peer, Some(order)),
            Received::OtherTargets {
                id: order,
                forward: pass_on,
            } => {
                if pass_on {
                    self.relay_stop(bytes);
                }
                if let Some(to) = peer {
                    let mut report = self.stop_receiver.status(&to, Some(order), now);
                    (report.issuer, report.number, report.not_selected) = (order.issuer, order.number, true);
                    self.send_stop_report(to, &report);
                }
            }
            Received::NumberRaised(order) => {
                let record = Record::StopSeen {
                    issuer: order.issuer,
                    number: order.number,
                };
                self.enqueue_write(vec![record], WritePurpose::Unawaited);
            }
            Received::Ignored => {}
        }
        Ok(())
    }

    /// Broadcasts the order once more, for nodes that did not receive it.
    fn relay_stop(&self, bytes: &[u8]) {
        let broadcast_addr = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
        self.world.broadcast(&self.udp, bytes, broadcast_addr);
    }

    /// Sends the status of the stop to one station, or to all.
    pub(super) fn send_stop_reports(&mut self, to: Option<PeerId>, about: Option<StopId>) {
        let now = self.world.monotonic_now(self.own_host);
        let all: Vec<PeerId> = match to {
            Some(to) => vec![to],
            None => self.peers.keys().copied().collect(),
        };
        for to in all {
            let report = self.stop_receiver.status(&to, about, now);
            self.send_stop_report(to, &report);
        }
        if let Some(present) = self.stop_receiver.active_stop()
            && present.latched
        {
            let order = present.id;
            self.world
                .truth
                .borrow_mut()
                .record_latch_reported(self.own_host, order);
        }
    }

    fn send_stop_report(&mut self, to: PeerId, report: &StopStatus) {
        self.send(to, &Frame::json(Kind::Stopped, report), Lane::Emergency);
    }

    /// Carries out a release: stored first, then in force.
    pub(super) fn release_stop(&mut self, id: CommandId, arguments: &Arguments) {
        let now = self.world.monotonic_now(self.own_host);
        let number = arguments.kwargs.get("number").and_then(serde_json::Value::as_u64);
        let number = number.unwrap_or_default();
        match self.stop_receiver.check_release(number, None) {
            Ok(order) => {
                self.world
                    .truth
                    .borrow_mut()
                    .record_release_started(self.own_host, order);
                let record = Record::Released { number: order.number };
                self.enqueue_write(vec![record], WritePurpose::Release(order, id, number));
            }
            Err(refused) => self
                .executor
                .on_finished(id, Reply::failed(refused.to_string()), now),
        }
    }
}

pub(super) fn restore_stop(dedup: &DedupTable, now: Instant) -> StopReceiver {
    let mut seen = Vec::new();
    for record in dedup.records() {
        if let Record::StopSeen { issuer, number } = record {
            seen.push(StopId { issuer, number });
        }
    }
    let present = dedup.latch().map(|latch| ActiveStop {
        id: StopId {
            issuer: latch.issuer,
            number: latch.number,
        },
        since: now,
        earlier_ms: 0,
        held: false,
        latched: true,
        latch_error: None,
        command: StopCommandState::None,
        command_error: None,
    });
    StopReceiver::new(false, seen, present)
}
