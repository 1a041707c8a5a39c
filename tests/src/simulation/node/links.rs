//! The links and datagrams of a simulated node.

use std::rc::Rc;

use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::session::Event;
use swarm_shared::proto::stop::ReceivedVia;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Lane};
use turmoil::net::TcpStream;

use super::super::link::{DialFuture, Handshake, Peer, poll_once};
use super::super::world::{FrameFault, Killed, STATION_PORT};
use super::{DialState, Node};

/// Longest time until the next dial after a failed one, in milliseconds: the interval of the station's announcements.
const REDIAL_MS: u64 = 1_000;
/// Time-out of a dial, in milliseconds.
const DIAL_MS_MAX: u64 = 3_000;
/// Longest datagram, in bytes.
const DATAGRAM_BYTES: usize = 2_048;

impl Node {
    /// Dials every station that is not linked, and attaches completed handshakes.
    pub(super) fn connect(&mut self) {
        let world = Rc::clone(&self.world);
        let now = world.now_ms();
        let moves = world.controls[self.own_host].borrow().address_changes;
        if moves != self.address_changes {
            self.address_changes = moves;
            self.dials.clear();
            self.handshakes.clear();
        }
        for station in world.members() {
            let id = world.hosts[station].id;
            let linked = self.peers.get(&id).is_some_and(Peer::is_linked);
            let greeting = self.handshakes.iter().any(|greeting| greeting.host == station);
            let dial = self.dials.entry(station).or_insert(DialState {
                attempt: None,
                next_ms: now,
            });
            if let Some((dialing, since)) = &mut dial.attempt {
                match poll_once(dialing.as_mut()) {
                    Some(Ok(stream)) => {
                        dial.attempt = None;
                        if let Ok(greeting) = Handshake::new(stream, station, self.instance, now) {
                            self.handshakes.push(greeting);
                        }
                    }
                    Some(Err(_)) => dial.attempt = None,
                    None if now > *since + DIAL_MS_MAX => dial.attempt = None,
                    None => {}
                }
            } else if !linked && !greeting && now >= dial.next_ms {
                let jitter = world.controls[self.own_host]
                    .borrow_mut()
                    .rng
                    .between(200, REDIAL_MS);
                dial.next_ms = now + jitter;
                let address = world.address(station, STATION_PORT);
                dial.attempt = address.map(|address| {
                    let dialing: DialFuture = Box::pin(TcpStream::connect(address));
                    (dialing, now)
                });
            }
        }
        let mut kept = Vec::new();
        for mut greeting in std::mem::take(&mut self.handshakes) {
            match greeting.poll_instance(now) {
                Ok(Some(instance)) => self.attach_link(greeting, instance),
                Ok(None) => kept.push(greeting),
                Err(_) => {}
            }
        }
        self.handshakes = kept;
    }

    fn attach_link(&mut self, greeting: Handshake, instance: Instance) {
        let id = self.world.hosts[greeting.host].id;
        let now = self.world.monotonic_now(self.own_host);
        let peer = match self.peers.entry(id) {
            std::collections::btree_map::Entry::Occupied(peer) => peer.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let Ok(peer) = Peer::new(greeting.host, self.instance, now) else {
                    return;
                };
                vacant.insert(peer)
            }
        };
        // Another process with the same key is linked: the second has to wait, as at the real endpoint.
        if peer.is_linked() {
            return;
        }
        peer.attach(&self.world, self.own_host, greeting, instance);
    }

    /// Reads the received datagrams.
    pub(super) fn receive_datagrams(&mut self) -> Result<(), Killed> {
        let mut bytes = [0; DATAGRAM_BYTES];
        while let Ok((length, from)) = self.udp.try_recv_from(&mut bytes) {
            let own = self.world.host_at(from.ip()) == Some(self.own_host);
            if own || self.world.is_datagram_lost(self.own_host) {
                continue;
            }
            let times = match self.world.draw_frame_fault(self.own_host) {
                Some(FrameFault::Drop) => 0,
                Some(FrameFault::Duplicate) => 2,
                Some(FrameFault::Reorder) | None => 1,
            };
            for _ in 0..times {
                self.on_stop(&bytes[..length], ReceivedVia::Datagram, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn send(&mut self, to: PeerId, frame: &Frame, lane: Lane) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        if let Ok(encoded) = EncodedFrame::new(frame) {
            let taken = peer.send(encoded, lane, None);
            if !taken {
                self.world.log(
                    self.own_host,
                    format_args!("{:?} found no room", frame.header.kind),
                );
            }
        }
    }

    pub(super) fn receive_frames(&mut self) -> Result<(), Killed> {
        let world = Rc::clone(&self.world);
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let host = peer.host;
            for event in peer.read(&world, self.own_host) {
                match event {
                    Event::Frame { frame, deadline } => self.on_frame(id, host, *frame, deadline)?,
                    Event::Opened { resumed } => {
                        let name = &world.hosts[host].name;
                        world.log(
                            self.own_host,
                            format_args!("is linked with {name}, resumed: {resumed}"),
                        );
                        if self.stop_receiver.active_stop().is_some() {
                            self.send_stop_reports(Some(id), None);
                        }
                    }
                    Event::RequestEnded(..) | Event::Silent | Event::Recovered => {}
                }
            }
        }
        Ok(())
    }
}
