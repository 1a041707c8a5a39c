//! Its links and datagrams.

use std::rc::Rc;

use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::session::Event;
use swarm_shared::proto::stop::Carrier;
use swarm_shared::proto::wire::{Frame, Lane};
use turmoil::net::TcpStream;

use super::super::link::{Dialing, Greeting, Peer, look};
use super::super::world::{Died, Meddling, STATION_PORT};
use super::{Dial, Node};

/// How long after a failed dial the next one comes, in milliseconds: at most; an announcement of the station's comes
/// that often.
const REDIAL_MS: u64 = 1_000;
/// How long a dial may take, in milliseconds.
const DIAL_MS_MAX: u64 = 3_000;
/// Longest datagram.
const DATAGRAM_BYTES: usize = 2_048;

impl Node {
    /// Dials every station that is there and not linked; takes in who has said hello.
    pub(super) fn connect(&mut self) {
        let world = Rc::clone(&self.world);
        let now = world.now_ms();
        let moves = world.controls[self.me].borrow().moves;
        if moves != self.moves {
            self.moves = moves;
            self.dials.clear();
            self.greetings.clear();
        }
        for station in world.members() {
            let id = world.hosts[station].id;
            let linked = self.peers.get(&id).is_some_and(Peer::is_linked);
            let greeting = self.greetings.iter().any(|greeting| greeting.host == station);
            let dial = self.dials.entry(station).or_insert(Dial {
                dialing: None,
                next_ms: now,
            });
            if let Some((dialing, since)) = &mut dial.dialing {
                match look(dialing.as_mut()) {
                    Some(Ok(stream)) => {
                        dial.dialing = None;
                        if let Ok(greeting) = Greeting::new(stream, station, self.instance, now) {
                            self.greetings.push(greeting);
                        }
                    }
                    Some(Err(_)) => dial.dialing = None,
                    None if now > *since + DIAL_MS_MAX => dial.dialing = None,
                    None => {}
                }
            } else if !linked && !greeting && now >= dial.next_ms {
                let jitter = world.controls[self.me].borrow_mut().rng.between(200, REDIAL_MS);
                dial.next_ms = now + jitter;
                let address = world.address(station, STATION_PORT);
                dial.dialing = address.map(|address| {
                    let dialing: Dialing = Box::pin(TcpStream::connect(address));
                    (dialing, now)
                });
            }
        }
        let mut kept = Vec::new();
        for mut greeting in std::mem::take(&mut self.greetings) {
            match greeting.turn(now) {
                Ok(Some(instance)) => self.link(greeting, instance),
                Ok(None) => kept.push(greeting),
                Err(_) => {}
            }
        }
        self.greetings = kept;
    }

    fn link(&mut self, greeting: Greeting, instance: Instance) {
        let id = self.world.hosts[greeting.host].id;
        let now = self.world.instant(self.me);
        let peer = match self.peers.entry(id) {
            std::collections::btree_map::Entry::Occupied(peer) => peer.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let Ok(peer) = Peer::new(greeting.host, self.instance, now) else {
                    return;
                };
                vacant.insert(peer)
            }
        };
        // Another process with the same key is linked: the second has to wait, as at the endpoint.
        if peer.is_linked() {
            return;
        }
        peer.attach(&self.world, self.me, greeting, instance);
    }

    /// Reads datagrams.
    pub(super) fn listen(&mut self) -> Result<(), Died> {
        let mut bytes = [0; DATAGRAM_BYTES];
        while let Ok((length, from)) = self.udp.try_recv_from(&mut bytes) {
            let own = self.world.at(from.ip()) == Some(self.me);
            if own || self.world.is_datagram_lost(self.me) {
                continue;
            }
            let times = match self.world.meddle(self.me) {
                Some(Meddling::Drop) => 0,
                Some(Meddling::Duplicate) => 2,
                Some(Meddling::Reorder) | None => 1,
            };
            for _ in 0..times {
                self.hear(&bytes[..length], Carrier::Datagram, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn send(&mut self, to: PeerId, frame: &Frame, lane: Lane) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        if let Ok(parcel) = Parcel::new(frame) {
            let taken = peer.send(parcel, lane, None);
            if !taken {
                self.world
                    .note(self.me, format_args!("{:?} found no room", frame.header.kind));
            }
        }
    }

    pub(super) fn read(&mut self) -> Result<(), Died> {
        let world = Rc::clone(&self.world);
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let host = peer.host;
            for event in peer.read(&world, self.me) {
                match event {
                    Event::Frame { frame, deadline } => self.take(id, host, *frame, deadline)?,
                    Event::Opened { resumed } => {
                        let name = &world.hosts[host].name;
                        world.note(self.me, format_args!("is linked with {name}, resumed: {resumed}"));
                        if self.stop.present().is_some() {
                            self.report(Some(id), None);
                        }
                    }
                    Event::Settled(..) | Event::Silent | Event::Heard => {}
                }
            }
        }
        Ok(())
    }
}
