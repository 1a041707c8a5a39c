//! Those who may not: a station that may only look, an operator whose key was revoked, and somebody with a radio.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use serde_json::json;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Stopped;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{StopOrder, next_number};
use swarm_shared::proto::trust::SigningKey;
use swarm_shared::proto::wire::{Frame, Kind, Lane, MessageType};
use turmoil::net::UdpSocket;

use super::endpoint::{Door, Happened};
use super::fault::Fault;
use super::ground_truth::{Issued, Nature};
use super::node::RELEASE;
use super::plan::Order;
use super::world::{Died, Gauge, HostId, STOP_PORT, TICK, World};

/// Time to live of what is presumed: long enough that only the role stands in its way.
const LIFE_MS: u64 = 5_000;

pub(super) async fn process(world: Rc<World>, me: HostId) -> turmoil::Result {
    let instance = world.begin_run(me);
    let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
    udp.set_broadcast(true)?;
    let mut outsider = Outsider {
        door: Door::open(&world, me, instance).await?,
        world: Rc::clone(&world),
        me,
        udp,
        seq: 0,
        reported: BTreeMap::new(),
    };
    loop {
        if !world.is_paused(me) {
            let happened = outsider.door.turn(&world)?;
            if outsider.go_on(happened).is_err() {
                return std::future::pending().await;
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

struct Outsider {
    world: Rc<World>,
    me: HostId,
    door: Door,
    udp: UdpSocket,
    seq: u64,
    /// The stop that each node has reported to be under.
    reported: BTreeMap<PeerId, u64>,
}

impl Outsider {
    fn go_on(&mut self, happened: Vec<(PeerId, Happened)>) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        for (peer, what) in happened {
            if let Happened::Frame(frame) = what
                && frame.header.kind == Some(Kind::Stopped)
                && let Ok(report) = frame.read::<Stopped>()
                && report.stopped
            {
                self.reported.insert(peer, report.number);
            }
        }
        let mut bytes = [0; 2_048];
        while self.udp.try_recv_from(&mut bytes).is_ok() {}
        while let Some(order) = world.take_order(self.me) {
            match order {
                Order::Presume => self.presume(),
                Order::Revoked => self.revoked(),
                Order::Forge => self.forge(),
                Order::Replay => self.replay(),
                Order::Issue { .. } | Order::Stop { .. } | Order::Release { .. } => {}
            }
        }
        self.door.write(&world)?;
        let gauge = Gauge {
            open: self.door.open_links(),
            unended: 0,
        };
        world.measure(self.me, gauge);
        Ok(())
    }

    /// Orders over its links what its role does not allow: a command, a release, a stop.
    fn presume(&mut self) {
        let world = Rc::clone(&self.world);
        world.note(self.me, format_args!("presumes to give orders"));
        world.count(Fault::ObserverOrders);
        let host = &world.hosts[self.me];
        let peers: Vec<PeerId> = self.door.peers.keys().copied().collect();
        for peer in peers {
            let number = self.reported.get(&peer).copied().unwrap_or(1);
            for (action, kwargs) in [
                ("do-", json!({ "work": 0 })),
                (RELEASE, json!({ "number": number })),
            ] {
                self.seq += 1;
                let id = CommandId {
                    issuer: host.id,
                    epoch: 1,
                    seq: self.seq,
                };
                let issued = Issued {
                    by: self.me,
                    at_ms: world.now_ms(),
                    life_ms: LIFE_MS,
                    nature: Nature {
                        idempotent: false,
                        while_stopped: false,
                        flight: false,
                    },
                    targets: world.nodes().collect(),
                    authorised: false,
                    acknowledged: false,
                    copied: false,
                };
                world.truth.borrow_mut().issued(id, issued);
                let mut frame = Frame::json(Kind::Command, &json!({ "args": [], "kwargs": kwargs }));
                frame.header.message_type = MessageType::Request;
                frame.header.action = Some(action.to_owned());
                frame.header.id = Some(id.seq);
                frame.header.epoch = Some(id.epoch);
                frame.header.life = Some(LIFE_MS);
                self.send(&peer, &frame, Lane::Control);
            }
            let order = self.order(&host.key, world.fleet.grant(self.me));
            if let Some(order) = order {
                self.send(
                    &peer,
                    &Frame::binary(Kind::Stop, order.clone().into()),
                    Lane::Emergency,
                );
                self.shout(&order);
            }
        }
    }

    fn order(
        &self,
        key: &SigningKey,
        grant: &swarm_shared::proto::trust::Signed<swarm_shared::proto::trust::Grant>,
    ) -> Option<Vec<u8>> {
        let fingerprint = self.world.fleet.membership(self.me).fingerprint();
        let number = next_number(0, self.world.wall_ms(self.me));
        StopOrder::new(&fingerprint, key.public(), number, Selector::all())
            .encode(key, grant)
            .ok()
    }

    fn send(&mut self, to: &PeerId, frame: &Frame, lane: Lane) {
        if let Ok(parcel) = Parcel::new(frame) {
            self.door.send(to, parcel, lane, None);
        }
    }

    fn shout(&self, bytes: &[u8]) {
        let everybody = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
        // What does not go out is as good as lost on its way.
        let _lost = self.udp.try_send_to(bytes, everybody);
    }

    fn revoked(&self) {
        let fleet = &self.world.fleet;
        if let Some(bytes) = self.order(&fleet.revoked, &fleet.revoked_grant) {
            self.world
                .note(self.me, format_args!("shouts a stop of a revoked key"));
            self.world.count(Fault::RevokedOrders);
            self.shout(&bytes);
        }
    }

    /// Changes a stop that was overheard, or makes one up.
    fn forge(&self) {
        let mut rng = self.world.controls[self.me].borrow_mut().rng.clone();
        let heard = self.world.overheard(self.me);
        let bytes = match heard {
            Some(mut bytes) => {
                let at = rng.index(bytes.len());
                bytes[at] ^= 1 << rng.index(8);
                Some(bytes)
            }
            // With a key of its own, and the grant of the station.
            None => {
                let key = SigningKey::from_seed(rng.bytes());
                self.order(&key, self.world.fleet.grant(super::plan::STATION))
            }
        };
        self.world.controls[self.me].borrow_mut().rng = rng;
        if let Some(bytes) = bytes {
            self.world.note(self.me, format_args!("shouts a forged stop"));
            self.world.count(Fault::ForgedDatagram);
            self.shout(&bytes);
        }
    }

    fn replay(&self) {
        if let Some(bytes) = self.world.overheard(self.me) {
            self.world.note(self.me, format_args!("shouts an old stop"));
            self.world.count(Fault::ReplayedDatagram);
            self.shout(&bytes);
        }
    }
}
