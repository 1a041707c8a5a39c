//! Emergency stops, as the node hears, passes on, tells and ends them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopCommand, Stopped};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::Target;
use swarm_shared::proto::stop::{Carrier, Heard, Latch, Present, StopDesk};
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::super::world::{Died, STOP_PORT};
use super::{Node, Wait};

impl Node {
    /// Hears a stop, from `peer` if it came over its link.
    pub(super) fn hear(&mut self, bytes: &[u8], carrier: Carrier, peer: Option<PeerId>) -> Result<(), Died> {
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
    pub(super) fn report(&mut self, to: Option<PeerId>, about: Option<Latch>) {
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

    fn send_report(&mut self, to: PeerId, report: &Stopped) {
        self.send(to, &Frame::json(Kind::Stopped, report), Lane::Emergency);
    }

    /// Carries a release out: written down first, then in force.
    pub(super) fn release(&mut self, id: CommandId, arguments: &Arguments) {
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
}

pub(super) fn restore_stop(ledger: &Ledger, now: Instant) -> StopDesk {
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
