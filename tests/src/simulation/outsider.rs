//! Peers without permission: a station that is an observer, an operator whose key was revoked, and an attacker on the
//! network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use serde_json::json;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::stop::{StopOrder, next_number};
use swarm_shared::proto::trust::SigningKey;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane, MessageType};
use turmoil::net::UdpSocket;

use super::endpoint::{LinkEvent, SimEndpoint};
use super::fault::Fault;
use super::ground_truth::{IssuedCommand, SimActionProperties};
use super::node::RELEASE;
use super::plan::PlannedRequest;
use super::world::{HostId, HostStats, Killed, STOP_PORT, TICK, World};

/// Time to live of the unauthorised commands, in milliseconds: long enough that only the role prevents them.
const TTL_MS: u64 = 5_000;

pub(super) async fn process(world: Rc<World>, own_host: HostId) -> turmoil::Result {
    let instance = world.start_process(own_host);
    let udp = UdpSocket::bind(("0.0.0.0", STOP_PORT)).await?;
    udp.set_broadcast(true)?;
    let mut outsider = Outsider {
        endpoint: SimEndpoint::open(&world, own_host, instance).await?,
        world: Rc::clone(&world),
        own_host,
        udp,
        seq: 0,
        reported_stops: BTreeMap::new(),
    };
    loop {
        if !world.is_paused(own_host) {
            let happened = outsider.endpoint.poll_events(&world)?;
            if outsider.process_events(happened).is_err() {
                return std::future::pending().await;
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

struct Outsider {
    world: Rc<World>,
    own_host: HostId,
    endpoint: SimEndpoint,
    udp: UdpSocket,
    seq: u64,
    /// The stop that each node has reported.
    reported_stops: BTreeMap<PeerId, u64>,
}

impl Outsider {
    fn process_events(&mut self, happened: Vec<(PeerId, LinkEvent)>) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        for (peer, what) in happened {
            if let LinkEvent::Frame(frame) = what
                && frame.header.kind == Some(Kind::Stopped)
                && let Ok(report) = frame.parse_content::<StopStatus>()
                && report.stopped
            {
                self.reported_stops.insert(peer, report.number);
            }
        }
        let mut bytes = [0; 2_048];
        while self.udp.try_recv_from(&mut bytes).is_ok() {}
        while let Some(order) = world.take_request(self.own_host) {
            match order {
                PlannedRequest::SendUnauthorised => self.send_unauthorised(),
                PlannedRequest::SendRevokedStop => self.send_revoked_stop(),
                PlannedRequest::SendForgedStop => self.send_forged_stop(),
                PlannedRequest::ReplayDatagram => self.replay_datagram(),
                PlannedRequest::Issue { .. }
                | PlannedRequest::Stop { .. }
                | PlannedRequest::Release { .. } => {}
            }
        }
        self.endpoint.write(&world)?;
        let gauge = HostStats {
            open_links: self.endpoint.open_links(),
            open_deliveries: 0,
        };
        world.set_stats(self.own_host, gauge);
        Ok(())
    }

    /// Sends over its links what its role does not permit: a command, a release, a stop.
    fn send_unauthorised(&mut self) {
        let world = Rc::clone(&self.world);
        world.log(self.own_host, format_args!("presumes to give orders"));
        world.count_fault(Fault::ObserverOrders);
        let host = &world.hosts[self.own_host];
        let peers: Vec<PeerId> = self.endpoint.peers.keys().copied().collect();
        for peer in peers {
            let number = self.reported_stops.get(&peer).copied().unwrap_or(1);
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
                let issued = IssuedCommand {
                    issuer: self.own_host,
                    issued_ms: world.now_ms(),
                    ttl_ms: TTL_MS,
                    properties: SimActionProperties {
                        idempotent: false,
                        while_stopped: false,
                        flight: false,
                    },
                    targets: world.nodes().collect(),
                    authorised: false,
                    acknowledged: false,
                    in_copied_store: false,
                };
                world.truth.borrow_mut().record_issued(id, issued);
                let mut frame = Frame::json(Kind::Command, &json!({ "args": [], "kwargs": kwargs }));
                frame.header.message_type = MessageType::Request;
                frame.header.action = Some(action.to_owned());
                frame.header.id = Some(id.seq);
                frame.header.epoch = Some(id.epoch);
                frame.header.life = Some(TTL_MS);
                self.send(&peer, &frame, Lane::Control);
            }
            let order = self.encode_stop(&host.key, world.fleet.grant(self.own_host));
            if let Some(order) = order {
                self.send(
                    &peer,
                    &Frame::binary(Kind::Stop, order.clone().into()),
                    Lane::Emergency,
                );
                self.broadcast(&order);
            }
        }
    }

    fn encode_stop(
        &self,
        key: &SigningKey,
        grant: &swarm_shared::proto::trust::Signed<swarm_shared::proto::trust::Grant>,
    ) -> Option<Vec<u8>> {
        let fingerprint = self.world.fleet.membership(self.own_host).fingerprint();
        let number = next_number(0, self.world.wall_clock_ms(self.own_host));
        StopOrder::new(&fingerprint, key.public(), number, Selector::all())
            .encode(key, grant)
            .ok()
    }

    fn send(&mut self, to: &PeerId, frame: &Frame, lane: Lane) {
        if let Ok(encoded) = EncodedFrame::new(frame) {
            self.endpoint.send(to, encoded, lane, None);
        }
    }

    fn broadcast(&self, bytes: &[u8]) {
        let broadcast_addr = SocketAddr::from(([255, 255, 255, 255], STOP_PORT));
        // A datagram that cannot be sent counts as lost in transit.
        let _lost = self.udp.try_send_to(bytes, broadcast_addr);
    }

    fn send_revoked_stop(&self) {
        let fleet = &self.world.fleet;
        if let Some(bytes) = self.encode_stop(&fleet.revoked, &fleet.revoked_grant) {
            self.world
                .log(self.own_host, format_args!("shouts a stop of a revoked key"));
            self.world.count_fault(Fault::RevokedOrders);
            self.broadcast(&bytes);
        }
    }

    /// Changes a recorded stop, or makes one up.
    fn send_forged_stop(&self) {
        let mut rng = self.world.controls[self.own_host].borrow_mut().rng.clone();
        let heard = self.world.random_sent_datagram(self.own_host);
        let bytes = match heard {
            Some(mut bytes) => {
                let at = rng.index(bytes.len());
                bytes[at] ^= 1 << rng.index(8);
                Some(bytes)
            }
            // With a key of its own, and the grant of the station.
            None => {
                let key = SigningKey::from_seed(rng.bytes());
                self.encode_stop(&key, self.world.fleet.grant(super::plan::STATION))
            }
        };
        self.world.controls[self.own_host].borrow_mut().rng = rng;
        if let Some(bytes) = bytes {
            self.world
                .log(self.own_host, format_args!("shouts a forged stop"));
            self.world.count_fault(Fault::ForgedDatagram);
            self.broadcast(&bytes);
        }
    }

    fn replay_datagram(&self) {
        if let Some(bytes) = self.world.random_sent_datagram(self.own_host) {
            self.world.log(self.own_host, format_args!("shouts an old stop"));
            self.world.count_fault(Fault::ReplayedDatagram);
            self.broadcast(&bytes);
        }
    }
}
