//! A station's endpoint: nodes dial it, and it keeps a session with each.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;

use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::session::Event;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Lane};
use turmoil::net::TcpListener;

use super::link::{Handshake, Peer, poll_once};
use super::world::{HostId, HostKind, Killed, STATION_PORT, World};

pub(super) struct SimEndpoint {
    own_host: HostId,
    instance: Instance,
    listener: Option<TcpListener>,
    address_changes: u16,
    handshakes: Vec<Handshake>,
    pub(super) peers: BTreeMap<PeerId, Peer>,
}

/// A change of a node's link, or a frame.
pub(super) enum LinkEvent {
    Up { resumed: bool },
    Down,
    Frame(Box<Frame>),
}

impl SimEndpoint {
    pub(super) async fn open(world: &World, own_host: HostId, instance: Instance) -> io::Result<Self> {
        let moves = world.controls[own_host].borrow().address_changes;
        Ok(Self {
            own_host,
            instance,
            listener: Some(TcpListener::bind(("0.0.0.0", STATION_PORT + moves)).await?),
            address_changes: moves,
            handshakes: Vec::new(),
            peers: BTreeMap::new(),
        })
    }

    /// Accepts, completes handshakes and reads; returns the events in order.
    pub(super) fn poll_events(&mut self, world: &World) -> io::Result<Vec<(PeerId, LinkEvent)>> {
        self.rebind_after_move(world)?;
        while let Some(listener) = &self.listener
            && let Some(Ok((stream, from))) = poll_once(pin!(listener.accept()))
        {
            let node = world.host_at(from.ip());
            let node = node.filter(|host| world.hosts[*host].kind == HostKind::Node);
            if let Some(host) = node
                && let Ok(greeting) = Handshake::new(stream, host, self.instance, world.now_ms())
            {
                self.handshakes.push(greeting);
            }
        }
        let mut happened = Vec::new();
        self.complete_handshakes(world, &mut happened);
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.read(world, id, &mut happened);
        }
        Ok(happened)
    }

    /// The address has changed: the old listener is unreachable.
    fn rebind_after_move(&mut self, world: &World) -> io::Result<()> {
        let moves = world.controls[self.own_host].borrow().address_changes;
        if moves == self.address_changes {
            return Ok(());
        }
        self.address_changes = moves;
        self.handshakes.clear();
        self.listener = None;
        let mut bind = Box::pin(TcpListener::bind(("0.0.0.0", STATION_PORT + moves)));
        self.listener = poll_once(bind.as_mut()).transpose()?;
        Ok(())
    }

    fn complete_handshakes(&mut self, world: &World, happened: &mut Vec<(PeerId, LinkEvent)>) {
        let mut kept = Vec::new();
        for mut greeting in std::mem::take(&mut self.handshakes) {
            match greeting.poll_instance(world.now_ms()) {
                Ok(Some(instance)) => {
                    let id = world.hosts[greeting.host].id;
                    if !self.peers.contains_key(&id) {
                        match Peer::new(greeting.host, self.instance, world.monotonic_now(self.own_host)) {
                            Ok(peer) => self.peers.insert(id, peer),
                            Err(_) => continue,
                        };
                    }
                    self.read(world, id, happened);
                    let Some(peer) = self.peers.get_mut(&id) else {
                        continue;
                    };
                    // A node that dials again has lost the old link.
                    peer.close_link();
                    push_if_down(peer, id, happened);
                    peer.attach(world, self.own_host, greeting, instance);
                }
                Ok(None) => kept.push(greeting),
                Err(_) => {}
            }
        }
        self.handshakes = kept;
    }

    fn read(&mut self, world: &World, id: PeerId, happened: &mut Vec<(PeerId, LinkEvent)>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        for event in peer.read(world, self.own_host) {
            match event {
                Event::Opened { resumed } => {
                    let name = &world.hosts[peer.host].name;
                    world.log(
                        self.own_host,
                        format_args!("is linked with {name}, resumed: {resumed}"),
                    );
                    peer.reported_up = true;
                    happened.push((id, LinkEvent::Up { resumed }));
                }
                Event::Frame { frame, .. } => happened.push((id, LinkEvent::Frame(frame))),
                Event::RequestEnded(..) | Event::Silent | Event::Recovered => {}
            }
        }
        push_if_down(peer, id, happened);
    }

    /// Passes a frame to a node's session; false if it is not accepted.
    pub(super) fn send(
        &mut self,
        to: &PeerId,
        frame: EncodedFrame,
        lane: Lane,
        deadline: Option<std::time::Instant>,
    ) -> bool {
        let peer = self.peers.get_mut(to).filter(|peer| peer.session.is_open());
        peer.is_some_and(|peer| peer.send(frame, lane, deadline))
    }

    /// Writes to all nodes; returns those whose links broke.
    pub(super) fn write(&mut self, world: &World) -> Result<Vec<(PeerId, LinkEvent)>, Killed> {
        let mut happened = Vec::new();
        for (id, peer) in &mut self.peers {
            peer.write(world, self.own_host)?;
            push_if_down(peer, *id, &mut happened);
        }
        Ok(happened)
    }

    /// The nodes with open links.
    pub(super) fn open_links(&self) -> Vec<HostId> {
        let open = self.peers.values().filter(|peer| peer.session.is_open());
        open.map(|peer| peer.host).collect()
    }
}

fn push_if_down(peer: &mut Peer, id: PeerId, happened: &mut Vec<(PeerId, LinkEvent)>) {
    if peer.reported_up && !peer.session.is_open() {
        peer.reported_up = false;
        happened.push((id, LinkEvent::Down));
    }
}
